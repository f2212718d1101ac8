import io
import itertools
import re
import sys
import types

import pytest
from rich.console import Console

from mesaopt import progress
from mesaopt.progress import AnyProgress, Progress, ProgressDisplay, Stage, reporting


def test_plain_lines_when_not_in_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(0, 10_000, 20))
    monkeypatch.setattr(progress.time, "monotonic", lambda: float(next(clock)))
    out = io.StringIO()
    with ProgressDisplay(
        [Stage("one", 100, 1.0), Stage("two", 100, 1.0)], console=Console(file=out)
    ) as display:
        display.begin("one")
        display.update(Progress(50, 100, metrics={"train_loss": 0.5}))
        display.begin("two")
    lines = out.getvalue().splitlines()
    assert lines[0] == "one: 100 steps"
    assert lines[1].startswith("one: step 50/100  loss 0.5000")
    assert lines[1].endswith("left")
    assert lines[2] == "two: 100 steps"
    assert "\x1b" not in out.getvalue()


def test_a_terminal_gets_one_live_line() -> None:
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, width=100)
    with ProgressDisplay([Stage("one", 100, 0.01)], console=console) as display:
        display.begin("one")
        display.update(Progress(50, 100, metrics={"train_loss": 0.25}))
    assert "loss 0.2500" in out.getvalue()
    assert "50%" in out.getvalue()


def test_finished_stages_do_not_count_as_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress.time, "monotonic", lambda: 0.0)
    display = ProgressDisplay(
        [Stage("one", 1000, 1.0), Stage("two", 60, 1.0)], console=Console(quiet=True)
    )
    display.skip("one")
    display.begin("two")
    assert display.time_left() == "60 s left"


def test_steps_of_an_earlier_session_do_not_count_as_work(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0] * 3 + [30.0] * 20)
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    seen: list[Progress] = []
    stages = [Stage("one", 1000, 1.0), Stage("two", 60, 1.0)]
    with ProgressDisplay(stages, progress=seen.append) as display:
        display.begin("one")
        with reporting(display.update, "one", earlier=900) as report:
            report(910, 1000)
        # 30 s for 10 steps, in place of 10 s: so do the other 90 steps, and the next stage.
        assert display.time_left() == "8 min left"
        display.begin("two")
    assert [(one.done, one.earlier) for one in seen] == [(0, 0), (910, 900), (0, 0)]


def test_the_clock_alone_tells_how_far_a_stage_of_unknown_parts_is(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = 0.0
    monkeypatch.setattr(progress.time, "monotonic", lambda: now)
    stages = [Stage("figure", 1, 600.0), Stage("last", 1, 60.0)]
    with ProgressDisplay(stages, console=Console(quiet=True)) as display:
        display.begin("figure")
        left = {}
        for now, done, total in [(60.0, 9, 10), (120.0, 1, 2000), (240.0, 1500, 2000)]:
            display.update(Progress(done, total))
            left[now] = display.time_left()
        assert left == {60.0: "10 min left", 120.0: "9 min left", 240.0: "7 min left"}
        now = 780.0
        assert display.time_left() == "78 s left", "as slow as the figure: 780 s for 600"
        display.begin("last")
        now = 1000.0
        assert display.time_left() == "longer than expected"


def make_terminal(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    """Make the standard error a terminal, and a clock that jumps by a second whenever it is read.

    No fixture: between fixtures and tests pytest puts another standard error into place.
    """
    screen = io.StringIO()
    screen.isatty = lambda: True  # type: ignore[method-assign]
    clock = itertools.count()
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(progress.sys, "stderr", screen)
    monkeypatch.setattr(progress.time, "monotonic", lambda: float(next(clock)))
    return screen


def count(steps: int, how: AnyProgress, earlier: int = 0) -> None:
    with reporting(how, "counting", earlier=earlier) as report:
        for step in range(earlier + 1, steps + 1):
            report(step, steps)


def test_a_computation_of_two_seconds_gets_a_bar_in_a_terminal(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    terminal = make_terminal(monkeypatch)
    count(1, True)
    assert terminal.getvalue() == ""
    count(30, True)
    assert "counting" in terminal.getvalue()
    assert "step 30/30" in terminal.getvalue()
    assert terminal.getvalue().endswith("\x1b[2K"), "it is wiped away at the end"


def test_the_time_left_of_a_resumed_computation_counts_new_work_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    terminal = make_terminal(monkeypatch)
    count(1040, True, earlier=1000)
    lines = re.findall(r"step (\d+)/1040  (\d+) s left", terminal.getvalue())
    left = {int(step): int(seconds) for step, seconds in lines}
    assert max(left.values()) < 400, "a few seconds for each of 40 steps"


@pytest.mark.parametrize("how", [False, [].append])
def test_nothing_is_drawn_where_it_is_not_wanted(
    monkeypatch: pytest.MonkeyPatch, how: AnyProgress
) -> None:
    terminal = make_terminal(monkeypatch)
    count(30, how)
    assert terminal.getvalue() == ""


def test_nothing_is_drawn_where_there_is_no_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = itertools.count()
    monkeypatch.setattr(progress.sys, "stderr", io.StringIO())
    monkeypatch.setattr(progress.time, "monotonic", lambda: float(next(clock)))
    with reporting(True, "counting") as report:
        assert not report.has_listener
        report(30, 30)
    assert progress.sys.stderr.getvalue() == ""


@pytest.mark.parametrize("outer", [True, False, [].append])
def test_the_outermost_computation_alone_shows_a_bar(
    monkeypatch: pytest.MonkeyPatch, outer: AnyProgress
) -> None:
    terminal = make_terminal(monkeypatch)
    with reporting(outer, "outer"), reporting(True, "inner") as report:
        assert not report.has_listener
        report(30, 30)
    assert terminal.getvalue() == ""


def test_a_display_of_stages_silences_computations_inside(monkeypatch: pytest.MonkeyPatch) -> None:
    make_terminal(monkeypatch)
    console = Console(file=io.StringIO(), force_terminal=True)
    with (
        ProgressDisplay([Stage("one", 100, 0.01)], console=console),
        reporting(True, "inner") as report,
    ):
        assert not report.has_listener
    with reporting(True, "after it") as report:
        assert report.has_listener


def test_a_function_gets_all_progress_in_place_of_a_bar_and_its_errors_end_the_work() -> None:
    seen: list[Progress] = []
    count(2, seen.append)
    assert seen == [Progress(1, 2, "counting"), Progress(2, 2, "counting")]

    def fail(_: Progress) -> None:
        raise KeyError("mine")

    for _ in range(2):  # the second finds nothing left behind by the first
        with pytest.raises(KeyError, match="mine"):
            count(2, fail)
    with reporting(seen.append, "outer"):
        count(1, seen.append)
    assert seen[-1] == Progress(1, 1, "counting"), "inside of another one, too"


def test_something_else_is_refused() -> None:
    wanted = "progress is None: must be True, False or a function of a Progress"
    with pytest.raises(TypeError, match=wanted), reporting(None, "counting"):  # type: ignore
        pass


def test_a_notebook_gets_one_output_that_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[str] = []

    class Handle:
        def update(self, what: str) -> None:
            shown.append(what)

    display = types.SimpleNamespace(
        HTML=str, display=lambda what, display_id: shown.append(what) or Handle()
    )
    monkeypatch.setitem(sys.modules, "IPython.display", display)
    monkeypatch.setattr("rich.console._is_jupyter", lambda: True)
    clock = itertools.count()
    monkeypatch.setattr(progress.time, "monotonic", lambda: float(next(clock)))
    with reporting(True, "a < b") as report:
        for step in range(5):
            report(step + 1, 5, train_loss=0.25)
    assert shown[0] == shown[-1] == ""
    assert "a &lt; b" in shown[-2]
    assert 'value="1.000"' in shown[-2]
    assert "step 5/5  loss 0.2500" in shown[-2]
