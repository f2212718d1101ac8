"""Models: stacks of layers.

:func:`make_model` builds one from its settings; the layers are in :mod:`mesaopt.layers`.
"""

from mesaopt.models.auto_encoder import AutoEncoder
from mesaopt.models.generation import Generated, Sampling, beam_search, generate, prefill
from mesaopt.models.language import LanguageModel
from mesaopt.models.language_state import LanguageState
from mesaopt.models.make import Model, make_model
from mesaopt.models.one_layer import OneLayerModel
from mesaopt.models.own import own_model, try_model
from mesaopt.models.seeds import SideBySide, join, separate
from mesaopt.models.sequence import SequenceModel

__all__ = [
    "AutoEncoder",
    "Generated",
    "LanguageModel",
    "LanguageState",
    "Model",
    "OneLayerModel",
    "Sampling",
    "SequenceModel",
    "SideBySide",
    "beam_search",
    "generate",
    "join",
    "make_model",
    "own_model",
    "prefill",
    "separate",
    "try_model",
]
