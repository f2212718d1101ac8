"""Few-shot regression: inputs and answers of one linear map, taking turns in a single sequence."""

from dataclasses import dataclass, field, replace

import numpy as np
import torch
from jaxtyping import Float, Inexact
from torch import Tensor

from mesaopt.config import FewShotConfig
from mesaopt.tasks.base import GeneratedTask, Streams
from mesaopt.tasks.batch import Batch
from mesaopt.tasks.random import haar_orthogonal
from mesaopt.tasks.regression import Regression


@dataclass(frozen=True, repr=False)
class FewShotBatch(Batch):
    """A batch of pairs whose `states` are the tokens and the one after them.

    Example:
        >>> batch = FewShot(FewShotConfig(length=6, switch_after=2)).sample(4, seed=0)
        >>> list(batch.positions), tuple(batch.later_transition.shape)
        ([1, 3, 5], (4, 10, 10))
    """

    later_transition: Inexact[Tensor, "batch dim dim"] = field(kw_only=True)
    """The matrix of each sequence after the switch; `transition` again where there is none."""


class FewShot(GeneratedTask[FewShotConfig, FewShotBatch]):
    """The few-shot regression of von Oswald et al.: y_i = W x_i + noise_std * n_i, one token each.

    W is Haar-random orthogonal, new for every sequence, x_i uniform on [-1, 1]^dim and n_i standard normal.
    A sequence is [prefix, x_1, y_1, x_2, y_2, ...] or [prefix, x_1, y_1, EOS, x_2, y_2, EOS, ...], cut to
    `length` tokens. To predict at x_i is to answer y_i, and only that is scored. From pair
    `switch_after` + 1 on, another matrix takes W's place.

    The prefix and EOS are learned vectors. Their places hold zeros until :meth:`fill` puts
    vectors there. One seed makes the same pairs in every layout.

    Args:
        config: dimension, length, layout, prefix, switch, noise and distribution of the inputs.

    Source: von Oswald et al., arXiv 2309.05858v2, section on few-shot learning; inputs as in the authors'
    code, standard normal in the text. Two things differ from their code: noise is independent in
    every sequence, where they add the same noise to all sequences of a batch; and `switch_after` counts
    pairs in every layout, where they switch after 40 pairs or 27 triples, plot the first 20 of them, and
    repeat the prefix at the switch.

    Example:
        >>> task = FewShot(FewShotConfig(dim=2, length=7, layout="triples", prefix_length=1))
        >>> batch = task.fill(task.sample(3, seed=0), separator=torch.ones(2), prefix=torch.ones(1, 2))
        >>> batch.tokens[0, :, 0].eq(1).tolist()
        [True, False, False, True, False, False, True]
        >>> list(batch.positions)
        [2, 5]
    """

    config_type = FewShotConfig
    batch_type = FewShotBatch

    @property
    def prefix_places(self) -> slice:
        """The places of the prefix along time."""
        return slice(0, self.config.prefix_length)

    @property
    def separator_places(self) -> slice:
        """The places of the separators along time; none for layout "pairs"."""
        if self.config.layout == "pairs":
            return slice(0)
        return slice(self.config.prefix_length + 2, None, 3)

    def fill(
        self,
        batch: FewShotBatch,
        *,
        separator: Inexact[Tensor, " dim"] | None = None,
        prefix: Inexact[Tensor, "prefix dim"] | None = None,
    ) -> FewShotBatch:
        """Put vectors into their places; gradients flow back to the vectors.

        Args:
            batch: of this task.
            separator: the vector EOS, [dim]; left as it is if not given.
            prefix: [prefix_length, dim]; left as it is if not given.

        Returns:
            A new batch with other states, tokens and targets.

        Raises:
            ValueError: there is no room for such a vector.
        """
        config, states = self.config, batch.require("states").clone()
        if separator is not None:
            if config.layout == "pairs":
                raise ValueError(
                    "separator: must not be given for layout='pairs', which has no room"
                )
            _require_shape("separator", separator, (config.dim,))
            states[:, self.separator_places] = separator
        if prefix is not None:
            _require_shape("prefix", prefix, (config.prefix_length, config.dim))
            states[:, self.prefix_places] = prefix
        return replace(batch, tokens=states[:, :-1], targets=states[:, 1:], states=states)

    @property
    def scored(self) -> slice:
        """The places of the inputs x_i: a prediction there answers y_i."""
        return slice(self.config.prefix_length, None, self.config.period)

    def regression(self, batch: Batch) -> Regression:
        """Read the pairs (x_i, y_i) off a batch.

        Args:
            batch: of this task.

        Returns:
            The pairs, each asked for at the place of x_i.

        Example:
            >>> task = FewShot(FewShotConfig(dim=2, length=6))
            >>> task.regression(task.sample(4, seed=0)).inputs.shape
            torch.Size([4, 3, 2])
        """
        inputs = batch.observed[:, self.scored]
        return Regression(inputs, batch.targets[:, self.scored], self.scored)

    def draw(self, batch_size: int, streams: Streams) -> dict[str, Tensor]:
        """Draw the matrices, inputs and noise of the answers; see :meth:`GeneratedTask.draw`."""
        config, random = self.config, streams()
        first = haar_orthogonal(random, batch_size, config.dim)
        switches = config.switch_after is not None
        second = haar_orthogonal(random, batch_size, config.dim) if switches else first
        inputs = self._inputs(streams("inputs"), batch_size)
        answers = self._answers(streams("noise"), inputs, first, second)
        return {
            "states": self._sequence(inputs, answers),
            "transition": first,
            "later_transition": second,
        }

    def _inputs(
        self, random: np.random.Generator, batch_size: int
    ) -> Float[Tensor, "pair batch dim"]:
        """Draw x_i, pair after pair, so that fewer pairs are the beginning of more."""
        # One pair more than is scored: the last target may be the next input.
        size = (self.config.num_pairs + 1, batch_size, self.config.dim)
        uniform = self.config.inputs == "uniform"
        drawn = random.uniform(-1.0, 1.0, size) if uniform else random.standard_normal(size)
        return torch.from_numpy(drawn)

    def _answers(
        self,
        random: np.random.Generator,
        inputs: Float[Tensor, "pair batch dim"],
        first: Float[Tensor, "batch dim dim"],
        second: Float[Tensor, "batch dim dim"],
    ) -> Float[Tensor, "pair batch dim"]:
        switch = self.config.switch_after or len(inputs)
        parts = [
            torch.einsum("bij,nbj->nbi", matrix, part)
            for matrix, part in ((first, inputs[:switch]), (second, inputs[switch:]))
        ]
        noise = torch.from_numpy(random.standard_normal(tuple(inputs.shape)))
        return torch.cat(parts) + self.config.noise_std * noise

    def _sequence(
        self, inputs: Float[Tensor, "pair batch dim"], answers: Float[Tensor, "pair batch dim"]
    ) -> Float[Tensor, "batch time_and_one dim"]:
        config, (num_pairs, batch_size, dim) = self.config, inputs.shape
        groups = inputs.new_zeros(batch_size, num_pairs, config.period, dim)
        groups[:, :, 0], groups[:, :, 1] = inputs.transpose(0, 1), answers.transpose(0, 1)
        sequence = groups.flatten(1, 2)  # [B,N,P,D] -> [B,N*P,D]
        padded = torch.nn.functional.pad(sequence, (0, 0, config.prefix_length, 0))
        return padded[:, : config.length + 1]


def _require_shape(name: str, vector: Tensor, shape: tuple[int, ...]) -> None:
    if vector.shape != shape:
        raise ValueError(f"{name} has shape {tuple(vector.shape)}: must be {shape}")
