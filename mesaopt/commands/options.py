"""Options that have no use beside what else is given: they are refused, not ignored in silence."""

from dataclasses import fields

from mesaopt import arguments as args
from mesaopt.argument_lists import arguments_of
from mesaopt.errors import ConfigError

_DRAWING = ("--top-k", "--top-p", "--samples", "--seed")
_OF_BENCH_TRAIN = ("--recipe", "--repeats", "--threads", "--official", "--python")
_USELESS_IN_BENCH = {
    "train": ("--quick",),
    "ops": _OF_BENCH_TRAIN,
    "generate": (*_OF_BENCH_TRAIN, "--goals"),
}


def check(command: args.Command) -> None:
    """Refuse options that have no use, as far as the command line alone says so.

    Raises:
        ConfigError: there is one.
    """
    match command:
        case args.Data() if command.tokenizer != "bpe":
            refuse(command, "--vocabulary", where="with a tokenizer that is not learned")
        case args.Generate() if command.beams is not None:
            refuse(command, "--temperature", *_DRAWING, where="with --beams, which draws nothing")
        case args.Generate() if command.temperature == 0:
            refuse(command, *_DRAWING, where="with --temperature 0, which draws nothing")
        case args.Evaluate() | args.Diagnose() | args.Compare() if command.json:
            refuse(command, "--csv", where="with --json")
        case args.Reproduce():
            if command.engine is None:
                refuse(command, "--engine-set", where="without --engine")
            if command.from_zoo:
                refuse(command, "--from", where="with --from-zoo")
        case args.Bench():
            refuse(command, *_USELESS_IN_BENCH[command.what], where=f"with bench {command.what}")
            if command.json:
                refuse(command, "--goals", where="with --json, which has all numbers")


def refuse(command: args.Command, *options: str, where: str) -> None:
    """Refuse options that would change nothing; with their default values they may stand.

    Args:
        command: the arguments that are given.
        options: as they are typed.
        where: what else is given, as the end of the message.

    Raises:
        ConfigError: one of them is given.
    """
    for field, argument in zip(fields(command), arguments_of(type(command)), strict=True):
        if argument.name in options and getattr(command, field.name) != field.default:
            raise ConfigError(f"{argument.name}: must not be given {where}")
