"""Packed sequences: one contract, kept by every operator."""

import pytest
import torch
from operator_rules import CLOSE, MESA, RULES, Rule, differentiate, draw, every, pick, window
from work import Work

from mesaopt.ops import mesa
from mesaopt.ops.packing import lay_out

OPERATORS = RULES + MESA


@every(OPERATORS)
@pytest.mark.parametrize(
    "lengths", [(1, 9, 4, 6), (5,), (3, 3), (2, 0, 5), (0, 3), (0, 0, 3, 0, 4)], ids=str
)
def test_packed_sequences_equal_separate_ones(rule: Rule, lengths: tuple[int, ...]) -> None:
    inputs, further = (pick(rule, draw(1, sum(lengths), 2, 5, 3)) for _ in range(2))
    extra = {"chunk_size": 4} if rule.chunked else {}
    offsets = torch.tensor([0, *lengths]).cumsum(0).int()
    leaves = {name: x.clone().requires_grad_() for name, x in inputs.items()}
    packed = rule.run(**leaves, cu_seqlens=offsets, **extra)
    continued = rule.run(**further, cu_seqlens=offsets, initial_state=packed.state, **extra)
    one_token = pick(rule, draw(len(lengths), 1, 2, 5, 3))
    token = {name: x[:, 0] for name, x in one_token.items()}
    stepped = rule.step(**token, state=continued.state).output
    upstream = torch.randn_like(packed.output)
    gradients = torch.autograd.grad(
        packed.output, list(leaves.values()), upstream, retain_graph=True
    )
    for i, (a, b) in enumerate(zip(offsets, offsets[1:], strict=False)):
        state = None
        if a < b:
            alone = rule.run(**window(inputs, a, b), **extra)
            torch.testing.assert_close(packed.output[:, a:b], alone.output, **CLOSE)
            again = rule.run(**window(further, a, b), initial_state=alone.state, **extra)
            torch.testing.assert_close(continued.output[:, a:b], again.output, **CLOSE)
            state = again.state
            _, *theirs = differentiate(rule.run, window(inputs, a, b), upstream[:, a:b])
            for x, y in zip(gradients, theirs, strict=True):
                torch.testing.assert_close(x[:, a:b], y, **CLOSE)
        one = {name: x[i : i + 1] for name, x in token.items()}
        step = rule.step(**one, state=state).output
        torch.testing.assert_close(stepped[i : i + 1], step, **CLOSE)


@every(OPERATORS)
@pytest.mark.parametrize("lengths", [(1, 9, 4, 6), (3, 3), (0, 5, 2)], ids=str)
def test_a_batch_continues_packed_sequences(rule: Rule, lengths: tuple[int, ...]) -> None:
    first = pick(rule, draw(1, sum(lengths), 2, 5, 3))
    further, last = (pick(rule, draw(len(lengths), 4, 2, 5, 3)) for _ in range(2))
    offsets = torch.tensor([0, *lengths]).cumsum(0)
    state = rule.run(**first, cu_seqlens=offsets).state
    continued = rule.run(**further, initial_state=state)
    again = rule.run(**last, initial_state=continued.state)
    for i, (a, b) in enumerate(zip(offsets, offsets[1:], strict=False)):
        state = rule.run(**window(first, a, b)).state if a < b else None
        alone = rule.run(**{name: x[i : i + 1] for name, x in further.items()}, initial_state=state)
        torch.testing.assert_close(continued.output[i : i + 1], alone.output, **CLOSE)
        alone = rule.run(
            **{name: x[i : i + 1] for name, x in last.items()}, initial_state=alone.state
        )
        torch.testing.assert_close(again.output[i : i + 1], alone.output, **CLOSE)


@every(OPERATORS)
def test_an_empty_sequence_passes_its_state_through(rule: Rule) -> None:
    first, second = (pick(rule, draw(1, n, 2, 5, 3)) for n in (6, 3))
    before = rule.run(**first, cu_seqlens=torch.tensor([0, 4, 6])).state
    after = rule.run(**second, cu_seqlens=torch.tensor([0, 0, 3]), initial_state=before).state
    token = {name: x[:, 0].expand(2, *x.shape[2:]) for name, x in second.items()}
    steps = [rule.step(**token, state=state).output[0] for state in (before, after)]
    torch.testing.assert_close(*steps, **CLOSE)


@every(OPERATORS)
@pytest.mark.parametrize(
    ("offsets", "message"),
    [
        ([0, 3], r"cu_seqlens is \[0, 3\]: must start at 0, never decrease and end at 5"),
        ([1, 5], "must start at 0, never decrease and end at 5, the time axis"),
        ([0, 4, 3, 5], "must start at 0, never decrease and end at 5, the time axis"),
        ([0] * 20, r"cu_seqlens is \[0, ..., 0\]: must start at 0, never decrease"),
        ([0.0, 5.0], "cu_seqlens has type torch.float32: must be an integer type"),
        ([False, True], "cu_seqlens has type torch.bool: must be an integer type"),
        ([[0, 5]], r"cu_seqlens has shape \(1, 2\): must be \(sequences \+ 1,\)"),
        ([0], r"cu_seqlens has shape \(1,\): must be \(sequences \+ 1,\)"),
    ],
)
def test_offsets_that_do_not_fit_are_refused(rule: Rule, offsets: list, message: str) -> None:
    inputs = pick(rule, draw(1, 5, 3, 4, 2))
    with pytest.raises(ValueError, match=message):
        rule.run(**inputs, cu_seqlens=torch.tensor(offsets))
    with pytest.raises(TypeError, match="^cu_seqlens is a list: must be a tensor of integers$"):
        rule.run(**inputs, cu_seqlens=offsets)


@every(OPERATORS)
def test_packing_needs_a_batch_of_one_and_a_state_per_sequence(rule: Rule) -> None:
    inputs = pick(rule, draw(2, 5, 3, 4, 2))
    with pytest.raises(ValueError, match="q has batch 2: must be 1 with cu_seqlens"):
        rule.run(**inputs, cu_seqlens=torch.tensor([0, 5]))
    inputs = {name: x[:1] for name, x in inputs.items()}
    state = rule.run(**inputs).state
    with pytest.raises(ValueError, match=r"initial_state.\w+ has shape \(1, .*must be \(2, "):
        rule.run(**inputs, cu_seqlens=torch.tensor([0, 2, 5]), initial_state=state)


UNEQUAL = pytest.mark.parametrize(
    "lengths",
    [[256] + [4] * 192, [4] * 192 + [256], [512] + [1] * 512, [0] * 300 + [1024]],
    ids=len,
)


@every(OPERATORS)
@UNEQUAL
def test_cost_follows_tokens(rule: Rule, lengths: list[int]) -> None:
    inputs = pick(rule, draw(1, 1024, 1, 8, 8))
    if "log_decay" in inputs:
        inputs["log_decay"] = inputs["log_decay"] / 100
    counted = []
    for packed in ([1024], lengths):
        offsets = torch.tensor([0, *packed]).cumsum(0)
        with Work() as work:
            rule.run(**inputs, cu_seqlens=offsets)
        counted.append(work)
    one, many = counted
    # Chunks filled up to twice the tokens; a state of 64 numbers per sequence and per chunk.
    assert many.largest <= 2 * one.largest
    assert many.total <= 6 * one.total


@every(tuple(rule for rule in OPERATORS if not rule.chunked))
@UNEQUAL
def test_the_cost_of_going_on_follows_all_pairs(rule: Rule, lengths: list[int]) -> None:
    first, further, tokens = (
        pick(rule, draw(*shape, 1, 8, 8)) for shape in ((1, 1024), (1, 1024), (len(lengths), 1))
    )
    offsets = torch.tensor([0, *lengths]).cumsum(0)
    with Work() as work:
        state = rule.run(**first, cu_seqlens=offsets).state
        state = rule.run(**further, cu_seqlens=offsets, initial_state=state).state
        state = rule.run(**tokens, initial_state=state).state
        rule.step(**{name: x[:, 0] for name, x in tokens.items()}, state=state)
    pairs = 2 * sum(lengths) + 2 * len(lengths)
    # Keys of width 8, and the mask [time, past + time] of the longest sequence.
    assert work.largest <= max(8 * pairs, 2 * max(lengths) ** 2)


def test_a_chunk_knows_its_sequence_and_position() -> None:
    q = torch.zeros(1, 12, 2, 3)
    layout = lay_out(q, 4, torch.tensor([0, 3, 3, 12]))
    assert [layout.locate(0, chunk) for chunk in range(4)] == [(0, 0), (2, 0), (2, 4), (2, 8)]
    # The only system with a solution other than 0, of numbers whose products are all rounded.
    q[0, 8, 1] = torch.tensor([0.3, 0.7, 1.1])
    k, v = torch.randn(2, 1, 12, 2, 3, generator=torch.Generator().manual_seed(0))
    info = mesa(
        q, k, v, ridge=1.0, chunk_size=4, cu_seqlens=torch.tensor([0, 3, 3, 12]),
    ).info  # fmt: skip
    assert info.residual.shape == (1, 2, 4)
    assert info.worst_residual > 0
    assert info.worst_at == (2, 1, 4)
