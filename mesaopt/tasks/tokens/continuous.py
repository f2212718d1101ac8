"""Associative recall on vectors: pairs [key, value] in a row, then keys alone, to be answered."""

import functools
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import cross_entropy

from mesaopt.config import ContinuousMQARConfig, Split
from mesaopt.tasks.base import Streams
from mesaopt.tasks.batch import Batch
from mesaopt.tasks.losses import accuracy
from mesaopt.tasks.random import generator
from mesaopt.tasks.tokens.base import SyntheticTask
from mesaopt.tasks.tokens.batch import IGNORE
from mesaopt.tasks.tokens.drawing import DrawnSequences, choose_distinct


@dataclass(frozen=True)
class Codes:
    """The vectors that stand for keys and values, the same ones in all batches."""

    keys: Float[Tensor, "keys dim"]
    """Unit vectors."""
    values: Float[Tensor, "values dim"]
    """Unit vectors."""

    @classmethod
    @functools.cache
    def draw(cls, *, count: int, dim: int, seed: int) -> "Codes":
        """Draw codes on the sphere, the first half of them for keys."""
        random = generator(seed, "continuous_mqar/codes")
        vectors = torch.from_numpy(random.standard_normal((count, dim)))
        codes = (vectors / vectors.norm(dim=-1, keepdim=True)).float()
        return cls(codes[: count // 2], codes[count // 2 :])


@dataclass(frozen=True, repr=False)
class ContinuousMQARBatch(Batch):
    """Pairs and queries as vectors; a prediction is a vector, too, scored at the queries."""

    answers: Int[Tensor, "batch scored"] = field(kw_only=True)
    """Which of the values is right at each query."""
    codes: Codes = field(kw_only=True, repr=False)
    """The vectors of all keys and values."""
    by: str = field(kw_only=True)
    """ "cross_entropy" over all values, or "squared_error"."""

    def logits(
        self, prediction: Float[Tensor, "batch time dim"]
    ) -> Float[Tensor, "batch scored values"]:
        """Compare predictions at the queries with all values, by scalar products.

        Args:
            prediction: at every position.

        Returns:
            [batch, scored, values].
        """
        return prediction[:, self.scored] @ self.codes.values.to(prediction).mT

    def losses(self, prediction: Float[Tensor, "batch time dim"]) -> Float[Tensor, "batch scored"]:
        """Score predictions at the queries.

        Args:
            prediction: at every position.

        Returns:
            Cross-entropies with the scalar products as logits, or half the squared errors.

        Raises:
            ValueError: the shape is not that of the targets.
        """
        if self.by == "squared_error" or prediction.shape != self.targets.shape:
            return super().losses(prediction)
        return cross_entropy(self.logits(prediction).mT, self.answers, reduction="none")

    def accuracy(self, prediction: Float[Tensor, "batch time dim"]) -> Bool[Tensor, "batch scored"]:
        """Say where the value with the largest scalar product is the right one.

        Args:
            prediction: at every position.

        Returns:
            [batch, scored].
        """
        return accuracy(self.logits(prediction), self.answers)


class ContinuousMQAR(SyntheticTask[ContinuousMQARConfig]):
    """Associative recall on vectors: few-shot regression with unit vectors as inputs and answers.

    Tokens are [key, value] for all pairs in a random order, `passes` times, and then [key, 0] for all
    keys in another order, where the value is the target. Keys and values are distinct in a sequence.
    One mesa layer solves it exactly with as many pairs as keys have dimensions.

    Args:
        config: sizes, codes and loss.

    Source: the public code of Zoology, January 2026 (continuous MQAR).

    Example:
        >>> batch = ContinuousMQAR(dim=8, pairs=3).sample(2, seed=0)
        >>> batch.tokens.shape, list(batch.positions), bool(batch.accuracy(batch.targets).all())
        (torch.Size([2, 6, 16]), [4, 5, 6], True)
    """

    config_type = ContinuousMQARConfig

    def variants(self, split: Split) -> Sequence[ContinuousMQARConfig]:
        """Return the numbers of pairs of a split; see :meth:`TokenTask.variants`."""
        config = replace(self.config, train_also=(), test_on=())
        if split != "train" and self.config.test_on:
            return [replace(config, pairs=pairs) for pairs in self.config.test_on]
        more = [
            replace(config, pairs=pairs, examples=config.examples and examples)
            for pairs, examples in self.config.train_also
        ]
        return [config, *more]

    def draw(
        self, config: ContinuousMQARConfig, batch_size: int, streams: Streams
    ) -> DrawnSequences:
        """Draw the numbers of keys and values; see :meth:`SyntheticTask.draw`."""
        random, pairs, half = streams(), config.pairs, config.codes // 2
        keys = choose_distinct(random, batch_size=batch_size, size=half, count=pairs)
        values = choose_distinct(
            random, batch_size=batch_size, size=config.codes - half, count=pairs
        )
        passes = [
            choose_distinct(random, batch_size=batch_size, size=pairs, count=pairs)
            for _ in range(config.passes + 1)
        ]
        order = np.concatenate(passes, axis=1)
        targets = np.take_along_axis(values, order, 1)
        shown = targets.copy()
        shown[:, -pairs:] = targets[:, : config.passes * pairs] = IGNORE
        return DrawnSequences(np.take_along_axis(keys, order, 1), targets, {"values": shown})

    def batch(self, drawn: DrawnSequences) -> ContinuousMQARBatch:
        """Put vectors in the place of numbers; see :meth:`TokenTask.batch`."""
        config = self.config
        codes = Codes.draw(count=config.codes, dim=config.dim, seed=config.codes_seed)
        numbers = (drawn.tokens, drawn.targets, drawn.more["values"])
        keys, targets, shown = map(torch.from_numpy, numbers)
        context = int((targets[0] == IGNORE).sum())
        values = codes.values[shown.clamp(min=0)] * (shown != IGNORE)[..., None]
        return ContinuousMQARBatch(
            tokens=torch.cat([codes.keys[keys], values], dim=-1),
            targets=codes.values[targets.clamp(min=0)] * (targets != IGNORE)[..., None],
            scored=slice(context, None),
            answers=targets[:, context:],
            codes=codes,
            by=config.loss,
        )
