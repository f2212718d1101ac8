"""The mesa layer with the faults of other implementations, to switch on one at a time.

A reference path for one experiment, in plain PyTorch. Nothing else of the package uses it: the operator
is :func:`mesaopt.ops.mesa`. Without a fault it computes what the operator computes.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from mesaopt.config import LanguageModelConfig
from mesaopt.layers import MesaLayer
from mesaopt.layers.state import HeadInputs
from mesaopt.models import LanguageModel
from mesaopt.ops import MesaOutput, MesaState

_CHUNK = 16
"""Positions between two states that are kept."""
_SEQUENCES = 16
"""Sequences that are solved for at once: what they take stays in a processor's cache."""


@dataclass(frozen=True, kw_only=True)
class Faults:
    """The faults of a mesa layer; by default none.

    Example:
        >>> Faults(steps=30, epsilon=1e-5).half
        False
    """

    epsilon: float = 0.0
    """Added to both denominators of the conjugate gradients, forward and backward: 1e-5 in the public
    kernel, whatever the size of what is solved for."""
    larger_batch: float = 1.0
    """Number by which the gradients that backward solves begin with are divided, and their solutions
    multiplied: a loss that is the mean of so many times more answers has gradients so much smaller."""
    steps: int | None = None
    """Steps of conjugate gradients, a fixed number; None: a direct solve in place of them."""
    half: bool = False
    """Whether queries, keys, values, states and the backward solutions are rounded to 16 bits, and in
    conjugate gradients each vector before a product."""
    any_ridge: bool = False
    """Whether the ridge's parameter starts from numbers of any size, as memory that nobody has set may
    hold, in place of those that make it 1."""
    short_memory: bool = False
    """Whether forget gates start near 0.5: heads remember two tokens, in place of 16 to 1024."""


class System(NamedTuple):
    """The matrices A_t = H_t + ridge of all positions, in chunks: [batch, head, chunk, position, ...]."""

    keys: Float[Tensor, "*group position key"]
    """The keys of the chunk."""
    weights: Float[Tensor, "*group position position"]
    """Write strength of each token of the chunk times what is left of it; zero for later ones."""
    kept: Float[Tensor, "*group position 1"]
    """Share that is left of the state at the start of the chunk."""
    start: Float[Tensor, "*group key key"]
    """That state."""
    ridge: Float[Tensor, "head 1 1 key"]

    def parts(self, sequences: int) -> "Iterator[System]":
        """Give the same matrices, some sequences at a time."""
        parts = (one.split(sequences) for one in self[:-1])
        for keys, weights, kept, start in zip(*parts, strict=True):
            yield System(keys, weights, kept, start, self.ridge)

    def multiply(self, x: Tensor, half: bool) -> Tensor:
        """Return A_t x_t for every position."""
        moved = _rounded(x) if half else x
        past = self.kept * (moved @ self.start)
        return ((moved @ self.keys.mT) * self.weights) @ self.keys + past + self.ridge * x

    def matrices(self) -> Tensor:
        """Form A_t for every position."""
        outer = (self.keys.unsqueeze(-1) * self.keys.unsqueeze(-2)).flatten(-2)
        past = self.kept * self.start.flatten(-2).unsqueeze(-2)
        formed = (self.weights @ outer + past).unflatten(-1, (self.keys.shape[-1], -1))
        return formed + torch.diag_embed(self.ridge)


def faulty_mesa(
    q: Float[Tensor, "batch time head key"],
    k: Float[Tensor, "batch time head key"],
    v: Float[Tensor, "batch time head value"],
    *,
    ridge: Float[Tensor, "head key"],
    beta: Float[Tensor, "batch time head"],
    log_decay: Float[Tensor, "batch time head"],
    faults: Faults = Faults(),
) -> Float[Tensor, "batch time head value"]:
    """Compute o_t = G_t (H_t + ridge)^{-1} q_t as :func:`mesaopt.ops.mesa` does, or with faults.

    The gradient of a solve is another solve, with the same faults: that is how the public kernel computes
    it. All else is differentiated by autograd.

    Args:
        q: queries [batch, time, head, key].
        k: keys, the same shape.
        v: values [batch, time, head, value].
        ridge: above 0, [head, key].
        beta: write strengths in [0, 1], [batch, time, head].
        log_decay: logarithm of what is kept, 0 or less, [batch, time, head].
        faults: what is wrong.

    Returns:
        Outputs [batch, time, head, value].

    Source: the conjugate gradients of `fla.ops.mesa_net`; von Oswald et al. 2025, section 3.

    Example:
        >>> one = torch.ones(1, 3, 1, 1)
        >>> gates = {"beta": one[..., 0], "log_decay": 0 * one[..., 0]}
        >>> faulty_mesa(one, one, one, ridge=one[0, :1, 0], **gates).flatten()
        tensor([0.5000, 0.6667, 0.7500])
    """
    time, half = q.shape[1], faults.half
    if half:
        q, k, v = map(_rounded, (q, k, v))
    q, k, v, beta, log_decay = (_in_chunks(x) for x in (q, k, v, beta, log_decay))
    since = log_decay.cumsum(-1)  # [B,H,N,C]
    between = since.unsqueeze(-1) - since.unsqueeze(-2)
    future = torch.ones_like(between[0, 0, 0]).triu(1).bool()
    weights = between.masked_fill(future, -torch.inf).exp() * beta.unsqueeze(-2)
    left = (since[..., -1:] - since).exp() * beta
    whole = since[..., -1].exp()
    gram, cross = (_starts(x, k * left.unsqueeze(-1), whole, half) for x in (k, v))
    system = System(k, weights, since.exp().unsqueeze(-1), gram, ridge[:, None, None])
    solved = _solve(system, q, faults)
    read = _rounded(solved) if half else solved
    out = ((read @ k.mT) * weights) @ v + system.kept * (read @ cross.mT)
    return out.flatten(2, 3)[:, :, :time].transpose(1, 2)


def _in_chunks(x: Tensor) -> Tensor:
    """Cut [batch, time, head, ...] into [batch, head, chunk, position, ...], with zeros at the end."""
    missing = -x.shape[1] % _CHUNK
    if missing:
        x = torch.cat([x, x.new_zeros(x.shape[0], missing, *x.shape[2:])], dim=1)
    return x.transpose(1, 2).unflatten(2, (-1, _CHUNK))


def _starts(x: Tensor, keys: Tensor, whole: Tensor, half: bool) -> Tensor:
    """Sum x_s k_s^T, weighted, over all tokens before each chunk."""
    written = x.mT @ keys  # [B,H,N,X,K]
    state, states = torch.zeros_like(written[:, :, 0]), []
    for chunk in range(written.shape[2]):
        states.append(state)
        state = whole[:, :, chunk, None, None] * state + written[:, :, chunk]
        state = _rounded(state) if half else state
    return torch.stack(states, dim=2)


def _solve(system: System, rhs: Tensor, faults: Faults) -> Tensor:
    """Solve A x = b, with a gradient that is a solve, too: dx = A^{-1} (db - dA x)."""
    with torch.no_grad():
        solution = _solution(system, rhs, faults)
    residual = rhs - system.multiply(solution, faults.half)
    return solution + cast(Tensor, _Adjoint.apply(residual, system, faults))


class _Adjoint(torch.autograd.Function):
    """Zero, with the gradient of A^{-1} r with respect to r."""

    @staticmethod
    def forward(ctx: Any, residual: Tensor, system: System, faults: Faults) -> Tensor:
        ctx.system, ctx.faults = System(*(part.detach() for part in system)), faults
        return torch.zeros_like(residual)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor, None, None]:
        times = ctx.faults.larger_batch
        with torch.no_grad():
            adjoint = _solution(ctx.system, gradients[0] / times, ctx.faults) * times
        return _rounded(adjoint) if ctx.faults.half else adjoint, None, None


def _solution(system: System, rhs: Tensor, faults: Faults) -> Tensor:
    """Solve for all positions, directly or from zero on."""
    if faults.steps is None:
        return torch.linalg.solve(system.matrices(), rhs)
    parts = zip(system.parts(_SEQUENCES), rhs.split(_SEQUENCES), strict=True)
    return torch.cat([_conjugate_gradients(part, b, faults.steps, faults) for part, b in parts])


def _conjugate_gradients(system: System, rhs: Tensor, steps: int, faults: Faults) -> Tensor:
    """Take a number of steps from zero on, for all positions at once."""
    solution, residual, direction = torch.zeros_like(rhs), rhs.clone(), rhs.clone()
    size = torch.linalg.vecdot(residual, residual).unsqueeze(-1)
    for _ in range(steps):
        image = system.multiply(direction, faults.half)
        along = size / _denominator(torch.linalg.vecdot(direction, image).unsqueeze(-1), faults)
        solution.addcmul_(along, direction)
        residual.addcmul_(along, image, value=-1)
        following = torch.linalg.vecdot(residual, residual).unsqueeze(-1)
        direction.mul_(following / _denominator(size, faults)).add_(residual)
        size = following
    return solution


def _denominator(x: Tensor, faults: Faults) -> Tensor:
    """Add the epsilon; without one, where there is nothing left to do, return one."""
    return x + faults.epsilon if faults.epsilon else x.masked_fill(x == 0, 1.0)


def _rounded(x: Tensor) -> Tensor:
    """Round to 16 bits, as if it were not: gradients pass."""
    return x + (x.half().to(x.dtype) - x).detach()


class FaultyMesa(MesaLayer):
    """A mesa layer with both gates whose operator is :func:`faulty_mesa`.

    Example:
        >>> model = faulty_model(LanguageModelConfig(width=8, num_heads=2), Faults(steps=10))
        >>> model.mixers[0].faults.steps
        10
    """

    faults = Faults()

    def mix(
        self,
        inputs: HeadInputs,
        memory: MesaState | None,
        cu_seqlens: Int[Tensor, " offset"] | None = None,
    ) -> MesaOutput:
        """Apply the operator; the state it returns is the empty one, since nothing is continued."""
        if memory is not None or cu_seqlens is not None or inputs.beta is None:
            raise ValueError("memory and cu_seqlens: must be None in a layer for one experiment")
        output = faulty_mesa(
            inputs.q,
            inputs.k,
            inputs.v,
            ridge=self.ridge,
            beta=inputs.beta,
            log_decay=cast(Tensor, inputs.log_decay),
            faults=self.faults,
        )
        return MesaOutput(output, self.init_memory(inputs.k[:, 0]), cast(Any, None))


def faulty_model(config: LanguageModelConfig, faults: Faults, *, seed: int = 0) -> LanguageModel:
    """Make a language model whose mesa layers have faults; where only first values are wrong, the operator
    is that of the library.

    Args:
        config: with "mesanet2025" as every mixer.
        faults: the faults.
        seed: of the initial weights, which are those of :class:`LanguageModel` where no fault changes them.

    Returns:
        The model.

    Example:
        >>> config = LanguageModelConfig(width=8, num_heads=2)
        >>> faulty_model(config, Faults(any_ridge=True))(torch.zeros(1, 5, dtype=torch.int64)).shape
        torch.Size([1, 5, 256])
    """
    model = LanguageModel(config, seed=seed)
    random = torch.Generator().manual_seed(seed)
    for block in model.blocks:
        mixer = cast(MesaLayer, block.mixer)
        _spoil(mixer, faults, random)
        if faults.steps is not None or faults.half:
            block.mixer = cast(nn.Module, _with_faults(mixer, faults))
    return model


def _with_faults(mixer: MesaLayer, faults: Faults) -> FaultyMesa:
    """Make the same layer with another operator."""
    faulty = FaultyMesa(
        mixer.width,
        mixer.num_heads,
        mixer.head_dim,
        frame=mixer.frame,
        gates=("log_decay", "beta"),
        ridge_floor=mixer.ridge_floor,
    )
    faulty.load_state_dict(mixer.state_dict())
    faulty.faults = faults
    return faulty


@torch.no_grad()
def _spoil(mixer: MesaLayer, faults: Faults, random: torch.Generator) -> None:
    """Set first values as a fault has them."""
    if faults.short_memory:
        cast(Any, mixer.gates).log_decay.bias.zero_()
    if faults.any_ridge:
        # Either sign, sizes from 1e-4 to 1e4: ridges from the floor to thousands.
        shape = mixer.raw_ridge.shape
        sign = torch.randint(2, shape, generator=random) * 2.0 - 1
        mixer.raw_ridge.copy_(sign * 10 ** (8 * torch.rand(shape, generator=random) - 4))
