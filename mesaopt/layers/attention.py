"""Self-attention: projections to heads around one operator, for whole sequences and token by token.

The base class of all layers is here. :mod:`mesaopt.layers.frame` has the parts around the operator,
:mod:`mesaopt.layers.linear`, `softmax` and `mesa` have the layers.
"""

from collections.abc import Collection
from typing import Any, ClassVar, Generic, Protocol, cast

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn.functional import silu

from mesaopt.config import changed_settings, require_count, require_whole
from mesaopt.errors import ConfigError, wrong_type
from mesaopt.layers.checks import check_input, check_sequences
from mesaopt.layers.convolution import CausalConvolution, KeyShift
from mesaopt.layers.frame import (
    Frame,
    GateName,
    Gates,
    HeadNorm,
    dpfp,
    next_positions,
    normalise,
    rotate,
    settings_in_words,
    with_positions,
)
from mesaopt.layers.packed import Packed, Padding
from mesaopt.layers.signs import running_signs, with_signs, without_signs
from mesaopt.layers.state import HeadInputs, LayerState, Memory, keep_one_of, repeat_heads
from mesaopt.ops import MesaOutput, Output

PLAIN = Frame()
UNIT_KEYS = Frame(unit_keys=True)


class _Resettable(Protocol):
    def reset_parameters(self) -> None: ...


class SelfAttention(nn.Module, Generic[Memory]):
    """Base class of layers: projections to queries, keys and values, an operator, and a projection back.

    y = P norm(operator(q, k, v, gates)) with q = f(W_q x), k = f(W_k x), v = g(W_v x). The frame sets f, g
    and norm; by default they do nothing. The projections have no biases and no scaling. With positions p in
    the frame, as wide as x, q = f(W_q [x; p]) and k = f(W_k [x; p]). A subclass supplies the operator with
    :meth:`mix`, :meth:`mix_step` and :meth:`init_memory`.

    Args:
        width: width of the residual stream.
        num_heads: heads.
        head_dim: width of a query, key and value of one head.
        frame: positions, convolutions, norms and the cap on forgetting.
        gates: names of the gates that the operator takes, of "log_decay" and "beta".
        num_key_value_heads: heads of keys, values, gates and states, a divisor of `num_heads`; each is
            shared by as many neighbouring queries. `num_heads` if None.

    Raises:
        TypeError: the frame is something else.
        ConfigError: a setting is out of range or of another kind.

    Example:
        >>> from mesaopt.layers import LinearSelfAttention
        >>> LinearSelfAttention(width=6, num_heads=2, head_dim=5).query.weight.shape
        torch.Size([10, 6])
    """

    takes_fewer_keys: ClassVar[bool] = False
    """Whether the operator takes fewer keys than queries at a position; otherwise they are repeated."""

    def __init__(
        self,
        width: int,
        num_heads: int,
        head_dim: int,
        *,
        frame: Frame = PLAIN,
        gates: Collection[GateName] = (),
        num_key_value_heads: int | None = None,
    ):
        super().__init__()
        for name, size in (("width", width), ("num_heads", num_heads), ("head_dim", head_dim)):
            require_count(name, size, smallest=1)
        if not isinstance(frame, Frame):
            raise wrong_type("frame", frame, "a Frame")
        groups = num_heads if num_key_value_heads is None else num_key_value_heads
        require_whole("num_key_value_heads", groups)
        if groups < 1 or num_heads % groups:
            wanted = f"must be a divisor of num_heads={num_heads}"
            raise ConfigError(f"num_key_value_heads={groups}: {wanted}")
        if frame.positions and width % 2:
            raise ConfigError(f"width={width}: must be even, for pairs of a sine and a cosine")
        if frame.rotary and head_dim % 2:
            raise ConfigError(f"head_dim={head_dim}: must be even, for rotary pairs")
        self.width = width
        self.num_heads = num_heads
        self.num_key_value_heads = groups
        self.frame = frame
        inner, shared = num_heads * head_dim, groups * head_dim
        placed = 2 * width if frame.positions else width
        self.query = nn.Linear(placed, inner, bias=False)
        self.key = nn.Linear(placed, shared, bias=False)
        self.value = nn.Linear(width, shared, bias=False)
        self.output = nn.Linear(inner, width, bias=False)
        self.gates = None
        if gates or frame.forget_cap is not None or frame.signed_decay:
            self.gates = Gates(
                width, groups, gates, frame.forget_cap, signed_decay=frame.signed_decay
            )
        self.convolution = None
        if frame.convolution is not None:
            channels = inner + (2 if frame.convolve_values else 1) * shared
            self.convolution = CausalConvolution(channels, frame.convolution)
        elif frame.key_shift:
            self.convolution = KeyShift(inner, shared, shared)
        self.head_norm = HeadNorm(num_heads, head_dim) if frame.head_norm else None

    def extra_repr(self) -> str:
        """Name the settings that the modules inside do not show."""
        return settings_in_words(**self._shown_settings())

    def _shown_settings(self) -> dict[str, Any]:
        """List the settings for the text that shows the layer; those that are None are left out."""
        groups = self.num_key_value_heads
        return {
            "num_heads": self.num_heads,
            "head_dim": self.head_dim,
            "num_key_value_heads": None if groups == self.num_heads else groups,
            **changed_settings(self.frame),
        }

    def reset_parameters(self) -> None:
        """Draw all parameters again, in the order in which the constructor draws them.

        A layer built on the meta device gets its first values in this way, after `to_empty`.
        """
        for child in self.children():
            cast(_Resettable, child).reset_parameters()

    def forward(
        self,
        x: Float[Tensor, "batch time width"],
        *,
        cu_seqlens: Int[Tensor, "..."] | None = None,
        mask: Bool[Tensor, "batch time"] | None = None,
    ) -> Float[Tensor, "batch time width"]:
        """Process whole sequences.

        Args:
            x: [batch, time, width].
            cu_seqlens: offsets of packed sequences, see :meth:`extend`.
            mask: true where a token is and false where padding is, see :meth:`extend`.

        Returns:
            The update of the residual stream, in the shape and type of x.

        Raises:
            ValueError: an argument has the wrong shape, type or values.
        """
        return self.extend(x, cu_seqlens=cu_seqlens, mask=mask)[0]

    def extend(
        self,
        x: Float[Tensor, "batch time width"],
        state: LayerState | None = None,
        *,
        cu_seqlens: Int[Tensor, "..."] | None = None,
        mask: Bool[Tensor, "batch time"] | None = None,
    ) -> tuple[Float[Tensor, "batch time width"], LayerState]:
        """Process a chunk of tokens and return the updated state.

        Where a sequence is cut into chunks changes rounding only.

        Args:
            x: [batch, time, width], with time of 1 or more.
            state: returned by an earlier call of this method or of :meth:`step`; None at the beginning.
                One for all sequences, which may have come packed or as a batch.
            cu_seqlens: offsets [0, ..., time] of sequences that are packed along time, integers, best on
                the CPU; equal neighbours are an empty sequence. The batch must be 1. None of the
                sequences sees another one.
            mask: [batch, time], true where a token is and false where padding is, wherever that is.
                Padding is left out of the computation: its outputs are zero, and no state and no position
                counts it. Time and memory are those of the tokens packed along time, and of copying them;
                on a GPU, the call waits for the mask. Not together with `cu_seqlens`.

        Returns:
            The outputs of :meth:`forward` at these positions, and the state after the last one, of every
            sequence.

        Raises:
            TypeError: x is no tensor, or the state is something else.
            ValueError: an argument has the wrong shape, type or values, or the state another number of
                sequences.

        Example:
            >>> from mesaopt.layers import MesaLayer
            >>> layer, x = MesaLayer(width=6, num_heads=2, head_dim=3), torch.randn(4, 7, 6)
            >>> start, state = layer.extend(x[:, :5])
            >>> end, state = layer.extend(x[:, 5:], state)
            >>> torch.allclose(torch.cat([start, end], dim=1), layer(x), atol=1e-5)
            True
        """
        self._check(x, ("batch", "time"), "step takes one token")
        packed = None if cu_seqlens is None else Packed.read(cu_seqlens, x)
        if state is not None:
            check_sequences(state, LayerState, len(x) if packed is None else len(packed.lengths))
        if mask is None:
            return self._extend(x, state, packed)
        if packed is not None:
            raise ValueError("mask and cu_seqlens are both given: must be one of them")
        return self._extend_padded(x, state, mask)

    def _extend(
        self, x: Tensor, state: LayerState | None, packed: Packed | None = None
    ) -> tuple[Tensor, LayerState]:
        """Extend sequences without padding."""
        inputs, recent, seen = self._read(x, state, packed)
        memory = None if state is None else self._spread(state)
        result = self._mix(inputs, memory, packed)
        return self._write(result.output), self._join(result, recent, seen)

    def _mix(
        self, inputs: HeadInputs, memory: Memory | None, packed: Packed | None = None
    ) -> Output | MesaOutput:
        """Apply the operator to a sequence, with the signs of the forget gate around it."""
        cu_seqlens = None if packed is None else packed.cu_seqlens
        if inputs.sign is None:
            return self.mix(inputs, memory, cu_seqlens)
        signs, ends = running_signs(inputs.sign, None if packed is None else packed.lengths)
        result = self.mix(without_signs(inputs, signs), memory, cu_seqlens)
        return with_signs(result, signs, ends)

    def _extend_padded(
        self, x: Tensor, state: LayerState | None, mask: Tensor
    ) -> tuple[Tensor, LayerState]:
        """Extend the sequences without their padding, and fill up the outputs with zeros."""
        padding = Padding.read(mask, x)
        if padding.is_none:
            return self._extend(x, state)
        if padding.is_all:
            none = self.value(x[:, :0])  # for its type
            state = self.init_state(len(x), dtype=none.dtype) if state is None else state
            return none.new_zeros(x.shape), state
        y, state = self._extend(padding.pack(x), state, padding.packed)
        return padding.fill_up(y), state

    def step(
        self, x: Float[Tensor, "batch width"], state: LayerState
    ) -> tuple[Float[Tensor, "batch width"], LayerState]:
        """Process one token and return the updated state.

        Args:
            x: [batch, width].
            state: from :meth:`init_state`, :meth:`extend` or an earlier step.

        Returns:
            The output of :meth:`forward` at this position, [batch, width], and the new state. The given
            state is left as it is.

        Raises:
            TypeError: x is no tensor, or the state is something else.
            ValueError: x or the state has the wrong shape or type, or they differ in their number of
                sequences.

        Example:
            >>> from mesaopt.layers import MesaLayer
            >>> layer, x = MesaLayer(width=6, num_heads=2, head_dim=3), torch.randn(4, 7, 6)
            >>> y, state = layer.step(x[:, 0], layer.init_state(batch_size=4))
            >>> torch.allclose(y, layer(x)[:, 0], atol=1e-6)
            True
        """
        self._check(x, ("batch",), "extend takes several tokens")
        check_sequences(state, LayerState, len(x))
        inputs, recent, seen = self._read(x.unsqueeze(1), state)
        one = inputs.single()
        if one.sign is None:
            result = self.mix_step(one, self._spread(state))
        else:
            unsigned = without_signs(one, one.sign)
            result = with_signs(self.mix_step(unsigned, self._spread(state)), one.sign, one.sign)
        return self._write(result.output), self._join(result, recent, seen)

    def init_state(self, batch_size: int, *, dtype: torch.dtype | None = None) -> LayerState:
        """Return the state of an empty past, on the device of the weights.

        Args:
            batch_size: number of sequences.
            dtype: type of the projections, which under autocast is not that of the weights; that of the
                weights if None.

        Returns:
            Zeros, in the types in which the operator keeps its states.

        Raises:
            ConfigError: the number of sequences is no whole number of 1 or more.
        """
        require_count("batch_size", batch_size, smallest=1)
        weight = self.query.weight
        dtype = weight.dtype if dtype is None else dtype
        recent = None
        if self.convolution is not None:
            channels, length = self.convolution.weight.shape
            shape = (batch_size, length - 1, channels)
            recent = torch.zeros(shape, dtype=dtype, device=weight.device)
        like = torch.empty(
            batch_size, self.num_key_value_heads, self.key_width, dtype=dtype, device=weight.device
        )
        return LayerState(self.init_memory(like), recent)

    def mix(
        self,
        inputs: HeadInputs,
        memory: Memory | None,
        cu_seqlens: Int[Tensor, " offset"] | None = None,
    ) -> Output | MesaOutput:
        """Apply the operator to a sequence.

        Args:
            inputs: its inputs, [batch, time, head, ...].
            memory: its state before the first position; None at the beginning.
            cu_seqlens: offsets of packed sequences, on the CPU; None for a plain batch.

        Returns:
            The outputs [batch, time, head, value], and the state after the last position.
        """
        raise NotImplementedError

    def mix_step(self, inputs: HeadInputs, memory: Memory) -> Output | MesaOutput:
        """Apply the operator to one token.

        Args:
            inputs: its inputs, [batch, head, ...].
            memory: its state.

        Returns:
            The outputs [batch, head, value], and the new state.
        """
        raise NotImplementedError

    def init_memory(self, like: Float[Tensor, "batch head key"]) -> Memory:
        """Return the operator's state of an empty past.

        Args:
            like: keys, whose shape, type and device the state follows.

        Returns:
            Zeros.
        """
        raise NotImplementedError

    def head_inputs(self, x: Float[Tensor, "batch time width"]) -> HeadInputs:
        """Compute the inputs of the operator: queries, keys, values and gates.

        Args:
            x: [batch, time, width].

        Returns:
            The inputs, [batch, time, head, ...] each.

        Raises:
            ValueError: x has the wrong shape.
        """
        self._check(x, ("batch", "time"), "step takes one token")
        return self._read(x, None)[0]

    def attention_map(
        self, x: Float[Tensor, "batch time width"]
    ) -> Float[Tensor, "batch head time time"]:
        """Compute the weight of every value in every output: o_t = sum_s map[t, s] v_s.

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
        one_hot = torch.eye(x.shape[1], dtype=inputs.v.dtype, device=x.device)
        one_hot = one_hot.unsqueeze(1).expand(*inputs.v.shape[:3], -1)  # [B,T,H,T], as values
        return self._mix(inputs._replace(v=one_hot), None).output.transpose(1, 2)  # [B,H,T,T]

    @torch.no_grad()
    def head_products(
        self,
    ) -> tuple[Float[Tensor, "head read read"], Float[Tensor, "head width width"]]:
        """Multiply the weights of each head: in a plain frame the outputs depend on these products alone.

        Returns:
            W_k^T W_q and P W_v of every head, [head, width, width] each, acting on column vectors:
            key_token^T (W_k^T W_q) query_token is a score, (P W_v) value_token the contribution of a value.
            With positions, W_k^T W_q acts on [token; position], twice as wide.

        Source: von Oswald et al., Proposition 1 is stated in these products.
        """
        q = self.query.weight.unflatten(0, (self.num_heads, -1))  # [H,K,placed]
        p = self.output.weight.unflatten(1, (self.num_heads, -1)).transpose(0, 1)  # [H,width,V]
        groups = (self.num_key_value_heads, -1)
        k, v = (part.weight.unflatten(0, groups) for part in (self.key, self.value))
        if self._sharing > 1:
            k, v = (x.repeat_interleave(self._sharing, dim=0) for x in (k, v))
        return k.mT @ q, p @ v

    @property
    def head_dim(self) -> int:
        """Width of a query, key and value of one head."""
        return self.query.out_features // self.num_heads

    @property
    def key_width(self) -> int:
        """Width of a query and key as the operator takes them: that of a head, or of its features."""
        return self.head_dim * max(1, 2 * self.frame.features)

    def _check(self, x: Tensor, axes: tuple[str, ...], hint: str) -> None:
        """Refuse an input of another kind, shape or type."""
        read = self.value
        check_input("x", x, axes, width=read.in_features, dtype=read.weight.dtype, hint=hint)

    @property
    def _sharing(self) -> int:
        """Queries that share a key and a value."""
        return self.num_heads // self.num_key_value_heads

    @property
    def _repeats(self) -> int:
        """How often keys, values, gates and states are repeated for the operator."""
        return 1 if self.takes_fewer_keys else self._sharing

    def _spread(self, state: LayerState) -> Memory:
        return repeat_heads(cast(Memory, state.memory), self._repeats)

    def _join(
        self, result: Output | MesaOutput, recent: Tensor | None, seen: int | Tensor
    ) -> LayerState:
        return LayerState(keep_one_of(result.state, self._repeats), recent, seen)

    def _read(
        self,
        x: Float[Tensor, "batch time width"],
        state: LayerState | None,
        packed: Packed | None = None,
    ) -> tuple[HeadInputs, Float[Tensor, "sequence before channel"] | None, int | Tensor]:
        """Compute the inputs of the operator, the next `recent` of the state, and the tokens so far."""
        recent, seen = (None, 0) if state is None else state[1:]
        placed, times = x, None
        if self.frame.positions or self.frame.rotary:
            times, seen = next_positions(x, seen, packed)
        if times is not None and self.frame.positions:
            placed = with_positions(x, times, width=self.width)
        parts = [self.query(placed), self.key(placed), self.value(x)]
        if self.convolution is not None:
            after = [] if self.frame.key_shift or self.frame.convolve_values else [parts.pop()]
            joined = torch.cat(parts, dim=-1)
            if packed is None:
                joined, recent = self.convolution(joined, recent)
            else:
                joined, recent = self.convolution.convolve_packed(joined, recent, packed.lengths)
            joined = joined if self.frame.key_shift else silu(joined)
            parts = [*joined.split([part.shape[-1] for part in parts], dim=-1), *after]
        q = parts[0].unflatten(-1, (self.num_heads, -1))  # [B,T,H,K]
        k, v = (part.unflatten(-1, (self.num_key_value_heads, -1)) for part in parts[1:])
        if self.frame.features:
            q, k = (dpfp(part, self.frame.features) for part in (q, k))
        if self.frame.unit_keys or self.frame.unit_values:
            q = normalise(q)
        if self.frame.unit_keys:
            k = normalise(k)
        if self.frame.unit_values:
            v = normalise(v)
        if times is not None and self.frame.rotary:
            q, k = rotate(times, q, k)
        gates = (None, None, None) if self.gates is None else self.gates(x)
        inputs = HeadInputs(q, k, v, *gates).repeat_heads(self._repeats)
        return inputs, recent, seen

    def _write(
        self, out: Float[Tensor, "*position head value"]
    ) -> Float[Tensor, "*position width"]:
        if self.head_norm is not None:
            out = self.head_norm(out)
        return self.output(out.flatten(-2))
