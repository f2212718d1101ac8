"""Softmax attention whose queries share keys and values: what it would be with copies of them."""

import pytest
import torch
from operator_rules import CLOSE, draw

from mesaopt.ops import softmax_attention, softmax_attention_step


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("lengths", [None, (3, 0, 6)], ids=str)
def test_queries_share_keys_and_values(groups: int, lengths: tuple[int, ...] | None) -> None:
    drawn = draw(1 if lengths else 2, 9, 4, 5, 3)
    q, k, v = drawn["q"], drawn["k"][:, :, :groups], drawn["v"][:, :, :groups]
    leaves = [x.clone().requires_grad_() for x in (q, k, v)]
    offsets = None if lengths is None else torch.tensor([0, *lengths]).cumsum(0)

    def run(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> list[torch.Tensor]:
        first = softmax_attention(q, k, v, cu_seqlens=offsets)
        assert first.state.keys.shape[2] == k.shape[2]
        then = softmax_attention(q, k, v, cu_seqlens=offsets, initial_state=first.state)
        sequences = len(q) if lengths is None else len(lengths)
        token = [x[:1, 0].expand(sequences, -1, -1) for x in (q, k, v)]
        last = softmax_attention_step(*token, then.state)
        return [first.output, then.output, last.output]

    copies = [leaves[0], *(x.repeat_interleave(4 // groups, dim=2) for x in leaves[1:])]
    found, wanted = run(*leaves), run(*copies)
    for x, y in zip(found, wanted, strict=True):
        torch.testing.assert_close(x, y, **CLOSE)
        upstream = torch.randn_like(x)
        slopes = (torch.autograd.grad(z, leaves, upstream, retain_graph=True) for z in (x, y))
        for a, b in zip(*slopes, strict=True):
            torch.testing.assert_close(a, b, **CLOSE)


def test_heads_that_do_not_divide_are_refused() -> None:
    drawn = draw(1, 2, 4, 5, 3)
    q, k, v = drawn["q"], drawn["k"][:, :, :3], drawn["v"][:, :, :3]
    wanted = r"\(1, 2, 4, 5\), as q, or with a divisor of its 4 heads"
    with pytest.raises(ValueError, match=rf"k has shape \(1, 2, 3, 5\): must be {wanted}"):
        softmax_attention(q, k, v)
    with pytest.raises(ValueError, match="k has shape .*: must be .*with a divisor of its 4 heads"):
        softmax_attention_step(q[:, 0], k[:, 0], v[:, 0])
    with pytest.raises(ValueError, match=r"v has shape \(1, 2, 3, 3\): must be \(1, 2, 2, value\)"):
        softmax_attention(q, k[:, :, :2], v)
