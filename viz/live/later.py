"""What has come since the page's figures were drawn: the ends of their curves, which take the page no time to redraw.

To draw all of a run with 100,000 records takes seconds, and the training may need the processor. What has come since
takes milliseconds, however long the run is: it is sent about once a second, and the whole now and then.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from losscope.probes import Record
from losscope.probes.audit_json import strict

from ..page_figures import DRAWN
from .followed import FollowedRun

__all__ = ["CONTINUED", "later"]

CONTINUED = ("sharpness", "stability", "outliers", "collapse", "tangent_kernel", "gradient_noise")
"""Figures that are curves over the steps. A density, a map or a path is another one with each measurement."""

SENT = ("name", "yaxis", "fillcolor", "meta", "x", "y", "text")
"""Of a trace: by what the page knows whose end it is, and the end."""


def later(run: FollowedRun, fresh: Sequence[Record]) -> list[dict[str, Any]]:
    """The ends of the curves of a run.

    Args:
        run: as it was when the whole was drawn.
        fresh: the records that have come since.

    Returns:
        ``id`` and ``traces`` of each figure that has any, strict JSON.
    """
    if not fresh:
        return []
    ends = run.continued(fresh)
    found = []
    for place, player in enumerate(run.players):
        for kind in CONTINUED:
            try:
                made = DRAWN[kind](ends, player)
            except Exception:  # what is wrong with it shows when all is drawn
                continue
            if made is not None and made[0]:
                traces = [{name: trace[name] for name in SENT if name in trace} for trace in made[0]]
                found.append({"id": f"0-{place}-{kind}", "traces": strict(traces)})
    return found
