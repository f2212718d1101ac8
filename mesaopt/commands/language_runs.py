"""Language models that were trained: what is shown of them at the end, and on the page of their run."""

from pathlib import Path
from typing import TYPE_CHECKING

from mesaopt import files
from mesaopt.commands import given
from mesaopt.commands.tokens import score_rows, scores_title
from mesaopt.config import LanguageModelConfig, RunConfig, TextConfig
from mesaopt.console import print_line, print_table
from mesaopt.errors import ConfigError

if TYPE_CHECKING:
    from mesaopt.analysis import LanguageResults
    from mesaopt.report.page import Table
    from mesaopt.training import Run


def is_language_run(config: RunConfig) -> bool:
    """Say whether a run is that of a language model."""
    return isinstance(config.model, LanguageModelConfig)


def show_trained(runs: "list[Run]") -> None:
    """Print the scores of trained language models and how they go on with a text; write their reports."""
    from mesaopt.analysis import language_results
    from mesaopt.workers import parallel

    with parallel():
        found = [language_results(run) for run in runs]
    names = [run.config.recipe if len(runs) == 1 else run.path.name for run in runs]
    scores = {name: results.scores for name, results in zip(names, found, strict=True)}
    print_line("")
    print_table(scores_title(runs[0].config.task), score_rows(scores))
    if (sample := found[0].sample) is not None:
        print_line("--- a held-out text ---")
        print(_readable(sample.prompt))
        print_line("--- the model goes on ---")
        print(_readable(sample.continuation))
        print_line("---")
    for run, results in zip(runs, found, strict=True):
        out = run.path / "report.html"
        _write(run, out, results, name=str(run.path))
        print_line(f"Report: {out}")


def write_language_report(run: "Run", out: Path, *, name: str) -> None:
    """Write the page of the run of a language model; without tests, where there is no text for them."""
    from mesaopt.analysis import language_results
    from mesaopt.workers import parallel

    files.require_writable(out)
    results = None
    try:
        with parallel():
            results = language_results(run)
    except ConfigError as error:
        print_line(f"Without tests: {error}")
    _write(run, out, results, name=name)


def _write(run: "Run", out: Path, results: "LanguageResults | None", *, name: str) -> None:
    from mesaopt.report.run_page import write_run_report
    from mesaopt.report.token_curves import Panel

    path, config = Path(name), run.config
    commands = [given.next_line("evaluate", path, config)]
    if isinstance(config.task, TextConfig):
        commands.append(f"{given.next_line('generate', path, config)} --prompt 'def '")
    curve = results is not None and results.scores[0].curve is not None
    write_run_report(
        run.path,
        out,
        name=name,
        commands=commands,
        tables=() if results is None else _tables(run, results),
        positions=Panel("", {"the model": results.scores}) if results and curve else None,
    )


def _tables(run: "Run", results: "LanguageResults") -> "list[Table]":
    """Make the tables of what a language model does with its tests."""
    from mesaopt.report.page import Table

    title = scores_title(run.config.task)
    count = f"{sum(score.num_sequences for score in results.scores):,} sequences"
    scores = score_rows({run.config.recipe: results.scores})
    tables = [
        Table("Tests", scores, text=f"{title.capitalize()}. {count}; ± is one standard error.")
    ]
    if (sample := results.sample) is not None:
        about = "The beginning of a text that was held out. The model goes on at temperature 0.8."
        tables += [
            Table("A text continued", [], text=about, verbatim=_readable(sample.prompt)),
            Table("The model goes on", [], verbatim=_readable(sample.continuation)),
            Table("The text itself goes on", [], verbatim=_readable(sample.original)),
        ]
    about = (
        "Of each head at the last position, on eight test sequences. Memory: tokens that are kept; "
        "rank: effective rank of the Gram matrix of the keys; ridge: in parts of the trace of that matrix; "
        "condition: of the system that is solved; steps: of the solver. Empty: the mixer has none."
    )
    rows = [row for mixer in results.mixers for row in mixer.rows()]
    return [*tables, Table("Inside the mixers", rows, text=about)]


def _readable(text: str) -> str:
    """Replace control characters, which an untrained model writes, but not ends of lines and tabs."""
    return "".join(one if one.isprintable() or one in "\n\t" else "\ufffd" for one in text)
