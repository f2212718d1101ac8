"""Losses on drawn sequences: against the expectation, against each other, and at the paper's size."""

import tracemalloc
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from one_layer_oracle import (
    all_sequences,
    draw_sequences,
    endless,
    finite_twin,
    in_chunks,
    layer_loss,
    lopsided_atoms,
    random_weights,
)

from mesaopt.errors import ConfigError
from mesaopt.tasks import InitialStates, initial_states
from mesaopt.theory.ar_process import (
    DirectLoss,
    QuadraticLoss,
    descend,
    diagonal,
    last_token,
    one_step,
    population_loss,
    sampled_loss,
    stability_bound,
    tied_estimate,
    tied_loss,
)

# Sums of at most 65 * 29 * 14^2 products near 1: 1e-12 of the largest leaves a factor of ten.
CLOSE = {"rtol": 1e-12, "atol": 1e-12}
every_block = pytest.mark.parametrize("blocks", ["core", "all"])

DISTRIBUTIONS: list[tuple[InitialStates, int]] = [
    (initial_states("full_one"), 3),
    (initial_states("gaussian"), 2),
    (initial_states("sparse"), 3),
    (lopsided_atoms(2), 2),
]


@pytest.mark.parametrize(("initial", "dim"), DISTRIBUTIONS, ids=lambda x: getattr(x, "name", ""))
@every_block
def test_samples_scatter_about_the_expectation(
    initial: InitialStates, dim: int, blocks: str
) -> None:
    length, seeds = 6, 20
    weights = random_weights(dim, blocks, batch=(2,), seed=11)
    exact = population_loss(initial, dim=dim, length=length, blocks=blocks)
    wanted = exact.loss_and_gradient(weights)[0]
    losses = np.array(
        [
            sampled_loss(
                in_chunks(draw_sequences(initial, 400, length, dim, seed=seed), 400), blocks=blocks
            ).loss_and_gradient(weights)[0]
            for seed in range(seeds)
        ]
    )
    spread = losses.std(0, ddof=1)
    assert (spread > 1e-3 * wanted).all()  # the seeds do differ
    # Four standard errors from 20 seeds: by chance once in 1300 comparisons, of which there are 16.
    assert (np.abs(losses.mean(0) - wanted) < 4 * spread / seeds**0.5).all()
    assert (spread / seeds**0.5 < 0.1 * wanted).all()  # a bound that could be missed


@pytest.mark.parametrize(
    ("count", "length", "dim"), [(1, 3, 1), (13, 7, 3), (65, 5, 2), (7, 31, 2)]
)
@every_block
@pytest.mark.parametrize("contexts", ["all", "last"])
def test_both_ways_agree_to_rounding(
    count: int, length: int, dim: int, blocks: str, contexts: str
) -> None:
    states = draw_sequences(initial_states("gaussian"), count, length, dim, seed=count)
    weights = random_weights(dim, blocks, batch=(3,), seed=1)
    wanted = [
        layer_loss(states, alone, contexts=contexts)
        for alone in map(type(weights), weights.output_value, weights.key_query)
    ]
    for size in (1, 7, 64):
        stream = in_chunks(states, size)
        quadratic = sampled_loss(stream, blocks=blocks, contexts=contexts)
        direct = DirectLoss(stream, dim, blocks, contexts)
        assert isinstance(quadratic, QuadraticLoss)
        for engine in (quadratic, direct):
            np.testing.assert_allclose(engine.loss_and_gradient(weights)[0], wanted, **CLOSE)
        ours, theirs = (e.loss_and_gradient(weights)[1] for e in (quadratic, direct))
        np.testing.assert_allclose(ours.output_value, theirs.output_value, rtol=1e-11, atol=1e-11)
        np.testing.assert_allclose(ours.key_query, theirs.key_query, rtol=1e-11, atol=1e-11)


@every_block
def test_chunks_do_not_matter(blocks: str) -> None:
    states = draw_sequences(lopsided_atoms(2), 65, 6, 2)
    whole = sampled_loss(in_chunks(states, 65), blocks=blocks)
    for size in (1, 7, 64):
        parts = sampled_loss(in_chunks(states, size), blocks=blocks)
        np.testing.assert_allclose(parts.gram, whole.gram, **CLOSE)
        np.testing.assert_allclose(parts.cross, whole.cross, **CLOSE)
        assert parts.energy == pytest.approx(whole.energy, rel=1e-13)
        ours, theirs = (tied_estimate(in_chunks(states, n)) for n in (size, 65))
        np.testing.assert_allclose(ours, theirs, rtol=1e-12)


def test_copies_of_the_sequences_change_nothing() -> None:
    states = draw_sequences(lopsided_atoms(2), 5, 6, 2)
    once, twice = (sampled_loss(lambda n=n: [states] * n) for n in (1, 2))
    np.testing.assert_allclose(once.gram, twice.gram, rtol=1e-13)
    assert once.energy == pytest.approx(twice.energy, rel=1e-14)


@pytest.mark.parametrize(
    ("dim", "blocks", "features"), [(2, "core", 8), (2, "all", 64), (3, "core", 27)]
)
def test_the_direct_loss_is_taken_where_the_gram_does_not_fit(
    dim: int, blocks: str, features: int
) -> None:
    stream = in_chunks(draw_sequences(initial_states("gaussian"), 4, 5, dim), 4)
    size = 16 * features**2
    fits = sampled_loss(stream, blocks=blocks, largest_gram=size)
    assert isinstance(fits, QuadraticLoss)
    assert fits.gram.nbytes == size
    too_large = sampled_loss(stream, blocks=blocks, contexts="last", largest_gram=size - 1)
    assert isinstance(too_large, DirectLoss)
    assert (too_large.dim, too_large.blocks, too_large.contexts) == (dim, blocks, "last")


def test_wide_states_fall_back_by_themselves() -> None:
    states = draw_sequences(initial_states("rademacher"), 3, 4, 10)
    assert isinstance(sampled_loss(in_chunks(states, 3)), QuadraticLoss)  # 16 MB
    assert isinstance(sampled_loss(in_chunks(states, 3), blocks="all"), DirectLoss)  # 1 GB


def peak_of(run: Any) -> int:
    tracemalloc.start()
    try:
        run()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("what", ["statistics", "direct", "last token"])
def test_memory_does_not_grow_with_the_sequences(what: str) -> None:
    weights = random_weights(3)

    def run(count: int) -> None:
        stream = endless(initial_states("gaussian"), count, 20, 3)
        if what == "statistics":
            sampled_loss(stream)
        elif what == "direct":
            DirectLoss(stream, 3, "core").loss_and_gradient(weights)
        else:
            last_token(stream)

    run(100)  # what is set up once
    few, many = (peak_of(lambda count=count: run(count)) for count in (200, 2000))
    assert few > 100 * 20 * 3 * 16  # a chunk of sequences is seen
    assert many < 1.2 * few


def test_the_tied_estimate_is_the_best_product_on_the_sample() -> None:
    states = draw_sequences(initial_states("gaussian"), 301, 9, 2)
    estimate = tied_estimate(in_chunks(states, 64))
    tied = tied_loss(sampled_loss(in_chunks(states, 64)))
    assert estimate.product == pytest.approx(tied.optimum, rel=1e-12)


@pytest.mark.parametrize("name", ["full_one", "gaussian", "uniform"])
def test_the_tied_estimate_knows_its_error(name: str) -> None:
    dim, length = 2, 8
    initial = initial_states(name)
    actual = [
        tied_estimate(in_chunks(draw_sequences(initial, 2000, length, dim, seed=seed), 500))
        for seed in range(40)
    ]
    products = np.array([x.product for x in actual])
    errors = np.array([x.standard_error for x in actual])
    wanted = one_step(initial, dim=dim, length=length).product
    # A ratio of means is biased by 1/count of itself only; a spread from 40 is known to 11 %, and the
    # heavy sixth moments of the Gaussian make single errors uncertain by a further 15 %.
    assert abs(products.mean() - wanted) < 4 * products.std() / 40**0.5 + wanted / 2000
    assert products.std(ddof=1) == pytest.approx(errors.mean(), rel=0.4)


@every_block
def test_sequences_of_real_numbers_will_do(blocks: str) -> None:
    states = np.random.default_rng(0).standard_normal((5, 6, 2))
    stream, weights = in_chunks(states, 2), random_weights(2, blocks)
    for engine in (sampled_loss(stream, blocks=blocks), DirectLoss(stream, 2, blocks)):
        loss, _ = engine.loss_and_gradient(weights)
        np.testing.assert_allclose(loss, layer_loss(states, weights), **CLOSE)


@pytest.mark.parametrize(
    ("chunks", "message"),
    [
        ([], "gives no sequences: must give one chunk or more"),
        ([np.ones((4, 2, 3))], "length=2: must be 3 or greater"),
        ([np.ones((4, 5, 0))], "dim=0: must be 1 or greater"),
        ([np.ones((0, 5, 2))], "gives 0 sequences: must give"),
    ],
)
def test_streams_without_sequences_are_refused(chunks: list, message: str) -> None:
    for build in (sampled_loss, tied_estimate, last_token):
        with pytest.raises(ConfigError, match=message):
            build(lambda: chunks)


def test_a_stream_that_is_used_up_is_noticed() -> None:
    def once() -> Iterator[np.ndarray]:
        yield np.ones((2, 5, 2))

    for build in (sampled_loss, tied_estimate):
        used = once()
        with pytest.raises(ConfigError, match="the same at every call"):
            build(lambda used=used: used)
    used = once()
    list(used)
    with pytest.raises(ConfigError, match="the same at every call"):
        DirectLoss(lambda: used, 2, "core").loss_and_gradient(random_weights(2))


def test_one_sequence_has_no_standard_error() -> None:
    with pytest.raises(ConfigError, match="gives 1 sequences: must give 2 or more"):
        tied_estimate(lambda: [draw_sequences(initial_states("gaussian"), 1, 5, 2)])


def test_every_start_there_is_gives_the_expectation() -> None:
    # All sign patterns and roots of unity, as a sample: the sampled engine is then the exact one.
    states, probabilities = all_sequences(finite_twin("rademacher", 2, 1.0), 5)
    assert np.ptp(probabilities) == 0
    sampled = sampled_loss(in_chunks(states, 100), blocks="all")
    exact = population_loss(initial_states("rademacher"), dim=2, length=5, blocks="all")
    np.testing.assert_allclose(sampled.gram, exact.gram, rtol=0, atol=1e-12)
    np.testing.assert_allclose(sampled.cross, exact.cross, rtol=0, atol=1e-12)
    assert sampled.energy == pytest.approx(exact.energy, rel=1e-13)


# The size of the paper: dim 5, T = 100, 10 000 sequences, its learning rates and 200 epochs.
PAPER = {"count": 10_000, "length": 100, "dim": 5}


@pytest.mark.parametrize("blocks", ["core", "all"])
def test_sparse_data_give_the_product_at_once(blocks: str) -> None:
    stream = endless(initial_states("sparse"), 1000, 100, 5)
    if blocks == "all":
        stream = endless(initial_states("sparse"), 1000, 20, 2)
    engine = sampled_loss(stream, blocks=blocks)
    dim = engine.dim
    start = diagonal(dim, key_query=0.1, output_value=0.1, blocks=blocks)
    rate = 2e-2 if blocks == "core" else stability_bound(engine, start) / 2
    run = descend(engine, start, learning_rate=rate, steps=25 if blocks == "core" else 200)
    assert run.product[-1] == pytest.approx(1.0, abs=1e-5)
    assert abs(run.loss[-1]) < 1e-5


@pytest.mark.slow
def test_full_one_at_the_size_of_the_paper() -> None:
    engine = sampled_loss(endless(initial_states("full_one"), **PAPER, seed=1))
    start = diagonal(5, key_query=0.1, output_value=0.1)
    settings = {"learning_rate": 5e-4, "steps": 300}
    masked = descend(engine, start, **settings, off_diagonal="masked").product[-1]
    plain = descend(engine, start, **settings).product[-1]
    assert masked == pytest.approx(0.8258, abs=0.006)
    assert plain == pytest.approx(0.8536, abs=0.006)
    assert plain - masked == pytest.approx(0.028, abs=0.001)


@pytest.mark.slow
def test_gaussian_data_at_the_size_of_the_paper() -> None:
    initial = initial_states("gaussian")
    stream = endless(initial, **PAPER, seed=2)
    engine = sampled_loss(stream)
    start = diagonal(5, key_query=2.0, output_value=2.0)
    run = descend(engine, start, learning_rate=1e-4, steps=200, off_diagonal="masked")
    assert run.product[-1] == pytest.approx(0.1919, abs=0.010)
    assert run.product[-1] == pytest.approx(tied_estimate(stream).product, abs=0.002)
    test = last_token(endless(initial, **PAPER, seed=3))
    assert test.ratio(run.last) == pytest.approx(0.19, abs=0.02)
    assert test.slope(run.last) == pytest.approx(0.5757, abs=0.03)


@pytest.mark.parametrize("seed", range(2))
def test_few_gaussian_data_scatter_more(seed: int) -> None:
    engine = sampled_loss(endless(initial_states("gaussian"), 1000, 100, 5, seed=seed))
    start = diagonal(5, key_query=0.5, output_value=1.5)
    run = descend(engine, start, learning_rate=1e-4, steps=200, off_diagonal="masked")
    assert run.product[-1] == pytest.approx(0.1919, abs=0.03)
