"""Tensors read from a checkpoint: nothing is unpickled, and all is checked before it is used."""

import json
import re
import warnings
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn

from mesaopt import files
from mesaopt.config import NetworkConfig, TrainConfig
from mesaopt.errors import InitialisationWarning, RunError
from mesaopt.models import make_model
from mesaopt.models.own import kind
from mesaopt.training.environment import single_precision

MOMENTS = ("exp_avg", "exp_avg_sq")
"""The tensors of AdamW's state for every parameter, besides a count of steps."""
_NARROWED = {"rounded_to": "float16"}
"""The fact saved with weights that are float32 and were rounded: without it halves are another model's."""


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read the tensors of a checkpoint.

    Args:
        path: of a `.safetensors` file.

    Returns:
        Tensors by name, and the facts saved with them.

    Raises:
        RunError: the file is missing, cannot be opened or is damaged.
    """
    data = files.read_bytes(path)
    try:
        tensors = load(data)
        length = int.from_bytes(data[:8], "little")
        facts = json.loads(data[8 : 8 + length]).get("__metadata__", {})
    except (SafetensorError, RuntimeError, ValueError, TypeError, KeyError) as error:
        raise damaged(path, str(error)) from None
    return {_name(name): tensor for name, tensor in tensors.items()}, facts


def narrowed(tensors: Mapping[str, Tensor], facts: Mapping[str, str]) -> bytes:
    """Round weights to half precision, for a file of half the size that says so.

    Args:
        tensors: float32, each below 65,504.
        facts: to save with them.

    Returns:
        The content of a `.safetensors` file, which :func:`widened` understands.
    """
    halves = {name: tensor.half() for name, tensor in tensors.items()}
    return save(halves, metadata={**facts, **_NARROWED})


def is_narrowed(facts: Mapping[str, str]) -> bool:
    """Say whether the weights of a file with these facts were rounded to half precision."""
    return _NARROWED.items() <= facts.items()


def widened(tensors: dict[str, Tensor], facts: Mapping[str, str]) -> dict[str, Tensor]:
    """Return the weights of a file in float32, where it says that they were rounded to half precision."""
    if not is_narrowed(facts):
        return tensors
    return {
        name: tensor.float() if tensor.dtype == torch.float16 else tensor
        for name, tensor in tensors.items()
    }


def initial_model(config: NetworkConfig) -> nn.Module:
    """Return a new model, whose weights have the names, shapes and dtypes that a checkpoint must have."""
    with warnings.catch_warnings(), single_precision():
        warnings.simplefilter("ignore", InitialisationWarning)  # about weights that are replaced
        return make_model(config)


def trained_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return the parameters that a training changes, by name."""
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def check_weights(path: Path, found: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> None:
    """Refuse weights of other names, shapes or dtypes than the model's, or that are not finite.

    Args:
        path: of their file.
        found: weights by name.
        wanted: those of a new model.

    Raises:
        RunError: they are not those of the model.
    """
    if found.keys() != wanted.keys():
        names = ", ".join(sorted(found.keys() ^ wanted.keys())[:3])
        raise RunError(f"{path}: the weights do not fit config.json: {names} missing or unknown")
    for name, tensor in found.items():
        ours, theirs = (kind(t) for t in (wanted[name], tensor))
        if ours != theirs:
            problem = f"{name} is {theirs}: must be {ours}"
            raise RunError(f"{path}: the weights do not fit config.json: {problem}")
        if not tensor.isfinite().all():
            raise damaged(path, f"{name} holds a number that is not finite")


def check_optimizer(
    path: Path,
    found: Mapping[str, Tensor],
    parameters: Mapping[str, Tensor],
    config: TrainConfig,
    *,
    step: int,
) -> None:
    """Refuse the state of an optimiser that is not the one of a run.

    Args:
        path: of its file.
        found: the state, "<parameter>/<name>" to tensor.
        parameters: those that are trained, of a new model, by name.
        config: of the training.
        step: steps done.

    Raises:
        RunError: a tensor is missing, unknown, or of another shape, dtype or range.
    """
    names = list(parameters) if config.optimizer == "adamw" and step > 0 else []
    count = torch.tensor(float(step), dtype=torch.float32)
    wanted = {f"{name}/step": count for name in names}
    wanted |= {f"{name}/{moment}": parameters[name] for name in names for moment in MOMENTS}
    if found.keys() != wanted.keys():
        wrong = ", ".join(sorted(found.keys() ^ wanted.keys())[:3])
        raise damaged(path, f"{wrong} missing or unknown")
    for name, tensor in found.items():
        ours, theirs = (kind(t) for t in (wanted[name], tensor))
        if ours != theirs:
            raise damaged(path, f"{name} is {theirs}: must be {ours}")
        if name.endswith("/step") and tensor != count:
            raise damaged(path, f"{name}={tensor.item():g}: must be {step}")
        squares = name.endswith("/exp_avg_sq") and not tensor.is_complex()
        if tensor.isnan().any() or (squares and (tensor < 0).any()):
            raise damaged(path, f"{name} holds a number out of range")


def apart(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copy tensors to the CPU, each into memory of its own: a module may use a weight in two places."""
    copies, known = {}, set()
    for name, tensor in tensors.items():
        saved = tensor.detach().cpu().contiguous()
        place = saved.untyped_storage().data_ptr()
        copies[name] = saved.clone() if place in known else saved
        known.add(place)
    return copies


def damaged(path: Path, problem: str) -> RunError:
    """Return the error of a checkpoint that cannot be used."""
    advice = f"delete {path.parent} to go on from the checkpoint before it"
    return RunError(f"{path}: is damaged ({problem}); {advice}")


def _name(saved: str) -> str:
    """Return the present name of a parameter; in old runs mixers and MLPs were lists of their own."""
    return re.sub(r"^(mixer|mlp)s\.(\d+)\.", r"blocks.\2.\1.", saved)
