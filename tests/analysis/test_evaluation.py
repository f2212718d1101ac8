import pytest

from mesaopt.analysis import Evaluation
from mesaopt.config import LinearSystemConfig
from mesaopt.tasks import LinearSystem

TASK = LinearSystem(LinearSystemConfig(dim=2, length=3))


def test_a_batch_is_reported_when_it_has_been_used() -> None:
    events: list[object] = []
    evaluation = Evaluation(
        num_sequences=257, progress=lambda progress: events.append((progress.done, progress.total))
    )
    for batch in evaluation.batches(TASK):
        events.append(len(batch.states))
    assert events == [256, (1, 2), 256, (2, 2)]
    assert evaluation.num_batches == 2


def test_split_and_seed_choose_the_sequences() -> None:
    def first(**settings) -> list[float]:
        (batch,) = Evaluation(num_sequences=1, **settings).batches(TASK)
        return batch.states.flatten().tolist()

    assert first() == first(seed=0, split="test")
    assert first() == TASK.sample(256, seed=0, step=0, split="test").states.flatten().tolist()
    assert first() != first(seed=1)
    assert first() != first(split="validation")


def test_there_must_be_sequences() -> None:
    with pytest.raises(ValueError, match="num_sequences=0: must be 1 or greater"):
        Evaluation(num_sequences=0)
