from collections.abc import Callable
from dataclasses import replace
from functools import cache

import pytest
import torch
from torch import Tensor, nn

from mesaopt.analysis import Algorithm, Diagnosis, Estimate, Evaluation, diagnose, tune_ridge
from mesaopt.analysis.diagnosis.candidates import Candidate, fit_ridge
from mesaopt.analysis.diagnosis.evidence import Learning, probe_estimates
from mesaopt.analysis.diagnosis.model_target import ModelAsTarget
from mesaopt.analysis.diagnosis.scores import nearest, score
from mesaopt.analysis.diagnosis.shifts import Rescaled
from mesaopt.analysis.diagnosis.verdict import Agreement, ShiftResult, Verdict, judge
from mesaopt.analysis.probes import ProbeScore
from mesaopt.analysis.prompts import HISTORY, PromptTask, prompt_task
from mesaopt.config import (
    LinearSystemConfig,
    ModelConfig,
    PartiallyObservedConfig,
    stacked,
)
from mesaopt.models import SequenceModel
from mesaopt.tasks import (
    ARProcess,
    Batch,
    LinearSystem,
    PartiallyObserved,
    PartiallyObservedBatch,
    Regression,
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


class Model(nn.Module):
    """A model that is an algorithm on plain tokens."""

    def __init__(self, predict: Callable[[Tensor], Tensor]):
        super().__init__()
        self.predict = predict

    def forward(self, tokens: Tensor) -> Tensor:
        return self.predict(tokens)


def coordinate_by_coordinate(states: Tensor, ridge: float = 1e-3) -> Tensor:
    """Learns in context, by something not listed: every coordinate from its own past alone."""
    gram, cross = (x.diagonal(dim1=-2, dim2=-1) for x in context_statistics(states))
    return cross / (gram + ridge) * states


ALGORITHMS: dict[str, Callable[[Tensor], Tensor]] = {
    "1 gradient step": lambda x: gradient_descent(x, step_size=0.05),
    "3 gradient steps": lambda x: gradient_descent(x, step_size=0.04, num_steps=3),
    "6 gradient steps on the mean": lambda x: gradient_descent(
        x, step_size=0.4, num_steps=6, objective="mean"
    ),
    "preconditioned step, polynomial of degree 1": lambda x: polynomial_prediction(x, (0.1, 0.002)),
    "ridge least squares": lambda x: ridge_least_squares(x, ridge=0.1),
    "kernel regression": lambda x: kernel_regression(x, inverse_temperature=2.0),
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
    "kernel regression": 2.0,
    "last observation, scaled": 0.7,
}


@cache
def diagnosis_of(name: str) -> Diagnosis:
    return diagnose(Model(ALGORITHMS[name]), TASK, num_sequences=256)


@pytest.mark.parametrize("name", ALGORITHMS)
def test_an_algorithm_is_identified_as_itself(name: str) -> None:
    found = diagnosis_of(name)
    assert found.nearest == name
    # Parameters are searched to 1e-4 of a range of five decades: predictions agree to about 1e-3.
    assert found.agreement(name).predictions.value == pytest.approx(1.0, abs=1e-5)
    assert found.probes is None
    if name in PARAMETERS:
        (fitted,) = found.agreement(name).parameters.values()
        assert fitted == pytest.approx(PARAMETERS[name], rel=5e-3)


@pytest.mark.parametrize("name", ALGORITHMS)
def test_only_optimizers_get_a_yes(name: str) -> None:
    assert diagnosis_of(name).verdict.answer == ("yes" if name in OPTIMIZERS else "no")


def test_an_unlisted_in_context_learner_is_unclear() -> None:
    found = diagnose(Model(coordinate_by_coordinate), TASK, num_sequences=256)
    learns, explained, *_ = found.verdict.conditions
    assert learns.met
    assert not explained.met
    assert found.verdict.answer == "unclear"


# Algorithms of the user's own.

BY_COORDINATE = Algorithm(
    name="coordinate by coordinate",
    kind="optimizer",
    predict=lambda states, ridge, scale: scale * coordinate_by_coordinate(states, ridge),
    ranges={"ridge": (1e-4, 10.0), "scale": (0.0, 2.0)},
)


def most_similar(states: Tensor) -> Tensor:
    """Copies what followed the past state that is nearest to the current one."""
    distances = torch.cdist(states, states[:, :-1])
    later = torch.ones_like(distances[0], dtype=torch.bool).triu()
    nearest_one = distances.masked_fill(later, torch.inf).argmin(-1)
    copied = torch.take_along_dim(states, nearest_one[..., None] + 1, dim=1)
    return torch.where(torch.arange(states.shape[1])[:, None] > 0, copied, 0)


def test_an_algorithm_of_ones_own_is_fitted_and_can_be_the_reason_for_a_yes() -> None:
    model = Model(lambda x: 0.8 * coordinate_by_coordinate(x, 0.5))
    found = diagnose(model, TASK, algorithms=[BY_COORDINATE], num_sequences=256)
    assert found.verdict.answer == "yes"
    assert "coordinate by coordinate" in found.verdict.sentence
    agreement = found.agreement("coordinate by coordinate")
    assert agreement.predictions.value == pytest.approx(1.0, abs=1e-5)
    assert agreement.num_parameters == 2
    assert agreement.parameters == pytest.approx({"ridge": 0.5, "scale": 0.8}, rel=5e-3)


def test_an_algorithm_of_ones_own_can_be_the_reason_for_a_no() -> None:
    copying = Algorithm(name="copying", kind="other", predict=most_similar)
    found = diagnose(Model(most_similar), TASK, algorithms=[copying], num_sequences=256)
    assert found.nearest == "copying"
    assert found.verdict.answer == "no"
    assert found.agreement("copying").parameters == {}


def test_a_built_in_algorithm_is_found_with_one_parameter() -> None:
    again = Algorithm(
        name="mine", kind="optimizer", predict=gradient_descent, ranges={"step_size": (1e-3, 1.0)}
    )
    found = diagnose(
        Model(ALGORITHMS["1 gradient step"]), TASK, algorithms=[again], num_sequences=256
    )
    assert found.agreement("mine").parameters["step_size"] == pytest.approx(0.05, rel=5e-3)
    assert found.agreement("mine").predictions.value == pytest.approx(1.0, abs=1e-5)


def test_an_algorithm_that_overflows_is_far_from_everything() -> None:
    diverging = Algorithm(
        name="diverging", kind="optimizer", predict=lambda x: torch.where(x > 1, torch.nan, x)
    )
    found = diagnose(
        Model(ALGORITHMS["1 gradient step"]), TASK, algorithms=[diverging], num_sequences=256
    )
    assert found.agreements[-1].candidate == "diverging"
    assert found.verdict.answer == "yes"


def failing(states: Tensor, size: float) -> Tensor:
    raise RuntimeError("no idea")


@pytest.mark.parametrize(
    ("algorithm", "message"),
    [
        (
            Algorithm(name="bad", kind="other", predict=failing, ranges={"size": (1.0, 100.0)}),
            r"'bad': given states \(8, 12, 4\), size=10, it raised RuntimeError: no idea",
        ),
        (
            Algorithm(name="bad", kind="other", predict=lambda x: None),
            "'bad': it gives a NoneType: must be a tensor",
        ),
        (
            Algorithm(name="bad", kind="other", predict=lambda x: x[:, -1]),
            r"'bad': its output has shape \(8, 4\): must be \(8, 12, 4\), that of the states",
        ),
        (
            Algorithm(name="bad", kind="other", predict=lambda x: x.mean(1, keepdim=True) + x),
            "'bad': its predictions depend on later tokens: must be causal",
        ),
        (
            Algorithm(name="twice", kind="other", predict=torch.zeros_like),
            "'twice' is the name of several: must be of one",
        ),
        (
            Algorithm(name="zero", kind="other", predict=torch.zeros_like),
            "'zero' is the name of a built-in algorithm: must be another",
        ),
    ],
)
def test_algorithms_that_cannot_be_compared_are_refused(algorithm: Algorithm, message: str) -> None:
    algorithms = [algorithm] * (1 + (algorithm.name == "twice"))
    with pytest.raises(ValueError, match=f"^algorithms: {message}"):
        diagnose(Model(torch.zeros_like), TASK, algorithms=algorithms, num_sequences=1)


def test_ranges_have_to_increase() -> None:
    with pytest.raises(ValueError, match=r"^ranges\['a'\]=\(2.0, 1.0\): must be finite and incr"):
        Algorithm(name="a", kind="other", predict=torch.zeros_like, ranges={"a": (2.0, 1.0)})


def test_an_algorithm_that_fails_under_shifts_is_unclear() -> None:
    # Descends at the training scale only: the step is measured in units of the data's size.
    def descend(states: Tensor) -> Tensor:
        size = states[:, :1].square().mean(-1, keepdim=True)  # 1/3 in training
        return gradient_descent(states, step_size=0.05) * (4 * (size - 0.333).abs() < 1.2)

    found = diagnose(Model(descend), TASK, num_sequences=256)
    *rest, carries = found.verdict.conditions
    assert all(condition.met for condition in rest)
    assert not carries.met
    assert found.verdict.answer == "unclear"


def test_context_helps_where_states_grow() -> None:
    # With so much noise states grow along a sequence, and so does the loss of whoever predicts.
    noisy = LinearSystem(replace(PLAIN, length=24, noise_std=0.2))
    found = diagnose(Model(lambda x: gradient_descent(x, step_size=0.01)), noisy, num_sequences=256)
    assert found.learning.model[-1] > found.learning.model[0]
    assert found.verdict.answer == "yes"
    assert found.nearest == "1 gradient step"


def test_a_small_step_is_learning_on_few_sequences_too() -> None:
    found = diagnose(Model(lambda x: gradient_descent(x, step_size=4e-3)), TASK, num_sequences=256)
    assert found.learning.gain.value < 0.1
    assert found.verdict.answer == "yes"


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


def test_a_memorised_system_is_recognised(memorised: Diagnosis) -> None:
    assert memorised.verdict.answer == "no"
    assert memorised.nearest == "one fixed map"
    assert not memorised.verdict.conditions[0].met
    control = memorised.memory
    assert control is not None
    # One gradient step on the context comes to 1/2 of predicting zero here; knowing the matrix, to noise.
    assert control.training_system.high < 0.05 * control.zero
    assert control.new_systems.low > control.zero


def test_an_untrained_model_gets_a_no() -> None:
    found = diagnose(constructed_model(), CONSTRUCTED, num_sequences=256)
    assert found.verdict.answer == "no"
    assert not found.verdict.conditions[0].met


def test_states_in_the_input_tokens_are_listed(trained: Diagnosis) -> None:
    probes = trained.probes
    assert probes is not None
    assert probes.names == ("blocks.0.input", "blocks.0")
    assert probes.input_offsets == (0, 1)
    assert probes.at("previous state", "blocks.0.input", 12).r2.value > 0.999
    before, after = (probes.at("next state", layer, 12).r2 for layer in probes.names)
    assert after.low > before.high


class Binding(nn.Module):
    """Copies in a first part, solves in a second."""

    def __init__(self) -> None:
        super().__init__()
        self.copy = Model(lambda x: tokens_from_states(x, ("current", "previous")))
        self.solve = Model(lambda x: ridge_least_squares(x[..., :4].contiguous(), ridge=0.1))

    def forward(self, tokens: Tensor) -> Tensor:
        return self.solve(self.copy(tokens))


def test_binding_is_seen_in_the_layers_that_are_named() -> None:
    found = diagnose(Binding(), TASK, names=["input", "copy", "solve"], num_sequences=256)
    probes = found.probes
    assert probes is not None
    assert probes.input_offsets == (0,)
    assert probes.at("previous state", "input", 12).r2.value == pytest.approx(0.0, abs=0.05)
    assert probes.at("previous state", "copy", 12).r2.value > 0.999
    assert probes.at("2 states back", "copy", 12).r2.value < 0.1
    assert probes.at("next state", "solve", 12).r2.value > 0.9


def test_partly_observed_systems_are_solved_on_stacked_observations() -> None:
    task = PartiallyObserved(PartiallyObservedConfig(dim=2, hidden_dim=4, length=16))

    def solve(states: Tensor) -> Tensor:
        return ridge_least_squares(
            states, ridge=0.5, inputs=tokens_from_states(states, stacked(HISTORY))
        )

    found = diagnose(Model(solve), task, num_sequences=256)
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
        (lambda x: x * x.flip(1).square(), "must be causal"),
        (lambda x: (x, x), "gives a tuple: must be a tensor"),
        (
            lambda x: x @ torch.eye(4).double(),
            r"given tokens \(8, 12, 4\) of float32, it raised RuntimeError: expected",
        ),
    ],
    ids=["shape", "infinite", "future", "even in the future", "tuple", "float64"],
)
def test_modules_that_are_no_predictors_are_refused(
    predict: Callable[[Tensor], Tensor], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        diagnose(Model(predict), TASK)


def test_other_tasks_and_names_are_refused() -> None:
    model = Model(torch.zeros_like)
    with pytest.raises(ValueError, match="task: has complex numbers: must have real ones"):
        diagnose(model, ARProcess())
    with pytest.raises(ValueError, match="num_sequences=0"):
        diagnose(model, TASK, num_sequences=0)
    with pytest.raises(ValueError, match="'bind' is no part"):
        diagnose(Binding(), TASK, names=["bind"])


def test_sequences_may_be_of_one_token() -> None:
    one = LinearSystem(replace(PLAIN, length=1))
    found = diagnose(Model(torch.zeros_like), one, names=["input"], num_sequences=256)
    assert found.verdict.answer == "no"


def test_a_model_may_change_its_input() -> None:
    def spoil(states: Tensor) -> Tensor:
        found = gradient_descent(states, step_size=0.05)
        states.zero_()
        return found

    found = diagnose(Model(spoil), TASK, num_sequences=256)
    assert (found.verdict.answer, found.nearest) == ("yes", "1 gradient step")


class Positioned(nn.Module):
    """Descends on sequences of 12 at most."""

    def __init__(self) -> None:
        super().__init__()
        self.positions = nn.Embedding(12, 1)
        nn.init.zeros_(self.positions.weight)

    def forward(self, tokens: Tensor) -> Tensor:
        shifts = self.positions(torch.arange(tokens.shape[1]))
        return gradient_descent(tokens + shifts, step_size=0.05)


def test_longer_sequences_are_skipped_where_a_model_cannot_process_them() -> None:
    found = diagnose(Positioned(), TASK, num_sequences=256)
    assert found.verdict.answer == "yes"
    assert found.skipped == ("1.5 times as long",)
    assert "1.5 times as long" not in {shift.name for shift in found.shifts}
    assert diagnosis_of("1 gradient step").skipped == ()


def test_a_model_is_left_in_the_mode_it_was_in() -> None:
    seen: list[bool] = []

    class Watched(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            seen.append(self.training)
            return x

    model = nn.Sequential(Watched(), Watched().eval())
    diagnose(model, TASK, num_sequences=1)
    assert [part.training for part in (model, *model)] == [True, True, False]
    assert not any(seen)


# The parts.


def test_the_explained_variance_is_paired_with_the_variance() -> None:
    # Half of the variance of every sequence is explained: there is no doubt about one half.
    baseline = torch.tensor([1.0, 2.0, 30.0])
    losses = {"a": baseline, "b": baseline / 2}
    a, b = (ProbeScore(x, baseline, dim=1, in_sample=0.0, shuffled=0.0) for x in losses.values())
    assert probe_estimates(a, b) == (Estimate(0.5, 0.0), Estimate(0.5, 0.0))


def candidate(name: str, offset: float, num_parameters: int) -> Candidate:
    return Candidate(name, "other", {}, num_parameters, lambda batch: batch.targets + offset)


def test_the_simpler_of_two_equals_is_chosen() -> None:
    near, same, far = candidate("near", 0.1, 3), candidate("same", 0.1, 2), candidate("far", 0.2, 1)
    scores = score(
        lambda b: b.targets, [near, same, far], prompt_task(TASK), Evaluation(num_sequences=256)
    )
    assert nearest(scores, [near, same, far]) is same
    assert nearest(scores, [near, far]) is near


def test_shares_of_predictions_and_errors() -> None:
    half = candidate("half", 0.5, 0)
    scores = score(
        lambda b: b.targets + 1.0, [half], prompt_task(TASK), Evaluation(num_sequences=256)
    )
    # The model is 1 off in each of 4 coordinates, the candidate half of that, on the same side.
    assert scores.model_loss == pytest.approx(2.0, rel=1e-6)
    assert scores.of_errors("half").value == pytest.approx(1 - 0.25, rel=1e-6)
    assert scores.of_predictions("half").value == pytest.approx(1 - 1 / scores.size.mean().item())


def test_a_rescaled_system_is_a_system() -> None:
    batch = Rescaled(TASK, 2.0, decay=0.9).sample(4, seed=0)
    before, after = batch.states[:, :-1], batch.states[:, 1:]
    moved = (batch.transition @ before.mT).mT
    assert (after - moved).abs().max() < 2.0 * 5 * PLAIN.noise_std  # five standard deviations
    assert torch.equal(batch.tokens, before)
    hidden = Rescaled(PartiallyObserved(PartiallyObservedConfig()), 2.0, decay=0.9).sample(
        4, seed=0
    )
    assert isinstance(hidden, PartiallyObservedBatch)
    seen = (hidden.observation @ hidden.hidden.mT).mT
    noise = 2.0 * 5 * PartiallyObservedConfig().noise_std
    assert (hidden.states - seen).abs().max() < max(noise, 1e-5)  # or float32


def test_a_model_as_target_runs_once_per_batch() -> None:
    runs = []
    target = ModelAsTarget(prompt_task(TASK), lambda batch: runs.append(1) or batch.observed)  # type: ignore[func-returns-value]
    first, second = (target.sample(2, seed=0, split="validation") for _ in range(2))
    assert first is second
    assert torch.equal(first.targets, first.observed)
    assert len(runs) == 1


# The rule.

SURE = Estimate(0.9, 0.01)
UNSURE = Estimate(0.52, 0.01)  # above one half, but not by three standard errors
NOT = Estimate(-0.1, 0.01)


def verdict(
    *,
    gain: Estimate = SURE,
    gain_increase: Estimate = SURE,
    predictions: Estimate = SURE,
    errors: Estimate = SURE,
    margin: Estimate = SURE,
    other_predictions: Estimate = SURE,
    other_errors: Estimate = SURE,
    other_margin: Estimate = SURE,
    nearest_kind: str = "optimizer",
) -> Verdict:
    learning = Learning((), (), (), (), (), (), gain=gain, gain_increase=gain_increase)
    optimizer = Agreement("one", "optimizer", {}, 1, predictions, errors, 1.0)
    first = Agreement("first", nearest_kind, {}, 1, SURE, SURE, 1.0)
    fine = ShiftResult("fine", True, 1.0, SURE, SURE, "zero", NOT, SURE)
    shift = ShiftResult("far", True, 1.0, other_predictions, other_errors, "map", NOT, other_margin)
    ignored = ShiftResult("ignored", False, 1.0, NOT, NOT, "zero", NOT, NOT)
    return judge(learning, first, optimizer, margin, [fine, shift, ignored])


def test_all_met_is_a_yes() -> None:
    found = verdict()
    assert found.answer == "yes"
    assert all(condition.met for condition in found.conditions)


def shown(name: str, *, holds: bool) -> ShiftResult:
    """A shift that does not count."""
    share = SURE if holds else NOT
    return ShiftResult(name, False, 1.0, share, share, "zero", NOT, share)


@pytest.mark.parametrize(
    ("held", "failed", "ending"),
    [
        (
            (),
            ("contracting W",),
            "Of shifts that do not count, this fails under these: contracting W.",
        ),
        (("contracting W",), (), "this holds under these: contracting W."),
        (("a", "b"), ("c",), "this holds under these: a, b; it fails under these: c."),
        ((), (), "which explains 90 % of its predictions and 90 % of its errors."),
    ],
)
def test_a_yes_says_where_it_ends(
    held: tuple[str, ...], failed: tuple[str, ...], ending: str
) -> None:
    learning = Learning((), (), (), (), (), (), gain=SURE, gain_increase=SURE)
    agreement = Agreement("one", "optimizer", {}, 1, SURE, SURE, 1.0)
    counted = ShiftResult("counted", True, 1.0, SURE, SURE, "zero", NOT, SURE)
    beyond = [*(shown(n, holds=True) for n in held), *(shown(n, holds=False) for n in failed)]
    found = judge(learning, agreement, agreement, SURE, [counted, *beyond])
    assert found.answer == "yes"
    assert found.sentence.endswith(ending)


@pytest.mark.parametrize(
    ("given", "index", "ending"),
    [
        ({"gain": Estimate(0.03, 0.01)}, 0, "here: gain (> 0.02)"),
        ({"gain_increase": Estimate(0.02, 0.01)}, 0, "here: increase of the gain (> 0)"),
        ({"gain_increase": NOT}, 0, "here: increase of the gain (> 0)"),
        ({"predictions": UNSURE}, 1, "here: of predictions (> 0.5)"),
        ({"errors": UNSURE}, 1, "here: of errors (> 0.5)"),
        ({"margin": Estimate(0.02, 0.01)}, 2, "(> 0)"),
        ({"other_predictions": UNSURE}, 3, "here: of predictions, far (> 0.5)"),
        ({"other_errors": UNSURE}, 3, "here: of errors, far (> 0.5)"),
        ({"other_margin": Estimate(0.02, 0.01)}, 3, "here: margin over map, far (> 0)"),
    ],
    ids=lambda value: ",".join(value) if isinstance(value, dict) else "",
)
def test_one_that_is_missed_is_unclear_and_named(
    given: dict[str, Estimate], index: int, ending: str
) -> None:
    found = verdict(**given)  # type: ignore[arg-type]
    assert found.answer == "unclear"
    assert [i for i, condition in enumerate(found.conditions) if not condition.met] == [index]
    assert found.conditions[index].asks.endswith(ending)
    assert [found.conditions[index].measured] == list(given.values())


def test_no_needs_evidence() -> None:
    assert verdict(gain=NOT).answer == "no"
    assert "reduces the loss by less than 2 % (3 standard errors)" in verdict(gain=NOT).sentence
    assert verdict(gain=Estimate(0.01, 0.003)).answer == "no", "sure to be little"
    assert verdict(gain=Estimate(0.01, 0.01)).answer == "unclear", "may be more"
    assert verdict(nearest_kind="other", margin=NOT).answer == "no"
    assert verdict(nearest_kind="other", margin=Estimate(-0.02, 0.01)).answer == "unclear"
    assert verdict(nearest_kind="other", margin=NOT, gain_increase=NOT).answer == "no"


@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("stack", [None, 3])
def test_the_fitted_ridge_is_that_of_a_search_with_least_squares(
    stack: int | None, steps: int
) -> None:
    inputs = None if stack is None else (lambda states: tokens_from_states(states, stacked(stack)))

    def read(batch: Batch) -> Regression:
        known = batch.observed if inputs is None else inputs(batch.observed)
        return Regression(known, batch.targets)

    target = ModelAsTarget(
        PromptTask(TASK, "states", read),
        lambda b: gradient_descent(b.observed, step_size=0.04, num_steps=steps),
    )
    evaluation = Evaluation(num_sequences=512, split="validation")
    found = tune_ridge(
        target, inputs=inputs, bounds=(1e-4, 1e4), tolerance=1e-5, evaluation=evaluation
    )
    assert fit_ridge(target) == pytest.approx(found.value, rel=1e-3)
