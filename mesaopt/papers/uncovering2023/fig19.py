"""Figure 19: the weights of softmax layers beside those of the linear layers distilled from them."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from mesaopt.analysis import Linearization, capture
from mesaopt.layers import SelfAttention
from mesaopt.papers.claims import STANDARD_ERRORS, Claim
from mesaopt.papers.figures import FigureResult
from mesaopt.papers.plan import Plan, Report, Results
from mesaopt.papers.uncovering2023.curves import settings_of
from mesaopt.papers.uncovering2023.fig5 import STEPS, linearise_run
from mesaopt.papers.uncovering2023.fig9 import standard_errors
from mesaopt.papers.uncovering2023.laboratory import Laboratory
from mesaopt.papers.uncovering2023.matrices import (
    KEY_QUERY,
    OUTPUT_VALUE,
    Picture,
    Row,
    draw_matrices,
)
from mesaopt.tasks import make_task
from mesaopt.training import Run

MODELS = ("softmax-2",)
_SLOTS = ("0", "1", "2", "3")
_PROBED = 256  # sequences that say how much inputs vary in which direction
_SEED = 0
_DRAWS = 300


def seconds(plan: Plan) -> float:
    """Guess the time it takes at a scale."""
    seeds = sum(training.seeds for training in plan.trainings if training.recipe in MODELS)
    return 2.0 + seeds * STEPS[plan.scale] * _STEP


_STEP = 0.04
"""Seconds of a step of distillation, on two cores."""


Products = Float[Tensor, "layer product width width"]
"""W_k^T W_q and P W_v of layers of one head."""
Roots = Float[Tensor, "layer width width"]
"""Of the second moments of each layer's inputs."""


@dataclass(frozen=True)
class Twins:
    """The weights of a run's softmax layers and of the linear ones distilled from them."""

    softmax: Products
    linear: Products
    roots: Roots

    @property
    def likeness(self) -> Float[Tensor, ""]:
        """Mean cosine of the layers and those distilled from them."""
        return cosines(self.softmax, self.linear).abs().mean()

    @property
    def likeness_of_others(self) -> Float[Tensor, ""]:
        """The same with layers that they were not distilled from."""
        return cosines(self.softmax, self.linear.roll(1, dims=0)).abs().mean()


def compute(laboratory: Laboratory, report: Report) -> Results:
    """Distil both layers of every seed, compare their weights, draw the first seed's, judge all.

    Args:
        laboratory: the runs.
        report: told the steps of distillation done.

    Returns:
        The figure and its claims; nothing without the runs.
    """
    runs = laboratory.runs.get(MODELS[0], [])
    if not runs:
        return Results(figures=[], claims=[])
    scale = laboratory.plan.scale
    steps = STEPS[scale]
    found = [
        linearise_run(run, scale, report, seed * steps, len(runs) * steps)
        for seed, run in enumerate(runs)
    ]
    twins = [twins_of(run, one) for run, one in zip(runs, found, strict=True)]
    first = twins[0]
    own = cosines(first.softmax, first.linear)
    rows = [
        _row(layer, first.softmax[layer], first.linear[layer], own[layer])
        for layer in range(len(own))
    ]
    figure, lines = draw_matrices(rows, scale="picture", height=2.3)
    result = FigureResult(
        id="uncovering2023-fig19",
        title="Fig. 19: softmax layers and the linear layers distilled from them",
        caption=(
            "Two softmax layers of one head on constructed tokens, and linear layers that learned from "
            "random weights to imitate each: what scores a key token (rows) against a query token "
            "(columns), and what turns a value token (columns) into what is written (rows). Blocks "
            "are the slots of a token: 0 empty, where the prediction grows, 1 and 2 the current state, "
            "3 the previous one. Weights are multiplied by the root of the second moments of the inputs "
            "that they read: where inputs do not vary, weights do nothing. Each picture has its own "
            "colours, since a linear layer can pass "
            "a factor, or a sign, from one product to the other; below are the cosines of the "
            "entries. First seed; the claims are of all."
        ),
        settings=settings_of(laboratory, MODELS)
        | {"steps of distillation": steps}
        | {
            f"layer {layer + 1}": f"loss times {ratio:.2f}, misses {missed:.0%} of the variance"
            for layer, (ratio, missed) in enumerate(
                zip(found[0].ratios.tolist(), found[0].unexplained.tolist(), strict=True)
            )
        }
        | {"cosine by seed": [float(f"{one.likeness.item():.3f}") for one in twins]},
        rows=lines,
        figure=figure,
    )
    return Results(figures=[result], claims=judge(laboratory, twins))


def twins_of(run: Run, found: Linearization) -> Twins:
    """Put the weights of a run's layers beside those of the linear ones."""
    roots = input_roots(run, found)
    return Twins(*products(run, found, roots), roots)


def input_roots(run: Run, found: Linearization) -> Roots:
    """Find the roots of the second moments of each layer's inputs, with 1 as their largest eigenvalue.

    Weights that read directions in which inputs hardly vary matter little and are learned badly, and those
    of directions in which they never vary not at all: the roots give each its due.

    Args:
        run: of the softmax layers.
        found: says which layers.

    Returns:
        A symmetric matrix per layer.
    """
    tokens = make_task(run.config.task).sample(_PROBED, seed=_SEED, split="validation").tokens
    names = [f"blocks.{index}.mixer.input" for index in found.layers]
    roots = []
    for inputs in capture(run.model, tokens, names).values():
        rows = inputs.flatten(0, 1).double()
        values, vectors = torch.linalg.eigh(rows.T @ rows / len(rows))
        scales = (values / values.max()).clamp(min=0).sqrt()  # rounding makes negative zeros
        roots.append(vectors * scales @ vectors.T)
    return torch.stack(roots)


def products(run: Run, found: Linearization, roots: Roots) -> tuple[Products, Products]:
    """Multiply out the weights of each softmax layer and of its linear twin, as they act on inputs.

    Args:
        run: of softmax layers of one head.
        found: the linear layers.
        roots: of the second moments of the inputs of each layer.

    Returns:
        Of the softmax layers and of the linear ones; the latter with the sign, which a linear layer is free
        to choose, that makes their W_k^T W_q more alike.
    """
    mixers = run.sequence_model.mixers
    softmax = _on(torch.stack([_products(mixers[index]) for index in found.layers]), roots)
    linear = _on(torch.stack([_products(twin) for twin in found.distilled]), roots)
    signs = torch.where(cosines(softmax, linear)[:, 0] < 0, -1.0, 1.0)
    return softmax, signs[:, None, None, None] * linear


def cosines(a: Products, b: Products) -> Float[Tensor, "layer product"]:
    """Give the cosines of the entries of two sets of matrices.

    Args:
        a: [layer, product, width, width].
        b: the same shape.

    Returns:
        One per layer and product.
    """
    return torch.nn.functional.cosine_similarity(a.flatten(2), b.flatten(2), dim=-1)


def judge(laboratory: Laboratory, twins: Sequence[Twins]) -> list[Claim]:
    """Judge the likeness of weights against that of matrices of unrelated multiples of the identity.

    Args:
        laboratory: knows the scale.
        twins: one per training seed.

    Returns:
        The claims.
    """
    likeness = torch.stack([one.likeness for one in twins])
    gain = likeness - torch.stack([one.likeness_of_others for one in twins])
    chance = torch.stack([unrelated_likeness(one.softmax, one.roots) for one in twins])
    mean, spread = chance.mean().item(), chance.std(1).mean().item()
    return [
        laboratory.claim(
            "fig19-weights-are-alike",
            "Fig. 19",
            "Layers distilled from random weights come out like the softmax layers (mean cosine of "
            "W_k^T W_q and P W_v, over layers and seeds)",
            value=likeness.mean().item(),
            low=mean + STANDARD_ERRORS * spread,
            basis=f"{mean:.2f} for matrices of random multiples of the identity in each "
            f"pair of slots, and {STANDARD_ERRORS:g} of their standard deviations",
        ),
        laboratory.claim(
            "fig19-own-layer",
            "Fig. 19",
            "They are more like the layer they were distilled from than like the other one (mean cosine, "
            "less that with the other, over layers and seeds)",
            value=gain.mean().item(),
            low=0.1 - standard_errors(gain),
            basis="0 for weights that do not depend on the layer; 0.1 counts, and "
            f"{STANDARD_ERRORS:g} standard errors over seeds where there are several",
        ),
    ]


def unrelated_likeness(softmax: Products, roots: Roots) -> Float[Tensor, " draw"]:
    """Compare weights with unrelated matrices of the same make: multiples of the identity, slot by slot.

    Args:
        softmax: of the softmax layers.
        roots: of the second moments of the inputs of each layer.

    Returns:
        Mean absolute cosines of random such matrices.
    """
    random = torch.Generator().manual_seed(_SEED)
    identity = torch.eye(softmax.shape[-1] // len(_SLOTS), dtype=torch.float64)
    found = []
    for _ in range(_DRAWS):
        slots = torch.randn(
            *softmax.shape[:2], len(_SLOTS), len(_SLOTS), generator=random, dtype=torch.float64
        )
        blocks = torch.einsum("lpab,ij->lpaibj", slots, identity).reshape(softmax.shape)
        found.append(cosines(softmax, _on(blocks, roots)).abs().mean())
    return torch.stack(found)


def _row(layer: int, softmax: Tensor, linear: Tensor, own: Tensor) -> Row:
    pictures = []
    for title, ours, theirs, cosine in zip(
        (KEY_QUERY, OUTPUT_VALUE), softmax, linear, own.tolist(), strict=True
    ):
        pictures += [
            Picture(ours, f"{title}, softmax"),
            Picture(theirs, f"{title}, linear", f"cosine {cosine:.2f}"),
        ]
    return Row(f"layer {layer + 1}", pictures, _SLOTS)


def _products(layer: SelfAttention) -> Float[Tensor, "product width width"]:
    return torch.stack([product[0].detach().double() for product in layer.head_products()])


def _on(products: Products, roots: Roots) -> Products:
    """Give what reads inputs the size of what it reads; P W_v may write anywhere."""
    key_query, output_value = products.unbind(1)
    return torch.stack([roots @ key_query @ roots, output_value @ roots], dim=1)
