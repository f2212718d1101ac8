"""Queries, values and upstream gradients of any scale, also of very different scales in one chunk."""

import pytest
import torch
from operator_rules import MESA, RULES, SINGLE, Rule, draw, every, pick

TIME, CHUNK = 20, 8
FORGETS = ("log_decay", "beta")
OPERATORS = (
    *RULES,
    *MESA,
    *(
        Rule("mesa", gates, {"ridge": 0.5, "ridge_mode": mode, "solver": solver})
        for gates, mode in (((), "static"), (FORGETS, "static"), (FORGETS, "decayed"))
        for solver in ("cg", "recursive", "neumann", "chebyshev")
    ),
)
SCALES = {
    "1e-30": torch.full((TIME,), 1e-30),
    "1e25": torch.full((TIME,), 1e25),
    "in turns": torch.tensor([1.0, 1e-20] * (TIME // 2)),
    "first small": torch.tensor([1e-20] * 5 + [1.0] * (TIME - 5)),
    "last small": torch.tensor([1.0] * 5 + [1e-20] * (TIME - 5)),
}


def differentiate(rule: Rule, inputs: dict, upstream: torch.Tensor) -> dict:
    leaves = {name: x.clone().requires_grad_() for name, x in inputs.items()}
    extra = {"chunk_size": CHUNK} if rule.chunked else {}
    output = rule.run(**leaves, **extra).output
    slopes = torch.autograd.grad(output, list(leaves.values()), upstream)
    named = zip((f"d{name}" for name in leaves), slopes, strict=True)
    return {"output": output.detach()} | dict(named)


@every(OPERATORS)
@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("name", ["q", "v", "upstream"])
def test_every_position_is_right_at_its_own_scale(rule: Rule, name: str, scale: str) -> None:
    if rule.name == "softmax_attention" and name == "q":
        return  # not linear in q
    torch.manual_seed(0)
    inputs = pick(rule, draw(1, TIME, 2, 4, 3, SINGLE))
    if "log_decay" in inputs:  # keep the ridge that decays in single precision
        inputs["log_decay"] = inputs["log_decay"] / 10
    inputs["upstream"] = torch.randn_like(inputs["v"])
    inputs[name] = inputs[name] * SCALES[scale][:, None, None]
    upstream = inputs.pop("upstream")
    found = differentiate(rule, inputs, upstream)
    exact = {n: x.double() for n, x in inputs.items()}
    for part, wanted in differentiate(rule, exact, upstream.double()).items():
        # Terms of one position cancel, but not those of different scales.
        distance = (found[part].double() - wanted).flatten(2).norm(dim=-1)
        norm = wanted.flatten(2).norm(dim=-1)
        if wanted.dim() == 3:
            distance, norm = distance.norm(), norm.norm()
        assert (distance <= 1e-3 * norm + 1e-36).all(), part
