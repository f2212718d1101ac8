"""The layout of tokens: which input or answer each of their entries copies."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mesaopt.analysis.prompts import Prompts

_CONSTANT = -1


@dataclass(frozen=True)
class TokenLayout:
    """Where each entry of a token comes from. Made by :func:`layout_of`."""

    source: Int[Tensor, "time token"]
    """Index of the entry among all entries of x_1 ... x_n, y_1 ... y_n; -1 where it is a constant."""
    same: Int[Tensor, " value"]
    """The first of these entries that each of them equals in every sequence: mostly itself."""

    def fill(
        self,
        tokens: Float[Tensor, "batch time token"],
        inputs: Float[Tensor, "batch pair input"],
        answers: Float[Tensor, "batch pair dim"],
    ) -> Float[Tensor, "batch time token"]:
        """Build tokens of other pairs; constants stay as they are."""
        values = _values(inputs, answers)
        copied = values[:, self.source.clamp(min=0).flatten()].view_as(tokens)
        return torch.where(self.source == _CONSTANT, tokens, copied)

    def check(self, prompts: Prompts) -> None:
        """Refuse pairs that are not known when they are asked for, or known before.

        Raises:
            ValueError: at the place of y_i the tokens have not shown x_i or y_{i-1}, or show y_i already.
        """
        (_, num_pairs, width), dim = prompts.inputs.shape, prompts.answers.shape[2]
        places = range(prompts.targets.shape[1])[prompts.places]
        first = {}  # place at which each value is shown first
        for place, row in enumerate(self.source.tolist()):
            for index in row:
                first.setdefault(index, place)

        def shown(start: int, size: int) -> list[int]:
            never = len(self.source)
            return [first.get(index, never) for index in self.same[start : start + size].tolist()]

        for pair, place in enumerate(places):
            where = f"where answer {pair + 1} is asked for, at position {place + 1}"
            own = shown(num_pairs * width + pair * dim, dim)
            if min(own) <= place:
                raise ValueError(
                    f"regression: {where}, the tokens show it already: must come later"
                )
            if max(shown(pair * width, width)) > place:
                raise ValueError(
                    f"regression: {where}, the tokens have not shown its input: must have"
                )
            if pair and max(shown(num_pairs * width + (pair - 1) * dim, dim)) > place:
                raise ValueError(
                    f"regression: {where}, the tokens have not shown the answer before: must have"
                )


def layout_of(prompts: Prompts) -> TokenLayout | None:
    """Find the layout of tokens by comparing their entries with those of the pairs.

    Args:
        prompts: enough sequences that no two entries agree by chance.

    Returns:
        The layout; None where an entry is neither an input, nor an answer, nor the same in every sequence,
        or where an input or answer is the same in every sequence.

    Example:
        >>> x = torch.arange(4.0).view(2, 2, 1)
        >>> tokens = torch.cat([x, torch.ones(2, 2, 1)], dim=2)
        >>> prompts = Prompts(tokens, 5 * x, inputs=x, answers=5 * x, places=slice(None))
        >>> layout_of(prompts).source.tolist()
        [[0, -1], [1, -1]]
    """
    known: dict[bytes, int] = {}
    values = _values(prompts.inputs, prompts.answers).T
    same = [known.setdefault(_key(column), index) for index, column in enumerate(values)]
    if any(map(_is_constant, values)):
        return None
    source = []
    for column in prompts.tokens.to(values).flatten(1).T:
        index = known.get(_key(column))
        if index is None and not _is_constant(column):
            return None
        source.append(_CONSTANT if index is None else index)
    return TokenLayout(torch.tensor(source).view(prompts.tokens.shape[1:]), torch.tensor(same))


def _is_constant(column: Tensor) -> bool:
    return bool((column == column[0]).all())


def _values(inputs: Tensor, answers: Tensor) -> Tensor:
    return torch.cat([inputs.flatten(1), answers.flatten(1)], dim=1)


def _key(column: Tensor) -> bytes:
    return (column + 0.0).contiguous().numpy().tobytes()  # + 0.0: no negative zeros
