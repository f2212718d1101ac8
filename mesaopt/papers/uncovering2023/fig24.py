"""Figures 24 and 25: what depth reads on systems observed in part, and on nonlinear ones."""

import math

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from mesaopt.analysis import past_token, probe_layers
from mesaopt.papers.figures import PALETTE, FigureResult
from mesaopt.papers.plan import Report, Results
from mesaopt.papers.uncovering2023.curves import Rows, label_of, settings_of
from mesaopt.papers.uncovering2023.fig4ef import (
    COLORS,
    PRECONDITIONED_CAPTION,
    next_claim,
    position_legend,
)
from mesaopt.papers.uncovering2023.laboratory import RECIPES, Laboratory
from mesaopt.papers.uncovering2023.probe_claims import (
    depth_claim,
    limited_claim,
    published_claims,
)
from mesaopt.papers.uncovering2023.probe_drawing import (
    HELD_OUT_CAPTION,
    draw_depth,
)
from mesaopt.papers.uncovering2023.probing import (
    LAST,
    NEXT,
    STEPS,
    Probed,
    depth_probes,
    layer_of,
    probed_recipes,
)
from mesaopt.papers.uncovering2023.published import NEXT_TOKEN_PROBES, PRECONDITIONING_PROBES
from mesaopt.tasks import NonlinearSystem, make_task
from mesaopt.training import Run, RunFolder, load_run

_CHECKPOINTS = 6  # besides the first
_SEQUENCES = 512


def partial(laboratory: Laboratory, report: Report) -> Results:
    """Probe models on partial observations, draw, judge: Figure 24."""
    probed = probed_recipes(laboratory, RECIPES["partial"], depth_probes, report)
    if not probed:
        return Results(figures=[], claims=[])
    figure, rows = _draw(probed)
    claims = [next_claim(laboratory, one, "fig24") for one in probed.values()]
    claims += [
        depth_claim(
            *(laboratory, one, f"fig24-{recipe}-preconditioned-falls", "Fig. 24", STEPS, 21),
            high=0.75,
            basis="falls and levels off, no numbers; 0.83 for an untrained model, a tenth less counts",
            layer=len(one.names) // 2,
        )
        for recipe, one in probed.items()
    ]
    result = FigureResult(
        id="uncovering2023-fig24",
        title="Fig. 24: next token and preconditioned input by depth, partial observation",
        caption=(
            f"Error of a linear probe, half the squared error. {HELD_OUT_CAPTION}The input is that of "
            f"five observations side by side, with a ridge of 10. {PRECONDITIONED_CAPTION}"
        ),
        settings=settings_of(laboratory, RECIPES["partial"]),
        rows=rows,
        figure=figure,
    )
    return Results(figures=[result], claims=claims)


def nonlinear(laboratory: Laboratory, report: Report) -> Results:
    """Probe models on the nonlinear system, also while they are trained, draw, judge: Figure 25."""
    recipes = RECIPES["nonlinear"]
    probed = probed_recipes(laboratory, recipes, depth_probes, report)
    if not probed:
        return Results(figures=[], claims=[])
    figure, rows = _draw(probed)
    claims = []
    for recipe, one in probed.items():
        claims.append(
            depth_claim(
                *(laboratory, one, f"fig25-{recipe}-next-falls", "Fig. 25", NEXT, 21),
                high=0.25,
                basis="0.007 published at position 50; 0.52 for random features of an untrained "
                "model, of which half counts",
            )
        )
        for target, published in ((NEXT, NEXT_TOKEN_PROBES), (STEPS, PRECONDITIONING_PROBES)):
            claims += published_claims(
                *(laboratory, one, "Fig. 25", target, published.get(recipe, {})),
                prefix=f"fig25-{recipe}-{'next' if target == NEXT else 'steps'}",
            )
    result = FigureResult(
        id="uncovering2023-fig25",
        title="Fig. 25: next token and preconditioned features by depth, nonlinear system",
        caption=(
            f"Error of a linear probe, half the squared error. {HELD_OUT_CAPTION}What is "
            f"preconditioned are the features of the true teacher. {PRECONDITIONED_CAPTION}"
        ),
        settings=settings_of(laboratory, recipes),
        rows=rows,
        figure=figure,
    )
    growing = _growth(laboratory, report)
    return Results(figures=[result, *growing.figures], claims=[*claims, *growing.claims])


def _draw(probed: dict[str, Probed]) -> tuple[Figure, Rows]:
    figure = Figure(figsize=(7.6, 3.0 * len(probed) + 0.6))
    rows: Rows = []
    panels = figure.subplots(len(probed), 2, squeeze=False)
    for (recipe, one), pair in zip(probed.items(), panels, strict=True):
        published = (NEXT_TOKEN_PROBES.get(recipe, {}), PRECONDITIONING_PROBES.get(recipe, {}))
        for axes, target, theirs in zip(pair, (NEXT, STEPS), published, strict=True):
            colors = {t: COLORS[t] for t in (6, 21, LAST)}
            rows += draw_depth(axes, one, target, colors, theirs)
            axes.set(title=f"{label_of(recipe)}: {target.split(',')[0]}")
            axes.set_ylabel("error of a linear probe")
    position_legend(figure, (6, 21, LAST))
    return figure, rows


def _growth(laboratory: Laboratory, report: Report) -> Results:
    """Probe checkpoints of the softmax model for the teacher's output."""
    runs = laboratory.runs.get("tf-7-nonlinear", [])
    steps = _kept_steps(runs[0]) if runs else []
    if len(steps) < 2:
        return Results(figures=[], claims=[])
    shares: dict[int, dict[int, float]] = {}
    errors: dict[int, dict[int, float]] = {}
    for done, step in enumerate(steps):
        shares[step], errors[step] = _shares(runs[0], step)
        report(done + 1, len(steps))
    figure = Figure(figsize=(7.6, 3.4))
    rows = _draw_growth(figure.subplots(), shares, errors)
    result = FigureResult(
        id="uncovering2023-fig25-training",
        title="What the layers know of the teacher while they are trained",
        caption=(
            f"Share of the teacher's output for the token at position {LAST} that a linear probe "
            "reads off each layer there, held out, by optimiser step; 512 sequences to fit and 512 "
            "to score, one training seed. The authors measure it every 1000 steps, in sample; no "
            "numbers are known."
        ),
        settings=settings_of(laboratory, ("tf-7-nonlinear",)),
        rows=rows,
        figure=figure,
    )
    last = steps[-1]
    probed = depth_probes(laboratory, "tf-7-nonlinear", report)
    assert probed is not None
    unread = {step: (1 - shares[step][1], errors[step][1]) for step in (steps[0], last)}
    value = unread[last][0] / unread[steps[0]][0]
    error = value * math.hypot(*(error / share for share, error in unread.values()))
    claim = limited_claim(
        laboratory,
        probed,
        "fig25-first-layer-learns-the-teacher",
        "Figs. 2B, 25",
        "More of the teacher's output is read behind the first layer after training than at step "
        f"{steps[0]} (ratio of the unread shares)",
        (value, error),
        high=0.5,
        basis="0.99 read behind the trained first layer in Fig. 2B; half of what random features "
        "leave unread counts",
    )
    return Results(figures=[result], claims=[claim])


def _kept_steps(run: Run) -> list[int]:
    """Give some of the steps that a run kept, from the first to the last."""
    kept = RunFolder(run.path).steps if run.path.exists() else []
    chosen = torch.linspace(0, len(kept) - 1, min(_CHECKPOINTS + 1, len(kept))).round().int()
    return sorted({kept[i] for i in chosen.tolist()})


def _shares(run: Run, step: int) -> tuple[dict[int, float], dict[int, float]]:
    """Give the share of the teacher's output that is read off each layer at a step, and its error."""
    task = make_task(run.config.task)
    assert isinstance(task, NonlinearSystem)
    table = probe_layers(
        load_run(run.path, step=step).model.cpu().eval(),
        task,
        {"teacher": past_token(0, through=task.teacher)},
        positions=[LAST],
        num_fit=_SEQUENCES,
        num_score=_SEQUENCES,
    )
    scores = {layer_of(n): s for n, s in table.by_depth("teacher", LAST).items()}
    return (
        {layer: s.r2 for layer, s in scores.items()},
        {layer: s.error / s.uninformative for layer, s in scores.items()},
    )


def _draw_growth(
    axes: Axes, shares: dict[int, dict[int, float]], errors: dict[int, dict[int, float]]
) -> Rows:
    steps = list(shares)
    layers = list(shares[steps[0]])
    colors = (PALETTE[5], *PALETTE[:5], "#a97c50", "#3aa6b9")
    for layer, color in zip(layers, colors, strict=False):
        axes.errorbar(
            steps,
            [shares[step][layer] for step in steps],
            yerr=[1.96 * errors[step][layer] for step in steps],
            color=color,
            marker=".",
            label=f"layer {layer}" if layer else "input",
        )
    axes.set(xlabel="optimiser step", ylabel="share read", ylim=(None, 1.03))
    axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
    return [
        {
            "step": step,
            "layer": layer,
            "r2": shares[step][layer],
            "half_width_95": 1.96 * errors[step][layer],
        }
        for step in steps
        for layer in layers
    ]
