import json
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from mesaopt import recipes
from mesaopt.config import RunConfig
from mesaopt.progress import Progress
from mesaopt.training import RunFolder, Trainer, train
from mesaopt.workers import Workers, part_size, training_workers

RECIPES = ("lsa-1", "mesa-1", "hybrid-mesa", "mesanet-1", "tf-7-nonlinear", "ar-gaussian")


@pytest.fixture(autouse=True)
def _threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def small(recipe: str) -> RunConfig:
    """A recipe on short sequences: batches of two parts and a half, two test batches, three steps."""
    config = recipes.get(recipe)
    settings = {"steps": 3, "batch_size": 150, "evaluate_every": 2, "evaluation_sequences": 300}
    return replace(
        config,
        task=replace(config.task, length=6),
        train=replace(config.train, **settings),
    )


def bits_of(folder: Path) -> dict[str, bytes]:
    """The bits of all weights, of the optimiser's moments, and of the metrics."""
    bits = {"metrics": (folder / "metrics.jsonl").read_bytes()}
    for path in sorted(folder.rglob("*.safetensors")):
        for name, tensor in load_file(path).items():
            where = f"{path.relative_to(folder)}/{name}"
            bits[where] = tensor.numpy().tobytes()
    return bits


@pytest.mark.parametrize("recipe", RECIPES)
def test_the_number_of_workers_changes_no_bit(recipe: str, tmp_path: Path) -> None:
    trained = {}
    for workers in (1, 2, 3, 16):
        torch.set_num_threads(workers)
        train(small(recipe), tmp_path / str(workers), device="cpu")
        assert torch.get_num_threads() == workers, "restored"
        trained[workers] = bits_of(tmp_path / str(workers))
    assert len(trained[1]) >= 5
    assert all(bits == trained[1] for bits in trained.values())


class Shared(nn.Module):
    """A model whose two weights get one and the same gradient tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Parameter(torch.zeros(6, 10))
        self.second = nn.Parameter(torch.ones(6, 10))

    def forward(self, tokens: Tensor) -> Tensor:
        return (self.first + self.second).expand(len(tokens), -1, -1)


@pytest.mark.parametrize("model", [*RECIPES, "shared"])
def test_the_gradients_are_those_of_the_whole_batch(model: str) -> None:
    config = small("lsa-1" if model == "shared" else model)
    config = replace(config, train=replace(config.train, gradient_clip=None))
    trainer = Trainer(config, torch.device("cpu"), part_size=64)
    if model == "shared":
        trainer.model = Shared()
        trainer.parameters = dict(trainer.model.named_parameters())
    batch = trainer.data.batch(0)
    loss = trainer.data.loss(batch, trainer.model(batch.tokens))
    whole = torch.autograd.grad(loss, list(trainer.parameters.values()))
    with training_workers(2) as workers:
        trainer.workers = workers
        trainer.step(0)
    for parameter, gradient in zip(trainer.parameters.values(), whole, strict=True):
        assert parameter.grad is not None
        # Sums of 150 sequences in another order, in float32.
        scale = gradient.abs().max().item()
        torch.testing.assert_close(parameter.grad, gradient, rtol=0, atol=1e-5 * scale)


def test_a_run_resumes_bit_for_bit_with_other_workers(tmp_path: Path) -> None:
    config = small("lsa-1")
    train(config, tmp_path / "whole", device="cpu")
    torch.set_num_threads(2)

    def stop(_: Progress) -> None:
        raise KeyboardInterrupt

    half = tmp_path / "half"
    folder = RunFolder.open(half, config, resume=False)
    assert folder.part_size == 64
    with pytest.raises(KeyboardInterrupt):
        train(config, half, device="cpu", resume=True, progress=stop)
    torch.set_num_threads(3)
    train(config, half, device="cpu", resume=True)
    assert bits_of(half) == bits_of(tmp_path / "whole")


def test_a_run_of_an_earlier_version_goes_on_with_whole_batches(tmp_path: Path) -> None:
    config = small("lsa-1")
    RunFolder.open(tmp_path / "old", config, resume=False)
    meta = tmp_path / "old" / "meta.json"
    facts = json.loads(meta.read_text())
    del facts["part_size"]
    meta.write_text(json.dumps(facts))
    train(config, tmp_path / "old", device="cpu", resume=True)
    train(config, tmp_path / "new", device="cpu")
    old, new = (
        [json.loads(line) for line in (tmp_path / n / "metrics.jsonl").read_text().splitlines()]
        for n in ("old", "new")
    )
    # The same training but for the order of sums.
    for before, now in zip(old, new, strict=True):
        assert before["test_loss"] == pytest.approx(now["test_loss"], rel=1e-5)
    assert bits_of(tmp_path / "old") != bits_of(tmp_path / "new")


@pytest.mark.parametrize("count", [1, 2, 5])
def test_results_are_in_the_order_of_the_items(count: int) -> None:
    with training_workers(count) as workers:
        assert list(workers.map(lambda x: x * x, range(20))) == [x * x for x in range(20)]
        threads = set(workers.map(lambda _: torch.get_num_threads(), range(20)))
        assert threads == {1}
        assert workers.later(lambda x, y: x + y, 2, 3)() == 5


@pytest.mark.parametrize("count", [1, 3])
def test_the_error_is_that_of_the_first_item_that_fails(count: int) -> None:
    def fail(x: int) -> int:
        if x >= 2:
            raise ValueError(f"item {x}")
        return x

    with training_workers(count) as workers, pytest.raises(ValueError, match="item 2"):
        list(workers.map(fail, range(10)))
    assert threading.active_count() < 50, "threads end with their pool"


def test_parts_grow_with_batches_of_thousands() -> None:
    assert [part_size(size) for size in (1, 64, 256, 2048, 2049, 10_000)] == [
        *[64] * 4,
        65,
        313,
    ]
    assert Workers().pool is None
