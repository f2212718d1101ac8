"""Random problems of all operators, drawn by benchmarks/fuzz_operators.py."""

import importlib.util
import sys
from pathlib import Path

import pytest

PATH = Path(__file__).parents[2] / "benchmarks" / "fuzz_operators.py"
spec = importlib.util.spec_from_file_location("fuzz_operators", PATH)
assert spec is not None
assert spec.loader is not None
fuzz = importlib.util.module_from_spec(spec)
sys.modules[spec.name] = fuzz  # dataclasses look their module up
spec.loader.exec_module(fuzz)

SEED, CASES, PARTS = 12, 320, 8


@pytest.mark.parametrize("part", range(PARTS))
def test_operators_equal_their_definitions(part: int) -> None:
    cases = {n: fuzz.draw_case(SEED, n) for n in range(part, CASES, PARTS)}
    failures = {n: fuzz.failure(case) for n, case in cases.items()}
    assert not {n: message for n, message in failures.items() if message}


def test_cases_cover_every_kind() -> None:
    cases = [fuzz.draw_case(SEED, n) for n in range(CASES)]
    assert {case.operator for case in cases} == set(fuzz.GATES)
    assert {case.dtype for case in cases} == set(fuzz.TYPES)
    of_mesa = {(c.solver, c.ridge_mode, c.log_decay != "none") for c in cases if c.solver}
    # Exact solves no static ridge under forgetting.
    assert len(of_mesa) == len(fuzz.SOLVERS) * 4 - 1


def test_a_wrong_operator_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    right = fuzz.ops.delta_rule

    def wrong(*, beta=None, **inputs):
        return right(beta=None if beta is None else beta * (1 - 1e-4), **inputs)

    monkeypatch.setattr(fuzz.ops, "delta_rule", wrong)
    cases = [fuzz.draw_case(SEED, n) for n in range(CASES)]
    gated = [
        case
        for case in cases
        if case.operator == "delta_rule" and case.beta == "uniform" and case.dtype.itemsize > 2
    ]
    assert gated
    assert all(fuzz.failure(case) for case in gated)
