import math
from collections.abc import Callable
from functools import cache

import pytest
import torch
from torch import Tensor, nn

from mesaopt.analysis import Diagnosis, diagnose
from mesaopt.analysis.diagnosis.candidates import Candidate
from mesaopt.analysis.diagnosis.evidence import Learning
from mesaopt.analysis.diagnosis.laws import HISTORY, Imitation, Rescaled
from mesaopt.analysis.diagnosis.scores import Estimate, nearest, ratio, score
from mesaopt.analysis.diagnosis.verdict import Agreement, Shift, judge
from mesaopt.config import (
    FewShotConfig,
    LinearSystemConfig,
    ModelConfig,
    PartiallyObservedConfig,
    stacked,
)
from mesaopt.models import SequenceModel
from mesaopt.tasks import (
    FewShot,
    LinearSystem,
    PartiallyObserved,
    Task,
    generator,
    haar_orthogonal,
    tokens_from_states,
)
from mesaopt.theory import (
    context_statistics,
    gradient_descent,
    kernel_regression,
    polynomial_prediction,
    ridge_least_squares,
)

PLAIN = LinearSystemConfig(dim=4, length=12, token_slots=("current",))
TASK = LinearSystem(PLAIN)
FIXED_MAP = haar_orthogonal(generator(0, "test"), 1, 4)[0].float()


class Algorithm(nn.Module):
    """A model that is an algorithm on plain tokens."""

    def __init__(self, predict: Callable[[Tensor], Tensor]):
        super().__init__()
        self.predict = predict

    def forward(self, tokens: Tensor) -> Tensor:
        return self.predict(tokens)


def coordinate_by_coordinate(states: Tensor) -> Tensor:
    """Learns in context, by something not listed: every coordinate from its own past alone."""
    gram, cross = (x.diagonal(dim1=-2, dim2=-1) for x in context_statistics(states))
    return cross / (gram + 1e-3) * states


ALGORITHMS: dict[str, Callable[[Tensor], Tensor]] = {
    "1 gradient step": lambda x: gradient_descent(x, step_size=0.05),
    "3 gradient steps": lambda x: gradient_descent(x, step_size=0.04, num_steps=3),
    "6 gradient steps on the mean": lambda x: gradient_descent(
        x, step_size=0.4, num_steps=6, objective="mean"
    ),
    "preconditioned step, polynomial of degree 1": lambda x: polynomial_prediction(x, (0.1, 0.002)),
    "ridge least squares": lambda x: ridge_least_squares(x, ridge=0.1),
    "kernel smoother": lambda x: kernel_regression(x, inverse_temperature=2.0),
    "last observation, scaled": lambda x: 0.7 * x,
    "one fixed map": lambda x: x @ FIXED_MAP.mT,
    "zero": torch.zeros_like,
}
OPTIMIZERS = list(ALGORITHMS)[:5]
PARAMETERS = {
    "1 gradient step": 0.05,
    "3 gradient steps": 0.04,
    "6 gradient steps on the mean": 0.4,
    "ridge least squares": 0.1,
    "kernel smoother": 2.0,
    "last observation, scaled": 0.7,
}


@cache
def diagnosis_of(name: str) -> Diagnosis:
    return diagnose(Algorithm(ALGORITHMS[name]), TASK, num_sequences=256)


@pytest.mark.parametrize("name", ALGORITHMS)
def test_an_algorithm_is_identified_as_itself(name: str) -> None:
    found = diagnosis_of(name)
    assert found.nearest == name
    # Parameters are searched to 1e-4 of a range of five decades: predictions agree to about 1e-3.
    assert found.agreement(name).predictions.value == pytest.approx(1.0, abs=1e-5)
    assert found.inside is None
    if name in PARAMETERS:
        (fitted,) = found.agreement(name).parameters.values()
        assert fitted == pytest.approx(PARAMETERS[name], rel=5e-3)


@pytest.mark.parametrize("name", ALGORITHMS)
def test_only_optimizers_get_a_yes(name: str) -> None:
    assert diagnosis_of(name).verdict.answer == ("yes" if name in OPTIMIZERS else "no")


def test_what_learns_in_context_by_something_else_is_unclear() -> None:
    found = diagnose(Algorithm(coordinate_by_coordinate), TASK, num_sequences=256)
    learns, explained, *_ = found.verdict.conditions
    assert learns.met
    assert not explained.met
    assert found.verdict.answer == "unclear"


def test_what_leaves_its_algorithm_off_the_training_law_is_unclear() -> None:
    # Descends at the training scale only: the step is measured in units of the data's size.
    def descend(states: Tensor) -> Tensor:
        size = states[:, :1].square().mean(-1, keepdim=True)  # 1/3 in training
        return gradient_descent(states, step_size=0.05) * (4 * (size - 0.333).abs() < 1.2)

    found = diagnose(Algorithm(descend), TASK, num_sequences=256)
    *rest, carries = found.verdict.conditions
    assert all(condition.met for condition in rest)
    assert not carries.met
    assert found.verdict.answer == "unclear"


# Really trained models, small enough for a test.


def train(model: nn.Module, task: Task, *, steps: int, learning_rate: float) -> nn.Module:
    optimizer = torch.optim.Adam(model.parameters(), lr=learning_rate)
    for step in range(steps):
        batch = task.sample(64, seed=1, step=step)
        loss = batch.losses(model(batch.tokens)).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model


CONSTRUCTED = LinearSystem(
    LinearSystemConfig(dim=4, length=12, token_slots=("zero", "zero", "current", "previous"))
)
TAUGHT = LinearSystem(
    LinearSystemConfig(dim=4, length=12, token_slots=("current",), transition="fixed")
)


def constructed_model() -> SequenceModel:
    """One layer of linear attention."""
    config = ModelConfig(token_dim=16, output_dim=4, num_heads=2, head_dim=8, initial_std=0.1)
    return SequenceModel(config)


def plain_model() -> SequenceModel:
    """One that can hold a matrix in its embedding and readout."""
    config = ModelConfig(
        token_dim=4,
        output_dim=4,
        embed_dim=8,
        readout="linear",
        num_heads=1,
        head_dim=8,
        initial_std=0.1,
    )
    return SequenceModel(config)


@pytest.fixture(scope="module")
def trained() -> Diagnosis:
    model = train(constructed_model(), CONSTRUCTED, steps=400, learning_rate=5e-3)
    return diagnose(model, CONSTRUCTED, num_sequences=256)


@pytest.fixture(scope="module")
def memorised() -> Diagnosis:
    model = train(plain_model(), TAUGHT, steps=400, learning_rate=1e-2)
    return diagnose(model, TAUGHT, num_sequences=256)


def test_a_trained_layer_is_one_gradient_step(trained: Diagnosis) -> None:
    assert trained.verdict.answer == "yes"
    assert "gradient step" in trained.nearest or "polynomial" in trained.nearest
    assert trained.agreement("1 gradient step").predictions.value > 0.9
    assert trained.memory is None


def test_what_was_learned_by_heart_is_told_apart(memorised: Diagnosis) -> None:
    assert memorised.verdict.answer == "no"
    assert memorised.nearest == "one fixed map"
    assert not memorised.verdict.conditions[0].met
    control = memorised.memory
    assert control is not None
    # One gradient step on the context comes to 1/2 of predicting zero here; knowing the matrix, to noise.
    assert control.taught.high < 0.05 * control.zero
    assert control.fresh.low > control.zero


def test_an_untrained_model_gets_a_no() -> None:
    found = diagnose(constructed_model(), CONSTRUCTED, num_sequences=256)
    assert found.verdict.answer == "no"
    assert not found.verdict.conditions[0].met


def test_tokens_that_hold_their_neighbour_are_said_to(trained: Diagnosis) -> None:
    inside = trained.inside
    assert inside is not None
    assert inside.layers == ("blocks.0.input", "blocks.0")
    assert inside.held == (0, 1)
    assert inside.r2("previous state", "blocks.0.input", 12).value > 0.999
    before, after = (inside.r2("next state", layer, 12) for layer in inside.layers)
    assert after.low > before.high


class Binding(nn.Module):
    """Copies in a first part, solves in a second."""

    def __init__(self) -> None:
        super().__init__()
        self.copy = Algorithm(lambda x: tokens_from_states(x, ("current", "previous")))
        self.solve = Algorithm(lambda x: ridge_least_squares(x[..., :4].contiguous(), ridge=0.1))

    def forward(self, tokens: Tensor) -> Tensor:
        return self.solve(self.copy(tokens))


def test_binding_is_seen_in_the_layers_that_are_named() -> None:
    found = diagnose(Binding(), TASK, layers=["input", "copy", "solve"], num_sequences=256)
    inside = found.inside
    assert inside is not None
    assert inside.held == (0,)
    assert inside.r2("previous state", "input", 12).value == pytest.approx(0.0, abs=0.05)
    assert inside.r2("previous state", "copy", 12).value > 0.999
    assert inside.r2("2 states back", "copy", 12).value < 0.1
    assert inside.r2("next state", "solve", 12).value > 0.9


def test_partly_observed_systems_are_solved_on_stacked_observations() -> None:
    task = PartiallyObserved(PartiallyObservedConfig(dim=2, hidden_dim=4, length=16))

    def solve(states: Tensor) -> Tensor:
        return ridge_least_squares(
            states, ridge=0.5, inputs=tokens_from_states(states, stacked(HISTORY))
        )

    found = diagnose(Algorithm(solve), task, num_sequences=256)
    assert found.nearest == "ridge least squares"
    assert found.agreement(found.nearest).parameters["ridge"] == pytest.approx(0.5, rel=5e-3)
    assert found.verdict.answer == "yes"


# Refusals.


@pytest.mark.parametrize(
    ("predict", "message"),
    [
        (lambda x: x[..., :3], r"shape \(8, 12, 3\): must be \(8, 12, 4\)"),
        (lambda x: x / 0.0, "not finite"),
        (lambda x: x.flip(1), "must be causal"),
    ],
    ids=["shape", "infinite", "future"],
)
def test_what_is_no_predictor_is_refused(predict: Callable[[Tensor], Tensor], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        diagnose(Algorithm(predict), TASK)


def test_what_is_not_covered_is_refused() -> None:
    model = Algorithm(torch.zeros_like)
    with pytest.raises(ValueError, match="task='few_shot': must be 'linear_system' or"):
        diagnose(model, FewShot(FewShotConfig()))
    with pytest.raises(ValueError, match="num_sequences=0"):
        diagnose(model, TASK, num_sequences=0)
    with pytest.raises(ValueError, match="'bind' is no part"):
        diagnose(Binding(), TASK, layers=["bind"])


def test_a_model_is_left_in_the_mode_it_was_in() -> None:
    seen: list[bool] = []

    class Watched(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            seen.append(self.training)
            return x

    model = Watched()
    diagnose(model, TASK, num_sequences=1)
    assert model.training
    assert not any(seen)


# The parts.


def test_intervals_cover() -> None:
    # Ratios of means of 200 paired, skewed numbers: the truth is within 1.96 errors 19 times in 20. The
    # tolerance is three standard errors of 1000 trials, and half a point of the skewness's bias.
    random = torch.Generator().manual_seed(0)
    noise = torch.randn(1000, 200, 2, generator=random, dtype=torch.float64)
    whole = (0.5 * noise[..., 0]).exp()
    part = whole * (0.3 + 0.1 * noise[..., 1])
    found = [ratio(p, w) for p, w in zip(part, whole, strict=True)]
    inside = sum(abs(f.value - 0.3) < 1.96 * f.error for f in found) / len(found)
    assert inside == pytest.approx(0.95, abs=3 * math.sqrt(0.95 * 0.05 / 1000) + 0.005)


def test_a_ratio_without_a_whole() -> None:
    zeros = torch.zeros(3)
    assert ratio(zeros, zeros).value == 0
    assert ratio(zeros + 1, zeros).value == math.inf


def candidate(name: str, offset: float, num_parameters: int) -> Candidate:
    return Candidate(name, "other", {}, num_parameters, lambda batch: batch.targets + offset)


def test_the_simpler_of_two_equals_is_named() -> None:
    near, same, far = candidate("near", 0.1, 3), candidate("same", 0.1, 2), candidate("far", 0.2, 1)
    scores = score(lambda b: b.targets, [near, same, far], TASK, num_sequences=256, seed=0)
    assert nearest(scores, [near, same, far]) is same
    assert nearest(scores, [near, far]) is near


def test_shares_are_what_they_are_said_to_be() -> None:
    half = candidate("half", 0.5, 0)
    scores = score(lambda b: b.targets + 1.0, [half], TASK, num_sequences=256, seed=0)
    # The model is 1 off in each of 4 coordinates, the candidate half of that, on the same side.
    assert scores.model_loss == pytest.approx(2.0, rel=1e-6)
    assert scores.of_errors("half").value == pytest.approx(1 - 0.25, rel=1e-6)
    assert scores.of_predictions("half").value == pytest.approx(1 - 1 / scores.size.mean().item())


def test_a_rescaled_system_is_a_system() -> None:
    batch = Rescaled(TASK, 2.0, decay=0.9).sample(4, seed=0)
    before, after = batch.states[:, :-1], batch.states[:, 1:]
    moved = 0.9 * (batch.transition @ before.mT).mT
    assert (after - moved).abs().max() < 2.0 * 5 * PLAIN.noise_std  # five standard deviations
    assert torch.equal(batch.tokens, before)


def test_an_imitated_model_is_asked_once() -> None:
    asked = []
    imitation = Imitation(TASK, lambda batch: asked.append(1) or batch.observed)  # type: ignore[func-returns-value]
    first, second = (imitation.sample(2, seed=0, split="validation") for _ in range(2))
    assert first is second
    assert torch.equal(first.targets, first.observed)
    assert len(asked) == 1


# The rule.

SURE = Estimate(0.9, 0.01)
UNSURE = Estimate(0.52, 0.01)  # above one half, but not by three standard errors
NOT = Estimate(-0.1, 0.01)


def verdict(
    *,
    learns: Estimate = SURE,
    predictions: Estimate = SURE,
    errors: Estimate = SURE,
    margin: Estimate = SURE,
    elsewhere: Estimate = SURE,
    nearest_kind: str = "optimizer",
) -> str:
    learning = Learning((), (), (), (), (), (), gain=learns, fall=learns)
    optimizer = Agreement("one", "optimizer", {}, 1, predictions, errors, 1.0)
    first = Agreement("first", nearest_kind, {}, 1, SURE, SURE, 1.0)
    shift = Shift("other", True, 1.0, elsewhere, SURE, "zero", NOT, SURE)
    ignored = Shift("ignored", False, 1.0, NOT, NOT, "zero", NOT, NOT)
    return judge(learning, first, optimizer, margin, [shift, ignored]).answer


def test_the_rule() -> None:
    assert verdict() == "yes"
    assert verdict(learns=NOT) == "no"
    assert verdict(learns=Estimate(0.01, 0.01)) == "no", "within noise"
    assert verdict(nearest_kind="other", margin=NOT) == "no"
    for name in ("predictions", "errors", "elsewhere"):
        assert verdict(**{name: UNSURE}) == "unclear", name
    assert verdict(margin=Estimate(0.02, 0.01)) == "unclear"
