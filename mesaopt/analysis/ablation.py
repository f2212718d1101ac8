"""Ablation: the in-context loss of a model without what one of its parts computes."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from mesaopt.analysis.capture import capturing, distinct, evaluating, like_weights
from mesaopt.analysis.estimate import Estimate
from mesaopt.analysis.evaluation import Evaluation
from mesaopt.analysis.given import AnyModel, AnyTask, as_model, as_task
from mesaopt.analysis.in_context import InContextLoss, Scored, join_losses, times_shown
from mesaopt.analysis.parts import find_part
from mesaopt.analysis.patching import Replacement, patching
from mesaopt.display import Curve, Drawn, Row
from mesaopt.errors import suggest
from mesaopt.looks import PALETTE
from mesaopt.tasks import Batch

Corruption = Callable[[Tensor], Tensor]
"""From the tokens of a batch to the tokens of another run, of the same shape."""

_ORIGINAL = ("", "")  # no part and no group of positions

REPLACEMENTS = ("zero", "mean", "other_sequence", "shuffled_tokens")
"""Replacements that have a name."""


@dataclass(frozen=True, repr=False)
class Effect(Drawn):
    """Effect of replacing one part at some positions, on the same sequences as the original.

    Example:
        >>> original, patched = torch.tensor([[1.0, 1.0], [3.0, 1.0]]), torch.tensor([[1.0, 3.0]] * 2)
        >>> effect = Effect(InContextLoss(original), InContextLoss(patched))
        >>> effect.change, effect.curve.tolist()
        (Estimate(value=0.5, error=0.5), [-1.0, 2.0])
    """

    original: InContextLoss
    """Loss of the model as it is."""
    patched: InContextLoss
    """Loss with the part replaced."""

    @property
    def change(self) -> Estimate:
        """Patched less original, in the mean over positions, with its paired standard error."""
        return self._changes.estimate

    @property
    def ratio(self) -> Estimate:
        """Patched divided by original, of the means over positions, with its paired standard error."""
        ratio = Estimate.ratio(self.patched.by_sequence, self.original.by_sequence)
        return ratio.repeated(self.original.repeated)

    @property
    def curve(self) -> Float[Tensor, " position"]:
        """Mean change over sequences, by position."""
        return self._changes.curve

    @property
    def curve_error(self) -> Float[Tensor, " position"]:
        """Paired standard error of :attr:`curve` over sequences."""
        return self._changes.curve_error

    @property
    def _changes(self) -> InContextLoss:
        return self.patched - self.original

    _axes = {"xlabel": "position in the sequence", "ylabel": "change of the in-context loss"}

    def _headline(self) -> str:
        losses = f"from {self.original.mean:.4g} to {self.patched.mean:.4g}"
        return (
            f"The loss changes by {self.change}, {losses}; {len(self.original.losses):,} sequences"
        )

    def _rows(self) -> list[Row]:
        each = zip(self.original.positions, self._changes.at_positions, strict=True)
        return [{"position": position, "change": change} for position, change in each]

    def _curves(self) -> list[Curve]:
        return [Curve.of("change", self.original.positions, self._changes.at_positions)]


@dataclass(frozen=True, repr=False)
class AblationTable(Drawn):
    """Effects of replacing the parts of a model, one at a time.

    It prints as a table.
    """

    original: InContextLoss
    """Loss of the model as it is."""
    effects: Mapping[tuple[str, str], Effect]
    """Effects by name of the part and name of the group of positions."""

    def at(self, name: str, positions: str | None = None) -> Effect:
        """Return one effect.

        Args:
            name: of the part.
            positions: name of the group of positions; the first group if not given.

        Returns:
            The effect.

        Raises:
            KeyError: there is none.
        """
        groups = (group for part, group in self.effects if part == name)
        return self.effects[name, next(groups, "") if positions is None else positions]

    def _headline(self) -> str:
        worst = max(self.effects.values(), key=lambda effect: effect.change.value, default=None)
        name = next((part for (part, _), effect in self.effects.items() if effect is worst), "")
        most = f"; {name} costs most" if worst is not None and worst.change.low > 0 else ""
        return f"Loss of the model {self.original.estimate}{most}"

    def _rows(self) -> list[Row]:
        rows: list[Row] = []
        for (name, group), effect in self.effects.items():
            numbers = {"loss": effect.patched.mean, "change": effect.change, "ratio": effect.ratio}
            rows.append({"part": name, "positions": group, **numbers})
        return rows

    def _table(self) -> list[Row]:
        return self._rows()

    def _draw(self, axes: Any) -> None:
        names = [f"{part}, {group}" if group != "all" else part for part, group in self.effects]
        changes = [effect.change for effect in self.effects.values()]
        errors = [1.96 * change.error for change in changes]
        axes.barh(names, [change.value for change in changes], xerr=errors, color=PALETTE[0])
        axes.set(xlabel="change of the in-context loss")
        axes.invert_yaxis()


@torch.no_grad()
def ablate(
    model: AnyModel,
    task: AnyTask,
    names: Sequence[str],
    *,
    by: str | Corruption = "mean",
    positions: Sequence[int] | Mapping[str, Sequence[int]] | None = None,
    evaluation: Evaluation = Evaluation(),
) -> AblationTable:
    """Measure how the in-context loss changes when a part of a model is replaced.

        change = mean over sequences and positions of  l(f with part := r) - l(f),

    for one part and one group of positions at a time. Both losses are those of the same sequences, so that
    the noise that they share cancels in the standard error. A part is what the model uses if its
    replacement costs something; a probe shows only what the part contains.

    Args:
        model: any module from tokens [batch, time, token] to predictions [batch, time, dim]. It computes in
            evaluation mode, on tokens of the type of its weights.
        task: source of the sequences; its tokens are those the model was trained on.
        names: parts, as in :func:`mesaopt.analysis.patch`, such as "blocks.1.mixer" for the branch that the
            second layer adds to the residual stream.
        by: the replacement r. "zero"; "mean": the mean of the part over the 256 sequences of a batch, at
            each position; "other_sequence": the part in another sequence; "shuffled_tokens": the part in a
            run on the same tokens in random order; or a function from the tokens of a batch to the tokens
            of another run.
        positions: where the part is replaced, counted from 1; everywhere if not given. Several groups of
            positions have names, such as {"early": [1, 2], "late": [49, 50]}. The loss is always that of
            all scored positions.
        evaluation: the sequences; 2560 test sequences if not given.

    Returns:
        The table of effects.

    Raises:
        ValueError: there is no such part (the nearest are listed), replacement or position; nothing is to
            be replaced; or the other run has activations of another shape.

    Example:
        >>> from mesaopt.config import LinearSystemConfig, ModelConfig
        >>> from mesaopt.models import SequenceModel
        >>> from mesaopt.tasks import LinearSystem
        >>> from mesaopt.theory import proposition_1
        >>> model = SequenceModel(ModelConfig(num_heads=1, head_dim=10))
        >>> _ = model.load_state_dict(proposition_1(10, step_size=0.03))
        >>> task = LinearSystem(LinearSystemConfig())
        >>> table = ablate(model, task, ["blocks.0.mixer"], by="zero", positions=range(41, 51))
        >>> effect = table.at("blocks.0.mixer")
        >>> effect.change.low > 0, [t for t, c in zip(effect.patched.positions, effect.curve) if c][:2]
        (True, [41, 42])
    """
    model, task = as_model(model), as_task(task)
    evaluation = evaluation.even(task)
    names, replaced_at = distinct(names), _groups(positions)
    nowhere = any(where is not None and len(where) == 0 for where in replaced_at.values())
    if not names or not replaced_at or nowhere:
        raise ValueError("names, positions: must not be empty")
    for name in names:
        find_part(model, name, "names")
    replacements_on = _replacements(by, model, names)

    def score(batch: Batch) -> Scored[tuple[str, str]]:
        tokens = like_weights(model, batch.tokens)

        def losses(replaced: Mapping[str, Replacement], where: Sequence[int] | None) -> Tensor:
            # A copy, which the model may change in place.
            with patching(model, replaced, positions=where):
                output = model(tokens.clone(), **batch.arguments)
            return batch.losses(output.to(batch.targets.device)).double()

        with evaluating(model):
            replacements = replacements_on(lambda x: model(x, **batch.arguments), tokens)
            scored = {_ORIGINAL: losses({}, None)} | {
                (name, group): losses({name: replacements[name]}, where)
                for name in names
                for group, where in replaced_at.items()
            }
        return batch.positions, batch.counted, scored

    with evaluation.reported("ablation") as reported:
        again = times_shown(task, evaluation)
        joined = join_losses(reported.map(task, score), repeated=again)
    original = joined.pop(_ORIGINAL)
    return AblationTable(original, {key: Effect(original, one) for key, one in joined.items()})


def shuffled_tokens(tokens: Shaped[Tensor, "batch time *token"]) -> Tensor:
    """Put the tokens of every sequence into a random order, the same for equal shapes.

    Args:
        tokens: [batch, time, ...].

    Returns:
        The same tokens in another order.

    Example:
        >>> shuffled = shuffled_tokens(torch.arange(6.0).view(1, 6, 1))
        >>> sorted(shuffled.flatten().tolist())
        [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]
    """
    random = torch.Generator().manual_seed(0)
    order = torch.rand(tokens.shape[:2], generator=random).argsort(1).to(tokens.device)
    return torch.take_along_dim(tokens, order.view(*order.shape, *[1] * (tokens.dim() - 2)), dim=1)


_ReplacementsOn = Callable[[Callable[[Tensor], Any], Tensor], Mapping[str, Replacement]]


def _replacements(by: str | Corruption, model: nn.Module, names: Sequence[str]) -> _ReplacementsOn:
    """Make the function from a run of a model on tokens, and the tokens, to what replaces its parts."""
    of_activation: dict[str, Replacement] = {
        "zero": 0.0,
        "mean": lambda activation: activation.mean(0, keepdim=True),
        "other_sequence": lambda activation: activation.roll(1, dims=0),
    }
    if isinstance(by, str) and by in of_activation:
        return lambda _, __: dict.fromkeys(names, of_activation[by])
    corrupt = shuffled_tokens if by == "shuffled_tokens" else by
    if isinstance(corrupt, str) or not callable(corrupt):
        raise ValueError(f"by={by!r}: {suggest(str(by), REPLACEMENTS)}, or a function")

    def of_another_run(run: Callable[[Tensor], Any], tokens: Tensor) -> Mapping[str, Replacement]:
        with capturing(model, names) as activations:
            run(corrupt(tokens.clone()))
        return {name: activations[name] for name in names}

    return of_another_run


def _groups(
    positions: Sequence[int] | Mapping[str, Sequence[int]] | None,
) -> Mapping[str, Sequence[int] | None]:
    """Name the groups of positions."""
    if isinstance(positions, Mapping):
        return positions
    return {"all": None} if positions is None else {"chosen": positions}
