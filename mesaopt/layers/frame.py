"""The parts between a layer's projections and its operator: positions, gates, norms, and their settings."""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, Literal, cast, get_args

import torch
from jaxtyping import Float, Int, Num
from torch import Tensor, nn
from torch.nn.functional import logsigmoid, rms_norm

from mesaopt.config import as_arguments, require_count
from mesaopt.config.checks import require_flag, require_not_negative, require_types
from mesaopt.errors import ConfigError, suggest
from mesaopt.layers.packed import Packed
from mesaopt.ops.state import working_type
from mesaopt.ops.validation import check_number

GateName = Literal["log_decay", "beta"]

# Initial memories of the heads, in tokens: long enough to learn what to forget, and spread so that some of
# them suit the data from the start.
_SHORTEST_MEMORY, _LONGEST_MEMORY = 16.0, 1024.0
_SMALLEST_RAW = 1e-3


@dataclass(frozen=True, kw_only=True)
class Frame:
    """Settings of a layer around its operator: positions, convolutions, norms; all off by default.

    Raises:
        ConfigError: a setting is out of range or of another kind.

    Source: von Oswald et al. 2025, section 3 and appendix on the architecture.

    Example:
        >>> Frame.mesanet2025()
        Frame(positions=False, rotary=False, convolution=4, convolve_values=True, key_shift=False, \
features=0, unit_keys=True, unit_values=False, head_norm=True, forget_cap=None, signed_decay=False)
        >>> Frame(convolution=0)
        Traceback (most recent call last):
        ...
        mesaopt.errors.ConfigError: convolution=0: must be 1 or greater
    """

    positions: bool = False
    """Whether queries and keys, but not values, are computed from the input and :func:`sinusoids`."""
    rotary: bool = False
    """Whether queries and keys are turned by their positions, after all else: see :func:`rotate`."""
    convolution: int | None = None
    """Length of a causal convolution of every channel of q, k and v, followed by SiLU."""
    convolve_values: bool = True
    """Whether the convolution takes v too; otherwise v stays as it is, without SiLU."""
    key_shift: bool = False
    """Whether the key of a token is computed from the token before it, the first being zero: then one layer
    sees pairs of neighbours. Not with a convolution, which can learn it."""
    features: int = 0
    """Queries and keys are mapped by :func:`dpfp` with so many shifts, before norms; 0: they stay."""
    unit_keys: bool = False
    """Whether every query and every key is divided by its Euclidean norm."""
    unit_values: bool = False
    """Whether every query and every value is divided by its Euclidean norm."""
    head_norm: bool = False
    """Whether the output of every head is divided by its root mean square, and rescaled by learned
    weights."""
    forget_cap: float | None = None
    """Largest share of the past that a token of write strength beta = 1 keeps, above 0, at most 1:
    gamma becomes gamma (1 - (1 - forget_cap) beta^2). MesaNet uses 0.9975."""
    signed_decay: bool = False
    """Whether forget gates are between -1 and 1, and not between 0 and 1: see :class:`Gates`."""

    def __post_init__(self) -> None:
        require_types(self)
        if self.convolution is not None:
            require_count("convolution", self.convolution, smallest=1)
        if self.convolution is not None and self.key_shift:
            raise ConfigError(
                "key_shift=True: must be False with a convolution, which can learn it"
            )
        require_not_negative(self, "features")
        _check_cap(self.forget_cap)

    @classmethod
    def mesanet2025(cls, *, forget_cap: float | None = None) -> "Frame":
        """Return the frame of MesaNet; with it, layers differ from MesaNet's in the operator alone.

        Args:
            forget_cap: see :attr:`Frame.forget_cap`; only for layers that forget.

        Returns:
            Convolutions over 4 tokens, unit queries and keys, normalised outputs.

        Source: von Oswald et al. 2025. The paper's figure convolves q, k and v, its appendix keys and
        queries alone; all three are convolved here, unless `convolve_values` is switched off.
        """
        return cls(convolution=4, unit_keys=True, head_norm=True, forget_cap=forget_cap)


def settings_in_words(**settings: Any) -> str:
    """Write settings for the text that shows a module, without those that are None.

    Args:
        settings: by name.

    Returns:
        Their names and values.

    Example:
        >>> settings_in_words(num_heads=2, window=None, solver="cg")
        "num_heads=2, solver='cg'"
    """
    return as_arguments({name: value for name, value in settings.items() if value is not None})


class HeadNorm(nn.Module):
    """Divide every head's output by its root mean square: y = w o / sqrt(mean(o^2) + 1e-6).

    Args:
        num_heads: number of heads, 1 or more.
        head_dim: width of the output of one head, 1 or more.

    Raises:
        ConfigError: a size is no whole number of 1 or more.

    Example:
        >>> HeadNorm(num_heads=2, head_dim=4)(torch.full((1, 3, 2, 4), 5.0)).unique()
        tensor([1.], grad_fn=<Unique2Backward0>)
    """

    def __init__(self, num_heads: int, head_dim: int):
        super().__init__()
        require_count("num_heads", num_heads, smallest=1)
        require_count("head_dim", head_dim, smallest=1)
        self.weight = nn.Parameter(torch.empty(num_heads, head_dim))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Set the weights to 1."""
        nn.init.ones_(self.weight)

    def extra_repr(self) -> str:
        """Name the sizes."""
        num_heads, head_dim = self.weight.shape
        return settings_in_words(num_heads=num_heads, head_dim=head_dim)

    def forward(
        self, x: Float[Tensor, "*position head value"]
    ) -> Float[Tensor, "*position head value"]:
        """Normalise, in float32 at least.

        Args:
            x: outputs [..., head, value].

        Returns:
            The normalised outputs, in the shape and type of x.

        Raises:
            ValueError: the last two axes are others than those of the weights.
        """
        if x.shape[-2:] != self.weight.shape:
            heads, width = self.weight.shape
            raise ValueError(f"x has shape {tuple(x.shape)}: must be [..., {heads}, {width}]")
        wide = rms_norm(x.to(working_type(x)), x.shape[-1:], eps=1e-6)
        return (wide * self.weight).to(x.dtype)


class Gates(nn.Module):
    """One forget gate gamma and one write strength beta per head, computed from the input.

    gamma_t = sigmoid(w_gamma x_t + b_gamma), beta_t = sigmoid(w_beta x_t + b_beta). With a cap, gamma_t
    is then multiplied by 1 - (1 - forget_cap) beta_t^2, with beta_t = 1 in layers without that gate.
    With signed decay, gamma_t = tanh((w_gamma x_t + b_gamma) / 2), between -1 and 1.

    Args:
        width: width of the input.
        num_heads: number of heads.
        names: the gates of the layer, of "log_decay" and "beta".
        forget_cap: above 0, at most 1; no cap if None.
        signed_decay: whether forget gates may be negative.

    Raises:
        ConfigError: a size or the cap is out of range, a gate is unknown, or there is a cap or a sign
            without a forget gate.

    Source: von Oswald et al. 2025, section 3. The initial biases are not given there: here heads
    remember 16 to 1024 tokens, in equal ratios, at x = 0.

    Example:
        >>> log_decay, beta, _ = Gates(6, 2, ["log_decay", "beta"])(torch.zeros(1, 1, 6))
        >>> [round(1 / (1 - gamma)) for gamma in log_decay.exp().flatten().tolist()]
        [17, 1025]
        >>> beta.flatten().tolist()
        [0.5, 0.5]
    """

    def __init__(
        self,
        width: int,
        num_heads: int,
        names: Collection[GateName],
        forget_cap: float | None = None,
        *,
        signed_decay: bool = False,
    ):
        super().__init__()
        require_count("width", width, smallest=1)
        require_count("num_heads", num_heads, smallest=1)
        if isinstance(names, str) or not isinstance(names, Collection):
            raise ConfigError(f"gates={names!r}: must be a tuple of names")
        for name in names:
            if name not in get_args(GateName):
                raise ConfigError(f"gates: {name!r}: {suggest(str(name), get_args(GateName))}")
        _check_cap(forget_cap)
        require_flag("signed_decay", signed_decay)
        if forget_cap is not None and "log_decay" not in names:
            raise ConfigError(
                f"forget_cap={forget_cap}: must be None in a layer that never forgets"
            )
        if signed_decay and "log_decay" not in names:
            raise ConfigError("signed_decay=True: must be False in a layer that never forgets")
        self.forget_cap = forget_cap
        self.signed_decay = signed_decay
        self.log_decay = nn.Linear(width, num_heads) if "log_decay" in names else None
        self.beta = nn.Linear(width, num_heads) if "beta" in names else None
        self._reset_biases()

    def reset_parameters(self) -> None:
        """Draw the weights as :class:`torch.nn.Linear` does, and set the biases."""
        for gate in (self.log_decay, self.beta):
            if gate is not None:
                gate.reset_parameters()
        self._reset_biases()

    def extra_repr(self) -> str:
        """Name the cap and the sign, if there is one."""
        return settings_in_words(forget_cap=self.forget_cap, signed_decay=self.signed_decay or None)

    @torch.no_grad()
    def _reset_biases(self) -> None:
        if self.log_decay is not None:
            bias = self.log_decay.bias
            ratios = torch.linspace(0, 1, bias.shape[0], device="cpu")  # the same for every device
            memories = _SHORTEST_MEMORY * (_LONGEST_MEMORY / _SHORTEST_MEMORY) ** ratios
            # sigmoid(log m) = m / (m + 1) = tanh(log(2 m + 1) / 2)
            _set(bias, (2 * memories + 1).log() if self.signed_decay else memories.log())
        if self.beta is not None:
            self.beta.bias.zero_()

    def forward(
        self, x: Float[Tensor, "batch time width"]
    ) -> tuple[
        Float[Tensor, "batch time head"] | None,
        Float[Tensor, "batch time head"] | None,
        Float[Tensor, "batch time head"] | None,
    ]:
        """Compute the gates, in float32 at least.

        Args:
            x: [batch, time, width].

        Returns:
            log |gamma|, 0 or less; beta, from 0 to 1; the sign of gamma, 1 or -1; [batch, time, head] each.
            None for a missing gate, and for the sign where gamma is never negative.
        """
        log_decay = beta = sign = None
        if self.beta is not None:
            beta = _widen(self.beta(x)).sigmoid()
        if self.log_decay is not None:
            raw = _widen(self.log_decay(x))
            log_decay = self._log_size(raw)
            if self.signed_decay:
                sign = torch.ones_like(raw).masked_fill(raw < 0, -1.0)
            if self.forget_cap is not None:
                written = torch.ones_like(log_decay) if beta is None else beta.square()
                log_decay = log_decay + torch.log1p((self.forget_cap - 1) * written)
        return log_decay, beta, sign

    def _log_size(self, raw: Tensor) -> Tensor:
        """Compute log |gamma| from what the weights give."""
        if not self.signed_decay:
            return logsigmoid(raw)
        # log tanh(a / 2) = log(1 - e^-a) - log(1 + e^-a). Smaller gates than 0.0005 are that: the slope of
        # the logarithm there would enlarge roundings.
        shrunk = raw.abs().clamp(min=_SMALLEST_RAW).neg()
        return (-shrunk.expm1()).log() - shrunk.exp().log1p()


def sinusoids(
    times: Num[Tensor, "*position"], width: int, *, like: Tensor
) -> Float[Tensor, "*position width"]:
    """Sinusoidal position encodings.

    p_t = (sin w_0 t, cos w_0 t, sin w_1 t, ...), w_i = 10000^(-2 i / width). They are computed by formula,
    so sequences may have any length.

    Args:
        times: t = 0, 1, ..., the positions less 1.
        width: width of an encoding, even.
        like: a tensor with the type and device of the result.

    Returns:
        Encodings [..., width], computed in float64 and rounded.

    Source: Vaswani et al., "Attention Is All You Need", section 3.5.

    Example:
        >>> [round(x, 3) for x in sinusoids(torch.tensor(1), 4, like=torch.zeros(())).tolist()]
        [0.841, 0.54, 0.01, 1.0]
    """
    exponents = torch.arange(0, width, 2, dtype=torch.float64, device=like.device) / width
    angles = times.to(torch.float64).unsqueeze(-1) * 10_000.0**-exponents  # [...,width/2]
    return torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(-2).to(like.dtype)


def next_positions(
    x: Float[Tensor, "batch time width"], seen: int | Tensor, packed: Packed | None
) -> tuple[Int[Tensor, "..."], int | Tensor]:
    """Count the positions of a chunk of tokens on from those before it.

    Args:
        x: [batch, time, width].
        seen: tokens before x: one number, or one for each of sequences of several lengths.
        packed: the sequences that x packs; None: each row is one.

    Returns:
        Positions less 1, [time] or, where they differ, [batch, time]; and the tokens so far.

    Raises:
        ValueError: `seen` is of another number of sequences.

    Example:
        >>> next_positions(torch.zeros(1, 3, 4), 5, None)
        (tensor([5, 6, 7]), 8)
    """
    time, device = x.shape[1], x.device
    sequences = len(x) if packed is None else len(packed.lengths)
    if isinstance(seen, Tensor) and seen.shape != (sequences,):
        raise ValueError(f"state.seen has shape {tuple(seen.shape)}: must be ({sequences},)")
    if packed is not None:
        return packed.positions(seen, device), packed.count_seen(seen, device)  # [1,T]
    if isinstance(seen, Tensor):
        return seen.unsqueeze(1) + torch.arange(time, device=device), seen + time
    return torch.arange(seen, seen + time, device=device), seen + time


def with_positions(
    x: Float[Tensor, "batch time stream"], times: Int[Tensor, "..."], *, width: int
) -> Float[Tensor, "batch time placed"]:
    """Concatenate positions with the stream, or with each of several streams: see `models.seeds`.

    Args:
        x: [batch, time, stream], one stream or several end to end.
        times: from :func:`next_positions`.
        width: of a stream.

    Returns:
        [batch, time, placed], twice as wide.

    Example:
        >>> with_positions(torch.zeros(1, 2, 4), torch.arange(2), width=4).shape
        torch.Size([1, 2, 8])
    """
    streams = x.unflatten(-1, (-1, width))  # [B,T,stream,width]
    positions = sinusoids(times, width, like=x).unsqueeze(-2)
    joined = torch.cat([streams, positions.expand_as(streams)], dim=-1)
    return joined.flatten(-2)  # [B,T,placed]


def rotate(
    times: Int[Tensor, "..."], *vectors: Float[Tensor, "batch time _ key"]
) -> list[Float[Tensor, "batch time _ key"]]:
    """Turn pairs of components by angles that grow with the position (rotary positions).

    (x_2i, x_2i+1) becomes (x_2i cos a - x_2i+1 sin a, x_2i sin a + x_2i+1 cos a), with a = w_i t and
    w_i = 10000^(-2 i / key). The product of a query at t and a key at s depends on t - s alone.

    Args:
        times: positions less 1, [time] or [batch, time].
        vectors: x, such as queries and keys, [batch, time, head, key] each, of one type, with one even key.

    Returns:
        Vectors of the same lengths, shapes and type, computed in float32 at least.

    Source: Su et al., "RoFormer", equation 15.

    Example:
        >>> (turned,) = rotate(torch.arange(3), torch.tensor([1.0, 0.0]).expand(1, 3, 1, 2))
        >>> [round(number, 3) for number in turned[0, :, 0, 1].tolist()]
        [0.0, 0.841, 0.909]
    """
    wide = [_widen(x) for x in vectors]
    turns = sinusoids(times, wide[0].shape[-1], like=wide[0]).unsqueeze(-2)  # [...,T,1,K]
    return [_turn(x, turns).to(vectors[0].dtype) for x in wide]


def _turn(x: Tensor, turns: Tensor) -> Float[Tensor, "batch time _ key"]:
    """Turn pairs of components by angles, given as sines and cosines in turns."""
    sine, cosine = turns[..., 0::2], turns[..., 1::2]
    even, odd = x[..., 0::2], x[..., 1::2]
    turned = torch.stack([even * cosine - odd * sine, even * sine + odd * cosine], dim=-1)
    return turned.flatten(-2)  # [B,T,H,K]


def dpfp(x: Float[Tensor, "*position key"], shifts: int) -> Float[Tensor, "*position feature"]:
    """Map vectors to products of pairs of their positive and negative parts (DPFP).

    With r = [relu(x); relu(-x)] of 2 K numbers, the features are r_i r_{i-j} for all i, cyclically, and
    j = 1 ... shifts.

    Args:
        x: [..., key].
        shifts: 1 or more; nu in the paper.

    Returns:
        Features, 0 or greater, [..., 2 * shifts * key].

    Source: Schlag et al., "Linear Transformers Are Secretly Fast Weight Programmers", section 5.3.

    Example:
        >>> dpfp(torch.tensor([2.0, -3.0]), shifts=3)
        tensor([6., 0., 0., 0., 0., 0., 0., 0., 0., 0., 0., 6.])
    """
    halves = torch.cat([x.relu(), (-x).relu()], dim=-1)
    return torch.cat([halves * halves.roll(j, -1) for j in range(1, shifts + 1)], dim=-1)


def normalise(x: Float[Tensor, "*position key"]) -> Float[Tensor, "*position key"]:
    """Divide vectors by their Euclidean norm, in float32 at least; a zero vector stays zero.

    Args:
        x: [..., key].

    Returns:
        Unit vectors, of the same shape and type.

    Example:
        >>> normalise(torch.tensor([[3e-8, 4e-8], [0.0, 0.0]]))
        tensor([[0.6000, 0.8000],
                [0.0000, 0.0000]])
    """
    wide = _widen(x)
    norm = torch.linalg.vector_norm(wide, dim=-1, keepdim=True)
    # No epsilon is added: the direction is the same at every scale, and the gradient finite at zero.
    return (wide / norm.masked_fill(norm == 0, 1.0)).to(x.dtype)


def _check_cap(cap: float | None) -> None:
    check_number("forget_cap", cap)
    if cap is not None and cap > 1:
        raise ConfigError(f"forget_cap={cap}: must be above 0 and at most 1")


def _widen(x: Tensor) -> Tensor:
    return x.to(working_type(x))


def _set(parameter: Tensor, value: Tensor) -> None:
    """Copy a value into a parameter, which may be sharded over processes."""
    if hasattr(parameter, "device_mesh"):
        from torch.distributed.tensor import distribute_tensor  # slow to import, rarely needed

        sharded = cast(Any, parameter)
        value = distribute_tensor(value, sharded.device_mesh, sharded.placements)
    parameter.copy_(value)
