"""Accuracy on tasks on tokens of exact answers, and of the best guess without the sequence."""

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mesaopt.config import (
    ContinuousMQARConfig,
    CopyingConfig,
    MADConfig,
    MQARConfig,
    ParityConfig,
    RegBenchConfig,
    TextConfig,
)
from mesaopt.errors import ConfigError
from mesaopt.tasks import TokenBatch
from mesaopt.tasks.random import generator
from mesaopt.tasks.tokens.mad import draw_mapping
from mesaopt.tasks.tokens.parity import ONE, ZERO

AnswerableConfig = MQARConfig | MADConfig | ParityConfig | CopyingConfig


def exact_answers(config: AnswerableConfig, batch: TokenBatch) -> Int[Tensor, "batch scored"]:
    """Answer a task from its tokens by a program, without looking at the targets.

    Args:
        config: of the task.
        batch: of its tests, where only answers are scored.

    Returns:
        The answers at the scored positions; anything at places that do not count. All are right but in
        fuzzy recall, whose last key did not come before in some sequences, and has no answer there.

    Raises:
        ConfigError: no program can know the answers: in text, and in RegBench, whose n-grams and automata
            are in :mod:`mesaopt.theory.in_context_languages`.

    Example:
        >>> from mesaopt.config import MQARConfig
        >>> from mesaopt.tasks import MQAR
        >>> batch = MQAR(examples=None).sample(4, seed=0)
        >>> bool((exact_answers(MQARConfig(), batch) == batch.targets).all())
        True
    """
    if isinstance(config, MADConfig):
        return _MAD[config.task](config, batch)
    if isinstance(config, MQARConfig):
        return _last_values(config, batch)
    if isinstance(config, ParityConfig):
        return (ZERO + (batch.tokens == ONE).cumsum(1) % 2).gather(1, _at(batch))
    if isinstance(config, CopyingConfig):
        sizes = (batch.tokens == config.alphabet + 1).long().argmax(1, keepdim=True) - 1
        return batch.tokens.gather(1, _at(batch) - sizes)
    raise ConfigError(f"config.kind={config.kind!r}: must be a task with right answers")


def chance(
    config: AnswerableConfig | ContinuousMQARConfig | RegBenchConfig | TextConfig,
) -> float:
    """Return the accuracy of the best guess without the sequence.

    Args:
        config: of a task.

    Returns:
        One over the number of possible answers, as those of tests are all as likely; of RegBench the
        share of the letters that may come next, of text one over the vocabulary.

    Example:
        >>> from mesaopt.config import MADConfig, MQARConfig
        >>> chance(MQARConfig()) == 1 / 4096, chance(MADConfig())
        (True, 0.125)
    """
    if isinstance(config, MQARConfig):
        return 1 / (config.vocabulary - config.vocabulary // 2)
    if isinstance(config, ContinuousMQARConfig):
        return 1 / (config.codes - config.codes // 2)
    if isinstance(config, MADConfig):
        return _chance_of_mad(config)
    if isinstance(config, RegBenchConfig):
        return 2 / config.alphabet  # a state has 1, 2 or 3 letters, as often
    if isinstance(config, CopyingConfig):
        return 1 / config.alphabet
    return 0.5 if isinstance(config, ParityConfig) else 1 / config.vocabulary


def least_squares_recall(
    tokens: Float[Tensor, "batch time token"], *, ridge: float = 1e-6
) -> Float[Tensor, "batch time dim"]:
    """Answer continuous recall by ridge regression on the pairs of a sequence, all before its queries.

        y_t = V^T K (K^T K + ridge I)^{-1} k_t,  with the keys and values of the pairs as rows of K and V.

    Args:
        tokens: [key, value] and [key, 0], halves of a token.
        ridge: above 0.

    Returns:
        Predicted values at every position; at queries right up to the ridge, with at most as many pairs as
        dimensions.

    Raises:
        ValueError: ridge is out of range.

    Example:
        >>> from mesaopt.tasks import ContinuousMQAR
        >>> batch = ContinuousMQAR(dim=16, pairs=8).sample(4, seed=0)
        >>> prediction = least_squares_recall(batch.tokens)
        >>> batch.accuracy(prediction).float().mean().item()
        1.0
    """
    if not 0 < ridge < math.inf:
        raise ValueError(f"ridge={ridge}: must be greater than 0 and finite")
    keys, values = tokens.double().chunk(2, dim=-1)
    shown = keys * (values != 0).any(-1, keepdim=True)
    gram = shown.mT @ shown + ridge * torch.eye(keys.shape[-1]).to(keys)
    solution = torch.linalg.solve(gram, keys.mT)  # [B,K,T]
    return (values.mT @ shown @ solution).mT.to(tokens.dtype)


def _at(batch: TokenBatch) -> Int[Tensor, "batch scored"]:
    """List the scored positions, where all are scored too."""
    if batch.at is not None:
        return batch.at
    return _places(batch.tokens).expand(batch.targets.shape)


def _places(tokens: Int[Tensor, "batch time"]) -> Int[Tensor, " time"]:
    """Count the places of sequences from 0."""
    return torch.arange(tokens.shape[1], device=tokens.device)


def _last_values(config: MQARConfig, batch: TokenBatch) -> Int[Tensor, "batch scored"]:
    """Look up the last value of each queried key among the pairs in front."""
    shown = 2 * (batch.targets.shape[1] + config.updates)
    keys, values = batch.tokens[:, :shown:2], batch.tokens[:, 1:shown:2]
    asked = batch.tokens.gather(1, _at(batch))
    last = ((asked[..., None] == keys[:, None]) * (1 + _places(keys))).argmax(-1)
    return values.gather(1, last)


def _followers(config: MADConfig, batch: TokenBatch) -> Int[Tensor, "batch scored"]:
    """Find the token that followed each scored one where that was there before."""
    tokens, at = batch.tokens, _at(batch)
    asked = tokens.gather(1, at)
    before = (tokens[:, None] == asked[..., None]) & (_places(tokens) < at[..., None])
    first = before.long().argmax(-1)
    return tokens.gather(1, (first + 1).clamp(max=tokens.shape[1] - 1))


def _fuzzy_values(config: MADConfig, batch: TokenBatch) -> Int[Tensor, "batch scored"]:
    """Look up the values of keys that came before, key and value being runs of tokens."""
    rows = zip(batch.tokens.tolist(), _at(batch).tolist(), strict=True)
    answers = [_fuzzy_row(config.vocabulary - 1, tokens, at) for tokens, at in rows]
    return torch.tensor(answers, device=batch.tokens.device)


def _fuzzy_row(pad: int, tokens: list[int], at: list[int]) -> list[int]:
    """Answer at some positions of one sequence; 0 where there is no answer."""
    known: dict[tuple[int, ...], list[int]] = {}
    coming: dict[int, int] = {}
    key: tuple[int, ...] = ()
    value: list[int] = []
    for place in range(tokens.count(pad), len(tokens)):
        is_key = tokens[place] < pad // 2
        if is_key and value:  # the next pair begins
            known.setdefault(key, value)
            key, value = (), []
        if is_key:
            key += (tokens[place],)
        else:
            value.append(tokens[place])
        if len(value) < len(known.get(key, ())):
            coming[place] = known[key][len(value)]
    return [coming.get(place, 0) for place in at]


def _by_heart(config: MADConfig, batch: TokenBatch) -> Int[Tensor, "batch scored"]:
    """Look up the values of the keys in front of the scored positions."""
    mapping = draw_mapping(generator(config.map_seed, "mad/memorization"), config.vocabulary)
    keys = batch.tokens.gather(1, _at(batch) - 1)
    return torch.from_numpy(mapping).to(keys.device)[keys]


def _remembered(config: MADConfig, batch: TokenBatch) -> Int[Tensor, "batch scored"]:
    """List the tokens that are neither blank nor separator, in order."""
    is_plain = batch.tokens < config.vocabulary - 2
    return batch.tokens[is_plain].view(len(batch.tokens), -1)


_MAD = {
    "in_context_recall": _followers,
    "noisy_recall": _followers,
    "fuzzy_recall": _fuzzy_values,
    "memorization": _by_heart,
    "compression": lambda config, batch: batch.tokens,
    "selective_copying": _remembered,
}


def _chance_of_mad(config: MADConfig) -> float:
    """Compute the accuracy of the best guess in tests of each of the tasks."""
    plain = config.vocabulary - config.noise_vocabulary
    if config.task == "compression":  # the last token is always the same
        return ((config.length - 1) / (plain - 1) + 1) / config.length
    if config.task == "selective_copying":
        return 1 / (plain - 2)
    if config.task == "memorization":
        return 1 / (plain - 1 - (plain - 1) // 2)
    if config.task == "fuzzy_recall":  # the tokens of a value are distinct
        size = plain - 1 - (plain - 1) // 2
        share = [1 - j / config.value_motif for j in range(config.value_motif)]
        return sum(s / (size - j) for j, s in enumerate(share)) / sum(share)
    return 1 / (plain - plain // 2)
