"""What mixers do at every position, compared with sums and eigenvalues taken one by one."""

from dataclasses import replace

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from torch import nn

from mesaopt.analysis import measure_mixers
from mesaopt.config import LanguageModelConfig, ModelConfig
from mesaopt.layers import MesaLayer
from mesaopt.models import LanguageModel, SequenceModel
from mesaopt.models.mixers import MIXERS

BASE = LanguageModelConfig(vocabulary=11, width=6, num_heads=2, initial_std=0.5)


def draw() -> torch.Tensor:
    return torch.randint(11, (3, 20), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", MIXERS)
def test_measurements_are_those_of_the_regression(name: str) -> None:
    model = LanguageModel(replace(BASE, mixers=("softmax_attention", name))).double()
    block, tokens, positions = model.blocks[1], draw(), (1, 7, 20)
    before, found = measure_mixers(model, tokens, positions=positions)
    x = model.blocks[0].extend(model.embedding(tokens))[0]
    inputs = block.mixer.head_inputs(block.mixer_norm(x))
    shape = inputs.k.shape[:3]
    beta = torch.ones(shape) if inputs.beta is None else inputs.beta
    gamma = torch.ones(shape) if inputs.log_decay is None else inputs.log_decay.exp()
    keys, beta, gamma = (z.detach().double().numpy() for z in (inputs.k, beta, gamma))
    assert (before.keep, before.ridge, before.condition, before.steps) == (None,) * 4
    assert (found.keep is None) == (inputs.log_decay is None)
    assert (found.condition is None) == ("mesa" not in name)
    for place, position in enumerate(positions):
        for head in range(2):
            ranks, ridges, conditions = [], [], []
            for row in range(3):
                gram = np.zeros((3, 3))
                for t in range(position):
                    key = keys[row, t, head]
                    gram = gamma[row, t, head] * gram + beta[row, t, head] * np.outer(key, key)
                ranks.append(np.trace(gram) ** 2 / (gram**2).sum())
                if "mesa" in name:
                    ridge = np.ones(3)  # all ridges start from 1
                    ridges.append(ridge.sum() / np.trace(gram))
                    conditions.append(np.linalg.cond(gram + np.diag(ridge)))
            assert found.rank[place, head].item() == pytest.approx(np.mean(ranks))
            if found.keep is not None:
                wanted = gamma[:, position - 1, head].mean()
                assert found.keep[place, head].item() == pytest.approx(wanted)
            if found.write is not None:
                wanted = beta[:, position - 1, head].mean()
                assert found.write[place, head].item() == pytest.approx(wanted)
            if "mesa" in name:
                assert found.ridge[place, head].item() == pytest.approx(np.mean(ridges))
                wanted = np.exp(np.log(conditions).mean())
                assert found.condition[place, head].item() == pytest.approx(wanted)
    if "mesa" in name:
        assert (found.steps > 0).all() == (name == "mesanet2025")


def test_every_model_with_mixers_is_measured_and_left_as_it_was() -> None:
    model = SequenceModel(ModelConfig(mixers=("mesa", "linear_attention"), initial_std=0.1))
    x = torch.randn(2, 9, 40)
    wanted = model(x)
    first, second = measure_mixers(model, x)
    assert (first.mixer, second.mixer) == ("MesaLayer", "LinearSelfAttention")
    assert (first.positions[0], first.positions[-1]) == (1, 9)
    assert model.training
    assert torch.equal(model(x), wanted)
    assert not any("extend" in vars(mixer) for mixer in model.mixers)


def test_a_ridge_that_decays_is_measured_as_it_is() -> None:
    model = LanguageModel(replace(BASE, mixers=("mesanet2025",))).double()
    static = measure_mixers(model, draw(), positions=[20])[0]
    model.mixers[0].ridge_mode = "decayed"
    (decayed,) = measure_mixers(model, draw(), positions=[20])
    assert (decayed.ridge < 0.99 * static.ridge).all()
    assert (decayed.condition > static.condition).all()


def test_tables_and_plots_show_every_head() -> None:
    model = LanguageModel(replace(BASE, mixers=("softmax_attention", "mesanet2025")))
    softmax, mesa = measure_mixers(model, draw())
    rows = [*softmax.rows(), *mesa.rows()]
    layers_and_heads = [f"{row['layer']} {row['head']}" for row in rows]
    assert layers_and_heads == ["0 0", "0 1", "1 0", "1 1"]
    assert (rows[0]["memory"], rows[0]["condition"]) == ("all", "")
    assert all(float(rows[2][name]) > 0 for name in ("memory", "rank", "ridge", "condition"))
    figure, axes = plt.subplots(1, 2)
    mesa.draw(axes[0], "condition")
    softmax.draw(axes[1], "condition")
    assert [len(ax.lines) for ax in axes] == [2, 0]
    plt.close(figure)


def test_what_cannot_be_measured_is_refused() -> None:
    with pytest.raises(ValueError, match="model: has no layer of mesaopt.layers in it"):
        measure_mixers(nn.Linear(3, 2), torch.randn(2, 5, 3))
    with pytest.raises(ValueError, match="positions has the value 21: must be from 1 to 20"):
        measure_mixers(LanguageModel(BASE), draw(), positions=[21])
    with pytest.raises(ValueError, match="^positions: must not be empty$"):
        measure_mixers(LanguageModel(BASE), draw(), positions=[])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_small_ridge_is_not_lost_in_rounding(dtype: torch.dtype) -> None:
    layer = MesaLayer(width=4, num_heads=1, head_dim=4).to(dtype)
    layer.key.weight.data = 1e4 * torch.eye(4, dtype=dtype)
    x = torch.arange(1, 10).sqrt()[:, None] * torch.tensor(
        [[[1.0, 0.7, -0.3, 0.9]]]
    )  # one direction
    (found,) = measure_mixers(layer, x, positions=[9])
    trace = 1e8 * x.double().square().sum().item()
    assert found.condition is not None
    assert found.condition.item() == pytest.approx(trace + 1, rel=1e-4)  # the ridge is 1
