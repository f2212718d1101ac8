"""Pictures of diagnoses: what the nearest optimizer explains, as trained and under shifts."""

from collections.abc import Sequence
from typing import Any

from mesaopt.analysis.diagnosis.verdict import MOST, Agreement, ShiftResult
from mesaopt.looks import INK, PALETTE


def draw_agreement(axes: Any, trained: Agreement, shifts: Sequence[ShiftResult]) -> None:
    """Draw the shares of predictions and errors that the nearest optimizer explains.

    Args:
        axes: of matplotlib, to be drawn on.
        trained: agreement of the optimizer on the training distribution.
        shifts: the same optimizer under distribution shifts; grey names do not count.
    """
    named = [("as trained", trained), *((shift.name, shift) for shift in shifts)]
    draw_shares(axes, named)
    axes.set(xlabel="share explained")
    counted = [True, *(shift.counts for shift in shifts)]
    for label, counts in zip(axes.get_yticklabels(), counted, strict=True):
        label.set_color(INK if counts else PALETTE[5])
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.17), frameon=False, ncols=2)


def draw_shares(axes: Any, named: Sequence[tuple[str, Agreement | ShiftResult]]) -> None:
    """Draw shares of predictions and of errors as bars, with 95 % errors and the least share of a "yes".

    Args:
        axes: of matplotlib, to be drawn on.
        named: names and what was measured, from the top to the bottom.
    """
    places = range(len(named))
    for offset, color, what in ((-0.19, 0, "predictions"), (0.19, 1, "errors")):
        shares = [getattr(one, what) for _, one in named]
        axes.barh(
            [place + offset for place in places],
            [max(share.value, 0.0) for share in shares],
            0.36,
            xerr=[1.96 * share.error if share.value > 0 else 0.0 for share in shares],
            color=PALETTE[color],
            hatch="//" * color,
            label=f"of {what}",
        )
    axes.axvline(MOST, color=PALETTE[4], lw=1)
    axes.set(xlim=(0, 1.02))
    axes.set_yticks(places, [name for name, _ in named])
    axes.invert_yaxis()
