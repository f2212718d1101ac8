"""MesaNet weights of flash-linear-attention: read by name, written back, refused where they misfit."""

import json
import warnings
from collections.abc import Callable
from dataclasses import fields, replace
from importlib import import_module
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn.functional import conv1d, linear, logsigmoid, normalize, pad, silu, softplus

from mesaopt.bench.flash_linear_attention import why_skipped
from mesaopt.config import LanguageModelConfig
from mesaopt.errors import ConfigError, RunError
from mesaopt.models import LanguageModel

pytest.importorskip("transformers", reason="the extra [hf] is not installed")
from mesaopt import hf

WIDTH, HEADS, KEYS, HIDDEN, VOCABULARY = 10, 2, 4, 14, 13
CONFIG = {
    "model_type": "mesa_net",
    "hidden_size": WIDTH,
    "num_heads": HEADS,
    "head_dim": KEYS,
    "num_hidden_layers": 2,
    "intermediate_size": HIDDEN,
    "vocab_size": VOCABULARY,
    "norm_eps": 1e-6,
    "lambda_lower_bound": 0.25,
    "tie_word_embeddings": False,
    "bos_token_id": None,
    "eos_token_id": None,
}
Operator = Callable[..., Tensor]


def their_tensors() -> dict[str, Tensor]:
    """Random weights under the names and in the shapes of a MesaNet of two layers."""
    inner = HEADS * KEYS
    block = {
        "attn_norm.weight": (WIDTH,),
        **{f"attn.{name}_proj.weight": (inner, WIDTH) for name in "qkv"},
        **{f"attn.{name}_proj.weight": (HEADS, WIDTH) for name in "ab"},
        **{f"attn.{name}_proj.bias": (HEADS,) for name in "ab"},
        **{f"attn.{name}_conv1d.weight": (inner, 1, 4) for name in "qk"},
        "attn.lambda_params": (inner,),
        "attn.o_norm.weight": (KEYS,),
        "attn.o_proj.weight": (WIDTH, inner),
        "mlp_norm.weight": (WIDTH,),
        "mlp.gate_proj.weight": (HIDDEN, WIDTH),
        "mlp.up_proj.weight": (HIDDEN, WIDTH),
        "mlp.down_proj.weight": (WIDTH, HIDDEN),
    }
    shapes = {f"model.layers.{i}.{name}": shape for i in range(2) for name, shape in block.items()}
    shapes |= dict.fromkeys(("model.embeddings.weight", "lm_head.weight"), (VOCABULARY, WIDTH))
    shapes |= {"model.norm.weight": (WIDTH,)}
    random = torch.Generator().manual_seed(2)
    return {name: torch.randn(shape, generator=random) for name, shape in shapes.items()}


def write(folder: Path, tensors: dict[str, Tensor], **changes: object) -> Path:
    folder.mkdir(exist_ok=True)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(CONFIG | changes))
    return folder


def solved(q: Tensor, k: Tensor, v: Tensor, g: Tensor, ridge: Tensor, beta: Tensor) -> Tensor:
    """One linear system for every position and head."""
    gram, cross, outputs = 0.0, 0.0, []
    for t in range(q.shape[1]):
        kept, key = g[:, t, :, None, None].exp(), k[:, t] * beta[:, t, :, None]
        gram = kept * gram + key.unsqueeze(-1) * k[:, t].unsqueeze(-2)
        cross = kept * cross + key.unsqueeze(-1) * v[:, t].unsqueeze(-2)
        x = torch.linalg.solve(gram + torch.diag_embed(ridge), q[:, t])
        outputs.append((x.unsqueeze(-1) * cross).sum(-2))
    return torch.stack(outputs, dim=1)


def theirs(q: Tensor, k: Tensor, v: Tensor, g: Tensor, ridge: Tensor, beta: Tensor) -> Tensor:
    """The CPU reference of the package."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        exact = import_module("fla.ops.mesa_net.naive").naive_mesa_net_exact
    return exact(q, k, v, g, ridge, beta)[0]


def their_logits(w: dict[str, Tensor], tokens: Tensor, operator: Operator) -> Tensor:
    """Compute a MesaNet as its code describes it, from tensors by their names there."""

    def norm(x: Tensor, weight: Tensor) -> Tensor:
        return x * (x.square().mean(-1, keepdim=True) + 1e-6).rsqrt() * weight

    x = w["model.embeddings.weight"][tokens]
    for layer in range(2):
        p = {n.split(".", 3)[3]: t for n, t in w.items() if n.startswith(f"model.layers.{layer}.")}
        h = norm(x, p["attn_norm.weight"])
        q, k, v = (linear(h, p[f"attn.{name}_proj.weight"]) for name in "qkv")
        q, k = (
            silu(conv1d(pad(z.mT, (3, 0)), p[f"attn.{name}_conv1d.weight"], groups=z.shape[-1])).mT
            for z, name in ((q, "q"), (k, "k"))
        )
        q, k, v = (z.unflatten(-1, (HEADS, KEYS)) for z in (q, k, v))
        q, k = normalize(q, dim=-1), normalize(k, dim=-1)
        a, b = (linear(h, p[f"attn.{n}_proj.weight"], p[f"attn.{n}_proj.bias"]) for n in "ab")
        ridge = (softplus(p["attn.lambda_params"]) + 0.25).unflatten(0, (HEADS, KEYS))
        o = operator(q, k, v, logsigmoid(a), ridge, b.sigmoid()).to(x)
        x = x + linear(norm(o, p["attn.o_norm.weight"]).flatten(-2), p["attn.o_proj.weight"])
        h = norm(x, p["mlp_norm.weight"])
        gate, up = (linear(h, p[f"mlp.{name}_proj.weight"]) for name in ("gate", "up"))
        x = x + linear(silu(gate) * up, p["mlp.down_proj.weight"])
    return linear(norm(x, w["model.norm.weight"]), w["lm_head.weight"])


@pytest.mark.parametrize("operator", [solved, theirs])
def test_a_mesa_net_computes_the_same_here(operator: Operator, tmp_path: Path) -> None:
    if operator is theirs and (reason := why_skipped()):
        pytest.skip(reason)
    tensors = their_tensors()
    model = hf.from_mesa_net(write(tmp_path, tensors))
    tokens = torch.randint(VOCABULARY, (2, 9), generator=torch.Generator().manual_seed(0))
    # Condition numbers of up to about 10 in float32, logits of about 10.
    torch.testing.assert_close(
        model(tokens), their_logits(tensors, tokens, operator), rtol=1e-3, atol=1e-3
    )
    wrapped = hf.wrap(model)
    torch.testing.assert_close(wrapped(tokens).logits, model(tokens), rtol=0, atol=0)


def test_what_was_read_is_written_back_as_it_was(tmp_path: Path) -> None:
    tensors = their_tensors()
    hf.to_mesa_net(hf.from_mesa_net(write(tmp_path / "in", tensors)), tmp_path / "out")
    again = load_file(tmp_path / "out" / "model.safetensors")
    torch.testing.assert_close(again, tensors, rtol=0, atol=0)
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert {name: config[name] for name in CONFIG} == CONFIG


def test_tied_weights_and_norms_of_heads_keep_the_function(tmp_path: Path) -> None:
    config = LanguageModelConfig(
        vocabulary=VOCABULARY,
        width=8,
        num_heads=2,
        convolve_values=False,
        logit_cap=None,
        initial_std=0.4,
    )
    model = LanguageModel(config)
    with torch.no_grad():
        for mixer in model.mixers:
            mixer.head_norm.weight.uniform_(0.5, 2, generator=torch.Generator().manual_seed(0))
    again = hf.from_mesa_net(hf.to_mesa_net(model, tmp_path))
    assert again.config.tied
    tokens = torch.randint(VOCABULARY, (2, 9))
    torch.testing.assert_close(again(tokens), model(tokens), rtol=1e-4, atol=1e-4)


def test_their_package_loads_what_was_written(tmp_path: Path) -> None:
    if reason := why_skipped():
        pytest.skip(reason)
    hf.to_mesa_net(hf.from_mesa_net(write(tmp_path / "in", their_tensors())), tmp_path / "out")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        package = import_module("fla.models.mesa_net")
        model, info = package.MesaNetForCausalLM.from_pretrained(
            tmp_path / "out", output_loading_info=True
        )
    assert not any(info[f"{kind}_keys"] for kind in ("missing", "unexpected", "mismatched"))
    torch.testing.assert_close(dict(model.state_dict()), their_tensors(), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        ("model.layers.1.attn.lambda_params", None, "lambda_params: there is no such tensor"),
        (
            "model.layers.0.attn.g_proj.weight",
            (8, 10),
            "g_proj.weight: has no place in a model of ours",
        ),
        (
            "model.layers.1.attn.o_norm.weight",
            (8,),
            r"o_norm.weight has shape \(8,\): must be \(4,\)",
        ),
        ("model.layers.0.attn.q_conv1d.weight", (8, 4), r"\(8, 4\): must have 3 dimensions"),
        ("model.embeddings.weight", None, "model.embeddings.weight: there is no such tensor"),
    ],
)
def test_tensors_that_do_not_fit_are_named(
    name: str, shape: tuple[int, ...] | None, message: str, tmp_path: Path
) -> None:
    tensors = {other: x for other, x in their_tensors().items() if other != name}
    if shape is not None:
        tensors[name] = torch.zeros(shape)
    with pytest.raises(ConfigError, match=message):
        hf.from_mesa_net(write(tmp_path, tensors))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "gla"}, "model_type='gla': must be 'mesa_net'"),
        ({"norm_eps": 1e-5}, "norm_eps=1e-05: must be 1e-06"),
        ({"lambda_lower_bound": 0.1}, "lambda_lower_bound=0.1: must be 0.25"),
        ({"use_output_gate": True}, "use_output_gate=True: must be False"),
        ({"attn": {"layers": [1]}}, "must be None"),
    ],
)
def test_their_settings_that_do_not_fit_are_named(
    changes: dict, message: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=message):
        hf.from_mesa_net(write(tmp_path, their_tensors(), **changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"convolve_values": True}, "convolve_values=True: must be False in a MesaNet"),
        ({"logit_cap": 30.0}, "logit_cap=30.0: must be None in a MesaNet"),
        ({"mixers": ("mesanet2025", "mesa")}, "mixers: 'mesa': must be 'mesanet2025' in a MesaNet"),
    ],
)
def test_our_settings_that_do_not_fit_are_named(
    changes: dict, message: str, tmp_path: Path
) -> None:
    config = LanguageModelConfig(width=8, num_heads=2, convolve_values=False, logit_cap=None)
    with pytest.raises(ConfigError, match=f"^{message}"):
        hf.to_mesa_net(LanguageModel(replace(config, **changes)), tmp_path / "out")
    assert not (tmp_path / "out").exists()


CHANGED = {
    "vocabulary": 11, "width": 12, "mixers": ("mesanet2025",) * 3, "num_heads": 4, "head_dim": 6,
    "window": 3, "convolution": 3, "convolve_values": True,
    "head_norm": False, "unit_queries_keys": False, "key_shift": True, "feature_map": "dpfp1",
    "forget_cap": 10.0, "signed_decay": True, "positions": "sinusoidal", "scale_embeddings": True,
    "mlp": "gelu", "mlp_dim": 9, "norm": "layer", "tied": False, "logit_cap": 5.0,
    "initial_std": 0.3,
}  # fmt: skip


@pytest.mark.parametrize("name", [field.name for field in fields(LanguageModelConfig)][1:])
def test_every_setting_is_kept_or_refused(name: str, tmp_path: Path) -> None:
    plain = LanguageModelConfig(
        width=8, num_heads=2, convolve_values=False, logit_cap=None, initial_std=0.2
    )
    try:
        config = replace(plain, **{name: CHANGED[name]})
        model = LanguageModel(config, seed=1)
        hf.to_mesa_net(model, tmp_path)
    except ConfigError:
        return
    tokens = torch.arange(10).reshape(1, 10)
    # Lengths of queries and keys are those of the same numbers, and systems are solved to rounding.
    torch.testing.assert_close(hf.from_mesa_net(tmp_path)(tokens), model(tokens))


def test_a_folder_that_is_taken_is_left_alone(tmp_path: Path) -> None:
    model = hf.from_mesa_net(write(tmp_path, their_tensors()))
    with pytest.raises(RunError, match="exists already: must be a new or an empty folder"):
        hf.to_mesa_net(model, tmp_path)


def test_only_safetensors_are_read(tmp_path: Path) -> None:
    write(tmp_path, their_tensors())
    (tmp_path / "model.safetensors").rename(tmp_path / "pytorch_model.bin")
    with pytest.raises(ConfigError, match=r"has no file \*.safetensors; nothing else is read"):
        hf.from_mesa_net(tmp_path)
