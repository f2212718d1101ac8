"""The examples run, in small."""

import runpy
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parent.parent / "examples"


def test_sparse_regression(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    example = runpy.run_path(str(EXAMPLES / "sparse_regression.py"))
    settings = {"steps": 2, "batch_size": 8, "evaluation_sequences": 8, "device": "cpu"}
    losses = example["main"](tmp_path, **settings)
    curve = losses["least squares"].curve
    # Two of eight entries are not zero, each of variance 1: half of 2 at first, nothing after 8 pairs.
    assert curve[0] == pytest.approx(1.0, abs=0.15)
    assert curve[-1] < 1e-3
    assert "least squares" in capsys.readouterr().out
    batch = example["SparseRegression"]().sample(64, seed=0, step=0, split="train")
    assert batch.tokens.shape == (64, 24, 9)
