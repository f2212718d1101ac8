"""Figures 5 and 19: linear layers distilled from softmax layers, by their losses and by their weights."""

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from operator import itemgetter
from typing import Any

import torch
from jaxtyping import Float
from matplotlib.axes import Axes
from torch import Tensor

from mesaopt.analysis import Estimate, Linearization, capture, linearize, variance_over_seeds
from mesaopt.layers import SelfAttention
from mesaopt.looks import INK, series
from mesaopt.papers.claims import STANDARD_ERRORS, Claim
from mesaopt.papers.figure import Figure, Panel, grid, stack
from mesaopt.papers.laboratory import measurement
from mesaopt.papers.matrices import (
    KEY_QUERY,
    OUTPUT_VALUE,
    MatrixRow,
    Picture,
    draw_matrices,
    matrix_data,
)
from mesaopt.papers.plots import circles
from mesaopt.papers.rows import PanelData, Rows
from mesaopt.papers.uncovering2023.laboratory import Laboratory
from mesaopt.papers.uncovering2023.published import LINEARISED
from mesaopt.papers.uncovering2023.regression import (
    PREDICTORS,
    PUBLISHED_NOISE,
    draw_regression,
    regression_losses,
)
from mesaopt.recipes import RECIPES, select
from mesaopt.tasks import make_task
from mesaopt.training import Run

_BY_DIMENSION = tuple(recipe.name for recipe in select(variant="dimension"))
_LOOKS = {RECIPES[name].dim: series(number) for number, name in enumerate(_BY_DIMENSION)}
_OTHER_TRAINING = 0.15
"""Distance of another training from a published ratio, as a share of it: theirs spread by 0.004 to 0.45."""
_LEARNED = 0.5
"""Share of the loss of predicting zero below which a model has learned something."""
_ZERO_SEQUENCES = 256  # for the loss of predicting zero
_NOT_DISTILLED = "this layer could not be distilled, so that its ratio is of the distillation"
_TWO_LAYERS = "softmax-2"
_SLOTS = ("0", "1", "2", "3")
_INPUT_SEQUENCES = 256  # for the second moments of the inputs of layers
_RANDOM_MATRICES = 300


@measurement
def linearised(lab: Laboratory, recipe: str) -> list[Linearization]:
    """Linearise the layers of every run of a recipe, one at a time."""
    return [
        linearize(
            run.sequence_model.cpu(),
            make_task(run.config.task),
            steps=lab.settings.distillation_steps,
            learning_rate=lab.settings.distillation_rate,
            num_sequences=lab.settings.distillation_sequences,
            seed=run.config.seed,
            progress=lab.on_progress,
        )
        for run in lab.trained(recipe)
    ]


def loss_ratios(
    linearisations: Sequence[Linearization], positions: slice = slice(None)
) -> list[Estimate]:
    """Average the ratios of losses by layer over seeds; errors are over test sequences and seeds."""
    by_seed = [one.estimates(positions) for one in linearisations]
    values = torch.tensor([[one.value for one in row] for row in by_seed], dtype=torch.float64)
    errors = torch.tensor([[one.error for one in row] for row in by_seed], dtype=torch.float64)
    variance = errors.square().mean(0) / len(errors) + variance_over_seeds(values)
    return list(map(Estimate, values.mean(0).tolist(), variance.sqrt().tolist()))


def _measure_ratios(lab: Laboratory) -> PanelData | None:
    rows: Rows = []
    seeds = {}
    for recipe in filter(lab.trained, _BY_DIMENSION):
        dim, linearisations = RECIPES[recipe].dim, linearised(lab, recipe)
        rows += [
            _fig5_row(("A, ratio of losses", "one layer linear", dim, layer), ratio)
            for layer, ratio in enumerate(loss_ratios(linearisations), start=1)
        ]
        seeds[str(dim)] = [one.ratios.tolist() for one in linearisations]
    return PanelData(rows=rows, more={"seeds": seeds}) if rows else None


def _draw_ratios(axes: Axes, data: PanelData) -> None:
    for dim, group in itertools.groupby(data.rows, key=itemgetter("dimension")):
        rows, look = list(group), _LOOKS[dim]
        layers = [row["layer"] for row in rows]
        axes.errorbar(
            layers,
            [row["value"] for row in rows],
            yerr=[row["half_width_95"] for row in rows],
            **look.line(label=f"dimension {dim}", lw=1.3),
        )
        for ratios in data.more["seeds"][str(dim)]:
            axes.plot(layers, ratios, ".", color=look.color, ms=4)
        circles(axes, dict(enumerate(LINEARISED.get(dim, ()), start=1)), look.color, size=6)
    axes.axhline(1, color=INK, lw=0.8, ls=(0, (1, 3)))
    axes.set(title="A: one layer made linear", xlabel="layer", ylabel="loss / loss with softmax")
    axes.set_yscale("log")
    ticks = (1, 1.5, 2, 3, 4, 6)
    axes.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.minorticks_off()
    axes.set_ylim(min(0.95, axes.get_ylim()[0]), None)
    axes.legend()


def _measure_regression(lab: Laboratory) -> PanelData:
    rows = sorted(
        regression_losses(lab, PUBLISHED_NOISE), key=lambda row: PREDICTORS.index(row["predictor"])
    )
    panel = "B, loss per dimension"
    return PanelData(
        rows=[
            _fig5_row((panel, r["predictor"], r["dim"], None), Estimate(r["loss"], r["error"]))
            for r in rows
        ]
    )


def _draw_regression(axes: Axes, data: PanelData) -> None:
    point = itemgetter("what", "dimension", "value", "half_width_95")
    draw_regression(axes, list(map(point, data.rows)), published=True)
    axes.set_title("B: without training")
    axes.set_ylim(0, 0.155)
    axes.legend(loc="upper left")


def _fig5_row(where: tuple[str, str, int, int | None], measured: Estimate) -> dict[str, Any]:
    columns = dict(zip(("panel", "what", "dimension", "layer"), where, strict=True))
    return columns | {"value": measured.value, "half_width_95": 1.96 * measured.error}


def _fig5_settings(lab: Laboratory) -> dict[str, Any]:
    measured = {RECIPES[recipe].dim: linearised(lab, recipe) for recipe in _BY_DIMENSION}
    settings: dict[str, Any] = {
        "test sequences": lab.settings.distillation_sequences,
        "steps of distillation": lab.settings.distillation_steps,
    }
    for dim, linearisations in measured.items():
        if linearisations:
            unexplained = torch.stack([one.unexplained for one in linearisations]).mean(0)
            losses = [one.loss for one in linearisations]
            settings[f"loss, dimension {dim}"] = _in_words(losses)
            settings[f"unexplained, dimension {dim}"] = _in_words(unexplained.tolist())
            if failed := _failed(linearisations):
                settings[f"not distilled, dimension {dim}"] = f"layer {', '.join(map(str, failed))}"
    return settings


def _failed(linearisations: Sequence[Linearization]) -> list[int]:
    """List the layers that some seed could not distil, counted from 1: their ratios mean little."""
    return sorted({layer + 1 for one in linearisations for layer in one.failed})


def _in_words(values: list[float]) -> str:
    return " ".join(f"{value:.3f}" for value in values)


def _fig5_claims(lab: Laboratory) -> Iterable[Claim]:
    for recipe in _BY_DIMENSION:
        dim, linearisations = RECIPES[recipe].dim, linearised(lab, recipe)
        ratios = loss_ratios(linearisations) if linearisations else []
        late = loss_ratios(linearisations, slice(dim, None)) if linearisations else []
        claims = [*_order_claims(dim, ratios, late)]
        if dim in LINEARISED and lab.as_published(recipe) and _has_learned(lab, recipe):
            claims += _published_ratio_claims(dim, ratios, _failed(linearisations))
        yield from (replace(claim, recipes=(recipe,)) for claim in claims)


def _has_learned(lab: Laboratory, recipe: str) -> bool:
    """Say whether every model does better than zero: one that does not loses nothing by being linear."""
    limits = [_LEARNED * zero_loss(run) for run in lab.trained(recipe)[:1]]
    return all(one.loss <= limit for one in linearised(lab, recipe) for limit in limits)


def zero_loss(run: Run) -> float:
    """Give the mean test loss of predicting zero on the task of a run."""
    batch = make_task(run.config.task).sample(_ZERO_SEQUENCES, seed=0, split="test")
    return batch.losses(torch.zeros_like(batch.targets)).mean().item()


def _compare_layers(ratios: Sequence[Estimate]) -> tuple[Estimate | None, ...]:
    """Compare ratios: the first over the largest other, later ones over it, the second over these."""
    if not ratios:
        return None, None, None
    first, second = ratios[:2]
    error = max(ratio.error for ratio in ratios[1:])  # at least that of a mean of later layers
    largest = Estimate(max(ratio.value for ratio in ratios[1:]), error)
    values = torch.tensor([ratio.value for ratio in ratios[2:]], dtype=torch.float64)
    later = Estimate(values.mean().item(), error)
    return first / largest, later / first, second / later


def _order_claims(
    dim: int, ratios: Sequence[Estimate], late: Sequence[Estimate]
) -> Iterable[Claim]:
    """Judge that the first layer, which binds tokens, needs its softmax, and later ones ever less.

    Means are mostly of the first positions, so that those at which the context determines the matrix, from
    `dim` + 1 on, are judged by themselves.
    """
    yield from _first_layer_claims(dim, ratios)
    yield Claim(
        name=f"fig5-dim-{dim}-second-layer",
        figure="Fig. 5A",
        statement=f"Dimension {dim}: the second layer loses more than later ones (its ratio of losses "
        "over their mean)",
        measured=_compare_layers(ratios)[2],
        low=1.05,
        basis="1.36, 1.23, 1.32 and 1.30 published; 1.05 counts",
    )
    yield from _first_layer_claims(
        dim,
        late,
        end="-late",
        where=f", positions {dim + 1} to {4 * dim}",
        unpublished="no number of these positions is published; as of the mean",
    )


def _first_layer_claims(
    dim: int, ratios: Sequence[Estimate], *, end: str = "", where: str = "", unpublished: str = ""
) -> Iterable[Claim]:
    """Compare the first layer with the others, by the mean or at some positions."""
    first_over_others, later_over_first, _ = _compare_layers(ratios)
    yield Claim(
        name=f"fig5-dim-{dim}-first-layer{end}",
        figure="Fig. 5A",
        statement=f"Dimension {dim}{where}: no layer needs its softmax as much as the first, which binds "
        "tokens (its ratio of losses over the largest other)",
        measured=first_over_others,
        low=1.1,
        basis=unpublished
        or "1.31, 1.51, 1.58 and 2.33 published for dimensions 4, 6, 10, 20; 1.1 counts",
    )
    yield Claim(
        name=f"fig5-dim-{dim}-later-layers{end}",
        figure="Fig. 5A",
        statement=f"Dimension {dim}{where}: layers 3 to 7 lose little by being linear (mean of their "
        "ratios of losses over that of the first)",
        measured=later_over_first,
        high=0.75,
        basis=unpublished or "0.56, 0.54, 0.48 and 0.33 published; 0.75 counts",
    )


def _published_ratio_claims(
    dim: int, ratios: Sequence[Estimate], failed: Sequence[int]
) -> Iterable[Claim]:
    for layer, published in enumerate(LINEARISED[dim], start=1):
        yield Claim(
            name=f"fig5-dim-{dim}-layer-{layer}",
            figure="Fig. 5A",
            statement=f"Dimension {dim}: with layer {layer} linear the loss is at most {published:g} times "
            f"as large, give or take {_OTHER_TRAINING:.0%} for another training",
            measured=ratios[layer - 1] if ratios else None,
            high=published + _OTHER_TRAINING * published,
            basis=f"{published:g} published; "
            + (
                _NOT_DISTILLED if layer in failed else "layers that were distilled better lose less"
            ),
        )


fig5 = Figure(
    name="fig5",
    title="Fig. 5: linear layers in the place of softmax layers, and the price of softmax",
    summary="softmax layers made linear, and the price of softmax by dimension",
    caption=(
        "A: each softmax layer by itself is replaced by a linear one that learned to imitate it. The loss "
        "is divided by that of the model with all its softmax layers. Lines are means, with 95 % intervals "
        "over test sequences and, where there are several, training seeds. Dots are single seeds, circles "
        "the authors' means. The authors take 15,000 steps of AdamW at a constant rate; here inputs are "
        "whitened and the rate falls, so that fewer steps do. B: loss per dimension of ridge regression "
        "and of softmax kernel regression, as in Fig. 20 for noise 0.01; circles are the authors'."
    ),
    recipes=_BY_DIMENSION,
    needs_runs=False,
    panels=(
        Panel(name="one layer linear", measure=_measure_ratios, draw=_draw_ratios),
        Panel(name="without training", measure=_measure_regression, draw=_draw_regression),
    ),
    layout=grid(2, height=3.7),
    settings=_fig5_settings,
    claims=_fig5_claims,
    seconds={"smoke": 3.0, "small": 155.0, "paper": 80_000.0},
)


Products = Float[Tensor, "layer product width width"]
"""W_k^T W_q and P W_v of layers of one head."""
Roots = Float[Tensor, "layer width width"]
"""Roots of the second moments of each layer's inputs."""


@dataclass(frozen=True)
class WeightPairs:
    """The weights of a run's softmax layers, and of the linear ones distilled from them."""

    softmax: Products
    linear: Products
    """With the sign, free in a linear layer, that makes its W_k^T W_q more similar."""
    roots: Roots

    @property
    def similarity(self) -> Float[Tensor, ""]:
        """Mean cosine of the layers and those distilled from them."""
        return mean_cosine(self.softmax, self.linear)

    @property
    def similarity_to_others(self) -> Float[Tensor, ""]:
        """The same with the other layers, which they were not distilled from."""
        return mean_cosine(self.softmax, self.linear.roll(1, dims=0))


@measurement
def weight_pairs(lab: Laboratory) -> list[WeightPairs]:
    """Compare the weights of two softmax layers with those distilled from them, seed by seed."""
    return list(map(pair_weights, lab.trained(_TWO_LAYERS), linearised(lab, _TWO_LAYERS)))


def pair_weights(run: Run, linearisation: Linearization) -> WeightPairs:
    """Multiply out the weights of softmax layers and of linear ones, as they act on their inputs."""
    mixers, roots = run.sequence_model.mixers, input_roots(run, linearisation.layers)
    softmax = _acting(torch.stack([_products(mixers[i]) for i in linearisation.layers]), roots)
    linear = _acting(torch.stack(list(map(_products, linearisation.distilled))), roots)
    return WeightPairs(softmax, _signs(softmax, linear)[..., None, None] * linear, roots)


def input_roots(run: Run, layers: Sequence[int]) -> Roots:
    """Give the roots of the second moments of layers' inputs, with 1 as their largest eigenvalue.

    Weights of directions in which inputs hardly vary matter little and are learned badly, and those of
    directions in which they never vary not at all: multiplied by the roots, each counts as it acts.
    """
    tokens = make_task(run.config.task).sample(_INPUT_SEQUENCES, seed=0, split="validation").tokens
    roots = []
    for inputs in capture(run.model, tokens, [f"blocks.{i}.mixer.input" for i in layers]).values():
        flat = inputs.flatten(0, 1).double()  # [sequence*time, width]
        values, vectors = torch.linalg.eigh(flat.T @ flat / len(flat))
        scales = (values / values.max()).clamp(min=0).sqrt()  # rounding makes negative zeros
        roots.append(vectors * scales @ vectors.T)
    return torch.stack(roots)


def cosines(a: Products, b: Products) -> Float[Tensor, "layer product"]:
    """Give the cosines of the entries of matrices."""
    return torch.nn.functional.cosine_similarity(a.flatten(2), b.flatten(2), dim=-1)


def mean_cosine(softmax: Products, linear: Products) -> Float[Tensor, ""]:
    """Average the cosines of layers, each with the sign that makes its W_k^T W_q more similar.

    A linear layer is the same with both of its products negated, and another with one of them negated.
    """
    return (_signs(softmax, linear) * cosines(softmax, linear)).mean()


def _signs(softmax: Products, linear: Products) -> Float[Tensor, "layer 1"]:
    return torch.where(cosines(softmax, linear)[:, :1] < 0, -1.0, 1.0)


def _products(layer: SelfAttention) -> Float[Tensor, "product width width"]:
    return torch.stack([product[0].detach().double() for product in layer.head_products()])


def _acting(products: Products, roots: Roots) -> Products:
    """Multiply by the roots where inputs are read; P W_v may write anywhere."""
    key_query, output_value = products.unbind(1)
    return torch.stack([roots @ key_query @ roots, output_value @ roots], dim=1)


def _measure_weights(lab: Laboratory) -> PanelData:
    pairs = weight_pairs(lab)[0]
    rows = []
    for layer, layer_cosines in enumerate(cosines(pairs.softmax, pairs.linear).tolist()):
        pictures = []
        for product, title in enumerate((KEY_QUERY, OUTPUT_VALUE)):
            softmax, linear = pairs.softmax[layer, product], pairs.linear[layer, product]
            note = f"cosine {layer_cosines[product]:.2f}"
            pictures += [
                Picture(softmax, f"{title}, softmax"),
                Picture(linear, f"{title}, linear", note),
            ]
        rows.append(MatrixRow(f"layer {layer + 1}", pictures, _SLOTS))
    return matrix_data(rows, colors="picture")


def _fig19_settings(lab: Laboratory) -> dict[str, Any]:
    first = linearised(lab, _TWO_LAYERS)[0]
    by_layer = zip(first.ratios.tolist(), first.unexplained.tolist(), strict=True)
    return {
        "steps of distillation": lab.settings.distillation_steps,
        **{
            f"layer {layer}": f"loss times {ratio:.2f}, {unexplained:.0%} of the variance unexplained"
            for layer, (ratio, unexplained) in enumerate(by_layer, start=1)
        },
        "cosine by seed": [float(f"{one.similarity.item():.3f}") for one in weight_pairs(lab)],
    }


def _fig19_claims(lab: Laboratory) -> Iterable[Claim]:
    if lab.lacks(_TWO_LAYERS):
        return
    pairs = weight_pairs(lab)
    similarity = torch.stack([one.similarity for one in pairs])
    gain = similarity - torch.stack([one.similarity_to_others for one in pairs])
    chance = torch.stack([_random_similarity(one) for one in pairs])
    mean, deviation = chance.mean().item(), chance.std(1).mean().item()
    yield Claim(
        name="fig19-weights-are-alike",
        figure="Fig. 19",
        statement="Linear layers distilled from random weights become similar to the softmax layers (mean "
        "cosine of W_k^T W_q and P W_v, over layers and seeds)",
        measured=similarity.mean().item(),
        recipes=(_TWO_LAYERS,),
        low=mean + STANDARD_ERRORS * deviation,
        basis=f"{mean:.2f} for matrices of random multiples of the identity in each pair of slots, and "
        f"{STANDARD_ERRORS:g} of their standard deviations",
    )
    yield Claim(
        name="fig19-own-layer",
        figure="Fig. 19",
        statement="They are more similar to the layer they were distilled from than to the other one (mean "
        "cosine, less that with the other, over layers and seeds)",
        measured=Estimate.of_seeds(gain),
        recipes=(_TWO_LAYERS,),
        low=0.1,
        basis="0 for weights that do not depend on the layer; 0.1 counts",
    )


def _random_similarity(pairs: WeightPairs) -> Float[Tensor, " draw"]:
    """Give the similarity of weights and random matrices of one form: multiples of the identity by slot."""
    random = torch.Generator().manual_seed(0)
    softmax, slots = pairs.softmax, len(_SLOTS)
    identity = torch.eye(softmax.shape[-1] // slots, dtype=torch.float64)
    similarities = []
    for _ in range(_RANDOM_MATRICES):
        factors = torch.randn(
            *softmax.shape[:2], slots, slots, generator=random, dtype=torch.float64
        )
        blocks = torch.einsum("lpab,ij->lpaibj", factors, identity)
        matrices = blocks.reshape(softmax.shape)  # [layer, product, slot*dim, slot*dim]
        similarities.append(mean_cosine(softmax, _acting(matrices, pairs.roots)))
    return torch.stack(similarities)


fig19 = Figure(
    name="fig19",
    title="Fig. 19: softmax layers and the linear layers distilled from them",
    summary="the weights of softmax layers and of linear ones distilled from them",
    caption=(
        "Two softmax layers of one head on constructed tokens, and linear layers that learned from random "
        "weights to imitate each. Left: the product that scores a key token (rows) against a query token "
        "(columns). Right: the one that turns a value token (columns) into what is written (rows). Blocks "
        "are the slots of a token: 0 empty, where the prediction grows, 1 and 2 the current state, 3 the "
        "previous one. Weights are multiplied by the root of the second moments of the inputs that they "
        "read: where inputs do not vary, weights do nothing. Each picture has its own colours, since a "
        "linear layer can pass a factor, or a sign, from one product to the other; below are the cosines "
        "of the entries. First seed; the claims are of all."
    ),
    recipes=(_TWO_LAYERS,),
    panels=(Panel(name="weights", measure=_measure_weights, draw=draw_matrices),),
    layout=stack(lambda data: 2.3 * len(data.more["matrices"]) + 0.35),
    settings=_fig19_settings,
    claims=_fig19_claims,
    seconds={"smoke": 2.0, "small": 42.0, "paper": 242.0},
)
