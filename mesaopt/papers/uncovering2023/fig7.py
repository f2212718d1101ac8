"""Figure 7: transformers, a mesa layer behind one softmax layer, and algorithms, on three tasks."""

from matplotlib.figure import Figure

from mesaopt.papers.figures import FigureResult
from mesaopt.papers.plan import Report, Results
from mesaopt.papers.uncovering2023.curves import (
    draw_positions,
    published_means,
    ratio_claim,
    settings_of,
)
from mesaopt.papers.uncovering2023.laboratory import (
    LEAST_SQUARES,
    OFFICIAL,
    RECIPES,
    Laboratory,
)

MODELS = (
    *("tf-7", "tf-12", "hybrid-mesa"),
    *(*RECIPES["partial"], *RECIPES["nonlinear"]),
)
_PANELS = {
    "linear": (
        *("tf-7", "tf-12", "hybrid-mesa"),
        *("7-layer steps" + OFFICIAL, LEAST_SQUARES + OFFICIAL, LEAST_SQUARES),
    ),
    "partial": (
        *RECIPES["partial"],
        *("steps on one observation" + OFFICIAL, "steps on 16 observations" + OFFICIAL),
        "least squares on 16 observations",
    ),
    "nonlinear": (
        *RECIPES["nonlinear"],
        *("steps on states" + OFFICIAL, "steps on features" + OFFICIAL),
        "least squares on features",
    ),
}
_TITLES = {
    "linear": "A: linear, fully observed",
    "partial": "B: linear, partially observed",
    "nonlinear": "C: nonlinear",
}
_LATE = slice(20, None)


def compute(laboratory: Laboratory, report: Report) -> Results:
    """Compare on the three tasks, draw, judge.

    Args:
        laboratory: the runs and baselines.
        report: told the batches of test sequences done.

    Returns:
        The figure and its claims.
    """
    comparisons = {
        task: laboratory.comparison(task, _third(report, place))
        for place, task in enumerate(_PANELS)
    }
    figure = Figure(figsize=(7.6, 9.6))
    rows = []
    for axes, (task, names) in zip(figure.subplots(3, 1), _PANELS.items(), strict=True):
        rows += draw_positions(axes, comparisons[task], names)
        axes.set_title(_TITLES[task])
        axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
    tuned = comparisons["partial"].settings | comparisons["nonlinear"].settings
    result = FigureResult(
        id="uncovering2023-fig7",
        title="Fig. 7: softmax layers, a mesa layer and algorithms on three tasks",
        caption=(
            "Loss by position on three tasks. Dashed (with all pairs) and dotted (without the "
            "newest): preconditioned steps and least squares on what the task makes linear: the "
            "state, sixteen observations side by side, the true features. Step sizes and ridges "
            "of B and C are learned on validation sequences; the authors' were chosen on test "
            "sequences. 'official' leaves out the newest pair. Circles are the authors' own "
            "numbers."
        ),
        settings=settings_of(laboratory, MODELS, sequences=laboratory.plan.num_sequences, **tuned),
        rows=rows,
        figure=figure,
    )
    claims = []
    for task, names in _PANELS.items():
        # Figure 6C judges seven softmax layers on the linear task.
        models = [name for name in names if name in laboratory.runs and name != "tf-7"]
        claims += published_means(laboratory, comparisons[task], "Fig. 7", models)
    linear, partial, nonlinear = comparisons.values()
    claims += [
        *published_means(
            laboratory, linear, "Fig. 7A", (LEAST_SQUARES + OFFICIAL,), tolerance=0.03
        ),
        *published_means(
            laboratory, nonlinear, "Fig. 7C", ("steps on features" + OFFICIAL,), tolerance=0.05
        ),
        *ratio_claim(
            laboratory,
            partial,
            "fig7-stacking-helps",
            "Fig. 7B",
            "Partially observed: one observation does not do, sixteen side by side make the task "
            "linear (ratio of mean losses of the steps on them)",
            *("steps on 16 observations" + OFFICIAL, "steps on one observation" + OFFICIAL),
            high=0.5,
            basis="0.44 published; half counts",
        ),
        *ratio_claim(
            laboratory,
            nonlinear,
            "fig7-features-help",
            "Fig. 7C",
            "Nonlinear: the true features make the task linear (ratio of mean losses of the "
            "steps on features and on states)",
            *("steps on features" + OFFICIAL, "steps on states" + OFFICIAL),
            high=0.6,
            basis="0.51 published; 0.6 counts",
        ),
        *ratio_claim(
            laboratory,
            linear,
            "fig7-hybrid-beats-tf-7",
            "Fig. 7A",
            "Linear: a mesa layer behind a softmax layer does better than seven softmax layers (ratio of "
            "mean losses)",
            *("hybrid-mesa", "tf-7"),
            high=1.0,
            basis="0.86 published; smaller counts",
        ),
        *ratio_claim(
            laboratory,
            partial,
            "fig7-hybrid-partial-late",
            "Fig. 7B",
            "Partially observed: late in the sequence the mesa layer does better than seven softmax layers "
            "(ratio of losses from position 21 on)",
            *("hybrid-mesa-partial", "tf-7-partial"),
            high=1.0,
            positions=_LATE,
            basis="0.6 published; smaller counts",
        ),
        *ratio_claim(
            laboratory,
            nonlinear,
            "fig7-hybrid-nonlinear",
            "Fig. 7C",
            "Nonlinear: the mesa layer does no worse than seven softmax layers (ratio of mean losses)",
            *("hybrid-mesa-nonlinear", "tf-7-nonlinear"),
            high=1.0,
            basis="0.96 published; smaller counts",
        ),
    ]
    return Results(figures=[result], claims=claims)


def _third(report: Report, place: int) -> Report:
    """Report one of three comparisons as a part of all."""
    return lambda done, total: report(place * total + done, len(_PANELS) * total)
