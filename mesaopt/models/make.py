"""Build a model from its settings."""

from mesaopt.config import MergedAttentionConfig, NetworkConfig, require_config
from mesaopt.models.one_layer import OneLayerModel
from mesaopt.models.sequence import SequenceModel

Model = SequenceModel | OneLayerModel
"""Any model: tokens [batch, time, token] to predictions [batch, time, dim]."""


def make_model(config: NetworkConfig, *, seed: int = 0) -> Model:
    """Build a model from its settings.

    Args:
        config: settings of any kind of model.
        seed: seed of the initial weights, 0 or greater.

    Returns:
        The model, on the CPU.

    Raises:
        TypeError: these are no settings of a model, such as those of a whole run.

    Example:
        >>> sum(p.numel() for p in make_model(MergedAttentionConfig(dim=5)).parameters())
        150
    """
    require_config(config, NetworkConfig, part="model")
    if isinstance(config, MergedAttentionConfig):
        return OneLayerModel(config, seed=seed)
    return SequenceModel(config, seed=seed)
