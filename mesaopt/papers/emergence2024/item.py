"""The study `emergence2024`: the theory of Zheng et al., computed, trained and checked."""

from mesaopt.papers.laboratory import Laboratory, Plan
from mesaopt.papers.plan import Study

STUDY: Study[Laboratory] = Study(
    name="emergence2024",
    paper="emergence2024",
    title="",
    summary="",
    introduction="",
    plans={
        "smoke": Plan(what="emergence2024", scale="smoke"),
        "small": Plan(what="emergence2024", scale="small"),
        "paper": Plan(what="emergence2024", scale="paper"),
    },
    laboratory=Laboratory,
    figures=(),
)
