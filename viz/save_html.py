"""A figure of plotly's as a file that needs no network and sends nothing."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

__all__ = ["save_html"]

CONFIG = {"showSendToCloud": False, "displaylogo": False, "responsive": True}
"""Plotly's button beside a figure uploads its data to a server; a figure cannot say that there shall be none."""


def save_html(figure: Figure, path: str | Path) -> Path:
    """Write an interactive figure to one file, which opens in any browser, offline.

    What plays waits for its button, and plotly's own buttons that lead to its server are left out.

    Args:
        figure: one of our interactive figures, or any other of plotly's.
        path: the file.

    Returns:
        The file.

    Raises:
        OSError: if it cannot be written.

    Example:
        >>> import tempfile
        >>> from losscope.probes import Run
        >>> from losscope.viz import interactive_sharpness, save_html
        >>> figure = interactive_sharpness(Run.from_records({"players": {}}, []))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save_html(figure, f"{folder}/sharpness.html").stat().st_size > 1_000_000  # plotly.js is in it
        True
    """
    figure.write_html(path, config=CONFIG, auto_play=False, include_plotlyjs=True)
    return Path(path)
