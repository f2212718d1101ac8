"""What a diagnosis looks at besides distances: learning in context, memory, and the inside of a model."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mesaopt.analysis.diagnosis.laws import Problem
from mesaopt.analysis.estimate import Estimate
from mesaopt.analysis.evaluation import EVALUATION_BATCH, Evaluation
from mesaopt.analysis.in_context import Predictor, in_context_loss
from mesaopt.analysis.probe_targets import (
    Target,
    current_token,
    next_token,
    past_token,
    preconditioned_token,
)
from mesaopt.analysis.probes import (
    ProbeScore,
    probe_layers,
    stream_names,
)
from mesaopt.models import SequenceModel
from mesaopt.progress import OnProgress
from mesaopt.theory import PUBLISHED_INVERSES

_LATE = 4  # the last quarter of the positions
_NEIGHBOURS = (1, 2, 3)
# What is looked for as the preconditioned input, as in the paper. The exact inverse has rare huge entries,
# which a score of squares would be about.
_INVERSE = PUBLISHED_INVERSES["7-layer"]
_PROBE_SEQUENCES = 2048


@dataclass(frozen=True)
class Learning:
    """Losses by position on systems that are new in every sequence."""

    positions: tuple[int, ...]
    model: tuple[float, ...]
    model_error: tuple[float, ...]
    """Standard errors."""
    zero: tuple[float, ...]
    """Of predicting zero."""
    context_free: tuple[float, ...]
    """Of the best map of the newest input, the same for all sequences, fitted to the targets."""
    optimizer: tuple[float, ...]
    """Of the nearest optimizer."""
    gain: Estimate
    """1 - loss of the model / loss of the better of the two, over the last quarter of the positions."""
    fall: Estimate
    """By how much more of the loss of the same rival the model saves over the last quarter of the positions
    than over the first. Losses themselves may grow along a sequence while the context helps: states do."""


def learning_in_context(
    predict: Predictor, optimizer: Predictor, problem: Problem, evaluation: Evaluation
) -> Learning:
    """Measure how the loss falls along sequences, beside what can be known without a context."""
    predictors = {
        "model": predict,
        "zero": lambda batch: torch.zeros_like(batch.targets),
        "context-free": _context_free_map(problem, seed=evaluation.seed),
        "optimizer": optimizer,
    }
    losses = in_context_loss(predictors, problem.task, evaluation)
    model = losses["model"]
    width = max(1, len(model.positions) // _LATE)
    early = {name: loss.losses[:, :width].double().mean(1) for name, loss in losses.items()}
    late = {name: loss.losses[:, -width:].double().mean(1) for name, loss in losses.items()}
    rival = min(("zero", "context-free"), key=lambda name: late[name].mean().item())
    return Learning(
        tuple(model.positions),
        *map(_numbers, (model.curve, model.curve_error)),
        *(_numbers(losses[name].curve) for name in ("zero", "context-free", "optimizer")),
        gain=Estimate.ratio(late[rival] - late["model"], late[rival]),
        fall=Estimate.ratio_difference(
            (early["model"], early[rival]), (late["model"], late[rival])
        ),
    )


def _numbers(x: Tensor) -> tuple[float, ...]:
    return tuple(x.tolist())


@dataclass(frozen=True)
class Memory:
    """The negative control: a model that was trained on one system, there and on fresh ones."""

    taught: Estimate
    """Loss on the system it was trained on."""
    fresh: Estimate
    """Loss on fresh systems."""
    zero: float
    """Loss of predicting zero, on fresh systems."""


def memory_of(predict: Predictor, problem: Problem, evaluation: Evaluation) -> Memory:
    """Score a model on the system it was trained on, and on fresh ones."""
    assert problem.taught is not None
    zero: Predictor = lambda batch: torch.zeros_like(batch.targets)  # noqa: E731
    both = {
        name: in_context_loss({"model": predict, "zero": zero}, task, evaluation)
        for name, task in (("taught", problem.taught), ("fresh", problem.task))
    }
    return Memory(
        *(both[name]["model"].estimate for name in ("taught", "fresh")),
        zero=both["fresh"]["zero"].mean,
    )


@dataclass(frozen=True)
class ProbeReading:
    """How well one thing can be read off one part of a model by a linear probe, on unseen sequences."""

    target: str
    layer: str
    position: int
    r2: Estimate
    """Share of the variance of the target."""
    rise: Estimate
    """By how much this is more than in the first layer; both are of the same sequences, and so paired."""


@dataclass(frozen=True)
class Inside:
    """What linear probes find in the parts of a model."""

    names: tuple[str, ...]
    """First to last; the first is what the others are compared with."""
    held: tuple[int, ...]
    """How many steps back the states are that the input tokens show already."""
    readings: tuple[ProbeReading, ...]

    def at(self, target: str, layer: str, position: int) -> ProbeReading:
        """Return one reading.

        Raises:
            KeyError: there is none.
        """
        for reading in self.readings:
            if (reading.target, reading.layer, reading.position) == (target, layer, position):
                return reading
        raise KeyError((target, layer, position))

    @property
    def targets(self) -> tuple[str, ...]:
        """What was looked for; nothing from before the first token of a short sequence."""
        return tuple(dict.fromkeys(reading.target for reading in self.readings))

    @property
    def positions(self) -> tuple[int, ...]:
        """Where was probed, counted from 1."""
        return tuple(sorted({reading.position for reading in self.readings}))


def steps_back(steps: int) -> str:
    """Name the target s_{t - steps}."""
    return {0: "current state", 1: "previous state"}.get(steps, f"{steps} states back")


NEXT, PRECONDITIONED = "next state", "preconditioned input"


def look_inside(
    model: nn.Module,
    problem: Problem,
    names: Sequence[str] | None,
    *,
    seed: int,
    on_progress: OnProgress | None = None,
) -> Inside | None:
    """Probe layers for neighbours, the next state and the preconditioned input.

    Args:
        model: any.
        problem: what it is to solve.
        names: parts, as in :func:`mesaopt.analysis.capture`; None: the residual stream before and behind
            every layer of a :class:`mesaopt.models.SequenceModel`, and nothing of another.
        seed: of the sequences.
        on_progress: called with the finished and the total number of batches.

    Returns:
        The readings, or None where no layers are known.

    Raises:
        ValueError: there is no such layer.
    """
    if names is None:
        if not isinstance(model, SequenceModel):
            return None
        names = stream_names(model)
    if not names:
        return None
    config = problem.task.config
    positions = sorted({max(1, 2 * config.length // 5), config.length})
    targets: dict[str, Target] = {steps_back(0): current_token}
    targets |= {steps_back(k): past_token(k) for k in _NEIGHBOURS if k < positions[0]}
    targets[NEXT] = next_token
    targets[PRECONDITIONED] = preconditioned_token(_INVERSE, inputs=problem.inputs)
    table = probe_layers(
        model,
        problem.task,
        targets,
        positions=positions,
        names=names,
        num_fit=_PROBE_SEQUENCES,
        num_score=_PROBE_SEQUENCES // 2,
        seed=seed,
        on_progress=on_progress,
    )
    readings = tuple(
        ProbeReading(
            target,
            name,
            position,
            *probe_estimates(table.at(target, names[0], position), found),
        )
        for (target, name, position), found in table.scores.items()
    )
    return Inside(tuple(names), _held(config.token_slots), readings)


PROBE_BATCHES = 3 * _PROBE_SEQUENCES // 2 // EVALUATION_BATCH
"""Batches that :func:`look_inside` runs."""


def probe_estimates(first: ProbeScore, found: ProbeScore) -> tuple[Estimate, Estimate]:
    """Estimate what is read, and how much more that is than what is read in the first layer."""
    return 1 - found.unexplained, Estimate.ratio(first.losses - found.losses, found.baseline)


def _held(slots: Sequence[str | int]) -> tuple[int, ...]:
    back = {"current": 0, "previous": 1}
    return tuple(sorted({back.get(s, s) for s in slots if s != "zero"}))  # type: ignore[arg-type,type-var]


def _context_free_map(problem: Problem, *, seed: int) -> Predictor:
    """Fit the best linear map from the newest regression input to the next state, one for all sequences."""
    known: Predictor = lambda batch: (  # noqa: E731
        batch.observed if problem.inputs is None else problem.inputs(batch.observed)
    )
    x, y = [], []
    validation = Evaluation(num_sequences=_PROBE_SEQUENCES, seed=seed, split="validation")
    for batch in validation.batches(problem.task):
        x.append(known(batch).flatten(0, 1))
        y.append(batch.targets.flatten(0, 1))
    matrix = torch.linalg.lstsq(torch.cat(x), torch.cat(y)).solution
    return lambda batch: known(batch) @ matrix
