"""Weights of MesaNet between the library flash-linear-attention and ours, by name."""

from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from mesaopt import files, json_files
from mesaopt.config import LanguageModelConfig
from mesaopt.errors import ConfigError
from mesaopt.models.language import LanguageModel, require_language_model
from mesaopt.training.tensors import read_tensors

# Names within a block, ours and theirs, of tensors that are the same.
_BLOCK = {
    "mixer_norm.weight": "attn_norm.weight",
    "mixer.query.weight": "attn.q_proj.weight",
    "mixer.key.weight": "attn.k_proj.weight",
    "mixer.value.weight": "attn.v_proj.weight",
    "mixer.output.weight": "attn.o_proj.weight",
    "mixer.gates.log_decay.weight": "attn.a_proj.weight",
    "mixer.gates.log_decay.bias": "attn.a_proj.bias",
    "mixer.gates.beta.weight": "attn.b_proj.weight",
    "mixer.gates.beta.bias": "attn.b_proj.bias",
    "network_norm.weight": "mlp_norm.weight",
    "network.gate.weight": "mlp.gate_proj.weight",
    "network.up.weight": "mlp.up_proj.weight",
    "network.down.weight": "mlp.down_proj.weight",
}
_AROUND = {"embedding.weight": "model.embeddings.weight", "norm.weight": "model.norm.weight"}
_HEAD = "lm_head.weight"

# Settings of theirs that we have no other value of.
_FIXED: dict[str, tuple[Any, ...]] = {
    "model_type": ("mesa_net",),
    "norm_eps": (1e-6,),
    "lambda_lower_bound": (0.25,),
    "hidden_act": ("swish", "silu"),
    "use_output_gate": (False,),
    "use_short_conv": (True,),
    "attn": (None,),
    "attnres_block_size": (None,),
}
# And of ours.
_OURS: dict[str, Any] = {
    "convolve_values": False,
    "feature_map": "none",
    "key_shift": False,
    "forget_cap": None,
    "signed_decay": False,
    "positions": "none",
    "scale_embeddings": False,
    "mlp": "swiglu",
    "norm": "rms",
    "logit_cap": None,
}


def from_mesa_net(path: str | Path) -> LanguageModel:
    """Read a MesaNet of flash-linear-attention, version 0.6, from a pretrained folder.

    Both compute the same function but for two things: here systems are solved to rounding, there by a fixed
    number of steps; and there 1e-6 is added to the squared length of a query or key before it is divided
    by its length, here nothing.

    Args:
        path: folder with `config.json` and the weights in files `*.safetensors`.

    Returns:
        The model, in float32, in evaluation mode.

    Raises:
        ConfigError: a setting or a tensor has no place here, or a tensor is missing or of another shape;
            it is named.
        RunError: a file is missing or damaged.

    Example:
        >>> from_mesa_net("no/such/folder")
        Traceback (most recent call last):
        ...
        mesaopt.errors.RunError: no/such/folder/config.json: there is no such file
    """
    folder = files.as_path(path)
    config = json_files.read(folder / "config.json", {"model_type": str})
    for name, allowed in _FIXED.items():
        if config.get(name, allowed[0]) not in allowed:
            wanted = f"must be {allowed[0]!r}"
            raise ConfigError(f"{folder / 'config.json'}: {name}={config[name]!r}: {wanted}")
    source = _Tensors(folder)
    tied = bool(config.get("tie_word_embeddings", _HEAD not in source.found))
    if tied:
        source.found.pop(_HEAD, None)
    model = LanguageModel(_settings_of(source, tied=tied))
    state = {}
    for name, x in model.state_dict().items():
        state[name] = _ours(source, name, tuple(x.shape), model.config)
    source.require_empty()
    model.load_state_dict(state)
    return model.eval()


def to_mesa_net(model: LanguageModel, path: str | Path) -> Path:
    """Write a model as a MesaNet that flash-linear-attention loads.

    Args:
        model: of mixers mesanet2025 with `convolve_values` switched off, gated networks, and neither a cap
            on logits nor one on forgetting: as :func:`from_mesa_net` reads it. Norms of heads that differ
            from head to head become factors of the output matrix.
        path: folder to write `config.json` and `model.safetensors` into, new or empty.

    Returns:
        The folder.

    Raises:
        TypeError: it is another kind of model.
        ConfigError: a setting of the model has no counterpart there; it is named.
        RunError: the folder holds files, or it cannot be written.
    """
    require_language_model(model)
    config, folder = model.config, files.as_path(path)
    for name, wanted in _OURS.items():
        if getattr(config, name) != wanted:
            raise ConfigError(f"{name}={getattr(config, name)!r}: must be {wanted!r} in a MesaNet")
    for mixer in config.mixers:
        if mixer != "mesanet2025":
            raise ConfigError(f"mixers: {mixer!r}: must be 'mesanet2025' in a MesaNet")
    files.require_free(folder)
    state = {name: x.detach().cpu() for name, x in model.state_dict().items()}
    theirs = {name: state[ours] for ours, name in _AROUND.items()}
    if not config.tied:
        theirs[_HEAD] = state["head.weight"]
    for layer in range(config.depth):
        theirs |= _their_block(state, f"blocks.{layer}.", f"model.layers.{layer}.", config)
    whole = {name: x.contiguous().clone() for name, x in theirs.items()}
    data = safetensors.torch.save(whole, metadata={"format": "pt"})
    files.write(folder / "model.safetensors", data)
    json_files.write(folder / "config.json", _their_config(config))
    return folder


class _Tensors:
    """Tensors of theirs, which are taken out one by one."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.found: dict[str, Tensor] = {}
        names = [name for name in files.names(folder) if name.endswith(".safetensors")]
        if not names:
            raise ConfigError(f"{folder}: has no file *.safetensors; nothing else is read")
        for name in sorted(names):
            self.found |= read_tensors(folder / name)[0]

    def shape(self, name: str, dimensions: int) -> tuple[int, ...]:
        """Return the shape of a tensor."""
        if name not in self.found:
            raise ConfigError(f"{self.folder}: {name}: there is no such tensor")
        shape = tuple(self.found[name].shape)
        if len(shape) != dimensions:
            wanted = f"must have {dimensions} dimensions"
            raise ConfigError(f"{self.folder}: {name} has shape {shape}: {wanted}")
        return shape

    def take(self, name: str, shape: tuple[int, ...]) -> Tensor:
        """Take a tensor out."""
        if (given := self.shape(name, len(shape))) != shape:
            raise ConfigError(f"{self.folder}: {name} has shape {given}: must be {shape}")
        return self.found.pop(name).float()

    def require_empty(self) -> None:
        """Refuse tensors that have no place here."""
        if self.found:
            raise ConfigError(f"{self.folder}: {min(self.found)}: has no place in a model of ours")


def _settings_of(source: _Tensors, *, tied: bool) -> LanguageModelConfig:
    """Read all sizes off the tensors."""
    vocabulary, width = source.shape("model.embeddings.weight", 2)
    depth = 1 + max(
        (int(name.split(".")[2]) for name in source.found if name.startswith("model.layers.")),
        default=0,
    )
    first = "model.layers.0."
    return LanguageModelConfig(
        vocabulary=vocabulary,
        width=width,
        mixers=("mesanet2025",) * depth,
        num_heads=source.shape(f"{first}attn.a_proj.weight", 2)[0],
        head_dim=source.shape(f"{first}attn.o_norm.weight", 1)[0],
        convolution=source.shape(f"{first}attn.q_conv1d.weight", 3)[2],
        convolve_values=False,
        mlp_dim=source.shape(f"{first}mlp.gate_proj.weight", 2)[0],
        tied=tied,
        logit_cap=None,
    )


def _ours(
    source: _Tensors, name: str, shape: tuple[int, ...], config: LanguageModelConfig
) -> Tensor:
    """Take the tensor that has a name of ours."""
    if name in _AROUND or name == "head.weight":
        return source.take(_AROUND.get(name, _HEAD), shape)
    _, layer, inner = name.split(".", 2)
    theirs = f"model.layers.{layer}."
    if inner in _BLOCK:
        return source.take(theirs + _BLOCK[inner], shape)
    heads, keys = config.num_heads, config.key_width
    if inner == "mixer.raw_ridge":
        return source.take(f"{theirs}attn.lambda_params", (heads * keys,)).reshape(shape)
    if inner == "mixer.head_norm.weight":
        return source.take(f"{theirs}attn.o_norm.weight", (keys,)).expand(shape).clone()
    assert inner == "mixer.convolution.weight", name
    half = (heads * keys, 1, shape[1])
    pair = (source.take(f"{theirs}attn.{part}_conv1d.weight", half) for part in "qk")
    return torch.cat([x.squeeze(1) for x in pair])


def _their_block(
    state: dict[str, Tensor], ours: str, theirs: str, config: LanguageModelConfig
) -> dict[str, Tensor]:
    """Return the tensors of a block by their names there."""
    block = {theirs + name: state[ours + inner] for inner, name in _BLOCK.items()}
    q, k = state[f"{ours}mixer.convolution.weight"].chunk(2)
    block[f"{theirs}attn.q_conv1d.weight"] = q.unsqueeze(1)
    block[f"{theirs}attn.k_conv1d.weight"] = k.unsqueeze(1)
    block[f"{theirs}attn.lambda_params"] = state[f"{ours}mixer.raw_ridge"].flatten()
    norm = state[f"{ours}mixer.head_norm.weight"]  # [H,V]
    block[f"{theirs}attn.o_norm.weight"] = norm[0]
    if not torch.equal(norm, norm[:1].expand_as(norm)):
        block[f"{theirs}attn.o_norm.weight"] = torch.ones_like(norm[0])
        block[f"{theirs}attn.o_proj.weight"] = state[f"{ours}mixer.output.weight"] * norm.flatten()
    return block


def _their_config(config: LanguageModelConfig) -> dict[str, Any]:
    return {
        "architectures": ["MesaNetForCausalLM"],
        "model_type": "mesa_net",
        "vocab_size": config.vocabulary,
        "hidden_size": config.width,
        "num_hidden_layers": config.depth,
        "num_heads": config.num_heads,
        "head_dim": config.key_width,
        "intermediate_size": config.mlp_width,
        "hidden_act": "swish",
        "conv_size": 4 if config.convolution is None else config.convolution,
        "norm_eps": 1e-6,
        "lambda_lower_bound": 0.25,
        "use_output_gate": False,
        "use_short_conv": True,
        "tie_word_embeddings": config.tied,
        "initializer_range": config.initial_std,
        "bos_token_id": None,
        "eos_token_id": None,
        "dtype": "float32",
    }
