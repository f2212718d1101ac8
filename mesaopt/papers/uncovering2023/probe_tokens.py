"""Figures 2, 17 and 21: the past tokens that layers hold at the last position."""

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure as Drawing

from mesaopt.analysis.estimate import Estimate
from mesaopt.looks import PALETTE
from mesaopt.papers.claims import Claim
from mesaopt.papers.figure import Figure, Panel, grid
from mesaopt.papers.rows import PanelData, split
from mesaopt.papers.uncovering2023.curves import color_of, label_of
from mesaopt.papers.uncovering2023.laboratory import COMPARED, Laboratory, network_note
from mesaopt.papers.uncovering2023.probe_drawing import (
    HELD_OUT_CAPTION,
    all_columns,
    depth_color,
    draw_curve,
    layer_label,
    style_legend,
)
from mesaopt.papers.uncovering2023.probes import (
    LAST,
    TEACHER,
    TOKENS,
    Curve,
    Key,
    Probed,
    probe_panel,
    probe_settings,
    probe_tokens,
    probe_untrained,
    probing_seconds,
    training_length,
)
from mesaopt.papers.uncovering2023.published import TEACHER_PROBES, TOKEN_PROBES
from mesaopt.recipes import RECIPES, select

_LESS = 1 / 3
"""Largest unexplained share of a bound token, as a part of that of one that is not bound, before noise."""


def _curve(
    probed: Probed, layer: int, published: Mapping[int, float | None], kind: str = "token"
) -> Curve:
    """Make a curve of the errors of "token", "teacher" or "features" by token."""
    return Curve(
        panel=f"{kind}, {probed.recipe}",
        probed=probed,
        keys=[(f"{kind} {t}", layer, LAST) for t in TOKENS],
        published=[published.get(t) for t in TOKENS],
        mean_square=True,
    )


def _first_layers(name: str, recipes: Sequence[str]) -> Panel[Laboratory]:
    """Make a panel of the tokens decoded behind first layers, compared with published numbers."""

    def curves(lab: Laboratory, recipe: str) -> list[Curve]:
        return [_curve(probe_tokens(lab, recipe), 1, TOKEN_PROBES[recipe])]

    def draw(axes: Axes, data: PanelData) -> None:
        for recipe, rows in split(all_columns(data), "recipe").items():
            draw_curve(axes, TOKENS, rows, color=color_of(recipe), label=label_of(recipe))
        _label_tokens(axes, name)

    return probe_panel(name, recipes, curves, draw)


def _all_layers(recipe: str, title: str) -> Panel[Laboratory]:
    """Make a panel of the tokens decoded behind all layers of a model."""

    def curves(lab: Laboratory, recipe: str) -> list[Curve]:
        probed, published = probe_tokens(lab, recipe), {1: TOKEN_PROBES[recipe]}
        return [_curve(probed, layer, published.get(layer, {})) for layer in probed.layers[1:]]

    def draw(axes: Axes, data: PanelData) -> None:
        depth = data.rows[-1]["layer"]
        for layer, rows in split(all_columns(data), "layer").items():
            color = _layer_color(layer, depth)
            controls, label = layer == 1, layer_label(layer)
            draw_curve(axes, TOKENS, rows, color=color, label=label, controls=controls)
        _label_tokens(axes, title, fontsize=7, ncols=2 if depth > 3 else 1)
        axes.set_xticks(TOKENS[1::2])

    return probe_panel(recipe, (recipe,), curves, draw)


def _teacher(recipe: str) -> Panel[Laboratory]:
    """Make a panel of the teacher's output decoded behind all layers, and behind the untrained first."""

    def curves(lab: Laboratory, recipe: str) -> Iterable[Curve]:
        probed = probe_tokens(lab, recipe)
        for i in probed.layers:
            published = {token: errors[i] for token, errors in TEACHER_PROBES[recipe].items()}
            yield _curve(probed, i, published, TEACHER)
        yield _curve(probe_untrained(lab, recipe), 1, {}, TEACHER)
        for i in probed.layers:  # in the table only
            yield _curve(probed, i, {}, "features")

    def draw(axes: Axes, data: PanelData) -> None:
        depth = data.rows[-1]["layer"]
        trained, untrained, _ = split(all_columns(data), "panel").values()
        for layer, rows in split(trained, "layer").items():
            color = _layer_color(layer, depth) if layer else PALETTE[5]
            label, controls = layer_label(layer), layer == 0
            draw_curve(axes, TOKENS, rows, color=color, label=label, controls=controls)
        style = {"color": PALETTE[4], "label": "layer 1, untrained"}
        draw_curve(axes, TOKENS, untrained, controls=False, **style)
        _label_tokens(axes, label_of(recipe), fontsize=7, ncols=2)

    return probe_panel(recipe, (recipe,), curves, draw)


def _layer_color(layer: int, depth: int) -> str:
    return depth_color((layer - 1) / max(depth - 1, 1))


def _label_tokens(axes: Axes, title: str, **legend: Any) -> None:
    axes.set(title=title, xticks=list(TOKENS), xlabel="token t'")
    axes.legend(loc="lower left", **legend)


def _label_first(drawing: Drawing) -> None:
    drawing.axes[0].set_ylabel("mean square per coordinate")


def _finish(drawing: Drawing) -> None:
    _label_first(drawing)
    style_legend(drawing)


def _bound_claim(lab: Laboratory, recipe: str, tokens: range, high: float, basis: str) -> Claim:
    """Judge the published numbers of a model trained in full, measured as they were."""
    these = f"token {tokens[0]}" if len(tokens) == 1 else f"tokens {tokens[0]} to {tokens[-1]}"
    return lab.claim(
        recipe,
        measure=lambda: _largest_error(probe_tokens(lab, recipe), tokens),
        name=f"fig2-{recipe}-bound-tokens",
        figure="Fig. 2A",
        statement=f"{recipe}: {these} can be decoded behind the first layer (largest mean square of a "
        "probe fitted and scored on the same 256 sequences)",
        high=high,
        basis=f"{basis}; {training_length(lab, recipe)}",
    )


def _largest_error(probed: Probed, tokens: range) -> Estimate:
    """Give the largest mean square per coordinate of these tokens, fitted and scored as published."""
    errors = [probed.in_sample((f"token {t}", 1, LAST)) for t in tokens]
    worst = max(errors, key=lambda error: error.value)
    unit = probed.score(("token 50", 1, LAST)).per_coordinate
    return Estimate(unit * worst.value, unit * worst.error)


_QUARTER = "published; less than a quarter more counts"
_BOUND = {
    "tf-7": (range(49, 50), 0.005, "0.0004 published; 0.005 counts as decoded"),
    "hybrid-mesa": (range(49, 50), 0.006, "0.0048 published, and a quarter"),
    "tf-7-partial": (range(47, 51), 0.03, f"0.0258 {_QUARTER}"),
    "hybrid-mesa-partial": (range(46, 51), 0.055, f"0.0463 {_QUARTER}"),
}
"""Decodable tokens, by recipe, the largest mean square that counts as decoded, and why."""


def _token_shares(lab: Laboratory, recipe: str) -> tuple[Estimate | None, ...]:
    """Give the unexplained shares of tokens 49 and 48, and of 49 over the smaller of 43 and 44."""
    if lab.lacks(recipe):
        return None, None, None
    probed = probe_tokens(lab, recipe)
    previous, two_back, *oldest = (
        probed.unexplained((f"token {t}", 1, LAST)) for t in (49, 48, 43, 44)
    )
    return previous, two_back, previous / min(oldest, key=lambda unexplained: unexplained.value)


def _first_layer_claims(lab: Laboratory, recipe: str) -> Iterable[Claim]:
    """Judge whether the first layer binds the tokens that the task needs, and no others."""
    trained = training_length(lab, recipe)
    previous, two_back, over_oldest = _token_shares(lab, recipe)
    yield Claim(
        name=f"fig2-{recipe}-previous-token",
        figure="Fig. 2A",
        statement=f"{recipe}: the previous token can be decoded behind the first layer (unexplained share "
        "of its variance, held out)",
        measured=previous,
        recipes=(recipe,),
        high=0.25,
        basis=f"0.0001 to 0.02 published for full training; a quarter counts; {trained}",
    )
    if RECIPES[recipe].task == "linear":
        yield Claim(
            name=f"fig2-{recipe}-old-tokens",
            figure="Fig. 2A",
            statement=f"{recipe}: tokens six and seven steps back cannot be decoded behind the first "
            "layer, unlike the previous one (its unexplained share over the smaller of theirs, held out)",
            measured=over_oldest,
            recipes=(recipe,),
            high=_LESS,
            basis=f"0.0016 and 0.018 published; a third counts; {trained}",
        )
        return
    yield Claim(
        name=f"fig2-{recipe}-two-back",
        figure="Fig. 2A",
        statement=f"{recipe}: the token two steps back can be decoded behind the first layer as well "
        "(unexplained share of its variance, held out)",
        measured=two_back,
        recipes=(recipe,),
        high=0.5,
        basis=f"0.0002 to 0.001 published for full training; half counts; {trained}",
    )


def _fig2a_claims(lab: Laboratory) -> Iterable[Claim]:
    for recipe, bound in _BOUND.items():
        if lab.as_published(recipe):
            yield _bound_claim(lab, recipe, *bound)
        yield from _first_layer_claims(lab, recipe)


fig2a = Figure(
    name="fig2a",
    title=f"Fig. 2A: tokens t' decoded from the first layer's output at position {LAST}",
    summary="past tokens, decoded behind first layers",
    caption=(
        f"{HELD_OUT_CAPTION}Mean squares are drawn down to 1e-6. The authors' models here had 20,000 "
        "steps, those with a mesa layer 12,000. Behind the softmax layer of hybrid-mesa errors have heavy "
        "tails: for the previous token the authors' weights have 0.0048 in sample on 256 sequences, 0.0068 "
        "on 2560 and 0.0120 held out, far more apart than the 40 of 256 of a Gaussian stream."
    ),
    recipes=tuple(_BOUND),
    panels=(
        _first_layers("fully observed", ("tf-7", "hybrid-mesa")),
        _first_layers("partial observation", COMPARED["partial"]),
    ),
    layout=grid(2, height=4.2, sharey=True),
    finish=_finish,
    settings=probe_settings,
    claims=_fig2a_claims,
    seconds=probing_seconds(4),
)


def _fig2b_claims(lab: Laboratory) -> Iterable[Claim]:
    why = "0.04 to 0.14 published, 2 and 7 for initial weights of ours; half counts"
    for recipe in COMPARED["nonlinear"]:
        note = network_note(lab, recipe)
        for token in (49, LAST):
            yield lab.claim(
                recipe,
                measure=partial(_gain_of_training, lab, recipe, (f"{TEACHER} {token}", 1, LAST)),
                name=f"fig2b-{recipe}-teacher-{token}",
                figure="Fig. 2B",
                statement=f"{recipe}: the teacher's output for token {token} is decoded better behind the "
                "trained first layer than behind the untrained one (ratio of held-out errors)",
                high=0.5,
                basis="; ".join(filter(None, (why, training_length(lab, recipe), note))),
            )


def _gain_of_training(lab: Laboratory, recipe: str, key: Key) -> Estimate:
    """Give the error of a probe of the trained models over that of the untrained ones."""
    return probe_tokens(lab, recipe).ratio(key, key, probe_untrained(lab, recipe))


fig2b = Figure(
    name="fig2b",
    title=f"Fig. 2B: the teacher's output MLP(s) for token t', decoded at position {LAST}",
    summary="the teacher's output for past tokens, decoded behind all layers",
    caption=(
        f"Before division by its norm, by our own draw of the teacher. {HELD_OUT_CAPTION}Red: behind the "
        "first layer with its initial weights. Random features of a token, too, tell much of the teacher's "
        "output for it. Dashed lines and controls are those of the input only. The table also has the "
        "explained shares of the output divided by its norm."
    ),
    recipes=COMPARED["nonlinear"],
    panels=tuple(map(_teacher, COMPARED["nonlinear"])),
    layout=grid(2, height=4.2, sharey=True),
    finish=_finish,
    settings=probe_settings,
    claims=_fig2b_claims,
    seconds=probing_seconds(4),
)


def _fig17_claims(lab: Laboratory) -> Iterable[Claim]:
    softmax, linear = "hybrid-mesa", "full-mesa-published"

    def previous_token(recipe: str) -> Estimate:
        return probe_tokens(lab, recipe).unexplained(("token 49", 1, LAST))

    yield lab.claim(
        softmax,
        linear,
        measure=lambda: previous_token(softmax) / previous_token(linear),
        name="fig17-full-mesa-binds-nothing",
        figure="Fig. 17C",
        statement="Without softmax in the first layer the previous token is not bound (its unexplained "
        "share behind the softmax layer of hybrid-mesa over that behind the linear one, held out)",
        high=_LESS,
        basis="0.0048 of 0.206 published, 0.02; a third counts; "
        + training_length(lab, "full-mesa-published"),
    )


fig17 = Figure(
    name="fig17",
    title=f"Fig. 17: tokens t' decoded from the stream at position {LAST}, three models",
    summary="past tokens, decoded behind all layers of three models",
    caption=(
        f"From the first layer (orange) to the last (blue). {HELD_OUT_CAPTION}Circles and dashed lines "
        "are those of the first layer; the authors' models had 20,000, 12,000 and 3,500 steps. What they "
        "call full-mesa begins with linear attention. The figure's own axis says R2; the text, and these "
        "numbers, say mean square."
    ),
    recipes=("tf-7", "hybrid-mesa", "full-mesa-published"),
    panels=(
        _all_layers("tf-7", label_of("tf-7")),
        _all_layers("hybrid-mesa", label_of("hybrid-mesa")),
        _all_layers("full-mesa-published", "linear, then mesa"),
    ),
    layout=grid(3, height=4.2, sharey=True),
    finish=_finish,
    settings=probe_settings,
    claims=_fig17_claims,
    seconds=probing_seconds(1),
)


_WIDTHS = {
    recipe: (*(one.name for one in select(architecture=architecture, variant="width")), recipe)
    for recipe, architecture in (("tf-7-partial", "tf-7"), ("hybrid-mesa-partial", "hybrid-mesa"))
}
"""Recipes of all widths, from the narrowest stream to the widest, by the widest."""


def _by_width(widest: str) -> Panel[Laboratory]:
    """Make a panel of the tokens decoded behind the first layers of streams of several widths."""
    recipes = _WIDTHS[widest]

    def curves(lab: Laboratory, recipe: str) -> list[Curve]:
        return [_curve(probe_tokens(lab, recipe), 1, {})]

    def draw(axes: Axes, data: PanelData) -> None:
        for recipe, rows in split(all_columns(data), "recipe").items():
            color = depth_color(recipes.index(recipe) / (len(recipes) - 1))
            decodable = sum(max(row["r2"], 0.0) for row in rows)
            label = f"width {RECIPES[recipe].width}: {decodable:.1f} tokens"
            draw_curve(axes, TOKENS, rows, color=color, label=label, controls=False)
        _label_tokens(axes, label_of(widest))

    return probe_panel(widest, recipes, curves, draw)


def _fig21_claims(lab: Laboratory) -> Iterable[Claim]:
    for widest, recipes in _WIDTHS.items():
        trained = [recipe for recipe in recipes if lab.trained(recipe)]
        if len(trained) < 2:
            trained = recipes
        narrow, wide = RECIPES[trained[0]], RECIPES[trained[-1]]
        most = narrow.width // narrow.dim
        yield lab.claim(
            wide.name,
            narrow.name,
            measure=partial(_more_tokens, lab, wide.name, narrow.name),
            name=f"fig21-{widest}-wider-holds-more",
            figure="Fig. 21",
            statement=f"{widest}: a stream of width {wide.width} holds more past tokens than one of width "
            f"{narrow.width} (difference of the numbers of decodable tokens, held out)",
            low=1.0,
            basis=f"a stream of width {narrow.width} cannot hold more than {most} of five coordinates, "
            "and 4 to 5 are published at width 80; one more counts; "
            + training_length(lab, wide.name),
        )


def _more_tokens(lab: Laboratory, *recipes: str) -> Estimate:
    """Give by how many decodable tokens the first of two recipes exceeds the second."""
    first, second = (probe_tokens(lab, recipe).decodable_tokens(1) for recipe in recipes)
    return first - second


fig21 = Figure(
    name="fig21",
    title=f"Fig. 21: tokens t' decoded behind the first layer at position {LAST}, by width of the stream",
    summary="past tokens, by width of the stream",
    caption=(
        f"Partial observation, tokens of five coordinates. {HELD_OUT_CAPTION}The legend counts decodable "
        "tokens: the sum of the explained shares of the last eight, held out. A stream cannot hold more "
        "than a fifth of its width. Widths 5 and 15 of the authors hold no whole number of sines and "
        "cosines and are left out; no numbers of theirs are known."
    ),
    recipes=(*_WIDTHS["tf-7-partial"], *_WIDTHS["hybrid-mesa-partial"]),
    panels=(_by_width("tf-7-partial"), _by_width("hybrid-mesa-partial")),
    layout=grid(2, height=3.9, sharey=True),
    finish=_label_first,
    settings=probe_settings,
    claims=_fig21_claims,
    seconds=probing_seconds(2),
)
