"""Tasks on tokens: whole numbers below a vocabulary, for language models."""

from mesaopt.tasks.tokens.base import SyntheticTask, TokenTask
from mesaopt.tasks.tokens.batch import IGNORE, TokenBatch
from mesaopt.tasks.tokens.continuous import ContinuousMQAR, ContinuousMQARBatch
from mesaopt.tasks.tokens.copying import Copying
from mesaopt.tasks.tokens.drawing import DrawnSequences
from mesaopt.tasks.tokens.mad import MAD
from mesaopt.tasks.tokens.mqar import MQAR
from mesaopt.tasks.tokens.parity import Parity
from mesaopt.tasks.tokens.regbench import RegBench, RegBenchBatch
from mesaopt.tasks.tokens.text import Text

__all__ = [
    "IGNORE",
    "MAD",
    "MQAR",
    "ContinuousMQAR",
    "ContinuousMQARBatch",
    "Copying",
    "DrawnSequences",
    "Parity",
    "RegBench",
    "RegBenchBatch",
    "SyntheticTask",
    "Text",
    "TokenBatch",
    "TokenTask",
]
