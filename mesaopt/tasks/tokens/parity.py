"""Parity: whether a string of bits has an even or an odd number of ones."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from mesaopt.config import ParityConfig, Split
from mesaopt.tasks.base import Streams
from mesaopt.tasks.tokens.base import SyntheticTask
from mesaopt.tasks.tokens.batch import IGNORE
from mesaopt.tasks.tokens.drawing import DrawnSequences

PAD, ZERO, ONE = 0, 1, 2
"""The tokens."""


class Parity(SyntheticTask[ParityConfig]):
    """The parity of a string of bits, asked at its last bit: learned on short strings, tested on long ones.

    The number of tokens of a string, its answer included, is drawn anew for each, all numbers as likely.

    Args:
        config: lengths in training and in tests, and where the parity is asked for.

    Source: Grazzi et al., "Unlocking State-Tracking in Linear RNNs Through Negative Eigenvalues",
    arXiv 2411.12537, and their public code; MesaNet, appendix I, has the same lengths.

    Example:
        >>> batch = Parity(shortest=4, longest=4).sample(2, seed=0)
        >>> ones = (batch.tokens == ONE).sum(1)
        >>> batch.at.tolist(), bool((batch.targets[:, 0] == ZERO + ones % 2).all())
        ([[2], [2]], True)
    """

    config_type = ParityConfig

    def variants(self, split: Split) -> Sequence[ParityConfig]:
        """Return the lengths of training or of tests; see :meth:`TokenTask.variants`."""
        config = self.config
        if split == "train":
            return (config,)
        return (replace(config, shortest=config.test_shortest, longest=config.test_longest),)

    def draw(self, config: ParityConfig, batch_size: int, streams: Streams) -> DrawnSequences:
        """Draw bits, padded behind; see :meth:`SyntheticTask.draw`."""
        random = streams()
        bits = random.integers(0, 2, (batch_size, config.length))
        sizes = random.integers(config.shortest - 1, config.longest, (batch_size, 1))
        places = np.arange(config.length)
        shown = places < sizes
        is_scored = shown if config.scored == "every" else places == sizes - 1
        answers = ZERO + bits.cumsum(1) % 2
        return DrawnSequences(
            np.where(shown, ZERO + bits, PAD), np.where(is_scored, answers, IGNORE)
        )
