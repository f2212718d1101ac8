"""Multi-query associative recall: keys and values in a row, then some keys again, to be answered."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from mesaopt.config import MQARConfig, Split
from mesaopt.tasks.base import Streams
from mesaopt.tasks.tokens.base import SyntheticTask
from mesaopt.tasks.tokens.batch import IGNORE
from mesaopt.tasks.tokens.drawing import DrawnSequences, choose_distinct, choose_weighted


class MQAR(SyntheticTask[MQARConfig]):
    """Multi-query associative recall: k_1 v_1 k_2 v_2 ... and then, among nothing, the keys once more each.

    At a key that comes again its value is to be predicted, with `updates` its last value. Nothing
    else is scored.

    Args:
        config: vocabulary, lengths, pairs, updates, and what stands between the queries.

    Source: Arora et al., "Zoology", arXiv 2312.04927 (ICLR 2024), and "Based", arXiv 2402.18668; keys that
    are given another value, their public code of January 2026. See :func:`draw_recall` for what
    differs.

    Example:
        >>> task = MQAR(vocabulary=20, length=16, pairs=2, examples=None)
        >>> batch = task.sample(1, seed=0)
        >>> pairs = dict(zip(batch.tokens[0, 0:4:2].tolist(), batch.tokens[0, 1:4:2].tolist()))
        >>> asked = batch.tokens[0, batch.at[0]].tolist()
        >>> batch.targets[0].tolist() == [pairs[key] for key in asked]
        True
    """

    config_type = MQARConfig

    def variants(self, split: Split) -> Sequence[MQARConfig]:
        """Return the lengths and numbers of pairs of a split; see :meth:`TokenTask.variants`."""
        config = replace(self.config, train_also=(), test_on=())
        if split != "train" and self.config.test_on:
            return [replace(config, length=t, pairs=n) for t, n in self.config.test_on]
        more = [
            replace(config, length=t, pairs=n, examples=config.examples and examples)
            for t, n, examples in self.config.train_also
        ]
        return [config, *more]

    def draw(self, config: MQARConfig, batch_size: int, streams: Streams) -> DrawnSequences:
        """Draw pairs and queries; see :meth:`SyntheticTask.draw`."""
        return draw_recall(streams(), config, batch_size)


def draw_recall(random: np.random.Generator, config: MQARConfig, batch_size: int) -> DrawnSequences:
    """Draw sequences k_1 v_1 k_2 v_2 ... with queries behind them.

    Keys are distinct and from the first half of the vocabulary without 0, values distinct and from the
    second half. The first `updates` of a random order of the keys are then given again, with another value.
    Behind that, slot i = 1, 2, ... is two tokens wide; the queries go to slots drawn one after the
    other with probability proportional to i^(power - 1), without replacement, each at the front of its
    slot. The target of a query is the last value of its key.

    Where `fill` is random, each token 0, which stands at all other places, becomes any token.

    Args:
        random: source of the numbers.
        config: of one length.
        batch_size: sequences.

    Returns:
        The sequences.

    Source: the public code of Zoology. In its overwriting task a key's second value differs from the first
    value of some key; here it differs from that of its own key.
    """
    vocabulary, pairs, length = config.vocabulary, config.pairs, config.length
    half = vocabulary // 2
    keys = 1 + choose_distinct(random, batch_size=batch_size, size=half - 1, count=pairs)
    values = choose_distinct(random, batch_size=batch_size, size=vocabulary - half, count=pairs)
    changed = choose_distinct(random, batch_size=batch_size, size=pairs, count=config.updates)
    # Another value than before: some steps further on the circle of all values, not a whole turn.
    old = np.take_along_axis(values, changed, 1)
    new = (old + random.integers(1, vocabulary - half, changed.shape)) % (vocabulary - half)
    shown = np.stack(
        [
            np.concatenate([keys, np.take_along_axis(keys, changed, 1)], axis=1),
            half + np.concatenate([values, new], axis=1),
        ],
        axis=-1,
    )  # [B,N+U,2]
    np.put_along_axis(values, changed, new, axis=1)
    tokens = np.zeros((batch_size, length), dtype=np.int64)
    start = 2 * shown.shape[1]
    tokens[:, :start] = shown.reshape(batch_size, start)
    slots = np.arange(1, (length - start) // 2 + 1)
    places = start + 2 * choose_weighted(
        random, slots ** (config.power - 1), batch_size=batch_size, count=pairs
    )
    targets = np.full_like(tokens, IGNORE)
    np.put_along_axis(tokens, places, keys, axis=1)
    np.put_along_axis(targets, places, half + values, axis=1)
    if config.fill == "random":
        tokens = np.where(tokens == 0, random.integers(0, vocabulary, tokens.shape), tokens)
    return DrawnSequences(tokens, targets)
