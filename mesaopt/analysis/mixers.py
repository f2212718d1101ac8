"""Measurements of a model's mixers at every position: forgetting, ridge, condition, rank, solver steps."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor, nn

from mesaopt.analysis.capture import capturing, evaluating, like_weights
from mesaopt.analysis.given import AnyModel, as_model, as_tokens
from mesaopt.display import Curve, Drawn, Row
from mesaopt.layers import MesaLayer, SelfAttention
from mesaopt.layers.state import HeadInputs
from mesaopt.tasks import Batch

_BY_POSITION = ("keep", "write", "rank", "ridge", "condition")
_FEW = 16  # positions that are measured if none are given


@dataclass(frozen=True, repr=False)
class MixerMeasurements(Drawn):
    """The in-context regression of one layer, head by head, at some positions; means over sequences.

    H_t = sum_{s <= t} zeta_ts beta_s k_s k_s^T is the Gram matrix of the keys so far, where zeta is what
    forgetting leaves. Layers without gates have zeta = beta = 1. Layers that solve no system have no
    ridge, condition and steps: these are None. `plot()` draws the rank, and :meth:`draw` any of them.
    """

    layer: int
    """Index of the layer, from 0."""
    mixer: str
    """Name of its class."""
    positions: tuple[int, ...]
    """The measured positions, counted from 1."""
    keep: Float[Tensor, "position head"] | None
    """Share gamma_t of the past that is kept; of negative gates, its size."""
    write: Float[Tensor, "position head"] | None
    """Write strength beta_t."""
    rank: Float[Tensor, "position head"]
    """Effective rank of H_t: tr(H)^2 / tr(H^2), between 1 and the width of a key; 0 of keys of zero."""
    ridge: Float[Tensor, "position head"] | None
    """Effective ridge: tr(ridge) / tr(H_t). Far below 1, the layer fits its pairs; far above, it is linear
    attention; infinite where keys are zero."""
    condition: Float[Tensor, "position head"] | None
    """Condition number of H_t + ridge, the geometric mean over sequences."""
    steps: Float[Tensor, " head"] | None
    """Iterations of the solver, mean over the chunks; 0 where it solves directly."""

    _axes = {"xlabel": "position", "ylabel": "effective rank of the keys", "xscale": "log"}

    def _headline(self) -> str:
        heads, last = self.rank.shape[1], self.positions[-1]
        return f"Layer {self.layer}, {self.mixer}: {heads} heads, shown at position {last:,}"

    def _table(self) -> list[Row]:
        return [
            {n: x for n, x in row.items() if n not in ("layer", "mixer")} for row in self.rows()
        ]

    def _rows(self) -> list[Row]:
        values = {name: x for name in _BY_POSITION if (x := getattr(self, name)) is not None}
        return [
            {"layer": self.layer, "mixer": self.mixer, "head": head, "position": position}
            | {name: x[place, head].item() for name, x in values.items()}
            for head in range(self.rank.shape[1])
            for place, position in enumerate(self.positions)
        ]

    def _curves(self) -> list[Curve]:
        heads = enumerate(self.rank.T.tolist())
        return [Curve(f"head {head}", self.positions, ranks) for head, ranks in heads]

    def rows(self) -> list[dict[str, str]]:
        """Return a row of a table for each head, at the last position."""
        return [self._row(head) for head in range(self.rank.shape[1])]

    def draw(self, axes: Any, name: Literal["keep", "write", "rank", "ridge", "condition"]) -> None:
        """Draw one of the measurements by position, a line for each head.

        Args:
            axes: of Matplotlib.
            name: of the measurement; one that the layer lacks leaves the axes empty.
        """
        values = getattr(self, name)
        axes.set(
            xscale="log", xlabel="position", ylabel=name, title=f"layer {self.layer}, {self.mixer}"
        )
        if values is None:
            return
        if name in ("ridge", "condition"):
            axes.set_yscale("log")
        for head, line in enumerate(values.T.tolist()):
            axes.plot(self.positions, line, label=f"head {head}")
        axes.legend()

    def _row(self, head: int) -> dict[str, str]:
        def last(values: Tensor | None, form: str) -> str:
            return "" if values is None else format(values[-1, head].item(), form)

        steps = "" if self.steps is None else f"{self.steps[head].item():.1f}"
        return {
            "layer": str(self.layer),
            "mixer": self.mixer,
            "head": str(head),
            "memory": _memory(None if self.keep is None else self.keep[-1, head].item()),
            "write": last(self.write, ".2f"),
            "rank": last(self.rank, ".1f"),
            "ridge": last(self.ridge, ".2g"),
            "condition": last(self.condition, ".3g"),
            "steps": steps,
        }


@torch.no_grad()
def measure_mixers(
    model: AnyModel,
    tokens: Shaped[Tensor, "batch time *token"] | Batch,
    *,
    positions: Sequence[int] | None = None,
) -> list[MixerMeasurements]:
    """Measure every mixer of a model on sequences.

    Args:
        model: any module with layers of :mod:`mesaopt.layers` in it, a Run or its path.
        tokens: [batch, time, ...], or a batch.
        positions: to measure at, counted from 1; 16 of equal ratios if not given.

    Returns:
        The measurements of each layer, first to last.

    Raises:
        ValueError: there is no mixer in the model, there are no positions, or one is out of range.

    Source: the condition numbers and steps are those that von Oswald et al. 2025 plot in their section on
    conjugate gradients; the effective rank is the participation ratio.

    Example:
        >>> from mesaopt.config import LanguageModelConfig
        >>> from mesaopt.models import LanguageModel
        >>> config = LanguageModelConfig(width=8, num_heads=2, mixers=("mesa", "softmax_attention"))
        >>> mesa, softmax = measure_mixers(LanguageModel(config), torch.randint(256, (3, 20)))
        >>> mesa.positions[-1], bool((mesa.condition >= 1).all()), softmax.condition is None
        (20, True, True)
    """
    module = as_model(model)
    inputs = _mixer_inputs(module, like_weights(module, as_tokens(tokens)))
    if not inputs:
        raise ValueError("model: has no layer of mesaopt.layers in it: must have one or more")
    time = inputs[0][1].shape[1]
    chosen = _spread(time) if positions is None else tuple(positions)
    if not chosen:
        raise ValueError("positions: must not be empty")
    for position in chosen:
        if not 1 <= position <= time:
            raise ValueError(f"positions has the value {position}: must be from 1 to {time}")
    with evaluating(module):
        return [_measure(i, mixer, x, chosen) for i, (mixer, x) in enumerate(inputs)]


def _spread(time: int) -> tuple[int, ...]:
    """Choose positions in equal ratios, from the first to the last."""
    ratios = (time ** (i / (_FEW - 1)) for i in range(_FEW))
    return tuple(sorted({round(ratio) for ratio in ratios}))


def _mixer_inputs(model: nn.Module, tokens: Tensor) -> list[tuple[SelfAttention, Tensor]]:
    """Run a model, and return its mixers with what each of them read, in the order of the calls."""
    mixers = {name: m for name, m in model.named_modules() if isinstance(m, SelfAttention)}
    with evaluating(model), capturing(model, [f"{name}.input" for name in mixers]) as inputs:
        model(tokens)
    return [(mixers[name.removesuffix(".input")], x) for name, x in inputs.items()]


def _measure(
    number: int, mixer: SelfAttention, x: Tensor, positions: tuple[int, ...]
) -> MixerMeasurements:
    inputs = mixer.head_inputs(x)
    at = torch.tensor(positions, device=x.device) - 1
    grams = _grams(inputs, positions)  # [P,B,H,K,K]
    trace = grams.diagonal(dim1=-2, dim2=-1).sum(-1)
    rank = trace.square() / grams.square().sum((-2, -1)).clamp(min=1e-300)
    ridge = condition = steps = None
    if isinstance(mixer, MesaLayer):
        ridges = _ridges(mixer, inputs, at)  # [P,B,H,K]
        eigenvalues = torch.linalg.eigvalsh(grams + torch.diag_embed(ridges))
        condition = (eigenvalues[..., -1] / eigenvalues[..., 0]).log().mean(1).exp()
        ridge = (ridges.sum(-1) / trace).mean(1)
        steps = mixer.mix(inputs, None).info.steps.double().mean((0, 2))
    keep = None if inputs.log_decay is None else inputs.log_decay.double().exp()
    return MixerMeasurements(
        layer=number,
        mixer=type(mixer).__name__,
        positions=positions,
        keep=None if keep is None else keep[:, at].mean(0),
        write=None if inputs.beta is None else inputs.beta.double()[:, at].mean(0),
        rank=rank.mean(1),
        ridge=ridge,
        condition=condition,
        steps=steps,
    )


def _grams(
    inputs: HeadInputs, positions: tuple[int, ...]
) -> Float[Tensor, "position batch head key key"]:
    """Compute the Gram matrices of the keys so far, at some positions, in double precision.

    Rounding in single precision would be greater than a small ridge, and leave negative eigenvalues.
    """
    k, grams = inputs.k.double(), {}
    gram = k.new_zeros(len(k), *k.shape[2:], k.shape[-1])  # [B,H,K,K]
    for t in range(max(positions)):
        pair = k[:, t, :, :, None] * k[:, t, :, None, :]
        if inputs.beta is not None:
            pair = pair * inputs.beta[:, t, :, None, None]
        if inputs.log_decay is not None:
            gram = gram * inputs.log_decay[:, t, :, None, None].double().exp()
        gram = gram + pair
        if t + 1 in positions:
            grams[t + 1] = gram
    return torch.stack([grams[position] for position in positions])


def _ridges(
    mixer: MesaLayer, inputs: HeadInputs, at: Int[Tensor, " position"]
) -> Float[Tensor, "position batch head key"]:
    """Return the ridge of every channel, which decays with the past where it is so set."""
    k, ridge = inputs.k, mixer.ridge.double()
    ridge = ridge.unsqueeze(-1).expand(-1, k.shape[-1]) if ridge.dim() == 1 else ridge  # [H,K]
    ridges = ridge.expand(len(at), len(k), *ridge.shape)
    if mixer.ridge_mode == "static" or inputs.log_decay is None:
        return ridges
    left = inputs.log_decay.double().cumsum(1)[:, at].exp().transpose(0, 1)  # [P,B,H]
    return ridges * left.unsqueeze(-1)


def _memory(keep: float | None) -> str:
    """Write a share that is kept as a number of tokens, 1 / (1 - gamma)."""
    if keep is None or keep >= 1:
        return "all"
    return f"{1 / (1 - keep):.0f}"
