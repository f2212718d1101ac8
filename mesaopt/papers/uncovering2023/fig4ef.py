"""Figures 4E, 4F and 6A, 6B: the next token and the preconditioned input, read off every layer."""

import math
from collections.abc import Iterable, Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from mesaopt.papers.claims import Claim
from mesaopt.papers.figures import PALETTE, FigureResult
from mesaopt.papers.plan import Report, Results
from mesaopt.papers.uncovering2023.curves import Rows, settings_of
from mesaopt.papers.uncovering2023.laboratory import Laboratory
from mesaopt.papers.uncovering2023.probe_claims import (
    depth_claim,
    limited_claim,
    published_claims,
)
from mesaopt.papers.uncovering2023.probe_drawing import (
    HELD_OUT_CAPTION,
    draw_along,
    draw_depth,
    draw_shares,
    style_legend,
)
from mesaopt.papers.uncovering2023.probing import (
    EXACT,
    LAST,
    NEXT,
    STEPS,
    Probed,
    depth_probes,
    unread,
)
from mesaopt.papers.uncovering2023.published import NEXT_TOKEN_PROBES, PRECONDITIONING_PROBES

LINEAR = ("lsa-6",)
SOFTMAX = ("tf-7",)

COLORS = {6: PALETTE[1], 21: PALETTE[2], 41: PALETTE[3], LAST: PALETTE[0]}
"""Positions that are drawn by depth, and what they are drawn in."""

_STATEMENTS = {NEXT: "next token", STEPS: "preconditioned input"}


def next_token(laboratory: Laboratory, report: Report) -> Results:
    """Probe six linear layers for the next token, draw, judge: Figure 4E."""
    return _single(laboratory, report, "lsa-6", NEXT, "4E", NEXT_TOKEN_PROBES["lsa-6"])


def preconditioning(laboratory: Laboratory, report: Report) -> Results:
    """Probe six linear layers for the preconditioned input, draw, judge: Figure 4F."""
    return _single(laboratory, report, "lsa-6", STEPS, "4F", PRECONDITIONING_PROBES["lsa-6"])


def softmax(laboratory: Laboratory, report: Report) -> Results:
    """Probe seven softmax layers for both, draw, judge: Figures 6A and 6B."""
    probed = depth_probes(laboratory, "tf-7", report)
    if probed is None:
        return Results(figures=[], claims=[])
    figure = Figure(figsize=(7.6, 6.8))
    rows: Rows = []
    published = {NEXT: NEXT_TOKEN_PROBES["tf-7"], STEPS: PRECONDITIONING_PROBES["tf-7"]}
    for axes, target in zip(figure.subplots(2, 2), (NEXT, STEPS), strict=True):
        rows += draw_pair(axes, probed, target, published[target])
    position_legend(figure, published[NEXT])
    claims = [
        *published_claims(
            laboratory, probed, "Fig. 6A", NEXT, published[NEXT], prefix="fig6a-tf-7-next"
        ),
        *published_claims(
            laboratory, probed, "Fig. 6B", STEPS, published[STEPS], prefix="fig6b-tf-7-steps"
        ),
        *depth_claims(laboratory, probed, "fig6"),
        *_exact_claims(laboratory, probed, "fig6b", max(published[STEPS])),
    ]
    result = FigureResult(
        id="uncovering2023-fig6ab",
        title="Fig. 6A, 6B: next token and preconditioned input, layer by layer, of seven softmax layers",
        caption=_caption(PRECONDITIONED_CAPTION),
        settings=settings_of(laboratory, SOFTMAX),
        rows=rows,
        figure=figure,
    )
    return Results(figures=[result], claims=claims)


PRECONDITIONED_CAPTION = (
    "The preconditioned input is that of the authors' six steps towards the inverse, with sequences "
    "left out on the dashed lines whose target's norm is more than two standard deviations above the "
    "mean. "
)


def _caption(more: str = "") -> str:
    return f"Half the squared error of a linear probe, by depth. {HELD_OUT_CAPTION}{more}"


def draw_pair(
    axes: Sequence[Axes], probed: Probed, target: str, published: Mapping[int, Sequence[float]]
) -> Rows:
    """Draw a target by depth on the left, and on the right what else there is to see of it.

    Of the next token that is its error by position, of the preconditioned input the share that is read.

    Args:
        axes: two of them.
        probed: of one recipe.
        target: which.
        published: errors by position, before the first layer and behind each.

    Returns:
        The numbers drawn.
    """
    left, right = axes
    rows = draw_depth(left, probed, target, {t: COLORS[t] for t in published}, published)
    left.set(title=f"{target}, by depth", ylabel="error of a linear probe")
    if target == NEXT:
        rows += draw_along(right, probed, target)
        right.set(title=f"{target}, held out, by position")
        right.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize=7.5)
    else:
        rows += draw_shares(right, probed, {STEPS: PALETTE[0], EXACT: PALETTE[4]}, max(published))
        right.set(title=f"share read at position {max(published)}, held out")
        right.legend(loc="best")
    return rows


def position_legend(figure: Figure, positions: Iterable[int]) -> None:
    """Say below a figure what its lines and colours are."""
    style_legend(figure, **{f"position_{t}": COLORS[t] for t in sorted(positions)})


def _single(
    laboratory: Laboratory,
    report: Report,
    recipe: str,
    target: str,
    figure_name: str,
    published: Mapping[int, Sequence[float]],
) -> Results:
    probed = depth_probes(laboratory, recipe, report)
    if probed is None:
        return Results(figures=[], claims=[])
    figure = Figure(figsize=(7.6, 3.9))
    rows = draw_pair(figure.subplots(1, 2), probed, target, published)
    position_legend(figure, published)
    name = f"fig{figure_name.lower()}"
    claims = published_claims(
        laboratory, probed, f"Fig. {figure_name}", target, published, prefix=f"{name}-{recipe}"
    )
    if target == NEXT:
        claims += [next_claim(laboratory, probed, name)]
        claims += [_honest_claim(laboratory, probed, name)]
    else:
        claims += [steps_claim(laboratory, probed, name)]
        claims += _exact_claims(laboratory, probed, name, max(published))
    result = FigureResult(
        id=f"uncovering2023-{name}",
        title=f"Fig. {figure_name}: {_STATEMENTS[target]}, layer by layer, of six linear layers",
        caption=_caption(PRECONDITIONED_CAPTION if target == STEPS else ""),
        settings=settings_of(laboratory, (recipe,)),
        rows=rows,
        figure=figure,
    )
    return Results(figures=[result], claims=claims)


def next_claim(laboratory: Laboratory, probed: Probed, name: str) -> Claim:
    """Judge whether the next token is read better behind the last layer than before the first.

    At position 21: later, linear layers come to large activations for a few sequences, whose
    held-out errors outweigh the others'.
    """
    return depth_claim(
        *(laboratory, probed, f"{name}-{probed.recipe}-next-falls"),
        *("Figs. 4E, 6A, 25", NEXT, 21),
        high=0.5,
        basis="0.007 to 0.012 published for full training; half counts",
    )


def steps_claim(laboratory: Laboratory, probed: Probed, name: str) -> Claim:
    """Judge whether the preconditioned input is read better in the middle than before the first layer."""
    middle = max(len(probed.names) // 2, 1)
    return depth_claim(
        *(laboratory, probed, f"{name}-{probed.recipe}-preconditioned-falls"),
        *("Figs. 4F, 6B, 25", STEPS, 21),
        high=0.8,
        basis="0.15 (six linear layers) and 0.44 (seven softmax layers) published for full training; "
        "a fifth less counts",
        layer=middle,
    )


def depth_claims(laboratory: Laboratory, probed: Probed, name: str) -> list[Claim]:
    """Judge both, and that numbers fitted and scored on the same sequences are too good."""
    return [
        next_claim(laboratory, probed, name),
        steps_claim(laboratory, probed, name),
        _honest_claim(laboratory, probed, name),
    ]


def _honest_claim(laboratory: Laboratory, probed: Probed, name: str) -> Claim:
    """Judge what is read of a next token that cannot be known: nothing held out, something in sample.

    The input shows one or two tokens, which say nothing of the next one without the others.
    """
    key = (NEXT, probed.names[0], LAST)
    rank = 20 if probed.recipe.startswith("lsa") else 10
    expected = 1 - rank / 256
    shares = probed.in_sample_shares(*key)
    return limited_claim(
        laboratory,
        probed,
        f"{name}-{probed.recipe}-in-sample-is-too-good",
        "beyond the paper",
        f"{probed.recipe}: before the first layer, where the next token cannot be known, a probe "
        "fitted and scored on the same 256 sequences seems to know something (its error, as a share "
        "of that of the mean)",
        (shares.mean().item(), shares.std().item() / len(shares) ** 0.5),
        low=expected - 0.01,
        high=expected + 0.01,
        basis=f"1 - {rank}/256 for the {rank} directions of the input, and 0.01",
    )


def _exact_claims(laboratory: Laboratory, probed: Probed, name: str, position: int) -> list[Claim]:
    """Judge whether what is read is rather the authors' six steps than the inverse itself."""
    best = {
        target: min(unread(probed, (target, part, position)) for part in probed.names)
        for target in (STEPS, EXACT)
    }
    value = best[EXACT][0] / best[STEPS][0]
    return [
        limited_claim(
            laboratory,
            probed,
            f"{name}-{probed.recipe}-exact-inverse",
            "beyond the paper",
            f"{probed.recipe}: at position {position} less is read of the exactly preconditioned input "
            "than of six steps towards it (ratio of unread shares, in the layer where each is least, "
            "held out)",
            (value, value * math.hypot(*(error / share for share, error in best.values()))),
            low=1.0,
            basis="seen at scale small on tf-7 before the claim was written; larger counts",
        )
    ]
