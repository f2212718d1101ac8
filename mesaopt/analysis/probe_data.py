"""Activations of a model and targets of probes, collected on many sequences."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mesaopt.analysis.capture import capture, distinct, evaluating, like_weights
from mesaopt.analysis.evaluation import Evaluation
from mesaopt.analysis.given import AnyModel, AnyTask, as_model, as_task
from mesaopt.analysis.probe_targets import Target, places
from mesaopt.config import TokenSlot, require_whole
from mesaopt.models import SequenceModel
from mesaopt.tasks import Batch, tokens_from_states


@dataclass(frozen=True)
class ProbeData:
    """Activations of some layers at some positions, and the targets of probes there.

    Made by :func:`collect_activations`.
    """

    features: Mapping[str, Float[Tensor, "sequence position feature"]]
    """Activations by name of the layer."""
    targets: Mapping[str, Float[Tensor, "sequence position dim"]]
    """Targets by name."""
    positions: tuple[int, ...]
    """Positions, counted from 1."""


@torch.no_grad()
def collect_activations(
    model: AnyModel,
    task: AnyTask,
    targets: Mapping[str, Target],
    *,
    positions: Sequence[int],
    names: Sequence[str] | None = None,
    slots: tuple[TokenSlot, ...] | None = None,
    evaluation: Evaluation = Evaluation(num_sequences=2048),
) -> ProbeData:
    """Run a model on new sequences and keep activations and targets at some positions.

    Args:
        model: any module from tokens to [batch, time, width]. It computes in evaluation mode,
            on tokens of the type of its weights.
        task: source of the sequences.
        targets: targets of the probes, by name.
        positions: counted from 1.
        names: layers that give [batch, time, channel], as in :func:`mesaopt.analysis.capture`. Heads of
            queries, keys and values are concatenated. If not given, the residual stream before and after
            every layer of a :class:`mesaopt.models.SequenceModel`.
        slots: of the tokens the model was trained on; those of the task if not given.
        evaluation: the sequences; 2048 test sequences if not given.

    Returns:
        Activations and targets, in their own types, on the CPU.

    Raises:
        ValueError: there are no names, no such layer, or no such position, or a layer gives another shape.

    Example:
        >>> from mesaopt.analysis import next_token
        >>> from mesaopt.config import LinearSystemConfig, ModelConfig
        >>> from mesaopt.tasks import LinearSystem
        >>> task = LinearSystem(LinearSystemConfig(length=6))
        >>> data = collect_activations(
        ...     SequenceModel(ModelConfig()), task, {"next": next_token}, positions=[5, 6]
        ... )
        >>> {name: tuple(features.shape) for name, features in data.features.items()}
        {'blocks.0.input': (2048, 2, 40), 'blocks.0': (2048, 2, 40)}
    """
    model, task = as_model(model), as_task(task)
    names = stream_names(model) if names is None else distinct(names)
    if not positions or not names:
        raise ValueError("positions, names: must not be empty")

    def read(batch: Batch) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        _check_positions(positions, batch.targets.shape[1])
        features = features_of(model, batch, names, slots)
        kept = {name: x[:, places(positions)].cpu() for name, x in features.items()}
        return kept, {target: of(batch, positions).cpu() for target, of in targets.items()}

    kept: dict[str, list[Tensor]] = {name: [] for name in names}
    wanted: dict[str, list[Tensor]] = {target: [] for target in targets}
    for parts in evaluation.map(task, read):
        for lists, tensors in zip((kept, wanted), parts, strict=True):
            for name, tensor in tensors.items():
                lists[name].append(tensor)
    return ProbeData(_joined(kept), _joined(wanted), tuple(positions))


def stream_names(model: AnyModel) -> list[str]:
    """List the names of the residual stream of a model, before the first layer and after each.

    Args:
        model: a :class:`mesaopt.models.SequenceModel`.

    Returns:
        Names for :func:`mesaopt.analysis.capture`.

    Raises:
        ValueError: it is another model, whose layers are not known.

    Example:
        >>> from mesaopt.config import ModelConfig
        >>> stream_names(SequenceModel(ModelConfig()))
        ['blocks.0.input', 'blocks.0']
    """
    model = as_model(model)
    if not isinstance(model, SequenceModel):
        raise ValueError(f"names=None: must be given for a {type(model).__name__}")
    return ["blocks.0.input", *(f"blocks.{layer}" for layer in range(len(model.blocks)))]


def features_of(
    model: nn.Module, batch: Batch, names: Sequence[str], slots: tuple[TokenSlot, ...] | None
) -> dict[str, Float[Tensor, "batch time channel"]]:
    """Capture the activations of layers for every token."""
    tokens = batch.tokens if slots is None else tokens_from_states(batch.observed, slots)
    with evaluating(model):
        activations = capture(model, like_weights(model, tokens), names)
    return {name: _by_token(name, x, tokens) for name, x in activations.items()}


def _by_token(name: str, x: Tensor, tokens: Tensor) -> Float[Tensor, "batch time channel"]:
    """Bring activations into the form [batch, time, channel]."""
    end = name.rpartition(".")[-1]
    if x.dim() == 4 and end in ("queries", "keys", "values"):
        x = x.flatten(2)  # [B,T,H,K] -> [B,T,H*K]
    if x.dim() != 3 or x.shape[:2] != tokens.shape[:2]:
        why = "; a map has no channels of its own for a token" if end == "attention" else ""
        given = f"names: {name!r} gives shape {tuple(x.shape)}"
        raise ValueError(f"{given}: must be [batch, time, channel]{why}")
    return x


def _joined(parts: dict[str, list[Tensor]]) -> dict[str, Tensor]:
    return {name: torch.cat(parts.pop(name)) for name in list(parts)}


def _check_positions(positions: Sequence[int], length: int) -> None:
    for t in positions:
        require_whole("position", t)
        if not 1 <= t <= length:
            raise ValueError(f"position={t}: must be between 1 and {length}")
