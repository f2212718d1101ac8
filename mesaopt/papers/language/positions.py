"""Loss by position on text: every mixer against softmax attention, with windows as controls."""

import math
from collections.abc import Iterable
from dataclasses import replace
from typing import Any, cast

from jaxtyping import Float
from matplotlib.axes import Axes
from torch import Tensor

from mesaopt.analysis.estimate import Estimate
from mesaopt.config import LanguageModelConfig
from mesaopt.looks import DASH_DOTTED, DASHED, DOTTED, PALETTE, Look
from mesaopt.papers.claims import Claim
from mesaopt.papers.figure import Figure, Panel, grid
from mesaopt.papers.laboratory import measurement
from mesaopt.papers.language.drawing import comparison_settings
from mesaopt.papers.language.laboratory import (
    LOOKS,
    Laboratory,
    Result,
    mixer_settings,
    ratio_of_losses,
)
from mesaopt.papers.language.settings import comparison_seconds
from mesaopt.papers.rows import PanelData
from mesaopt.recipes.language import MIXERS, WINDOWS
from mesaopt.tasks import Batch

_TOGETHER = 8
"""Positions whose losses are averaged."""
_WINDOWS = {f"window {window}": window for window in WINDOWS}
"""The windows of softmax attention, by their names in the figure."""
_LOOKS = LOOKS | {
    name: Look(PALETTE[5], dashes)
    for name, dashes in zip(_WINDOWS, (DOTTED, DASHED, DASH_DOTTED), strict=True)
}


def _losses(batch: Batch, logits: Tensor) -> Float[Tensor, "sequence part"]:
    """Give the losses of each sequence, averaged over a few positions each."""
    losses = batch.losses(logits)
    whole = losses.shape[1] // _TOGETHER * _TOGETHER
    return losses[:, :whole].unflatten(1, (-1, _TOGETHER)).mean(-1)


@measurement
def mixers_on_text(lab: Laboratory) -> dict[str, Result]:
    """Train all mixers on text, and softmax attention with windows."""
    comparison = lab.settings.comparisons["text"]
    model = cast(LanguageModelConfig, comparison.model)
    methods = {
        name: mixer_settings(comparison, f"text-{name}", mixer) for name, mixer in MIXERS.items()
    }
    for name, window in _WINDOWS.items():
        narrow = replace(comparison, model=replace(model, window=window))
        methods[name] = mixer_settings(narrow, f"text-window-{window}", "softmax_attention")
    results = lab.compare(comparison, methods, _losses)
    return {name: replace(result, missing=math.nan) for name, result in results.items()}


def _falling_behind(lab: Laboratory, name: str) -> Estimate:
    """Estimate how much more is lost to softmax attention in the last quarter than in the first."""
    given = (mixers_on_text(lab)[one].scores[:, 0] for one in (name, "softmax"))
    return Estimate.difference_of_models(*map(_rise, given))


def _rise(losses: Float[Tensor, "seed sequence part"]) -> Float[Tensor, "seed sequence"]:
    """Give the loss in the last quarter of the positions less that in the first."""
    quarter = max(1, losses.shape[-1] // 4)
    return losses[..., -quarter:].mean(-1) - losses[..., :quarter].mean(-1)


def _measure(lab: Laboratory) -> PanelData:
    results, rows = mixers_on_text(lab), list[dict[str, Any]]()
    softmax = results["softmax"].scores[:, 0].unbind(-1)
    for name, result in results.items():
        losses = result.scores[:, 0]
        loss = Estimate.of(losses.mean(-1))
        for part, pair in enumerate(zip(losses.unbind(-1), softmax, strict=True)):
            behind = Estimate.difference_of_models(*pair)
            rows.append(
                {
                    "mixer": name,
                    "position": _TOGETHER * part + (_TOGETHER + 1) / 2,
                    "behind softmax": behind.value,
                    "half_width_95": 1.96 * behind.error,
                    "mean loss": loss.value,
                    "learning_rate": result.rate,
                    "parameters": result.outcomes[0].parameters,
                }
            )
    return PanelData(rows=rows)


def _draw(axes: Axes, data: PanelData) -> None:
    for name in dict.fromkeys(row["mixer"] for row in data.rows):
        points = [row for row in data.rows if row["mixer"] == name]
        x, y = ([row[key] for row in points] for key in ("position", "behind softmax"))
        label = f"{name}, {points[0]['mean loss']:.3f}"
        axes.plot(x, y, **_LOOKS[name].line(label=label))
    axes.set(xscale="log", xlabel="position", ylabel="loss less that of softmax, nats")
    axes.xaxis.set_minor_formatter(lambda *_: "")
    axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize=8)


def _claims(lab: Laboratory) -> Iterable[Claim]:
    narrowest = f"window {min(WINDOWS)}"
    yield Claim(
        name="text-windows-fall-behind",
        figure="loss by position",
        statement="Softmax attention to four tokens falls behind with the position: what comes from far is "
        "used (loss to softmax attention in the last quarter less that in the first, nats)",
        measured=_falling_behind(lab, narrowest),
        low=0.05,
        basis="the control must see something; a twentieth of a nat counts",
    )
    yield Claim(
        name="text-mesa-falls-behind",
        figure="loss by position",
        statement="The mesa layer falls behind softmax attention with the position, too, as all layers "
        "with a state of constant size (the same difference)",
        measured=_falling_behind(lab, "mesanet"),
        low=0.005,
        basis="so it does in the MesaNet paper, at much greater size; a two-hundredth of a nat counts",
    )
    results = mixers_on_text(lab)
    yield Claim(
        name="text-mesa-as-gated-delta",
        figure="loss by position",
        statement="The mesa layer reads text no worse than the gated delta rule (ratio of losses)",
        measured=ratio_of_losses(
            results["mesanet"].scores[:, 0], results["gated-delta"].scores[:, 0]
        ),
        high=1.0,
        basis="perplexities 0.01 to 0.12 less in the MesaNet paper; equal counts",
    )


positions = Figure(
    name="positions",
    title="Loss by position on text, against softmax attention",
    summary="eight mixers on text, by position, with windows as controls",
    caption=(
        "Loss on bytes of the sources of Python's standard library, less that of softmax attention on the "
        "same text, by position; in the legend the mean loss in nats. Grey: softmax attention to the last "
        "4, 16 and 64 tokens, which says how much of a difference comes from how far.\n\n"
        "Two layers with networks, whose mixers have the same width, heads, short convolutions and head "
        "norms; parameters are equal up to gates and ridges. Learning rates are chosen on validation text."
    ),
    trains=True,
    panels=(Panel(name="behind", measure=_measure, draw=_draw),),
    layout=grid(height=4.2, width=9.0),
    settings=lambda lab: comparison_settings(lab, "text"),
    claims=_claims,
    seconds=comparison_seconds("text", methods=len(MIXERS) + len(_WINDOWS)),
)
