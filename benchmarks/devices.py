"""Say what a training step costs as processes grow: what each sends, how long it computes and waits.

    python benchmarks/devices.py
    torchrun --nproc-per-node 2 benchmarks/devices.py

The first prints the model of docs/how-to/several-devices.md, for three language models on the GPUs that are
described below. The second measures, on this machine: bytes that steps of `lm-mesanet` send over the
loopback interface, beside the bytes of the model, and the time of a step.
"""

import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode

from mesaopt import recipes
from mesaopt.config import LanguageModelConfig, TextConfig
from mesaopt.models import LanguageModel
from mesaopt.training import Devices, is_launched

LENGTH = 2048
BATCHES = {"0.5 M": 2**19, "4 M": 2**22}
"""Tokens in a batch: 256 and 2048 sequences. No GPU has less than a sequence."""
BYTES = 4
"""Of a number that is sent: weights and gradients are float32."""
TENTH = 0.1


@dataclass(frozen=True)
class Machine:
    """GPUs in nodes. These numbers are assumed, not measured: half to four fifths of what H100s promise."""

    flops: float = 989e12
    """Products and sums a second in bfloat16, of which a model uses a share."""
    node: int = 8
    """GPUs in a node."""
    inside: float = 300e9
    """Bytes a second that a GPU sends inside of its node (450e9 promised)."""
    outside: float = 40e9
    """Bytes a second that a GPU sends to other nodes (50e9 promised)."""
    latency: float = 30e-6
    """Seconds of a collective operation besides what it sends."""


@dataclass(frozen=True)
class Model:
    """A language model, and the share of a GPU's speed that it reaches (assumed)."""

    name: str
    config: LanguageModelConfig
    used: float

    @property
    def parameters(self) -> int:
        """Number of weights."""
        with torch.device("meta"):
            return sum(p.numel() for p in LanguageModel(self.config).parameters())

    def operations(self) -> float:
        """Count the operations of a training step for one token: those of a block and of the head."""
        one, two = (self._counted(depth) for depth in (1, 2))
        return (one + (self.config.depth - 1) * (two - one)) / LENGTH

    def _counted(self, depth: int) -> int:
        mixers = self.config.mixers[:1] * depth
        model = LanguageModel(replace(self.config, mixers=mixers))
        counter = FlopCounterMode(display=False)
        with counter:
            model(torch.zeros(1, LENGTH, dtype=torch.int64)).sum().backward()
        return counter.get_total_flops()


def sent(parameters: int, gpus: int, *, shard: bool, parts: int = 1) -> float:
    """Bytes that a GPU sends in a step, by rings.

    Data parallel adds up the gradients: 2 (n - 1) / n numbers for each weight. FSDP gathers the weights for
    the forward pass of every part, and again for the backward pass, and adds up the gradients of its share.
    """
    times = 2 * parts + 1 if shard else 2
    return times * (gpus - 1) / gpus * parameters * BYTES


def waits(model: Model, gpus: int, machine: Machine, *, shard: bool) -> float:
    """Seconds of a step that a GPU sends, if nothing is computed meanwhile."""
    speed = machine.inside if gpus <= machine.node else machine.outside
    collectives = (3 if shard else 1) * (model.config.depth + 1)
    size = sent(model.parameters, gpus, shard=shard)
    return size / speed + collectives * machine.latency * (gpus > 1)


def reaches_a_tenth(
    model: Model, operations: float, batch: int, machine: Machine, *, shard: bool
) -> str:
    """Return the smallest power of two of GPUs that wait a tenth as long as they compute."""
    gpus = 2
    while gpus <= batch // LENGTH:
        computes = operations * batch / gpus / (machine.flops * model.used)
        if waits(model, gpus, machine, shard=shard) >= TENTH * computes:
            return str(gpus)
        gpus *= 2
    return f"over {batch // LENGTH}"


MODELS = (
    Model("1 M", recipes.get("lm-mesanet").model, 0.05),  # type: ignore[arg-type]
    Model(
        "100 M",
        LanguageModelConfig(
            vocabulary=32_000, width=768, mixers=("mesanet2025",) * 12, num_heads=6, head_dim=128
        ),
        0.3,
    ),
    Model(
        "1 B",
        LanguageModelConfig(
            vocabulary=32_000, width=1536, mixers=("mesanet2025",) * 32, num_heads=12, head_dim=128
        ),
        0.4,
    ),
)


def print_model(machine: Machine) -> None:
    """Print the tables of the docs, in Markdown."""
    sizes = [
        [
            "model",
            "parameters",
            "way",
            "MB sent by one of 2",
            "of 8",
            "of 64",
            "GB held by one of 8",
        ]
    ]
    times = [["model", "FLOP a token and parameter", "way", "ms computed", "ms sent"]]
    times[0] += [f"a tenth at, {name}" for name in BATCHES]
    for model in MODELS:
        number, operations = model.parameters, model.operations()
        computes = operations * BATCHES["0.5 M"] / 8 / (machine.flops * model.used)
        for shard, way in ((False, "data parallel"), (True, "FSDP")):
            held = 4 * BYTES * number / (8 if shard else 1)  # weight, gradient, two moments
            cells = [f"{sent(number, n, shard=shard) / 1e6:,.0f}" for n in (2, 8, 64)]
            cells.append(f"{held / 1e9:.2g}")
            sizes.append([model.name, f"{number / 1e6:,.1f} M", way, *cells])
            cells = [f"{1e3 * t:,.1f}" for t in (computes, waits(model, 8, machine, shard=shard))]
            for batch in BATCHES.values():
                cells.append(reaches_a_tenth(model, operations, batch, machine, shard=shard))
            times.append([model.name, f"{operations / number:.1f}", way, *cells])
    for table in (sizes, times):
        rows = [table[0], ["---"] * len(table[0]), *table[1:]]
        print("\n".join(f"| {' | '.join(row)} |" for row in rows), end="\n\n")


def bytes_sent_here() -> int:
    """Bytes that this machine has sent to itself since it began."""
    lines = Path("/proc/net/dev").read_text().splitlines()
    (loopback,) = (
        line.split(":")[1].split() for line in lines if line.split(":")[0].strip() == "lo"
    )
    return int(loopback[8])


def print_measured(steps: int = 10) -> None:
    """Train a few steps with the processes of torchrun, and print what they send and take."""
    from mesaopt.training.shared import ProcessGroup, SharedTrainer

    config = recipes.get("lm-mesanet")
    assert isinstance(config.task, TextConfig)
    config = replace(config, task=replace(config.task, length=32))
    config = replace(config, train=replace(config.train, batch_size=8))
    for shard in (False, True):
        with ProcessGroup.join(torch.device("cpu"), Devices(shard=shard)) as group:
            trainer = SharedTrainer(config, group)
            for step in range(2):
                trainer.step(step)
            before, started = group.first(bytes_sent_here), time.perf_counter()
            for step in range(steps):
                trainer.step(step)
            seconds = (time.perf_counter() - started) / steps
            found = (group.first(bytes_sent_here) - before) / steps / group.size
            number = sum(p.numel() for p in trainer.model.parameters())
            wanted = sent(number, group.size, shard=shard)
            if group.rank == 0:
                way = "FSDP" if shard else "data parallel"
                print(f"{way}, {group.size} processes, {number:,} parameters: each sends", end=" ")
                print(f"{found / 1e6:.2f} MB a step, model {wanted / 1e6:.2f}; {seconds:.2f} s")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        raise SystemExit(__doc__)
    print_measured() if is_launched() else print_model(Machine())
