"""Models between memorising and learning: trained on a pool of systems, of which there are few or many."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn.functional import pad

from mesaopt.analysis import Algorithm, Diagnosis, Estimate, diagnose
from mesaopt.config import LinearSystemConfig, ModelConfig
from mesaopt.models import SequenceModel
from mesaopt.tasks import Batch, LinearSystem, generator, haar_orthogonal, tokens_from_states

DIM, LENGTH, STEPS = 2, 8, 400
SLOTS = ("current", "previous")
TASK = LinearSystem(LinearSystemConfig(dim=DIM, length=LENGTH, token_slots=SLOTS))
POOLS = (2, 8, 64)


def pool_of(number: int) -> Tensor:
    return haar_orthogonal(generator(0, "test"), number, DIM).float()


def training_batch(pool: Tensor, step: int) -> Batch:
    """Sequences of systems of a pool."""
    batch, random = TASK.sample(64, seed=1, step=step), torch.Generator().manual_seed(step)
    transition = pool[torch.randint(len(pool), (64,), generator=random)]
    states = [batch.states[:, 0]]
    for _ in range(LENGTH):
        noise = 0.01 * torch.randn(64, DIM, generator=random)
        states.append((transition @ states[-1][..., None])[..., 0] + noise)
    x = torch.stack(states, dim=1)
    tokens = tokens_from_states(x[:, :-1], SLOTS)
    return replace(batch, tokens=tokens, targets=x[:, 1:], states=x, transition=transition)


def trained_on(pool: Tensor) -> SequenceModel:
    config = ModelConfig(
        mixers=("softmax_attention",) * 2,
        token_dim=2 * DIM,
        output_dim=DIM,
        embed_dim=24,
        readout="linear",
        num_heads=2,
        head_dim=12,
        mlp_dim=64,
        initial_std=0.2,
        activation_clip=None,
    )
    model = SequenceModel(config)
    optimizer = torch.optim.Adam(model.parameters())
    rate = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-2, total_steps=STEPS)
    for step in range(STEPS):
        batch = training_batch(pool, step)
        loss = batch.losses(model(batch.tokens)).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        rate.step()
    return model


def discrete_bayes(pool: Tensor) -> Algorithm:
    """The mean of what the systems of a pool predict, by how well each explains the context."""

    def predict(states: Tensor, temperature: float) -> Tensor:
        predictions = torch.einsum("mij,btj->mbti", pool, states)
        misses = (predictions[:, :, :-1] - states[:, 1:]).square().sum(-1)
        weights = torch.softmax(-pad(misses.cumsum(-1), (1, 0)) / temperature, dim=0)
        return (weights[..., None] * predictions).sum(0)

    return Algorithm(
        name="discrete Bayes", kind="other", predict=predict, ranges={"temperature": (1e-3, 10.0)}
    )


@pytest.fixture(scope="module")
def diagnoses() -> dict[int, Diagnosis]:
    """Each model on systems that are new in every sequence, as always, next to Bayes on its pool."""
    return {
        number: diagnose(
            trained_on(pool_of(number)),
            TASK,
            algorithms=[discrete_bayes(pool_of(number))],
            num_sequences=256,
        )
        for number in POOLS
    }


def shares(diagnosis: Diagnosis) -> tuple[Estimate, Estimate]:
    names = ("discrete Bayes", "ridge least squares")
    bayes, ridge = (diagnosis.agreement(name).predictions for name in names)
    return bayes, ridge


def test_a_model_of_few_systems_compares_them(diagnoses: dict[int, Diagnosis]) -> None:
    few = diagnoses[POOLS[0]]
    bayes, ridge = shares(few)
    assert few.nearest == "discrete Bayes"
    assert (bayes - ridge).low > 0.2
    assert few.verdict.answer != "yes"


def test_a_model_of_many_systems_solves_least_squares(diagnoses: dict[int, Diagnosis]) -> None:
    many = diagnoses[POOLS[-1]]
    assert shares(many)[1].low > 0.85
    assert many.agreement(many.nearest).kind == "optimizer"


def test_between_them_it_is_a_matter_of_degree(diagnoses: dict[int, Diagnosis]) -> None:
    few, some, many = (shares(diagnoses[number])[1] for number in POOLS)
    assert (some - few).low > 0
    assert (many - some).low > 0
