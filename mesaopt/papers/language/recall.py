"""Associative recall: the mixers on tokens and on vectors, by state size and by number of pairs."""

from collections.abc import Iterable
from typing import Any, cast

from matplotlib.axes import Axes

from mesaopt.config import ContinuousMQARConfig, LanguageModelConfig, MQARConfig
from mesaopt.papers.claims import Claim
from mesaopt.papers.figure import Figure, Panel, grid
from mesaopt.papers.language.drawing import (
    comparison_panel,
    comparison_settings,
    legend_below,
    pairs_in_words,
    rows_of,
)
from mesaopt.papers.language.laboratory import LOOKS, Laboratory, mixers
from mesaopt.papers.language.settings import Comparison, comparison_seconds
from mesaopt.papers.rows import PanelData, Rows

_STATES = "mqar-state-"


def state_size(comparison: Comparison, mixer: str) -> int:
    """Count the numbers that a layer keeps of a sequence: two matrices in mesa, all pairs in softmax."""
    model, task = cast(LanguageModelConfig, comparison.model), cast(MQARConfig, comparison.task)
    matrix = model.num_heads * model.key_width**2
    pairs = 2 * task.length * model.num_heads * model.key_width
    return {"softmax": pairs, "mesa": 2 * matrix, "mesanet": 2 * matrix}.get(mixer, matrix)


def _head_widths(lab: Laboratory) -> dict[int, str]:
    """List the comparisons with heads of several widths, the smallest first."""
    comparisons = lab.settings.comparisons
    names = [name for name in comparisons if name.startswith(_STATES)]
    return {cast(LanguageModelConfig, comparisons[name].model).key_width: name for name in names}


def _as_wide_as_pairs(lab: Laboratory) -> str:
    """Name the comparison with the smallest heads whose keys have a dimension for every pair."""
    widths = _head_widths(lab)
    pairs = cast(MQARConfig, lab.settings.comparisons[widths[min(widths)]].task).pairs
    return widths[min(width for width in widths if width >= pairs)]


def _measure_states(lab: Laboratory) -> PanelData:
    rows: Rows = []
    for name in _head_widths(lab).values():
        comparison = lab.settings.comparisons[name]
        made = rows_of(mixers(lab, name), comparison=name)
        rows += [row | {"state": state_size(comparison, row["method"])} for row in made]
    return PanelData(rows=rows)


def _draw_states(axes: Axes, data: PanelData) -> None:
    draw_lines(axes, data.rows, x="state")
    axes.set(xscale="log", ylim=(0, 1.02), xlabel="numbers in the state of a layer")
    axes.set_ylabel("share of right answers")
    axes.set_title("B: more pairs, heads of several widths")


def draw_lines(axes: Axes, rows: Rows, *, x: str) -> None:
    """Draw the means of each method against a column, with 95 % intervals."""
    for number, (name, look) in enumerate(LOOKS.items()):
        beside = 1 + 0.03 * (number - 3.5)  # equal numbers are drawn next to one another
        points = {
            row[x]: (row["mean"], row["half_width_95"]) for row in rows if row["method"] == name
        }
        if points:
            places = sorted(points)
            mean, half = zip(*(points[place] for place in places), strict=True)
            line: dict[str, Any] = {"color": look.color, "marker": look.marker, "ms": 5}
            x_places = [place * beside for place in places]
            axes.errorbar(x_places, mean, yerr=half, label=name, capsize=2, **line)


def _mqar_claims(lab: Laboratory) -> Iterable[Claim]:
    results = mixers(lab, "mqar")
    for name in ("softmax", "mesa", "mesanet"):
        yield Claim(
            name=f"mqar-{name}-solves",
            figure="beyond the paper",
            statement=f"Recall of few pairs: two {name} layers answer almost all queries "
            "(share of right answers)",
            measured=results[name].score(),
            low=0.99,
            basis="99.2 % published for softmax attention of this width; 99 % counts",
        )
    fitting = mixers(lab, _as_wide_as_pairs(lab))
    yield Claim(
        name="mqar-mesa-beats-linear",
        figure="beyond the paper",
        statement="Recall of more pairs with heads as wide as there are pairs: the mesa layer answers more "
        "than linear attention, whose pairs disturb one another (difference of shares, mesanet - linear)",
        measured=fitting["mesanet"].less(fitting["linear"]),
        low=0.05,
        basis="one in twenty counts; ridge regression fits as many pairs as a key is wide, exactly",
    )
    yield Claim(
        name="mqar-mesa-beats-gated-delta",
        figure="beyond the paper",
        statement="The same: mesa answers no less than the gated delta rule (difference of shares)",
        measured=fitting["mesanet"].less(fitting["gated-delta"]),
        low=0.0,
        basis="exact regression is what the delta rule approaches; the same counts",
    )


def _mqar_caption(lab: Laboratory) -> str:
    few = cast(MQARConfig, lab.settings.comparisons["mqar"].task)
    states = lab.settings.comparisons[min(_head_widths(lab).values())].task
    published = ", as published" if few == MQARConfig() else ""
    return (
        "Share of right answers in multi-query associative recall, with 95 % intervals over seeds and test "
        "sequences; ticks are seeds. Two layers without networks; all mixers have the same width, heads, "
        "short convolutions and head norms, and parameters equal up to gates and ridges. "
        f"A: {pairs_in_words(few)}{published}. B: {pairs_in_words(cast(MQARConfig, states))}, and heads of "
        "several widths; the state of mesa is two matrices, that of softmax attention all keys and "
        "values.\n\n"
        "Of each mixer's first seed, the learning rate with the least loss on validation sequences is "
        "taken for all seeds; more rates are tried until the best lies between two others. Published "
        "trainings are 64 epochs of 100,000 sequences, with models that have positions in place of "
        "convolutions; those of scale small are a fraction of one epoch."
    )


mqar = Figure(
    name="mqar",
    title="Associative recall on tokens, by mixer and size of the state",
    summary="eight mixers on multi-query associative recall",
    caption=_mqar_caption,
    trains=True,
    panels=(
        comparison_panel("mqar", "A: few pairs, by mixer", name="mixers"),
        Panel(name="states", measure=_measure_states, draw=_draw_states),
    ),
    layout=grid(columns=2, height=4.2),
    finish=legend_below,
    settings=lambda lab: comparison_settings(lab, "mqar"),
    claims=_mqar_claims,
    seconds=comparison_seconds("mqar", _STATES),
)


def _pairs_tested(lab: Laboratory) -> tuple[int, ...]:
    return cast(Any, lab.settings.comparisons["continuous"].task).test_on


def _measure_pairs(lab: Laboratory) -> PanelData:
    results, rows = mixers(lab, "continuous"), []
    for place, pairs in enumerate(_pairs_tested(lab)):
        for name, result in results.items():
            score = result.score(place)
            values = {"mean": score.value, "half_width_95": 1.96 * score.error}
            chosen = {"learning_rate": result.rate, "parameters": result.outcomes[0].parameters}
            rows.append({"method": name, "pairs": pairs, **values, **chosen})
    return PanelData(rows=rows)


def _draw_pairs(axes: Axes, data: PanelData) -> None:
    draw_lines(axes, data.rows, x="pairs")
    axes.set(xscale="log", ylim=(0, 1.02), xlabel="pairs in a sequence")
    axes.set_ylabel("share of right answers")
    ticks = sorted({row["pairs"] for row in data.rows})
    axes.set_xticks(ticks, [str(tick) for tick in ticks])
    axes.xaxis.set_minor_formatter(lambda *_: "")


def _continuous_claims(lab: Laboratory) -> Iterable[Claim]:
    results = mixers(lab, "continuous")
    width = cast(Any, lab.settings.comparisons["continuous"].task).dim
    full = _pairs_tested(lab).index(width)
    for name in ("mesa", "mesanet"):
        yield Claim(
            name=f"continuous-{name}-solves",
            figure="beyond the paper",
            statement=f"Recall on vectors: one {name} layer answers almost all queries with as many pairs "
            "as a key has dimensions (share of right answers)",
            measured=results[name].score(full),
            low=0.99,
            basis="ridge regression fits them exactly; 99 % counts",
        )
    yield Claim(
        name="continuous-mesa-beats-linear",
        figure="beyond the paper",
        statement="Recall on vectors: with as many pairs as dimensions, linear attention answers fewer "
        "(difference of shares, mesa - linear)",
        measured=results["mesa"].less(results["linear"], full),
        low=0.05,
        basis="the sum of the disturbances of d pairs is as large as the answer; one in twenty counts",
    )


def _continuous_caption(lab: Laboratory) -> str:
    task = cast(ContinuousMQARConfig, lab.settings.comparisons["continuous"].task)
    return (
        "Share of right answers by number of pairs, with 95 % intervals over seeds and test sequences. "
        "Tokens are pairs of a key and a value, fixed random directions, and then keys alone: few-shot "
        "regression, which one layer can solve without looking back a token. Trained on "
        f"{task.pairs} pairs, with keys of {task.dim} dimensions.\n\n"
        "One layer of one head and a linear readout, without convolutions but for those that are part of "
        "mesanet. Learning rates are chosen on validation sequences, as in the figure before."
    )


continuous = Figure(
    name="continuous",
    title="Associative recall on vectors, by number of pairs",
    summary="eight mixers on associative recall with vectors",
    caption=_continuous_caption,
    trains=True,
    panels=(Panel(name="pairs", measure=_measure_pairs, draw=_draw_pairs),),
    layout=grid(height=4.0),
    finish=legend_below,
    settings=lambda lab: comparison_settings(lab, "continuous"),
    claims=_continuous_claims,
    seconds=comparison_seconds("continuous"),
)
