"""Diagnoses of models of pairs: few-shot prompts, prompts of one's own, and nonlinear systems."""

from collections.abc import Callable
from dataclasses import replace
from functools import cache

import pytest
import torch
from torch import Tensor, nn

from mesaopt.analysis import Algorithm, Diagnosis, diagnose
from mesaopt.report import write_diagnosis
from mesaopt.report.diagnosis import sections
from mesaopt.tasks import Batch, FewShot, NonlinearSystem, Regression, Task, generator
from mesaopt.theory import gradient_descent, kernel_regression, ridge_least_squares

DIM, PAIRS = 3, 12
Algo = Callable[[Tensor, Tensor], Tensor]
"""From the newest answers and the inputs to predictions."""


def shifted(x: Tensor) -> Tensor:
    """What was one place earlier; zero at the first."""
    return nn.functional.pad(x[:, :-1], (0, 0, 1, 0))


class Linear:
    """y_i = w . x_i; a token is (x_i, y_{i-1})."""

    def pairs(self, batch_size: int, seed: int, step: int, split: str) -> tuple[Tensor, Tensor]:
        random = generator(seed, f"linear/{split}", step)
        x = torch.from_numpy(random.standard_normal((batch_size, PAIRS, DIM)))
        w = torch.from_numpy(random.standard_normal((batch_size, DIM, 1)))
        return x, x @ w

    def sample(self, batch_size: int, *, seed: int, step: int, split: str) -> Batch:
        x, y = self.pairs(batch_size, seed, step, split)
        return Batch(tokens=torch.cat([x, shifted(y)], dim=2), targets=y)

    def regression(self, batch: Batch) -> Regression:
        return Regression(inputs=batch.tokens[..., :DIM], targets=batch.targets)

    def read(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Give newest answers and inputs, as a model would read them off."""
        return tokens[..., DIM:].contiguous(), tokens[..., :DIM].contiguous()


class Interleaved(Linear):
    """Tokens x_1, y_1, x_2, y_2, ..., answers in the first coordinate, as Garg et al. have them."""

    def sample(self, batch_size: int, *, seed: int, step: int, split: str) -> Batch:
        x, y = self.pairs(batch_size, seed, step, split)
        tokens = torch.stack([x, nn.functional.pad(y, (0, DIM - 1))], dim=2).flatten(1, 2)
        return Batch(tokens=tokens, targets=y.repeat_interleave(2, dim=1), scored=slice(0, None, 2))

    def regression(self, batch: Batch) -> Regression:
        return Regression(inputs=batch.tokens[:, ::2], targets=batch.targets[:, ::2])

    def read(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        return shifted(tokens[:, 1::2, :1].contiguous()), tokens[:, ::2].contiguous()


FEW_SHOT = FewShot(dim=DIM, length=2 * PAIRS)


class Solver(nn.Module):
    """A model that is an algorithm: it reads the pairs off its tokens, and predicts."""

    def __init__(self, task: Task, algorithm: Algo):
        super().__init__()
        self.task, self.algorithm = task, algorithm

    def forward(self, tokens: Tensor) -> Tensor:
        if isinstance(self.task, FewShot):
            pairs = shifted(tokens[:, 1::2].contiguous()), tokens[:, ::2].contiguous()
        else:
            pairs = self.task.read(tokens)
        predictions = self.algorithm(*pairs)
        if tokens.shape[1] == 2 * predictions.shape[1]:  # anything at the places of answers
            return predictions.repeat_interleave(2, dim=1)
        return predictions


FIXED = torch.linspace(-1, 1, DIM * DIM).view(DIM, DIM)
ALGORITHMS: dict[str, Algo] = {
    "ridge least squares": lambda y, x: ridge_least_squares(y, inputs=x, ridge=0.3),
    "2 gradient steps": lambda y, x: gradient_descent(y, inputs=x, step_size=0.05, num_steps=2),
    "kernel regression": lambda y, x: kernel_regression(y, inputs=x, inverse_temperature=1.5),
    "one fixed map": lambda y, x: x @ FIXED[:, : y.shape[2]].to(x),
    "last answer, scaled": lambda y, x: 0.8 * y,
}
FITTED = {"ridge least squares": 0.3, "2 gradient steps": 0.05, "kernel regression": 1.5}
TASKS: dict[str, Task] = {
    "few-shot": FEW_SHOT,
    "input and last answer": Linear(),
    "in turns": Interleaved(),
}


@cache
def diagnosis_of(task: str, name: str) -> Diagnosis:
    return diagnose(Solver(TASKS[task], ALGORITHMS[name]), TASKS[task], num_sequences=256)


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("name", ALGORITHMS)
def test_an_algorithm_on_pairs_is_identified_as_itself(task: str, name: str) -> None:
    found = diagnosis_of(task, name)
    assert found.nearest == name
    assert found.agreement(name).predictions.value == pytest.approx(1.0, abs=1e-5)
    if name in FITTED:
        (fitted,) = found.agreement(name).parameters.values()
        assert fitted == pytest.approx(FITTED[name], rel=5e-3)
    is_optimizer = found.agreement(name).kind == "optimizer"
    assert found.verdict.answer == ("yes" if is_optimizer else "no")
    assert found.prompts == "pairs"


@pytest.mark.parametrize("task", TASKS)
def test_a_constant_gets_a_no(task: str) -> None:
    found = diagnose(
        Solver(TASKS[task], lambda y, x: torch.ones_like(y)), TASKS[task], num_sequences=256
    )
    assert found.verdict.answer == "no"
    assert not found.verdict.conditions[0].met


def test_shifts_are_made_from_the_layout_of_the_tokens() -> None:
    for task in TASKS:
        found = diagnosis_of(task, "ridge least squares")
        counted = [shift.name for shift in found.shifts if shift.counts]
        assert counted == ["0.5 times as large", "1.25 times as large", "damped, 0.95 W"]
        assert all(shift.holds for shift in found.shifts)
        # Least squares without noise solves the rescaled systems, too.
        assert found.shifts[0].model_loss < found.shifts[1].model_loss
    longer = [shift.name for shift in diagnosis_of("few-shot", "ridge least squares").shifts]
    assert "1.5 times as long" in longer
    assert "longer prompts" in diagnosis_of("in turns", "ridge least squares").left_out


def test_what_follows_the_training_scale_only_does_not_hold() -> None:
    def descend(y: Tensor, x: Tensor) -> Tensor:
        size = x[:, :1].square().mean(-1, keepdim=True)
        return gradient_descent(y, inputs=x, step_size=0.05) * (size > 0.2)

    found = diagnose(Solver(TASKS["in turns"], descend), TASKS["in turns"], num_sequences=256)
    assert found.verdict.answer == "unclear"


# Algorithms, reading and shifts of one's own.


def bounded(answers: Tensor, *, inputs: Tensor, bound: float) -> Tensor:
    return ridge_least_squares(answers, inputs=inputs, ridge=0.3).clamp(-bound, bound)


@pytest.mark.parametrize("task", TASKS)
def test_an_algorithm_of_ones_own_sees_answers_and_inputs(task: str) -> None:
    mine = Algorithm(
        name="bounded", kind="optimizer", predict=bounded, ranges={"bound": (0.05, 1.0)}
    )
    model = Solver(TASKS[task], lambda y, x: bounded(y, inputs=x, bound=0.2))
    found = diagnose(model, TASKS[task], algorithms=[mine], num_sequences=256)
    assert found.nearest == "bounded"
    assert found.agreement("bounded").parameters["bound"] == pytest.approx(0.2, rel=5e-3)


def test_an_algorithm_may_not_see_later_pairs() -> None:
    cheat = Algorithm(name="cheat", kind="other", predict=lambda y, inputs: y.flip(1))
    with pytest.raises(ValueError, match="^algorithms: 'cheat': its predictions depend on later"):
        diagnose(Solver(Linear(), ALGORITHMS["kernel regression"]), Linear(), algorithms=[cheat])
    blind = Algorithm(name="blind", kind="other", predict=lambda states: states)
    with pytest.raises(
        ValueError, match=r"given answers \(8, 12, 1\), inputs \(8, 12, 3\), it raised"
    ):
        diagnose(Solver(Linear(), ALGORITHMS["kernel regression"]), Linear(), algorithms=[blind])


class Hidden:
    """Prompts whose tokens are a function of the pairs, and which do not say how they are read."""

    def __init__(self, scale: float = 1.0):
        self.scale = scale

    def sample(self, batch_size: int, *, seed: int, step: int, split: str) -> Batch:
        batch = Linear().sample(batch_size, seed=seed, step=step, split=split)
        return replace(
            batch, tokens=2 * self.scale * batch.tokens, targets=self.scale * batch.targets
        )


def half(batch: Batch) -> Regression:
    return Regression(inputs=batch.tokens[..., :DIM] / 2, targets=batch.targets)


def test_the_caller_may_say_how_prompts_are_read_and_what_their_shifts_are() -> None:
    model = Solver(
        Linear(),
        lambda y, x: gradient_descent(y / 2, inputs=x / 2, step_size=0.05),
    )
    with pytest.raises(ValueError, match="task: does not say which inputs and answers"):
        diagnose(model, Hidden())
    alone = diagnose(model, Hidden(), regression=half, num_sequences=256)
    assert alone.nearest == "1 gradient step"
    assert alone.verdict.answer == "unclear"
    assert "was not measured" in alone.verdict.sentence
    assert "more than copies" in alone.left_out["rescaled prompts"]
    assert len(alone.verdict.conditions) == 3
    shifts = {"smaller": Hidden(0.5)}
    found = diagnose(model, Hidden(), regression=half, shifts=shifts, num_sequences=256)
    assert found.verdict.answer == "yes"
    assert [shift.name for shift in found.shifts] == ["smaller"]


def test_a_burn_in_that_is_not_scored_is_part_of_the_context() -> None:
    class Late(Linear):
        def sample(self, batch_size: int, *, seed: int, step: int, split: str) -> Batch:
            batch = super().sample(batch_size, seed=seed, step=step, split=split)
            return replace(batch, scored=slice(6, None))

        def regression(self, batch: Batch) -> Regression:
            return replace(super().regression(batch), places=slice(None))

    def spoiled(y: Tensor, x: Tensor) -> Tensor:
        late = torch.arange(PAIRS)[:, None] >= 6
        return torch.where(late, ALGORITHMS["2 gradient steps"](y, x), 9.0)

    found = diagnose(Solver(Linear(), spoiled), Late(), num_sequences=256)
    assert (found.nearest, found.verdict.answer) == ("2 gradient steps", "yes")
    assert found.learning.positions == tuple(range(7, 13))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda r: Regression(r.inputs[:, :-1], r.targets), "inputs has shape"),
        (lambda r: Regression(r.inputs, r.targets.repeat(1, 1, 2)), "must be as wide as those of"),
        (
            lambda r: Regression(r.inputs[:, 5:], r.targets[:, 5:], slice(5, None)),
            "must hold all scored positions",
        ),
        (lambda r: Regression(r.inputs.roll(-1, 1), r.targets), "have not shown its input"),
        (lambda r: Regression(r.inputs, r.targets.roll(1, 1)), "the tokens show it already"),
        (lambda r: Regression(r.inputs, r.targets.roll(-1, 1)), "have not shown the answer before"),
    ],
    ids=["number", "width", "scored", "later input", "known answer", "later answer"],
)
def test_pairs_that_cannot_be_are_refused(
    change: Callable[[Regression], Regression], message: str
) -> None:
    task, model = Linear(), Solver(Linear(), ALGORITHMS["kernel regression"])
    with pytest.raises(ValueError, match=message):
        diagnose(model, task, regression=lambda batch: change(task.regression(batch)))


def test_layers_are_probed_and_matched_at_the_places_of_the_inputs() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.copy, self.solve = (
                nn.Identity(),
                Solver(Interleaved(), ALGORITHMS["ridge least squares"]),
            )

        def forward(self, tokens: Tensor) -> Tensor:
            return self.solve(self.copy(tokens))

    found = diagnose(Two(), Interleaved(), names=["copy", "solve"], num_sequences=256)
    probes, rates = found.probes, found.rates
    assert probes is not None
    assert rates is not None
    assert probes.positions == (7, 23)  # of the fourth and the last input
    assert probes.at("input", "copy", 23).r2.value > 0.999
    assert probes.at("answer", "copy", 23).r2.value < 0.1
    assert probes.at("answer", "solve", 23).r2.value > 0.9
    assert [layer.matched for layer in rates.layers] == [False, True]
    assert "probes and rates" not in found.left_out


def test_a_report_speaks_of_pairs_and_says_what_was_left_out(tmp_path) -> None:
    found = diagnosis_of("in turns", "ridge least squares")
    titles = [section.title for section in sections(found)]
    assert titles[-1] == "What was left out?"
    assert "Control: does it remember a single system?" not in titles
    assert [row["not judged"] for row in sections(found)[-1].rows] == ["longer prompts", "memory"]
    assert "pairs of inputs and answers" in sections(found)[2].summary
    write_diagnosis(found, tmp_path / "page.html", name="mine")
    assert "What was left out?" in (tmp_path / "page.html").read_text()
    fixed = [section.title for section in sections(diagnosis_of("few-shot", "one fixed map"))]
    assert "Control: does it remember a single system?" in fixed


# Nonlinear systems.

NONLINEAR = NonlinearSystem(dim=3, length=20, noise_std=0.05)


@pytest.mark.parametrize(
    ("name", "algorithm"),
    [
        ("ridge least squares", lambda s, f: ridge_least_squares(s, inputs=f, ridge=0.5)),
        (
            "3 gradient steps",
            lambda s, f: gradient_descent(s, inputs=f, step_size=0.1, num_steps=3),
        ),
    ],
)
def test_nonlinear_systems_are_linear_in_their_features(name: str, algorithm: Algo) -> None:
    class Model(nn.Module):
        def forward(self, tokens: Tensor) -> Tensor:
            return algorithm(tokens, NONLINEAR.features(tokens))

    found = diagnose(Model(), NONLINEAR, num_sequences=256)
    assert (found.nearest, found.verdict.answer) == (name, "yes")
    assert [shift.name for shift in found.shifts if shift.counts] == ["0.5 W", "1.25 W"]
    assert found.prompts == "states"


# Other devices.


class Far(Tensor):
    """A tensor as if on another device: together with one that is not, it is refused."""

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        tensors = [x for x in args if isinstance(x, Tensor)]
        if function in (Tensor.to, Tensor.cpu):
            with torch._C.DisableTorchFunctionSubclass():
                return function(args[0].as_subclass(Tensor), *args[1:], **(kwargs or {}))
        if any(type(x) is Tensor and x.dim() for x in tensors):
            raise RuntimeError("Expected all tensors to be on the same device")
        return super().__torch_function__(function, types, args, kwargs)


class FarModel(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = Solver(Linear(), lambda y, x: 0.1 * (y * x[..., :1]).cumsum(1))
        self.last = nn.Identity()

    def forward(self, tokens: Tensor) -> Tensor:
        return self.last(self.inner(tokens).as_subclass(Far))


def test_a_model_may_be_on_another_device() -> None:
    found = diagnose(FarModel(), Linear(), names=["input", "last"], num_sequences=256)
    assert found.probes is not None


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_model_on_a_gpu_is_diagnosed_as_on_the_cpu() -> None:
    model = nn.Linear(DIM + 1, 1)
    here = diagnose(model, Linear(), names=["input", "output"], num_sequences=256)
    there = diagnose(model.cuda(), Linear(), names=["input", "output"], num_sequences=256)
    assert there.nearest == here.nearest
