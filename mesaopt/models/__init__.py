"""Models: stacks of layers."""

from mesaopt.models.make import Model, make_model
from mesaopt.models.one_layer import OneLayerModel
from mesaopt.models.seeds import SideBySide, join, separate
from mesaopt.models.sequence import SequenceModel

__all__ = [
    "Model",
    "OneLayerModel",
    "SequenceModel",
    "SideBySide",
    "join",
    "make_model",
    "separate",
]
