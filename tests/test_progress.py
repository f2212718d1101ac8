import io

import pytest
from rich.console import Console

from mesaopt import progress
from mesaopt.progress import ProgressDisplay, Stage


def test_plain_lines_when_not_in_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(0, 10_000, 20))
    monkeypatch.setattr(progress.time, "monotonic", lambda: float(next(clock)))
    out = io.StringIO()
    with ProgressDisplay(
        [Stage("one", 100, 1.0), Stage("two", 100, 1.0)], console=Console(file=out)
    ) as display:
        display.begin("one")
        display.update(50, 0.5)
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
        display.update(50, 0.25)
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
