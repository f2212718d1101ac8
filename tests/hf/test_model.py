"""Language models of ours in the library transformers: the same function, texts, gradients and weights."""

import copy
import importlib
import inspect
import subprocess
import sys
import types
from dataclasses import replace
from pathlib import Path
from typing import get_args

import pytest
import torch
from torch import Tensor

from mesaopt.config import LanguageModelConfig, MixerName
from mesaopt.errors import ConfigError
from mesaopt.models import LanguageModel, Sampling, beam_search, generate

transformers = pytest.importorskip("transformers", reason="the extra [hf] is not installed")
from transformers import GenerationMixin  # noqa: E402

from mesaopt import hf  # noqa: E402

SMALL = LanguageModelConfig(vocabulary=13, width=8, num_heads=2, initial_std=0.4)
HYBRID = replace(SMALL, mixers=("mesanet2025", "softmax_attention", "delta_rule"))
STACKS = {name: replace(SMALL, mixers=(name, name)) for name in get_args(MixerName)} | {
    "hybrid": HYBRID,
    "window": replace(HYBRID, window=3),
    "shifted": replace(
        SMALL, mixers=("mesa", "softmax_attention"), key_shift=True, positions="sinusoidal"
    ),
    "shifted window": replace(
        SMALL, mixers=("softmax_attention", "mesa"), key_shift=True, window=2, tied=False
    ),
    "positions": replace(
        SMALL, mixers=("longhorn",), positions="sinusoidal", norm="layer", scale_embeddings=True
    ),
    "rotary": replace(SMALL, mixers=("softmax_attention",) * 2, positions="rotary"),
    "rotary window": replace(HYBRID, positions="rotary", window=3),
}
ARGUMENTS = inspect.signature(GenerationMixin.prepare_inputs_for_generation).parameters
CACHE = "cache" if "cache" in ARGUMENTS else "past_key_values"
GREEDY = Sampling(temperature=0.0)
PROMPTS = [[3, 1, 4, 1, 5], [9, 2], [6]]
PADDED = torch.tensor([[3, 1, 4, 1, 5], [0, 0, 0, 9, 2], [0, 0, 0, 0, 6]])
MASK = torch.tensor([[1, 1, 1, 1, 1], [0, 0, 0, 1, 1], [0, 0, 0, 0, 1]])
stacks = pytest.mark.parametrize("name", STACKS)


def build(name: str) -> tuple[hf.MesaoptForCausalLM, LanguageModel]:
    plain = LanguageModel(STACKS[name], seed=1).eval()
    return hf.wrap(plain), plain


def draw(config: LanguageModelConfig, batch: int = 3, time: int = 11) -> Tensor:
    random = torch.Generator().manual_seed(5)
    return torch.randint(config.vocabulary, (batch, time), generator=random)


@stacks
def test_logits_are_those_of_the_language_model(name: str) -> None:
    model, plain = build(name)
    tokens = draw(STACKS[name])
    found = model(tokens)
    torch.testing.assert_close(found.logits, plain(tokens), rtol=0, atol=0)
    last = model(tokens, logits_to_keep=2).logits
    torch.testing.assert_close(last, found.logits[:, -2:], rtol=1e-5, atol=1e-5)
    some = model(tokens, logits_to_keep=torch.tensor([0, 4])).logits
    torch.testing.assert_close(some, found.logits[:, [0, 4]], rtol=1e-5, atol=1e-5)


@stacks
def test_greedy_texts_are_ours_with_padding_on_the_left(name: str) -> None:
    model, plain = build(name)
    found = model.generate(PADDED, attention_mask=MASK, max_new_tokens=9, do_sample=False)
    wanted = generate(plain, PROMPTS, 9, sampling=GREEDY).tokens
    assert torch.equal(found[:, PADDED.shape[1] :], wanted)


@stacks
def test_beams_are_ours(name: str) -> None:
    model, plain = build(name)
    found = model.generate(
        PADDED,
        attention_mask=MASK,
        max_new_tokens=7,
        do_sample=False,
        num_beams=3,
        length_penalty=0.0,
    )
    wanted = beam_search(plain, PROMPTS, 7, beams=3).tokens[::3]
    assert torch.equal(found[:, PADDED.shape[1] :], wanted)


@stacks
def test_a_text_can_come_in_pieces(name: str) -> None:
    model, plain = build(name)
    tokens, mask = draw(STACKS[name], 2, 9), torch.ones(2, 9, dtype=torch.long)
    mask[1, :3] = 0
    whole = plain(tokens, mask=mask.bool())
    for cuts in ([4, 5], [1, 1, 7], [2, 6, 1]):
        cache, begin, logits = None, 0, []
        for length in cuts:
            end = begin + length
            output = model(tokens[:, begin:end], attention_mask=mask[:, :end], cache=cache)
            cache, begin = output[CACHE], end
            logits.append(output.logits)
        found = torch.cat(logits, dim=1)
        # Two orders of the same sums, in float32.
        torch.testing.assert_close(found[mask.bool()], whole[mask.bool()], rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_a_copy_of_the_cache_is_a_way_back() -> None:
    model, _ = build("hybrid")
    cache = transformers.DynamicCache(config=model.config)
    model(torch.tensor([[3, 1, 4]]), cache=cache)
    before = copy.deepcopy(cache)
    first = model(torch.tensor([[1, 5]]), cache=cache).logits
    again = model(torch.tensor([[1, 5]]), cache=before).logits
    torch.testing.assert_close(first, again, rtol=0, atol=0)


def test_a_cache_of_recurrent_layers_does_not_grow() -> None:
    model, _ = build("mesanet2025")
    sizes = []
    for time in (3, 30):
        cache = transformers.DynamicCache(config=model.config)
        model(draw(SMALL, 1, time), cache=cache)
        states = [
            s for layer in cache.layers for s in layer.recurrent_states.values() if s is not None
        ]
        sizes.append(sum(s.numel() for s in states))
    assert sizes[0] == sizes[1]


def test_sampled_texts_follow_torchs_seed_and_the_cache_changes_nothing() -> None:
    model, _ = build("hybrid")
    texts = []
    for use_cache in (True, True, False):
        torch.manual_seed(3)
        settings = {"max_new_tokens": 8, "do_sample": True, "top_k": 5, "num_return_sequences": 2}
        texts.append(model.generate(PADDED[:1], use_cache=use_cache, **settings))
    assert texts[0].shape == (2, 13)
    assert torch.equal(texts[0], texts[1])
    assert torch.equal(texts[0], texts[2])


@pytest.mark.parametrize("name", ["hybrid", "mesa", "shifted window", "rotary", "rotary window"])
def test_checkpointing_leaves_the_gradients(name: str) -> None:
    tokens, gradients, calls = draw(STACKS[name]), [], []
    for checkpointing in (False, True):
        model = build(name)[0].train()
        called: list[None] = []
        model.model.blocks[0].register_forward_pre_hook(lambda *_, to=called: to.append(None))
        if checkpointing:
            enable = getattr(model, "activation_checkpointing_enable", None)
            (enable or model.gradient_checkpointing_enable)()
        output = model(tokens, labels=tokens, use_cache=False)
        output.loss.backward()
        gradients.append({n: p.grad for n, p in model.named_parameters()})
        calls.append(len(called))
    assert calls == [1, 2]
    torch.testing.assert_close(gradients[1], gradients[0], rtol=0, atol=0)


def test_the_loss_is_the_mean_cross_entropy_of_the_next_token() -> None:
    model, plain = build("hybrid")
    tokens = draw(HYBRID)
    wanted = torch.nn.functional.cross_entropy(
        plain(tokens)[:, :-1].flatten(0, 1), tokens[:, 1:].flatten()
    )
    torch.testing.assert_close(model(tokens, labels=tokens).loss, wanted)


@pytest.mark.parametrize(
    "name", ["hybrid", "mesa", "shifted", "shifted window", "longhorn", "rotary", "rotary window"]
)
def test_what_was_built_without_memory_gets_first_values(name: str) -> None:
    config = hf.MesaoptConfig(replace(STACKS[name], width=32, vocabulary=50))
    torch.manual_seed(0)
    wanted = hf.MesaoptForCausalLM(config).state_dict()
    with torch.device("meta"):
        model = hf.MesaoptForCausalLM(config)
    model.to_empty(device="cpu")
    for x in [*model.parameters(), *model.buffers()]:
        x.data.fill_(float("nan"))
    torch.manual_seed(0)
    torch.randint(2**31, ())  # as the constructor draws
    torch.manual_seed(0)
    model.init_weights()
    assert all(x.isfinite().all() for x in [*model.parameters(), *model.buffers()])
    torch.testing.assert_close(dict(model.state_dict()), dict(wanted), rtol=0, atol=0)
    assert model.model.head.weight is model.model.embedding.weight or not config.tie_word_embeddings


@pytest.mark.parametrize("name", ["hybrid", "shifted window", "rotary", "rotary window"])
def test_a_saved_model_comes_back(name: str, tmp_path: Path) -> None:
    model, plain = build(name)
    model.save_pretrained(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} >= {"config.json", "model.safetensors"}
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    assert isinstance(again, hf.MesaoptForCausalLM)
    assert not again.training
    torch.testing.assert_close(again.plain().state_dict(), plain.state_dict(), rtol=0, atol=0)
    tokens = draw(STACKS[name])
    torch.testing.assert_close(again(tokens).logits, plain(tokens), rtol=0, atol=0)
    half = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16)
    kinds = {n.split(".")[-1]: p.dtype for n, p in half.named_parameters()}
    assert kinds["weight"] == torch.bfloat16
    assert {kinds.get("raw_ridge"), kinds.get("inverse_ridge")} <= {None, torch.float32}
    # bfloat16 has 8 bits; three layers of it.
    torch.testing.assert_close(half(tokens).logits.float(), plain(tokens), rtol=0.2, atol=0.5)


def test_a_clean_process_loads_and_generates(tmp_path: Path) -> None:
    model, _ = build("hybrid")
    model.save_pretrained(tmp_path)
    wanted = model.generate(PADDED, attention_mask=MASK, max_new_tokens=6, do_sample=False)
    code = (
        "import sys, torch, mesaopt.hf; from transformers import AutoModelForCausalLM as Auto;"
        "ids, mask = (torch.tensor(eval(x)) for x in sys.argv[2:]);"
        "model = Auto.from_pretrained(sys.argv[1]);"
        "print(model.generate(ids, attention_mask=mask, max_new_tokens=6, do_sample=False).tolist())"
    )
    arguments = [str(tmp_path), str(PADDED.tolist()), str(MASK.tolist())]
    command = [sys.executable, "-c", code, *arguments]
    out = subprocess.run(command, capture_output=True, text=True, check=True)
    assert eval(out.stdout.splitlines()[-1]) == wanted.tolist()


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        (torch.tensor([[3, 13]]), "input_ids has the value 13: must be from 0 to 12"),
        (torch.tensor([[-1, 3]]), "input_ids has the value -1: must be from 0 to 12"),
        (torch.zeros(1, 0, dtype=torch.long), "input_ids is empty: must be one token or more"),
        (None, "input_ids is missing: must be tokens"),
    ],
)
def test_prompts_that_do_not_fit_are_refused(prompt: Tensor | None, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build("hybrid")[0].generate(prompt, max_new_tokens=2)


def test_masks_that_do_not_fit_are_refused() -> None:
    model, _ = build("hybrid")
    mask = torch.tensor([[1, 1], [0, 0]])
    with pytest.raises(ValueError, match=r"input_ids\[1\] is padding only"):
        model.generate(torch.ones(2, 2, dtype=torch.long), attention_mask=mask, max_new_tokens=2)
    mask = torch.tensor([[1, 1], [1, 0]])
    with pytest.raises(ValueError, match=r"input_ids\[1\] ends in padding: must be filled up on"):
        model.generate(torch.ones(2, 2, dtype=torch.long), attention_mask=mask, max_new_tokens=2)
    cache = transformers.DynamicCache(config=model.config)
    model(PADDED, cache=cache)
    with pytest.raises(
        ValueError, match="attention_mask has 1 columns: must be 6, for 5 positions"
    ):
        model(PADDED[:, :1], cache=cache, attention_mask=MASK[:, :1])
    with pytest.raises(
        ValueError, match=r"attention_mask has shape \(3, 5\): must be \[2, past \+ 5\]"
    ):
        model(PADDED[:2], attention_mask=MASK)
    with pytest.raises(ValueError, match=r"attention_mask is a list: must be \[3, past \+ 5\]"):
        model(PADDED, attention_mask=MASK.tolist())
    with pytest.raises(
        ValueError, match="padding behind a token: must be on the left with window=3"
    ):
        build("window")[0](PADDED, attention_mask=MASK.flip(1))


@pytest.mark.parametrize(
    ("kept", "message"),
    [
        (-1, "logits_to_keep=-1: must be between 0 and"),
        (True, "logits_to_keep=True: must be a whole number"),
        (1.0, "logits_to_keep=1.0: must be a whole number"),
        ([1], r"logits_to_keep=\[1\]: must be a whole number"),
        (torch.tensor([5]), "logits_to_keep has the value 5: must be from 0 to 4"),
        (torch.tensor([-1]), "logits_to_keep has the value -1: must be from 0 to 4"),
        (
            torch.tensor([1.0]),
            "logits_to_keep is of torch.float32: must be a tensor of torch.int64",
        ),
        (torch.tensor([[1]]), r"logits_to_keep has shape \(1, 1\): must be \[kept\]"),
    ],
)
def test_positions_that_do_not_fit_are_refused(kept: object, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}"):
        build("hybrid")[0](PADDED, logits_to_keep=kept)


@pytest.mark.parametrize("name", ["hybrid", "mesanet2025", "softmax_attention"])
@pytest.mark.parametrize("batch", [1, 2])
def test_a_cache_of_other_sequences_is_refused(batch: int, name: str) -> None:
    model, _ = build(name)
    cache = transformers.DynamicCache(config=model.config)
    model(PADDED, cache=cache)
    with pytest.raises(ValueError, match=f"^cache has 3 sequences: must have {batch}, as input_"):
        model(PADDED[:batch, :1], cache=cache)


def test_labels_of_another_shape_are_refused() -> None:
    with pytest.raises(
        ValueError, match=r"^labels has shape \(5, 3\): must be \(3, 5\), as input_ids"
    ):
        build("hybrid")[0](PADDED, labels=PADDED.T)
    with pytest.raises(TypeError, match=r"^labels is a list: must be a tensor \(3, 5\), as input_"):
        build("hybrid")[0](PADDED, labels=PADDED.tolist())


def test_other_caches_and_outputs_are_refused() -> None:
    model, _ = build("hybrid")
    with pytest.raises(
        ValueError, match=r"StaticCache: must be DynamicCache\(config=model.config\)"
    ):
        model.generate(PADDED, max_new_tokens=2, cache_implementation="static")
    with pytest.raises(ValueError, match="cache has 0 layers, not 3: must be DynamicCache"):
        model(PADDED, cache=transformers.DynamicCache())
    with pytest.raises(ValueError, match="output_hidden_states=True: must be False"):
        model(PADDED, output_hidden_states=True)
    with pytest.raises(ValueError, match="inputs_embeds is given: must be input_ids"):
        model(PADDED, inputs_embeds=torch.zeros(3, 5, 8))


def test_a_text_goes_on_from_a_cache_and_its_prompt_may_be_cut() -> None:
    for name in ("hybrid", "mesanet2025", "window"):
        model, _ = build(name)
        settings = {"do_sample": False, "attention_mask": MASK}
        wanted = model.generate(PADDED, max_new_tokens=8, **settings)
        cut = model.generate(PADDED, max_new_tokens=8, prefill_chunk_size=2, **settings)
        assert torch.equal(cut, wanted)
        cache = transformers.DynamicCache(config=model.config)
        first = model.generate(PADDED, max_new_tokens=3, **{CACHE: cache}, **settings)
        settings["attention_mask"] = torch.cat([MASK, torch.ones(3, 3, dtype=torch.long)], dim=1)
        assert torch.equal(
            model.generate(first, max_new_tokens=5, **{CACHE: cache}, **settings), wanted
        )


@pytest.mark.parametrize("package", [None, types.SimpleNamespace(__version__="4.57.0")])
def test_a_missing_or_old_library_is_named(
    package: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in sys.modules if name.startswith("mesaopt.hf")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "transformers", package)
    with pytest.raises(
        ConfigError, match=r"^mesaopt.hf: needs the library transformers, 5.16 or newer"
    ):
        importlib.import_module("mesaopt.hf")


def test_weights_of_another_architecture_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="^model_type='gpt2': must be 'mesaopt'$"):
        hf.MesaoptConfig.from_dict({"model_type": "gpt2"})
    build("hybrid")[0].save_pretrained(tmp_path)
    for changes, message in [
        (
            {"mixers": ("mesanet2025", "mesanet2025", "delta_rule")},
            "blocks.1.mixer.convolution.weight: there is",
        ),
        ({"vocabulary": 12}, r"embedding.weight has shape \(13, 8\): must be \(12, 8\)"),
        ({"mixers": HYBRID.mixers[:2]}, "blocks.2.*: is not of the model"),
    ]:
        hf.MesaoptConfig(replace(HYBRID, **changes)).save_pretrained(tmp_path)
        with pytest.raises(ConfigError, match=message):
            hf.MesaoptForCausalLM.from_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="use_safetensors=False: must be True"):
        hf.MesaoptForCausalLM.from_pretrained(tmp_path, use_safetensors=False)
    with pytest.raises(
        ConfigError, match="tie_word_embeddings=False: must be True, as settings.tied"
    ):
        hf.MesaoptConfig(SMALL, tie_word_embeddings=False)
    with pytest.raises(ConfigError, match="settings: unknown key 'widht'; did you mean 'width'"):
        hf.MesaoptConfig({"widht": 4})
    with pytest.raises(ConfigError, match="vocabulary=13: is fixed"):
        build("hybrid")[0].resize_token_embeddings(20)
