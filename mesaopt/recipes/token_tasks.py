"""Tasks on tokens by name, with their published settings."""

from dataclasses import replace

from mesaopt.config import (
    ContinuousMQARConfig,
    CopyingConfig,
    MADConfig,
    MQARConfig,
    ParityConfig,
    RegBenchConfig,
    TaskConfig,
    TextConfig,
)

_MQAR = MQARConfig()
_BASED = MQARConfig(
    fill="random",
    train_also=((128, 8, 20_000), (256, 16, 20_000), (256, 32, 20_000), (256, 64, 20_000)),
    test_on=((64, 4), (64, 8), (64, 16), (128, 32), (256, 64), (512, 128), (1024, 256)),
)

TOKEN_TASKS: dict[str, TaskConfig] = {
    "text-stdlib": TextConfig(),
    "mqar-64-4": _MQAR,
    "mqar-128-8": replace(_MQAR, length=128, pairs=8),
    "mqar-256-16": replace(_MQAR, length=256, pairs=16),
    "mqar-based": _BASED,
    "mqar-overwriting": replace(
        _BASED,
        updates=4,
        train_also=((128, 9, 20_000), (256, 16, 20_000), (256, 25, 20_000), (256, 36, 20_000)),
        test_on=((64, 4), (64, 9), (128, 16), (256, 36), (512, 64), (1024, 144), (2048, 256)),
    ),
    "mqar-continuous": ContinuousMQARConfig(
        pairs=4,
        examples=100_000,
        train_also=((8, 20_000), (16, 20_000), (32, 20_000), (64, 20_000)),
        test_on=(4, 8, 16, 32, 64, 128, 256),
    ),
    "mad-compression": MADConfig(task="compression", length=32),
    "mad-in-context-recall": MADConfig(),
    "mad-fuzzy-recall": MADConfig(task="fuzzy_recall"),
    "mad-noisy-recall": MADConfig(
        task="noisy_recall", vocabulary=32, noise_vocabulary=16, noise_fraction=0.2
    ),
    "mad-selective-copying": MADConfig(task="selective_copying", length=256),
    "mad-memorization": MADConfig(task="memorization", vocabulary=256, length=32, examples=256),
    "regbench": RegBenchConfig(),
    "regbench-small": RegBenchConfig(length=256, examples=2500),
    "parity": ParityConfig(),
    "copying": CopyingConfig(context=220),
}
"""As published; `regbench-small` is ours, cut to what a CPU trains on in minutes."""
