"""The examples run, in small."""

import ast
import runpy
from functools import partial
from pathlib import Path

import pytest
import torch

import mesaopt
from mesaopt.theory import context_statistics

EXAMPLES = Path(__file__).parent.parent / "examples"
SPARSE = EXAMPLES / "sparse_regression.py"


def test_sparse_regression(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    example = runpy.run_path(str(SPARSE))
    for name, few in (("diagnose", {"num_sequences": 256}), ("probe_layers", {"num_fit": 256})):
        monkeypatch.setattr(mesaopt, name, partial(getattr(mesaopt, name), **few), raising=False)
    settings = {"steps": 2, "batch_size": 8, "evaluation_sequences": 8, "device": "cpu"}
    example["main"](tmp_path / "run", **settings)
    printed = capsys.readouterr().out
    assert "blocks.2" in printed
    assert "no It does not learn in context" in printed  # after two steps
    assert "sparse: " in printed
    batch = example["SparseRegression"]().sample(64, seed=0, step=0, split="train")
    assert batch.tokens.shape == (64, 24, 9)


def test_sparse_regression_is_what_it_says() -> None:
    example = runpy.run_path(str(SPARSE))
    task = example["SparseRegression"]()
    batch = task.sample(64, seed=0, step=0, split="test")
    inputs, answers = task.regression(batch).inputs, batch.targets
    before = torch.nn.functional.pad(answers[:, :-1], (0, 0, 1, 0))
    gram, cross = context_statistics(before, inputs=inputs)
    w = torch.linalg.solve(gram[:, -1], cross[:, -1].mT)
    assert ((w.abs() > 1e-6).sum(1) == 2).all()
    predictions = example["sparse"](before, inputs, threshold=1e-3)
    assert (predictions - answers)[:, -1].square().mean() < 1e-3 * answers.square().mean()


def test_sparse_regression_is_short() -> None:
    text = SPARSE.read_text()
    tree, lines = ast.parse(text), set()
    left_out = (ast.Import, ast.ImportFrom)
    for node in tree.body:
        if not isinstance(node, left_out) and not _is_docstring(node):
            lines |= set(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    for node in ast.walk(tree):
        if _is_docstring(node):
            lines -= set(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    code = [n for n in lines if text.splitlines()[n - 1].strip()]
    assert len(code) <= 25
    assert "fmt:" not in text


def _is_docstring(node: ast.AST) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
