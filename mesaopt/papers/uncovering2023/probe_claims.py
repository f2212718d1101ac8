"""What the probing figures claim alike."""

from collections.abc import Mapping, Sequence

from mesaopt.papers.claims import STANDARD_ERRORS, Claim, interval
from mesaopt.papers.uncovering2023.curves import trained_as_published
from mesaopt.papers.uncovering2023.laboratory import Laboratory
from mesaopt.papers.uncovering2023.noise import widened
from mesaopt.papers.uncovering2023.probing import (
    CHOSEN_BY,
    STEPS,
    Probed,
    layer_name,
    layer_of,
    ratio,
)
from mesaopt.recipes import RECIPES


def length_of(laboratory: Laboratory, recipe: str) -> str:
    """Say how long a recipe was trained, for the basis of a claim.

    Args:
        laboratory: the runs.
        recipe: one that has runs.

    Returns:
        For example "after 2500 of 10000 steps".
    """
    train, published = laboratory.runs[recipe][0].config.train, RECIPES[recipe].config.train
    sizes = f", {train.batch_size} for {published.batch_size} sequences in each"
    return f"after {train.steps} of {published.steps} steps" + (
        sizes if train.batch_size != published.batch_size else ""
    )


def is_published(laboratory: Laboratory, recipe: str) -> bool:
    """Say whether the runs of a recipe were trained as published."""
    return trained_as_published(laboratory.runs.get(recipe, []))


def limited_claim(
    laboratory: Laboratory,
    probed: Probed,
    name: str,
    figure: str,
    statement: str,
    measured: tuple[float, float],
    *,
    low: float | None = None,
    high: float | None = None,
    basis: str,
) -> Claim:
    """Judge a number with a standard error against limits, widened by three of these.

    Args:
        laboratory: knows the scale.
        probed: whose training the basis is to mention.
        name: short, unique.
        figure: where it stands.
        statement: what is claimed.
        measured: the number and its standard error.
        low: smallest value that passes, before noise.
        high: largest value that passes, before noise.
        basis: where the limits come from.

    Returns:
        The claim.
    """
    value, error = measured
    return laboratory.claim(
        name,
        figure,
        statement,
        value=value,
        **widened(low, high, error),
        basis=f"{basis}; {length_of(laboratory, probed.recipe)}; and {STANDARD_ERRORS:g} standard errors "
        f"of {error:.2g}",
    )


def published_claims(
    laboratory: Laboratory,
    probed: Probed,
    figure: str,
    target: str,
    published: Mapping[int, Sequence[float]],
    *,
    prefix: str,
    untrained: float = 0.05,
    trained: float = 0.25,
) -> list[Claim]:
    """Hold what is fitted and scored on the same 256 sequences against published numbers.

    Only before the first layer, which no training moves much, and behind the last where it was trained as
    published.

    Args:
        laboratory: the runs.
        probed: of one recipe.
        figure: where the numbers stand.
        target: which.
        published: by position, before the first layer and behind each.
        prefix: of the claims' names.
        untrained: share that the number before the first layer may be off.
        trained: share that the one behind the last may be off: at one position the luck of a training is
            several times that of a mean loss, which is 1 to 3 %.

    Returns:
        The claims.
    """
    claims = []
    for position, values in published.items():
        ends = [(probed.names[0], values[0], untrained)]
        if is_published(laboratory, probed.recipe):
            ends.append((probed.names[-1], values[-1], trained))
        for name, value, tolerance in ends:
            ours, noise = probed.in_sample(target, name, position)
            low, high, basis = interval(value, tolerance=tolerance * value, noise=noise)
            layer = layer_of(name)
            if target == STEPS and layer == 0 and probed.recipe in CHOSEN_BY:
                basis += "; how the target is made was chosen by these numbers"
            where = f"behind layer {layer}" if layer else "before the first layer"
            claims.append(
                laboratory.claim(
                    f"{prefix}-position-{position}-layer-{layer}",
                    figure,
                    f"{probed.recipe}, {target} at position {position} {where}: a probe fitted and "
                    f"scored on the same 256 sequences has an error of {value:g}",
                    value=ours,
                    low=low,
                    high=high,
                    basis=basis,
                )
            )
    return claims


def depth_claim(
    laboratory: Laboratory,
    probed: Probed,
    name: str,
    figure: str,
    target: str,
    position: int,
    *,
    high: float,
    basis: str,
    layer: int | None = None,
) -> Claim:
    """Judge whether a target is read better behind a layer than before the first one.

    Args:
        laboratory: knows the scale.
        probed: of one recipe.
        name: short, unique.
        figure: where it stands.
        target: which.
        position: where.
        high: largest ratio of held-out errors that passes, before noise.
        basis: where it comes from.
        layer: behind which; the last if not given.

    Returns:
        The claim.
    """
    behind = probed.names[-1] if layer is None else layer_name(layer)
    return limited_claim(
        laboratory,
        probed,
        name,
        figure,
        f"{probed.recipe}: the {target} is read better behind layer {layer_of(behind)} than before "
        f"the first, at position {position} (ratio of held-out errors)",
        ratio(probed, (target, behind, position), (target, probed.names[0], position)),
        high=high,
        basis=basis,
    )
