"""The work of all engines: train the run of a folder to its end, from its newest checkpoint.

`python -m mesaopt.sweeps.job DEVICE` is a process that trains the folders that it reads.
"""

import json
import os
import queue
import sys
import threading

import torch

from mesaopt import files
from mesaopt.errors import MesaoptError
from mesaopt.training import RunFolder, resolve_device
from mesaopt.training.loop import train_in

_PATIENCE = 90.0
"""Seconds to wait for another process in the folder, such as one that is being killed."""


def train_folder(path: str, device: str = "auto", threads: int = 1) -> str | None:
    """Train the run of a folder to its end, from its newest checkpoint.

    Args:
        path: of a folder with a `config.json`.
        device: "auto", "cpu", "cuda" or "cuda:<number>".
        threads: to compute with on a CPU; their number changes no bit.

    Returns:
        None once the run has ended, or why it cannot go on.

    Example:
        >>> train_folder("no/such/folder")
        "run='no/such/folder': there is no such folder"
    """
    torch.set_num_threads(threads)
    try:
        folder = files.as_path(path)
        config = RunFolder(folder).config
        # Locks of a folder are seen on this machine alone, those of a file on others, too.
        with (
            files.only_one_process(folder, wait=_PATIENCE),
            files.only_one_process(folder / "config.json", wait=_PATIENCE),
        ):
            run = RunFolder.open(folder, config, resume=True)
            if not run.is_done:
                train_in(run, resolve_device(device), progress=False)
    except MesaoptError as error:
        return str(error)
    except Exception as error:
        place = error.__traceback__
        while place is not None and place.tb_next is not None:
            place = place.tb_next
        where = f" ({place.tb_frame.f_code.co_filename}:{place.tb_lineno})" if place else ""
        return f"{type(error).__name__}: {error}{where}"
    return None


def serve(device: str) -> None:
    """Train the folders that are named on the standard input, and write what came of each to the output.

    Both are lines of JSON. The process ends at once when its input does, as it does when the process at the
    other end is killed.
    """
    folders: queue.SimpleQueue[str] = queue.SimpleQueue()

    def read() -> None:
        for line in sys.stdin:
            folders.put(json.loads(line))
        os._exit(0)

    answers = sys.stdout
    sys.stdout = sys.stderr  # what others print must not get between the answers
    threading.Thread(target=read, daemon=True).start()
    while True:
        print(json.dumps(train_folder(folders.get(), device)), file=answers, flush=True)


if __name__ == "__main__":
    serve(sys.argv[1])
