import re
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from mesaopt.analysis import (
    Estimate,
    Evaluation,
    ablate,
    capture,
    in_context_loss,
    patch,
    patching,
)
from mesaopt.analysis.ablation import shuffled_tokens
from mesaopt.config import LanguageModelConfig, LinearSystemConfig, ModelConfig
from mesaopt.models import LanguageModel, SequenceModel
from mesaopt.tasks import Batch, Copying, LinearSystem, Text
from mesaopt.theory import gradient_descent, proposition_1

DIM, LENGTH, STEP = 4, 12, 0.05
SLOTS = ("zero", "current", "current", "previous")
TASK = LinearSystem(LinearSystemConfig(dim=DIM, length=LENGTH, token_slots=SLOTS))
FEW = Evaluation(num_sequences=256)
MIXER = "blocks.0.mixer"
EXACT = {"rtol": 1e-5, "atol": 1e-6}  # float32 sums of some hundred products, in another order


def one_step() -> SequenceModel:
    config = ModelConfig(token_dim=4 * DIM, output_dim=DIM, num_heads=1, head_dim=DIM)
    model = SequenceModel(config)
    model.load_state_dict(proposition_1(DIM, step_size=STEP))
    return model


def the_batch() -> tuple[Batch, Tensor]:
    """The sequences of an evaluation, and the prediction of one step of gradient descent."""
    (batch,) = FEW.batches(TASK)
    return batch, gradient_descent(batch.observed, step_size=STEP)


def half_squares(x: Tensor) -> Tensor:
    return x.square().sum(-1) / 2


@pytest.mark.parametrize("late", [range(1, LENGTH + 1), [3, LENGTH]])
def test_the_algebra_of_one_gradient_step(late) -> None:
    batch, predicted = the_batch()
    others = {
        "zero": torch.zeros_like(predicted),
        "mean": predicted.mean(0).expand_as(predicted),
        "other_sequence": predicted.roll(1, dims=0),
    }
    place = torch.zeros(LENGTH, 1, dtype=torch.bool)
    place[[t - 1 for t in late]] = True
    for by, other in others.items():
        table = ablate(one_step(), TASK, [MIXER], by=by, positions={"late": late}, evaluation=FEW)
        effect = table.at(MIXER, "late")
        wanted = half_squares(torch.where(place, other, predicted) - batch.targets)
        torch.testing.assert_close(effect.patched.losses.float(), wanted, **EXACT)
        original = half_squares(predicted - batch.targets)
        torch.testing.assert_close(table.original.losses.float(), original, **EXACT)
        change = (wanted - original).mean(1)
        assert effect.change.value == pytest.approx(change.mean().item(), rel=1e-4)
        assert effect.change.error == pytest.approx(change.std().item() / 16, rel=1e-4)
        assert effect.ratio.value == pytest.approx(
            wanted.mean().item() / original.mean().item(), 1e-4
        )


def test_the_last_step_does_not_depend_on_the_order_of_the_pairs() -> None:
    # G_T is a sum over pairs, so at the last position only the query changes with the order of tokens.
    batch, _ = the_batch()
    table = ablate(one_step(), TASK, [MIXER], by="shuffled_tokens", evaluation=FEW)
    queries = shuffled_tokens(batch.observed)[:, -1]
    current, previous = batch.observed[:, 1:], batch.observed[:, :-1]
    sums = torch.einsum("bti,btj->bij", current, previous)
    last = STEP * (sums @ queries[..., None])[..., 0]
    wanted = half_squares(last - batch.targets[:, -1])
    found = table.at(MIXER).patched.losses[:, -1].float()
    torch.testing.assert_close(found, wanted, **EXACT)


class Gaussian:
    """Independent tokens, and targets that are one linear map of each."""

    def __init__(self, matrix: Tensor) -> None:
        self.matrix = matrix

    def sample(self, batch_size, *, seed, step=0, split="train", device="cpu") -> Batch:
        random = torch.Generator().manual_seed(1000 * seed + step)
        x = torch.randn(batch_size, 6, 3, generator=random, dtype=torch.float64)
        y = x @ self.matrix.T
        return Batch(x, y, torch.cat([x, x[:, -1:]], 1), torch.zeros(batch_size, 1, 1))


def test_a_linear_model_has_the_effects_of_its_closed_form() -> None:
    # With y = C x, f = B A x and x normal: E|y - f|^2 = |C - BA|^2, and so on for what replaces A x.
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 5, bias=False), nn.Linear(5, 3, bias=False)).double()
    product = (model[1].weight @ model[0].weight).detach()
    matrix = product + 0.1 * torch.randn(3, 3)

    def square(x: Tensor) -> float:
        return x.square().sum().item() / 2

    sums = square(matrix) + square(product)
    common = (matrix * product).sum().item() / 256  # a sequence is a part of the mean of its batch
    wanted = {
        "zero": square(matrix),
        "mean": square(matrix) + square(product) / 256 - common,
        "other_sequence": sums,
    }
    for by, loss in wanted.items():
        table = ablate(model, Gaussian(matrix), ["0", "1"], by=by)
        for name in ("0", "1"):
            effect = table.at(name)
            change, exact = effect.change, loss - square(matrix - product)
            assert abs(change.value - exact) < 4 * change.error, (by, name)
            assert change.error < 0.02 * exact, "sharp enough to tell them apart"
            assert effect.curve.mean().item() == pytest.approx(change.value)


def test_a_run_on_other_tokens() -> None:
    batch, _ = the_batch()
    torch.manual_seed(0)
    config = ModelConfig(
        mixers=("softmax_attention", "mesa"), token_dim=4 * DIM, output_dim=DIM, initial_std=0.3
    )
    model, names = SequenceModel(config), ["blocks.0", "blocks.1.mixer"]
    table = ablate(model, TASK, names, by=lambda tokens: -tokens, evaluation=FEW)
    there = capture(model, -batch.tokens, names)
    for name in names:
        wanted = batch.losses(patch(model, batch.tokens, {name: there[name]}))
        assert torch.equal(table.at(name).patched.losses.float(), wanted)
    assert torch.equal(
        ablate(model, TASK, names, by=lambda tokens: tokens, evaluation=FEW).at(names[0]).curve,
        torch.zeros(LENGTH).double(),
    )


def test_the_error_is_that_of_pairs() -> None:
    table = ablate(one_step(), TASK, [MIXER], positions={"last": [LENGTH]}, evaluation=FEW)
    effect = table.at(MIXER, "last")
    apart = effect.patched.estimate - table.original.estimate
    assert effect.change.error < 0.5 * apart.error
    assert effect.change.value == pytest.approx(apart.value)
    changes = effect.patched.losses - effect.original.losses
    assert (changes[:, :-1] == 0).all()
    assert effect.change == Estimate.of(changes.mean(1))


def test_positions_without_names() -> None:
    table = ablate(one_step(), TASK, [MIXER], by="zero", positions=[LENGTH], evaluation=FEW)
    curve = table.at(MIXER).curve
    assert [t for t, change in enumerate(curve, start=1) if change] == [LENGTH]
    assert list(table.effects) == [(MIXER, "chosen")]
    with pytest.raises(KeyError):
        table.at("blocks.0")


def test_evaluation_mode_and_progress() -> None:
    model = nn.Sequential(nn.Linear(4 * DIM, DIM), nn.Dropout(0.5))
    done: list[tuple[int, int]] = []
    evaluation = Evaluation(
        num_sequences=300, progress=lambda counts: done.append((counts.done, counts.total))
    )
    table = ablate(model, TASK, ["1.input"], by=lambda tokens: tokens, evaluation=evaluation)
    assert (table.at("1.input").curve == 0).all()
    assert model.training
    assert done == [(1, 2), (2, 2)]


def test_it_prints_as_a_table() -> None:
    groups = {"early": [1, 2], "late": [LENGTH]}
    table = ablate(one_step(), TASK, [MIXER], by="zero", positions=groups, evaluation=FEW)
    lines = str(table).splitlines()
    assert lines[0].startswith(f"Loss of the model {table.original.estimate}")
    assert lines[1].split() == ["part", "positions", "loss", "change", "ratio"]
    assert [line.split()[:2] for line in lines[2:]] == [[MIXER, "early"], [MIXER, "late"]]
    assert str(table.at(MIXER, "late").change) in lines[3]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"names": ["blocks.0.mixr"]}, "names: 'blocks.0.mixr' is no part of the model; nearest: "),
        ({"names": "blocks.0"}, "names='blocks.0': must be a list of names"),
        ({"names": []}, "names, positions: must not be empty"),
        ({"positions": {}}, "names, positions: must not be empty"),
        ({"positions": []}, "names, positions: must not be empty"),
        ({"positions": {"early": [1], "late": []}}, "names, positions: must not be empty"),
        ({"by": "means"}, "by='means': did you mean 'mean'?, or a function"),
        (
            {"by": "0"},
            "by='0': allowed: zero, mean, other_sequence, shuffled_tokens, or a function",
        ),
        ({"positions": [0]}, "positions=0: must be 1 or greater"),
        ({"positions": {"late": [13]}}, "positions=13: must be between 1 and 12"),
        (
            {"by": lambda tokens: tokens[:, :5]},
            "replacements: 'blocks.0.mixer' is replaced by shape (256, 5, 16): must be (256, 12, 16)",
        ),
    ],
)
def test_what_cannot_be_ablated_is_refused(arguments: dict, message: str) -> None:
    given = {"names": [MIXER], **arguments}
    with pytest.raises(ValueError, match="^" + re.escape(message)):
        ablate(one_step(), TASK, evaluation=FEW, **given)


def test_models_that_get_more_than_tokens() -> None:
    task = Copying(alphabet=5, shortest=2, longest=4, test_shortest=2, test_longest=4)
    config = LanguageModelConfig(vocabulary=task.config.vocabulary, width=8, num_heads=2)
    model = LanguageModel(config)
    table = ablate(model, task, ["blocks.0.mixer", "blocks.1.mixer"], by="zero", evaluation=FEW)
    assert table.original.mean == pytest.approx(in_context_loss(model, task, FEW).mean)

    def without(batch: Batch) -> Tensor:
        with torch.no_grad(), patching(model, {"blocks.1.mixer": 0.0}):
            return model(batch.tokens, **batch.arguments)

    wanted = in_context_loss(without, task, FEW)
    effect = table.at("blocks.1.mixer")
    assert effect.patched.mean == pytest.approx(wanted.mean)
    assert effect.change.value == pytest.approx(wanted.mean - table.original.mean, abs=1e-6)
    change = wanted.curve.double() - table.original.curve
    torch.testing.assert_close(effect.curve.double(), change, rtol=0, atol=1e-6)


def test_the_other_run_gets_all_arguments_of_the_model() -> None:
    task = Copying(alphabet=5, shortest=2, longest=4, test_shortest=2, test_longest=4)
    config = LanguageModelConfig(vocabulary=task.config.vocabulary, width=8, num_heads=2)
    model = LanguageModel(config)
    effect = ablate(model, task, ["output"], by="shuffled_tokens", evaluation=FEW).at("output")

    def elsewhere(batch: Batch) -> Tensor:
        with torch.no_grad():
            return model(shuffled_tokens(batch.tokens), **batch.arguments)

    assert effect.patched.mean == pytest.approx(in_context_loss(elsewhere, task, FEW).mean)


def test_errors_on_text_count_a_stretch_once(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("to be or not to be, that is the question. " * 100)
    task = Text(corpus=str(tmp_path / "text.txt"), length=16)
    table = ablate(LanguageModel(LanguageModelConfig(width=8)), task, [MIXER], evaluation=FEW)
    original, patched = table.original, table.at(MIXER).patched
    again = 256 / task.stretches("test")
    assert again > 10
    change = Estimate.of(patched.by_sequence - original.by_sequence).repeated(again)
    assert table.at(MIXER).change.error == pytest.approx(change.error, rel=1e-6)
    ratio = Estimate.ratio(patched.by_sequence, original.by_sequence).repeated(again)
    assert table.at(MIXER).ratio.error == pytest.approx(ratio.error, rel=1e-6)
