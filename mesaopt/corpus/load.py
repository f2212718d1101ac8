"""Reading a corpus: its documents as tokens, divided into training, validation and test."""

import functools
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mesaopt import files, json_files
from mesaopt.config import Split, TextConfig
from mesaopt.corpus.documents import (
    SPLITS,
    Document,
    are_cut,
    cuts_of,
    documents_of,
    split_of,
)
from mesaopt.corpus.shards import INDEX, Tokens
from mesaopt.corpus.tokenizer import BYTES, TextTokenizer, load_tokenizer
from mesaopt.errors import ConfigError

INDEX_FORMAT = {
    "tokenizer": str,
    "vocabulary": int,
    "checksum": str,
    "shards": {"train": [str], "validation": [str], "test": [str]},
}


@dataclass(frozen=True)
class Corpus:
    """A corpus as tokens.

    Example:
        >>> corpus = load_corpus("stdlib")
        >>> corpus.vocabulary, len(corpus.parts["train"]) > 10 * len(corpus.parts["test"])
        (256, True)
    """

    vocabulary: int
    """Number of different tokens."""
    tokenizer: str
    """ "bytes", or the file of the tokenizer."""
    parts: dict[Split, Tokens]
    """The tokens for training, validation and tests."""
    checksum: str
    """Eight letters that change when the tokens do; of a prepared folder, those of its index."""

    @functools.cached_property
    def checksum_of_tokens(self) -> str:
        """The checksum computed from the tokens, of which all are read."""
        return checksum_of(piece for part in self.parts.values() for piece in part.pieces)


@functools.lru_cache(maxsize=8)
def load_corpus(source: str, tokenizer: str = BYTES) -> Corpus:
    """Load a corpus, once in a process.

    Documents are held out by :func:`mesaopt.corpus.split_of`. Where a part would be empty, as for a single
    file, every document is cut instead: 90 % for training, 5 % for validation, the end for tests. The
    documents of a part come one after the other in the order of their names.

    Args:
        source: "stdlib", a file, a folder, "hf:NAME", or a folder that :func:`mesaopt.corpus.prepare`
            wrote.
        tokenizer: "bytes" or a file `tokenizer.json`; a prepared folder has its own.

    Returns:
        The corpus; of a prepared one, only what is used is read.

    Raises:
        ConfigError: there is no text, it cannot be read, or the tokenizer is another one than that of the
            prepared folder.
        RunError: the index of a prepared folder is damaged.

    Example:
        >>> load_corpus("no/such/folder")
        Traceback (most recent call last):
        ...
        mesaopt.errors.ConfigError: corpus='no/such/folder': there is no such file or folder; must be one, \
or 'stdlib'
    """
    folder = files.as_path(source)
    if files.exists(folder / INDEX):
        return _load_prepared(folder, source, tokenizer)
    encoder = load_tokenizer(tokenizer)
    parts = encode_parts(documents_of(source), encoder)
    return Corpus(
        vocabulary=encoder.vocabulary,
        tokenizer=tokenizer,
        parts={part: Tokens([tokens]) for part, tokens in parts.items()},
        checksum=checksum_of(parts.values()),
    )


def tokenizer_of(config: TextConfig) -> TextTokenizer:
    """Load the tokenizer of a text without reading the text, where that is possible.

    Args:
        config: settings of the text.

    Returns:
        The tokenizer of its shards, or the one that is named.

    Raises:
        ConfigError: the tokenizer is lost, or the shards are.

    Example:
        >>> tokenizer_of(TextConfig()).vocabulary
        256
    """
    # A prepared folder has a tokenizer of its own; only bytes are 256 tokens.
    prepared = files.exists(files.as_path(config.corpus) / INDEX) or config.vocabulary != 256
    own = prepared and config.tokenizer == BYTES
    return load_tokenizer(load_corpus(config.corpus).tokenizer if own else config.tokenizer)


def encode_parts(
    documents: list[Document], tokenizer: TextTokenizer
) -> dict[Split, NDArray[np.uint16]]:
    """Turn documents into tokens and divide them into parts, by document where that leaves none empty."""
    pieces: dict[Split, list[NDArray[np.uint16]]] = {part: [] for part in SPLITS}
    cut = are_cut(documents)
    for name, text in documents:
        tokens = tokenizer.encode(text)
        if not cut:
            pieces[split_of(name)].append(tokens)
            continue
        for part, piece in zip(SPLITS, np.split(tokens, cuts_of(len(tokens))), strict=True):
            pieces[part].append(piece)
    return {part: np.concatenate(pieces[part]) for part in SPLITS}


def checksum_of(parts: Iterable[NDArray[np.uint16]]) -> str:
    """Compute the CRC-32 of tokens, as eight hexadecimal digits."""
    value = 0
    for part in parts:
        value = zlib.crc32(part.astype("<u2").tobytes(), value)
    return f"{value:08x}"


def _load_prepared(folder: Path, source: str, tokenizer: str) -> Corpus:
    """Map the shards of a prepared corpus into memory."""
    index: dict[str, Any] = json_files.read(folder / INDEX, INDEX_FORMAT)
    own = index["tokenizer"]
    if own != BYTES:
        own = str(files.inside(folder, own))
    if tokenizer != BYTES and str(files.as_path(tokenizer)) != own:
        raise ConfigError(
            f"tokenizer={tokenizer!r}: must be 'bytes' or {own!r}, with which {source!r} was prepared"
        )
    if "tokens" in index:  # which earlier folders lack
        json_files.check(index, {"tokens": dict.fromkeys(SPLITS, int)}, str(folder / INDEX))
    vocabulary = index["vocabulary"]
    shards = {part: _map_shards(folder, source, index, part) for part in SPLITS}
    parts = {part: Tokens(pieces, vocabulary) for part, pieces in shards.items()}
    return Corpus(vocabulary, own, parts, index["checksum"])


def _map_shards(
    folder: Path, source: str, index: dict[str, Any], part: Split
) -> list[NDArray[np.uint16]]:
    """Map the shards of a part, unless they are not as long as they were written."""
    pieces: list[NDArray[np.uint16]] = []
    size = 0
    for shard in (files.inside(folder, name) for name in index["shards"][part]):
        if not files.exists(shard):
            raise ConfigError(f"corpus={source!r}: {shard.name} is missing; prepare it again")
        with files.explain_os_errors(shard, "read"):
            length = shard.stat().st_size
            pieces += [np.memmap(shard, dtype="<u2", mode="r", shape=length // 2)] if length else []
        size += length
    wanted = 2 * index.get("tokens", {}).get(part, size // 2)
    if size != wanted:
        given = f"corpus={source!r}: its {part} part has {size:,} bytes"
        raise ConfigError(f"{given}: must be {wanted:,}; prepare it again")
    return pieces
