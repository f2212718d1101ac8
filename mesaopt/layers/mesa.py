"""The mesa layer: self-attention by ridge regression on the past."""

import math
from collections.abc import Callable, Collection
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import softplus

from mesaopt.config import require_count
from mesaopt.config.checks import require_flag
from mesaopt.errors import ConfigError
from mesaopt.layers.attention import PLAIN, SelfAttention
from mesaopt.layers.frame import Frame, GateName
from mesaopt.layers.state import HeadInputs
from mesaopt.ops import (
    MesaOutput,
    MesaState,
    OnFailure,
    RidgeMode,
    SolverLike,
    as_solver,
    mesa,
    mesa_step,
)
from mesaopt.ops.validation import check_choice, check_number


class MesaLayer(SelfAttention[MesaState]):
    """Per head, output P Phi_t q_t where Phi_t is the ridge regression of all values on all keys so far.

    Phi_t = argmin_Phi 1/2 sum_{s <= t} zeta_ts beta_s |v_s - Phi k_s|^2 + 1/2 tr(Phi ridge Phi^T), where
    zeta_ts is the product of the forget gates gamma after s up to t. Without gates, as by default, all
    zeta and beta are 1.

    Two published layers have a constructor of their own, :meth:`uncovering2023` and
    :meth:`mesanet2025`. The arguments after the first three are for layers in between.

    The ridge stays in float32 when the layer is brought to half precision.

    Args:
        width: width of the residual stream.
        num_heads: heads.
        head_dim: width of a query, key and value of one head.
        frame: positions, convolutions, norms and the cap on forgetting.
        gates: names of the gates, of "log_decay" and "beta".
        ridge_floor: between 0 and 1: each channel of each head learns
            ridge = ridge_floor + softplus(theta). If None, each head learns lambda = 1 / ridge,
            `inverse_ridge`: unconstrained, as in the authors' code, and a value at or below 0 is an
            error in the operator. Ridges start from 1 either way.
        ridge_mode: "static": the ridge is the same at all positions; "decayed": it decays with the past.
        solver: how to solve: a solver of :mod:`mesaopt.ops` or the name of one. Steps are solved directly.
        chunk_size: most positions processed in parallel, 1 or more; it changes rounding only.
        on_failure: "raise", "warn" or "ignore" a failed solve; "ignore" never waits for a GPU.
        num_key_value_heads: heads of keys, values, gates and states, see
            :class:`mesaopt.layers.SelfAttention`. Every query has a ridge of its own.

    Raises:
        TypeError: the frame is something else.
        ConfigError: a setting is out of range or of another kind.
        ValueError: there is no such solver, or no such ridge mode or answer to failures; or the solver
            is "exact", and the layer forgets its past but not its ridge.

    Source: von Oswald et al., equations 4 to 8; von Oswald et al. 2025 for gates and the floor. Where the
    code of the former calls the regression inputs "values" and the targets "keys", keys are the inputs
    here, as in the paper.

    Example:
        >>> layer = MesaLayer(width=6, num_heads=2, head_dim=3)
        >>> layer(torch.randn(4, 7, 6)).shape
        torch.Size([4, 7, 6])
    """

    def __init__(
        self,
        width: int,
        num_heads: int,
        head_dim: int,
        *,
        frame: Frame = PLAIN,
        gates: Collection[GateName] = (),
        ridge_floor: float | None = None,
        ridge_mode: RidgeMode = "static",
        solver: SolverLike = "auto",
        chunk_size: int = 64,
        on_failure: OnFailure = "raise",
        num_key_value_heads: int | None = None,
    ):
        super().__init__(
            width, num_heads, head_dim, frame=frame, gates=gates,
            num_key_value_heads=num_key_value_heads,
        )  # fmt: skip
        check_number("ridge_floor", ridge_floor)
        if ridge_floor is not None and ridge_floor >= 1:
            raise ConfigError(f"ridge_floor={ridge_floor}: must be above 0 and below 1")
        check_choice("ridge_mode", ridge_mode, RidgeMode)
        check_choice("on_failure", on_failure, OnFailure)
        require_count("chunk_size", chunk_size, smallest=1)
        self.ridge_floor = ridge_floor
        self.ridge_mode: RidgeMode = ridge_mode
        self.solver = as_solver(solver)
        static_ridge_forgets = "log_decay" in gates and ridge_mode == "static" and chunk_size > 1
        self.solver.choose(static_ridge_forgets=static_ridge_forgets)  # or says why it cannot
        self.chunk_size = chunk_size
        self.on_failure: OnFailure = on_failure
        if ridge_floor is None:
            self.inverse_ridge = nn.Parameter(torch.empty(num_heads))
        else:
            self.raw_ridge = nn.Parameter(torch.empty(num_heads, self.key_width))
        self._reset_ridge()

    def _shown_settings(self) -> dict[str, Any]:
        names = ("ridge_floor", "ridge_mode", "solver", "chunk_size", "on_failure")
        return super()._shown_settings() | {name: getattr(self, name) for name in names}

    @classmethod
    def uncovering2023(
        cls,
        width: int,
        num_heads: int,
        head_dim: int,
        *,
        unit_keys: bool = False,
        forget: bool = False,
        solver: SolverLike = "auto",
        chunk_size: int = 64,
        on_failure: OnFailure = "raise",
        num_key_value_heads: int | None = None,
    ) -> "MesaLayer":
        """Return the layer of "Uncovering mesa-optimization algorithms in Transformers".

        Args:
            width: width of the residual stream.
            num_heads: heads.
            head_dim: width of a query, key and value of one head.
            unit_keys: whether queries and keys are divided by their norms.
            forget: whether each head learns a forget gate. The ridge then decays with the past, so inputs
                that stop exciting some direction make the system singular after a while.
            solver: as in the class.
            chunk_size: as in the class.
            on_failure: as in the class.
            num_key_value_heads: as in the class.

        Returns:
            The layer; with the switches off, the one that `MesaLayer` makes by itself.

        Source: von Oswald et al., equations 4 to 8, and for forgetting appendix B. The appendix leaves
        open what sets gamma; here the input does, as in :class:`mesaopt.layers.Gates`.

        Example:
            >>> layer = MesaLayer.uncovering2023(width=6, num_heads=2, head_dim=3, forget=True)
            >>> layer(torch.randn(4, 7, 6)).shape
            torch.Size([4, 7, 6])
        """
        require_flag("forget", forget)
        gates: tuple[GateName, ...] = ("log_decay",) if forget else ()
        return cls(
            width, num_heads, head_dim, frame=Frame(unit_keys=unit_keys), gates=gates,
            ridge_mode="decayed" if forget else "static", solver=solver,
            chunk_size=chunk_size, on_failure=on_failure, num_key_value_heads=num_key_value_heads,
        )  # fmt: skip

    @classmethod
    def mesanet2025(
        cls,
        width: int,
        num_heads: int,
        head_dim: int,
        *,
        ridge_floor: float = 0.25,
        forget_cap: float | None = None,
        solver: SolverLike = "auto",
        chunk_size: int = 64,
        on_failure: OnFailure = "raise",
        num_key_value_heads: int | None = None,
    ) -> "MesaLayer":
        """Return the layer of MesaNet: convolutions, unit keys, both gates, a ridge per channel, norms.

        Args:
            width: width of the residual stream.
            num_heads: heads.
            head_dim: width of a query, key and value of one head.
            ridge_floor: least ridge, between 0 and 1; it bounds the condition number.
            forget_cap: see :attr:`mesaopt.layers.Frame.forget_cap`; 0.9975 in the paper.
            solver: as in the class; `Auto(rtol=1e-4)` loses no quality in the paper.
            chunk_size: as in the class.
            on_failure: as in the class.
            num_key_value_heads: as in the class.

        Returns:
            The layer.

        Source: von Oswald et al. 2025; :class:`Frame` and :class:`Gates` say where we differ.

        Example:
            >>> layer = MesaLayer.mesanet2025(width=6, num_heads=2, head_dim=3)
            >>> layer(torch.randn(4, 7, 6)).shape
            torch.Size([4, 7, 6])
        """
        return cls(
            width, num_heads, head_dim, frame=Frame.mesanet2025(forget_cap=forget_cap),
            gates=("log_decay", "beta"), ridge_floor=ridge_floor, solver=solver,
            chunk_size=chunk_size, on_failure=on_failure, num_key_value_heads=num_key_value_heads,
        )  # fmt: skip

    @property
    def ridge(self) -> Float[Tensor, " head"] | Float[Tensor, "head key"]:
        """Ridge on the diagonal: one number per head, or per head and channel."""
        if self.ridge_floor is None:
            return self.inverse_ridge.reciprocal()
        return self.ridge_floor + softplus(self.raw_ridge)

    def reset_parameters(self) -> None:
        """Draw all parameters again; the ridges start from 1."""
        super().reset_parameters()
        self._reset_ridge()

    def mix(
        self,
        inputs: HeadInputs,
        memory: MesaState | None,
        cu_seqlens: Int[Tensor, " offset"] | None = None,
    ) -> MesaOutput:
        """See :func:`mesaopt.ops.mesa`."""
        return mesa(
            inputs.q, inputs.k, inputs.v, ridge=self.ridge, beta=inputs.beta,
            log_decay=inputs.log_decay, ridge_mode=self.ridge_mode, solver=self.solver,
            chunk_size=self.chunk_size, initial_state=memory, cu_seqlens=cu_seqlens,
            on_failure=self.on_failure,
        )  # fmt: skip

    def mix_step(self, inputs: HeadInputs, memory: MesaState) -> MesaOutput:
        """See :func:`mesaopt.ops.mesa_step`."""
        return mesa_step(
            inputs.q, inputs.k, inputs.v, ridge=self.ridge, beta=inputs.beta,
            log_decay=inputs.log_decay, ridge_mode=self.ridge_mode, state=memory,
            on_failure=self.on_failure,
        )  # fmt: skip

    def init_memory(self, like: Float[Tensor, "batch head key"]) -> MesaState:
        """See :meth:`mesaopt.ops.MesaState.empty`."""
        batch, heads, width = like.shape
        return MesaState.empty(batch, heads, width, self.head_dim, like=like)

    @torch.no_grad()
    def _reset_ridge(self) -> None:
        if self.ridge_floor is None:
            self.inverse_ridge.fill_(1.0)
        else:
            self.raw_ridge.fill_(math.log(math.expm1(1 - self.ridge_floor)))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "MesaLayer":
        """Convert as `.to`, `.half` and others ask, but keep the ridge in float32 at least.

        Ridges and sums of squared keys meet in one matrix, which needs the digits of both.
        """

        def keep(x: Tensor) -> Tensor:
            moved = fn(x)
            lowered = moved.is_floating_point() and moved.dtype.itemsize < 4
            return x.to(moved.device, torch.float32) if lowered else moved

        if recurse:
            for child in self.children():
                child._apply(fn)
        return super()._apply(keep, recurse=False)  # the ridge is the only parameter of our own
