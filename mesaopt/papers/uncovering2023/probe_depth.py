"""Figures 4E, 4F, 6A, 6B, 24, 25: the next token and the preconditioned input, decoded layer by layer."""

from collections.abc import Callable, Iterable, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure as Drawing

from mesaopt.looks import LOOKS, PALETTE, series
from mesaopt.papers.claims import Claim
from mesaopt.papers.figure import Figure, Panel, Places, grid
from mesaopt.papers.rows import PanelData, Rows, split
from mesaopt.papers.uncovering2023.curves import label_of
from mesaopt.papers.uncovering2023.laboratory import COMPARED, Laboratory
from mesaopt.papers.uncovering2023.probe_drawing import (
    HELD_OUT_CAPTION,
    all_columns,
    depth_color,
    draw_curve,
    draw_held_out,
    layer_label,
    seeds_of,
    style_legend,
)
from mesaopt.papers.uncovering2023.probes import (
    EXACT,
    LAST,
    NEXT,
    STEPS,
    TEACHER,
    Curve,
    Key,
    Probed,
    probe_checkpoints,
    probe_depth,
    probe_panel,
    probe_settings,
    probing_seconds,
    training_length,
)
from mesaopt.papers.uncovering2023.published import (
    NEXT_TOKEN_PROBES,
    PRECONDITIONING_PROBES,
    ByDepth,
)
from mesaopt.recipes import RECIPES

_PUBLISHED: dict[str, dict[str, ByDepth]] = {
    NEXT: NEXT_TOKEN_PROBES,
    STEPS: PRECONDITIONING_PROBES,
}
"""Published errors by target and recipe."""
_CHOSEN_BY = ("lsa-6", "tf-7")
"""Recipes by whose published errors before the first layer the preconditioned targets were chosen."""
_COLORS = {6: PALETTE[1], 21: PALETTE[2], 41: PALETTE[3], LAST: PALETTE[0]}
"""Positions that are drawn by depth, and their colours."""
_JUDGED = 21
"""Position at which errors are compared with those before the first layer. At later ones linear layers have
large activations for a few sequences, whose held-out errors outweigh the others'."""
_UNTRAINED, _TRAINED = 0.05, 0.25
"""Shares of a published number that ours may be off, before the first layer and behind the last: at one
position the error of one training varies several times as much as a mean loss, which is 1 to 3 %."""

_CAPTION = f"Half the squared error of a linear probe, by depth. {HELD_OUT_CAPTION}"
_PRECONDITIONED = (
    "The preconditioned input is that of the authors' six steps towards the inverse. On the dashed lines, "
    "sequences are left out whose target's norm is more than two standard deviations above the mean. "
)


def _by_depth(
    recipe: str, target: str, positions: Sequence[int], title: str = ""
) -> Panel[Laboratory]:
    """Make a panel of a target's error by depth, at some positions."""
    name = f"{target}, by depth"

    def curves(lab: Laboratory, recipe: str) -> Iterable[Curve]:
        probed, published = probe_depth(lab, recipe), _PUBLISHED[target].get(recipe, {})
        for position in positions:
            keys, errors = _keys(probed, target, position), published.get(position, ())
            yield Curve(panel=name, probed=probed, keys=keys, published=errors)

    def draw(axes: Axes, data: PanelData) -> None:
        for position, rows in split(all_columns(data), "position").items():
            draw_curve(axes, _layers(axes, rows), rows, color=_COLORS[position])
        axes.set(title=title or name, ylabel="error of a linear probe")

    return probe_panel(f"{recipe}, {name}", (recipe,), curves, draw)


def _by_position(recipe: str, target: str) -> Panel[Laboratory]:
    """Make a panel of a target's held-out error by position, one line per layer."""
    name = f"{target}, by position"

    def curves(lab: Laboratory, recipe: str) -> Iterable[Curve]:
        probed = probe_depth(lab, recipe)
        for layer in probed.layers:
            keys = [(target, layer, position) for position in probed.positions]
            yield Curve(panel=name, probed=probed, keys=keys)

    def draw(axes: Axes, data: PanelData) -> None:
        depth = data.rows[-1]["layer"]
        for layer, rows in split(data.rows, "layer").items():
            positions = [row["position"] for row in rows]
            if layer == 0:
                mean = [row["uninformative"] for row in rows]
                axes.plot(positions, mean, color=PALETTE[5], ls=":", label="mean prediction")
            line = {"color": depth_color(layer / depth), "label": layer_label(layer), "lw": 1.2}
            draw_held_out(axes, positions, rows, **line)
        axes.set(title=f"{target}, held out, by position", xlabel="position in the sequence")
        axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize=7.5)

    return probe_panel(f"{recipe}, {name}", (recipe,), curves, draw)


def _shares(recipe: str, position: int) -> Panel[Laboratory]:
    """Make a panel of the explained shares of preconditioned inputs, held out, by depth."""
    colors = {
        STEPS: LOOKS["preconditioned steps"].color,
        EXACT: LOOKS["least squares"].color,
    }

    def curves(lab: Laboratory, recipe: str) -> Iterable[Curve]:
        probed = probe_depth(lab, recipe)
        for target in colors:
            keys = _keys(probed, target, position)
            yield Curve(panel="share read", probed=probed, keys=keys)

    def draw(axes: Axes, data: PanelData) -> None:
        for target, rows in split(all_columns(data), "target").items():
            shares, half = ([row[c] for row in rows] for c in ("r2", "r2_half_width_95"))
            line = {"color": colors[target], "label": target, "marker": "."}
            axes.errorbar(_layers(axes, rows), shares, yerr=half, **line)
        axes.set(title=f"explained share at position {position}, held out", ylim=(-0.05, 1.05))
        axes.legend(loc="best")

    return probe_panel(f"{recipe}, explained shares", (recipe,), curves, draw)


def _keys(probed: Probed, target: str, position: int) -> list[Key]:
    return [(target, layer, position) for layer in probed.layers]


def _layers(axes: Axes, rows: Rows) -> list[int]:
    """Give the layers of a curve by depth, and label the axis with them."""
    layers = [row["layer"] for row in rows]
    axes.set(xlabel="layer (0: input)", xticks=layers)
    return layers


def _legend(*positions: int) -> Callable[[Drawing], None]:
    colors = {f"position {t}": _COLORS[t] for t in positions}
    return lambda drawing: style_legend(drawing, colors)


def _depth(lab: Laboratory, recipe: str) -> int:
    """Give the number of layers of a recipe's models."""
    configs = [run.config for run in lab.trained(recipe)] or [RECIPES[recipe].config]
    return configs[0].sequence_model.depth


def published_claims(
    lab: Laboratory, recipe: str, target: str, *, name: str, figure: str
) -> Iterable[Claim]:
    """Compare what is fitted and scored on the same 256 sequences with published numbers.

    Only before the first layer, which no training moves much, and behind the last where it was trained as
    published.
    """
    probed = None if lab.lacks(recipe) else probe_depth(lab, recipe)
    for position, errors in _PUBLISHED[target].get(recipe, {}).items():
        ends = [(0, _UNTRAINED)]
        if lab.as_published(recipe):
            ends.append((_depth(lab, recipe), _TRAINED))
        for layer, tolerance in ends:
            where = f"behind layer {layer}" if layer else "before the first layer"
            chosen = target == STEPS and layer == 0 and recipe in _CHOSEN_BY
            yield Claim(
                name=f"{name}-position-{position}-layer-{layer}",
                figure=figure,
                statement=f"{recipe}, {target} at position {position} {where}: a probe fitted and scored "
                f"on the same 256 sequences has an error of {errors[layer]:g}",
                measured=probed.in_sample((target, layer, position)) if probed else None,
                recipes=(recipe,),
                published=errors[layer],
                tolerance=tolerance * errors[layer],
                basis="how the target is made was chosen by these numbers" if chosen else "",
            )


def _falls(
    lab: Laboratory, recipe: str, target: str, *, name: str, figure: str, high: float, why: str
) -> Claim:
    """Judge whether a target is decoded better behind a layer than before the first one.

    The next token behind the last layer, the preconditioned input halfway.
    """
    depth = _depth(lab, recipe)
    layer = depth if target == NEXT else (depth + 1) // 2
    behind, before = (target, layer, _JUDGED), (target, 0, _JUDGED)
    errors = _PUBLISHED[target].get(recipe, {}).get(_JUDGED)
    fall = f"{errors[layer] / errors[0]:.2g} published for full training; " if errors else ""
    what = target if target == NEXT else "preconditioned input (six steps)"
    return lab.claim(
        recipe,
        measure=lambda: probe_depth(lab, recipe).ratio(behind, before),
        name=f"{name}-{recipe}-{'next' if target == NEXT else 'preconditioned'}-falls",
        figure=figure,
        statement=f"{recipe}: the {what} is decoded better behind layer {layer} than before the first, "
        f"at position {_JUDGED} (ratio of held-out errors)",
        high=high,
        basis=f"{fall}{why}; {training_length(lab, recipe)}",
    )


def _in_sample_optimism(lab: Laboratory, recipe: str, *, name: str) -> Claim:
    """Judge the in-sample optimism of probes for a next token of which hardly anything is known.

    The input shows s_t, of which W s_t is independent, to linear layers s_{t-1} as well: over rotations of
    dimension 10 the mean of W^2 is I / 10, so that s_{t-1} tells a hundredth of the variance of s_{t+1}.
    """
    dim = RECIPES[recipe].dim
    sees_previous = "previous" in RECIPES[recipe].config.task.token_slots
    rank, known = (2 * dim, 0.01) if sees_previous else (dim, 0.0)
    expected = (1 - rank / 256) * (1 - known)
    return lab.claim(
        recipe,
        measure=lambda: probe_depth(lab, recipe).in_sample_share((NEXT, 0, LAST)),
        name=f"{name}-{recipe}-in-sample-is-too-good",
        figure="beyond the paper",
        statement=f"{recipe}: before the first layer a probe fitted and scored on the same 256 sequences "
        f"seems to know more of the next token than the {known:.0%} there is (its error, as a share of "
        "that of the mean)",
        low=expected - 0.01,
        high=expected + 0.01,
        basis=f"1 - {rank}/256 for the {rank} directions of the input, times {1 - known:g}, and 0.01; "
        + training_length(lab, recipe),
    )


def _fig4e_claims(lab: Laboratory) -> Iterable[Claim]:
    yield from published_claims(lab, "lsa-6", NEXT, name="fig4e-lsa-6", figure="Fig. 4E")
    yield _falls(lab, "lsa-6", NEXT, high=0.5, why="half counts", name="fig4e", figure="Fig. 4E")
    yield _in_sample_optimism(lab, "lsa-6", name="fig4e")


def _fig4f_claims(lab: Laboratory) -> Iterable[Claim]:
    yield from published_claims(lab, "lsa-6", STEPS, name="fig4f-lsa-6", figure="Fig. 4F")
    yield _falls(
        lab, "lsa-6", STEPS, high=0.8, why="a fifth less counts", name="fig4f", figure="Fig. 4F"
    )


def _fig6ab_claims(lab: Laboratory) -> Iterable[Claim]:
    yield from published_claims(lab, "tf-7", NEXT, name="fig6a-tf-7-next", figure="Fig. 6A")
    yield from published_claims(lab, "tf-7", STEPS, name="fig6b-tf-7-steps", figure="Fig. 6B")
    yield _falls(lab, "tf-7", NEXT, high=0.5, why="half counts", name="fig6", figure="Fig. 6A")
    yield _falls(
        lab, "tf-7", STEPS, high=0.8, why="a fifth less counts", name="fig6", figure="Fig. 6B"
    )
    yield _in_sample_optimism(lab, "tf-7", name="fig6")


fig4e = Figure(
    name="fig4e",
    title="Fig. 4E: next token, layer by layer, of six linear layers",
    summary="the next token, decoded from linear layers",
    caption=_CAPTION,
    recipes=("lsa-6",),
    panels=(_by_depth("lsa-6", NEXT, (6, 21, LAST)), _by_position("lsa-6", NEXT)),
    layout=grid(2, height=3.9),
    finish=_legend(6, 21, LAST),
    settings=probe_settings,
    claims=_fig4e_claims,
    seconds=probing_seconds(1),
)
fig4f = Figure(
    name="fig4f",
    title="Fig. 4F: preconditioned input, layer by layer, of six linear layers",
    summary="the preconditioned input, decoded from linear layers",
    caption=f"{_CAPTION}{_PRECONDITIONED}They are those for constructed tokens.",
    recipes=("lsa-6",),
    panels=(_by_depth("lsa-6", STEPS, (6, 21, 41)), _shares("lsa-6", 41)),
    layout=grid(2, height=3.9),
    finish=_legend(6, 21, 41),
    settings=probe_settings,
    claims=_fig4f_claims,
    seconds=probing_seconds(0),
)
fig6ab = Figure(
    name="fig6ab",
    title="Fig. 6A, 6B: next token and preconditioned input, layer by layer, of seven softmax layers",
    summary="the next token and the preconditioned input, decoded from softmax layers",
    caption=f"{_CAPTION}{_PRECONDITIONED}They are those for seven layers.",
    recipes=("tf-7",),
    panels=(
        _by_depth("tf-7", NEXT, (21, LAST)),
        _by_position("tf-7", NEXT),
        _by_depth("tf-7", STEPS, (21, LAST)),
        _shares("tf-7", LAST),
    ),
    layout=grid(2, height=6.8),
    finish=_legend(21, LAST),
    settings=probe_settings,
    claims=_fig6ab_claims,
    seconds=probing_seconds(1),
)


def _both_targets(recipes: Sequence[str]) -> tuple[Panel[Laboratory], ...]:
    """Make two panels for each recipe: the next token, and what is preconditioned."""
    titles = {NEXT: "next token", STEPS: "preconditioned"}
    return tuple(
        _by_depth(recipe, target, (6, 21, LAST), f"{label_of(recipe)}: {title}")
        for recipe in recipes
        for target, title in titles.items()
    )


def _pairs(panels: Sequence[PanelData]) -> Places:
    """Lay panels out in pairs, below one another."""
    return grid(2, height=1.5 * len(panels) + 0.6)(panels)


def _fig24_claims(lab: Laboratory) -> Iterable[Claim]:
    figure = {"name": "fig24", "figure": "Fig. 24"}
    for recipe in COMPARED["partial"]:
        yield _falls(lab, recipe, NEXT, high=0.5, why="falls, no numbers; half counts", **figure)
    why = "falls and levels off, no numbers; 0.83 for an untrained model, a tenth less counts"
    for recipe in COMPARED["partial"]:
        yield _falls(lab, recipe, STEPS, high=0.75, why=why, **figure)


fig24 = Figure(
    name="fig24",
    title="Fig. 24A, 24B: next token and preconditioned input by depth, partial observation",
    summary="partial observation, decoded layer by layer",
    caption=(
        f"{_CAPTION}The input is that of five observations side by side, with a ridge of 10, as in the "
        f"authors' code. {_PRECONDITIONED}"
    ),
    recipes=COMPARED["partial"],
    panels=_both_targets(COMPARED["partial"]),
    layout=_pairs,
    finish=_legend(6, 21, LAST),
    settings=probe_settings,
    claims=_fig24_claims,
    seconds=probing_seconds(2),
)


def _fig25_claims(lab: Laboratory) -> Iterable[Claim]:
    why = (
        "0.007 published at position 50; 0.52 for random features of an untrained model, of which half "
        "counts"
    )
    for recipe in COMPARED["nonlinear"]:
        yield _falls(lab, recipe, NEXT, name="fig25", figure="Fig. 25", high=0.25, why=why)
        for target, short in ((NEXT, "next"), (STEPS, "steps")):
            name = f"fig25-{recipe}-{short}"
            yield from published_claims(lab, recipe, target, name=name, figure="Fig. 25")


fig25 = Figure(
    name="fig25",
    title="Fig. 25: next token and preconditioned features by depth, nonlinear system",
    summary="the nonlinear system, decoded layer by layer",
    caption=(
        f"{_CAPTION}The features of the true teacher are what is preconditioned. {_PRECONDITIONED}"
    ),
    recipes=COMPARED["nonlinear"],
    panels=_both_targets(COMPARED["nonlinear"]),
    layout=_pairs,
    finish=_legend(6, 21, LAST),
    settings=probe_settings,
    claims=_fig25_claims,
    seconds=probing_seconds(3),
)

_GROWING = "tf-7-nonlinear"


def _measure_growth(lab: Laboratory) -> PanelData | None:
    """Tabulate the explained share of the teacher's output by layer and optimiser step."""
    by_step = probe_checkpoints(lab, _GROWING)
    if len(by_step) < 2:
        return None
    rows: Rows = []
    seeds: list[list[float]] = []
    for layer in next(iter(by_step.values())).layers:
        key: Key = (TEACHER, layer, LAST)
        for step, probed in by_step.items():
            share, scores = probed.unexplained(key), probed.seed_scores(key)
            half = 1.96 * share.error
            rows.append(
                {"step": step, "layer": layer, "r2": 1 - share.value, "half_width_95": half}
            )
            seeds.append([score.r2 for score in scores] if len(scores) > 1 else [])
    return PanelData(rows=rows, more={"seeds": seeds})


def _draw_growth(axes: Axes, data: PanelData) -> None:
    for layer, rows in split(all_columns(data), "layer").items():
        steps, line = [row["step"] for row in rows], series(layer).line()
        shares, half = ([row[column] for row in rows] for column in ("r2", "half_width_95"))
        axes.errorbar(steps, shares, yerr=half, label=layer_label(layer), **line)
        for r2 in seeds_of(rows):
            axes.plot(steps, r2, lw=0.5, alpha=0.5, color=line["color"])
    axes.set(xlabel="optimiser step", ylabel="explained share", ylim=(None, 1.03))
    axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))


def _growth_claims(lab: Laboratory) -> Iterable[Claim]:
    by_step = {} if lab.lacks(_GROWING) else probe_checkpoints(lab, _GROWING)
    if len(by_step) == 1 or (lab.trained(_GROWING) and not by_step):
        return
    start, key, measured = min(by_step, default=0), (TEACHER, 1, LAST), None
    if by_step:
        measured = by_step[max(by_step)].ratio(key, key, by_step[start])
    yield Claim(
        name="fig25-first-layer-learns-the-teacher",
        figure="Fig. 25",
        statement="The teacher's output is decoded better behind the first layer after training than at "
        f"step {start} (ratio of held-out errors)",
        measured=measured,
        recipes=(_GROWING,),
        high=0.5,
        basis="a share of 0.99 is explained behind the trained first layer in Fig. 2B; half of what random "
        f"features leave unexplained counts; {training_length(lab, _GROWING)}",
    )


fig25_training = Figure(
    name="fig25-training",
    title="Fig. 25, while training: the teacher's output, decoded from the layers",
    summary="the nonlinear system, decoded layer by layer while training",
    caption=(
        f"Explained share of the teacher's output for the token at position {LAST}, by a linear probe of "
        "each layer there, held out, by optimiser step: mean over training seeds with 95 % intervals, "
        "seeds as thin lines where there are several. As many sequences are fitted on as are scored. The "
        "authors measure it every 1000 steps, in sample; no numbers are known."
    ),
    recipes=(_GROWING,),
    panels=(Panel(name=_GROWING, measure=_measure_growth, draw=_draw_growth),),
    layout=grid(height=3.4),
    settings=lambda lab: {"test sequences": lab.settings.probe_sequences_while_training},
    claims=_growth_claims,
    seconds={"smoke": 1.0, "small": 5.0, "paper": 20.0},
)
