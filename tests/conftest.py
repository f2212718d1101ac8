"""Fixtures of all tests: one thread per worker, a run and results small enough for a test."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import hypothesis
import jaxtyping
import pytest
import torch
import toy_study
from toy_study import Toy

from mesaopt import recipes
from mesaopt.config import RunConfig
from mesaopt.papers import reproduce as reproduction
from mesaopt.papers.laboratory import Plan, Training
from mesaopt.papers.plan import Study
from mesaopt.papers.uncovering2023 import core

# Examples that are slow on a busy machine are not wrong.
hypothesis.settings.register_profile("tests", deadline=None, max_examples=30, derandomize=True)
hypothesis.settings.load_profile("tests")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    """Leave shapes unchecked in long tests and those of studies, where it is up to half of the time.

    They are checked in the tests of the modules that studies are made of.
    """
    long = item.get_closest_marker("slow") or "papers" in item.path.parts
    before = jaxtyping.config.jaxtyping_disable
    jaxtyping.config.update("jaxtyping_disable", bool(long or before))
    try:
        return (yield)
    finally:
        jaxtyping.config.update("jaxtyping_disable", before)


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture
def _unchecked() -> Iterator[None]:
    """Switch off the test suite's own check of shapes and types, which would come first."""
    before = jaxtyping.config.jaxtyping_disable
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", before)


@pytest.fixture(scope="session")
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


@pytest.fixture(scope="session")
def short_ar_config() -> RunConfig:
    """A complex layer on few short sequences: 12 steps with an evaluation every 4."""
    config = recipes.get("ar-full-one")
    return replace(
        config,
        task=replace(config.task, length=8),
        train=replace(
            config.train,
            steps=12,
            batch_size=8,
            evaluate_every=4,
            evaluation_sequences=16,
        ),
    )


def tiny_study(steps: int = 3) -> Study:
    recipes = ("lsa-1", "lsa-2-notebook", "mesa-1")
    plan = Plan(
        what="core",
        scale="smoke",
        trainings=tuple(
            Training(
                recipe=name, seeds=2 if name == "lsa-1" else 1, steps=steps, evaluation_sequences=8
            )
            for name in recipes
        ),
        num_sequences=256,
    )
    return replace(core.STUDY, plans={"smoke": plan})


@pytest.fixture(scope="session")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished folder of results; tests only read it."""
    out = tmp_path_factory.mktemp("core") / "results"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(core, "STUDY", tiny_study())
        reproduction.reproduce("core", scale="smoke", out=out, device="cpu")
    return out


@pytest.fixture
def tiny_core(monkeypatch: pytest.MonkeyPatch) -> Study:
    """Makes `core` the study that `results` was made from."""
    study = tiny_study()
    monkeypatch.setattr(core, "STUDY", study)
    return study


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch) -> Toy:
    """Makes `toy` a study of three figures, and keeps a log of what is computed."""
    toy = Toy()
    monkeypatch.setitem(reproduction.STUDIES, "toy", "toy_study")
    monkeypatch.setattr(toy_study, "STUDY", toy.study)
    return toy
