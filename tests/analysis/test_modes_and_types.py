"""Models left in training mode, models of other types, other default types, and stray values."""

from collections.abc import Callable, Iterator

import jaxtyping
import pytest
import torch
from torch import Tensor, nn

from mesaopt.analysis import (
    Evaluation,
    attention_maps,
    attention_mass,
    diagnose,
    distil,
    few_shot_losses,
    fit_polynomial,
    in_context_loss,
    learn_inverse,
    linearize,
    model_predictor,
    next_token,
    past_token,
    probe,
    probe_layers,
    sensitivity,
    tune_prompt,
    unexplained,
)
from mesaopt.analysis.diagnosis.model_target import checked_predictor
from mesaopt.analysis.prompts import prompt_task
from mesaopt.config import FewShotConfig, LinearSystemConfig, ModelConfig
from mesaopt.models import SequenceModel
from mesaopt.tasks import FewShot, LinearSystem
from mesaopt.theory import neumann_inverse

TASK = LinearSystem(LinearSystemConfig(dim=2, length=8, token_slots=("current",)))
PAIRS = FewShot(FewShotConfig(dim=2, length=12, layout="triples"))
EVALUATION = Evaluation(num_sequences=256)
SIZES = ModelConfig(
    mixers=("softmax_attention", "linear_attention"),
    token_dim=2,
    output_dim=2,
    embed_dim=4,
    readout="linear",
    head_dim=4,
    initial_std=0.5,
)


def make(dropout: float = 0.0) -> SequenceModel:
    """A model, perhaps with dropout between its layers, in training mode."""
    model = SequenceModel(SIZES, seed=0)
    for block in model.blocks:
        block.register_module("dropout", nn.Dropout(dropout))
        block.register_forward_hook(lambda block, _, result: block.dropout(result))
    return model.train()


def tokens() -> Tensor:
    return TASK.sample(64, seed=1).tokens


def numbers(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def probed(model: nn.Module) -> Tensor:
    table = probe_layers(
        model,
        TASK,
        {"next": next_token},
        positions=[6],
        names=["blocks.0", "blocks.1"],
        num_fit=256,
        num_score=256,
    )
    return torch.cat([score.losses for score in table.scores.values()])


def predicted(model: SequenceModel) -> Tensor:
    predict = model_predictor(model, TASK.config.token_slots)
    return in_context_loss({"": predict}, TASK, EVALUATION)[""].losses


MODEL_ANALYSES: dict[str, Callable[[SequenceModel], Tensor]] = {
    "model_predictor": predicted,
    "probe_layers": probed,
    "sensitivity": lambda m: sensitivity(m, tokens(), name="blocks.1", position=5).curve,
    "attention_maps": lambda m: attention_maps(m, tokens(), name="blocks.1.mixer").mean,
    "few_shot_losses": lambda m: few_shot_losses(m, PAIRS, evaluation=EVALUATION).losses,
    "tune_prompt": lambda m: tune_prompt(m, PAIRS, steps=3, batch_size=8).losses,
    "linearize": lambda m: linearize(m, TASK, steps=3, num_sequences=256).ratios,
    "unexplained": lambda m: numbers(unexplained(m, tokens(), tokens())),
}


@pytest.mark.parametrize("analysis", MODEL_ANALYSES)
def test_dropout_is_off_and_the_mode_comes_back(analysis: str) -> None:
    model = make(dropout=0.5)
    model.blocks[1].eval()
    modes = [part.training for part in model.modules()]
    first, second = (MODEL_ANALYSES[analysis](model) for _ in range(2))
    assert torch.equal(first, second)
    assert torch.equal(first, MODEL_ANALYSES[analysis](make().eval()))
    assert [part.training for part in model.modules()] == modes


def test_the_diagnosis_of_a_model_left_in_training_mode() -> None:
    kept, plain = (diagnose(m, TASK, num_sequences=256) for m in (make(0.5), make().eval()))
    assert kept.agreements == plain.agreements
    assert kept.learning == plain.learning


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("analysis", MODEL_ANALYSES)
def test_models_of_other_types(analysis: str, dtype: torch.dtype) -> None:
    found = MODEL_ANALYSES[analysis](make().to(dtype)).double()
    wanted = MODEL_ANALYSES[analysis](make()).double()
    # Roundings of 2^-8 in bfloat16, and of 2^-24 in float32, after a few layers.
    tolerance = 0.1 if dtype is torch.bfloat16 else 1e-4
    assert found.isfinite().all()
    assert (found - wanted).norm() < tolerance * wanted.norm()


def test_the_predictor_of_a_diagnosis_takes_models_of_other_types() -> None:
    batch = TASK.sample(4, seed=0)
    single, double = (
        checked_predictor(m.eval(), prompt_task(TASK))(batch) for m in (make(), make().double())
    )
    torch.testing.assert_close(double, single, rtol=1e-4, atol=1e-5)


@pytest.fixture
def double_by_default() -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


PLAIN_ANALYSES: dict[str, Callable[[], Tensor]] = {
    "distil": lambda: next(
        distil(
            tokens(), tokens().roll(1), num_heads=1, head_dim=2, steps=3, batch_size=8
        ).parameters()
    ).detach(),
    "fit_polynomial": lambda: numbers(
        *fit_polynomial(TASK, 2, evaluation=Evaluation(num_sequences=256, split="validation"))
    ),
    "learn_inverse": lambda: numbers(
        *learn_inverse(
            TASK,
            neumann_inverse(2, ridge=1e-3, scale="frobenius"),
            evaluation=Evaluation(num_sequences=256, split="validation"),
            iterations=3,
        ).step_sizes
    ),
}


@pytest.mark.parametrize("analysis", [*MODEL_ANALYSES, *PLAIN_ANALYSES])
@pytest.mark.parametrize("weights", [torch.float32, torch.float64])
def test_another_default_type(
    analysis: str, weights: torch.dtype, request: pytest.FixtureRequest
) -> None:
    model = make().to(weights)  # drawn once: another default type draws other numbers

    def run() -> Tensor:
        if analysis in PLAIN_ANALYSES:
            return PLAIN_ANALYSES[analysis]().double()
        return MODEL_ANALYSES[analysis](model).double()

    wanted = run()
    request.getfixturevalue("double_by_default")
    torch.testing.assert_close(run(), wanted, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "call"),
    [
        ("split='tset': did you mean 'test'", lambda: Evaluation(split="tset")),
        ("split=None: ", lambda: Evaluation(split=None)),
        ("seed=1.5: ", lambda: Evaluation(seed=1.5)),
        ("seed=True: ", lambda: Evaluation(seed=True)),
        ("seed=-1: ", lambda: Evaluation(seed=-1)),
        ("num_sequences=2.5: ", lambda: Evaluation(num_sequences=2.5)),
        ("num_sequences=0: ", lambda: Evaluation(num_sequences=0)),
        ("seed=1.5: ", lambda: probe(*[torch.randn(9, 2)] * 4, seed=1.5)),
        ("ridge=inf: ", lambda: probe(*[torch.randn(9, 2)] * 4, ridge=float("inf"))),
        ("position=1.5: ", lambda: sensitivity(make(), tokens(), name="input", position=1.5)),
        ("tokens: ", lambda: sensitivity(make(), tokens().long(), name="input", position=1)),
        ("steps=1.5: ", lambda: past_token(1.5)),
        ("start=1.5: ", lambda: attention_mass(torch.ones(1, 1, 8, 8), start=1.5)),
        ("offsets=0.5: ", lambda: attention_mass(torch.ones(1, 1, 8, 8), offsets=(0.5,))),
        ("steps=1.5: ", lambda: tune_prompt(make(), PAIRS, steps=1.5)),
        ("batch_size=1.5: ", lambda: tune_prompt(make(), PAIRS, batch_size=1.5)),
        ("seed=1.5: ", lambda: tune_prompt(make(), PAIRS, seed=1.5)),
        ("steps=1.5: ", lambda: linearize(make(), TASK, steps=1.5)),
        ("seed=1.5: ", lambda: linearize(make(), TASK, seed=1.5)),
        ("degree=1.5: ", lambda: fit_polynomial(TASK, 1.5)),
        (
            "num_fit=99.5: ",
            lambda: probe_layers(make(), TASK, {}, positions=[1], num_fit=99.5),
        ),
        ("position=1.5: ", lambda: probe_layers(make(), TASK, {}, positions=[1.5])),
    ],
)
def test_values_of_another_kind_are_refused_by_name(
    name: str, call: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Users have no type checks at run time.
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    with pytest.raises(ValueError) as error:  # noqa: PT011
        call()
    assert str(error.value).startswith(name)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_tokens_get_the_type_of_the_matrices_whatever_that_of_a_ridge(dtype: torch.dtype) -> None:
    config = ModelConfig(mixers=("mesa",), token_dim=2, output_dim=2, head_dim=2, initial_std=0.5)
    model = SequenceModel(config).to(dtype)
    loss = in_context_loss(model, TASK, EVALUATION)
    wanted = in_context_loss(SequenceModel(config), TASK, EVALUATION)
    assert loss.mean == pytest.approx(wanted.mean, rel=0.05)  # roundings of 2^-8 in bfloat16
