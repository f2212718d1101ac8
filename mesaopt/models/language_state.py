"""What a language model carries from one token to the next."""

from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from mesaopt.layers import LayerState


@dataclass(frozen=True)
class LanguageState:
    """The states of all layers, and the number of tokens of each sequence so far.

    A call of a model leaves the state that it is given as it is. So a state that is kept is a way back.

    Example:
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

    def index_select(self, indices: Int[Tensor, " selected"]) -> "LanguageState":
        """Choose sequences by number: to reorder them, to drop some, or to go on from one in several ways.

        Args:
            indices: numbers of sequences from 0, one or more, repetitions allowed.

        Returns:
            The state of these sequences, in this order.
        """
        layers = tuple(layer.index_select(indices) for layer in self.layers)
        return LanguageState(layers, self.seen.index_select(0, indices.to(self.seen.device)))

    def to(self, *args: Any, **kwargs: Any) -> "LanguageState":
        """Move the state to a device, or convert it as :meth:`mesaopt.layers.LayerState.to` does."""
        layers = tuple(layer.to(*args, **kwargs) for layer in self.layers)
        place = torch.empty(0).to(*args, **kwargs).device
        return replace(self, layers=layers, seen=self.seen.to(place))
