"""The independent oracle of the autoregressive theory: one layer of linear attention, computed directly.

Nothing here uses the library's formulas. The layer is run token by token, a distribution of x_1 is a list
of atoms, and the expectation over eigenvalues is an average over roots of unity, which is exact once there
are more roots than the largest exponent.
"""

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from mesaopt.tasks import InitialStates
from mesaopt.theory.ar_process import Weights


class Atoms(InitialStates):
    """A distribution with finitely many values, real or complex, of any dependence between coordinates."""

    def __init__(self, atoms: Any, probabilities: Any = None, name: str = "finite"):
        self.name = name
        self.atoms = np.asarray(atoms)
        count = len(self.atoms)
        even = np.full(count, 1 / count)
        self.probabilities = even if probabilities is None else np.asarray(probabilities)

    @property
    def dim(self) -> int:
        return self.atoms.shape[1]

    def sample(self, random: np.random.Generator, count: int, dim: int) -> np.ndarray:
        assert dim == self.dim
        return self.atoms[random.choice(len(self.atoms), count, p=self.probabilities)]

    def moment(self, powers: np.ndarray, conjugate_powers: np.ndarray | None = None) -> np.ndarray:
        conjugate = np.zeros_like(powers) if conjugate_powers is None else conjugate_powers
        total = np.zeros(powers.shape[:-1], dtype=self.atoms.dtype)
        for atom, probability in zip(self.atoms, self.probabilities, strict=True):
            total += probability * (atom**powers * atom.conj() ** conjugate).prod(-1)
        return total


def independent_atoms(values: Any, probabilities: Any, dim: int, name: str = "product") -> Atoms:
    """Independent coordinates that take the given values."""
    atoms = list(itertools.product(values, repeat=dim))
    weights = [np.prod(p) for p in itertools.product(probabilities, repeat=dim)]
    return Atoms(atoms, weights, name)


def finite_twin(name: str, dim: int, scale: float) -> Atoms:
    """A finite distribution with the moments, up to the seventh, of a distribution of the library."""
    if name == "sparse":
        return Atoms(np.concatenate([np.eye(dim), -np.eye(dim)]) * scale)
    if name == "gaussian":  # four nodes of quadrature are exact up to degree seven
        nodes, weights = np.polynomial.hermite_e.hermegauss(4)
    elif name == "uniform":
        nodes, weights = np.polynomial.legendre.leggauss(4)
    else:
        nodes, weights = {
            "full_one": ([1.0], [1.0]),
            "rademacher": ([-1.0, 1.0], [1.0, 1.0]),
        }[name]
    nodes, weights = np.asarray(nodes), np.asarray(weights)
    return independent_atoms(scale * nodes, weights / weights.sum(), dim, name)


def lopsided_atoms(dim: int = 2) -> Atoms:
    """Four complex atoms without any symmetry, other scales in every coordinate."""
    random = np.random.default_rng(7)
    atoms = random.standard_normal((4, dim)) + 1j * random.standard_normal((4, dim))
    return Atoms(atoms * np.linspace(0.7, 1.3, dim), [0.1, 0.2, 0.3, 0.4], "lopsided")


def beyond_one_power() -> Atoms:
    """Signs that depend on magnitudes: E x_1 x_2^r = 0 for all r, yet E x_1^3 x_2^3 = 9/4."""
    atoms, probabilities = [], []
    for x, y in itertools.product((1.0, 2.0), repeat=2):
        correlation = {1.0: 1.0, 2.0: -0.5, 4.0: 0.25}[x * y]
        for s, r in itertools.product((-1, 1), repeat=2):
            atoms.append((s * x, r * y))
            probabilities.append((1 + s * r * correlation) / 16)
    return Atoms(atoms, probabilities, "beyond one power")


def all_sequences(initial: Atoms, length: int) -> tuple[np.ndarray, np.ndarray]:
    """Every start with every choice of roots of unity: sequences and their probabilities.

    Six factors of up to length - 2 turns, three of them conjugated: 3 (length - 2) is the largest exponent.
    """
    roots = 3 * (length - 2) + 1
    turns = np.exp(2j * np.pi * np.arange(roots) / roots)
    eigenvalues = np.array(list(itertools.product(turns, repeat=initial.dim)))
    powers = eigenvalues[:, None] ** np.arange(length)[:, None]
    states = (initial.atoms[:, None, None] * powers).reshape(-1, length, initial.dim)
    return states, np.repeat(initial.probabilities, len(eigenvalues)) / len(eigenvalues)


def layer_loss(
    states: np.ndarray,
    weights: Weights,
    *,
    contexts: str = "all",
    probabilities: np.ndarray | None = None,
) -> float:
    """Run the layer token by token, and add up half the squared errors."""
    count, length, dim = states.shape
    w_pv, w_kq = weights.output_value, weights.key_query
    if weights.blocks == "core":
        zero = np.zeros((dim, dim))
        w_pv = np.block([[w_pv, zero]])
        w_kq = np.block([[zero, zero], [w_kq, zero]])
    before = np.concatenate([np.zeros((count, 1, dim)), states[:, :-1]], axis=1)
    tokens = np.concatenate([states, before], axis=2)
    total = np.zeros(count)
    for t in range(2 if contexts == "all" else length - 1, length):
        query = tokens[:, t - 1] @ w_kq.T
        read = np.zeros((count, 2 * dim), dtype=complex)
        for i in range(t):
            read += tokens[:, i] * (tokens[:, i].conj() * query).sum(1, keepdims=True)
        total += (np.abs(read @ w_pv.T / (t - 1) - states[:, t]) ** 2).sum(1) / 2
    return float(total.mean() if probabilities is None else total @ probabilities)


def random_weights(
    dim: int, blocks: str = "core", *, batch: tuple[int, ...] = (), seed: int = 0
) -> Weights:
    """Complex weights of modulus near 1/2."""
    random = np.random.default_rng(seed)
    width = dim if blocks == "core" else 2 * dim

    def draw(*shape: int) -> np.ndarray:
        size = (*batch, *shape)
        return 0.4 * (random.standard_normal(size) + 1j * random.standard_normal(size))

    return Weights(draw(dim, width), draw(width, width))


def diagonal_weights(
    dim: int, blocks: str = "core", *, batch: tuple[int, ...] = (), seed: int = 0
) -> Weights:
    """The same without entries off the diagonals of V and K."""
    weights = random_weights(dim, batch=batch, seed=seed).masked()
    return weights if blocks == "core" else weights.embedded()


def draw_sequences(
    initial: InitialStates, count: int, length: int, dim: int, *, seed: int = 0
) -> np.ndarray:
    """Sequences x_1 ... x_T, [count, length, dim]."""
    random = np.random.default_rng(seed)
    start = initial.sample(random, count, dim)
    angles = random.uniform(0, 2 * np.pi, (count, 1, dim))
    return start[:, None] * np.exp(1j * angles * np.arange(length)[:, None])


def in_chunks(states: np.ndarray, size: int) -> Callable[[], list[np.ndarray]]:
    return lambda: [states[i : i + size] for i in range(0, len(states), size)]


def endless(
    initial: InitialStates, count: int, length: int, dim: int, *, seed: int = 0, size: int = 100
) -> Callable[[], Iterator[np.ndarray]]:
    """A stream that draws every chunk when it is asked for."""

    def stream() -> Iterator[np.ndarray]:
        for chunk in range(count // size):
            yield draw_sequences(initial, size, length, dim, seed=1000 * seed + chunk)

    return stream
