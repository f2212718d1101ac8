"""What the probing figures share: every run, probed once for all of them."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

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
    score_probes,
)
from mesaopt.config import stacked
from mesaopt.models import make_model
from mesaopt.papers.plan import Report
from mesaopt.papers.uncovering2023.laboratory import Laboratory
from mesaopt.papers.uncovering2023.noise import variance_over_seeds
from mesaopt.tasks import NonlinearSystem, PartiallyObserved, Task, make_task, tokens_from_states
from mesaopt.theory import PUBLISHED_INVERSES
from mesaopt.training import Run

NEXT, STEPS, EXACT = "next token", "preconditioned, six steps", "preconditioned, exact"
CHOSEN_BY = ("lsa-6", "tf-7")
"""Recipes whose published errors before the first layer said how preconditioned targets are made."""
LAST = 50
"""The position that token probes read, the last of a sequence."""
TOKENS = range(LAST - 7, LAST + 1)
"""The tokens that they are to find there."""

_POSITIONS = (2, 4, 6, 8, 11, 16, 21, 26, 31, 36, 41, 46, LAST)
_OFFICIAL_POSITIONS = (6, 21, 41, LAST)  # those with published numbers
_OFFICIAL_BATCH = 256
_OUTLIER_SCORE = 2.0
_SEQUENCES = {
    "smoke": 512,
    "small": 2048,
    "paper": 5120,
}  # fitted, and as many scored; two batches or more
_STACKED = 5  # observations side by side, as the text has it for probes; the code is not known

Key = tuple[str, str, int]
"""Target, name of the part, position."""


@dataclass(frozen=True)
class Probed:
    """The probes of a recipe, over its training seeds."""

    recipe: str
    tables: list[ProbeTable]
    """One per seed."""
    official: list[Mapping[Key, Tensor]]
    """Per seed, errors fitted and scored on the same 256 sequences, one per batch of them."""

    @property
    def names(self) -> list[str]:
        """Parts of the stream, in order."""
        return list(dict.fromkeys(name for _, name, _ in self.tables[0].scores))

    @property
    def positions(self) -> list[int]:
        """Where was probed."""
        return list(dict.fromkeys(t for _, _, t in self.tables[0].scores))

    def score(self, target: str, name: str, position: int) -> ProbeScore:
        """Average the score over training seeds, sequence by sequence: all see the same ones."""
        scores = [table.at(target, name, position) for table in self.tables]
        losses, baseline = (
            torch.stack([getattr(s, part) for s in scores]).mean(0)
            for part in ("losses", "baseline")
        )
        controls = torch.tensor([[s.in_sample, s.shuffled] for s in scores]).mean(0).tolist()
        return ProbeScore(losses, baseline, scores[0].dim, *controls)

    def seed_means(self, target: str, name: str, position: int) -> list[float]:
        """Give the mean of every seed."""
        return [table.at(target, name, position).mean for table in self.tables]

    def in_sample(self, target: str, name: str, position: int) -> tuple[float, float]:
        """Give the error measured as published, and the standard error of its difference to theirs.

        Theirs is that of one batch, ours the mean of many, over training seeds.
        """
        batches = torch.stack([found[target, name, position] for found in self.official])
        variance = batches.var(1).mean() * (1 + 1 / batches.shape[1])
        if len(batches) > 1:
            variance = variance + batches.mean(1).var() / len(batches)
        return batches.mean().item(), variance.sqrt().item()

    def in_sample_shares(self, target: str, name: str, position: int) -> Tensor:
        """Divide the error measured as published by that of what reads nothing, batch by batch."""
        key = (target, name, position)
        errors = torch.stack([found[key] for found in self.official]).mean(0)
        return errors / self.score(*key).baseline.view(len(errors), -1).mean(1)


def depth_probes(laboratory: Laboratory, recipe: str, report: Report) -> Probed | None:
    """Probe the runs of a recipe for the next token and the preconditioned input, at many positions.

    Args:
        laboratory: the runs.
        recipe: whose.
        report: told the batches of sequences done.

    Returns:
        The probes; None where nothing of the recipe was trained.
    """
    return _probed(laboratory, recipe, report, "depth", depth_targets, _POSITIONS)


def token_probes(laboratory: Laboratory, recipe: str, report: Report) -> Probed | None:
    """Probe the runs of a recipe for the tokens up to the last position, there.

    Args:
        laboratory: the runs.
        recipe: whose.
        report: told the batches of sequences done.

    Returns:
        The probes; None where nothing of the recipe was trained.
    """
    return _probed(laboratory, recipe, report, "tokens", token_targets, (LAST,))


def depth_targets(task: Task) -> dict[str, Target]:
    """Say what depth is probed for on a task.

    Args:
        task: linear, observed in part, or nonlinear.

    Returns:
        The next token, and the preconditioned input by the authors' six steps and exactly.

    Source: von Oswald et al., Figures 4, 6, 24, 25. The inverse of the linear task is the one learned for
    constructed tokens: it, all pairs and no outliers were chosen because with them errors before the first
    layer are as published for both models (0.0489 +- 0.0016 and 0.0508 +- 0.0016 here at position 21,
    0.0465 and 0.0513 there).
    """
    inputs = None
    inverse = PUBLISHED_INVERSES["constructed"]
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


def token_targets(task: Task) -> dict[str, Target]:
    """Say what binding is probed for on a task.

    Args:
        task: linear, observed in part, or nonlinear.

    Returns:
        The last eight tokens, "token 43" to "token 50" for the last position; of a nonlinear task also
        what its teacher makes of them, "teacher 43" and so on, and that divided by its norm,
        "features 43" and so on.
    """
    targets = {f"token {t}": past_token(LAST - t) for t in TOKENS}
    if isinstance(task, NonlinearSystem):
        targets |= {f"teacher {t}": past_token(LAST - t, through=task.teacher) for t in TOKENS}
        targets |= {f"features {t}": past_token(LAST - t, through=task.features) for t in TOKENS}
    return targets


_CACHE: WeakKeyDictionary[nn.Module, dict[str, tuple[ProbeTable, Mapping[Key, Tensor]]]]
_CACHE = WeakKeyDictionary()
"""By model, so that figures share what they read of it."""


def _probed(
    laboratory: Laboratory,
    recipe: str,
    report: Report,
    kind: str,
    targets: Callable[[Task], dict[str, Target]],
    positions: Sequence[int],
) -> Probed | None:
    runs = laboratory.runs.get(recipe, [])
    num_sequences = _SEQUENCES[laboratory.plan.scale]
    batches = 2 * num_sequences // _OFFICIAL_BATCH
    found = []
    for seed, run in enumerate(runs):
        cache = _CACHE.setdefault(run.model, {})
        if kind not in cache:
            advance = lambda done, seed=seed: report(seed * batches + done, len(runs) * batches)  # noqa: E731
            task = make_task(run.config.task)
            cache[kind] = _probe(run, task, targets(task), positions, num_sequences, advance)
        found.append(cache[kind])
    return Probed(recipe, [t for t, _ in found], [o for _, o in found]) if found else None


def _probe(
    run: Run,
    task: Task,
    targets: dict[str, Target],
    positions: Sequence[int],
    num_sequences: int,
    report: Callable[[int], None],
) -> tuple[ProbeTable, Mapping[Key, Tensor]]:
    model = run.model.cpu().eval()
    validation = Evaluation(
        num_sequences=num_sequences, split="validation", on_progress=lambda done, _: report(done)
    )
    half = num_sequences // _OFFICIAL_BATCH
    test = Evaluation(num_sequences=num_sequences, on_progress=lambda done, _: report(half + done))
    fit, score = (
        collect_activations(model, task, targets, positions=positions, evaluation=evaluation)
        for evaluation in (validation, test)
    )
    return score_probes(fit, score), _official(score)


def _official(data: ProbeData) -> dict[Key, Tensor]:
    """Measure errors as published, on every 256 of the sequences that are scored."""
    found = {}
    for place, position in enumerate(data.positions):
        if position not in _OFFICIAL_POSITIONS:
            continue
        for target, values in data.targets.items():
            outliers = _OUTLIER_SCORE if target in (STEPS, EXACT) else None
            for name, features in data.features.items():
                batches = zip(
                    features[:, place].split(_OFFICIAL_BATCH),
                    values[:, place].split(_OFFICIAL_BATCH),
                    strict=True,
                )
                errors = [official_probe_error(x, y, outlier_score=outliers) for x, y in batches]
                found[target, name, position] = torch.tensor(errors)
    return found


def layer_of(name: str) -> int:
    """Give the layer that a part of the stream stands behind; 0 is before the first.

    Example:
        >>> layer_of("blocks.0.input"), layer_of("blocks.2")
        (0, 3)
    """
    return 0 if name.endswith(".input") else int(name.split(".")[1]) + 1


def layer_name(layer: int) -> str:
    """Give the part of the stream behind a layer, counted from 1; 0 is before the first.

    Example:
        >>> layer_name(0), layer_name(3)
        ('blocks.0.input', 'blocks.2')
    """
    return f"blocks.{layer - 1}" if layer else "blocks.0.input"


def tokens_held(probed: Probed, name: str) -> float:
    """Count the last eight tokens that a part of the stream holds: sum of the shares read, held out."""
    return sum(max(probed.score(f"token {t}", name, LAST).r2, 0.0) for t in TOKENS)


def tokens_held_error(probed: Probed, name: str) -> float:
    """Give the standard error of :func:`tokens_held`, over sequences and training seeds."""
    keys = [(f"token {t}", name, LAST) for t in TOKENS]
    read = [s for s in (probed.score(*key) for key in keys) if s.r2 > 0]
    rest = [(s.losses - s.unexplained.value * s.baseline) / s.uninformative for s in read]
    spread = (torch.stack(rest).sum(0).std() / len(rest[0]) ** 0.5).item() if rest else 0.0
    held = [sum(max(table.at(*key).r2, 0.0) for key in keys) for table in probed.tables]
    return math.hypot(spread, _error_over(held))


def unread(probed: Probed, key: Key) -> tuple[float, float]:
    """Give the share of a target that is not read, held out, and its standard error."""
    score = probed.score(*key)
    seeds = _error_over([mean / score.uninformative for mean in probed.seed_means(*key)])
    return score.unexplained.value, math.hypot(score.unexplained.error, seeds)


def quotient(above: tuple[float, float], below: tuple[float, float]) -> tuple[float, float]:
    """Divide one number with a standard error by another.

    Example:
        >>> quotient((1.0, 0.3), (2.0, 0.8))
        (0.5, 0.25)
    """
    (a, error_a), (b, error_b) = above, below
    return a / b, math.hypot(error_a, a / b * error_b) / b


def ratio(
    probed: Probed, key: Key, other: Key, reference: Probed | None = None
) -> tuple[float, float]:
    """Divide the held-out error of one probe by that of another on the same sequences.

    Args:
        probed: whose.
        key: in the numerator.
        other: in the denominator.
        reference: whose that is; the same if not given.

    Returns:
        The ratio and its standard error, over sequences and training seeds.
    """
    reference = reference or probed
    a, b = probed.score(*key).losses, reference.score(*other).losses
    value = (a.mean() / b.mean()).item()
    spread = ((a - value * b).std() / b.mean() / len(a) ** 0.5).item()
    pairs = zip(probed.seed_means(*key), reference.seed_means(*other), strict=True)
    return value, math.hypot(spread, _error_over([x / y for x, y in pairs]))


def untrained(laboratory: Laboratory, recipe: str) -> Laboratory:
    """Give the runs of a recipe with the weights they started from, as a control.

    A network that has learned nothing still makes features of its input, of which a probe can read much.
    """
    runs = [
        replace(run, model=make_model(run.config.model, seed=run.config.seed))
        for run in laboratory.runs[recipe]
    ]
    return Laboratory(laboratory.plan, {recipe: runs})


def _error_over(values: Sequence[float]) -> float:
    """Give the standard error over seeds; zero where one says nothing about it."""
    return variance_over_seeds(torch.tensor(values)).sqrt().item()


def scored_sequences(laboratory: Laboratory) -> int:
    """Say how many test sequences probes are scored on; as many others fit them."""
    return _SEQUENCES[laboratory.plan.scale]


def probed_recipes(
    laboratory: Laboratory,
    recipes: Sequence[str],
    probe: Callable[[Laboratory, str, Report], Probed | None],
    report: Report,
) -> dict[str, Probed]:
    """Probe those of some recipes that there are runs of.

    Args:
        laboratory: the runs.
        recipes: by name.
        probe: :func:`depth_probes` or :func:`token_probes`.
        report: told the batches done, of all of them.

    Returns:
        By recipe, in the order given.
    """
    there = [recipe for recipe in recipes if laboratory.runs.get(recipe)]
    found = {}
    for place, recipe in enumerate(there):
        advance = lambda done, total, place=place: report(place * total + done, len(there) * total)  # noqa: E731
        probed = probe(laboratory, recipe, advance)
        assert probed is not None
        found[recipe] = probed
    return found
