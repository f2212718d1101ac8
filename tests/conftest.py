"""What all tests share: one thread per worker, and a run small enough for a test."""

from dataclasses import replace

import hypothesis
import pytest
import torch

from mesaopt import recipes
from mesaopt.config import RunConfig

# Examples that are slow on a busy machine are not wrong.
hypothesis.settings.register_profile("tests", deadline=None, max_examples=30, derandomize=True)
hypothesis.settings.load_profile("tests")


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture
def short_config() -> RunConfig:
    """LSA-1 at a size that trains in a second: 12 steps with an evaluation every 4."""
    config = recipes.get("lsa-1")
    return replace(
        config,
        task=replace(config.task, length=8),
        train=replace(
            config.train, steps=12, batch_size=8, evaluate_every=4, evaluation_sequences=16
        ),
    )
