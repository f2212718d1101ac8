import json
import math
import sys
from pathlib import Path

import pytest
import torch
from rich.console import Console

from mesaopt.bench import flash_linear_attention as fla
from mesaopt.bench import solver
from mesaopt.bench.ops import OperatorMeasurements, measure_operators
from mesaopt.bench.problems import errors, mesa_with, random_problem, relative_error
from mesaopt.bench.timing import run_alone
from mesaopt.errors import RunError
from mesaopt.progress import ProgressDisplay, Stage

FAMILY = {"mesa", "linear_attention", "gated_linear_attention", "delta_rule"}
FAMILY |= {"gated_delta_rule", "longhorn", "softmax_attention"}


def silent(stages: list[Stage]) -> ProgressDisplay:
    return ProgressDisplay(stages, console=Console(quiet=True))


@pytest.fixture(scope="module")
def measured() -> OperatorMeasurements:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fla, "why_skipped", lambda: "not wanted in a test")
        return measure_operators(quick=True, display=silent)


def test_every_section_has_rows_and_tables_and_json(measured: OperatorMeasurements) -> None:
    tables = measured.tables(goals=True)
    titles = [title.split(":")[0] for title, rows in tables if rows]
    assert titles == ["accuracy", "solver", "speed", "speed", "growth", "growth"]
    for _, rows in tables:
        assert len({tuple(row) for row in rows}) == 1, "rows of one table have the same columns"
    given = json.loads(json.dumps(measured.to_json()))
    assert {"accuracy", "solver", "speed", "growth", "steps", "flash_linear_attention"} < set(given)
    assert set(given["exponents"]) == {"time", "memory"}
    assert given["machine"]["num_threads"] >= 1
    assert given["flash_linear_attention"] == []
    assert given["flash_linear_attention_skipped"] == "not wanted in a test"


def test_goals_are_shown_on_request_only(measured: OperatorMeasurements) -> None:
    columns = {name for _, rows in measured.tables() for name in rows[0]}
    assert {"ms, median", "tokens a second", "peak MiB", "error"} <= columns
    assert not columns & {"goal", "other codes (quoted)"}
    with_goals = {name for _, rows in measured.tables(goals=True) for name in rows[0]}
    assert {"goal", "other codes (quoted)"} <= with_goals


def test_errors_are_small_at_small_sizes(measured: OperatorMeasurements) -> None:
    assert all(row.holds for row in measured.accuracy)
    # The bounds are the goals: a condition number of 64 / 0.25 = 256 times a rounding unit of 6e-8 is
    # 1.5e-5 at worst, and norms over all positions are far below the worst; 1e-3 allows 256 times that.
    assert {row.bound for row in measured.accuracy} == {1e-5, 1e-3, None}
    for row in measured.accuracy:
        assert {"output", "q", "k", "v", "ridge"} <= set(row.errors)
        assert max(row.errors.values()) < 1e-4, row.problem
    gated = [row for row in measured.accuracy if "decay" in row.problem]
    assert all({"beta", "log_decay"} < set(row.errors) for row in gated)


def test_the_error_is_the_same_at_every_scale_of_the_upstream_gradient(
    measured: OperatorMeasurements,
) -> None:
    scaled = [row for row in measured.accuracy if row.problem.startswith("upstream")]
    for forgets in (False, True):
        rows = [row for row in scaled if ("decay" in row.problem) == forgets]
        assert len(rows) == 5
        worst = [max(row.errors.values()) for row in rows]
        # Scaling by a number that is no power of two rounds anew, which moves an error by its own size.
        assert max(worst) < 3 * min(worst)


def test_few_steps_where_the_past_is_kept_and_never_more_than_plain(
    measured: OperatorMeasurements,
) -> None:
    assert len(measured.solver) == 6
    for row in measured.solver:
        assert row.work > 0
        assert row.holds == ("MISSED" not in row.describe()["goal"])
        assert row.steps <= (solver.GOAL_STEPS if row.decay >= 0.97 else row.plain_steps)
        # A residual of 1e-4 is an error of at most the condition number, some 100, times that.
        assert row.error < 1e-2


def test_the_whole_family_is_timed(measured: OperatorMeasurements) -> None:
    for shape in {row.shape for row in measured.speed}:
        rows = {row.operator: row for row in measured.speed if row.shape == shape}
        assert set(rows) > FAMILY
        assert rows["mesa"].ratio == 1
        for name, row in rows.items():
            assert 0 < row.fastest <= row.milliseconds
            # rtol 1e-4 asks for no better; all others round only.
            assert row.error < (1e-2 if "rtol" in name else 1e-5), name
    assert any(row.peak_mib for row in measured.speed)
    goals = [row.goal_milliseconds for row in measured.speed if row.operator == "mesa"]
    assert 25.0 in goals


def test_growth_and_steps_hang_together(measured: OperatorMeasurements) -> None:
    for row in measured.growth:
        assert 0 < row.working_mib < row.peak_mib
        assert row.fastest <= row.milliseconds
    assert all(math.isfinite(power) for power in measured.exponents().values())
    # One float32 prediction: some roundings times the condition number.
    assert all(row.error < 1e-5 for row in measured.steps)


def test_relative_errors() -> None:
    one = torch.ones(3)
    assert relative_error(2 * one, one) == 1
    assert relative_error(0 * one, 0 * one) == 0
    assert relative_error(one, 0 * one) == math.inf
    assert math.isnan(relative_error(one * math.nan, one))


def test_a_wrong_operator_has_an_error() -> None:
    problem = random_problem(1, 8, 1, 4)
    wrong = errors(lambda **x: 1.01 * mesa_with()(**x), problem, mesa_with())
    assert wrong["output"] == pytest.approx(0.01, rel=1e-3)


def test_a_process_that_fails_says_why() -> None:
    with pytest.raises(RunError, match=r"nothing at .* KeyError: 'nothing'"):
        run_alone("nothing", (1, 8, 1, 4), repeats=1, num_threads=1)


# flash-linear-attention


def test_it_is_skipped_where_it_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    assert fla.why_skipped() == "flash-linear-attention and fla-core are not installed"


def install(folder: Path, monkeypatch: pytest.MonkeyPatch, code: str) -> None:
    """Put a package in the place of flash-linear-attention."""
    package = folder / "fla" / "ops" / "mesa_net"
    package.mkdir(parents=True)
    for parent in (package, package.parent, package.parent.parent):
        (parent / "__init__.py").touch()
    (package / "naive.py").write_text(code)
    for name in [name for name in sys.modules if name.split(".")[0] == "fla"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.syspath_prepend(folder)


@pytest.fixture
def _no_traces(monkeypatch: pytest.MonkeyPatch):
    yield
    for name in [name for name in sys.modules if name.split(".")[0] == "fla"]:
        del sys.modules[name]


@pytest.mark.usefixtures("_no_traces")
def test_a_failed_import_is_explained_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(tmp_path, monkeypatch, "raise ValueError('no driver\\nand more')")
    reason = "importing fla.ops.mesa_net.naive failed: ValueError: no driver"
    assert fla.why_skipped() == reason


@pytest.mark.usefixtures("_no_traces")
def test_it_is_timed_in_turn_with_mesa(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = """
from mesaopt.ops import mesa

def naive_mesa_net_CG(q, k, v, g, lamb, beta, chunk_size, max_CG_iteration):
    found = mesa(q, k, v, ridge=lamb, beta=beta, log_decay=g, solver="recursive")
    return 1.001 * found.output, None, None
"""
    install(tmp_path, monkeypatch, code)
    assert fla.why_skipped() == ""
    rows = fla.compare(quick=True)
    assert [row.code.split(",")[0] for row in rows] == ["mesa", "fla-core naive CG"] * 2
    for row in rows[1::2]:
        assert row.output_error == pytest.approx(1e-3, rel=0.01)
        assert row.gradient_error == pytest.approx(1e-3, rel=0.01)
    assert rows[0].output_error < 1e-5
    assert set(rows[0].describe()) == set(rows[1].describe())
