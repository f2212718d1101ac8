"""n-grams of a text: what the last few tokens tell of the next."""

import math
from collections.abc import Callable

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from mesaopt.corpus import Tokens
from mesaopt.errors import ConfigError
from mesaopt.tasks import Text, TokenBatch

MOST = 2**27
"""Numbers in the largest table."""
_PIECE = 2**24  # tokens that are counted at once


def text_n_gram(
    task: Text, *, order: int = 3, strength: float = 4.0
) -> Callable[[TokenBatch], Float[Tensor, "batch time vocabulary"]]:
    """Count what follows the last n - 1 tokens in the training part of a text, and predict by it.

        p_n(c | h) = (count(h c) + strength * p_{n-1}(c | h')) / (count(h) + strength),

    with h' the context h without its first token, and p_0 = 1 / vocabulary.

    Args:
        task: the text.
        order: n, 1 or greater; vocabulary^n may be 2**27 at most: 3 for bytes.
        strength: observations that the shorter context is worth, above 0.

    Returns:
        A function of a batch of the task: logarithms of the probabilities at every position. At the first
        positions of a stretch it knows fewer tokens.

    Raises:
        ConfigError: order or strength is out of range.

    Example:
        >>> import json
        >>> task = Text(corpus=json.decoder.__file__, length=64)
        >>> batch = task.sample(4, seed=0, split="test")
        >>> losses = [batch.losses(text_n_gram(task, order=n)(batch)).mean().item() for n in (1, 2)]
        >>> losses[1] < losses[0] < 5.55
        True
    """
    size = task.config.vocabulary
    if order < 1 or size**order > MOST:
        raise ConfigError(f"order={order}: must be 1 or greater, with {size}^order at most 2**27")
    if not 0 < strength < math.inf:
        raise ConfigError(f"strength={strength}: must be greater than 0 and finite")
    text = task.corpus.parts["train"]
    tables = [np.full(size, 1 / size, dtype=np.float32)]
    for n in range(1, order + 1):
        tables.append(_table(text, n, size, strength, tables[-1]))
    logs = [torch.from_numpy(table).log() for table in tables]

    def predict(batch: TokenBatch) -> Tensor:
        tokens = batch.tokens.cpu()  # where the tables are
        predicted = logs[1].expand(*tokens.shape, size).clone()
        context = torch.zeros_like(tokens)
        for n in range(2, order + 1):
            # The context of n - 1 tokens as one number, the latest last.
            context[:, n - 2 :] += tokens[:, : tokens.shape[1] - (n - 2)] * size ** (n - 2)
            predicted[:, n - 2 :] = logs[n].view(-1, size)[context[:, n - 2 :]]
        return predicted.to(batch.tokens.device)

    return predict


def _table(
    text: Tokens, n: int, size: int, strength: float, shorter: NDArray[np.float32]
) -> NDArray[np.float32]:
    """Compute p_n of every token [vocabulary] behind every context, contexts as one number."""
    counts = np.zeros(size**n, dtype=np.int64)
    for start in range(0, len(text) - n + 1, _PIECE):
        count = min(_PIECE, len(text) - n + 1 - start)
        piece = text.stretches(np.array([start]), count + n - 1)[0]
        codes = np.zeros(count, dtype=np.int64)
        for i in range(n):
            codes = codes * size + piece[i : i + count]
        counts += np.bincount(codes, minlength=size**n)
    counts = counts.astype(np.float32).reshape(-1, size)
    # The context without its first token is the lower part of its number.
    prior = np.tile(shorter.reshape(-1, size), (len(counts) * size // shorter.size, 1))
    return (counts + strength * prior) / (counts.sum(1, keepdims=True) + strength)
