"""Failed solves: an error, a warning or nothing, as the caller asked."""

import math
import warnings
from collections.abc import Callable

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from mesaopt.errors import SolveError, SolveWarning
from mesaopt.ops.mesa.solver import Solved, Solver
from mesaopt.ops.packing import Layout
from mesaopt.ops.validation import OnFailure, traced


def failure(on_failure: OnFailure, error: type[Exception] = SolveError) -> Callable[[str], None]:
    """Return a function that raises a message or warns of it.

    Args:
        on_failure: "raise" or "warn".
        error: the error to raise.

    Returns:
        The function.

    Example:
        >>> failure("raise")("no")
        Traceback (most recent call last):
        ...
        mesaopt.errors.SolveError: no
    """

    def act(message: str) -> None:
        if on_failure == "raise":
            raise error(message)
        warnings.warn(message, SolveWarning, stacklevel=4)

    return act


def check_factors(
    failed: Bool[Tensor, "batch head chunk"], on_failure: OnFailure, layout: Layout
) -> None:
    """Report a chunk whose matrix was not positive definite to working precision."""
    if on_failure == "ignore" or traced(failed) or not bool(failed.any()):
        return
    where = _describe(failed.int(), layout)
    message = f"H + ridge is not positive definite to working precision at {where}"
    failure(on_failure)(f"{message}: raise the ridge or use float64")


def check_residuals(
    solved: Solved,
    rhs: Float[Tensor, "batch head chunk position key"],
    solver: Solver,
    on_failure: OnFailure,
    layout: Layout,
) -> None:
    """Report the chunk whose residual is the largest of those that are not accepted, or a NaN.

    Chunks with a right-hand side that is not finite are left out: in the backward pass those are upstream
    gradients, which every operation passes on.
    """
    if on_failure == "ignore" or not solved.is_measured or traced(solved.residual):
        return
    missed = ~(solved.residual <= solved.accepted)  # true for a NaN
    if not bool(missed.any()):
        return
    missed = missed & rhs.isfinite().all(-1).all(-1)
    if not bool(missed.any()):
        return
    badness = torch.where(missed, solved.residual, 0.0).nan_to_num(torch.inf)
    index = worst_chunk(badness)
    residual, accepted = solved.residual[index].item(), solved.accepted[index].item()
    where = f"{_of(residual)} at {_describe(badness, layout)}"
    failure(on_failure)(
        f"{type(solver).__name__} left a relative residual {where}: "
        f"must be {accepted:.1e} or less; {int(solved.steps[index])} steps were taken"
    )


def worst_chunk(badness: Tensor) -> tuple[int, int, int]:
    """Return the batch item, head and chunk of the largest entry.

    Args:
        badness: one number for every [batch, head, chunk].

    Returns:
        The three indices.

    Example:
        >>> worst_chunk(torch.tensor([[[0, 0, 1]]]))
        (0, 0, 2)
    """
    flat = int(badness.flatten().argmax())
    rest, chunk = divmod(flat, badness.shape[2])
    return rest // badness.shape[1], rest % badness.shape[1], chunk


def _of(residual: float) -> str:
    return f"of {residual:.1e}" if math.isfinite(residual) else "that is not finite"


def _describe(badness: Tensor, layout: Layout) -> str:
    batch, head, chunk = worst_chunk(badness)
    sequence, first = layout.locate(batch, chunk)
    name = "batch" if layout.lengths is None else "sequence"
    return f"{name} {sequence}, head {head}, positions {first} to {first + layout.chunk_size - 1}"
