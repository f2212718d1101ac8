"""Tasks whose matrices are given in their settings, not drawn."""

import json
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from mesaopt import recipes
from mesaopt.analysis import diagnose
from mesaopt.config import (
    LinearSystemConfig,
    NonlinearSystemConfig,
    RunConfig,
    as_matrix,
    differences,
    from_dict,
    override,
    to_dict,
)
from mesaopt.errors import ConfigError
from mesaopt.models import SequenceModel
from mesaopt.tasks import LinearSystem, NonlinearSystem

RANDOM = np.random.default_rng(0)
W = RANDOM.standard_normal((3, 3)) / 3
A, B = RANDOM.standard_normal((5, 3)), RANDOM.standard_normal((3, 5))
LINEAR = LinearSystemConfig(dim=3, length=6, transition="fixed", matrix=as_matrix(W))
NONLINEAR = NonlinearSystemConfig(
    dim=3, hidden_dim=5, length=6, teacher_hidden=as_matrix(A), teacher_output=as_matrix(B)
)


@pytest.mark.parametrize("given", [W, W.tolist(), torch.from_numpy(W), tuple(map(tuple, W))])
def test_a_matrix_may_come_as_an_array_a_tensor_or_lists(given: Any) -> None:
    assert as_matrix(given) == LINEAR.matrix
    assert np.array_equal(as_matrix(given), W), "to the bit"


def test_the_matrix_reaches_the_states() -> None:
    task = LinearSystem(replace(LINEAR, noise_std=0.0))
    batch = task.sample(4, seed=7, dtype=torch.float64)
    assert batch.transition.equal(torch.from_numpy(W).expand(4, 3, 3))
    after = batch.observed @ torch.from_numpy(W).T
    torch.testing.assert_close(
        batch.targets, after, rtol=0, atol=1e-14
    )  # sums of 3 products below 1


def test_a_given_matrix_changes_nothing_else() -> None:
    drawn = replace(LINEAR, matrix=None)
    teacher = LinearSystem(drawn).sample(1, seed=0, dtype=torch.float64).transition[0]
    same = replace(LINEAR, matrix=as_matrix(teacher))
    batches = [LinearSystem(config).sample(5, seed=3, step=2) for config in (drawn, same)]
    assert batches[0].states.equal(batches[1].states)


def test_the_teacher_reaches_the_states() -> None:
    task = NonlinearSystem(replace(NONLINEAR, noise_std=0.0))
    states = task.sample(4, seed=7, dtype=torch.float64).observed
    hidden = torch.nn.functional.gelu(states @ torch.from_numpy(A).T, approximate="tanh")
    wanted = hidden @ torch.from_numpy(B).T
    torch.testing.assert_close(task.teacher(states), wanted, rtol=1e-12, atol=1e-12)
    batch = task.sample(4, seed=7, dtype=torch.float64)
    after = wanted / wanted.norm(dim=-1, keepdim=True) @ batch.transition.mT
    torch.testing.assert_close(batch.targets, after, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("task", [LINEAR, NONLINEAR])
def test_matrices_survive_json_to_the_bit(task: Any) -> None:
    model = replace(recipes.MODELS["tf-3"], token_dim=task.token_dim, output_dim=3)
    config = RunConfig(recipe="mine", task=task, model=model)
    assert from_dict(RunConfig, json.loads(json.dumps(to_dict(config)))) == config


def test_matrices_can_be_set_on_the_command_line() -> None:
    config = override(LinearSystemConfig(dim=2, transition="fixed"), ["matrix=[[0, -1], [1, 0]]"])
    assert config.matrix == ((0.0, -1.0), (1.0, 0.0))


def test_another_matrix_is_another_run_and_the_line_that_says_so_is_short() -> None:
    (line,) = differences(LINEAR, replace(LINEAR, matrix=as_matrix(2 * W)))
    assert line.startswith("matrix: ((")
    assert len(line) < 200


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: replace(LINEAR, matrix=W.tolist()), "must be a tuple or None"),
        (lambda: replace(LINEAR, matrix=()), "must be a tuple of 3 rows, tuples of 3 numbers each"),
        (lambda: replace(LINEAR, matrix=as_matrix(W[:2])), "must be a tuple of 3 rows"),
        (lambda: replace(LINEAR, matrix=as_matrix(W[:, :2])), "tuples of 3 numbers each"),
        (lambda: replace(LINEAR, matrix=(1.0, 2.0, 3.0)), "tuples of 3 numbers each"),
        (lambda: replace(LINEAR, matrix=as_matrix(np.full((3, 3), math.nan))), r"matrix[0][0]=nan"),
        (lambda: replace(LINEAR, transition="orthogonal"), "must be 'fixed' where a matrix is given"),
        (lambda: replace(LINEAR, transition="contracting"), "must be 'fixed' where a matrix is"),
        (lambda: replace(LINEAR, dim=4), "must be a tuple of 4 rows"),
        (lambda: replace(NONLINEAR, teacher_output=None), "must be given with teacher_output"),
        (lambda: replace(NONLINEAR, teacher_hidden=None), "must be given with teacher_output"),
        (lambda: replace(NONLINEAR, teacher_hidden=as_matrix(A.T)), "must be a tuple of 5 rows"),
        (lambda: replace(NONLINEAR, hidden_dim=6), "teacher_hidden="),
        (lambda: replace(NONLINEAR, teacher_output=((1.0, 2.0),)), "teacher_output="),
    ],
)  # fmt: skip
def test_a_matrix_that_does_not_fit_is_refused(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(ConfigError) as error:
        make()
    assert message in str(error.value)
    assert len(str(error.value)) < 300
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("W", "must be a list"),
        ([["a"]], "must be a number"),
        ([1.0], "must be a list"),
    ],
)
def test_a_matrix_in_a_file_is_read_strictly(value: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        from_dict(LinearSystemConfig, {"dim": 1, "transition": "fixed", "matrix": value})


def test_a_model_of_one_given_matrix_can_be_diagnosed() -> None:
    task = LinearSystem(replace(LINEAR, length=12, token_slots=("current",)))
    config = replace(recipes.MODELS["lsa-1"], token_dim=3, output_dim=3)
    assert diagnose(SequenceModel(config), task, num_sequences=256).verdict.answer == "no"
