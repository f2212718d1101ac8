"""The command about corpora: `data prepare`."""

import dataclasses
import shlex

from mesaopt import arguments as args
from mesaopt.console import print_json, print_line


def data(command: args.Data) -> int:
    """Write a corpus as files of tokens, and print what is in them."""
    from mesaopt.corpus import prepare

    written = prepare(
        command.source, command.out, tokenizer=command.tokenizer, vocabulary=command.vocabulary
    )
    if command.json:
        print_json(dataclasses.asdict(written) | {"folder": str(written.folder)})
        return 0
    counts = ", ".join(f"{part} {count:,}" for part, count in written.tokens.items())
    print_line(f"tokens      {counts}")
    print_line(f"vocabulary  {written.vocabulary:,}")
    print_line(f"checksum    {written.checksum}")
    folder = shlex.quote(str(written.folder))
    vocabulary = f"task.vocabulary={written.vocabulary} model.vocabulary={written.vocabulary}"
    print_line(f"Next: mesaopt train RECIPE --set task.corpus={folder} {vocabulary}")
    return 0
