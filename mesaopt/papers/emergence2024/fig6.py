"""Figure 6: sparse x_1 and drawn weights. The data are recovered, though K need not become diagonal."""

from mesaopt.papers.emergence2024.measure import Emergence
from mesaopt.papers.emergence2024.random_starts import draw_random, train_from_random
from mesaopt.papers.plan import Report, Results

_STEPS = {"smoke": 400, "small": 1000, "paper": 4000}


def compute(measured: Emergence, report: Report) -> Results:
    """Train from drawn weights, draw, judge.

    Args:
        measured: what the figures share.
        report: told the steps done.

    Returns:
        The figure and its claims.
    """
    steps = _STEPS[measured.plan.scale]
    trained = train_from_random(measured, "sparse", report, learning_rate=1e-2, steps=steps)
    figure = draw_random(
        measured,
        trained,
        "6",
        "Fig. 6: sparse data, weights drawn at random",
        "The same with sparse x₁. The loss goes to zero from every start. The off-diagonals do "
        "not: with one coordinate in a sequence, nothing reads them, so they have no gradient "
        "and stay as they were drawn. From small weights that looks like strong diagonals, from "
        "σ = 0.3 it does not. (That the paper's figure shows this law is inferred, not "
        "confirmed.)",
    )
    by_std = trained.off_diagonal
    return Results(
        figures=[figure],
        claims=[
            measured.claim(
                "random-weights-recovery",
                "Fig. 6",
                "Sparse data: from weights drawn at random the data are recovered too (largest loss as "
                "share of the energy)",
                value=float(trained.excess[-1].max()),
                high=1e-3,
                basis="a thousandth of the energy; it goes on falling",
            ),
            measured.claim(
                "random-weights-sparse-diagonal",
                "Fig. 6",
                "Sparse data: from small weights (sigma 0.01) strong diagonals emerge (largest "
                "off-diagonal entry of V and K, relative to the diagonal)",
                value=float(by_std[0].max()),
                high=0.1,
                basis="a tenth of the diagonal",
            ),
            measured.claim(
                "random-weights-sparse-kept",
                "beyond the paper",
                "Sparse data: strong diagonals are not guaranteed. From sigma 0.3 an off-diagonal entry "
                "stays of the diagonal's order (smallest over seeds of the largest entry)",
                value=float(by_std[-1].min()),
                low=0.3,
                basis="the largest of 40 normal numbers is above sigma in all but 1 of a million cases",
            ),
        ],
    )
