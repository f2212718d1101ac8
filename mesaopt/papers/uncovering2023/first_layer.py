"""What figures 3A, 14 and 15 share: where the heads of first layers look."""

from collections.abc import Sequence
from typing import Any

import torch
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from torch import Tensor

from mesaopt.analysis import AttentionMaps, attention_maps
from mesaopt.papers.claims import STANDARD_ERRORS, Claim
from mesaopt.papers.figures import GRID, INK, PALETTE, FigureResult
from mesaopt.papers.plan import Plan, Report, Results
from mesaopt.papers.uncovering2023.curves import label_of, trained_as_published
from mesaopt.papers.uncovering2023.laboratory import Laboratory
from mesaopt.papers.uncovering2023.noise import mean_and_error
from mesaopt.tasks import make_task
from mesaopt.training import Run

PART = "blocks.0.mixer"
OFFSETS = (0, 1, 2, 3, 4)
"""Tokens back whose share of attention is measured."""

NEAR = {"linear": 2, "partial": 5, "nonlinear": 2}
"""Tokens that have to be bound, by task: the two of a pair of states; with partial observation up to five,
which is as many as the published probes recover."""

PUBLISHED: dict[str, tuple[tuple[float, float], ...]] = {
    "tf-7": ((0.586, 0.236), (0.442, 0.518), (0.020, 0.847), (0.975, 0.024)),
    "hybrid-mesa": ((0.53, 0.41), (0.65, 0.32), (0.54, 0.41), (0.32, 0.61)),
}
"""Shares of attention on the token itself and on the previous one, by head: computed from the authors'
released weights, positions from the sixth on; not printed in the paper."""

COLORS = LinearSegmentedColormap.from_list("shares", ["white", PALETTE[0], "#0b2545"])

_COLUMNS = 4  # of pictures
_SEQUENCES = {"smoke": 64, "small": 2048, "paper": 2048}


def seconds(plan: Plan, weight: float) -> float:
    """Guess the time a figure takes.

    Args:
        plan: says the scale.
        weight: of its models, 1 for a first layer of four heads.

    Returns:
        Seconds.
    """
    return 1.0 + {"smoke": 0.1, "small": 2.0, "paper": 6.0}[plan.scale] * weight


def task_of(recipe: str) -> str:
    """Say which task a recipe of this paper is trained on.

    Example:
        >>> task_of("tf-7-partial"), task_of("tf-7")
        ('partial', 'linear')
    """
    return next((task for task in ("partial", "nonlinear") if recipe.endswith(task)), "linear")


def measure(
    laboratory: Laboratory, names: Sequence[str], report: Report
) -> dict[str, list[AttentionMaps]]:
    """Average the maps of every run's first layer over test sequences.

    Args:
        laboratory: the runs.
        names: recipes, those there are.
        report: told the runs done.

    Returns:
        By recipe, one per seed.
    """
    runs = {name: laboratory.runs[name] for name in names if name in laboratory.runs}
    count = _SEQUENCES[laboratory.plan.scale]
    total, done = count * sum(map(len, runs.values())), 0
    found: dict[str, list[AttentionMaps]] = {name: [] for name in runs}
    for name, of_seeds in runs.items():
        for run in of_seeds:
            found[name].append(_maps(run, count, lambda n, done=done: report(done + n, total)))
            done += count
    return found


def near_mass(maps: AttentionMaps, near: int) -> Tensor:
    """Share of the nearest tokens together, [sequence, head]."""
    return maps.masses[..., :near].sum(-1)


def draw_heads(
    axes: Sequence[Axes], maps: AttentionMaps, name: str, *, near: int
) -> list[dict[str, Any]]:
    """Draw the mean map of each head with its share of the nearest tokens above it.

    Args:
        axes: one for each head.
        maps: of one run.
        name: recipe, for the table.
        near: how many nearest tokens count.

    Returns:
        The numbers drawn: the shares.
    """
    rows = []
    together = near_mass(maps, near).mean(0).tolist()
    for head, (place, mean) in enumerate(zip(axes, maps.mean, strict=True)):
        length = len(mean)
        place.imshow(
            mean.numpy(), cmap=COLORS, vmin=0, vmax=1, interpolation="nearest",
            extent=(0.5, length + 0.5, length + 0.5, 0.5),
        )  # fmt: skip
        place.set_title(f"{together[head]:.2f}", fontsize=8, pad=2)
        place.grid(visible=False)
        place.tick_params(length=2, labelsize=6.5, pad=1)
        place.set_xticks([1, length // 2, length])
        place.set_yticks([1, length // 2, length] if head == 0 else [])
        _enlarge_end(place, mean)
        rows += [
            {"recipe": name, "head": head + 1, "tokens back": back, "share": share, "error": error}
            for back, share, error in zip(
                maps.offsets, maps.mass[head].tolist(), maps.mass_error[head].tolist(), strict=True
            )
        ]
    return rows


def _enlarge_end(axes: Axes, mean: Tensor, size: int = 8) -> None:
    """Draw the last positions again, in the empty corner."""
    inset = axes.inset_axes((0.5, 0.5, 0.5, 0.5))
    inset.imshow(mean[-size:, -size:].numpy(), cmap=COLORS, vmin=0, vmax=1, interpolation="nearest")
    inset.set(xticks=[], yticks=[])
    inset.grid(visible=False)
    inset.spines[["top", "right"]].set_visible(True)
    inset.spines[:].set(color=GRID, lw=0.8)


def _draw_offsets(axes: Axes, maps: AttentionMaps) -> None:
    """Draw how far back every head looks."""
    for shares in maps.mass:
        axes.plot(maps.offsets, shares, ".-", lw=0.8, ms=3, color=PALETTE[0], alpha=0.6)
    axes.plot(maps.offsets, maps.mass.mean(0), ".-", color=INK, label="mean of heads")
    axes.set(xlabel="tokens back", ylim=(-0.03, 1.03), xticks=maps.offsets)
    axes.set_title("share of attention", fontsize=8, pad=2)
    axes.tick_params(labelsize=7)
    axes.legend(fontsize=7)


def draw_models(
    laboratory: Laboratory,
    found: dict[str, list[AttentionMaps]],
    *,
    number: int,
    title: str,
    caption: str,
) -> FigureResult:
    """Draw the maps of several models, one below the other, and how far back their heads look.

    Args:
        laboratory: knows the plan.
        found: by recipe, one per seed; the first is drawn.
        number: of the figure.
        title: of the figure.
        caption: what is to be said besides what the figures have in common.

    Returns:
        The figure.
    """
    lines = {name: -(-len(maps[0].mean) // _COLUMNS) for name, maps in found.items()}
    heights = [0.35 + 1.35 * count for count in lines.values()]
    figure = Figure(figsize=(7.6, sum(heights)))
    parts = figure.subfigures(len(found), 1, squeeze=False, height_ratios=heights)[:, 0]
    rows = []
    for part, (name, maps) in zip(parts, found.items(), strict=True):
        near = NEAR[task_of(name)]
        part.suptitle(
            f"{label_of(name)}, {task_of(name)} task: share of the last {near} tokens", fontsize=9.5
        )
        grid = part.add_gridspec(lines[name], _COLUMNS + 2)
        heads = range(len(maps[0].mean))
        axes = [part.add_subplot(grid[head // _COLUMNS, head % _COLUMNS]) for head in heads]
        rows += draw_heads(axes, maps[0], name, near=near)
        _draw_offsets(part.add_subplot(grid[:, _COLUMNS:]), maps[0])
    return FigureResult(
        id=f"uncovering2023-fig{number}",
        title=title,
        caption=(
            "Mean attention maps of the first layer, a picture per head: rows are the positions that "
            "look, columns the tokens looked at, white is 0, dark is 1, the last eight larger in the "
            "corner. Above each, the share of the nearest tokens, over positions from the sixth on; to "
            "the right, shares by tokens back. First seed; which head is which is chance. "
            f"{caption}"
        ),
        settings=settings(laboratory, found),
        rows=rows,
        figure=figure,
    )


def settings(laboratory: Laboratory, found: dict[str, list[AttentionMaps]]) -> dict[str, Any]:
    """Say what maps were made from."""
    return {
        "scale": laboratory.plan.scale,
        "test sequences": _SEQUENCES[laboratory.plan.scale],
        "steps": {name: laboratory.runs[name][0].config.train.steps for name in found},
        "training seeds": {name: len(maps) for name, maps in found.items()},
    }


def judge_every_head(
    laboratory: Laboratory, found: dict[str, list[AttentionMaps]], name: str, figure: str
) -> list[Claim]:
    """Judge whether each head of a model looks at the token itself and the previous one, and little else.

    Args:
        laboratory: the runs.
        found: by recipe.
        name: a recipe with published shares.
        figure: where it stands.

    Returns:
        One claim, if there are runs.
    """
    if name not in found:
        return []
    published = trained_as_published(laboratory.runs[name])
    wanted = 0.8 if published else 0.5
    least, error = _over_seeds([near_mass(maps, 2) for maps in found[name]], least=True)
    heads = ", ".join(f"{a + b:.2f}" for a, b in PUBLISHED[name])
    return [
        laboratory.claim(
            f"{figure}-{name}-every-head",
            _where(figure),
            f"{label_of(name)}: every head of the first layer looks at the token itself and the previous "
            "one (least share of attention of a head on the two)",
            value=least,
            low=wanted - STANDARD_ERRORS * error,
            basis=f"{heads} in the released weights, "
            + (
                "0.8 counts"
                if published
                else "trained for fewer steps: more than on all others counts"
            )
            + f", and {STANDARD_ERRORS:g} standard errors of {error:.2g}",
        )
    ]


def judge_models(
    laboratory: Laboratory, found: dict[str, list[AttentionMaps]], figure: str
) -> list[Claim]:
    """Judge whether heads look nearby, and further back where states are partially observed.

    Args:
        laboratory: knows the plan.
        found: by recipe.
        figure: where it stands.

    Returns:
        The claims.
    """
    claims = []
    for name, of_seeds in found.items():
        near = NEAR[task_of(name)]
        share, error = _over_seeds([near_mass(maps, near) for maps in of_seeds])
        claims.append(
            laboratory.claim(
                f"{figure}-{name}-near",
                _where(figure),
                f"{label_of(name)}, {task_of(name)} task: the first layer looks at the last {near} tokens "
                "(share of attention on them, mean over heads)",
                value=share,
                low=0.5 - STANDARD_ERRORS * error,
                basis="pictures without numbers: more than on all others counts, and "
                f"{STANDARD_ERRORS:g} standard errors of {error:.2g}",
            )
        )
    by_task = {task_of(name): of_seeds for name, of_seeds in found.items()}
    if {"linear", "partial"} <= set(by_task):
        (seen, seen_error), (hidden, hidden_error) = (
            _over_seeds([maps.masses[..., 2:].sum(-1) for maps in by_task[task]])
            for task in ("linear", "partial")
        )
        error = (seen_error**2 + hidden_error**2) ** 0.5
        claims.append(
            laboratory.claim(
                f"{figure}-partial-looks-further",
                _where(figure),
                "Where states are partially observed the first layer looks further back than where they "
                "are seen (share of attention two to four tokens back, mean over heads, difference)",
                value=hidden - seen,
                low=0.1 - STANDARD_ERRORS * error,
                basis="four to five tokens are bound instead of two, by the published probes; a tenth of "
                f"all attention more counts, and {STANDARD_ERRORS:g} standard errors of {error:.2g}",
            )
        )
    return claims


def results(
    laboratory: Laboratory, names: Sequence[str], report: Report, **drawn: Any
) -> tuple[Results, dict[str, list[AttentionMaps]]]:
    """Measure, draw and judge the first layers of several models.

    Args:
        laboratory: the runs.
        names: recipes, those there are.
        report: told the sequences done.
        **drawn: number, title and caption, see :func:`draw_models`.

    Returns:
        The figure and the claims, nothing without runs; and the maps.
    """
    found = measure(laboratory, names, report)
    if not found:
        return Results(figures=[], claims=[]), found
    figure = draw_models(laboratory, found, **drawn)
    claims = judge_models(laboratory, found, f"fig{drawn['number']}")
    return Results(figures=[figure], claims=claims), found


def _maps(run: Run, count: int, report: Any) -> AttentionMaps:
    tokens = make_task(run.config.task).sample(count, seed=0, split="test").tokens
    return attention_maps(
        run.model.cpu(),
        tokens,
        name=PART,
        offsets=OFFSETS,
        on_progress=lambda done, _: report(done),
    )


def _over_seeds(shares: Sequence[Tensor], *, least: bool = False) -> tuple[float, float]:
    """Mean over seeds of the mean or the least of heads, and its standard error over both."""
    chosen = []
    for of_heads in shares:  # [sequence,head]
        head = of_heads.mean(0).argmin()
        chosen.append(of_heads[:, head] if least else of_heads.mean(1))
    values = torch.stack(chosen)  # [seed,sequence]
    mean, error = mean_and_error(values)
    return mean.item(), error.item()


def _where(figure: str) -> str:
    return figure.replace("fig", "Fig. ")
