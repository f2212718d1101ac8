"""Models of several seeds as one module; :mod:`mesaopt.training.seeds` trains it."""

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mesaopt.errors import ConfigError, wrong_type
from mesaopt.layers import CausalConvolution, HeadNorm, SelfAttention
from mesaopt.layers.convolution import KeyShift
from mesaopt.models.own import kind


class SideBySide(nn.Module):
    """Models of one shape, computed together.

    S models of H heads on a stream of width w are one model of S H heads on a stream of width S w, whose
    linear maps are block-diagonal. So the layers, the operators and their checks are those of one model.
    Every parameter of the joined model is that of the single models, laid end to end along the first axis.

    Args:
        models: of one configuration, 1 or more; they are left as they are. Parts with weights are
            :class:`torch.nn.Linear` or :class:`mesaopt.layers.SelfAttention`; others must act on every
            number by itself.

    Raises:
        TypeError: a part with weights is something else.
        ConfigError: there is no model, or they differ in more than the values of their weights.

    Example:
        >>> from mesaopt.config import ModelConfig
        >>> from mesaopt.models import SequenceModel
        >>> models = [SequenceModel(ModelConfig(initial_std=0.1), seed=seed) for seed in (0, 1)]
        >>> tokens = torch.randn(2, 3, 7, 40)
        >>> predictions = SideBySide(models)(tokens)
        >>> predictions.shape
        torch.Size([2, 3, 7, 10])
        >>> torch.allclose(predictions[1], models[1](tokens[1]), atol=1e-5)
        True
    """

    def __init__(self, models: Sequence[nn.Module]):
        super().__init__()
        _check(models)
        self.count = len(models)
        self.joined = _joined(models)

    def forward(
        self, tokens: Float[Tensor, "seed batch time token"]
    ) -> Float[Tensor, "seed batch time output"]:
        """Compute every model on tokens of its own.

        Args:
            tokens: [seed, batch, time, token].

        Returns:
            Predictions [seed, batch, time, output].

        Raises:
            ValueError: there are not as many batches as models.
        """
        if tokens.dim() != 4 or len(tokens) != self.count:
            wanted = f"must be [{self.count}, batch, time, token]"
            raise ValueError(f"tokens has shape {tuple(tokens.shape)}: {wanted}")
        wide = tokens.movedim(0, -2).flatten(-2)  # [B,T,seed*token]
        return self.joined(wide).unflatten(-1, (self.count, -1)).movedim(-2, 0)

    def states(self) -> list[dict[str, Tensor]]:
        """Return the `state_dict` of each model, as views."""
        return separate(self.joined.state_dict(), self.count)

    def load_states(self, states: Sequence[Mapping[str, Tensor]]) -> None:
        """Load a `state_dict` into each model.

        Args:
            states: one per model, as :meth:`states` returns them.

        Raises:
            RuntimeError: a name or a shape does not fit.
        """
        self.joined.load_state_dict(join(states))


class BlockDiagonal(nn.Module):
    """Linear maps, each on its own part of the last axis: y = [W_1 x_1 + b_1; W_2 x_2 + b_2; ...].

    Args:
        maps: of one shape, all with biases or all without, 1 or more.

    Example:
        >>> both = BlockDiagonal([nn.Linear(2, 3), nn.Linear(2, 3)])
        >>> both.weight.shape, both(torch.ones(5, 4)).shape
        (torch.Size([6, 2]), torch.Size([5, 6]))
    """

    def __init__(self, maps: Sequence[nn.Linear]):
        super().__init__()
        self.count = len(maps)
        parameters = join([dict(each.named_parameters()) for each in maps])
        self.weight = nn.Parameter(parameters["weight"].detach())
        self.bias = nn.Parameter(parameters["bias"].detach()) if "bias" in parameters else None

    @property
    def in_features(self) -> int:
        """Width of the input, of all maps together."""
        return self.count * self.weight.shape[1]

    @property
    def out_features(self) -> int:
        """Width of the output, of all maps together."""
        return self.weight.shape[0]

    def forward(self, x: Float[Tensor, "*position wide_in"]) -> Float[Tensor, "*position wide_out"]:
        """Apply each map to its part.

        Args:
            x: inputs end to end, [..., maps * in].

        Returns:
            Outputs end to end, [..., maps * out].
        """
        weights = self.weight.unflatten(0, (self.count, -1))  # [map,out,in]
        parts = x.unflatten(-1, (self.count, -1)).flatten(0, -3).transpose(0, 1)  # [map,N,in]
        out = torch.bmm(parts, weights.mT)  # [map,N,out]
        out = out.transpose(0, 1).reshape(*x.shape[:-1], -1)  # [...,map*out]
        return out if self.bias is None else out + self.bias


class _Convolution(CausalConvolution):
    """Convolution of several models, whose weights lie model by model and whose channels part by part.

    Channels come as [q_1, q_2, ..., k_1, k_2, ...], and so on with the values where these are convolved.
    """

    def __init__(self, weight: nn.Parameter, parts: Sequence[int], count: int):
        nn.Module.__init__(self)
        self.weight, self.parts, self.count = weight, list(parts), count

    @property
    def kernel(self) -> Float[Tensor, "channel length"]:
        """The weights in the order of the channels."""
        by_model = self.weight.unflatten(0, (self.count, -1))  # [model,channel,length]
        return torch.cat([part.flatten(0, 1) for part in by_model.split(self.parts, dim=1)])


# Attributes of these types are settings.
_PLAIN = (bool, int, float, complex, str, tuple, list)
# What has weights that can be laid end to end.
_PARTS = (nn.Linear, CausalConvolution, HeadNorm, SelfAttention)


def _check(models: Sequence[nn.Module]) -> None:
    """Refuse models that are not of one configuration, or have parts that cannot be joined."""
    if not models:
        raise ConfigError("models: there is none: must be one or more")
    first = _described(models[0])
    for number, model in enumerate(models):
        if _described(model) != first:
            raise ConfigError(f"models[{number}]: must be of the same configuration as models[0]")
    for name, part in models[0].named_modules():
        own = [*part.parameters(recurse=False), *part.buffers(recurse=False)]
        if own and not isinstance(part, _PARTS):
            where = f"models[0].{name}" if name else "models[0]"
            raise wrong_type(where, part, "a torch.nn.Linear or a SelfAttention, to be joined")


def _described(model: nn.Module) -> tuple[Any, ...]:
    """Describe everything about a model but the values of its weights."""
    weights = {name: kind(tensor) for name, tensor in model.state_dict().items()}
    plain = {
        name: {key: repr(x) for key, x in vars(part).items() if isinstance(x, _PLAIN)}
        for name, part in model.named_modules()
    }
    return repr(model), getattr(model, "config", None), weights, plain


def _joined(modules: Sequence[nn.Module]) -> nn.Module:
    """Build one module out of modules of one shape."""
    first = modules[0]
    if isinstance(first, nn.Linear):
        return BlockDiagonal([m for m in modules if isinstance(m, nn.Linear)])
    joined = copy.deepcopy(first)
    own = join([dict(module.named_parameters(recurse=False)) for module in modules])
    for name, parameter in own.items():  # such as a ridge per head
        setattr(joined, name, nn.Parameter(parameter.detach()))
    for name, _ in first.named_children():
        setattr(joined, name, _joined([module.get_submodule(name) for module in modules]))
    if isinstance(joined, SelfAttention):
        joined.num_heads *= len(modules)
        joined.num_key_value_heads *= len(modules)
        _order_channels(joined, len(modules))
    return joined


def _order_channels(layer: SelfAttention, count: int) -> None:
    """Let the convolution of a joined layer take queries, keys and values of all models, in this order."""
    convolution, wide = layer.convolution, [layer.query, layer.key, layer.value]
    parts = [part.out_features // count for part in wide]
    if isinstance(convolution, KeyShift):
        shift = KeyShift(*(part.out_features for part in wide))
        layer.convolution = shift.to(convolution.weight)
    elif convolution is not None:
        convolved = parts if layer.frame.convolve_values else parts[:-1]
        layer.convolution = _Convolution(convolution.weight, convolved, count)


def join(models: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Lay the tensors of several models, or of their optimisers, end to end.

    Args:
        models: tensors by name, the same names and shapes in all.

    Returns:
        Tensors joined along their first axis; a number, such as a count of steps, is that of the first.

    Example:
        >>> join([{"a": torch.zeros(2)}, {"a": torch.ones(2)}])["a"].tolist()
        [0.0, 0.0, 1.0, 1.0]
    """
    first = models[0]
    return {
        name: torch.cat([model[name] for model in models]) if tensor.dim() > 0 else tensor
        for name, tensor in first.items()
    }


def separate(tensors: Mapping[str, Tensor], count: int) -> list[dict[str, Tensor]]:
    """Undo :func:`join`.

    Args:
        tensors: of the joined models.
        count: number of models.

    Returns:
        The tensors of each, as views.

    Example:
        >>> [part["a"].tolist() for part in separate({"a": torch.arange(4)}, 2)]
        [[0, 1], [2, 3]]
    """
    split = {
        name: tensor.chunk(count) if tensor.dim() > 0 else (tensor,) * count
        for name, tensor in tensors.items()
    }
    return [{name: parts[i] for name, parts in split.items()} for i in range(count)]
