"""Figure 4, A to D: linear self-attention alone, on tokens that hold what it would have to copy."""

from matplotlib.figure import Figure

from mesaopt.papers.figures import FigureResult
from mesaopt.papers.plan import Plan, Report, Results
from mesaopt.papers.uncovering2023 import compression
from mesaopt.papers.uncovering2023.curves import (
    color_of,
    draw_learning,
    draw_positions,
    published_means,
    ratio_claim,
    settings_of,
)
from mesaopt.papers.uncovering2023.laboratory import GRADIENT_STEP, LEAST_SQUARES, Laboratory

MODELS = ("lsa-1", "lsa-2", "lsa-4", "lsa-6", "lsa-6-key-40", "mesa-1")
_STEPS = "6 steps and one"


def seconds(plan: Plan) -> float:
    """Guess the time it takes at a scale."""
    return {"smoke": 4.0, "small": 60.0, "paper": 900.0}[plan.scale]


def compute(laboratory: Laboratory, report: Report) -> Results:
    """Compare the models with gradient descent and least squares, draw, judge.

    Args:
        laboratory: the runs and baselines.
        report: told the batches of test sequences done.

    Returns:
        The figure and its claims.
    """
    comparison = laboratory.comparison("linear", report)
    compressed = compression.measure(laboratory, report)
    figure = Figure(figsize=(7.6, 7.4))
    (a, b), (c, d) = figure.subplots(2, 2)
    rows = draw_learning(a, laboratory, ("lsa-1", "mesa-1"))
    rows += compression.draw(a, compressed, ("lsa-1",))
    for name in (GRADIENT_STEP, LEAST_SQUARES):
        level, color = comparison.losses[name].mean, color_of(name)
        a.axhline(level, color=color, ls=(0, (4, 2)), lw=1.1, label=name)
    a.set_title("A: learning, one layer")
    several = ("lsa-2", "lsa-4", "lsa-6", "lsa-6-key-40")
    rows += draw_learning(b, laboratory, (*several, "mesa-1"))
    rows += compression.draw(b, compressed, several)
    b.set_title("B: learning, several layers")
    rows += draw_positions(c, comparison, ("lsa-1", GRADIENT_STEP))
    c.set_title("C: one layer and one gradient step")
    deep = ("lsa-2", "lsa-4", "lsa-6", "mesa-1", _STEPS + ", official", LEAST_SQUARES)
    rows += draw_positions(d, comparison, deep)
    d.set_title("D: several layers, and algorithms")
    for axes in (a, b, c):
        axes.legend(fontsize=7.5 if axes is not b else 6.5)
    d.set_ylim(top=40)  # room for six names
    d.legend(fontsize=7, ncols=2, loc="upper right", handlelength=1.4, columnspacing=1.0)
    result = FigureResult(
        id="uncovering2023-fig4",
        title="Fig. 4: linear self-attention beside gradient descent and least squares",
        caption=(
            "Above: test losses while training, a line per seed. Below: loss by position, mean "
            "over seeds with 95 % bands of the test sequences, seeds as thin lines; circles are "
            "the authors' own numbers. Dashed and dotted: algorithms that learn nothing "
            "beforehand. '6 steps and one, official' has the step sizes that the authors learned "
            "and leaves out the newest pair, as their code does; least squares uses all pairs. "
            "Compressed: every block of the products of a head's weights is a multiple of the "
            "identity, taken from the network five sevenths (one layer) or seven ninths (six) into "
            "its training; its band is the range over seeds, and a cross the same of the last "
            "network. Interpolated: products halfway between the compressed ones and those of the "
            "network at each step, from the checkpoints of one training where the authors train a "
            "second time from the same seed. Panels E and F are probes, with figures of their own."
        ),
        settings=settings_of(
            laboratory, MODELS, sequences=laboratory.plan.num_sequences, **comparison.settings
        ),
        rows=rows,
        figure=figure,
    )
    baselines = (GRADIENT_STEP, _STEPS + ", official")
    claims = [
        *published_means(laboratory, comparison, "Fig. 4", (*MODELS, *baselines)),
        *ratio_claim(
            laboratory,
            comparison,
            "fig4-lsa-1-is-one-step",
            "Fig. 4C",
            "One linear layer has the loss of one step of gradient descent (ratio of mean losses)",
            *("lsa-1", GRADIENT_STEP),
            low=0.97,
            high=1.03,
            basis="0.993 published, 3 % either way",
        ),
        *ratio_claim(
            laboratory,
            comparison,
            "fig4-two-layers-beat-one",
            "Fig. 4D",
            "Two linear layers do better than one step of gradient descent (ratio of mean losses)",
            *("lsa-2", GRADIENT_STEP),
            high=0.75,
            basis="0.48 published, for 5000 steps; half of the gain counts",
        ),
        *ratio_claim(
            laboratory,
            comparison,
            "fig4-depth-helps",
            "Fig. 4D",
            "Four linear layers do better than two (ratio of mean losses)",
            *("lsa-4", "lsa-2"),
            high=1.0,
            basis="0.55 published; smaller counts",
        ),
        *ratio_claim(
            laboratory,
            comparison,
            "fig4-mesa-beats-six",
            "Fig. 4B",
            "One mesa layer does better than six linear layers (ratio of mean losses)",
            *("mesa-1", "lsa-6"),
            high=0.99,
            basis="0.88 published; a hundredth less counts",
        ),
        *ratio_claim(
            laboratory,
            comparison,
            "fig4-mesa-is-least-squares",
            "Fig. 4A",
            "One mesa layer comes near least squares on all pairs (ratio of mean losses)",
            *("mesa-1", LEAST_SQUARES),
            high=1.15,
            basis="0.1903 published after 4400 steps, 0.1995 after 2000; ours is 0.184: 1.03, 1.08",
        ),
    ]
    claims += compression.judge(laboratory, compressed)
    return Results(figures=[result], claims=claims)
