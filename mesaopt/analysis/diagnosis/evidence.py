"""Evidence besides distances: learning in context, memory of one system, and probes of layers."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mesaopt.analysis.diagnosis.model_target import few_sequences
from mesaopt.analysis.diagnosis.regression import InContextRegression
from mesaopt.analysis.estimate import Estimate
from mesaopt.analysis.evaluation import EVALUATION_BATCH, Evaluation
from mesaopt.analysis.in_context import Predictor, in_context_loss
from mesaopt.analysis.probe_targets import (
    Target,
    current_token,
    next_token,
    past_token,
)
from mesaopt.analysis.probes import (
    ProbeScore,
    probe_layers,
    stream_names,
)
from mesaopt.analysis.prompts import PromptKind, PromptPredictor, Prompts
from mesaopt.display import Curve, Drawn, Row
from mesaopt.models import SequenceModel
from mesaopt.progress import AnyProgress
from mesaopt.theory import PUBLISHED_INVERSES, preconditioned_queries

_LATE = 4  # the last quarter of the positions
_NEIGHBOURS = (1, 2, 3)
# The preconditioned input is that of the paper. The exact inverse has rare huge entries, which would
# dominate a mean of squares.
_INVERSE = PUBLISHED_INVERSES["7-layer"]
_PROBE_SEQUENCES = 2048


@dataclass(frozen=True, repr=False)
class Learning(Drawn):
    """Losses by position on systems that are new in every sequence."""

    positions: tuple[int, ...]
    """Positions, counted from 1."""
    model: tuple[float, ...]
    """Mean losses of the model."""
    model_error: tuple[float, ...]
    """Their standard errors."""
    zero: tuple[float, ...]
    """Mean losses of predicting zero."""
    context_free: tuple[float, ...]
    """Mean losses of the best linear map of the input, the same for all sequences."""
    optimizer: tuple[float, ...]
    """Mean losses of the nearest optimizer."""
    gain: Estimate
    """Share of the loss without context that the model saves over the last quarter of the positions. The
    loss without context is that of zero or of the context-free map, whichever is lower there."""
    gain_increase: Estimate
    """The gain less the same share over the first quarter of the positions. Losses themselves may grow
    along a sequence while the context helps, since states do."""

    _axes = {"xlabel": "position in the sequence", "ylabel": "loss", "yscale": "log"}

    def _headline(self) -> str:
        return f"The context saves {self.gain} of the loss, {self.gain_increase} more than early"

    def _rows(self) -> list[Row]:
        models = map(Estimate, self.model, self.model_error)
        each = zip(
            self.positions, models, self.zero, self.context_free, self.optimizer, strict=True
        )
        columns = ("position", "model", "zero", "context_free", "optimizer")
        return [dict(zip(columns, row, strict=True)) for row in each]

    def _curves(self) -> list[Curve]:
        return [
            Curve("trained model", self.positions, self.model, self.model_error),
            Curve("nearest optimizer", self.positions, self.optimizer),
            Curve("one linear map", self.positions, self.context_free),
            Curve("no knowledge", self.positions, self.zero),
        ]


def learning_in_context(
    predict: Predictor,
    optimizer: PromptPredictor,
    problem: InContextRegression,
    evaluation: Evaluation,
) -> Learning:
    """Measure the loss along sequences, for the model and for predictors without context."""
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
        positions=tuple(model.positions),
        model=_numbers(model.curve),
        model_error=_numbers(model.curve_error),
        zero=_numbers(losses["zero"].curve),
        context_free=_numbers(losses["context-free"].curve),
        optimizer=_numbers(losses["optimizer"].curve),
        gain=Estimate.ratio(late[rival] - late["model"], late[rival]),
        gain_increase=Estimate.ratio_difference(
            (early["model"], early[rival]), (late["model"], late[rival])
        ),
    )


def _numbers(x: Tensor) -> tuple[float, ...]:
    return tuple(x.tolist())


@dataclass(frozen=True)
class Memory:
    """The negative control: losses of a model that was trained on a single system."""

    training_system: Estimate
    """Loss on the system it was trained on."""
    new_systems: Estimate
    """Loss on new systems."""
    zero: float
    """Loss of predicting zero, on new systems."""


def memory_of(predict: Predictor, problem: InContextRegression, evaluation: Evaluation) -> Memory:
    """Measure the loss of a model on the system it was trained on, and on new systems."""
    assert problem.training_task is not None
    zero: Predictor = lambda batch: torch.zeros_like(batch.targets)  # noqa: E731
    both = {
        name: in_context_loss({"model": predict, "zero": zero}, task, evaluation)
        for name, task in (("training", problem.training_task), ("new", problem.task))
    }
    return Memory(
        training_system=both["training"]["model"].estimate,
        new_systems=both["new"]["model"].estimate,
        zero=both["new"]["zero"].mean,
    )


@dataclass(frozen=True)
class ProbeResult:
    """Score of a linear probe of one layer for one target, on sequences it was not fitted on."""

    target: str
    """Name of the target."""
    layer: str
    """Name of the layer."""
    position: int
    """Position, counted from 1."""
    r2: Estimate
    """Share of the variance of the target that the probe explains."""
    increase: Estimate
    """This share less that of the first layer, on the same sequences."""


@dataclass(frozen=True, repr=False)
class ProbeResults(Drawn):
    """Scores of linear probes of the layers of a model."""

    names: tuple[str, ...]
    """Names of the layers, first to last. The others are compared with the first."""
    input_offsets: tuple[int, ...]
    """Offsets of the states that the input tokens contain: 0 is the current state, 1 the previous one. None
    where prompts are pairs."""
    results: tuple[ProbeResult, ...]
    """One per target, layer and position."""

    def at(self, target: str, layer: str, position: int) -> ProbeResult:
        """Return one result.

        Args:
            target: name of the target.
            layer: name of the layer.
            position: counted from 1.

        Returns:
            The result.

        Raises:
            KeyError: there is none.
        """
        for result in self.results:
            if (result.target, result.layer, result.position) == (target, layer, position):
                return result
        raise KeyError((target, layer, position))

    @property
    def targets(self) -> tuple[str, ...]:
        """Names of the targets; past states only as far back as short sequences have them."""
        return tuple(dict.fromkeys(result.target for result in self.results))

    @property
    def positions(self) -> tuple[int, ...]:
        """Positions, counted from 1."""
        return tuple(sorted({result.position for result in self.results}))

    _axes = {"xlabel": "layer", "ylabel": "R² of a linear probe", "ylim": (-0.05, 1.05)}

    def _headline(self) -> str:
        return f"R² of linear probes at position {self.positions[-1]}"

    def _rows(self) -> list[Row]:
        names = ("target", "layer", "position", "r2", "increase")
        return [{name: getattr(result, name) for name in names} for result in self.results]

    def _table(self) -> list[Row]:
        last = self.positions[-1]
        return [
            {"target": target} | {n: self.at(target, n, last).r2.value for n in self.names}
            for target in self.targets
        ]

    def _curves(self) -> list[Curve]:
        last, names = self.positions[-1], self.names
        return [Curve.of(t, names, [self.at(t, n, last).r2 for n in names]) for t in self.targets]


def steps_back(steps: int) -> str:
    """Name the target s_{t - steps}."""
    return {0: "current state", 1: "previous state"}.get(steps, f"{steps} states back")


NEXT: dict[PromptKind, str] = {"states": "next state", "pairs": "answer"}
PREVIOUS: dict[PromptKind, str] = {"states": steps_back(1), "pairs": "previous input"}
PRECONDITIONED = "preconditioned input"
"""Names of targets of probes."""


def probe_model(
    model: nn.Module,
    problem: InContextRegression,
    names: Sequence[str] | None,
    *,
    seed: int,
    progress: AnyProgress = False,
) -> ProbeResults | None:
    """Probe layers for neighbouring states or pairs, the answer and the preconditioned input.

    Args:
        model: any module.
        problem: its regression problem.
        names: layers, as in :func:`mesaopt.analysis.capture`; None: the residual stream before and after
            every layer of a :class:`mesaopt.models.SequenceModel`, and no layer of another module.
        seed: of the sequences.
        progress: called with the finished and the total number of batches.

    Returns:
        The scores, or None where no layers are known.

    Raises:
        ValueError: there is no such layer.
    """
    names = layers_of(model, names)
    if not names:
        return None
    batch = few_sequences(problem.task)
    asked = [position_of(batch, pair) for pair in batch.asked]
    positions = sorted({asked[max(1, 2 * len(asked) // 5) - 1], asked[-1]})
    targets = _targets(problem, batch.pairs_at(positions)[0])
    table = probe_layers(
        model,
        problem.task,
        targets,
        positions=positions,
        names=names,
        num_fit=_PROBE_SEQUENCES,
        num_score=_PROBE_SEQUENCES // 2,
        seed=seed,
        progress=progress,
    )

    def first(target: str, position: int) -> ProbeScore:
        return table.at(target, names[0], position)

    results = tuple(
        ProbeResult(target, name, position, *probe_estimates(first(target, position), score))
        for (target, name, position), score in table.scores.items()
    )
    slots = getattr(getattr(problem.task.task, "config", None), "token_slots", ())
    return ProbeResults(tuple(names), _input_offsets(slots), results)


def position_of(batch: Prompts, pair: int) -> int:
    """Give the position, counted from 1, at which the answer of a pair is asked for."""
    return range(1, batch.targets.shape[1] + 1)[batch.places][pair]


def _targets(problem: InContextRegression, earliest: int) -> dict[str, Target]:
    """List the targets of probes; what is past, as far back as there is something at the earliest pair."""
    targets: dict[str, Target]
    if problem.task.kind == "states":
        targets = {steps_back(0): current_token}
        targets |= {steps_back(k): past_token(k) for k in _NEIGHBOURS if k <= earliest}
    else:
        targets = {"input": pair_target(lambda batch: batch.inputs)}
        if earliest > 0:
            targets[PREVIOUS["pairs"]] = pair_target(lambda batch: batch.inputs.roll(1, dims=1))
            targets["previous answer"] = pair_target(lambda batch: batch.seen)
    targets[NEXT[problem.task.kind]] = next_token
    targets[PRECONDITIONED] = pair_target(
        lambda batch: preconditioned_queries(batch.context, _INVERSE)
    )
    return targets


def pair_target(values: Callable[[Prompts], Tensor]) -> Target:
    """Make a target of what belongs to each pair, at the place where its answer is asked for."""

    def target(batch: Any, positions: Sequence[int]) -> Tensor:
        return values(batch)[:, batch.pairs_at(positions)]

    return target


def layers_of(model: nn.Module, names: Sequence[str] | None) -> Sequence[str]:
    """List the layers to look into: those given, or the residual stream of a SequenceModel, or none."""
    if names is None:
        return stream_names(model) if isinstance(model, SequenceModel) else ()
    return names


PROBE_BATCHES = 3 * _PROBE_SEQUENCES // 2 // EVALUATION_BATCH
"""Number of batches that :func:`probe_model` runs."""


def probe_estimates(first: ProbeScore, score: ProbeScore) -> tuple[Estimate, Estimate]:
    """Estimate the explained variance of a probe, and its excess over that of the first layer."""
    return 1 - score.unexplained, Estimate.ratio(first.losses - score.losses, score.baseline)


def _input_offsets(slots: Sequence[str | int]) -> tuple[int, ...]:
    offsets = {"current": 0, "previous": 1}
    return tuple(sorted({offsets.get(s, s) for s in slots if s != "zero"}))  # type: ignore[arg-type,type-var]


def _context_free_map(problem: InContextRegression, *, seed: int) -> PromptPredictor:
    """Fit the best linear map from an input to its answer, one for all sequences."""

    def pairs(batch: Prompts) -> tuple[Tensor, Tensor]:
        return batch.inputs[:, batch.asked].flatten(0, 1), batch.scored_targets.flatten(0, 1)

    validation = Evaluation(num_sequences=_PROBE_SEQUENCES, seed=seed, split="validation")
    x, y = zip(*validation.map(problem.task, pairs), strict=True)
    # In double precision: in single precision the last digits differ from process to process.
    matrix = torch.linalg.lstsq(torch.cat(x).double(), torch.cat(y).double()).solution
    return lambda batch: batch.at_places(batch.inputs @ matrix.to(batch.targets))
