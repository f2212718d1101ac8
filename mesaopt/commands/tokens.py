"""What `evaluate` prints of a run on tokens: losses and accuracies, and those that need no model."""

import math
from functools import partial
from typing import TYPE_CHECKING, Any

from mesaopt.config import ContinuousMQARConfig, RegBenchConfig, RunConfig, TextConfig
from mesaopt.console import print_json, print_table

if TYPE_CHECKING:
    from mesaopt.analysis import Estimate, TokenScore
    from mesaopt.analysis.in_context import AnyPredictor
    from mesaopt.training import Run

_SLOW_SEQUENCES = 256  # for baselines that take seconds
_POSITIONS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)


def evaluate_tokens(run: "Run", *, num_sequences: int, as_json: bool) -> int:
    """Print the scores of a run for every setting of its tests, and those of baselines."""
    from mesaopt.analysis import Evaluation, token_scores
    from mesaopt.tasks import make_task
    from mesaopt.theory import chance
    from mesaopt.workers import parallel

    task: Any = make_task(run.config.task)
    with parallel():
        scores = token_scores(
            {run.config.recipe: run.model}, task, Evaluation(num_sequences=num_sequences)
        )
        fewer = Evaluation(num_sequences=min(num_sequences, _SLOW_SEQUENCES))
        scores |= token_scores(_baselines(run.config, task), task, fewer)
    guess = chance(run.config.task)  # type: ignore[bad-argument-type]
    if as_json:
        found = {name: [_to_json(score) for score in parts] for name, parts in scores.items()}
        print_json(found | {"guess": {"accuracy": guess}})
        return 0
    rows = [_row(name, score) for name, parts in scores.items() for score in parts]
    what = "letters that may come" if isinstance(run.config.task, RegBenchConfig) else "accuracy"
    title = f"test sequences of {run.config.task.kind}"
    if not isinstance(run.config.task, TextConfig):
        title += f"; a guess without the sequence: {guess:.2%} {what}"
    print_table(title, rows)
    return 0


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
