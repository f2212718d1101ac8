"""Figure 4: linear layers, algorithms, and the scalars that the layers can be reduced to."""

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Drawing

from mesaopt.analysis import (
    Evaluation,
    InContextLoss,
    Predictor,
    compress,
    in_context_loss,
    interpolate,
    model_predictor,
)
from mesaopt.analysis.estimate import Estimate
from mesaopt.models import SequenceModel
from mesaopt.papers.claims import Claim
from mesaopt.papers.figure import Figure, Panel, grid
from mesaopt.papers.laboratory import measurement
from mesaopt.papers.plots import DASHED, DOTTED, INK, LOOKS, circles
from mesaopt.papers.rows import PanelData, Rows
from mesaopt.papers.uncovering2023.curves import (
    by_predictor,
    color_of,
    curve_row,
    draw_learning,
    draw_levels,
    label_of,
    learning_rows,
    loss_by_position,
)
from mesaopt.papers.uncovering2023.laboratory import (
    GRADIENT_STEP,
    LATE,
    LEAST_SQUARES,
    OFFICIAL,
    Laboratory,
    compare,
    rounded,
)
from mesaopt.papers.uncovering2023.losses import fig4_claims
from mesaopt.papers.uncovering2023.published import (
    COMPRESSED,
    INTERPOLATED_BY_STEP,
    RELEASED_COMPRESSED,
)
from mesaopt.recipes import RECIPES
from mesaopt.tasks import make_task
from mesaopt.training import Run, RunFolder, load_run

_SIX_WIDE = "lsa-6-key-40"
INTERPOLATED = ("lsa-1", "lsa-6", _SIX_WIDE)
_COMPRESSED_AT_END = ("lsa-1", "lsa-2", "lsa-4", "lsa-6", _SIX_WIDE)
_SHORT = 4500
"""Steps of the authors' training for Fig. 4B; in longer ones the compression loses much."""
EXTRACTED_AT = {"lsa-1": 2500 / 3500, "lsa-6": 3500 / 4500, _SIX_WIDE: 3500 / 4500}
"""When the authors compress the network, as a share of the training that is mixed with it."""
_INTERPOLATED_COLOR = LOOKS["interpolated weights"].color
_STEPS = "6 steps and one" + OFFICIAL


@dataclass(frozen=True)
class CompressedRun:
    """Losses of a run, its compressions and mixtures, by step, on the test sequences of its training."""

    recipe: str
    seed: int
    extracted: int
    """Step at which the network was compressed."""
    network: dict[int, InContextLoss]
    """The network at its start, when it was compressed, and at its end."""
    compressed: dict[int, InContextLoss]
    """The scalars of the networks at these steps, but for the start."""
    interpolated: dict[int, InContextLoss]
    """The model halfway between the network at each step and the scalars of `extracted`."""

    @property
    def start(self) -> int:
        """The first step, before any training."""
        return min(self.network)

    @property
    def end(self) -> int:
        """The last step."""
        return max(self.network)


@measurement
def compressed_runs(lab: Laboratory, recipe: str) -> list[CompressedRun]:
    """Compress the runs of linear layers and mix them with their own training.

    The authors train a second time from the same seed and mix while they train; here a run is a pure
    function of its seed, and its checkpoints are those of a second training.
    """
    runs = [run for run in lab.trained(recipe) if RunFolder(run.path).steps]
    return [_compress(lab, run) for run in runs]


def _compress(lab: Laboratory, run: Run) -> CompressedRun:
    extracted, models = _models(run)
    predictors: dict[str, Predictor] = {
        f"{kind}/{step}": model_predictor(model, run.config.task.token_slots)
        for kind, by_step in models.items()
        for step, model in by_step.items()
    }
    count = run.config.train.evaluation_sequences
    evaluation = Evaluation(num_sequences=count, on_progress=lab.on_progress)
    losses = in_context_loss(predictors, make_task(run.config.task), evaluation)
    by_kind = {
        kind: {step: losses[f"{kind}/{step}"] for step in by_step}
        for kind, by_step in models.items()
    }
    return CompressedRun(run.config.recipe, run.config.seed, extracted, **by_kind)


def _models(run: Run) -> tuple[int, dict[str, dict[int, SequenceModel]]]:
    """Give the step that the scalars are from, and all models by kind and step."""
    recipe, steps = run.config.recipe, RunFolder(run.path).steps
    start, end = steps[0], steps[-1]
    wanted = EXTRACTED_AT.get(recipe, 1.0) * end
    extracted = min(steps, key=lambda step: abs(step - wanted))
    mixed = [step for step in steps if step <= 1000 or step % 500 == 0 or step == end]
    mixed = mixed if recipe in INTERPOLATED else []
    at_step = {
        step: load_run(run.path, step=step, device="cpu").sequence_model
        for step in {start, extracted, end, *mixed}
    }
    scalars = {step: compress(at_step[step]).model for step in (extracted, end)}
    return extracted, {
        "network": {step: at_step[step] for step in (start, extracted, end)},
        "compressed": scalars,
        "interpolated": {s: interpolate(at_step[s], scalars[extracted]) for s in mixed},
    }


def _learning(name: str, recipes: Sequence[str], others: Sequence[str], **legend: Any) -> Panel:
    """Make a panel of learning curves, compressed and interpolated losses, and levels of algorithms."""
    linear = [recipe for recipe in recipes if recipe in _COMPRESSED_AT_END]

    def measure(lab: Laboratory) -> PanelData | None:
        rows = learning_rows(lab, recipes)
        if not rows:
            return None
        for recipe in linear:
            rows += _compression_rows(compressed_runs(lab, recipe))
        losses = compare(lab, "linear").losses
        return PanelData(rows=rows, more={"levels": {name: losses[name].mean for name in others}})

    def draw(axes: Axes, data: PanelData) -> None:
        draw_learning(axes, data.rows, recipes)
        for recipe in linear:
            _draw_compression(axes, data.rows, recipe)
        draw_levels(axes, data.more["levels"], lw=1.1)
        axes.set_title(name)
        axes.legend(**legend)

    return Panel(name=name, measure=measure, draw=draw)


def _compression_rows(runs: Sequence[CompressedRun]) -> Rows:
    rows = [_row("compressed at the end", one, one.end, one.compressed[one.end]) for one in runs]
    if not runs or runs[0].recipe not in INTERPOLATED:
        return rows
    rows += [
        _row("interpolated", one, step, loss)
        for one in runs
        for step, loss in sorted(one.interpolated.items())
    ]
    return rows + [
        _row("compressed", one, one.extracted, one.compressed[one.extracted]) for one in runs
    ]


def _row(kind: str, one: CompressedRun, step: int, loss: InContextLoss) -> dict[str, Any]:
    name = f"{one.recipe} {kind}, seed {one.seed}"
    return curve_row("test loss by step", name, step, loss.mean, 1.96 * loss.mean_error)


def _draw_compression(axes: Axes, rows: Rows, recipe: str) -> None:
    """Draw what a recipe's layers are worth as scalars.

    A dashed line is the loss of the scalars of `extracted`, its band the range over seeds; a cross is that
    of the last networks' scalars; circles are the authors' own numbers.
    """

    def of(kind: str) -> list[Rows]:
        prefix = f"{recipe} {kind}, seed "
        return [group for name, group in by_predictor(rows).items() if name.startswith(prefix)]

    last = [group[0] for group in of("compressed at the end")]
    if not last:
        return
    end = last[0]["place"]
    mean = statistics.mean(row["loss"] for row in last)
    axes.plot(end, mean, "x", color=color_of(recipe), ms=6, mew=1.5)
    if recipe not in INTERPOLATED:
        return
    solid, dashed = (DOTTED, DOTTED) if recipe == _SIX_WIDE else ("solid", DASHED)
    label: str | None = f"{label_of(recipe)}, interpolated"
    for curve in of("interpolated"):
        steps, losses = [row["place"] for row in curve], [row["loss"] for row in curve]
        axes.plot(steps, losses, color=_INTERPOLATED_COLOR, ls=solid, lw=1.3, label=label)
        label = None
    reached = {s: x for s, x in INTERPOLATED_BY_STEP.get(recipe, {}).items() if s <= end}
    circles(axes, reached, _INTERPOLATED_COLOR)
    means = [group[0]["loss"] for group in of("compressed")]
    label = f"{label_of(recipe)}, compressed"
    axes.axhline(statistics.mean(means), color=INK, ls=dashed, lw=1.1, label=label)
    axes.axhspan(min(means), max(means), color=INK, alpha=0.15, lw=0)
    if recipe in COMPRESSED:
        circles(axes, {end: COMPRESSED[recipe]}, INK)


def loss_ratio(
    pairs: Sequence[tuple[InContextLoss, InContextLoss]], positions: slice = slice(None)
) -> Estimate:
    """Give the ratio of mean losses of pairs, one per seed, on the same sequences."""
    ours, theirs = (
        torch.stack([one.losses[:, positions].mean(1) for one in ones])
        for ones in zip(*pairs, strict=True)
    )
    return Estimate.ratio(ours, theirs)


def _compressed_ratio(runs: Sequence[CompressedRun], positions: slice = slice(None)) -> Estimate:
    pairs = [(m.compressed[m.extracted], m.network[m.extracted]) for m in runs]
    return loss_ratio(pairs, positions)


def _interpolated_ratio(runs: Sequence[CompressedRun], *, end: bool) -> Estimate:
    steps = [m.end if end else m.start for m in runs]
    return loss_ratio([(m.interpolated[s], m.network[s]) for m, s in zip(runs, steps, strict=True)])


def _learned(runs: Sequence[CompressedRun]) -> bool:
    """Say whether the networks learned: of one that did not, compression has nothing to lose."""
    return all(
        one.network[step].mean < _LEARNED * one.network[one.start].mean
        for one in runs
        for step in (one.extracted, one.end)
    )


_LEARNED = 0.75
"""Share of its first loss below which a network has learned something; 0.53 published for one layer."""
_READING = 0.055
"""Error of a ratio of two losses near 0.26, each taken from a picture to 0.01."""


def _one_layer_claims(lab: Laboratory) -> Iterable[Claim]:
    runs = compressed_runs(lab, "lsa-1")
    if not runs or any(one.start > 0 for one in runs):  # imported weights have no beginning
        return
    published = lab.as_published("lsa-1")
    yield Claim(
        name="fig4-interpolated-one-start",
        figure="Fig. 4A",
        statement="Halfway between an untrained layer and the scalars of a trained one the loss is already "
        "lower than that of the untrained layer (ratio)",
        measured=_interpolated_ratio(runs, end=False),
        recipes=("lsa-1",),
        low=0.784 if published else None,
        high=0.804 if published else 0.897,
        basis="0.794 published, 0.01 either way"
        if published
        else "0.794 published; half of the gain counts",
    )
    if not _learned(runs):
        return
    yield Claim(
        name="fig4-compressed-one",
        figure="Fig. 4A",
        statement="One linear layer and the 12 scalars it was compressed to have the same loss (ratio)",
        measured=_compressed_ratio(runs),
        recipes=("lsa-1",),
        low=0.996,
        high=1.004,
        basis="0.4 % either way, as published",
    )
    yield Claim(
        name="fig4-interpolated-one-end",
        figure="Fig. 4A",
        statement="Halfway between the trained layer and its scalars the loss is that of the layer (ratio)",
        measured=_interpolated_ratio(runs, end=True),
        recipes=("lsa-1",),
        low=0.996,
        high=1.004,
        basis="0.9996 published, 0.4 % either way",
    )


def _six_layer_claims(lab: Laboratory) -> Iterable[Claim]:
    recipe = "lsa-6" if lab.trained("lsa-6") and lab.lacks(_SIX_WIDE) else _SIX_WIDE
    if recipe == "lsa-6" and lab.as_published(
        "lsa-6"
    ):  # a long training; the figure's is a short one
        recipe = _SIX_WIDE
    runs = compressed_runs(lab, recipe)
    if any(one.end > _SHORT or one.start > 0 for one in runs):
        return
    yield Claim(
        name="fig4-interpolated-six-start",
        figure="Fig. 4B",
        statement="Halfway between six untrained layers and the scalars of trained ones the loss is far "
        "lower than that of the untrained layers (ratio)",
        measured=_interpolated_ratio(runs, end=False) if runs else None,
        recipes=(recipe,),
        high=0.61,
        basis="0.21 to 0.24 in the published picture; half of the gain counts",
    )
    if not _learned(runs):
        return
    published = lab.as_published(recipe)
    allowed, why = (_READING, "5.5 % to read it") if published else (0.1, "10 %: trained otherwise")
    yield Claim(
        name="fig4-compressed-six",
        figure="Fig. 4B",
        statement="Six linear layers after a short training lose nothing by compression to scalars (ratio)",
        measured=_compressed_ratio(runs) if runs else None,
        recipes=(recipe,),
        high=1 + allowed,
        basis=f"no more than 1 in the published picture (0.25 to 0.26), {why}",
    )
    yield Claim(
        name="fig4-compressed-six-late",
        figure="Fig. 4B",
        statement="Nor do they at positions 11 to 50, where the context determines W (ratio of losses)",
        measured=_compressed_ratio(runs, LATE) if runs else None,
        recipes=(recipe,),
        high=1 + 5 * allowed,
        basis="the picture has means alone; late losses may differ by five times as much as means",
    )
    yield Claim(
        name="fig4-interpolated-six-end",
        figure="Fig. 4B",
        statement="Halfway between six trained layers and their scalars the loss is that of the layers "
        "(ratio)",
        measured=_interpolated_ratio(runs, end=True) if runs else None,
        recipes=(recipe,),
        low=1 - allowed,
        high=1 + allowed,
        basis=f"1 in the published picture, {why}",
    )


def _long_training_claims(lab: Laboratory) -> Iterable[Claim]:
    for recipe in ("lsa-4", "lsa-6"):
        runs, steps = compressed_runs(lab, recipe), RECIPES[recipe].config.train.steps
        if not lab.as_published(recipe):
            continue
        ends = [(m.compressed[m.end], m.network[m.end]) for m in runs]
        network, scalars = RELEASED_COMPRESSED[recipe]
        yield Claim(
            name=f"fig4-compressed-{recipe}-long",
            figure="Fig. 4B",
            statement=f"{label_of(recipe)}, trained for {steps} steps, do lose by compression, "
            "unlike in the short training of the figure (ratio)",
            measured=loss_ratio(ends) if ends else None,
            recipes=(recipe,),
            low=1.1,
            basis=f"{network:g} to {scalars:g} for the released weights; a tenth counts",
        )


def _claims(lab: Laboratory) -> Iterable[Claim]:
    yield from fig4_claims(lab, (*fig4.recipes, GRADIENT_STEP, _STEPS))
    yield from _one_layer_claims(lab)
    yield from _six_layer_claims(lab)
    yield from _long_training_claims(lab)


def _finish(drawing: Drawing) -> None:
    drawing.axes[-1].set_ylim(top=40)  # room for six names


_SEVERAL = ("lsa-2", "lsa-4", "lsa-6", _SIX_WIDE)

fig4 = Figure(
    name="fig4",
    title="Fig. 4: linear self-attention, gradient descent and least squares",
    summary="linear self-attention on constructed tokens",
    caption=(
        "Above: test losses while training, a line per seed. Below: loss by position, mean "
        "over seeds with 95 % bands of the test sequences, seeds as thin lines; circles are "
        "the authors' own numbers. Dashed and dotted: algorithms with nothing to learn "
        "beforehand. '6 steps and one, official' has the step sizes that the authors learned "
        "and leaves out the newest pair, as their code does; least squares uses all pairs. "
        "Compressed: every block of the products of a head's weights is a multiple of the "
        "identity, taken from the network five sevenths (one layer) or seven ninths (six) into "
        "its training; its band is the range over seeds, and a cross the same of the last "
        "network. Interpolated: products halfway between the compressed ones and those of the "
        "network at each step, from the checkpoints of one training where the authors train a "
        "second time from the same seed. Panels E and F are probes, with figures of their own."
    ),
    recipes=(*_COMPRESSED_AT_END, "mesa-1"),
    panels=(
        _learning(
            "A: learning, one layer",
            ("lsa-1", "mesa-1"),
            (GRADIENT_STEP, LEAST_SQUARES),
            fontsize=7.5,
        ),
        _learning("B: learning, several layers", (*_SEVERAL, "mesa-1"), (), fontsize=6.5),
        loss_by_position(
            "linear",
            "lsa-1",
            GRADIENT_STEP,
            title="C: one layer and one gradient step",
            legend={"fontsize": 7.5},
        ),
        loss_by_position(
            "linear",
            "lsa-2",
            "lsa-4",
            "lsa-6",
            "mesa-1",
            _STEPS,
            LEAST_SQUARES,
            title="D: several layers, and algorithms",
            legend={
                "fontsize": 7,
                "ncols": 2,
                "loc": "upper right",
                "handlelength": 1.4,
                "columnspacing": 1.0,
            },
        ),
    ),
    layout=grid(2, height=7.4),
    finish=_finish,
    settings=lambda lab: lab.test_sequences() | rounded(compare(lab, "linear").settings),
    claims=_claims,
    seconds={"smoke": 4.0, "small": 60.0, "paper": 900.0},
)
