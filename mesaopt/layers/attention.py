"""Self-attention: projections to heads around one operator, for whole sequences and token by token."""

from collections.abc import Collection
from typing import Generic, NamedTuple, Protocol, TypeVar, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import silu

from mesaopt.errors import ConfigError
from mesaopt.layers.frame import (
    CausalConvolution,
    Frame,
    GateName,
    Gates,
    HeadNorm,
    normalise,
    sinusoids,
)
from mesaopt.ops import KeyValueState, LinearState, MesaOutput, MesaState, Output

Memory = TypeVar("Memory", bound=LinearState | MesaState | KeyValueState)

PLAIN = Frame()
UNIT_KEYS = Frame(unit_keys=True)


class _Resettable(Protocol):
    def reset_parameters(self) -> None: ...


class LayerState(NamedTuple):
    """All that a layer remembers between two calls.

    Example:
        >>> from mesaopt.layers import LinearSelfAttention
        >>> state = LinearSelfAttention(width=6, num_heads=2, head_dim=3).init_state(batch_size=4)
        >>> state.memory.cross.shape
        torch.Size([4, 2, 3, 3])
    """

    memory: LinearState | MesaState | KeyValueState
    """State of the operator."""
    recent: Float[Tensor, "batch before channel"] | None = None
    """Last projections of q, k and v side by side, for the convolutions; None without them."""
    seen: int = 0
    """Tokens so far, for positions; stays 0 without them."""


class HeadInputs(NamedTuple):
    """What an operator reads: [batch, time, head, ...], or [batch, head, ...] of one token."""

    q: Float[Tensor, "*position head key"]
    """Queries."""
    k: Float[Tensor, "*position head key"]
    """Keys."""
    v: Float[Tensor, "*position head value"]
    """Values."""
    log_decay: Float[Tensor, "*position head"] | None = None
    """Log of the forget gate, None in layers without it."""
    beta: Float[Tensor, "*position head"] | None = None
    """Write strength, None in layers without it."""

    def single(self) -> "HeadInputs":
        """Drop the time axis, where there is one token.

        Returns:
            The inputs of a step.
        """
        log_decay, beta = (None if gate is None else gate.squeeze(1) for gate in self[3:])
        return HeadInputs(self.q.squeeze(1), self.k.squeeze(1), self.v.squeeze(1), log_decay, beta)


class SelfAttention(nn.Module, Generic[Memory]):
    """Projections to queries, keys and values, an operator on them, and a projection back.

    y = P norm(operator(q, k, v, gates)) with q = f(W_q x), k = f(W_k x), v = g(W_v x): what f, g and norm
    do is the frame's to say, and by default nothing. The projections have no biases and no scaling. With
    positions p in the frame, as wide as x, q = f(W_q [x; p]) and k = f(W_k [x; p]).
    Subclasses say what happens in between with :meth:`mix`, :meth:`mix_step` and :meth:`init_memory`.

    Args:
        width: width of the residual stream.
        num_heads: heads.
        head_dim: width of a query, key and value of one head.
        frame: convolutions, norms and the cap on forgetting.
        gates: which gates the operator reads.

    Raises:
        ConfigError: a setting is out of range.

    Example:
        >>> from mesaopt.layers import LinearSelfAttention
        >>> LinearSelfAttention(width=6, num_heads=2, head_dim=5).query.weight.shape
        torch.Size([10, 6])
    """

    def __init__(
        self,
        width: int,
        num_heads: int,
        head_dim: int,
        *,
        frame: Frame = PLAIN,
        gates: Collection[GateName] = (),
    ):
        super().__init__()
        for name, size in (("width", width), ("num_heads", num_heads), ("head_dim", head_dim)):
            if size < 1:
                raise ConfigError(f"{name}={size}: must be 1 or greater")
        if frame.positions and width % 2:
            raise ConfigError(f"width={width}: must be even, for pairs of a sine and a cosine")
        self.width = width
        self.num_heads = num_heads
        self.frame = frame
        inner = num_heads * head_dim
        placed = 2 * width if frame.positions else width
        self.query = nn.Linear(placed, inner, bias=False)
        self.key = nn.Linear(placed, inner, bias=False)
        self.value = nn.Linear(width, inner, bias=False)
        self.output = nn.Linear(inner, width, bias=False)
        self.gates = None
        if gates or frame.forget_cap is not None:
            self.gates = Gates(width, num_heads, gates, frame.forget_cap)
        self.convolution = None
        if frame.convolution is not None:
            self.convolution = CausalConvolution(3 * inner, frame.convolution)
        self.head_norm = HeadNorm(num_heads, head_dim) if frame.head_norm else None

    def reset_parameters(self) -> None:
        """Draw all parameters anew, in the order in which the constructor draws them.

        A layer built on the meta device gets its first values in this way, after `to_empty`.
        """
        for child in self.children():
            cast(_Resettable, child).reset_parameters()

    def forward(self, x: Float[Tensor, "batch time width"]) -> Float[Tensor, "batch time width"]:
        """Mix a sequence from its beginning.

        Args:
            x: [batch, time, width].

        Returns:
            What is to be added to the residual stream, the same shape and type.

        Raises:
            ValueError: x has the wrong shape.
        """
        return self.extend(x)[0]

    def extend(
        self, x: Float[Tensor, "batch time width"], state: LayerState | None = None
    ) -> tuple[Float[Tensor, "batch time width"], LayerState]:
        """Mix a sequence, or any number of further tokens of one, and say how to go on.

        Cutting a sequence anywhere changes rounding only.

        Args:
            x: [batch, time, width].
            state: what earlier calls of this method or of :meth:`step` left behind; None at the beginning.

        Returns:
            What :meth:`forward` gives at these positions, and the state after the last one.

        Raises:
            ValueError: x or the state has the wrong shape or type.

        Example:
            >>> from mesaopt.layers import MesaLayer
            >>> layer, x = MesaLayer(width=6, num_heads=2, head_dim=3), torch.randn(4, 7, 6)
            >>> start, state = layer.extend(x[:, :5])
            >>> end, state = layer.extend(x[:, 5:], state)
            >>> torch.allclose(torch.cat([start, end], dim=1), layer(x), atol=1e-5)
            True
        """
        inputs, recent, seen = self._read(x, state)
        result = self.mix(inputs, None if state is None else cast(Memory, state.memory))
        return self._write(result.output), LayerState(result.state, recent, seen)

    def step(
        self, x: Float[Tensor, "batch width"], state: LayerState
    ) -> tuple[Float[Tensor, "batch width"], LayerState]:
        """Mix one more token: the numbers of :meth:`forward`.

        Args:
            x: [batch, width].
            state: from :meth:`init_state`, :meth:`extend` or an earlier step.

        Returns:
            The output [batch, width] and the new state. The given one is left as it is.

        Raises:
            ValueError: x or the state has the wrong shape or type.

        Example:
            >>> from mesaopt.layers import MesaLayer
            >>> layer, x = MesaLayer(width=6, num_heads=2, head_dim=3), torch.randn(4, 7, 6)
            >>> y, state = layer.step(x[:, 0], layer.init_state(batch_size=4))
            >>> torch.allclose(y, layer(x)[:, 0], atol=1e-6)
            True
        """
        inputs, recent, seen = self._read(x.unsqueeze(1), state)
        result = self.mix_step(inputs.single(), cast(Memory, state.memory))
        return self._write(result.output), LayerState(result.state, recent, seen)

    def init_state(self, batch_size: int, *, dtype: torch.dtype | None = None) -> LayerState:
        """Return the state of an empty past, on the device of the weights.

        Args:
            batch_size: sequences.
            dtype: type that the projections come out in, which autocast makes another than that of the
                weights; that of the weights if None.

        Returns:
            Zeros, in the types that the operator keeps its states in.
        """
        weight = self.query.weight
        dtype = weight.dtype if dtype is None else dtype
        recent = None
        if self.convolution is not None:
            channels, length = self.convolution.weight.shape
            shape = (batch_size, length - 1, channels)
            recent = torch.zeros(shape, dtype=dtype, device=weight.device)
        like = torch.empty(
            batch_size, self.num_heads, self.head_dim, dtype=dtype, device=weight.device
        )
        return LayerState(self.init_memory(like), recent)

    def mix(self, inputs: HeadInputs, memory: Memory | None) -> Output | MesaOutput:
        """Apply the operator to a sequence.

        Args:
            inputs: what it reads.
            memory: its state before the first position; None at the beginning.

        Returns:
            What the operator returned: outputs [batch, time, head, value], and its state after the
            last position.
        """
        raise NotImplementedError

    def mix_step(self, inputs: HeadInputs, memory: Memory) -> Output | MesaOutput:
        """Apply the operator to one token.

        Args:
            inputs: what it reads, without a time axis.
            memory: its state.

        Returns:
            What the operator returned: outputs [batch, head, value], and its new state.
        """
        raise NotImplementedError

    def init_memory(self, like: Float[Tensor, "batch head key"]) -> Memory:
        """Return the operator's state of an empty past.

        Args:
            like: a query, of which shape, type and device are taken.

        Returns:
            Zeros.
        """
        raise NotImplementedError

    def head_inputs(self, x: Float[Tensor, "batch time width"]) -> HeadInputs:
        """Compute what the operator reads: queries, keys and values behind projections, norms and gates.

        Args:
            x: [batch, time, width].

        Returns:
            The inputs, [batch, time, head, ...] each.

        Raises:
            ValueError: x has the wrong shape.
        """
        return self._read(x, None)[0]

    def attention_map(
        self, x: Float[Tensor, "batch time width"]
    ) -> Float[Tensor, "batch head time time"]:
        """Compute how much of every value each output holds: o_t = sum_s map[t, s] v_s.

        Every operator here is linear in its values, so each has such a map: the weights of softmax
        attention, the products q_t . k_s of linear attention, k_s . (H_t + ridge)^{-1} q_t of mesa.

        Args:
            x: [batch, time, width].

        Returns:
            Maps [batch, head, time, time], zero above the diagonal.

        Raises:
            ValueError: x has the wrong shape.

        Example:
            >>> from mesaopt.layers import SoftmaxSelfAttention
            >>> layer = SoftmaxSelfAttention(width=6, num_heads=2, head_dim=3)
            >>> maps = layer.attention_map(torch.randn(4, 7, 6))
            >>> maps.shape, torch.allclose(maps.sum(-1), torch.ones(4, 2, 7))
            (torch.Size([4, 2, 7, 7]), True)
        """
        inputs = self.head_inputs(x)
        marks = torch.eye(x.shape[1], dtype=inputs.v.dtype, device=x.device)
        marks = marks.unsqueeze(1).expand(*inputs.v.shape[:3], -1)  # [B,T,H,T], as values
        return self.mix(inputs._replace(v=marks), None).output.transpose(1, 2)

    @torch.no_grad()
    def head_products(
        self,
    ) -> tuple[Float[Tensor, "head read read"], Float[Tensor, "head width width"]]:
        """Multiply out what a head's weights do to tokens; in a plain frame only these products matter.

        Returns:
            W_k^T W_q and P W_v of every head, [head, width, width] each, acting on column vectors:
            a score is key_token^T (W_k^T W_q) query_token, and (P W_v) value_token is what is written.
            With positions W_k^T W_q acts on [token; position], twice as wide.

        Source: von Oswald et al., Proposition 1 is stated in these products.
        """
        heads = (self.num_heads, -1)
        q, k, v = (p.weight.unflatten(0, heads) for p in (self.query, self.key, self.value))
        p = self.output.weight.unflatten(1, heads).transpose(0, 1)  # [H,width,V]
        return k.mT @ q, p @ v

    @property
    def head_dim(self) -> int:
        """Width of a query, key and value of one head."""
        return self.query.out_features // self.num_heads

    def _read(
        self, x: Float[Tensor, "batch time width"], state: LayerState | None
    ) -> tuple[HeadInputs, Float[Tensor, "batch before channel"] | None, int]:
        """Compute all that the operator reads, what the convolutions need next time, and tokens so far."""
        width = self.value.in_features
        if x.dim() != 3 or x.shape[-1] != width:
            shape = tuple(x.shape)
            raise ValueError(
                f"x has shape {shape}: must be [batch, time, {width}], or one token of it"
            )
        recent, seen = (None, 0) if state is None else state[1:]
        placed = x
        if self.frame.positions:
            placed, seen = self._place(x, seen), seen + x.shape[1]
        parts = [self.query(placed), self.key(placed), self.value(x)]
        if self.convolution is not None:
            joined, recent = self.convolution(torch.cat(parts, dim=-1), recent)
            parts = silu(joined).chunk(3, dim=-1)
        q, k, v = (part.unflatten(-1, (self.num_heads, -1)) for part in parts)  # [B,T,H,K]
        if self.frame.unit_keys:
            q, k = normalise(q), normalise(k)
        log_decay, beta = (None, None) if self.gates is None else self.gates(x)
        return HeadInputs(q, k, v, log_decay, beta), recent, seen

    def _place(
        self, x: Float[Tensor, "batch time width"], start: int
    ) -> Float[Tensor, "batch time placed"]:
        """Lay positions beside the stream, or beside each of several: see `models.seeds`."""
        streams = x.unflatten(-1, (-1, self.width))  # [B,T,stream,width]
        positions = sinusoids(start, x.shape[1], self.width, like=x).unsqueeze(1)
        return torch.cat([streams, positions.expand_as(streams)], dim=-1).flatten(-2)

    def _write(
        self, out: Float[Tensor, "*position head value"]
    ) -> Float[Tensor, "*position width"]:
        if self.head_norm is not None:
            out = self.head_norm(out)
        return self.output(out.flatten(-2))
