"""Compiled code against plain code over many lengths, with the graphs counted.

For processes of their own: torch.compile cannot follow this suite's checks of shapes.
"""

import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch._dynamo.testing
from torch import Tensor

# Part of a chunk, then several chunks, the last one filled in part and in full.
LENGTHS = (40, 200, 128)
# For one chunk of any length, and for any number of chunks.
MAX_GRAPHS = 2


def run_alone(code: str) -> None:
    """Run code in a process of its own, which finds the modules beside this one."""
    here = Path(__file__).parent
    paths = [str(here / folder) for folder in (".", "layers", "ops")]
    command = [sys.executable, "-W", "ignore", "-c", f"import sys; sys.path[:0] = {paths}\n{code}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


class Compiled:
    """A function that compiles into one graph, and says how many graphs it took so far."""

    def __init__(self, function: Callable[..., Any]):
        torch.compiler.reset()
        self._counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
        self._run = torch.compile(function, fullgraph=True, backend=self._counter)

    def __call__(self, *args: Any) -> Any:
        return self._run(*args)

    @property
    def graphs(self) -> int:
        return self._counter.frame_count


def check_lengths(
    function: Callable[..., Tensor],
    draw: Callable[[int], Sequence[Tensor]],
    assert_close: Callable[[Tensor, Tensor], None],
    parameters: Sequence[Tensor] = (),
    lengths: Sequence[int] = LENGTHS,
) -> None:
    """Compare values and gradients at every length, named dynamic, and count the graphs."""
    compiled = Compiled(function)
    for length in lengths:
        inputs = [x.requires_grad_() for x in draw(length)]
        for x in inputs:
            torch._dynamo.mark_dynamic(x, 1)
        found, wanted = compiled(*inputs), function(*inputs)
        assert_close(found, wanted)
        learnt = [*inputs, *parameters]
        upstream = torch.randn_like(wanted)
        ours, theirs = (torch.autograd.grad(y, learnt, upstream) for y in (found, wanted))
        for slope, right in zip(ours, theirs, strict=True):
            assert_close(slope, right)
    assert compiled.graphs <= MAX_GRAPHS, compiled.graphs
