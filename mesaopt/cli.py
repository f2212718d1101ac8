"""The command line: `mesaopt --help`.

Only what parsing needs is imported here; torch and the rest come when a command runs.
"""

import codecs
import contextlib
import inspect
import os
import sys
import textwrap
from collections.abc import Mapping, Sequence
from importlib import metadata

import tyro

from mesaopt.argument_lists import Argument, arguments_of, commands
from mesaopt.arguments import Command
from mesaopt.errors import ConfigError, MesaoptError, printable, suggest

_PURPOSE = (
    "Train small sequence models that learn in context, take them apart, and judge the claims of the "
    "papers. Begin with: mesaopt demo. mesaopt COMMAND --help explains a command; mesaopt --version "
    "prints the version."
)
_PLAIN = {"±": "+-", "²": "^2", "·": "-", "×": "x", "−": "-"}


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit.

    Args:
        arguments: without the program's name; those of the process if not given.

    Exits with 0 if all went well and all claims hold, 1 if a claim or a run failed, 2 after a usage error
    (a misspelt setting, a folder that holds another run, a full disk), 130 after Ctrl-C.
    """
    _print_in_any_locale()
    words = sys.argv[1:] if arguments is None else arguments
    try:
        status = _run(words)
        sys.stdout.flush()
    except KeyboardInterrupt:
        hint = "; go on with --resume" if "--resume" in _options(words) else ""
        print(f"mesaopt: interrupted{hint}", file=sys.stderr)
        status = 130
    except BrokenPipeError:  # the reader, such as head, has seen enough
        _drop_output()
        sys.stderr.close()
        status = 0
    except Exception as error:
        message = _explain(error)
        if message is None:
            raise
        print(f"mesaopt: {printable(message)}", file=sys.stderr)
        status = getattr(error, "exit_status", 2)
        _drop_output()
    raise SystemExit(status)


def _run(arguments: Sequence[str]) -> int:
    """Parse the command line and carry it out; return the exit status."""
    if list(arguments) in (["--version"], ["-V"]):
        print(f"mesaopt {metadata.version('mesaopt')}")
        return 0
    if list(arguments) in ([], ["--help"], ["-h"]):
        print(_overview())
        return 0 if arguments else 2
    command = tyro.cli(
        Command,  # type: ignore[arg-type]
        prog="mesaopt",
        args=_checked(arguments),
        config=(tyro.conf.FlagCreatePairsOff,),
    )
    # Before torch is loaded: threads that wait for one another by spinning take 20 times as long as
    # needed where another program wants a core (docs/log.md).
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    from mesaopt.commands import one_message, run

    with one_message():
        return run(command)


def _overview() -> str:
    """Say what each command does, in a line or two."""
    lines = ["usage: mesaopt COMMAND ...", "", *textwrap.wrap(_PURPOSE, 80), ""]
    for name, kind in commands().items():
        summary = " ".join(str(inspect.getdoc(kind)).split("\n\n")[0].split())
        lines += textwrap.wrap(
            summary, 80, initial_indent=f"  {name:17}", subsequent_indent=" " * 19
        )
    return "\n".join(lines)


def _checked(arguments: Sequence[str]) -> list[str]:
    """Refuse commands and options that do not exist, and sort words by what they belong to."""
    if not arguments or arguments[0].startswith("-"):
        return list(arguments)
    if arguments[0] not in commands():
        hint = suggest(arguments[0], commands())
        raise ConfigError(f"{arguments[0]}: is no command of mesaopt; {hint}")
    options = _options(arguments)
    _refuse_unknown_options(arguments, list(options))
    return _sorted(arguments, options)


def _options(arguments: Sequence[str]) -> dict[str, Argument]:
    """List the options of the command that is given."""
    kind = commands().get(arguments[0]) if arguments else None
    known = [] if kind is None else arguments_of(kind)
    return {one.name: one for one in known if one.name}


def _refuse_unknown_options(arguments: Sequence[str], known: Sequence[str]) -> None:
    """Refuse an option that the command does not have, and name what may be meant."""
    for option in (argument.split("=")[0] for argument in arguments[1:]):
        if not option.startswith("--") or option.replace("_", "-") in (*known, "--help"):
            continue
        if "--set" in known and (setting := _setting(option, arguments[1])):
            raise ConfigError(f"{option}: is a setting: write --set {setting}=VALUE")
        hint = suggest(option, known)
        raise ConfigError(f"{option}: is no option of mesaopt {arguments[0]}; {hint}")


def _sorted(arguments: Sequence[str], options: Mapping[str, Argument]) -> list[str]:
    """Put words of no option first, and join the values of a repeated option; refuse a second value.

    Of a repeated option the last values alone would count, and words behind the value of one not at all.
    """
    several = {name for name, one in options.items() if one.takes_several}
    switches = {name for name, one in options.items() if not one.values}
    option = ""
    words = {option: [arguments[0]]}  # of each option, itself the first
    for argument in arguments[1:]:
        name, equals, value = argument.partition("=")
        if not argument.startswith("--"):
            has_value = len(words[option]) > 1 or "=" in words[option][0] or option in switches
            is_free = option in options and option not in several and has_value
            is_recipe = option == "--set" and len(words[""]) == 1 and _is_recipe(argument)
            words["" if is_free or is_recipe else option].append(argument)
            continue
        option = name.replace("_", "-")
        given = [name, value] if equals and option in several else [argument]
        if option not in words:
            words[option] = given
        elif option in several:
            words[option] += given[1:]
        else:
            raise ConfigError(f"{option}: is given twice")
    return [word for group in words.values() for word in group]


def _is_recipe(word: str) -> bool:
    """Say whether a word is the name of a recipe, which no setting is."""
    from mesaopt import recipes

    return word in recipes.RECIPES


def _setting(option: str, recipe: str) -> str | None:
    """Name the setting of a recipe that an option may mean, such as train.steps for --steps."""
    from mesaopt import recipes
    from mesaopt.config import to_dict

    wanted = option.removeprefix("--").replace("-", "_")
    config = to_dict(recipes.get(recipe if recipe in recipes.RECIPES else "lsa-1"))
    for part in ("train", "model", "task"):
        if wanted in config[part]:
            return f"{part}.{wanted}"
        if wanted.startswith(f"{part}.") and wanted.removeprefix(f"{part}.") in config[part]:
            return wanted
    return None


def _explain(error: Exception) -> str | None:
    """Say in one line what the user or the machine did not allow; None for a fault of the program."""
    if isinstance(error, MesaoptError):
        return str(error)
    if isinstance(error, OSError):
        where = f"{error.filename}: " if error.filename else ""
        return f"{where}{error.strerror or error}"
    text = str(error)
    no_memory = ("allocate memory", "out of memory", "calculation overflowed", "array is too big")
    no_memory += ("multiplication overflow", "Maximum allowed dimension", "overflow a 64-bit")
    if isinstance(error, MemoryError | OverflowError) or any(words in text for words in no_memory):
        reason = text.splitlines()[0] if text else type(error).__name__
        return f"this needs more memory than there is; choose smaller sizes ({reason})"
    return None


def _print_in_any_locale() -> None:
    """Write what the encoding of the output lacks, such as ±, in other words, and never fail."""

    def plain(error: UnicodeError) -> tuple[str, int]:
        if not isinstance(error, UnicodeEncodeError):
            raise error
        lacking = error.object[error.start : error.end]
        return "".join(_PLAIN.get(character, "?") for character in lacking), error.end

    codecs.register_error("mesaopt", plain)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="mesaopt")


def _drop_output() -> None:
    """Forget output that cannot be written, such as to a full disk: Python would try again at its end."""
    try:
        sys.stdout.flush()
    except OSError:
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
