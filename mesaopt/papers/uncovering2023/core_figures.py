"""The four figures of the page `core`."""

import itertools
import time
from dataclasses import replace
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from mesaopt.papers.figures import COLORS, INK, FigureResult
from mesaopt.papers.uncovering2023.core_measure import (
    CONSTRUCTION,
    GD,
    LEAST_SQUARES,
    LEAST_SQUARES_OFFICIAL,
    LSA_1,
    LSA_2,
    MESA,
    Measurements,
    first_layer,
)
from mesaopt.papers.uncovering2023.matrices import (
    KEY_QUERY,
    OUTPUT_VALUE,
    Picture,
    Row,
    draw_matrices,
)
from mesaopt.theory import proposition_1

_LABELS = {
    LSA_1: ("LSA-1", COLORS["lsa-1"]),
    LSA_2: ("LSA-2", COLORS["lsa-2"]),
    MESA: ("mesa layer", COLORS["mesa-1"]),
    GD: ("one gradient step", COLORS["gd-1"]),
    CONSTRUCTION: ("Proposition 1 weights", COLORS["proposition-1"]),
    LEAST_SQUARES: ("least squares, all pairs", COLORS["least-squares"]),
    LEAST_SQUARES_OFFICIAL: ("least squares, as published", COLORS["least-squares"]),
}
_DASHED = {GD: (0, (4, 2)), CONSTRUCTION: (0, (1, 1.5)), LEAST_SQUARES_OFFICIAL: (0, (1, 1.5))}

# Test losses by optimiser step: LSA-1 and mesa from the data of Fig. 4A, LSA-2 from the notebook.
_PUBLISHED_CURVES = {
    LSA_1: {
        200: 1.341,
        300: 0.9787,
        400: 0.9149,
        600: 0.9029,
        1000: 0.8985,
        2000: 0.8937,
        3400: 0.8924,
    },
    LSA_2: {300: 1.34284, 400: 0.84098, 600: 0.58369, 1000: 0.44729, 2400: 0.43118},
    MESA: {100: 1.519, 200: 0.485, 300: 0.305, 500: 0.247, 1000: 0.215, 2000: 0.1995, 4400: 0.1903},
}
_PUBLISHED_COEFFICIENT = 0.0334


def draw(measured: Measurements) -> list[FigureResult]:
    """Draw all figures.

    Args:
        measured: the numbers.

    Returns:
        The figures, in the order of the report.
    """
    results = []
    for figure in (_in_context, _learning_curves, _weights, _coefficients):
        started = time.perf_counter()
        result = figure(measured)
        # Measuring is shared by all figures; each is charged an equal part of it.
        seconds = time.perf_counter() - started + measured.seconds / 4
        results.append(replace(result, seconds=seconds))
    return results


def _settings(measured: Measurements, **more: Any) -> dict[str, Any]:
    seeds = {recipe: len(runs) for recipe, runs in measured.runs.items()}
    steps = {recipe: runs[0].config.train.steps for recipe, runs in measured.runs.items()}
    return {"scale": measured.plan.scale, "training seeds": seeds, "steps": steps, **more}


def _in_context(measured: Measurements) -> FigureResult:
    figure = Figure(figsize=(7.6, 3.9))
    axes = figure.subplots()
    length = len(measured.losses[GD].curve)
    positions = np.arange(1, length + 1)
    rows: list[dict[str, Any]] = []
    for name, (label, color) in _LABELS.items():
        loss = measured.losses[name]
        mean, half = loss.curve.numpy(), 1.96 * loss.curve_error.numpy()
        dashes = _DASHED.get(name, "solid")
        # On a logarithmic axis a band may not reach zero.
        axes.fill_between(
            positions, np.maximum(mean - half, mean / 10), mean + half, color=color, alpha=0.2, lw=0
        )
        axes.plot(positions, mean, color=color, label=label, linestyle=dashes)
        for one in measured.seed_losses.get(name, []):
            axes.plot(positions, one.curve.numpy(), color=color, lw=0.5, alpha=0.5)
        rows += [
            {"predictor": label, "position": int(t), "loss": float(m), "half_width_95": float(h)}
            for t, m, h in zip(positions, mean, half, strict=True)
        ]
    axes.axhline(5e-4, color=INK, lw=0.8, ls=(0, (1, 3)))
    axes.annotate("noise floor", (1, 5e-4), xytext=(2, 3), textcoords="offset points", fontsize=8)
    axes.set(yscale="log", xlabel="position in the sequence", ylabel="in-context loss")
    axes.set_xlim(1, length)
    figure.legend(loc="outside right center")
    return FigureResult(
        id="core-in-context-loss",
        title="What each predictor makes of the context",
        caption=(
            "Loss by position on fresh sequences; bands are 95 % confidence intervals of the mean over "
            "sequences, thin lines are single training seeds. The layer trained as LSA-1 lies on one "
            "step of gradient descent; a second layer goes beyond it; the mesa layer comes down towards "
            "exact least squares the longer it is trained. The authors' least-squares baseline leaves "
            "out the newest pair by an off-by-one; both versions are drawn. The Proposition 1 weights run "
            "in the same model as LSA-1, whose residual stream is clipped to ±4; explicit gradient "
            "descent is not."
        ),
        settings=_settings(
            measured,
            sequences=len(measured.losses[GD].losses),
            **{"step size": f"{measured.step_size:.4f} (line search on validation sequences)"},
        ),
        rows=rows,
        figure=figure,
    )


def _learning_curves(measured: Measurements) -> FigureResult:
    figure = Figure(figsize=(7.6, 3.9))
    axes = figure.subplots()
    rows: list[dict[str, Any]] = []
    last = 0
    for recipe, runs in measured.runs.items():
        label, color = _LABELS[recipe]
        for run in runs:
            steps = [line["step"] for line in run.metrics]
            losses = [line["test_loss"] for line in run.metrics]
            axes.plot(steps, losses, color=color, label=label if run is runs[0] else None, lw=1.3)
            last = max(last, *steps)
            rows += [
                {"model": label, "seed": run.config.seed, "step": s, "test_loss": loss}
                for s, loss in zip(steps, losses, strict=True)
            ]
        ended = runs[0].config.train.steps
        published = {s: v for s, v in _PUBLISHED_CURVES[recipe].items() if s <= ended}
        axes.plot(
            *zip(*published.items(), strict=True), "o", ms=4.5, mfc="none", mec=color, mew=1.2
        )
    axes.plot([], [], "o", ms=4.5, mfc="none", mec=INK, label="published")
    for name in (GD, LEAST_SQUARES):
        label, color = _LABELS[name]
        axes.axhline(measured.losses[name].mean, color=color, ls=(0, (4, 2)), lw=1.3, label=label)
    axes.set(yscale="log", xlabel="optimiser step", ylabel="test loss")
    axes.set_xlim(0, last * 1.02)
    _plain_ticks(axes, (0.2, 0.3, 0.5, 1.0, 1.5))
    figure.legend(loc="outside right center")
    return FigureResult(
        id="core-learning-curves",
        title="Learning to learn, step by step",
        caption=(
            "Test loss while training, one line per seed; circles are the paper's own numbers. After a "
            "plateau at the loss of predicting zero, LSA-1 falls to the loss of one gradient step "
            "and stays there; the mesa layer comes down to exact least squares."
        ),
        settings=_settings(
            measured,
            **{"test sequences": measured.runs[LSA_1][0].config.train.evaluation_sequences},
        ),
        rows=rows,
        figure=figure,
    )


def _weights(measured: Measurements) -> FigureResult:
    run = measured.runs[LSA_1][0]
    config = run.config
    dim = config.task.dim
    trained = first_layer(run).head_products()
    built = proposition_1(dim, step_size=measured.step_size)
    by_name = {name.split(".")[-2]: weight for name, weight in built.items()}
    construction = (
        (by_name["key"].T @ by_name["query"])[None],
        (by_name["output"] @ by_name["value"])[None],
    )
    panels = [
        *((f"trained, head {h + 1}", *(x[h] for x in trained)) for h in range(len(trained[0]))),
        ("Proposition 1", *(x[0] for x in construction)),
    ]
    slots = [str(slot) for slot in range(trained[0].shape[-1] // dim)]
    drawn = [
        Row(name, [Picture(products[which], title) for title, *products in panels], slots)
        for which, name in enumerate((KEY_QUERY, OUTPUT_VALUE))
    ]
    figure, rows = draw_matrices(drawn, scale="picture", height=2.4)
    return FigureResult(
        id="core-weights",
        title="The weights, beside those built by hand",
        caption=(
            "Per head, the matrix that scores a key token (rows) against a query token (columns), and the "
            "one that turns a value token (columns) into what is written (rows); blocks are the slots "
            "of a token: 0 prediction, 1 empty, 2 current state, 3 previous state. Each picture has its "
            "own colour scale. Proposition 1 needs one identity block in each: the current state "
            "asks for previous states, and what followed them is written into the prediction. Training "
            "arrives at the same blocks. (The two heads may share the work with opposite signs, which "
            "cancel in the product of the two matrices.)"
        ),
        settings=_settings(measured, **{"seed drawn": config.seed}),
        rows=rows,
        figure=figure,
    )


def _coefficients(measured: Measurements) -> FigureResult:
    names = ("current", "previous")
    rows = []
    for (a, b, c), _ in np.ndenumerate(np.zeros((2, 2, 2))):
        for seed, value in enumerate(measured.coefficients[:, a, b, c].tolist()):
            slots = {"query": names[a], "key": names[b], "value": names[c]}
            rows.append({**slots, "seed": seed, "coefficient": value})
    figure = Figure(figsize=(7.6, 3.3))
    axes = figure.subplots()
    labels = ["\n".join(slots) for slots in itertools.product(names, repeat=3)]
    by_slot = measured.coefficients.flatten(1)  # [seed, 8]
    places = np.arange(8)
    axes.bar(places, by_slot.mean(0).numpy(), color=COLORS["lsa-1"], width=0.6, alpha=0.55)
    for values in by_slot.numpy():
        axes.plot(places, values, "o", ms=3.5, color=COLORS["lsa-1"], mec="none")
    axes.axhline(_PUBLISHED_COEFFICIENT, color=COLORS["lsa-2"], lw=1, ls=(0, (4, 2)))
    note = f"published {_PUBLISHED_COEFFICIENT}"
    place = {"xytext": (0, 3), "textcoords": "offset points", "ha": "right", "fontsize": 8}
    axes.annotate(note, (7.4, _PUBLISHED_COEFFICIENT), color=COLORS["lsa-2"], **place)
    axes.axhspan(-0.01, 0.01, color=INK, alpha=0.06, lw=0)
    axes.annotate("the paper's bound, ±0.01", (7.4, 0.01), **place)
    axes.axhline(0, color=INK, lw=0.8)
    axes.set_xticks(places, labels, fontsize=7.5)
    axes.set_xlabel("slot of the query, of the key, of the value")
    axes.set_ylabel("effective coefficient")
    axes.set_ylim(top=0.04)
    axes.grid(visible=False, axis="x")
    return FigureResult(
        id="core-coefficients",
        title="A whole layer in eight numbers",
        caption=(
            "The effective coefficients E[query, key, value] of LSA-1: bars are means, dots are seeds. "
            "One number is left standing, the step size of gradient descent: the current state queries "
            "the previous states and retrieves the states that came next. The best step size found by line "
            f"search is {measured.step_size:.4f}."
        ),
        settings=_settings(measured),
        rows=rows,
        figure=figure,
    )


def _plain_ticks(axes: Axes, ticks: tuple[float, ...]) -> None:
    """Label a logarithmic axis with ordinary numbers."""
    axes.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.yaxis.set_minor_formatter(lambda *_: "")
