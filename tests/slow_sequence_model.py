"""The definition of SequenceModel and of all its mixers in NumPy, with loops: the oracle of its tests."""

import numpy as np
import torch
from torch import nn

from mesaopt.config import ModelConfig
from mesaopt.models import SequenceModel

Weights = dict[str, np.ndarray]

GATED = {"gated_linear_attention", "delta_rule", "gated_delta_rule", "longhorn", "mesanet2025"}
FORGETTING = {"gated_linear_attention", "gated_delta_rule", "mesanet2025"}
UNIT_KEYS = {"delta_rule", "gated_delta_rule", "mesanet2025"}


def slow_model(config: ModelConfig, model: SequenceModel, tokens: np.ndarray) -> np.ndarray:
    """Predict from one sequence [time, token]."""
    w = {name: p.detach().numpy() for name, p in model.named_parameters()}
    x = tokens if config.embed_dim is None else tokens @ w["embedding.weight"].T
    for layer in range(config.depth):
        x = x + slow_mixer(config, layer, part(w, f"blocks.{layer}.mixer."), x)
        if config.mlp_dim is not None:
            hidden = slow_gelu(x @ w[f"blocks.{layer}.mlp.0.weight"].T)
            x = x + hidden @ w[f"blocks.{layer}.mlp.2.weight"].T
        if config.activation_clip is not None:
            x = np.clip(x, -config.activation_clip, config.activation_clip)
    if config.readout == "linear":
        return x @ w["readout.weight"].T
    return x[:, : config.output_dim]


def slow_mixer(config: ModelConfig, layer: int, w: Weights, x: np.ndarray) -> np.ndarray:
    """Apply one mixer to the stream [time, width]."""
    mixer, placed = config.mixers[layer], x
    if layer == 0 and config.positions == "first_layer":
        placed = np.concatenate([x, slow_positions(*x.shape)], axis=1)
    inputs = {"query": placed, "key": placed, "value": x}
    q, k, v = (inputs[n] @ w[f"{n}.weight"].T for n in inputs)
    if mixer == "mesanet2025":
        kernels = np.split(w["convolution.weight"], 3)
        q, k, v = (slow_convolution(z, c) for z, c in zip((q, k, v), kernels, strict=True))
    beta, gamma = np.ones((2, len(x), config.num_heads))
    if mixer in GATED:
        beta = sigmoid(x @ w["gates.beta.weight"].T + w["gates.beta.bias"])
    if mixer in FORGETTING:
        gamma = sigmoid(x @ w["gates.log_decay.weight"].T + w["gates.log_decay.bias"])
        if config.forget_cap is not None:
            gamma = gamma * (1 - (1 - config.forget_cap) * beta**2)
    heads = []
    for h, columns in enumerate(np.split(np.arange(q.shape[1]), config.num_heads)):
        a, b, c = q[:, columns], k[:, columns], v[:, columns]
        unit_keys = mixer in UNIT_KEYS or (layer > 0 and config.unit_queries_keys == "after_first")
        unit_values = layer > 0 and config.unit_queries_values == "after_first"
        if unit_keys or unit_values:
            a = a / np.linalg.norm(a, axis=1, keepdims=True)
        if unit_keys:
            b = b / np.linalg.norm(b, axis=1, keepdims=True)
        if unit_values:
            c = c / np.linalg.norm(c, axis=1, keepdims=True)
        ridge = np.ones(len(columns))
        if mixer == "mesa":
            ridge = ridge / w["inverse_ridge"][h]
        if mixer == "mesanet2025":
            ridge = 0.25 + np.log1p(np.exp(w["raw_ridge"][h]))
        out = slow_head(mixer, a, b, c, beta[:, h], gamma[:, h], ridge)
        if mixer == "mesanet2025":
            size = np.sqrt((out**2).mean(axis=1, keepdims=True) + 1e-6)
            out = out / size * w["head_norm.weight"][h]
        heads.append(out)
    return np.concatenate(heads, axis=1) @ w["output.weight"].T


def slow_head(
    mixer: str,
    q: np.ndarray,
    k: np.ndarray,
    v: np.ndarray,
    beta: np.ndarray,
    gamma: np.ndarray,
    ridge: np.ndarray,
) -> np.ndarray:
    """Apply the operator of one head, [time, key] and [time, value], token by token."""
    learned, gram = np.zeros((v.shape[1], k.shape[1])), np.zeros((k.shape[1], k.shape[1]))
    outputs = np.zeros_like(v)
    for t in range(len(q)):
        if mixer == "softmax_attention":
            weights = np.exp(k[: t + 1] @ q[t] / np.sqrt(q.shape[1]))
            outputs[t] = weights @ v[: t + 1] / weights.sum()
            continue
        learned, gram, target, step = gamma[t] * learned, abs(gamma[t]) * gram, v[t], beta[t]
        if mixer in ("delta_rule", "gated_delta_rule", "longhorn"):
            target = v[t] - learned @ k[t]
        if mixer == "longhorn":
            step = step / (1 + step * k[t] @ k[t])
        learned = learned + step * np.outer(target, k[t])
        gram = gram + step * np.outer(k[t], k[t])
        solves = mixer in ("mesa", "mesanet2025")
        outputs[t] = learned @ (np.linalg.solve(gram + np.diag(ridge), q[t]) if solves else q[t])
    return outputs


def slow_convolution(x: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    """Convolve every channel of x [time, channel] over the last tokens, then apply SiLU."""
    out = np.zeros_like(x)
    length = kernel.shape[1]
    for t in range(len(x)):
        for back in range(min(length, t + 1)):
            out[t] += kernel[:, length - 1 - back] * x[t - back]
    return out * sigmoid(out)


def slow_positions(length: int, width: int) -> np.ndarray:
    table = np.zeros((length, width))
    for t in range(length):
        for i in range(width // 2):
            angle = t / 10_000 ** (2 * i / width)
            table[t, 2 * i], table[t, 2 * i + 1] = np.sin(angle), np.cos(angle)
    return table


def slow_gelu(x: np.ndarray) -> np.ndarray:
    return x / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def part(weights: Weights, prefix: str) -> Weights:
    names = [name for name in weights if name.startswith(prefix)]
    return {name.removeprefix(prefix): weights[name] for name in names}


def leave_the_start(model: SequenceModel, random: torch.Generator) -> None:
    """Give ridges, norms and biases of gates other values for every head and channel."""
    matrices = {id(part.weight) for part in model.modules() if isinstance(part, nn.Linear)}
    for name, parameter in model.named_parameters():
        if name.endswith("inverse_ridge"):
            parameter.data.uniform_(0.5, 2.0, generator=random)
        elif id(parameter) not in matrices:
            parameter.data += 0.3 * torch.randn(parameter.shape, generator=random)
