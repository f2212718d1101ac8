"""The six tasks of the mechanistic architecture design (MAD) benchmark."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import permutations

import numpy as np

from mesaopt.config import MADConfig, Split
from mesaopt.tasks.base import Streams
from mesaopt.tasks.random import generator
from mesaopt.tasks.tokens.base import SyntheticTask
from mesaopt.tasks.tokens.batch import IGNORE
from mesaopt.tasks.tokens.drawing import DrawnSequences, Integers


class MAD(SyntheticTask[MADConfig]):
    """One of the six tasks of mechanistic architecture design (MAD).

    In in-context, noisy and fuzzy recall every next token is a target in training, as in the authors' code,
    and in tests the values of keys that came before; `train_on` changes it. Fuzzy recall has keys of all
    sizes in training, in tests of the largest; `train_keys` changes it.

    Args:
        config: which task, its sizes, and what of the authors' code is changed.

    Source: Poli et al., "Mechanistic Design and Scaling of Hybrid Architectures", arXiv 2403.17844, and
    their public code.

    Example:
        >>> task = MAD(task="memorization", vocabulary=8, length=6)
        >>> batch = task.sample(1, seed=0)
        >>> batch.at.tolist(), batch.tokens[0, 1::2].tolist()
        ([[1, 3, 5]], [7, 7, 7])
    """

    config_type = MADConfig

    def variants(self, split: Split) -> Sequence[MADConfig]:
        """Return the settings of training or of tests; see :meth:`TokenTask.variants`."""
        if split == "train":
            return (self.config,)
        return (replace(self.config, train_on="answers", train_keys="longest"),)

    def draw(self, config: MADConfig, batch_size: int, streams: Streams) -> DrawnSequences:
        """Draw sequences of the task; see :meth:`SyntheticTask.draw`."""
        return _DRAW[config.task](streams(), config, batch_size)


def draw_in_context_recall(
    random: np.random.Generator, config: MADConfig, batch_size: int
) -> DrawnSequences:
    """Draw keys and values in turn; a key has the same value throughout its sequence.

    Keys and values are drawn with replacement from the two halves of the vocabulary that noise leaves.
    In place of a pair there are two noise tokens with probability `noise_fraction`, but for one pair at
    least. The last pair repeats a key, each of those that came as likely.

    Args:
        random: source of the numbers.
        config: of the task.
        batch_size: sequences.

    Returns:
        The sequences, of length - 1 tokens.
    """
    vocabulary, noise_vocabulary = config.vocabulary, config.noise_vocabulary
    length = config.length
    plain, pairs = vocabulary - noise_vocabulary, length // 2
    num_keys = plain // 2
    keys = random.integers(0, num_keys, (batch_size, pairs))
    value_of = random.integers(num_keys, plain, (batch_size, num_keys))
    is_noise = random.random((batch_size, pairs)) < config.noise_fraction
    kept = random.integers(0, pairs - 1, batch_size)
    is_noise[np.arange(batch_size), kept] = is_noise[:, -1] = False
    came = ((keys[:, :-1, None] == np.arange(num_keys)) & ~is_noise[:, :-1, None]).any(1)
    keys[:, -1] = np.where(came, random.random(came.shape), -1).argmax(1)
    values = np.take_along_axis(value_of, keys, 1)
    tokens = np.stack([keys, values], axis=-1)
    if noise_vocabulary:
        noise = random.integers(plain, vocabulary, tokens.shape)
        tokens = np.where(is_noise[..., None], noise, tokens)
    tokens = tokens.reshape(batch_size, -1)  # [B,N,2] -> [B,T]
    if config.train_on == "all":
        return DrawnSequences(tokens[:, :-1], tokens[:, 1:])
    targets = np.full((batch_size, length - 1), IGNORE)
    targets[:, ::2] = np.where(_came_before(keys, ~is_noise), values, IGNORE)
    return DrawnSequences(tokens[:, :-1], targets)


def _came_before(keys: Integers, is_pair: np.ndarray) -> np.ndarray:
    """Say whether each pair [batch, pair] repeats the key of an earlier pair."""
    same = (keys[:, :, None] == keys[:, None]) & is_pair[:, :, None] & is_pair[:, None]
    return np.tril(same, k=-1).any(-1)


def draw_fuzzy_recall(
    random: np.random.Generator, config: MADConfig, batch_size: int
) -> DrawnSequences:
    """Draw keys and values of several tokens each in turn, padded in front.

    A motif is of 1 to `key_motif` (or `value_motif`) distinct tokens, each size as likely, and each
    motif of a size. One pair, the probe, is put in at a random place and comes once more at the end.

    Args:
        random: source of the numbers.
        config: of the task.
        batch_size: sequences.

    Returns:
        The sequences.
    """
    length, key_motif, value_motif = config.length, config.key_motif, config.value_motif
    pad = config.vocabulary - 1
    sizes = range(key_motif if config.train_keys == "longest" else 1, key_motif + 1)
    keys = [list(permutations(range(pad // 2), size)) for size in sizes]
    values = [list(permutations(range(pad // 2, pad), size)) for size in range(1, value_motif + 1)]
    drawn = random.random((batch_size, length // 2 + 2, 4)).tolist()
    places = random.random(batch_size).tolist()
    tokens = np.full((batch_size, length + 1), pad)
    targets = np.full((batch_size, length + 1), IGNORE)
    for row in range(batch_size):
        pairs = ((_pick(keys, a, b), _pick(values, c, d)) for a, b, c, d in drawn[row])
        shown, answers = _fuzzy_sequence(
            pairs,
            place=places[row],
            length=length,
            longest=key_motif + value_motif,
            answerable=config.answerable,
        )
        tokens[row, -len(shown) :], targets[row, -len(answers) :] = shown, answers
    return DrawnSequences(tokens[:, :-1], (tokens if config.train_on == "all" else targets)[:, 1:])


def _pick(motifs: list[list[tuple[int, ...]]], size: float, which: float) -> tuple[int, ...]:
    """Choose a size, then a motif of this size, by two numbers between 0 and 1."""
    of_size = motifs[int(size * len(motifs))]
    return of_size[int(which * len(of_size))]


def _fuzzy_sequence(
    pairs: Iterator[tuple[tuple[int, ...], tuple[int, ...]]],
    *,
    place: float,
    length: int,
    longest: int,
    answerable: bool,
) -> tuple[list[int], list[int]]:
    """Lay out pairs, the first of which is the probe, and say which of the tokens are answers."""
    probe, answer = next(pairs)
    end = length - len(probe + answer) - longest
    last = end - longest + 1 if answerable else length - 2 * len(probe + answer)
    value_of: dict[tuple[int, ...], tuple[int, ...]] = {}
    came: set[tuple[int, ...]] = set()
    tokens: list[int] = []
    targets: list[int] = []
    while len(tokens) < end:
        is_due = len(tokens) >= int(place * last) and probe not in came
        key, value = (probe, answer) if is_due else next(pairs)
        value = answer if key == probe else value_of.setdefault(key, value)
        tokens += key + value
        targets += [IGNORE] * len(key)
        targets += value if key in came else [IGNORE] * len(value)
        came.add(key)
    return [*tokens, *probe, *answer], [*targets, *([IGNORE] * len(probe)), *answer]


def draw_memorization(
    random: np.random.Generator, config: MADConfig, batch_size: int
) -> DrawnSequences:
    """Draw keys with replacement, each followed by a blank at which its value is the target.

    The value of a key is the same in all sequences: it has to be learned by heart.

    Args:
        random: source of the numbers.
        config: of the task.
        batch_size: sequences.

    Returns:
        The sequences.
    """
    random_map = generator(config.map_seed, "mad/memorization")
    value_of = draw_mapping(random_map, config.vocabulary)
    length, vocabulary = config.length, config.vocabulary
    keys = random.integers(0, len(value_of), (batch_size, length // 2))
    tokens = np.full((batch_size, 2 * (length // 2)), vocabulary - 1)
    targets = np.full_like(tokens, IGNORE)
    tokens[:, ::2], targets[:, 1::2] = keys, value_of[keys]
    return DrawnSequences(tokens, targets)


def draw_mapping(random: np.random.Generator, vocabulary: int) -> Integers:
    """Draw a value of its own for each key, keys and values being the halves of the vocabulary.

    Args:
        random: source of the numbers.
        vocabulary: number of tokens; the last one is neither key nor value.

    Returns:
        [keys].
    """
    half = (vocabulary - 1) // 2
    return half + random.permutation(vocabulary - 1 - half)[:half]


def draw_compression(
    random: np.random.Generator, config: MADConfig, batch_size: int
) -> DrawnSequences:
    """Draw random tokens and a last one that says to sum them up; all are to be given back.

    The target of a position is its own token: this is a task for :class:`mesaopt.models.AutoEncoder`, which
    decodes nothing but its last position. At any other position a model of one layer could copy.

    Args:
        random: source of the numbers.
        config: of the task.
        batch_size: sequences.

    Returns:
        The sequences.
    """
    length, vocabulary = config.length, config.vocabulary
    tokens = random.integers(0, vocabulary - 1, (batch_size, length))
    tokens[:, -1] = vocabulary - 1
    return DrawnSequences(tokens, tokens)


def draw_selective_copying(
    random: np.random.Generator, config: MADConfig, batch_size: int
) -> DrawnSequences:
    """Draw tokens with blanks in between, to be given back in order behind a separator.

    Args:
        random: source of the numbers.
        config: of the task.
        batch_size: sequences.

    Returns:
        The sequences.
    """
    length, vocabulary, copied = config.length, config.vocabulary, config.copied
    blank, separator = vocabulary - 2, vocabulary - 1
    remembered = random.integers(0, blank, (batch_size, copied))
    blanks = length - 2 * copied - 1
    gaps = random.integers(0, copied + config.blanks_behind, (batch_size, blanks))
    # Each blank goes in front of the token with its number.
    before = (gaps[:, None] <= np.arange(copied)[:, None]).sum(-1)  # [B,C,blanks]->[B,C]
    tokens = np.full((batch_size, length), blank)
    np.put_along_axis(tokens, before + np.arange(copied), remembered, axis=1)
    tokens[:, copied + blanks] = separator
    targets = np.full_like(tokens, IGNORE)
    targets[:, -copied:] = remembered
    return DrawnSequences(tokens, targets)


_DRAW = {
    "in_context_recall": draw_in_context_recall,
    "noisy_recall": draw_in_context_recall,
    "fuzzy_recall": draw_fuzzy_recall,
    "memorization": draw_memorization,
    "compression": draw_compression,
    "selective_copying": draw_selective_copying,
}
