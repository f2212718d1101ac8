"""Copying a string of symbols."""

import numpy as np
import torch

from mesaopt.config import CopyingConfig
from mesaopt.tasks.base import Streams
from mesaopt.tasks.tokens.base import TokenTask
from mesaopt.tasks.tokens.batch import IGNORE, TokenBatch


class Copying(TokenTask[CopyingConfig]):
    """Copy a random string: x_1 ... x_n, a separator, x_1 ... x_n, of which the second half is predicted.

    n is uniform on [shortest, longest] and new for every sequence; symbols are uniform. Shorter sequences
    are filled up with padding at the end, which is not scored.

    Args:
        config: alphabet and lengths.

    Source: Jelassi et al., "Repeat After Me", arXiv 2402.01032, the copy task.

    Example:
        >>> batch = Copying(alphabet=3, shortest=2, longest=2).sample(1, seed=0)
        >>> copied = batch.targets.tolist()[0]
        >>> batch.tokens.tolist()[0] == [*copied, 3, copied[0]], batch.at.tolist()
        (True, [[2, 3]])
    """

    config_type = CopyingConfig

    def draw(self, batch_size: int, streams: Streams) -> TokenBatch:
        """Draw strings of several lengths; see :meth:`TokenTask.draw`."""
        config, random = self.config, streams()
        longest, separator, padding = config.longest, config.alphabet, config.alphabet + 1
        lengths = random.integers(config.shortest, longest + 1, (batch_size, 1))
        symbols = random.integers(0, config.alphabet, (batch_size, longest))
        # Place j of a sequence of length n: symbol j, the separator at n, symbol j - n - 1, then padding.
        places = np.arange(config.length)[None]
        source = np.where(places < lengths, places, places - lengths - 1)
        tokens = np.take_along_axis(symbols, source.clip(0, longest - 1), axis=1)
        tokens = np.where(places == lengths, separator, tokens)
        tokens = np.where(places >= 2 * lengths, padding, tokens)
        number = np.arange(longest)[None]
        targets = np.where(number < lengths, symbols, IGNORE)
        at = (lengths + number).clip(0, config.length - 1)
        tokens, targets, at = (torch.from_numpy(x) for x in (tokens, targets, at))
        return TokenBatch(tokens, targets, at=at)
