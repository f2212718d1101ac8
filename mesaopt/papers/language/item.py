"""The study `language`: language models and recall, by mixer, and what can go wrong with mesa."""

from mesaopt.papers.laboratory import Scale, Training
from mesaopt.papers.language import faults, recall
from mesaopt.papers.language.laboratory import SOURCE, Laboratory, LanguagePlan
from mesaopt.papers.language.settings import SEEDS
from mesaopt.papers.plan import Headline, Study

FIGURES = (recall.mqar, recall.continuous, faults.faults)


def _plan(scale: Scale, trainings: tuple[Training, ...] = ()) -> LanguagePlan:
    return LanguagePlan(what="language", scale=scale, seeds=SEEDS[scale], trainings=trainings)


STUDY: Study[Laboratory] = Study(
    name="language",
    paper="language",
    title="Language models and recall, by mixer",
    summary="language models and recall with eight mixers, and what can go wrong with mesa",
    introduction=(
        "Small models that differ in their mixer alone are trained on recall. Every mixer gets the same "
        "training, but for the learning rate, which is chosen for each on validation sequences. Limits of "
        "claims were written down before anything was measured; those that fail are reported as such."
    ),
    plans={scale: _plan(scale) for scale in ("smoke", "small", "paper")},
    laboratory=Laboratory,
    source=SOURCE,
    headlines=(
        Headline(
            claim="mqar-mesanet-solves",
            text="of the queries of associative recall are answered by two mesa layers of width 64",
        ),
        Headline(
            claim="continuous-mesa-solves",
            text="are answered by a single one, on vectors, with as many pairs as dimensions",
        ),
    ),
    figures=FIGURES,
    memory=lambda plan: {"smoke": 100, "small": 400, "paper": 2000}[plan.scale] * 2**20,
)
