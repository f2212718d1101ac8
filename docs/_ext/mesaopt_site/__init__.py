"""A Sphinx extension: parts of pages that are written from the code; Markdown and notebooks beside pages.

A line `<!-- generated: NAME ARGUMENT -->` in a page stands for what the function NAME writes.
"""

import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import jupytext
from sphinx import addnodes

from mesaopt_site import api, markdown, tables

_MARK = re.compile(r"^<!-- generated: (\w+) ?(\S*) -->$", re.MULTILINE)

WRITERS: dict[str, Callable[[str], str]] = {
    "api": api.site_page,
    "commands": tables.commands,
    "file": tables.file,
    "modules": api.overview,
    "gallery": tables.gallery,
    "recipes": tables.recipes,
    "settings": tables.settings,
}
"""What writes a generated part, by name."""


NOTEBOOKS = "tutorials/"
"""Pages that are offered as notebooks too."""


def fill(page: str, writers: dict[str, Callable[[str], str]]) -> str:
    """Write the generated parts of a page.

    Args:
        page: Markdown, with a line `<!-- generated: NAME ARGUMENT -->` for each part.
        writers: functions of the argument, by name.

    Returns:
        Markdown.
    """
    return _MARK.sub(lambda mark: writers[mark[1]](mark[2]), page)


def setup(app: Any) -> dict[str, bool]:
    """Connect all this to Sphinx."""
    app.connect("source-read", _on_source)
    app.connect("autodoc-process-docstring", api.on_docstring, priority=400)
    app.connect("autodoc-process-signature", api.on_signature)
    app.connect("html-page-context", _on_page)
    app.connect("build-finished", _write_markdown)
    return {"parallel_read_safe": True, "parallel_write_safe": True}


def _on_source(app: Any, name: str, source: list[str]) -> None:
    source[0] = fill(source[0], WRITERS)
    if name.startswith(NOTEBOOKS):
        file = f"{name.removeprefix(NOTEBOOKS)}.ipynb"
        link = f'<p><a href="{file}" download>This page as a notebook</a></p>'
        title, text = source[0].split("\n", 1)
        source[0] = f"{title}\n\n{link}\n{text}"


def _on_page(app: Any, name: str, template: str, context: dict[str, Any], doctree: Any) -> None:
    """Point to the Markdown beside a page."""
    if doctree is not None:
        href = context["pathto"](f"{name}.md", 1)
        link = f'<link rel="alternate" type="text/markdown" href="{href}">'
        context["metatags"] = context.get("metatags", "") + link


def _write_markdown(app: Any, error: Exception | None) -> None:
    """Write the Markdown of each page beside it, and the list of all."""
    if error or app.builder.format != "html":
        return
    env, writers = app.env, WRITERS | {"api": api.text_page}
    out, pages = Path(app.outdir), {}
    for name in sorted(env.found_docs):
        text = markdown.standalone(fill(_read(env, name), writers), name)
        pages[name] = env.titles[name].astext(), text
        (out / f"{name}.md").parent.mkdir(parents=True, exist_ok=True)
        (out / f"{name}.md").write_text(text, encoding="utf-8")
        if name.startswith(NOTEBOOKS):
            jupytext.write(jupytext.reads(_read(env, name), fmt="md"), out / f"{name}.ipynb")
    root = env.config.root_doc
    sections = [
        (toctree["caption"], _with_pages_below(env, [name for _, name in toctree["entries"]]))
        for toctree in env.get_doctree(root).findall(addnodes.toctree)
    ]
    (out / "llms.txt").write_text(markdown.llms(sections, pages), encoding="utf-8")


def _with_pages_below(env: Any, names: Iterable[str]) -> list[str]:
    """Give pages, each followed by those that it lists itself."""
    found = []
    for name in names:
        found += [name, *_with_pages_below(env, env.toctree_includes.get(name, ()))]
    return found


def _read(env: Any, name: str) -> str:
    return Path(env.doc2path(name)).read_text(encoding="utf-8")
