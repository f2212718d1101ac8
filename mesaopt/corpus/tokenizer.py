"""Tokenizers: bytes, and what the package `tokenizers` has learned."""

import functools
import importlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from mesaopt import files
from mesaopt.config.token_tasks import LARGEST_VOCABULARY
from mesaopt.errors import ConfigError

BYTES = "bytes"
"""Name of the tokenizer whose tokens are the bytes of a text."""
END_TOKENS = ("<|endoftext|>", "</s>", "<eos>", "[SEP]")
"""Tokens that end a document; the first one that a tokenizer has is taken."""


class TextTokenizer(Protocol):
    """Anything that turns documents into numbers below 2**16 and back."""

    @property
    def vocabulary(self) -> int:
        """Number of different tokens."""
        ...

    @property
    def unknown(self) -> int | None:
        """The token of what it does not know; None: it knows everything."""
        ...

    def encode(self, text: bytes) -> NDArray[np.uint16]:
        """Turn a document into tokens, with one at the end that says so where there is one."""
        ...

    def decode(self, tokens: Iterable[int]) -> str:
        """Turn tokens into text."""
        ...


class ByteTokenizer:
    """The bytes of a text as its tokens; a document ends with a zero byte.

    Example:
        >>> tokenizer = ByteTokenizer()
        >>> tokenizer.encode(b"def").tolist(), tokenizer.decode([100, 101])
        ([100, 101, 102, 0], 'de')
    """

    vocabulary = 256
    unknown = None

    def encode(self, text: bytes) -> NDArray[np.uint16]:
        """Turn a document into tokens.

        Args:
            text: of the document.

        Returns:
            Its bytes, and 0.
        """
        return np.frombuffer(text + b"\0", dtype=np.uint8).astype(np.uint16)

    def decode(self, tokens: Iterable[int]) -> str:
        """Turn tokens into text.

        Args:
            tokens: numbers.

        Returns:
            The text; what is no UTF-8, and numbers of 256 or more, become the replacement character.
        """
        return bytes(min(token, 255) for token in tokens).decode("utf-8", errors="replace")


@dataclass(frozen=True)
class LearnedTokenizer:
    """A tokenizer of the package `tokenizers`."""

    tokenizer: Any
    """The object."""
    end: int | None
    """The token that ends a document; None: the tokenizer has none."""
    name: str
    """Its file, or "bpe"."""

    @property
    def vocabulary(self) -> int:
        """Number of different tokens."""
        return self.tokenizer.get_vocab_size()

    @functools.cached_property
    def unknown(self) -> int | None:
        """The token of what it does not know; None: it knows everything."""
        model = json.loads(self.tokenizer.to_str())["model"]
        number, token = model.get("unk_id"), model.get("unk_token")
        return number if token is None else self.tokenizer.token_to_id(token)

    def encode(self, text: bytes) -> NDArray[np.uint16]:
        """Turn a document into tokens; bytes that are no UTF-8 become the replacement character.

        Args:
            text: of the document.

        Returns:
            Its tokens, and the one that ends a document if there is one.

        Raises:
            ConfigError: the tokenizer does not know a part of it, and has no token for that.
        """
        try:
            encoding = self.tokenizer.encode(
                text.decode("utf-8", errors="replace"), add_special_tokens=False
            )
        except Exception as error:  # the package raises plain exceptions
            problem = f"does not know all of the text: {error}"
            raise ConfigError(f"tokenizer={self.name!r}: {problem}") from error
        return np.array([*encoding.ids, *([] if self.end is None else [self.end])], dtype=np.uint16)

    def decode(self, tokens: Iterable[int]) -> str:
        """Turn tokens into text.

        Args:
            tokens: numbers below the vocabulary.

        Returns:
            The text.
        """
        return self.tokenizer.decode(list(tokens))


def load_tokenizer(name: str) -> TextTokenizer:
    """Load a tokenizer.

    Args:
        name: "bytes", or a file `tokenizer.json` of the package `tokenizers`.

    Returns:
        The tokenizer.

    Raises:
        ConfigError: there is no such file, it holds no tokenizer, it has more than 2**16 tokens, or the
            package is missing.

    Example:
        >>> load_tokenizer("bytes").vocabulary
        256
    """
    if name == BYTES:
        return ByteTokenizer()
    package, path = import_tokenizers(name), files.as_path(name)
    if not files.exists(path):
        raise ConfigError(f"tokenizer={name!r}: there is no such file; must be one, or 'bytes'")
    try:
        tokenizer = package.Tokenizer.from_file(str(path))
    except Exception as error:  # the package raises plain exceptions
        raise ConfigError(f"tokenizer={name!r}: holds no tokenizer: {error}") from error
    return as_learned(tokenizer, name)


def train_tokenizer(documents: Iterable[bytes], vocabulary: int) -> LearnedTokenizer:
    """Learn a byte-pair encoding.

    Args:
        documents: to learn from.
        vocabulary: number of tokens, 257 to 2**16: the bytes, the end of a document, and pairs.

    Returns:
        The tokenizer; of fewer tokens where the documents have no more pairs that come twice.

    Raises:
        ConfigError: the vocabulary is out of range, or the package is missing.
    """
    package = check_learning(vocabulary)
    tokenizer = package.Tokenizer(package.models.BPE())
    tokenizer.pre_tokenizer = package.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = package.decoders.ByteLevel()
    trainer = package.trainers.BpeTrainer(
        vocab_size=vocabulary,
        min_frequency=2,
        special_tokens=[END_TOKENS[0]],
        initial_alphabet=package.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    texts = (text.decode("utf-8", errors="replace") for text in documents)
    tokenizer.train_from_iterator(texts, trainer)
    return as_learned(tokenizer, "bpe")


def check_learning(vocabulary: int) -> Any:
    """Refuse a number of tokens that cannot be learned; return the package that learns."""
    if not 257 <= vocabulary <= LARGEST_VOCABULARY:
        raise ConfigError(f"vocabulary={vocabulary}: must be between 257 and {LARGEST_VOCABULARY}")
    return import_tokenizers("bpe")


def as_learned(tokenizer: Any, name: str) -> LearnedTokenizer:
    """Wrap an object of the package `tokenizers`, unless it has too many tokens."""
    size = tokenizer.get_vocab_size()
    if size > LARGEST_VOCABULARY:
        wanted = f"must have at most {LARGEST_VOCABULARY:,}, which fit into 16 bits"
        raise ConfigError(f"tokenizer={name!r}: has {size:,} tokens: {wanted}")
    ends = (tokenizer.token_to_id(token) for token in END_TOKENS)
    return LearnedTokenizer(tokenizer, next((end for end in ends if end is not None), None), name)


def import_tokenizers(name: str) -> Any:
    """Import the package `tokenizers`, or say how to get it."""
    try:
        return importlib.import_module("tokenizers")
    except ImportError:
        raise ConfigError(
            f"tokenizer={name!r}: needs the package tokenizers: pip install 'mesaopt[text]'; "
            "or 'bytes', which needs nothing"
        ) from None
