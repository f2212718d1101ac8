"""Algorithms of the user's own, with parameters to be fitted to a model."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, get_args

from torch import Tensor

from mesaopt.analysis.diagnosis.model_target import check_causal, few_sequences, swapped
from mesaopt.analysis.prompts import PromptPredictor, Prompts, PromptTask
from mesaopt.errors import suggest

Kind = Literal["optimizer", "other"]

_FAR = 1e10  # in place of predictions that are not finite, so that distances are


@dataclass(frozen=True, kw_only=True)
class Algorithm:
    """An algorithm of your own, for :func:`mesaopt.analysis.diagnose` to compare with a model.

    Raises:
        ValueError: there is no such kind, or a range is not finite and increasing.

    Example:
        >>> import torch
        >>> from mesaopt.theory import kernel_regression
        >>> kernel = Algorithm(
        ...     name="kernel regression, mine",
        ...     kind="other",
        ...     predict=kernel_regression,
        ...     ranges={"inverse_temperature": (0.01, 100.0)},
        ... )
        >>> states = torch.randn(2, 9, 4)
        >>> kernel.predict(states, inverse_temperature=1.0).shape
        torch.Size([2, 9, 4])
    """

    name: str
    """Name for tables and sentences."""
    kind: Kind
    """An "optimizer" reduces a loss on the pairs of the context; everything else is "other"."""
    predict: Callable[..., Tensor]
    """From states s_1 ... s_T [batch, time, dim], and the parameters by name, to predictions of s_2 ...
    s_{T+1} in the same shape. Prediction t may depend on states up to t only. States are observations where
    a system is observed in part.

    Where prompts are pairs, from the newest answers 0, y_1, ... y_{n-1} [batch, pair, dim] and the keyword
    `inputs`, x_1 ... x_n [batch, pair, input], to predictions of y_1 ... y_n. Prediction i may depend on
    inputs and newest answers up to i only. The functions of `mesaopt.theory` are of both forms."""
    ranges: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    """Smallest and largest value of every parameter that is fitted; where the smallest is above 0, the
    search is on a logarithmic scale."""

    def __post_init__(self) -> None:
        if self.kind not in get_args(Kind):
            raise ValueError(f"kind={self.kind!r}: {suggest(self.kind, get_args(Kind))}")
        for name, (low, high) in self.ranges.items():
            if not -math.inf < low < high < math.inf:
                raise ValueError(f"ranges[{name!r}]=({low}, {high}): must be finite and increasing")

    def predictor(self, parameters: Mapping[str, float]) -> PromptPredictor:
        """Give the algorithm with some parameters.

        Args:
            parameters: by name.

        Returns:
            From prompts to predictions. What is not finite becomes very large. It raises ValueError where
            the algorithm fails or returns something other than predictions.
        """

        def predict(batch: Prompts) -> Tensor:
            word, pairs = "states", {}
            if batch.states is None:
                word, pairs = "answers", {"inputs": batch.inputs}
            try:
                copies = {name: x.clone() for name, x in pairs.items()}
                predictions = self.predict(batch.seen.clone(), **copies, **parameters)
            except Exception as error:
                shapes = {word: batch.seen} | pairs
                given = ", ".join(
                    [f"{name} {tuple(x.shape)}" for name, x in shapes.items()]
                    + [f"{name}={value:.4g}" for name, value in parameters.items()]
                )
                raised = f"{type(error).__name__}: {error}"
                raise ValueError(f"{self._asked}: given {given}, it raised {raised}") from error
            self._check(predictions, batch, word)
            predictions = predictions.to(batch.targets).nan_to_num(_FAR, _FAR, -_FAR)
            return batch.at_places(predictions)

        return predict

    def check(self, task: PromptTask) -> None:
        """Run the algorithm on a few sequences, with parameters in the middle of their ranges.

        Args:
            task: source of the sequences.

        Raises:
            ValueError: it fails, returns something other than predictions, or depends on later states.
        """
        middle = {name: between(0.5, *ends) for name, ends in self.ranges.items()}
        predict, batch = self.predictor(middle), few_sequences(task)
        half = batch.inputs.shape[1] // 2
        swap = {"inputs": swapped(batch.inputs, half), "answers": swapped(batch.answers, half - 1)}
        if batch.states is not None:
            swap["states"] = swapped(batch.states, half)
        first, other = (predict(one)[:, batch.places] for one in (batch, replace(batch, **swap)))
        check_causal(first, other, half, self._asked)

    def _check(self, predictions: object, batch: Prompts, word: str) -> None:
        if not isinstance(predictions, Tensor):
            kind = type(predictions).__name__
            raise ValueError(f"{self._asked}: it gives a {kind}: must be a tensor")
        if predictions.shape != batch.seen.shape:
            wanted = f"must be {tuple(batch.seen.shape)}, that of the {word}"
            shape = tuple(predictions.shape)
            raise ValueError(f"{self._asked}: its output has shape {shape}: {wanted}")

    @property
    def _asked(self) -> str:
        return f"algorithms: {self.name!r}"


def check_algorithms(algorithms: Sequence[Algorithm], task: PromptTask) -> None:
    """Refuse algorithms that share a name, fail on the sequences of a task, or see later states."""
    names = [algorithm.name for algorithm in algorithms]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"algorithms: {name!r} is the name of several: must be of one")
    for algorithm in algorithms:
        algorithm.check(task)


def between(place: float, low: float, high: float) -> float:
    """Give the number at a place from 0 (low) to 1 (high), on a logarithmic scale where low is above 0."""
    return low * (high / low) ** place if low > 0 else low + place * (high - low)
