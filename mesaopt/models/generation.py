"""Continuing texts with a language model: greedily, by sampling, or by beam search."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from mesaopt.config import require_count
from mesaopt.config.checks import require_types, shown
from mesaopt.errors import ConfigError, wrong_type
from mesaopt.layers.checks import check_indices
from mesaopt.models.language import LanguageModel, require_language_model
from mesaopt.models.language_state import LanguageState
from mesaopt.ops.validation import holds_integers

Prompts = Int[Tensor, "batch time"] | Sequence[Sequence[int]]
"""One or more tokens for each sequence; of several lengths in lists."""

_PIECE = 512  # tokens of a prompt that are read at once


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How the next token is drawn from the logits.

    Args:
        temperature: logits are divided by it; 0 takes the likeliest token, whatever else is set.
        top_k: draw from the k likeliest tokens; None: from all.
        top_p: draw from the fewest tokens whose probabilities add up to p or more; None: from all.
        seed: of the random numbers, 0 or greater.

    Raises:
        ConfigError: a value is out of range or of another type.

    Example:
        >>> logits = torch.tensor([[0.0, 2.0, 1.0]])
        >>> Sampling(temperature=0.0).chooser()(logits)
        tensor([1])
        >>> sorted({int(Sampling(top_k=2, seed=i).chooser()(logits)) for i in range(20)})
        [1, 2]
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        require_types(self)
        if not 0 <= self.temperature < float("inf"):
            raise ConfigError(f"temperature={self.temperature}: must be 0 or greater")
        if self.top_k is not None:
            require_count("top_k", self.top_k, smallest=1)
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise ConfigError(f"top_p={self.top_p}: must be above 0 and at most 1")
        require_count("seed", self.seed, smallest=0)

    def chooser(self) -> Callable[[Float[Tensor, "batch vocabulary"]], Int[Tensor, " batch"]]:
        """Return a function that draws one token for each row of logits, with random numbers of its own."""
        random = torch.Generator().manual_seed(self.seed)

        def choose(logits: Tensor) -> Tensor:
            if self.temperature == 0:
                return logits.argmax(-1)
            weights = self._weights(logits.cpu().double())
            return torch.multinomial(weights, 1, generator=random).squeeze(1).to(logits.device)

        return choose

    def _weights(self, logits: Tensor) -> Float[Tensor, "batch vocabulary"]:
        """Compute the probabilities, with zeros for tokens that must not be drawn."""
        ordered, order = logits.sort(-1, descending=True)
        weights = ((ordered - ordered[:, :1]) / self.temperature).softmax(-1)  # however small it is
        if self.top_k is not None:
            weights[:, self.top_k :] = 0
        if self.top_p is not None:
            before = weights.cumsum(-1) - weights
            weights = weights.masked_fill(before >= self.top_p * weights.sum(-1, keepdim=True), 0)
        return torch.zeros_like(weights).scatter(-1, order, weights)


@dataclass(frozen=True)
class Generated:
    """Continuations, and what is needed to go on from them."""

    tokens: Int[Tensor, "batch count"]
    """The new tokens of each sequence."""
    log_probability: Float[Tensor, " batch"]
    """Logarithm of the probability that the model gives to them."""
    logits: Float[Tensor, "batch vocabulary"]
    """Of the token after the last one."""
    state: LanguageState
    """After the last one."""


@torch.no_grad()
def prefill(
    model: LanguageModel,
    prompts: Prompts,
    state: LanguageState | None = None,
    *,
    piece: int = _PIECE,
) -> tuple[Float[Tensor, "batch vocabulary"], LanguageState]:
    """Read prompts, piece by piece.

    Args:
        model: reads them.
        prompts: one or more tokens of each sequence. Shorter ones are filled up on the left, which changes
            nothing.
        state: of what came before, of as many sequences; None at the beginning.
        piece: tokens read at once, 1 or more; it changes rounding only.

    Returns:
        Logits of the next token [batch, vocabulary], and the state after the prompts.

    Raises:
        TypeError: the model, the prompts or the state are something else.
        ValueError: there is no prompt, one is empty or no row of whole numbers, a token is not in the
            vocabulary, or the state has another number of sequences.

    Example:
        >>> from mesaopt.config import LanguageModelConfig
        >>> model = LanguageModel(LanguageModelConfig(vocabulary=16, width=8, num_heads=2))
        >>> logits, state = prefill(model, [[3, 1, 4, 1, 5], [9, 2]])
        >>> logits.shape, state.seen.tolist()
        (torch.Size([2, 16]), [5, 2])
    """
    require_language_model(model)
    require_count("piece", piece, smallest=1)
    tokens, mask = _left_padded(prompts, model.config.vocabulary, model.embedding.weight.device)
    logits = None
    for begin in range(0, tokens.shape[1], piece):
        part, real = (x[:, begin : begin + piece] for x in (tokens, mask))
        last = torch.full((len(part), 1), part.shape[1] - 1, device=part.device)
        padding = None if real.all() else real
        logits, state = model.extend(part, state, mask=padding, at=last)
    assert logits is not None
    assert state is not None
    return logits.squeeze(1), state


def _left_padded(
    prompts: Prompts, vocabulary: int, device: torch.device
) -> tuple[Int[Tensor, "batch time"], Bool[Tensor, "batch time"]]:
    """Return the tokens of all prompts, zeros before shorter ones, and true where a token is."""
    try:
        given = list(prompts)
    except TypeError:
        raise wrong_type("prompts", prompts, "a row of tokens for each sequence") from None
    if not given:
        raise ValueError("prompts: there is none: must be one or more")
    rows = [
        _row(f"prompts[{number}]", prompt, vocabulary).to(device)
        for number, prompt in enumerate(given)
    ]
    tokens = pad_sequence(rows, batch_first=True, padding_side="left")
    lengths = torch.tensor([len(row) for row in rows], device=device).unsqueeze(1)
    places = torch.arange(tokens.shape[1], device=device)
    return tokens, places >= tokens.shape[1] - lengths


def _row(argument: str, prompt: Any, vocabulary: int) -> Int[Tensor, " time"]:
    """Return the tokens of one prompt, and refuse what is no row of whole numbers."""
    wanted = "must be a row of whole numbers"
    try:
        row = torch.as_tensor(prompt)
    except (TypeError, ValueError, RuntimeError):
        raise ValueError(f"{argument}={shown(prompt)}: {wanted}") from None
    if row.shape == (0,):
        raise ValueError(f"{argument}: is empty: must be one token or more")
    if row.dim() != 1 or not holds_integers(row):
        raise ValueError(f"{argument}={shown(row.tolist())}: {wanted}")
    return check_indices(argument, row.long(), ("time",), limit=vocabulary)


@torch.no_grad()
def generate(
    model: LanguageModel,
    prompts: Prompts,
    count: int,
    *,
    sampling: Sampling = Sampling(),
    state: LanguageState | None = None,
) -> Generated:
    """Continue prompts token by token.

    Args:
        model: predicts the tokens.
        prompts: as for :func:`prefill`.
        count: tokens to add to each, 1 or more.
        sampling: how tokens are drawn; `Sampling(temperature=0.0)` takes the likeliest.
        state: of what came before the prompts; None at the beginning.

    Returns:
        The continuations, and the state after them.

    Raises:
        TypeError: the model, the prompts, the sampling or the state are something else.
        ValueError: there is no prompt, one is empty or no row of whole numbers, a token is not in the
            vocabulary, or the state has another number of sequences.
        ConfigError: count is no whole number of 1 or more.

    Example:
        >>> from mesaopt.config import LanguageModelConfig
        >>> model = LanguageModel(LanguageModelConfig(vocabulary=16, width=8, num_heads=2))
        >>> generated = generate(model, [[3, 1, 4, 1, 5], [9, 2]], 6)
        >>> generated.tokens.shape, generated.state.seen.tolist()
        (torch.Size([2, 6]), [11, 8])
    """
    require_count("count", count, smallest=1)
    if not isinstance(sampling, Sampling):
        raise wrong_type("sampling", sampling, "a Sampling")
    choose = sampling.chooser()
    logits, state = prefill(model, prompts, state)
    tokens, total = [], torch.zeros(len(logits), dtype=torch.float64, device=logits.device)
    for _ in range(count):
        token = choose(logits)
        total += _log_probabilities(logits).gather(1, token.unsqueeze(1)).squeeze(1)
        logits, state = model.step(token, state)
        tokens.append(token)
    return Generated(torch.stack(tokens, dim=1), total, logits, state)


@torch.no_grad()
def beam_search(
    model: LanguageModel,
    prompts: Prompts,
    count: int,
    *,
    beams: int,
    state: LanguageState | None = None,
) -> Generated:
    """Search for the likeliest continuations of each prompt.

    After every token, the `beams` likeliest of all continuations by one token are kept.

    Args:
        model: predicts the tokens.
        prompts: as for :func:`prefill`.
        count: tokens to add, 1 or more.
        beams: continuations of each prompt that are kept, 1 or more.
        state: of what came before the prompts; None at the beginning.

    Returns:
        `beams` rows for each prompt, the likeliest first: those of prompt i are rows i * beams and on.

    Raises:
        TypeError: the model, the prompts or the state are something else.
        ValueError: there is no prompt, one is empty or no row of whole numbers, a token is not in the
            vocabulary, or the state has another number of sequences.
        ConfigError: count or beams is no whole number of 1 or more, or there are fewer tokens than beams.

    Example:
        >>> from mesaopt.config import LanguageModelConfig
        >>> model = LanguageModel(LanguageModelConfig(vocabulary=16, width=8, num_heads=2))
        >>> best = beam_search(model, [[3, 1, 4], [9]], 5, beams=3)
        >>> best.tokens.shape, bool((best.log_probability[0] >= best.log_probability[1]))
        (torch.Size([6, 5]), True)
    """
    require_language_model(model)
    size = model.config.vocabulary
    require_count("count", count, smallest=1)
    require_count("beams", beams, smallest=1, largest=size)
    logits, state = prefill(model, prompts, state)
    batch = len(logits)
    total, token = _log_probabilities(logits).topk(beams)  # [B,W]
    parents = torch.arange(batch, device=logits.device).repeat_interleave(beams)
    tokens = token.flatten().unsqueeze(1)  # [B*W,1]
    logits, state = model.step(tokens[:, -1], state.index_select(parents))
    for _ in range(count - 1):
        each = total.unsqueeze(-1) + _log_probabilities(logits).unflatten(0, (batch, beams))
        total, best = each.flatten(1).topk(beams)  # of [B,W*vocabulary]
        first = torch.arange(batch, device=best.device).unsqueeze(1) * beams
        parents = (first + best // size).flatten()
        tokens = torch.cat([tokens[parents], (best % size).flatten().unsqueeze(1)], dim=1)
        logits, state = model.step(tokens[:, -1], state.index_select(parents))
    return Generated(tokens, total.flatten(), logits, state)


def _log_probabilities(logits: Tensor) -> Float[Tensor, "batch vocabulary"]:
    return logits.double().log_softmax(-1)
