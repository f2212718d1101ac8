"""Sensitivity: derivatives of a part of a model by every input token."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from mesaopt.analysis.capture import (
    check_weights,
    differentiating,
    evaluating,
    like_weights,
    up_to,
)
from mesaopt.analysis.estimate import estimates, standard_error
from mesaopt.analysis.given import AnyModel, as_model, as_tokens
from mesaopt.config import require_whole
from mesaopt.display import SHOWN, Curve, Drawn, Row
from mesaopt.progress import AnyProgress, reporting
from mesaopt.tasks import Batch
from mesaopt.workers import current_workers

_BATCH = 64  # sequences differentiated at once: a compromise between overhead and memory


@dataclass(frozen=True, repr=False)
class Sensitivity(Drawn):
    """Norms of the derivatives of a part's output at one position by every input token.

    Example:
        >>> result = Sensitivity(2, torch.tensor([[0.0, 3.0], [1.0, 3.0]]), torch.ones(2, 2))
        >>> result.curve.tolist(), result.curve_error.tolist()
        ([0.5, 3.0], [0.5, 0.0])
    """

    position: int
    """Position of the output, counted from 1."""
    norms: Float[Tensor, "sequence time"]
    """Mean over coordinates l of the output of |d f_l / d s_t'|, by sequence and token."""
    frobenius: Float[Tensor, "sequence time"]
    """Frobenius norm of the whole Jacobian d f / d s_t'."""

    @property
    def curve(self) -> Float[Tensor, " time"]:
        """Mean of :attr:`norms` over sequences, by token."""
        return self.norms.mean(0)

    @property
    def curve_error(self) -> Float[Tensor, " time"]:
        """Standard error of :attr:`curve` over sequences."""
        return standard_error(self.norms)

    @property
    def breadth(self) -> Float[Tensor, " sequence"]:
        """Effective number of tokens that each output depends on: (sum c)^2 / sum c^2 of its norms c.

        1 for a single token, n for n tokens of equal weight; NaN for none.
        """
        return self.norms.sum(1).square() / self.norms.square().sum(1)

    _axes = {"xlabel": "input token", "ylabel": "sensitivity"}

    def _headline(self) -> str:
        (breadth,) = estimates(self.breadth[:, None])
        tokens, sequences = self.norms.shape[1], len(self.norms)
        return (
            f"The output at position {self.position} depends on {breadth} tokens in effect, of "
            f"{tokens}; {sequences:,} sequences"
        )

    def _rows(self) -> list[Row]:
        each = enumerate(zip(estimates(self.norms), estimates(self.frobenius), strict=True))
        return [{"token": t + 1, "sensitivity": s, "frobenius": f} for t, (s, f) in each]

    def _table(self) -> list[Row]:
        rows = sorted(self._rows(), key=lambda row: -row["sensitivity"].value)[:SHOWN]
        return sorted(rows, key=lambda row: row["token"])

    def _curves(self) -> list[Curve]:
        each = estimates(self.norms)
        return [Curve.of("sensitivity", range(1, len(each) + 1), each)]


@differentiating()
def sensitivity(
    model: AnyModel,
    tokens: Float[Tensor, "batch time token"] | Batch,
    *,
    name: str,
    position: int,
    progress: AnyProgress = True,
) -> Sensitivity:
    """Differentiate the output of a part at one position by every input token.

    c_t' = mean over l of |d f_{k,l} / d s_t'|_2 for the part's output f_k at position k. It is exact, by
    automatic differentiation: one backward pass per coordinate l, for many sequences at once and through
    no later part. It differentiates inside of `torch.no_grad` and `torch.inference_mode` too.

    Args:
        model: any module from tokens [batch, time, token] that autograd can differentiate, and that does
            not mix sequences. It computes in evaluation mode, in which cuDNN has no backward pass of
            recurrent layers such as nn.LSTM: those need the CPU.
        tokens: s_1 ... s_T [batch, time, token], one sequence or more, or a batch; they get the type of the
            weights.
        name: of the part, as in :func:`mesaopt.analysis.capture`, such as "blocks.0" for the stream after
            the first layer; it gives [batch, time, ...].
        position: k, between 1 and T.
        progress: a bar, nothing, or a function of the number of finished sequences: see
            :data:`mesaopt.progress.AnyProgress`.

    Returns:
        The norms, by sequence and token.

    Raises:
        ValueError: there is no such part or position, the part gives another shape, or it changes with the
            tokens although autograd does not see how, as after a `detach`.

    Source: von Oswald et al., figures 16, 22 and 23: layer 1, 64 sequences, k first, middle and last.

    Example:
        >>> from torch import nn
        >>> model = nn.Sequential(nn.Linear(3, 3, bias=False), nn.Tanh())
        >>> model[0].weight.data = 2 * torch.eye(3)
        >>> sensitivity(model, torch.randn(5, 4, 3), name="0", position=2).curve
        tensor([0., 2., 0., 0.])
    """
    model, tokens = as_model(model), as_tokens(tokens)
    require_whole("position", position)
    if not tokens.is_floating_point():
        raise ValueError(f"tokens: of {tokens.dtype}: must be real, to be differentiated by")
    if not 1 <= position <= tokens.shape[1]:
        raise ValueError(f"position={position}: must be between 1 and {tokens.shape[1]}")
    check_weights(model)
    part, tokens = up_to(model, name), like_weights(model, tokens)

    def output(x: Tensor) -> Float[Tensor, "batch coordinate"]:
        result = part(x)
        if result.dim() < 3 or result.shape[:2] != x.shape[:2]:
            shape = tuple(result.shape)
            raise ValueError(f"name={name!r}: gives shape {shape}: must be [batch, time, ...]")
        return result[:, position - 1].flatten(1)

    def norms_of(batch: Tensor) -> Float[Tensor, "coordinate batch time"]:
        with evaluating(model):
            return _gradient_norms(output, batch, name)

    rows, done = [], 0
    with reporting(progress, "sensitivity") as report:
        for row in current_workers().map(norms_of, tokens.split(_BATCH)):
            rows.append(row)
            done += row.shape[1]
            report(done, len(tokens))
    norms = torch.cat(rows, dim=1)  # [L,B,T]
    return Sensitivity(position, norms.mean(0), torch.linalg.vector_norm(norms, dim=0))


def _gradient_norms(
    output: Callable[[Tensor], Tensor], tokens: Float[Tensor, "batch time token"], name: str
) -> Float[Tensor, "coordinate batch time"]:
    """Compute the norms of d output_l / d s_t'.

    A loop over coordinates, as not every backward pass has a batching rule, and with many sequences side by
    side vmap is not faster. Ordinary autograd, as torch.func refuses many a module.
    """
    x = tokens.detach().clone().requires_grad_()
    value = output(x.clone())  # which the model may change in place
    size = torch.promote_types(value.dtype, torch.float32)  # of norms

    def norms(unit: Tensor) -> Tensor | None:
        (slope,) = torch.autograd.grad(
            value, x, unit.expand_as(value), retain_graph=True, allow_unused=True
        )
        return None if slope is None else torch.linalg.vector_norm(slope, dim=-1, dtype=size)

    units = torch.eye(value.shape[1], dtype=value.dtype, device=value.device)
    rows = [norms(unit) for unit in units] if value.requires_grad else [None]
    found = [row for row in rows if row is not None]
    if len(found) < len(rows):  # all of them: a path to one coordinate is one to all
        _check_constant(output, tokens, value, name)
        return value.new_zeros(value.shape[1], *tokens.shape[:2], dtype=size)
    return torch.stack(found)


@torch.no_grad()
def _check_constant(
    output: Callable[[Tensor], Tensor], tokens: Tensor, value: Tensor, name: str
) -> None:
    """Refuse a part that depends on the tokens in a way that autograd has not seen."""
    random = torch.Generator().manual_seed(0)
    noise = torch.randn(tokens.shape, generator=random).to(tokens) * (1 + tokens.abs())
    for other in (tokens + noise, -tokens, torch.zeros_like(tokens)):
        if not torch.equal(output(other), value):
            problem = "changes with the tokens, but autograd does not see how"
            wanted = "must not detach them, or run in torch.no_grad or inference_mode"
            raise ValueError(f"name={name!r}: {problem}: {wanted}")
