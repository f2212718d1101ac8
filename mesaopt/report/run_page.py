"""The page of one run: its learning curve, its settings and where it was trained, read without torch."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from mesaopt import files, json_files
from mesaopt.config import RunConfig, from_dict, in_words, to_dict
from mesaopt.errors import RunError
from mesaopt.looks import LOOKS
from mesaopt.papers.plots import style
from mesaopt.report.page import Page, Table, scale_of, write

if TYPE_CHECKING:
    from mesaopt.report.token_curves import Panel

_METRICS = {"step": int, "train_loss": (float, None), "test_loss": float, "learning_rate": float}
_META = {
    "processor": str,
    "cores": (int, None),
    "packages": {str: str},
    "started": str,
    "gpus": [str],
}
_CAPTION = (
    "Loss by training step. Test sequences are the same at every step and for every run; the train loss is "
    "the mean over the steps since the point before."
)
_POSITIONS = " On the right: loss by position on test sequences, with a 95 % band."

Lines = list[dict[str, Any]]


def write_run_report(
    folder: Path,
    out: Path,
    *,
    name: str,
    commands: Sequence[str] = (),
    tables: Sequence[Table] = (),
    positions: "Panel | None" = None,
) -> None:
    """Write the page of a run as one HTML file, or its learning curve as PNG or SVG.

    Args:
        folder: of the run.
        out: file to write, whose ending says what is written.
        name: of the run, as a user types it.
        commands: what to type next.
        tables: what was found out about its model, shown before its settings.
        positions: losses by position, drawn beside the learning curve.

    Raises:
        RunError: there is no run, a file of it is damaged, or the disk is full.
        ConfigError: its configuration has an unknown key or a wrong value.
    """
    path = files.inside(folder, "config.json")
    config = from_dict(RunConfig, json_files.read(path), where=str(path))
    lines = _metrics(folder)
    page = Page(
        title=f"Run {name}",
        lead=_lead(folder, config, lines),
        figure=draw_learning_curve(lines, positions),
        caption=_CAPTION if positions is None else f"{_CAPTION}{_POSITIONS}",
        tables=[
            *tables,
            *(
                _settings(part, to_dict(getattr(config, part)))
                for part in ("task", "model", "train")
            ),
            Table("Learning curve", _shown(lines)),
            Table("Where it was trained", _machine(folder)),
        ],
        commands=commands,
    )
    write(page, out)


def draw_learning_curve(lines: Lines, positions: "Panel | None" = None) -> Figure:
    """Draw the losses of a training by step.

    Args:
        lines: of `metrics.jsonl`, one or more.
        positions: losses by position, drawn beside them.

    Returns:
        The figure.
    """
    with style():
        count = 1 if positions is None else 2
        figure = Figure(figsize=(6.5 if count == 1 else 11.0, 3.8))
        axes = figure.subplots(1, count, squeeze=False)[0]
        _draw_steps(axes[0], lines)
        if positions is not None:
            from mesaopt.report.token_curves import draw_losses  # needs torch

            draw_losses(axes[1], positions)
    return figure


def _draw_steps(axes: Axes, lines: Lines) -> None:
    looks = {"train_loss": LOOKS["no knowledge"], "test_loss": LOOKS["trained model"]}
    for key, look in looks.items():
        points = [(line["step"], line[key]) for line in lines if line[key] is not None]
        if points:
            axes.plot(*zip(*points, strict=True), **look.line(label=key.replace("_", " ")))
    losses = [line[key] for line in lines for key in looks if line[key] is not None]
    axes.set_yscale(scale_of(losses))
    axes.set(xlabel="step", ylabel="loss")
    axes.legend()


def _metrics(folder: Path) -> Lines:
    """Read the learning curve."""
    path = files.inside(folder, "metrics.jsonl")
    lines = json_files.read_lines(path, _METRICS)
    if not lines:
        raise RunError(f"{path}: is empty: the run has not been evaluated yet")
    return lines


def _lead(folder: Path, config: RunConfig, lines: Lines) -> str:
    last, path = lines[-1], files.inside(folder, "DONE")
    start = f"Recipe {config.recipe}, seed {config.seed}: "
    loss = (
        f"test loss {last['test_loss']:.4f} after {last['step']:,} of {config.train.steps:,} steps"
    )
    if not files.exists(path):
        return f"{start}{loss}. It has not ended; --resume goes on."
    seconds = json_files.read(path, {"seconds": float})["seconds"]
    return f"{start}{loss}, in {seconds:,.0f} s."


def _settings(part: str, settings: dict[str, Any]) -> Table:
    titles = {"task": "Task", "model": "Model", "train": "Training"}
    rows = [
        {"setting": f"{part}.{name}", "value": in_words(value, longest=200)}
        for name, value in settings.items()
    ]
    return Table(titles[part], rows)


def _shown(lines: Lines, most: int = 20) -> list[dict[str, str]]:
    """Give some lines of the learning curve, the last among them."""
    every = -(-len(lines) // most)
    return [
        {
            "step": f"{line['step']:,}",
            "train loss": "" if line["train_loss"] is None else f"{line['train_loss']:.4g}",
            "test loss": f"{line['test_loss']:.4g}",
            "learning rate": f"{line['learning_rate']:.3g}",
        }
        for line in reversed(lines[::-every])
    ]


def _machine(folder: Path) -> list[dict[str, str]]:
    meta = json_files.read(files.inside(folder, "meta.json"), _META)
    facts = {
        "started": meta["started"],
        "processor": f"{meta['processor']}, {meta['cores']} cores",
        "GPU": ", ".join(meta["gpus"]) or "none",
        "packages": ", ".join(f"{name} {version}" for name, version in meta["packages"].items()),
    }
    return [{"what": name, "value": value} for name, value in facts.items()]
