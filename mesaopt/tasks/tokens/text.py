"""Text in stretches of one length."""

import functools
from collections.abc import Iterable
from typing import Any

import numpy as np

from mesaopt.config import Split, TextConfig
from mesaopt.corpus import BYTES, Corpus, load_corpus, load_tokenizer
from mesaopt.errors import ConfigError
from mesaopt.tasks.base import streams_of
from mesaopt.tasks.tokens.base import TokenTask
from mesaopt.tasks.tokens.drawing import DrawnSequences
from mesaopt.tasks.tokens.order import shuffled

_MEASURED = 2**18
"""Tokens whose lengths are measured."""


class Text(TokenTask[TextConfig]):
    """Stretches of a corpus of text, each token to be predicted from those before it.

    An epoch shows stretches that lie side by side, in another order and from another first token in
    every epoch. The documents of a corpus follow one another, so that a stretch may hold the end of one
    and the beginning of the next. Documents for validation and tests are never trained on; where they are
    few, an evaluation of many sequences shows some of them again.

    Args:
        config: corpus, tokenizer and length.

    Raises:
        ConfigError: the corpus cannot be read, a part of it is shorter than a stretch, it has more tokens
            than fit into the vocabulary, or it is not the one with the given checksum.

    Example:
        >>> task = Text(length=32)
        >>> batch = task.sample(2, seed=0)
        >>> bool((batch.tokens[:, 1:] == batch.targets[:, :-1]).all()), batch.at is None
        (True, True)
    """

    config_type = TextConfig

    def __init__(self, config: TextConfig | None = None, **settings: Any):
        super().__init__(config, **settings)
        self.corpus = load_corpus(self.config.corpus, self.config.tokenizer)
        _check_fits(self.config, self.corpus)

    def sequences(self, batch_size: int, *, seed: int, number: int, split: Split) -> DrawnSequences:
        """Take the stretches of one batch of an epoch; see :meth:`TokenTask.sequences`."""
        part, length = self.corpus.parts[split], self.config.length
        count = self.stretches(split)
        stream = f"text/{split}"
        epoch, _, which = shuffled(number, batch_size, [count], seed=seed, stream=stream)
        random = streams_of("text", seed=seed, step=epoch, split=split)("first")
        first = random.integers(0, min(length, len(part) - count * length))
        tokens = part.stretches(first + length * which, length + 1)
        return DrawnSequences(tokens[:, :-1], tokens[:, 1:])

    def stretches(self, split: Split) -> int:
        """Count the stretches of an epoch: more sequences than these show some of the text again.

        Args:
            split: "train", "validation" or "test".

        Returns:
            The number, 1 or more.

        Example:
            >>> import json
            >>> Text(corpus=json.decoder.__file__, length=64).stretches("test") < 100
            True
        """
        return max(1, (len(self.corpus.parts[split]) - 1) // self.config.length - 1)

    def decode(self, tokens: Iterable[int]) -> str:
        """Turn tokens into text.

        Args:
            tokens: numbers below the vocabulary.

        Returns:
            The text; what is no UTF-8 becomes the replacement character.

        Example:
            >>> Text(length=32).decode([100, 101, 102])
            'def'
        """
        return load_tokenizer(self.corpus.tokenizer).decode(tokens)

    @functools.cached_property
    def bytes_per_token(self) -> float:
        """Length of a token in bytes of text: 1 for bytes, else a mean over the test part's beginning."""
        if self.corpus.tokenizer == BYTES:
            return 1.0
        part = self.corpus.parts["test"]
        count = min(len(part), _MEASURED)
        text = self.decode(part.stretches(np.array([0]), count)[0].tolist())
        return len(text.encode()) / count


def _check_fits(config: TextConfig, corpus: Corpus) -> None:
    """Refuse a corpus that is too short, has too many tokens or is another one."""
    if corpus.vocabulary > config.vocabulary:
        wanted = f"must be {corpus.vocabulary} or greater, the tokens of {corpus.tokenizer!r}"
        raise ConfigError(f"vocabulary={config.vocabulary}: {wanted}")
    for name, part in corpus.parts.items():
        if len(part) <= config.length:
            given = f"corpus={config.corpus!r}: its {name} part has {len(part):,} tokens"
            raise ConfigError(f"{given}: must have more than length={config.length}")
    if config.checksum not in ("", corpus.checksum):
        wanted = f"must be {corpus.checksum!r}, that of corpus={config.corpus!r}"
        raise ConfigError(f"checksum={config.checksum!r}: {wanted}")
    if config.checksum and corpus.checksum_of_tokens != config.checksum:
        given = f"corpus={config.corpus!r}: its tokens have checksum {corpus.checksum_of_tokens!r}"
        raise ConfigError(f"{given}: must have {config.checksum!r}; prepare it again")
