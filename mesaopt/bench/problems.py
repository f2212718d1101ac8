"""Problems to measure the operators on, and the error against float64."""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mesaopt import ops
from mesaopt.config import LinearSystemConfig
from mesaopt.ops import reference
from mesaopt.tasks import LinearSystem

Operator = Callable[..., Tensor]
RIDGE = 0.25
_DECAY = 0.996  # mean share of the past that gated operators keep


class Problem(NamedTuple):
    """One call of an operator."""

    inputs: dict[str, Tensor]
    """Arguments to differentiate for, float32; a float64 run takes the same rounded numbers."""
    upstream: Tensor
    """Gradient of the output, float32."""


def random_problem(
    batch: int,
    time: int,
    heads: int,
    width: int,
    *,
    ridge: float = RIDGE,
    decay: float | None = None,
    spectrum: float = 0.0,
) -> Problem:
    """Draw a mesa problem with queries and keys of length 1.

    Args:
        batch: sequences.
        time: positions.
        heads: heads.
        width: of keys and values.
        ridge: the same for all channels.
        decay: mean of gamma, drawn uniformly from as far below the mean as 1 is above; without it,
            nothing is forgotten and beta is 1.
        spectrum: channel i of a key has a standard deviation proportional to i^-spectrum.

    Returns:
        The problem, the same at every call.

    Example:
        >>> list(random_problem(1, 4, 2, 3, decay=0.9).inputs)
        ['q', 'k', 'v', 'ridge', 'beta', 'log_decay']
    """
    draw = torch.Generator().manual_seed(time + width)
    shape = (batch, time, heads, width)
    q, k, v, upstream = (torch.randn(shape, generator=draw) for _ in range(4))
    channels = torch.arange(1, width + 1) ** -spectrum
    q, k = (torch.nn.functional.normalize(x * channels, dim=-1) for x in (q, k))
    inputs = {"q": q, "k": k, "v": v, "ridge": torch.full((heads, width), ridge)}
    if decay is not None:
        inputs["beta"] = torch.rand(shape[:3], generator=draw)
        kept = 1 - 2 * (1 - decay) * torch.rand(shape[:3], generator=draw)
        inputs["log_decay"] = kept.log()
    return Problem(inputs, upstream)


def linear_system_problem(batch: int, time: int, width: int, *, ridge: float = 1.0) -> Problem:
    """Draw a mesa problem from the linear system task: keys lag one state behind values and queries.

    Example:
        >>> linear_system_problem(2, 8, 3).inputs["k"][:, 0].abs().max().item()
        0.0
    """
    states = LinearSystem(LinearSystemConfig(dim=width, length=time)).sample(batch, seed=0).observed
    before = torch.nn.functional.pad(states[:, :-1], (0, 0, 1, 0))
    q, k, v = (x.unsqueeze(2).contiguous() for x in (states, before, states))
    upstream = torch.randn(q.shape, generator=torch.Generator().manual_seed(time))
    return Problem({"q": q, "k": k, "v": v, "ridge": torch.full((1, width), ridge)}, upstream)


def mesa_with(**settings: Any) -> Operator:
    """Return mesa with settings such as the solver, as a function from a problem's inputs to the output.

    Example:
        >>> mesa_with(solver="exact")(**random_problem(1, 4, 2, 3).inputs).shape
        torch.Size([1, 4, 2, 3])
    """
    return lambda **inputs: ops.mesa(**inputs, **settings).output


def dense_mesa(**settings: Any) -> Operator:
    """Return the dense definition of mesa, as a function from a problem's inputs to the output.

    Example:
        >>> problem = random_problem(1, 4, 2, 3).inputs
        >>> torch.allclose(dense_mesa()(**problem), mesa_with()(**problem), atol=1e-5)
        True
    """
    return lambda **inputs: reference.mesa(**inputs, **settings)[0]


class Member(NamedTuple):
    """An operator of the family, and a problem to run it on."""

    operator: Operator
    make: Callable[[], Problem]
    """Draws the problem, the same at every call."""
    right: Operator | None = None
    """Operator that gives the right answer in float64; None for the operator itself."""


def family(batch: int, time: int, heads: int, width: int) -> dict[str, Member]:
    """List all operators, mesa first, each with problems of the same shape.

    Example:
        >>> next(iter(family(1, 4, 2, 3)))
        'mesa'
    """

    def draw(*names: str, decay: float | None = _DECAY) -> Problem:
        problem = random_problem(batch, time, heads, width, decay=decay)
        chosen = {name: problem.inputs[name] for name in names or problem.inputs}
        return problem._replace(inputs=chosen)

    def other(name: str, *gates: str) -> Member:
        make = functools.partial(draw, "q", "k", "v", *gates)
        return Member(lambda **inputs: getattr(ops, name)(**inputs).output, make)

    return {
        "mesa": Member(mesa_with(), functools.partial(draw, decay=None)),
        "mesa, decayed ridge": Member(mesa_with(ridge_mode="decayed"), draw),
        "mesa, forgetting, rtol 1e-4": Member(
            mesa_with(solver=ops.Auto(rtol=1e-4)), draw, mesa_with()
        ),
        "linear_attention": other("linear_attention"),
        "gated_linear_attention": other("gated_linear_attention", "beta", "log_decay"),
        "delta_rule": other("delta_rule", "beta"),
        "gated_delta_rule": other("gated_delta_rule", "beta", "log_decay"),
        "longhorn": other("longhorn", "beta"),
        "softmax_attention": other("softmax_attention"),
    }


def differentiate(operator: Operator, problem: Problem, dtype: torch.dtype) -> dict[str, Tensor]:
    """Run forward and backward in a precision; return the output and the gradient of every input by name.

    Example:
        >>> list(differentiate(mesa_with(), random_problem(1, 4, 2, 3), torch.float64))
        ['output', 'q', 'k', 'v', 'ridge']
    """
    inputs = {name: x.to(dtype).requires_grad_() for name, x in problem.inputs.items()}
    output = operator(**inputs)
    gradients = torch.autograd.grad(output, list(inputs.values()), problem.upstream.to(dtype))
    return {"output": output.detach(), **dict(zip(inputs, gradients, strict=True))}


def errors(
    operator: Operator, problem: Problem, against: Operator | None = None
) -> dict[str, float]:
    """Return the relative errors of float32 against float64, in output and gradients.

    The float64 run is of `against`, or of the operator itself if that is None.

    Example:
        >>> all(error < 1e-5 for error in errors(mesa_with(), random_problem(1, 4, 2, 3)).values())
        True
    """
    single = differentiate(operator, problem, torch.float32)
    double = differentiate(against or operator, problem, torch.float64)
    return {name: relative_error(single[name], exact) for name, exact in double.items()}


def relative_error(x: Tensor, exact: Tensor) -> float:
    """Return |x - exact| / |exact| as norms over all entries; infinite if only `exact` is 0.

    Example:
        >>> relative_error(torch.tensor([1.1]), torch.tensor([1.0]))  # doctest: +ELLIPSIS
        0.10000...
    """
    distance = (x.double() - exact.double()).norm().item()
    norm = exact.double().norm().item()
    return distance / norm if norm else 0.0 if distance == 0 else math.inf
