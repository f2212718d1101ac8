"""What the operators are measured on: random problems, and the error against float64."""

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
_DECAY = 0.996  # mean of what the gated relatives keep of the past


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
    """Take keys, values and queries from the linear system task: the state before, and the state twice.

    Args:
        batch: sequences.
        time: positions.
        width: of a state.
        ridge: the same for all channels; 1 is where the authors' training starts.

    Returns:
        The problem; the upstream gradient is random.

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
    """Make an operator of tensors alone out of :func:`mesaopt.ops.mesa` and its settings.

    Args:
        settings: arguments such as the solver.

    Returns:
        A function of the inputs of a problem that returns the output.

    Example:
        >>> mesa_with(solver="exact")(**random_problem(1, 4, 2, 3).inputs).shape
        torch.Size([1, 4, 2, 3])
    """
    return lambda **inputs: ops.mesa(**inputs, **settings).output


def dense_mesa(**settings: Any) -> Operator:
    """Do the same with the dense definition of the operator.

    Args:
        settings: ridge_mode, if any.

    Returns:
        A function of the inputs of a problem that returns the output.

    Example:
        >>> problem = random_problem(1, 4, 2, 3).inputs
        >>> torch.allclose(dense_mesa()(**problem), mesa_with()(**problem), atol=1e-5)
        True
    """
    return lambda **inputs: reference.mesa(**inputs, **settings)[0]


class Member(NamedTuple):
    """An operator of the family, and what to run it on."""

    operator: Operator
    make: Callable[[], Problem]
    """Draws the problem, the same at every call."""
    right: Operator | None = None
    """What gives the right answer in float64, if not the operator itself."""


def family(batch: int, time: int, heads: int, width: int) -> dict[str, Member]:
    """List mesa and its relatives, each with problems of the same shape.

    Args:
        batch: sequences.
        time: positions.
        heads: heads.
        width: of keys and values.

    Returns:
        The members by name, mesa first.

    Example:
        >>> next(iter(family(1, 4, 2, 3)))
        'mesa'
    """

    def draw(*names: str, decay: float | None = _DECAY) -> Problem:
        problem = random_problem(batch, time, heads, width, decay=decay)
        chosen = {name: problem.inputs[name] for name in names or problem.inputs}
        return problem._replace(inputs=chosen)

    def relative(name: str, *gates: str) -> Member:
        make = functools.partial(draw, "q", "k", "v", *gates)
        return Member(lambda **inputs: getattr(ops, name)(**inputs).output, make)

    return {
        "mesa": Member(mesa_with(), functools.partial(draw, decay=None)),
        "mesa, decayed ridge": Member(mesa_with(ridge_mode="decayed"), draw),
        "mesa, forgetting, rtol 1e-4": Member(
            mesa_with(solver=ops.Auto(rtol=1e-4)), draw, mesa_with()
        ),
        "linear_attention": relative("linear_attention"),
        "gated_linear_attention": relative("gated_linear_attention", "beta", "log_decay"),
        "delta_rule": relative("delta_rule", "beta"),
        "gated_delta_rule": relative("gated_delta_rule", "beta", "log_decay"),
        "longhorn": relative("longhorn", "beta"),
        "softmax_attention": relative("softmax_attention"),
    }


def differentiate(operator: Operator, problem: Problem, dtype: torch.dtype) -> dict[str, Tensor]:
    """Run forward and backward.

    Args:
        operator: what to run.
        problem: on what.
        dtype: precision to convert the problem to.

    Returns:
        The output, and the gradient of every input under the input's name.

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
    """Compare float32 with float64, in output and gradients.

    Args:
        operator: what to judge, run in float32.
        problem: on what.
        against: what is right, run in float64; the operator itself if not given.

    Returns:
        Relative errors |x - right| / |right|, NaN where something is not finite.

    Example:
        >>> all(error < 1e-5 for error in errors(mesa_with(), random_problem(1, 4, 2, 3)).values())
        True
    """
    found = differentiate(operator, problem, torch.float32)
    right = differentiate(against or operator, problem, torch.float64)
    return {name: relative_error(found[name], wanted) for name, wanted in right.items()}


def relative_error(found: Tensor, right: Tensor) -> float:
    """Return |found - right| / |right| as norms over all entries, computed in float64.

    Args:
        found: any shape.
        right: the same shape.

    Returns:
        The error; 0 if both are zero, infinite if only `right` is.

    Example:
        >>> relative_error(torch.tensor([1.1]), torch.tensor([1.0]))  # doctest: +ELLIPSIS
        0.10000...
    """
    distance = (found.double() - right.double()).norm().item()
    norm = right.double().norm().item()
    return distance / norm if norm else 0.0 if distance == 0 else math.inf
