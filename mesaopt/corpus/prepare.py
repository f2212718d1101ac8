"""Writing a corpus as shards of 16-bit numbers, to be read piece by piece."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mesaopt import files, json_files
from mesaopt.config import Split, require_count
from mesaopt.corpus.documents import Document, are_cut, cuts_of, documents_of, split_of
from mesaopt.corpus.load import checksum_of, encode_parts
from mesaopt.corpus.shards import INDEX, shard_name
from mesaopt.corpus.tokenizer import (
    BYTES,
    LearnedTokenizer,
    TextTokenizer,
    check_learning,
    load_tokenizer,
    train_tokenizer,
)

LEARN = "bpe"
"""Name of a tokenizer that is yet to be learned from the corpus."""
_TOKENIZER = "tokenizer.json"


@dataclass(frozen=True)
class Prepared:
    """The shards that were written."""

    folder: Path
    """The folder that holds them."""
    vocabulary: int
    """Number of different tokens."""
    tokens: dict[Split, int]
    """Number of tokens of each part."""
    checksum: str
    """Eight letters that change when the tokens do."""


def prepare(
    source: str,
    out: str | Path,
    *,
    tokenizer: str = BYTES,
    vocabulary: int = 4096,
    shard_tokens: int = 2**26,
) -> Prepared:
    """Write a corpus as shards, with an index that is written last.

    Args:
        source: "stdlib", a file, a folder, or "hf:NAME".
        out: a new or empty folder.
        tokenizer: "bytes"; a file `tokenizer.json`, of which a copy is kept; or "bpe", to learn a byte-pair
            encoding from the training part.
        vocabulary: tokens of a "bpe" tokenizer.
        shard_tokens: tokens in a shard but the last of each part; 2**26 are 128 MiB.

    Returns:
        What was written.

    Raises:
        ConfigError: there is no text, the tokenizer does not exist or does not fit, or a number is out of
            range. Nothing is written then.
        RunError: the folder is not empty, or cannot be written.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = (Path(folder) / "text.txt").write_text("to be or not to be " * 100)
        ...     written = prepare(f"{folder}/text.txt", Path(folder) / "shards")
        >>> written.tokens
        {'train': 1710, 'validation': 95, 'test': 96}
    """
    out = files.as_path(out)
    require_count("shard_tokens", shard_tokens, smallest=1)
    files.require_free(out)
    encoder, content = _loaded(tokenizer, vocabulary)
    documents = documents_of(source)
    if encoder is None:
        encoder = _learn(documents, vocabulary)
        content = encoder.tokenizer.to_str()
    parts = encode_parts(documents, encoder)
    shards = {part: _write(tokens, out, part, shard_tokens) for part, tokens in parts.items()}
    sizes: dict[Split, int] = {part: len(tokens) for part, tokens in parts.items()}
    checksum = checksum_of(parts.values())
    if content is not None:
        files.write(out / _TOKENIZER, content)
    json_files.write(
        out / INDEX,
        {
            "tokenizer": BYTES if tokenizer == BYTES else _TOKENIZER,
            "vocabulary": encoder.vocabulary,
            "checksum": checksum,
            "tokens": sizes,
            "shards": shards,
        },
    )
    return Prepared(out, encoder.vocabulary, sizes, checksum)


def _loaded(tokenizer: str, vocabulary: int) -> tuple[TextTokenizer | None, bytes | str | None]:
    """Load a tokenizer, and what its file holds, None for bytes; nothing where it is yet to be learned."""
    if tokenizer == LEARN:
        check_learning(vocabulary)
        return None, None
    encoder = load_tokenizer(tokenizer)
    return encoder, None if tokenizer == BYTES else files.read_bytes(files.as_path(tokenizer))


def _learn(documents: list[Document], vocabulary: int) -> LearnedTokenizer:
    """Learn a tokenizer from the training part."""
    if are_cut(documents):
        texts = [text[: cuts_of(len(text))[0]] for _, text in documents]
    else:
        texts = [text for name, text in documents if split_of(name) == "train"]
    return train_tokenizer(texts, vocabulary)


def _write(tokens: NDArray[np.uint16], out: Path, part: str, shard_tokens: int) -> list[str]:
    """Write the tokens of a part; return the names of the files."""
    names = []
    for number, start in enumerate(range(0, len(tokens), shard_tokens)):
        names.append(shard_name(part, number))
        shard = tokens[start : start + shard_tokens].astype("<u2", copy=False)
        files.write(out / names[-1], shard.tobytes())
    return names
