"""A NaN or an infinity at one position, as docs/family.md describes it."""

import pytest
import torch
from operator_rules import CLOSE, MESA, RULES, Rule, draw, every, pick, window

from mesaopt import ops

BAD, CHUNK = 13, 8
FIRST = BAD // CHUNK * CHUNK  # position of the chunk with the bad one
OPERATORS = (
    *RULES,
    *MESA,
    *(
        Rule("mesa", ("log_decay", "beta"), {"ridge": 0.5, "ridge_mode": mode, "solver": solver})
        for mode in ("static", "decayed")
        for solver in ("cg", "recursive", "neumann", "chebyshev")
    ),
)


def run(rule: Rule, **inputs: torch.Tensor) -> torch.Tensor:
    extra = {"chunk_size": CHUNK} if rule.chunked else {}
    extra |= {"on_failure": "ignore"} if rule.name == "mesa" else {}
    return rule.run(**inputs, **extra).output


def damaged(rule: Rule, name: str, number: float) -> tuple[dict, dict]:
    inputs = pick(rule, draw(1, 3 * CHUNK, 2, 4, 3))
    if "log_decay" in inputs:  # chunks of the decayed ridge then stay as long as asked for
        inputs["log_decay"] = inputs["log_decay"] / 100
    bad = inputs[name].clone()
    bad[0, BAD] = number
    return inputs, inputs | {name: bad}


def refuses(rule: Rule, name: str) -> bool:
    return rule.name == "longhorn" and name == "k"


@every(OPERATORS)
@pytest.mark.parametrize("number", [torch.nan, torch.inf])
@pytest.mark.parametrize("name", ["q", "k", "v"])
def test_what_one_position_spoils(rule: Rule, name: str, number: float) -> None:
    if refuses(rule, name):
        return
    inputs, bad = damaged(rule, name, number)
    right, found = run(rule, **inputs), run(rule, **bad)
    same = torch.isclose(found, right, **CLOSE).all(-1)[0]  # [T,H]
    before = same[:FIRST] if rule.chunked else same[:0]
    if name == "q":
        before = torch.cat([same[:BAD], same[BAD + 1 :]])
    assert before.all()
    # Where it matters, what is not right is seen to be wrong.
    earlier = found[0, :BAD]
    assert (same[:BAD] | ~earlier.isfinite().all(-1)).all()
    assert not found[0, BAD].isfinite().all()


@every(OPERATORS)
@pytest.mark.parametrize("number", [torch.nan, torch.inf])
def test_what_one_upstream_gradient_spoils(rule: Rule, number: float) -> None:
    if rule.name == "softmax_attention":
        return
    inputs, _ = damaged(rule, "q", number)
    leaves = {name: x.clone().requires_grad_() for name, x in inputs.items()}
    output = run(rule, **leaves)
    upstream = torch.ones_like(output)
    right = torch.autograd.grad(output, list(leaves.values()), upstream, retain_graph=True)
    upstream[0, BAD] = number
    found = torch.autograd.grad(output, list(leaves.values()), upstream)
    for name, mine, wanted in zip(leaves, found, right, strict=True):
        mine, wanted = (x[0].flatten(1) for x in (mine, wanted))  # [T,N]
        same = torch.isclose(mine, wanted, **CLOSE)
        later = same[FIRST + CHUNK :]
        assert (torch.cat([same[:BAD], same[BAD + 1 :]]) if name == "q" else later).all(), name
        # What is not right is seen to be wrong.
        assert (same | ~mine.isfinite()).all(), name


@every(OPERATORS)
@pytest.mark.parametrize("name", ["k", "v"])
def test_packed_sequences_do_not_spoil_one_another(rule: Rule, name: str) -> None:
    if refuses(rule, name):
        return
    inputs, bad = damaged(rule, name, torch.nan)
    offsets = torch.tensor([0, BAD, BAD + 2, 3 * CHUNK])
    right, found = (run(rule, **x, cu_seqlens=offsets) for x in (inputs, bad))
    for part in (slice(BAD), slice(BAD + 2, None)):
        torch.testing.assert_close(found[:, part], right[:, part], **CLOSE)


@pytest.mark.parametrize("number", [torch.nan, torch.inf, -torch.inf])
def test_longhorn_names_the_keys_it_was_given(number: float) -> None:
    longhorn = Rule("longhorn")
    _, bad = damaged(longhorn, "k", number)
    message = r"k has 8 of 192 values that are not finite: must have none"
    with pytest.raises(ValueError, match=message):
        ops.longhorn(**bad)
    one = {name: x[:, 0] for name, x in window(bad, BAD, BAD + 1).items()}
    with pytest.raises(ValueError, match=r"k has 8 of 8 values that are not finite"):
        ops.longhorn_step(**one)


@pytest.mark.parametrize(("dtype", "scale"), [(torch.float32, 1e20), (torch.float64, 1e160)])
def test_longhorn_refuses_keys_whose_squares_overflow(dtype: torch.dtype, scale: float) -> None:
    x = torch.full((1, 2, 3, 4), scale, dtype=dtype)
    x[0, 0, 1] = 1.0
    with pytest.raises(
        ValueError, match=rf"^k has 5 of 6 keys whose squared norms overflow {dtype}"
    ):
        ops.longhorn(x, x, x)
    with pytest.raises(
        ValueError, match=rf"^k has 2 of 3 keys whose squared norms overflow {dtype}"
    ):
        ops.longhorn_step(x[:, 0], x[:, 0], x[:, 0])
