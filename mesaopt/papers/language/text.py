"""Figures 26, 27 and 28 of the first paper: language models, on the sources of Python's library."""

from collections.abc import Iterable, Sequence
from typing import Any, cast

import torch
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Drawing
from torch import Tensor, nn

from mesaopt.analysis.attention import attention_mass
from mesaopt.analysis.capture import up_to
from mesaopt.analysis.estimate import Estimate
from mesaopt.analysis.token_scores import in_context_score
from mesaopt.looks import DASHED, Look
from mesaopt.papers.claims import Claim
from mesaopt.papers.figure import Figure, Panel, grid
from mesaopt.papers.laboratory import measurement
from mesaopt.papers.language.drawing import legend_below
from mesaopt.papers.language.laboratory import LOOKS, Laboratory, ratio_of_losses
from mesaopt.papers.rows import PanelData, Rows
from mesaopt.recipes import RECIPES, language
from mesaopt.recipes.language import FEATURES, MIXERS
from mesaopt.tasks import Batch, make_task
from mesaopt.workers import current_workers

ONE_LAYER = tuple(recipe.name for recipe in language.ONE_LAYER)
HYBRIDS = tuple(recipe.name for recipe in language.HYBRIDS)
DEPTHS = (2, 4)
FURTHEST = 8
"""Largest number of tokens back whose share of attention is measured."""
_TOGETHER = 8
"""Positions whose losses are averaged in a curve."""
_CLEAR = 0.995
"""Ratio of losses that counts as an order: half a percent."""


def mixer_of(recipe: str) -> str:
    """Say which mixer a recipe compares: "softmax", "linear" or "mesa".

    Example:
        >>> mixer_of("lm-hybrid-mesa-2"), mixer_of("lm-tf-4"), mixer_of("lm-1-linear-dpfp3")
        ('mesa', 'softmax', 'linear')
    """
    last = RECIPES[recipe].mixers[-1]
    return next(short for short, mixer in MIXERS.items() if mixer == last)


@measurement
def losses(lab: Laboratory, recipe: str) -> Float[Tensor, "seed sequence position"] | None:
    """Score the models of a recipe on the same stretches of text; None where there are none."""
    runs = lab.runs.get(recipe, [])
    if not runs:
        return None
    task = make_task(runs[0].config.task)
    batch = task.sample(lab.settings.text_sequences, seed=0, step=0, split="test")
    return torch.stack([_losses_of(run.model.cpu().eval(), batch) for run in runs])


def _losses_of(model: nn.Module, batch: Batch) -> Float[Tensor, "sequence position"]:
    """Score a model, a few sequences at a time."""

    @torch.no_grad()
    def score(part: Batch) -> Tensor:
        return part.losses(model(part.tokens, **part.arguments))

    return torch.cat(list(current_workers().map(score, batch.split(16))))


def score_of(lab: Laboratory, recipe: str) -> Float[Tensor, "seed sequence"]:
    """Give the in-context score of each sequence: loss at the late less that at the early position.

    Both are means over the eight positions around, since single positions are noisy.
    """
    return in_context_score(cast(Tensor, losses(lab, recipe)), lab.settings.score_positions)


def _ratio(lab: Laboratory, first: str, second: str) -> Estimate | None:
    """Estimate the ratio of the mean losses of two recipes; None where one has no models."""
    one, other = losses(lab, first), losses(lab, second)
    return None if one is None or other is None else ratio_of_losses(one, other)


def _score_difference(lab: Laboratory, first: str, second: str) -> Estimate | None:
    """Estimate the difference of two in-context scores; None where a recipe has no models."""
    if losses(lab, first) is None or losses(lab, second) is None:
        return None
    return Estimate.difference_of_models(score_of(lab, first), score_of(lab, second))


def _rows(lab: Laboratory, recipes: Sequence[str]) -> Rows:
    """Make a row of each recipe: perplexity and in-context score, with the parameters of its models."""
    rows: Rows = []
    for recipe in recipes:
        given = losses(lab, recipe)
        if given is None:
            continue
        loss, score = Estimate.of(given.mean(-1)), Estimate.of(score_of(lab, recipe))
        model = lab.runs[recipe][0].model
        rows.append(
            {
                "recipe": recipe,
                "mixer": mixer_of(recipe),
                "loss": loss.value,
                "loss_half_width_95": 1.96 * loss.error,
                "perplexity": float(torch.tensor(loss.value).exp()),
                "score": score.value,
                "score_half_width_95": 1.96 * score.error,
                "parameters": sum(p.numel() for p in model.parameters()),
            }
        )
    return rows


def _panel(recipes: Sequence[str], what: str, title: str) -> Panel[Laboratory]:
    """Make a panel of one number of each recipe, drawn by mixer, next to one another."""

    def measure(lab: Laboratory) -> PanelData | None:
        rows = _rows(lab, recipes)
        return PanelData(rows=rows) if rows else None

    def draw(axes: Axes, data: PanelData) -> None:
        for place, row in enumerate(data.rows):
            half = row["loss_half_width_95"] * row["perplexity"]
            half = half if what == "perplexity" else row["score_half_width_95"]
            look = LOOKS[row["mixer"]]
            style = {"color": look.color, "marker": look.marker, "ms": 6, "ls": ""}
            axes.errorbar(place, row[what], yerr=half, capsize=2.5, **style)
        names = [row["recipe"].removeprefix("lm-") for row in data.rows]
        axes.set_xticks(range(len(names)), names, rotation=60, ha="right", fontsize=7.5)
        axes.set_ylabel(
            "perplexity of a byte" if what == "perplexity" else "in-context score, nats"
        )
        axes.set_title(title)

    return Panel(name=what, measure=measure, draw=draw)


def _curves(recipes: Sequence[str], title: str) -> Panel[Laboratory]:
    """Make a panel of the loss by position, of means over eight positions each."""

    def measure(lab: Laboratory) -> PanelData | None:
        rows: Rows = []
        for recipe in recipes:
            given = losses(lab, recipe)
            if given is None:
                continue
            whole = given.shape[-1] // _TOGETHER * _TOGETHER
            for part, chunk in enumerate(given[..., :whole].split(_TOGETHER, -1)):
                mean = Estimate.of(chunk.mean(-1))
                place = _TOGETHER * part + (_TOGETHER + 1) / 2
                rows.append({"recipe": recipe, "position": place, "mean loss": mean.value})
        return PanelData(rows=rows) if rows else None

    def draw(axes: Axes, data: PanelData) -> None:
        for number, recipe in enumerate(dict.fromkeys(row["recipe"] for row in data.rows)):
            points = [row for row in data.rows if row["recipe"] == recipe]
            look: Look = LOOKS[mixer_of(recipe)]
            axes.plot(
                [row["position"] for row in points],
                [row["mean loss"] for row in points],
                color=look.color,
                marker=look.marker,
                ms=3.5,
                markevery=(number % 4, 4),
                ls=DASHED if len(RECIPES[recipe].mixers) > 2 else "-",
                label=recipe.removeprefix("lm-"),
            )
        axes.set(xscale="log", xlabel="position", ylabel="loss, nats")
        axes.xaxis.set_minor_formatter(lambda *_: "")
        axes.set_title(title)

    return Panel(name="curves", measure=measure, draw=draw)


def _settings(lab: Laboratory) -> dict[str, Any]:
    early, late = lab.settings.score_positions
    return {
        "test sequences": lab.settings.text_sequences,
        "positions of the score": f"{early}, {late}",
    }


def _fig26_claims(lab: Laboratory) -> Iterable[Claim]:
    for nu, features in enumerate(FEATURES):
        end = "" if features == "none" else f"-{features}"
        yield Claim(
            name=f"fig26-mesa-beats-linear-{nu}",
            figure="Fig. 26",
            statement=f"One layer, features of nu = {nu}: mesa has the smaller loss (mesa / linear)",
            measured=_ratio(lab, f"lm-1-mesa{end}", f"lm-1-linear{end}"),
            high=_CLEAR,
            basis="better at every nu in the paper, without numbers; half a percent counts",
            recipes=(f"lm-1-mesa{end}", f"lm-1-linear{end}"),
        )
    pair = ("lm-1-mesa-dpfp3", "lm-1-softmax")
    yield Claim(
        name="fig26-mesa-score-as-softmax",
        figure="Fig. 26",
        statement="One layer, nu = 3: mesa learns in its context as much as softmax attention (difference "
        "of in-context scores, mesa - softmax, nats)",
        measured=_score_difference(lab, *pair),
        high=0.05,
        basis="on par in the paper, without numbers; a twentieth of a nat counts",
        recipes=pair,
    )


def _fig27_claims(lab: Laboratory) -> Iterable[Claim]:
    for depth in DEPTHS:
        names = ("tf", "hybrid-linear", "hybrid-mesa")
        softmax, linear, mesa = (f"lm-{name}-{depth}" for name in names)
        yield Claim(
            name=f"fig27-mesa-beats-linear-{depth}",
            figure="Fig. 27",
            statement=f"{depth} layers: the hybrid with mesa has a smaller loss than that with linear "
            "attention (ratio)",
            measured=_ratio(lab, mesa, linear),
            high=_CLEAR,
            basis="the paper's order, without numbers; half a percent counts",
            recipes=(mesa, linear),
        )
        yield Claim(
            name=f"fig27-softmax-beats-mesa-{depth}",
            figure="Fig. 27",
            statement=f"{depth} layers: softmax attention has no greater loss than the hybrid with mesa "
            "(ratio)",
            measured=_ratio(lab, softmax, mesa),
            high=1.0,
            basis="the paper's order, without numbers; equal counts",
            recipes=(softmax, mesa),
        )
        yield Claim(
            name=f"fig27-score-order-{depth}",
            figure="Fig. 27",
            statement=f"{depth} layers: the hybrid with mesa learns more in its context than that with "
            "linear attention (difference of in-context scores, mesa - linear, nats)",
            measured=_score_difference(lab, mesa, linear),
            high=-0.01,
            basis="the paper's order, without numbers; a hundredth of a nat counts",
            recipes=(mesa, linear),
        )


_TEXT = (
    "Bytes of the sources of Python's standard library, held out by file; the paper's models are larger, "
    "of subwords, and trained on the Pile. Models of equal depth have equal parameters within two in a "
    "hundred."
)
_SAME_TEXT = (
    " All models read the same text: their differences, which the claims judge, have far smaller errors "
    "than the losses that are drawn. "
)
_SCORE = (
    " The in-context score is the loss late in a context less that early in it, and negative where "
    "a model learns in its context; the positions, 50 and 500 in the literature, are in the line below. "
    "They are arbitrary, which is why whole curves are drawn."
)

fig26 = Figure(
    name="fig26",
    title="Fig. 26: one layer whose keys are of the token before",
    summary="one-layer language models with feature maps: linear, mesa, softmax",
    caption=(
        "Perplexity, in-context score and loss by position of one layer whose keys are those of the token "
        "before, with feature maps DPFP of nu = 0 to 3; 95 % intervals over text and seeds."
        + _SAME_TEXT
        + "\n\n"
        + _TEXT
        + _SCORE
    ),
    recipes=ONE_LAYER,
    panels=(
        _panel(ONE_LAYER, "perplexity", "A: perplexity"),
        _panel(ONE_LAYER, "score", "B: in-context score"),
        _curves(("lm-1-softmax", "lm-1-linear-dpfp3", "lm-1-mesa-dpfp3"), "C: loss by position"),
    ),
    layout=grid(columns=3, height=3.6, width=10.5),
    finish=legend_below,
    settings=_settings,
    claims=_fig26_claims,
    seconds={"smoke": 3.0, "small": 60.0, "paper": 600.0},
)

fig27 = Figure(
    name="fig27",
    title="Fig. 27: softmax attention, then linear or mesa layers",
    summary="hybrid language models of two and four layers",
    caption=(
        "Perplexity, in-context score and loss by position of models whose first layer is softmax "
        "attention: two layers without networks, and four with them (dashed); 95 % intervals over text and "
        "seeds."
        + _SAME_TEXT
        + "Linear and mesa layers have features of nu = 3.\n\n"
        + _TEXT
        + _SCORE
    ),
    recipes=HYBRIDS,
    panels=(
        _panel(HYBRIDS, "perplexity", "A: perplexity"),
        _panel(HYBRIDS, "score", "B: in-context score"),
        _curves(HYBRIDS, "C: loss by position"),
    ),
    layout=grid(columns=3, height=3.6, width=10.5),
    finish=legend_below,
    settings=_settings,
    claims=_fig27_claims,
    seconds={"smoke": 3.0, "small": 60.0, "paper": 600.0},
)


@measurement
def first_layer_shares(lab: Laboratory, recipe: str) -> Float[Tensor, "head offset"] | None:
    """Give the shares of attention of a first layer by tokens back, of the first seed's model."""
    runs = lab.runs.get(recipe, [])
    if not runs:
        return None
    maps_of = up_to(runs[0].model.cpu().eval(), "blocks.0.mixer.attention")
    task = make_task(runs[0].config.task)
    batch = task.sample(lab.settings.attention_sequences, seed=0, step=0, split="test")
    offsets, start = range(FURTHEST + 1), 2 * FURTHEST + 1
    with torch.no_grad():
        shares = [
            attention_mass(maps_of(part.tokens), offsets=offsets, start=start)
            for part in batch.split(8)
        ]
    return torch.cat(shares).mean(0)


def _measure_offsets(lab: Laboratory) -> PanelData | None:
    rows: Rows = []
    for recipe in HYBRIDS:
        shares = first_layer_shares(lab, recipe)
        if shares is not None:
            rows += [
                {"recipe": recipe, "head": head, "tokens back": back, "share": share}
                for head, by_offset in enumerate(shares.tolist(), start=1)
                for back, share in enumerate(by_offset)
            ]
    return PanelData(rows=rows) if rows else None


def _draw_offsets(axes: Axes, data: PanelData) -> None:
    heads = list(dict.fromkeys((row["recipe"], row["head"]) for row in data.rows))
    shares = [[r["share"] for r in data.rows if (r["recipe"], r["head"]) == head] for head in heads]
    picture = axes.imshow(
        shares, cmap="Blues", vmin=0, vmax=1, aspect="auto", interpolation="nearest"
    )
    names = [f"{recipe.removeprefix('lm-')}, head {head}" for recipe, head in heads]
    axes.set_yticks(range(len(heads)), names, fontsize=6.5)
    axes.grid(visible=False)
    axes.set_xlabel("tokens back")
    cast(Drawing, axes.figure).colorbar(picture, ax=axes, label="share of attention")


def looked_at(shares: Float[Tensor, "head offset"]) -> int:
    """Count the different numbers of tokens back, 1 or more, that heads look at most, with a fifth or more.

    Example:
        >>> looked_at(torch.tensor([[0.1, 0.8, 0.1], [0.0, 0.1, 0.7], [0.9, 0.1, 0.0]]))
        2
    """
    best = shares.max(-1)
    pairs = zip(best.indices.tolist(), best.values.tolist(), strict=True)
    return len({back for back, share in pairs if back and share >= 0.2})


def _fig28_claims(lab: Laboratory) -> Iterable[Claim]:
    for recipe in HYBRIDS:
        shares = first_layer_shares(lab, recipe)
        yield Claim(
            name=f"fig28-{recipe.removeprefix('lm-')}",
            figure="Fig. 28",
            statement=f"The heads of the first layer of {recipe.removeprefix('lm-')} look at several fixed "
            "numbers of tokens back (number of different ones, with a fifth of the attention or more)",
            measured=None if shares is None else float(looked_at(shares)),
            low=2.0,
            basis="off-diagonals with several offsets in the paper; two count",
            recipes=(recipe,),
        )


fig28 = Figure(
    name="fig28",
    title="Fig. 28: how far back the heads of first layers look",
    summary="attention offsets of the first layers of hybrid language models",
    caption=(
        "Shares of attention by tokens back, means over positions and text; each row is a head of a first "
        "softmax layer, first seed. A fixed number of tokens back is what binds neighbours together, which "
        "linear and mesa layers behind it need.\n\n" + _TEXT
    ),
    recipes=HYBRIDS,
    panels=(Panel(name="offsets", measure=_measure_offsets, draw=_draw_offsets),),
    layout=grid(height=5.0),
    settings=lambda lab: {"sequences of the maps": lab.settings.attention_sequences},
    claims=_fig28_claims,
    seconds={"smoke": 2.0, "small": 10.0, "paper": 60.0},
)
