"""Several processes on one machine, as `torchrun` starts them but without loading torch for each."""

import functools
import multiprocessing
import os
import sys
from collections.abc import Callable, Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch
import torch._dynamo.utils
from torch import distributed

from mesaopt import cli
from mesaopt.config import RunConfig
from mesaopt.errors import MesaoptError
from mesaopt.training import Devices, train

PARTS = multiprocessing.get_context("forkserver")
PARTS.set_forkserver_preload(["mesaopt.training.shared", "torch._dynamo", "processes"])


class Processes:
    """A few processes that call one function, which join as a process group.

    Args:
        size: their number.
        function: called in each, of a module that they can import.
        arguments: of the function.
        said: a file for what they say on the standard error.
        after: earlier ones, which these follow as with `--max-restarts`.
    """

    def __init__(
        self,
        size: int,
        function: Callable,
        *arguments: Any,
        said: Path,
        after: "Processes | None" = None,
    ):
        self.restarts = 0 if after is None else after.restarts + 1
        self.store = (
            distributed.TCPStore("localhost", 0, is_master=True, wait_for_workers=False)
            if after is None
            else after.store
        )
        shared = (size, (self.store.port, self.restarts), said, function, arguments)
        self.all: list[BaseProcess] = [
            PARTS.Process(target=_work, args=(rank, *shared)) for rank in range(size)
        ]
        for process in self.all:
            process.start()

    def end(self) -> list[int | None]:
        """Wait for all, stop the others where one fails as `torchrun` does, and return their statuses."""
        running = list(self.all)
        while running:
            running[0].join(0.05)
            running = [process for process in running if process.exitcode is None]
            if any(process.exitcode for process in self.all):
                for process in running:
                    process.terminate()
                    process.join(20)
        return [process.exitcode for process in self.all]


def _work(
    rank: int,
    size: int,
    store: tuple[int, int],
    said: Path,
    function: Callable,
    arguments: Sequence[Any],
) -> None:
    port, restarts = store
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(size),
        "MASTER_ADDR": "localhost",
        "MASTER_PORT": str(port),
        "TORCHELASTIC_RUN_ID": "tests",
        "TORCHELASTIC_RESTART_COUNT": str(restarts),
        "TORCHELASTIC_USE_AGENT_STORE": "True",
    }
    torch.set_num_threads(1)
    with said.open("a") as file:
        sys.stderr = file
        function(*arguments)


def train_some(
    config: RunConfig, out: Path, devices: Devices | None = None, stop_at: int | None = None
) -> None:
    """Train a run from where it stands; stop at a step, as if the process ended there."""
    from mesaopt.training.shared import SharedTrainer

    step = SharedTrainer.step

    def stopping(trainer: SharedTrainer, number: int) -> torch.Tensor:
        if number == stop_at:
            os._exit(0)
        return step(trainer, number)

    SharedTrainer.step = stopping
    torch.compile = functools.partial(torch.compile, backend="aot_eager")  # the quickest
    try:
        train(config, out, device="cpu", devices=devices, resume=True, progress=False)
    except MesaoptError as error:
        print(error, file=sys.stderr)
        raise SystemExit(error.exit_status) from None
    graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    assert bool(graphs) == (devices or Devices()).compile


def command_that_fails_once(*words: str) -> None:
    """Run a command line whose training fails in the second process alone."""
    from mesaopt.training.shared import SharedTrainer

    step = SharedTrainer.step

    def failing(trainer: SharedTrainer, number: int) -> torch.Tensor:
        if trainer.group.rank == 1 and number == 2:
            raise ValueError("a ridge is negative")
        return step(trainer, number)

    SharedTrainer.step = failing
    cli.main(words)


def command(*words: str) -> None:
    """Run a command line."""
    cli.main(words)
