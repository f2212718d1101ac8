from collections.abc import Callable

import pytest
import torch

from mesaopt import training, zoo
from mesaopt.analysis import Evaluation, InContextLoss, InContextLosses, diagnose, in_context_loss
from mesaopt.config import ARProcessConfig, LinearSystemConfig
from mesaopt.tasks import ARProcess, Batch, ContinuousMQAR, LinearSystem

TASK = LinearSystem(LinearSystemConfig(length=20))


def test_predictors_see_the_same_sequences() -> None:
    seen: dict[str, list[torch.Tensor]] = {"a": [], "b": []}

    def spy(name: str):
        def predict(batch):
            seen[name].append(batch.states)
            return torch.zeros_like(batch.targets)

        return predict

    losses = in_context_loss(
        {name: spy(name) for name in seen}, TASK, Evaluation(num_sequences=300)
    )
    assert len(losses["a"].losses) == 512, "rounded up to whole batches"
    assert torch.equal(torch.cat(seen["a"]), torch.cat(seen["b"]))
    assert torch.equal(losses["a"].losses, losses["b"].losses)
    in_context_loss({"a": spy("a")}, TASK, Evaluation(num_sequences=300, split="validation"))
    assert not torch.equal(seen["a"][0], seen["a"][2])


def test_settings_of_a_test_have_equally_many_sequences() -> None:
    task = ContinuousMQAR(dim=4, pairs=3, codes=16, test_on=(1, 2, 3))
    zero = {"zero": lambda batch: torch.zeros_like(batch.targets)}
    loss = in_context_loss(zero, task, Evaluation(num_sequences=1024))["zero"]
    assert loss.counted is not None
    assert loss.counted.sum(1).bincount().tolist() == [0, 512, 512, 512]


def test_standard_errors_are_those_of_the_mean() -> None:
    zero = {"zero": lambda batch: torch.zeros_like(batch.targets)}
    means = [
        in_context_loss(zero, TASK, Evaluation(num_sequences=256, seed=seed))["zero"].mean
        for seed in range(60)
    ]
    claimed = in_context_loss(zero, TASK, Evaluation(num_sequences=256))["zero"].estimate.error
    # The deviation of 60 means is known to 1 / sqrt(2 * 59) = 9 %; four of these.
    assert abs(torch.tensor(means).std().item() / claimed - 1) < 0.4


@pytest.mark.parametrize("analyse", [in_context_loss, diagnose])
def test_the_run_of_a_path_is_loaded_once_for_its_model_and_its_task(
    analyse: Callable[..., object], monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded: list[object] = []

    def load_run(*args: object, **kwargs: object) -> object:
        loaded.append(args)
        return training.load_run(*args, **kwargs)

    def enough(*_: object, **__: object) -> None:
        raise InterruptedError

    monkeypatch.setattr("mesaopt.analysis.given.load_run", load_run)
    monkeypatch.setattr(LinearSystem, "sample", enough)  # once model and task are there
    with pytest.raises(InterruptedError):
        analyse(zoo.folder() / "lsa-1")
    assert len(loaded) == 1


def test_no_sequences_are_refused() -> None:
    with pytest.raises(ValueError, match="num_sequences=0: must be 1 or greater"):
        in_context_loss({}, TASK, Evaluation(num_sequences=0))


def test_only_scored_positions_are_scored() -> None:
    task = ARProcess(ARProcessConfig(dim=2, length=9, start="sparse"))
    zero = {"zero": lambda batch: torch.zeros_like(batch.targets)}
    loss = in_context_loss(zero, task, Evaluation(num_sequences=256))["zero"]
    assert loss.positions == range(2, 9)
    assert loss.losses.shape == (256, 7)
    # Sparse states have norm 1: half of it, in float32.
    torch.testing.assert_close(loss.losses, torch.full((256, 7), 0.5), rtol=1e-6, atol=0)
    everywhere = in_context_loss(zero, TASK, Evaluation(num_sequences=256))["zero"]
    assert everywhere.positions == range(1, 21)


def some_count() -> tuple[InContextLoss, torch.Tensor]:
    """Losses of which each sequence has another number that counts; what does not count is absurd."""
    random = torch.Generator().manual_seed(0)
    counted = torch.arange(6) < torch.randint(1, 7, (40, 1), generator=random)
    counted[:2] = True
    losses = torch.rand(40, 6, generator=random)
    return InContextLoss(losses.where(counted, 1e6), counted=counted), losses.where(
        counted, torch.nan
    )


def test_what_does_not_count_is_nowhere_in_what_is_shown() -> None:
    loss, wanted = some_count()
    assert loss.mean == pytest.approx(wanted.nanmean(1).mean().item())
    curve = wanted.nanmean(0).tolist()
    assert [one.value for one in loss.at_positions] == pytest.approx(curve)
    for shown in (loss, InContextLosses(a=loss)):
        assert list(shown._curves()[0].y) == pytest.approx(curve)
        assert shown.to_dataframe()["loss"].tolist() == pytest.approx(curve)
        assert f"{loss.mean:.2f}" in repr(shown)
        assert "e+0" not in repr(shown), "nothing absurd"


def test_differences_are_paired() -> None:
    noise = torch.randn(64, 5, generator=torch.Generator().manual_seed(0))
    one, other = InContextLoss(noise + 1), InContextLoss(noise)
    assert (one - other).mean == pytest.approx(1)
    assert (one - other).mean_error < 1e-6


def test_differences_count_what_both_count() -> None:
    loss, wanted = some_count()
    difference = loss - InContextLoss(
        loss.losses.where(loss.losses > 1e5, 0.0), counted=loss.counted
    )
    assert difference.mean == pytest.approx(wanted.nanmean(1).mean().item())


class Growing:
    """Sequences that are longer in every other batch."""

    def sample(self, batch_size, *, seed, step, split):
        tokens = torch.ones(batch_size, 3 + 2 * (step % 2), 1)
        return Batch(tokens=tokens, targets=tokens)


def test_places_that_a_batch_does_not_have_do_not_count() -> None:
    zero = {"zero": lambda batch: 0 * batch.targets}
    loss = in_context_loss(zero, Growing(), Evaluation(num_sequences=512))["zero"]
    assert loss.positions == range(1, 6)
    assert loss.curve.tolist() == [0.5] * 5
    assert loss.mean == 0.5


@pytest.mark.parametrize(
    "other",
    [
        InContextLoss(torch.zeros(1, 3)),
        InContextLoss(torch.zeros(4, 1)),
        InContextLoss(torch.zeros(4, 3), range(2, 5)),
    ],
    ids=["a single sequence", "a single position", "other positions"],
)
def test_losses_of_other_sequences_or_positions_are_not_subtracted(other: InContextLoss) -> None:
    with pytest.raises(ValueError, match="must be of the same sequences and positions"):
        InContextLoss(torch.ones(4, 3)) - other
