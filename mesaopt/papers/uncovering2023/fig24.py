"""Figures 24 and 25: what depth reads on systems observed in part, and on nonlinear ones."""

from collections.abc import Sequence

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from mesaopt.analysis import ProbeTable, past_token, probe_layers
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
    layer_name,
    layer_of,
    probed_recipes,
    ratio,
    scored_sequences,
    unread,
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
    claims = [next_claim(laboratory, one, "fig24", "Fig. 24", {}) for one in probed.values()]
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
        settings=settings_of(
            laboratory, RECIPES["partial"], sequences=scored_sequences(laboratory)
        ),
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
        settings=settings_of(laboratory, recipes, sequences=scored_sequences(laboratory)),
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
    there = any(
        recipe in NEXT_TOKEN_PROBES or recipe in PRECONDITIONING_PROBES for recipe in probed
    )
    position_legend(figure, (6, 21, LAST), published=there)
    return figure, rows


def _growth(laboratory: Laboratory, report: Report) -> Results:
    """Probe checkpoints of the softmax model for the teacher's output."""
    runs = laboratory.runs.get("tf-7-nonlinear", [])
    steps = _kept_steps(runs)
    if len(steps) < 2:
        return Results(figures=[], claims=[])
    probed: dict[int, Probed] = {}
    for done, step in enumerate(steps):
        probed[step] = Probed("tf-7-nonlinear", [_table(run, step) for run in runs], official=[])
        report(done + 1, len(steps))
    figure = Figure(figsize=(7.6, 3.4))
    rows = _draw_growth(figure.subplots(), probed)
    result = FigureResult(
        id="uncovering2023-fig25-training",
        title="Fig. 25, while training: what the layers know of the teacher",
        caption=(
            f"Share of the teacher's output for the token at position {LAST} that a linear probe "
            "reads off each layer there, held out, by optimiser step: mean over training seeds with "
            "95 % intervals, seeds as thin lines where there are several; as many sequences fit as are "
            "scored. The authors measure it every 1000 steps, in sample; no numbers are known."
        ),
        settings=settings_of(laboratory, ("tf-7-nonlinear",), sequences=_SEQUENCES),
        rows=rows,
        figure=figure,
    )
    first, last = probed[steps[0]], probed[steps[-1]]
    key = ("teacher", layer_name(1), LAST)
    claim = limited_claim(
        laboratory,
        last,
        "fig25-first-layer-learns-the-teacher",
        "Fig. 25",
        "More of the teacher's output is read behind the first layer after training than at step "
        f"{steps[0]} (ratio of held-out errors)",
        ratio(last, key, key, first),
        high=0.5,
        basis="0.99 read behind the trained first layer in Fig. 2B; half of what random features "
        "leave unread counts",
    )
    return Results(figures=[result], claims=[claim])


def _kept_steps(runs: Sequence[Run]) -> list[int]:
    """Give some of the steps that all runs kept, from the first to the last."""
    each = [set(RunFolder(run.path).steps) if run.path.exists() else set() for run in runs]
    kept = sorted(set.intersection(*each)) if each else []
    chosen = torch.linspace(0, len(kept) - 1, min(_CHECKPOINTS + 1, len(kept))).round().int()
    return sorted({kept[i] for i in chosen.tolist()})


def _table(run: Run, step: int) -> ProbeTable:
    """Probe each layer at a step for the teacher's output; all runs and steps on the same sequences."""
    task = make_task(run.config.task)
    assert isinstance(task, NonlinearSystem)
    return probe_layers(
        load_run(run.path, step=step).model.cpu().eval(),
        task,
        {"teacher": past_token(0, through=task.teacher)},
        positions=[LAST],
        num_fit=_SEQUENCES,
        num_score=_SEQUENCES,
    )


def _draw_growth(axes: Axes, probed: dict[int, Probed]) -> Rows:
    steps = list(probed)
    colors = (PALETTE[5], *PALETTE[:5], "#a97c50", "#3aa6b9")
    rows: Rows = []
    for name, color in zip(probed[steps[0]].names, colors, strict=False):
        key, layer = ("teacher", name, LAST), layer_of(name)
        left = [unread(probed[step], key) for step in steps]
        axes.errorbar(
            steps,
            [1 - share for share, _ in left],
            yerr=[1.96 * error for _, error in left],
            color=color,
            marker=".",
            label=f"layer {layer}" if layer else "input",
        )
        seeds = list(zip(*(probed[step].tables for step in steps), strict=True))
        for tables in seeds if len(seeds) > 1 else []:
            axes.plot(
                steps, [table.at(*key).r2 for table in tables], color=color, lw=0.5, alpha=0.5
            )
        rows += [
            {"step": step, "layer": layer, "r2": 1 - share, "half_width_95": 1.96 * error}
            for step, (share, error) in zip(steps, left, strict=True)
        ]
    axes.set(xlabel="optimiser step", ylabel="share read", ylim=(None, 1.03))
    axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
    return rows
