"""The auto-encoder of MAD's compression: what its answer depends on, its definition, and its commands."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from helpers import exit_status as run
from torch.nn.functional import gelu, linear

from mesaopt import recipes
from mesaopt.config import AutoEncoderConfig, MADConfig, RunConfig, TrainConfig
from mesaopt.errors import ConfigError
from mesaopt.layers.frame import sinusoids
from mesaopt.models import AutoEncoder, make_model
from mesaopt.tasks import MAD
from mesaopt.training import load_run, train

CONFIG = AutoEncoderConfig(vocabulary=16, width=8, num_heads=2, mixers=("mesa",), initial_std=0.4)


def draw(batch: int = 3, time: int = 10) -> torch.Tensor:
    return torch.randint(16, (batch, time), generator=torch.Generator().manual_seed(0))


def test_it_decodes_the_last_position_and_nothing_else() -> None:
    model, tokens = make_model(CONFIG, seed=1), draw()
    assert isinstance(model, AutoEncoder)
    for layer in model.decoder:
        torch.nn.init.normal_(layer.bias)
    encoding = model.read(tokens)[:, -1]
    for t in range(10):
        h = encoding + sinusoids(torch.tensor(t), 8, like=encoding)
        for layer in model.decoder:
            h = h / (h.square().mean(-1, keepdim=True) + 1e-6).sqrt()
            h = gelu(linear(h, layer.weight, layer.bias))
        h = model.norm(h)
        wanted = 30 * (linear(h, model.embedding.weight) / 30).tanh()
        torch.testing.assert_close(model(tokens)[:, t], wanted)
    at = torch.tensor([[3, 0], [9, 9], [1, 2]])
    every = model(tokens)
    for row, places in enumerate(at):
        torch.testing.assert_close(model(tokens, at=at)[row], every[row, places])


def test_first_values_are_a_function_of_the_seed() -> None:
    one, same, other = (AutoEncoder(CONFIG, seed=seed).state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not torch.equal(one["decoder.0.weight"], other["decoder.0.weight"])
    assert (one["decoder.1.bias"] == 0).all()


def test_what_it_cannot_do_is_refused() -> None:
    model, tokens = AutoEncoder(CONFIG), draw()
    with pytest.raises(ValueError, match="model is an auto-encoder, which continues no text"):
        model.extend(tokens)
    with pytest.raises(ValueError, match="mask is given: must be None"):
        model(tokens, mask=torch.ones(3, 10, dtype=torch.bool))
    with pytest.raises(ConfigError, match="width=7: must be even"):
        AutoEncoderConfig(width=7, num_heads=7)


def test_it_learns_to_give_tokens_back(tmp_path: Path) -> None:
    task = MADConfig(task="compression", vocabulary=6, length=4, examples=None)
    model = AutoEncoderConfig(
        vocabulary=6, width=32, num_heads=2, mixers=("softmax_attention",) * 2
    )
    model = replace(model, positions="sinusoidal", logit_cap=None, initial_std=0.2)
    training = TrainConfig(
        steps=200, batch_size=64, learning_rate=5e-3, evaluate_every=200, evaluation_sequences=64
    )
    config = RunConfig(recipe="compress", task=task, model=model, train=training)
    trained = train(config, tmp_path, device="cpu", progress=False).model
    batch = MAD(task).sample(256, seed=0, split="test")
    right = batch.accuracy(trained(batch.tokens)).float().mean()
    assert right > 0.8  # the last token is known; of the others, a fifth by chance


def test_the_commands_train_and_evaluate_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    settings = ["model.kind=auto_encoder", "model.vocabulary=16", "model.width=8"]
    settings += ["task.kind=mad", "task.task=compression", "task.length=32", "task.examples=64"]
    settings += ["train.steps=1", "train.batch_size=2", "train.evaluation_sequences=2"]
    assert run("train", "lm-mesanet", "--out", str(out), "--set", *settings) == 0
    assert "a guess without the sequence" in capsys.readouterr().out
    assert (out / "report.html").exists()
    assert isinstance(load_run(out).model, AutoEncoder)
    assert run("generate", str(out), "--prompt", "1 2 3") == 2
    assert "holds a 'auto_encoder' model: must be a 'language' model" in capsys.readouterr().err
    assert recipes.TASKS["mad-compression"].gives_back
