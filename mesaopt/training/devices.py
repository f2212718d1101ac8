"""Settings of a run on several devices, and one message for processes that end together.

:mod:`mesaopt.training.shared` trains in this way. It is imported when it is needed: it loads slowly.
"""

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Generator
from dataclasses import dataclass
from datetime import timedelta

from torch import distributed

from mesaopt.config import require_count

_LOST = ("closed by peer", "reset by peer", "Broken pipe", "remote process exited", "Timed out")
"""Messages of the libraries where another process has gone."""
ENDED = "another process of this training has ended, and so do all; go on with --resume"
"""The message of this package then."""


@dataclass(frozen=True, kw_only=True)
class Devices:
    """How a run is spread over the processes that `torchrun` has started; the results differ by rounding.

    Every process computes its share of each batch. Gradients are added up over all of them.

    Example:
        >>> Devices(shard=True).parts
        1
        >>> Devices(parts=0)
        Traceback (most recent call last):
        ...
        mesaopt.errors.ConfigError: parts=0: must be 1 or greater
    """

    shard: bool = False
    """Divide weights, gradients and the optimiser's state among the processes (FSDP). Otherwise each has
    all of them (data parallel), which takes more memory and sends less."""
    parts: int = 1
    """Parts of a process's share of a batch, one after another, whose gradients are added up (gradient
    accumulation): less memory, more time."""
    recompute: bool = False
    """Keep no more than the input of every block for the gradients, and compute the block again (activation
    checkpointing): less memory, a third more work."""
    compile: bool = False
    """Compile every block with `torch.compile`."""

    def __post_init__(self) -> None:
        require_count("parts", self.parts, smallest=1)


def is_launched() -> bool:
    """Say whether `torchrun` has started this process, or a script has made a process group of its own.

    Example:
        >>> is_launched()
        False
    """
    return "TORCHELASTIC_RUN_ID" in os.environ or distributed.is_initialized()


def is_first() -> bool:
    """Say whether this process is the one that writes and prints: the only one, or that of rank 0.

    Example:
        >>> is_first()
        True
    """
    if distributed.is_initialized():
        return distributed.get_rank() == 0
    return not is_launched() or os.environ["RANK"] == "0"


def is_lost(error: BaseException) -> bool:
    """Say whether an error means that another process of the training has gone.

    Example:
        >>> is_lost(RuntimeError("Connection closed by peer [127.0.0.1]:919"))
        True
    """
    words = any(word in str(error) for word in _LOST)
    return isinstance(error, distributed.DistError) or (isinstance(error, RuntimeError) and words)


@contextlib.contextmanager
def one_message() -> Generator[None]:
    """Let one process alone say why all processes of a command end; the others end silently.

    Where one is killed, `torchrun` stops the others by a signal, at any place in their work. Such a process
    says so, too, if it is the first to speak.

    Example:
        >>> with one_message():
        ...     print("alone")
        alone
    """
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        yield
        return
    host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    # That of torchrun itself, which outlives us.
    store = distributed.TCPStore(host, port, timeout=timedelta(seconds=5))
    said = f"mesaopt/said/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}"

    def is_first_to_speak() -> bool:
        try:
            return store.add(said, 1) == 1
        except RuntimeError:  # torchrun has gone, too
            return is_first()

    def stopped() -> None:
        if is_first_to_speak():
            print(f"mesaopt: {ENDED}", file=sys.stderr, flush=True)
        os._exit(128 + signal.SIGTERM)

    _watch(stopped)
    try:
        yield
    except (Exception, KeyboardInterrupt) as error:
        if not is_first_to_speak():
            raise SystemExit(getattr(error, "exit_status", 1)) from None
        raise


def _watch(stopped: Callable[[], None]) -> None:
    """Call a function at the signal to end, in a thread: the main one may be waiting for a device."""
    end, begin = os.pipe()
    os.set_blocking(begin, False)
    signal.set_wakeup_fd(begin)
    signal.signal(signal.SIGTERM, lambda *_: None)

    def wait() -> None:
        while os.read(end, 1)[0] != signal.SIGTERM:
            pass
        stopped()

    threading.Thread(target=wait, daemon=True).start()
