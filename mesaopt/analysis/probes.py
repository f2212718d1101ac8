"""Linear probes: what can be read off the residual stream, fitted on some sequences, scored on others."""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mesaopt.analysis.capture import capture, distinct, evaluating
from mesaopt.analysis.estimate import Estimate
from mesaopt.analysis.evaluation import EVALUATION_BATCH, Evaluation
from mesaopt.analysis.probe_targets import Target, places
from mesaopt.config import TokenSlot
from mesaopt.models import SequenceModel
from mesaopt.progress import OnProgress
from mesaopt.tasks import Batch, Task, squared_error, tokens_from_states

RIDGE = 1e-9
"""Penalty of a probe by default, relative to the mean variance of its features. It is there for features
that are copies of others; float64 needs no more, and less is lost than sampling costs."""


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
    """What it predicts where all features are zero."""

    def predict(
        self, features: Float[Tensor, "*place sequence feature"]
    ) -> Float[Tensor, "*place sequence dim"]:
        """Read the target off features.

        Args:
            features: [..., sequence, feature].

        Returns:
            [..., sequence, dim], in float64.
        """
        return features.to(self.weight.dtype) @ self.weight + self.intercept[..., None, :]


@dataclass(frozen=True)
class ProbeScore:
    """How well a probe reads sequences it was not fitted on, between its controls.

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
    """Held-out error of the mean of the fitting targets, which reads nothing."""
    dim: int
    """Coordinates of the target."""
    in_sample: float
    """Mean error on the very sequences it was fitted on: too good, by about the share that features are
    of sequences."""
    shuffled: float
    """Held-out error of a probe fitted to targets that belong to other sequences: uninformative, and what
    fitting as many features costs."""

    @property
    def mean(self) -> float:
        """Mean held-out error."""
        return self.losses.mean().item()

    @property
    def error(self) -> float:
        """Standard error of :attr:`mean` over the scored sequences."""
        return (self.losses.std() / len(self.losses) ** 0.5).item()

    @property
    def uninformative(self) -> float:
        """Mean held-out error of what reads nothing."""
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
class ProbeData:
    """What passed through the parts of a model at some positions, and what a probe is to read there.

    Made by :func:`collect_activations`.
    """

    features: Mapping[str, Float[Tensor, "sequence position feature"]]
    """By name of the part."""
    targets: Mapping[str, Float[Tensor, "sequence position dim"]]
    """By name of the target."""
    positions: tuple[int, ...]
    """Counted from 1."""


@dataclass(frozen=True)
class ProbeTable:
    """Scores of all probes: every target, read off every part at every position."""

    scores: Mapping[tuple[str, str, int], ProbeScore]
    """By target, name of the part, and position counted from 1."""

    def at(self, target: str, name: str, position: int) -> ProbeScore:
        """Return one score."""
        return self.scores[target, name, position]

    def by_depth(self, target: str, position: int) -> dict[str, ProbeScore]:
        """Return the scores of a target at one position, by name of the part, in the order asked for."""
        return {
            n: s for (which, n, t), s in self.scores.items() if (which, t) == (target, position)
        }

    def by_position(self, target: str, name: str) -> dict[int, ProbeScore]:
        """Return the scores of a target read off one part, by position."""
        return {t: s for (which, n, t), s in self.scores.items() if (which, n) == (target, name)}


def fit_probe(
    features: Tensor,
    targets: Tensor,
    *,
    ridge: float = RIDGE,
) -> Probe:
    """Fit an affine map by ridge regression, in float64, at many places at once.

        minimise over A, b:  mean_n |y_n - A x_n - b|^2 + ridge * v * |A|_F^2,

    v being the mean variance of the features, so that the ridge has no unit; b is not penalised.

    Args:
        features: x [..., sequence, feature], real; more sequences than features, as a probe of F features
            and an intercept needs F + 1 to be determined at all.
        targets: y [..., sequence, dim], real.
        ridge: 0 or greater. With 0, features that depend on each other linearly are refused by the solver.

    Returns:
        The probe, one per place.

    Raises:
        ValueError: the numbers of sequences differ, there are too few, or ridge is negative.

    Example:
        >>> x = torch.randn(100, 3)
        >>> probe = fit_probe(x, 2 * x + 1)
        >>> bool((probe.predict(x) - (2 * x + 1)).abs().max() < 1e-6)
        True
    """
    _check_pair("features", features, "targets", targets)
    _check_enough("features", features.shape)
    if not ridge >= 0:
        raise ValueError(f"ridge={ridge}: must be 0 or greater")
    x, y = features.double(), targets.double()
    x_mean, y_mean = x.mean(-2, keepdim=True), y.mean(-2, keepdim=True)
    x, y = x - x_mean, y - y_mean
    gram = x.mT @ x / x.shape[-2]  # [..., F, F]
    variance = gram.diagonal(dim1=-2, dim2=-1).mean(-1)
    penalty = ridge * torch.where(variance > 0, variance, 1.0)  # [...]
    identity = torch.eye(x.shape[-1], dtype=x.dtype, device=x.device)
    weight = torch.linalg.solve(gram + penalty[..., None, None] * identity, x.mT @ y / x.shape[-2])
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
    """Fit and score on the same sequences, as published numbers were: for comparison with them only.

    Least squares without an intercept, singular values cut off as in float32. Its error is too small by
    about the share that features are of sequences: 40 features that say nothing about 256 sequences come
    to 84 % of the variance.

    Args:
        features: [sequence, feature]; published with 256 sequences.
        targets: [sequence, dim].
        outlier_score: sequences whose targets have a norm this many standard deviations above the mean
            norm are left out, on this side only; published with 2 for preconditioned inputs. None: all
            count.

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
    # By way of the Gram matrix, whose eigenvalues are squares: float64 has the digits for it.
    weight = torch.linalg.pinv(x.mT @ x, rtol=cutoff**2, hermitian=True) @ (x.mT @ y)
    return squared_error((x @ weight)[None], y[None]).mean().item()


def collect_activations(
    model: nn.Module,
    task: Task,
    targets: Mapping[str, Target],
    *,
    positions: Sequence[int],
    names: Sequence[str] | None = None,
    slots: tuple[TokenSlot, ...] | None = None,
    evaluation: Evaluation = Evaluation(num_sequences=2048),
) -> ProbeData:
    """Run a model on fresh sequences and keep what probes are about, at some positions.

    Args:
        model: on the CPU; any module from tokens to [batch, time, width]. It computes in evaluation mode.
        task: where the sequences come from.
        targets: what is to be read, by name.
        positions: counted from 1.
        names: parts of the model that give [batch, time, channel], as in :func:`mesaopt.analysis.capture`;
            heads of queries, keys and values are laid side by side. Of a
            :class:`mesaopt.models.SequenceModel` the residual stream before and behind every layer if not
            given.
        slots: of the tokens the model was trained on; those of the task if not given.
        evaluation: the sequences; 2048 test sequences if not given.

    Returns:
        Features and targets, in the type they come in.

    Raises:
        ValueError: there are no names, no such part, or no such position, or a part gives another shape.

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
    names = stream_names(model) if names is None else distinct(names)
    if not positions or not names:
        raise ValueError("positions, names: must not be empty")
    kept: dict[str, list[Tensor]] = {name: [] for name in names}
    read: dict[str, list[Tensor]] = {target: [] for target in targets}
    for batch in evaluation.batches(task):
        _check_positions(positions, batch.targets.shape[1])
        for name, features in _features(model, batch, names, slots).items():
            kept[name].append(features[:, places(positions)])
        for target, of in targets.items():
            read[target].append(of(batch, positions))
    return ProbeData(_joined(kept), _joined(read), tuple(positions))


def score_probes(
    fit: ProbeData, score: ProbeData, *, ridge: float = RIDGE, seed: int = 0
) -> ProbeTable:
    """Probe every target in every part at every position, each by itself.

    Args:
        fit: what the probes are fitted on.
        score: the same parts, targets and positions for other sequences.
        ridge: see :func:`fit_probe`.
        seed: of the order in which targets are shuffled for the control.

    Returns:
        The scores.

    Raises:
        ValueError: the data are of different positions, or a part has too few fitting sequences.
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
        found = _probe_places(*(x.transpose(0, 1) for x in parts), ridge=ridge, seed=seed)
        scores |= {(target, name, t): s for t, s in zip(fit.positions, found, strict=True)}
    return ProbeTable(scores)


def probe_layers(
    model: nn.Module,
    task: Task,
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
    """Probe the residual stream before and behind every layer, for several targets at several positions.

    Probes are fitted on validation sequences and scored on test sequences.

    Args:
        model: as in :func:`collect_activations`.
        task: where the sequences come from.
        targets: what is to be read, by name.
        positions: counted from 1.
        names: as in :func:`collect_activations`.
        num_fit: fitting sequences, more than there are features; rounded up to batches of 256.
        num_score: scored sequences, likewise.
        slots: as in :func:`collect_activations`.
        ridge: see :func:`fit_probe`.
        seed: of the sequences, and of the order in which targets are shuffled for the control.
        on_progress: called with the finished and the total number of batches of 256, fitting ones first.

    Returns:
        The scores.

    Raises:
        ValueError: see :func:`collect_activations` and :func:`probe`; too few sequences are refused before
            any but one is run.

    Example:
        >>> from mesaopt.analysis import current_token, next_token
        >>> from mesaopt.config import LinearSystemConfig, ModelConfig
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
    fitted, scored = _evaluations(num_fit, num_score, seed, on_progress)
    names = stream_names(model) if names is None else distinct(names)
    one = task.sample(1, seed=seed, split="validation")
    for name, features in _features(model, one, names, slots).items():
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
    if num_score < 1:
        raise ValueError(f"num_score={num_score}: must be 1 or greater")
    fit = Evaluation(num_sequences=num_fit, seed=seed, split="validation")
    score = Evaluation(num_sequences=num_score, seed=seed, split="test")
    if on_progress is None:
        return fit, score
    total = fit.num_batches + score.num_batches
    return (
        replace(fit, on_progress=lambda done, _: on_progress(done, total)),
        replace(score, on_progress=lambda done, _: on_progress(fit.num_batches + done, total)),
    )


def stream_names(model: nn.Module) -> list[str]:
    """List the residual stream of a model, before the first layer and behind each.

    Args:
        model: a :class:`mesaopt.models.SequenceModel`.

    Returns:
        Names for :func:`mesaopt.analysis.capture`.

    Raises:
        ValueError: it is another model; nobody knows which of its parts are layers.

    Example:
        >>> from mesaopt.config import ModelConfig
        >>> stream_names(SequenceModel(ModelConfig()))
        ['blocks.0.input', 'blocks.0']
    """
    if not isinstance(model, SequenceModel):
        raise ValueError(f"names=None: must be given for a {type(model).__name__}")
    return ["blocks.0.input", *(f"blocks.{layer}" for layer in range(len(model.blocks)))]


def _probe_places(
    fit_features: Float[Tensor, "place fitted feature"],
    fit_targets: Float[Tensor, "place fitted dim"],
    score_features: Float[Tensor, "place scored feature"],
    score_targets: Float[Tensor, "place scored dim"],
    *,
    ridge: float,
    seed: int,
) -> Iterator[ProbeScore]:
    _check_pair("fit_features", fit_features, "fit_targets", fit_targets)
    _check_pair("score_features", score_features, "score_targets", score_targets)
    _check_enough("fit_features", fit_features.shape)
    y, scored = fit_targets.double(), score_targets.double()
    order = torch.randperm(y.shape[1], generator=torch.Generator().manual_seed(seed))
    both = fit_probe(fit_features, torch.cat([y, y[:, order]], dim=-1), ridge=ridge)
    read, _ = both.predict(fit_features).chunk(2, dim=-1)
    held_out, shuffled = both.predict(score_features).chunk(2, dim=-1)
    nothing = y.mean(1, keepdim=True).expand_as(scored)
    losses, baselines = (squared_error(x, scored) for x in (held_out, nothing))  # [P, N]
    in_sample, control = squared_error(read, y).mean(1), squared_error(shuffled, scored).mean(1)
    for place in range(len(losses)):
        yield ProbeScore(
            losses[place],
            baselines[place],
            dim=y.shape[-1],
            in_sample=in_sample[place].item(),
            shuffled=control[place].item(),
        )


def _features(
    model: nn.Module, batch: Batch, names: Sequence[str], slots: tuple[TokenSlot, ...] | None
) -> dict[str, Float[Tensor, "batch time channel"]]:
    """Capture what parts of a model give for every token."""
    tokens = batch.tokens if slots is None else tokens_from_states(batch.observed, slots)
    with evaluating(model):
        found = capture(model, tokens, names)
    return {name: _by_token(name, x, tokens) for name, x in found.items()}


def _by_token(name: str, found: Tensor, tokens: Tensor) -> Float[Tensor, "batch time channel"]:
    end = name.rpartition(".")[-1]
    if found.dim() == 4 and end in ("queries", "keys", "values"):
        found = found.flatten(2)  # [B,T,H,K] -> [B,T,H*K]
    if found.dim() != 3 or found.shape[:2] != tokens.shape[:2]:
        why = "; a map has no channels of its own for a token" if end == "attention" else ""
        given = f"names: {name!r} gives shape {tuple(found.shape)}"
        raise ValueError(f"{given}: must be [batch, time, channel]{why}")
    return found


def _joined(parts: dict[str, list[Tensor]]) -> dict[str, Tensor]:
    return {name: torch.cat(parts.pop(name)) for name in list(parts)}


def _check_positions(positions: Sequence[int], length: int) -> None:
    for t in positions:
        if not 1 <= t <= length:
            raise ValueError(f"position={t}: must be between 1 and {length}")


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
