"""RegBench: strings of a random finite automaton, a new one in every sequence."""

from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from numpy.typing import NDArray
from torch import Tensor

from mesaopt.config import RegBenchConfig
from mesaopt.tasks.base import Streams
from mesaopt.tasks.tokens.base import SyntheticTask
from mesaopt.tasks.tokens.batch import IGNORE, TokenBatch
from mesaopt.tasks.tokens.drawing import DrawnSequences, Integers, choose_weighted

PAD = 0
"""The token behind the end of a sequence; letters are 1 ... alphabet, the separator comes after them."""
MOST_EDGES = 3


@dataclass(frozen=True, repr=False)
class RegBenchBatch(TokenBatch):
    """Strings of automata, with what may come next at each scored position."""

    allowed: Int[Tensor, "batch scored"] = field(kw_only=True)
    """The letters that may come, as bits: bit i is set if token i may."""

    def legal(self, vocabulary: int) -> Bool[Tensor, "batch scored vocabulary"]:
        """Say which tokens may come.

        Args:
            vocabulary: number of tokens.

        Returns:
            True for the letters on the edges of the automaton's state, which are equally likely.
        """
        tokens = torch.arange(vocabulary, device=self.allowed.device)
        return (self.allowed[..., None] >> tokens) % 2 == 1

    def accuracy(
        self, prediction: Float[Tensor, "batch scored vocabulary"]
    ) -> Bool[Tensor, "batch scored"]:
        """Say where the most likely token is one that may come, whichever then came.

        Args:
            prediction: logits at the scored positions.

        Returns:
            [batch, scored]; false at a place that is not scored.
        """
        best = prediction.argmax(-1, keepdim=True)
        return self.legal(prediction.shape[-1]).gather(-1, best).squeeze(-1) & self.counted

    def total_variation(
        self, prediction: Float[Tensor, "batch scored vocabulary"]
    ) -> Float[Tensor, "batch scored"]:
        """Compute the distance of the predicted distribution from the automaton's.

        TV(p, q) = 1/2 sum_i |p_i - q_i|, between 0 and 1. The authors' code logs the sum, twice as much.

        Args:
            prediction: logits at the scored positions.

        Returns:
            [batch, scored]; 0 at a place that is not scored.
        """
        legal = self.legal(prediction.shape[-1]).to(prediction.dtype)
        true = legal / legal.sum(-1, keepdim=True).clamp(min=1)
        return (prediction.softmax(-1) - true).abs().sum(-1) / 2 * self.counted


class RegBench(SyntheticTask[RegBenchConfig]):
    """Strings of a random finite automaton, a new one in every sequence, whose letters are to be predicted.

    An automaton has 4 to 12 states with 1 to 3 edges each; a walk along random edges from its first state
    writes a string. Separators, which any string may end with, are not scored.

    Args:
        config: sizes of automata, strings and sequences.

    Source: Akyurek et al., "In-Context Language Learning", arXiv 2401.12973, and their public code.

    Example:
        >>> batch = RegBench(strings=(2, 2), letters=(3, 3), length=8, examples=None).sample(1, seed=0)
        >>> batch.tokens[0, 3].item(), batch.at.tolist()
        (19, [[0, 1, 3, 4, 5]])
    """

    config_type = RegBenchConfig

    def draw(self, config: RegBenchConfig, batch_size: int, streams: Streams) -> DrawnSequences:
        """Draw automata and walk through them; see :meth:`SyntheticTask.draw`."""
        automata = draw_automata(
            streams("automata"),
            batch_size=batch_size,
            alphabet=config.alphabet,
            fewest_states=config.fewest_states,
            most_states=config.most_states,
        )
        return draw_strings(streams(), automata, config)

    def batch(self, drawn: DrawnSequences) -> RegBenchBatch:
        """Make a batch with the letters that may come; see :meth:`TokenTask.batch`."""
        batch = drawn.batch()
        allowed = torch.from_numpy(drawn.more["allowed"].astype(np.int64))
        if batch.at is not None:
            allowed = allowed.gather(1, batch.at) * batch.counted
        return RegBenchBatch(batch.tokens, batch.targets, at=batch.at, allowed=allowed)


@dataclass(frozen=True)
class Automata:
    """Finite automata, one a sequence; their strings begin in state 0, and all states accept.

    Example:
        >>> automata = draw_automata(
        ...     np.random.default_rng(0), batch_size=5, alphabet=18, fewest_states=4, most_states=12
        ... )
        >>> automata.letters.shape, bool((automata.targets != np.arange(12)[:, None]).all())
        ((5, 12, 3), True)
    """

    letters: Integers
    """Letter of each edge of each state [batch, state, edge]."""
    targets: Integers
    """State that it leads to [batch, state, edge]."""
    degrees: Integers
    """Number of edges of each state [batch, state]; the other edges do not exist."""


def draw_automata(
    random: np.random.Generator,
    *,
    batch_size: int,
    alphabet: int,
    fewest_states: int,
    most_states: int,
) -> Automata:
    """Draw automata: a number of states, some letters of the alphabet, 1 to 3 edges from each state.

    The edges of a state have distinct letters and lead to distinct other states. All numbers and subsets
    are as likely. States that no edge reaches, and states that can do the same, are left in: to remove
    them, as the authors do, changes neither the strings nor what may come next.

    Args:
        random: source of the numbers.
        batch_size: number of automata.
        alphabet: number of letters.
        fewest_states: also the fewest letters.
        most_states: largest number of states.

    Returns:
        The automata.
    """
    states = random.integers(fewest_states, most_states + 1, batch_size)
    num_letters = random.integers(fewest_states, alphabet + 1, batch_size)
    ranks = random.random((batch_size, alphabet)).argsort(1).argsort(1)
    allowed = np.repeat(ranks < num_letters[:, None], most_states, axis=0).astype(float)
    rows = len(allowed)
    letters = 1 + choose_weighted(random, allowed, batch_size=rows, count=MOST_EDGES)
    others = np.arange(most_states) < states[:, None, None]
    others = others & ~np.eye(most_states, dtype=bool)
    weights = others.reshape(rows, most_states).astype(float)
    targets = choose_weighted(random, weights, batch_size=rows, count=MOST_EDGES)
    shape = (batch_size, most_states, MOST_EDGES)
    degrees = random.integers(1, MOST_EDGES + 1, shape[:2])
    return Automata(letters.reshape(shape), targets.reshape(shape), degrees)


def draw_strings(
    random: np.random.Generator, automata: Automata, config: RegBenchConfig
) -> DrawnSequences:
    """Walk through automata, each edge of a state as likely, and write down the letters.

    Strings are divided by the separator, which is no target. A sequence is cut at `length` tokens, and
    padded where it is shorter.

    Args:
        random: source of the numbers.
        automata: one a sequence.
        config: alphabet, lengths and numbers of strings.

    Returns:
        The sequences, and as "allowed" the letters that may come next [batch, time]: bit i is set if
        token i may.
    """
    (fewest, most), (shortest, longest) = config.strings, config.letters
    length, separator = config.length, config.alphabet + 1
    batch_size = len(automata.degrees)
    rows = np.arange(batch_size)
    count = random.integers(fewest, most + 1, batch_size)
    sizes = random.integers(shortest, longest + 1, (batch_size, most))
    choices = random.random((length + 1, batch_size))
    legal = _legal_letters(automata)
    tokens = np.full((batch_size, length + 1), PAD)
    allowed = np.zeros((batch_size, length + 1), dtype=np.uint32)
    state, string, written = (np.zeros(batch_size, dtype=np.int64) for _ in range(3))
    for t in range(length + 1):
        at_end = written == sizes[rows, np.minimum(string, most - 1)]
        runs = string < count
        edge = (choices[t] * automata.degrees[rows, state]).astype(np.int64)
        is_letter = runs & ~at_end
        allowed[:, t] = np.where(is_letter, legal[rows, state], 0)
        letter = automata.letters[rows, state, edge]
        tokens[:, t] = np.where(is_letter, letter, np.where(runs, separator, PAD))
        string = string + (runs & at_end)
        tokens[string == count, t] = PAD  # no separator behind the last string
        state = np.where(is_letter, automata.targets[rows, state, edge], 0)
        written = np.where(is_letter, written + 1, 0)
    following = tokens[:, 1:]
    is_letter = (following != PAD) & (following != separator)
    targets = np.where(is_letter, following, IGNORE)
    return DrawnSequences(tokens[:, :-1], targets, {"allowed": allowed[:, 1:]})


def _legal_letters(automata: Automata) -> NDArray[np.uint32]:
    """List the letters that may come in each state [batch, state], as bits."""
    exists = np.arange(MOST_EDGES) < automata.degrees[..., None]
    bits = np.where(exists, np.uint32(1) << automata.letters.astype(np.uint32), 0)
    return np.bitwise_or.reduce(bits, axis=-1).astype(np.uint32)
