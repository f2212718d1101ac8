"""What `evaluate` prints of a run on tokens: losses and accuracies, and those that need no model."""

import math
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from mesaopt import arguments as args
from mesaopt.commands import given
from mesaopt.config import ContinuousMQARConfig, RegBenchConfig, RunConfig, TextConfig
from mesaopt.console import print_json, print_table
from mesaopt.errors import ConfigError

if TYPE_CHECKING:
    from mesaopt.analysis import Estimate, TokenScore
    from mesaopt.analysis.in_context import AnyPredictor
    from mesaopt.training import Run

_SLOW_SEQUENCES = 256  # for baselines that take seconds
_POSITIONS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)


def evaluate_tokens(groups: "list[dict[str, Run]]", command: args.Evaluate) -> int:
    """Print the scores of runs on tokens for every setting of their tests, and those of baselines.

    Args:
        groups: runs by name, those of one task together.
        command: how many sequences, and whether to print JSON.

    Raises:
        ConfigError: a run is of a task on states, or a figure or CSV is asked for.
    """
    for name, run in ((name, run) for group in groups for name, run in group.items()):
        if not given.is_on_tokens(run.config.task):
            raise ConfigError(
                f"run={name!r}: is not on tokens: evaluate it apart from runs that are"
            )
    if command.csv or command.out is not None:
        option = "csv" if command.csv else "out"
        raise ConfigError(f"{option}: runs on tokens have a table and JSON only; leave it out")
    found = [_score(group, command.sequences) for group in groups]
    if command.json:
        print_json(found[0].to_json() if len(groups) == 1 else [one.to_json() for one in found])
        return 0
    for one in found:
        print_table(one.title, one.rows())
    return 0


@dataclass(frozen=True)
class _Scores:
    """Scores of runs of one task, and of baselines, by name."""

    task: Any
    scores: "dict[str, list[TokenScore]]"

    @property
    def guess(self) -> float:
        """The accuracy of a guess without the sequence."""
        from mesaopt.theory import chance

        return chance(self.task)

    @property
    def title(self) -> str:
        title = f"test sequences of {self.task.kind}"
        if isinstance(self.task, TextConfig):
            return title
        what = "letters that may come" if isinstance(self.task, RegBenchConfig) else "accuracy"
        return f"{title}; a guess without the sequence: {self.guess:.2%} {what}"

    def rows(self) -> list[dict[str, str]]:
        return [_row(name, score) for name, parts in self.scores.items() for score in parts]

    def to_json(self) -> dict[str, Any]:
        scores = {name: [_to_json(score) for score in parts] for name, parts in self.scores.items()}
        return scores | {"guess": {"accuracy": self.guess}}


def _score(runs: "dict[str, Run]", num_sequences: int) -> _Scores:
    """Score runs of one task, and its baselines, on the same sequences."""
    from mesaopt.analysis import Evaluation, token_scores
    from mesaopt.tasks import make_task
    from mesaopt.workers import parallel

    config = next(iter(runs.values())).config
    task: Any = make_task(config.task)
    with parallel():
        models = {name: run.model for name, run in runs.items()}
        scores = token_scores(models, task, Evaluation(num_sequences=num_sequences))
        fewer = Evaluation(num_sequences=min(num_sequences, _SLOW_SEQUENCES))
        scores |= token_scores(_baselines(config, task), task, fewer)
    return _Scores(config.task, scores)


def _baselines(config: RunConfig, task: Any) -> "dict[str, AnyPredictor]":
    """Predictors of a task that need no training by gradients."""
    from mesaopt import theory

    found: dict[str, Any] = {}
    if isinstance(config.task, TextConfig):
        size = config.task.vocabulary
        orders = (n for n in (1, 2, 3) if size**n <= 2**24)
        found = {f"{n}-gram": theory.text_n_gram(task, order=n) for n in orders}
    if isinstance(config.task, RegBenchConfig):
        predict = partial(theory.in_context_n_gram, vocabulary=config.task.vocabulary)
        found = {f"{n}-gram in context": partial(predict, order=n) for n in (2, 3)}
    if isinstance(config.task, ContinuousMQARConfig):
        found = {"least squares": lambda batch: theory.least_squares_recall(batch.tokens)}
    return found


def _row(name: str, score: "TokenScore") -> dict[str, str]:
    """Describe scores for a table."""
    row = {"predictor": name}
    if score.setting:
        row["setting"] = score.setting
    row |= {"sequences": f"{score.num_sequences:,}", "loss in nats": _with_error(score.loss)}
    row["accuracy"] = _with_error(score.accuracy)
    row |= {name.replace("_", " "): f"{value:.4f}" for name, value in score.more.items()}
    curve = enumerate(score.curve or (), start=1)
    return row | {str(place): f"{value:.3g}" for place, value in curve if place in _POSITIONS}


def _with_error(estimate: "Estimate") -> str:
    error = 0.0 if math.isnan(estimate.error) else estimate.error
    return f"{estimate.value:.4f} ± {error:.4f}"


def _to_json(score: "TokenScore") -> dict[str, Any]:
    """Describe scores for JSON."""
    return {
        "setting": score.setting,
        "sequences": score.num_sequences,
        "loss": score.loss.value,
        "loss_error": score.loss.error,
        "accuracy": score.accuracy.value,
        "accuracy_error": score.accuracy.error,
        **score.more,
        **({} if score.curve is None else {"by_position": score.curve}),
    }
