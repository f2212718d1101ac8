"""Training at scales 0.5 and 2: figures 2 and 3 are alike."""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from mesaopt.config import StartName
from mesaopt.papers.claims import Claim
from mesaopt.papers.emergence2024.drawing import Rows, draw_level, draw_training, limit_view
from mesaopt.papers.emergence2024.measure import Emergence, exact, settings, theory
from mesaopt.papers.emergence2024.training import Curves, converge, train_as_published
from mesaopt.papers.figures import FigureResult
from mesaopt.papers.plan import Report, Results

_SCALES = (0.5, 2.0)
_FLOOR = 1e-12  # where the solution is reached to rounding
_UNCONFIRMED = " (The paper's numbering and choice of panels for its appendix are not confirmed.)"


def compute_scales(
    measured: Emergence, report: Report, *, law: StartName, figure: str, title: str, caption: str
) -> Results:
    """Train a law at both scales, draw, judge.

    Args:
        measured: what the figures share.
        report: told the sets of sequences drawn.
        law: of x_1.
        figure: its number.
        title: of the figure.
        caption: of the figure.

    Returns:
        The figure and its claims.
    """
    drawing = Figure(figsize=(7.6, 6.2))
    rows: Rows = []
    for (left, right), scale in zip(drawing.subplots(2, 2), _SCALES, strict=True):
        curves = train_as_published(measured, law, scale, report)
        name = f"{law} {scale:g}"
        rows += draw_training(left, f"{name}: product ab", curves.products, curves.exact.product)
        draw_level(left, curves.theory.product, "theory, T = 100")
        draw_level(left, curves.theory.limit, "theory, T → ∞", dotted=True)
        limit_view(left, curves.theory.limit, curves.exact.product)
        left.set_title(f"{law}, scale {scale:g}: product ab")
        rows += _draw_outcome(right, name, curves)
    handles, labels = left.get_legend_handles_labels()
    drawing.legend(handles, labels, loc="outside lower center", ncols=5)
    result = FigureResult(
        id=f"emergence2024-fig{figure}",
        title=title,
        caption=caption + _UNCONFIRMED,
        settings=settings(measured),
        rows=rows,
        figure=drawing,
    )
    return Results(figures=[result], claims=_claims(measured, law, f"Fig. {figure}"))


def _draw_outcome(axes: Axes, name: str, curves: Curves) -> Rows:
    """Draw what training is judged by: the ratio for Gaussian data, the loss for sparse data."""
    if curves.law == "sparse":
        losses = [np.maximum(loss, _FLOOR) for loss in curves.last_losses]
        exact_loss = np.maximum(curves.exact_last_loss, _FLOOR)
        rows = draw_training(axes, f"{name}: loss of the last token", losses, exact_loss)
        axes.set(title="test loss of the last token", yscale="log", ylim=(_FLOOR / 2, 1e3))
        return rows
    ratio = curves.exact.product * curves.theory.k0
    rows = draw_training(axes, f"{name}: prediction/target", curves.ratios, ratio)
    draw_level(axes, curves.theory.ratio, "")
    draw_level(axes, curves.theory.limit * curves.theory.k0, "", dotted=True)
    axes.set(title="mean prediction / target", ylim=(0, 1.1))
    return rows


def _claims(measured: Emergence, law: StartName, figure: str) -> list[Claim]:
    scaled = [
        converge(exact(law, scale), measured, law, scale).product[-1] * scale**2
        for scale in _SCALES
    ]
    expected = theory(law).product
    claims = [
        measured.claim(
            f"{law}-scales",
            figure,
            f"{law.capitalize()} data: the product goes with the inverse square of the scale (largest "
            "relative difference over scales 0.5 and 2 and all starts, exact population)",
            value=float(np.abs(np.stack(scaled) / expected - 1).max()),
            high=1e-8,
            basis="ten times the published steps leave at most exp(-20) of the distance",
        )
    ]
    if law == "sparse":
        claims.append(_recovered(measured, figure))
    return claims


def _recovered(measured: Emergence, figure: str) -> Claim:
    shares = []
    for sample in measured.samples("sparse", lambda done, total: None):
        for scale in _SCALES:
            test = sample.test.rescaled(scale)
            run = converge(sample.train.rescaled(scale), measured, "sparse", scale)
            shares.append(2 * test.loss(run.last) / test.quadratic.energy)
    return measured.claim(
        "sparse-recovery-scales",
        figure,
        "Sparse data are recovered at scales 0.5 and 2 too (largest share of the energy left at the last "
        "test token)",
        value=float(np.max(shares)),
        high=1e-5,
        basis="no noise: the share is (1 - c^2 ab)^2",
    )
