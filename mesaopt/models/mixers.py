"""The mixers of a model: one row for each name in `ModelConfig.mixers`."""

from dataclasses import dataclass, field, replace
from typing import Any

from mesaopt.config import FORGETTING_MIXERS, LanguageModelConfig, MixerName, ModelConfig
from mesaopt.layers import (
    DeltaRuleLayer,
    Frame,
    GatedDeltaRuleLayer,
    GatedLinearSelfAttention,
    LinearSelfAttention,
    LonghornLayer,
    MesaLayer,
    SelfAttention,
    SoftmaxSelfAttention,
)


@dataclass(frozen=True)
class Mixer:
    """Layer of a mixer's name, with its frame and settings of its own."""

    layer: type[SelfAttention]
    frame: Frame = Frame()
    settings: dict[str, Any] = field(default_factory=dict)


MIXERS: dict[MixerName, Mixer] = {
    "linear_attention": Mixer(LinearSelfAttention),
    "gated_linear_attention": Mixer(GatedLinearSelfAttention),
    "delta_rule": Mixer(DeltaRuleLayer, Frame(unit_keys=True)),
    "gated_delta_rule": Mixer(GatedDeltaRuleLayer, Frame(unit_keys=True)),
    "longhorn": Mixer(LonghornLayer),
    "softmax_attention": Mixer(SoftmaxSelfAttention),
    "mesa": Mixer(MesaLayer),
    "mesanet2025": Mixer(
        MesaLayer,
        Frame.mesanet2025(),
        settings={"gates": ("log_decay", "beta"), "ridge_floor": 0.25},
    ),
}
"""Every mixer by name. Those in `config.FORGETTING_MIXERS` have a forget gate."""


def make_mixer(config: ModelConfig, layer: int) -> SelfAttention:
    """Build the mixer of one layer.

    Args:
        config: settings of the model.
        layer: index of the layer, from 0.

    Returns:
        The mixer, with initial weights of its own.

    Example:
        >>> make_mixer(ModelConfig(mixers=("delta_rule",)), 0).frame.unit_keys
        True
    """
    name = config.mixers[layer]
    mixer = MIXERS[name]
    unit_keys = config.unit_queries_keys == "after_first" and layer > 0
    unit_values = config.unit_queries_values == "after_first" and layer > 0
    frame = replace(
        mixer.frame,
        positions=config.positions == "first_layer" and layer == 0,
        unit_keys=mixer.frame.unit_keys or unit_keys,
        unit_values=unit_values,
        forget_cap=config.forget_cap if name in FORGETTING_MIXERS else None,
    )
    sizes = (config.width, config.num_heads, config.key_width)
    return mixer.layer(*sizes, frame=frame, **mixer.settings)


def make_language_mixer(config: LanguageModelConfig, layer: int) -> SelfAttention:
    """Build the mixer of one layer of a language model.

    Args:
        config: settings of the model.
        layer: index of the layer, from 0.

    Returns:
        The mixer, with initial weights of its own.

    Example:
        >>> config = LanguageModelConfig(mixers=("softmax_attention", "mesa"), unit_queries_keys=True)
        >>> [make_language_mixer(config, layer).frame.unit_keys for layer in (0, 1)]
        [False, True]
    """
    name = config.mixers[layer]
    mixer, learns = MIXERS[name], name != "softmax_attention"
    maps = config.feature_map != "none"
    frame = replace(
        mixer.frame,
        convolution=mixer.frame.convolution if config.convolution is None else config.convolution,
        convolve_values=config.convolve_values,
        key_shift=config.key_shift,
        rotary=config.positions == "rotary" and not learns,
        features=int(config.feature_map.removeprefix("dpfp")) if learns and maps else 0,
        head_norm=mixer.frame.head_norm or config.head_norm,
        unit_keys=mixer.frame.unit_keys or (config.unit_queries_keys and learns),
        forget_cap=config.forget_cap if name in FORGETTING_MIXERS else None,
        signed_decay=config.signed_decay and name in FORGETTING_MIXERS,
    )
    sizes = (config.width, config.num_heads, config.key_width)
    settings = mixer.settings if learns else {"window": config.window}
    return mixer.layer(*sizes, frame=frame, **settings)
