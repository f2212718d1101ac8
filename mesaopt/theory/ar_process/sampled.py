"""The loss on drawn sequences: one pass over them for all of training, or one pass a step."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Inexact

from mesaopt.config import Split
from mesaopt.errors import ConfigError
from mesaopt.tasks import ARProcess
from mesaopt.theory.ar_process.population import check_size
from mesaopt.theory.ar_process.statistics import QuadraticLoss
from mesaopt.theory.ar_process.weights import Array, Blocks, Contexts, Weights, check_choice

Stream = Callable[[], Iterable[Inexact[Array, "batch time dim"]]]
"""A function that returns the same sequences x_1 ... x_T at every call, a chunk at a time."""

_LARGEST_GRAM = 2**29  # bytes


def sequences(task: ARProcess, count: int, *, seed: int, split: Split = "train") -> Stream:
    """Stream sequences of a task, 64 at a time.

    Args:
        task: to draw from.
        count: number of sequences, 1 or more.
        seed: 0 or greater.
        split: "train", "validation" or "test".

    Returns:
        The stream, which draws them anew at every call.

    Example:
        >>> from mesaopt.config import ARProcessConfig
        >>> stream = sequences(ARProcess(ARProcessConfig(start="sparse")), 500, seed=0)
        >>> round(tied_estimate(stream).product, 9)
        1.0
    """
    return lambda: (x.numpy() for x in task.chunks(count, seed=seed, split=split, chunk_size=64))


class Parts(NamedTuple):
    """The parts of the prediction P M_t Q q_t at t = 2 ... T-1."""

    memory: Inexact[Array, "batch context row column"]
    """M_t: S_t / (t - 1) for core blocks, E_t E_t^* / (t - 1) for all."""
    query: Inexact[Array, "batch context column"]
    """q_t: x_t for core blocks, e_t for all."""
    target: Inexact[Array, "batch context dim"]
    """x_{t+1}."""


def sampled_loss(
    stream: Stream,
    *,
    blocks: Blocks = "core",
    contexts: Contexts = "all",
    largest_gram: int = _LARGEST_GRAM,
) -> "QuadraticLoss | DirectLoss":
    """Build the loss on given sequences.

    One pass collects the second moments of the features; training then costs the same for any number of
    sequences of any length. Memory is one chunk's and that of the Gram matrix, 16 dim^6 bytes for core
    blocks and 64 times that for all; where it would be too large, the loss is computed from the sequences
    again at every step.

    Args:
        stream: of the sequences; a chunk of 64 sequences of 100 states takes some 20 MB at dim 5.
        blocks: "core" or "all".
        contexts: "all", t = 2 ... T-1; or "last", t = T-1 only.
        largest_gram: bytes that the Gram matrix may take.

    Returns:
        The loss, averaged over sequences.

    Raises:
        ConfigError: there are no sequences, or they have fewer than three states.

    Example:
        >>> from mesaopt.theory.ar_process import diagonal
        >>> turn = np.exp(1j * np.random.default_rng(0).uniform(0, 6, (8, 1, 2)))
        >>> states = turn ** np.arange(6)[:, None]  # from x_1 = (1, 1)
        >>> loss, _ = sampled_loss(lambda: [states]).loss_and_gradient(
        ...     diagonal(2, key_query=0.0, output_value=0.0)
        ... )
        >>> round(float(loss), 6)  # half the energy of two coordinates in four targets
        4.0
    """
    check_choice("blocks", blocks, Blocks)
    check_choice("contexts", contexts, Contexts)
    dim = _dim_of(stream)
    features = (dim if blocks == "core" else 2 * dim) ** 3
    if 16 * features**2 > largest_gram:
        return DirectLoss(stream, dim, blocks, contexts)
    gram = torch.zeros((features, features), dtype=torch.complex128)
    cross = torch.zeros((features, dim), dtype=torch.complex128)
    energy, count = 0.0, 0
    for states in stream():
        memory, query, target = parts(states, blocks, contexts)
        count += len(states)
        rows = memory[..., None] * query[:, :, None, None]  # [B,T,A,B,C]
        rows = rows.astype(np.complex128).reshape(-1, features)  # [B*T,F]
        target = target.astype(np.complex128).reshape(-1, dim)
        tensor = torch.from_numpy(rows)  # torch's threads sleep while they wait, NumPy's spin
        gram.addmm_(tensor.T, tensor.conj())
        cross.addmm_(tensor.T, torch.from_numpy(target.conj()))
        energy += float((np.abs(target) ** 2).sum())
    _check_count(count)
    return QuadraticLoss(gram.numpy() / count, cross.numpy() / count, energy / count)


@dataclass(frozen=True)
class DirectLoss:
    """The loss by running the layer over all sequences, for statistics too large to keep.

    Args:
        stream: of the sequences.
        dim: width of a state.
        blocks: of the layer, "core" or "all".
        contexts: scored contexts, "all" or "last".

    Example:
        >>> from mesaopt.theory.ar_process import diagonal
        >>> states = np.eye(2)[:, None] * np.ones((2, 5, 1))  # two sequences, each with one coordinate
        >>> loss = DirectLoss(lambda: [states], dim=2, blocks="core")
        >>> float(loss.loss_and_gradient(diagonal(2, key_query=1.0, output_value=1.0))[0])
        0.0
    """

    stream: Stream
    dim: int
    blocks: Blocks
    contexts: Contexts = "all"

    def loss_and_gradient(self, weights: Weights) -> tuple[Float[Array, " *batch"], Weights]:
        """See :meth:`mesaopt.theory.ar_process.Engine.loss_and_gradient`.

        Raises:
            ValueError: the weights have other blocks or another width, or there are no sequences.
        """
        if (weights.dim, weights.blocks) != (self.dim, self.blocks):
            raise ValueError(
                f"weights have dim={weights.dim}, blocks={weights.blocks!r}: "
                f"must be {self.dim}, {self.blocks!r} as in the sequences"
            )
        p, q = weights.output_value, weights.key_query
        loss = np.zeros(p.shape[:-2])
        value = np.zeros(p.shape, dtype=np.complex128)
        key = np.zeros(q.shape, dtype=np.complex128)
        count = 0
        for states in self.stream():
            memory, query, target = parts(states, self.blocks, self.contexts)
            count += len(states)
            read = _apply(memory, np.einsum("...bc,ztc->...ztb", q, query, optimize=True))
            error = np.einsum("...ja,...zta->...ztj", p, read, optimize=True) - target
            loss += (np.abs(error) ** 2).sum((-3, -2, -1)) / 2
            value += np.einsum("...ztj,...zta->...ja", error, read.conj(), optimize=True)
            pulled = np.einsum("...ja,...ztj->...zta", p.conj(), error, optimize=True)
            back = _apply(memory.conj().swapaxes(-1, -2), pulled)
            key += np.einsum("...ztb,ztc->...bc", back, query.conj(), optimize=True)
        _check_count(count)
        return loss / count, Weights(value / count, key / count)


class TiedEstimate(NamedTuple):
    """The best single product on a sample, with its standard error.

    Example:
        >>> TiedEstimate(product=0.19, standard_error=0.004).product
        0.19
    """

    product: float
    """c = Re <f, x_{t+1}> / <f, f> with f = S_t x_t / (t - 1), over all sequences and contexts."""
    standard_error: float
    """Of the product over samples, from the spread of the sequences."""


def tied_estimate(stream: Stream) -> TiedEstimate:
    """Fit V K = c I with one number c to given sequences.

    Args:
        stream: of the sequences, two or more.

    Returns:
        The product with its standard error (that of a ratio of means).

    Raises:
        ConfigError: there are fewer than two sequences, or they have fewer than three states.

    Example:
        >>> from mesaopt.config import ARProcessConfig
        >>> task = ARProcess(ARProcessConfig(start="gaussian"))
        >>> estimate = tied_estimate(sequences(task, 1000, seed=0))
        >>> abs(estimate.product - 0.1919) < 4 * estimate.standard_error
        True
    """
    _dim_of(stream)
    slopes, curvatures = [], []
    for states in stream():
        memory, query, target = parts(states, "core")
        feature = _apply(memory, query)
        slopes.append(np.einsum("ztj,ztj->z", feature.conj(), target).real)
        curvatures.append((np.abs(feature) ** 2).sum((1, 2)))
    _check_count(sum(map(len, slopes)), least=2)
    slope, curvature = np.concatenate(slopes), np.concatenate(curvatures)
    product = slope.mean() / curvature.mean()
    spread = (slope - product * curvature).std(ddof=1) / curvature.mean()
    return TiedEstimate(float(product), float(spread / len(slope) ** 0.5))


def parts(
    states: Inexact[Array, "batch time dim"], blocks: Blocks = "core", contexts: Contexts = "all"
) -> Parts:
    """Sum up the context at every position that is scored.

    Args:
        states: x_1 ... x_T, T at least 3.
        blocks: "core" or "all".
        contexts: "all", t = 2 ... T-1; or "last", t = T-1 only.

    Returns:
        M_t, q_t and x_{t+1} for the contexts t.
    """
    now, before = states[:, 1:-1], states[:, :-2]  # x_t and x_{t-1}, t = 2 ... T-1
    if blocks == "core":
        query, sums = now, _sums(now, before, contexts)
    else:
        query = np.concatenate([now, before], axis=-1)
        first = np.pad(states[:, 0], ((0, 0), (0, states.shape[-1])))  # e_1 = [x_1; 0]
        sums = _sums(query, query, contexts) + np.einsum("za,zb->zab", first, first.conj())[:, None]
    pairs = np.arange(1, now.shape[1] + 1)[-sums.shape[1] :, None, None]  # t - 1
    kept = slice(-sums.shape[1], None)
    return Parts(sums / pairs, query[:, kept], states[:, 2:][:, kept])


def _sums(
    left: Inexact[Array, "batch context row"],
    right: Inexact[Array, "batch context column"],
    contexts: Contexts,
) -> Inexact[Array, "batch kept row column"]:
    """Sum left_i right_i^* up to every context, or up to the last one."""
    if contexts == "last":
        return (left.swapaxes(1, 2) @ right.conj())[:, None]
    return np.einsum("zta,ztb->ztab", left, right.conj()).cumsum(1)


def _apply(
    memory: Inexact[Array, "batch context row column"],
    vectors: Inexact[Array, "*layers batch context column"],
) -> Inexact[Array, "*layers batch context row"]:
    return (memory @ vectors[..., None])[..., 0]


def _dim_of(stream: Stream) -> int:
    for states in stream():
        check_size(states.shape[-1], states.shape[1])
        return states.shape[-1]
    raise ConfigError("stream: gives no sequences: must give one chunk or more")


def _check_count(count: int, least: int = 1) -> None:
    if count < least:
        raise ConfigError(
            f"stream: gives {count} sequences: must give {least} or more, the same at every call"
        )
