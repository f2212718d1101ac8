"""Linear layers reduced to scalars, and mixed with the networks of their own training."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from mesaopt.analysis import (
    Evaluation,
    InContextLoss,
    Predictor,
    compress,
    in_context_loss,
    interpolate,
    model_predictor,
)
from mesaopt.analysis.estimate import Estimate
from mesaopt.models import SequenceModel
from mesaopt.papers.laboratory import measurement
from mesaopt.papers.uncovering2023.laboratory import Laboratory
from mesaopt.tasks import make_task
from mesaopt.training import Run, RunFolder, load_run

SIX_WIDE = "lsa-6-key-40"
INTERPOLATED = ("lsa-1", "lsa-6", SIX_WIDE)
"""Recipes whose networks are mixed with their own scalars."""
EXTRACTED_AT = {"lsa-1": 2500 / 3500, "lsa-6": 3500 / 4500, SIX_WIDE: 3500 / 4500}
"""When the authors compress the network, as a share of the training that is mixed with it."""


@dataclass(frozen=True)
class CompressedRun:
    """Losses of a run, its compressions and mixtures, by step, on the test sequences of its training."""

    recipe: str
    seed: int
    extracted: int
    """Step at which the network was compressed."""
    network: dict[int, InContextLoss]
    """The network at its start, when it was compressed, and at its end."""
    compressed: dict[int, InContextLoss]
    """The scalars of the networks at these steps, but for the start."""
    interpolated: dict[int, InContextLoss]
    """The model halfway between the network at each step and the scalars of `extracted`."""

    @property
    def start(self) -> int:
        """The first step, before any training."""
        return min(self.network)

    @property
    def end(self) -> int:
        """The last step."""
        return max(self.network)


@measurement
def compressed_runs(lab: Laboratory, recipe: str) -> list[CompressedRun]:
    """Compress the runs of linear layers and mix them with their own training.

    The authors train a second time from the same seed and mix while they train; here a run is a pure
    function of its seed, and its checkpoints are those of a second training.
    """
    runs = [run for run in lab.trained(recipe) if RunFolder(run.path).steps]
    return [_compress(lab, run) for run in runs]


def _compress(lab: Laboratory, run: Run) -> CompressedRun:
    extracted, models = _models(run)
    predictors: dict[str, Predictor] = {
        f"{kind}/{step}": model_predictor(model, run.config.task.token_slots)
        for kind, by_step in models.items()
        for step, model in by_step.items()
    }
    count = run.config.train.evaluation_sequences
    evaluation = Evaluation(num_sequences=count, progress=lab.on_progress)
    losses = in_context_loss(predictors, make_task(run.config.task), evaluation)
    by_kind = {
        kind: {step: losses[f"{kind}/{step}"] for step in by_step}
        for kind, by_step in models.items()
    }
    return CompressedRun(run.config.recipe, run.config.seed, extracted, **by_kind)


def _models(run: Run) -> tuple[int, dict[str, dict[int, SequenceModel]]]:
    """Give the step that the scalars are from, and all models by kind and step."""
    recipe, steps = run.config.recipe, RunFolder(run.path).steps
    start, end = steps[0], steps[-1]
    wanted = EXTRACTED_AT.get(recipe, 1.0) * end
    extracted = min(steps, key=lambda step: abs(step - wanted))
    mixed = _some(steps) if recipe in INTERPOLATED else []
    at_step = {
        step: load_run(run.path, step=step, device="cpu").sequence_model
        for step in {start, extracted, end, *mixed}
    }
    scalars = {step: compress(at_step[step]).model for step in (extracted, end)}
    return extracted, {
        "network": {step: at_step[step] for step in (start, extracted, end)},
        "compressed": scalars,
        "interpolated": {s: interpolate(at_step[s], scalars[extracted]) for s in mixed},
    }


def _some(steps: Sequence[int]) -> Sequence[int]:
    """Choose the checkpoints that are mixed: all of few, as in the zoo, and of many more early ones."""
    if len(steps) <= _FEW:
        return steps
    return [step for step in steps if step <= 1000 or step % 500 == 0 or step == steps[-1]]


_FEW = 20
_ALL = slice(None)


def loss_ratio(
    pairs: Sequence[tuple[InContextLoss, InContextLoss]], positions: slice = _ALL
) -> Estimate:
    """Give the ratio of mean losses of pairs at some positions, one per seed, on the same sequences."""
    ours, theirs = (
        torch.stack([p.losses[:, positions].mean(1) for p in ps]) for ps in zip(*pairs, strict=True)
    )
    return Estimate.ratio(ours, theirs)


def compressed_ratio(runs: Sequence[CompressedRun], positions: slice = _ALL) -> Estimate:
    """Give the ratio of the losses of compressed networks and these, when they were compressed."""
    ends = [(m.compressed[m.extracted], m.network[m.extracted]) for m in runs]
    return loss_ratio(ends, positions)


def interpolated_ratio(runs: Sequence[CompressedRun], *, end: bool) -> Estimate:
    """Give the ratio of the losses of mixtures and networks, at the start or the end of training."""
    steps = [m.end if end else m.start for m in runs]
    return loss_ratio([(m.interpolated[s], m.network[s]) for m, s in zip(runs, steps, strict=True)])


def learned(runs: Sequence[CompressedRun]) -> bool:
    """Say whether the networks learned: of one that did not, compression has nothing to lose."""
    return all(
        one.network[step].mean < _LEARNED * one.network[one.start].mean
        for one in runs
        for step in (one.extracted, one.end)
    )


_LEARNED = 0.75
"""Share of its first loss below which a network has learned something; 0.53 published for one layer."""
