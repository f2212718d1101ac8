"""Figures 16, 22 and 23: the tokens that first layers depend on, while training and after."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Drawing
from torch import Tensor

from mesaopt.analysis import Sensitivity, sensitivity
from mesaopt.analysis.estimate import Estimate, mean_and_error
from mesaopt.looks import INK, PALETTE
from mesaopt.papers.claims import Claim
from mesaopt.papers.figure import Figure, Panel, grid
from mesaopt.papers.laboratory import Scale, measurement
from mesaopt.papers.plots import few_steps
from mesaopt.papers.rows import PanelData, Rows, split
from mesaopt.papers.uncovering2023.curves import label_of
from mesaopt.papers.uncovering2023.laboratory import (
    COMPARED,
    Laboratory,
    as_published,
    network_note,
)
from mesaopt.papers.uncovering2023.published import SENSITIVITIES, SENSITIVITY_STEP
from mesaopt.progress import Progress
from mesaopt.recipes import RECIPES
from mesaopt.tasks import make_task
from mesaopt.training import Run, RunFolder, load_run

PART = "blocks.0"
"""The stream behind the first layer."""

NEAR = 6
"""Tokens drawn by themselves, from the last one back; older ones are averaged."""

FAITHFUL = 0.3
"""Distance of a faithful re-implementation, as a share: one training, whose streams have a scale of their
own, and for the fully observed task another learning rate (7e-4 published, 8e-4 in the recipe)."""


@dataclass(frozen=True)
class SensitivityHistory:
    """The sensitivity of one run, while training and after."""

    run: Run
    by_step: dict[int, Sensitivity]
    """At the last position, by optimiser step."""
    at_end: dict[int, Sensitivity]
    """Of the trained model, by position: the first, the middle, the last."""

    @property
    def last(self) -> Sensitivity:
        """At the end of training and of the sequence."""
        return self.at_end[max(self.at_end)]

    @property
    def first(self) -> Sensitivity:
        """At the first checkpoint, or the last without any."""
        return next(iter(self.by_step.values()), self.last)

    @property
    def begins_late(self) -> bool:
        """Whether the checkpoints lack the untrained model, as those of imported weights do."""
        return bool(self.by_step) and min(self.by_step) > 0


@measurement
def histories(lab: Laboratory, recipe: str) -> list[SensitivityHistory]:
    """Differentiate the first layer of every run of a recipe, at checkpoints and at the end."""
    runs, settings = lab.trained(recipe), lab.settings
    chosen = [spread(RunFolder(run.path).steps, settings.sensitivity_checkpoints) for run in runs]
    done, total = 0, sum(len(steps) + 1 for steps in chosen)
    histories = []
    for run, steps in zip(runs, chosen, strict=True):
        tokens = _tokens(run, settings.sensitivity_sequences)
        few, last = tokens[: settings.sensitivity_sequences_while_training], tokens.shape[1]
        by_step, at_end = {}, {}
        for step in steps:
            model = load_run(run.path, step=step, device="cpu").model
            by_step[step] = sensitivity(model, few, name=PART, position=last)
            done += 1
            lab.on_progress(Progress(done, total))
        for k in (1, last // 2, last):  # layers are causal: what comes later changes nothing
            at_end[k] = sensitivity(run.model.cpu(), tokens[:, :k], name=PART, position=k)
        done += 1
        lab.on_progress(Progress(done, total))
        histories.append(SensitivityHistory(run, by_step, at_end))
    return histories


@measurement
def final_sensitivities(lab: Laboratory, recipe: str) -> list[Sensitivity]:
    """Differentiate the trained first layers at the last position alone."""
    return [
        sensitivity(run.model.cpu(), tokens, name=PART, position=tokens.shape[1])
        for run in lab.trained(recipe)
        for tokens in [_tokens(run, lab.settings.sensitivity_sequences)]
    ]


def _tokens(run: Run, count: int) -> Tensor:
    return make_task(run.config.task).sample(count, seed=0, split="test").tokens


def spread(steps: Sequence[int], count: int) -> list[int]:
    """Choose at most `count` checkpoints, more of them early, and that of the published numbers.

    Example:
        >>> spread(range(0, 2501, 100), 6)
        [0, 100, 400, 900, 1600, 2500]
    """
    if not steps:
        return []
    wanted = [steps[-1] * (i / (count - 1)) ** 2 for i in range(count)]
    if steps[0] < SENSITIVITY_STEP < steps[-1]:
        place = min(range(1, count - 1), key=lambda i: abs(wanted[i] - SENSITIVITY_STEP), default=0)
        wanted[place] = SENSITIVITY_STEP if place else wanted[place]
    return sorted({min(steps, key=lambda step: abs(step - place)) for place in wanted})


def previous(measured: Sequence[Sensitivity]) -> Tensor:
    """Give the sensitivity to the token before the position, [seed, sequence]."""
    return torch.stack([one.norms[:, one.position - 2] for one in measured])


def older(measured: Sequence[Sensitivity]) -> Tensor:
    """Give the mean sensitivity to tokens further back than the six nearest, [seed, sequence]."""
    return torch.stack([one.norms[:, : one.position - NEAR].mean(1) for one in measured])


def binding(measured: Sequence[Sensitivity]) -> Tensor:
    """Give the sensitivity to the previous token over the mean of older ones, [seed, sequence].

    Every seed has a mean of its own, so that the noise of means over seeds is in their spread.
    """
    return previous(measured) / older(measured).mean(1, keepdim=True)


def label(name: str) -> str:
    """Describe a recipe's model in a sentence about several tasks.

    Example:
        >>> label("hybrid-mesa-partial"), label("full-mesa-published")
        ('softmax, then mesa', 'linear, then mesa ("full-mesa")')
    """
    return {"full-mesa-published": 'linear, then mesa ("full-mesa")'}.get(name, label_of(name))


def _nearby(one: Sensitivity) -> list[float]:
    """Give the curve as it is drawn: nearest tokens from the last back, then the mean of older ones."""
    near = one.curve[one.position - NEAR : one.position].flip(0)
    return [*near.tolist(), older([one]).mean().item()]


def _training_panel(recipe: str) -> Panel[Laboratory]:
    """Make a panel of the last position's sensitivity while training."""

    def measure(lab: Laboratory) -> PanelData | None:
        if not lab.trained(recipe):
            return None
        measured = histories(lab, recipe)
        steps, last = list(measured[0].by_step), measured[0].last.position
        if not steps:
            return PanelData(rows=[], more={"seeds": []})
        values = torch.tensor(
            [[_nearby(one) for one in history.by_step.values()] for history in measured]
        )  # [seed, step, token]
        names = [str(last - back) for back in range(NEAR)] + ["older"]
        rows = [
            _row("while training", recipe, step, token, value=value)
            for place, token in enumerate(names)
            for step, value in zip(steps, values[:, :, place].mean(0).tolist(), strict=True)
        ]
        return PanelData(rows=rows, more={"seeds": values.tolist() if len(values) > 1 else []})

    def draw(axes: Axes, data: PanelData) -> None:
        for place, (token, curve) in enumerate(split(data.rows, "token").items()):
            steps = [row["step"] for row in curve]
            color = PALETTE[place] if place < NEAR else INK
            style = {"color": color, "ls": "solid" if place < NEAR else (0, (3, 2))}
            means = [row["sensitivity"] for row in curve]
            axes.plot(steps, means, marker=".", ms=4, label=token, lw=1.5, **style)
            for seed in data.more["seeds"]:
                axes.plot(steps, [at_step[place] for at_step in seed], lw=0.4, alpha=0.5, **style)
            if recipe in SENSITIVITIES:
                theirs = SENSITIVITIES[recipe][place]
                axes.plot(SENSITIVITY_STEP, theirs, "o", mfc="none", ms=4.5, color=color)
        axes.set(yscale="log", title=label(recipe), xlabel="optimiser step", ylim=(2e-5, 4))
        axes.set_xlim(0, None)
        few_steps(axes, 4)

    return Panel(name=f"while training, {recipe}", measure=measure, draw=draw)


def _token_panel(recipe: str) -> Panel[Laboratory]:
    """Make a panel of a trained model's sensitivity by token, at three positions."""

    def measure(lab: Laboratory) -> PanelData | None:
        if not lab.trained(recipe):
            return None
        measured = histories(lab, recipe)
        steps = measured[0].run.config.train.steps
        rows: Rows = []
        for position in measured[0].at_end:
            norms = torch.stack([history.at_end[position].norms for history in measured])
            mean, error = mean_and_error(norms)
            panel = f"after training, position {position}"
            rows += [
                _row(panel, recipe, steps, token, value=m, half=h)
                for token, (m, h) in enumerate(
                    zip(mean.tolist(), (1.96 * error).tolist(), strict=True), start=1
                )
            ]
        return PanelData(rows=rows)

    def draw(axes: Axes, data: PanelData) -> None:
        curves = split(data.rows, "panel")
        colors = (PALETTE[1], PALETTE[2], PALETTE[0])
        for color, (panel, curve) in zip(colors, curves.items(), strict=True):
            position = panel.rpartition(" ")[2]
            tokens = [row["token"] for row in curve]
            mean = torch.tensor([row["sensitivity"] for row in curve])
            half = torch.tensor([row["half_width_95"] for row in curve])
            axes.plot(tokens, mean, ".-", color=color, ms=4, lw=1, label=f"at {position}")
            low = (mean - half).clamp_min(1e-6)
            axes.fill_between(tokens, low, mean + half, color=color, alpha=0.25, lw=0)
        axes.set(yscale="log", xlabel="input token", ylim=(2e-5, 20))

    return Panel(name=f"after training, {recipe}", measure=measure, draw=draw)


def _row(
    panel: str, name: str, step: int, token: str | int, *, value: float, half: float | None = None
) -> dict[str, Any]:
    numbers = {"step": step, "token": token, "sensitivity": value, "half_width_95": half}
    return {"panel": panel, "recipe": name} | numbers


def _finish(drawing: Drawing) -> None:
    above, below = drawing.axes[0], drawing.axes[len(drawing.axes) // 2]
    above.set_ylabel("sensitivity of the last position")
    below.set_ylabel("sensitivity after training")
    drawing.legend(
        *above.get_legend_handles_labels(),
        loc="outside upper center",
        ncols=7,
        handlelength=1.2,
        columnspacing=1.0,
        title="token",
        title_fontsize=8.5,
    )
    below.legend(loc="upper left", ncols=3, handlelength=1.0, columnspacing=0.8, fontsize=7.5)


def _settings(lab: Laboratory) -> dict[str, Any]:
    return {
        "sequences while training": lab.settings.sensitivity_sequences_while_training,
        "sequences after training": lab.settings.sensitivity_sequences,
    }


def _ratio(above: Tensor, below: Tensor) -> Estimate:
    """Give the ratio of two means over seeds and sequences; its noise grows with it."""
    (a, a_error), (b, b_error) = mean_and_error(above), mean_and_error(below)
    share = torch.hypot(a_error / a, b_error / b)
    ratio, share = (a / b).item(), share.item()
    # Where nothing depends on anything, there is no noise.
    return Estimate(ratio, ratio * share if math.isfinite(share) else 0.0)


def _binding_claims(lab: Laboratory, number: int, recipes: Sequence[str]) -> Iterable[Claim]:
    """Judge whether first layers come to depend on the tokens next to a position, and on no others."""
    for name in recipes:
        measured = histories(lab, name)
        if not any(history.begins_late for history in measured):
            yield _onset_claim(number, name, measured)
        last = [history.last for history in measured]
        yield Claim(
            name=f"fig{number}-{name}-binds",
            figure=f"Fig. {number}",
            statement=f"{_model_and_task(name)}: after training the previous token counts for more than "
            "those older than the nearest six (ratio of sensitivities)",
            measured=_ratio(previous(last), older(last)) if last else None,
            recipes=(name,),
            low=10.0,
            noise="factor",
            basis=f"{_published_ratio(name, measured)}at least 37 published for all models; 10 counts",
        )
        yield from _published_claims(lab, measured, name, number)


def _published_ratio(name: str, measured: Sequence[SensitivityHistory]) -> str:
    """Give a published ratio next to one of the same step: it is not monotone in training.

    The authors' seven layers have 284, 577 and 136 after 2900, 10,000 and 20,000 steps.
    """
    if any(one.run.config.train.steps != SENSITIVITY_STEP for one in measured):
        return ""
    ratio = SENSITIVITIES[name][1] / SENSITIVITIES[name][-1]
    return f"{ratio:.0f} published after as many steps, "


def _note(lab: Laboratory, name: str) -> str:
    note = network_note(lab, name)
    return note and f" ({note})"


def _model_and_task(name: str) -> str:
    return f"{label(name)}, {RECIPES[name].task} task"


def _onset_claim(number: int, name: str, measured: Sequence[SensitivityHistory]) -> Claim:
    """Judge whether a first layer comes to depend on the previous token by training."""
    growth, times = None, ""
    if measured:
        before = previous([history.first for history in measured])
        growth = _ratio(previous([history.last for history in measured]), before)
        times = f", {SENSITIVITIES[name][1] / before.mean().item():.0f} times that of our initial weights"
    theirs = ", 2500 times that of theirs, 0.0004" if name == "tf-7" else ""
    return Claim(
        name=f"fig{number}-{name}-onset",
        figure=f"Fig. {number}",
        statement=f"{_model_and_task(name)}: the first layer learns to depend on the previous token "
        "(sensitivity to it after and before training, ratio)",
        measured=growth,
        recipes=(name,),
        low=100.0,
        noise="factor",
        basis=f"{SENSITIVITIES[name][1]:g} published{times}{theirs}, at step {SENSITIVITY_STEP}; "
        "100 counts",
    )


def _published_claims(
    lab: Laboratory, measured: Sequence[SensitivityHistory], name: str, number: int
) -> Iterable[Claim]:
    """Judge the two nearest tokens by published numbers, where there is a model of the same age."""
    near = [history.by_step.get(SENSITIVITY_STEP) for history in measured]
    if name == "hybrid-mesa" or None in near:  # the authors' has more than twice our learning rate
        return
    if not all(_as_published_so_far(history.run) for history in measured):
        return
    for back in (0, 1):
        values = [one.norms[:, one.position - 1 - back] for one in near if one]
        wanted = SENSITIVITIES[name][back]
        yield Claim(
            name=f"fig{number}-{name}-{'previous' if back else 'self'}",
            figure=f"Fig. {number}",
            statement=f"{_model_and_task(name)}: after {SENSITIVITY_STEP} steps the sensitivity of the "
            f"last position to token {50 - back} is {wanted:g}",
            measured=Estimate.of(torch.stack(values)) if values else None,
            recipes=(name,),
            low=wanted - FAITHFUL * wanted,
            high=wanted + FAITHFUL * wanted,
            basis=f"{wanted:g} published{_note(lab, name)}, {FAITHFUL:.0%} either way",
        )


def _as_published_so_far(run: Run) -> bool:
    """Say whether a run was trained as published; up to a step it does not matter how many follow."""
    train = replace(run.config.train, steps=RECIPES[run.config.recipe].config.train.steps)
    return as_published(replace(run.config, train=train))


def _fig16_claims(lab: Laboratory) -> Iterable[Claim]:
    yield from _binding_claims(lab, 16, ("tf-7", "hybrid-mesa"))
    softmax, linear = (
        [history.last for history in histories(lab, name)]
        for name in ("hybrid-mesa", "full-mesa-published")
    )
    yield Claim(
        name="fig16-full-mesa-binds-less",
        figure="Fig. 16",
        statement="The previous token stands out far more for a softmax first layer than for the "
        'linear one of "full-mesa" (its sensitivity over that of tokens older than the nearest six, '
        "ratio of the models)",
        measured=_ratio(binding(softmax), binding(linear)) if softmax and linear else None,
        recipes=("hybrid-mesa", "full-mesa-published"),
        low=10.0,
        noise="factor",
        basis='published is "no clear binding", without numbers; 10 counts',
    )


_OBSERVED = {"tf-7-partial": "tf-7", "hybrid-mesa-partial": "hybrid-mesa"}
"""The same model where states are observed, by recipe."""


def _fig22_claims(lab: Laboratory) -> Iterable[Claim]:
    yield from _binding_claims(lab, 22, tuple(_OBSERVED))
    for name, other in _OBSERVED.items():
        yield lab.claim(
            name,
            other,
            measure=partial(_more_breadth, lab, name, other),
            name=f"fig22-{name}-binds-more",
            figure="Fig. 22",
            statement=f"{label(name)}: the first layer depends on more tokens where states are partially "
            "observed than where they are seen (effective numbers of tokens, difference)",
            low=1.0,
            basis=f"{_published_breadth(name):.2g} and {_published_breadth(other):.2g} by the published "
            "means; one token more counts",
        )


def _more_breadth(lab: Laboratory, name: str, other: str) -> Estimate:
    """Give by how many tokens a first layer depends on more than that of another recipe."""
    last = [history.last for history in histories(lab, name)]
    many, few = (
        Estimate.of(torch.stack([one.breadth for one in measured]))
        for measured in (last, final_sensitivities(lab, other))
    )
    return many - few


def _published_breadth(name: str) -> float:
    """Give (sum c)^2 / sum c^2 of the published means, the 44 older tokens alike."""
    *near, older = SENSITIVITIES[name]
    return (sum(near) + 44 * older) ** 2 / (sum(c**2 for c in near) + 44 * older**2)


def _figure(
    number: int, drawn: tuple[str, ...], caption: str, weight: float, **declared: Any
) -> Figure[Laboratory]:
    """Declare a figure of sensitivities; weight 1 is a first layer of four heads."""
    seconds: dict[Scale, float] = {"smoke": 1.0, "small": 2.0 * weight, "paper": 15.0 * weight}
    return Figure(
        name=f"fig{number}",
        caption=(
            "Mean over coordinates l and test sequences of |d f_l / d s_t'|, the derivative of the "
            "stream behind the first layer by an input token, exact. Above: of the last position, "
            "by the tokens closest to it and by all older ones (their mean), at checkpoints; mean "
            "over seeds with each seed as a thin line, circles are the authors' numbers at step "
            f"{SENSITIVITY_STEP}. Below: of the trained model, by token, for the first, middle and last "
            f"position, with 95 % bands over sequences. {caption}"
        ),
        panels=(*map(_training_panel, drawn), *map(_token_panel, drawn)),
        layout=grid(rows=2, height=6.4, sharey="row"),
        finish=_finish,
        settings=_settings,
        seconds=seconds,
        **declared,
    )


_FULLY_OBSERVED = ("tf-7", "hybrid-mesa", "full-mesa-published")

fig16 = _figure(
    16,
    _FULLY_OBSERVED,
    'What was published as "full-mesa" has a linear first layer; no numbers of it are known. '
    "The authors trained the two others for this figure at a learning rate of 7e-4; our runs "
    "are those of the other figures, at 8e-4 and 3e-4.",
    weight=3.0,
    title="Fig. 16: the first layer learns to look at the previous token",
    summary="what the first layer depends on while training",
    recipes=_FULLY_OBSERVED,
    claims=_fig16_claims,
)
fig22 = _figure(
    22,
    tuple(_OBSERVED),
    "One observation is less than a state: several in a row are needed to tell it.",
    weight=12.0,
    title="Fig. 22: partially observed, the first layer looks at several tokens",
    summary="what the first layer depends on, partially observed",
    recipes=(*_OBSERVED, *_OBSERVED.values()),
    claims=_fig22_claims,
)
fig23 = _figure(
    23,
    COMPARED["nonlinear"],
    "The first layer holds attention and a hidden layer of 300.",
    weight=6.0,
    title="Fig. 23: nonlinear systems, the first layer looks at the previous token",
    summary="what the first layer depends on, nonlinear",
    recipes=COMPARED["nonlinear"],
    claims=lambda lab: _binding_claims(lab, 23, COMPARED["nonlinear"]),
)

FOLLOWED = (*_FULLY_OBSERVED, *_OBSERVED, *COMPARED["nonlinear"])
"""Recipes that these figures follow while they train."""
