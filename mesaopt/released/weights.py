"""From the names and layouts of the authors' parameters to those of ours."""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mesaopt.config import ModelConfig
from mesaopt.errors import RunError
from mesaopt.released.networks import Network
from mesaopt.training.tensors import initial_model

_PARTS = {
    "mixer.query.weight": "self_attn/q_proj/kernel",
    "mixer.key.weight": "self_attn/k_proj/kernel",
    "mixer.value.weight": "self_attn/v_proj/kernel",
    "mixer.output.weight": "self_attn/o_proj/kernel",
    "mixer.inverse_ridge": "self_attn/lambdas",
    "mlp.0.weight": "linear_0/kernel",
    "mlp.2.weight": "linear_2/kernel",
    "embedding.weight": "input_layer/kernel",
    "readout.weight": "output_layer/kernel",
}
_SWAPPED = {"mixer.key.weight": "mixer.value.weight", "mixer.value.weight": "mixer.key.weight"}
"""The authors' mesa layer calls the inputs of its regression values and the targets keys."""


def weights_of(
    network: Network, config: ModelConfig, arrays: Mapping[str, NDArray[np.float32]], path: Path
) -> dict[str, Tensor]:
    """Arrange the arrays of a file as the weights of our model.

    Their kernels act from the right, ours from the left. The rows of their mesa layer's output kernel go
    through the heads first, ours through the channels of each head.

    Args:
        network: that is read.
        config: of its model.
        arrays: of the file, by the keys that lead to them.
        path: of the file, for messages.

    Returns:
        The `state_dict` of the model.

    Raises:
        RunError: an array is missing, unknown, of another shape or not finite.
    """
    prefix = f"{network.keys}/"
    theirs = {k.removeprefix(prefix): v for k, v in arrays.items() if k.startswith(prefix)}
    weights = {}
    for name, wanted in initial_model(config).state_dict().items():
        key = _their_key(name, config)
        if key not in theirs:
            raise RunError(f"{path}: {prefix}{key} is missing")
        weight = _arranged(name, theirs.pop(key), config)
        if weight.shape != wanted.shape:
            have, want = list(weight.shape), list(wanted.shape)
            raise RunError(f"{path}: {prefix}{key} makes {name} of shape {have}: must be {want}")
        if not weight.isfinite().all():
            raise RunError(f"{path}: {prefix}{key} holds a number that is not finite")
        weights[name] = weight
    left = set(theirs) - set(_unused(network, theirs))
    if left:
        raise RunError(f"{path}: {prefix}{min(left)} belongs to no weight of {network.recipe}")
    return weights


def _unused(network: Network, theirs: Mapping[str, object]) -> Iterator[str]:
    """List the arrays of blocks that the network does not read."""
    for key in theirs:
        block = re.match(r"tf_block/blocklist_(\d+)/", key)
        if block and int(block[1]) in network.unused:
            yield key


def _their_key(name: str, config: ModelConfig) -> str:
    """Say which of their parameters is one of our weights."""
    match = re.fullmatch(r"blocks\.(\d+)\.(.+)", name)
    if match is None:
        return _PARTS[name]
    layer, part = int(match[1]), match[2]
    if config.mixers[layer] == "mesa":
        part = _SWAPPED.get(part, part)
    # Where tokens are embedded, their first block is one of its own.
    first = 0 if config.embed_dim is None else 1
    block = "hybrid_block" if layer < first else f"tf_block/blocklist_{layer - first}"
    return f"{block}/{_PARTS[part]}"


def _arranged(name: str, array: NDArray[np.float32], config: ModelConfig) -> Tensor:
    """Turn one of their parameters into the weight of ours."""
    match = re.match(r"blocks\.(\d+)\.", name)
    of_mesa = match is not None and config.mixers[int(match[1])] == "mesa"
    tensor = torch.from_numpy(array.copy())
    if of_mesa and name.endswith("output.weight") and len(tensor) % config.num_heads == 0:
        by_channel = tensor.unflatten(0, (-1, config.num_heads))  # [D*H,width] -> [D,H,width]
        tensor = by_channel.transpose(0, 1).flatten(0, 1)  # [H*D,width]
    return tensor.mT.contiguous() if tensor.dim() == 2 else tensor
