import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from mesaopt.errors import ConfigError
from mesaopt.layers import MergedLinearSelfAttention

DTYPES = [torch.complex128, torch.float64]
sizes = st.tuples(st.integers(1, 3), st.integers(1, 20), st.integers(1, 6), st.integers(1, 5))


@torch.no_grad()
def definition(tokens: Tensor, key_query: Tensor, output_value: Tensor) -> Tensor:
    """W_PV E_t E_t^* W_KQ e_t / (t - 1), token by token and sequence by sequence."""
    outputs = torch.zeros(*tokens.shape[:2], output_value.shape[0], dtype=tokens.dtype)
    for out, sequence in zip(outputs, tokens, strict=True):
        for t in range(2, len(sequence) + 1):
            seen = sequence[:t].T  # [width, t]
            query = key_query @ sequence[t - 1]
            out[t - 1] = output_value @ seen @ seen.conj().T @ query / (t - 1)
    return outputs


def merged_layer(
    width: int, output_width: int, dtype: torch.dtype, **how
) -> MergedLinearSelfAttention:
    torch.manual_seed(0)
    return MergedLinearSelfAttention(width, output_width, dtype=dtype, **how)


@given(size=sizes, chunk_size=st.integers(1, 25), dtype=st.sampled_from(DTYPES))
def test_every_chunk_size_equals_the_definition(
    size: tuple[int, ...], chunk_size: int, dtype: torch.dtype
) -> None:
    batch, length, width, output_width = size
    layer = merged_layer(width, output_width, dtype, chunk_size=chunk_size)
    tokens = torch.randn(batch, length, width, dtype=dtype)
    expected = definition(tokens, layer.key_query, layer.output_value)
    # Sums of at most 20 * 6 * 6 products of normals: some hundred roundings of 1.1e-16, on numbers of
    # order 10.
    torch.testing.assert_close(layer(tokens), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("chunk_size", [1, 2, 16])
def test_gradients(chunk_size: int, dtype: torch.dtype) -> None:
    layer = merged_layer(3, 2, dtype, chunk_size=chunk_size)
    tokens = torch.randn(2, 5, 3, dtype=dtype, requires_grad=True)

    def outputs(x: Tensor, key_query: Tensor, output_value: Tensor) -> Tensor:
        weights = {"key_query": key_query, "output_value": output_value}
        return torch.func.functional_call(layer, weights, x)

    weights = [p.detach().clone().requires_grad_() for p in layer.parameters()]
    assert torch.autograd.gradcheck(outputs, [tokens, *weights])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("length", [1, 4])
def test_without_a_pair_the_output_is_zero_and_nothing_is_nan(
    length: int, dtype: torch.dtype
) -> None:
    layer, tokens = (
        merged_layer(3, 2, dtype),
        torch.randn(2, length, 3, dtype=dtype, requires_grad=True),
    )
    out = layer(tokens)
    assert (out[:, 0] == 0).all()
    assert (out[:, 1:] != 0).all()
    out.abs().square().sum().backward()
    for x in (tokens, *layer.parameters()):
        assert torch.isfinite(torch.view_as_real(x.grad) if x.is_complex() else x.grad).all()


def test_it_is_causal() -> None:
    layer, tokens = (
        merged_layer(4, 3, torch.complex128),
        torch.randn(2, 9, 4, dtype=torch.complex128),
    )
    changed = tokens.clone()
    changed[:, 5:] += 1
    before, after = layer(tokens), layer(changed)
    assert torch.equal(before[:, :5], after[:, :5])
    assert (before[:, 5] != after[:, 5]).any(), "the newest token belongs to the context"


def test_a_phase_of_all_tokens_turns_the_output_with_it() -> None:
    # Two tokens enter as they are and one as its conjugate, which only a true conjugate gets right.
    layer, tokens = (
        merged_layer(4, 3, torch.complex128),
        torch.randn(2, 9, 4, dtype=torch.complex128),
    )
    phase = torch.exp(torch.tensor(0.7j, dtype=torch.complex128))
    torch.testing.assert_close(layer(phase * tokens), phase * layer(tokens), rtol=1e-12, atol=1e-12)


def test_only_the_entries_chosen_are_trained_under_any_optimiser_and_in_a_copy() -> None:
    chosen = {
        "trained_key_query": torch.rand(4, 4) > 0.5,
        "trained_output_value": torch.rand(3, 4) > 0.5,
    }
    free = merged_layer(4, 3, torch.complex64)
    layer = copy.deepcopy(merged_layer(4, 3, torch.complex64, **chosen))
    tokens = torch.randn(5, 9, 4, dtype=torch.complex64)
    assert torch.equal(layer(tokens), free(tokens)), "values are those of all weights"
    for module in (free, layer):
        module(tokens).abs().square().sum().backward()
    initial = {name: p.detach().clone() for name, p in layer.named_parameters()}
    optimizer = torch.optim.AdamW(layer.parameters(), weight_decay=0.0)
    optimizer.step()
    for name, weight in layer.named_parameters():
        trained = chosen[f"trained_{name}"]
        assert torch.equal(weight.grad[trained], free.get_parameter(name).grad[trained])
        assert (weight.grad[~trained] == 0).all()
        assert torch.equal(weight[~trained], initial[name][~trained])
        assert (weight[trained] != initial[name][trained]).all()
    assert set(layer.state_dict()) == {"key_query", "output_value"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"width": 0}, "width=0: must be 1 or greater"),
        ({"output_width": 0}, "output_width=0: must be 1 or greater"),
        ({"chunk_size": 0}, "chunk_size=0: must be 1 or greater"),
        ({"dtype": torch.int64}, "dtype=torch.int64: must be a floating-point or complex type"),
        ({"dtype": "complex64"}, "dtype=complex64: must be a floating-point or complex type"),
        ({"width": 4.0}, "width=4.0: must be a whole number"),
        ({"output_width": True}, "output_width=True: must be a whole number"),
        ({"chunk_size": 2.5}, "chunk_size=2.5: must be a whole number"),
        (
            {"trained_key_query": torch.ones(4, 4)},
            r"trained_key_query=torch.float32 \(4, 4\): must be torch.bool \(4, 4\)",
        ),
        (
            {"trained_output_value": torch.ones(4, 4) > 0},
            r"trained_output_value=torch.bool \(4, 4\): must be torch.bool \(3, 4\)",
        ),
        ({"trained_key_query": True}, r"trained_key_query=True: must be torch.bool \(4, 4\)"),
    ],
)
@pytest.mark.usefixtures("_unchecked")
def test_settings_out_of_range_are_refused(change: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        MergedLinearSelfAttention(**({"width": 4, "output_width": 3} | change))


def test_tokens_that_do_not_fit_are_refused() -> None:
    layer = merged_layer(4, 3, torch.complex64)
    with pytest.raises(
        ValueError, match=r"tokens has shape \(2, 5, 3\): must be \[batch, time, 4\]"
    ):
        layer(torch.zeros(2, 5, 3, dtype=torch.complex64))
    with pytest.raises(ValueError, match="tokens has type torch.float32: must be torch.complex64"):
        layer(torch.zeros(2, 5, 4))


@pytest.mark.parametrize("dtype", [torch.float32, torch.complex64], ids=str)
def test_autocast_leaves_a_layer_usable(dtype: torch.dtype) -> None:
    layer, tokens = merged_layer(4, 3, dtype), torch.randn(2, 5, 4, dtype=dtype)
    with torch.autocast("cpu", torch.bfloat16):
        found = layer(tokens)
    # bfloat16 has eight bits; a few products follow one another.
    torch.testing.assert_close(found.to(dtype), layer(tokens), rtol=0.05, atol=0.05)
