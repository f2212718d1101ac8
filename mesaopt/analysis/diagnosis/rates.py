"""Rates: how many steps of gradient descent, or of Newton's method, each layer of a model is worth."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mesaopt.analysis.diagnosis.evidence import layers_of, position_of
from mesaopt.analysis.diagnosis.model_target import few_sequences
from mesaopt.analysis.diagnosis.regression import InContextRegression
from mesaopt.analysis.estimate import Estimate
from mesaopt.analysis.evaluation import EVALUATION_BATCH, Evaluation
from mesaopt.analysis.probe_data import ProbeData, collect_activations
from mesaopt.analysis.probe_fits import fit_probe
from mesaopt.analysis.probe_targets import Target, next_token
from mesaopt.config import Split
from mesaopt.display import Curve, Drawn, Row
from mesaopt.progress import AnyProgress

_FITTING_SEQUENCES, _SCORING_SEQUENCES = 2048, 512
_MOST_POSITIONS = 4
# Newton steps that are tried; gradient steps are two to these, and some between.
_LOG_STEPS = range(21)
_BETWEEN = 4  # numbers of gradient steps for each factor of two
_MOST = 0.5
# Shares that differ by less are equal: converged iterations, and rounding of float32.
_AS_GOOD = 1e-5

RATE_BATCHES = (_FITTING_SEQUENCES + _SCORING_SEQUENCES) // EVALUATION_BATCH
"""Number of batches that :func:`matched_steps` runs."""

PerLayer = Float[Tensor, "position sequence dim"]


@dataclass(frozen=True)
class LayerSteps:
    """Numbers of steps whose predictions are nearest to what a linear readout of a layer predicts."""

    layer: str
    """Name of the layer."""
    readout: Estimate
    """Share of the next state, or answer, that the readout predicts: 1 - |f - y|^2 / |y|^2."""
    gradient_steps: int
    """Number of steps of gradient descent."""
    newton_steps: int
    """Number of steps of Newton's method."""
    gradient: Estimate
    """Share of the readout's predictions that these steps of gradient descent explain."""
    newton: Estimate
    """Share that these steps of Newton's method explain."""

    @property
    def matched(self) -> bool:
        """Whether gradient steps explain most of the predictions, by three standard errors."""
        return self.readout.low > 0 and self.gradient.low > _MOST


@dataclass(frozen=True, repr=False)
class Rates(Drawn):
    """Steps by layer, and whether they grow linearly or exponentially with the depth.

    Example:
        >>> one = Estimate(1.0, 0.0)
        >>> layers = (LayerSteps(str(n), one, 2**n, n, one, one) for n in range(5))
        >>> rates = Rates(tuple(layers))
        >>> rates.growth, round(rates.newton_line, 6), rates.gradient_line < 0.9
        ('exponential', 1.0, True)
    """

    layers: tuple[LayerSteps, ...]
    """The layers, first to last."""

    @property
    def gradient_line(self) -> float:
        """R^2 of a straight line through the gradient steps of the matched layers, by depth.

        NaN for fewer than three matched layers.
        """
        return _straightness({at: float(steps) for at, steps in self._matched.items()})

    @property
    def newton_line(self) -> float:
        """R^2 of a straight line through the logarithm of the gradient steps.

        These are Newton steps, also between whole numbers. NaN for fewer than three matched layers.
        """
        return _straightness({at: math.log2(steps) for at, steps in self._matched.items()})

    @property
    def growth(self) -> str:
        """The nearer of "linear" (as gradient descent) and "exponential" (as Newton's method).

        "unclear" where neither line leaves less than half as much unexplained as the other.
        """
        linear, exponential = 1 - self.gradient_line, 1 - self.newton_line
        if linear < exponential / 2:
            return "linear"
        return "exponential" if exponential < linear / 2 else "unclear"

    _axes = {"xlabel": "layer", "ylabel": "steps", "yscale": "log"}

    def _headline(self) -> str:
        return {
            "linear": "Gradient steps grow linearly with the depth",
            "exponential": "Gradient steps grow exponentially with the depth, as Newton's method",
            "unclear": "How gradient steps grow with the depth is not clear",
        }[self.growth]

    def _rows(self) -> list[Row]:
        names = ("layer", "gradient_steps", "gradient", "newton_steps", "newton", "readout")
        return [
            {name: getattr(layer, name) for name in names} | {"matched": layer.matched}
            for layer in self.layers
        ]

    def _table(self) -> list[Row]:
        shown = ("layer", "gradient_steps", "newton_steps", "gradient")
        return [
            {
                name: row[name] if row["matched"] or name in ("layer", "gradient") else None
                for name in shown
            }
            for row in self._rows()
        ]

    def _curves(self) -> list[Curve]:
        layers = [layer for layer in self.layers if layer.matched]
        names = [layer.layer for layer in layers]
        return [Curve("gradient steps", names, [layer.gradient_steps for layer in layers])]

    @property
    def _matched(self) -> dict[int, int]:
        """Gradient steps of the matched layers, by depth."""
        return {at: one.gradient_steps for at, one in enumerate(self.layers) if one.matched}


@torch.no_grad()
def matched_steps(
    model: nn.Module,
    problem: InContextRegression,
    names: Sequence[str] | None,
    *,
    ridge: float,
    seed: int = 0,
    progress: AnyProgress = False,
) -> Rates | None:
    """Match every layer with a number of steps of gradient descent, and of Newton's method.

    A linear readout of each layer is fitted to the targets, on validation sequences and at up to four
    late positions. On test sequences its predictions f are compared with those of n steps

        g_n = G X_n s,  X_n = X_{n-1} + (I - A X_{n-1}) / a,  X_0 = 0,  A = H + ridge I,

    where a is the largest eigenvalue of A at that position. Newton's method, X <- X (2 I - A X) from I / a,
    is after k steps where gradient descent is after 2^k. The share 1 - |f - c g|^2 / |f|^2 is that of the
    best factor c at each position, as a readout sets the scale by itself. Of numbers that explain the same,
    the smallest is given.

    Args:
        model: any module.
        problem: its regression problem.
        names: layers, as in :func:`mesaopt.analysis.diagnosis.evidence.probe_model`.
        ridge: greater than 0.
        seed: of the sequences.
        progress: called with the finished and the total number of batches.

    Returns:
        The steps by layer, or None where no layers are known.

    Raises:
        ValueError: there is no such layer.

    Source: Fu et al. 2023, "Transformers learn to achieve second-order convergence rates for in-context
    linear regression" (arXiv 2310.17086): linear readouts of layers grow with the depth like Newton's
    steps, and exponentially in gradient steps.
    """
    names = layers_of(model, names)
    if not names:
        return None
    batch = few_sequences(problem.task)
    number = len(batch.asked)
    pairs = {number - k * number // (2 * _MOST_POSITIONS) for k in range(_MOST_POSITIONS)}
    positions = [position_of(batch, batch.asked[pair - 1]) for pair in sorted(pairs)]
    targets = {"next": next_token, "problem": _in_eigenvectors(ridge)}

    def collect(number: int, split: Split, wanted: Sequence[str]) -> ProbeData:
        return collect_activations(
            model,
            problem.task,
            {name: targets[name] for name in wanted},
            positions=positions,
            names=names,
            evaluation=Evaluation(num_sequences=number, seed=seed, split=split, progress=progress),
        )

    fit = collect(_FITTING_SEQUENCES, "validation", ["next"])
    score = collect(_SCORING_SEQUENCES, "test", list(targets))
    steps = {n: _predictions(score.targets["problem"], n) for n in _numbers_of_steps()}
    truth = score.targets["next"].movedim(1, 0).double()
    layers = []
    for name in names:
        readout = fit_probe(fit.features[name].movedim(1, 0), fit.targets["next"].movedim(1, 0))
        predictions = readout.predict(score.features[name].movedim(1, 0))
        layers.append(_matched(name, predictions, truth, steps))
    return Rates(tuple(layers))


def _numbers_of_steps() -> list[int]:
    finest = range(_BETWEEN * _LOG_STEPS[-1] + 1)
    return sorted({round(2 ** (k / _BETWEEN)) for k in finest})


def _in_eigenvectors(ridge: float) -> Target:
    """Make a target of what the prediction after any number of steps needs.

    With A = V diag(z) V^T, G X_n s = (G V) ((1 - (1 - z / a)^n) / z * V^T s). The rows are z, V^T s, G V.
    """

    def decomposed(batch: Any, positions: Sequence[int]) -> Tensor:
        values, queries, cross = batch.in_eigenvectors(batch.pairs_at(positions))
        return torch.cat([values[..., None, :] + ridge, queries[..., None, :], cross], -2)

    return decomposed


def _predictions(
    problems: Float[Tensor, "sequence position row input"], num_steps: int
) -> PerLayer:
    """Predict by a number of gradient steps: see :func:`matched_steps`."""
    values, queries, cross = problems[:, :, 0], problems[:, :, 1], problems[:, :, 2:]
    relative = values / values.amax(-1, keepdim=True)
    solved = -torch.expm1(num_steps * torch.log1p(-relative)) / values * queries
    return (cross @ solved[..., None])[..., 0].movedim(1, 0)


def _matched(name: str, readout: PerLayer, truth: PerLayer, steps: dict[int, Tensor]) -> LayerSteps:
    """Find the numbers of steps whose predictions are nearest to those of a readout."""
    shares = {n: _explained(readout, predictions) for n, predictions in steps.items()}
    newton = {2**k: shares[2**k] for k in _LOG_STEPS}
    few, few_newton = (_smallest_best(candidates) for candidates in (shares, newton))
    return LayerSteps(
        layer=name,
        readout=1 - Estimate.ratio(_square(readout - truth), _square(truth)),
        gradient_steps=few,
        newton_steps=round(math.log2(few_newton)),
        gradient=shares[few],
        newton=shares[few_newton],
    )


def _smallest_best(shares: dict[int, Estimate]) -> int:
    best = max(share.value for share in shares.values())
    return min((n for n, share in shares.items() if share.value >= best - _AS_GOOD), default=1)


def _explained(readout: PerLayer, predictions: PerLayer) -> Estimate:
    """Estimate the share of a readout that predictions explain, up to a factor at each position."""
    together = (readout * predictions).sum((1, 2), keepdim=True)
    factor = together / predictions.square().sum((1, 2), keepdim=True)
    return 1 - Estimate.ratio(_square(readout - factor * predictions), _square(readout))


def _square(x: PerLayer) -> Float[Tensor, " sequence"]:
    return x.square().sum((0, 2))


def _straightness(points: dict[int, float]) -> float:
    """Compute R^2 of a straight line through points; NaN for fewer than three, or where nothing varies."""
    if len(points) < 3:
        return math.nan
    x, y = (torch.tensor(list(one)).double() for one in (points.keys(), points.values()))
    x, y = x - x.mean(), y - y.mean()
    return ((x @ y) ** 2 / ((x @ x) * (y @ y))).item()
