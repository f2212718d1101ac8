"""The one loss of the laboratory, in the normalisation of the published numbers."""

import torch
from jaxtyping import Float, Inexact
from torch import Tensor


def squared_error(
    prediction: Inexact[Tensor, "batch time dim"], target: Inexact[Tensor, "batch time dim"]
) -> Float[Tensor, "batch time"]:
    """Half the squared error of every sequence at every position.

    loss[b, t] = 1/2 * sum_d |prediction[b, t, d] - target[b, t, d]|^2.

    Its mean over sequences is the in-context loss (a function of the position), its mean over both is
    the training loss: the sum over dimensions divided by (2 * batch * time). On the fully observed
    task, predicting zero costs 1.667 + 0.0005 t and the noise floor is 0.0005.

    Args:
        prediction: [batch, time, dim], real or complex.
        target: the same shape; nothing is broadcast.

    Returns:
        [batch, time], real.

    Raises:
        ValueError: the shapes differ.

    Source: von Oswald et al., equation 1; the normalisation is that of the authors' code.

    Example:
        >>> squared_error(torch.zeros(1, 1, 2), torch.tensor([[[3.0, 4.0]]])).item()
        12.5
        >>> squared_error(torch.zeros(1, 1, 1) + 0j, torch.tensor([[[3.0 + 4.0j]]])).item()
        12.5
    """
    if prediction.shape != target.shape:
        shapes = f"{tuple(prediction.shape)}, target {tuple(target.shape)}"
        raise ValueError(f"prediction has shape {shapes}: must be the same")
    difference = prediction - target
    if difference.is_complex():
        difference = torch.view_as_real(difference).flatten(
            -2
        )  # real and imaginary parts, [B,T,2D]
    return difference.square().sum(-1) / 2
