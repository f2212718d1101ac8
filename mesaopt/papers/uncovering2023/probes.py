"""Linear probes of the trained models: what they decode, and how the numbers of a panel are tabulated."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from matplotlib.axes import Axes
from torch import Tensor

from mesaopt.analysis import (
    Evaluation,
    ProbeData,
    ProbeScore,
    ProbeTable,
    Target,
    collect_activations,
    next_token,
    official_probe_error,
    past_token,
    preconditioned_token,
    probe_layers,
    score_probes,
)
from mesaopt.analysis.estimate import Estimate, variance_over_seeds
from mesaopt.config import stacked
from mesaopt.models import make_model
from mesaopt.papers.figure import Panel
from mesaopt.papers.laboratory import Scale, measurement
from mesaopt.papers.rows import PanelData
from mesaopt.papers.uncovering2023.laboratory import Laboratory
from mesaopt.progress import Progress
from mesaopt.recipes import RECIPES
from mesaopt.tasks import (
    LinearSystem,
    NonlinearSystem,
    PartiallyObserved,
    Task,
    make_task,
    tokens_from_states,
)
from mesaopt.theory import PUBLISHED_INVERSES
from mesaopt.training import Run, RunFolder, load_run

NEXT, STEPS, EXACT = "next token", "preconditioned, six steps", "preconditioned, exact"
TEACHER = "teacher"
LAST = 50
"""The last position of a sequence, at which past tokens are decoded."""
TOKENS = range(LAST - 7, LAST + 1)
"""The tokens that are decoded there."""

_POSITIONS = (2, 4, 6, 8, 11, 16, 21, 26, 31, 36, 41, 46, LAST)
_PUBLISHED_POSITIONS = (6, 21, 41, LAST)
_PUBLISHED_SEQUENCES = 256
_OUTLIER_SCORE = 2.0
_STACKED = 5  # observations side by side, as in the authors' code for probes
_CHECKPOINTS = 6  # besides the first

Key = tuple[str, int, int]
"""Target, layer (0: the input of the first), position."""


_BATCHES_THAT_TELL, _BATCH_SPREAD = 4, 0.03
"""Fewer batches do not tell how far batches of 256 spread: by 3 % at least, measured on eight."""


@dataclass(frozen=True)
class Probed:
    """The probes of a recipe's runs."""

    recipe: str
    tables: Sequence[ProbeTable]
    """One per seed."""
    in_sample_errors: Sequence[Mapping[Key, Tensor]]
    """Per seed, errors of probes fitted and scored on the same 256 sequences, one per batch of them."""

    @property
    def layers(self) -> range:
        """The layers behind which it was probed; 0 is the input of the first."""
        return range(len(self._names))

    @property
    def positions(self) -> list[int]:
        """The positions at which it was probed."""
        return list(dict.fromkeys(position for _, _, position in self.tables[0].scores))

    @property
    def _names(self) -> list[str]:
        """Names of the residual stream behind each layer."""
        return list(dict.fromkeys(name for _, name, _ in self.tables[0].scores))

    def seed_scores(self, key: Key) -> list[ProbeScore]:
        """Give the score of every seed."""
        target, layer, position = key
        name = self._names[layer]
        return [table.at(target, name, position) for table in self.tables]

    def score(self, key: Key) -> ProbeScore:
        """Average the score over training seeds, sequence by sequence: all see the same ones."""
        scores = self.seed_scores(key)
        losses = torch.stack([s.losses for s in scores]).mean(0)
        baseline = torch.stack([s.baseline for s in scores]).mean(0)
        controls = torch.tensor([[s.in_sample, s.shuffled] for s in scores]).mean(0).tolist()
        return ProbeScore(losses, baseline, scores[0].dim, *controls)

    def unexplained(self, key: Key) -> Estimate:
        """Estimate the unexplained share of a target's variance, held out."""
        score = self.score(key)
        seeds = torch.tensor([s.mean / score.uninformative for s in self.seed_scores(key)])
        return score.unexplained.with_seeds(seeds)

    def ratio(self, key: Key, other: Key, reference: "Probed | None" = None) -> Estimate:
        """Divide the held-out error of one probe by that of another, of the same or of reference runs."""
        reference = reference or self
        pairs = zip(self.seed_scores(key), reference.seed_scores(other), strict=True)
        ratio = Estimate.ratio(self.score(key).losses, reference.score(other).losses)
        return ratio.with_seeds(torch.tensor([a.mean / b.mean for a, b in pairs]))

    def decodable_tokens(self, layer: int) -> Estimate:
        """Count decodable tokens: the sum of the explained shares of the last eight, held out."""
        keys = [(f"token {t}", layer, LAST) for t in TOKENS]
        scores = [self.score(key) for key in keys]
        rest = [
            (s.losses - s.unexplained.value * s.baseline) / s.uninformative
            for s in scores
            if s.r2 > 0
        ]
        count = sum(max(s.r2, 0.0) for s in scores)
        error = Estimate.of(torch.stack(rest).sum(0)).error if rest else 0.0
        by_seed = zip(*(self.seed_scores(key) for key in keys), strict=True)
        seeds = [sum(max(s.r2, 0.0) for s in one) for one in by_seed]
        return Estimate(count, error).with_seeds(torch.tensor(seeds))

    def in_sample(self, key: Key) -> Estimate:
        """Estimate the error as published, with the error of its difference to the published one.

        Theirs is that of one batch, ours the mean of many, over training seeds.
        """
        errors = torch.stack([of_seed[key] for of_seed in self.in_sample_errors])  # [seed, batch]
        variance = errors.var(1).mean()
        if errors.shape[1] < _BATCHES_THAT_TELL:
            variance = variance.clamp(min=(_BATCH_SPREAD * errors.mean()) ** 2)
        batches = variance * (1 + 1 / errors.shape[1])
        return Estimate.from_variances(errors.mean(), batches, variance_over_seeds(errors.mean(1)))

    def in_sample_share(self, key: Key) -> Estimate:
        """Estimate the unexplained share as published: fitted and scored on the same 256 sequences."""
        errors = torch.stack([of_seed[key] for of_seed in self.in_sample_errors]).mean(0)
        return Estimate.of(errors / self.score(key).baseline.view(len(errors), -1).mean(1))


@measurement
def probe_depth(lab: Laboratory, recipe: str) -> Probed:
    """Probe a recipe's runs for the next token and the preconditioned input, at many positions."""
    return _probe(lab, recipe, lab.trained(recipe), depth_targets, _POSITIONS)


@measurement
def probe_tokens(lab: Laboratory, recipe: str) -> Probed:
    """Probe a recipe's runs for the last eight tokens, at the last position."""
    return _probe(lab, recipe, lab.trained(recipe), _token_targets, (LAST,))


@measurement
def probe_untrained(lab: Laboratory, recipe: str) -> Probed:
    """Probe the initial weights of a recipe's runs for the last eight tokens, as a control.

    A network that has learned nothing still makes features of its input, from which a probe decodes much.
    """
    runs = [
        replace(run, model=make_model(run.config.model, seed=run.config.seed))
        for run in lab.trained(recipe)
    ]
    return _probe(lab, f"{recipe}, untrained", runs, _token_targets, (LAST,))


@measurement
def probe_checkpoints(lab: Laboratory, recipe: str) -> dict[int, Probed]:
    """Probe some checkpoints of a recipe's runs for the teacher's output, by optimiser step."""
    runs = lab.trained(recipe)
    steps = _common_steps(runs)
    probed = {}
    for done, step in enumerate(steps, start=1):
        probed[step] = Probed(recipe, [_probe_checkpoint(lab, run, step) for run in runs], [])
        lab.on_progress(Progress(done, len(steps)))
    return probed


def _probe(
    lab: Laboratory,
    recipe: str,
    runs: Sequence[Run],
    targets: Callable[[Task], dict[str, Target]],
    positions: Sequence[int],
) -> Probed:
    tables, errors = [], []
    for run in runs:
        task, model = make_task(run.config.task), run.model.cpu().eval()
        validation = Evaluation(
            num_sequences=lab.settings.probe_sequences,
            split="validation",
            progress=lab.on_progress,
        )
        fit, score = (
            collect_activations(
                model, task, targets(task), positions=positions, evaluation=evaluation
            )
            for evaluation in (validation, replace(validation, split="test"))
        )
        tables.append(score_probes(fit, score))
        errors.append(_in_sample_errors(score))
    return Probed(recipe, tables, errors)


def _in_sample_errors(data: ProbeData) -> dict[Key, Tensor]:
    """Measure errors as published, on every 256 of the sequences that are scored."""
    errors = {}
    for place, position in enumerate(data.positions):
        if position not in _PUBLISHED_POSITIONS:
            continue
        for target, values in data.targets.items():
            outliers = _OUTLIER_SCORE if target in (STEPS, EXACT) else None
            for layer, features in enumerate(data.features.values()):
                batches = zip(
                    features[:, place].split(_PUBLISHED_SEQUENCES),
                    values[:, place].split(_PUBLISHED_SEQUENCES),
                    strict=True,
                )
                errors[target, layer, position] = torch.tensor(
                    [official_probe_error(x, y, outlier_score=outliers) for x, y in batches]
                )
    return errors


def depth_targets(task: Task) -> dict[str, Target]:
    """Give the next token, and the preconditioned input by the authors' six steps and exactly.

    Source: von Oswald et al., Figures 4, 6, 24, 25. On the linear task the steps are those learned for
    constructed tokens where tokens are constructed, and those for seven layers where they are plain: with
    these, all pairs and no outliers errors before the first layer are as published (2.82 of lsa-6 and 3.36
    of tf-7 here at position 6, 2.75 and 3.27 there; with the other steps tf-7 has 2.94).
    """
    constructed = isinstance(task, LinearSystem) and "previous" in task.config.token_slots
    inverse, inputs = PUBLISHED_INVERSES["constructed" if constructed else "7-layer"], None
    if isinstance(task, PartiallyObserved):
        inverse = PUBLISHED_INVERSES["partially-observed"]
        inputs = lambda states: tokens_from_states(states, stacked(_STACKED))  # noqa: E731
    if isinstance(task, NonlinearSystem):
        inverse, inputs = PUBLISHED_INVERSES["nonlinear"], task.features
    return {
        NEXT: next_token,
        STEPS: preconditioned_token(inverse, inputs=inputs),
        EXACT: preconditioned_token(inverse.ridge, inputs=inputs),
    }


def _token_targets(task: Task) -> dict[str, Target]:
    """Give the last eight tokens, "token 43" to "token 50".

    Of a nonlinear task also the teacher's output for them, "teacher 43" and so on, and that divided by its
    norm, "features 43" and so on.
    """
    targets = {f"token {t}": past_token(LAST - t) for t in TOKENS}
    if isinstance(task, NonlinearSystem):
        targets |= {f"teacher {t}": past_token(LAST - t, through=task.teacher) for t in TOKENS}
        targets |= {f"features {t}": past_token(LAST - t, through=task.features) for t in TOKENS}
    return targets


def _common_steps(runs: Sequence[Run]) -> list[int]:
    """Choose some of the steps at which all runs have checkpoints, from the first to the last."""
    of_runs = [set(RunFolder(run.path).steps) if run.path.exists() else set() for run in runs]
    common = sorted(set.intersection(*of_runs)) if of_runs else []
    chosen = torch.linspace(0, len(common) - 1, min(_CHECKPOINTS + 1, len(common))).round().int()
    return sorted({common[i] for i in chosen.tolist()})


def _probe_checkpoint(lab: Laboratory, run: Run, step: int) -> ProbeTable:
    """Probe each layer at a step for the teacher's output; all runs and steps on the same sequences."""
    task = make_task(run.config.task)
    assert isinstance(task, NonlinearSystem)
    return probe_layers(
        load_run(run.path, step=step).model.cpu().eval(),
        task,
        {TEACHER: past_token(0, through=task.teacher)},
        positions=[LAST],
        num_fit=lab.settings.probe_sequences_while_training,
        num_score=lab.settings.probe_sequences_while_training,
    )


@dataclass(frozen=True, kw_only=True)
class Curve:
    """Probes whose errors are drawn as one curve of a panel."""

    panel: str
    """Its name in the table."""
    probed: Probed
    keys: Sequence[Key]
    published: Sequence[float | None] = ()
    """Published errors, one per key, or none."""
    mean_square: bool = False
    """Whether errors are mean squares per coordinate, in place of half squared errors."""


def probe_panel(
    name: str,
    recipes: Sequence[str],
    curves: Callable[[Laboratory, str], Iterable[Curve]],
    draw: Callable[[Axes, PanelData], None],
) -> Panel[Laboratory]:
    """Make a panel of the curves of those recipes that have runs.

    In `more` are two further columns: the error of every seed where there are several, and the half-width
    of the explained share.
    """

    def measure(lab: Laboratory) -> PanelData | None:
        numbers = [
            _number(curve, key, published)
            for recipe in recipes
            if lab.trained(recipe)
            for curve in curves(lab, recipe)
            for key, published in zip(
                curve.keys, curve.published or [None] * len(curve.keys), strict=True
            )
        ]
        more = {
            column: [n.pop(column) for n in numbers] for column in ("seeds", "r2_half_width_95")
        }
        return PanelData(rows=numbers, more=more) if numbers else None

    return Panel(name=name, measure=measure, draw=draw)


def _number(curve: Curve, key: Key, published: float | None) -> dict[str, Any]:
    """Tabulate one probe; errors are half squares, or mean squares per coordinate."""
    (target, layer, position), probed = key, curve.probed
    score, seeds = probed.score(key), probed.seed_scores(key)
    unit = score.per_coordinate if curve.mean_square else 1.0
    in_sample = key in probed.in_sample_errors[0]
    return {
        "panel": curve.panel,
        "recipe": probed.recipe,
        "target": target,
        "layer": layer,
        "position": position,
        "held_out": unit * score.mean,
        "half_width_95": 1.96 * unit * score.estimate.error,
        "r2": score.r2,
        "in_sample_256": unit * probed.in_sample(key).value if in_sample else None,
        "published": published,
        "uninformative": unit * score.uninformative,
        "shuffled": unit * score.shuffled,
        "seeds": [unit * one.mean for one in seeds] if len(seeds) > 1 else [],
        "r2_half_width_95": 1.96 * score.unexplained.error,
    }


def training_length(lab: Laboratory, recipe: str) -> str:
    """Say for how long a recipe was trained, for the basis of a claim: "after 2500 of 10000 steps"."""
    if lab.lacks(recipe):
        return "not trained yet"
    train, published = lab.trained(recipe)[0].config.train, RECIPES[recipe].config.train
    length = f"after {train.steps} of {published.steps} steps"
    if train.batch_size == published.batch_size:
        return length
    return f"{length}, {train.batch_size} for {published.batch_size} sequences in each"


def probe_settings(lab: Laboratory) -> dict[str, Any]:
    """Give the number of scored sequences, for the line under a figure."""
    return {"test sequences": lab.settings.probe_sequences}


def probing_seconds(models: int) -> dict[Scale, float]:
    """Estimate the time to probe so many models that no earlier figure has probed."""
    return {"smoke": 1 + 0.5 * models, "small": 1 + 4.0 * models, "paper": 1 + 60.0 * models}
