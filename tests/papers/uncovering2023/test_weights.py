"""Figures 9, 10 and 13, and how matrices are drawn."""

import pytest
import torch
from laboratories import PLAN, compute, run_of
from matplotlib.figure import Figure as Drawing

from mesaopt.analysis import Compressed
from mesaopt.models import SequenceModel
from mesaopt.papers.matrices import MatrixRow, Picture, draw_matrices, matrix_data
from mesaopt.papers.plots import style
from mesaopt.papers.uncovering2023.laboratory import Laboratory
from mesaopt.papers.uncovering2023.weights import compressed, fig9, fig10, fig13
from mesaopt.recipes import MODELS
from mesaopt.theory import proposition_1


def gradient_step() -> SequenceModel:
    model = SequenceModel(MODELS["lsa-1"])
    model.load_state_dict(proposition_1(10, step_size=0.0334, num_heads=2, head_dim=20))
    return model


def test_fig13_tells_a_gradient_step_from_an_untrained_layer() -> None:
    for model, passes in ((gradient_step(), True), (None, False)):
        figure = compute(fig13, Laboratory(PLAN, {"lsa-1": [run_of("lsa-1", model)]}))
        assert set(figure.verdicts.values()) == {passes}
        assert len(figure.rows) == 2 * 2 * 40
        assert figure.rows[0]["matrix"] == "W_k^T W_q"
        assert len(figure.rows[0]["weights"].split()) == 40


def scalars_but_for_the_last_layer() -> SequenceModel:
    model = SequenceModel(MODELS["lsa-6"])
    for mixer in model.mixers[:5]:
        for weight in mixer.parameters():
            small = torch.randn(weight.shape[0] // 10, weight.shape[1] // 10)
            weight.data = torch.kron(small, torch.eye(10))
    return model


def test_fig9_tells_scalars_from_weights_of_all_kinds() -> None:
    torch.manual_seed(0)
    made = run_of("lsa-6", scalars_but_for_the_last_layer(), steps=10)
    figure = compute(fig9, Laboratory(PLAN, {"lsa-6": [made]}))
    assert all(figure.verdicts.values())
    assert len(figure.claims) == 2, "published shares are judged after the published training only"
    assert figure.settings["share of W_k^T W_q"]["layer 1"] == "1.00"
    assert len(figure.rows) == 3 * 2 * 4 * 40
    assert "test sequences" not in figure.settings, "weights have none"
    (data,) = figure.panels.values()
    assert data.more["matrices"][0]["blocks"] == ["pred.", "$s_t$", "$s_t$", "$s_{t-1}$"]
    assert (
        "where the prediction grows, twice the current state, and the previous one" in fig9.caption
    )
    untrained = compute(fig9, Laboratory(PLAN, {"lsa-6": [run_of("lsa-6")]}))
    failed = {name for name, passed in untrained.verdicts.items() if not passed}
    assert failed >= {
        "fig9-early-layers-are-scalars",
        "fig9-last-layer-is-not",
        "fig9-energy-layer-1-4",
    }
    assert len(untrained.claims) == 5


def test_fig9_does_not_judge_the_last_layer_where_the_others_are_no_scalars() -> None:
    run = run_of("lsa-6", steps=10)
    for factor, ratio, passes in ((1, 1.0, False), (20, 0.25, True)):
        energy = factor * torch.tensor([0.04, 0.04, 0.04, 0.04, 0.04, 0.01])
        by_head = energy[:, None].expand(6, 4)
        lab = Laboratory(PLAN, {"lsa-6": [run]})
        (one,) = compressed(lab, "lsa-6")
        made = Compressed(one.model, one.key_query, one.output_value, by_head, by_head)
        lab.remember(compressed, "lsa-6", value=[made])
        claim = compute(fig9, lab).claims["fig9-last-layer-is-not"]
        assert claim.passed is passes
        assert claim.value == pytest.approx(ratio)


def test_fig10_has_positions_in_the_first_layer_only() -> None:
    figure = compute(fig10, Laboratory(PLAN, {"tf-7": [run_of("tf-7")]}))
    lines = [row for row in figure.rows if row["panel"] == "head 1"]
    widths = {row["matrix"]: len(row["weights"].split()) for row in lines}
    assert list(widths.values()) == [80, 40, 40, 40]
    assert len(lines) == 80 + 3 * 40


def drawn(rows: list[MatrixRow], **colors) -> Drawing:
    drawing = Drawing()
    with style():
        draw_matrices(drawing.subfigures(1, 1), matrix_data(rows, **colors))
    return drawing


def test_colours_are_centred_at_zero_and_shared_within_a_row() -> None:
    def row(*largest: float) -> MatrixRow:
        return MatrixRow("x", [Picture(x * torch.eye(4), f"{x}") for x in largest], ("a", "b"))

    rows = [row(1.0, -2.0), row(0.5, 5.0)]
    for colors, wanted in (("row", [2.0, 2.0, 5.0, 5.0]), ("picture", [1.0, 2.0, 0.5, 5.0])):
        images = [image for axes in drawn(rows, colors=colors).axes for image in axes.images]
        assert [image.get_clim() for image in images] == [(-x, x) for x in wanted]
    lines = matrix_data(rows).rows
    assert len(lines) == 16
    assert lines[4]["weights"] == "-2 -0 -0 -0"


def test_colours_may_leave_out_the_largest_entries() -> None:
    matrix = torch.arange(100.0).reshape(10, 10)
    drawing = drawn([MatrixRow("x", [Picture(-matrix, "y")], ("a",), share=0.9)])
    (limits,) = {image.get_clim() for image in drawing.axes[0].images}
    assert limits == pytest.approx((-89.1, 89.1))  # 0.9 of the way from 0 to 99
