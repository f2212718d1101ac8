"""Predictors that learn nothing beforehand: gradient descent and least squares on the context.

All of them see the pairs (s_{s-1}, s_s) up to the newest state s_t and predict s_{t+1} = Phi_t s_t, at
every position at once. States are real or complex; * is the conjugate transpose.
"""

from typing import Literal

import torch
from jaxtyping import Inexact
from torch import Tensor

Pairs = Literal["all", "official"]
Objective = Literal["sum", "mean"]


def context_statistics(
    states: Inexact[Tensor, "batch time dim"],
) -> tuple[Inexact[Tensor, "batch time dim dim"], Inexact[Tensor, "batch time dim dim"]]:
    """Sum up the pairs known at every position.

    H_t = sum_{s < t} s_s s_s^* and G_t = sum_{s < t} s_{s+1} s_s^*, for states s_1 ... s_T.

    Args:
        states: [batch, time, dim].

    Returns:
        The Gram matrices H and the cross matrices G, [batch, time, dim, dim] each; zero at position 1,
        where no pair is known yet.

    Example:
        >>> gram, cross = context_statistics(torch.tensor([[[1.0], [2.0], [3.0]]]))
        >>> gram.flatten().tolist(), cross.flatten().tolist()
        ([0.0, 1.0, 5.0], [0.0, 2.0, 8.0])
    """
    inputs = torch.nn.functional.pad(states[:, :-1], (0, 0, 1, 0))  # s_{t-1}, with s_0 = 0
    gram = torch.einsum("btd,bte->btde", inputs, inputs.conj()).cumsum(1)
    cross = torch.einsum("btd,bte->btde", states, inputs.conj()).cumsum(1)
    return gram, cross


def gradient_descent(
    states: Inexact[Tensor, "batch time dim"],
    *,
    step_size: float,
    num_steps: int = 1,
    objective: Objective = "sum",
    initial_map: Inexact[Tensor, "dim dim"] | None = None,
) -> Inexact[Tensor, "batch time dim"]:
    """Predict with a linear map after steps of gradient descent on all pairs of the context.

    Phi <- Phi - step_size * (Phi H_t - G_t), from Phi_0, `num_steps` times; prediction Phi s_t. It
    descends L_t(Phi) = 1/2 sum_{s < t} |s_{s+1} - Phi s_s|^2 or, as objective "mean", L_t / (t - 1), which
    divides H_t and G_t by the number of pairs.

    Args:
        states: s_1 ... s_T [batch, time, dim].
        step_size: > 0.
        num_steps: 1 or more.
        objective: "sum" or "mean" over the pairs.
        initial_map: Phi_0 [dim, dim]; zero if not given.

    Returns:
        Predictions of s_2 ... s_{T+1}, [batch, time, dim].

    Raises:
        ValueError: step_size or num_steps is out of range, or objective is not one of the two.

    Source: von Oswald et al., Proposition 1, sum over the pairs; Zheng et al., Corollary 4.1, whose step of
    a b / (t - 1) on the sum is one of a b on the mean.

    Example:
        >>> states = torch.tensor([[[1.0], [2.0]]])
        >>> gradient_descent(states, step_size=0.5).flatten().tolist()  # 0.5 * (2 * 1) * 2
        [0.0, 2.0]
    """
    if step_size <= 0 or num_steps < 1:
        given = f"step_size={step_size}, num_steps={num_steps}"
        raise ValueError(f"{given}: must be greater than 0, and 1 or greater")
    if objective not in ("sum", "mean"):
        raise ValueError(f"objective={objective!r}: must be 'sum' or 'mean'")
    gram, cross = context_statistics(states)
    if objective == "mean":
        pairs = torch.arange(states.shape[1], device=states.device).clamp(min=1)[:, None, None]
        gram, cross = gram / pairs, cross / pairs
    zero = torch.zeros_like(gram[0, 0])
    phi = (zero if initial_map is None else initial_map).expand_as(gram)
    for _ in range(num_steps):
        phi = phi - step_size * (phi @ gram - cross)
    return torch.einsum("btde,bte->btd", phi, states)


def ridge_least_squares(
    states: Inexact[Tensor, "batch time dim"], *, ridge: float = 1e-3, pairs: Pairs = "all"
) -> Inexact[Tensor, "batch time dim"]:
    """Predict with the ridge regression of the context: Phi_t = G_t (H_t + ridge I)^{-1}.

    Args:
        states: s_1 ... s_T [batch, time, dim].
        ridge: added to the diagonal of the Gram matrix, > 0.
        pairs: "all" pairs up to (s_{t-1}, s_t); or "official", which leaves the newest pair out, as the
            authors' code does by an off-by-one: its mean loss on the fully observed task is 0.211
            where all pairs give 0.186.

    Returns:
        Predictions of s_2 ... s_{T+1}, [batch, time, dim], solved in double precision whatever the input.

    Raises:
        ValueError: ridge is not greater than 0, or pairs is not one of the two.

    Source: von Oswald et al., equations 4 to 6 with ridge = 1 / lambda.

    Example:
        >>> states = torch.tensor([[[1.0], [2.0], [4.0]]])
        >>> ridge_least_squares(states, ridge=1e-9).flatten().round(decimals=3).tolist()
        [0.0, 4.0, 8.0]
        >>> ridge_least_squares(states, ridge=1e-9, pairs="official").flatten()[1].item()
        0.0
    """
    if ridge <= 0:
        raise ValueError(f"ridge={ridge}: must be greater than 0")
    if pairs not in ("all", "official"):
        raise ValueError(f"pairs={pairs!r}: must be 'all' or 'official'")
    states64 = states.to(torch.promote_types(states.dtype, torch.float64))
    gram, cross = context_statistics(states64)
    if pairs == "official":  # what was known one position earlier
        gram, cross = (
            torch.nn.functional.pad(x[:, :-1], (0, 0, 0, 0, 1, 0)) for x in (gram, cross)
        )
    gram.diagonal(dim1=-2, dim2=-1).add_(ridge)
    solved = torch.cholesky_solve(states64.unsqueeze(-1), torch.linalg.cholesky(gram))
    return (cross @ solved).squeeze(-1).to(states.dtype)
