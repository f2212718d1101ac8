"""A prompt as a regression: the inputs and answers that its tokens show."""

from collections.abc import Callable
from dataclasses import dataclass

from jaxtyping import Inexact
from torch import Tensor

from mesaopt.tasks.batch import Batch


@dataclass(frozen=True)
class Regression:
    """The pairs of a prompt: y_i is to be predicted from x_i and from the pairs before it.

    An own task that has a method `regression(batch) -> Regression` tells the analyses in this way how its
    tokens are to be read, whether a token holds x_i and y_{i-1} or x_1, y_1, x_2, y_2, ... take turns.

    Example:
        >>> import torch
        >>> def regression(batch):  # tokens x_1, y_1, x_2, y_2, ..., of which the inputs are scored
        ...     return Regression(inputs=batch.tokens[:, ::2], targets=batch.targets[:, ::2])
        >>> tokens = torch.tensor([[[1.0], [10.0], [2.0], [20.0]]])
        >>> batch = Batch(tokens, 10 * tokens, scored=slice(0, None, 2))
        >>> regression(batch).inputs.flatten().tolist()
        [1.0, 2.0]
    """

    inputs: Inexact[Tensor, "batch pair input"]
    """x_1 ... x_n."""
    targets: Inexact[Tensor, "batch pair dim"]
    """y_1 ... y_n, as the prompt shows them after the prediction."""
    places: slice | None = None
    """The tokens at which y_1 ... y_n are predicted, as in :attr:`Batch.scored`; None: those scored. To be
    given where some answers do not count: slice(None) if every token has a pair."""


Reading = Callable[[Batch], Regression]
"""How the prompts of a task are read: from a batch to its pairs."""
