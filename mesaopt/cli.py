"""The command line: `mesaopt --help`.

Only what parsing needs is imported here; torch and the rest come when a command runs.
"""

import os
import sys
from collections.abc import Sequence
from importlib import metadata

import tyro

from mesaopt.arguments import Command
from mesaopt.errors import MesaoptError


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit.

    Args:
        arguments: without the program's name; those of the process if not given.

    Exits with 0 if all went well and all claims hold, 1 if a claim or a run failed, 2 after a usage error
    (a misspelt setting, a folder that holds another run, a full disk), 130 after Ctrl-C.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    if list(arguments) in (["--version"], ["-V"]):
        print(f"mesaopt {metadata.version('mesaopt')}")
        raise SystemExit(0)
    command = tyro.cli(
        Command,  # type: ignore[arg-type]
        prog="mesaopt",
        description=(
            "Mesa-optimization in sequence models: train small models that learn in context, take them "
            "apart, and judge the claims of the papers. Start with: mesaopt reproduce core"
        ),
        args=arguments,
        config=(tyro.conf.FlagCreatePairsOff,),
    )
    # Before torch is loaded: threads that wait for one another by spinning take 20 times as long as
    # needed where another program wants a core (docs/log.md).
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        from mesaopt import commands

        status = commands.run(command)
        sys.stdout.flush()
    except MesaoptError as error:
        print(f"mesaopt: {error}", file=sys.stderr)
        status = error.exit_status
    except KeyboardInterrupt:
        print("mesaopt: interrupted; go on with --resume", file=sys.stderr)
        status = 130
    except BrokenPipeError:  # the reader, such as head, has seen enough
        sys.stderr.close()
        status = 0
    raise SystemExit(status)
