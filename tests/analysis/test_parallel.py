"""Analyses that compute their batches in several threads: the number of threads changes no bit."""

import functools
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields, is_dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from mesaopt import recipes
from mesaopt.analysis import (
    Evaluation,
    ablate,
    attention_maps,
    collect_activations,
    diagnose,
    few_shot_losses,
    fit_polynomial,
    in_context_loss,
    learn_inverse,
    line_search_step_size,
    linearize,
    model_predictor,
    next_token,
    probe_layers,
    sensitivity,
    tune_ridge,
)
from mesaopt.config import FewShotConfig, LinearSystemConfig, ModelConfig
from mesaopt.errors import ConfigError
from mesaopt.models import SequenceModel, make_model
from mesaopt.tasks import Batch, FewShot, LinearSystem, make_task
from mesaopt.theory import gradient_descent, neumann_inverse
from mesaopt.workers import current_workers, parallel

TASK = LinearSystem(LinearSystemConfig(dim=3, length=8, token_slots=("current",)))
VALIDATION = Evaluation(num_sequences=700, split="validation")


@pytest.fixture(autouse=True)
def _threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    assert torch.get_num_threads() == before, "restored"


def softmax() -> SequenceModel:
    torch.manual_seed(0)
    config = ModelConfig(
        token_dim=3,
        output_dim=3,
        embed_dim=8,
        head_dim=4,
        num_heads=2,
        readout="linear",
        mixers=("softmax_attention", "softmax_attention"),
    )
    return SequenceModel(config)


def losses_of(recipe: str) -> Any:
    config = recipes.get(recipe)
    task = make_task(replace(config.task, length=9))
    predictors = {
        "model": model_predictor(make_model(config.model), config.task.token_slots),
        "step": lambda batch: gradient_descent(batch.observed, step_size=0.03),
    }
    return in_context_loss(predictors, task, Evaluation(num_sequences=700))


def tokens(sequences: int) -> Tensor:
    return TASK.sample(sequences, seed=3).tokens


ANALYSES: Mapping[str, Callable[[], Any]] = {
    **{
        f"in_context_loss {recipe}": functools.partial(losses_of, recipe)
        for recipe in ("lsa-2", "mesa-1", "tf-3", "mesanet-1", "ar-gaussian")
    },
    "few_shot_losses": lambda: few_shot_losses(
        softmax(), FewShot(FewShotConfig(dim=3, length=6)), None, Evaluation(num_sequences=700)
    ),
    "collect_activations": lambda: collect_activations(
        softmax(), TASK, {"next": next_token}, positions=[3, 8]
    ),
    "probe_layers": lambda: probe_layers(
        softmax(), TASK, {"next": next_token}, positions=[8], num_fit=600, num_score=600
    ),
    "fit_polynomial": lambda: fit_polynomial(TASK, 3, evaluation=VALIDATION),
    "learn_inverse": lambda: learn_inverse(
        TASK, neumann_inverse(2, ridge=1.0), evaluation=VALIDATION, iterations=20
    ),
    "line_search_step_size": lambda: line_search_step_size(TASK, evaluation=VALIDATION),
    "tune_ridge": lambda: tune_ridge(TASK, evaluation=VALIDATION),
    "sensitivity": lambda: sensitivity(softmax(), tokens(150), name="blocks.0", position=5),
    "attention_maps": lambda: attention_maps(softmax(), tokens(300), name="blocks.1.mixer"),
    "ablate": lambda: ablate(
        softmax(),
        TASK,
        ["blocks.0", "blocks.1.mixer"],
        by="shuffled_tokens",
        positions=[2, 8],
        evaluation=Evaluation(num_sequences=700),
    ),
    "linearize": lambda: linearize(softmax(), TASK, steps=5, num_sequences=512),
    "diagnose": lambda: diagnose(softmax(), TASK, num_sequences=512).to_json(),
}


def bits(value: Any) -> Any:
    """What a result is made of, floats and tensors to the last bit."""
    if isinstance(value, Tensor):
        return value.dtype, tuple(value.shape), value.detach().contiguous().numpy().tobytes()
    if isinstance(value, torch.nn.Module):
        return bits(value.state_dict())
    if isinstance(value, float):
        return value.hex()
    if isinstance(value, Mapping):
        return {name: bits(item) for name, item in value.items()}
    if isinstance(value, tuple | list):
        return [bits(item) for item in value]
    if is_dataclass(value):
        return {field.name: bits(getattr(value, field.name)) for field in fields(value)}
    return value


@pytest.mark.parametrize("name", ANALYSES)
def test_the_number_of_workers_changes_no_bit(name: str) -> None:
    analyse = ANALYSES[name]
    found = {}
    for count in (1, 2, 16):
        with parallel(count):
            found[count] = bits(analyse())
    assert found[2] == found[1]
    assert found[16] == found[1]
    assert bits(analyse()) == found[1], "the tests compute with one thread"


def test_batches_are_computed_by_several_threads_in_order() -> None:
    together, seen = threading.Barrier(2), []

    def first(batch: Batch) -> float:
        if len(seen) < 2:
            seen.append(threading.current_thread().name)
            together.wait(timeout=30)  # two threads are here at once
        return batch.states[0, 0, 0].item()

    reported = []
    evaluation = Evaluation(
        num_sequences=5 * 256, progress=lambda x: reported.append((x.done, x.total))
    )
    with parallel(2):
        found = list(evaluation.map(TASK, first))
    assert found == [batch.states[0, 0, 0].item() for batch in evaluation.batches(TASK)]
    assert len(set(seen)) == 2
    assert reported[:5] == [(done, 5) for done in range(1, 6)]


class Doubled(TorchFunctionMode):
    """Doubles every sum."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        return 2 * result if function is torch.Tensor.sum else result


MODES = {
    "no_grad": torch.no_grad,
    "inference_mode": torch.inference_mode,
    "enable_grad": torch.enable_grad,
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "a mode of torch functions": Doubled,
}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("count", [1, 3])
def test_workers_compute_in_the_modes_of_the_caller(mode: str, count: int) -> None:
    weight = torch.ones(3, 2, requires_grad=True)

    def compute(batch: Batch) -> tuple[bool, bool, torch.dtype, float]:
        product = batch.states[:, 0] @ weight
        return product.requires_grad, product.is_inference(), product.dtype, product.sum().item()

    evaluation = Evaluation(num_sequences=3 * 256)
    with MODES[mode]():
        alone = list(evaluation.map(TASK, compute))
        with parallel(count):
            assert list(evaluation.map(TASK, compute)) == alone
    if mode != "enable_grad":
        assert alone != list(evaluation.map(TASK, compute)), "the mode makes a difference"


def test_a_worker_has_no_workers_and_ends_with_its_block() -> None:
    before = threading.active_count()

    def nested(_: Batch) -> float:
        assert current_workers().pool is None
        return losses_of("lsa-1")["step"].mean

    with parallel(2):
        means = list(Evaluation(num_sequences=512).map(TASK, nested))
        assert current_workers().count == 2
    assert means[0] == means[1] == losses_of("lsa-1")["step"].mean
    assert current_workers().pool is None
    assert threading.active_count() == before


def test_errors_are_those_of_the_first_batch_that_fails() -> None:
    def fail(batch: Batch) -> None:
        raise ValueError(f"{len(batch.states)} sequences")

    with parallel(2), pytest.raises(ValueError, match="256 sequences"):
        list(Evaluation(num_sequences=20 * 256).map(TASK, fail))
    with pytest.raises(ConfigError, match="count=0: must be 1 or greater"), parallel(0):
        pass
