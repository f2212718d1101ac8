import math

import pytest
import torch
from torch import Tensor, nn

from mesaopt.analysis import Estimate, diagnose
from mesaopt.analysis.diagnosis import LayerSteps, Rates
from mesaopt.analysis.diagnosis.rates import matched_steps
from mesaopt.analysis.diagnosis.regression import regression_of
from mesaopt.config import LinearSystemConfig, PartiallyObservedConfig, stacked
from mesaopt.tasks import LinearSystem, PartiallyObserved, tokens_from_states
from mesaopt.theory import context_statistics

DIM, RIDGE = 4, 0.01
TASK = LinearSystem(LinearSystemConfig(dim=DIM, length=16, token_slots=("current",)))


class Steps(nn.Module):
    """Writes the prediction after a number of steps into the second half of a stream."""

    def __init__(self, method: str, number: int, history: int = 1):
        super().__init__()
        self.method, self.number, self.history = method, number, history

    def forward(self, stream: Tensor) -> Tensor:
        states, _ = stream.double().chunk(2, dim=-1)
        inputs = tokens_from_states(states, stacked(self.history))
        gram, cross = context_statistics(states, inputs=inputs)
        identity = torch.eye(gram.shape[-1]).double()
        matrix = gram + RIDGE * identity
        inverse = identity / torch.linalg.eigvalsh(matrix)[..., -1:, None]
        first = inverse
        for _ in range(self.number):
            rest = identity - matrix @ inverse
            inverse = inverse + (inverse if self.method == "newton" else first) @ rest
        prediction = (cross @ inverse @ inputs[..., None])[..., 0]
        return torch.cat([states, prediction], dim=-1).to(stream)


class Stack(nn.Module):
    """Layers that each go on by a step."""

    def __init__(self, method: str, depth: int = 6, history: int = 1):
        super().__init__()
        self.layers = nn.ModuleList(Steps(method, n, history) for n in range(depth))

    def forward(self, tokens: Tensor) -> Tensor:
        stream = torch.cat([tokens, torch.zeros_like(tokens)], dim=-1)
        for layer in self.layers:
            stream = layer(stream)
        return stream.chunk(2, dim=-1)[1]

    @property
    def names(self) -> list[str]:
        return [f"layers.{n}" for n in range(len(self.layers))]


def rates_of(model: Stack, task=TASK) -> Rates:
    rates = matched_steps(model, regression_of(task), model.names, ridge=RIDGE)
    assert rates is not None
    return rates


def test_gradient_descent_grows_linearly() -> None:
    rates = rates_of(Stack("descent"))
    assert [layer.gradient_steps for layer in rates.layers] == [1, 2, 3, 4, 5, 6]
    assert [layer.newton_steps for layer in rates.layers] == [0, 1, 2, 2, 2, 3]
    assert all(layer.matched and layer.gradient.low > 0.998 for layer in rates.layers)
    assert rates.growth == "linear"
    assert rates.gradient_line == pytest.approx(1.0)


def test_newtons_method_grows_exponentially() -> None:
    rates = rates_of(Stack("newton"))
    assert [layer.newton_steps for layer in rates.layers] == [0, 1, 2, 3, 4, 5]
    assert [layer.gradient_steps for layer in rates.layers] == [1, 2, 4, 8, 16, 32]
    assert rates.growth == "exponential"
    assert rates.newton_line == pytest.approx(1.0)


def test_stacked_observations_are_the_inputs_where_a_system_is_observed_in_part() -> None:
    config = PartiallyObservedConfig(dim=2, hidden_dim=6, length=20, token_slots=("current",))
    rates = rates_of(Stack("newton", depth=3, history=5), PartiallyObserved(config))
    assert [layer.newton_steps for layer in rates.layers] == [0, 1, 2]


def test_a_layer_that_predicts_nothing_is_not_matched() -> None:
    model = Stack("newton", depth=3)
    rates = matched_steps(model, regression_of(TASK), ["input", *model.names], ridge=RIDGE)
    assert rates is not None
    assert [layer.matched for layer in rates.layers] == [False, True, True, True]
    assert rates.growth == "exponential", "the others decide"


def test_two_layers_show_no_growth() -> None:
    rates = rates_of(Stack("descent", depth=2))
    assert math.isnan(rates.gradient_line)
    assert rates.growth == "unclear"


def test_lines_through_anything() -> None:
    one = Estimate(1.0, 0.0)

    def growth(steps: list[int]) -> str:
        return Rates(tuple(LayerSteps("", one, n, 0, one, one) for n in steps)).growth

    assert growth([3, 6, 9, 12]) == "linear"
    assert growth([2, 6, 18, 54]) == "exponential"
    assert growth([2, 1, 2, 1]) == growth([5, 5, 5]) == "unclear"


def test_the_diagnosis_has_the_rates_of_known_layers() -> None:
    model = Stack("newton", depth=3)
    found = diagnose(model, TASK, names=model.names, num_sequences=256)
    assert found.rates is not None
    assert [layer.newton_steps for layer in found.rates.layers] == [0, 1, 2]
    assert found.to_json()["rates"]["layers"][2]["newton_steps"] == 2
    assert found.verdict.answer == "yes"
    assert matched_steps(model, regression_of(TASK), None, ridge=RIDGE) is None
