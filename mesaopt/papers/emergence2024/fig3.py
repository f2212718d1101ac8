"""Figure 3: sparse x_1 at the other scales."""

from mesaopt.papers.emergence2024.measure import Emergence
from mesaopt.papers.emergence2024.scales import compute_scales
from mesaopt.papers.plan import Report, Results


def compute(measured: Emergence, report: Report) -> Results:
    """Train at magnitudes 0.5 and 2, draw, judge.

    Args:
        measured: what the figures share.
        report: told the sets of sequences drawn.

    Returns:
        The figure and its claims.
    """
    return compute_scales(
        measured,
        report,
        law="sparse",
        figure="3",
        title="Fig. 3: sparse data at other scales",
        caption=(
            "The same training for sparse x₁ of magnitude 0.5 and 2, on the sequences of Fig. 1 times "
            "0.5 and 2. The product goes to 1/c² and the loss to zero. At magnitude 0.5 the start (2, 2) "
            "is the solution, and its line lies at the floor of the plot."
        ),
    )
