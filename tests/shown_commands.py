"""Commands that pages and texts of the program show, and whether they could be given."""

import ast
import functools
import importlib.util
import re
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import MISSING, dataclass, fields, replace
from pathlib import Path, PurePath
from typing import Any

import tyro

from mesaopt import arguments as args
from mesaopt import recipes, zoo
from mesaopt.argument_lists import arguments_of, commands
from mesaopt.cli import _checked
from mesaopt.commands import given, options, own, studies
from mesaopt.commands.sweeps import engine_of
from mesaopt.config import override
from mesaopt.errors import MesaoptError
from mesaopt.sweeps import grid, parse_grid
from mesaopt.sweeps.engine import check_device_name
from mesaopt.training.track import TRACKERS

_FENCE = re.compile(r"^ *(`{3,})([^`\n]*)\n(.*?)^ *\1 *$", re.DOTALL | re.MULTILINE)
_CODE = re.compile(r"(?<!`)(`+)(?!`)((?:(?!\n\s*\n).)+?)(?<!`)\1(?!`)", re.DOTALL)
_SHELLS = ("console", "bash", "sh")
_COMMAND = re.compile(r"(\S+=\S+ )*((\S*/)?mesaopt |python3? -m mesaopt\b|torchrun .*-m mesaopt )")
_PLACEHOLDER = re.compile(r"[A-Z][A-Z:_|]*(=.*)?|.*(\.\.\.|<\w+>|\{\}).*")
_OTHERS = ("pip", "git", "cd")
"""Programs whose arguments may be called mesaopt."""


@dataclass(frozen=True)
class Shown:
    """A command as it is shown.

    Example:
        >>> [one.words for one in in_line("mesaopt claims out --json > a; python -m mesaopt list")]
        [('claims', 'out', '--json'), ('list',)]
    """

    words: tuple[str, ...]
    """What follows `mesaopt`, or the name of another module that is run."""
    is_whole: bool = True
    """Whether it is a line to be typed; a mention in a sentence may have gaps and placeholders."""


def in_page(text: str) -> list[Shown]:
    """List the commands of a page of Markdown: lines of its blocks, and code in its sentences."""
    found = []
    for block in _FENCE.finditer(text):
        for line in block[3].replace("\\\n", " ").splitlines():
            if block[2].strip() in _SHELLS or _COMMAND.match(line.strip()):
                found += in_line(line)
    return found + in_sentences(text)


def in_sentences(text: str) -> list[Shown]:
    """List the commands that are mentioned as `code`."""
    mentions = (in_line(code, is_whole=False) for code in codes(text) if _COMMAND.match(code))
    return [one for found in mentions for one in found]


def codes(text: str) -> list[str]:
    """List what stands between backticks in the sentences and tables of a page, each on one line."""
    spans = _CODE.finditer(_FENCE.sub("", text))
    return [" ".join(span[2].replace("\\|", "|").split()) for span in spans]


def in_source(text: str) -> list[Shown]:
    """List the commands that the strings of a program mention; what they are filled with has gaps."""
    found = []
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.JoinedStr):
            parts = (part.value if isinstance(part, ast.Constant) else "{}" for part in node.values)
            found += in_sentences("".join(map(str, parts)))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            found += in_sentences(node.value)
    return found


def in_help(kind: type) -> list[Shown]:
    """List the examples of the help of a command."""
    paragraphs = (part.strip() for part in (kind.__doc__ or "").split("\n\n"))
    return [one for part in paragraphs if _COMMAND.match(part) for one in in_line(part)]


def in_line(line: str, *, is_whole: bool = True) -> list[Shown]:
    """List the commands in a line of a shell."""
    line = line if is_whole else re.sub(r"\S*<\w+>\S*", "...", line)
    words = shlex.shlex(line, posix=True, punctuation_chars=";|&<>")
    words.whitespace_split = True
    found, piece = [], list[str]()
    for word in [*words, ";"]:
        if word.startswith("$("):
            found += in_line(word[2:-1], is_whole=is_whole)
        elif word and set(word) <= set(";|&<>"):
            found += [Shown(tuple(behind), is_whole) for behind in _behind_name(piece) if behind]
            piece = []
        else:
            piece.append(word)
    return found


def _behind_name(piece: Sequence[str]) -> Iterator[Sequence[str]]:
    """Give what follows the name of the program or of a module of it, which is given too."""
    if piece and piece[0] in _OTHERS:
        return
    for i, word in enumerate(piece):
        if PurePath(word).name == "mesaopt":
            yield piece[i + 1 :]
            return
        if i and piece[i - 1] == "-m" and word.startswith("mesaopt."):
            yield piece[i:]
            return


@functools.cache
def problem(shown: Shown) -> str | None:
    """Say why a command could not be given; None if it could."""
    try:
        _give(shown)
    except (MesaoptError, SystemExit, LookupError, ImportError) as error:
        return f"mesaopt {shlex.join(shown.words)}: {error!r}"
    return None


def parse(shown: Shown) -> Any:
    """Parse a command; where a mention has a gap, as in the first example of the help."""
    name, *words = shown.words
    kind = commands()[name]
    if shown.is_whole:
        words, usual = _checked(shown.words)[1:], None
    else:
        words, usual = _without_placeholders(kind, _checked(shown.words)[1:]), _usual(kind)
    flags = (tyro.conf.FlagCreatePairsOff,)
    return tyro.cli(kind, args=words, default=usual, config=flags)


@functools.cache
def _usual(kind: type) -> Any:
    """Give the arguments of the first example that are no options, and those that are required."""
    example = parse(in_help(kind)[0])
    pairs = zip(fields(kind), arguments_of(kind), strict=True)
    needed = [one.name for one, typed in pairs if not typed.name or one.default is MISSING]
    return kind(**{name: getattr(example, name) for name in needed})


def _without_placeholders(kind: type, words: Sequence[str]) -> list[str]:
    """Leave placeholders out, and options that then lack their value."""
    with_value = {one.name for one in arguments_of(kind) if one.values}
    kept = [word for word in words if not _PLACEHOLDER.fullmatch(word)]
    behind = [*kept, "--"][1:]
    return [
        word
        for word, following in zip(kept, behind, strict=True)
        if word not in with_value or not following.startswith("--")
    ]


def _give(shown: Shown) -> None:
    """Do all that a command does before it reads folders and begins its work."""
    name, *others = shown.words
    if name.startswith("mesaopt."):
        spec = importlib.util.find_spec(name)
        if spec is None or "__main__" not in Path(str(spec.origin)).read_text():
            raise ImportError(f"{name}: cannot be run")
        return
    gaps = [word for word in shown.words if _PLACEHOLDER.fullmatch(word)]
    if shown.is_whole and gaps:
        raise LookupError(f"{gaps[0]}: is no value")
    if name in ("--help", "--version") or name in gaps:
        return
    if "--help" in others:
        return _give(replace(shown, words=tuple(word for word in shown.words if word != "--help")))
    command = parse(shown)
    options.check(command)
    _check_names(command, shown.words)
    match command:
        case args.Train():
            _check_training(command)
        case args.Sweep():
            base = override(recipes.get(command.recipe), command.set)
            grid(base, parse_grid(command.grid), seeds=command.seeds)
            engine_of(command.engine, command.engine_set)
        case args.Reproduce():
            studies.plan_of(command)
            engine_of(command.engine or "local", command.engine_set)
        case args.Bench():
            recipes.get(command.recipe)
        case args.Evaluate() | args.Diagnose() | args.Compare():
            given.check(command)


def _check_names(command: Any, words: Sequence[str]) -> None:
    """Look up names of the zoo, of devices, and of the recipes of runs."""
    for word in words:
        if word.startswith(zoo.PREFIX) and word != zoo.PREFIX:
            zoo.get(word)
        for recipe in re.findall(r"runs/([^/\s]+)-seed\d", word):
            recipes.get(recipe)
    check_device_name(getattr(command, "device", "auto"))


def _check_training(command: args.Train) -> None:
    """Make the settings of a training, but for those of the user's own task and model."""
    is_own = {"task": command.task is not None, "model": ":" in (command.model or "")}
    settings = [one for one in command.set if not is_own.get(one.partition(".")[0])]
    recipe = command.recipe or ("tf-3" if command.task else "")
    model = None if is_own["model"] else command.model
    plain = replace(command, recipe=recipe, task=None, model=model, set=tuple(settings))
    own.configs_of(plain)
    if command.track is not None:
        _ = TRACKERS[command.track]
