r"""Whether an optimizer's preconditioner stays put beside the oscillation, which its threshold presumes.

The threshold of ``P^-1 H`` is that of a step which divides by a frozen P. Two numbers tell how far it is so.

The newest gradient's share a in P^2, for gradients that stay as large: ``(1-b2)/(1-b2^t)`` of Adam and RMSprop, ``1/t``
of Adagrad. The step divides by a P that its own gradient is part of, and so it answers to a change of the gradient with
``(1 - a g^2/P^2)/P`` instead of ``1/P``: its edge lies at a ratio between 1 and ``1/(1-a)``. P forgets a/2 of itself
in a step. In the first step a is 1: the step is the gradient's sign, whatever the curvature, and ``P^-1 H`` has its
eigenvector where that one gradient happened to be next to nothing.

The change of ``v'Pv`` in a step, on average since the last measurement, whose eigenvector v is: ``v'Hv / v'Pv`` is
below the largest eigenvalue, and this is how fast it moves while H stays.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence

from torch import Tensor

from losscope.landscape import Preconditioned
from losscope.landscape.tracked_pair import TrackedPair

from .criterion import Assumption
from .records import Record
from .seen import SeenCurvature
from .window import Ratio, Window, column, median

__all__ = [
    "how_it_moves", "is_being_made", "is_made", "moves", "settled_part", "spanned", "staying", "where_it_stays",
    "why_unsettled",
]  # fmt: skip

NEWEST, CHANGE = "preconditioner_newest", "preconditioner_change"
"""The two numbers in the records."""

SHARE = 0.105
"""Share of the newest gradient up to which P changes by some 5 % in a step; a tenth, and what bias correction adds."""

MOST = 0.05
"""Change of P in a step beside which an oscillation, of a period of two steps, stays within the audit's 10 %."""


def how_it_moves(
    seen: SeenCurvature,
    operator: Preconditioned,
    vector: Tensor,
    step: int,
    known: TrackedPair | None,
    since: int | None,
) -> dict[str, float]:
    """The numbers of one measurement; without those that are not known.

    Args:
        seen: the curvature as the preconditioner shows it.
        operator: the same as an operator.
        vector: (n,) its eigenvector.
        step: of the measurement.
        known: what the last measurement has left: of its eigenvector v, with v'Pv = 1.
        since: its step; None where its P was still being made, and v is where that happened to be small.
    """
    found: dict[str, float] = {}
    if not seen.threshold.preconditioned:  # the rates of SGD's groups, which are as they are set
        return found
    if (share := seen.newest_share(vector)) is not None:
        found[NEWEST] = share
    if known is not None and since is not None and since < step:
        length = float(operator.space.length(operator.from_parameters(known.vectors[:, 0])))
        if 0 < length < math.inf:
            found[CHANGE] = math.expm1(2 * math.log(length) / (step - since))
    return found


def moves(values: Mapping[str, float | None]) -> bool:
    """Whether that is too much for a theory of a frozen P; not where nothing is known of it."""
    return is_being_made(values) or abs(values.get(CHANGE) or 0.0) > MOST


def is_being_made(values: Mapping[str, float | None]) -> bool:
    """Whether P is made of so few gradients that an eigenvector tells where these happened to be small."""
    return (values.get(NEWEST) or 0.0) > SHARE


def is_made(seen: SeenCurvature) -> bool:
    """Whether all of P is of many gradients, as far as that is known before there is an eigenvector."""
    return all(share <= SHARE for share in seen.newest.values())


# --------------------------------------------------------------------------- what the audit makes of it


def settled_part(records: Sequence[Record]) -> Sequence[Record]:
    """Without the first measurements, while P was being made of few gradients; all where it never settled."""
    first = next((i for i, record in enumerate(records) if not moves(record.values)), 0)
    return records[first:]


def where_it_stays(window: Window) -> Window:
    """Without the measurements in between at which P moved, unless these are most of them."""
    still = [record for record in window if not moves(record.values)]
    return window if 2 * len(still) < len(window) or len(still) == len(window) else Window(still)


def staying(window: Sequence[Record]) -> Assumption:
    """That P changes slowly beside the oscillation, and what was seen of it."""
    newest, change = _typical(window)
    said = [] if newest is None else [f"the newest gradient is {_percent(newest)} of its square"]
    if change is not None:
        said.append(f"along the top eigenvector it changed by {_percent(change)} in a step")
    seen = f" ({', '.join(said)})" if said else ""
    holds = why_unsettled(window) is None if said else None
    return Assumption(f"the preconditioner changes slowly beside the oscillation{seen}", holds)


def why_unsettled(window: Sequence[Record]) -> str | None:
    """Why a threshold of a frozen preconditioner says nothing, or None."""
    moving = [record for record in window if moves(record.values)]
    if not moving or 2 * len(moving) <= len(window):
        return None
    newest, change = _typical(moving)
    seen = [f"the newest gradient is {_percent(newest)} of its square"] if newest is not None and newest > SHARE else []
    if change is not None and (change > MOST or not seen):
        seen.append(f"along the top eigenvector it changes by {_percent(change)} in a step")
    return f"the threshold is one of a preconditioner that stays, and this one moves: {', '.join(seen)}"


def spanned(ratio: Ratio, window: Sequence[Record]) -> Ratio:
    """The ratio to the edge of a frozen P, its lower end being that to the edge of one which the step is part of."""
    newest, _ = _typical(window)
    if newest is None or ratio.ratio_low is None or not ratio.ratio_low > 0:
        return ratio
    return dataclasses.replace(ratio, ratio_low=ratio.ratio_low * (1 - newest))


def _typical(window: Sequence[Record]) -> tuple[float | None, float | None]:
    """The newest gradient's share and the size of the change, medians over the window."""
    return median(column(window, NEWEST)), median([abs(change) for change in column(window, CHANGE)])


def _percent(share: float) -> str:
    return f"{share:.0%}" if share >= 0.1 else f"{share:.1%}"
