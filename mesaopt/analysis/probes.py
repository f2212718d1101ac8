"""Linear probes of layers, fitted on some sequences and scored on others.

The activations and targets come from :mod:`mesaopt.analysis.probe_data`, the targets are defined in
:mod:`mesaopt.analysis.probe_targets`.
"""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from mesaopt.analysis.capture import distinct
from mesaopt.analysis.estimate import Estimate
from mesaopt.analysis.evaluation import EVALUATION_BATCH, Evaluation
from mesaopt.analysis.given import AnyModel, AnyTask, as_model, as_task
from mesaopt.analysis.probe_data import ProbeData, collect_activations, features_of, stream_names
from mesaopt.analysis.probe_fits import (
    RIDGE,
    check_enough,
    check_pair,
    fit_probe,
    sequence_mean,
)
from mesaopt.analysis.probe_targets import Target
from mesaopt.config import TokenSlot, require_count
from mesaopt.display import Curve, Drawn, Row, Shown
from mesaopt.progress import AnyProgress, Report, reporting
from mesaopt.tasks import squared_error


@dataclass(frozen=True, repr=False)
class ProbeScore(Shown):
    """Error of a probe on sequences it was not fitted on, with its controls.

    All errors are half the squared error, summed over coordinates: :func:`mesaopt.tasks.squared_error`.
    Times :attr:`per_coordinate` they are mean squares per coordinate.

    Example:
        >>> losses, baseline = torch.tensor([1.0, 3.0]), torch.tensor([3.0, 5.0])
        >>> score = ProbeScore(losses, baseline, dim=10, in_sample=1.5, shuffled=4.1)
        >>> score.mean, score.mean * score.per_coordinate, score.uninformative, score.r2
        (2.0, 0.4, 4.0, 0.5)
    """

    losses: Float[Tensor, " sequence"]
    """Held-out error of every scored sequence."""
    baseline: Float[Tensor, " sequence"]
    """Held-out error of predicting the mean of the fitting targets: the mean-prediction baseline."""
    dim: int
    """Number of coordinates of the target."""
    in_sample: float
    """Mean error on the sequences it was fitted on. It is too small by about the ratio of features to
    sequences."""
    shuffled: float
    """Mean held-out error of a probe fitted to shuffled targets, which shows the cost of fitting as many
    features."""

    @property
    def mean(self) -> float:
        """Mean held-out error."""
        return self.losses.mean().item()

    @property
    def estimate(self) -> Estimate:
        """:attr:`mean` with its standard error over the scored sequences."""
        return Estimate.of(self.losses)

    @property
    def uninformative(self) -> float:
        """Mean of the mean-prediction baseline: the held-out variance."""
        return self.baseline.mean().item()

    @property
    def per_coordinate(self) -> float:
        """Factor that turns half a squared error into a mean square per coordinate: 2 / dim."""
        return 2 / self.dim

    @property
    def unexplained(self) -> Estimate:
        """Share of the held-out variance that the probe does not explain: mean / uninformative.

        Above 1 where the probe is worse than the mean; the error is over the scored sequences, of which
        both parts are means. NaN, without an error, where the target does not vary.
        """
        if not self.uninformative:
            return Estimate(float("nan"), 0.0)
        return Estimate.ratio(self.losses, self.baseline)

    @property
    def r2(self) -> float:
        """Share of the held-out variance that the probe explains: 1 - unexplained."""
        return 1 - self.unexplained.value

    def _headline(self) -> str:
        dims, count = f"{self.dim} coordinates", f"{len(self.losses):,} sequences"
        return f"R² {1 - self.unexplained} of a linear probe of {dims}, on {count}"

    def _rows(self) -> list[Row]:
        numbers = {"loss": self.estimate, "uninformative": self.uninformative}
        controls = {"in_sample": self.in_sample, "shuffled": self.shuffled}
        return [{"r2": 1 - self.unexplained, **numbers, **controls}]


@dataclass(frozen=True, repr=False)
class ProbeTable(Drawn):
    """Scores of probes for every target, layer and position."""

    scores: Mapping[tuple[str, str, int], ProbeScore]
    """Scores by target, name of the layer, and position counted from 1."""

    def at(self, target: str, name: str, position: int) -> ProbeScore:
        """Return one score.

        Args:
            target: name of the target.
            name: name of the layer.
            position: counted from 1.

        Returns:
            The score.

        Raises:
            KeyError: there is none.
        """
        return self.scores[target, name, position]

    def by_depth(self, target: str, position: int) -> dict[str, ProbeScore]:
        """Return the scores of a target at one position.

        Args:
            target: name of the target.
            position: counted from 1.

        Returns:
            By name of the layer, in the order asked for.
        """
        return {
            n: s for (which, n, t), s in self.scores.items() if (which, t) == (target, position)
        }

    def by_position(self, target: str, name: str) -> dict[int, ProbeScore]:
        """Return the scores of a target in one layer.

        Args:
            target: name of the target.
            name: name of the layer.

        Returns:
            By position, counted from 1.
        """
        return {t: s for (which, n, t), s in self.scores.items() if (which, n) == (target, name)}

    _axes = {"xlabel": "layer", "ylabel": "R² of a linear probe", "ylim": (-0.05, 1.05)}

    @property
    def _parts(self) -> tuple[list[str], list[str], list[int]]:
        """Targets, layers and positions, as given."""
        targets, names, positions = (list(dict.fromkeys(p)) for p in zip(*self.scores, strict=True))
        return targets, names, sorted(positions)

    def _headline(self) -> str:
        if not self.scores:
            return "No linear probes"
        targets, names, positions = self._parts
        what = f"{len(targets)} targets in {len(names)} layers at positions {_listed(positions)}"
        count = len(next(iter(self.scores.values())).losses)
        return f"R² of linear probes for {what}; {count:,} sequences. At position {positions[-1]}:"

    def _rows(self) -> list[Row]:
        return [
            {"target": target, "layer": name, "position": position, **score._rows()[0]}
            for (target, name, position), score in self.scores.items()
        ]

    def _table(self) -> list[Row]:
        if not self.scores:
            return []
        targets, names, positions = self._parts
        return [
            {"layer": name}
            | {t: 1 - self.scores[t, name, positions[-1]].unexplained for t in targets}
            for name in names
        ]

    def _curves(self) -> list[Curve]:
        curves = []
        for target in self._parts[0] if self.scores else ():
            scores = self.by_depth(target, self._parts[2][-1])
            shares = [1 - score.unexplained for score in scores.values()]
            curves.append(Curve.of(target, tuple(scores), shares))
        return curves


def _listed(positions: Sequence[int]) -> str:
    return (
        ", ".join(map(str, positions))
        if len(positions) < 6
        else f"{positions[0]} to {positions[-1]}"
    )


def probe(
    fit_features: Tensor,
    fit_targets: Tensor,
    score_features: Tensor,
    score_targets: Tensor,
    *,
    ridge: float = RIDGE,
    seed: int = 0,
) -> ProbeScore:
    """Fit a probe on some sequences and score it on others.

    Args:
        fit_features: [fitted, feature].
        fit_targets: [fitted, dim].
        score_features: [scored, feature].
        score_targets: [scored, dim].
        ridge: see :func:`fit_probe`.
        seed: of the order in which targets are shuffled for the control.

    Returns:
        The score with its controls.

    Raises:
        ValueError: sizes do not fit, or there are too few fitting sequences: see :func:`fit_probe`.

    Source: von Oswald et al. fit and score on the same 256 sequences, without an intercept:
    :func:`official_probe_error`.

    Example:
        >>> x, y = torch.randn(2, 400, 5, generator=torch.Generator().manual_seed(0)).unbind()
        >>> score = probe(x[:200], x[:200] + y[:200], x[200:], x[200:] + y[200:])
        >>> round(score.r2, 1)  # half of the variance is noise
        0.5
    """
    stacked = (x[None] for x in (fit_features, fit_targets, score_features, score_targets))
    (score,) = _probe_places(*stacked, ridge=ridge, seed=seed)
    return score


def score_probes(
    fit: ProbeData, score: ProbeData, *, ridge: float = RIDGE, seed: int = 0
) -> ProbeTable:
    """Fit and score one probe for every target, layer and position.

    Args:
        fit: activations and targets to fit on.
        score: the same layers, targets and positions on other sequences.
        ridge: see :func:`fit_probe`.
        seed: of the order in which targets are shuffled for the control.

    Returns:
        The scores.

    Raises:
        ValueError: the positions differ, or a layer has too few fitting sequences.
    """
    if fit.positions != score.positions:
        raise ValueError(f"positions={score.positions}: must be those fitted, {fit.positions}")
    scores = {}
    for name, features in fit.features.items():
        check_enough("fit", (len(features), features.shape[-1]), of=f" of {name!r}")
    for target, name in itertools.product(fit.targets, fit.features):
        # Positions in front, for a batched solve. [P,N,F], [P,N,D]
        parts = (
            fit.features[name],
            fit.targets[target],
            score.features[name],
            score.targets[target],
        )
        by_place = _probe_places(*(x.transpose(0, 1) for x in parts), ridge=ridge, seed=seed)
        scores |= {(target, name, t): s for t, s in zip(fit.positions, by_place, strict=True)}
    return ProbeTable(scores)


def probe_layers(
    model: AnyModel,
    task: AnyTask,
    targets: Mapping[str, Target],
    *,
    positions: Sequence[int],
    names: Sequence[str] | None = None,
    num_fit: int = 2048,
    num_score: int = 2048,
    slots: tuple[TokenSlot, ...] | None = None,
    ridge: float = RIDGE,
    seed: int = 0,
    progress: AnyProgress = True,
) -> ProbeTable:
    """Probe layers of a model for several targets at several positions.

    Probes are fitted on validation sequences and scored on test sequences.

    Args:
        model: as in :func:`collect_activations`.
        task: source of the sequences.
        targets: targets of the probes, by name.
        positions: counted from 1.
        names: layers, as in :func:`collect_activations`; the residual stream if not given.
        num_fit: number of fitting sequences, more than there are features; rounded up to batches of 256.
        num_score: number of scored sequences, rounded up to batches of 256.
        slots: as in :func:`collect_activations`.
        ridge: see :func:`fit_probe`.
        seed: of the sequences, and of the order in which targets are shuffled for the control.
        progress: a bar, nothing, or a function of the number of finished batches of 256, fitting ones
            first: see :data:`mesaopt.progress.AnyProgress`.

    Returns:
        The scores.

    Raises:
        ValueError: see :func:`collect_activations` and :func:`probe`. Too few sequences are refused after
            a run of one sequence.

    Example:
        >>> from mesaopt.analysis import current_token, next_token
        >>> from mesaopt.config import LinearSystemConfig, ModelConfig
        >>> from mesaopt.models import SequenceModel
        >>> from mesaopt.tasks import LinearSystem
        >>> table = probe_layers(
        ...     SequenceModel(ModelConfig()),
        ...     LinearSystem(LinearSystemConfig(length=6)),
        ...     {"current": current_token, "next": next_token},
        ...     positions=[6],
        ...     num_fit=256,
        ... )
        >>> [round(table.at(target, "blocks.0", 6).r2, 1) for target in ("current", "next")]
        [1.0, -0.1]
    """
    model, task = as_model(model), as_task(task)
    fitted, scored = _evaluations(num_fit, num_score, seed)
    names = stream_names(model) if names is None else distinct(names)
    one = task.sample(1, seed=seed, step=0, split="validation")
    for name, features in features_of(model, one, names, slots).items():
        shape = (fitted.num_batches * EVALUATION_BATCH, features.shape[-1])
        check_enough(f"num_fit={num_fit}", shape, of=f" of {name!r}")
    with reporting(progress, "probing") as report:
        fit, score = (
            collect_activations(
                model,
                task,
                targets,
                positions=positions,
                names=names,
                slots=slots,
                evaluation=evaluation,
            )
            for evaluation in _counted_together(fitted, scored, report)
        )
    return score_probes(fit, score, ridge=ridge, seed=seed)


def _evaluations(num_fit: int, num_score: int, seed: int) -> tuple[Evaluation, Evaluation]:
    """Give the sequences to fit on and to score on."""
    require_count("num_fit", num_fit, smallest=1)
    require_count("num_score", num_score, smallest=1)
    fit = Evaluation(num_sequences=num_fit, seed=seed, split="validation")
    score = Evaluation(num_sequences=num_score, seed=seed, split="test")
    return fit, score


def _counted_together(
    fit: Evaluation, score: Evaluation, report: Report
) -> tuple[Evaluation, Evaluation]:
    """Give the same evaluations, whose batches are reported as those of one."""
    before, total = fit.num_batches, fit.num_batches + score.num_batches
    return (
        replace(fit, progress=lambda batches: report(batches.done, total)),
        replace(score, progress=lambda batches: report(before + batches.done, total)),
    )


def _probe_places(
    fit_features: Float[Tensor, "place fitted feature"],
    fit_targets: Float[Tensor, "place fitted dim"],
    score_features: Float[Tensor, "place scored feature"],
    score_targets: Float[Tensor, "place scored dim"],
    *,
    ridge: float,
    seed: int,
) -> Iterator[ProbeScore]:
    """Fit and score a probe at every place, with its controls."""
    check_pair("fit_features", fit_features, "fit_targets", fit_targets)
    check_pair("score_features", score_features, "score_targets", score_targets)
    check_enough("fit_features", fit_features.shape)
    require_count("seed", seed, smallest=0)
    y, scored = fit_targets.double(), score_targets.double()
    order = torch.randperm(y.shape[1], generator=torch.Generator().manual_seed(seed))
    both = fit_probe(fit_features, torch.cat([y, y[:, order]], dim=-1), ridge=ridge)
    fitted, _ = both.predict(fit_features).chunk(2, dim=-1)
    held_out, shuffled = both.predict(score_features).chunk(2, dim=-1)
    means = sequence_mean(y).expand_as(scored)
    losses, baselines = (squared_error(x, scored) for x in (held_out, means))  # [P, N]
    in_sample, control = squared_error(fitted, y).mean(1), squared_error(shuffled, scored).mean(1)
    for place in range(len(losses)):
        yield ProbeScore(
            losses[place],
            baselines[place],
            dim=y.shape[-1],
            in_sample=in_sample[place].item(),
            shuffled=control[place].item(),
        )
