"""Run folders to pretrained folders, and back."""

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from mesaopt.config import (
    AutoEncoderConfig,
    CopyingConfig,
    LanguageModelConfig,
    ModelConfig,
    RunConfig,
    TextConfig,
    TrainConfig,
)
from mesaopt.corpus import prepare
from mesaopt.errors import ConfigError, RunError
from mesaopt.models import AutoEncoder, LanguageModel, SequenceModel
from mesaopt.training import load_run, train

transformers = pytest.importorskip("transformers", reason="the extra [hf] is not installed")
from mesaopt import hf  # noqa: E402

MODEL = LanguageModelConfig(
    vocabulary=11, width=8, num_heads=2, mixers=("mesa", "softmax_attention")
)
SHORT = TrainConfig(steps=4, batch_size=4, evaluate_every=2, evaluation_sequences=8)
RUN = RunConfig(
    recipe="short", task=CopyingConfig(alphabet=7, shortest=2, longest=4), model=MODEL, train=SHORT
)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("runs") / "short"
    train(RUN, path, device="cpu")
    return path


def test_a_run_is_exported_and_restored(run: Path, tmp_path: Path) -> None:
    original = load_run(run, device="cpu")
    hf.export(run, tmp_path / "pretrained")
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "pretrained")
    tokens = torch.randint(11, (2, 7))
    assert torch.equal(model(tokens).logits, original.model(tokens))
    hf.restore(tmp_path / "pretrained", tmp_path / "again")
    again = load_run(tmp_path / "again", device="cpu")
    assert again.config == original.config
    assert torch.equal(again.model(tokens), original.model(tokens))
    assert [line["step"] for line in again.metrics] == [4]
    assert again.metrics[0]["test_loss"] == pytest.approx(
        original.metrics[-1]["test_loss"], rel=1e-6
    )


def test_an_earlier_checkpoint_and_a_tuned_model_come_back(run: Path, tmp_path: Path) -> None:
    hf.export(run, tmp_path / "pretrained", step=2)
    model = hf.MesaoptForCausalLM.from_pretrained(tmp_path / "pretrained")
    with torch.no_grad():
        model.model.norm.weight.mul_(2)
    model.save_pretrained(tmp_path / "pretrained")
    hf.restore(tmp_path / "pretrained", tmp_path / "again")
    again = load_run(tmp_path / "again", device="cpu")
    assert again.config.train.steps == 2
    assert torch.equal(again.model.norm.weight, model.model.norm.weight)


def test_a_run_on_bytes_brings_a_tokenizer_along(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("Grüße, mesa! " * 300)
    task = TextConfig(corpus=str(tmp_path / "text.txt"), length=16)
    config = replace(RUN, task=task, model=replace(MODEL, vocabulary=256))
    train(config, tmp_path / "run", device="cpu")
    hf.export(tmp_path / "run", tmp_path / "pretrained")
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "pretrained")
    text = "Grüße,\n\t mesa! \u0000 ≥ 3"
    tokens = tokenizer(text)["input_ids"]
    assert tokens == list(text.encode())
    assert tokenizer.decode(tokens) == text
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "pretrained")
    prompt = tokenizer("Grü", return_tensors="pt")
    assert model.generate(**prompt, max_new_tokens=3, do_sample=False).shape == (1, 7)


@pytest.mark.parametrize("vocabulary", [256, 300])
def test_a_run_on_shards_brings_their_tokenizer_along(vocabulary: int, tmp_path: Path) -> None:
    tokenizers = pytest.importorskip("tokenizers")
    words = {"?": 0} | {f"w{number}": number for number in range(1, vocabulary)}
    own = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="?"))
    own.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    own.save(str(tmp_path / "words.json"))
    (tmp_path / "text.txt").write_text("w3 w1 w4 w1 w5 " * 300)
    prepare(str(tmp_path / "text.txt"), tmp_path / "shards", tokenizer=str(tmp_path / "words.json"))
    task = TextConfig(corpus=str(tmp_path / "shards"), vocabulary=vocabulary, length=16)
    config = replace(RUN, task=task, model=replace(MODEL, vocabulary=vocabulary))
    train(config, tmp_path / "run", device="cpu")
    hf.export(tmp_path / "run", tmp_path / "pretrained")
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "pretrained")
    assert tokenizer("w3 w1 w9")["input_ids"] == [3, 1, 9]


def test_what_cannot_be_exported_or_restored_is_refused(run: Path, tmp_path: Path) -> None:
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "file").touch()
    with pytest.raises(RunError, match="taken: exists already: must be a new or an empty folder"):
        hf.export(run, tmp_path / "taken")
    with pytest.raises(RunError, match=r"mesaopt_run.json: there is no such file"):
        hf.restore(tmp_path / "taken", tmp_path / "run")
    train(
        RunConfig(recipe="other", train=replace(SHORT, steps=2)), tmp_path / "other", device="cpu"
    )
    with pytest.raises(ConfigError, match=r"model.kind='.*': must be 'language'"):
        hf.export(tmp_path / "other", tmp_path / "pretrained")
    assert not (tmp_path / "pretrained").exists()


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
def test_a_wrapped_model_keeps_its_type_and_device(dtype: torch.dtype) -> None:
    model, tokens = LanguageModel(MODEL).to(dtype), torch.randint(11, (2, 7))
    found = hf.wrap(model)(tokens).logits
    assert found.dtype == dtype
    assert torch.equal(found, model(tokens))
    assert torch.equal(hf.wrap(model).plain()(tokens), found)
    assert hf.wrap(model.to("meta")).device.type == "meta"


@pytest.mark.parametrize("tied", [True, False])
def test_a_wrapped_model_draws_what_the_plain_one_draws(*, tied: bool) -> None:
    config = replace(MODEL, tied=tied)
    before = torch.get_rng_state()
    wrapped = hf.wrap(LanguageModel(config))
    assert torch.equal(torch.get_rng_state(), before), "all weights are given"
    wrapped.model.reset_parameters(5)
    wanted = LanguageModel(config, seed=5).state_dict()
    assert all(torch.equal(x, wanted[name]) for name, x in wrapped.model.plain_state().items())


OTHERS: dict[str, tuple[Callable[[], Any], str]] = {
    "auto-encoder": (
        lambda: AutoEncoder(
            AutoEncoderConfig(width=8, num_heads=2, convolve_values=False, logit_cap=None)
        ),
        "model is an AutoEncoder: must be a LanguageModel",
    ),
    "vectors": (
        lambda: SequenceModel(ModelConfig()),
        "model is a SequenceModel: must be a LanguageModel",
    ),
    "your own": (
        lambda: torch.nn.Linear(2, 2),
        "model is a Linear: must be a LanguageModel",
    ),
    "of transformers": (
        lambda: hf.wrap(LanguageModel(MODEL)),
        "model is a MesaoptForCausalLM: must be a LanguageModel, such as its .model",
    ),
    "settings": (lambda: MODEL, "model is a LanguageModelConfig: must be a LanguageModel"),
    "nothing": (lambda: None, "model is None: must be a LanguageModel"),
}


@pytest.mark.usefixtures("_unchecked")
@pytest.mark.parametrize("kind", OTHERS)
def test_other_kinds_of_models_are_refused(kind: str, tmp_path: Path) -> None:
    make, message = OTHERS[kind]
    model = make()
    for call in (hf.wrap, lambda model: hf.to_mesa_net(model, tmp_path / "out")):
        with pytest.raises(TypeError, match=f"^{re.escape(message)}$"):
            call(model)
    assert not (tmp_path / "out").exists()


def test_weights_before_the_first_step_are_exported_but_are_no_run(
    run: Path, tmp_path: Path
) -> None:
    hf.export(run, tmp_path / "pretrained", step=0)
    model = hf.MesaoptForCausalLM.from_pretrained(tmp_path / "pretrained")
    tokens = torch.randint(11, (2, 7))
    assert torch.equal(model(tokens).logits, LanguageModel(MODEL, seed=RUN.seed)(tokens))
    with pytest.raises(
        RunError, match=r"mesaopt_run.json: step=0: must be 1 or greater: the first"
    ):
        hf.restore(tmp_path / "pretrained", tmp_path / "again")
    assert not (tmp_path / "again").exists()
