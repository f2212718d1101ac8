"""Build a model from its settings."""

from torch import nn

from mesaopt.config import (
    AutoEncoderConfig,
    LanguageModelConfig,
    MergedAttentionConfig,
    NetworkConfig,
    OwnModelConfig,
    require_config,
)
from mesaopt.models.auto_encoder import AutoEncoder
from mesaopt.models.language import LanguageModel
from mesaopt.models.one_layer import OneLayerModel
from mesaopt.models.own import build_own
from mesaopt.models.sequence import SequenceModel

Model = SequenceModel | OneLayerModel | LanguageModel | nn.Module
"""Any model: tokens [batch, time, token] to predictions [batch, time, dim], or whole numbers to logits."""


def make_model(config: NetworkConfig, *, seed: int = 0) -> Model:
    """Build a model from its settings.

    Args:
        config: settings of any kind of model.
        seed: seed of the initial weights, 0 or greater.

    Returns:
        The model, on the CPU.

    Raises:
        TypeError: these are no settings of a model, such as those of a whole run.
        ConfigError: it is a module of your own, and the settings were read from a file.

    Example:
        >>> sum(p.numel() for p in make_model(MergedAttentionConfig(dim=5)).parameters())
        150
    """
    require_config(config, NetworkConfig, part="model")
    if isinstance(config, OwnModelConfig):
        return build_own(config, seed=seed)
    if isinstance(config, MergedAttentionConfig):
        return OneLayerModel(config, seed=seed)
    if isinstance(config, AutoEncoderConfig):
        return AutoEncoder(config, seed=seed)
    if isinstance(config, LanguageModelConfig):
        return LanguageModel(config, seed=seed)
    return SequenceModel(config, seed=seed)
