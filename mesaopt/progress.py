"""Progress of work in stages: a live bar in a terminal or a notebook, plain lines elsewhere.

Longer computations of the package take `progress`: True, False, or a function of a :class:`Progress`.
"""

import contextlib
import html
import sys
import threading
import time
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, field, replace
from types import TracebackType
from typing import Any

from rich import progress as rich_progress
from rich.console import Console

from mesaopt.errors import printable, wrong_type

__all__ = ["AnyProgress", "OnProgress", "Progress"]


@dataclass(frozen=True)
class Progress:
    """How far a computation has come.

    Example:
        >>> Progress(50, 200, "training").done
        50
    """

    done: int
    """Number of finished steps, batches, sequences or whatever the computation counts."""
    total: int
    """Number of all of them, as far as it is known."""
    stage: str = ""
    """The name of the computation; that of the run in a training."""
    metrics: Mapping[str, float] = field(default_factory=dict)
    """Numbers measured on the way, such as "train_loss"."""
    earlier: int = 0
    """Of the finished ones, those of an earlier session: the steps before a training was resumed."""


OnProgress = Callable[[Progress], None]
"""Called with the progress of a longer computation. What it raises ends the computation."""

AnyProgress = bool | OnProgress
"""True: a bar in terminals and notebooks once two seconds have passed; False: nothing; or a function to be
called in place of the bar."""

_BAR_AFTER_SECONDS = 2.0
_PLAIN_EVERY_SECONDS = 10.0
_NOTEBOOK_EVERY_SECONDS = 0.2

_TURN = threading.Lock()
"""Held by the outermost computation: what it computes on the way shows no bar of its own."""


class Report:
    """Tells whoever listens how far one computation has come.

    Example:
        >>> report = Report(print, "counting")
        >>> report(1, 2)
        Progress(done=1, total=2, stage='counting', metrics={}, earlier=0)
    """

    def __init__(self, listener: OnProgress | None, stage: str, *, earlier: int = 0):
        self._listener, self._stage, self._earlier = listener, stage, earlier

    @property
    def has_listener(self) -> bool:
        """Whether there is a listener: what is measured for the report alone can be left out if not."""
        return self._listener is not None

    def __call__(self, done: int, total: int, *, stage: str = "", **metrics: float) -> None:
        """Report the finished and the total number of steps, and numbers measured on the way."""
        if self._listener is not None:
            self._listener(Progress(done, total, stage or self._stage, metrics, self._earlier))


NO_REPORT = Report(None, "")
"""The report without a listener."""


@contextlib.contextmanager
def reporting(progress: AnyProgress, stage: str, *, earlier: int = 0) -> Generator[Report]:
    """Report the progress of a computation to the caller's function, by a bar, or to nobody.

    There is one bar at a time: computations inside of another one that reports, or in another thread, show
    none of their own.

    Args:
        progress: as the caller of the computation gave it.
        stage: what is computed.
        earlier: number of steps that an earlier session has finished.

    Yields:
        What the computation calls with its finished and total number of steps.

    Raises:
        TypeError: progress is something else.

    Example:
        >>> with reporting(print, "counting") as report:
        ...     report(2, 2)
        Progress(done=2, total=2, stage='counting', metrics={}, earlier=0)
    """
    if not (isinstance(progress, bool) or callable(progress)):
        raise wrong_type("progress", progress, "True, False or a function of a Progress")
    with _outermost() as is_outermost:
        if callable(progress):
            yield Report(progress, stage, earlier=earlier)
        elif progress and is_outermost and _shows_bars():
            with _Bar() as bar:
                yield Report(bar.update, stage, earlier=earlier)
        else:
            yield Report(None, stage)


@contextlib.contextmanager
def _outermost() -> Generator[bool]:
    """Say whether no other computation reports now, and keep that place."""
    is_outermost = _TURN.acquire(blocking=False)
    try:
        yield is_outermost
    finally:
        if is_outermost:
            _TURN.release()


def _shows_bars() -> bool:
    """Whether somebody looks at the standard error: in a terminal, or in a notebook."""
    return sys.stderr.isatty() or Console(stderr=True).is_jupyter


class _Bar:
    """A bar of one computation, which appears when it has taken two seconds."""

    def __init__(self) -> None:
        self._started = time.monotonic()
        self._display: ProgressDisplay | None = None
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> "_Bar":
        return self

    def __exit__(self, *error: Any) -> None:
        self._stack.close()

    def update(self, progress: Progress) -> None:
        """Show the progress, if it is time."""
        seconds = time.monotonic() - self._started
        if self._display is None and seconds >= _BAR_AFTER_SECONDS:
            self._display = self._show(progress, seconds)
        if self._display is not None:
            self._display.rename(progress.stage)
            self._display.update(progress)

    def _show(self, progress: Progress, seconds: float) -> "ProgressDisplay":
        per_step = seconds / max(progress.done - progress.earlier, 1)
        stage = Stage(progress.stage, progress.total, per_step)
        display = ProgressDisplay([stage], waited=seconds)
        self._stack.enter_context(display)
        display.begin(stage.name)
        return display


@dataclass(frozen=True)
class Stage:
    """One stage of the work.

    Example:
        >>> Stage("LSA-1, seed 0", steps=400, seconds_per_step=0.01).seconds
        4.0
    """

    name: str
    steps: int
    """1 where it is not known how much will be counted: the clock alone tells how far such a stage is."""
    seconds_per_step: float
    """Estimated before the work begins; the display corrects it as the work goes on."""

    @property
    def seconds(self) -> float:
        """Expected time of the stage."""
        return self.steps * self.seconds_per_step


class ProgressDisplay:
    """Display of the current stage, its step and loss, and the time left for all stages.

    Args:
        stages: all of them, in order.
        progress: False shows nothing; a function is called with every step in place of the display.
        console: where to print; standard error if not given.
        waited: seconds since the work began, if that was before the display.

    Example:
        >>> console = Console(file=None, quiet=True)
        >>> with ProgressDisplay([Stage("one", 10, 0.1)], console=console) as display:
        ...     display.begin("one")
        ...     display.update(Progress(5, 10, metrics={"train_loss": 0.9}))
    """

    def __init__(
        self,
        stages: list[Stage],
        *,
        progress: AnyProgress = True,
        console: Console | None = None,
        waited: float = 0.0,
    ):
        self.console = console or Console(stderr=True, highlight=False, quiet=progress is not True)
        self._listener = progress if callable(progress) else None
        self._stages = {stage.name: stage for stage in stages}
        self._stage = stages[0] if stages else Stage("", 0, 0.0)
        self._stage_began: float | None = None
        self._expected_done = 0.0
        self._expected_total = sum(stage.seconds for stage in stages) or 1.0
        self._step, self._earlier, self._loss = 0, 0, float("nan")
        self._skipped, self._waited = 0.0, waited
        self._started = self._last_line = time.monotonic()
        self._stack = contextlib.ExitStack()
        seen = self.console.is_terminal or self.console.is_jupyter
        self._is_live = seen and not self.console.quiet
        self._bar = _NotebookBar() if self.console.is_jupyter else _terminal_bar(self.console)
        self._task = self._bar.add_task("", total=self._expected_total, detail="")

    def __enter__(self) -> "ProgressDisplay":
        self._started = time.monotonic() - self._waited
        self._stack.enter_context(_outermost())
        if self._is_live:
            self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stack.close()
        if self._is_live:
            self._bar.stop()

    def begin(self, name: str) -> None:
        """Begin a stage; the one before it has ended.

        Args:
            name: of the stage.
        """
        names = list(self._stages)
        earlier = names[: names.index(name)]
        self._expected_done = sum(self._stages[other].seconds for other in earlier)
        self._stage, self._loss = self._stages[name], float("nan")
        self._step, self._earlier = 0, 0
        self._stage_began = time.monotonic() if self._stage.steps == 1 else None
        if not self._is_live:
            steps = f": {self._stage.steps} steps" if self._stage.steps > 1 else ""
            self._print(f"{name}{steps}")
            self._last_line = time.monotonic()
        self._show()
        self._tell({})

    def skip(self, name: str) -> None:
        """Print that an earlier session has finished a stage.

        Args:
            name: of the stage.
        """
        self._skipped += self._stages[name].seconds
        self._print(f"{name}: already done")

    def update(self, progress: Progress) -> None:
        """Show the progress of the current stage, as an :data:`OnProgress`.

        Args:
            progress: of the stage, whose number of steps may not have been known before.
        """
        name, seconds = self._stage.name, self._stage.seconds
        self._stage = Stage(name, progress.total, seconds / max(progress.total, 1))
        self._skipped += (progress.earlier - self._earlier) * self._stage.seconds_per_step
        self._step, self._earlier = progress.done, progress.earlier
        self._loss = progress.metrics.get("train_loss", float("nan"))
        now = time.monotonic()
        if not self._is_live and now - self._last_line >= _PLAIN_EVERY_SECONDS:
            self._last_line = now
            self._print(f"{name}: {self._detail()}")
        self._show()
        self._tell(progress.metrics)

    def _tell(self, metrics: Mapping[str, float]) -> None:
        if self._listener is not None:
            step, steps, name = self._step, self._stage.steps, self._stage.name
            self._listener(Progress(step, steps, name, metrics, self._earlier))

    def rename(self, name: str) -> None:
        """Show the current stage under another name."""
        self._stage = replace(self._stage, name=name)

    def _print(self, text: str) -> None:
        self.console.print(printable(text), soft_wrap=True, markup=False)

    def _show(self) -> None:
        self._bar.update(
            self._task,
            description=printable(self._stage.name),
            completed=self._done_seconds,
            detail=self._detail(),
        )

    def _detail(self) -> str:
        step = f"step {self._step}/{self._stage.steps}  " if self._stage.steps > 1 else ""
        loss = "" if self._loss != self._loss else f"loss {self._loss:.4f}  "
        return f"{step}{loss}{self.time_left()}"

    @property
    def _done_seconds(self) -> float:
        """Expected time of all that is finished."""
        if self._stage_began is None:
            return self._expected_done + self._step * self._stage.seconds_per_step
        return self._expected_done + min(time.monotonic() - self._stage_began, self._stage.seconds)

    def time_left(self) -> str:
        """Return the time left for all stages, such as "60 s left", or that it is more than expected."""
        done = self._done_seconds
        worked = done - self._skipped
        # How much slower the machine is than estimated; used once some work is done.
        factor = (time.monotonic() - self._started) / worked if worked > 5 else 1.0
        left = (self._expected_total - done) * factor
        if left <= 0 and self._stage_began is not None:
            return "longer than expected"
        return f"{left / 60:.0f} min left" if left >= 90 else f"{left:.0f} s left"


def _terminal_bar(console: Console) -> rich_progress.Progress:
    columns = (
        rich_progress.TextColumn("{task.description}", markup=False),
        rich_progress.BarColumn(bar_width=24),
        rich_progress.TaskProgressColumn(),
        rich_progress.TextColumn("{task.fields[detail]}"),
    )
    return rich_progress.Progress(*columns, console=console, transient=True)


class _NotebookBar:
    """The bar of a notebook: one output that is replaced; rich needs ipywidgets for that."""

    def __init__(self) -> None:
        self._handle: Any = None
        self._total, self._drawn = 1.0, 0.0

    def add_task(self, _: str, *, total: float, **more: str) -> Any:
        self._total = total

    def start(self) -> None:
        # Only a notebook comes here, and it has IPython.
        from IPython.display import HTML, display  # type: ignore

        self._html = HTML
        self._handle = display(HTML(""), display_id=True)

    def update(self, _: Any, *, description: str, completed: float, detail: str) -> None:
        now = time.monotonic()
        if self._handle is None or now - self._drawn < _NOTEBOOK_EVERY_SECONDS:
            return
        self._drawn = now
        bar = f'<progress max="1" value="{completed / self._total:.3f}"></progress>'
        text = f"{html.escape(description)} {bar} {html.escape(detail)}"
        self._handle.update(self._html(f'<div style="font-family: monospace">{text}</div>'))

    def stop(self) -> None:
        if self._handle is not None:
            self._handle.update(self._html(""))
