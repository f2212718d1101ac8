"""Linear probes of layers, fitted on some sequences and scored on others.

The activations and targets come from :mod:`mesaopt.analysis.probe_data`, the targets are defined in
:mod:`mesaopt.analysis.probe_targets`.
"""

import itertools
import math
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
from mesaopt.analysis.probe_targets import Target
from mesaopt.config import TokenSlot, require_count
from mesaopt.progress import OnProgress
from mesaopt.tasks import squared_error

RIDGE = 1e-9
"""Default penalty of a probe, relative to the variance of each feature. Features that are copies of others
need one; in float64 this is enough, and it costs less than the sampling of sequences."""


@dataclass(frozen=True)
class Probe:
    """An affine map: features @ weight + intercept. Made by :func:`fit_probe`.

    Example:
        >>> Probe(torch.tensor([[2.0]]), torch.tensor([1.0])).predict(torch.tensor([[3.0]])).item()
        7.0
    """

    weight: Float[Tensor, "*place feature dim"]
    """One column per coordinate of the target."""
    intercept: Float[Tensor, "*place dim"]
    """Prediction where all features are zero."""

    def predict(
        self, features: Float[Tensor, "*place sequence feature"]
    ) -> Float[Tensor, "*place sequence dim"]:
        """Predict the target from features.

        Args:
            features: [..., sequence, feature].

        Returns:
            [..., sequence, dim], in float64.
        """
        return features.to(self.weight.dtype) @ self.weight + self.intercept[..., None, :]


@dataclass(frozen=True)
class ProbeScore:
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
        share = self.mean / self.uninformative
        rest = self.losses - share * self.baseline
        return Estimate(share, (rest.std() / len(rest) ** 0.5).item() / self.uninformative)

    @property
    def r2(self) -> float:
        """Share of the held-out variance that the probe explains: 1 - unexplained."""
        return 1 - self.unexplained.value


@dataclass(frozen=True)
class ProbeTable:
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


def fit_probe(
    features: Tensor,
    targets: Tensor,
    *,
    ridge: float = RIDGE,
) -> Probe:
    """Fit an affine map by ridge regression in float64, at many places at once.

        minimise over A, b:  mean_n |y_n - A x_n - b|^2 + ridge * sum_f v_f |a_f|^2,

    with the variance v_f and the weights a_f of every feature, so that the ridge has no unit and the
    prediction does not depend on the units of features; b is not penalised. Features that do not vary get
    no weight. Combinations of features with less than the ridge of a feature's variance are not read.

    Args:
        features: x [..., sequence, feature], real, with more sequences than features: F features and an
            intercept are determined by F + 1 sequences or more.
        targets: y [..., sequence, dim], real.
        ridge: 0 or greater. 0 is refused where features do not vary or are linearly dependent.

    Returns:
        The probe, one per place.

    Raises:
        ValueError: the numbers of sequences differ, there are too few, ridge is negative or infinite, or it
            is 0 and the features are linearly dependent.

    Example:
        >>> x = torch.randn(100, 3)
        >>> probe = fit_probe(x, 2 * x + 1)
        >>> bool((probe.predict(x) - (2 * x + 1)).abs().max() < 1e-6)
        True
    """
    _check_pair("features", features, "targets", targets)
    _check_enough("features", features.shape)
    if not 0 <= ridge < math.inf:
        raise ValueError(f"ridge={ridge}: must be 0 or greater")
    x, y = features.double(), targets.double()
    x_mean, y_mean = _mean(x), _mean(y)
    x, scale = _to_unit_variance(x - x_mean)
    y = y - y_mean
    gram = x.mT @ x / x.shape[-2]  # [..., F, F]
    if ridge == 0:
        _check_independent(gram)
    identity = torch.eye(x.shape[-1], dtype=x.dtype, device=x.device)
    weight = torch.linalg.solve(gram + ridge * identity, x.mT @ y / x.shape[-2]) / scale.mT
    return Probe(weight, (y_mean - x_mean @ weight).squeeze(-2))


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


def official_probe_error(
    features: Tensor,
    targets: Tensor,
    *,
    outlier_score: float | None = None,
) -> float:
    """Fit and score on the same sequences, as the published probes were: for comparison with them only.

    Least squares without an intercept, singular values cut off as in float32. The error is too small by
    about the ratio of features to sequences: 40 features that are independent of the target reach 84 % of
    its variance on 256 sequences.

    Args:
        features: [sequence, feature]; published with 256 sequences.
        targets: [sequence, dim].
        outlier_score: sequences whose targets have a norm more than this many standard deviations above
            the mean norm are left out; published with 2 for preconditioned inputs. None: all count.

    Returns:
        Mean of half the squared error.

    Raises:
        ValueError: the numbers of sequences differ.

    Source: von Oswald et al., the authors' code for Figures 2, 4, 6, 24 and 25.

    Example:
        >>> x = torch.randn(256, 40)
        >>> official_probe_error(x, x @ torch.randn(40, 10)) < 1e-8
        True
    """
    _check_pair("features", features, "targets", targets)
    x, y = features.double(), targets.double()
    if outlier_score is not None:
        norms = y.norm(dim=-1)
        kept = norms < norms.mean() + outlier_score * norms.std(correction=0)
        x, y = x[kept], y[kept]
    cutoff = torch.finfo(torch.float32).eps * max(x.shape)
    # Through the Gram matrix, whose eigenvalues are squares: float64 has enough digits for it.
    weight = torch.linalg.pinv(x.mT @ x, rtol=cutoff**2, hermitian=True) @ (x.mT @ y)
    return squared_error((x @ weight)[None], y[None]).mean().item()


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
        _check_enough("fit", (len(features), features.shape[-1]), of=f" of {name!r}")
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
    on_progress: OnProgress | None = None,
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
        on_progress: called with the finished and the total number of batches of 256, fitting ones first.

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
    fitted, scored = _evaluations(num_fit, num_score, seed, on_progress)
    names = stream_names(model) if names is None else distinct(names)
    one = task.sample(1, seed=seed, step=0, split="validation")
    for name, features in features_of(model, one, names, slots).items():
        shape = (fitted.num_batches * EVALUATION_BATCH, features.shape[-1])
        _check_enough(f"num_fit={num_fit}", shape, of=f" of {name!r}")
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
        for evaluation in (fitted, scored)
    )
    return score_probes(fit, score, ridge=ridge, seed=seed)


def _evaluations(
    num_fit: int, num_score: int, seed: int, on_progress: OnProgress | None
) -> tuple[Evaluation, Evaluation]:
    """Give the sequences to fit on and to score on, whose progress is counted together."""
    require_count("num_fit", num_fit, smallest=1)
    require_count("num_score", num_score, smallest=1)
    fit = Evaluation(num_sequences=num_fit, seed=seed, split="validation")
    score = Evaluation(num_sequences=num_score, seed=seed, split="test")
    if on_progress is None:
        return fit, score
    total = fit.num_batches + score.num_batches
    return (
        replace(fit, on_progress=lambda done, _: on_progress(done, total)),
        replace(score, on_progress=lambda done, _: on_progress(fit.num_batches + done, total)),
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
    _check_pair("fit_features", fit_features, "fit_targets", fit_targets)
    _check_pair("score_features", score_features, "score_targets", score_targets)
    _check_enough("fit_features", fit_features.shape)
    require_count("seed", seed, smallest=0)
    y, scored = fit_targets.double(), score_targets.double()
    order = torch.randperm(y.shape[1], generator=torch.Generator().manual_seed(seed))
    both = fit_probe(fit_features, torch.cat([y, y[:, order]], dim=-1), ridge=ridge)
    fitted, _ = both.predict(fit_features).chunk(2, dim=-1)
    held_out, shuffled = both.predict(score_features).chunk(2, dim=-1)
    means = _mean(y).expand_as(scored)
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


def _mean(x: Float[Tensor, "*place sequence channel"]) -> Float[Tensor, "*place 1 channel"]:
    """Give means over sequences, without rounding where a channel is constant."""
    first = x[..., :1, :]
    return first + (x - first).mean(-2, keepdim=True)


def _to_unit_variance(
    x: Float[Tensor, "*place sequence feature"],
) -> tuple[Float[Tensor, "*place sequence feature"], Float[Tensor, "*place 1 feature"]]:
    """Divide centred features by their standard deviations, and those that are zero by 1."""
    peak = x.abs().amax(-2, keepdim=True)
    peak = peak.where(peak > 0, 1.0)
    x = x / peak  # whose squares neither overflow nor vanish
    spread = x.square().mean(-2, keepdim=True).sqrt()
    spread = spread.where(spread > 0, 1.0)
    return x / spread, peak * spread


def _check_independent(gram: Float[Tensor, "*place feature feature"]) -> None:
    """Refuse features of unit variance whose combinations vary by no more than rounding."""
    values = torch.linalg.eigvalsh(gram)
    share = (values[..., 0] / values[..., -1]).min().item()
    if not share > gram.shape[-1] * torch.finfo(gram.dtype).eps:
        raise ValueError("ridge=0: features are linearly dependent: must be greater than 0")


def _check_enough(argument: str, shape: Sequence[int], of: str = "") -> None:
    """Refuse features [..., sequence, feature] that do not determine a probe."""
    sequences, features = shape[-2:]
    if sequences <= features:
        given = f"{sequences} sequences for {features} features"
        raise ValueError(f"{argument}: {given}{of}: must be {features + 1} or more")


def _check_pair(name: str, features: Tensor, other: str, targets: Tensor) -> None:
    for which, x in ((name, features), (other, targets)):
        if x.dim() < 2 or not x.is_floating_point():
            given = f"{tuple(x.shape)}, {x.dtype}"
            raise ValueError(f"{which}: {given}: must be real, [..., sequence, channel]")
    if features.shape[:-1] != targets.shape[:-1]:
        shapes = f"{name} is {tuple(features.shape)}, {other} {tuple(targets.shape)}"
        raise ValueError(f"{shapes}: must be of as many sequences")
