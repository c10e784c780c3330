"""Runs in notebooks: a table of what was measured, and a picture."""

from __future__ import annotations

import base64
import html
import io
import sys
from typing import Any

from losscope.probes import Run, Watch
from losscope.probes.run_html import run_html

from .figure import figure

__all__ = ["register", "run_as_html"]

PICTURES = {
    "sharpness": ("sharpness", "stability"),
    "layers": ("layer_traces",),
    "spectrum_over_time": ("spectrum",),
    "collapse": ("neural_collapse",),
    "tangent_kernel": ("tangent_kernel",),
    "gradient_noise": ("gradient_noise",),
    "trajectory": ("trajectory",),
}
"""Figures by the probes that they are of; the first that there is stands for the run."""
DPI = 130


def run_as_html(run: Run) -> str:
    """A run's table with the figure that says most of it, as a picture within the HTML.

    Example:
        >>> from losscope.probes import Record, Run
        >>> from losscope.viz.notebook import run_as_html
        >>> run = Run.from_records({"players": {"model": {}}}, [Record(0, "model", "sharpness", value=3.0)])
        >>> "data:image/png;base64" in run_as_html(run)
        True
    """
    table = run_html(run)
    name = next((name for name, probes in PICTURES.items() if any(probe in run.probes for probe in probes)), None)
    if name is None:
        return table
    try:
        picture = _picture(run, name)
    except Exception as error:  # a table without its picture is still worth showing
        return f"{table}<div>no picture: {html.escape(f'{type(error).__name__}: {error}')}</div>"
    return f"{table}{picture}"


def register(shell: Any = None) -> bool:
    """Have IPython show runs, and what is being watched, with their picture; ``losscope.viz`` does so when imported.

    Args:
        shell: the interactive shell; None takes the one that runs, if any.

    Returns:
        Whether there is one.
    """
    if shell is None:
        ipython: Any = sys.modules.get("IPython")  # never the first to import it
        shell = ipython.get_ipython() if hasattr(ipython, "get_ipython") else None
    formatter = getattr(shell, "display_formatter", None)
    if formatter is None:
        return False
    shown = formatter.formatters["text/html"]
    shown.for_type(Run, run_as_html)
    shown.for_type(Watch, lambda watch: run_as_html(watch.run))
    return True


def _picture(run: Run, name: str) -> str:
    made = figure(run, name, size=(6.4, 4.0))
    written = io.BytesIO()
    made.savefig(written, format="png", dpi=DPI)
    data = base64.b64encode(written.getvalue()).decode("ascii")
    return f'<img alt="{html.escape(name)}" width="640" src="data:image/png;base64,{data}">'
