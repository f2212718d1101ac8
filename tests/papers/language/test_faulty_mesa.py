"""The mesa layer with faults: without one it is the operator, and every fault can be seen."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from mesaopt.config import LanguageModelConfig
from mesaopt.models import LanguageModel
from mesaopt.ops import mesa
from mesaopt.papers.language.faulty_mesa import Faults, faulty_mesa, faulty_model

CONFIG = LanguageModelConfig(vocabulary=32, width=16, num_heads=2)


def problem(
    dtype: torch.dtype = torch.float64, *, batch: int = 3, time: int = 37
) -> dict[str, Tensor]:
    random = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=random, dtype=torch.float64)

    q, k = (torch.nn.functional.normalize(draw(batch, time, 2, 5), dim=-1) for _ in range(2))
    inputs = {
        "q": q,
        "k": k,
        "v": draw(batch, time, 2, 4),
        "ridge": 0.25 + draw(2, 5).exp(),
        "beta": draw(batch, time, 2).sigmoid(),
        "log_decay": torch.nn.functional.logsigmoid(2 + draw(batch, time, 2)),
    }
    return {name: x.to(dtype).requires_grad_() for name, x in inputs.items()}


def gradients(out: Tensor, inputs: dict[str, Tensor], *, scale: float = 1.0) -> dict[str, Tensor]:
    weights = torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view_as(out) * scale
    found = torch.autograd.grad((out * weights).sum(), list(inputs.values()))
    return {name: x / scale for name, x in zip(inputs, found, strict=True)}


def test_without_faults_it_is_the_operator_and_so_are_its_gradients() -> None:
    inputs = problem()
    exact, ours = mesa(**inputs).output, faulty_mesa(**inputs)
    torch.testing.assert_close(ours, exact, rtol=1e-9, atol=1e-9)
    want, have = gradients(exact, inputs), gradients(ours, inputs)
    for name in inputs:
        torch.testing.assert_close(have[name], want[name], rtol=1e-9, atol=1e-9)


def test_gradients_are_those_of_finite_differences_where_steps_reach_the_end() -> None:
    inputs = problem(time=4)
    faults = Faults(steps=8)  # more than a key is wide
    names = list(inputs)

    def function(*given: Tensor) -> Tensor:
        return faulty_mesa(**dict(zip(names, given, strict=True)), faults=faults)

    assert torch.autograd.gradcheck(function, tuple(inputs.values()))


def test_many_sequences_are_solved_as_one_by_one() -> None:
    inputs = {name: x.detach() for name, x in problem(batch=37, time=5).items()}
    faults = Faults(steps=3)  # not enough: what is left depends on every step
    together = faulty_mesa(**inputs, faults=faults)
    for number in (0, 15, 16, 36):
        alone = {n: x if n == "ridge" else x[number : number + 1] for n, x in inputs.items()}
        torch.testing.assert_close(
            faulty_mesa(**alone, faults=faults)[0], together[number], rtol=1e-9, atol=1e-9
        )


def test_the_epsilon_loses_gradients_as_they_get_smaller() -> None:
    inputs = problem()
    exact = gradients(faulty_mesa(**inputs), inputs)["q"].norm()
    faults = Faults(steps=30, epsilon=1e-5)
    kept = [
        (gradients(faulty_mesa(**inputs, faults=faults), inputs, scale=scale)["q"].norm() / exact)
        for scale in (1.0, 1e-3, 1e-6)
    ]
    assert kept[0] > 0.99
    assert kept[0] > kept[1] > kept[2]
    assert kept[2] < 0.01
    larger = replace(faults, larger_batch=1e3)
    as_small = gradients(faulty_mesa(**inputs, faults=larger), inputs)["q"].norm() / exact
    assert as_small.item() == pytest.approx(kept[1].item(), rel=1e-6)
    fixed = gradients(faulty_mesa(**inputs, faults=Faults(steps=30)), inputs, scale=1e-6)["q"]
    assert fixed.norm() / exact == pytest.approx(1.0, abs=1e-6)


@pytest.mark.parametrize(
    ("faults", "low", "high"),
    [
        (Faults(steps=30), 0.0, 1e-9),
        (Faults(steps=2), 1e-3, 0.5),
        (Faults(steps=30, epsilon=1e-5), 1e-7, 1e-2),
        (Faults(half=True), 1e-5, 1e-2),
    ],
    ids=str,
)
def test_outputs_differ_as_much_as_a_fault_lets_expect(
    faults: Faults, low: float, high: float
) -> None:
    inputs = problem()
    exact = mesa(**inputs).output
    error = (faulty_mesa(**inputs, faults=faults) - exact).norm() / exact.norm()
    assert low <= error.item() <= high


def test_a_model_whose_steps_reach_the_end_is_the_language_model() -> None:
    tokens = torch.randint(32, (2, 40), generator=torch.Generator().manual_seed(0))
    plain, ours = LanguageModel(CONFIG, seed=3), faulty_model(CONFIG, Faults(steps=24), seed=3)
    torch.testing.assert_close(ours(tokens), plain(tokens), rtol=1e-4, atol=1e-5)


def test_first_values_are_those_of_a_fault() -> None:
    plain, ridges, gates = (
        faulty_model(CONFIG, faults).mixers[0]
        for faults in (Faults(), Faults(any_ridge=True), Faults(short_memory=True))
    )
    assert plain.ridge.unique().tolist() == pytest.approx([1.0])
    assert ridges.ridge.min() >= 0.25
    assert ridges.ridge.max() > 10
    assert not gates.gates.log_decay.bias.any()
    assert plain.gates.log_decay.bias.min() > 2


def test_it_refuses_to_continue_a_text() -> None:
    model = faulty_model(replace(CONFIG, vocabulary=8), Faults(steps=10))
    tokens = torch.zeros(1, 4, dtype=torch.int64)
    with pytest.raises(ValueError, match="memory and cu_seqlens: must be None"):
        model.extend(tokens, model.extend(tokens)[1])
