"""Few-shot use of a model trained on next tokens: its losses on pairs, and learned prompts."""

import contextlib
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import functional_call

from mesaopt.analysis.capture import (
    check_weights,
    differentiating,
    evaluating,
    like_weights,
)
from mesaopt.analysis.evaluation import Evaluation
from mesaopt.analysis.given import AnyModel, as_model, as_task
from mesaopt.analysis.in_context import InContextLoss, in_context_loss
from mesaopt.config import FewShotConfig, require_whole
from mesaopt.display import Curve, Drawn, Row
from mesaopt.errors import wrong_type
from mesaopt.progress import AnyProgress, reporting
from mesaopt.tasks import Batch, FewShot, FewShotBatch


@dataclass(frozen=True, kw_only=True, repr=False)
class TunedPrompt(Drawn):
    """Learned vectors between the pairs and in front of them, with the history of their training.

    Example:
        >>> TunedPrompt(separator=torch.zeros(10), losses=torch.ones(2), norms=torch.ones(2, 1))
        Prompt with a separator; training loss from 1 to 1 in 2 steps
        step  loss  mean norm
           0     1          1
           1     1          1
    """

    separator: Float[Tensor, " dim"] | None = None
    """The vector after every pair, called EOS in the paper; None: there is none."""
    prefix: Float[Tensor, "prefix dim"] | None = None
    """The vectors in front of the first pair; None: there are none."""
    losses: Float[Tensor, " step"]
    """Loss of the training batch, before every step."""
    norms: Float[Tensor, "step vector"]
    """Norms of the vectors that were learned, before every step; a separator comes first."""

    _axes = {"xlabel": "step", "ylabel": "training loss"}

    def _headline(self) -> str:
        parts = [] if self.separator is None else ["a separator"]
        if self.prefix is not None and len(self.prefix):
            parts.append(f"a prefix of {len(self.prefix)}")
        falls = f"{self.losses[0]:.4g} to {self.losses[-1]:.4g} in {len(self.losses):,} steps"
        return f"Prompt with {' and '.join(parts) or 'nothing'}; training loss from {falls}"

    def _rows(self) -> list[Row]:
        norms = self.norms.mean(1).tolist()
        each = enumerate(zip(self.losses.tolist(), norms, strict=True))
        return [{"step": step, "loss": loss, "mean_norm": norm} for step, (loss, norm) in each]

    def _curves(self) -> list[Curve]:
        return [Curve("loss", range(len(self.losses)), self.losses.tolist())]


@dataclass(frozen=True, kw_only=True)
class EarlyAscent:
    """Rise of a loss above its first value before it falls.

    Example:
        >>> EarlyAscent(position=5, peak=1.92, height=0.23, error=0.03).height > 3 * 0.03
        True
    """

    position: int
    """Position of the highest loss after the first position, counted as the positions of the loss are."""
    peak: float
    """The mean loss of each half of the sequences at the highest position of the other half, about the same
    as the loss at that position."""
    height: float
    """The peak less the mean loss at the first position; negative where the loss only falls."""
    error: float
    """Standard error of :attr:`height` over sequences, each compared with itself."""


@differentiating()
def tune_prompt(
    model: AnyModel,
    task: FewShot | FewShotConfig,
    *,
    separator: Float[Tensor, " dim"] | None = None,
    steps: int = 5000,
    batch_size: int = 64,
    learning_rate: float = 1e-3,
    schedule: Literal["constant", "cosine"] = "constant",
    seed: int = 0,
    progress: AnyProgress = True,
) -> TunedPrompt:
    """Learn the vectors of a few-shot sequence by the loss of a model whose weights stay as they are.

    Adam, from standard normal vectors, on the mean loss of fresh training sequences,

        min over EOS, P of E 1/2 |y_i - f([P, x_1, y_1, EOS, x_2, y_2, EOS, ..., x_i])|^2.

    The vectors that the layout of the task has room for are learned; a given separator is kept.

    Args:
        model: maps tokens [batch, time, dim] to predictions of the same shape; no gradient reaches its
            weights, and it computes in evaluation mode, in which recurrent layers of PyTorch need the CPU.
            Sequences and vectors have the type of its weights.
        task: with layout "triples" for a separator, or a prefix_length, or both.
        separator: [dim], kept while the prefix is learned.
        steps: of Adam, 1 or more.
        batch_size: sequences in a step, 1 or more.
        learning_rate: greater than 0.
        schedule: "constant", or "cosine" down to zero, which gets by with fewer steps.
        seed: of the first vectors and of the sequences.
        progress: a bar, nothing, or a function of the number of finished steps: see
            :data:`mesaopt.progress.AnyProgress`.

    Returns:
        The vectors, with the losses and norms on the way.

    Raises:
        ValueError: a number is out of range, there is nothing to learn, or no gradient reaches the vectors.

    Source: von Oswald et al., section on few-shot learning: EOS in batches of 64, then 20 prefix vectors in
    batches of 128 with EOS fixed, 5000 steps at 1e-3 each (the authors' code; batches of 256 in the text).

    Example:
        >>> from mesaopt.config import FewShotConfig
        >>> task = FewShot(FewShotConfig(dim=2, length=12, layout="triples"))
        >>> prompt = tune_prompt(nn.Linear(2, 2), task, steps=3, batch_size=4)
        >>> prompt.separator.shape, prompt.norms.shape
        (torch.Size([2]), torch.Size([3, 1]))
    """
    model, task = as_model(model), _as_few_shot(task)
    for name, number in (("steps", steps), ("batch_size", batch_size), ("seed", seed)):
        require_whole(name, number)
    if steps < 1 or not 0 < learning_rate < math.inf:
        given = f"steps={steps}, learning_rate={learning_rate}"
        raise ValueError(f"{given}: must be 1 or greater, and greater than 0")
    if schedule not in ("constant", "cosine"):
        raise ValueError(f"schedule={schedule!r}: must be 'constant' or 'cosine'")
    check_weights(model)
    weights = {name: weight.detach() for name, weight in model.named_parameters()}
    like = like_weights(model, torch.zeros(()))
    fixed = {} if separator is None else {"separator": separator.detach().to(like)}
    learned = _first_vectors(task, separator_given=separator is not None, seed=seed, like=like)
    optimizer = torch.optim.Adam(learned.values(), lr=learning_rate)

    def loss_at(step: int) -> Tensor:
        batch = task.sample(batch_size, seed=seed, step=step, dtype=like.dtype, device=like.device)
        tokens = task.fill(batch, **fixed, **learned).tokens
        with evaluating(model):
            loss = batch.losses(functional_call(model, weights, (tokens,))).mean()
        if not loss.requires_grad:
            problem = "its predictions have no gradient by its tokens"
            wanted = "must not detach them, or run in torch.no_grad or inference_mode"
            raise ValueError(f"model: {problem}: {wanted}")
        return loss

    losses, norms = [], []
    with reporting(progress, "learning a prompt") as report:
        for step in range(steps):
            if schedule == "cosine":
                optimizer.param_groups[0]["lr"] = _cosine(learning_rate, step / steps)
            loss = loss_at(step)
            losses.append(loss.item())
            norms.append(_norms(learned))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            report(step + 1, steps, train_loss=losses[-1])
    vectors = fixed | learned
    on_cpu = {name: vector.detach().cpu() for name, vector in vectors.items()}
    return TunedPrompt(losses=torch.tensor(losses), norms=torch.stack(norms), **on_cpu)


def few_shot_losses(
    model: Callable[[Tensor], Tensor] | AnyModel,
    task: FewShot | FewShotConfig,
    prompt: TunedPrompt | None = None,
    evaluation: Evaluation = Evaluation(),
) -> InContextLoss:
    """Score a model by the number of the pair it has to answer.

    Args:
        model: maps tokens [batch, time, dim] to predictions of the same shape; a module, which computes in
            evaluation mode and is given tokens of the type of its weights, or any function of tokens.
        task: the pairs, and the tokens in a sequence; its layout is that of the prompt.
        prompt: vectors to put into the sequence; bare pairs if not given.
        evaluation: the sequences; 2560 test sequences if not given. A seed draws the same pairs for
            every prompt.

    Returns:
        The losses; position i is the i-th pair.

    Source: von Oswald et al., Figures 8 and 18.

    Example:
        >>> from mesaopt.config import FewShotConfig
        >>> loss = few_shot_losses(torch.zeros_like, FewShot(FewShotConfig(length=6)))
        >>> list(loss.positions), round(loss.mean, 1)
        ([1, 2, 3], 1.7)
    """
    with_room = _with_room(_as_few_shot(task), prompt)
    if not callable(model):
        model = as_model(model)
    module = model if isinstance(model, nn.Module) else None

    def predict(batch: Batch) -> Tensor:
        if prompt is not None:
            pairs = cast(FewShotBatch, batch)
            batch = with_room.fill(pairs, separator=prompt.separator, prefix=prompt.prefix)
        if module is None:
            return model(batch.tokens)
        return module(like_weights(module, batch.tokens)).to(batch.targets.device)

    with contextlib.nullcontext() if module is None else evaluating(module):
        losses = in_context_loss({"": predict}, with_room, evaluation)
    return InContextLoss(losses[""].losses)


def early_ascent(loss: InContextLoss) -> EarlyAscent:
    """Measure how far a loss rises above its first value before it falls.

    The position of the maximum on one half of the sequences is where the loss of the other half is
    measured: the maximum over many positions on the same sequences would show a rise where there is none.

    Args:
        loss: of 4 sequences and 2 positions or more.

    Returns:
        The highest position after the first, and its height above the first with a standard error.

    Raises:
        ValueError: there are too few sequences or positions, or some of the losses do not count.

    Source: von Oswald et al., Figure 8, who show it without a number.

    Example:
        >>> losses = torch.tensor([[1.0, 2.0, 0.5]]).repeat(8, 1)
        >>> ascent = early_ascent(InContextLoss(losses))
        >>> ascent.position, ascent.height
        (2, 1.0)
    """
    if len(loss.losses) < 4 or loss.losses.shape[1] < 2:
        given = tuple(loss.losses.shape)
        raise ValueError(f"loss has shape {given}: must be 4 sequences and 2 positions or more")
    if loss.counted is not None:
        raise ValueError("loss: some of it does not count: must be of places that are all scored")
    even, odd = loss.losses[0::2], loss.losses[1::2]
    halves = [one[:, [0, _highest(other)]] for one, other in ((even, odd), (odd, even))]
    rises = [half[:, 1] - half[:, 0] for half in halves]
    return EarlyAscent(
        position=loss.positions[_highest(loss.losses)],
        peak=sum(half[:, 1].mean().item() for half in halves) / 2,
        height=sum(rise.mean().item() for rise in rises) / 2,
        error=sum(rise.var().item() / len(rise) for rise in rises) ** 0.5 / 2,
    )


def _highest(losses: Float[Tensor, "sequence position"]) -> int:
    """Give the index after the first where the mean loss is highest."""
    return 1 + int(losses[:, 1:].mean(0).argmax())


def _as_few_shot(task: FewShot | FewShotConfig) -> FewShot:
    """Return the task that is meant."""
    if not isinstance(made := as_task(task), FewShot):
        raise wrong_type("task", made, "a FewShot, or its settings")
    return made


def _with_room(task: FewShot, prompt: TunedPrompt | None) -> FewShot:
    """Make the task of the same pairs with room for a prompt."""
    bare = prompt is None or prompt.separator is None
    prefix_length = 0 if prompt is None or prompt.prefix is None else len(prompt.prefix)
    layout = "pairs" if bare else "triples"
    return FewShot(replace(task.config, layout=layout, prefix_length=prefix_length))


def _first_vectors(
    task: FewShot, *, separator_given: bool, seed: int, like: Tensor
) -> dict[str, Tensor]:
    """Draw standard normal vectors for the layout, without the separator if that is given."""
    config = task.config
    shapes: dict[str, tuple[int, ...]] = {}
    if config.layout == "triples" and not separator_given:
        shapes["separator"] = (config.dim,)
    if config.prefix_length > 0:
        shapes["prefix"] = (config.prefix_length, config.dim)
    if not shapes:
        problem = "has no room for anything to learn: must be 'triples' or have a prefix_length"
        raise ValueError(f"task: layout={config.layout!r} {problem}")
    random = torch.Generator().manual_seed(seed)
    drawn = {name: torch.randn(shape, generator=random) for name, shape in shapes.items()}
    return {name: vectors.to(like).requires_grad_() for name, vectors in drawn.items()}


def _norms(vectors: dict[str, Tensor]) -> Float[Tensor, " vector"]:
    norms = [x.detach().norm(dim=-1).flatten() for x in vectors.values()]
    return torch.cat(norms).cpu()


def _cosine(peak: float, done: float) -> float:
    return peak * (1 + math.cos(math.pi * done)) / 2
