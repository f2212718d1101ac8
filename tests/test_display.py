"""How results show themselves: in a terminal, in a notebook, as a table and as a picture."""

import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import pytest
import torch
from laboratories import a_linearization

from mesaopt import zoo
from mesaopt.analysis import (
    AblationTable,
    AttentionMaps,
    Diagnosis,
    Effect,
    Estimate,
    Evaluation,
    InContextLoss,
    LanguageResults,
    MixerMeasurements,
    ProbeScore,
    ProbeTable,
    Sensitivity,
    TextSample,
    TokenScore,
    TunedPrompt,
    diagnose,
    in_context_loss,
    measure_mixers,
    token_scores,
)
from mesaopt.analysis.in_context import InContextLosses
from mesaopt.config import (
    LanguageModelConfig,
    LinearSystemConfig,
    MixerName,
    ModelConfig,
    RunConfig,
    TextConfig,
    TrainConfig,
)
from mesaopt.display import WIDTH, Curve, Drawn, Shown, _svg, with_error
from mesaopt.models import LanguageModel, SequenceModel
from mesaopt.tasks import LinearSystem, Parity, Text
from mesaopt.theory import gradient_descent
from mesaopt.training import Run

EVIL = "<script>alert('x')</script>\x1b[31m"


def loss_of(seed: int, sequences: int = 64, length: int = 20) -> InContextLoss:
    return InContextLoss(torch.rand(sequences, length, generator=random(seed)))


def random(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def probe_table() -> ProbeTable:
    def score() -> ProbeScore:
        losses = torch.rand(32, generator=random(1))
        return ProbeScore(losses, losses + 1, dim=4, in_sample=0.1, shuffled=2.0)

    names, targets = ("blocks.0.input", "blocks.0"), ("next", EVIL)
    return ProbeTable({(t, n, p): score() for t in targets for n in names for p in (3, 9)})


def a_run(path: Path = Path("runs/mine")) -> Run:
    config = RunConfig(recipe="mine", train=replace(TrainConfig(), steps=100))
    numbers = {"test_loss": 0.5, "learning_rate": 1e-3}
    metrics = [{"step": s, "train_loss": 0.6 if s else None, **numbers} for s in range(0, 101, 10)]
    return Run(path, config, SequenceModel(ModelConfig()), metrics, 3.0)


def an_ablation() -> AblationTable:
    original = loss_of(1)
    effects = {(f"blocks.{i}.mixer", "all"): Effect(original, loss_of(i + 2)) for i in range(2)}
    return AblationTable(original, effects)


def maps() -> AttentionMaps:
    weights = torch.rand(2, 6, 6, generator=random(3)).tril()
    return AttentionMaps(weights, weights / 9, (0, 1), torch.rand(8, 2, 2, generator=random(4)))


def of_mixers(name: MixerName) -> MixerMeasurements:
    model = LanguageModel(LanguageModelConfig(width=8, num_heads=2, mixers=(name,)))
    return measure_mixers(model, torch.randint(256, (2, 9), generator=random(0)))[0]


def scores_on(task: Any) -> TokenScore:
    def guess(batch: Any) -> torch.Tensor:
        return torch.zeros(*batch.targets.shape, task.config.vocabulary)

    return token_scores({"guess": guess}, task, Evaluation(num_sequences=1))["guess"][0]


@pytest.fixture(scope="module")
def diagnosis() -> Diagnosis:
    class Descent(torch.nn.Module):
        def forward(self, tokens: torch.Tensor) -> torch.Tensor:
            return gradient_descent(tokens, step_size=0.05)

    task = LinearSystem(LinearSystemConfig(dim=3, length=9, token_slots=("current",)))
    return diagnose(Descent(), task, num_sequences=256)


RESULTS: dict[str, Callable[[], Shown]] = {
    "one loss": lambda: loss_of(0),
    "several losses": lambda: InContextLosses({"a": loss_of(0), EVIL: loss_of(1)}),
    "no losses": lambda: InContextLosses(),
    "one sequence": lambda: loss_of(0, sequences=1),
    "sensitivity": lambda: Sensitivity(
        3, torch.rand(8, 5, generator=random(0)), torch.rand(8, 5, generator=random(1))
    ),
    "probes": probe_table,
    "a probe": lambda: next(iter(probe_table().scores.values())),
    "ablation": an_ablation,
    "effect": lambda: an_ablation().at("blocks.0.mixer"),
    "attention": maps,
    "linearization": lambda: a_linearization((1.1, 1.5), unexplained=(0.1, 0.95), loss=0.3),
    "prompt": lambda: TunedPrompt(
        separator=torch.zeros(4), losses=torch.rand(9, generator=random(0)), norms=torch.ones(9, 1)
    ),
    "mixer": lambda: of_mixers("mesanet2025"),
    "mixer that solves no system": lambda: of_mixers("softmax_attention"),
    "scores of text": lambda: scores_on(Text(TextConfig(length=20))),
    "scores at some places": lambda: scores_on(Parity()),
    "language model": lambda: LanguageResults(
        [scores_on(Parity()), scores_on(Text(TextConfig(length=20)))],
        [of_mixers("mesa")],
        TextSample(EVIL, f"\n{EVIL}", ""),
    ),
    "run": a_run,
    "run with a strange name": lambda: a_run(Path(f"runs/{EVIL}")),
    "model of the zoo": lambda: zoo.get("lsa-1"),
}


@pytest.fixture(params=[*RESULTS, "diagnosis", "learning"])
def result(request: pytest.FixtureRequest) -> Shown:
    if request.param in RESULTS:
        return RESULTS[request.param]()
    found = request.getfixturevalue("diagnosis")
    return found if request.param == "diagnosis" else found.learning


class Balanced(HTMLParser):
    """Checks that all elements are closed, and collects their names."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.opened: list[str] = []
        self.seen: set[str] = set()
        self.feed(page)
        assert self.opened == []

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.seen.add(tag)
        if tag not in ("br", "polyline", "polygon", "path"):
            self.opened.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in ("polyline", "polygon", "path"):
            assert self.opened.pop() == tag


def test_a_result_prints_as_a_few_lines_of_a_terminal(result: Shown) -> None:
    lines = repr(result).splitlines()
    assert str(result) == repr(result)
    assert 1 <= len(lines) <= 12
    assert max(map(len, lines)) <= WIDTH
    assert "tensor(" not in repr(result)
    assert repr(result).replace("\n", "").isprintable()


def test_a_result_is_a_closed_and_escaped_piece_of_a_page(result: Shown) -> None:
    page = result._repr_html_()
    seen = Balanced(page).seen
    assert "script" not in seen
    tables, drawings = "table tr th td", "svg path polyline polygon text"
    assert seen <= {*f"div p br span {tables} {drawings}".split()}
    assert "\x1b" not in page
    assert "background" not in page, "the page says whether it is light or dark"
    assert "nan" not in page


def test_a_result_becomes_a_tidy_table(result: Shown) -> None:
    table = result.to_dataframe()
    assert len(table) == len(result._rows())
    assert not any(
        isinstance(cell, Estimate | torch.Tensor) for row in table.values for cell in row
    )
    if "position" in table:
        assert table["position"].min() >= 1


def test_a_result_is_drawn_on_the_axes_that_are_given(result: Shown) -> None:
    if not isinstance(result, Drawn):
        pytest.skip("has no picture")
    figure, given = plt.subplots()
    assert result.plot(given) is given
    assert plt.get_fignums() == [figure.number], "no other figure is made"
    own = result.plot()
    assert own.figure is not figure
    plt.close("all")


def test_the_answer_comes_first(diagnosis: Diagnosis) -> None:
    lines = repr(diagnosis).splitlines()
    assert lines[0] == "Yes."
    assert [line.rstrip("0123456789.± ")[-3:] for line in lines[-4:]] == ["yes"] * 4
    assert repr(loss_of(0)).startswith(f"In-context loss {loss_of(0).estimate} on 64 sequences")
    assert repr(a_run()).startswith("Run mine: test loss 0.5 after 100 of 100 steps")


def test_measured_numbers_have_a_column_for_their_error() -> None:
    table, loss = loss_of(0).to_dataframe(), loss_of(0)
    assert list(table.columns) == ["position", "loss", "loss_error"]
    assert table["loss"].tolist() == pytest.approx(loss.curve.tolist())
    assert table["loss_error"].tolist() == pytest.approx(loss.curve_error.tolist())
    several = InContextLosses({"a": loss_of(0), "b": loss_of(1)}).to_dataframe()
    assert several.groupby("predictor").size().to_dict() == {"a": 20, "b": 20}


def test_several_predictors_give_a_dictionary_that_shows_itself() -> None:
    task = LinearSystem(LinearSystemConfig(length=6))
    losses = in_context_loss({"zero": lambda batch: 0 * batch.targets}, task)
    assert isinstance(losses, dict)
    assert list(losses) == ["zero"]
    assert repr(losses).splitlines()[1].split()[:3] == ["predictor", "mean", "loss"]


def test_without_pandas_it_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(ImportError, match="to_dataframe needs pandas: pip install pandas"):
        loss_of(0).to_dataframe()


@pytest.mark.parametrize(
    ("value", "error", "text"),
    [
        (0.9512, 0.0031, "0.9512 ± 0.0031"),
        (12.0, 3.0, "12.0 ± 3.0"),
        (1234.5, 678.0, "1234 ± 678"),
        (1e7, 3.0, "1e+07 ± 3"),
        (1.0, 4e-17, "1"),
        (0.5, float("nan"), "0.5"),
        (float("nan"), 0.1, "nan"),
        (float("inf"), float("nan"), "inf"),
        (0.0, 1e-12, "0 ± 1e-12"),
    ],
)
def test_a_number_shows_two_digits_of_its_error(value: float, error: float, text: str) -> None:
    assert with_error(value, error) == text
    assert str(Estimate(value, error)) == text


def test_columns_that_do_not_fit_are_left_out_and_long_lines_end() -> None:
    class Wide(Shown):
        def _headline(self) -> str:
            return "word " * 40

        def _rows(self) -> list[dict[str, Any]]:
            return [{f"column {i}": 1.0 for i in range(30)}, {f"column {i}": 2 for i in range(30)}]

    lines = repr(Wide()).splitlines()
    assert max(map(len, lines)) <= WIDTH
    assert lines[-1].split() == ["2"] * 8


@pytest.mark.parametrize(
    ("first", "second", "ends"),
    [
        ((0, 100), (0, 200), ("0", "200")),
        ((50, 200), (0, 100), ("0", "200")),
        (("a", "b"), ("a", "b", "c"), ("a", "c")),
    ],
)
def test_the_ends_of_the_axis_are_those_of_all_curves(
    first: Sequence[Any], second: Sequence[Any], ends: tuple[str, str]
) -> None:
    drawing = _svg([Curve(str(x), x, (1.0,) * len(x)) for x in (first, second)], log=False)
    assert tuple(re.findall(r"<text[^>]*>([^<]*)</text>", drawing)[2:]) == ends


def test_a_curve_without_spread_or_with_infinite_points_is_drawn() -> None:
    class Odd(Drawn):
        _axes = {"yscale": "log"}

        def _headline(self) -> str:
            return "odd"

        def _rows(self) -> list[dict[str, Any]]:
            return []

        def _curves(self) -> list[Curve]:
            return [Curve("flat", (1, 2), (1.0, 1.0)), Curve("nan", (1, 2), (float("nan"), 1.0))]

    page = Odd()._repr_html_()
    assert Balanced(page).seen >= {"svg", "polyline"}
    assert 'role="img" aria-label="plot of flat, nan"' in page
    assert "nan" not in page.replace("> nan<", "").replace("flat, nan", "")


def test_a_band_is_symmetric_except_where_a_logarithm_has_no_room_for_it() -> None:
    axes = Effect(loss_of(0), loss_of(1)).plot()
    (band,), (line,) = axes.collections, axes.lines
    heights = band.get_paths()[0].vertices[:, 1]
    effect = Effect(loss_of(0), loss_of(1))
    least = (effect.curve - 1.96 * effect.curve_error).min()
    assert min(heights) == pytest.approx(least.item(), abs=1e-6)
    assert len(line.get_ydata()) == 20
    noisy = InContextLoss(torch.tensor([[1.0, 9.0], [3.0, 0.1]]))
    assert min(noisy.plot().collections[0].get_paths()[0].vertices[:, 1]) > 0
    plt.close("all")
