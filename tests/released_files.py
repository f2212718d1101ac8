"""Files in the format of the authors' release, with random numbers, and their model written out in NumPy.

Pickles are written without JAX: its names are written down, not imported.
"""

import io
import pickle
from pathlib import Path
from typing import Any

import numpy as np
from slow_sequence_model import slow_gelu, slow_positions

from mesaopt.config import ModelConfig, RunConfig
from mesaopt.released import Network

Tree = dict[str, Any]


class Name:
    """A function or class that a pickle names."""

    def __init__(self, module: str, name: str):
        self.line = f"{module}\n{name}\n"

    def __call__(self) -> None:
        """Nothing: pickle wants what is called to be callable."""


class Called:
    """An object that a pickle makes by a call, and then gives a state."""

    def __init__(self, function: Name, arguments: tuple, state: Any = None):
        self.reduced = (function, arguments, state)

    def __reduce__(self) -> tuple:
        return self.reduced


class Writer(pickle._Pickler):
    def save(self, obj: Any, save_persistent_id: bool = True) -> None:
        if isinstance(obj, Name):
            self.write(pickle.GLOBAL + obj.line.encode())
        else:
            super().save(obj, save_persistent_id)


RECONSTRUCT = Name("numpy.core.multiarray", "_reconstruct")
NDARRAY, DTYPE = Name("numpy", "ndarray"), Name("numpy", "dtype")
JAX_ARRAY = Name("jax._src.array", "_reconstruct_array")


def number(name: str = "f4", order: str = "<") -> Called:
    return Called(DTYPE, (name, False, True), (3, order, None, None, None, -1, -1, 0))


def state(array: np.ndarray, **changes: Any) -> tuple:
    """Make the state of an array, with some of it changed."""
    parts = {"version": 1, "shape": array.shape, "dtype": number(), "by_columns": False}
    return tuple((parts | {"data": array.astype("<f4").tobytes()} | changes).values())


def jax_array(array: np.ndarray, new: Any = RECONSTRUCT, **changes: Any) -> Called:
    kind = {"weak_type": False, "named_shape": {}}
    return Called(JAX_ARRAY, (new, (NDARRAY, (0,), b"b"), state(array, **changes), kind))


def numpy_array(array: np.ndarray) -> Called:
    return Called(RECONSTRUCT, (NDARRAY, (0,), b"b"), state(array))


def pickled(tree: Any) -> bytes:
    """Pickle nested dictionaries; their arrays become those of JAX."""

    def converted(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: converted(item) for key, item in value.items()}
        return jax_array(value) if isinstance(value, np.ndarray) else value

    file = io.BytesIO()
    Writer(file, protocol=4).dump(converted(tree))
    return file.getvalue()


def parameters(config: ModelConfig, unused: int, random: np.random.Generator) -> Tree:
    """Draw parameters under the authors' names, with some blocks that nobody reads."""

    def kernel(rows: int, columns: int) -> Tree:
        drawn = random.standard_normal((rows, columns)) / rows**0.5
        return {"kernel": drawn.astype(np.float32)}

    def block(mixer: str, wide: int) -> Tree:
        width, inner = config.width, config.num_heads * config.key_width
        attention = {name: kernel(wide, inner) for name in ("q_proj", "k_proj")}
        attention |= {"v_proj": kernel(width, inner), "o_proj": kernel(inner, width)}
        if mixer == "mesa":
            lambdas = random.uniform(0.5, 2.0, config.num_heads)
            attention["lambdas"] = lambdas.astype(np.float32)
        mlp = {}
        if config.mlp_dim is not None:
            mlp["linear_0"] = kernel(width, config.mlp_dim)
            mlp["linear_2"] = kernel(config.mlp_dim, width)
        return {"self_attn": attention, **mlp}

    embeds, mixers, tree = config.embed_dim is not None, list(config.mixers), {}
    if embeds:
        placed = 2 * config.width if config.positions == "first_layer" else config.width
        tree["hybrid_block"] = block(mixers.pop(0), placed)
        tree["input_layer"] = kernel(config.token_dim, config.width)
        tree["output_layer"] = kernel(config.width, config.output_dim)
    mixers += ["softmax_attention"] * unused
    blocks = {f"blocklist_{i}": block(mixer, config.width) for i, mixer in enumerate(mixers)}
    return tree | {"tf_block": blocks}


def predictions(config: ModelConfig, tree: Tree, tokens: np.ndarray) -> np.ndarray:
    """Compute what the authors' model makes of one sequence [time, token], in float64."""
    embeds = config.embed_dim is not None
    x = tokens @ tree["input_layer"]["kernel"] if embeds else tokens
    for layer, mixer in enumerate(config.mixers):
        first = embeds and layer == 0
        name = f"blocklist_{layer - embeds}"
        block = tree["hybrid_block"] if first else tree["tf_block"][name]
        x = x + _attention(config, mixer, block["self_attn"], x, first=first)
        if "linear_0" in block:
            hidden = slow_gelu(x @ block["linear_0"]["kernel"])
            x = x + hidden @ block["linear_2"]["kernel"]
        if config.activation_clip is not None:
            x = np.clip(x, -config.activation_clip, config.activation_clip)
    return x @ tree["output_layer"]["kernel"] if embeds else x[:, : config.output_dim]


def _attention(
    config: ModelConfig, mixer: str, block: Tree, x: np.ndarray, *, first: bool
) -> np.ndarray:
    positions = slow_positions(*x.shape)
    placed = np.concatenate([x, positions], axis=1) if first else x
    inputs = {"q_proj": placed, "k_proj": placed, "v_proj": x}
    heads = (len(x), config.num_heads, -1)
    q, k, v = (inputs[name] @ block[name]["kernel"] for name in inputs)
    q, k, v = (z.reshape(heads) for z in (q, k, v))
    norms = not first and config.mlp_dim is not None
    if norms:  # in a mesa layer k_proj makes the targets, and these are divided
        q, k = (z / np.linalg.norm(z, axis=-1, keepdims=True) for z in (q, k))
    out = np.zeros_like(v)
    for h in range(config.num_heads):
        for t in range(len(x)):
            past, query = slice(t + 1), q[t, h]
            if mixer == "mesa":
                regressors, targets = v[past, h], k[past, h]
                ridge = np.eye(q.shape[-1]) / block["lambdas"][h]
                weights = regressors @ np.linalg.solve(regressors.T @ regressors + ridge, query)
                out[t, h] = weights @ targets
                continue
            weights = k[past, h] @ query
            if mixer == "softmax_attention":
                weights = np.exp(weights / q.shape[-1] ** 0.5)
                weights /= weights.sum()
            out[t, h] = weights @ v[past, h]
    # The heads of a mesa layer are its last axis.
    flat = (out.swapaxes(1, 2) if mixer == "mesa" else out).reshape(len(x), -1)
    return flat @ block["o_proj"]["kernel"]


def write_clone(folder: Path, networks: dict[Network, RunConfig], seed: int = 0) -> dict:
    """Write the files of some networks as a clone has them; return the parameters of each."""
    random = np.random.default_rng(seed)
    trees: dict[str, Tree] = {}
    drawn = {}
    for network, config in networks.items():
        tree = parameters(config.sequence_model, len(network.unused), random)
        drawn[network] = tree
        trees.setdefault(network.file, {})[network.keys] = tree
    for file, tree in trees.items():
        path = folder / "experiment_results" / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(pickled(tree))
    return drawn
