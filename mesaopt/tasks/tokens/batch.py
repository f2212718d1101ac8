"""Batches of discrete tokens, scored by the cross-entropy of the right one."""

from dataclasses import dataclass

from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import cross_entropy

from mesaopt.tasks.batch import Batch
from mesaopt.tasks.losses import accuracy

IGNORE = -100
"""The target of a place that is not scored, where sequences have different numbers of scored places."""


@dataclass(frozen=True, repr=False)
class TokenBatch(Batch):
    """Sequences of tokens, with the token to predict at each scored position.

    Without `at`, every position is scored: the target of position t is token t + 1, so that the first token
    of a text is never one. With `at`, a model computes its output at these positions alone, and
    :attr:`positions` numbers the scored places of a sequence.

    Example:
        >>> import torch
        >>> tokens = torch.tensor([[5, 7, 5]])
        >>> batch = TokenBatch(tokens, torch.tensor([[7]]), at=torch.tensor([[2]]))
        >>> batch.losses(torch.zeros(1, 1, 8)).exp()  # all eight tokens are equally likely
        tensor([[8.]])
    """

    tokens: Int[Tensor, "batch time"]
    """Inputs of a model, integers below the vocabulary."""
    targets: Int[Tensor, "batch scored"]
    """The token to predict at each scored position; `IGNORE` at a place that is not scored."""
    at: Int[Tensor, "batch scored"] | None = None
    """The scored positions of each sequence, counted from 0; None: all."""

    @property
    def arguments(self) -> dict[str, Tensor]:
        """Arguments of a model besides the tokens: `at`, if not every position is scored."""
        return {} if self.at is None else {"at": self.at}

    @property
    def counted(self) -> Bool[Tensor, "batch scored"]:
        """True at the places that are scored, false at those with the target `IGNORE`."""
        return self.targets != IGNORE

    def losses(
        self, prediction: Float[Tensor, "batch scored vocabulary"]
    ) -> Float[Tensor, "batch scored"]:
        """Score predictions: loss = -log softmax(logits)[target], in nats.

        Args:
            prediction: logits at the scored positions, [batch, scored, vocabulary].

        Returns:
            The cross-entropies [batch, scored]; 0 at a place that is not scored.

        Raises:
            ValueError: the shape does not fit the targets.
        """
        if prediction.shape[:-1] != self.targets.shape:
            wanted = f"({', '.join(map(str, self.targets.shape))}, vocabulary)"
            raise ValueError(f"prediction has shape {tuple(prediction.shape)}: must be {wanted}")
        logits = prediction.flatten(0, -2)
        losses = cross_entropy(
            logits, self.targets.flatten(), reduction="none", ignore_index=IGNORE
        )
        return losses.unflatten(0, self.targets.shape)

    def loss(
        self, prediction: Float[Tensor, "batch scored vocabulary"], *, total: bool = False
    ) -> Float[Tensor, ""]:
        """Average the losses over sequences; see :meth:`Batch.loss`. Only scored places count.

        Args:
            prediction: logits at the scored positions.
            total: add up the losses of a sequence, in place of their mean.

        Returns:
            The mean over sequences.
        """
        losses = self.losses(prediction).sum(1)
        if not total:
            losses = losses / self.counted.sum(1).clamp(min=1)
        return losses.mean()

    def accuracy(
        self, prediction: Float[Tensor, "batch scored vocabulary"]
    ) -> Bool[Tensor, "batch scored"]:
        """Say where the most likely token is right.

        Args:
            prediction: logits at the scored positions.

        Returns:
            :func:`mesaopt.tasks.losses.accuracy`, [batch, scored]; false where nothing is scored.
        """
        return accuracy(prediction, self.targets)
