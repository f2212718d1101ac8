"""Figure 5: Gaussian x_1 and drawn weights. The diagonal shape emerges by itself."""

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
    trained = train_from_random(measured, "gaussian", report, learning_rate=5e-4, steps=steps)
    figure = draw_random(
        measured,
        trained,
        "5",
        "Fig. 5: Gaussian data, weights drawn at random",
        "All blocks start from independent normal weights and are trained on the exact "
        "population, with Gaussian x₁. Above: the trained matrices of one seed. Below: every "
        "seed. Diagonals emerge in the two blocks that matter, each coordinate with a sign of "
        "its own that V and K share, everything else decays, and the loss comes down to that of "
        "the diagonal start. (The paper's σ and its step size here are not known to us; its "
        "weights were trained on sequences.)",
    )
    worst = float(trained.excess[-1].max())
    small = trained.off_diagonal[0].max()
    return Results(
        figures=[figure],
        claims=[
            measured.claim(
                "random-weights-loss",
                "Fig. 5",
                "Gaussian data: from weights drawn at random, the loss comes down to that of the diagonal "
                "start (largest excess over sigma 0.01, 0.1 and 0.3, as share of the energy)",
                value=worst,
                high=0.02,
                basis="2 % of the energy, a twentieth of the 40 % that no such layer explains",
            ),
            measured.claim(
                "random-weights-diagonal",
                "Fig. 5",
                "Gaussian data: from small weights (sigma 0.01) strong diagonals emerge (largest "
                "off-diagonal entry of V and K, relative to the diagonal)",
                value=float(small),
                high=0.01,
                basis="a hundredth of the diagonal; what was drawn is twice that, and decays",
            ),
        ],
    )
