"""The settings of a language model, as the library transformers keeps them in config.json."""

from typing import Any

from transformers import PreTrainedConfig

from mesaopt.config import LanguageModelConfig, from_dict, to_dict
from mesaopt.errors import ConfigError, wrong_type

_SOFTMAX = {
    (False, False): "full_attention",
    (False, True): "sliding_attention",
    (True, False): "hybrid",
    (True, True): "hybrid_sliding",
}
"""Kinds of softmax attention: with recent projections to keep, and with a window."""


class MesaoptConfig(PreTrainedConfig):
    """Settings of :class:`MesaoptForCausalLM`: those of our language model, under the name `settings`.

    Args:
        settings: of the language model, as they are or as :func:`mesaopt.config.to_dict` writes them; the
            defaults if None.
        others: what transformers keeps for every model, such as `dtype`.

    Raises:
        TypeError: the settings are something else.
        ConfigError: a setting is unknown or wrong.

    Example:
        >>> config = MesaoptConfig(LanguageModelConfig(vocabulary=16, mixers=("mesa", "softmax_attention")))
        >>> config.vocab_size, config.layer_types
        (16, ['linear_attention', 'full_attention'])
    """

    model_type = "mesaopt"
    keys_to_ignore_at_inference = ("cache", "past_key_values")

    def __init__(self, settings: LanguageModelConfig | dict[str, Any] | None = None, **others: Any):
        if settings is None:
            settings = LanguageModelConfig()
        if isinstance(settings, dict):
            settings = from_dict(LanguageModelConfig, settings, where="settings")
        if not isinstance(settings, LanguageModelConfig):
            raise wrong_type("settings", settings, "a LanguageModelConfig")
        tied = others.pop("tie_word_embeddings", settings.tied)
        if tied != settings.tied:
            wanted = f"must be {settings.tied}, as settings.tied"
            raise ConfigError(f"tie_word_embeddings={tied}: {wanted}")
        self.settings = to_dict(settings)
        super().__init__(**others)
        self.tie_word_embeddings = tied

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """Read the content of a config.json.

        Args:
            config_dict: of a model of ours.
            kwargs: as in :meth:`transformers.PreTrainedConfig.from_dict`.

        Returns:
            The settings.

        Raises:
            ConfigError: they are of another architecture, or one is unknown or wrong.

        Example:
            >>> MesaoptConfig.from_dict({"model_type": "gpt2"})
            Traceback (most recent call last):
            ...
            mesaopt.errors.ConfigError: model_type='gpt2': must be 'mesaopt'
        """
        kind = config_dict.get("model_type", cls.model_type)
        if kind != cls.model_type:
            raise ConfigError(f"model_type={kind!r}: must be {cls.model_type!r}")
        return super().from_dict(config_dict, **kwargs)

    @property
    def language(self) -> LanguageModelConfig:
        """The settings of the language model."""
        return from_dict(LanguageModelConfig, self.settings, where="settings")

    @property
    def layer_types(self) -> list[str]:
        """The kind of cache of each layer, in the words of transformers.

        Layers with a state of constant size are "linear_attention"; softmax attention is "full_attention"
        or "sliding_attention", and "hybrid" or "hybrid_sliding" where it has convolutions or shifted keys.
        Some versions of transformers want one layer that counts positions: without softmax attention it is
        the first, a "hybrid" whose keys are a single byte for each token.
        """
        settings = self.language
        recent = settings.convolution is not None or settings.key_shift
        window = settings.window is not None
        softmax = _SOFTMAX[recent, window]
        kinds = [
            softmax if mixer == "softmax_attention" else "linear_attention"
            for mixer in settings.mixers
        ]
        return kinds if softmax in kinds else ["hybrid", *kinds[1:]]

    @property
    def number_of_conv_states(self) -> int:
        """Tensors that a layer of a cache has room for: three of mesa, and the last projections."""
        return 4

    @property
    def sliding_window(self) -> int | None:
        """Tokens that softmax attention sees."""
        return self.language.window

    @property
    def vocab_size(self) -> int:
        """Number of different tokens."""
        return self.language.vocabulary

    @property
    def hidden_size(self) -> int:
        """Width of the residual stream."""
        return self.language.width

    @property
    def num_hidden_layers(self) -> int:
        """Number of blocks."""
        return self.language.depth

    @property
    def num_attention_heads(self) -> int:
        """Heads of each mixer."""
        return self.language.num_heads

    @property
    def head_dim(self) -> int:
        """Width of a query, key and value of one head."""
        return self.language.key_width

    @property
    def initializer_range(self) -> float:
        """Standard deviation of the initial weights."""
        return self.language.initial_std
