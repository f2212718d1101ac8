"""Figures 4E, 4F and 6A, 6B: the next token and the preconditioned input, read off every layer."""

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
    scored_sequences,
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
        next_claim(laboratory, probed, "fig6", "Fig. 6A", published[NEXT]),
        steps_claim(laboratory, probed, "fig6", "Fig. 6B", published[STEPS]),
        _honest_claim(laboratory, probed, "fig6"),
    ]
    result = FigureResult(
        id="uncovering2023-fig6ab",
        title="Fig. 6A, 6B: next token and preconditioned input, layer by layer, of seven softmax layers",
        caption=_caption(PRECONDITIONED_CAPTION),
        settings=settings_of(laboratory, SOFTMAX, sequences=scored_sequences(laboratory)),
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


def position_legend(figure: Figure, positions: Iterable[int], *, published: bool = True) -> None:
    """Say below a figure what its lines and colours are, and whether some numbers are published."""
    style_legend(
        figure, published=published, **{f"position_{t}": COLORS[t] for t in sorted(positions)}
    )


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
        claims.append(next_claim(laboratory, probed, name, f"Fig. {figure_name}", published))
        claims.append(_honest_claim(laboratory, probed, name))
    else:
        claims.append(steps_claim(laboratory, probed, name, f"Fig. {figure_name}", published))
    result = FigureResult(
        id=f"uncovering2023-{name}",
        title=f"Fig. {figure_name}: {_STATEMENTS[target]}, layer by layer, of six linear layers",
        caption=_caption(PRECONDITIONED_CAPTION if target == STEPS else ""),
        settings=settings_of(laboratory, (recipe,), sequences=scored_sequences(laboratory)),
        rows=rows,
        figure=figure,
    )
    return Results(figures=[result], claims=claims)


def next_claim(
    laboratory: Laboratory,
    probed: Probed,
    name: str,
    figure: str,
    published: Mapping[int, Sequence[float]],
) -> Claim:
    """Judge whether the next token is read better behind the last layer than before the first.

    At position 21: later, linear layers come to large activations for a few sequences, whose
    held-out errors outweigh the others'.

    Args:
        laboratory: knows the scale.
        probed: of one recipe.
        name: of the figure, short.
        figure: where it stands.
        published: errors by position, before the first layer and behind each, if there are any.

    Returns:
        The claim.
    """
    return depth_claim(
        *(laboratory, probed, f"{name}-{probed.recipe}-next-falls", figure, NEXT, _JUDGED),
        high=0.5,
        basis=f"{_published_fall(published, -1)}; half counts",
    )


def steps_claim(
    laboratory: Laboratory,
    probed: Probed,
    name: str,
    figure: str,
    published: Mapping[int, Sequence[float]],
) -> Claim:
    """Judge whether the preconditioned input is read better in the middle than before the first layer.

    Args:
        laboratory: knows the scale.
        probed: of one recipe.
        name: of the figure, short.
        figure: where it stands.
        published: errors by position, before the first layer and behind each.

    Returns:
        The claim.
    """
    middle = max(len(probed.names) // 2, 1)
    return depth_claim(
        *(laboratory, probed, f"{name}-{probed.recipe}-preconditioned-falls"),
        *(figure, STEPS, _JUDGED),
        high=0.8,
        basis=f"{_published_fall(published, middle)}; a fifth less counts",
        layer=middle,
    )


_JUDGED = 21  # position


def _published_fall(published: Mapping[int, Sequence[float]], layer: int) -> str:
    if _JUDGED not in published:
        return "falls, no numbers"
    errors = published[_JUDGED]
    return f"{errors[layer] / errors[0]:.2g} published for full training"


def _honest_claim(laboratory: Laboratory, probed: Probed, name: str) -> Claim:
    """Judge what is read of a next token that is hardly known: more in sample than there is.

    The input shows s_t, of which W s_t is independent, to linear layers s_{t-1} as well: over rotations of
    dimension 10 the mean of W^2 is I / 10, so that s_{t-1} tells a hundredth of the variance of s_{t+1}.
    """
    two = probed.recipe.startswith("lsa")
    rank, told = (20, 0.01) if two else (10, 0.0)
    shares = probed.in_sample_shares(NEXT, probed.names[0], LAST)
    expected = (1 - rank / 256) * (1 - told)
    return limited_claim(
        laboratory,
        probed,
        f"{name}-{probed.recipe}-in-sample-is-too-good",
        "beyond the paper",
        f"{probed.recipe}: before the first layer a probe fitted and scored on the same 256 sequences "
        f"seems to know more of the next token than the {told:.0%} there is (its error, as a share of "
        "that of the mean)",
        (shares.mean().item(), shares.std().item() / len(shares) ** 0.5),
        low=expected - 0.01,
        high=expected + 0.01,
        basis=f"1 - {rank}/256 for the {rank} directions of the input, times {1 - told:g}, and 0.01",
    )
