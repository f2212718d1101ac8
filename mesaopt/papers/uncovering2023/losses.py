"""Figures 4 C and D, 6C, 7, 11 and 12: losses of models and algorithms on the same test sequences."""

from collections.abc import Iterable

from matplotlib.figure import Figure as Drawing

from mesaopt.papers.claims import Claim
from mesaopt.papers.figure import Figure, grid
from mesaopt.papers.laboratory import Scale
from mesaopt.papers.uncovering2023.curves import loss_by_position, published_means
from mesaopt.papers.uncovering2023.laboratory import (
    COMPARED,
    GRADIENT_STEP,
    LEAST_SQUARES,
    OFFICIAL,
    Laboratory,
    compare,
)

_THREE, _SEVEN = "3-layer steps", "7-layer steps"
_ONE_OBSERVATION, _STACKED = "steps on one observation", "steps on 16 observations"
_STATES, _FEATURES = "steps on states", "steps on features"


def scoring_seconds(seconds: float) -> dict[Scale, float]:
    """Estimate the time by scale from that of 5120 test sequences."""
    sequences: dict[Scale, int] = {"smoke": 256, "small": 5120, "paper": 10_240}
    return {scale: 2 + seconds * count / 5120 for scale, count in sequences.items()}


def _legend_outside(drawing: Drawing) -> None:
    drawing.legend(loc="outside right center")


def _fig6c_claims(lab: Laboratory) -> Iterable[Claim]:
    linear = compare(lab, "linear")
    yield from published_means(lab, "linear", "Fig. 6C", ("tf-3", "tf-7"))
    official = (_THREE + OFFICIAL, _SEVEN + OFFICIAL)
    yield from published_means(lab, "linear", "Fig. 6C", official, tolerance=0.02)
    yield Claim(
        name="fig6c-newest-pair",
        figure="Fig. 6C",
        statement="The published steps do better with the newest pair (ratio of mean losses, seven layers)",
        measured=linear.ratio(_SEVEN, _SEVEN + OFFICIAL),
        high=0.92,
        basis="0.2042/0.2275 = 0.898, and 2 %",
    )
    yield Claim(
        name="fig6c-depth-helps",
        figure="Fig. 6C",
        statement="Seven softmax layers do better than three (ratio of mean losses)",
        measured=linear.ratio("tf-7", "tf-3"),
        high=1.0,
        basis="0.73 published; smaller counts",
    )


fig6c = Figure(
    name="fig6c",
    title="Fig. 6C: softmax transformers and preconditioned gradient descent",
    summary="softmax transformers on plain tokens",
    caption=(
        "Loss by position on plain tokens, which the first layer has to bind. Dashed (with "
        "all pairs) and dotted (without the newest): two and six preconditioning steps with "
        "the authors' step sizes and a gradient step after them, once without the newest "
        "pair, as published, and once with all pairs. Circles are the authors' own numbers."
    ),
    recipes=("tf-3", "tf-7"),
    panels=(
        loss_by_position(
            "linear",
            "tf-3",
            _THREE + OFFICIAL,
            _THREE,
            "tf-7",
            _SEVEN + OFFICIAL,
            _SEVEN,
            LEAST_SQUARES,
            legend={},
        ),
    ),
    layout=grid(height=4.0),
    finish=_legend_outside,
    settings=Laboratory.test_sequences,
    claims=_fig6c_claims,
    seconds=scoring_seconds(8),
)


_BESIDE = {"loc": "center left", "bbox_to_anchor": (1.0, 0.5)}
_LATE = slice(20, None)


def _fig7_settings(lab: Laboratory) -> dict[str, object]:
    tuned = compare(lab, "partial").settings | compare(lab, "nonlinear").settings
    return lab.test_sequences() | {name: float(f"{value:.3g}") for name, value in tuned.items()}


def _fig7_claims(lab: Laboratory) -> Iterable[Claim]:
    linear, partial, nonlinear = (compare(lab, task) for task in ("linear", "partial", "nonlinear"))
    # Figure 6C judges seven softmax layers on the linear task.
    for task, models in (
        ("linear", ("tf-12", "hybrid-mesa")),
        ("partial", COMPARED["partial"]),
        ("nonlinear", COMPARED["nonlinear"]),
    ):
        trained = [name for name in models if lab.trained(name)]
        yield from published_means(lab, task, "Fig. 7", trained)
    yield from published_means(lab, "linear", "Fig. 7A", (LEAST_SQUARES + OFFICIAL,), 0.03)
    yield from published_means(lab, "nonlinear", "Fig. 7C", (_FEATURES + OFFICIAL,), 0.05)
    yield Claim(
        name="fig7-stacking-helps",
        figure="Fig. 7B",
        statement="Partially observed: one observation does not do, sixteen in one token make the task "
        "linear (ratio of mean losses of the steps on them)",
        measured=partial.ratio(_STACKED + OFFICIAL, _ONE_OBSERVATION + OFFICIAL),
        high=0.5,
        basis="0.44 published; half counts",
    )
    yield Claim(
        name="fig7-features-help",
        figure="Fig. 7C",
        statement="Nonlinear: the true features make the task linear (ratio of mean losses of the "
        "steps on features and on states)",
        measured=nonlinear.ratio(_FEATURES + OFFICIAL, _STATES + OFFICIAL),
        high=0.6,
        basis="0.51 published; 0.6 counts",
    )
    yield Claim(
        name="fig7-hybrid-beats-tf-7",
        figure="Fig. 7A",
        statement="Linear: a mesa layer behind a softmax layer does better than seven softmax layers "
        "(ratio of mean losses)",
        measured=linear.ratio("hybrid-mesa", "tf-7"),
        high=1.0,
        basis="0.86 published; smaller counts",
    )
    yield Claim(
        name="fig7-hybrid-partial-late",
        figure="Fig. 7B",
        statement="Partially observed: late in the sequence the mesa layer does better than seven softmax "
        "layers (ratio of losses from position 21 on)",
        measured=partial.ratio("hybrid-mesa-partial", "tf-7-partial", _LATE),
        high=1.0,
        basis="0.6 published; smaller counts",
    )
    yield Claim(
        name="fig7-hybrid-nonlinear",
        figure="Fig. 7C",
        statement="Nonlinear: the mesa layer does no worse than seven softmax layers (ratio of mean losses)",
        measured=nonlinear.ratio("hybrid-mesa-nonlinear", "tf-7-nonlinear"),
        high=1.0,
        basis="0.96 published; smaller counts",
    )


fig7 = Figure(
    name="fig7",
    title="Fig. 7: softmax layers, a mesa layer and algorithms on three tasks",
    summary="three tasks, a mesa layer and six softmax layers",
    caption=(
        "Loss by position on three tasks. Dashed (with all pairs) and dotted (without the "
        "newest): preconditioned steps and least squares on what the task makes linear: the "
        "state, sixteen observations in one token, the true features. Step sizes and ridges "
        "of B and C are learned on validation sequences; the authors' were chosen on test "
        "sequences. 'official' leaves out the newest pair. Circles are the authors' own numbers."
    ),
    recipes=("tf-7", "tf-12", "hybrid-mesa", *COMPARED["partial"], *COMPARED["nonlinear"]),
    panels=(
        loss_by_position(
            "linear",
            "tf-7",
            "tf-12",
            "hybrid-mesa",
            _SEVEN + OFFICIAL,
            LEAST_SQUARES + OFFICIAL,
            LEAST_SQUARES,
            title="A: linear, fully observed",
            legend=_BESIDE,
        ),
        loss_by_position(
            "partial",
            *COMPARED["partial"],
            _ONE_OBSERVATION + OFFICIAL,
            _STACKED + OFFICIAL,
            "least squares on 16 observations",
            title="B: linear, partially observed",
            legend=_BESIDE,
        ),
        loss_by_position(
            "nonlinear",
            *COMPARED["nonlinear"],
            _STATES + OFFICIAL,
            _FEATURES + OFFICIAL,
            "least squares on features",
            title="C: nonlinear",
            legend=_BESIDE,
        ),
    ),
    layout=grid(height=9.6),
    settings=_fig7_settings,
    claims=_fig7_claims,
    seconds=scoring_seconds(20),
)
