"""Programs and guesses for tasks on tokens: scores that need no model."""

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch

from mesaopt.errors import ConfigError
from mesaopt.recipes.token_tasks import TOKEN_TASKS
from mesaopt.tasks import MAD, ContinuousMQAR, RegBench, Text, TokenBatch, make_task
from mesaopt.theory import (
    chance,
    exact_answers,
    in_context_baum_welch,
    in_context_n_gram,
    least_squares_recall,
    text_n_gram,
)

ANSWERABLE = [n for n, c in TOKEN_TASKS.items() if c.kind in ("mqar", "mad", "parity", "copying")]


def of_tests(name: str):
    task = make_task(TOKEN_TASKS[name])
    for step, config in enumerate(task.variants("test")):
        yield config, task.sample(128, seed=0, step=step, split="test")


@pytest.mark.parametrize("name", ANSWERABLE)
def test_a_program_answers_all_that_can_be_answered(name: str) -> None:
    for config, batch in of_tests(name):
        right = (exact_answers(config, batch) == batch.targets)[batch.counted]
        if name == "mad-fuzzy-recall":  # whose last key is unknown in about one sequence of fifty
            assert 0.95 < right.float().mean() < 1
        else:
            assert right.all()


NEED_VALUES = {"mad-fuzzy-recall", "mad-selective-copying"}  # to know a shape


@pytest.mark.parametrize("name", sorted(set(ANSWERABLE) - NEED_VALUES))
def test_answers_are_computed_where_the_tokens_are(name: str) -> None:
    for config, batch in of_tests(name):
        answers = exact_answers(config, batch.to("meta"))
        assert (answers.device.type, answers.shape) == ("meta", batch.targets.shape)


def test_least_squares_are_computed_where_the_tokens_are() -> None:
    assert least_squares_recall(torch.zeros(2, 5, 8, device="meta")).device.type == "meta"


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("name", ANSWERABLE)
def test_answers_on_a_gpu_are_those_on_the_cpu(name: str) -> None:
    for config, batch in of_tests(name):
        answers = exact_answers(config, batch.to("cuda"))
        assert answers.is_cuda
        assert torch.equal(answers.cpu(), exact_answers(config, batch))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_n_grams_on_a_gpu_are_those_on_the_cpu() -> None:
    strings_batch = RegBench(length=80, examples=None).sample(3, seed=0)
    text = Text(corpus=__file__, length=32)
    n_gram = partial(in_context_n_gram, vocabulary=20)
    cases = ((n_gram, strings_batch), (text_n_gram(text), text.sample(2, seed=0, split="test")))
    for predict, batch in cases:
        there = predict(batch.to("cuda"))
        assert there.is_cuda
        assert torch.equal(there.cpu(), predict(batch))


def test_a_program_answers_fuzzy_recall_where_there_is_an_answer() -> None:
    task = MAD(TOKEN_TASKS["mad-fuzzy-recall"], answerable=True)
    batch = task.sample(300, seed=0, split="test")
    assert (exact_answers(task.config, batch) == batch.targets)[batch.counted].all()


def hits_of_a_guess(name: str) -> torch.Tensor:
    """Guess the same for all sequences: the most frequent answers of others, place by place."""
    task = make_task(TOKEN_TASKS[name])
    others, batch = (task.sample(4000, seed=seed, split="test") for seed in (1, 0))
    guess = torch.stack([answers[answers >= 0].bincount().argmax() for answers in others.targets.T])
    return (batch.targets == guess)[batch.counted].float()


@pytest.mark.parametrize(
    "name",
    ["mad-compression", "mad-selective-copying", "mad-memorization", "parity", "copying"],
)
def test_chance_is_what_a_guess_gets(name: str) -> None:
    hits = hits_of_a_guess(name)
    wanted = chance(TOKEN_TASKS[name])
    assert abs(hits.mean() - wanted) < 5 * (wanted / len(hits)) ** 0.5 + 0.02 * wanted


@pytest.mark.parametrize("name", ["mad-in-context-recall", "mad-noisy-recall", "mqar-64-4"])
def test_answers_are_as_likely_as_chance_says(name: str) -> None:
    task = make_task(replace(TOKEN_TASKS[name], vocabulary=32))
    batch = task.sample(4000, seed=0, split="test")
    first = batch.targets[:, 0]  # one of a sequence, whose answers hang together
    counts = first.bincount()
    counts = counts[counts > 0]
    assert len(counts) == round(1 / chance(task.config))
    expected = 4000 * chance(task.config)
    assert ((counts - expected).abs() < 5 * expected**0.5).all()


def test_tokens_of_a_fuzzy_value_are_guessed_among_those_that_did_not_come() -> None:
    config = TOKEN_TASKS["mad-fuzzy-recall"]
    batch = make_task(config).sample(600, seed=0, split="test")
    shown = batch.tokens.gather(1, batch.at)
    guess = torch.where(shown >= 7, 7 + (shown - 6) % 8, 7)  # the one after a token of the value
    hits = (guess == batch.targets)[batch.counted].float()
    assert abs(hits.mean().item() - chance(config)) < 5 * 2 * (0.14 / len(hits)) ** 0.5


def test_least_squares_recalls_as_many_pairs_as_there_are_dimensions() -> None:
    for pairs in (1, 8, 16):
        batch = ContinuousMQAR(dim=16, pairs=pairs, codes=512).sample(16, seed=0)
        prediction = least_squares_recall(batch.tokens, ridge=1e-8)
        assert batch.accuracy(prediction).all()
        # Random keys are at times nearly dependent: the ridge then costs something.
        assert (prediction - batch.targets)[:, pairs:].abs().median() < 1e-5
    crowded = ContinuousMQAR(dim=16, pairs=128, codes=512).sample(16, seed=0)
    assert crowded.accuracy(least_squares_recall(crowded.tokens)).float().mean() < 0.9
    with pytest.raises(ValueError, match="ridge=0.0: must be greater than 0"):
        least_squares_recall(crowded.tokens, ridge=0.0)


def strings(*words: str) -> TokenBatch:
    """Write words of letters a, b, c, ... as tokens 1, 2, 3, ..., each token to be followed by the next."""
    tokens = [5 if c == "|" else ord(c) - 96 for c in "|".join(words)]
    row = torch.tensor([tokens])
    return TokenBatch(row[:, :-1], row[:, 1:])


def test_n_grams_of_a_sequence_counted_by_hand() -> None:
    p = in_context_n_gram(strings("abab", "ac"), vocabulary=6, order=2).exp()[0]
    a, b, c = 1, 2, 3
    # Behind "a": nothing has followed; a is the only letter that came.
    torch.testing.assert_close(p[0, a], torch.tensor(1.0))
    # Behind "ab": b has ended one reading and was followed by none; a and b have come once each.
    torch.testing.assert_close(p[1, [a, b]], torch.tensor([0.5, 0.5]))
    # Behind "aba": a was followed by b in one of two readings; the rest is for a.
    torch.testing.assert_close(p[2, [a, b]], torch.tensor([0.5, 0.5]))
    # Behind "abab|": strings have begun with a in one of two readings; the rest is for b.
    torch.testing.assert_close(p[4, [a, b, c]], torch.tensor([0.5, 0.5, 0.0]))
    # Behind "abab|a": a in three readings was followed by b twice; the rest is for a.
    torch.testing.assert_close(p[5, [a, b, c]], torch.tensor([1 / 3, 2 / 3, 0.0]))


def test_probabilities_of_both_learners_add_up() -> None:
    batch = RegBench(length=80, examples=None).sample(3, seed=0)
    for logits in (
        in_context_n_gram(batch, vocabulary=20),
        in_context_n_gram(batch, vocabulary=20, order=1),
        in_context_baum_welch(batch, vocabulary=20, steps=2),
    ):
        assert logits.shape == (*batch.targets.shape, 20)
        total = logits.exp().sum(-1)[batch.counted]
        torch.testing.assert_close(total, torch.ones_like(total))


def test_longer_contexts_and_automata_learn_the_language() -> None:
    batch = RegBench(examples=None, length=400).sample(3, seed=0, split="test")
    late = batch.counted & (batch.at > 200)

    def distance(logits: torch.Tensor) -> float:
        return batch.total_variation(logits)[late].mean().item()

    unigram, bigram, trigram = (
        distance(in_context_n_gram(batch, vocabulary=20, order=order)) for order in (1, 2, 3)
    )
    assert trigram < bigram < unigram
    assert distance(in_context_baum_welch(batch, vocabulary=20)) < bigram
    uniform = torch.zeros(*batch.targets.shape, 20)
    assert unigram < distance(uniform)


def test_baum_welch_finds_a_language_that_no_bigram_knows() -> None:
    """Strings abcabc... and acbacb...: the letter behind a depends on the string."""
    random = np.random.default_rng(0)
    words = ["abc" * 6 if random.random() < 0.5 else "acb" * 6 for _ in range(12)]
    batch = strings(*words)
    logits = in_context_baum_welch(batch, vocabulary=6, steps=40)
    last = slice(-12, None)
    learned = batch.losses(logits)[:, last].mean()
    assert learned < 0.2
    assert batch.losses(in_context_n_gram(batch, vocabulary=6, order=2))[:, last].mean() > 0.5


@pytest.mark.parametrize(
    ("learner", "name", "number", "wanted"),
    [
        (in_context_n_gram, "order", 0, "1 or greater"),
        (in_context_n_gram, "order", -1, "1 or greater"),
        (in_context_baum_welch, "num_states", 1, "2 or greater"),
        (in_context_baum_welch, "steps", -1, "between 0 and"),
    ],
)
def test_learners_refuse_numbers_out_of_range(learner, name: str, number: int, wanted: str) -> None:
    with pytest.raises(ConfigError, match=f"^{name}={number}: must be {wanted}"):
        learner(strings("abab"), vocabulary=6, **{name: number})
