"""The study `core`: the story of von Oswald et al. on one page."""

from mesaopt.papers.laboratory import Plan
from mesaopt.papers.plan import Study
from mesaopt.papers.uncovering2023.laboratory import Laboratory

CORE: Study[Laboratory] = Study(
    name="core",
    paper="uncovering2023",
    title="",
    summary="",
    introduction="",
    plans={
        "smoke": Plan(what="core", scale="smoke"),
        "small": Plan(what="core", scale="small"),
        "paper": Plan(what="core", scale="paper"),
    },
    laboratory=Laboratory,
    figures=(),
)
