"""Compare all operators with their definitions on random problems.

    python benchmarks/fuzz_operators.py --seed 0 --cases 10000

draws operators, solvers, ridge modes, types, sizes, gates, scales, condition numbers and packed sequences,
and compares values and gradients with `mesaopt/ops/reference.py` in float64. Every problem is well posed:
its condition number leaves digits in its type. Failures are printed with the number of their case, which
`--only` runs again.
"""

import argparse
import functools
import math
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mesaopt import ops
from mesaopt.ops import reference

GATES = {
    "linear_attention": (),
    "gated_linear_attention": ("log_decay", "beta"),
    "delta_rule": ("beta",),
    "gated_delta_rule": ("log_decay", "beta"),
    "longhorn": ("beta",),
    "softmax_attention": (),
    "mesa": ("log_decay", "beta"),
}
REQUIRED = ("gated_linear_attention", "gated_delta_rule")  # cannot do without log_decay
ANY_KEYS = (
    "linear_attention",
    "gated_linear_attention",
    "mesa",
)  # others are ill-posed for long keys
SOLVERS = ("auto", "exact", "cg", "recursive", "neumann", "chebyshev")
TYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
# Largest error of an output or gradient, in rounding units times the condition number.
ALLOWED = 30.0


@dataclass(frozen=True, kw_only=True)
class Case:
    """A random problem: all that is needed to draw it again."""

    seed: str
    operator: str
    solver: str
    ridge_mode: str
    dtype: torch.dtype
    lengths: tuple[int, ...]
    packed: bool
    batch: int
    heads: int
    key: int
    value: int
    chunk_size: int
    beta: str
    log_decay: str
    key_scale: float
    value_scale: float
    upstream_scale: float
    condition: float
    """Largest sum of squared keys over the ridge."""
    spread: float
    """Longest over shortest direction of the keys."""


def draw_case(seed: int, number: int) -> Case:
    """Draw one problem."""
    name = f"{seed}-{number}"
    pick = random.Random(name)
    operator = pick.choice([*GATES, *["mesa"] * len(GATES)])
    dtype, packed = pick.choice(TYPES), pick.random() < 0.3
    is_mesa, is_half = operator == "mesa", dtype.itemsize == 2
    sequences = pick.randint(1, 4) if packed else 1
    lengths = [pick.choice((0, 1, 2, 5, 9, 17)) for _ in range(sequences)]
    if not packed or not any(lengths):
        lengths = [pick.choice((1, 2, 3, 7, 16, 17, 33, 40))]
    forgets = operator in REQUIRED or (is_mesa and pick.random() < 0.6)
    mode = pick.choice(("static", "decayed"))
    gates = ["open", "weak", "medium"]
    # A ridge that has decayed by exp(-50) leaves no digits.
    gates += ["strong", "mixed"] if not is_mesa or mode == "static" else []
    gate = pick.choice(gates) if forgets else "none"
    fitting = [x for x in SOLVERS if x != "exact" or not forgets or mode == "decayed"]
    solver = pick.choice(fitting) if is_mesa else ""
    largest = {"neumann": 3.0, "chebyshev": 30.0}.get(solver, 1e8)
    digits = {torch.float64: 1e8, torch.float32: 1e4}.get(dtype, 1e2)
    if solver == "recursive" and forgets and mode == "decayed":
        digits = digits**0.5
    scales = (1.0,) if is_half else (1e-6, 1.0, 1.0, 1e4)
    # Chebyshev's start, the right-hand side, must not be much larger than the solution.
    any_keys = operator in ANY_KEYS and solver != "chebyshev"
    return Case(
        seed=name,
        operator=operator,
        solver=solver,
        ridge_mode=mode,
        dtype=dtype,
        lengths=tuple(lengths),
        packed=packed,
        batch=1 if packed else pick.randint(1, 2),
        heads=pick.randint(1, 3),
        key=pick.choice((1, 2, 3, 5, 8, 17)),
        value=pick.choice((1, 2, 4, 7)),
        chunk_size=pick.choice((1, 2, 5, 8, 16, 64)),
        beta=pick.choice(("none", "uniform", "zeros", "ends")) if GATES[operator] else "none",
        log_decay=gate,
        key_scale=pick.choice(scales) if any_keys else 1.0,
        value_scale=pick.choice(scales),
        upstream_scale=pick.choice(scales),
        condition=10 ** pick.uniform(0, math.log10(min(largest, digits))),
        spread=10 ** pick.uniform(0, 3),
    )


def draw_inputs(case: Case) -> tuple[dict[str, Tensor], Tensor]:
    """Draw the arguments that gradients flow to, and the gradient of the output."""
    rng = torch.Generator().manual_seed(random.Random(case.seed).getrandbits(60))
    shape = (case.batch, sum(case.lengths), case.heads)

    def normal(size: int) -> Tensor:
        return torch.randn(*shape, size, generator=rng, dtype=torch.float64)

    def uniform() -> Tensor:
        return torch.rand(shape, generator=rng, dtype=torch.float64)

    directions = torch.logspace(0, -math.log10(case.spread), case.key, dtype=torch.float64)
    q, k = normal(case.key), torch.nn.functional.normalize(normal(case.key) * directions, dim=-1)
    inputs = {"q": q, "k": case.key_scale * k, "v": case.value_scale * normal(case.value)}
    beta = {
        "uniform": uniform,
        "zeros": lambda: torch.zeros(shape, dtype=torch.float64),
        "ends": lambda: uniform().round(),
    }
    log_decay = {
        "open": lambda: torch.zeros(shape, dtype=torch.float64),
        "weak": lambda: -0.01 * uniform(),
        "medium": lambda: -0.2 * uniform(),
        "strong": lambda: torch.full(shape, -50.0, dtype=torch.float64),
        "mixed": lambda: torch.where(uniform() < 0.2, -50.0, -1e-3 * uniform()),
    }
    if case.beta != "none":
        inputs["beta"] = beta[case.beta]()
    if case.log_decay != "none":
        inputs["log_decay"] = log_decay[case.log_decay]()
    inputs = {name: x.to(case.dtype) for name, x in inputs.items()}
    if case.operator == "mesa":
        largest = sum(case.lengths) * case.key_scale**2  # of a sum of squared keys
        ridge = 1 + torch.rand(case.heads, case.key, generator=rng, dtype=torch.float64)
        kind = torch.promote_types(case.dtype, torch.float32)
        inputs["ridge"] = (ridge * largest / case.condition).to(kind)
    upstream = case.upstream_scale * normal(case.value)
    return inputs, upstream.to(case.dtype)


def _solver(case: Case) -> ops.SolverLike:
    # Steps until what is left of a start that is 1e10 times too large is below the rounding of float64.
    if case.solver == "neumann":
        return ops.Neumann(steps=math.ceil(60 * (1 + case.condition)))
    if case.solver == "chebyshev":
        return ops.Chebyshev(steps=math.ceil(30 * (1 + case.condition) ** 0.5))
    return case.solver  # type: ignore[return-value]


def _run(case: Case, **inputs: Tensor) -> Tensor:
    extra: dict[str, Any] = {}
    if case.packed:
        extra["cu_seqlens"] = torch.tensor([0, *case.lengths]).cumsum(0)
    if case.operator != "softmax_attention":
        extra["chunk_size"] = case.chunk_size
    if case.operator == "mesa":
        extra |= {"solver": _solver(case), "ridge_mode": case.ridge_mode}
    return getattr(ops, case.operator)(**inputs, **extra).output


def _define(case: Case, **inputs: Tensor) -> Tensor:
    """Run the definition on every sequence alone."""
    function = getattr(reference, case.operator)
    if case.operator == "mesa":
        function = functools.partial(function, ridge_mode=case.ridge_mode)
    elif GATES[case.operator] and "beta" not in inputs:
        inputs["beta"] = torch.ones_like(inputs["k"][..., 0])
    shared = {name: inputs.pop(name) for name in ("ridge",) if name in inputs}
    outputs, begin = [], 0
    for length in case.lengths:
        part = {name: x[:, begin : begin + length] for name, x in inputs.items()}
        begin += length
        if length:
            result = function(**part, **shared)
            outputs.append(result[0] if case.operator == "mesa" else result)
    return torch.cat(outputs, dim=1)


def _differentiate(
    function: Callable[..., Tensor], inputs: dict[str, Tensor], upstream: Tensor
) -> dict[str, Tensor]:
    leaves = {name: x.clone().requires_grad_() for name, x in inputs.items()}
    output = function(**leaves)
    slopes = torch.autograd.grad(output, list(leaves.values()), upstream, allow_unused=True)
    named = zip((f"d{name}" for name in leaves), slopes, strict=True)
    return {"output": output.detach()} | {name: x for name, x in named if x is not None}


def _condition(case: Case, inputs: dict[str, Tensor]) -> float:
    """Bound the condition number of a case's systems."""
    if case.operator != "mesa":
        return 1.0
    if case.ridge_mode == "static" or "log_decay" not in inputs:
        return 1 + case.condition
    bound = (1 + case.condition) * inputs["log_decay"].sum(1).amin().neg().exp().item()
    # Recursive least squares that forget enlarge the rounding of earlier steps as well.
    return bound**2 if case.solver == "recursive" else bound


def errors(case: Case) -> dict[str, float]:
    """Return the errors of the output and of every gradient, over what rounding may explain."""
    inputs, upstream = draw_inputs(case)
    ours = _differentiate(functools.partial(_run, case), inputs, upstream)
    exact = {name: x.double() for name, x in inputs.items()}
    theirs = _differentiate(functools.partial(_define, case), exact, upstream.double())
    working = torch.finfo(torch.promote_types(case.dtype, torch.float32)).eps
    posed = _condition(case, exact)
    allowed = ALLOWED * working * posed + 2 * torch.finfo(case.dtype).eps
    turned = upstream.double().norm() * theirs["output"].norm()
    if ours.keys() != theirs.keys():
        return {"gradients": math.inf}
    found = {}
    for name, right in theirs.items():
        # A gradient is small beside a change of the output as large as that of the input where terms
        # cancel: its error is compared with such a change.
        x = None if name == "output" else exact[name[1:]].norm()
        usual = 0.0 if x is None or x == 0 else (turned / x).item()
        usual = turned.item() if name in ("dbeta", "dlog_decay") else usual
        scale = right.norm().item() + usual
        distance = (ours[name].double() - right).norm().item()
        found[name] = distance / (allowed * scale) if distance else 0.0
    return found


def failure(case: Case) -> str | None:
    """Check one problem: None, or one line that tells what is wrong."""
    try:
        found = errors(case)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    wrong = {name: f"{x:.3g}" for name, x in found.items() if not x <= 1}  # a NaN is wrong
    return f"errors over those allowed: {wrong}" if wrong else None


def main() -> int:
    """Run the cases, print the failures and return 1 if there are any."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--cases", type=int, default=1000)
    parser.add_argument("--only", type=int, help="number of the one case to run")
    asked = parser.parse_args()
    numbers = range(asked.cases) if asked.only is None else [asked.only]
    failures = 0
    for number in numbers:
        case = draw_case(asked.seed, number)
        message = failure(case)
        if message is not None:
            failures += 1
            print(f"case {number}: {message}\n    {case}", flush=True)
    print(f"{failures} of {len(numbers)} cases failed")
    return 1 if failures else 0


if __name__ == "__main__":
    raise SystemExit(main())
