"""The item `uncovering2023`: every synthetic comparison of von Oswald et al., trained and judged."""

from collections.abc import Callable

from mesaopt.papers.plan import Item, Part, Plan, Report, Results, Scale, Training
from mesaopt.papers.uncovering2023 import (
    fig2,
    fig3,
    fig4,
    fig4ef,
    fig5,
    fig6c,
    fig7,
    fig8,
    fig9,
    fig10,
    fig11,
    fig12,
    fig13,
    fig14,
    fig15,
    fig16,
    fig18,
    fig19,
    fig20,
    fig21,
    fig22,
    fig23,
    fig24,
)
from mesaopt.papers.uncovering2023.laboratory import RECIPES, Laboratory
from mesaopt.recipes import RECIPES as PUBLISHED


def _training(recipe: str, steps: int, seeds: int = 1, batch_size: int | None = None) -> Training:
    return Training(
        recipe=recipe,
        seeds=seeds,
        steps=steps,
        batch_size=batch_size,
        evaluation_sequences=512 if batch_size or steps < 100 else 2560,
    )


def _smoke() -> tuple[Training, ...]:
    """See that everything runs; nothing is learned."""
    return tuple(
        _training(recipe, 2, batch_size=16)
        for recipe in (
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
    )


def _small() -> tuple[Training, ...]:
    """What two CPU cores train in an hour, so that signs and orders can be seen."""
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
        *(_training(f"hybrid-mesa-partial-width-{w}", 4000, batch_size=32) for w in (10, 30)),
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
    """As published, with more seeds."""
    linear = {"lsa-1": 5, "lsa-2": 5, "lsa-4": 3, "lsa-6": 3, "lsa-6-key-40": 5, "mesa-1": 5}
    deep = {"tf-3": 3, "tf-7": 3, "tf-12": 3, "hybrid-mesa": 3, "full-mesa-published": 3}
    few_shot = {"tf-7-few-shot": 3, "hybrid-mesa-few-shot": 3}
    widths = {name: 3 for name in PUBLISHED if "-width-" in name}
    dimensions = {name: 5 for name in PUBLISHED if "-dim-" in name} | {"softmax-2": 3}
    others = [r for task in ("partial", "nonlinear", "contracting", "fixed") for r in RECIPES[task]]
    seeds = linear | deep | dict.fromkeys(others, 3) | few_shot | widths | dimensions
    return tuple(_training(r, PUBLISHED[r].config.train.steps, seeds=n) for r, n in seeds.items())


def _part(
    name: str,
    summary: str,
    compute: Callable[[Laboratory, Report], Results],
    recipes: tuple[str, ...],
    seconds: Callable[[Plan], float],
) -> Part[Laboratory]:
    return Part(
        name=name,
        summary=summary,
        compute=compute,
        recipes=recipes,
        seconds=seconds,
        memory=_memory,
    )


def _memory(plan: Plan) -> int:
    """Guess the memory of a part: at scale small all of them together peaked at 1.1 GB."""
    return {"smoke": 100, "small": 450, "paper": 900}[plan.scale] * 2**20


def _scoring(seconds: float) -> Callable[[Plan], float]:
    """Guess the time from that of 5120 test sequences."""
    return lambda plan: 2 + seconds * plan.num_sequences / 5120


def probe_seconds(models: int) -> Callable[[Plan], float]:
    """Guess the time it takes to probe so many models that no figure before has probed."""
    each = {"smoke": 0.5, "small": 4.0, "paper": 60.0}
    return lambda plan: 1 + models * each[plan.scale]


def _plan(scale: Scale, trainings: tuple[Training, ...], num_sequences: int) -> Plan:
    return Plan(
        what="uncovering2023", scale=scale, trainings=trainings, num_sequences=num_sequences
    )


UNCOVERING: Item[Laboratory] = Item(
    name="uncovering2023",
    title="Sequence models beside the algorithms they may have learned, and what is inside",
    summary="every model on every task, beside gradient descent and least squares, and what is inside",
    introduction=(
        "Models of one to twelve layers are trained from scratch on linear, partially observed, "
        "nonlinear and contracting systems, compared with algorithms that learn nothing "
        "beforehand (one step of gradient descent, preconditioned steps, least squares), and "
        "taken apart: probes, sensitivities, attention maps, weights, layers made linear, use on "
        "pairs. "
        "Published numbers are drawn as circles beside ours. A model is held against its "
        "published loss where it was trained as long as published; at smaller scales the order "
        "of the models is what is judged."
    ),
    plans={
        "smoke": _plan("smoke", _smoke(), 256),
        "small": _plan("small", _small(), 5120),
        "paper": _plan("paper", _paper(), 10_240),
    },
    measure=Laboratory,
    parts=(
        _part(
            *("fig2", "past tokens and features, read off the layers"),
            *(fig2.compute, fig2.MODELS, probe_seconds(6)),
        ),
        _part(
            *("fig3", "where the first softmax layer looks, the weights of one linear layer"),
            *(fig3.compute, fig3.MODELS, fig3.seconds),
        ),
        _part(
            *("fig4", "linear self-attention on constructed tokens"),
            *(fig4.compute, fig4.MODELS, fig4.seconds),
        ),
        _part(
            *("fig4e", "the next token, read off linear layers"),
            *(fig4ef.next_token, fig4ef.LINEAR, probe_seconds(1)),
        ),
        _part(
            *("fig4f", "the preconditioned input, read off linear layers"),
            *(fig4ef.preconditioning, fig4ef.LINEAR, probe_seconds(0)),
        ),
        _part(
            *("fig5", "softmax layers made linear, and the price of softmax by dimension"),
            *(fig5.compute, fig5.MODELS, fig5.seconds),
        ),
        _part(
            *("fig6ab", "both, read off softmax layers"),
            *(fig4ef.softmax, fig4ef.SOFTMAX, probe_seconds(1)),
        ),
        _part(
            *("fig6c", "softmax transformers on plain tokens"),
            *(fig6c.compute, fig6c.MODELS, _scoring(8)),
        ),
        _part(
            *("fig7", "three tasks, a mesa layer and six softmax layers"),
            *(fig7.compute, fig7.MODELS, _scoring(20)),
        ),
        _part(
            *("fig8", "few-shot use of seven softmax layers"),
            *(fig8.compute, fig8.MODELS, fig8.seconds),
        ),
        _part(
            *("fig9", "the weights of six linear layers"),
            *(fig9.compute, fig9.MODELS, lambda _: 3.0),
        ),
        _part(
            *("fig10", "the weights of seven softmax layers"),
            *(fig10.compute, fig10.MODELS, lambda _: 3.0),
        ),
        _part(
            *("fig11", "contracting systems"),
            *(fig11.compute, RECIPES["contracting"], _scoring(3)),
        ),
        _part(
            *("fig12", "one fixed matrix, the negative control"),
            *(fig12.compute, RECIPES["fixed"], _scoring(3)),
        ),
        _part(
            *("fig13", "the weights of one linear layer"),
            *(fig13.compute, fig13.MODELS, lambda _: 2.0),
        ),
        _part(
            *("fig14", "where the first layers of transformers look"),
            *(fig14.compute, fig14.MODELS, fig14.seconds),
        ),
        _part(
            *("fig15", "where the softmax layers in front of mesa layers look"),
            *(fig15.compute, fig15.MODELS, fig15.seconds),
        ),
        _part(
            *("fig16", "what the first layer depends on while training"),
            *(fig16.compute, fig16.MODELS, fig16.seconds),
        ),
        _part(
            *("fig17", "past tokens in all layers of three models"),
            *(fig2.compare_layers, fig2.THREE, probe_seconds(1)),
        ),
        _part(
            *("fig18", "few-shot use of a softmax and a mesa layer"),
            *(fig18.compute, fig18.MODELS, fig18.seconds),
        ),
        _part(
            *("fig19", "the weights of softmax layers and of linear ones distilled from them"),
            *(fig19.compute, fig19.MODELS, fig19.seconds),
        ),
        _part(
            *("fig20", "least squares and kernel regression by dimension"),
            *(fig20.compute, (), fig20.seconds),
        ),
        _part(
            *("fig21", "past tokens by width of the stream"),
            *(fig21.compute, fig21.MODELS, probe_seconds(2)),
        ),
        _part(
            *("fig22", "what the first layer depends on, partially observed"),
            *(fig22.compute, fig22.MODELS, fig22.seconds),
        ),
        _part(
            *("fig23", "what the first layer depends on, nonlinear"),
            *(fig23.compute, fig23.MODELS, fig23.seconds),
        ),
        _part(
            *("fig24", "partial observation, read off the layers"),
            *(fig24.partial, RECIPES["partial"], probe_seconds(2)),
        ),
        _part(
            *("fig25", "the nonlinear system, read off the layers"),
            *(fig24.nonlinear, RECIPES["nonlinear"], probe_seconds(3)),
        ),
    ),
)
