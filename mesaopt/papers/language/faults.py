"""Why mesa failed elsewhere: faults of other implementations and trainings, switched on one at a time."""

from collections.abc import Iterable
from dataclasses import asdict, replace
from typing import cast

from mesaopt.config import LanguageModelConfig, MQARConfig, OwnModelConfig
from mesaopt.models import own_model
from mesaopt.papers.claims import Claim
from mesaopt.papers.figure import Figure, grid
from mesaopt.papers.laboratory import measurement
from mesaopt.papers.language.drawing import (
    comparison_settings,
    methods_panel,
    pairs_in_words,
    rows_of,
)
from mesaopt.papers.language.faulty_mesa import Faults, faulty_model
from mesaopt.papers.language.laboratory import (
    Laboratory,
    Prepare,
    Result,
    result,
    right_answers,
    settings_of,
)
from mesaopt.papers.language.settings import Comparison, comparison_seconds
from mesaopt.papers.rows import PanelData

WORKING, RATE, ALL = "as it should be", "another learning rate", "all together"
FAULTS: dict[str, Faults] = {
    "30 steps": Faults(steps=30),
    "10 steps": Faults(steps=10),
    "epsilon": Faults(steps=30, epsilon=1e-5),
    "epsilon, large batch": Faults(steps=30, epsilon=1e-5, larger_batch=128),
    "half precision": Faults(steps=30, half=True),
    "any ridge": Faults(any_ridge=True),
    "short memory": Faults(short_memory=True),
}
"""The faults of the layer, each alone; the epsilon and half precision have the 30 steps of the public
kernel besides."""
_TOGETHER = Faults(
    steps=30, epsilon=1e-5, larger_batch=128, half=True, any_ridge=True, short_memory=True
)
ALL_BUT = {
    "all but epsilon": replace(_TOGETHER, epsilon=0.0),
    "all but large batch": replace(_TOGETHER, larger_batch=1.0),
    "all but half precision": replace(_TOGETHER, half=False),
    "all but any ridge": replace(_TOGETHER, any_ridge=False),
    "all but short memory": replace(_TOGETHER, short_memory=False),
    "all but steps": replace(_TOGETHER, steps=None, epsilon=0.0),
}
"""All faults together but for one; without steps there is no epsilon, either."""
_WORDS = {
    "30 steps": "30 steps of conjugate gradients in place of a solve to the end",
    "10 steps": "10 steps of conjugate gradients in place of a solve to the end",
    "epsilon": "the absolute 1e-5 in the conjugate gradients (with 30 steps)",
    "epsilon, large batch": "the absolute 1e-5 (30 steps), and gradients of a batch 128 times as large,",
    "half precision": "queries, keys, states and backward solutions of 16 bits (with 30 steps)",
    "any ridge": "a ridge that starts from numbers of any size",
    "short memory": "forget gates that start near 0.5",
    RATE: "the learning rate that is best for the gated delta rule",
    ALL: "all faults together",
}
_TAKEN_AWAY = {
    "all but epsilon": "the absolute 1e-5",
    "all but large batch": "the gradients of a large batch",
    "all but half precision": "numbers of 16 bits",
    "all but any ridge": "a ridge that starts from numbers of any size",
    "all but short memory": "forget gates that start near 0.5",
    "all but steps": "conjugate gradients",
}
_SLOWER = 1.5
"""Time of a method with faults: steps of conjugate gradients take longer than the mean mixer, but there
are fewer trainings."""
_LOST = 0.1
"""Share of right answers whose loss, or return, counts."""


def _slug(name: str) -> str:
    """Write a name without spaces and commas."""
    return name.replace(",", "").replace(" ", "-")


def _faulty_settings(comparison: Comparison, name: str, faults: Faults) -> Prepare:
    """Say how to make the settings of runs whose mesa layers have faults."""
    model = cast(LanguageModelConfig, comparison.with_mixer("mesanet2025"))

    def faulty(seed: int) -> OwnModelConfig:
        return own_model(
            lambda: faulty_model(model, faults, seed=seed),
            name="faulty_model",
            keywords=asdict(faults),
        )

    return settings_of(comparison, f"faults-{_slug(name)}", faulty)


@measurement
def variants(lab: Laboratory) -> dict[str, Result]:
    """Train the working configuration, and variants of it with one fault each and with all."""
    comparison = lab.settings.comparisons["faults"]
    parts = len(FAULTS) + 4
    with lab.part(0, parts):
        working = result(lab, "faults", "mesanet")
    with lab.part(1, parts):
        common = result(lab, "faults", "gated-delta").rate
    found = {WORKING: working}
    for number, (name, faults) in enumerate({**FAULTS, RATE: Faults(), ALL: _TOGETHER}.items()):
        rate = common if name in (RATE, ALL) else working.rate
        prepare = _faulty_settings(comparison, name, faults)
        with lab.part(2 + number, parts):
            found |= lab.compare(comparison, {name: prepare}, right_answers, (rate,))
    return found


@measurement
def all_but_one(lab: Laboratory) -> dict[str, Result]:
    """Train models with all faults, and with all but one."""
    comparison, together = lab.settings.comparisons["faults"], variants(lab)[ALL]
    models = {ALL: together}
    for number, (name, faults) in enumerate(ALL_BUT.items()):
        prepare = _faulty_settings(comparison, name, faults)
        with lab.part(number, len(ALL_BUT)):
            models |= lab.compare(comparison, {name: prepare}, right_answers, (together.rate,))
    return models


def _claims(lab: Laboratory) -> Iterable[Claim]:
    found = variants(lab)
    yield Claim(
        name="faults-none",
        figure="beyond the paper",
        statement="Recall of few pairs: the exact mesa layer answers almost all queries (share of right "
        "answers)",
        measured=found[WORKING].score(),
        low=0.99,
        basis="nothing to break otherwise; 99 % counts",
    )
    for name, words in _WORDS.items():
        yield Claim(
            name=f"faults-{_slug(name)}",
            figure="beyond the paper",
            statement=f"Recall of few pairs: {words} breaks the mesa layer (share of right answers that "
            "is lost)",
            measured=found[WORKING].less(found[name]),
            low=_LOST,
            basis="a candidate cause of poor recall elsewhere; one answer in ten counts",
        )
    models = all_but_one(lab)
    for name in ALL_BUT:
        yield Claim(
            name=f"faults-{_slug(name)}",
            figure="beyond the paper",
            statement=f"Recall of few pairs with all faults together: without {_TAKEN_AWAY[name]} it is "
            "better (share of right answers that comes back)",
            measured=models[name].less(models[ALL]),
            low=_LOST,
            basis="a part of what breaks recall, if all together do; one answer in ten counts",
        )


def _caption(lab: Laboratory) -> str:
    task = cast(MQARConfig, lab.settings.comparisons["faults"].task)
    return (
        f"Share of right answers in recall of {pairs_in_words(task)}, with 95 % intervals over seeds and "
        "test sequences; ticks are seeds. At the top the mesa layer of this library at the learning rate "
        "chosen on validation sequences; below it the same with one fault each. The epsilon is added to "
        "both denominators of the conjugate gradients, forward and backward, with the 30 steps of the "
        "public kernel. In a large batch, gradients are as small there as in one 128 times as large, where "
        "the epsilon weighs more. Half precision, with these steps too, rounds queries, keys, values, "
        "states and the backward solutions to 16 bits; any ridge starts from numbers between 1e-4 and 1e4 "
        "of either sign before softplus; short memory starts from forget gates at 0.5; the other "
        "learning rate is that chosen for the gated delta rule.\n\n"
        "A: one fault at a time, and all. B: all, and all but the one that is named; a bar that is longer "
        "than the first one says that the fault is a part of what breaks recall. "
        "The faults are in a reference path made for this figure, which without them equals the operator "
        "of the library. A claim that fails says that a fault alone does not break recall at this size."
    )


faults = Figure(
    name="faults",
    title="Why mesa failed elsewhere: faults, one at a time and together",
    summary="faults of other implementations of mesa, one at a time and together",
    caption=_caption,
    trains=True,
    panels=(
        methods_panel(
            "faults",
            "A: one at a time, and all",
            lambda lab: PanelData(rows=rows_of(variants(lab))),
        ),
        methods_panel(
            "all-but-one",
            "B: all, and all but one",
            lambda lab: PanelData(rows=rows_of(all_but_one(lab))),
        ),
    ),
    layout=grid(columns=2, width=9.5, height=3.9),
    settings=lambda lab: comparison_settings(lab, "faults"),
    claims=_claims,
    seconds={
        scale: 2 * seconds + (len(FAULTS) + len(ALL_BUT) + 2) * _SLOWER * seconds
        for scale, seconds in comparison_seconds("faults", methods=1).items()
    },
)
