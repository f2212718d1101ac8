"""The study `uncovering2023`: every synthetic figure of von Oswald et al., in the paper's order."""

from mesaopt.papers.laboratory import FIRST_PAPER, Plan, Scale, Training
from mesaopt.papers.plan import Headline, Study
from mesaopt.papers.uncovering2023 import (
    attention,
    distilled,
    few_shot,
    linear_layers,
    losses,
    probe_depth,
    probe_tokens,
    regression,
    sensitivities,
    weights,
)
from mesaopt.papers.uncovering2023.laboratory import COMPARED, Laboratory
from mesaopt.recipes import RECIPES, select

FIGURES = (
    probe_tokens.fig2a,
    probe_tokens.fig2b,
    attention.fig3,
    linear_layers.fig4,
    probe_depth.fig4e,
    probe_depth.fig4f,
    distilled.fig5,
    probe_depth.fig6ab,
    losses.fig6c,
    losses.fig7,
    few_shot.fig8,
    weights.fig9,
    weights.fig10,
    losses.fig11,
    losses.fig12,
    weights.fig13,
    attention.fig14,
    attention.fig15,
    sensitivities.fig16,
    probe_tokens.fig17,
    few_shot.fig18,
    distilled.fig19,
    regression.fig20,
    probe_tokens.fig21,
    sensitivities.fig22,
    sensitivities.fig23,
    probe_depth.fig24,
    losses.fig24c,
    probe_depth.fig25,
    probe_depth.fig25_training,
)


def _training(recipe: str, steps: int, seeds: int = 1, batch_size: int | None = None) -> Training:
    return Training(
        recipe=recipe,
        seeds=seeds,
        steps=steps,
        batch_size=batch_size,
        evaluation_sequences=512 if batch_size or steps < 100 else 2560,
    )


def _smoke() -> tuple[Training, ...]:
    """List runs that show that everything works; nothing is learned."""
    names = (
        "lsa-1",
        "lsa-2",
        "lsa-6",
        "mesa-1",
        "tf-3",
        "tf-7",
        "hybrid-mesa",
        "hybrid-mesa-partial",
        "hybrid-mesa-nonlinear",
        "contracting-lsa-1",
        "fixed-lsa-1",
        "tf-7-dim-4",
        "softmax-2",
        "hybrid-mesa-few-shot",
    )
    return tuple(_training(name, 2, batch_size=16) for name in names)


def _small() -> tuple[Training, ...]:
    """List what two CPU cores train in an hour, so that signs and orders can be seen."""
    return (
        _training("lsa-1", 1500, seeds=3),
        _training("lsa-2", 2500),
        _training("lsa-4", 2500),
        _training("lsa-6", 2000),
        _training("mesa-1", 1500, seeds=2),
        _training("tf-3", 1200),
        _training("tf-7", 2500),
        _training("hybrid-mesa", 2500),
        _training("full-mesa-published", 2000),
        _training("tf-7-partial", 4000, batch_size=32),
        _training("hybrid-mesa-partial", 4000, batch_size=32),
        _training("hybrid-mesa-partial-width-10", 4000, batch_size=32),
        _training("hybrid-mesa-partial-width-30", 4000, batch_size=32),
        _training("tf-7-nonlinear", 3000, batch_size=32),
        _training("hybrid-mesa-nonlinear", 3000, batch_size=32),
        _training("tf-7-few-shot", 3000, batch_size=16),
        _training("hybrid-mesa-few-shot", 3000, batch_size=16),
        _training("tf-7-dim-4", 5000),
        _training("tf-7-dim-6", 5000),
        _training("tf-7-dim-10", 4000),
        _training("softmax-2", 3000),
        _training("contracting-lsa-1", 3500),
        _training("contracting-lsa-2", 1500),
        _training("contracting-mesa-1", 2000),
        _training("fixed-lsa-1", 4000, batch_size=256),
    )


def _paper() -> tuple[Training, ...]:
    """List the published trainings, with more seeds."""
    seeds = {"lsa-1": 5, "lsa-2": 5, "lsa-4": 3, "lsa-6": 3, "lsa-6-key-40": 5, "mesa-1": 5}
    seeds |= {"tf-3": 3, "tf-7": 3, "tf-12": 3, "hybrid-mesa": 3, "full-mesa-published": 3}
    for task in ("partial", "nonlinear", "contracting", "fixed"):
        seeds |= dict.fromkeys(COMPARED[task], 3)
    seeds |= {"tf-7-few-shot": 3, "hybrid-mesa-few-shot": 3}
    seeds |= {recipe.name: 3 for recipe in select(variant="width")}
    seeds |= {recipe.name: 5 for recipe in select(variant="dimension")} | {"softmax-2": 3}
    return tuple(_training(r, RECIPES[r].config.train.steps, seeds=n) for r, n in seeds.items())


def _memory(plan: Plan) -> int:
    """Estimate the memory of a figure: at scale small all of them together peaked at 1.1 GB."""
    return {"smoke": 100, "small": 450, "paper": 900}[plan.scale] * 2**20


def _plan(scale: Scale, trainings: tuple[Training, ...], num_sequences: int) -> Plan:
    return Plan(
        what="uncovering2023", scale=scale, trainings=trainings, num_sequences=num_sequences
    )


STUDY: Study[Laboratory] = Study(
    name="uncovering2023",
    paper="uncovering2023",
    title="Sequence models compared with the algorithms they may have learned, and taken apart",
    summary="every model on every task, compared with gradient descent and least squares, and taken apart",
    introduction=(
        "Models of one to twelve layers are trained from scratch on linear, partially observed, "
        "nonlinear and contracting systems. They are compared with algorithms that have nothing to "
        "learn beforehand: one step of gradient descent, preconditioned steps, least squares. Then they "
        "are taken apart: probes, sensitivities, attention maps, weights, linearised layers, few-shot "
        "use. Circles are published numbers. A model is compared with its published loss where it was "
        "trained as long as published; at smaller scales the order of the models is judged."
    ),
    plans={
        "smoke": _plan("smoke", _smoke(), 256),
        "small": _plan("small", _small(), 5120),
        "paper": _plan("paper", _paper(), 10_240),
    },
    laboratory=Laboratory,
    source=FIRST_PAPER,
    headlines=(
        Headline(
            claim="fig4-lsa-1-is-one-step",
            text="times the loss of one step of gradient descent: one linear layer has become that step",
        ),
        Headline(
            claim="fig4-two-layers-beat-one",
            text="times that loss with a second linear layer",
        ),
        Headline(
            claim="fig6c-depth-helps",
            text="times the loss of three softmax layers with seven of them",
        ),
    ),
    figures=FIGURES,
    memory=_memory,
)
