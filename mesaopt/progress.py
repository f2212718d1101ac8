"""Progress of work in stages: a live bar in a terminal, plain lines elsewhere."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn

OnProgress = Callable[[int, int], None]
"""Called with the finished and the total number of batches or steps of a longer computation."""

_PLAIN_EVERY_SECONDS = 10.0


@dataclass(frozen=True)
class Stage:
    """One stage of the work.

    Example:
        >>> Stage("LSA-1, seed 0", steps=400, seconds_per_step=0.01).seconds
        4.0
    """

    name: str
    steps: int
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
        console: where to print; standard error if not given.

    Example:
        >>> console = Console(file=None, quiet=True)
        >>> with ProgressDisplay([Stage("one", 10, 0.1)], console=console) as display:
        ...     display.begin("one")
        ...     display.update(5, 0.9)
    """

    def __init__(self, stages: list[Stage], *, console: Console | None = None):
        self.console = console or Console(stderr=True, highlight=False)
        self._stages = {stage.name: stage for stage in stages}
        self._stage = stages[0] if stages else Stage("", 0, 0.0)
        self._expected_done = 0.0
        self._expected_total = sum(stage.seconds for stage in stages) or 1.0
        self._step, self._loss = 0, float("nan")
        self._started = self._last_line = time.monotonic()
        self._skipped = 0.0
        columns = (
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            TaskProgressColumn(),
            TextColumn("{task.fields[detail]}"),
        )
        self._bar = Progress(*columns, console=self.console, transient=True)
        self._task = self._bar.add_task("", total=self._expected_total, detail="")

    def __enter__(self) -> "ProgressDisplay":
        self._started = time.monotonic()
        if self.console.is_terminal:
            self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self.console.is_terminal:
            self._bar.stop()

    def begin(self, name: str) -> None:
        """Begin a stage; the one before it has ended.

        Args:
            name: of the stage.
        """
        names = list(self._stages)
        earlier = names[: names.index(name)]
        self._expected_done = sum(self._stages[other].seconds for other in earlier)
        self._stage, self._step, self._loss = self._stages[name], 0, float("nan")
        if not self.console.is_terminal:
            steps = f": {self._stage.steps} steps" if self._stage.steps > 1 else ""
            self.console.print(f"{name}{steps}", soft_wrap=True)
            self._last_line = time.monotonic()
        self._show()

    def skip(self, name: str) -> None:
        """Print that an earlier session has finished a stage.

        Args:
            name: of the stage.
        """
        self._skipped += self._stages[name].seconds
        self.console.print(f"{name}: already done", soft_wrap=True)

    def update(self, step: int, loss: float) -> None:
        """Show the step and loss of the current stage, as an `on_step` of :func:`mesaopt.training.train`.

        Args:
            step: number of finished steps.
            loss: the newest; NaN where there is none.
        """
        self._step, self._loss = step, loss
        now = time.monotonic()
        if not self.console.is_terminal and now - self._last_line >= _PLAIN_EVERY_SECONDS:
            self._last_line = now
            self.console.print(f"{self._stage.name}: {self._detail()}", soft_wrap=True)
        self._show()

    def advance(self, done: int, total: int) -> None:
        """Show the progress of a stage whose number of steps is not known beforehand, as an `OnProgress`.

        Args:
            done: number of finished steps.
            total: number of all steps.
        """
        self._stage = Stage(self._stage.name, total, self._stage.seconds / max(total, 1))
        self.update(done, float("nan"))

    def _show(self) -> None:
        done = self._expected_done + self._step * self._stage.seconds_per_step
        self._bar.update(
            self._task, description=self._stage.name, completed=done, detail=self._detail()
        )

    def _detail(self) -> str:
        step = f"step {self._step}/{self._stage.steps}  " if self._stage.steps > 1 else ""
        loss = "" if self._loss != self._loss else f"loss {self._loss:.4f}  "
        return f"{step}{loss}{self.time_left()}"

    def time_left(self) -> str:
        """Return the time left for all stages, such as "60 s left"."""
        done = self._expected_done + self._step * self._stage.seconds_per_step
        worked = done - self._skipped
        # How much slower the machine is than estimated; used once some work is done.
        factor = (time.monotonic() - self._started) / worked if worked > 5 else 1.0
        left = (self._expected_total - done) * factor
        return f"{left / 60:.0f} min left" if left >= 90 else f"{left:.0f} s left"
