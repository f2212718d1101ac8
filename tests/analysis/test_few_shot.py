import inspect
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from mesaopt.analysis import (
    Evaluation,
    InContextLoss,
    TunedPrompt,
    early_ascent,
    few_shot_losses,
    tune_prompt,
)
from mesaopt.config import FewShotConfig
from mesaopt.tasks import FewShot
from mesaopt.tasks.few_shot import FewShotBatch
from mesaopt.theory import ridge_least_squares

PAIRS = FewShotConfig(dim=4, length=40)
TRIPLES = FewShot(replace(PAIRS, layout="triples", length=60))
PREFIXED = FewShot(replace(PAIRS, layout="triples", length=60, prefix_length=3))


class LeastSquares(nn.Module):
    """Regresses every token on the one before it, as a model that has learned to."""

    def __init__(self, ridge: float = 1.0):
        super().__init__()
        self.ridge = ridge

    def forward(self, tokens: Tensor) -> Tensor:
        return ridge_least_squares(tokens, ridge=self.ridge)


class TruePairs(nn.Module):
    """Regresses on the tokens at odd places only: those are the inputs, where pairs follow pairs."""

    def forward(self, tokens: Tensor) -> Tensor:
        inputs = tokens.clone()
        inputs[:, 1::2] = 0
        return ridge_least_squares(tokens, ridge=0.1, inputs=inputs)


class Recorder(FewShot):
    """A task that records the splits it is sampled from."""

    def __init__(self, config: FewShotConfig):
        super().__init__(config)
        self.splits: set[str] = set()

    def sample(self, batch_size: int, *, split="train", **settings) -> FewShotBatch:
        self.splits.add(split)
        return super().sample(batch_size, split=split, **settings)


def prompt_of(separator: Tensor | None = None, prefix: Tensor | None = None) -> TunedPrompt:
    """A prompt that nobody learned."""
    return TunedPrompt(
        separator=separator, prefix=prefix, losses=torch.ones(1), norms=torch.ones(1, 1)
    )


def mean_loss(model: nn.Module, prompt: TunedPrompt | None) -> float:
    return few_shot_losses(model, TRIPLES, prompt, Evaluation(num_sequences=256)).mean


def test_zero_is_the_best_separator_of_least_squares_and_learning_goes_there() -> None:
    # With a ridge of 1 the loss grows with the norm; with one of 0.1 there is a valley away from zero.
    zero = mean_loss(LeastSquares(), prompt_of(torch.zeros(4)))
    direction = torch.tensor([0.5, -0.5, 0.5, 0.5])
    assert zero < mean_loss(LeastSquares(), prompt_of(0.3 * direction)) - 0.01
    learned = tune_prompt(
        LeastSquares(), TRIPLES, steps=60, batch_size=16, learning_rate=0.1, schedule="cosine"
    )
    assert learned.separator is not None
    assert learned.norms[0, 0] > 1, "two for four standard normal numbers, on average"
    assert learned.separator.norm() < 0.15
    assert learned.losses[-10:].mean() < learned.losses[:10].mean()
    assert mean_loss(LeastSquares(), learned) == pytest.approx(zero, abs=0.01)


def test_no_direction_is_better_than_its_opposite_at_zero() -> None:
    # Turning the signs of all tokens turns those of the predictions: the loss is even in the separator.
    separator = torch.zeros(4, requires_grad=True)
    batch = TRIPLES.sample(4, seed=0, dtype=torch.float64)
    mirrored = replace(batch, states=-batch.states)
    for one in (batch, mirrored):
        filled = TRIPLES.fill(one, separator=separator)
        one_loss = filled.losses(LeastSquares()(filled.tokens)).mean()
        one_loss.backward()
    assert separator.grad is not None
    # Each of the two gradients is of the order of 0.01 and held in float32.
    assert separator.grad.abs().max() < 1e-8


def test_weights_are_neither_changed_nor_given_gradients() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Dropout(0.5), nn.Linear(8, 4)).eval()
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    tune_prompt(model, PREFIXED, steps=2, batch_size=2)
    for name, weight in model.named_parameters():
        assert torch.equal(weight, before[name])
        assert weight.grad is None
        assert weight.requires_grad
    assert not model.training


def test_dropout_is_off_and_comes_back() -> None:
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Linear(4, 4))
    model = nn.Sequential(plain[0], nn.Dropout(0.5))
    found, wanted = (tune_prompt(m, PREFIXED, steps=2, batch_size=4) for m in (model, plain))
    assert torch.equal(found.losses, wanted.losses)
    losses = [
        few_shot_losses(m, PREFIXED, found, Evaluation(num_sequences=1)).losses
        for m in (model, plain)
    ]
    assert torch.equal(*losses)
    assert model[1].training


def test_vectors_and_sequences_have_the_type_of_the_weights() -> None:
    torch.manual_seed(0)
    model = nn.Linear(4, 4)
    settings = {"steps": 3, "batch_size": 4}
    single = tune_prompt(model, PREFIXED, **settings)
    loss = few_shot_losses(model, PREFIXED, single, Evaluation(num_sequences=1))
    model.double()
    double = tune_prompt(model, PREFIXED, separator=single.separator, **settings)
    assert double.separator.dtype is double.prefix.dtype is torch.float64
    free = tune_prompt(model, PREFIXED, **settings)
    torch.testing.assert_close(free.losses, single.losses, rtol=1e-5, atol=0)
    for prompt in (single, free):
        again = few_shot_losses(model, PREFIXED, prompt, Evaluation(num_sequences=1))
        torch.testing.assert_close(again.losses, loss.losses, rtol=1e-4, atol=1e-5)


def test_gradients_of_weights_are_not_even_computed() -> None:
    seen = []

    class Watcher(nn.Linear):
        def forward(self, tokens: Tensor) -> Tensor:
            seen.append((self.weight.requires_grad, tokens.requires_grad))
            return super().forward(tokens)

    tune_prompt(Watcher(4, 4), TRIPLES, steps=1, batch_size=2)
    assert seen == [(False, True)]


def test_a_prefix_is_learned_with_a_fixed_separator() -> None:
    held = torch.arange(4.0)
    prompt = tune_prompt(LeastSquares(), PREFIXED, separator=held, steps=3, batch_size=4)
    assert prompt.separator is not None
    assert prompt.prefix is not None
    assert torch.equal(prompt.separator, held)
    assert prompt.prefix.shape == (3, 4)
    assert prompt.norms.shape == (3, 3), "three steps, three vectors"
    both = tune_prompt(LeastSquares(), PREFIXED, steps=3, batch_size=4)
    assert both.norms.shape == (3, 4), "with the separator"
    alone = FewShot(replace(PREFIXED.config, layout="pairs"))
    assert tune_prompt(LeastSquares(), alone, steps=1, batch_size=4).separator is None


def test_norms_and_losses_are_those_before_each_step() -> None:
    prompt = tune_prompt(LeastSquares(), TRIPLES, steps=2, batch_size=8, seed=3)
    first = torch.randn(4, generator=torch.Generator().manual_seed(3))
    assert prompt.norms[0, 0] == pytest.approx(first.norm().item())
    batch = TRIPLES.fill(TRIPLES.sample(8, seed=3), separator=first)
    loss = batch.losses(LeastSquares()(batch.tokens)).mean()
    assert prompt.losses[0].item() == pytest.approx(loss.item())
    # The first step of Adam is one of the learning rate in every coordinate.
    change = abs(prompt.norms[1, 0].item() - prompt.norms[0, 0].item())
    assert 0 < change < 1.001 * 4**0.5 * 1e-3


def test_the_cosine_ends_at_zero_and_the_constant_does_not() -> None:
    settings = {"steps": 40, "batch_size": 4, "learning_rate": 0.05}
    last = {
        schedule: tune_prompt(LeastSquares(), TRIPLES, schedule=schedule, **settings).norms[-6:, 0]
        for schedule in ("constant", "cosine")
    }
    steps = {name: norms.diff().abs().mean() for name, norms in last.items()}
    assert steps["cosine"] < 0.2 * steps["constant"]


def test_learning_repeats_itself_and_depends_on_the_seed() -> None:
    def learn(seed: int) -> Tensor:
        found = tune_prompt(LeastSquares(), TRIPLES, steps=3, batch_size=4, seed=seed).separator
        assert found is not None
        return found

    assert torch.equal(learn(0), learn(0))
    assert not torch.equal(learn(0), learn(1))


def test_learning_sees_training_sequences_only() -> None:
    task, done = Recorder(TRIPLES.config), []
    tune_prompt(
        LeastSquares(),
        task,
        steps=3,
        batch_size=2,
        progress=lambda progress: done.append((progress.done, progress.total)),
    )
    assert task.splits == {"train"}
    assert done == [(1, 3), (2, 3), (3, 3)]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"steps": 0}, "steps=0, learning_rate=0.001: must be 1 or greater"),
        ({"learning_rate": 0.0}, "learning_rate=0.0: must be"),
        ({"learning_rate": float("nan")}, "learning_rate=nan: must be"),
        ({"schedule": "linear"}, "schedule='linear': must be 'constant' or 'cosine'"),
        ({"batch_size": 0}, "batch_size=0: must be 1 or greater"),
        ({"separator": torch.zeros(4)}, "no room for anything to learn"),
    ],
)
def test_settings_without_anything_to_learn_are_refused(settings, message) -> None:
    # Past the check of types in tests, which has words of its own for a schedule there is none of.
    with pytest.raises(ValueError, match=message):
        inspect.unwrap(tune_prompt)(LeastSquares(), TRIPLES, **settings)


def test_bare_pairs_have_no_room_for_a_separator() -> None:
    with pytest.raises(ValueError, match="layout='pairs' has no room for anything to learn"):
        tune_prompt(LeastSquares(), FewShot(PAIRS))


def test_losses_are_by_pair_for_every_prompt() -> None:
    prompts = {
        "pairs": (None, 20),
        "separator": (prompt_of(torch.ones(4)), 14),
        "prefix": (prompt_of(torch.ones(4), torch.ones(6, 4)), 12),
        "prefix alone": (prompt_of(None, torch.ones(6, 4)), 17),
    }
    # A model that returns its token ignores the prompt: the losses are those of the pairs.
    losses = {
        name: few_shot_losses(nn.Identity(), FewShot(PAIRS), prompt, Evaluation(num_sequences=256))
        for name, (prompt, _) in prompts.items()
    }
    for name, (_, number) in prompts.items():
        assert losses[name].positions == range(1, number + 1)
        torch.testing.assert_close(losses[name].losses, losses["pairs"].losses[:, :number])


def test_the_vectors_of_a_prompt_reach_the_model() -> None:
    seen: list[Tensor] = []

    def model(tokens: Tensor) -> Tensor:
        seen.append(tokens)
        return tokens

    prompt = prompt_of(torch.full((4,), 2.0), torch.full((3, 4), 3.0))
    few_shot_losses(model, TRIPLES, prompt, Evaluation(num_sequences=256))
    assert (seen[0][:, :3] == 3).all()
    assert (seen[0][:, 5::3] == 2).all()


def test_an_early_ascent_is_there_with_spurious_pairs_and_gone_without() -> None:
    task = FewShot(PAIRS)
    spurious = early_ascent(
        few_shot_losses(LeastSquares(0.1), task, evaluation=Evaluation(num_sequences=2048))
    )
    assert spurious.height > 5 * spurious.error
    assert 2 <= spurious.position - 1 <= 4, "about as many pairs as half the dimensions"
    assert spurious.peak == pytest.approx(4 / 6 + spurious.height, abs=0.1)
    true = early_ascent(
        few_shot_losses(TruePairs(), task, evaluation=Evaluation(num_sequences=512))
    )
    assert true.height < -3 * true.error
    zeros = early_ascent(
        few_shot_losses(torch.zeros_like, task, evaluation=Evaluation(num_sequences=512))
    )
    assert abs(zeros.height) < 4 * zeros.error


def test_the_height_is_measured_on_other_sequences_than_the_place() -> None:
    # Of 40 places without any ascent the highest is some 2.2 standard errors up where it was chosen.
    noise = torch.randn(400, 200, 41, generator=torch.Generator().manual_seed(0))
    found = [early_ascent(InContextLoss(1 + one)) for one in noise]
    scores = torch.tensor([ascent.height / ascent.error for ascent in found])
    assert abs(scores.mean()) < 0.2  # 0.05 is its standard error
    full = [(1 + one)[:, 1:].mean(0).max() - (1 + one)[:, 0].mean() for one in noise]
    assert torch.stack(full).mean() > 1.2 * torch.tensor([a.error for a in found]).mean()
    assert scores.std() == pytest.approx(1, abs=0.15)


def test_positions_of_an_ascent_are_those_of_the_loss() -> None:
    losses = torch.tensor([[1.0, 1.5, 3.0, 0.0]]).repeat(4, 1)
    ascent = early_ascent(InContextLoss(losses, range(1, 12, 3)))
    assert (ascent.position, ascent.peak, ascent.height, ascent.error) == (7, 3.0, 2.0, 0.0)
    for shape in ((3, 5), (5, 1)):
        with pytest.raises(ValueError, match=r"must be 4 sequences and 2 positions or more"):
            early_ascent(InContextLoss(torch.zeros(shape)))
    some = torch.ones(4, 3, dtype=torch.bool).tril()
    with pytest.raises(ValueError, match="loss: some of it does not count"):
        early_ascent(InContextLoss(torch.zeros(4, 3), counted=some))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_prompts_are_learned_where_the_model_is_and_come_back() -> None:
    torch.manual_seed(0)
    model = nn.Linear(4, 4)
    on_cpu = tune_prompt(model, PREFIXED, steps=3, batch_size=4)
    on_gpu = tune_prompt(model.cuda(), PREFIXED, steps=3, batch_size=4)
    for one, other in ((on_cpu.separator, on_gpu.separator), (on_cpu.prefix, on_gpu.prefix)):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=0)
