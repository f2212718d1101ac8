"""Algorithms of the user's own, with parameters to be fitted to a model."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, get_args

from torch import Tensor

from mesaopt.analysis.diagnosis.model_target import check_causal, few_sequences
from mesaopt.analysis.in_context import Predictor
from mesaopt.errors import suggest
from mesaopt.tasks import Batch, Task

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
        >>> smoother = Algorithm(
        ...     name="smoother",
        ...     kind="other",
        ...     predict=kernel_regression,
        ...     ranges={"inverse_temperature": (0.01, 100.0)},
        ... )
        >>> states = torch.randn(2, 9, 4)
        >>> smoother.predict(states, inverse_temperature=1.0).shape
        torch.Size([2, 9, 4])
    """

    name: str
    """Name for tables and sentences."""
    kind: Kind
    """An "optimizer" reduces a loss on the pairs of the context; everything else is "other"."""
    predict: Callable[..., Tensor]
    """From states s_1 ... s_T [batch, time, dim], and the parameters by name, to predictions of s_2 ...
    s_{T+1} in the same shape. Prediction t may depend on states up to t only. States are observations where
    a system is observed in part."""
    ranges: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    """Smallest and largest value of every parameter that is fitted; where the smallest is above 0, the
    search is on a logarithmic scale."""

    def __post_init__(self) -> None:
        if self.kind not in get_args(Kind):
            raise ValueError(f"kind={self.kind!r}: {suggest(self.kind, get_args(Kind))}")
        for name, (low, high) in self.ranges.items():
            if not -math.inf < low < high < math.inf:
                raise ValueError(f"ranges[{name!r}]=({low}, {high}): must be finite and increasing")

    def predictor(self, parameters: Mapping[str, float]) -> Predictor:
        """Give the algorithm with some parameters.

        Args:
            parameters: by name.

        Returns:
            From a batch to predictions. What is not finite becomes very large. It raises ValueError where
            the algorithm fails or returns something other than predictions.
        """

        def predict(batch: Batch) -> Tensor:
            try:
                predictions = self.predict(batch.observed.clone(), **parameters)
            except Exception as error:
                given = ", ".join(
                    [f"states {tuple(batch.observed.shape)}"]
                    + [f"{name}={value:.4g}" for name, value in parameters.items()]
                )
                raised = f"{type(error).__name__}: {error}"
                raise ValueError(f"{self._asked}: given {given}, it raised {raised}") from error
            self._check(predictions, batch)
            return predictions.to(batch.targets).nan_to_num(_FAR, _FAR, -_FAR)

        return predict

    def check(self, task: Task) -> None:
        """Run the algorithm on a few sequences, with parameters in the middle of their ranges.

        Args:
            task: source of the sequences.

        Raises:
            ValueError: it fails, returns something other than predictions, or depends on later states.
        """
        middle = {name: between(0.5, *ends) for name, ends in self.ranges.items()}
        check_causal(self.predictor(middle), few_sequences(task), self._asked)

    def _check(self, predictions: object, batch: Batch) -> None:
        if not isinstance(predictions, Tensor):
            kind = type(predictions).__name__
            raise ValueError(f"{self._asked}: it gives a {kind}: must be a tensor")
        if predictions.shape != batch.targets.shape:
            wanted = f"must be {tuple(batch.targets.shape)}, that of the states"
            shape = tuple(predictions.shape)
            raise ValueError(f"{self._asked}: its output has shape {shape}: {wanted}")

    @property
    def _asked(self) -> str:
        return f"algorithms: {self.name!r}"


def check_algorithms(algorithms: Sequence[Algorithm], task: Task) -> None:
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
