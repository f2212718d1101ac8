"""Models used few-shot: prompts learned for them, and losses on pairs next to those of least squares.

Figures 8 and 18 draw and judge them, in :mod:`mesaopt.papers.uncovering2023.few_shot`.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor, nn

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
from mesaopt.papers.laboratory import measurement
from mesaopt.papers.uncovering2023.laboratory import Laboratory
from mesaopt.papers.uncovering2023.settings import PromptSettings
from mesaopt.progress import OnProgress
from mesaopt.tasks import Batch, FewShot
from mesaopt.theory import Pairs, context_statistics, ridge_least_squares
from mesaopt.training import Run

AS_PUBLISHED = "least squares, six Newton steps, official"
ON_TOKENS = "least squares, best ridge"
ZERO_SEPARATOR = "least squares with a zero between pairs, best ridge"
TRUE_PAIRS = "least squares on the true pairs"

PAIRS, SEPARATOR, PREFIX = "pairs", "separator", "prefix"
"""Sequences of a model: bare pairs, EOS between them, 20 learned vectors in front too."""

SWITCH_AFTER = 20
"""Pairs before another matrix, where there are two tasks."""
Switch = Literal["one task", "two tasks"]
Curves = dict[tuple[Switch, str], InContextLoss]
"""Losses by switch, and by sequence of a model or algorithm."""

_SWITCHES: dict[Switch, int | None] = {"one task": None, "two tasks": SWITCH_AFTER}
_NUM_PAIRS = 68  # in 224 tokens, behind a prefix; a causal model need not see more
_PREFIX_LENGTH = 20
_LENGTHS = {PAIRS: 2 * _NUM_PAIRS, SEPARATOR: 3 * _NUM_PAIRS, PREFIX: 224}
_BARE = FewShotConfig(length=2 * _NUM_PAIRS)
_SEPARATED = FewShotConfig(length=3 * _NUM_PAIRS, layout="triples")


@dataclass(frozen=True)
class PromptedRun:
    """A run with the prompts learned for it, and its losses with them."""

    separator: TunedPrompt
    """EOS, while it was learned."""
    prefix: TunedPrompt
    """The prefix, while it was learned, with the same EOS."""
    curves: Curves


@measurement
def prompted_runs(lab: Laboratory, recipe: str) -> list[PromptedRun]:
    """Learn prompts for every run of a recipe, and score it with them."""
    return [_prompted(lab, run) for run in lab.trained(recipe)]


def _prompted(lab: Laboratory, run: Run) -> PromptedRun:
    model = run.model  # prompts are learned on the device where it is
    separator, prefix = learn_prompts(model, lab.settings.prompts, lab.on_progress)
    evaluation = Evaluation(num_sequences=lab.settings.few_shot_sequences, progress=lab.on_progress)
    curves = model_curves(model.cpu(), separator, prefix, evaluation)
    return PromptedRun(separator, prefix, curves)


def learn_prompts(
    model: nn.Module, settings: PromptSettings, on_progress: OnProgress
) -> tuple[TunedPrompt, TunedPrompt]:
    """Learn EOS, then a prefix with the same EOS."""
    config = FewShotConfig(layout="triples")
    learn = functools.partial(
        tune_prompt,
        model,
        steps=settings.steps,
        learning_rate=settings.learning_rate,
        schedule=settings.schedule,
        progress=on_progress,
    )
    few, many = settings.batch_sizes
    separator = learn(FewShot(config), batch_size=few)
    prefixed = FewShot(replace(config, prefix_length=_PREFIX_LENGTH))
    return separator, learn(prefixed, separator=separator.separator, batch_size=many)


@torch.no_grad()
def model_curves(
    model: Callable[[Tensor], Tensor],
    separator: TunedPrompt,
    prefix: TunedPrompt,
    evaluation: Evaluation,
) -> Curves:
    """Score a model on the first 68 pairs of one task and of two, with every prompt."""
    prompts = {PAIRS: None, SEPARATOR: separator, PREFIX: prefix}
    return {
        (switch, name): few_shot_losses(
            model,
            FewShot(FewShotConfig(length=_LENGTHS[name], switch_after=after)),
            prompt,
            evaluation,
        )
        for switch, after in _SWITCHES.items()
        for name, prompt in prompts.items()
    }


@measurement
def least_squares_curves(lab: Laboratory) -> Curves:
    """Score least squares, as published and as it can be, on the pairs of the models."""
    algorithms: dict[str, tuple[FewShotConfig, Predictor]] = {
        AS_PUBLISHED: (_BARE, newton_steps),
        ON_TOKENS: (_BARE, _with_best_ridge(_BARE)),
        ZERO_SEPARATOR: (_SEPARATED, _with_best_ridge(_SEPARATED)),
        TRUE_PAIRS: (_BARE, _on_true_pairs),
    }
    evaluation = Evaluation(num_sequences=lab.settings.few_shot_sequences, progress=lab.on_progress)
    curves: Curves = {}
    for name, (config, predict) in algorithms.items():
        for switch, after in _SWITCHES.items():
            task = FewShot(replace(config, switch_after=after))
            losses = in_context_loss({name: predict}, task, evaluation)[name]
            curves[switch, name] = InContextLoss(losses.losses)  # by pair, not by token
    return curves


def newton_steps(batch: Batch, *, num_steps: int = 6, pairs: Pairs = "official") -> Tensor:
    """Predict with an inverse of the Gram matrix by Newton's iteration.

    X <- X (2 I - A X) from X = I / tr A, with A = H_t + 0.001 I. After k steps, A X is
    I - (I - A / tr A)^(2^k): directions of few data are shrunk, as by a ridge that grows with the trace.
    The authors' code has this solver with six steps for a default. That it drew the curve of Figures 8 and
    18 is our inference: chi squared of its distance from the nine known numbers is 5, that of a ridge of
    0.25 is 66, that of the steps published for other figures 26 or more.
    """
    gram, cross = context_statistics(batch.observed.double(), pairs=pairs)
    identity = torch.eye(gram.shape[-1], dtype=gram.dtype)
    matrix = gram + 1e-3 * identity
    inverse = identity / matrix.diagonal(dim1=-2, dim2=-1).sum(-1)[..., None, None]
    for _ in range(num_steps):
        inverse = inverse @ (2 * identity - matrix @ inverse)
    solved = inverse @ batch.observed.double().unsqueeze(-1)  # [batch, time, dim, 1]
    return (cross @ solved).squeeze(-1).to(batch.observed.dtype)


def _with_best_ridge(config: FewShotConfig) -> Predictor:
    def on_tokens(ridge: float) -> Predictor:
        return lambda batch: ridge_least_squares(batch.observed, ridge=ridge)

    best = tune(
        on_tokens,
        FewShot(config),
        bounds=(1e-4, 1e2),
        spacing="log",
        tolerance=0.03,
        evaluation=Evaluation(num_sequences=256, split="validation"),
    )
    return on_tokens(best.value)


def _on_true_pairs(batch: Batch) -> Tensor:
    # What follows an input of zero counts for nothing. The best ridge is the variance of the noise over
    # that of an entry of W, 0.01^2 / (1 / 10).
    inputs = torch.zeros_like(batch.observed)
    inputs[:, batch.scored] = batch.observed[:, batch.scored]
    return ridge_least_squares(batch.observed, ridge=1e-3, inputs=inputs)
