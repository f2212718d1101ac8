"""The CPU reference of flash-linear-attention's mesa layer, timed in turn with ours where installed.

flash-linear-attention computes on GPUs; for the CPU it has reference functions only. They come with two
packages, `flash-linear-attention` and `fla-core`, neither of which we depend on.
"""

import functools
import importlib.util
import statistics
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from mesaopt.bench.problems import (
    Operator,
    Problem,
    differentiate,
    mesa_with,
    random_problem,
    relative_error,
)
from mesaopt.bench.timing import time_in_turn
from mesaopt.ops import Auto
from mesaopt.workers import num_threads

_MODULE = "fla.ops.mesa_net.naive"
_STEPS = 30  # its default, and that of the paper


@dataclass(frozen=True)
class ComparisonRow:
    """Time and error of one code on one problem, one thread."""

    problem: str
    code: str
    milliseconds: float
    """Median, forward plus backward."""
    fastest: float
    output_error: float
    """Relative, against the float64 run of mesa."""
    gradient_error: float
    """The largest among the inputs' gradients."""

    def describe(self) -> dict[str, str]:
        """Return the cells of the table."""
        return {
            "code": self.code,
            "problem": self.problem,
            "ms, median": f"{self.milliseconds:,.1f}",
            "fastest": f"{self.fastest:,.1f}",
            "error, output": f"{self.output_error:.0e}",
            "worst gradient": f"{self.gradient_error:.0e}",
        }


def why_skipped() -> str:
    """Return why flash-linear-attention cannot run, in one line; empty if it can.

    Example:
        >>> isinstance(why_skipped(), str)
        True
    """
    if importlib.util.find_spec("fla") is None:
        return "flash-linear-attention and fla-core are not installed"
    try:
        _reference()
    except Exception as error:  # an import of foreign code may raise anything
        reason = (str(error).strip().splitlines() or [""])[0]
        return f"importing {_MODULE} failed: {type(error).__name__}: {reason}"
    return ""


def compare(*, quick: bool) -> list[ComparisonRow]:
    """Time the CPU reference of flash-linear-attention and mesa in turn, on the same problems.

    With `quick`, at a small size and without the exact path, whose backward pass takes half a minute.
    """
    size = (1, 64, 1, 16) if quick else (1, 512, 4, 64)
    title = "B={}, T={}, H={}, K={}".format(*size)
    with num_threads(1):
        rows = _rows(f"{title}, nothing forgotten", random_problem(*size), {}, quick)
        forgetting = random_problem(*size, decay=0.996)
        return rows + _rows(
            f"{title}, mean decay 0.996", forgetting, {"solver": Auto(rtol=1e-4)}, quick
        )


def _rows(
    title: str, problem: Problem, settings: dict[str, Any], quick: bool
) -> list[ComparisonRow]:
    reference = _reference()
    codes: dict[str, Operator] = {
        "mesa, rtol 1e-4" if settings else "mesa": mesa_with(**settings),
        f"fla-core naive CG, {_STEPS} steps": _adapt(
            reference.naive_mesa_net_CG, chunk_size=64, max_CG_iteration=_STEPS
        ),
    }
    exact = differentiate(mesa_with(), problem, torch.float64)
    results = {name: differentiate(code, problem, torch.float32) for name, code in codes.items()}
    works: dict[str, Callable[[], object]] = {
        name: functools.partial(differentiate, code, problem, torch.float32)
        for name, code in codes.items()
    }
    seconds = time_in_turn(works, 2 if quick else 7)
    if not quick:
        direct, name = _adapt(reference.naive_mesa_net_exact), "fla-core naive exact, one run"
        started = time.perf_counter()
        results[name] = differentiate(direct, problem, torch.float32)
        seconds[name] = [time.perf_counter() - started]
    return [_row(title, name, seconds[name], results[name], exact) for name in seconds]


def _row(
    title: str, name: str, seconds: list[float], result: dict[str, Tensor], exact: dict[str, Tensor]
) -> ComparisonRow:
    errors = {key: relative_error(result[key], wanted) for key, wanted in exact.items()}
    return ComparisonRow(
        problem=title,
        code=name,
        milliseconds=statistics.median(seconds) * 1000,
        fastest=min(seconds) * 1000,
        output_error=errors.pop("output"),
        gradient_error=max(errors.values()),
    )


def _adapt(function: Callable[..., Any], **settings: Any) -> Operator:
    """Call a function of flash-linear-attention with our arguments."""

    def operator(
        q: Tensor,
        k: Tensor,
        v: Tensor,
        ridge: Tensor,
        beta: Tensor | None = None,
        log_decay: Tensor | None = None,
    ) -> Tensor:
        log_decay = torch.zeros_like(q[..., 0]) if log_decay is None else log_decay
        beta = torch.ones_like(q[..., 0]) if beta is None else beta
        return function(q=q, k=k, v=v, g=log_decay, lamb=ridge, beta=beta, **settings)[0]

    return operator


def _reference() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a missing GPU
        return import_module(_MODULE)
