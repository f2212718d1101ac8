"""Figure 4: the weight matrices that training from diagonal weights ends with."""

from collections.abc import Iterable
from typing import cast

import numpy as np
from matplotlib.axes import Axes

from mesaopt.config import StartName
from mesaopt.papers.claims import ROUNDING, Claim
from mesaopt.papers.emergence2024.drawing import (
    draw_matrix,
    matrices_of,
    matrix_rows,
)
from mesaopt.papers.emergence2024.laboratory import (
    DIM,
    LENGTH,
    Laboratory,
    sample_settings,
    task_of,
)
from mesaopt.papers.figure import Figure, Panel, grid
from mesaopt.papers.laboratory import measurement
from mesaopt.papers.rows import PanelData
from mesaopt.tasks import initial_states
from mesaopt.theory.ar_process import (
    QuadraticLoss,
    Weights,
    descend,
    diagonal,
    population_loss,
    sampled_loss,
    sequences,
)

_FIG4_RATES: dict[StartName, float] = {"gaussian": 5e-4, "sparse": 1e-2}
_FIG4_STEPS = 150


@measurement
def _all_blocks(lab: Laboratory, start: StartName) -> tuple[Weights, Weights]:
    """Train all blocks from a diagonal start, on sequences of seed 0 and on the population."""
    stream = sequences(task_of(start), lab.plan.all_blocks_sequences, seed=0)
    sampled = cast(QuadraticLoss, sampled_loss(stream, blocks="all"))
    expected = population_loss(initial_states(start), dim=DIM, length=LENGTH, blocks="all")
    first = diagonal(DIM, key_query=0.1, output_value=0.1, blocks="all")
    on_sequences, on_population = (
        descend(loss, first, learning_rate=_FIG4_RATES[start], steps=_FIG4_STEPS).last
        for loss in (sampled, expected)
    )
    return on_sequences, on_population


def _stray(weights: Weights) -> float:
    """Give the largest modulus outside the diagonals of V and K, relative to the smallest on them."""
    core = Weights(weights.value_block, weights.key_block).masked()
    rest = weights.moved(core.embedded(), -1.0)
    largest = max(np.abs(rest.output_value).max(), np.abs(rest.key_query).max())
    on = [np.abs(np.diagonal(x)).min() for x in (core.output_value, core.key_query)]
    return float(largest / min(on))


def _matrix_panel(start: StartName, name: str, attribute: str) -> Panel[Laboratory]:
    def measure(lab: Laboratory) -> PanelData:
        matrix = getattr(_all_blocks(lab, start)[0], attribute)
        return PanelData(rows=matrix_rows(f"{start} {name}", matrix))

    def draw(axes: Axes, data: PanelData) -> None:
        (matrix,) = matrices_of(data.rows).values()
        draw_matrix(axes, matrix, f"{start}: ${name}$", block=DIM)

    return Panel(name=f"{start} {name}", measure=measure, draw=draw)


def _fig4_caption(lab: Laboratory) -> str:
    noise = {start: _stray(_all_blocks(lab, start)[0]) for start in _FIG4_RATES}
    words = " and ".join(f"{100 * value:.1f} % ({start})" for start, value in noise.items())
    return (
        f"All blocks of both matrices after {_FIG4_STEPS} steps from a₀ = b₀ = 0.1, trained on "
        f"{lab.plan.all_blocks_sequences:,} sequences (real parts). Rows of W^KQ meet the keys "
        "[xᵢ; xᵢ₋₁], columns the queries [x_t; x_{t-1}]; W^PV reads values [xᵢ; xᵢ₋₁]. Only K "
        "(previous state against current one) and V (current state) carry anything; on the exact "
        f"population the rest is zero, and here it is sampling noise of at most {words} of the "
        "diagonals. (The paper has pictures of this kind in its appendix; its numbering is not "
        "confirmed.)"
    )


def _fig4_claims(lab: Laboratory) -> Iterable[Claim]:
    yield Claim(
        name="sparse-diagonal",
        shown_in=ROUNDING,
        figure="Theorem 4.1",
        statement="For Gaussian and sparse x_1 training keeps the diagonal shape: all blocks but V and K, "
        "and these off their diagonals, stay zero (largest entry relative to the diagonals, exact "
        "population)",
        measured=max(_stray(_all_blocks(lab, start)[1]) for start in _FIG4_RATES),
        high=1e-12,
        basis="rounding: 150 steps of relative error 1e-16, none of which grows",
    )


fig4 = Figure(
    name="fig4",
    title="Fig. 4: two diagonals are all that training leaves",
    summary="the trained weight matrices",
    caption=_fig4_caption,
    panels=tuple(
        _matrix_panel(start, name, attribute)
        for start in _FIG4_RATES
        for name, attribute in (("W^{KQ}", "key_query"), ("W^{PV}", "output_value"))
    ),
    layout=grid(4, height=2.5),
    settings=lambda lab: (
        sample_settings(lab)
        | {"training sequences": lab.plan.all_blocks_sequences, "steps": _FIG4_STEPS}
    ),
    claims=_fig4_claims,
    seconds={"smoke": 11.0, "small": 20.0, "paper": 128.0},
)
