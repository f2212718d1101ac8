"""Continuing texts: whatever way a text is read, the numbers are those of one pass over all of it."""

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from mesaopt.config import FORGETTING_MIXERS, AutoEncoderConfig, LanguageModelConfig, ModelConfig
from mesaopt.errors import ConfigError, RunError
from mesaopt.models import (
    AutoEncoder,
    LanguageModel,
    LanguageState,
    Sampling,
    SequenceModel,
    beam_search,
    generate,
    prefill,
)
from mesaopt.models.mixers import MIXERS

BASE = LanguageModelConfig(
    vocabulary=11, width=6, num_heads=2, initial_std=0.5, positions="sinusoidal", logit_cap=None
)
CONFIGS = {
    name: replace(
        BASE,
        mixers=(name, name),
        forget_cap=0.99 if name in FORGETTING_MIXERS else None,
    )
    for name in MIXERS
} | {
    "window": replace(BASE, mixers=("softmax_attention", "softmax_attention"), window=4),
    "hybrid": replace(BASE, mixers=("softmax_attention", "mesa"), window=3, convolution=3),
    "rotary": replace(
        BASE,
        mixers=("softmax_attention", "mesa", "softmax_attention"),
        positions="rotary",
        head_dim=4,
        window=5,
    ),
    "signed": replace(
        BASE,
        mixers=("gated_linear_attention", "gated_delta_rule", "mesanet2025"),
        signed_decay=True,
    ),
    "shifted": replace(
        BASE, mixers=("mesa",), key_shift=True, feature_map="dpfp2", unit_queries_keys=True
    ),
}
BOUNDED = sorted(CONFIGS.keys() - {"softmax_attention"})
every_model = pytest.mark.parametrize("name", CONFIGS)
# float64: some 100 sums of 10 products in a row, enlarged by condition numbers below 1e3.
CLOSE = {"rtol": 1e-8, "atol": 1e-8}


def build(name: str) -> LanguageModel:
    return LanguageModel(CONFIGS[name], seed=1).double()


def draw(batch: int, time: int) -> torch.Tensor:
    return torch.randint(11, (batch, time), generator=torch.Generator().manual_seed(2))


def assert_same(ours: LanguageState, theirs: LanguageState) -> None:
    ours, theirs = ours.tensors, theirs.tensors
    assert ours.keys() == theirs.keys()
    for part, tensor in ours.items():
        assert torch.equal(tensor, theirs[part]), part


@every_model
@pytest.mark.parametrize("cuts", [(1,), (7, 8, 30), (64, 69)], ids=str)
def test_a_text_can_be_read_in_any_pieces(name: str, cuts: tuple[int, ...]) -> None:
    model, tokens = build(name), draw(2, 70)
    whole, logits, state = model(tokens), [], None
    for part in tokens.tensor_split(cuts, dim=1):
        found, state = model.extend(part, state)
        logits.append(found)
    torch.testing.assert_close(torch.cat(logits, dim=1), whole, **CLOSE)
    assert state.seen.tolist() == [70, 70]


@every_model
def test_a_text_can_be_read_token_by_token(name: str) -> None:
    model, tokens = build(name), draw(2, 20)
    state, logits = model.init_state(2), []
    for token in tokens.unbind(1):
        found, state = model.step(token, state)
        logits.append(found)
    torch.testing.assert_close(torch.stack(logits, dim=1), model(tokens), **CLOSE)


@every_model
def test_padding_on_the_left_changes_nothing(name: str) -> None:
    model, tokens = build(name), draw(3, 9)
    prompts = [tokens[0].tolist(), tokens[1, :4].tolist(), tokens[2, :1].tolist()]
    for piece in (1, 4, 100):
        logits, state = prefill(model, prompts, piece=piece)
        further, _ = model.step(tokens[:, 5], state)
        assert state.seen.tolist() == [9, 4, 1]
        for number, prompt in enumerate(prompts):
            alone = model(torch.tensor([prompt]))[:, -1]
            torch.testing.assert_close(logits[number : number + 1], alone, **CLOSE)
            longer = torch.tensor([[*prompt, tokens[number, 5].item()]])
            wanted = model(longer)[0, -1]
            torch.testing.assert_close(further[number], wanted, **CLOSE)


@every_model
def test_greedy_tokens_are_the_likeliest_of_the_full_pass(name: str) -> None:
    model, prompts = build(name), [[1, 2, 3, 4, 5], [6, 7]]
    found = generate(model, prompts, 12, sampling=Sampling(temperature=0.0))
    for prompt, tokens, total in zip(prompts, found.tokens, found.log_probability, strict=True):
        text, likelihood = list(prompt), 0.0
        for token in tokens.tolist():
            logits = model(torch.tensor([text]))[0, -1].log_softmax(-1)
            assert logits.argmax() == token
            likelihood += logits[token].item()
            text.append(token)
        assert total.item() == pytest.approx(likelihood, abs=1e-7)


@every_model
def test_a_state_that_is_kept_is_a_way_back(name: str) -> None:
    model = build(name)
    _, state = prefill(model, draw(2, 9))
    kept = state.copy()
    generate(model, draw(2, 3), 4, state=state)
    model.step(torch.tensor([0, 1]), state)
    assert_same(state, kept)
    once, twice = (model.step(torch.tensor([3, 4]), s)[0] for s in (state, kept))
    assert torch.equal(once, twice)


@every_model
def test_gradients_end_where_a_state_is_detached(name: str) -> None:
    model = build(name)
    _, state = model.extend(draw(2, 9))
    cut = state.detach()
    assert_same(cut, state)
    assert any(x.requires_grad for x in state.tensors.values())
    assert not any(x.requires_grad for x in cut.tensors.values())
    logits, _ = model.extend(draw(2, 3), cut)
    logits.sum().backward()
    assert all(x.grad_fn is None for x in cut.tensors.values())


# A state of every kind: sums, Gram matrices and recent projections, pairs.
@pytest.mark.parametrize("name", ["linear_attention", "mesanet2025", "hybrid"])
@pytest.mark.parametrize("place", ["cpu", "meta"])
@pytest.mark.parametrize(
    ("args", "kwargs"),
    [
        ((), {}),
        ((torch.bfloat16,), {}),
        ((), {"dtype": torch.float64}),
        (("meta",), {}),
        (("meta", torch.float64), {}),
        ((torch.zeros(1, dtype=torch.float64, device="meta"),), {}),
    ],
    ids=str,
)
def test_a_state_moves_as_its_tensors_do(args: tuple, kwargs: dict, place: str, name: str) -> None:
    _, state = prefill(build(name).float(), draw(2, 9))
    state = state.to(place)
    for part, found in state.to(*args, **kwargs).tensors.items():
        before = state.tensors[part]
        wanted = before.to(*args, **kwargs)
        is_sum = re.search("cross|gram|log_decay", part)
        if part == "seen" or (is_sum and wanted.dtype == torch.bfloat16):
            wanted = before.to(wanted.device)
        assert (found.device, found.dtype) == (wanted.device, wanted.dtype), part
        assert found.is_meta or torch.equal(found, wanted), part


@every_model
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
def test_a_state_is_copied_where_that_is_asked_for(dtype: torch.dtype, name: str) -> None:
    _, state = prefill(build(name), draw(2, 9))
    for args, kwargs in (((dtype,), {"copy": True}), ((dtype, False, True), {})):
        for part, found in state.to(*args, **kwargs).tensors.items():
            assert found.data_ptr() != state.tensors[part].data_ptr(), part


@every_model
def test_a_state_goes_on_from_a_file(name: str, tmp_path: Path) -> None:
    model = build(name)
    _, state = prefill(model, [[1, 2, 3, 4, 5], [6, 7]])
    state.save(tmp_path / "state.safetensors")
    loaded = LanguageState.load(tmp_path / "state.safetensors")
    assert_same(loaded, state)
    once, twice = (model.step(torch.tensor([3, 4]), s)[0] for s in (state, loaded))
    assert torch.equal(once, twice)


@every_model
def test_beams_are_reordered_with_their_states(name: str) -> None:
    model, prompts = build(name), [[1, 2, 3], [4]]
    found = beam_search(model, prompts, 3, beams=11)
    for number, prompt in enumerate(prompts):
        # Eleven beams keep every continuation by one token: the best of two tokens are exact.
        pairs = torch.cartesian_prod(torch.arange(11), torch.arange(11))
        order = likelihoods(model, prompt, pairs).argsort(descending=True)
        assert torch.equal(beam_search(model, [prompt], 2, beams=11).tokens, pairs[order[:11]])
        rows = slice(11 * number, 11 * number + 11)
        wanted = likelihoods(model, prompt, found.tokens[rows])
        torch.testing.assert_close(found.log_probability[rows], wanted, **CLOSE)
        assert (found.log_probability[rows].diff() <= 0).all()


def likelihoods(model: LanguageModel, prompt: list[int], tokens: torch.Tensor) -> torch.Tensor:
    """Compute the log-probabilities of several continuations of one prompt, in one pass."""
    texts = torch.cat([torch.tensor(prompt).expand(len(tokens), -1), tokens], dim=1)
    scores = model(texts).log_softmax(-1)[:, len(prompt) - 1 : -1]
    return scores.gather(2, tokens.unsqueeze(2)).sum((1, 2)).detach()


@pytest.mark.parametrize("name", BOUNDED)
def test_states_do_not_grow(name: str) -> None:
    model = build(name)
    sizes = [prefill(model, draw(2, time))[1].num_bytes for time in (10, 100, 150)]
    assert sizes[0] == sizes[1] == sizes[2] > 0


def test_draws_follow_the_probabilities() -> None:
    logits = torch.tensor([0.5, 0.25, 0.15, 0.1]).log().expand(20_000, 4)
    cases = [
        (Sampling(), [0.5, 0.25, 0.15, 0.1]),
        (Sampling(top_k=2), [2 / 3, 1 / 3, 0, 0]),
        (Sampling(top_p=0.7), [2 / 3, 1 / 3, 0, 0]),
        (Sampling(top_p=1e-9), [1, 0, 0, 0]),
        (Sampling(top_k=3, top_p=0.6), [2 / 3, 1 / 3, 0, 0]),
        (Sampling(temperature=0.5), [0.7246, 0.1812, 0.0652, 0.0290]),
        (Sampling(temperature=0.0), [1, 0, 0, 0]),
        (Sampling(temperature=1e-320), [1, 0, 0, 0]),
    ]
    for sampling, wanted in cases:
        shares = sampling.chooser()(logits).bincount(minlength=4) / len(logits)
        # Five standard errors of a share.
        torch.testing.assert_close(shares, torch.tensor(wanted).float(), atol=0.018, rtol=0)


def test_draws_are_a_function_of_the_seed() -> None:
    model = build("mesa")
    one, again, other = (
        generate(model, [[1]], 20, sampling=Sampling(seed=seed)).tokens for seed in (0, 0, 1)
    )
    assert torch.equal(one, again)
    assert not torch.equal(one, other)


@pytest.mark.usefixtures("_unchecked")
@pytest.mark.parametrize(
    ("prompts", "shown"),
    [
        ([[3], [1.5, 2.0]], "prompts[1]=[1.5, 2.0]"),
        (torch.tensor([[1.0, 2.0]]), "prompts[0]=[1.0, 2.0]"),
        ([[True, False]], "prompts[0]=[True, False]"),
        ([1, 2], "prompts[0]=1"),
        (torch.tensor([3, 4]), "prompts[0]=3"),
        (torch.tensor([[[1, 2]]]), "prompts[0]=[[1, 2]]"),
        ([[[1], [2, 3]]], "prompts[0]=[[1], [2, 3]]"),
        ("def ", "prompts[0]='d'"),
        ([b"def "], "prompts[0]=b'def '"),
        ([[2**70]], "prompts[0]=[1180591620717411303424]"),
    ],
    ids=str,
)
def test_prompts_are_rows_of_whole_numbers(prompts: object, shown: str) -> None:
    model = build("mesa")
    wanted = f"^{re.escape(shown)}: must be a row of whole numbers$"
    for call in (
        lambda: prefill(model, prompts),
        lambda: generate(model, prompts, 3),
        lambda: beam_search(model, prompts, 3, beams=2),
    ):
        with pytest.raises(ValueError, match=wanted):
            call()
    for nothing, words in ((None, "None"), (3, "an int"), (torch.tensor(3), "a Tensor")):
        with pytest.raises(TypeError, match=f"^prompts is {words}: must be a row of tokens for"):
            prefill(model, nothing)


@pytest.mark.usefixtures("_unchecked")
@pytest.mark.parametrize(
    "prompts", [[(1, 2)], [range(1, 3)], torch.tensor([[1, 2]]), torch.tensor([[1, 2]]).byte()]
)
def test_whole_numbers_may_come_in_any_row(prompts: object) -> None:
    model = build("mesa")
    assert torch.equal(prefill(model, prompts)[0], prefill(model, [[1, 2]])[0])


@pytest.mark.usefixtures("_unchecked")
@pytest.mark.parametrize(
    ("make", "words"),
    [
        (
            lambda: AutoEncoder(AutoEncoderConfig(width=8)),
            "an AutoEncoder: must be a LanguageModel",
        ),
        (lambda: SequenceModel(ModelConfig()), "a SequenceModel: must be a LanguageModel"),
        (lambda: torch.nn.Linear(2, 2), "a Linear: must be a LanguageModel"),
        (lambda: None, "None: must be a LanguageModel"),
        (
            lambda: SimpleNamespace(model=build("mesa")),
            "a SimpleNamespace: must be a LanguageModel, such as its .model",
        ),
    ],
)
def test_other_models_continue_no_text(make: Callable[[], object], words: str) -> None:
    model = make()
    for call in (
        lambda: prefill(model, [[1]]),
        lambda: generate(model, [[1]], 2),
        lambda: beam_search(model, [[1]], 2, beams=2),
    ):
        with pytest.raises(TypeError, match=f"^model is {re.escape(words)}$"):
            call()


@pytest.mark.usefixtures("_unchecked")
def test_a_compiled_model_continues_texts() -> None:
    model = build("mesa")
    compiled = torch.compile(model, backend="eager")
    assert torch.equal(prefill(compiled, [[1, 2]])[0], prefill(model, [[1, 2]])[0])


@pytest.mark.usefixtures("_unchecked")
def test_what_cannot_be_continued_is_refused(tmp_path: Path) -> None:
    model = build("mesa")
    for call, message in (
        (lambda: generate(model, [], 3), "prompts: there is none"),
        (lambda: generate(model, [[1], []], 3), "prompts[1]: is empty: must be one token or more"),
        (lambda: generate(model, [[1], [1, 11]], 3), "prompts[1] has the value 11: must be from 0"),
        (lambda: generate(model, [[1]], 0), "count=0: must be 1 or greater"),
        (lambda: beam_search(model, [[1]], 3, beams=12), "beams=12: must be between"),
        (lambda: Sampling(temperature=-1.0), "temperature=-1.0: must be 0 or greater"),
        (lambda: Sampling(top_k=0), "top_k=0: must be 1 or greater"),
        (lambda: Sampling(top_p=0.0), "top_p=0.0: must be above 0 and at most 1"),
        (lambda: Sampling(temperature="1"), "temperature='1': must be a finite number"),
        (lambda: Sampling(temperature=True), "temperature=True: must be a finite number"),
    ):
        with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
            call()
    assert issubclass(ConfigError, ValueError)
    path = tmp_path / "state.safetensors"
    with pytest.raises(RunError, match="there is no such file"):
        LanguageState.load(path)
    path.write_bytes(b"nothing")
    with pytest.raises(RunError, match="holds no state of a language model"):
        LanguageState.load(path)
