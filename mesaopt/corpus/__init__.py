"""Text as tokens: files and folders, byte by byte or through a tokenizer, and shards on disk."""

from mesaopt.corpus.documents import SPLITS, documents_of, split_of
from mesaopt.corpus.load import Corpus, load_corpus, tokenizer_of
from mesaopt.corpus.prepare import Prepared, prepare
from mesaopt.corpus.shards import Tokens
from mesaopt.corpus.tokenizer import BYTES, ByteTokenizer, TextTokenizer, load_tokenizer

__all__ = [
    "BYTES",
    "SPLITS",
    "ByteTokenizer",
    "Corpus",
    "Prepared",
    "TextTokenizer",
    "Tokens",
    "documents_of",
    "load_corpus",
    "load_tokenizer",
    "prepare",
    "split_of",
    "tokenizer_of",
]
