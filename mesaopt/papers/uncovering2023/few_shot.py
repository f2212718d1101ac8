"""Models of next tokens used few-shot, beside least squares: what Figures 8 and 18 share."""

import functools
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from mesaopt.analysis import (
    Evaluation,
    InContextLoss,
    Predictor,
    TunedPrompt,
    few_shot_losses,
    in_context_loss,
    tune,
    tune_prompt,
)
from mesaopt.config import FewShotConfig
from mesaopt.papers.plan import Scale
from mesaopt.papers.uncovering2023.core_measure import average
from mesaopt.tasks import Batch, FewShot
from mesaopt.theory import Pairs, context_statistics, ridge_least_squares
from mesaopt.training import Run

AS_PUBLISHED = "least squares, six Newton steps, official"
ON_TOKENS = "least squares, best ridge"
ZERO_SEPARATOR = "least squares with a zero between pairs, best ridge"
TRUE_PAIRS = "least squares on the true pairs"
ALGORITHMS = (AS_PUBLISHED, ON_TOKENS, ZERO_SEPARATOR, TRUE_PAIRS)

PAIRS, SEPARATOR, PREFIX = "pairs", "separator", "prefix"
LABELS = {PAIRS: "pairs alone", SEPARATOR: "with EOS", PREFIX: "with EOS and prefix"}
"""What a model is shown: pairs, EOS between them, 20 vectors in front too."""

_NUM_PAIRS = 68
"""What 224 tokens hold behind a prefix. A causal model need not see more to be scored on these."""
_PREFIX_LENGTH = 20
_LENGTHS = {PAIRS: 2 * _NUM_PAIRS, SEPARATOR: 3 * _NUM_PAIRS, PREFIX: 224}
SWITCH_AFTER = 20
"""Pairs before another matrix, where there are two tasks."""
EOS_SWITCH_AFTER = 27
"""The authors' with EOS, whose other matrix comes after 81 tokens."""
TOKEN_NORM = (10 / 3) ** 0.5
"""Of an input uniform on [-1, 1]^10, root mean square."""
Switch = Literal["one task", "two tasks"]
_BARE = FewShotConfig(length=2 * _NUM_PAIRS)
_SEPARATED = FewShotConfig(length=3 * _NUM_PAIRS, layout="triples")
_SWITCHES: dict[Switch, int | None] = {"one task": None, "two tasks": SWITCH_AFTER}


@dataclass(frozen=True, kw_only=True)
class Tuning:
    """How EOS and the prefix are learned at a scale."""

    steps: int
    batch_sizes: tuple[int, int]
    """Of EOS, of the prefix."""
    learning_rate: float
    schedule: Literal["constant", "cosine"]


TUNING: dict[Scale, Tuning] = {
    "smoke": Tuning(steps=2, batch_sizes=(2, 2), learning_rate=0.1, schedule="cosine"),
    "small": Tuning(steps=150, batch_sizes=(16, 16), learning_rate=0.1, schedule="cosine"),
    "paper": Tuning(steps=5000, batch_sizes=(64, 128), learning_rate=1e-3, schedule="constant"),
}
SEQUENCES: dict[Scale, int] = {"smoke": 512, "small": 2560, "paper": 5120}

Curves = dict[tuple[Switch, str], InContextLoss]
"""By switch, and by what a model is shown or by algorithm."""


@dataclass(frozen=True)
class Measurement:
    """What one model makes of pairs, over its training seeds."""

    prompts: list[TunedPrompt]
    """Of every seed, with EOS and the prefix."""
    separators: list[TunedPrompt]
    """Of every seed, EOS while it was learned."""
    seed_curves: list[Curves]

    @property
    def curves(self) -> Curves:
        """The mean over seeds, sequence by sequence."""
        return {key: average([one[key] for one in self.seed_curves]) for key in self.seed_curves[0]}


def work(num_runs: int, scale: Scale) -> int:
    """Count the steps and batches that :func:`measure` reports."""
    return num_runs * (2 * TUNING[scale].steps + 6 * -(-SEQUENCES[scale] // 256))


def measure(runs: list[Run], scale: Scale, report: Callable[[int], None]) -> Measurement:
    """Learn prompts for every run and score it with them.

    Args:
        runs: one per training seed; left on the CPU.
        scale: says how long to learn, and on how many sequences to score.
        report: called once a step and once a batch.

    Returns:
        Prompts and losses.
    """
    separators, prompts, curves = [], [], []
    for run in runs:
        model = run.model  # prompts are learned on the device where it is
        separator, prompt = learn_prompts(model, TUNING[scale], report)
        separators.append(separator)
        prompts.append(prompt)
        shown = {PAIRS: None, SEPARATOR: separator, PREFIX: prompt}
        curves.append(model_curves(model.cpu(), shown, SEQUENCES[scale], report))
    return Measurement(prompts, separators, curves)


def learn_prompts(
    model: torch.nn.Module, tuning: Tuning, report: Callable[[int], None]
) -> tuple[TunedPrompt, TunedPrompt]:
    """Learn EOS, then a prefix with EOS held.

    Args:
        model: with its weights.
        tuning: steps, batches, rate.
        report: called once a step.

    Returns:
        Both prompts; the second has the EOS of the first.
    """
    config = FewShotConfig(layout="triples")
    settings: dict[str, Any] = {
        "steps": tuning.steps,
        "learning_rate": tuning.learning_rate,
        "schedule": tuning.schedule,
        "on_progress": lambda done, _: report(done),
    }
    few, many = tuning.batch_sizes
    separator = tune_prompt(model, FewShot(config), batch_size=few, **settings)
    behind = FewShot(replace(config, prefix_length=_PREFIX_LENGTH))
    held = separator.separator
    return separator, tune_prompt(model, behind, separator=held, batch_size=many, **settings)


@torch.no_grad()
def model_curves(
    model: Callable[[Tensor], Tensor],
    shown: dict[str, TunedPrompt | None],
    num_sequences: int,
    report: Callable[[int], None],
) -> Curves:
    """Score a model on one task and on two, with every prompt.

    Args:
        model: on the CPU.
        shown: prompts by name.
        num_sequences: test sequences.
        report: called once a batch.

    Returns:
        The losses on the first 68 pairs.
    """
    evaluation = Evaluation(num_sequences=num_sequences, on_progress=lambda done, _: report(done))
    return {
        (switch, name): few_shot_losses(
            model,
            FewShot(FewShotConfig(length=_LENGTHS[name], switch_after=after)),
            prompt,
            evaluation,
        )
        for switch, after in _SWITCHES.items()
        for name, prompt in shown.items()
    }


def least_squares_curves(num_sequences: int, report: Callable[[int], None] | None = None) -> Curves:
    """Score least squares, as published and as it can be, on the sequences of the models.

    Args:
        num_sequences: test sequences.
        report: called once an algorithm, of :data:`ALGORITHMS`.

    Returns:
        The losses on the first 68 pairs.
    """
    curves: Curves = {}
    for done, name in enumerate(ALGORITHMS, start=1):
        curves |= _algorithm_curves(name, num_sequences)
        if report is not None:
            report(done)
    return curves


@functools.cache
def _algorithm_curves(name: str, num_sequences: int) -> Curves:
    predict = {
        AS_PUBLISHED: lambda: newton_steps,
        ON_TOKENS: lambda: _on_tokens(_best_ridge(_BARE)),
        ZERO_SEPARATOR: lambda: _on_tokens(_best_ridge(_SEPARATED)),
        TRUE_PAIRS: lambda: _on_true_pairs,
    }[name]()
    config = _SEPARATED if name == ZERO_SEPARATOR else _BARE
    curves: Curves = {}
    for switch, after in _SWITCHES.items():
        task = FewShot(replace(config, switch_after=after))
        losses = in_context_loss({"": predict}, task, Evaluation(num_sequences=num_sequences))[""]
        curves[switch, name] = InContextLoss(losses.losses)
    return curves


def _best_ridge(config: FewShotConfig) -> float:
    return tune(
        _on_tokens,
        FewShot(config),
        bounds=(1e-4, 1e2),
        spacing="log",
        tolerance=0.03,
        evaluation=Evaluation(num_sequences=256, split="validation"),
    ).value


def newton_steps(batch: Batch, *, num_steps: int = 6, pairs: Pairs = "official") -> Tensor:
    """Predict with an inverse of the Gram matrix by Newton's iteration.

    X <- X (2 I - A X) from X = I / tr A, with A = H_t + 0.001 I. After k steps, A X is
    I - (I - A / tr A)^(2^k): directions of few data are shrunk, as by a ridge that grows with the trace.

    Args:
        batch: the sequences.
        num_steps: k.
        pairs: "official" without the newest pair, or "all".

    Returns:
        Predictions [batch, time, dim].

    Source: the authors' code has this solver with six steps for a default. That it drew the curve of
    Figures 8 and 18 is our inference: chi squared of its distance from the nine known numbers is 5, that of
    a ridge of 0.25 is 66, that of the steps published for other figures 26 or more.
    """
    gram, cross = context_statistics(batch.observed.double(), pairs=pairs)
    identity = torch.eye(gram.shape[-1], dtype=gram.dtype)
    matrix = gram + 1e-3 * identity
    inverse = identity / matrix.diagonal(dim1=-2, dim2=-1).sum(-1)[..., None, None]
    for _ in range(num_steps):
        inverse = inverse @ (2 * identity - matrix @ inverse)
    solved = inverse @ batch.observed.double().unsqueeze(-1)
    return (cross @ solved).squeeze(-1).to(batch.observed.dtype)


def _on_tokens(ridge: float) -> Predictor:
    return lambda batch: ridge_least_squares(batch.observed, ridge=ridge)


def _on_true_pairs(batch: Batch) -> Tensor:
    # What follows an input of zero counts for nothing. The best ridge is the variance of the noise over
    # that of an entry of W, 0.01^2 / (1 / 10).
    inputs = torch.zeros_like(batch.observed)
    inputs[:, batch.scored] = batch.observed[:, batch.scored]
    return ridge_least_squares(batch.observed, ridge=1e-3, inputs=inputs)
