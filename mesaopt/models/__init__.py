"""Models: stacks of layers."""

from mesaopt.models.sequence import SequenceModel

__all__ = ["SequenceModel"]
