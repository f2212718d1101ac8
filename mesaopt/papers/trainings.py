"""The trainings of a plan: what they cost, and who trains them: this process, or an engine."""

import functools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from mesaopt import recipes
from mesaopt.config import RunConfig
from mesaopt.errors import RunError
from mesaopt.models import make_model
from mesaopt.papers.laboratory import Plan, Runs
from mesaopt.progress import OnProgress, ProgressDisplay, Stage
from mesaopt.sweeps import Engine, train_all
from mesaopt.training import RunFolder, StepCost, StepCosts, run_name, seed_batches, train_seeds

_RUNS = "runs"
"""Name of the stage in which an engine trains all of them."""


@dataclass(frozen=True, kw_only=True)
class Cost:
    """The cost of one run of a plan on this machine."""

    run: str
    steps: int
    step: StepCost

    @property
    def seconds(self) -> float:
        """Expected training time."""
        return self.steps * self.step.seconds


def costs(plan: Plan, *, device: str = "auto") -> Iterator[Cost]:
    """Estimate what the runs of a plan cost here; equal work is timed once, on part of a batch.

    Args:
        plan: the runs.
        device: "auto", "cpu", "cuda" or "cuda:<number>".

    Yields:
        One entry per run, each as soon as it is known.
    """
    steps = StepCosts(device)
    for training in plan.trainings:
        step = steps.of(seed_batches(training.configs, device)[0])
        for config in training.configs:
            yield Cost(run=run_name(config), steps=config.train.steps, step=step)


def total_parameters(counts: Mapping[str, int]) -> int:
    """Add up the parameters of so many models of each recipe, to which their cost is about proportional.

    Example:
        >>> total_parameters({"lsa-1": 2, "lsa-2": 1})
        38400
    """
    return sum(count * _parameters(recipe) for recipe, count in counts.items())


@functools.cache
def _parameters(recipe: str) -> int:
    """Count the parameters of a recipe's model."""
    with torch.device("meta"):
        return sum(p.numel() for p in make_model(recipes.get(recipe).model).parameters())


@dataclass(frozen=True)
class Trainer:
    """Trains the runs of a study: one after another in this process, or by an engine."""

    out: Path
    device: str
    engine: Engine | None

    @property
    def folder(self) -> Path:
        """The folder of the runs."""
        return self.out / "runs"

    def stages(self, plan: Plan) -> list[Stage]:
        """List the stages of the display, with estimates of their time on this machine."""
        groups, unfinished = _groups(plan, self.device), self._unfinished(plan)
        share = {c.run: c.step.seconds for c in costs(unfinished, device=self.device)}
        seconds = [sum(share.get(run_name(config), 0) for config in group) for group in groups]
        if self.engine is None or not groups:
            pairs = zip(groups, seconds, strict=True)
            return [Stage(_title(group), group[0].train.steps, time) for group, time in pairs]
        steps = [sum(config.train.steps for config in group) for group in groups]
        whole = sum(x * g[0].train.steps for x, g in zip(seconds, groups, strict=True))
        return [Stage(_RUNS, sum(steps), whole / sum(steps))]

    def train(self, plan: Plan, display: ProgressDisplay) -> Runs:
        """Train the runs of a plan, or load those that have ended.

        Raises:
            RunError: the engine could not train all of them.
        """
        runs: Runs = {}
        if self.engine is not None and plan.configs:
            display.begin(_RUNS)
            failed = self.train_ahead(list(plan.configs.values()), display.update)
            if failed:
                problems = "; ".join(f"{path.name}: {problem}" for path, problem in failed.items())
                raise RunError(f"{len(failed)} of {len(plan.configs)} runs failed: {problems}")
        for group in _groups(plan, self.device):
            paths = [self.folder / run_name(config) for config in group]
            if self.engine is None:
                is_done = all(RunFolder(path).is_done for path in paths)
                (display.skip if is_done else display.begin)(_title(group))
            trained = train_seeds(
                group, paths, resume=True, device=self.device, progress=display.update
            )
            runs.setdefault(group[0].recipe, []).extend(trained)
        return runs

    def train_ahead(self, configs: Sequence[RunConfig], progress: OnProgress) -> dict[Path, str]:
        """Have the engine train some runs, and say which of them failed; nothing without an engine."""
        if self.engine is None:
            return {}
        # Models of the study's own are trained by those who need them: a folder holds no code.
        ours = [c for c in configs if c.task.kind != "own" and c.model.kind != "own"]
        runs = {self.folder / run_name(config): config for config in ours}
        RunFolder.check_all(list(runs), list(runs.values()), resume=True)
        logs = self.out / "jobs"
        return train_all(self.engine, runs, device=self.device, logs=logs, progress=progress)

    def _unfinished(self, plan: Plan) -> Plan:
        """Give the plan without the recipes that an earlier session has trained."""
        waiting = tuple(
            training
            for training in plan.trainings
            if not all(RunFolder(self.folder / run_name(c)).is_done for c in training.configs)
        )
        return replace(plan, trainings=waiting)


def _groups(plan: Plan, device: str) -> list[list[RunConfig]]:
    """List the runs of a plan by those that are trained side by side."""
    return [group for t in plan.trainings for group in seed_batches(t.configs, device)]


def _title(group: Sequence[RunConfig]) -> str:
    return run_name(group[0]) if len(group) == 1 else f"{group[0].recipe}, {len(group)} seeds"
