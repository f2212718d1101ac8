"""Targets of probes: the tokens of a sequence, the next one, and the preconditioned input."""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from mesaopt.analysis.tuning import InputMap, regression_of_states
from mesaopt.config import require_whole
from mesaopt.tasks import Batch
from mesaopt.theory import ApproximateInverse, Context, Pairs, preconditioned_queries

Target = Callable[[Batch, Sequence[int]], Tensor]
"""The target of a probe: from a batch and positions, counted from 1, to [batch, position, dim]."""


def past_token(steps: int, *, through: InputMap | None = None) -> Target:
    """Make a target of an earlier state, s_{t - steps}, or of a function of it, f(s_{t - steps}).

    Args:
        steps: 0, the current one, or more.
        through: f, from states to a function of them, such as the features of
            :class:`mesaopt.tasks.NonlinearSystem`.

    Returns:
        The target; it raises ValueError at positions with nothing that far back.

    Raises:
        ValueError: steps is negative.

    Example:
        >>> x = torch.arange(4.0).view(1, 4, 1)
        >>> batch = Batch(x[:, :3], x[:, 1:], x, torch.eye(1)[None])
        >>> past_token(1)(batch, [2, 3]).flatten().tolist()
        [0.0, 1.0]
    """
    require_whole("steps", steps)
    if steps < 0:
        raise ValueError(f"steps={steps}: must be 0 or greater")

    def target(batch: Batch, positions: Sequence[int]) -> Tensor:
        if min(positions) <= steps:
            raise ValueError(f"position={min(positions)}: has no token {steps} steps back")
        states = batch.observed[:, [t - 1 - steps for t in positions]]
        return states if through is None else through(states)

    return target


def current_token(batch: Batch, positions: Sequence[int]) -> Tensor:
    """Give the target s_t: the state in the token of the position itself.

    Args:
        batch: the sequences.
        positions: counted from 1.

    Returns:
        [batch, position, dim].
    """
    return batch.observed[:, places(positions)]


def next_token(batch: Batch, positions: Sequence[int]) -> Tensor:
    """Give the target s_{t+1}, which the model is trained to predict.

    Args:
        batch: the sequences.
        positions: counted from 1.

    Returns:
        [batch, position, dim].
    """
    return batch.targets[:, places(positions)]


def preconditioned_token(
    method: float | ApproximateInverse,
    *,
    inputs: InputMap | None = None,
    pairs: Pairs = "all",
) -> Target:
    """Make a target of the newest input, multiplied by an inverse Gram matrix as least squares needs it.

    (H_t + ridge I)^{-1} x_t with H_t = sum_{s < t} x_s x_s^*; times the cross matrix it is the prediction
    of least squares. Exactly, or by a few steps towards it.

    Args:
        method: the ridge, greater than 0, for the exact inverse; or an approximate one, which has its own,
            such as those of `mesaopt.theory.PUBLISHED_INVERSES`.
        inputs: from states to x: stacked observations for systems observed in part, features for nonlinear
            ones. The states if not given.
        pairs: "all", or "official" without the newest.

    Returns:
        The target, in double precision.

    Raises:
        ValueError: the ridge is not greater than 0: early Gram matrices have no inverse.

    Source: von Oswald et al., section on probing, with six approximate steps for the inverse.

    Example:
        >>> x = torch.tensor([[[3.0], [1.0], [0.0]]])
        >>> batch = Batch(x[:, :2], x[:, 1:], x, torch.eye(1)[None])
        >>> preconditioned_token(1.0)(batch, [1, 2]).flatten().tolist()  # 3 / 1, 1 / (9 + 1)
        [3.0, 0.1]
    """
    if not isinstance(method, ApproximateInverse) and not 0 < method < math.inf:
        wanted = "must be a ridge greater than 0 and finite, or an approximation"
        raise ValueError(f"method={method}: {wanted}")

    def target(batch: Batch, positions: Sequence[int]) -> Tensor:
        context = regression_of_states(batch, inputs, pairs)
        if isinstance(method, ApproximateInverse):
            return preconditioned_queries(context, method)[:, places(positions)]
        return torch.stack([_exactly(context, method, t) for t in positions], dim=1)

    return target


def places(positions: Sequence[int]) -> list[int]:
    """Turn positions, counted from 1, into indices along an axis."""
    return [t - 1 for t in positions]


def _exactly(context: Context, ridge: float, position: int) -> Tensor:
    known = context.inputs[:, :position]  # up to the newest input whose output is known
    identity = torch.eye(known.shape[-1], dtype=known.dtype, device=known.device)
    gram = known.mT @ known.conj() + ridge * identity
    return torch.linalg.solve(gram, context.queries[:, position - 1])
