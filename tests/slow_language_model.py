"""The definition of LanguageModel in NumPy, with loops: the oracle of its tests."""

import numpy as np
from slow_sequence_model import (
    FORGETTING,
    GATED,
    UNIT_KEYS,
    Weights,
    part,
    sigmoid,
    slow_convolution,
    slow_gelu,
    slow_head,
    slow_positions,
)

from mesaopt.config import LanguageModelConfig
from mesaopt.models import LanguageModel


def slow_logits(
    config: LanguageModelConfig, model: LanguageModel, tokens: np.ndarray
) -> np.ndarray:
    """Compute the logits behind every token of one sequence [time]."""
    w = {name: p.detach().numpy() for name, p in model.named_parameters()}
    x = w["embedding.weight"][tokens] * (config.width**0.5 if config.scale_embeddings else 1)
    if config.positions == "sinusoidal":
        x = x + slow_positions(*x.shape)
    for layer, mixer in enumerate(config.mixers):
        block = part(w, f"blocks.{layer}.")
        normed = slow_norm(config, part(block, "mixer_norm."), x)
        x = x + slow_mixer(config, mixer, part(block, "mixer."), normed)
        if config.mlp != "none":
            normed = slow_norm(config, part(block, "network_norm."), x)
            x = x + slow_network(config, part(block, "network."), normed)
    head = w["embedding.weight"] if config.tied else w["head.weight"]
    logits = slow_norm(config, part(w, "norm."), x) @ head.T
    return (
        logits
        if config.logit_cap is None
        else config.logit_cap * np.tanh(logits / config.logit_cap)
    )


def slow_norm(config: LanguageModelConfig, w: Weights, x: np.ndarray) -> np.ndarray:
    out = np.zeros_like(x)
    for t, row in enumerate(x):
        if config.norm == "layer":
            row = row - row.mean()
        out[t] = w["weight"] * row / np.sqrt((row**2).mean() + 1e-6) + w.get("bias", 0.0)
    return out


def slow_network(config: LanguageModelConfig, w: Weights, x: np.ndarray) -> np.ndarray:
    hidden = x @ w["up.weight"].T
    if config.mlp == "swiglu":
        gate = x @ w["gate.weight"].T
        hidden = gate * sigmoid(gate) * hidden
    else:
        hidden = slow_gelu(hidden) if config.mlp == "gelu" else np.maximum(hidden, 0.0)
    return hidden @ w["down.weight"].T


def slow_mixer(config: LanguageModelConfig, mixer: str, w: Weights, x: np.ndarray) -> np.ndarray:
    """Apply one mixer to the normalised stream [time, width]."""
    q, k, v = (x @ w[f"{name}.weight"].T for name in ("query", "key", "value"))
    if "convolution.weight" in w:
        kernels = np.split(w["convolution.weight"], 3 if config.convolve_values else 2)
        q, k = slow_convolution(q, kernels[0]), slow_convolution(k, kernels[1])
        if config.convolve_values:
            v = slow_convolution(v, kernels[2])
    if config.key_shift:
        k = np.concatenate([np.zeros_like(k[:1]), k[:-1]])
    beta, gamma = np.ones((2, len(x), config.num_heads))
    if mixer in GATED:
        beta = sigmoid(x @ w["gates.beta.weight"].T + w["gates.beta.bias"])
    if mixer in FORGETTING:
        raw = x @ w["gates.log_decay.weight"].T + w["gates.log_decay.bias"]
        gamma = np.tanh(raw / 2) if config.signed_decay else sigmoid(raw)
        if config.forget_cap is not None:
            gamma = gamma * (1 - (1 - config.forget_cap) * beta**2)
    learns = mixer != "softmax_attention"
    heads = []
    for h, columns in enumerate(np.split(np.arange(q.shape[1]), config.num_heads)):
        a, b, c = q[:, columns], k[:, columns], v[:, columns]
        if learns and config.feature_map != "none":
            a, b = (slow_dpfp(z, int(config.feature_map[-1])) for z in (a, b))
        if mixer in UNIT_KEYS or (learns and config.unit_queries_keys):
            a, b = (slow_unit(z) for z in (a, b))
        if config.positions == "rotary" and not learns:
            a, b = slow_rotation(a), slow_rotation(b)
        if learns:
            out = slow_head(mixer, a, b, c, beta[:, h], gamma[:, h], slow_ridge(w, h, a))
        else:
            out = slow_window(a, b, c, config.window or len(x))
        if "head_norm.weight" in w:
            out = out / np.sqrt((out**2).mean(1, keepdims=True) + 1e-6) * w["head_norm.weight"][h]
        heads.append(out)
    return np.concatenate(heads, axis=1) @ w["output.weight"].T


def slow_ridge(w: Weights, head: int, q: np.ndarray) -> np.ndarray:
    if "raw_ridge" in w:
        return 0.25 + np.log1p(np.exp(w["raw_ridge"][head]))
    return np.full(q.shape[1], 1 / w["inverse_ridge"][head] if "inverse_ridge" in w else 1.0)


def slow_rotation(x: np.ndarray) -> np.ndarray:
    """Turn pairs of components, as complex numbers."""
    time, width = x.shape
    pairs = x[:, 0::2] + 1j * x[:, 1::2]
    turned = [
        [pairs[t, i] * np.exp(1j * t * 10000 ** (-2 * i / width)) for i in range(width // 2)]
        for t in range(time)
    ]
    return np.array([[part for z in row for part in (z.real, z.imag)] for row in turned])


def slow_window(q: np.ndarray, k: np.ndarray, v: np.ndarray, window: int) -> np.ndarray:
    out = np.zeros_like(v)
    for t in range(len(q)):
        near = slice(max(0, t + 1 - window), t + 1)
        weights = np.exp(k[near] @ q[t] / np.sqrt(q.shape[1]))
        out[t] = weights @ v[near] / weights.sum()
    return out


def slow_dpfp(x: np.ndarray, shifts: int) -> np.ndarray:
    parts = np.concatenate([np.maximum(x, 0), np.maximum(-x, 0)], axis=1)
    size = parts.shape[1]
    columns = [
        parts[:, i] * parts[:, (i - j) % size] for j in range(1, shifts + 1) for i in range(size)
    ]
    return np.stack(columns, axis=1)


def slow_unit(x: np.ndarray) -> np.ndarray:
    norms = np.linalg.norm(x, axis=1, keepdims=True)
    return x / np.where(norms == 0, 1.0, norms)
