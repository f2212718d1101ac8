"""Attention maps averaged over sequences, and the share of attention by offset."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mesaopt.analysis.capture import evaluating, like_weights, up_to
from mesaopt.analysis.estimate import estimates, standard_error
from mesaopt.analysis.given import AnyModel, as_model, as_tokens
from mesaopt.config import require_whole
from mesaopt.display import Drawn, Row
from mesaopt.layers import SelfAttention
from mesaopt.progress import AnyProgress, reporting
from mesaopt.tasks import Batch
from mesaopt.workers import current_workers

_BATCH = 128  # sequences whose maps are in memory at once


@dataclass(frozen=True, repr=False)
class AttentionMaps(Drawn):
    """The maps of one layer over many sequences.

    Example:
        >>> maps = AttentionMaps(torch.eye(2)[None], torch.zeros(1, 2, 2), (0,), torch.ones(5, 1, 1))
        >>> maps.mass.tolist(), maps.mass_error.tolist()
        ([[1.0]], [[0.0]])
    """

    mean: Float[Tensor, "head time time"]
    """Mean over sequences, [head, t, s]: the weight of value s in output t."""
    spread: Float[Tensor, "head time time"]
    """Standard deviation over sequences."""
    offsets: tuple[int, ...]
    """Offsets: 0 is the token itself, 1 the previous one."""
    masses: Float[Tensor, "sequence head offset"]
    """Shares of attention by sequence, from :func:`attention_mass`."""

    @property
    def mass(self) -> Float[Tensor, "head offset"]:
        """Mean of :attr:`masses` over sequences."""
        return self.masses.mean(0)

    @property
    def mass_error(self) -> Float[Tensor, "head offset"]:
        """Standard error of :attr:`mass` over sequences."""
        return standard_error(self.masses)

    def _headline(self) -> str:
        heads, time, _ = self.mean.shape
        return f"Attention of {heads} heads to {time} tokens, {len(self.masses):,} sequences"

    def _rows(self) -> list[Row]:
        entries = torch.ones_like(self.mean).tril().nonzero().tolist()
        return [
            {
                "head": head,
                "position": t + 1,
                "token": s + 1,
                "attention": self.mean[head, t, s].item(),
                "spread": self.spread[head, t, s].item(),
            }
            for head, t, s in entries
        ]

    def _table(self) -> list[Row]:
        shares = [estimates(self.masses[:, head]) for head in range(self.masses.shape[1])]
        return [
            {"head": head}
            | {f"share {d} back": share for d, share in zip(self.offsets, of_head, strict=True)}
            for head, of_head in enumerate(shares)
        ]

    def _draw(self, axes: Any) -> None:
        time = self.mean.shape[-1]
        extent = (0.5, time + 0.5, time + 0.5, 0.5)
        image = axes.imshow(self.mean.mean(0).tolist(), extent=extent, cmap="viridis")
        axes.set(xlabel="attended token", ylabel="position", title="mean over heads")
        axes.figure.colorbar(image, ax=axes)


def attention_mass(
    maps: Float[Tensor, "batch head time time"],
    *,
    offsets: Sequence[int] = (0, 1),
    start: int = 6,
) -> Float[Tensor, "batch head offset"]:
    """Give the share of an attention map at given offsets.

    mass_d = mean over t >= start of |map[t, t - d]| / sum_s |map[t, s]|. Rows of softmax attention sum to
    one, and their shares are the weights themselves. Maps of linear attention have signs, and their shares
    are those of the absolute values. The shares of a row of zeros are 0.

    Args:
        maps: from :meth:`mesaopt.layers.SelfAttention.attention_map`, or of any other model.
        offsets: tokens back, 0 or more each: 0 is the token itself, 1 the previous one.
        start: first position that counts, from 1; greater than every offset. Early positions have few
            tokens to choose from.

    Returns:
        Shares between 0 and 1, [batch, head, offset].

    Raises:
        ValueError: there are no offsets, or an offset or the start is out of range.

    Source: von Oswald et al., figure 3A; numbers for positions from the sixth on.

    Example:
        >>> maps = torch.ones(1, 1, 8, 8).tril()
        >>> attention_mass(maps, offsets=(0, 1, 3), start=8).flatten()
        tensor([0.1250, 0.1250, 0.1250])
    """
    if len(offsets) == 0:
        raise ValueError("offsets: must not be empty")
    time = maps.shape[-1]
    for name, number in (("start", start), *(("offsets", offset) for offset in offsets)):
        require_whole(name, number)
    if not 1 <= start <= time:
        raise ValueError(f"start={start}: must be between 1 and {time}")
    for offset in offsets:
        if not 0 <= offset < start:
            raise ValueError(f"offsets: {offset}: must be 0 or greater and less than start={start}")
    weights = maps[:, :, start - 1 :].abs()  # [B,H,t,T]
    totals = weights.sum(-1, keepdim=True)
    shares = weights / totals.where(totals != 0, 1.0)
    rows = torch.arange(time - start + 1, device=maps.device)
    columns = rows + start - 1
    return torch.stack([shares[:, :, rows, columns - d].mean(-1) for d in offsets], dim=-1)


@torch.no_grad()
def attention_maps(
    model: AnyModel,
    tokens: Float[Tensor, "batch time token"] | Batch,
    *,
    name: str,
    offsets: Sequence[int] = (0, 1),
    start: int = 6,
    progress: AnyProgress = True,
) -> AttentionMaps:
    """Average the attention maps of a layer over sequences, a few at a time.

    Args:
        model: with attention layers of the package in it; it computes in evaluation mode. Or a Run or its
            path.
        tokens: two sequences or more, [batch, time, token], or a batch; they get the type of the weights.
        name: of the attention layer, such as "blocks.0.mixer".
        offsets: see :func:`attention_mass`.
        start: see :func:`attention_mass`.
        progress: a bar, nothing, or a function of the number of finished sequences: see
            :data:`mesaopt.progress.AnyProgress`.

    Returns:
        Mean, spread and masses.

    Raises:
        ValueError: there is no such layer, it is none of the package's attention layers, there are fewer
            than two sequences, or an offset or the start is out of range.

    Source: von Oswald et al., figures 3A, 14 and 15: 2048 sequences.

    Example:
        >>> from mesaopt.config import ModelConfig
        >>> from mesaopt.models import SequenceModel
        >>> model = SequenceModel(ModelConfig(mixers=("softmax_attention",), num_heads=2))
        >>> maps = attention_maps(model, torch.randn(9, 12, 40), name="blocks.0.mixer")
        >>> maps.mean.shape, maps.mass.shape
        (torch.Size([2, 12, 12]), torch.Size([2, 2]))
    """
    model, tokens = as_model(model), as_tokens(tokens)
    if len(tokens) < 2:
        shape = tuple(tokens.shape)
        raise ValueError(f"tokens has shape {shape}: must be two sequences or more, for a spread")
    _check_layer(model, name)
    maps_of = up_to(model, f"{name}.attention".removeprefix("."))

    def sums(batch: Tensor) -> tuple[int, Tensor, Tensor, Tensor]:
        with evaluating(model):
            maps = maps_of(batch).double()
        mass = attention_mass(maps, offsets=offsets, start=start)
        return len(batch), mass, maps.mean(0), (maps - maps.mean(0)).square().sum(0)

    masses, mean, squares, done = [], torch.zeros(()), torch.zeros(()), 0
    batches = like_weights(model, tokens).split(_BATCH)
    with reporting(progress, "attention maps") as report:
        for size, mass, batch_mean, batch_squares in current_workers().map(sums, batches):
            masses.append(mass)
            # Welford's sums, batch by batch: exact where the spread is much smaller than the mean.
            shift = batch_mean - mean
            squares = squares + batch_squares
            squares = squares + shift.square() * done * size / (done + size)
            mean = mean + shift * size / (done + size)
            done += size
            report(done, len(tokens))
    spread = (squares / (done - 1)).sqrt()
    return AttentionMaps(mean, spread, tuple(offsets), torch.cat(masses))


def _check_layer(model: nn.Module, name: str) -> None:
    modules = dict(model.named_modules(remove_duplicate=False))
    known = [n for n, module in modules.items() if isinstance(module, SelfAttention)]
    if name not in known:
        given = (
            f"is a {type(modules[name]).__name__}" if name in modules else "is no part of the model"
        )
        wanted = "only the package's own attention layers have maps"
        raise ValueError(f"name: {name!r} {given}: {wanted}, here: {', '.join(known) or 'none'}")
