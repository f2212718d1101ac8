"""Figures 2 and 17: which tokens the layers hold at the last position."""

from collections.abc import Mapping
from dataclasses import replace

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from mesaopt.papers.claims import Claim
from mesaopt.papers.figures import PALETTE, FigureResult
from mesaopt.papers.plan import Report, Results
from mesaopt.papers.uncovering2023.curves import Rows, color_of, label_of, settings_of
from mesaopt.papers.uncovering2023.laboratory import RECIPES, Laboratory
from mesaopt.papers.uncovering2023.probe_claims import (
    is_published,
    limited_claim,
)
from mesaopt.papers.uncovering2023.probe_drawing import (
    HELD_OUT_CAPTION,
    depth_color,
    draw_tokens,
    style_legend,
)
from mesaopt.papers.uncovering2023.probing import (
    LAST,
    TOKENS,
    Probed,
    layer_name,
    layer_of,
    probed_recipes,
    quotient,
    ratio,
    scored_sequences,
    token_probes,
    unread,
    untrained,
)
from mesaopt.papers.uncovering2023.published import TEACHER_PROBES, TOKEN_PROBES

LINEAR = ("tf-7", "hybrid-mesa")
THREE = (*LINEAR, "full-mesa-published")
MODELS = (*LINEAR, *RECIPES["partial"], *RECIPES["nonlinear"])

_FIRST = layer_name(1)
_PREVIOUS = ("token 49", _FIRST, LAST)
_BINDS = 1 / 3
"""Share of what is unread of a token that is not bound, at most unread of one that is, before noise."""
_UNIT = "mean square per coordinate"


def compute(laboratory: Laboratory, report: Report) -> Results:
    """Probe the first layers for tokens, and all layers for the teacher's output, draw, judge: Figure 2.

    Args:
        laboratory: the runs.
        report: told the batches of sequences done.

    Returns:
        The figures and claims.
    """
    probed = probed_recipes(laboratory, MODELS, token_probes, report)
    binding = [name for name in (*LINEAR, *RECIPES["partial"]) if name in probed]
    teacher = [name for name in RECIPES["nonlinear"] if name in probed]
    controls = {
        name: probed_recipes(untrained(laboratory, name), (name,), token_probes, report)[name]
        for name in teacher
    }
    figures = []
    if binding:
        figures.append(_draw_binding(laboratory, {name: probed[name] for name in binding}))
    if teacher:
        figures.append(
            _draw_teacher(laboratory, {name: probed[name] for name in teacher}, controls)
        )
    claims = [claim for name in binding for claim in _claims(laboratory, probed[name])]
    for name in teacher:
        claims += _teacher_claims(laboratory, probed[name], controls[name])
    return Results(figures=figures, claims=claims)


def compare_layers(laboratory: Laboratory, report: Report) -> Results:
    """Probe all layers of three models for tokens, draw: Figure 17.

    Args:
        laboratory: the runs.
        report: told the batches of sequences done.

    Returns:
        The figure and its claims.
    """
    probed = probed_recipes(laboratory, THREE, token_probes, report)
    if not probed:
        return Results(figures=[], claims=[])
    figure = Figure(figsize=(7.6, 4.2))
    rows: Rows = []
    for axes, (recipe, one) in zip(
        figure.subplots(1, len(probed), sharey=True, squeeze=False)[0], probed.items(), strict=True
    ):
        depth = layer_of(one.names[-1])
        for name in one.names[1:]:
            layer = layer_of(name)
            rows += draw_tokens(
                *(axes, one, name),
                color=depth_color((layer - 1) / max(depth - 1, 1)),
                label=f"layer {layer}",
                published=TOKEN_PROBES[recipe] if layer == 1 else None,
                controls=layer == 1,
            )
        axes.set(title=_LABELS.get(recipe, label_of(recipe)), xticks=list(TOKENS)[1::2])
        axes.set_xlabel("token t'")
        axes.legend(loc="lower left", fontsize=7, ncols=2 if depth > 3 else 1)
    figure.axes[0].set_ylabel(_UNIT)
    style_legend(figure)
    result = FigureResult(
        id="uncovering2023-fig17",
        title=f"Fig. 17: tokens t' read off the stream at position {LAST}, three models",
        caption=(
            f"From the first layer (orange) to the last (blue). {HELD_OUT_CAPTION}Circles and dashed "
            "lines are of the first layer; the authors' models had 20,000, 12,000 and 3,500 steps. "
            "What they call full-mesa begins with linear attention. The figure's own axis says R2; "
            "the text, and these numbers, say mean square."
        ),
        settings=settings_of(laboratory, THREE, sequences=scored_sequences(laboratory)),
        rows=rows,
        figure=figure,
    )
    claims = []
    if "full-mesa-published" in probed and "hybrid-mesa" in probed:
        linear, softmax = (unread(probed[name], _PREVIOUS) for name in reversed(THREE[1:]))
        claims.append(
            limited_claim(
                *(laboratory, probed["full-mesa-published"], "fig17-full-mesa-binds-nothing"),
                "Fig. 17C",
                "Without softmax in the first layer the previous token is not bound (its unread "
                "share behind the softmax layer of hybrid-mesa over that behind the linear one, held out)",
                quotient(softmax, linear),
                high=_BINDS,
                basis="0.0048 of 0.206 published, 0.02; a third counts",
            )
        )
    return Results(figures=[result], claims=claims)


_LABELS = {"full-mesa-published": "linear, then mesa"}


def _draw_binding(laboratory: Laboratory, probed: Mapping[str, Probed]) -> FigureResult:
    figure = Figure(figsize=(7.6, 4.2))
    groups = {"fully observed": LINEAR, "partial observation": RECIPES["partial"]}
    groups = {title: [r for r in group if r in probed] for title, group in groups.items()}
    groups = {title: group for title, group in groups.items() if group}
    panels = figure.subplots(1, len(groups), sharey=True, squeeze=False)[0]
    rows: Rows = []
    for axes, (title, group) in zip(panels, groups.items(), strict=True):
        for recipe in group:
            rows += draw_tokens(
                *(axes, probed[recipe], _FIRST),
                color=color_of(recipe),
                label=label_of(recipe),
                published=TOKEN_PROBES[recipe],
            )
        axes.set(title=title, xticks=list(TOKENS))
        axes.legend(loc="lower left")
    style_legend(figure)
    panels[0].set_ylabel(_UNIT)
    return FigureResult(
        id="uncovering2023-fig2a",
        title=f"Fig. 2A: tokens t' read off the first layer's output at position {LAST}",
        caption=(
            f"{HELD_OUT_CAPTION}Mean squares are drawn down to 1e-6. The authors' models here had "
            "20,000 steps, those with a mesa layer 12,000."
        ),
        settings=settings_of(laboratory, tuple(probed), sequences=scored_sequences(laboratory)),
        rows=rows,
        figure=figure,
    )


def _draw_teacher(
    laboratory: Laboratory, probed: Mapping[str, Probed], controls: Mapping[str, Probed]
) -> FigureResult:
    figure = Figure(figsize=(7.6, 4.2))
    panels = figure.subplots(1, len(probed), sharey=True, squeeze=False)[0]
    rows: Rows = []
    for axes, (recipe, one) in zip(panels, probed.items(), strict=True):
        depth = layer_of(one.names[-1])
        for name in one.names:
            layer = layer_of(name)
            rows += draw_tokens(
                *(axes, one, name),
                color=depth_color((layer - 1) / max(depth - 1, 1)) if layer else PALETTE[5],
                label=f"layer {layer}" if layer else "input",
                what="teacher",
                published={t: p for t, p in _by_token(recipe, layer).items() if p is not None},
                controls=layer == 0,
            )
        rows += draw_tokens(
            *(axes, replace(controls[recipe], recipe=f"{recipe}, untrained"), _FIRST),
            color=PALETTE[4],
            label="layer 1, untrained",
            what="teacher",
            controls=False,
        )
        _read_off(axes, label_of(recipe))
    panels[0].set_ylabel(_UNIT)
    style_legend(figure)
    for recipe, one in probed.items():
        rows += _feature_rows(one, recipe)
    return FigureResult(
        id="uncovering2023-fig2b",
        title=f"Fig. 2B: the teacher's output MLP(s) for token t', read at position {LAST}",
        caption=(
            f"Before division by its norm, by our own draw of the teacher. {HELD_OUT_CAPTION}In red "
            "what the first layer's initial weights come to: random features of the token, too, tell "
            "much of its teacher's output. Dashed lines and controls are those of the input only. "
            "The table has the shares read of the output divided by its norm as well."
        ),
        settings=settings_of(laboratory, tuple(probed), sequences=scored_sequences(laboratory)),
        rows=rows,
        figure=figure,
    )


def _read_off(axes: Axes, title: str) -> None:
    axes.set(title=title, xticks=list(TOKENS))
    axes.set_xlabel("token t'")
    axes.legend(loc="lower left", fontsize=7, ncols=2)


def _by_token(recipe: str, layer: int) -> dict[int, float | None]:
    """Give the published numbers of a layer."""
    published = TEACHER_PROBES[recipe]
    place = (
        layer if recipe.startswith("tf") else layer - 1
    )  # theirs of the mesa model begin behind it
    return {
        t: values[place] if 0 <= place < len(values) else None for t, values in published.items()
    }


def _feature_rows(probed: Probed, recipe: str) -> Rows:
    """Write what is read of the teacher's output divided by its norm; it is not drawn."""
    axes = Figure().subplots()
    return [
        row
        for name in probed.names
        for row in draw_tokens(
            *(axes, probed, name), color=PALETTE[0], label=recipe, what="features", controls=False
        )
    ]


def _claims(laboratory: Laboratory, probed: Probed) -> list[Claim]:
    recipe = probed.recipe
    claims = _trained_claims(laboratory, probed) if is_published(laboratory, recipe) else []
    previous = unread(probed, _PREVIOUS)
    claims.append(
        limited_claim(
            *(laboratory, probed, f"fig2-{recipe}-previous-token", "Fig. 2A"),
            f"{recipe}: the previous token is read behind the first layer (its unread share, held out)",
            previous,
            high=0.25,
            basis="0.0001 to 0.02 published for full training; a quarter counts",
        )
    )
    if recipe in LINEAR:
        oldest = min(unread(probed, (f"token {t}", _FIRST, LAST)) for t in (43, 44))
        claims.append(
            limited_claim(
                *(laboratory, probed, f"fig2-{recipe}-old-tokens", "Fig. 2A"),
                f"{recipe}: tokens six and seven steps back are not read behind the first layer, unlike "
                "the previous one (its unread share over the smaller of theirs, held out)",
                quotient(previous, oldest),
                high=_BINDS,
                basis="0.0016 and 0.018 published; a third counts",
            )
        )
    else:
        claims.append(
            limited_claim(
                *(laboratory, probed, f"fig2-{recipe}-two-back", "Fig. 2A"),
                f"{recipe}: the token two steps back is read behind the first layer as well (its "
                "unread share, held out)",
                unread(probed, ("token 48", _FIRST, LAST)),
                high=0.5,
                basis="0.0002 to 0.001 published for full training; half counts",
            )
        )
    return claims


_BOUND = {
    "tf-7": ((49,), 0.005, "0.0004 published; 0.005: what counts as read"),
    "hybrid-mesa": ((49,), 0.006, "0.0048 published, and a quarter"),
    "tf-7-partial": ((47, 48, 49, 50), 0.03, "0.0258 published; less than a quarter more counts"),
    "hybrid-mesa-partial": (
        *((46, 47, 48, 49, 50), 0.055),
        "0.0463 published; less than a quarter more counts",
    ),
}
"""Tokens read, by recipe, the largest mean square that counts as read, and why."""


def _trained_claims(laboratory: Laboratory, probed: Probed) -> list[Claim]:
    """Judge the published numbers of a model trained in full, measured as they were."""
    tokens, high, basis = _BOUND[probed.recipe]
    named = (
        f"token {tokens[0]} is" if len(tokens) == 1 else f"tokens {tokens[0]} to {tokens[-1]} are"
    )
    measured = [probed.in_sample(f"token {t}", _FIRST, LAST) for t in tokens]
    unit = probed.score("token 50", _FIRST, LAST).per_coordinate
    worst, noise = max(measured)
    return [
        limited_claim(
            *(laboratory, probed, f"fig2-{probed.recipe}-bound-tokens", "Fig. 2A"),
            f"{probed.recipe}: {named} read behind the first layer (largest mean square of a probe fitted "
            "and scored on the same 256 sequences)",
            (unit * worst, unit * noise),
            high=high,
            basis=basis,
        )
    ]


def _teacher_claims(laboratory: Laboratory, probed: Probed, control: Probed) -> list[Claim]:
    """Judge what the first layer learned to tell of the teacher, beyond what random features do."""
    return [
        limited_claim(
            *(laboratory, probed, f"fig2b-{probed.recipe}-teacher-{token}", "Fig. 2B"),
            f"{probed.recipe}: the teacher's output for token {token} is read better behind the first "
            "layer than with the weights it started from (ratio of held-out errors)",
            ratio(probed, key, key, control),
            high=0.5,
            basis="0.04 to 0.14 published, 2 and 7 for initial weights of ours; half counts",
        )
        for token in (49, LAST)
        for key in [(f"teacher {token}", _FIRST, LAST)]
    ]
