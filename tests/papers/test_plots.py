"""Colours are ideas: one each, seen on light and dark pages, and never alone in telling lines apart."""

import itertools
import re
from pathlib import Path

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

from mesaopt.looks import INK, LOOKS, PALETTE, series
from mesaopt.papers.matrices import sum_over_heads
from mesaopt.papers.plots import few_steps, plain_log, style

STYLE = (Path(__file__).parents[2] / "mesaopt" / "report" / "style.css.j2").read_text()
LIGHT, DARK = (
    dict(re.findall(r"--([a-z-]+): (#[0-9a-f]{6})", block))
    for block in re.findall(r":root \{(.*?)\}", STYLE, flags=re.DOTALL)[:2]
)


def contrast(one: str, other: str) -> float:
    """WCAG 2: ratio of relative luminances."""

    def luminance(color: str) -> float:
        parts = np.array(to_rgb(color))
        linear = np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)
        return float(linear @ (0.2126, 0.7152, 0.0722))

    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("page", [LIGHT, DARK], ids=["light", "dark"])
@pytest.mark.parametrize("color", sorted({*PALETTE, *(look.color for look in LOOKS.values())}))
def test_lines_are_seen_on_every_page(color: str, page: dict[str, str]) -> None:
    assert contrast(color, page["card"]) >= 3
    assert contrast(color, page["page"]) >= 3


@pytest.mark.parametrize("page", [LIGHT, DARK], ids=["light", "dark"])
@pytest.mark.parametrize("name", ["ink", "soft", "link", "good", "bad"])
def test_words_are_read_on_every_page(name: str, page: dict[str, str]) -> None:
    backs = [page["page"], page["card"]]
    backs += [page[f"{name}-back"]] if f"{name}-back" in page else []
    assert all(contrast(page[name], back) >= 4.5 for back in backs)


def test_the_page_swaps_the_ink_of_drawings() -> None:
    assert LIGHT["ink"] == INK


SAME = {  # one idea under two names, or two that no figure draws together
    frozenset({"trained model", "1 linear layer"}),
    frozenset({"gradient descent", "weights of gradient descent"}),
    frozenset({"no knowledge", "theory"}),
}


@pytest.mark.parametrize("pair", list(itertools.combinations(LOOKS, 2)), ids=" | ".join)
def test_ideas_are_told_apart_with_and_without_colours(pair: tuple[str, str]) -> None:
    one, other = (LOOKS[name] for name in pair)
    if frozenset(pair) in SAME:
        return
    assert one.color != other.color
    assert (one.dashes, one.marker) != (other.dashes, other.marker)


def test_series_have_markers_of_their_own() -> None:
    assert len({series(number).marker for number in range(8)}) == 8


def test_signs_that_both_matrices_of_a_head_have_turned_cancel() -> None:
    random = np.random.default_rng(0)
    products = random.standard_normal((2, 3, 4, 4))
    turned = products * np.array([1, -1, -1])[:, None, None]
    where = {"blocks": 2, "scored": (1, 0), "written": (0, 1)}
    for ours, theirs in zip(
        sum_over_heads(*products, **where), sum_over_heads(*turned, **where), strict=True
    ):
        np.testing.assert_allclose(ours, theirs)
    key_query, output_value = sum_over_heads(*products, **where)
    coefficient = sum(
        k[2:, :2].trace() / 2 * v[:2, 2:].trace() / 2 for k, v in zip(*products, strict=True)
    )
    assert key_query[2:, :2].trace() / 2 == pytest.approx(coefficient)
    assert output_value[:2, 2:].trace() / 2 == pytest.approx(coefficient)


@pytest.mark.parametrize("steps", [200, 3500, 10_000, 15_000, 40_000, 100_000])
def test_labels_of_steps_do_not_touch(steps: int) -> None:
    with style():
        figure = Figure(figsize=(7.6, 3))
        axes, _ = figure.subplots(1, 2)  # as wide as the panels of a figure
        axes.plot([0, steps], [1.0, 0.1])
        few_steps(axes)
        figure.canvas.draw()
    boxes = [label.get_window_extent() for label in axes.get_xticklabels() if label.get_text()]
    shown = [box for box in boxes if axes.bbox.x0 - 1 <= (box.x0 + box.x1) / 2 <= axes.bbox.x1 + 1]
    assert len(shown) >= 3
    assert all(left.x1 + 3 < right.x0 for left, right in itertools.pairwise(shown))


@pytest.mark.parametrize("losses", [(0.2, 1.7), (1e-3, 2.0)])
def test_losses_are_labelled_with_ordinary_numbers(losses: tuple[float, float]) -> None:
    axes = Figure().subplots()
    axes.plot([0, 1], losses)
    plain_log(axes)
    axes.figure.canvas.draw()
    labels = [label.get_text() for label in axes.get_yticklabels(which="both")]
    numbers = [float(label) for label in labels if label]
    assert sum(losses[0] <= number <= losses[1] for number in numbers) >= 2
