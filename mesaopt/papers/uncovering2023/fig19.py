"""Figure 19: the weights of softmax layers beside those of the linear layers distilled from them."""

from typing import cast

import torch
from jaxtyping import Float
from torch import Tensor

from mesaopt.analysis import Linearization, capture
from mesaopt.layers import SelfAttention
from mesaopt.models import SequenceModel
from mesaopt.papers.claims import STANDARD_ERRORS, Claim
from mesaopt.papers.figures import FigureResult
from mesaopt.papers.plan import Plan, Report, Results
from mesaopt.papers.uncovering2023.curves import settings_of
from mesaopt.papers.uncovering2023.fig5 import STEPS, linearise_run
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
_PROBED = 256  # sequences that say in which directions inputs vary
_NO_VARIANCE = 1e-6  # share of the largest variance
_SEED = 0
_DRAWS = 300


def seconds(plan: Plan) -> float:
    """Guess the time it takes at a scale."""
    return {"smoke": 2.0, "small": 40.0, "paper": 400.0}[plan.scale]


Products = Float[Tensor, "layer product width width"]
"""W_k^T W_q and P W_v of layers of one head."""


def compute(laboratory: Laboratory, report: Report) -> Results:
    """Distil both layers of the first seed, compare their weights, draw, judge.

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
    found = linearise_run(runs[0], scale, report, 0, STEPS[scale])
    reached = reached_directions(runs[0], found)
    softmax, linear = products(runs[0], found, reached)
    own = cosines(softmax, linear)
    rows = [_row(layer, softmax[layer], linear[layer], own[layer]) for layer in range(len(own))]
    figure, lines = draw_matrices(rows, scale="picture", height=2.3)
    result = FigureResult(
        id="uncovering2023-fig19",
        title="Fig. 19: softmax layers and the linear layers distilled from them",
        caption=(
            "Two softmax layers of one head on constructed tokens, and linear layers that learned from "
            "random weights to imitate each: what scores a key token (rows) against a query token "
            "(columns), and what turns a value token (columns) into what is written (rows). Blocks "
            "are the slots of a token: 0 empty, where the prediction grows, 1 and 2 the current state, "
            "3 the previous one. Directions in which a layer's inputs never vary are left out of the "
            "weights that read them. Each picture has its own colours, since a linear layer can pass "
            "a factor, or a sign, from one product to the other; below are the cosines of the "
            "entries. First seed."
        ),
        settings=settings_of(laboratory, MODELS)
        | {"steps of distillation": STEPS[scale]}
        | {
            f"layer {layer + 1}": f"loss times {ratio:.2f}, misses {missed:.0%} of the variance"
            for layer, (ratio, missed) in enumerate(
                zip(found.ratios.tolist(), found.unexplained.tolist(), strict=True)
            )
        },
        rows=lines,
        figure=figure,
    )
    return Results(figures=[result], claims=judge(laboratory, softmax, linear, reached))


def reached_directions(run: Run, found: Linearization) -> Float[Tensor, "layer width width"]:
    """Find where a layer's inputs vary: what its weights do in other directions is never seen.

    Args:
        run: of the softmax layers.
        found: says which layers.

    Returns:
        A projection per layer.
    """
    tokens = make_task(run.config.task).sample(_PROBED, seed=_SEED, split="validation").tokens
    names = [f"blocks.{index}.mixer.input" for index in found.layers]
    projections = []
    for inputs in capture(run.model, tokens, names).values():
        rows = inputs.flatten(0, 1).double()
        values, vectors = torch.linalg.eigh(rows.T @ rows / len(rows))
        kept = vectors[:, values > _NO_VARIANCE * values.max()]
        projections.append(kept @ kept.T)
    return torch.stack(projections)


def products(
    run: Run, found: Linearization, reached: Float[Tensor, "layer width width"]
) -> tuple[Products, Products]:
    """Multiply out the weights of each softmax layer and of its linear twin, on what their inputs reach.

    Args:
        run: of softmax layers of one head.
        found: the linear layers.
        reached: a projection per layer.

    Returns:
        Of the softmax layers and of the linear ones; the latter with the sign, which a linear layer is free
        to choose, that makes their W_k^T W_q more alike.
    """
    mixers = cast(SequenceModel, run.model).mixers
    softmax = _on(torch.stack([_products(mixers[index]) for index in found.layers]), reached)
    linear = _on(torch.stack([_products(twin) for twin in found.distilled]), reached)
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


def judge(
    laboratory: Laboratory,
    softmax: Products,
    linear: Products,
    reached: Float[Tensor, "layer width width"],
) -> list[Claim]:
    """Judge the likeness of weights against that of matrices of unrelated multiples of the identity.

    Args:
        laboratory: knows the scale.
        softmax: of the softmax layers.
        linear: of the linear layers.
        reached: a projection per layer.

    Returns:
        The claims.
    """
    likeness = cosines(softmax, linear).abs().mean().item()
    others = cosines(softmax, linear.roll(1, dims=0)).abs().mean().item()
    chance = unrelated_likeness(softmax, reached)
    limit = chance.mean().item() + STANDARD_ERRORS * chance.std().item()
    return [
        laboratory.claim(
            "fig19-weights-are-alike",
            "Fig. 19",
            "Layers distilled from random weights come out like the softmax layers (mean cosine of "
            "W_k^T W_q and P W_v, over layers)",
            value=likeness,
            low=limit,
            basis=f"{chance.mean().item():.2f} for matrices of random multiples of the identity in each "
            f"pair of slots, and {STANDARD_ERRORS:g} of their standard deviations",
        ),
        laboratory.claim(
            "fig19-own-layer",
            "Fig. 19",
            "They are more like the layer they were distilled from than like the other one (mean cosine, "
            "less that with the other)",
            value=likeness - others,
            low=0.1,
            basis="0 for weights that do not depend on the layer; 0.1 counts",
        ),
    ]


def unrelated_likeness(
    softmax: Products, reached: Float[Tensor, "layer width width"]
) -> Float[Tensor, " draw"]:
    """Compare weights with unrelated matrices of the same make: multiples of the identity, slot by slot.

    Args:
        softmax: of the softmax layers.
        reached: a projection per layer.

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
        found.append(cosines(softmax, _on(blocks, reached)).abs().mean())
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


def _on(products: Products, reached: Float[Tensor, "layer width width"]) -> Products:
    """Leave out of each matrix what reads directions without variance; P W_v may write anywhere."""
    key_query, output_value = products.unbind(1)
    return torch.stack([reached @ key_query @ reached, output_value @ reached], dim=1)
