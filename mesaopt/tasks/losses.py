"""The one loss of the laboratory, in the normalisation of the published numbers, and accuracies."""

import torch
from jaxtyping import Bool, Float, Inexact, Int
from torch import Tensor


def squared_error(
    prediction: Inexact[Tensor, "batch time dim"], target: Inexact[Tensor, "batch time dim"]
) -> Float[Tensor, "batch time"]:
    """Compute half the squared error of every sequence at every position.

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


def accuracy(
    logits: Float[Tensor, "batch scored vocabulary"], target: Int[Tensor, "batch scored"]
) -> Bool[Tensor, "batch scored"]:
    """Say where the most likely token is the right one.

    Its mean over the scored places of a task is the accuracy that is published for most tasks on tokens.

    Args:
        logits: [batch, scored, vocabulary].
        target: the right tokens; -100 at a place that is not scored.

    Returns:
        [batch, scored]; false at a place that is not scored.

    Raises:
        ValueError: the shapes do not fit.

    Example:
        >>> accuracy(torch.eye(3)[None], torch.tensor([[0, 2, -100]])).tolist()
        [[True, False, False]]
    """
    if logits.shape[:-1] != target.shape:
        wanted = f"({', '.join(map(str, target.shape))}, vocabulary)"
        raise ValueError(f"logits have shape {tuple(logits.shape)}: must be {wanted}")
    return logits.argmax(-1) == target


def macro_accuracy(
    logits: Float[Tensor, "batch scored vocabulary"], target: Int[Tensor, "batch scored"]
) -> float:
    """Compute the accuracy of each token as a target, and their mean, as the MAD benchmark does.

    A token that is predicted but never a target counts with accuracy 0; one that is neither is left out.

    Args:
        logits: [batch, scored, vocabulary].
        target: the right tokens; -100 at a place that is not scored.

    Returns:
        The mean over tokens, 0 to 1.

    Source: the macro average of torchmetrics, which the public code of MAD uses, per batch.

    Example:
        >>> macro_accuracy(torch.eye(3)[None], torch.tensor([[0, 0, 2]]))
        0.5
    """
    right, counted = accuracy(logits, target), target >= 0
    size = logits.shape[-1]
    of_target = torch.bincount(target[counted], minlength=size)
    of_prediction = torch.bincount(logits.argmax(-1)[counted], minlength=size)
    hits = torch.bincount(target[right], minlength=size)
    kept = of_target + of_prediction > 0
    return (hits / of_target.clamp(min=1))[kept].mean().item()
