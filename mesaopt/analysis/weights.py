"""Products of the weights of linear self-attention, their reduction to scalars, and mixtures of models."""

from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from mesaopt.analysis.given import AnyModel, as_model
from mesaopt.config import ModelConfig, differences
from mesaopt.layers import Frame, LinearSelfAttention, MesaLayer, SelfAttention
from mesaopt.models import SequenceModel


@dataclass(frozen=True)
class Compressed:
    """Linear self-attention layers in a few scalars per head, and the model that they make.

    Example:
        >>> compressed = compress(SequenceModel(ModelConfig(mixers=("linear_attention",) * 2)))
        >>> compressed.num_scalars, tuple(compressed.key_query.shape)
        (256, (2, 4, 4, 4))
    """

    model: SequenceModel
    """Predicts with the scalars alone."""
    key_query: Float[Tensor, "layer head slot slot"]
    """Scalars of W_k^T W_q: [layer, head, slot of the key, slot of the query]."""
    output_value: Float[Tensor, "layer head slot slot"]
    """Scalars of P W_v: [layer, head, slot written to, slot of the value]."""
    key_query_energy: Float[Tensor, "layer head"]
    """Share of the squared entries of W_k^T W_q that its scalars explain, see :func:`block_energy`."""
    output_value_energy: Float[Tensor, "layer head"]
    """The same share of P W_v."""

    @property
    def num_scalars(self) -> int:
        """Number of scalars: 2 slots^2 per head."""
        return self.key_query.numel() + self.output_value.numel()


@torch.no_grad()
def compress(model: AnyModel) -> Compressed:
    """Replace every [dim, dim] block of the products of a model's weights by c times the identity.

    With c the mean of the block's diagonal, the nearest such block, in W_k^T W_q and P W_v of every head
    of every layer:

        x_t <- clip(x_t + sum_heads (P W_v) sum_{s <= t} x_s (x_s^T (W_k^T W_q) x_t)),

    Slots of `output_dim` coordinates are then added and multiplied as wholes: an algorithm for states of
    any dimension.

    Args:
        model: linear self-attention layers alone, on tokens made of slots as wide as a prediction.

    Returns:
        The scalars, the share of the weights that they explain, and the model of the scalars, with the clip
        of the given one.

    Raises:
        ValueError: the model does not fit the construction.

    Source: von Oswald et al., CompressedAlg-d of Fig. 4. Their text counts 16 numbers per head, a 4 x 4
    grid of blocks; their code keeps one grid for each of the two products, and so does this. Their code
    fits one size of tokens and heads; products take the place of heads here, and any size and depth fits.

    Example:
        >>> from mesaopt.theory import proposition_1
        >>> model = SequenceModel(ModelConfig(num_heads=1, head_dim=10))
        >>> _ = model.load_state_dict(proposition_1(10, step_size=0.03))
        >>> compressed, tokens = compress(model), torch.randn(2, 5, 40)
        >>> torch.allclose(compressed.model(tokens), model(tokens), atol=1e-5)
        True
        >>> compress(SequenceModel(ModelConfig(mixers=("mesa",))))
        Traceback (most recent call last):
        ...
        ValueError: mixers=('mesa',): must be linear_attention alone; others are no products of weights
    """
    checked = _checked(model)
    config, products = checked.config, _products(checked)
    _check_divides(config.width, config.output_dim, "output_dim")
    scalars = _Products(*(_diagonal_means(x, config.output_dim) for x in products))
    blocks = _Products(*(_identity_blocks(x, config.output_dim) for x in scalars))
    energies = (block_energy(x, config.output_dim) for x in products)
    return Compressed(_model_of(config, blocks), *scalars, *energies)


@torch.no_grad()
def interpolate(model: AnyModel, other: AnyModel, weight: float = 0.5) -> SequenceModel:
    """Make the model whose products of weights are weighted means of those of two models.

    W_k^T W_q = (1 - weight) (W_k^T W_q)_model + weight (W_k^T W_q)_other, and so for P W_v, in every head
    of every layer. Means of the weights themselves have no meaning: queries and keys may change signs, or
    rotate together, without a change of the function. Heads are paired by number, so the two models should
    come from one training, or one from the other by :func:`compress`.

    Args:
        model: as in :func:`compress`.
        other: the same in everything but the width of its heads.
        weight: of `other`, 0 to 1.

    Returns:
        The model, with heads as wide as the stream.

    Raises:
        ValueError: a model does not fit the construction, the two differ, or the weight is out of range.

    Source: von Oswald et al., Fig. 4A and 4B: the authors average the scores of both sets of weights, then
    what both write, which is this with a weight of one half.

    Example:
        >>> model = SequenceModel(ModelConfig())
        >>> halfway, tokens = interpolate(model, compress(model).model), torch.randn(2, 5, 40)
        >>> halfway(tokens).shape
        torch.Size([2, 5, 10])
    """
    if not 0 <= weight <= 1:
        raise ValueError(f"weight={weight}: must be between 0 and 1")
    models = _checked(model), _checked(other, "other")
    ours, theirs = (each.config for each in models)
    alike = replace(theirs, head_dim=ours.head_dim, initial_std=ours.initial_std)
    if changes := differences(ours, alike):
        raise ValueError(f"other: must be as model but for its heads' width ({'; '.join(changes)})")
    pairs = zip(*map(_products, models), strict=True)
    return _model_of(ours, _Products(*(torch.lerp(a, b, weight) for a, b in pairs)))


@torch.no_grad()
def product_form(model: AnyModel) -> SequenceModel:
    """Write a model of linear self-attention with heads as wide as its stream: the same function.

    W_q becomes W_k^T W_q, W_v becomes P W_v, and W_k and P become the identity, in every head.

    Args:
        model: linear self-attention layers alone.

    Returns:
        The model; its predictions differ by rounding.

    Raises:
        ValueError: the model has something besides.

    Example:
        >>> model = SequenceModel(ModelConfig(num_heads=3, head_dim=2))
        >>> product_form(model).mixers[0].query.weight.shape
        torch.Size([120, 40])
    """
    checked = _checked(model)
    return _model_of(checked.config, _products(checked))


def effective_coefficients(
    layer: SelfAttention, dim: int
) -> Float[Tensor, "query_slot key_slot value_slot"]:
    """Reduce a layer to one scalar per slot of its query, key and value.

    Each [dim, dim] block of a head's W_k^T W_q and of the rows of its P W_v that write the prediction is
    replaced by the mean of its diagonal, c times the identity. Then

        E[a, b, c] = sum_heads KQ[b, a] * PV[0, c],
        prediction_t = sum_{a, b, c} E[a, b, c] sum_{s <= t} slot_c(s) (slot_b(s) . slot_a(t)).

    One step of gradient descent has a single coefficient that is not zero, the step size, at (a, b, c) =
    (current, previous, current).

    Args:
        layer: linear self-attention on tokens made of slots.
        dim: width of a slot.

    Returns:
        E [slots, slots, slots].

    Raises:
        ValueError: the width of the tokens is not a multiple of dim, or the layer has another operator, or
            positions or norms.

    Source: von Oswald et al., section "Linear self-attention" (the compressed model of one layer).

    Example:
        >>> from mesaopt.layers import LinearSelfAttention
        >>> effective_coefficients(LinearSelfAttention(width=40, num_heads=2, head_dim=20), 10).shape
        torch.Size([4, 4, 4])
    """
    if type(layer) is not LinearSelfAttention or layer.frame != Frame():
        kind = type(layer).__name__
        raise ValueError(f"layer: {kind}: must be linear self-attention without positions or norms")
    key_query, value_output = (_diagonal_means(x, dim) for x in layer.head_products())
    return torch.einsum("hba,hc->abc", key_query, value_output[:, 0])


@torch.no_grad()
def effective_ridges(layer: MesaLayer, *, dim: int, slot: int) -> Float[Tensor, "head dim"]:
    """Convert the ridges of a mesa layer into those of the same regression on the states themselves.

    A layer regresses on its keys, k = W x with the states x of one slot. Their scale is free, and its ridge
    means something next to it only: with r added to the Gram matrix of the keys,

        K^T (K K^T + r I)^{-1} W = X^T (X X^T + r (W^T W)^{-1})^{-1},

    K = W X, so that the regression on states has the ridge matrix r (W^T W)^{-1}. A learned lambda = 1 / r
    says little by itself.

    Args:
        layer: one ridge per head; its keys read one slot, and no positions or norms.
        dim: width of a slot, up to the width of a head.
        slot: that of the regression inputs, counted from 0.

    Returns:
        The eigenvalues of r (W^T W)^{-1} of every head in float64, ascending.

    Raises:
        ValueError: the width of the tokens is not a multiple of dim, there is no such slot, or the layer
            has another ridge or other keys.

    Example:
        >>> layer = MesaLayer(width=4, num_heads=1, head_dim=2)
        >>> layer.key.weight.data = torch.tensor([[0.0, 0.0, 2.0, 0.0], [0.0, 0.0, 0.0, 2.0]])
        >>> effective_ridges(layer, dim=2, slot=1)  # 1 / 2^2
        tensor([[0.2500, 0.2500]], dtype=torch.float64)
    """
    _check_divides(layer.width, dim, "dim")
    slots, ridge = layer.width // dim, layer.ridge.double()
    if not 0 <= slot < slots:
        raise ValueError(f"slot={slot}: must be between 0 and {slots - 1}")
    if dim > layer.head_dim:
        raise ValueError(f"dim={dim}: must be at most {layer.head_dim}, the width of a key")
    if layer.frame != Frame() or ridge.dim() != 1:
        raise ValueError("layer: must have one ridge per head, and keys without positions or norms")
    keys = layer.key.weight.double().unflatten(0, (layer.num_key_value_heads, layer.head_dim))
    keys = keys.repeat_interleave(layer.num_heads // layer.num_key_value_heads, dim=0)
    keys = keys[..., slot * dim : (slot + 1) * dim]  # [H,K,D]
    return ridge[:, None] / torch.linalg.eigvalsh(keys.mT @ keys).flip(-1)


def block_energy(products: Float[Tensor, "*head width width"], dim: int) -> Float[Tensor, "*head"]:
    """Compute the share of the squared entries of each matrix that scaled identity blocks explain.

    Args:
        products: matrices, such as those from :meth:`mesaopt.layers.SelfAttention.head_products`.
        dim: width of a block.

    Returns:
        One share per matrix, between 0 and 1; 1 where every block is a multiple of the identity.

    Raises:
        ValueError: the width is not a multiple of dim.

    Source: von Oswald et al., the comparison of the compressed model.

    Example:
        >>> block_energy(torch.eye(4).unsqueeze(0), 2)
        tensor([1.])
    """
    explained = _diagonal_means(products, dim).square().sum((-2, -1)) * dim
    total = products.square().sum((-2, -1))
    return torch.where(total > 0, explained / total.where(total > 0, 1.0), 1.0)


class _Products(NamedTuple):
    """Products of the weights of linear self-attention, or scalars or blocks of them."""

    key_query: Float[Tensor, "layer head row column"]
    output_value: Float[Tensor, "layer head row column"]


def _products(model: SequenceModel) -> _Products:
    layers = [mixer.head_products() for mixer in model.mixers]
    key_query, output_value = (torch.stack(matrices) for matrices in zip(*layers, strict=True))
    return _Products(key_query, output_value)


def _model_of(config: ModelConfig, products: _Products) -> SequenceModel:
    """Make the model with these products in queries and values, and identities elsewhere."""
    like = products.key_query
    identities = torch.eye(config.width, dtype=like.dtype, device=like.device).repeat(
        config.num_heads, 1
    )  # [H*W,W]
    weights = {}
    for layer, (key_query, output_value) in enumerate(zip(*products, strict=True)):
        of_layer = {
            "query": key_query.flatten(0, 1),  # [H*W,W]
            "key": identities,
            "value": output_value.flatten(0, 1),  # [H*W,W]
            "output": identities.mT,
        }
        weights |= {f"blocks.{layer}.mixer.{name}.weight": w for name, w in of_layer.items()}
    model = SequenceModel(replace(config, head_dim=config.width)).to(like.device, like.dtype)
    model.load_state_dict(weights)
    return model


_WANTED: dict[str, tuple[object, str]] = {
    "embed_dim": (None, "an embedding mixes the slots of a token"),
    "readout": ("first_slot", "a linear output layer mixes slots"),
    "positions": ("none", "positions are no part of the slots"),
    "unit_queries_keys": ("none", "norms are not in the products of weights"),
    "unit_queries_values": ("none", "norms are not in the products of weights"),
    "mlp_dim": (None, "an MLP is not in the products of weights"),
}
"""Settings of a model that its products of weights determine, each with the reason."""


def _checked(model: AnyModel, argument: str = "model") -> SequenceModel:
    """Refuse models that their products of weights do not determine."""
    model = as_model(model, argument)
    if not isinstance(model, SequenceModel):
        kind = type(model).__name__
        raise ValueError(
            f"{argument}: is a {kind}: must be a SequenceModel, a stack of attention layers"
        )
    if set(model.config.mixers) != {"linear_attention"}:
        wanted = "linear_attention alone; others are no products of weights"
        raise ValueError(f"mixers={model.config.mixers}: must be {wanted}")
    for name, (wanted, why) in _WANTED.items():
        if (value := getattr(model.config, name)) != wanted:
            raise ValueError(f"{name}={value!r}: must be {wanted!r}; {why}")
    return model


def _diagonal_means(
    products: Float[Tensor, "*head width width"], dim: int
) -> Float[Tensor, "*head slot slot"]:
    _check_divides(products.shape[-1], dim, "dim")
    slots = products.shape[-1] // dim
    blocks = products.unflatten(-1, (slots, dim)).unflatten(-3, (slots, dim))  # [...,S,D,S,D]
    return blocks.diagonal(dim1=-3, dim2=-1).mean(-1)


def _identity_blocks(
    scalars: Float[Tensor, "layer head slot slot"], dim: int
) -> Float[Tensor, "layer head width width"]:
    identity = torch.eye(dim, dtype=scalars.dtype, device=scalars.device)
    blocks = torch.einsum("lhab,ij->lhaibj", scalars, identity)  # [L,H,S,D,S,D]
    return blocks.flatten(4, 5).flatten(2, 3)


def _check_divides(width: int, part: int, name: str) -> None:
    if part < 1 or width % part:
        raise ValueError(f"{name}={part}: must be a divisor of {width}, the width of a token")
