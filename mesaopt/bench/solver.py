"""Iterations under forgetting with a static ridge, compared with plain conjugate gradients."""

import statistics
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from mesaopt.bench.problems import Problem, errors, mesa_with, random_problem
from mesaopt.bench.timing import time_in_turn
from mesaopt.ops import Auto, ConjugateGradient, chunks, mesa
from mesaopt.ops.mesa.solver import Solved
from mesaopt.ops.mesa.system import System

RTOL = 1e-4
GOAL_STEPS = 4  # at a mean decay of 0.97 or more


@dataclass(frozen=True)
class SolverRow:
    """Solving every position of a sequence to a relative residual of 1e-4."""

    keys: str
    decay: float
    """Mean of gamma."""
    chunk_size: int
    """Positions of a chunk, as mesa chose."""
    steps: int
    """Most steps of a chunk."""
    mean_steps: float
    plain_steps: int
    """Most steps of a chunk by conjugate gradients without a preconditioner."""
    plain_mean_steps: float
    milliseconds: float
    """Fastest solve of mesa, factorisation included; one right-hand side per position."""
    plain_milliseconds: float
    flops: int
    """Operations of the matrix products of that solve."""
    plain_flops: int
    error: float
    """Worst relative error of output and gradients against float64, solved to rounding."""

    @property
    def work(self) -> float:
        """Operations as a multiple of those of plain conjugate gradients."""
        return self.flops / self.plain_flops

    @property
    def holds(self) -> bool:
        """Whether steps are as few as aimed for, and no more work than plain conjugate gradients."""
        return (self.steps <= GOAL_STEPS or self.decay < 0.97) and self.work <= 1

    def describe(self) -> dict[str, str]:
        """Return the cells of the table."""
        goal = f"{GOAL_STEPS} steps, work 1" if self.decay >= 0.97 else "work 1"
        return {
            "keys": self.keys,
            "mean decay": f"{self.decay:g}",
            "chunk": str(self.chunk_size),
            "steps (mean)": f"{self.steps} ({self.mean_steps:.1f})",
            "plain CG": f"{self.plain_steps} ({self.plain_mean_steps:.1f})",
            "ms (plain)": f"{self.milliseconds:.1f} ({self.plain_milliseconds:.1f})",
            "work / plain": f"{self.work:.2f}",
            "error": f"{self.error:.0e}",
            "goal": goal if self.holds else f"{goal} MISSED",
        }


def solve(keys: str, decay: float, *, quick: bool) -> SolverRow:
    """Count the steps, the operations and the time of one problem.

    Args:
        keys: "random", without a preferred direction, or "uneven", channel i in proportion to 1 / i.
        decay: mean of gamma.
        quick: T = 128 and K = 16 instead of 1024 and 64.

    Returns:
        The row.

    Example:
        >>> row = solve("random", 0.99, quick=True)
        >>> row.steps < row.plain_steps
        True
    """
    time, width = (128, 16) if quick else (1024, 64)
    problem = random_problem(1, time, 4, width, decay=decay, spectrum=float(keys == "uneven"))
    with torch.no_grad():
        chunk_size = _chunk_size(problem)
        system, queries = _system(problem, chunk_size)
        ours, flops = _count(system, queries, preconditioned=True)
        plain, plain_flops = _count(system, queries, preconditioned=False)
        works: dict[str, Callable[[], object]] = {
            "mesa": lambda: _solve(system, queries, preconditioned=True),
            "plain": lambda: _solve(system, queries, preconditioned=False),
        }
        seconds = time_in_turn(works, 3 if quick else 9)
    error = errors(mesa_with(solver=Auto(rtol=RTOL)), problem, mesa_with())
    return SolverRow(
        keys=keys,
        decay=decay,
        chunk_size=chunk_size,
        steps=int(ours.steps.max()),
        mean_steps=statistics.fmean(ours.steps.flatten().tolist()),
        plain_steps=int(plain.steps.max()),
        plain_mean_steps=statistics.fmean(plain.steps.flatten().tolist()),
        milliseconds=min(seconds["mesa"]) * 1000,
        plain_milliseconds=min(seconds["plain"]) * 1000,
        flops=flops,
        plain_flops=plain_flops,
        error=max(error.values()),
    )


def _chunk_size(problem: Problem) -> int:
    """Return the size of chunks that the operator chooses for such gates."""
    settings: dict[str, Any] = {**problem.inputs, "solver": Auto(rtol=RTOL)}
    return mesa(**settings).info.chunk_size


def _system(problem: Problem, size: int) -> tuple[System, Tensor]:
    """Set up the systems that mesa solves, and their right-hand sides."""
    given = problem.inputs
    queries, keys = (chunks.split(given[name], size) for name in ("q", "k"))
    beta, gates = (chunks.split(given[n].unsqueeze(-1), size) for n in ("beta", "log_decay"))
    decay = chunks.decays(gates.squeeze(-1))
    gram, _ = chunks.chain_states(None, (keys * beta * decay.to_end).mT @ keys, decay.total)
    system = System(
        keys,
        ridge=given["ridge"][None, :, None, None],
        beta=beta,
        start=gram,
        between=decay.between,
        since_start=decay.from_start,
    )
    return system, queries


def _count(system: System, queries: Tensor, *, preconditioned: bool) -> tuple[Solved, int]:
    with FlopCounterMode(display=False) as counter:
        solved = _solve(system, queries, preconditioned=preconditioned)
    return solved, counter.get_total_flops()


def _solve(system: System, queries: Tensor, *, preconditioned: bool) -> Solved:
    solver = ConjugateGradient(rtol=RTOL, max_steps=1000)
    return solver.solve(system, solver.prepare(system) if preconditioned else None, queries)
