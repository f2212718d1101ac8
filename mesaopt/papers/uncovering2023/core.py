"""The study `core`: the story of von Oswald et al. on one page, with stricter claims on fewer models.

A linear self-attention layer becomes one step of gradient descent; two layers and a mesa layer beat it.
"""

import itertools
import statistics
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Drawing

from mesaopt.looks import DASHED, INK
from mesaopt.papers.figure import Figure, Panel, grid
from mesaopt.papers.laboratory import FIRST_PAPER, Plan, Scale, Training
from mesaopt.papers.matrices import KEY_QUERY, OUTPUT_VALUE, MatrixRow, Picture
from mesaopt.papers.plan import Headline, Study
from mesaopt.papers.plots import circles
from mesaopt.papers.rows import PanelData
from mesaopt.papers.uncovering2023 import core_claims
from mesaopt.papers.uncovering2023.core_milestones import LSA_1, LSA_2, MESA
from mesaopt.papers.uncovering2023.core_ridge import RIDGE
from mesaopt.papers.uncovering2023.core_training import TRAINING
from mesaopt.papers.uncovering2023.curves import (
    color_of,
    draw_learning,
    draw_levels,
    label_of,
    learning_rows,
    loss_by_position,
)
from mesaopt.papers.uncovering2023.laboratory import (
    CONSTRUCTION,
    GRADIENT_STEP,
    LEAST_SQUARES,
    OFFICIAL,
    Laboratory,
    compare,
    slot_coefficients,
    step_sizes,
)
from mesaopt.papers.uncovering2023.published import COEFFICIENT, LEARNING
from mesaopt.papers.uncovering2023.weights import matrices, slot_names
from mesaopt.theory import proposition_1

_RECIPES = (LSA_1, LSA_2, MESA)


def _finish_losses(drawing: Drawing) -> None:
    (axes,) = drawing.axes
    axes.axhline(5e-4, color=INK, lw=0.8, ls=(0, (1, 3)))
    axes.annotate("noise floor", (1, 5e-4), xytext=(2, 3), textcoords="offset points", fontsize=8)
    for at, above, text in (
        (24, 25, "one layer, trained, and one gradient step: the same losses"),
        (44, 17, "the fixed step overshoots"),
    ):
        place = at, _loss_of(axes, label_of(LSA_1), at)
        arrow = {"arrowstyle": "-", "color": INK, "lw": 0.7}
        style = {
            "textcoords": "offset points",
            "fontsize": 8.5,
            "ha": "center",
            "arrowprops": arrow,
        }
        axes.annotate(text, place, xytext=(0, above), va="center", **style)
    axes.set_ylim(top=4)
    drawing.legend(loc="outside lower center", ncols=4)


def _loss_of(axes: Axes, label: str, position: int) -> float:
    """Read a loss off the line with a label."""
    line = next(line for line in axes.lines if line.get_label() == label)
    places, losses = (np.asarray(values, dtype=float) for values in line.get_data())
    return float(np.interp(position, places, losses))


def _loss_settings(lab: Laboratory) -> dict[str, Any]:
    size = step_sizes(lab).mean().item()
    line_search = f"{size:.4f} (line search on validation sequences)"
    return lab.test_sequences() | {"step size": line_search}


def _measure_learning(lab: Laboratory) -> PanelData:
    losses = compare(lab, "core").losses
    levels = {name: losses[name].mean for name in (GRADIENT_STEP, LEAST_SQUARES)}
    return PanelData(rows=learning_rows(lab, _RECIPES), more={"levels": levels})


def _draw_learning(axes: Axes, data: PanelData) -> None:
    draw_learning(axes, data.rows, _RECIPES)
    for recipe in _RECIPES:
        places = [row["place"] for row in data.rows if row["predictor"].startswith(f"{recipe},")]
        reached = {s: loss for s, loss in LEARNING[recipe].items() if s <= max(places)}
        circles(axes, reached, color_of(recipe), size=4.5)
    axes.plot([], [], "o", ms=4.5, mfc="none", mec=INK, label="published")
    draw_levels(axes, data.more["levels"], lw=1.3)
    axes.set_xlim(0, max(row["place"] for row in data.rows) * 1.02)
    axes.figure.legend(loc="outside lower center", ncols=3)


def _learning_settings(lab: Laboratory) -> dict[str, Any]:
    return {"test sequences": lab.trained(LSA_1)[0].config.train.evaluation_sequences}


def _weight_rows(lab: Laboratory) -> list[MatrixRow]:
    run = lab.trained(LSA_1)[0]
    dim = run.config.task.dim
    built = proposition_1(dim, step_size=step_sizes(lab).mean().item())
    by_name = {name.split(".")[-2]: weight for name, weight in built.items()}
    products = (
        (KEY_QUERY, by_name["key"].T @ by_name["query"]),
        (OUTPUT_VALUE, by_name["output"] @ by_name["value"]),
    )
    trained = run.sequence_model.cpu().mixers[0].head_products()
    slots = slot_names(run.config.task.token_slots)
    return [
        MatrixRow(
            name,
            [
                *(Picture(matrix, f"trained, head {h + 1}") for h, matrix in enumerate(heads)),
                Picture(constructed, "Proposition 1"),
            ],
            slots,
        )
        for (name, constructed), heads in zip(products, trained, strict=True)
    ]


_COEFFICIENT_SLOTS = ("current", "previous")


def _measure_coefficients(lab: Laboratory) -> PanelData:
    coefficients = slot_coefficients(lab, LSA_1)
    rows = [
        {
            "query": _COEFFICIENT_SLOTS[a],
            "key": _COEFFICIENT_SLOTS[b],
            "value": _COEFFICIENT_SLOTS[c],
            "seed": seed,
            "coefficient": value,
        }
        for a, b, c in itertools.product(range(2), repeat=3)
        for seed, value in enumerate(coefficients[:, a, b, c].tolist())
    ]
    return PanelData(rows=rows)


def _draw_coefficients(axes: Axes, data: PanelData) -> None:
    bars: dict[str, list[float]] = {}
    for row in data.rows:
        label = f"{row['query']}\n{row['key']}\n{row['value']}"
        bars.setdefault(label, []).append(row["coefficient"])
    color = color_of(LSA_1)
    means = [statistics.mean(values) for values in bars.values()]
    axes.bar(range(len(bars)), means, color=color, width=0.6, alpha=0.55)
    for place, values in enumerate(bars.values()):
        axes.plot([place] * len(values), values, "o", ms=3.5, color=color, mec="none")
    axes.axhline(COEFFICIENT, color=INK, lw=1, ls=DASHED)
    note = {"xytext": (0, 3), "textcoords": "offset points", "ha": "right", "fontsize": 8}
    axes.annotate(f"published {COEFFICIENT}", (7.4, COEFFICIENT), **note)
    axes.axhspan(-0.01, 0.01, color=INK, alpha=0.06, lw=0)
    axes.annotate("the paper's bound, ±0.01", (7.4, 0.01), **note)
    axes.axhline(0, color=INK, lw=0.8)
    axes.set_xticks(range(len(bars)), list(bars), fontsize=7.5)
    axes.set_xlabel("slot of the query, of the key, of the value")
    axes.set_ylabel("effective coefficient")
    axes.set_ylim(top=0.04)
    axes.grid(visible=False, axis="x")


def _coefficient_caption(lab: Laboratory) -> str:
    return (
        "Averaged over its diagonals, a whole layer is eight numbers: how much of the value in one slot "
        "it predicts where a query in one slot meets a key in another. Bars are means, dots are training "
        "seeds. One number is left standing: the current state asks for the previous states, and "
        "retrieves the states that came next. It is the layer's step size of gradient descent. The best "
        f"step size by line search is {step_sizes(lab).mean().item():.4f}."
    )


_IN_CONTEXT = Figure(
    name="in-context-loss",
    title="What each predictor makes of the context",
    summary="every model and algorithm on the same test sequences",
    message=(
        "A layer that was only trained to predict has become one step of gradient descent: the two lines "
        "lie on each other at every position."
    ),
    caption=(
        "From left to right a predictor sees more of a sequence. At first nobody can know its rotation, "
        "and all lines begin at the loss of predicting zero. Losses of the linear layer and of the "
        "gradient step rise again after position 35: the step size is fixed, the sum of outer products "
        "grows with every pair, and once it has grown too far the step overshoots. A second layer can "
        "take a second step, and does better. Least squares falls to the noise floor as soon as there "
        "are ten pairs for ten dimensions, at position 11. The mesa layer solves a ridge problem of its "
        "own: it is at least squares early in a sequence, and above it from position 8 on, by less the "
        "longer it trains.\n\nBands are 95 % confidence intervals of the mean over fresh sequences, thin "
        'lines single training seeds. The authors\' least-squares baseline ("official") leaves out the '
        "newest pair by an off-by-one. The weights of Proposition 1 run in the same model as the trained "
        "layer, whose stream is clipped to ±4; the gradient step is not clipped."
    ),
    recipes=_RECIPES,
    panels=(
        loss_by_position(
            "core",
            *_RECIPES,
            GRADIENT_STEP,
            CONSTRUCTION,
            LEAST_SQUARES,
            LEAST_SQUARES + OFFICIAL,
            legend={},
        ),
    ),
    layout=grid(height=4.3),
    finish=_finish_losses,
    settings=_loss_settings,
    claims=core_claims.judge,
    seconds={"smoke": 2.0, "small": 20.0, "paper": 100.0},
)
_LEARNING = Figure(
    name="learning-curves",
    title="Learning to learn, step by step",
    summary="test losses while training",
    message="One linear layer finds gradient descent within a few hundred steps, and then nothing better.",
    caption=(
        "Test loss while training, one line per seed; circles are the paper's own numbers. After a "
        "plateau at the loss of predicting zero, the linear layer falls to the loss of one gradient step "
        "and stays there, since one layer of this kind cannot do more than add up outer products. The mesa "
        "layer comes down towards least squares, in a mean that positions 1 to 10 decide."
    ),
    recipes=_RECIPES,
    panels=(Panel(name="test loss by step", measure=_measure_learning, draw=_draw_learning),),
    layout=grid(height=4.3),
    settings=_learning_settings,
)
_WEIGHTS = Figure(
    name="weights",
    title="The trained weights, and those built by hand",
    summary="the weights of one linear layer and those of Proposition 1",
    message="The trained weights have the two diagonals that a person would have put there.",
    caption=(
        "Above, the matrix of each head that scores a key token (rows) against a query token (columns); "
        "below, the one that turns a value token (columns) into what is written (rows). Blocks are the "
        "slots of a token: the prediction, an empty one, the current state s_t and the previous one. "
        "Proposition 1 needs one diagonal in each: the current state asks for previous "
        "states, and what followed them is written into the prediction. Training arrives at the same "
        "two diagonals. Two heads share the work, and each may have both of its signs turned; this "
        'cancels in "summed", the sum over heads, where each head counts by the mean of its diagonal in '
        "the other matrix. That sum is in units of the step size. First seed."
    ),
    recipes=(LSA_1,),
    **matrices(_weight_rows, height=2.0, colors="picture", summed=LSA_1),
)
_COEFFICIENTS = Figure(
    name="coefficients",
    title="A whole layer in eight numbers",
    summary="the effective coefficients of one linear layer",
    message="Of 6,400 weights one number matters, and it is a step size.",
    caption=_coefficient_caption,
    recipes=(LSA_1,),
    panels=(Panel(name="coefficients", measure=_measure_coefficients, draw=_draw_coefficients),),
    layout=grid(height=3.3),
)


def _memory(plan: Plan) -> int:
    """Estimate the losses that scoring keeps: float32, by sequence and position, of five models a run."""
    lengths = [config.task.length for config in plan.configs.values()]
    return 4 * 5 * (len(lengths) + 1) * plan.num_sequences * max(lengths, default=0)


def _plan(scale: Scale, sequences: int, *trainings: Training) -> Plan:
    return Plan(what="core", scale=scale, trainings=trainings, num_sequences=sequences)


STUDY: Study[Laboratory] = Study(
    name="core",
    paper="uncovering2023",
    source=FIRST_PAPER,
    headlines=(
        Headline(
            claim="lsa-1-beside-gd-1",
            text="times the loss of one step of gradient descent: the trained linear layer and the "
            "algorithm can hardly be told apart",
        ),
        Headline(
            claim="lsa-1-step-size",
            text="is the step size that can be read in its weights; the paper's layer has 0.0334",
        ),
        Headline(
            claim="mesa-1-late-positions",
            text="times the loss of least squares at positions 11 to 50: the mesa layer comes near it, and "
            "is not it",
        ),
        Headline(
            claim="lsa-2-beyond-gd-1",
            text="times the loss of one gradient step: what a second linear layer adds",
        ),
    ),
    title="A mesa-optimizer, learned and taken apart",
    summary="one linear self-attention layer becomes gradient descent; two layers and a mesa layer beat it",
    introduction=(
        "Small sequence models are trained from scratch to predict the next state of linear systems, "
        "each sequence with a rotation of its own. To predict well, a model has to learn the rotation "
        "from the sequence it is reading. The paper's finding: one linear self-attention layer (LSA-1) "
        "comes to do this by a step of gradient descent, two layers (LSA-2) go further, and a mesa layer "
        "solves a ridge-regression problem of its own, with keys and a ridge that it learns, exactly."
    ),
    plans={
        "smoke": _plan(
            "smoke",
            2048,
            Training(recipe=LSA_1, seeds=1, steps=1000, evaluation_sequences=512),
            Training(recipe=LSA_2, seeds=1, steps=400, evaluation_sequences=512),
            Training(recipe=MESA, seeds=1, steps=500, evaluation_sequences=512),
        ),
        "small": _plan(
            "small",
            20_480,
            Training(recipe=LSA_1, seeds=3, steps=3500),
            Training(recipe=LSA_2, seeds=1, steps=2500),
            Training(recipe=MESA, seeds=1, steps=4500),
        ),
        "paper": _plan(
            "paper",
            102_400,
            Training(recipe=LSA_1, seeds=5, steps=3500),
            Training(recipe=LSA_2, seeds=5, steps=2500),
            Training(recipe=MESA, seeds=5, steps=4500),
        ),
    },
    laboratory=Laboratory,
    figures=(_IN_CONTEXT, TRAINING, _LEARNING, _WEIGHTS, _COEFFICIENTS, RIDGE),
    needs_all_runs=True,
    memory=_memory,
)
