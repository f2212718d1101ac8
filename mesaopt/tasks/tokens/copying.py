"""Copying: a string, a separator, and the string again."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from mesaopt.config import CopyingConfig, Split
from mesaopt.tasks.base import Streams
from mesaopt.tasks.tokens.base import SyntheticTask
from mesaopt.tasks.tokens.batch import IGNORE
from mesaopt.tasks.tokens.drawing import DrawnSequences


class Copying(SyntheticTask[CopyingConfig]):
    """Copy a random string: begin, x_1 ... x_n, separator, and x_1 ... x_n again, to be predicted.

    n is uniform on [shortest, longest] and new for every string; letters are uniform. Where there is a
    `context`, training sequences of so many tokens hold strings one after the other, each with an end,
    which is predicted too; the last one is cut off and not scored. Else, and in tests, a sequence holds
    one string, padded behind.

    Args:
        config: alphabet, lengths in training and in tests, context.

    Source: Jelassi et al., "Repeat After Me", arXiv 2402.01032, the copy task, and their public code.

    Example:
        >>> batch = Copying(alphabet=3, shortest=2, longest=2).sample(1, seed=0)
        >>> copied = batch.targets.tolist()[0]
        >>> batch.tokens.tolist()[0] == [3, *copied, 4, *copied], batch.at.tolist()
        (True, [[3, 4]])
    """

    config_type = CopyingConfig

    def variants(self, split: Split) -> Sequence[CopyingConfig]:
        """Return the lengths of training or of tests; see :meth:`TokenTask.variants`."""
        config = self.config
        if split == "train":
            return (config,)
        shortest, longest = config.test_shortest, config.test_longest
        return (replace(config, shortest=shortest, longest=longest, context=None),)

    def draw(self, config: CopyingConfig, batch_size: int, streams: Streams) -> DrawnSequences:
        """Draw strings of several lengths; see :meth:`SyntheticTask.draw`."""
        random, length, packed = streams(), config.length, config.context is not None
        begin, separator, end, pad = range(config.alphabet, config.alphabet + 4)
        most = 1 + length // (2 * config.shortest + 3) if packed else 1
        sizes = random.integers(config.shortest, config.longest + 1, (batch_size, most))
        letters = random.integers(0, config.alphabet, (batch_size, most, config.longest))
        tokens = np.full((batch_size, length + 1), pad)
        targets = np.full_like(tokens, IGNORE)
        for row in range(batch_size):
            start = 0
            for size, string in zip(sizes[row].tolist(), letters[row], strict=True):
                stop = start + 2 * size + 3
                whole = [begin, *string[:size], separator, *string[:size], end]
                tokens[row, start:stop] = whole[: max(0, length + 1 - start)]
                if stop > length + 1:  # cut off
                    break
                scored = slice(start + size + 2, stop if packed else stop - 1)
                targets[row, scored] = tokens[row, scored]
                start = stop
        return DrawnSequences(tokens[:, :-1], targets[:, 1:])
