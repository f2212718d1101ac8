from dataclasses import replace

import pytest
import torch
from own_tasks import Regression as Unreadable

from mesaopt.analysis import Evaluation, in_context_loss, tuned_baselines
from mesaopt.tasks import FewShot, OwnTask, Regression, Task, own_task

FEW = Evaluation(num_sequences=256)


class Readable(Unreadable):
    """Regression in context that says where its inputs are."""

    def regression(self, batch) -> Regression:
        return Regression(inputs=batch.tokens[..., : self.dim], targets=batch.targets)


def own(task: Task) -> OwnTask:
    return OwnTask(own_task(task))


def test_baselines_of_an_own_task_learn_from_its_pairs() -> None:
    task = own(Readable(dim=2, length=6))
    found = tuned_baselines(task)
    assert list(found) == ["predict zero", "one gradient step", "least squares"]
    losses = in_context_loss({name: one.predictor for name, one in found.items()}, task, FEW)
    # Two pairs without noise determine a map of two coordinates, which the third prediction needs.
    least_squares, descent = losses["least squares"].curve, losses["one gradient step"].curve
    zero = losses["predict zero"].curve
    assert torch.equal(least_squares[:1], zero[:1])
    assert least_squares[3] < 0.01 * zero[3]
    assert 0.1 * zero[5] < descent[5] < 0.9 * zero[5]


def test_a_task_whose_prompts_cannot_be_read_is_compared_with_zero() -> None:
    assert list(tuned_baselines(own(Unreadable()))) == ["predict zero"]


@pytest.mark.parametrize("scale", [1e-3, 300.0, 1e4])
def test_baselines_do_not_depend_on_the_unit_of_the_data(scale: float) -> None:
    class Scaled(Readable):
        def sample(self, *args, **kwargs):
            batch = super().sample(*args, **kwargs)
            return replace(batch, tokens=scale * batch.tokens, targets=scale * batch.targets)

    shares = []
    for task in (own(Readable(dim=2, length=6)), own(Scaled(dim=2, length=6))):
        found = {name: one.predictor for name, one in tuned_baselines(task).items()}
        losses = in_context_loss(found, task, FEW)
        zero = losses["predict zero"].mean
        shares.append([losses[name].mean / zero for name in found])
    # Both searches end within some percent of the best, where the loss is flat.
    assert shares[1] == pytest.approx(shares[0], rel=0.02)


def test_few_shot_baselines_learn_from_true_pairs() -> None:
    task = FewShot(dim=3, length=20)
    least_squares = tuned_baselines(task)["least squares"]
    loss = in_context_loss(least_squares.predictor, task, FEW)
    assert list(loss.positions)[:3] == [1, 3, 5]
    assert loss.curve[-1] < 0.01 * loss.curve[0]
    assert least_squares.label == f"with ridge {least_squares.setting['ridge']:.2g}"


def test_a_reading_may_be_given() -> None:
    task = own(Unreadable(dim=2))
    found = tuned_baselines(task, regression=Readable(dim=2).regression)
    assert found["least squares"].setting["ridge"] == pytest.approx(1e-5, rel=2)
