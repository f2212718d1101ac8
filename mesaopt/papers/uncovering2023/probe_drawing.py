"""How the probing figures are drawn: held out, with controls, beside numbers measured as published."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap, to_hex
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from mesaopt.analysis import ProbeScore
from mesaopt.papers.figures import PALETTE
from mesaopt.papers.uncovering2023.curves import Rows
from mesaopt.papers.uncovering2023.probing import LAST, TOKENS, Key, Probed, layer_of

_DEPTH = LinearSegmentedColormap.from_list("depth", [PALETTE[1], "#b9bdc4", PALETTE[0]])


def depth_color(share: float) -> str:
    """Give the colour of a layer, orange for the first (0) and blue for the last (1).

    Example:
        >>> depth_color(0.0) == PALETTE[1]
        True
    """
    return to_hex(_DEPTH(share))


HELD_OUT_CAPTION = (
    "Held out means fitted on validation and scored on test sequences; bars are 95 % intervals, thin "
    "lines training seeds where there are several. The same 256 sequences, without an intercept, is "
    "what the authors measure, and their numbers belong to that; it is too good. The mean of the "
    "fitting targets reads nothing; crosses are probes fitted to targets of other sequences. "
)

_STYLES: dict[str, dict[str, Any]] = {
    "held out": {"marker": "."},
    "same 256 sequences": {"ls": "--", "lw": 1},
    "as published": {"ls": "", "marker": "o", "mfc": "none", "ms": 5},
    "reads nothing": {"ls": ":", "lw": 1},
    "shuffled": {"ls": "", "marker": "x", "ms": 4, "alpha": 0.6},
}
"""How a line looks, by what it shows."""


def style_legend(figure: Figure, *, published: bool = True, **more: str) -> None:
    """Say below a figure what its kinds of lines show.

    Args:
        figure: where.
        published: whether it has published numbers.
        **more: colours, by what they are the colour of; with _ for a space.
    """
    kinds = {k: v for k, v in _STYLES.items() if published or k != "as published"}
    lines = [Line2D([], [], color=PALETTE[5], label=k, **v) for k, v in kinds.items()]
    lines += [Line2D([], [], color=c, label=k.replace("_", " ")) for k, c in more.items()]
    figure.legend(handles=lines, loc="outside lower center", ncols=5)


def draw_depth(
    axes: Axes,
    probed: Probed,
    target: str,
    positions: Mapping[int, str],
    published: Mapping[int, Sequence[float]],
) -> Rows:
    """Draw a target's error by depth, at some positions.

    Args:
        axes: where.
        probed: of one recipe.
        target: which.
        positions: to draw, with their colours.
        published: errors by position, before the first layer and behind each.

    Returns:
        The numbers drawn.
    """
    rows: Rows = []
    layers = [layer_of(name) for name in probed.names]
    for position, color in positions.items():
        scores = [probed.score(target, name, position) for name in probed.names]
        official = [probed.in_sample(target, name, position)[0] for name in probed.names]
        axes.errorbar(
            layers,
            [s.mean for s in scores],
            yerr=_half_widths(scores),
            color=color,
            **_STYLES["held out"],
        )
        for table in probed.tables if len(probed.tables) > 1 else []:
            by_depth = table.by_depth(target, position).values()
            axes.plot(layers, [s.mean for s in by_depth], color=color, lw=0.5, alpha=0.5)
        theirs = published.get(position)
        controls = {
            "same 256 sequences": official,
            "reads nothing": [s.uninformative for s in scores],
            "shuffled": [s.shuffled for s in scores],
        }
        for what, values in (controls | ({"as published": theirs} if theirs else {})).items():
            axes.plot(layers, values, color=color, **_STYLES[what])
        rows += [
            _row(f"{target}, by depth", probed, (target, name, position), 1.0, value)
            for name, value in zip(probed.names, theirs or [None] * len(layers), strict=True)
        ]
    axes.set(yscale="log", xlabel="layer (0: input)", xticks=layers)
    return rows


def draw_along(axes: Axes, probed: Probed, target: str) -> Rows:
    """Draw a target's held-out error by position, one line per layer.

    Args:
        axes: where.
        probed: of one recipe.
        target: which.

    Returns:
        The numbers drawn.
    """
    rows: Rows = []
    depth = max(layer_of(name) for name in probed.names)
    for name in probed.names:
        keys = [(target, name, t) for t in probed.positions]
        layer = layer_of(name)
        scores = [probed.score(*key) for key in keys]
        axes.errorbar(
            probed.positions,
            [s.mean for s in scores],
            yerr=_half_widths(scores),
            color=depth_color(layer / depth),
            lw=1.2,
            label=f"layer {layer}" if layer else "input",
        )
        rows += [_row(f"{target}, by position", probed, key) for key in keys]
    nothing = [probed.score(target, probed.names[0], t).uninformative for t in probed.positions]
    axes.plot(probed.positions, nothing, color=PALETTE[5], ls=":", label="reads nothing")
    axes.set(yscale="log", xlabel="position in the sequence")
    return rows


def draw_tokens(
    axes: Axes,
    probed: Probed,
    name: str,
    *,
    color: str,
    label: str,
    what: str = "token",
    published: Mapping[int, float] | None = None,
    controls: bool = True,
) -> Rows:
    """Draw the mean square per coordinate of the tokens read at the last position.

    Args:
        axes: where.
        probed: of one recipe.
        name: part of the stream.
        color: of all its lines.
        label: of the held-out line.
        what: "token", "teacher" or "features".
        published: by token.
        controls: whether to draw the controls and what is fitted and scored on the same sequences.

    Returns:
        The numbers drawn.
    """
    keys = [(f"{what} {t}", name, LAST) for t in TOKENS]
    scores = [probed.score(*key) for key in keys]
    unit = scores[0].per_coordinate
    means = [max(unit * s.mean, _FLOOR) for s in scores]
    below, above = (unit * np.array(half) for half in _half_widths(scores))
    visible = np.array(means) > _FLOOR
    axes.errorbar(
        TOKENS,
        means,
        yerr=[below * visible, above * visible],
        color=color,
        label=label,
        lw=1.3,
        **_STYLES["held out"],
    )
    for table in probed.tables if len(probed.tables) > 1 else []:
        lone = [max(unit * table.at(*key).mean, _FLOOR) for key in keys]
        axes.plot(TOKENS, lone, color=color, lw=0.5, alpha=0.5)
    lines = {}
    if controls:
        lines["same 256 sequences"] = [unit * probed.in_sample(*key)[0] for key in keys]
        lines["reads nothing"] = [unit * s.uninformative for s in scores]
        lines["shuffled"] = [unit * s.shuffled for s in scores]
    for what_line, values in lines.items():
        axes.plot(TOKENS, np.maximum(values, _FLOOR), color=color, **_STYLES[what_line])
    theirs = published or {}
    visible_theirs = {
        t: value for t, value in theirs.items() if value > 0
    }  # 0 has no place on the axis
    if visible_theirs:
        axes.plot(
            *zip(*visible_theirs.items(), strict=True), color=color, **_STYLES["as published"]
        )
    axes.set(yscale="log", xlabel=f"{what} t'")
    return [
        _row(f"{what}, {probed.recipe}", probed, key, unit, theirs.get(t))
        for t, key in zip(TOKENS, keys, strict=True)
    ]


def draw_shares(axes: Axes, probed: Probed, targets: Mapping[str, str], position: int) -> Rows:
    """Draw the share that is read of targets, held out, by depth.

    Args:
        axes: where.
        probed: of one recipe.
        targets: which, with their colours.
        position: where along the sequence.

    Returns:
        The numbers drawn.
    """
    rows: Rows = []
    layers = [layer_of(name) for name in probed.names]
    for target, color in targets.items():
        scores = [probed.score(target, name, position) for name in probed.names]
        axes.errorbar(
            layers,
            [s.r2 for s in scores],
            yerr=[1.96 * s.unexplained.error for s in scores],
            color=color,
            label=target,
            **_STYLES["held out"],
        )
        rows += [_row("share read", probed, (target, name, position)) for name in probed.names]
    axes.set(xlabel="layer (0: input)", xticks=layers, ylim=(-0.05, 1.05))
    return rows


def _half_widths(scores: Sequence[ProbeScore]) -> list[list[float]]:
    """Give 95 % intervals for a logarithmic axis: below the mean no longer than nine tenths of it."""
    above = [1.96 * s.estimate.error for s in scores]
    return [[min(h, 0.9 * s.mean) for h, s in zip(above, scores, strict=True)], above]


_FLOOR = 1e-6  # of mean squares that are drawn on a logarithmic axis


def _row(
    panel: str, probed: Probed, key: Key, unit: float = 1.0, published: float | None = None
) -> dict[str, Any]:
    """Write one number of a table; errors are half squares, or times `unit` mean squares."""
    target, name, position = key
    score = probed.score(*key)
    measured = probed.official and key in probed.official[0]
    return {
        "panel": panel,
        "recipe": probed.recipe,
        "target": target,
        "layer": layer_of(name),
        "position": position,
        "held_out": unit * score.mean,
        "half_width_95": 1.96 * unit * score.estimate.error,
        "r2": score.r2,
        "in_sample_256": unit * probed.in_sample(*key)[0] if measured else None,
        "published": published,
        "uninformative": unit * score.uninformative,
        "shuffled": unit * score.shuffled,
    }
