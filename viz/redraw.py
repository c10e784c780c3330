"""Figures of slices and paths that were kept in files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from losscope.landscape import SettingError
from losscope.landscape.surface import Line, LossPath, Plane, load

from .line import plot_line
from .path import plot_path
from .save_html import save_html
from .surface import plot_surface

__all__ = ["redraw"]


def redraw(
    files: Sequence[str | Path],
    out: str | Path | None = None,
    *,
    value: str | None = None,
    scale: str | None = None,
    size: tuple[float, float] | None = None,
) -> Path:
    """Draw what `losscope.landscape.surface.save` wrote.

    Args:
        files: one, or several lines or several paths, which are drawn together under the names of their files.
        out: the figure, of a kind that matplotlib writes; ``.html`` makes a plane one to turn. Default: a PNG beside
            the first file.
        value: the loss, or the name of a metric.
        scale: ``"auto"``, ``"linear"`` or ``"log"``.
        size: width and height in inches.

    Returns:
        Where the figure was written.

    Raises:
        SettingError: if these cannot be drawn together, or not as that kind of file.
        DataError: if a file is none of ours.
        OSError: if a file cannot be read, or the figure cannot be written.
    """
    results = {Path(file).stem: load(file) for file in files}
    kinds = {type(each) for each in results.values()}
    if len(kinds) != 1 or len(results) != len(files) or (len(files) > 1 and kinds == {Plane}):
        given = ", ".join(f"{name} ({type(each).__name__})" for name, each in results.items())
        raise SettingError(f"name one file, or several lines or several paths with different names; got {given}")
    (kind,) = kinds
    first = next(iter(results.values()))
    out = Path(files[0]).with_suffix(".png") if out is None else Path(out)
    options: dict[str, Any] = {"value": value, "scale": scale, "size": size}
    options = {name: each for name, each in options.items() if each is not None}
    if out.suffix == ".html":
        return _page(first, out, options)
    plots: dict[type, Any] = {Plane: plot_surface, Line: plot_line, LossPath: plot_path}
    if kind not in plots:
        raise SettingError(f"there is no figure of a {kind.__name__}")
    axes = plots[kind](first if len(results) == 1 else results, **options)
    figure = np.ravel(np.asarray(axes, dtype=object))[0].get_figure()
    assert isinstance(figure, Figure)
    try:
        figure.savefig(out, dpi=200)
    except ValueError as error:
        raise SettingError(f"cannot write {str(out)!r}: {error}") from error
    return out


def _page(result: Any, out: Path, options: dict[str, Any]) -> Path:
    if not isinstance(result, Plane):
        raise SettingError(f".html is for planes, which can be turned; draw a {type(result).__name__} as .pdf or .png")
    from .interactive_surface import interactive_surface

    options.pop("size", None)
    return save_html(interactive_surface(result, title=out.stem, **options), out)
