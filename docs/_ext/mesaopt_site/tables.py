"""Tables that are written from the code: commands, recipes, settings, and the gallery of figures."""

import ast
import dataclasses
import inspect
import re
import textwrap
import typing
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from mesaopt import argument_lists, json_files, zoo
from mesaopt.config import RunConfig
from mesaopt.papers.claims import Claim
from mesaopt.papers.index import STUDIES
from mesaopt.papers.reproduce import get_study
from mesaopt.recipes import RECIPES
from mesaopt_site import api

DOCS = Path(__file__).parents[2]
PICTURES = DOCS / "images"

SOURCES = {
    "uncovering2023": "The first paper: von Oswald and others, 2023",
    "emergence2024": "The second paper: Zheng and others, 2024",
    "family": "Ours, to compare the layers of this library on one task",
    "language": "Language models: of the first paper and of MesaNet, in small",
}
"""Headings of the recipes, by source."""


def table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Write a Markdown table.

    Args:
        columns: their names.
        rows: of cells.

    Returns:
        Markdown.
    """

    def line(cells: Iterable[object]) -> str:
        texts = (plain(re.sub(r"\s+", " ", str(cell))).replace("|", "\\|") for cell in cells)
        return "| " + " | ".join(texts) + " |"

    return "\n".join([line(columns), "|" + "---|" * len(columns), *(line(row) for row in rows)])


def plain(text: str) -> str:
    """Keep text from being taken for HTML: a <name> outside of backticks shows as it is."""
    parts = text.split("`")
    parts[::2] = [part.replace("<", "&lt;") for part in parts[::2]]
    return "`".join(parts)


def commands(_: str = "") -> str:
    """Write a section for every command, with its arguments."""
    return "\n\n".join(_command(name, kind) for name, kind in argument_lists.commands().items())


def recipes(_: str = "") -> str:
    """Write a table of recipes for each source."""
    columns = ("recipe", "what it is", "steps", "batch", "rate", "in zoo")
    trained, parts = set(zoo.names()), []
    for source, title in SOURCES.items():
        rows = [
            (
                f"`{recipe.name}`",
                recipe.summary,
                f"{recipe.config.train.steps:,}",
                f"{recipe.config.train.batch_size:,}",
                f"{recipe.config.train.learning_rate:g}",
                "yes" if recipe.name in trained else "",
            )
            for recipe in RECIPES.values()
            if recipe.source == source
        ]
        parts.append(f"## {title}\n\n{table(columns, rows)}")
    return "\n\n".join(parts)


def settings(_: str = "") -> str:
    """Write a table of settings for the training, and for each kind of task and model."""
    hints = typing.get_type_hints(RunConfig)
    train, tasks, models = hints["train"], hints["task"], hints["model"]
    parts = ["## Training: `train.NAME`", *_settings("train", train)]
    for part, kinds in (("model", models), ("task", tasks)):
        for kind in typing.get_args(kinds):
            parts.append(f"## {part.capitalize()} `{kind.kind}`: `{part}.NAME`")
            parts += _settings(part, kind)
    return "\n\n".join(parts)


def gallery(_: str = "") -> str:
    """Write all figures of all studies, each with its picture if there is one, and its claims."""
    ledger = json_files.read(DOCS / "ledger.json", {})
    parts = []
    for name in STUDIES:
        study = get_study(name)
        parts.append(f"## {study.title}\n\nStudy `{name}`: {study.summary}.")
        parts += [_figure(name, figure, ledger.get(name, [])) for figure in study.figures]
    return "\n\n".join(parts)


def file(path: str) -> str:
    """Give a Markdown file of the repository, without its title."""
    text = (DOCS.parent / path).read_text(encoding="utf-8")
    return re.sub(r"\A# .*\n+", "", text)


def picture(study: str, figure: str) -> Path:
    """Give the path of the picture of a figure, which need not exist."""
    return PICTURES / f"{study.rstrip('0123456789')}-{figure}.png"


def _command(name: str, kind: type) -> str:
    summary, *more = inspect.getdoc(kind).split("\n\n")
    examples = [text for text in more if text.startswith(("mesaopt ", "torchrun "))]
    words = [text for text in more if text not in examples]
    parts = [f"## {name}", plain(summary), *map(plain, words)]
    if examples:
        parts.append("```console\n" + "\n".join(examples) + "\n```")
    docs, as_typed = _field_docs(kind), argument_lists.arguments_of(kind)
    rows = [
        (f"`{one}`", docs.get(field.name, ""), _default(field))
        for field, one in zip(dataclasses.fields(kind), as_typed, strict=True)
    ]
    return "\n\n".join([*parts, table(("argument", "what it is", "default"), rows)])


def _default(field: dataclasses.Field[Any]) -> str:
    if field.default is dataclasses.MISSING:
        return "" if field.default_factory is not dataclasses.MISSING else "required"
    nothing = field.default is False or field.default in (None, "", ())
    return "" if nothing else f"`{field.default}`"


def _field_docs(kind: type) -> dict[str, str]:
    """Give the docstrings of the fields of a class, inherited ones too."""
    docs: dict[str, str] = {}
    for base in reversed(kind.__mro__):
        if dataclasses.is_dataclass(base):
            tree = ast.parse(textwrap.dedent(inspect.getsource(base))).body[0]
            assert isinstance(tree, ast.ClassDef)
            docs |= api.attribute_docs(tree.body)
    return docs


def _settings(part: str, kind: type) -> list[str]:
    docs = _field_docs(kind)
    rows = [
        (f"`{part}.{field.name}`", docs.get(field.name, ""), _setting_default(field))
        for field in dataclasses.fields(kind)
        if field.name != "kind"
    ]
    summary = inspect.getdoc(kind).split("\n\n")[0]
    return [summary, table(("setting", "what it is", "default"), rows)]


def _setting_default(field: dataclasses.Field[Any]) -> str:
    if field.default is not dataclasses.MISSING:
        return f"`{field.default}`"
    if field.default_factory is not dataclasses.MISSING:
        return f"`{field.default_factory()}`"
    return "required"


def _figure(study: str, figure: Any, judged_parts: list[dict[str, Any]]) -> str:
    """Write a figure: its picture, or else how to make it; what it shows; its claims."""
    path, parts = picture(study, figure.name), [f"### {figure.title}"]
    caption = figure.caption
    if callable(caption) and figure.trains:  # it depends on the scale alone
        made = get_study(study)
        caption = caption(made.laboratory(made.plans["small"], {}))
    parts.append(plain(figure.message or f"{figure.summary[0].upper()}{figure.summary[1:]}."))
    if path.exists():
        parts.append(f"![{figure.summary}](images/{path.name})")
    if isinstance(caption, str):
        parts.append(plain(caption.split("\n\n")[0]))
    ready = set(figure.recipes) <= set(zoo.names())
    how = "--from-zoo --scale paper" if ready and figure.recipes else "--scale small"
    out = f"results/{study}-{figure.name}"
    parts.append(f"```console\nmesaopt reproduce {study}/{figure.name} {how} --out {out}\n```")
    judged, waiting = (
        [c for one in judged_parts for c in one[kind] if c["shown_in"] == figure.name]
        for kind in ("claims", "waiting")
    )
    if judged or waiting:
        parts.append(_claims(judged, waiting))
    return "\n\n".join(parts)


def _claims(judged: list[dict[str, Any]], waiting: list[dict[str, Any]]) -> str:
    """Write the claims of a figure, folded under how many hold."""
    hold = sum(claim["passed"] for claim in judged)
    counts = [f"{hold} hold" if hold else "", f"{len(judged) - hold} fail"]
    counts = [count for count in counts if count and not count.startswith("0 ")]
    if waiting:
        counts.append(f"{len(waiting)} wait for models")
    rows = [_claim_row(Claim.from_json(data)) for data in judged]
    rows += [(Claim.from_json(data).statement, "", "", "not trained yet") for data in waiting]
    number = len(judged) + len(waiting)
    title = f"{number} claim{'s' if number > 1 else ''}: {', '.join(counts)}"
    body = table(("claim", "ours", "passes", "verdict"), rows)
    return f"<details>\n<summary>{title}</summary>\n\n{body}\n\n</details>"


def _claim_row(claim: Claim) -> tuple[str, str, str, str]:
    statement = f"{claim.statement}; {claim.figure}"
    return statement, claim.number, claim.threshold, claim.verdict if claim.passed else "**fails**"
