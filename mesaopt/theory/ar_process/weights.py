"""The two weight matrices of one layer of linear attention, and the weights training starts from."""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
from jaxtyping import Float, Inexact

from mesaopt.errors import ConfigError, suggest

if TYPE_CHECKING:
    Array = np.ndarray
else:  # shape checks at run time: reductions make NumPy scalars of arrays without a shape
    Array = np.ndarray | np.generic

Blocks = Literal["core", "all"]
"""Train the two blocks that reach a prediction of an autoregressive process, or all of them."""

Contexts = Literal["all", "last"]
"""Score the predictions after every context t = 2 ... T-1, or after the longest only."""


def check_choice(name: str, value: str, choices: Any) -> None:
    """Refuse a word that is not one of a `Literal`.

    Args:
        name: of the argument.
        value: the word.
        choices: the `Literal`.

    Raises:
        ConfigError: naming what is allowed.

    Example:
        >>> check_choice("contexts", "lst", Contexts)
        Traceback (most recent call last):
        ...
        mesaopt.errors.ConfigError: contexts='lst': did you mean 'last'?
    """
    if value not in get_args(choices):
        raise ConfigError(f"{name}={value!r}: {suggest(value, get_args(choices))}")


@dataclass(frozen=True)
class Weights:
    """Weights of yhat_t = W_PV (E_t E_t^*) W_KQ e_t / (t - 1) on tokens e_t = [x_t; x_{t-1}].

    With `blocks` "core" only V, the block of W_PV that reads x_i, and K, the block of W_KQ that pairs
    x_{i-1} with x_t, are kept: yhat_t = V S_t K x_t / (t - 1), S_t = sum_{i=2}^t x_i x_{i-1}^*. Leading
    axes hold several layers, such as seeds. Entries are real or complex.

    Args:
        output_value: V [..., dim, dim], or W_PV [..., dim, 2 dim].
        key_query: K [..., dim, dim], or W_KQ [..., 2 dim, 2 dim].

    Source: Zheng et al., the layer of their section 3, without the rows and columns that cannot act.

    Example:
        >>> weights = diagonal(2, key_query=0.5, output_value=1.5)
        >>> weights.products.tolist()
        [0.75, 0.75]
    """

    output_value: Inexact[Array, "*batch dim width"]
    key_query: Inexact[Array, "*batch rows width"]

    @property
    def dim(self) -> int:
        """Width of a state."""
        return self.output_value.shape[-2]

    @property
    def blocks(self) -> Blocks:
        """Blocks of the weights: "core" for V and K alone, "all" for whole matrices."""
        return "core" if self.output_value.shape[-1] == self.dim else "all"

    @property
    def value_block(self) -> Inexact[Array, "*batch dim dim"]:
        """V, a view."""
        return self.output_value[..., : self.dim]

    @property
    def key_block(self) -> Inexact[Array, "*batch dim dim"]:
        """K, a view."""
        return self.key_query[..., -self.dim :, : self.dim]

    @property
    def products(self) -> Float[Array, "*batch dim"]:
        """Re(V_jj K_jj), the step size ab at each coordinate: free of the phase V and K may share."""
        v, k = (np.diagonal(x, axis1=-2, axis2=-1) for x in (self.value_block, self.key_block))
        return (v * k).real

    @property
    def off_diagonal(self) -> Float[Array, " *batch"]:
        """Largest modulus off the diagonals of V and K, over the largest on them."""
        v, k = np.abs(self.value_block), np.abs(self.key_block)
        return np.maximum(_off(v) / _on(v), _off(k) / _on(k))

    def moved(self, change: "Weights", factor: float) -> "Weights":
        """Return weights + factor * change.

        Args:
            change: of the same shape.
            factor: any number.

        Returns:
            New weights.
        """
        return Weights(
            self.output_value + factor * change.output_value,
            self.key_query + factor * change.key_query,
        )

    def masked(self) -> "Weights":
        """Set entries off the diagonals of V and K to zero; other blocks keep theirs.

        Returns:
            New weights.
        """
        output_value, key_query = self.output_value.copy(), self.key_query.copy()
        copy = Weights(output_value, key_query)
        off = ~np.eye(self.dim, dtype=bool)
        copy.value_block[..., off] = 0
        copy.key_block[..., off] = 0
        return copy

    def embedded(self) -> "Weights":
        """Turn core weights into weights of all blocks, with zeros elsewhere.

        Returns:
            New weights; the same ones if they have all blocks.
        """
        if self.blocks == "all":
            return self
        dim, batch = self.dim, self.output_value.shape[:-2]
        kind = np.result_type(self.output_value, self.key_query)
        out = Weights(
            np.zeros((*batch, dim, 2 * dim), kind), np.zeros((*batch, 2 * dim, 2 * dim), kind)
        )
        out.value_block[...] = self.output_value
        out.key_block[...] = self.key_query
        return out


def diagonal(
    dim: int, *, key_query: float | complex, output_value: float | complex, blocks: Blocks = "core"
) -> Weights:
    """Start from V = b I and K = a I, all else zero.

    Args:
        dim: width of a state, 1 or more.
        key_query: a.
        output_value: b.
        blocks: "core" or "all".

    Returns:
        The weights.

    Raises:
        ConfigError: dim is out of range.

    Source: Zheng et al., their assumption on the initialisation.

    Example:
        >>> diagonal(2, key_query=0.5, output_value=2.0).key_query.tolist()
        [[0.5, 0.0], [0.0, 0.5]]
    """
    _check(dim, blocks)
    weights = Weights(output_value * np.eye(dim), key_query * np.eye(dim))
    return weights if blocks == "core" else weights.embedded()


def normal(
    dim: int, *, std: float, random: np.random.Generator, blocks: Blocks = "all", count: int = 1
) -> Weights:
    """Start from independent real normal entries in every block there is.

    Args:
        dim: width of a state, 1 or more.
        std: standard deviation of an entry, > 0.
        random: NumPy generator.
        blocks: "core" or "all".
        count: layers, along the leading axis.

    Returns:
        The weights, [count, ...].

    Raises:
        ConfigError: dim, std or count is out of range.

    Example:
        >>> start = normal(5, std=0.1, random=np.random.default_rng(0), count=3)
        >>> start.key_query.shape, start.output_value.shape
        ((3, 10, 10), (3, 5, 10))
    """
    _check(dim, blocks)
    if not (std > 0 and math.isfinite(std)):
        raise ConfigError(f"std={std}: must be greater than 0 and finite")
    if count < 1:
        raise ConfigError(f"count={count}: must be 1 or greater")
    width = dim if blocks == "core" else 2 * dim
    shapes = ((count, dim, width), (count, width, width))
    return Weights(*(std * random.standard_normal(shape) for shape in shapes))


def _check(dim: int, blocks: str) -> None:
    check_choice("blocks", blocks, Blocks)
    if dim < 1:
        raise ConfigError(f"dim={dim}: must be 1 or greater")


def _on(magnitudes: Float[Array, "*batch dim dim"]) -> Float[Array, " *batch"]:
    return np.diagonal(magnitudes, axis1=-2, axis2=-1).max(-1)


def _off(magnitudes: Float[Array, "*batch dim dim"]) -> Float[Array, " *batch"]:
    return (magnitudes * (1 - np.eye(magnitudes.shape[-1]))).max((-2, -1))
