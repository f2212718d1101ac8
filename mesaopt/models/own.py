"""Modules of the user's own: recognised by their weights, and tried out before they are trained."""

import copy
from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Shaped
from torch import Tensor, nn

from mesaopt.config import OwnModelConfig
from mesaopt.errors import ConfigError
from mesaopt.models.random import keep_global_random


def own_model(
    model: Any,
    *,
    name: str | None = None,
    keywords: Mapping[str, Any] | None = None,
) -> OwnModelConfig:
    """Make the settings that stand for a module of your own.

    It maps tokens [batch, time, token] to predictions [batch, time, dim]. A module starts with the weights
    that it has, for every seed, and is itself left as it is: a copy is trained. A function is called with
    torch's global generator at the seed of the run, so that every seed has weights of its own.

    Args:
        model: the module, or a function or class that makes it when it is called without arguments.
        name: "module:Class", if it can be made from there; the name of its class if not given.
        keywords: arguments that `Class` is called with by `model`.

    Returns:
        The settings, for a :class:`mesaopt.config.RunConfig`.

    Raises:
        ConfigError: it is no module and makes none, or has no weights to train.

    Example:
        >>> own_model(lambda: nn.Linear(3, 2), name="readout").weights
        {'weight': 'float32 [2, 3]', 'bias': 'float32 [2]'}
    """
    module = _build(model, seed=0)
    if not any(p.requires_grad for p in module.parameters()):
        raise ConfigError(f"model: {type(module).__name__} has no weights to train: must have some")
    return OwnModelConfig(
        name=type(module).__name__ if name is None else name,
        keywords=dict(keywords or {}),
        weights={name: kind(tensor) for name, tensor in module.state_dict().items()},
        model=model,
    )


def build_own(config: OwnModelConfig, *, seed: int) -> nn.Module:
    """Make a new module from the settings that stand for it.

    Args:
        config: with the module, or the function that makes it.
        seed: of the initial weights, where a function makes it.

    Returns:
        The module, in training mode.

    Raises:
        ConfigError: the settings were read from a file, or the function makes another module now.
    """
    if config.model is None:
        raise ConfigError(
            f"model={config.name!r}: is a module of your own, whose code no file holds: give it again "
            "(model=..., or --model module:Class on the command line)"
        )
    return _build(config.model, seed=seed)


@keep_global_random()
def _build(model: Any, *, seed: int) -> nn.Module:
    if isinstance(model, nn.Module):
        return copy.deepcopy(model).train()
    if not callable(model):
        wanted = "must be a ModelConfig, a torch.nn.Module, or a function that makes one"
        raise ConfigError(f"model: is of type {type(model).__name__}: {wanted}")
    torch.default_generator.manual_seed(seed)
    module = model()
    if not isinstance(module, nn.Module):
        raise ConfigError(
            f"model: makes something of type {type(module).__name__}: must make a torch.nn.Module"
        )
    return module.train()


def kind(tensor: Tensor) -> str:
    """Describe the type and shape of a tensor, such as "float32 [2, 3]"."""
    return f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"


def try_model(
    model: nn.Module,
    tokens: Shaped[Tensor, "batch time *token"],
    shape: tuple[int, ...],
    **arguments: Tensor,
) -> None:
    """Refuse a module that does not predict, or not as a function of the tokens alone.

    Args:
        model: in the mode that it is trained in.
        tokens: a few sequences.
        shape: of the predictions for them.
        **arguments: what the model is given besides.

    Raises:
        ConfigError: it fails, its output is no finite tensor of this shape or does not depend on weights,
            its output changes from call to call, as by dropout, or a buffer does, as by batch
            normalisation.

    Example:
        >>> try_model(nn.Linear(3, 2), torch.zeros(4, 5, 3), (4, 5, 1))
        Traceback (most recent call last):
        ...
        mesaopt.errors.ConfigError: model: its output has shape (4, 5, 2): must be (4, 5, 1)
    """
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    before = torch.get_rng_state()
    try:
        once, twice = model(tokens, **arguments), model(tokens, **arguments)
    except Exception as error:
        given = f"{kind(tokens)} tokens"
        problem = f"given {given}, it raised {type(error).__name__}: {error}"
        raise ConfigError(f"model: {problem}") from error
    drew = not before.equal(torch.get_rng_state())
    torch.set_rng_state(before)
    if not isinstance(once, Tensor):
        raise ConfigError(f"model: its output is of type {type(once).__name__}: must be a tensor")
    if once.shape != shape:
        raise ConfigError(f"model: its output has shape {tuple(once.shape)}: must be {shape}")
    if not once.requires_grad:
        raise ConfigError(
            "model: its output depends on no weight that is trained: must depend on some"
        )
    if not once.isfinite().all():
        raise ConfigError("model: its output is not finite at the first weights: must be")
    if drew or not once.equal(twice):
        wanted = "must be a function of the tokens alone, without dropout"
        raise ConfigError(f"model: its output is random: {wanted}")
    changed = [n for n, buffer in model.named_buffers() if not buffer.equal(buffers[n])]
    if changed:
        wanted = "must be left as it is, as batch normalisation does not"
        raise ConfigError(f"model: its buffer {changed[0]!r} changes when it predicts: {wanted}")
