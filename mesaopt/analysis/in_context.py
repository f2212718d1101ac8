"""The in-context loss: the loss of a predictor by the position in the sequence."""

from collections.abc import Callable, Hashable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import TypeVar, overload

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn.functional import pad

from mesaopt.analysis.capture import evaluating, like_weights
from mesaopt.analysis.estimate import Estimate, estimates, standard_error
from mesaopt.analysis.evaluation import EVALUATION_BATCH, Evaluation
from mesaopt.analysis.given import AnyModel, AnyTask, as_model, as_task, loaded, task_of
from mesaopt.config import TokenSlot
from mesaopt.display import Curve, Drawn, Row
from mesaopt.tasks import Batch, Text, tokens_from_states

Predictor = Callable[[Batch], Tensor]
"""From a batch to predictions [batch, time, dim]."""
AnyPredictor = Predictor | AnyModel
"""A predictor, or a model or run that makes one."""


Name = TypeVar("Name", bound=Hashable)
_AXES = {"xlabel": "position in the sequence", "ylabel": "in-context loss", "yscale": "log"}


@dataclass(frozen=True, repr=False)
class InContextLoss(Drawn):
    """Losses of one predictor on many sequences, and their sampling error.

    Example:
        >>> loss = InContextLoss(torch.tensor([[1.0, 3.0], [3.0, 1.0]]))
        >>> loss.curve.tolist(), loss.mean
        ([2.0, 2.0], 2.0)
        >>> loss
        In-context loss 2 on 2 sequences, at positions 1 to 2
        position       loss
               1  2.0 ± 1.0
               2  2.0 ± 1.0
    """

    losses: Float[Tensor, "sequence position"]
    """The loss of every sequence at every scored position: half the squared error, or on tokens the
    cross-entropy in nats."""
    scored: range | None = None
    """These positions, counted from 1; None: all from the first on."""
    counted: Bool[Tensor, "sequence position"] | None = None
    """True where a loss counts, in tasks on tokens whose sequences have different numbers of scored places;
    None: all count."""
    repeated: float = 1.0
    """How often each sequence is there, in a text of fewer stretches than sequences; standard errors are
    those of the different ones."""

    @property
    def positions(self) -> range:
        """The position of every column, counted from 1."""
        return range(1, self.losses.shape[1] + 1) if self.scored is None else self.scored

    @property
    def curve(self) -> Float[Tensor, " position"]:
        """Mean over sequences, by position."""
        if self.counted is None:
            return self.losses.mean(0)
        return (self.losses * self.counted).sum(0) / self.counted.sum(0)

    @property
    def curve_error(self) -> Float[Tensor, " position"]:
        """Standard error of :attr:`curve` over sequences."""
        if self.counted is None:
            return standard_error(self.losses) * self.repeated**0.5
        count = self.counted.sum(0)
        squares = ((self.losses - self.curve).square() * self.counted).sum(0) / (count - 1)
        return (squares / count * self.repeated).sqrt()

    @property
    def mean(self) -> float:
        """Mean over sequences and positions: the training loss, where that is no sum over positions."""
        return (self.losses if self.counted is None else self.by_sequence).mean().item()

    @property
    def estimate(self) -> Estimate:
        """:attr:`mean` with its standard error over sequences."""
        return Estimate(self.mean, self.mean_error)

    @property
    def mean_error(self) -> float:
        """Standard error of :attr:`mean` over sequences; NaN for a single one."""
        return standard_error(self.by_sequence).item() * self.repeated**0.5

    @property
    def by_sequence(self) -> Float[Tensor, " sequence"]:
        """Mean over the positions of each sequence."""
        if self.counted is None:
            return self.losses.mean(1)
        return (self.losses * self.counted).sum(1) / self.counted.sum(1).clamp(min=1)

    def __sub__(self, other: "InContextLoss") -> "InContextLoss":
        """Subtract losses sequence by sequence, so that their common noise cancels.

        Args:
            other: losses on the same sequences, at the same positions.

        Returns:
            The differences; their means and standard errors are those of paired values.

        Raises:
            ValueError: sequences or positions are others.
        """
        if self.losses.shape != other.losses.shape or self.positions != other.positions:
            given = f"{self._amount()}, less {other._amount()}"
            raise ValueError(f"losses on {given}: must be of the same sequences and positions")
        return replace(self, losses=self.losses - other.losses)

    @property
    def at_positions(self) -> list[Estimate]:
        """:attr:`curve` with its standard errors, which are NaN for a single sequence."""
        if self.counted is None:
            return [one.repeated(self.repeated) for one in estimates(self.losses)]
        pairs = zip(self.curve.tolist(), self.curve_error.tolist(), strict=True)
        return [Estimate(value, error) for value, error in pairs]

    _axes = _AXES

    def _headline(self) -> str:
        return f"In-context loss {self.estimate} on {self._amount()}"

    def _amount(self) -> str:
        positions = f"{self.positions[0]} to {self.positions[-1]}"
        return f"{len(self.losses):,} sequences, at positions {positions}"

    def _rows(self) -> list[Row]:
        each = zip(self.positions, self.at_positions, strict=True)
        return [{"position": position, "loss": loss} for position, loss in each]

    def _curves(self) -> list[Curve]:
        return [self._curve("the model")]

    def _curve(self, name: str) -> Curve:
        return Curve.of(name, self.positions, self.at_positions)


class InContextLosses(Drawn, dict[str, InContextLoss]):
    """Losses of several predictors on the same sequences, by name: a dictionary that shows itself.

    Example:
        >>> losses = InContextLosses(half=InContextLoss(torch.full((2, 4), 0.5)))
        >>> losses["half"].mean
        0.5
    """

    _axes = _AXES

    def _headline(self) -> str:
        if not self:
            return "In-context losses of no predictor"
        first = next(iter(self.values()))
        return f"In-context losses of {len(self)} predictors on {first._amount()}"

    def _rows(self) -> list[Row]:
        return [{"predictor": name, **row} for name, loss in self.items() for row in loss._rows()]

    def _table(self) -> list[Row]:
        return [
            {"predictor": name, "mean loss": loss.estimate}
            | {f"at {row['position']}": row["loss"].value for row in loss._table()}
            for name, loss in self.items()
        ]

    def _curves(self) -> list[Curve]:
        return [loss._curve(name) for name, loss in self.items()]


def model_predictor(model: AnyModel, slots: tuple[TokenSlot, ...]) -> Predictor:
    """Make a predictor of a model, for batches whose tokens may have other slots.

    Args:
        model: it computes in evaluation mode, on tokens of the type of its weights; or a Run or its path.
        slots: slots of the tokens it was trained on; none for a model of a task of your own, which gets the
            tokens of the batch.

    Returns:
        The predictor.

    Example:
        >>> from mesaopt import recipes
        >>> config = recipes.get("lsa-1")
        >>> from mesaopt.models import make_model
        >>> from mesaopt.tasks import make_task
        >>> predict = model_predictor(make_model(config.model), config.task.token_slots)
        >>> predict(make_task(config.task).sample(2, seed=0)).shape
        torch.Size([2, 50, 10])
    """

    def tokens_of(batch: Batch) -> Tensor:
        return tokens_from_states(batch.observed, slots) if slots else batch.tokens

    return _predictor(as_model(model), tokens_of)


def _predictor(model: nn.Module, tokens_of: Callable[[Batch], Tensor]) -> Predictor:
    """Let a model predict from tokens of a batch, in evaluation mode and the type of its weights."""

    def predict(batch: Batch) -> Tensor:
        tokens = like_weights(model, tokens_of(batch))
        with evaluating(model):
            return model(tokens, **batch.arguments).to(batch.targets.device)

    return predict


def as_predictor(given: AnyPredictor, name: str) -> Predictor:
    """Return the predictor that is meant: a function of a batch as it is, or that of a model."""
    if callable(given) and not isinstance(given, nn.Module | type):
        return given
    argument = f"predictors[{name!r}]" if name else "predictors"
    return _predictor(as_model(given, argument), lambda batch: batch.tokens)


@overload
def in_context_loss(
    predictors: Mapping[str, AnyPredictor],
    task: AnyTask | None = None,
    evaluation: Evaluation = ...,
) -> InContextLosses: ...


@overload
def in_context_loss(
    predictors: AnyPredictor,
    task: AnyTask | None = None,
    evaluation: Evaluation = ...,
) -> InContextLoss: ...


@torch.no_grad()
def in_context_loss(
    predictors: Mapping[str, AnyPredictor] | AnyPredictor,
    task: AnyTask | None = None,
    evaluation: Evaluation = Evaluation(),
) -> InContextLosses | InContextLoss:
    """Score predictors on the same fresh sequences, so that they can be compared in pairs.

    Args:
        predictors: one, or several by name. Each is a model, a Run or its path, or a function from a batch
            to predictions [batch, time, dim]. A model computes in evaluation mode, on the tokens of the
            task in the type of its weights.
        task: source of the sequences, or its settings; that of the run if not given with a single one.
        evaluation: the sequences; 2560 test sequences if not given. Of a text that is too short for so many
            some come again, which narrows no standard error. Settings of a test have equally many.

    Returns:
        The losses of the predictor; of several, the losses of each, under its name.

    Raises:
        TypeError: a predictor or the task is something else.
        RunError: there is no run at a path.

    Example:
        >>> from mesaopt.config import LinearSystemConfig, ModelConfig
        >>> from mesaopt.tasks import LinearSystem
        >>> from mesaopt.models import SequenceModel
        >>> model, task = SequenceModel(ModelConfig()), LinearSystem(LinearSystemConfig())
        >>> zero = lambda batch: torch.zeros_like(batch.targets)
        >>> losses = in_context_loss({"untrained": model, "zero": zero}, task)
        >>> in_context_loss(model, task).mean == losses["untrained"].mean
        True
        >>> round(losses["zero"].mean, 1)
        1.7
    """
    if not isinstance(predictors, Mapping):
        given = loaded(predictors)
        return in_context_loss({"": given}, task_of(given, task), evaluation)[""]
    task = as_task(task)
    evaluation = evaluation.even(task)
    functions = {name: as_predictor(given, name) for name, given in predictors.items()}

    def score(batch: Batch) -> tuple[range, Tensor | None, dict[str, Tensor]]:
        scored = {name: batch.losses(f(batch)).float() for name, f in functions.items()}
        return batch.positions, batch.counted, scored

    with evaluation.reported("in-context loss") as reported:
        again = times_shown(task, evaluation)
        return InContextLosses(join_losses(reported.map(task, score), repeated=again))


def times_shown(task: object, evaluation: Evaluation) -> float:
    """Say how often an evaluation shows the same stretch of a text, 1 or more; 1 of other tasks."""
    if not isinstance(task, Text):
        return 1.0
    shown = evaluation.num_batches * EVALUATION_BATCH
    return max(1.0, shown / task.stretches(evaluation.split))


Scored = tuple[range, Tensor | None, Mapping[Name, Tensor]]
"""Of a batch: scored positions, which losses count (None: all), and losses [sequence, position] by name."""


def join_losses(
    batches: Iterable[Scored[Name]], *, repeated: float = 1.0
) -> dict[Name, InContextLoss]:
    """Put the losses of batches together, by name; places that a batch does not have do not count."""
    losses: dict[Name, list[Tensor]] = {}
    counts, positions = [], range(1, 1)
    for found, count, scored in batches:
        positions = max(positions, found, key=len)
        for name, values in scored.items():
            losses.setdefault(name, []).append(values)
        counts += [count] if count is not None else [_all_of(one) for one in scored.values()][:1]
    counted = _join(counts) if counts else None
    counted = None if counted is None or counted.all() else counted
    # pop() frees the memory of one predictor at a time.
    return {
        name: InContextLoss(_join(losses.pop(name)), positions, counted, repeated)
        for name in list(losses)
    }


def _all_of(losses: Tensor) -> Tensor:
    return torch.ones_like(losses, dtype=torch.bool)


def _join(parts: list[Tensor]) -> Tensor:
    """Put batches together; zeros fill up those with fewer scored places than others."""
    widest = max(part.shape[1] for part in parts)
    return torch.cat([pad(part, (0, widest - part.shape[1])) for part in parts])
