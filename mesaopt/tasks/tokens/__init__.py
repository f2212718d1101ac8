"""Tasks on tokens: whole numbers below a vocabulary, for language models."""

from mesaopt.tasks.tokens.base import TokenTask
from mesaopt.tasks.tokens.batch import IGNORE, TokenBatch
from mesaopt.tasks.tokens.copying import Copying

__all__ = ["IGNORE", "Copying", "TokenBatch", "TokenTask"]
