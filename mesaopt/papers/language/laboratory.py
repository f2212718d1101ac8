"""The laboratory of language models and recall: trainings with learning rates chosen on validation."""

import contextlib
import itertools
import math
from collections.abc import Callable, Generator, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor

from mesaopt.analysis.estimate import Estimate
from mesaopt.analysis.evaluation import EVALUATION_BATCH
from mesaopt.config import MixerName, NetworkConfig, RunConfig, Split, TextConfig
from mesaopt.looks import Look
from mesaopt.papers import laboratory
from mesaopt.papers.laboratory import Plan, Training, measurement
from mesaopt.papers.language.settings import SETTINGS, Comparison, Settings, next_rates
from mesaopt.progress import OnProgress, Progress
from mesaopt.recipes.language import MIXERS
from mesaopt.tasks import Batch, make_task
from mesaopt.tasks.tokens.base import num_settings
from mesaopt.training import DivergedError, Run, run_name, train
from mesaopt.workers import current_workers

LOOKS: dict[str, Look] = {
    "softmax": Look("#758c1a", marker="X"),
    "linear": Look("#3f87d6", marker="s"),
    "gated-linear": Look("#7b68d9", marker="D"),
    "delta": Look("#c8701a", marker="^"),
    "gated-delta": Look("#b07f6a", marker="v"),
    "longhorn": Look("#cf4d5e", marker=">"),
    "mesa": Look("#258f69", marker="P"),
    "mesanet": Look("#1c8c9c", marker="*"),
}
"""The looks of the mixers in all figures of this study."""


@dataclass(frozen=True, kw_only=True)
class LanguagePlan(Plan):
    """A plan with the number of seeds of the trainings that have their learning rate chosen.

    Example:
        >>> LanguagePlan(what="language", scale="smoke", seeds=1).with_seeds(3).seeds
        3
    """

    seeds: int
    """Models of every method at the learning rate that was chosen."""

    def with_seeds(self, seeds: int) -> "LanguagePlan":
        """Give the same plan with another number of seeds of everything."""
        trainings = tuple(replace(training, seeds=seeds) for training in self.trainings)
        return replace(self, seeds=seeds, trainings=trainings)


@dataclass(frozen=True, kw_only=True)
class TextTraining(Training):
    """The runs of a recipe on text, with a schedule that fits their steps.

    Example:
        >>> (config,) = TextTraining(recipe="lm-1-mesa", seeds=1, steps=50, length=64).configs
        >>> config.task.length, config.train.decay_steps
        (64, 50)
    """

    length: int
    """Tokens of a stretch."""

    @property
    def configs(self) -> list[RunConfig]:
        """One configuration per seed."""
        return [
            replace(
                config,
                task=replace(cast(TextConfig, config.task), length=self.length),
                train=replace(
                    config.train,
                    warmup_steps=self.steps // 10,
                    decay_steps=self.steps,
                    evaluate_every=-(-self.steps // 2),
                ),
            )
            for config in super().configs
        ]


Prepare = Callable[[float, int], RunConfig]
"""Makes the settings of a method's run from a learning rate and a seed."""
Score = Callable[[Batch, Tensor], Tensor]
"""Scores the predictions for a batch: one number, or one row of them, for each sequence."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """The scores of one trained model."""

    validation: float
    """Mean loss on validation sequences; infinite where the training diverged, NaN where there was none."""
    scores: Float[Tensor, "difficulty sequence *more"] | None
    """Scores of test sequences of each difficulty of the task; None where the training diverged."""
    parameters: int
    seconds: float
    """Training time."""


@dataclass(frozen=True, kw_only=True)
class Result:
    """A method of a comparison: its learning rate, and its models, one per seed."""

    rate: float
    """The learning rate that was chosen; 0 where nothing was trained."""
    validation: dict[float, float]
    """Loss on validation sequences of the first seed's model, by learning rate."""
    outcomes: list[Outcome]
    missing: float = 0.0
    """Every score of a training that diverged: no right answer."""
    shape: tuple[int, ...] = (1, 2)
    """Shape of the scores of a model, where those of this method all diverged."""

    def score(self, difficulty: int = 0) -> Estimate:
        """Give the mean score of a difficulty.

        Its error is that over sequences, and over seeds where there are several.
        """
        return Estimate.of(self.scores[:, difficulty])

    @property
    def scores(self) -> Float[Tensor, "seed difficulty sequence *more"]:
        """The scores of all seeds on the same sequences."""
        given = [outcome.scores for outcome in self.outcomes]
        none = torch.full(_shape_of(self.outcomes, self.shape), self.missing)
        return torch.stack([none if one is None else one for one in given])

    def less(self, other: "Result", difficulty: int = 0) -> Estimate:
        """Estimate how much more this method scores than another, on the same sequences."""
        mine, theirs = self.scores[:, difficulty], other.scores[:, difficulty]
        if mine.shape[1] != theirs.shape[1]:  # one of them diverged with every seed
            return self.score(difficulty) - other.score(difficulty)
        return Estimate.difference_of_models(mine, theirs)


class Laboratory(laboratory.Laboratory):
    """The runs of recipes, and trainings of its own, each in a run folder that is resumed."""

    plan: LanguagePlan

    @property
    def settings(self) -> Settings:
        """The settings of the plan's scale."""
        return SETTINGS[self.plan.scale]

    @contextlib.contextmanager
    def part(self, number: int, parts: int) -> Generator[None]:
        """Let the measurements of a block report their progress as one of several equal parts."""
        whole = self.on_progress

        def report(progress: Progress) -> None:
            done = number * progress.total + progress.done
            whole(replace(progress, done=done, total=parts * progress.total))

        self.on_progress = report
        try:
            yield
        finally:
            self.on_progress = whole

    def train(self, config: RunConfig, progress: OnProgress) -> Run | None:
        """Train a model in its run folder, or load it; None where the training diverges."""
        if self.folder is None:
            raise ValueError("lab.folder is None: must be a folder for runs, as reproduce gives it")
        where = self.folder / run_name(config)
        try:
            return train(
                config,
                where,
                resume=True,
                device=self.device,
                progress=progress,
            )
        except DivergedError:
            return None

    def compare(
        self,
        comparison: Comparison,
        methods: Mapping[str, Prepare],
        score: Score,
        rates: tuple[float, ...] = (),
    ) -> dict[str, Result]:
        """Train all methods of a comparison, choose their learning rates, and score their models.

        Rates are tried until the best of a method lies between two that are worse, or at an end.

        Args:
            comparison: task, rates and numbers of sequences.
            methods: makes the settings of each.
            score: of test sequences.
            rates: in place of those of the comparison.

        Returns:
            What each came to, by name.
        """
        rates = rates or comparison.rates
        steps, done = comparison.train.steps, 0
        total = len(methods) * (len(next_rates(rates, {})) + self.plan.seeds - 1) * steps

        def outcomes(configs: Mapping[Any, RunConfig]) -> dict[Any, Outcome]:
            nonlocal done, total
            found = {}
            total = max(total, done + len(configs) * steps)
            self.train_ahead(list(configs.values()))
            for key, config in configs.items():
                found[key] = scored(self.train(config, report), comparison, score)
                done += steps
                self.on_progress(Progress(done, total))
            return found

        def report(one: Progress) -> None:
            self.on_progress(replace(one, done=done + one.done, total=total))

        first: dict[str, dict[float, Outcome]] = {name: {} for name in methods}
        while waiting := {
            (name, rate): methods[name](rate, 0)
            for name, tried in first.items()
            for rate in next_rates(rates, _validation(tried))
        }:
            for (name, rate), one in outcomes(waiting).items():
                first[name][rate] = one
        best = {name: _best(_validation(tried)) for name, tried in first.items()}
        others = outcomes(
            {
                (name, seed): prepare(best[name], seed)
                for name, prepare in methods.items()
                for seed in range(1, self.plan.seeds)
            }
        )
        chosen = {
            name: [tried[best[name]], *(x for (of, _), x in others.items() if of == name)]
            for name, tried in first.items()
        }
        shape = _shape_of(itertools.chain.from_iterable(chosen.values()), Result.shape)
        return {
            name: Result(
                rate=best[name],
                validation=_validation(first[name]),
                outcomes=models,
                shape=shape,
            )
            for name, models in chosen.items()
        }


def _shape_of(outcomes: Iterable[Outcome], otherwise: tuple[int, ...]) -> tuple[int, ...]:
    """Give the shape of the scores of the first model that has some."""
    return next((tuple(one.scores.shape) for one in outcomes if one.scores is not None), otherwise)


def _best(validation: Mapping[float, float]) -> float:
    """Give the learning rate with the least loss."""
    return min(validation, key=validation.__getitem__)


def _validation(tried: Mapping[float, Outcome]) -> dict[float, float]:
    return {rate: one.validation for rate, one in sorted(tried.items())}


def settings_of(
    comparison: Comparison, name: str, make_model: Callable[[int], NetworkConfig]
) -> Prepare:
    """Say how to make the settings of runs in a comparison, whose model may depend on the seed.

    The learning rate falls to a hundredth of the given one.
    """

    def prepare(rate: float, seed: int) -> RunConfig:
        return RunConfig(
            recipe=f"{name}-{rate:g}",
            seed=seed,
            task=comparison.task,
            model=make_model(seed),
            train=replace(comparison.train, learning_rate=rate, final_learning_rate=rate / 100),
        )

    return prepare


def mixer_settings(comparison: Comparison, name: str, mixer: MixerName) -> Prepare:
    """Say how to make the settings of a mixer's runs in a comparison."""
    model = comparison.with_mixer(mixer)
    return settings_of(comparison, name, lambda _: model)


@measurement
def result(lab: Laboratory, comparison: str, mixer: str) -> Result:
    """Give what one mixer comes to in a comparison, by the share of right answers."""
    given = lab.settings.comparisons[comparison]
    prepare = mixer_settings(given, f"{comparison}-{mixer}", MIXERS[mixer])
    return lab.compare(given, {mixer: prepare}, right_answers)[mixer]


@measurement
def mixers(lab: Laboratory, comparison: str) -> dict[str, Result]:
    """Compare all mixers that can take part in a comparison."""
    given = lab.settings.comparisons[comparison]
    methods = {
        name: mixer_settings(given, f"{comparison}-{name}", mixer)
        for name, mixer in given.methods.items()
    }
    results = lab.compare(given, methods, right_answers)
    for name, one in results.items():
        lab.remember(result, comparison, name, value=one)
    return results


def scored(run: Run | None, comparison: Comparison, score: Score) -> Outcome:
    """Score a model on validation sequences, and on test sequences of each difficulty."""
    if run is None:
        return Outcome(validation=math.inf, scores=None, parameters=0, seconds=0.0)
    model = run.model.cpu().eval()

    def predict(batch: Batch) -> Tensor:
        return model(batch.tokens, **batch.arguments)

    losses = by_difficulty(predict, comparison, "validation", lambda b, z: b.loss(z).view(1))
    loss = float(losses.mean())
    return Outcome(
        validation=loss if math.isfinite(loss) else math.inf,
        scores=by_difficulty(predict, comparison, "test", score),
        parameters=sum(p.numel() for p in model.parameters()),
        seconds=run.seconds,
    )


def by_difficulty(
    predict: Callable[[Batch], Tensor], comparison: Comparison, split: Split, score: Score
) -> Float[Tensor, "difficulty sequence *more"]:
    """Score predictions for sequences of each difficulty, whose batches a task gives in turn."""
    task = make_task(comparison.task)
    difficulties = num_settings(task, split)
    size = min(EVALUATION_BATCH, comparison.sequences)
    steps = range(difficulties * -(-comparison.sequences // size))

    @torch.no_grad()
    def compute(step: int) -> Tensor:
        batch = task.sample(size, seed=0, step=step, split=split)
        return score(batch, predict(batch))

    scores = list(current_workers().map(compute, steps))
    return torch.stack([torch.cat(scores[one::difficulties]) for one in range(difficulties)])


def right_answers(batch: Batch, prediction: Tensor) -> Float[Tensor, " sequence"]:
    """Give the share of right answers of each sequence."""
    right = cast(Tensor, batch.accuracy(prediction)).float()  # type: ignore[attr-defined]
    counted = torch.ones_like(right) if batch.counted is None else batch.counted.to(right)
    return right.sum(1) / counted.sum(1).clamp(min=1)


def ratio_of_losses(
    above: Float[Tensor, "above_seed sequence position"],
    below: Float[Tensor, "below_seed sequence position"],
) -> Estimate:
    """Estimate the ratio of two mean losses, on the same text and with seeds of their own."""
    first, second = above.mean(-1), below.mean(-1)
    return Estimate.ratio_of_models(
        first.mean(0), second.mean(0), above_seeds=first.mean(1), below_seeds=second.mean(1)
    )
