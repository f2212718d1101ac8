"""Every operator compiles into one graph, with the values and gradients of the plain code."""

import subprocess
import sys

import pytest
from mesa_problems import MODES
from operator_rules import RULES

PROGRAM = """
import torch
import torch._dynamo.testing
from mesaopt import ops

torch.manual_seed(0)


def compile(function):
    return torch.compile(function, fullgraph=True, backend="aot_eager")


for name, gates in {rules}:
    print(name)
    q, k, v = torch.randn(3, 1, 10, 2, 4, dtype=torch.float64, requires_grad=True)
    kwargs = dict(beta=torch.rand(1, 10, 2), log_decay=-torch.rand(1, 10, 2))
    kwargs = {{gate: kwargs[gate].double() for gate in gates}}
    function = getattr(ops, name)
    ours, theirs = compile(function)(q, k, v, **kwargs), function(q, k, v, **kwargs)
    torch.testing.assert_close(ours, theirs)
    for result in (ours, theirs):
        result.output.square().sum().backward()
    step = compile(getattr(ops, name + "_step"))
    step(q[:, 0], k[:, 0], v[:, 0], ours.state, **{{n: x[:, 0] for n, x in kwargs.items()}})

counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
attend = torch.compile(ops.softmax_attention, fullgraph=True, backend=counter)
for length in (1, 10, 30, 64, 130):
    print("softmax_attention of any length", length)
    q, k, v = (torch.randn(2, length, 2, 4, requires_grad=True) for _ in range(3))
    ours, theirs = (f(q, k, v).output for f in (attend, ops.softmax_attention))
    torch.testing.assert_close(ours, theirs)
    for a, b in zip(*(torch.autograd.grad(x.sum(), (q, k, v)) for x in (ours, theirs))):
        torch.testing.assert_close(a, b)
# Of one position, of ten, and of any number.
assert counter.frame_count <= 3, counter.frame_count

q, k, v = (torch.randn(2, 20, 2, 4) for _ in range(3))
ridge, beta, gate = torch.rand(2, 4) + 0.25, torch.rand(2, 20, 2), -torch.rand(2, 20, 2)
inputs = [x.requires_grad_() for x in (q, k, v, ridge, beta, gate)]
upstream = torch.randn_like(v)
for size, mode in {modes}:
    print("mesa", size, mode)
    torch.compiler.reset()

    def function(q, k, v, ridge, beta, gate):
        gates = {{"log_decay": size * gate}} if size else {{}}
        return ops.mesa(q, k, v, ridge=ridge, beta=beta, ridge_mode=mode, chunk_size=8, **gates).output

    outputs = [f(*inputs) for f in (compile(function), function)]
    slopes = [torch.autograd.grad(x, inputs, upstream, allow_unused=True) for x in outputs]
    for found, wanted in ((outputs[:1], outputs[1:]), slopes):
        for a, b in zip(found, wanted):
            # Two solves in single precision, whose condition number is below 1e3.
            assert b is None or (a - b).norm() <= 1e-4 * b.norm()
"""


@pytest.mark.slow
def test_operators_compile_into_one_graph() -> None:
    # In one process of its own: torch.compile cannot follow this suite's checks of shapes.
    program = PROGRAM.format(rules=[(rule.name, rule.gates) for rule in RULES], modes=MODES)
    command = [sys.executable, "-W", "ignore", "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
