"""Accuracy and speed of the operators, compared with goals and with published numbers."""

import functools
import math
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import torch

from mesaopt.bench import flash_linear_attention as fla
from mesaopt.bench import problems, solver, timing
from mesaopt.bench.problems import RIDGE, Operator, Problem, dense_mesa, mesa_with, random_problem
from mesaopt.ops import mesa, mesa_step
from mesaopt.progress import Progress, ProgressDisplay, Stage
from mesaopt.training import describe
from mesaopt.workers import num_threads

_HEADS = 4
_GOALS = ("goal", "other codes (quoted)")  # columns for developers
_FLA = "flash_linear_attention"


class _Row(Protocol):
    """A line of a table."""

    def describe(self) -> dict[str, str]: ...


@dataclass(frozen=True)
class AccuracyRow:
    """Float32 against float64: relative errors of the output and of every gradient."""

    problem: str
    against: str
    """Operator of the float64 run: itself, or its dense definition."""
    errors: dict[str, float]
    bound: float | None
    """Goal: the largest error stays below it; None without a goal."""

    @property
    def holds(self) -> bool:
        """Whether the goal is reached."""
        # False for a NaN, which a maximum could lose.
        return self.bound is None or all(error <= self.bound for error in self.errors.values())

    def describe(self) -> dict[str, str]:
        """Return the cells of the table."""
        names = ("output", "q", "k", "v", "ridge", "beta", "log_decay")
        cells = {name: f"{self.errors[name]:.0e}" if name in self.errors else "" for name in names}
        goal = "" if self.bound is None else f"{self.bound:.0e}"
        return {"problem": self.problem, **cells, "goal": goal if self.holds else f"{goal} MISSED"}


@dataclass(frozen=True)
class SpeedRow:
    """One operator forward and backward at one shape."""

    shape: str
    threads: int
    operator: str
    tokens: int
    """Of all sequences together."""
    milliseconds: float
    """Median."""
    fastest: float
    runs: int
    ratio: float
    """Fastest time over that of mesa, both timed in turn in the same process."""
    error: float
    """The worst of output and gradients, float32 against float64."""
    peak_mib: float | None
    """Of a process of its own, Python and torch included, where measured."""
    goal_milliseconds: float | None
    goal_mib: float | None
    published: str
    """Times of other codes, quoted."""

    @property
    def holds(self) -> bool:
        """Whether the fastest run and the memory are within the goals."""
        fast = self.goal_milliseconds is None or self.fastest <= self.goal_milliseconds
        return fast and (self.goal_mib is None or (self.peak_mib or 0) <= self.goal_mib)

    def describe(self) -> dict[str, str]:
        """Return the cells of the table."""
        goal = [f"{self.goal_milliseconds:g} ms"] if self.goal_milliseconds else []
        goal += [f"{self.goal_mib:,.0f} MiB"] if self.goal_mib else []
        goal += [] if self.holds else ["MISSED"]
        return {
            "operator": self.operator,
            "ms, median": f"{self.milliseconds:.1f}",
            "fastest": f"{self.fastest:.1f}",
            "tokens a second": f"{self.tokens / self.milliseconds * 1000:,.0f}",
            "times mesa": f"{self.ratio:.2f}",
            "error": f"{self.error:.0e}",
            "peak MiB": "" if self.peak_mib is None else f"{self.peak_mib:,.0f}",
            "goal": ", ".join(goal),
            "other codes (quoted)": self.published,
        }


@dataclass(frozen=True)
class GrowthRow:
    """Mesa forward and backward at one length, in a process of its own."""

    length: int
    milliseconds: float
    fastest: float
    peak_mib: float
    """Of the whole process."""
    working_mib: float
    """Without the memory that the process held before."""
    goal_mib: float | None

    def describe(self) -> dict[str, str]:
        """Return the cells of the table."""
        goal = "" if self.goal_mib is None else f"{self.goal_mib:,.0f} MiB"
        missed = self.goal_mib is not None and self.peak_mib > self.goal_mib
        return {
            "length": f"{self.length:,}",
            "ms, median": f"{self.milliseconds:.1f}",
            "fastest": f"{self.fastest:.1f}",
            "peak MiB": f"{self.peak_mib:,.0f}",
            "of it for the run": f"{self.working_mib:,.0f}",
            "goal": f"{goal} MISSED" if missed else goal,
        }


@dataclass(frozen=True)
class StepRow:
    """One token after a past of some length."""

    past: int
    microseconds: float
    """Median."""
    fastest: float
    error: float
    """Of the step's output, against float64."""

    def describe(self) -> dict[str, str]:
        """Return the cells of the table."""
        return {
            "past": f"{self.past:,}",
            "microseconds, median": f"{self.microseconds:.0f}",
            "fastest": f"{self.fastest:.0f}",
            "error": f"{self.error:.0e}",
        }


@dataclass(frozen=True)
class OperatorMeasurements:
    """All rows that `mesaopt bench ops` prints."""

    machine: dict[str, Any]
    quick: bool
    accuracy: list[AccuracyRow]
    solver: list[solver.SolverRow]
    speed: list[SpeedRow]
    growth: list[GrowthRow]
    steps: list[StepRow]
    flash_linear_attention: list[fla.ComparisonRow]
    flash_linear_attention_skipped: str
    """Why there are no rows of flash-linear-attention; empty if there are."""

    def exponents(self) -> dict[str, float]:
        """Fit how time and working memory grow: proportional to length^exponent.

        Returns:
            The exponents; 1 is linear.
        """
        lengths = [row.length for row in self.growth]
        return {
            "time": _slope(lengths, [row.fastest for row in self.growth]),
            "memory": _slope(lengths, [row.working_mib for row in self.growth]),
        }

    def to_json(self) -> dict[str, Any]:
        """Return all numbers by name."""
        return asdict(self) | {"exponents": self.exponents()}

    def tables(self, *, goals: bool = False) -> list[tuple[str, list[dict[str, str]]]]:
        """Return the titles and rows of the tables, in the order to print them.

        Args:
            goals: add what the developers of the package look at: goals, quoted times of other codes, the
                steps of the solver.

        Returns:
            Titles and rows; all rows of one table have the same columns.
        """
        rows: list[tuple[str, Sequence[_Row]]] = [
            ("accuracy: relative error of float32 against float64", self.accuracy)
        ]
        if goals:
            title = f"solver: static ridge with forgetting, rtol {solver.RTOL:g}"
            rows.append((title, self.solver))
        for shape in dict.fromkeys(row.shape for row in self.speed):
            chosen = [row for row in self.speed if row.shape == shape]
            title = f"speed: {shape}, {chosen[0].threads} threads, {chosen[0].runs} runs"
            rows.append((f"{title}, forward + backward", chosen))
        fits = ", ".join(
            f"{name} as length^{power:.2f}" for name, power in self.exponents().items()
        )
        rows.append((f"growth: mesa, one thread; {fits}", self.growth))
        rows.append(("growth: one more token", self.steps))
        if self.flash_linear_attention:
            title = "flash-linear-attention: its CPU reference, one thread"
            rows.append((title, self.flash_linear_attention))
        left_out = () if goals else _GOALS
        return [
            (title, [_without(left_out, row.describe()) for row in lines]) for title, lines in rows
        ]


def _without(columns: Sequence[str], row: dict[str, str]) -> dict[str, str]:
    return {name: cell for name, cell in row.items() if name not in columns}


@dataclass(frozen=True)
class _Setting:
    """A shape to time the family at, and the goals there."""

    batch: int
    length: int
    width: int
    threads: int
    runs: int
    memory_of: int = 0
    """How many of the family, from the first on, to run in a process of their own."""
    goal_milliseconds: float | None = None
    goal_mib: float | None = None
    published: str = ""

    @property
    def shape(self) -> tuple[int, int, int, int]:
        return self.batch, self.length, _HEADS, self.width

    @property
    def title(self) -> str:
        return f"B={self.batch}, T={self.length}, H={_HEADS}, K={self.width}"


_SPEED = (
    _Setting(1, 512, 64, threads=1, runs=15, goal_milliseconds=25.0,
             published="flash-linear-attention: 447 ms at error 8e-4; exact 24 s"),
    _Setting(16, 1024, 64, threads=2, runs=7, memory_of=9, goal_milliseconds=600.0,
             goal_mib=1.2e9 / 2**20,
             published="official JAX: 3.1 s memory-light; 4.3 s and 4.6 GB by autodiff"),
    _Setting(16, 64, 20, threads=2, runs=30, goal_milliseconds=12.0, published="official JAX: 29 ms"),
    _Setting(256, 50, 20, threads=2, runs=15),
)  # fmt: skip
_QUICK_SPEED = (
    _Setting(1, 64, 16, threads=1, runs=2, goal_milliseconds=25.0),
    _Setting(2, 64, 16, threads=1, runs=2, memory_of=1),
)
_LONGEST = 65536
_GOAL_LONGEST_MIB = 4e9 / 2**20


def measure_operators(
    *, quick: bool = False, display: Callable[[list[Stage]], ProgressDisplay] = ProgressDisplay
) -> OperatorMeasurements:
    """Measure accuracy, the solver, speed and growth on the CPU, and flash-linear-attention if installed.

    Args:
        quick: small sizes, some seconds in all, to see that everything works; otherwise some minutes.
        display: makes a progress display from the stages.

    Returns:
        All rows.

    Raises:
        RunError: a process started to measure memory ended badly.

    Example:
        >>> from rich.console import Console
        >>> silent = lambda stages: ProgressDisplay(stages, console=Console(quiet=True))
        >>> measurements = measure_operators(quick=True, display=silent)  # doctest: +SKIP
    """
    skipped = fla.why_skipped()
    parts = _parts(quick, with_fla=not skipped)
    stages = [Stage(name, len(works), seconds) for name, (works, seconds) in parts.items()]
    measured: dict[str, list[Any]] = {_FLA: []}
    with display(stages) as shown:
        for name, (works, _) in parts.items():
            shown.begin(name)
            measured[name] = []
            for number, work in enumerate(works, start=1):
                measured[name] += work()
                shown.update(Progress(number, len(works)))
    return OperatorMeasurements(
        machine=describe(), quick=quick, **measured, flash_linear_attention_skipped=skipped
    )


_Work = Callable[[], Iterable[Any]]


def _parts(quick: bool, *, with_fla: bool) -> dict[str, tuple[Sequence[_Work], float]]:
    """List the measurements of every section, and a guess of the seconds of one."""
    lengths = (64, 128) if quick else tuple(1024 * 2**power for power in range(7))
    pasts = (16, 64) if quick else (1024, 16384, _LONGEST)
    speed = _QUICK_SPEED if quick else _SPEED
    decays = [(keys, decay) for keys in ("random", "uneven") for decay in (0.996, 0.97, 0.84)]
    part = functools.partial
    parts: dict[str, tuple[Sequence[_Work], float]] = {
        "accuracy": ([part(_accuracy, *case) for case in _accuracy_cases(quick)], 1.5),
        "solver": ([part(_solver, *case, quick=quick) for case in decays], 2.0),
        "speed": ([part(_speed, setting) for setting in speed], 15.0),
        "growth": ([part(_growth, length, quick) for length in lengths], 6.0),
        "steps": ([part(_steps, past, quick) for past in pasts], 2.0),
    }
    if with_fla:
        parts[_FLA] = ([part(fla.compare, quick=quick)], 90.0)
    return parts


_AccuracyCase = tuple[str, Callable[[], Problem], Operator, Operator | None, float | None]


def _accuracy_cases(quick: bool) -> list[_AccuracyCase]:
    """List problems by name: how to draw them, the operator, that of the float64 run, and the bound."""
    lengths, widths = ((64, 100), (16,)) if quick else ((64, 512, 2048, 8192), (16, 64, 128))
    time, width = (64, 16) if quick else (1024, 64)
    draw, auto = functools.partial, mesa_with()
    dense = dense_mesa()
    cases: list[_AccuracyCase] = [
        (f"T={t}, K={k}, ridge 0.25", draw(random_problem, 1, t, _HEADS, k), auto,
         dense if t == 64 else None, 1e-5)
        for t in lengths for k in widths
    ]  # fmt: skip
    cases += [
        (f"T={t}, K={width}, ridge 1e-3",
         draw(random_problem, 1, t, _HEADS, width, ridge=1e-3), auto, None, 1e-3)
        for t in lengths
    ]  # fmt: skip
    states = (64, 8) if quick else (1024, 20)
    # States are some three times as long as unit keys: a ridge of 1/4 weighs ten times less there.
    for ridge, bound in ((1.0, 1e-5), (RIDGE, None)):
        name = "linear system, T={}, K={}, ridge {:g}".format(*states, ridge)
        make = draw(problems.linear_system_problem, 4, *states, ridge=ridge)
        cases.append((name, make, auto, None, bound))
    forgetting = draw(random_problem, 1, time, _HEADS, width, decay=0.97)
    title = f"T={time}, K={width}, mean decay 0.97"
    decayed = mesa_with(ridge_mode="decayed")
    cases.append((f"{title}, static ridge", forgetting, auto, None, 1e-5))
    cases.append((f"{title}, decayed ridge", forgetting, decayed, None, 1e-5))
    for scale in (1.0, 1e-2, 1e-4, 1e-6, 1e-8):
        for label, make in (
            ("", draw(random_problem, 1, time, _HEADS, width)),
            (title, forgetting),
        ):
            name = f"upstream x {scale:g}, {label or f'T={time}, K={width}'}"
            cases.append((name, draw(_scaled, make, scale), auto, None, 1e-5))
    return cases


def _scaled(make: Callable[[], Problem], scale: float) -> Problem:
    problem = make()
    return problem._replace(upstream=problem.upstream * scale)


def _accuracy(
    name: str,
    make: Callable[[], Problem],
    operator: Operator,
    against: Operator | None,
    bound: float | None,
) -> list[AccuracyRow]:
    errors = problems.errors(operator, make(), against)
    return [AccuracyRow(name, "dense" if against else "itself", errors, bound)]


def _solver(keys: str, decay: float, *, quick: bool) -> list[solver.SolverRow]:
    return [solver.solve(keys, decay, quick=quick)]


def _speed(setting: _Setting) -> list[SpeedRow]:
    """Time the whole family at one shape."""
    with num_threads(setting.threads):
        members = problems.family(*setting.shape)
        works: dict[str, Callable[[], object]] = {
            name: functools.partial(
                problems.differentiate, member.operator, member.make(), torch.float32
            )
            for name, member in members.items()
        }
        seconds = timing.time_in_turn(works, setting.runs)
        errors = {
            name: max(problems.errors(member.operator, member.make(), member.right).values())
            for name, member in members.items()
        }
    return [
        SpeedRow(
            shape=setting.title,
            threads=setting.threads,
            operator=name,
            tokens=setting.batch * setting.length,
            milliseconds=statistics.median(times) * 1000,
            fastest=min(times) * 1000,
            runs=setting.runs,
            ratio=min(times) / min(seconds["mesa"]),
            error=errors[name],
            peak_mib=_peak_mib(name, setting) if place < setting.memory_of else None,
            goal_milliseconds=setting.goal_milliseconds if name == "mesa" else None,
            goal_mib=setting.goal_mib if name == "mesa" else None,
            published=setting.published if name == "mesa" else "",
        )
        for place, (name, times) in enumerate(seconds.items())
    ]


def _peak_mib(name: str, setting: _Setting) -> float:
    alone = timing.run_alone(name, setting.shape, repeats=1, num_threads=setting.threads)
    return alone.peak_bytes / 2**20


def _growth(length: int, quick: bool) -> list[GrowthRow]:
    shape = (1, length, _HEADS, 16 if quick else 64)
    alone = timing.run_alone("mesa", shape, repeats=1 if quick else 3, num_threads=1)
    return [
        GrowthRow(
            length=length,
            milliseconds=alone.seconds * 1000,
            fastest=alone.fastest * 1000,
            peak_mib=alone.peak_bytes / 2**20,
            working_mib=(alone.peak_bytes - alone.idle_bytes) / 2**20,
            goal_mib=_GOAL_LONGEST_MIB if length == _LONGEST else None,
        )
    ]


@torch.no_grad()
def _steps(past: int, quick: bool) -> list[StepRow]:
    """Time single tokens, on one thread: a step is too small for more."""
    problem = random_problem(1, past + 1, _HEADS, 16 if quick else 64)
    ridge = problem.inputs["ridge"]
    pairs = [problem.inputs[name] for name in ("q", "k", "v")]
    before, token = [x[:, :-1] for x in pairs], [x[:, -1] for x in pairs]
    with num_threads(1):
        state = mesa(*before, ridge=ridge).state
        work = functools.partial(mesa_step, *token, ridge=ridge, state=state)
        seconds = timing.time_in_turn({"step": work}, 5 if quick else 200)["step"]
    exact = mesa(*(x.double() for x in pairs), ridge=ridge.double()).output[:, -1]
    error = problems.relative_error(work().output, exact)
    return [StepRow(past, statistics.median(seconds) * 1e6, min(seconds) * 1e6, error)]


def _slope(x: Sequence[float], y: Sequence[float]) -> float:
    """Fit the power of x to which y is proportional."""
    # Pages are rounded up and tiny runs may touch none that are new.
    logs = [(math.log(a), math.log(max(b, 1e-3))) for a, b in zip(x, y, strict=True)]
    return statistics.linear_regression(*zip(*logs, strict=True)).slope
