"""From the settings of a model to the model."""

from mesaopt.config import MergedAttentionConfig, NetworkConfig
from mesaopt.models.one_layer import OneLayerModel
from mesaopt.models.sequence import SequenceModel

Model = SequenceModel | OneLayerModel
"""Any model: tokens [batch, time, token] to predictions [batch, time, dim]."""


def make_model(config: NetworkConfig, *, seed: int = 0) -> Model:
    """Make the model that the settings are of.

    Args:
        config: of any model.
        seed: of the initial weights.

    Returns:
        The model, on the CPU.

    Example:
        >>> sum(p.numel() for p in make_model(MergedAttentionConfig(dim=5)).parameters())
        150
    """
    if isinstance(config, MergedAttentionConfig):
        return OneLayerModel(config, seed=seed)
    return SequenceModel(config, seed=seed)
