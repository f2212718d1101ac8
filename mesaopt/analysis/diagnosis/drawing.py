"""The picture of a diagnosis: what the nearest optimizer explains, as trained and under shifts."""

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
    names = ["as trained", *(shift.name for shift in shifts)]
    for offset, color, what in ((-0.19, 0, "predictions"), (0.19, 1, "errors")):
        shares = [getattr(one, what) for one in (trained, *shifts)]
        axes.barh(
            [place + offset for place in range(len(names))],
            [max(share.value, 0.0) for share in shares],
            0.36,
            xerr=[1.96 * share.error if share.value > 0 else 0.0 for share in shares],
            color=PALETTE[color],
            hatch="//" * color,
            label=f"of {what}",
        )
    axes.axvline(MOST, color=PALETTE[4], lw=1)
    axes.set(xlim=(0, 1.02), yticks=range(len(names)), xlabel="share explained")
    counted = [True, *(shift.counts for shift in shifts)]
    for label, counts in zip(axes.set_yticklabels(names), counted, strict=True):
        label.set_color(INK if counts else PALETTE[5])
    axes.invert_yaxis()
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.17), frameon=False, ncols=2)
