"""Markdown for programs that read: a copy beside each page, and `llms.txt`, the list of them."""

import posixpath
import re
from collections.abc import Mapping, Sequence

_TOCTREE = re.compile(r"^```\{toctree\}.*?^```\n*", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"(?<!!)\[([^\]]*)\]\(([^)#\s]+)[^)\s]*\)")

SUMMARY = (
    "A PyTorch library and command-line tool for mesa-optimization: sequence models that learn in context "
    "because their forward pass solves an optimization problem. Operators and layers, a laboratory that "
    "reproduces the papers and judges their claims, and theory that runs."
)
"""What `llms.txt` says first."""


def standalone(page: str, name: str) -> str:
    """Make a page readable without Sphinx and outside of the repository.

    Args:
        page: its Markdown, generated parts included.
        name: of the page, such as "how-to/seeds".

    Returns:
        Markdown without lists of pages; links to files of the repository are their names.
    """

    def link(match: re.Match[str]) -> str:
        text, target = match.groups()
        path = posixpath.normpath(posixpath.join(posixpath.dirname(name), target))
        outside = "://" not in target and path.startswith("../")
        return f"{text} (`{path.removeprefix('../')}` in the repository)" if outside else match[0]

    return _LINK.sub(link, _TOCTREE.sub("", page)).rstrip() + "\n"


def first_sentence(page: str) -> str:
    """Give the first sentence below the title of a page, without marks of Markdown.

    Args:
        page: its Markdown.

    Returns:
        The sentence; "" if there is none.
    """
    prose = re.sub(r"^```.*?^```$", "", page, flags=re.MULTILINE | re.DOTALL)
    blocks = (block.strip() for block in re.split(r"\n\s*\n", prose))
    texts = (block for block in blocks if re.match(r"[\w`*\"'\[]", block))
    text = re.sub(r"\s+", " ", next(texts, ""))
    text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", text).replace("**", "")
    return re.split(r"(?<=[.?!])\s", text, maxsplit=1)[0].rstrip(":")


def llms(
    sections: Sequence[tuple[str, Sequence[str]]], pages: Mapping[str, tuple[str, str]]
) -> str:
    """Write `llms.txt`: a title, a summary, and every page with one line.

    Args:
        sections: captions, and the names of their pages.
        pages: titles and Markdown, by name.

    Returns:
        Markdown.
    """
    parts = ["# mesaopt", f"> {SUMMARY}"]
    for caption, names in sections:
        lines = [f"- [{pages[n][0]}]({n}.md): {first_sentence(pages[n][1])}" for n in names]
        parts.append("\n".join([f"## {caption}", "", *lines]))
    return "\n\n".join(parts) + "\n"
