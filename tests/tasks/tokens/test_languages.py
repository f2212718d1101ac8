"""RegBench, parity and copying: what their published descriptions say."""

import numpy as np
import pytest
import torch

from mesaopt import recipes
from mesaopt.config import CopyingConfig, ParityConfig, RegBenchConfig
from mesaopt.tasks import IGNORE, Copying, Parity, RegBench
from mesaopt.tasks.tokens.regbench import draw_automata, draw_strings

SEPARATOR = 19


def automata(count: int):
    random = np.random.default_rng(0)
    return draw_automata(random, batch_size=count, alphabet=18, fewest_states=4, most_states=12)


def test_automata_have_distinct_letters_to_distinct_other_states() -> None:
    drawn = automata(2000)
    states_seen, letters_seen, degrees = [], [], []
    for letters, targets, degree in zip(drawn.letters, drawn.targets, drawn.degrees, strict=True):
        reached, todo = set(), [0]
        while todo:  # only what a string can come to
            state = todo.pop()
            if state in reached:
                continue
            reached.add(state)
            edges = targets[state, : degree[state]].tolist()
            assert len(set(edges)) == len(edges)
            assert state not in edges
            assert len(set(letters[state].tolist())) == 3
            todo += edges
            degrees.append(degree[state])
        states_seen.append(max(reached) + 1)
        letters_seen.append(len(np.unique(letters[list(reached)])))
    assert set(degrees) == {1, 2, 3}
    for degree in (1, 2, 3):
        assert abs(np.mean(np.array(degrees) == degree) - 1 / 3) < 0.03
    assert max(states_seen) == 12
    assert max(letters_seen) <= 18


def test_strings_are_walks_from_the_first_state() -> None:
    drawn = automata(200)
    config = RegBenchConfig()
    sequences = draw_strings(np.random.default_rng(1), drawn, config)
    counts, lengths = [], []
    for row in range(200):
        tokens, targets = sequences.tokens[row].tolist(), sequences.targets[row].tolist()
        size = tokens.index(0) if 0 in tokens else len(tokens)
        whole = tokens[:size]
        strings, place = [[]], -1
        state = 0
        for token in whole:
            if token == SEPARATOR:
                assert targets[place] == IGNORE
                strings.append([])
                state = 0
            else:
                edges = drawn.letters[row, state, : drawn.degrees[row, state]].tolist()
                if place >= 0:
                    assert targets[place] == token
                    bits = int(sequences.more["allowed"][row, place])
                    assert {i for i in range(32) if bits >> i & 1} == set(edges)
                state = drawn.targets[row, state, edges.index(token)]
                strings[-1].append(token)
            place += 1
        counts.append(len(strings))
        lengths += map(len, strings)
        assert all(target == IGNORE for target in targets[size:])
    assert set(counts) == set(range(10, 20))
    assert min(lengths) == 1
    assert max(lengths) == 49
    assert abs(np.mean(lengths) - 25) < 5 * 14.1 / len(lengths) ** 0.5


def test_a_longer_sequence_goes_on_with_the_same_automaton() -> None:
    short, long = (RegBench(length=length, examples=None).sample(8, seed=0) for length in (40, 60))
    assert short.tokens.shape == (8, 40)
    assert short.tokens[:, 0].equal(long.tokens[:, 0])


@pytest.mark.parametrize(
    ("strings", "letters", "length"),
    [
        ((1, 1), (1, 1), 8),
        ((1, 1), (1, 2), 8),
        ((2, 2), (1, 1), 1),
        ((1, 2), (1, 1), 8),
        ((2, 2), (1, 1), 2),
        ((1, 1), (2, 2), 1),
    ],
)
def test_every_sequence_has_a_letter_to_predict(strings, letters, length: int) -> None:
    settings = {"strings": strings, "letters": letters, "length": length, "examples": None}
    if letters[0] == 1 and (strings[0] == 1 or length == 1):
        with pytest.raises(ValueError, match=r"letters=\(1, [12]\): must be from 2 on, or strings"):
            RegBench(**settings)
    else:
        assert RegBench(**settings).sample(64, seed=0).counted.any(1).all()


def test_scores_of_the_true_distribution_and_of_a_wrong_one() -> None:
    batch = RegBench(length=100, examples=None).sample(16, seed=0)
    legal = batch.legal(20)
    assert legal[batch.counted].sum(-1).min() >= 1
    assert legal[batch.counted].sum(-1).max() <= 3
    assert legal.gather(-1, batch.targets.clamp(min=0)[..., None])[batch.counted].all()
    truth = legal.float().clamp(min=1e-30).log()
    assert batch.accuracy(truth)[batch.counted].all()
    assert batch.total_variation(truth).max() < 1e-6
    one_of = torch.where(legal, torch.rand(legal.shape), -1.0)
    certain = 100 * torch.nn.functional.one_hot(one_of.argmax(-1), 20).float()
    distance = batch.total_variation(certain)
    wanted = 1 - 1 / legal.sum(-1).clamp(min=1)
    torch.testing.assert_close(distance[batch.counted], wanted[batch.counted])
    padding = torch.zeros(*batch.targets.shape, 20)
    padding[..., 0] = 100
    assert not batch.accuracy(padding).any()
    assert (batch.total_variation(padding)[batch.counted] > 0.999).all()
    assert batch.to("cpu") is batch
    assert [len(part.allowed) for part in batch.split(9)] == [9, 7]


def test_parity_is_asked_at_the_last_bit_or_at_every_bit() -> None:
    for scored in ("last", "every"):
        task = Parity(shortest=3, longest=9, scored=scored)
        batch = task.sample(400, seed=0)
        assert batch.tokens.shape == (400, 8)
        for tokens, at, targets in zip(batch.tokens, batch.at, batch.targets, strict=True):
            bits = tokens[tokens > 0] - 1
            size = len(bits)
            assert (tokens[size:] == 0).all()
            parities = (bits.cumsum(0) % 2 + 1).tolist()
            count = int((targets != IGNORE).sum())
            assert targets[:count].tolist() == (parities if scored == "every" else parities[-1:])
            places = list(range(size)) if scored == "every" else [size - 1]
            assert at[:count].tolist() == places
        sizes = np.bincount((batch.tokens > 0).sum(1), minlength=9)
        assert (sizes[:2] == 0).all()
        assert (sizes[2:] > 30).all()  # 57 each on average


def test_parity_is_tested_on_longer_strings() -> None:
    task = Parity()
    assert task.sample(64, seed=0).tokens.shape[1] == 39
    batch = task.sample(512, seed=0, split="test")
    sizes = (batch.tokens > 0).sum(1)
    assert batch.tokens.shape[1] == 255
    assert 39 <= sizes.min() < 45
    assert 250 < sizes.max() <= 255


@pytest.mark.parametrize("context", [None, 60])
def test_strings_are_copied_and_packed_in_training(context: int | None) -> None:
    task = Copying(alphabet=5, shortest=2, longest=6, context=context)
    begin, separator, end, pad = 5, 6, 7, 8
    batch = task.sample(200, seed=0)
    lengths = set()
    for row in range(200):
        tokens = batch.tokens[row].tolist()
        answers = dict(zip(batch.at[row].tolist(), batch.targets[row].tolist(), strict=True))
        answers = {at: target for at, target in answers.items() if target != IGNORE}
        wanted, place = {}, 0
        while place < len(tokens) and tokens[place] == begin:
            size = tokens[place:].index(separator) - 1 if separator in tokens[place:] else 99
            stop = place + 2 * size + 3
            if stop > len(tokens) + 1:
                break
            string = tokens[place + 1 : place + 1 + size]
            lengths.add(size)
            copied = [*string, end] if context else string
            wanted |= {place + size + 1 + i: letter for i, letter in enumerate(copied)}
            shown = tokens[place + size + 2 : place + 2 * size + 2]
            assert shown == string[: len(shown)]
            place = stop
        assert answers == wanted
        if context is None:
            assert set(tokens[place:]) <= {pad}
    assert lengths == set(range(2, 7))


def test_the_published_settings() -> None:
    config = recipes.TASKS["copying"]
    assert (config.alphabet, config.shortest, config.longest) == (26, 5, 20)
    assert (config.context, config.length, config.vocabulary) == (220, 219, 30)
    assert (config.test_shortest, config.test_longest) == (20, 20)
    config = recipes.TASKS["parity"]
    assert (config.shortest, config.longest) == (3, 40)
    assert (config.test_shortest, config.test_longest) == (40, 256)
    config = recipes.TASKS["regbench"]
    assert (config.alphabet, config.vocabulary, config.examples) == (18, 20, 5000)
    assert (config.fewest_states, config.most_states) == (4, 12)
    assert (config.strings, config.letters, config.length) == ((10, 19), (1, 49), 948)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: CopyingConfig(shortest=0), "shortest=0: must be between 1 and longest=20"),
        (lambda: CopyingConfig(context=40), "context=40: must be 43 or greater"),
        (lambda: CopyingConfig(test_longest=0), "test_longest=0: must be 1 or greater"),
        (lambda: ParityConfig(shortest=1), "shortest=1: must be between 2 and longest=40"),
        (lambda: RegBenchConfig(fewest_states=3), "fewest_states=3: must be between 4 and most"),
        (
            lambda: RegBenchConfig(alphabet=31),
            "alphabet=31: must be between fewest_states=4 and 30",
        ),
        (lambda: RegBenchConfig(strings=(3, 2)), "strings=.3, 2.: must be two whole numbers, fewe"),
    ],
)
def test_impossible_settings_are_refused(make, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
