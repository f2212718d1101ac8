"""Closed-form baselines: gradient descent, least squares and kernel regression on the context.

All of them use the pairs (x_{s-1}, s_s) up to the newest state s_t, and predict s_{t+1} at every position
at once. The regression inputs x are the states themselves unless `inputs` says otherwise: several states
side by side (:func:`mesaopt.tasks.tokens_from_states`) where a system is observed in part, or any features.
States are real or complex; * is the conjugate transpose. Prediction t depends on s_1 ... s_t only.
"""

import math
from collections.abc import Sequence
from typing import Literal

import torch
from jaxtyping import Float, Inexact
from torch import Tensor
from torch.nn.functional import pad

from mesaopt.config import require_count
from mesaopt.ops import mesa, softmax_attention
from mesaopt.theory.context import Context, Pairs, check_initial_map, context_of
from mesaopt.theory.inverses import ApproximateInverse

Objective = Literal["sum", "mean"]
"""Whether squared errors are summed over the pairs or averaged."""


def gradient_descent(
    states: Inexact[Tensor, "batch time dim"],
    *,
    step_size: float,
    num_steps: int = 1,
    objective: Objective = "sum",
    initial_map: Inexact[Tensor, "dim input"] | None = None,
    inputs: Inexact[Tensor, "batch time input"] | None = None,
    pairs: Pairs = "all",
) -> Inexact[Tensor, "batch time dim"]:
    """Predict with a linear map after steps of gradient descent on all pairs of the context.

    Phi <- Phi - step_size * (Phi H_t - G_t), from Phi_0, `num_steps` times; prediction Phi x_t. It
    descends L_t(Phi) = 1/2 sum_{s < t} |s_{s+1} - Phi x_s|^2 or, as objective "mean", L_t / (t - 1), which
    divides H_t and G_t by the number of pairs.

    Args:
        states: s_1 ... s_T [batch, time, dim].
        step_size: > 0.
        num_steps: 1 or more.
        objective: "sum" or "mean" over the pairs.
        initial_map: Phi_0 [dim, input]; zero if not given.
        inputs: x_1 ... x_T [batch, time, input]; the states if not given.
        pairs: "all"; or "official", without the newest pair. The authors' gradient descent uses all.

    Returns:
        Predictions of s_2 ... s_{T+1}, [batch, time, dim].

    Raises:
        ValueError: step_size or num_steps is out of range, objective is none of its choices, initial_map
            does not fit the states, or see :func:`mesaopt.theory.context_of`.

    Source: von Oswald et al., Proposition 1, sum over the pairs; Zheng et al., Corollary 4.1, whose step of
    a b / (t - 1) on the sum is one of a b on the mean.

    Example:
        >>> states = torch.tensor([[[1.0], [2.0]]])
        >>> gradient_descent(states, step_size=0.5).flatten().tolist()  # 0.5 * (2 * 1) * 2
        [0.0, 2.0]
    """
    if not 0 < step_size < math.inf:
        raise ValueError(f"step_size={step_size}: must be greater than 0 and finite")
    require_count("num_steps", num_steps, smallest=1)
    if objective not in ("sum", "mean"):
        raise ValueError(f"objective={objective!r}: must be 'sum' or 'mean'")
    context = context_of(states, inputs=inputs, pairs=pairs)
    check_initial_map(initial_map, states.shape[-1], context.queries.shape[-1])
    if initial_map is not None and initial_map.dtype != states.dtype:
        raise ValueError(
            f"initial_map has {initial_map.dtype}: must be {states.dtype}, as the states"
        )
    step: float | Tensor = step_size
    if objective == "mean":
        step = step_size / context.num_pairs.clamp(min=1).to(states.real.dtype)
    # Phi x = Phi_0 (I - step H)^n x + G sum_{k < n} step (I - step H)^k x: vectors only.
    rest = total = context.queries
    for _ in range(num_steps - 1):
        rest = rest - step * context.gram_product(rest)
        total = total + rest
    prediction = context.cross_product(step * total)
    if initial_map is None:
        return prediction
    return prediction + (rest - step * context.gram_product(rest)) @ initial_map.mT


def polynomial_prediction(
    states: Inexact[Tensor, "batch time dim"],
    coefficients: Sequence[float],
    *,
    inputs: Inexact[Tensor, "batch time input"] | None = None,
    pairs: Pairs = "all",
) -> Inexact[Tensor, "batch time dim"]:
    """Predict by one gradient step from an input preconditioned by a polynomial in the Gram matrix.

    Prediction G_t p(H_t) x_t with p(H) = c_0 + c_1 H + ... + c_K H^K, the same at every position. K + 1
    layers of linear attention with the weights of :func:`mesaopt.theory.proposition_2` compute it.

    Args:
        states: s_1 ... s_T [batch, time, dim].
        coefficients: c_0 ... c_K, 1 or more of them.
        inputs: x_1 ... x_T [batch, time, input]; the states if not given.
        pairs: "all"; or "official", without the newest pair.

    Returns:
        Predictions of s_2 ... s_{T+1}, [batch, time, dim], computed in double precision whatever the input:
        useful polynomials of degree 6 and more have large coefficients of alternating sign.

    Raises:
        ValueError: there are no coefficients or some are not finite, or see
            :func:`mesaopt.theory.context_of`.

    Source: von Oswald et al., Proposition 2, in the strict sense: nothing but linear attention.

    Example:
        >>> states = torch.tensor([[[1.0], [2.0], [4.0]]])  # H = 0, 1, 5 and G = 0, 2, 10
        >>> polynomial_prediction(states, [1.0, -0.125]).flatten().tolist()
        [0.0, 3.5, 15.0]
    """
    if len(coefficients) == 0 or not all(map(math.isfinite, coefficients)):
        raise ValueError(f"coefficients={coefficients}: must be 1 or more finite numbers")
    context = context_of(states, inputs=inputs, pairs=pairs).double()
    *lower, highest = coefficients
    preconditioned = highest * context.queries
    for coefficient in reversed(lower):  # Horner's rule
        preconditioned = coefficient * context.queries + context.gram_product(preconditioned)
    return context.cross_product(preconditioned).to(states.dtype)


def preconditioned_descent(
    states: Inexact[Tensor, "batch time dim"],
    inverse: ApproximateInverse,
    *,
    inputs: Inexact[Tensor, "batch time input"] | None = None,
    pairs: Pairs = "all",
) -> Inexact[Tensor, "batch time dim"]:
    """Predict by one gradient step from an approximately preconditioned input.

    Prediction G_t z_t with z_t approximately (H_t + ridge I)^{-1} x_t; the exact inverse would make it
    :func:`ridge_least_squares`.

    Args:
        states: s_1 ... s_T [batch, time, dim].
        inverse: the steps that approximate the inverse, with their ridge and scale.
        inputs: x_1 ... x_T [batch, time, input]; the states if not given.
        pairs: "all"; or "official", without the newest pair, as in the published curves.

    Returns:
        Predictions of s_2 ... s_{T+1}, [batch, time, dim].

    Raises:
        ValueError: see :func:`mesaopt.theory.context_of`.

    Source: von Oswald et al., equation 9; the baseline that their figures call Proposition 2.

    Example:
        >>> from mesaopt.theory import PUBLISHED_INVERSES
        >>> preconditioned_descent(torch.randn(2, 5, 3), PUBLISHED_INVERSES["7-layer"]).shape
        torch.Size([2, 5, 3])
    """
    context = context_of(states, inputs=inputs, pairs=pairs)
    return context.cross_product(preconditioned_queries(context, inverse))


def preconditioned_queries(
    context: Context, inverse: ApproximateInverse
) -> Inexact[Tensor, "batch time input"]:
    """Multiply the newest input of every position by an approximate inverse of its Gram matrix.

    z_t, approximately (H_t + ridge I)^{-1} x_t.

    Args:
        context: the pairs.
        inverse: the steps that approximate the inverse, with their ridge and scale.

    Returns:
        [batch, time, input].

    Example:
        >>> from mesaopt.theory import context_of, neumann_inverse
        >>> context = context_of(torch.tensor([[[0.5], [1.0]]]))
        >>> preconditioned_queries(context, neumann_inverse(1)).flatten().tolist()  # (2 - H) x
        [1.0, 1.75]
    """
    scale = system_scale(context, inverse)

    def product(vector: Tensor) -> Tensor:
        return scale * (context.gram_product(vector) + inverse.ridge * vector)

    return scale * inverse.apply(product, context.queries)


def system_scale(
    context: Context, inverse: ApproximateInverse
) -> float | Float[Tensor, "batch time 1"]:
    """Return the scale of an approximate inverse at every position.

    Args:
        context: the pairs.
        inverse: whose scale is meant.

    Returns:
        Its number; or 1 / |H_t + ridge I|_F, and 1 where this matrix is zero, [batch, time, 1].

    Example:
        >>> from mesaopt.theory import neumann_inverse
        >>> context = context_of(torch.tensor([[[1.0], [2.0], [3.0]]]))  # H = 0, 1, 5
        >>> system_scale(context, neumann_inverse(1, scale="frobenius")).flatten().tolist()
        [1.0, 1.0, 0.20000000298023224]
    """
    if not isinstance(inverse.scale, str):
        return inverse.scale
    norm = context.frobenius_norm(inverse.ridge)
    return 1 / norm.where(norm > 0, 1.0)


def ridge_least_squares(
    states: Inexact[Tensor, "batch time dim"],
    *,
    ridge: float = 1e-3,
    inputs: Inexact[Tensor, "batch time input"] | None = None,
    pairs: Pairs = "all",
) -> Inexact[Tensor, "batch time dim"]:
    """Predict with the ridge regression of the context: Phi_t = G_t (H_t + ridge I)^{-1}.

    Args:
        states: s_1 ... s_T [batch, time, dim].
        ridge: added to the diagonal of the Gram matrix, > 0.
        inputs: x_1 ... x_T [batch, time, input]; the states if not given.
        pairs: "all" pairs up to (x_{t-1}, s_t); or "official", which leaves the newest pair out, as the
            authors' code does by an off-by-one: its mean loss on the fully observed task is 0.211
            where all pairs give 0.186.

    Returns:
        Predictions of s_2 ... s_{T+1}, [batch, time, dim], solved in double precision whatever the input:
        real ones by :func:`mesaopt.ops.mesa`, which holds no matrix of every position, complex ones
        position by position. Relative errors are about 1e-16 |H| / ridge at most.

    Raises:
        ValueError: ridge is out of range, or see :func:`mesaopt.theory.context_of`.

    Source: von Oswald et al., equations 4 to 6 with ridge = 1 / lambda.

    Example:
        >>> states = torch.tensor([[[1.0], [2.0], [4.0]]])
        >>> ridge_least_squares(states, ridge=1e-9).flatten().round(decimals=3).tolist()
        [0.0, 4.0, 8.0]
        >>> ridge_least_squares(states, ridge=1e-9, pairs="official").flatten()[1].item()
        0.0
    """
    if not 0 < ridge < math.inf:
        raise ValueError(f"ridge={ridge}: must be greater than 0 and finite")
    context = context_of(states, inputs=inputs, pairs=pairs).double()
    if not states.is_complex():  # the operator has no conjugates
        query, key, value = (
            x.unsqueeze(2) for x in (context.queries, context.inputs, context.targets)
        )  # one head, [B,T,1,D]
        return mesa(query, key, value, ridge=ridge).output.squeeze(2).to(states.dtype)
    gram, cross = context.statistics()
    gram.diagonal(dim1=-2, dim2=-1).add_(ridge)
    solved = torch.cholesky_solve(context.queries.unsqueeze(-1), torch.linalg.cholesky(gram))
    return (cross @ solved).squeeze(-1).to(states.dtype)


def kernel_regression(
    states: Float[Tensor, "batch time dim"],
    *,
    inverse_temperature: float = 1.0,
    inputs: Float[Tensor, "batch time input"] | None = None,
    pairs: Pairs = "all",
) -> Float[Tensor, "batch time dim"]:
    """Predict with an average of the targets, weighted by how similar their inputs are to the newest one.

    Prediction sum_s s_{s+1} softmax_s(inverse_temperature x_s . x_t) over the pairs s < t; zero where no
    pair is known.

    Args:
        states: s_1 ... s_T [batch, time, dim], real.
        inverse_temperature: beta in the paper, > 0.
        inputs: x_1 ... x_T [batch, time, input]; the states if not given.
        pairs: "all", as the authors' code does here; or "official", without the newest pair, as it does in
            its other baselines.

    Returns:
        Predictions of s_2 ... s_{T+1}, [batch, time, dim].

    Raises:
        ValueError: inverse_temperature is out of range, states are complex, or see
            :func:`mesaopt.theory.context_of`.

    Source: von Oswald et al., Figure 5B: what one softmax layer does behind one that binds tokens.

    Example:
        >>> states = torch.tensor([[[1.0], [-1.0], [1.0]]])
        >>> kernel_regression(states, inverse_temperature=100.0).flatten().tolist()
        [0.0, -1.0, -1.0]
    """
    if not 0 < inverse_temperature < math.inf:
        given = f"inverse_temperature={inverse_temperature}"
        raise ValueError(f"{given}: must be greater than 0 and finite")
    if states.is_complex():
        raise ValueError(f"states has {states.dtype}: must be real")
    context = context_of(states, inputs=inputs, pairs=pairs)
    if states.shape[1] <= context.delay:
        return torch.zeros_like(states)
    # Empty pairs would take part in a softmax: leave their positions out.
    query, key, value = (
        x[:, context.delay :].unsqueeze(2)  # one head, [B,T-delay,1,D]
        for x in (context.queries, context.inputs, context.targets)
    )
    known = softmax_attention(query, key, value, scale=inverse_temperature).output.squeeze(2)
    return pad(known, (0, 0, context.delay, 0))
