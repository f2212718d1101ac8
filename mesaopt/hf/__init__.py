"""Language models for the library transformers: `pip install 'mesaopt[hf]'`.

Importing this module makes :class:`transformers.AutoConfig` and :class:`transformers.AutoModelForCausalLM`
know our models by the name "mesaopt".
"""

from mesaopt.errors import ConfigError

try:
    import transformers as _transformers

    if tuple(map(int, _transformers.__version__.split(".")[:2])) < (5, 16):
        raise ImportError
except ImportError:
    raise ConfigError(
        "mesaopt.hf: needs the library transformers, 5.16 or newer: pip install 'mesaopt[hf]'"
    ) from None

from mesaopt.hf.configuration import MesaoptConfig
from mesaopt.hf.flash_linear_attention import from_mesa_net, to_mesa_net
from mesaopt.hf.folders import export, restore, wrap
from mesaopt.hf.modelling import MesaoptForCausalLM

_transformers.AutoConfig.register(MesaoptConfig.model_type, MesaoptConfig, exist_ok=True)
_transformers.AutoModelForCausalLM.register(MesaoptConfig, MesaoptForCausalLM, exist_ok=True)

__all__ = [
    "MesaoptConfig",
    "MesaoptForCausalLM",
    "export",
    "from_mesa_net",
    "restore",
    "to_mesa_net",
    "wrap",
]
