import inspect
import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from mesaopt import recipes
from mesaopt.analysis import (
    Evaluation,
    capture,
    collect_activations,
    current_token,
    fit_probe,
    next_token,
    official_probe_error,
    past_token,
    preconditioned_token,
    probe,
    probe_layers,
    score_probes,
    stream_names,
)
from mesaopt.config import LinearSystemConfig, ModelConfig, NonlinearSystemConfig, stacked
from mesaopt.models import SequenceModel
from mesaopt.tasks import (
    ARProcess,
    LinearSystem,
    NonlinearSystem,
    PartiallyObserved,
    tokens_from_states,
)
from mesaopt.theory import (
    PUBLISHED_INVERSES,
    chebyshev_inverse,
    context_statistics,
    preconditioned_descent,
    proposition_1,
    ridge_least_squares,
)

TASK = LinearSystem(LinearSystemConfig(length=12))


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 6), st.integers(1, 4), st.integers(0, 1000), st.floats(1e-3, 1e3))
def test_an_affine_relation_is_predicted_exactly_in_any_unit(
    width: int, dim: int, seed: int, unit: float
) -> None:
    x = unit * (normal(60, width, seed=seed) + 3)
    y = x @ normal(width, dim, seed=seed + 1) + normal(dim, seed=seed + 2)
    score = probe(x[:30], y[:30], x[30:], y[30:])
    # The relative ridge of 1e-9 takes 1e-9 of a weight, times the condition of 30 sequences.
    assert score.mean <= 1e-12 * score.uninformative


def test_the_ridge_is_that_of_the_definition() -> None:
    x, y, ridge = normal(20, 3), normal(20, 2, seed=1), 0.3
    found = fit_probe(x, y, ridge=ridge)
    weight, intercept = found.weight.requires_grad_(), found.intercept.requires_grad_()
    variances = x.var(0, correction=0)
    objective = (y - x @ weight - intercept).square().sum(1).mean()
    objective = objective + ridge * (variances[:, None] * weight.square()).sum()
    # At the minimum the gradient is rounding.
    for gradient in torch.autograd.grad(objective, (weight, intercept)):
        assert gradient.abs().max() < 1e-12


def test_places_are_probed_each_by_itself() -> None:
    x, y = normal(3, 20, 4), normal(3, 20, 2, seed=1)
    together = fit_probe(x, y)
    for place in range(3):
        alone = fit_probe(x[place], y[place])
        torch.testing.assert_close(together.weight[place], alone.weight, rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(together.predict(x)[place], alone.predict(x[place]))


def test_copies_and_zeros_among_features_do_no_harm() -> None:
    x = normal(80, 3)
    copied = torch.cat([x, x, torch.zeros(80, 2)], dim=1)
    for features in (x, copied):
        assert probe(features[:40], x[:40], features[40:], x[40:]).mean < 1e-12
    nothing = probe(torch.zeros(40, 2), x[:40], torch.zeros(40, 2), x[40:])
    assert nothing.mean == pytest.approx(nothing.uninformative)


def test_noise_is_fitted_in_sample_and_costs_on_other_sequences() -> None:
    fitted, width = 400, 100
    score = probe(
        normal(fitted, width),
        normal(fitted, 10, seed=1),
        normal(4000, width, seed=2),
        normal(4000, 10, seed=3),
    )
    # In expectation 5 (1 - p/n) with p = width + 1, and 5 (1 + p / (n - p - 1)); 10 n squares, 3 % noise.
    assert score.in_sample == pytest.approx(5 * (1 - 101 / 400), rel=0.05)
    assert score.mean == pytest.approx(5 * (1 + 101 / 298), rel=0.05)
    assert score.shuffled == pytest.approx(score.mean, rel=0.05)
    assert score.uninformative == pytest.approx(5, rel=0.05)
    assert score.r2 < -0.2
    assert score.unexplained.error < score.estimate.error / score.uninformative, (
        "one sequence is hard for both"
    )
    assert abs(score.mean - score.losses.mean().item()) < 1e-12
    assert score.per_coordinate == 0.2


def test_the_shuffled_control_explains_nothing() -> None:
    x = normal(600, 5)
    score = probe(x[:300], x[:300], x[300:], x[300:], seed=1)
    assert score.mean < 1e-12
    assert score.shuffled > score.uninformative > 1


def test_published_errors_are_those_of_the_same_sequences() -> None:
    x, y = normal(256, 40), normal(256, 10, seed=1)
    direct = y - x @ torch.linalg.lstsq(x, y).solution
    assert official_probe_error(x, y) == pytest.approx(direct.square().sum(1).mean().item() / 2)
    # 5 (1 - 40/256), as 2560 normal numbers give it: 3 % noise.
    assert official_probe_error(x, y) == pytest.approx(5 * (1 - 40 / 256), rel=0.1)
    copied = torch.cat([x, x], dim=1)
    assert official_probe_error(copied, y) == pytest.approx(official_probe_error(x, y))
    shifted = official_probe_error(x[:, :1], torch.ones(256, 1))
    assert shifted > 0.4, "there is no intercept"


def test_outliers_are_dropped_on_one_side_only() -> None:
    x, y = torch.zeros(100, 1), torch.ones(100, 1)
    y[0], y[1] = 100.0, 0.0
    assert official_probe_error(x, y, outlier_score=2.0) == pytest.approx(98 / 99 / 2)
    assert official_probe_error(x, y) == pytest.approx((98 + 100**2) / 100 / 2)
    bare = inspect.unwrap(official_probe_error)
    for score in (-1.0, math.nan):
        with pytest.raises(ValueError, match=f"outlier_score={score}: must be 0 or greater"):
            bare(x, y, outlier_score=score)


@pytest.mark.parametrize("size", [0.1, 1.0, 3.0])
@pytest.mark.parametrize("score", [0.0, 2.0])
def test_targets_of_one_size_are_no_outliers(size: float, score: float) -> None:
    x, y = normal(30, 1), size * normal(30, 1, seed=1).sign()
    assert official_probe_error(x, y, outlier_score=score) == official_probe_error(x, y)


def test_too_few_sequences_are_refused_with_both_numbers() -> None:
    x, y = normal(40, 40), normal(40, 2)
    with pytest.raises(ValueError, match="40 sequences for 40 features: must be 41 or more"):
        probe(x, y, x, y)
    with pytest.raises(ValueError, match="^features: 40 sequences for 40 features: must be 41"):
        fit_probe(x, y)
    with pytest.raises(ValueError, match=r"targets \(39, 2\): must be of as many sequences"):
        fit_probe(x, y[:39])
    with pytest.raises(ValueError, match="complex128: must be real"):
        fit_probe(x + 0j, y)
    with pytest.raises(ValueError, match=r"ridge=-1.0: must be 0 or greater"):
        fit_probe(x[:, :3], y, ridge=-1.0)


def test_too_few_sequences_for_a_part_are_refused_before_they_are_run() -> None:
    class Counting(nn.Linear):
        seen = 0

        def forward(self, x: Tensor) -> Tensor:
            self.seen += len(x)
            return super().forward(x)

    model, done = nn.Sequential(Counting(10, 300), nn.Linear(300, 10)), []
    settings = {"positions": [7], "slots": ("current",)}
    message = "256 sequences for 300 features of '0': must be 301 or more"
    with pytest.raises(ValueError, match=f"^num_fit=250: {message}"):
        probe_layers(
            model,
            TASK,
            {"current": current_token},
            names=["0.input", "0"],
            num_fit=250,
            progress=lambda progress: done.append((progress.done, progress.total)),
            **settings,
        )
    assert model[0].seen == 1
    assert not done
    fit = collect_activations(
        model,
        TASK,
        {"next": next_token},
        names=["0"],
        evaluation=Evaluation(num_sequences=256),
        **settings,
    )
    with pytest.raises(ValueError, match=f"^fit: {message}"):
        score_probes(fit, fit)
    with pytest.raises(ValueError, match="^num_score=0: must be 1 or greater"):
        probe_layers(model, TASK, {}, names=["0.input"], num_score=0, **settings)


def test_tokens_are_those_of_the_sequence() -> None:
    batch = TASK.sample(3, seed=0)
    positions = [5, 12]
    torch.testing.assert_close(current_token(batch, positions), batch.states[:, [4, 11]])
    torch.testing.assert_close(past_token(0)(batch, positions), current_token(batch, positions))
    torch.testing.assert_close(past_token(4)(batch, positions), batch.states[:, [0, 7]])
    torch.testing.assert_close(next_token(batch, positions), batch.states[:, [5, 12]])
    with pytest.raises(ValueError, match="position=5: has no token 5 steps back"):
        past_token(5)(batch, positions)
    with pytest.raises(ValueError, match="steps=-1: must be 0 or greater"):
        past_token(-1)


def test_features_of_a_token() -> None:
    task = NonlinearSystem(NonlinearSystemConfig(length=5))
    batch = task.sample(3, seed=0)
    raw = past_token(1, through=task.teacher)(batch, [4])
    torch.testing.assert_close(raw[:, 0], task.teacher(batch.states[:, 2]))
    unit = past_token(1, through=task.features)(batch, [4])
    torch.testing.assert_close(unit[:, 0], raw[:, 0] / raw[:, 0].norm(dim=-1, keepdim=True))


def side_by_side(states: Tensor) -> Tensor:
    return tokens_from_states(states, stacked(3))


INVERSE = PUBLISHED_INVERSES["partially-observed"]


@pytest.mark.parametrize("method", [0.1, INVERSE], ids=["exact", "steps"])
@pytest.mark.parametrize("pairs", ["all", "official"])
@pytest.mark.parametrize("inputs", [None, side_by_side])
def test_the_cross_matrix_times_the_preconditioned_input_is_the_prediction(
    method, pairs, inputs
) -> None:
    batch = PartiallyObserved(recipes.TASKS["partial"]).sample(4, seed=0)
    states = batch.observed.double()
    settings = {"inputs": None if inputs is None else inputs(states), "pairs": pairs}
    if method is INVERSE:
        prediction = preconditioned_descent(states, method, **settings)
    else:
        prediction = ridge_least_squares(states, ridge=method, **settings)
    cross = context_statistics(states, **settings)[1]
    positions = [1, 2, 20]
    read = preconditioned_token(method, inputs=inputs, pairs=pairs)(batch, positions)
    expected = (cross[:, [0, 1, 19]] @ read[..., None]).squeeze(-1)
    torch.testing.assert_close(prediction[:, [0, 1, 19]], expected, rtol=1e-9, atol=1e-10)
    assert (expected[:, 2] != 0).all()


@pytest.mark.parametrize("method", [0.1, INVERSE], ids=["exact", "steps"])
def test_preconditioned_complex_inputs_keep_both_parts(method) -> None:
    batch = ARProcess(dim=3, length=8).sample(4, seed=0)
    states = batch.observed.to(torch.complex128)
    if method is INVERSE:
        prediction = preconditioned_descent(states, method)
    else:
        prediction = ridge_least_squares(states, ridge=method)
    read = preconditioned_token(method)(batch, [2, 7])
    expected = (context_statistics(states)[1][:, [1, 6]] @ read[..., None]).squeeze(-1)
    torch.testing.assert_close(prediction[:, [1, 6]], expected, rtol=1e-9, atol=1e-10)


def test_an_approximate_inverse_comes_near_the_exact_one() -> None:
    batch, positions = TASK.sample(20, seed=0), [3, 12]
    exact = preconditioned_token(1.0)(batch, positions)
    # Eigenvalues of the Gram matrices are within ridge and trace, about 1 and 12 * 3.3 + 1.
    inverse = chebyshev_inverse(40, smallest=1.0, largest=60.0, ridge=1.0)
    near = preconditioned_token(inverse)(batch, positions)
    # The residual is at most 1 / T_40((60 + 1) / (60 - 1)) = 6e-5 of the input's norm, about 2.
    torch.testing.assert_close(near, exact, rtol=0, atol=2e-4)
    for ridge in (0.0, math.inf, math.nan):
        with pytest.raises(ValueError, match=rf"method={ridge}: must be a ridge greater than 0"):
            preconditioned_token(ridge)


def test_a_layer_of_the_gradient_step_keeps_the_tokens_and_adds_the_prediction() -> None:
    config = replace(recipes.get("lsa-1").model, activation_clip=None)
    model = SequenceModel(config)
    model.load_state_dict(proposition_1(10, step_size=0.05, num_heads=2, head_dim=20))
    task = LinearSystem(replace(recipes.get("lsa-1").task, length=30))
    targets = {"current": current_token, "previous": past_token(1), "next": next_token}
    targets["older"] = past_token(2)
    table = probe_layers(model, task, targets, positions=[10, 30], num_fit=1024, num_score=512)
    for name in ("blocks.0.input", "blocks.0"):
        for kept in ("current", "previous"):
            assert table.at(kept, name, 30).r2 > 1 - 1e-9
    before, after = table.by_depth("next", 30).values()
    # Over rotations the mean of W is 0 and that of W^2 is I / 10: the token tells a hundredth of the next
    # state's variance. A gradient step tells more and more.
    assert before.r2 < 0.05
    assert after.r2 > table.at("next", "blocks.0", 10).r2 > 0.1
    assert list(table.by_position("next", "blocks.0")) == [10, 30]
    # Of s_{t-2} likewise; at 20 features that carry something and 1024 sequences this is lost again.
    assert table.at("older", "blocks.0.input", 30).r2 < 0.02


def test_any_module_is_probed_at_the_named_layers() -> None:
    model = nn.Sequential(nn.Linear(10, 4, bias=False), nn.Linear(4, 10))
    with pytest.raises(ValueError, match="names=None: must be given for a Sequential"):
        stream_names(model)
    slots = ("current",)
    table = probe_layers(
        model,
        TASK,
        {"current": current_token},
        positions=[7],
        names=["0.input", "0"],
        num_fit=256,
        num_score=256,
        slots=slots,
    )
    # Four of ten directions get through.
    assert table.at("current", "0.input", 7).r2 == pytest.approx(1)
    assert table.at("current", "0", 7).r2 == pytest.approx(0.4, abs=0.1)


def test_heads_are_concatenated_and_repeated_names_are_dropped() -> None:
    model = SequenceModel(ModelConfig(mixers=("softmax_attention",), initial_std=0.5))
    mixer = "blocks.0.mixer"
    for end in ("queries", "keys", "values"):
        names = [f"{mixer}.{end}", f"{mixer}.{end}"]
        found = collect_activations(
            model, TASK, {}, positions=[2, 9], names=names, evaluation=Evaluation(num_sequences=256)
        ).features[names[0]]
        tokens = TASK.sample(256, seed=0, split="test").tokens
        wanted = capture(model, tokens, names)[names[0]][:, [1, 8]]
        torch.testing.assert_close(found.unflatten(-1, (4, -1)), wanted)


def test_parts_of_another_shape_are_refused_by_name() -> None:
    model = SequenceModel(ModelConfig(mixers=("softmax_attention",)))
    read = lambda names: collect_activations(model, TASK, {}, positions=[2], names=names)  # noqa: E731
    message = r"'blocks.0.mixer.attention' gives shape \(256, 4, 12, 12\): must be .*; a map has no"
    with pytest.raises(ValueError, match=message):
        read(["blocks.0.mixer.attention"])
    with pytest.raises(ValueError, match="^names='blocks.0': must be a list of names"):
        read("blocks.0")
    # Time in front, as modules of PyTorch have it by default.
    turned = nn.Sequential(Turned(), nn.Linear(10, 4))
    with pytest.raises(ValueError, match=r"'1' gives shape \(12, 256, 4\): must be \[batch, time"):
        collect_activations(turned, TASK, {}, positions=[2], names=["1"], slots=("current",))


class Turned(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.transpose(0, 1)


def test_dropout_is_off_and_comes_back() -> None:
    model = nn.Sequential(nn.Dropout(0.5), nn.Linear(10, 4))
    evaluation = Evaluation(num_sequences=256)
    settings = {"positions": [7], "evaluation": evaluation, "slots": ("current",)}
    found = collect_activations(model, TASK, {"now": current_token}, names=["0"], **settings)
    assert torch.equal(found.features["0"], found.targets["now"])
    assert model[0].training


def test_fitting_and_scoring_see_other_sequences_and_report() -> None:
    model, done = SequenceModel(ModelConfig(), seed=1), []
    table = probe_layers(
        model,
        TASK,
        {"next": next_token},
        positions=[3],
        num_fit=512,
        num_score=256,
        seed=5,
        progress=lambda progress: done.append((progress.done, progress.total)),
    )
    assert done == [(1, 3), (2, 3), (3, 3)]
    assert len(table.at("next", "blocks.0", 3).losses) == 256
    common = {"num_sequences": 256, "seed": 5}
    fit, score = (
        collect_activations(model, TASK, {"next": next_token}, positions=[3], evaluation=evaluation)
        for evaluation in (Evaluation(split="validation", **common), Evaluation(**common))
    )
    assert not (fit.targets["next"] == score.targets["next"]).any()
    torch.testing.assert_close(
        score.targets["next"], TASK.sample(256, seed=5, split="test").targets[:, [2]]
    )
    with pytest.raises(ValueError, match=r"positions=\(4,\): must be those fitted, \(3,\)"):
        score_probes(fit, replace(score, positions=(4,)))


@pytest.mark.parametrize("position", [0, 13])
def test_positions_outside_of_the_sequence_are_refused(position: int) -> None:
    with pytest.raises(ValueError, match=f"position={position}: must be between 1 and 12"):
        collect_activations(
            SequenceModel(ModelConfig()), TASK, {"next": next_token}, positions=[position]
        )


@pytest.mark.parametrize("ridge", [0.0, 1e-9, 0.3])
@pytest.mark.parametrize("unit", [1e-200, 1e-30, 1e-5, 1e5, 1e30, 1e200])
def test_the_unit_of_a_single_feature_does_not_matter(unit: float, ridge: float) -> None:
    x = normal(200, 4)
    y = x @ normal(4, 2, seed=1) + 0.1 * normal(200, 2, seed=2)
    other = x * torch.tensor([1.0, unit, 1.0, 1.0], dtype=torch.float64)
    wanted, found = (probe(z[:100], y[:100], z[100:], y[100:], ridge=ridge) for z in (x, other))
    torch.testing.assert_close(found.losses, wanted.losses, rtol=1e-9, atol=1e-12)
    assert found.r2 == pytest.approx(wanted.r2, rel=1e-9)


def test_a_large_feature_hides_nothing() -> None:
    x = normal(200, 3)
    y = x[:, 1:]
    large = x * torch.tensor([1e5, 1.0, 1.0]).double()
    assert probe(large[:100], y[:100], large[100:], y[100:]).r2 == pytest.approx(1)


@pytest.mark.parametrize("constant", [0.0, 0.1, -1e8, 1e-30])
def test_constant_features_get_no_weight(constant: float) -> None:
    x = normal(200, 3)
    y = x @ normal(3, 2, seed=1)
    more = torch.cat([x, torch.full((200, 2), constant).double()], dim=1)
    found = fit_probe(more[:100], y[:100])
    assert torch.equal(found.weight[3:], torch.zeros(2, 2).double())
    torch.testing.assert_close(found.weight[:3], fit_probe(x[:100], y[:100]).weight)


@pytest.mark.parametrize("constant", [0.0, 0.1, 1 / 3, 1e8])
def test_a_target_that_does_not_vary_has_no_score(constant: float) -> None:
    x, y = normal(200, 3), torch.full((200, 2), constant).double()
    score = probe(x[:99], y[:99], x[99:], y[99:])
    assert score.mean == 0
    assert score.uninformative == 0
    assert score.unexplained.value != score.unexplained.value  # NaN
    assert score.r2 != score.r2


@pytest.mark.parametrize("name", ["copy", "sum", "constant"])
def test_a_ridge_of_zero_refuses_features_that_depend_on_others(name: str) -> None:
    x = normal(100, 3)
    more = {"copy": 1e5 * x[:, :1], "sum": x[:, :1] + x[:, 1:2] / 3, "constant": 0 * x[:, :1] + 0.1}
    with pytest.raises(ValueError, match="^ridge=0: features are linearly dependent"):
        fit_probe(torch.cat([x, more[name]], dim=1), x, ridge=0.0)
    assert (
        fit_probe(torch.cat([x, more[name]], dim=1), x)
        .predict(torch.cat([x, more[name]], dim=1))
        .allclose(x, atol=1e-6)
    )
