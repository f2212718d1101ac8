"""Figures 3, 14 and 15: where the heads of first layers look."""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import SubFigure
from torch import Tensor

from mesaopt.analysis import AttentionMaps, attention_maps
from mesaopt.analysis.estimate import Estimate
from mesaopt.looks import GRID, INK, PALETTE
from mesaopt.papers.claims import Claim
from mesaopt.papers.figure import Figure, Panel, stack
from mesaopt.papers.laboratory import Scale, measurement
from mesaopt.papers.rows import PanelData
from mesaopt.papers.uncovering2023.curves import label_of
from mesaopt.papers.uncovering2023.laboratory import Laboratory
from mesaopt.papers.uncovering2023.published import ATTENTION_SHARES
from mesaopt.papers.uncovering2023.weights import pattern_claims, pattern_panel, pattern_row
from mesaopt.recipes import RECIPES
from mesaopt.tasks import make_task

PART = "blocks.0.mixer"
OFFSETS = (0, 1, 2, 3, 4)
"""Tokens back whose share of attention is measured."""

NEAR = {"linear": 2, "partial": 5, "nonlinear": 2}
"""Tokens that have to be bound, by task: the two of a pair of states; with partial observation up to five,
which is as many as the published probes recover."""

_COLORS = LinearSegmentedColormap.from_list("shares", ["white", PALETTE[0], "#0b2545"])
_COLUMNS = 4  # of pictures
_CAPTION = (
    "Mean attention maps of the first layer, a picture per head: rows are the positions that "
    "look, columns the tokens looked at, white is 0, dark is 1, the last eight larger in the "
    "corner. Above each, the share of the nearest tokens, over positions from the sixth on; to "
    "the right, shares by tokens back. First seed; which head is which is chance. "
)


def _seconds(weight: float) -> dict[Scale, float]:
    """Estimate the time by scale; weight 1 is a first layer of four heads."""
    return {"smoke": 1.0 + 0.1 * weight, "small": 1.0 + 2.0 * weight, "paper": 1.0 + 6.0 * weight}


@measurement
def first_maps(lab: Laboratory, recipe: str) -> list[AttentionMaps]:
    """Average the maps of a recipe's first layer over test sequences, one per seed."""
    count = lab.settings.map_sequences
    maps = []
    for run in lab.trained(recipe):
        tokens = make_task(run.config.task).sample(count, seed=0, split="test").tokens
        model = run.sequence_model.cpu()
        maps.append(
            attention_maps(model, tokens, name=PART, offsets=OFFSETS, progress=lab.on_progress)
        )
    return maps


def near_mass(maps: AttentionMaps, near: int) -> Tensor:
    """Give the share of the nearest tokens together, [sequence, head]."""
    return maps.masses[..., :near].sum(-1)


def _pixels(maps: AttentionMaps) -> list[Any]:
    """Give the mean map of every head, to the precision of a picture."""
    return [[[round(x, 4) for x in row] for row in head] for head in maps.mean.tolist()]


def _draw_heads(axes: Sequence[Axes], maps: Sequence[Any], near: Sequence[float]) -> None:
    """Draw the mean map of each head with its share of the nearest tokens above it."""
    for head, (place, mean, share) in enumerate(zip(axes, maps, near, strict=True)):
        length = len(mean)
        extent = (0.5, length + 0.5, length + 0.5, 0.5)
        style = {"cmap": _COLORS, "vmin": 0, "vmax": 1, "interpolation": "nearest"}
        place.imshow(mean, extent=extent, **style)
        place.set_title(f"{share:.2f}", fontsize=8, pad=2)
        place.grid(visible=False)
        place.tick_params(length=2, labelsize=6.5, pad=1)
        place.set_xticks([1, length // 2, length])
        place.set_yticks([1, length // 2, length] if head == 0 else [])
        end = place.inset_axes((0.5, 0.5, 0.5, 0.5))  # the last positions again, larger
        end.imshow([row[-8:] for row in mean[-8:]], **style)
        end.set(xticks=[], yticks=[])
        end.grid(visible=False)
        end.spines[["top", "right"]].set_visible(True)
        end.spines[:].set(color=GRID, lw=0.8)


def _maps_panel(recipe: str) -> Panel[Laboratory]:
    """Make a panel of a first layer's maps, and of how far back its heads look."""
    near = NEAR[RECIPES[recipe].task]

    def measure(lab: Laboratory) -> PanelData | None:
        if not lab.trained(recipe):
            return None
        maps = first_maps(lab, recipe)[0]
        rows = [
            {
                "recipe": recipe,
                "head": head,
                "tokens back": back,
                "share": share,
                "error": error,
            }
            for head, (shares, errors) in enumerate(
                zip(maps.mass.tolist(), maps.mass_error.tolist(), strict=True), start=1
            )
            for back, share, error in zip(maps.offsets, shares, errors, strict=True)
        ]
        together = near_mass(maps, near).mean(0).tolist()
        return PanelData(rows=rows, more={"maps": _pixels(maps), "near": together})

    def draw(part: SubFigure, data: PanelData) -> None:
        heads = len(data.more["maps"])
        title = f"{label_of(recipe)}, {RECIPES[recipe].task} task: share of the last {near} tokens"
        part.suptitle(title, fontsize=9.5)
        grid = part.add_gridspec(_lines(heads), _COLUMNS + 2)
        axes = [part.add_subplot(grid[h // _COLUMNS, h % _COLUMNS]) for h in range(heads)]
        _draw_heads(axes, data.more["maps"], data.more["near"])
        _draw_offsets(part.add_subplot(grid[:, _COLUMNS:]), data)

    return Panel(name=recipe, measure=measure, draw=draw)


def _lines(heads: int) -> int:
    return -(-heads // _COLUMNS)


def _draw_offsets(axes: Axes, data: PanelData) -> None:
    """Draw how far back every head looks."""
    heads = [data.rows[i : i + len(OFFSETS)] for i in range(0, len(data.rows), len(OFFSETS))]
    shares = torch.tensor([[row["share"] for row in head] for head in heads])
    for head in shares:
        axes.plot(OFFSETS, head, ".-", lw=0.8, ms=3, color=PALETTE[0], alpha=0.6)
    axes.plot(OFFSETS, shares.mean(0), ".-", color=INK, label="mean of heads")
    axes.set(xlabel="tokens back", ylim=(-0.03, 1.03), xticks=OFFSETS)
    axes.set_title("share of attention", fontsize=8, pad=2)
    axes.tick_params(labelsize=7)
    axes.legend(fontsize=7)


def _maps_layout(data: PanelData) -> float:
    return 0.35 + 1.35 * _lines(len(data.more["maps"]))


def _over_seeds(shares: Sequence[Tensor], *, least: bool = False) -> Estimate:
    """Give the mean over seeds of the mean or the least of heads; shares are [sequence, head]."""
    chosen = [
        of_heads[:, of_heads.mean(0).argmin()] if least else of_heads.mean(1) for of_heads in shares
    ]
    return Estimate.of(torch.stack(chosen))


def _every_head_claim(lab: Laboratory, name: str, figure: str) -> Claim:
    """Judge whether each head looks at the token itself and the previous one, and little else."""
    shares = [near_mass(maps, 2) for maps in first_maps(lab, name)]
    heads = ", ".join(f"{a + b:.2f}" for a, b in ATTENTION_SHARES[name])
    published = lab.as_published(name)
    counts = "0.8 counts" if published else "trained for fewer steps: more than half counts"
    return Claim(
        name=f"{figure}-{name}-every-head",
        figure=figure.replace("fig", "Fig. "),
        statement=f"{label_of(name)}: every head of the first layer looks at the token itself and the "
        "previous one (least share of attention of a head on the two)",
        measured=_over_seeds(shares, least=True) if shares else None,
        recipes=(name,),
        low=0.8 if published else 0.5,
        basis=f"{heads} in the released weights, {counts}",
    )


def _near_claims(lab: Laboratory, recipes: Sequence[str], figure: str) -> Iterable[Claim]:
    """Judge whether heads look nearby, and further back where states are partially observed."""
    where = figure.replace("fig", "Fig. ")
    by_task = {RECIPES[name].task: first_maps(lab, name) for name in recipes}
    for name in recipes:
        task = RECIPES[name].task
        near = [near_mass(maps, NEAR[task]) for maps in by_task[task]]
        yield Claim(
            name=f"{figure}-{name}-near",
            figure=where,
            statement=f"{label_of(name)}, {task} task: the first layer looks at the last {NEAR[task]} "
            "tokens (share of attention on them, mean over heads)",
            measured=_over_seeds(near) if near else None,
            recipes=(name,),
            low=0.5,
            basis="pictures without numbers: more than on all others counts",
        )
    further = None
    if by_task["linear"] and by_task["partial"]:
        seen, hidden = (
            _over_seeds([maps.masses[..., 2:].sum(-1) for maps in by_task[task]])
            for task in ("linear", "partial")
        )
        further = hidden - seen
    yield Claim(
        name=f"{figure}-partial-looks-further",
        figure=where,
        statement="Where states are partially observed the first layer looks further back than where "
        "they are seen (share of attention two to four tokens back, mean over heads, difference)",
        measured=further,
        recipes=tuple(name for name in recipes if RECIPES[name].task in ("linear", "partial")),
        low=0.1,
        basis="four to five tokens are bound instead of two, by the published probes; a tenth of "
        "all attention more counts",
    )


def _map_settings(lab: Laboratory) -> dict[str, Any]:
    return {"test sequences": lab.settings.map_sequences}


_TRANSFORMERS = ("tf-7", "tf-7-partial", "tf-7-nonlinear")
_HYBRIDS = ("hybrid-mesa", "hybrid-mesa-partial", "hybrid-mesa-nonlinear")


def _fig15_claims(lab: Laboratory) -> Iterable[Claim]:
    yield _every_head_claim(lab, "hybrid-mesa", "fig15")
    yield from _near_claims(lab, _HYBRIDS, "fig15")


fig14 = Figure(
    name="fig14",
    title="Fig. 14: where the first layers of seven softmax layers look",
    summary="where the first layers of transformers look",
    caption=_CAPTION
    + (
        "That figure 14 shows the transformers, and figure 15 the models with a mesa layer, is our "
        "reading; we have no numbers of either but for the first model, which figure 3 judges."
    ),
    recipes=_TRANSFORMERS,
    panels=tuple(map(_maps_panel, _TRANSFORMERS)),
    layout=stack(_maps_layout),
    settings=_map_settings,
    claims=lambda lab: _near_claims(lab, _TRANSFORMERS, "fig14"),
    seconds=_seconds(5.0),
)
fig15 = Figure(
    name="fig15",
    title="Fig. 15: where the softmax layers in front of mesa layers look",
    summary="where the softmax layers in front of mesa layers look",
    caption=_CAPTION
    + (
        "That figure 15 shows the models with a mesa layer, and figure 14 the transformers, is our "
        "reading."
    ),
    recipes=_HYBRIDS,
    panels=tuple(map(_maps_panel, _HYBRIDS)),
    layout=stack(_maps_layout),
    settings=_map_settings,
    claims=_fig15_claims,
    seconds=_seconds(5.0),
)


def _measure_fig3(lab: Laboratory) -> PanelData | None:
    if not lab.trained("tf-7"):
        return None
    of_seeds = first_maps(lab, "tf-7")
    rows = [
        pattern_row("A", f"head {head}", f"{back} tokens back", share)
        for head, shares in enumerate(of_seeds[0].mass.tolist(), start=1)
        for back, share in zip(of_seeds[0].offsets, shares, strict=True)
    ]
    more = {
        "maps": _pixels(of_seeds[0]),
        "near": near_mass(of_seeds[0], 2).mean(0).tolist(),
        "seeds": [
            {"shares": maps.mass.tolist(), "errors": maps.mass_error.tolist()} for maps in of_seeds
        ],
    }
    return PanelData(rows=rows, more=more)


def _draw_fig3(part: SubFigure, data: PanelData) -> None:
    part.suptitle("A: the first of seven softmax layers", fontsize=10)
    heads = len(data.more["maps"])
    *pictures, right = part.subplots(1, heads + 1, width_ratios=[1] * heads + [1.1])
    _draw_heads(pictures, data.more["maps"], data.more["near"])
    _draw_shares(right, data.more["seeds"])


def _draw_shares(axes: Axes, seeds: Sequence[dict[str, Any]]) -> None:
    """Draw the shares of the token itself and the previous one, heads ordered by the former."""
    published = torch.tensor(sorted(ATTENTION_SHARES["tf-7"]))  # [H, 2]
    places = torch.arange(1, len(published) + 1)
    for back, (color, label) in enumerate(((PALETTE[0], "itself"), (PALETTE[1], "previous"))):
        for number, seed in enumerate(seeds):
            shares, errors = torch.tensor(seed["shares"]), torch.tensor(seed["errors"])
            order = shares[:, 0].argsort()
            across = places + 0.12 * (number - (len(seeds) - 1) / 2)
            axes.errorbar(
                across,
                shares[order, back],
                yerr=1.96 * errors[order, back],
                fmt=".",
                ms=6,
                color=color,
                label=label if number == 0 else None,
            )
        axes.plot(places, published[:, back], "o", mfc="none", ms=7, color=color)
    axes.set(ylim=(-0.05, 1.38), xticks=places.tolist(), yticks=[0, 0.5, 1], xlabel="head")
    axes.tick_params(labelsize=7)
    axes.set_title("shares", fontsize=8, pad=2)
    axes.legend(fontsize=7, loc="upper left", handletextpad=0.2, borderpad=0.1, labelspacing=0.2)


def _previous_head(maps: Sequence[AttentionMaps]) -> Estimate:
    """Estimate the largest share of a head on the previous token."""
    heads = [one.mass[:, 1].argmax() for one in maps]
    return Estimate.of(torch.stack([m.masses[:, h, 1] for m, h in zip(maps, heads, strict=True)]))


def _previous_head_claim(lab: Laboratory) -> Claim:
    maps = first_maps(lab, "tf-7")
    return Claim(
        name="fig3-previous-head",
        figure="Fig. 3A",
        statement="A head of the first layer looks at the previous token above all (its share of "
        "attention, the largest of the heads)",
        measured=_previous_head(maps) if maps else None,
        recipes=("tf-7",),
        low=0.5,
        basis="0.847 in the released weights; more than on all others counts",
    )


def _fig3_claims(lab: Laboratory) -> Iterable[Claim]:
    yield _every_head_claim(lab, "tf-7", "fig3")
    yield _previous_head_claim(lab)
    yield from pattern_claims(lab)


fig3 = Figure(
    name="fig3",
    title="Fig. 3: the first layer binds neighbours; one linear layer is a gradient step",
    summary="where the first softmax layer looks, the weights of one linear layer",
    caption=(
        "A: mean attention maps of the first of seven softmax layers over test sequences, a picture "
        "per head; rows are the positions that look, white is 0, dark is 1, the last eight larger in "
        "the corner; above each the share of the token itself and the previous one, over positions "
        "from the sixth on. To the right the shares of both, heads ordered by that of the token itself, "
        "seeds next to one another; circles are those of the authors' released weights. B: the products "
        "of weights of both heads of one linear layer, first seed, and those of Proposition 1, each in "
        "its own colours from negative (red) to positive (blue); both products of a head may change "
        "their signs together, and are drawn with a positive P W_v. Rows of W_k^T W_q are the slots of a "
        "key token, columns those of a query token; rows of P W_v are what is written, columns the value "
        "token. Figure 13 has them larger."
    ),
    recipes=("tf-7", "lsa-1"),
    panels=(Panel(name="A", measure=_measure_fig3, draw=_draw_fig3), pattern_panel),
    layout=stack(lambda data: 2.2 if "maps" in data.more else 4.0),
    settings=_map_settings,
    claims=_fig3_claims,
    seconds=_seconds(1.0),
)
