"""Figure 21: how many past tokens fit into streams of several widths."""

import math

from matplotlib.figure import Figure

from mesaopt.papers.claims import Claim
from mesaopt.papers.figures import FigureResult
from mesaopt.papers.plan import Report, Results
from mesaopt.papers.uncovering2023.curves import Rows, label_of, settings_of
from mesaopt.papers.uncovering2023.laboratory import Laboratory
from mesaopt.papers.uncovering2023.probe_claims import (
    limited_claim,
)
from mesaopt.papers.uncovering2023.probe_drawing import (
    HELD_OUT_CAPTION,
    depth_color,
    draw_tokens,
)
from mesaopt.papers.uncovering2023.probing import (
    LAST,
    TOKENS,
    Probed,
    layer_name,
    probed_recipes,
    scored_sequences,
    token_probes,
    tokens_held,
    tokens_held_error,
)
from mesaopt.recipes import RECIPES

_BASES = ("tf-7-partial", "hybrid-mesa-partial")
WIDTHS = (10, 20, 30, 50, 80)
MODELS = tuple(
    name for base in _BASES for name in (*(f"{base}-width-{width}" for width in WIDTHS[:-1]), base)
)
_FIRST = layer_name(1)


def compute(laboratory: Laboratory, report: Report) -> Results:
    """Probe first layers of all widths for tokens, draw, judge.

    Args:
        laboratory: the runs.
        report: told the batches of sequences done.

    Returns:
        The figure and its claims.
    """
    probed = probed_recipes(laboratory, MODELS, token_probes, report)
    bases = [base for base in _BASES if any(name.startswith(base) for name in probed)]
    if not bases:
        return Results(figures=[], claims=[])
    figure = Figure(figsize=(7.6, 3.9))
    rows: Rows = []
    panels = figure.subplots(1, len(bases), sharey=True, squeeze=False)[0]
    for axes, base in zip(panels, bases, strict=True):
        for name in (name for name in probed if name.startswith(base)):
            width = _width(name)
            rows += draw_tokens(
                *(axes, probed[name], _FIRST),
                color=depth_color(WIDTHS.index(width) / (len(WIDTHS) - 1)),
                label=f"width {width}: {tokens_held(probed[name], _FIRST):.1f} tokens",
                controls=False,
            )
        axes.set(title=label_of(base), xticks=list(TOKENS))
        axes.set_xlabel("token t'")
        axes.legend(loc="lower left")
    panels[0].set_ylabel("mean square per coordinate")
    result = FigureResult(
        id="uncovering2023-fig21",
        title=f"Fig. 21: tokens t' read behind the first layer at position {LAST}, by width of the "
        "stream",
        caption=(
            f"Partial observation, tokens of five coordinates. {HELD_OUT_CAPTION}The legend counts "
            "tokens: the sum of the shares read, held out, of the last eight; a stream cannot hold "
            "more than a fifth of its width. Widths 5 and 15 of the authors hold no whole number of "
            "sines and cosines and are left out; no numbers of theirs are known."
        ),
        settings=settings_of(laboratory, tuple(probed), sequences=scored_sequences(laboratory)),
        rows=rows,
        figure=figure,
    )
    return Results(
        figures=[result],
        claims=[claim for base in bases for claim in _claims(laboratory, probed, base)],
    )


def _width(name: str) -> int:
    width = RECIPES[name].config.sequence_model.embed_dim
    assert width is not None
    return width


def _claims(laboratory: Laboratory, probed: dict[str, Probed], base: str) -> list[Claim]:
    """Judge whether the widest holds more than the narrowest."""
    names = [name for name in probed if name.startswith(base)]
    if len(names) < 2:
        return []
    ends = [probed[name] for name in (names[0], names[-1])]
    narrow, wide = (tokens_held(one, _FIRST) for one in ends)
    error = math.hypot(*(tokens_held_error(one, _FIRST) for one in ends))
    return [
        limited_claim(
            *(laboratory, probed[names[-1]], f"fig21-{base}-wider-holds-more", "Fig. 21"),
            f"{base}: a stream of width {_width(names[-1])} holds more past tokens than one of width "
            f"{_width(names[0])} (difference of tokens read, held out)",
            (wide - narrow, error),
            low=1.0,
            basis=f"a stream of width {_width(names[0])} cannot hold more than "
            f"{_width(names[0]) // 5} of five coordinates, and 4 to 5 are published at width 80; one "
            "more counts",
        )
    ]
