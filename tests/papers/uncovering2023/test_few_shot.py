"""Models used few-shot in figures 8 and 18: prompts, losses on pairs, claims."""

from collections.abc import Callable

import pytest
import torch
from laboratories import PLAN, compute, run_of
from torch import Tensor, nn

from mesaopt.analysis import InContextLoss, TunedPrompt
from mesaopt.config import FewShotConfig
from mesaopt.papers.figure import Figure, draw, judge, measure
from mesaopt.papers.uncovering2023 import prompts
from mesaopt.papers.uncovering2023.few_shot import COLORS, LABELS, fig8, fig18
from mesaopt.papers.uncovering2023.laboratory import Laboratory
from mesaopt.papers.uncovering2023.prompts import (
    AS_PUBLISHED,
    ON_TOKENS,
    TRUE_PAIRS,
    ZERO_SEPARATOR,
    Curves,
    least_squares_curves,
    newton_steps,
)
from mesaopt.papers.uncovering2023.published import FEW_SHOT
from mesaopt.papers.uncovering2023.settings import PromptSettings
from mesaopt.tasks import FewShot
from mesaopt.theory import ridge_least_squares

ALGORITHMS = {AS_PUBLISHED, ON_TOKENS, ZERO_SEPARATOR, TRUE_PAIRS}


MakeLaboratory = Callable[..., Laboratory]


class LeastSquares(nn.Module):
    """What a model of next tokens would do that had learned to perfection."""

    def forward(self, tokens: Tensor) -> Tensor:
        return ridge_least_squares(tokens, ridge=0.1)


class Nothing(nn.Module):
    """What a model predicts that has learned nothing."""

    def forward(self, tokens: Tensor) -> Tensor:
        return 1e-3 * tokens


@pytest.fixture(scope="module")
def algorithms() -> Curves:
    """The losses of least squares, which do not depend on runs."""
    return least_squares_curves(Laboratory(PLAN, {}))


@pytest.fixture
def laboratory_of(algorithms: Curves) -> MakeLaboratory:
    """Makes a laboratory of models with the recipe of one figure."""

    def make(figure: Figure, *models: nn.Module, steps: int | None = None) -> Laboratory:
        (recipe,) = figure.recipes
        runs = [run_of(recipe, model, steps=steps) for model in models]  # pyrefly: ignore
        lab = Laboratory(PLAN, {recipe: runs})
        lab.remember(least_squares_curves, value=algorithms)
        return lab

    return make


@pytest.fixture
def learn_vectors(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Puts random vectors of about a norm in the place of the prompts that are learned."""

    def prepare(size: float) -> None:
        random = torch.Generator().manual_seed(0)
        separator, prefix = (size * torch.randn(n, 10, generator=random) for n in (1, 20))
        learned = {"losses": torch.ones(2), "norms": torch.ones(2, 1)}
        vectors = (
            TunedPrompt(separator=separator[0], **learned),
            TunedPrompt(separator=separator[0], prefix=prefix, **learned),
        )
        monkeypatch.setattr(prompts, "learn_prompts", lambda *arguments: vectors)

    return prepare


def test_newton_steps_are_the_powers_they_stand_for_and_end_at_least_squares() -> None:
    batch = FewShot(FewShotConfig(dim=3, length=12)).sample(4, seed=0, dtype=torch.float64)
    exact = ridge_least_squares(batch.observed, ridge=1e-3, pairs="official")
    # Quadratic convergence: eigenvalues of 1e-4 of the trace are there after some 18 steps.
    torch.testing.assert_close(newton_steps(batch, num_steps=30), exact, atol=1e-6, rtol=1e-6)
    last = newton_steps(batch, num_steps=3, pairs="all")[:, -1]
    for sequence, prediction in zip(batch.observed, last, strict=True):
        known, following = sequence[:-1], sequence[1:]
        matrix = known.T @ known + 1e-3 * torch.eye(3, dtype=torch.float64)
        step = torch.eye(3, dtype=torch.float64) - matrix / matrix.trace()
        inverse = sum(torch.matrix_power(step, k) for k in range(2**3)) / matrix.trace()
        torch.testing.assert_close(prediction, following.T @ known @ inverse @ sequence[-1])


def test_the_more_is_known_of_the_pairs_the_better_is_least_squares(algorithms: Curves) -> None:
    means = [algorithms["one task", n].mean for n in (TRUE_PAIRS, ZERO_SEPARATOR, ON_TOKENS)]
    assert means[0] < 0.5 * means[1] < 0.5 * 0.9 * means[2]
    for name in ALGORITHMS:
        one, two = (algorithms[switch, name].curve for switch in ("one task", "two tasks"))
        assert one.shape == two.shape == (68,)
        torch.testing.assert_close(one[:20], two[:20])
        assert two[20] > 1.5 * one[20]


def test_figures_without_models_show_the_algorithms_and_judge_them(
    laboratory_of: MakeLaboratory,
) -> None:
    eight, eighteen = (compute(figure, laboratory_of(figure)) for figure in (fig8, fig18))
    assert all(eight.verdicts.values())
    assert len(eight.claims) == 8
    chosen = {
        name for name, claim in eight.claims.items() if "chosen by these numbers" in claim.why
    }
    assert chosen == {
        "fig8-least-squares-at-4",
        "fig8-least-squares-at-10",
        "fig8-least-squares-at-59",
        "fig8-least-squares-ascent",
    }
    assert eighteen.claims == {}
    for figure, computed in ((fig8, eight), (fig18, eighteen)):
        assert {row["name"] for row in computed.rows} == ALGORITHMS
        drawing = draw(figure, computed.panels)
        assert len(drawing.axes) == 2, "nothing is learned, so that there is nothing to draw"
        (legend,) = drawing.legends
        named = {text.get_text() for text in legend.get_texts()}
        assert {f"{label}, published" for label in LABELS.values()} < named


def test_least_squares_in_place_of_a_model_shows_all_but_what_a_prefix_is_learned_for(
    laboratory_of: MakeLaboratory, learn_vectors: Callable[[float], None]
) -> None:
    learn_vectors(0.0)
    computed = compute(fig18, laboratory_of(fig18, LeastSquares(), steps=5))
    assert computed.verdicts == {
        "fig18-ascent": True,
        "fig18-separator-helps": True,
        "fig18-prefix-helps": False,
        "fig18-separator-is-small": True,
        "fig18-switch-jump": True,
        "fig18-switch-relearning": True,
    }
    assert {row["name"] for row in computed.rows} == {*LABELS, *ALGORITHMS}


def test_a_model_that_has_learned_nothing_fails_wherever_something_is_claimed(
    laboratory_of: MakeLaboratory, learn_vectors: Callable[[float], None]
) -> None:
    learn_vectors(1.0)
    claims = judge(fig8, laboratory_of(fig8, Nothing(), Nothing()))
    of_algorithms = {claim.name for claim in judge(fig8, laboratory_of(fig8))}
    of_the_model = {claim.name: claim for claim in claims if claim.name not in of_algorithms}
    assert not any(claim.passed for claim in of_the_model.values())
    assert {"fig8-pairs-at-4", "fig8-prefix-at-59", "fig8-second-task"} <= set(of_the_model), (
        "judged by the published numbers, since the recipe says it was trained as published"
    )


def test_a_switch_after_other_pairs_is_said_where_it_is_judged(
    laboratory_of: MakeLaboratory, learn_vectors: Callable[[float], None]
) -> None:
    learn_vectors(0.0)
    claims = judge(fig18, laboratory_of(fig18, Nothing()))
    (claim,) = (claim for claim in claims if claim.name == "fig18-second-task")
    assert "2.2 to 2.35" in claim.why
    assert "after 27 pairs; ours is after 20" in claim.why


@pytest.mark.parametrize("seeds", [1, 2, 3])
def test_prompts_are_compared_within_each_model(seeds: int, laboratory_of: MakeLaboratory) -> None:
    """Seeds that differ, all by the same factor with every prompt, leave no noise to hide in."""
    losses = torch.rand(16, 68, generator=torch.Generator().manual_seed(0))
    ratios = {"pairs": 1.0, "separator": 0.97, "prefix": 0.97 * 0.98}
    learned = {"separator": torch.zeros(10), "losses": torch.ones(2), "norms": torch.ones(2, 1)}
    runs = [
        prompts.PromptedRun(
            TunedPrompt(**learned),
            TunedPrompt(**learned),
            {
                (switch, name): InContextLoss(ratio * factor * losses)
                for switch in ("one task", "two tasks")
                for name, ratio in ratios.items()
            },
        )
        for factor in (1.0, 3.0, 2.0)[:seeds]
    ]
    lab = laboratory_of(fig8, *[Nothing()] * seeds)
    lab.remember(prompts.prompted_runs, *fig8.recipes, value=runs)
    claims = {claim.name: claim for claim in judge(fig8, lab)}
    for name, value in (("separator", 0.97), ("prefix", 0.98)):
        claim = claims[f"fig8-{name}-helps"]
        assert claim.value == pytest.approx(value)
        assert not claim.passed


@pytest.mark.parametrize("seeds", [1, 2])
def test_circles_are_whole_and_explained_and_seeds_are_drawn(
    seeds: int, laboratory_of: MakeLaboratory, learn_vectors: Callable[[float], None]
) -> None:
    learn_vectors(1.0)
    models = (Nothing(), LeastSquares())[:seeds]
    drawing = draw(fig8, measure(fig8, laboratory_of(fig8, *models)))
    one, two, learning = drawing.axes
    circles = [line for line in one.lines if line.get_marker() == "o"]
    assert len(circles) == 4
    assert not any(line.get_clip_on() for line in circles)
    for axes in (one, two):
        thin = [line for line in axes.lines if line.get_linewidth() == 0.5]
        assert len(thin) == (seeds * len(LABELS) if seeds > 1 else 0)
    assert len(learning.lines) == 1 + 2 * seeds, "a token's norm, EOS and prefix of every seed"
    (legend,) = drawing.legends
    assert "published" in [text.get_text() for text in legend.get_texts()]


def test_every_curve_has_a_colour_of_its_own() -> None:
    assert set(COLORS) == {*LABELS, *ALGORITHMS}
    assert len(set(COLORS.values())) == len(COLORS)


def test_prompts_are_learned_as_the_settings_say() -> None:
    settings = PromptSettings(
        steps=3, batch_sizes=(2, 3), learning_rate=0.1, schedule="constant", separator_norm=0.1
    )
    steps: list[tuple[int, int]] = []
    separator, both = prompts.learn_prompts(
        nn.Linear(10, 10), settings, lambda progress: steps.append((progress.done, progress.total))
    )
    assert separator.prefix is None
    assert separator.separator is not None
    assert both.separator is not None
    assert both.prefix is not None
    assert torch.equal(both.separator, separator.separator)
    assert both.prefix.shape == (20, 10)
    assert steps == [(1, 3), (2, 3), (3, 3)] * 2


def test_published_numbers_are_those_of_the_models_and_of_least_squares() -> None:
    assert set(FEW_SHOT) == {*fig8.recipes, *fig18.recipes, "least squares"}
    for curves in FEW_SHOT.values():
        for at in curves.values():
            assert {0, 1, 3, 5, 10, 20, 30, 59} <= set(at)
            assert at[59] < at[30] < at[20] < at[10]
