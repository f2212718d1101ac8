"""Models of several seeds, computed as one: a batched model in which nothing is shared."""

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mesaopt.layers import SelfAttention
from mesaopt.models.sequence import SequenceModel


class SideBySide(nn.Module):
    """Linear maps laid side by side, each for its own part of the last axis: one block-diagonal map.

    y = [W_1 x_1; W_2 x_2; ...] for x = [x_1; x_2; ...].

    Args:
        maps: of one shape, without biases, 1 or more.

    Example:
        >>> both = SideBySide([nn.Linear(2, 3, bias=False), nn.Linear(2, 3, bias=False)])
        >>> both.weight.shape, both(torch.ones(5, 4)).shape
        (torch.Size([6, 2]), torch.Size([5, 6]))
    """

    def __init__(self, maps: Sequence[nn.Linear]):
        super().__init__()
        self.count = len(maps)
        self.weight = nn.Parameter(torch.cat([each.weight.detach() for each in maps]))

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
            x: inputs side by side, [..., maps * in].

        Returns:
            Outputs side by side, [..., maps * out].
        """
        weights = self.weight.unflatten(0, (self.count, -1))  # [map,out,in]
        parts = x.unflatten(-1, (self.count, -1)).flatten(0, -3).transpose(0, 1)  # [map,N,in]
        out = torch.bmm(parts, weights.mT)  # [map,N,out]
        return out.transpose(0, 1).reshape(*x.shape[:-1], -1)


def side_by_side(models: Sequence[SequenceModel]) -> SequenceModel:
    """Turn models of one shape into one that computes them all.

    S models side by side are one model of S times as many heads, on a stream S times as wide, with
    block-diagonal linear maps. So the layers and operators of one model, and what they check, serve for
    many: tokens, predictions and every parameter lie side by side, the former along their last axis, the
    latter along their first.

    Args:
        models: of one configuration, 1 or more. Their parts are used up.

    Returns:
        The model: tokens [batch, time, models * token] to predictions [batch, time, models * output]. A
        single one is returned as it is.

    Example:
        >>> from mesaopt.config import ModelConfig
        >>> models = [SequenceModel(ModelConfig(initial_std=0.1), seed=seed) for seed in (0, 1)]
        >>> tokens = torch.randn(3, 7, 40)
        >>> wanted = torch.cat([model(tokens) for model in models], dim=-1)
        >>> found = side_by_side(models)(torch.cat([tokens, tokens], dim=-1))
        >>> torch.allclose(found, wanted, atol=1e-5)
        True
    """
    if len(models) > 1:
        _merge(models)
    return models[0]


def join(models: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Lay the parameters of several models, or what an optimiser knows of them, side by side.

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
        tensors: of models side by side.
        count: how many there are.

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


def _merge(modules: Sequence[nn.Module]) -> None:
    """Make the first of these modules all of them."""
    first = modules[0]
    own = [dict(module.named_parameters(recurse=False)) for module in modules]
    for name, parameter in join(own).items():  # such as a ridge per head
        setattr(first, name, nn.Parameter(parameter.detach()))
    if isinstance(first, SelfAttention):
        first.num_heads *= len(modules)
    for name, child in list(first.named_children()):
        children = [module.get_submodule(name) for module in modules]
        if isinstance(child, nn.Linear):
            setattr(first, name, SideBySide(children))  # type: ignore[arg-type]
        else:
            _merge(children)
