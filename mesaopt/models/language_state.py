"""The state of a language model between two tokens, in memory and in a file."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import safetensors.torch
from jaxtyping import Int
from safetensors import SafetensorError
from torch import Tensor

from mesaopt import files
from mesaopt.errors import RunError
from mesaopt.layers import LayerState
from mesaopt.layers.state import moved
from mesaopt.ops import KeyValueState, LinearState, MesaState

_MEMORIES = (LinearState, MesaState, KeyValueState)


@dataclass(frozen=True)
class LanguageState:
    """The states of all layers, and the number of tokens of each sequence so far.

    Its size does not grow with the text, but for softmax attention without a window. A call of a model
    leaves the state that it is given as it is: one that is kept is a way back.

    Example:
        >>> import torch
        >>> from mesaopt.config import LanguageModelConfig
        >>> from mesaopt.models import LanguageModel
        >>> model = LanguageModel(LanguageModelConfig(vocabulary=16, width=8, num_heads=2))
        >>> _, state = model.extend(torch.randint(16, (3, 10)))
        >>> state.seen.tolist(), state.index_select(torch.tensor([2, 2])).seen.tolist()
        ([10, 10, 10], [10, 10])
    """

    layers: tuple[LayerState, ...]
    """The state of each layer, first to last."""
    seen: Int[Tensor, " batch"]
    """Tokens of each sequence so far, padding left out."""

    @property
    def num_sequences(self) -> int:
        """Number of sequences whose state this is."""
        return len(self.seen)

    def index_select(self, indices: Int[Tensor, " selected"]) -> "LanguageState":
        """Choose sequences by number: to reorder them, to drop some, or to go on from one in several ways.

        Args:
            indices: numbers of sequences from 0, one or more, repetitions allowed.

        Returns:
            The state of these sequences, in this order.

        Raises:
            ValueError: the indices are no list of integers, or out of range.
        """
        layers = tuple(layer.index_select(indices) for layer in self.layers)
        return LanguageState(layers, self.seen.index_select(0, indices.to(self.seen.device)))

    def detach(self) -> "LanguageState":
        """Cut the state off from the graph that computed it: gradients end here."""
        layers = tuple(layer.detach() for layer in self.layers)
        return LanguageState(layers, self.seen)

    def copy(self) -> "LanguageState":
        """Return the same numbers in memory of their own, without a history of gradients."""
        layers = tuple(layer.copy() for layer in self.layers)
        return LanguageState(layers, self.seen.detach().clone())

    def to(self, *args: Any, **kwargs: Any) -> "LanguageState":
        """Move the state to a device, or convert it, as :meth:`mesaopt.layers.LayerState.to` does."""
        layers = tuple(layer.to(*args, **kwargs) for layer in self.layers)
        return LanguageState(layers, moved(self.seen, args, kwargs))

    @property
    def tensors(self) -> dict[str, Tensor]:
        """All tensors, by name: "layers.0.memory.gram", "layers.0.recent", "seen"."""
        tensors = {"seen": self.seen}
        for number, layer in enumerate(self.layers):
            parts = {f"memory.{name}": x for name, x in layer.memory._asdict().items()}
            parts |= {"recent": layer.recent, "seen": layer.seen}
            for name, x in parts.items():
                if isinstance(x, Tensor):
                    tensors[f"layers.{number}.{name}"] = x
        return tensors

    @property
    def num_bytes(self) -> int:
        """Memory that the numbers take."""
        return sum(x.numel() * x.element_size() for x in self.tensors.values())

    def save(self, path: str | Path) -> None:
        """Write the state to a file, in the format safetensors; nothing is pickled.

        Args:
            path: of the file, which appears whole.

        Raises:
            RunError: it cannot be written.
        """
        tensors = {name: x.detach().cpu().contiguous() for name, x in self.tensors.items()}
        # Neighbouring layers may share a tensor of no elements, which the format does not allow.
        data = safetensors.torch.save({name: x.clone() for name, x in tensors.items()})
        files.write(files.as_path(path), data)

    @classmethod
    def load(cls, path: str | Path) -> "LanguageState":
        """Read a state from a file.

        Args:
            path: of a file that :meth:`save` wrote.

        Returns:
            The state, on the CPU. A model refuses it where it does not fit.

        Raises:
            RunError: the file is missing, or holds something else.
        """
        where = files.as_path(path)
        data = files.read_bytes(where)
        try:
            tensors = safetensors.torch.load(data)
            count = 1 + max(int(name.split(".")[1]) for name in tensors if "." in name)
            layers = (_layer(_below(tensors, f"layers.{number}.")) for number in range(count))
            return cls(tuple(layers), tensors["seen"])
        except (SafetensorError, RuntimeError, ValueError, KeyError, TypeError) as error:
            raise RunError(f"{where}: holds no state of a language model ({error})") from None


def _below(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): x for name, x in tensors.items() if name.startswith(prefix)}


def _layer(tensors: Mapping[str, Tensor]) -> LayerState:
    """Put the state of a layer together; the names of its tensors tell which one it is."""
    memory = _below(tensors, "memory.")
    for kind in _MEMORIES:
        required = kind._fields[: len(kind._fields) - len(kind._field_defaults)]
        if set(required) <= memory.keys() <= set(kind._fields):
            return LayerState(cast(Any, kind)(**memory), tensors.get("recent"))
    raise ValueError(f"names {', '.join(sorted(memory))}")
