"""The study `language`: language models and recall, by mixer, and what can go wrong with mesa."""

from mesaopt.papers.laboratory import FIRST_PAPER, Scale
from mesaopt.papers.language import faults, positions, reasoning, recall, text
from mesaopt.papers.language.laboratory import Laboratory, LanguagePlan, TextTraining
from mesaopt.papers.language.settings import SEEDS
from mesaopt.papers.plan import Headline, Study
from mesaopt.recipes import RECIPES

FIGURES = (
    text.fig26,
    text.fig27,
    text.fig28,
    recall.mqar,
    recall.continuous,
    faults.faults,
    reasoning.mad,
    reasoning.regbench,
    reasoning.parity,
    positions.positions,
)


def _text(steps: int, *, length: int, batch_size: int, seeds: int) -> tuple[TextTraining, ...]:
    """List the runs of figures 26 to 28; those of four layers, which take longest, have one seed."""
    return tuple(
        TextTraining(
            recipe=recipe,
            seeds=1 if len(RECIPES[recipe].mixers) == 4 else seeds,
            steps=steps,
            length=length,
            batch_size=batch_size,
            evaluation_sequences=8 * batch_size,
        )
        for recipe in (*text.ONE_LAYER, *text.HYBRIDS)
    )


TRAININGS: dict[Scale, tuple[TextTraining, ...]] = {
    "smoke": _text(2, length=64, batch_size=2, seeds=1),
    "small": _text(1500, length=256, batch_size=4, seeds=2),
    "paper": _text(20_000, length=512, batch_size=64, seeds=3),
}


def _plan(scale: Scale) -> LanguagePlan:
    return LanguagePlan(
        what="language", scale=scale, seeds=SEEDS[scale], trainings=TRAININGS[scale]
    )


STUDY: Study[Laboratory] = Study(
    name="language",
    paper="language",
    title="Language models and recall, by mixer",
    summary="language models and recall with eight mixers, and what can go wrong with mesa",
    introduction=(
        "Small models that differ in their mixer alone are trained on text and on recall. In recall every "
        "mixer gets the same training, but for the learning rate, which is chosen for each on validation "
        "sequences; in figures 26 to 28 all have the same. Limits of claims were written down before "
        "anything was measured; those that fail are reported as such."
    ),
    plans={scale: _plan(scale) for scale in ("smoke", "small", "paper")},
    laboratory=Laboratory,
    source=FIRST_PAPER,
    headlines=(
        Headline(
            claim="mqar-mesanet-solves",
            text="of the queries of associative recall are answered by two mesa layers",
        ),
        Headline(
            claim="continuous-mesa-solves",
            text="are answered by a single one, on vectors, with as many pairs as dimensions",
        ),
    ),
    figures=FIGURES,
    memory=lambda plan: {"smoke": 100, "small": 400, "paper": 2000}[plan.scale] * 2**20,
)
