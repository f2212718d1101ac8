"""Language models: their definition, first weights, inputs that are refused, training by name."""

import math
import re
from dataclasses import replace
from pathlib import Path
from typing import get_args

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from slow_language_model import slow_logits
from torch import nn

from mesaopt.config import (
    FORGETTING_MIXERS,
    AutoEncoderConfig,
    CopyingConfig,
    LanguageModelConfig,
    MixerName,
    RunConfig,
    TrainConfig,
    from_dict,
    to_dict,
)
from mesaopt.errors import ConfigError
from mesaopt.models import AutoEncoder, LanguageModel, beam_search, generate, prefill
from mesaopt.training import load_run, train

NAMES = get_args(MixerName)
SMALL = LanguageModelConfig(vocabulary=11, width=6, num_heads=2, initial_std=0.4)


def only_where(
    config: LanguageModelConfig,
    *,
    window: int | None,
    values: bool,
    signed: bool = False,
    rotary: bool = False,
) -> LanguageModelConfig:
    """Set a window, turns and a cap where mixers take them, and no shift beside a convolution."""
    if rotary and "softmax_attention" in config.mixers:
        config = replace(config, head_dim=4, positions="rotary")
    forgets = not FORGETTING_MIXERS.isdisjoint(config.mixers)
    convolves = config.convolution is not None or "mesanet2025" in config.mixers
    return replace(
        config,
        window=window if "softmax_attention" in config.mixers else None,
        forget_cap=0.9 if forgets else None,
        signed_decay=signed and forgets,
        key_shift=not convolves,
        convolve_values=values or not convolves,
    )


configs = st.builds(
    only_where,
    st.builds(
        replace,
        st.just(SMALL),
        mixers=st.lists(st.sampled_from(NAMES), min_size=1, max_size=3).map(tuple),
        head_dim=st.sampled_from([None, 5]),
        convolution=st.sampled_from([None, 3]),
        head_norm=st.booleans(),
        unit_queries_keys=st.booleans(),
        feature_map=st.sampled_from(["none", "dpfp1", "dpfp3"]),
        positions=st.sampled_from(["none", "sinusoidal"]),
        scale_embeddings=st.booleans(),
        mlp=st.sampled_from(["none", "relu", "gelu", "swiglu"]),
        mlp_dim=st.sampled_from([None, 7]),
        norm=st.sampled_from(["rms", "layer"]),
        tied=st.booleans(),
        logit_cap=st.sampled_from([None, 3.0]),
    ),
    window=st.sampled_from([None, 1, 4]),
    values=st.booleans(),
    signed=st.booleans(),
    rotary=st.booleans(),
)


def build(config: LanguageModelConfig, seed: int = 0) -> LanguageModel:
    """Build a model in float64 whose norms, gates and ridges have left their first values."""
    model = LanguageModel(config, seed=seed).double()
    random = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if name.endswith("inverse_ridge"):
            parameter.data.uniform_(0.5, 2.0, generator=random)
        elif parameter.dim() == 1 or "ridge" in name or "head_norm" in name:
            parameter.data += 0.3 * torch.randn(parameter.shape, generator=random)
    return model


def draw(config: LanguageModelConfig, batch: int = 2, time: int = 9) -> torch.Tensor:
    random = torch.Generator().manual_seed(1)
    return torch.randint(config.vocabulary, (batch, time), generator=random)


@given(config=configs, seed=st.integers(0, 2**20))
def test_every_stack_computes_its_definition(config: LanguageModelConfig, seed: int) -> None:
    model, tokens = build(config, seed), draw(config)
    found = model(tokens)
    wanted = [torch.from_numpy(slow_logits(config, model, row.numpy())) for row in tokens]
    # float64, three layers, condition numbers below 1e4 and values of 1 to 1e3.
    torch.testing.assert_close(found, torch.stack(wanted), rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("name", NAMES)
def test_it_computes_its_definition_with_every_mixer(name: MixerName) -> None:
    config = only_where(
        replace(SMALL, mixers=(name, name), positions="sinusoidal"), window=4, values=True
    )
    model, tokens = build(config), draw(config, time=20)
    wanted = [torch.from_numpy(slow_logits(config, model, row.numpy())) for row in tokens]
    torch.testing.assert_close(model(tokens), torch.stack(wanted), rtol=1e-9, atol=1e-9)


def test_logits_are_computed_at_the_positions_asked_for() -> None:
    model, tokens = build(SMALL), draw(SMALL)
    at = torch.tensor([[8, 0, 3], [1, 1, 7]])
    every = model(tokens)
    wanted = torch.stack([row[places] for row, places in zip(every, at, strict=True)])
    torch.testing.assert_close(model(tokens, at=at), wanted)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_a_text_in_one_piece_is_the_whole_text(name: MixerName, *, masked: bool) -> None:
    model = LanguageModel(replace(SMALL, mixers=(name, name)), seed=2)
    tokens = torch.randint(SMALL.vocabulary, (2, 9))
    mask = torch.arange(9) >= torch.tensor([[0], [3]]) if masked else None
    wanted, _ = model.extend(tokens, mask=mask)
    torch.testing.assert_close(model(tokens, mask=mask), wanted, rtol=0, atol=0)


def test_first_weights_have_their_scales() -> None:
    config = LanguageModelConfig(
        width=128, mixers=("softmax_attention", "gated_delta_rule"), initial_std=0.02, tied=False
    )
    model = LanguageModel(config)
    scaled = [part for name, part in model.named_modules() if re.search("output$|down$", name)]
    assert len(scaled) == 4
    for name, part in model.named_modules():
        if isinstance(part, nn.Linear | nn.Embedding):
            wanted = 0.02 / 2 if part in scaled else 0.02  # sqrt(2 * 2 layers)
            few = part.weight.numel() < 2000
            assert part.weight.std().item() == pytest.approx(wanted, rel=0.2 if few else 0.05), name
            assert abs(part.weight.mean().item()) < 0.1 * wanted


@pytest.mark.parametrize("name", NAMES)
def test_a_model_built_without_memory_gets_all_first_values(name: MixerName) -> None:
    config = only_where(replace(SMALL, mixers=(name, name)), window=4, values=True)
    wanted = LanguageModel(config, seed=3)
    with torch.device("meta"):
        model = LanguageModel(config)
    model.to_empty(device="cpu")
    for tensor in (*model.parameters(), *model.buffers()):
        tensor.data.fill_(math.nan)
    model.reset_parameters(3)
    for weight, value in wanted.state_dict().items():
        assert torch.equal(model.state_dict()[weight], value), weight
    tokens = draw(config)
    assert torch.equal(model(tokens), wanted(tokens))


def test_weights_are_a_pure_function_of_the_seed() -> None:
    before = torch.get_rng_state()
    one, again, other = (LanguageModel(SMALL, seed=seed) for seed in (3, 3, 4))
    assert torch.equal(torch.get_rng_state(), before)
    tokens = draw(SMALL)
    assert torch.equal(one(tokens), again(tokens))
    assert not torch.allclose(one(tokens), other(tokens))


def test_tied_embeddings_are_one_matrix() -> None:
    tied, untied = (LanguageModel(replace(SMALL, tied=tied)) for tied in (True, False))
    count, more = (sum(p.numel() for p in model.parameters()) for model in (tied, untied))
    assert more - count == 11 * 6
    tied(draw(SMALL)).sum().backward()
    assert (tied.embedding.weight.grad != 0).all()


@pytest.mark.usefixtures("_unchecked")
def test_tokens_that_do_not_fit_are_refused() -> None:
    model, tokens = LanguageModel(SMALL), draw(SMALL)
    cases = [
        (tokens + 5, "tokens has the value .*: must be from 0 to 10"),
        (tokens - 11, "tokens has the value -11: must be from 0 to 10"),
        (tokens.float(), "tokens is of torch.float32: must be a tensor of torch.int64"),
        ([1, 2], "tokens is of list: must be a tensor of torch.int64"),
        (tokens[0], r"tokens has shape \(9,\): must be \[batch, time\]"),
        (tokens[:, :0], r"tokens has shape \(2, 0\): must be \[batch, time\]"),
    ]
    for given_tokens, message in cases:
        with pytest.raises(ValueError, match=f"^{message}"):
            model(given_tokens)


AT, MASK = torch.tensor([[8, 0], [1, 1]]), torch.ones(2, 9, dtype=torch.bool)
MISFITS = [
    ({"at": AT + 1}, "at has the value 9: must be from 0 to 8"),
    ({"at": AT - 1}, "at has the value -1: must be from 0 to 8"),
    ({"at": AT.double()}, "at is of torch.float64: must be a tensor of torch.int64"),
    ({"at": AT > 0}, "at is of torch.bool: must be a tensor of torch.int64"),
    ({"at": [[8], [1]]}, "at is of list: must be a tensor of torch.int64"),
    ({"at": AT[0]}, "at has shape (2,): must be [2, scored]"),
    ({"at": AT[:1]}, "at has shape (1, 2): must be [2, scored]"),
    ({"at": AT[:, :0]}, "at has shape (2, 0): must be [2, scored]"),
    (
        {"mask": MASK.long()},
        "mask is of torch.int64: must be a tensor of torch.bool, true at tokens",
    ),
    ({"mask": [True] * 9}, "mask is of list: must be a tensor of torch.bool, true at tokens"),
    ({"mask": MASK[:1]}, "mask has shape (1, 9): must be (2, 9), as tokens"),
    ({"mask": MASK[:, :8]}, "mask has shape (2, 8): must be (2, 9), as tokens"),
    ({"mask": MASK[0]}, "mask has shape (9,): must be (2, 9), as tokens"),
]


@pytest.mark.usefixtures("_unchecked")
@pytest.mark.parametrize(
    ("arguments", "message"), MISFITS, ids=lambda x: x if isinstance(x, str) else ""
)
def test_positions_and_masks_that_do_not_fit_are_refused(arguments: dict, message: str) -> None:
    model, tokens = LanguageModel(SMALL), draw(SMALL)
    encoder = AutoEncoder(AutoEncoderConfig(vocabulary=11, width=6, num_heads=2))
    calls = [model, model.extend]
    calls += [encoder] if "at" in arguments else [model.read]
    for call in calls:
        with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
            call(tokens, **arguments)


def test_positions_may_be_of_32_bits() -> None:
    model, tokens = LanguageModel(SMALL), draw(SMALL)
    assert torch.equal(model(tokens, at=AT.int()), model(tokens, at=AT))


@pytest.mark.usefixtures("_unchecked")
def test_states_that_do_not_fit_are_refused() -> None:
    model, tokens = LanguageModel(SMALL), draw(SMALL)
    other = LanguageModel(replace(SMALL, mixers=("mesa",)))
    cases = [
        (other.init_state(2), ValueError, "state has 1 layers: must have 2"),
        (model.init_state(1), ValueError, "state has 1 sequences: must have 2"),
        (model.init_state(3), ValueError, "state has 3 sequences: must have 2"),
        (
            model.init_state(2).layers[0],
            TypeError,
            "state is a LayerState: must be a LanguageState",
        ),
    ]
    calls = [
        lambda state: model.extend(tokens, state),
        lambda state: model.extend(tokens, state, mask=torch.zeros(2, 9, dtype=torch.bool)),
        lambda state: model.step(tokens[:, 0], state),
        lambda state: prefill(model, tokens, state),
        lambda state: generate(model, tokens, 2, state=state),
        lambda state: beam_search(model, tokens, 2, beams=2, state=state),
    ]
    for call in calls:
        for state, kind, message in cases:
            with pytest.raises(kind, match=f"^{message}$"):
                call(state)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mixers": ()}, "mixers=(): must be at least one mixer"),
        ({"mixers": ("meza",)}, "mixers: 'meza': did you mean 'mesa'?"),
        (
            {"num_heads": 4},
            "num_heads=4: must be a divisor of the width 6, or head_dim must be given",
        ),
        ({"window": 4}, "window=4: must be None: there is no softmax_attention in mixers"),
        ({"window": 0, "mixers": ("softmax_attention",)}, "window=0: must be greater than 0"),
        ({"forget_cap": 1.5}, "forget_cap=1.5: must be above 0 and at most 1"),
        (
            {"forget_cap": 0.9, "mixers": ("mesa",)},
            "forget_cap=0.9: must be None: a forget gate is in",
        ),
        (
            {"signed_decay": True, "mixers": ("mesa", "delta_rule")},
            "signed_decay=True: must be False: a forget gate is in",
        ),
        (
            {"key_shift": True},
            "key_shift=True: must be False with a convolution, which can learn it",
        ),
        (
            {"mixers": ("mesa",), "convolve_values": False},
            "convolve_values=False: must be True without a convolution",
        ),
        ({"feature_map": "dpfp4"}, "feature_map='dpfp4': did you mean 'dpfp3'"),
        (
            {"width": 5, "num_heads": 1, "positions": "sinusoidal"},
            "positions='sinusoidal': must be 'none', since a width of 5",
        ),
        (
            {"mixers": ("softmax_attention",), "positions": "rotary"},
            "positions='rotary': must be 'none' or 'sinusoidal': heads of 3 do not hold pairs",
        ),
        (
            {"mixers": ("mesa",), "head_dim": 4, "positions": "rotary"},
            "positions='rotary': must be 'none' or 'sinusoidal': there is no softmax_attention",
        ),
    ],
)
def test_settings_that_do_not_fit_are_refused(changes: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=f"^{re.escape(message)}"):
        replace(SMALL, **changes)


def test_settings_survive_json() -> None:
    assert from_dict(LanguageModelConfig, to_dict(SMALL)) == SMALL


def short_run(**changes: object) -> RunConfig:
    task = CopyingConfig(alphabet=7, shortest=2, longest=4)
    settings = TrainConfig(
        steps=6, batch_size=8, evaluate_every=3, evaluation_sequences=16, learning_rate=1e-2
    )
    return RunConfig(
        recipe="short",
        task=task,
        model=replace(SMALL, **changes),
        train=settings,
    )


@pytest.mark.parametrize("name", NAMES)
def test_it_trains_and_its_checkpoint_loads(name: MixerName, tmp_path: Path) -> None:
    config = short_run(mixers=(name, "softmax_attention"), window=3)
    run = train(config, tmp_path / "run", device="cpu")
    again = load_run(tmp_path / "run")
    assert again.config == config
    assert [line["step"] for line in again.metrics] == [0, 3, 6]
    assert run.metrics[-1]["test_loss"] < run.metrics[0]["test_loss"]
    start = LanguageModel(config.model, seed=config.seed).state_dict()
    for weight, value in run.model.state_dict().items():
        assert torch.equal(value, again.model.state_dict()[weight]), weight
        assert not torch.equal(value, start[weight]), weight


@pytest.mark.parametrize("name", NAMES)
def test_a_first_state_may_have_the_type_of_autocast(name: MixerName) -> None:
    model, tokens = LanguageModel(replace(SMALL, mixers=(name,) * 2)), draw(SMALL)
    with torch.autocast("cpu", torch.bfloat16):
        wanted, _ = model.extend(tokens[:, :1])
        found, _ = model.step(tokens[:, 0], model.init_state(2, dtype=torch.bfloat16))
    # bfloat16 has eight bits; a few products follow one another.
    torch.testing.assert_close(found, wanted[:, 0], rtol=0.05, atol=0.05)


@pytest.mark.parametrize("size", [-1, 0, 2.5])
@pytest.mark.usefixtures("_unchecked")
def test_a_state_of_no_sequences_is_refused(size: float) -> None:
    with pytest.raises(ConfigError, match=f"^batch_size={size}: must be "):
        LanguageModel(SMALL).init_state(size)
