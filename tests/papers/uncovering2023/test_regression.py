"""Least squares and kernel regression by dimension and noise, in figures 5B and 20."""

from dataclasses import replace

import pytest
from laboratories import PLAN, compute

from mesaopt.papers.figure import judge
from mesaopt.papers.uncovering2023 import distilled, regression
from mesaopt.papers.uncovering2023.laboratory import Laboratory
from mesaopt.papers.uncovering2023.settings import SETTINGS


def test_least_squares_and_kernel_regression_by_dimension() -> None:
    losses = {row["predictor"]: row["loss"] for row in regression.score_regression(4, 0.01, 256)}
    assert losses["least squares"] < losses["least squares, official"]
    assert losses["least squares, official"] == pytest.approx(0.0329, abs=0.004)
    assert losses["kernel regression"] == pytest.approx(0.0798, abs=0.012)


def test_regression_is_measured_once_for_both_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple] = []
    score = regression.score_regression
    monkeypatch.setattr(regression, "score_regression", lambda *a: calls.append(a) or score(*a))
    monkeypatch.setitem(SETTINGS, "smoke", replace(SETTINGS["smoke"], regression_dimensions=(4,)))
    lab = Laboratory(PLAN, {})
    compute(distilled.fig5, lab)
    assert calls == [(4, 0.01, 256)]
    computed = compute(regression.fig20, lab)
    assert all(computed.verdicts.values())
    assert sorted(calls) == [(4, noise, 256) for noise in (0.01, 0.1, 0.25, 0.5)]
    assert [row["noise"] for row in computed.rows[::3]] == [0.01, 0.1, 0.25, 0.5]


@pytest.mark.parametrize("sequences", [64, 640, 2560])
def test_published_losses_have_the_noise_of_their_own_sequences(
    sequences: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = replace(SETTINGS["smoke"], regression_sequences=sequences)
    monkeypatch.setitem(SETTINGS, "smoke", settings)
    of_one = 0.1
    rows = [
        {"dim": 4, "predictor": name, "loss": 0.03, "error": of_one / sequences**0.5}
        for name in regression.PREDICTORS
    ]
    monkeypatch.setattr(regression, "regression_losses", lambda lab, noise: rows)
    claims = judge(regression.fig20, Laboratory(PLAN, {}))
    compared = [claim for claim in claims if claim.published is not None]
    assert len(compared) == 2
    for claim in compared:
        assert claim.error == pytest.approx(of_one * (1 / sequences + 1 / 640) ** 0.5)
