"""Losses by position of models on tokens, drawn."""

import matplotlib.pyplot as plt
import pytest

from mesaopt.analysis import Estimate, TokenScore
from mesaopt.report.token_curves import Panel, draw_losses


def score(losses: list[float]) -> TokenScore:
    one = Estimate(0.5, 0.1)
    return TokenScore("", 8, one, one, {}, [Estimate(loss, 0.1) for loss in losses])


@pytest.mark.parametrize("length", [1, 2, 7, 8, 255, 1023])
def test_stretches_hold_every_position_once(length: int) -> None:
    figure, axes = plt.subplots()
    draw_losses(axes, Panel("", {"model": [score([float(i) for i in range(1, length + 1)])]}))
    places, losses = axes.lines[0].get_data()
    assert len(places) <= 50
    assert list(losses[:6]) == list(range(1, length + 1))[:6], "first positions are alone"
    assert losses[-1] <= length
    assert sorted(places) == list(places)
    # A line of slope one stays one: no stretch is moved.
    assert losses == pytest.approx(list(places), rel=0.01)
    plt.close(figure)
