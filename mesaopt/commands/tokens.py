"""The tables of `evaluate` for runs on tokens: losses and accuracies, also those that need no model."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from mesaopt import arguments as args
from mesaopt.commands import given
from mesaopt.config import ContinuousMQARConfig, RegBenchConfig, RunConfig, TextConfig
from mesaopt.console import print_csv, print_json, print_table
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
        command: how many sequences, what to print, and where to draw it.

    Raises:
        ConfigError: a run is of a task on states.
    """
    for name, run in ((name, run) for group in groups for name, run in group.items()):
        if not given.is_on_tokens(run.config.task):
            raise ConfigError(
                f"run={name!r}: is not on tokens: evaluate it apart from runs that are"
            )
    found = [_score(group, command) for group in groups]
    if command.json:
        print_json(found[0].to_json() if len(groups) == 1 else [one.to_json() for one in found])
    elif command.csv:
        print_csv([line for one in found for line in one.csv_lines()])
    else:
        for one in found:
            print_table(one.title, one.rows())
    if command.out is not None:
        _write(found, command)
    return 0


def _write(found: "list[_Scores]", command: args.Evaluate) -> None:
    """Write the page or the figure."""
    from mesaopt.report import token_curves
    from mesaopt.report.page import Page, Table

    names = ", ".join(name for one in found for name in one.runs)
    panels = [token_curves.Panel(one.name, one.scores, guess=one.guess) for one in found]
    page = Page(
        title=f"Losses and accuracies of {names}",
        lead="On test sequences that no run was trained on. ± is one standard error.",
        figure=token_curves.draw(panels),
        caption=token_curves.CAPTION,
        tables=[Table(one.title, one.rows()) for one in found],
    )
    given.write(page, command)


@dataclass(frozen=True)
class _Scores:
    """Scores of runs of one task, and of baselines, by name."""

    runs: "dict[str, Run]"
    scores: "dict[str, list[TokenScore]]"

    @property
    def task(self) -> Any:
        """The settings of the task."""
        return next(iter(self.runs.values())).config.task

    @property
    def name(self) -> str:
        """The name of the task."""
        return given.task_title(next(iter(self.runs.values())).config)

    @property
    def guess(self) -> float | None:
        """The accuracy of a guess without the sequence; of text, that of an untrained one means nothing."""
        from mesaopt.theory import chance

        return None if isinstance(self.task, TextConfig) else chance(self.task)

    @property
    def title(self) -> str:
        return scores_title(self.task)

    def rows(self) -> list[dict[str, str]]:
        return score_rows(self.scores)

    def to_json(self) -> dict[str, Any]:
        from mesaopt.theory import chance

        scores = {name: [_to_json(score) for score in parts] for name, parts in self.scores.items()}
        return scores | {"guess": {"accuracy": chance(self.task)}}

    def csv_lines(self) -> Iterator[dict[str, Any]]:
        """Give a line for each number: those of all positions together, then the loss at each."""
        for name, parts in self.scores.items():
            kind = "run" if name in self.runs else "baseline"
            for score in parts:
                place = {"task": self.name, "predictor": name, "kind": kind}
                yield from (place | line for line in _csv_lines(score))


def _score(runs: "dict[str, Run]", command: args.Evaluate) -> _Scores:
    """Score runs of one task, and its baselines, on the same sequences."""
    from mesaopt.analysis import Evaluation, token_scores
    from mesaopt.tasks import make_task
    from mesaopt.workers import parallel

    config = next(iter(runs.values())).config
    task: Any = make_task(config.task)
    with parallel():
        models = {name: run.model for name, run in runs.items()}
        drawn = Evaluation(num_sequences=command.sequences, seed=command.seed)
        scores = token_scores(models, task, drawn)
        fewer = replace(drawn, num_sequences=min(drawn.num_sequences, _SLOW_SEQUENCES))
        scores |= token_scores(_baselines(config, task), task, fewer)
    return _Scores(runs, scores)


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


def scores_title(task: Any) -> str:
    """Say what a table of scores on a task is of."""
    title = f"test sequences of {task.kind}"
    if not isinstance(task, TextConfig):
        from mesaopt.theory import chance

        what = "letters that may come" if isinstance(task, RegBenchConfig) else "accuracy"
        return f"{title}; a guess without the sequence: {chance(task):.2%} {what}"
    from mesaopt.analysis import score_positions

    places = score_positions(task.length)
    score = "" if places is None else f"; score: loss at {places[1]} less that at {places[0]}"
    return f"{title}{score}"


def score_rows(scores: "Mapping[str, list[TokenScore]]") -> list[dict[str, str]]:
    """Return the lines of a table of scores, all with the same columns."""
    rows = [_row(name, score) for name, parts in scores.items() for score in parts]
    columns = dict.fromkeys(column for row in rows for column in row)
    return [{column: row.get(column, "") for column in columns} for row in rows]


_COLUMNS = {
    "bits_per_byte": "bits a byte",
    "in_context_score": "score",
    "total_variation": "total variation",
}


def _row(name: str, score: "TokenScore") -> dict[str, str]:
    """Describe scores for a table."""
    row = {"predictor": name}
    if score.setting:
        row["setting"] = score.setting
    row |= {"sequences": f"{score.num_sequences:,}", "loss": _with_error(score.loss)}
    row["accuracy"] = _with_error(score.accuracy)
    row |= {_COLUMNS.get(name, name): str(value) for name, value in score.more.items()}
    curve = enumerate(score.curve or (), start=1)
    return row | {str(place): f"{one.value:.3g}" for place, one in curve if place in _POSITIONS}


def _with_error(estimate: "Estimate") -> str:
    return f"{estimate.value:.4f} ± {estimate.error:.4f}"


def _to_json(score: "TokenScore") -> dict[str, Any]:
    """Describe scores for JSON."""
    found: dict[str, Any] = {"setting": score.setting, "sequences": score.num_sequences}
    for name, estimate in _quantities(score).items():
        found |= {name: estimate.value, f"{name}_error": estimate.error}
    if score.curve is not None:
        found["by_position"] = [one.value for one in score.curve]
        found["by_position_error"] = [one.error for one in score.curve]
    return found


def _quantities(score: "TokenScore") -> "dict[str, Estimate]":
    """Give all that was measured over all positions, by name."""
    return {"loss": score.loss, "accuracy": score.accuracy, **score.more}


def _csv_lines(score: "TokenScore") -> Iterator[dict[str, Any]]:
    means = [(name, "", estimate) for name, estimate in _quantities(score).items()]
    curve = [("loss", place, one) for place, one in enumerate(score.curve or (), start=1)]
    for quantity, position, estimate in (*means, *curve):
        yield {
            "setting": score.setting,
            "quantity": quantity,
            "position": position,
            "value": estimate.value,
            "standard_error": estimate.error,
        }
