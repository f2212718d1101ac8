"""Figure 4, A and B: linear layers reduced to scalars, and these mixed with the layers in training."""

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from matplotlib.axes import Axes

from mesaopt.analysis import (
    Evaluation,
    InContextLoss,
    Predictor,
    compress,
    in_context_loss,
    interpolate,
    model_predictor,
)
from mesaopt.models import SequenceModel
from mesaopt.papers.claims import STANDARD_ERRORS, Claim
from mesaopt.papers.figures import INK
from mesaopt.papers.plan import Report
from mesaopt.papers.uncovering2023.curves import (
    Rows,
    color_of,
    label_of,
    trained_as_published,
)
from mesaopt.papers.uncovering2023.laboratory import Laboratory
from mesaopt.papers.uncovering2023.noise import variance_over_seeds, widened
from mesaopt.papers.uncovering2023.published import (
    COMPRESSED,
    INTERPOLATED_BY_STEP,
    RELEASED_COMPRESSED,
)
from mesaopt.tasks import make_task
from mesaopt.training import Run, RunFolder, load_run

INTERPOLATED = ("lsa-1", "lsa-6", "lsa-6-key-40")
"""Recipes whose runs are mixed with their compressed selves."""
COMPRESSED_AT_END = ("lsa-1", "lsa-2", "lsa-4", "lsa-6", "lsa-6-key-40")
"""Recipes whose last network is compressed."""
SHORT = 4500
"""Steps of the authors' training for Fig. 4B; in longer ones the compression loses much."""

_EXTRACTED_AT = {"lsa-1": 2500 / 3500, "lsa-6": 3500 / 4500, "lsa-6-key-40": 3500 / 4500}
"""When the authors compress the network, as a share of the training that is mixed with it."""
_INTERPOLATED_COLOR = "#c77fb8"


@dataclass(frozen=True)
class CompressedRun:
    """Losses around the compression of one run, by step, on the test sequences of its training."""

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


def measure(laboratory: Laboratory, report: Report) -> list[CompressedRun]:
    """Compress the runs of linear layers and mix them with their own training.

    The authors train a second time from the same seed and mix while they train; here a run is a pure
    function of its seed, and its checkpoints are those of a second training.

    Args:
        laboratory: the runs.
        report: told the batches of test sequences done, in all runs.

    Returns:
        Losses of every run that has checkpoints.
    """
    runs = [
        run
        for recipe in COMPRESSED_AT_END
        for run in laboratory.runs.get(recipe, [])
        if RunFolder(run.path).steps
    ]
    batches = [-(-run.config.train.evaluation_sequences // 256) for run in runs]
    measured = []
    for index, run in enumerate(runs):
        before = sum(batches[:index])
        measured.append(_measure(run, lambda n, before=before: report(before + n, sum(batches))))
    return measured


def _measure(run: Run, report: Callable[[int], None]) -> CompressedRun:
    extracted, models = _models(run)
    slots = run.config.task.token_slots
    predictors: dict[str, Predictor] = {
        f"{kind}/{step}": model_predictor(model, slots)
        for kind, by_step in models.items()
        for step, model in by_step.items()
    }
    losses = in_context_loss(
        predictors,
        make_task(run.config.task),
        Evaluation(
            num_sequences=run.config.train.evaluation_sequences,
            on_progress=lambda done, _: report(done),
        ),
    )
    found = {
        kind: {step: losses[f"{kind}/{step}"] for step in by_step}
        for kind, by_step in models.items()
    }
    return CompressedRun(run.config.recipe, run.config.seed, extracted, **found)


def _models(run: Run) -> tuple[int, dict[str, dict[int, SequenceModel]]]:
    """Give the step that the scalars are from, and all models by kind and step."""
    recipe, steps = run.config.recipe, RunFolder(run.path).steps
    start, end = steps[0], steps[-1]
    wanted = _EXTRACTED_AT.get(recipe, 1.0) * end
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


def draw(axes: Axes, measured: Sequence[CompressedRun], names: Sequence[str]) -> Rows:
    """Draw losses of compressed and interpolated models into a panel of learning curves.

    A dashed line is the loss of the scalars of `extracted`, its band the range over seeds; a cross is that
    of the last networks' scalars; circles are the authors' own numbers.

    Args:
        axes: with the learning curves.
        measured: the losses.
        names: recipes to draw, those there are.

    Returns:
        The numbers drawn.
    """
    rows: Rows = []
    for name in names:
        runs = [one for one in measured if one.recipe == name]
        if not runs:
            continue
        rows += _draw_end(axes, runs)
        if name in INTERPOLATED:
            rows += _draw_interpolated(axes, runs) + _draw_compressed(axes, runs)
    return rows


def _draw_end(axes: Axes, runs: Sequence[CompressedRun]) -> Rows:
    recipe = runs[0].recipe
    losses = [one.compressed[one.end] for one in runs]
    mean = statistics.mean(loss.mean for loss in losses)
    axes.plot(runs[0].end, mean, "x", color=color_of(recipe), ms=6, mew=1.5)
    return [
        _row(f"{recipe} compressed at the end", one, one.end, one.compressed[one.end])
        for one in runs
    ]


def _draw_compressed(axes: Axes, runs: Sequence[CompressedRun]) -> Rows:
    recipe = runs[0].recipe
    means = [one.compressed[one.extracted].mean for one in runs]
    label = f"{label_of(recipe)}, compressed"
    dashes = _line(recipe, (0, (4, 2)))
    axes.axhline(statistics.mean(means), color=INK, ls=dashes, lw=1.1, label=label)
    axes.axhspan(min(means), max(means), color=INK, alpha=0.15, lw=0)
    if recipe in COMPRESSED:
        axes.plot(runs[0].end, COMPRESSED[recipe], "o", color=INK, mfc="none", ms=4)
    return [
        _row(f"{recipe} compressed", one, one.extracted, one.compressed[one.extracted])
        for one in runs
    ]


def _draw_interpolated(axes: Axes, runs: Sequence[CompressedRun]) -> Rows:
    recipe = runs[0].recipe
    for one in runs:
        steps, losses = zip(*sorted(one.interpolated.items()), strict=True)
        label = f"{label_of(recipe)}, interpolated" if one is runs[0] else None
        style = {"color": _INTERPOLATED_COLOR, "ls": _line(recipe, "solid"), "lw": 1.3}
        axes.plot(steps, [loss.mean for loss in losses], **style, label=label)
    published = INTERPOLATED_BY_STEP.get(recipe, {})
    reached = {step: loss for step, loss in published.items() if step <= runs[0].end}
    axes.plot(
        list(reached), list(reached.values()), "o", color=_INTERPOLATED_COLOR, mfc="none", ms=4
    )
    return [
        _row(f"{recipe} interpolated", one, step, loss)
        for one in runs
        for step, loss in sorted(one.interpolated.items())
    ]


def _line(recipe: str, usual: Any) -> Any:
    """Dot what is drawn beside another model of six layers."""
    return (0, (1, 1.5)) if recipe.endswith("key-40") else usual


def _row(predictor: str, one: CompressedRun, step: int, loss: InContextLoss) -> dict[str, Any]:
    return {
        "panel": "test loss by step",
        "predictor": f"{predictor}, seed {one.seed}",
        "place": step,
        "loss": loss.mean,
        "half_width_95": 1.96 * loss.mean_error,
    }


def judge(laboratory: Laboratory, measured: Sequence[CompressedRun]) -> list[Claim]:
    """Judge what the paper says of compressed and interpolated models.

    Args:
        laboratory: the runs, and the scale.
        measured: their losses.

    Returns:
        The claims that can be judged.
    """
    by_recipe = {name: [m for m in measured if m.recipe == name] for name in COMPRESSED_AT_END}
    published = {name: trained_as_published(runs) for name, runs in laboratory.runs.items()}
    six = "lsa-6-key-40" if by_recipe["lsa-6-key-40"] else "lsa-6"
    claims = []
    if runs := by_recipe["lsa-1"]:
        claims += _one_layer(laboratory, runs, published["lsa-1"])
    if (runs := by_recipe[six]) and runs[0].end <= SHORT:
        claims += _six_layers(laboratory, runs, published[six])
    for name in ("lsa-4", "lsa-6"):
        if (runs := by_recipe[name]) and published[name]:
            claims.append(_long_training(laboratory, runs))
    return claims


def _one_layer(
    laboratory: Laboratory, runs: Sequence[CompressedRun], published: bool
) -> list[Claim]:
    compressed = _Ratio.of([(m.compressed[m.extracted], m.network[m.extracted]) for m in runs])
    start = _Ratio.of([(m.interpolated[m.start], m.network[m.start]) for m in runs])
    end = _Ratio.of([(m.interpolated[m.end], m.network[m.end]) for m in runs])
    gain = start.claim(
        *(laboratory, "fig4-interpolated-one-start", "Fig. 4A"),
        "Halfway between an untrained layer and the scalars of a trained one the loss is already lower "
        "than that of the untrained layer (ratio)",
        *((0.784, 0.804, "0.794 published, 0.01 either way") if published else _HALF_OF_ONE),
    )
    if not _learned(runs):
        return [gain]
    return [
        gain,
        compressed.claim(
            *(laboratory, "fig4-compressed-one", "Fig. 4A"),
            "One linear layer and the 12 scalars it was compressed to have the same loss (ratio)",
            *(0.996, 1.004, "0.4 % either way, as published"),
        ),
        end.claim(
            *(laboratory, "fig4-interpolated-one-end", "Fig. 4A"),
            "Halfway between the trained layer and its scalars the loss is that of the layer (ratio)",
            *(0.996, 1.004, "0.9996 published, 0.4 % either way"),
        ),
    ]


def _six_layers(
    laboratory: Laboratory, runs: Sequence[CompressedRun], published: bool
) -> list[Claim]:
    compressed = _Ratio.of([(m.compressed[m.extracted], m.network[m.extracted]) for m in runs])
    start = _Ratio.of([(m.interpolated[m.start], m.network[m.start]) for m in runs])
    end = _Ratio.of([(m.interpolated[m.end], m.network[m.end]) for m in runs])
    allowed, why = (_READING, "5.5 % to read it") if published else (0.1, "10 %: trained otherwise")
    gain = start.claim(
        *(laboratory, "fig4-interpolated-six-start", "Fig. 4B"),
        "Halfway between six untrained layers and the scalars of trained ones the loss is far lower than "
        "that of the untrained layers (ratio)",
        *(None, 0.61, "0.21 to 0.24 in the published picture; half of the gain counts"),
    )
    if not _learned(runs):
        return [gain]
    return [
        gain,
        compressed.claim(
            *(laboratory, "fig4-compressed-six", "Fig. 4B"),
            "Six linear layers after a short training lose nothing when compressed to scalars (ratio)",
            *(None, 1 + allowed, f"no more than 1 in the published picture (0.25 to 0.26), {why}"),
        ),
        end.claim(
            *(laboratory, "fig4-interpolated-six-end", "Fig. 4B"),
            "Halfway between six trained layers and their scalars the loss is that of the layers (ratio)",
            *(1 - allowed, 1 + allowed, f"1 in the published picture, {why}"),
        ),
    ]


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
"""Error of a ratio of two losses near 0.26, each read off a picture to 0.01."""
_HALF_OF_ONE = (None, 0.897, "0.794 published; half of the gain counts")


def _long_training(laboratory: Laboratory, runs: Sequence[CompressedRun]) -> Claim:
    recipe = runs[0].recipe
    network, scalars = RELEASED_COMPRESSED[recipe]
    lost = _Ratio.of([(m.compressed[m.end], m.network[m.end]) for m in runs])
    return lost.claim(
        *(laboratory, f"fig4-compressed-{recipe}-long", "Fig. 4B"),
        f"{label_of(recipe)}, trained for {runs[0].end} steps, do lose by compression, unlike in the short "
        "training of the figure (ratio)",
        *(1.1, None, f"{network:g} to {scalars:g} for the released weights; a tenth counts"),
    )


@dataclass(frozen=True)
class _Ratio:
    """A ratio of mean losses of one seed after the other on the same sequences, and its standard error."""

    value: float
    error: float

    @classmethod
    def of(cls, pairs: Sequence[tuple[InContextLoss, InContextLoss]]) -> "_Ratio":
        """Count sequences, which all seeds share, and the seeds where there are several."""
        ours, theirs = (
            torch.stack([p.losses.mean(1) for p in ps]) for ps in zip(*pairs, strict=True)
        )
        a, b = ours.mean(0), theirs.mean(0)  # over seeds, by sequence
        ratio = a.mean() / b.mean()
        variance = (a - ratio * b).var() / b.mean() ** 2 / len(a)
        variance = variance + variance_over_seeds(ours.mean(1) / theirs.mean(1))
        return cls(ratio.item(), variance.sqrt().item())

    def claim(
        self,
        laboratory: Laboratory,
        name: str,
        figure: str,
        statement: str,
        low: float | None,
        high: float | None,
        basis: str,
    ) -> Claim:
        return laboratory.claim(
            name,
            figure,
            statement,
            value=self.value,
            **widened(low, high, self.error),
            basis=f"{basis}, and {STANDARD_ERRORS:g} standard errors of {self.error:.2g}",
        )
