"""Analyses that differentiate, where the caller or the model has turned autograd off."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from mesaopt.analysis import (
    Evaluation,
    distil,
    fit_polynomial,
    learn_inverse,
    linearize,
    sensitivity,
    tune_prompt,
)
from mesaopt.config import FewShotConfig, LinearSystemConfig, ModelConfig
from mesaopt.models import SequenceModel
from mesaopt.tasks import FewShot, LinearSystem
from mesaopt.theory import neumann_inverse

VALIDATION = Evaluation(num_sequences=256, split="validation")
PAIRS = FewShot(FewShotConfig(dim=2, length=12, layout="triples"))
SYSTEMS = LinearSystem(LinearSystemConfig(dim=2, length=6, token_slots=("current",)))
SIZES = ModelConfig(token_dim=2, output_dim=2, embed_dim=4, readout="linear", head_dim=4)
MODEL = SequenceModel(SIZES, seed=0)
FEATURES = nn.Linear(2, 3, bias=False).double()  # trained ones ask for gradients


def draw(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def weights_of(layer: nn.Module) -> list[Tensor]:
    return [weight.detach() for weight in layer.parameters()]


ANALYSES: dict[str, Callable[[], list[Tensor]]] = {
    "sensitivity": lambda: [
        sensitivity(MODEL, draw(3, 6, 2), name="blocks.0", position=4).norms,
    ],
    "tune_prompt": lambda: [
        tune_prompt(MODEL, PAIRS, steps=3, batch_size=4).losses,
        tune_prompt(MODEL, PAIRS, steps=3, batch_size=4).norms,
    ],
    "linearize": lambda: weights_of(
        linearize(MODEL, SYSTEMS, steps=3, batch_size=4, num_sequences=256).distilled[0]
    ),
    "distil": lambda: weights_of(
        distil(draw(8, 5, 4), draw(8, 5, 4).roll(1), num_heads=1, head_dim=4, steps=3)
    ),
    "learn_inverse": lambda: [
        torch.tensor(learned.step_sizes)
        for learned in (
            learn_inverse(
                SYSTEMS,
                neumann_inverse(2, ridge=1e-3, scale="frobenius"),
                inputs=FEATURES,
                evaluation=VALIDATION,
                iterations=3,
            ),
        )
    ],
    "fit_polynomial": lambda: [
        torch.tensor(fit_polynomial(SYSTEMS, 2, inputs=FEATURES, evaluation=VALIDATION))
    ],
}


@pytest.mark.parametrize("off", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("analysis", ANALYSES)
def test_the_result_is_that_with_autograd_on(analysis: str, off: Callable) -> None:
    wanted = ANALYSES[analysis]()
    with off():
        found = ANALYSES[analysis]()
        assert not torch.is_grad_enabled()
    for mine, right in zip(found, wanted, strict=True):
        assert torch.equal(mine, right)
        assert right.abs().sum() > 0


class Hidden(nn.Module):
    """A layer that autograd does not see, inside of one that it does."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.layer, self.how = nn.Linear(2, 2), how

    def forward(self, x: Tensor) -> Tensor:
        if self.how == "detach":
            return self.layer(x.detach())
        with torch.no_grad() if self.how == "no_grad" else torch.inference_mode():
            return self.layer(x)


HOW = ["detach", "no_grad", "inference_mode"]


@pytest.mark.parametrize("how", HOW)
def test_a_part_that_autograd_does_not_see_is_refused(how: str) -> None:
    with pytest.raises(ValueError, match="^name='output': changes with the tokens, but autograd"):
        sensitivity(Hidden(how), draw(3, 6, 2), name="output", position=4)


@pytest.mark.parametrize("how", HOW)
def test_a_prompt_that_no_gradient_reaches_is_refused(how: str) -> None:
    with pytest.raises(ValueError, match="^model: its predictions have no gradient"):
        tune_prompt(Hidden(how), PAIRS, steps=3, batch_size=4)


def test_weights_made_in_inference_mode_are_refused_by_name() -> None:
    with torch.inference_mode():
        model = nn.Linear(2, 2)
    for analysis in (
        lambda: sensitivity(model, draw(3, 6, 2), name="output", position=4),
        lambda: tune_prompt(model, PAIRS, steps=3, batch_size=4),
    ):
        with pytest.raises(ValueError, match="^model: 'weight' was made inside of torch.inference"):
            analysis()


def test_a_part_that_ignores_its_tokens_still_has_zeros() -> None:
    class Constant(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.ones(*x.shape[:2], 3)

    with torch.inference_mode():
        found = sensitivity(Constant(), draw(3, 6, 2), name="output", position=4)
    assert torch.equal(found.norms, torch.zeros(3, 6))
