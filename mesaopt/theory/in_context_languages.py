"""Learners of the language of a sequence from the sequence alone: n-grams and Baum-Welch."""

from collections import defaultdict
from collections.abc import Iterator

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from mesaopt.config import require_count
from mesaopt.tasks import TokenBatch

Array = NDArray[np.float64]
_TINY = 1e-30


def in_context_n_gram(
    batch: TokenBatch, *, vocabulary: int, order: int = 3
) -> Float[Tensor, "batch scored vocabulary"]:
    """Predict letters by how often they followed the last letters, earlier in the sequence.

        p_n(c | h) = count(h c) / count(h)  for letters c that followed the context h of n - 1 letters,

    and what is left, since h also ends what has been read, goes to the other letters in proportion to
    p_{n-1}(c | h without its first letter), down to p_1(c) = count(c) / count. Strings do not run into each
    other: in front of each stand n - 1 marks.

    Args:
        batch: strings, with separators, such as those of RegBench; their last token is the separator's.
        vocabulary: number of tokens; the last one is the separator, 0 is padding.
        order: n, 1 or greater; 3 counts pairs of letters and the one behind them.

    Returns:
        Logarithms of the probabilities at the scored positions.

    Raises:
        ConfigError: order is out of range.

    Source: the public code of Akyurek et al., "In-Context Language Learning", arXiv 2401.12973. There
    probabilities add up to less than 1 where all letters that came have followed the context; here to 1.

    Example:
        >>> from mesaopt.tasks import RegBench
        >>> batch = RegBench(length=64, examples=None).sample(4, seed=0)
        >>> logits = in_context_n_gram(batch, vocabulary=20)
        >>> bool(torch.allclose(logits.exp().sum(-1)[batch.counted], torch.tensor(1.0)))
        True
    """
    require_count("order", order, smallest=1)
    rows = [_n_gram_row(row, vocabulary, order) for row in batch.tokens.tolist()]
    return _at_scored(batch, np.stack(rows))


def _n_gram_row(tokens: list[int], vocabulary: int, order: int) -> Array:
    """Predict behind each token of one sequence."""
    followers: defaultdict[tuple[int, ...], Array] = defaultdict(lambda: np.zeros(vocabulary))
    seen: defaultdict[tuple[int, ...], int] = defaultdict(int)
    probabilities = np.full((len(tokens), vocabulary), 1 / vocabulary)
    mark, separator = -1, vocabulary - 1
    read = [mark] * (order - 1)
    for n in range(order):
        seen[tuple(read[len(read) - n :])] += 1
    for t, token in enumerate(tokens):
        if token == 0:
            break
        if token == separator:
            read = [mark] * (order - 1)
        else:
            for n in range(order):
                followers[tuple(read[len(read) - n :])][token] += 1
            read = [*read, token][1 - order :] if order > 1 else []
        for n in range(order):
            seen[tuple(read[len(read) - n :])] += 1
        probabilities[t] = _backed_off(read, followers, seen, vocabulary)
    return probabilities


def _backed_off(
    read: list[int],
    followers: dict[tuple[int, ...], Array],
    seen: dict[tuple[int, ...], int],
    vocabulary: int,
) -> Array:
    """Combine the counts behind contexts of all lengths, the shortest first."""
    counts = followers[()]
    came = counts > 0
    if not came.any():
        return np.full(vocabulary, 1 / vocabulary)
    p = counts / counts.sum()
    for n in range(1, len(read) + 1):
        context = tuple(read[len(read) - n :])
        counts = followers[context]
        direct, others = counts / max(seen[context], 1), came & (counts == 0)
        left = max(0.0, 1 - direct.sum())
        share = p * others
        p = direct + left * share / share.sum() if others.any() else direct / direct.sum()
    return p


def in_context_baum_welch(
    batch: TokenBatch,
    *,
    vocabulary: int,
    num_states: int = 12,
    steps: int = 10,
    seed: int = 0,
) -> Float[Tensor, "batch scored vocabulary"]:
    """Predict letters by an automaton, fitted to the strings read so far by expectation maximisation.

    The automaton goes from state i to j writing letter c with probability A_cij, from state 0 on, and not
    from a state to itself. Whenever a string ends, A is fitted anew from a random start to all complete
    strings, A_cij being proportional to how often the step is expected to have been taken. Within a
    string the probability of the state is carried on.

    Args:
        batch: strings, with separators, such as those of RegBench.
        vocabulary: number of tokens; the last one is the separator, 0 is padding.
        num_states: of the automaton, 2 or greater.
        steps: of expectation maximisation, 0 or greater.
        seed: of the start.

    Returns:
        Logarithms of the probabilities at the scored positions.

    Raises:
        ConfigError: num_states or steps is out of range.

    Source: Akyurek et al., arXiv 2401.12973, whose code has a hidden Markov model with pairs of states as
    states, which is the same, and fits it again behind every letter, which takes some 25 times as long.

    Example:
        >>> from mesaopt.tasks import RegBench
        >>> batch = RegBench(length=48, examples=None).sample(1, seed=0)
        >>> in_context_baum_welch(batch, vocabulary=20, steps=2).shape[-1]
        20
    """
    require_count("num_states", num_states, smallest=2)
    require_count("steps", steps, smallest=0)
    random = np.random.default_rng(seed)
    rows = []
    for row in batch.tokens.tolist():
        probabilities = np.full((len(row), vocabulary), 1 / vocabulary)
        complete: list[list[int]] = []
        steps_of = _random_automaton(random, vocabulary, num_states)
        string: list[int] = []
        state = np.eye(num_states)[0]
        for t, token in enumerate(row):
            if token == 0:
                break
            if token == vocabulary - 1:
                complete.append(string)
                steps_of = _fit(complete, _random_automaton(random, vocabulary, num_states), steps)
                string, state = [], np.eye(num_states)[0]
            else:
                string.append(token)
                state = state @ steps_of[token]
                state = state / state.sum()
            probabilities[t] = (state @ steps_of).sum(-1)
        rows.append(probabilities)
    return _at_scored(batch, np.stack(rows))


def _random_automaton(random: np.random.Generator, vocabulary: int, num_states: int) -> Array:
    """Draw probabilities [letter, state, next state], without padding, separator and self-loops."""
    steps_of = random.random((vocabulary, num_states, num_states)) + 1e-3
    steps_of[[0, -1]] = 0
    steps_of *= 1 - np.eye(num_states)
    return steps_of / steps_of.sum((0, 2), keepdims=True)


def _fit(strings: list[list[int]], steps_of: Array, steps: int) -> Array:
    """Improve an automaton on complete strings; all steps keep a small probability."""
    letters, mask = _padded(strings)
    floor = 1e-5 * (steps_of > 0)
    for _ in range(steps):
        expected = sum(_expected_steps(letters, mask, steps_of), start=floor)
        steps_of = expected / expected.sum((0, 2), keepdims=True)
    return steps_of


def _padded(strings: list[list[int]]) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Put strings into an array [string, time], and say where they are."""
    letters = np.zeros((len(strings), max(map(len, strings))), dtype=np.int64)
    for row, string in zip(letters, strings, strict=True):
        row[: len(string)] = string
    return letters, letters > 0


def _expected_steps(
    letters: NDArray[np.int64], mask: NDArray[np.bool_], steps_of: Array
) -> Iterator[Array]:
    """Count how often each step is expected to have been taken, time by time."""
    count, length = letters.shape
    num_states = steps_of.shape[-1]
    forward = np.zeros((length + 1, count, num_states))
    forward[0, :, 0] = 1
    for t in range(length):
        ahead = np.einsum("ni,nij->nj", forward[t], steps_of[letters[:, t]])
        ahead /= np.maximum(ahead.sum(1, keepdims=True), _TINY)
        forward[t + 1] = np.where(mask[:, t, None], ahead, 0)
    backward = np.ones((count, num_states))
    for t in reversed(range(length)):
        here = steps_of[letters[:, t]] * backward[:, None]  # [N,I,J]
        joint = forward[t][:, :, None] * here
        joint /= np.maximum(joint.sum((1, 2), keepdims=True), _TINY)
        expected = np.zeros_like(steps_of)
        np.add.at(expected, letters[mask[:, t], t], joint[mask[:, t]])
        yield expected
        back = here.sum(-1)
        back /= np.maximum(back.max(1, keepdims=True), _TINY)
        backward = np.where(mask[:, t, None], back, 1)


def _at_scored(batch: TokenBatch, probabilities: Array) -> Tensor:
    """Take the scored positions, and logarithms."""
    scored = torch.from_numpy(probabilities).float().to(batch.tokens.device)
    if batch.at is not None:
        scored = scored.gather(1, batch.at[..., None].expand(-1, -1, scored.shape[-1]))
    return scored.clamp(min=_TINY).log()
