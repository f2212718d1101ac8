from dataclasses import replace
from pathlib import Path

import pytest
import torch
from mesaopt.papers.figures import style
from torch import Tensor, nn

from mesaopt import recipes
from mesaopt.analysis import InContextLoss, TunedPrompt
from mesaopt.config import FewShotConfig
from mesaopt.papers.plan import Plan, Results
from mesaopt.papers.uncovering2023 import few_shot, few_shot_figures, fig8, fig18
from mesaopt.papers.uncovering2023.few_shot import (
    AS_PUBLISHED,
    LABELS,
    ON_TOKENS,
    TRUE_PAIRS,
    ZERO_SEPARATOR,
    Measurement,
    Tuning,
    least_squares_curves,
    newton_steps,
)
from mesaopt.papers.uncovering2023.laboratory import Laboratory
from mesaopt.papers.uncovering2023.published import FEW_SHOT
from mesaopt.tasks import FewShot
from mesaopt.theory import ridge_least_squares
from mesaopt.training import Run


class LeastSquares(nn.Module):
    """What a model of next tokens would do that had learned to perfection."""

    def forward(self, tokens: Tensor) -> Tensor:
        return ridge_least_squares(tokens, ridge=0.1)


class Nothing(nn.Module):
    """What a model predicts that has learned nothing."""

    def forward(self, tokens: Tensor) -> Tensor:
        return 1e-3 * tokens


def ignore(done: int, total: int) -> None:
    assert 0 <= done <= total


def laboratory_of(recipe: str, *models: nn.Module, steps: int | None = None) -> Laboratory:
    """A laboratory of runs that nobody trained."""
    config = recipes.get(recipe)
    if steps is not None:
        config = replace(config, train=replace(config.train, steps=steps))
    runs = [Run(Path("nowhere"), config, model, [], 0.0) for model in models]  # pyrefly: ignore
    return Laboratory(Plan(what="uncovering2023", scale="smoke", num_sequences=256), {recipe: runs})


def with_vectors(size: float):
    """Stands for the learning of prompts: random vectors of about this norm."""

    def learn(model, tuning, report) -> tuple[TunedPrompt, TunedPrompt]:
        random = torch.Generator().manual_seed(0)
        separator, prefix = (size * torch.randn(n, 10, generator=random) for n in (1, 20))
        learned = {"losses": torch.ones(2), "norms": torch.ones(2, 1)}
        return (
            TunedPrompt(separator=separator[0], **learned),
            TunedPrompt(separator=separator[0], prefix=prefix, **learned),
        )

    return learn


def verdicts(results: Results) -> dict[str, bool]:
    return {claim.id.split("/")[1]: claim.passed for claim in results.claims}


def test_newton_steps_are_the_powers_they_stand_for_and_end_at_least_squares() -> None:
    batch = FewShot(FewShotConfig(dim=3, length=12)).sample(4, seed=0, dtype=torch.float64)
    exact = ridge_least_squares(batch.observed, ridge=1e-3, pairs="official")
    # Quadratic convergence: eigenvalues of 1e-4 of the trace are there after some 18 steps.
    torch.testing.assert_close(newton_steps(batch, num_steps=30), exact, atol=1e-6, rtol=1e-6)
    last = newton_steps(batch, num_steps=3, pairs="all")[:, -1]
    for sequence, found in zip(batch.observed, last, strict=True):
        known, following = sequence[:-1], sequence[1:]
        matrix = known.T @ known + 1e-3 * torch.eye(3, dtype=torch.float64)
        step = torch.eye(3, dtype=torch.float64) - matrix / matrix.trace()
        inverse = sum(torch.matrix_power(step, k) for k in range(2**3)) / matrix.trace()
        torch.testing.assert_close(found, following.T @ known @ inverse @ sequence[-1])


def test_the_more_is_known_of_the_pairs_the_better_is_least_squares() -> None:
    curves = least_squares_curves(few_shot.SEQUENCES["smoke"])
    means = [curves["one task", n].mean for n in (TRUE_PAIRS, ZERO_SEPARATOR, ON_TOKENS)]
    assert means[0] < 0.5 * means[1] < 0.5 * 0.9 * means[2]
    for name in (TRUE_PAIRS, ZERO_SEPARATOR, ON_TOKENS, AS_PUBLISHED):
        one, two = (curves[switch, name].curve for switch in ("one task", "two tasks"))
        assert one.shape == two.shape == (68,)
        torch.testing.assert_close(one[:20], two[:20])
        assert two[20] > 1.5 * one[20]


def test_figures_without_models_show_the_algorithms_and_judge_them() -> None:
    empty = Laboratory(Plan(what="uncovering2023", scale="smoke", num_sequences=256), {})
    with style():
        eight, eighteen = (figure.compute(empty, ignore) for figure in (fig8, fig18))
    assert all(verdicts(eight).values())
    assert len(eight.claims) == 8
    fitted = {c.id.split("/")[1] for c in eight.claims if "chosen by these numbers" in c.basis}
    assert fitted == {
        *(f"fig8-least-squares-at-{seen}" for seen in (4, 10, 59)),
        "fig8-least-squares-ascent",
    }
    assert eighteen.claims == []
    for results in (eight, eighteen):
        assert {row["name"] for row in results.figures[0].rows} == {
            *(AS_PUBLISHED, ON_TOKENS, ZERO_SEPARATOR, TRUE_PAIRS)
        }


def test_least_squares_in_place_of_a_model_shows_all_but_what_a_prefix_is_learned_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(few_shot, "learn_prompts", with_vectors(0.0))
    laboratory = laboratory_of("hybrid-mesa-few-shot", LeastSquares(), steps=5)
    with style():
        results = fig18.compute(laboratory, ignore)
    assert verdicts(results) == {
        "fig18-ascent": True,
        "fig18-separator-helps": True,
        "fig18-prefix-helps": False,
        "fig18-separator-is-small": True,
        "fig18-switch-jump": True,
        "fig18-switch-relearning": True,
    }
    (figure,) = results.figures
    assert {"pairs", "separator", "prefix"} <= {row["name"] for row in figure.rows}


def test_a_model_that_has_learned_nothing_fails_wherever_something_is_claimed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(few_shot, "learn_prompts", with_vectors(1.0))
    laboratory = laboratory_of("tf-7-few-shot", Nothing(), Nothing())
    with style():
        found = verdicts(fig8.compute(laboratory, ignore))
    of_the_model = {name for name in found if name.startswith("fig8-")} - {
        claim.id.split("/")[1]
        for claim in fig8.compute(replace(laboratory, runs={}), ignore).claims
    }
    assert not {name for name in of_the_model if found[name]}
    assert {"fig8-pairs-at-4", "fig8-prefix-at-59", "fig8-second-task"} <= of_the_model, (
        "judged by the published numbers, since the recipe says it was trained as published"
    )


def test_a_switch_after_other_pairs_is_said_where_it_is_judged(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(few_shot, "learn_prompts", with_vectors(0.0))
    with style():
        results = fig18.compute(laboratory_of("hybrid-mesa-few-shot", Nothing()), ignore)
    (claim,) = (c for c in results.claims if c.id.endswith("fig18-second-task"))
    assert "2.2 to 2.35" in claim.basis
    assert "after 27 pairs; ours is after 20" in claim.basis


def test_circles_are_whole_and_explained_and_seeds_are_drawn() -> None:
    def curves(shift: float) -> few_shot.Curves:
        losses = InContextLoss(torch.rand(8, 68) + shift)
        return {(switch, name): losses for switch in few_shot._SWITCHES for name in LABELS}

    for seeds in ([curves(0.0)], [curves(0.0), curves(1.0)]):
        measured = Measurement([], [], seeds)
        figure, _ = few_shot_figures.draw("tf-7-few-shot", measured.curves, measured)
        one, two, _, legend = figure.axes
        circles = [line for line in one.lines if line.get_marker() == "o"]
        assert len(circles) == 4
        assert not any(line.get_clip_on() for line in circles)
        thin = len(seeds) * len(LABELS) if len(seeds) > 1 else 0
        for axes in (one, two):
            assert sum(line.get_linewidth() == 0.5 for line in axes.lines) == thin
        assert "published" in [text.get_text() for text in legend.get_legend().get_texts()]
    names = (*LABELS, *few_shot.ALGORITHMS)
    assert len({few_shot_figures._color(name) for name in names}) == len(names)


def test_prompts_are_learned_as_the_scale_says(monkeypatch: pytest.MonkeyPatch) -> None:
    tuning = Tuning(steps=3, batch_sizes=(2, 3), learning_rate=0.1, schedule="constant")
    done: list[int] = []
    separator, both = few_shot.learn_prompts(nn.Linear(10, 10), tuning, done.append)
    assert separator.prefix is None
    assert separator.separator is not None
    assert both.separator is not None
    assert both.prefix is not None
    assert torch.equal(both.separator, separator.separator)
    assert both.prefix.shape == (20, 10)
    assert len(done) == 6


def test_published_numbers_are_those_of_the_models_and_of_least_squares() -> None:
    assert set(FEW_SHOT) == {*fig8.MODELS, *fig18.MODELS, "least squares"}
    for curves in FEW_SHOT.values():
        for at in curves.values():
            assert {0, 1, 3, 5, 10, 20, 30, 59} <= set(at)
            assert at[59] < at[30] < at[20] < at[10]
