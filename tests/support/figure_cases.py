"""The pictures that are kept as baselines, by name: what each draws, and how large."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure

import drawn_everything
import drawn_results as made
from drawn_planes import axes, bowl, cliff, plane_of
from drawn_runs import diverging, dropping, hovering, minibatch, run_of
from drawn_spectra import atom, evolving, spiked
from losscope.landscape.outliers import outliers
from losscope.viz import (
    figure,
    plot_class_structure,
    plot_collapse,
    plot_line,
    plot_multiples,
    plot_neighbourhood,
    plot_overlay,
    plot_path,
    plot_spectrum,
    plot_surface,
    plot_trajectory,
)

__all__ = ["PICTURES", "Picture", "figure_of"]

ONE_COLUMN, TWO_COLUMNS = 3.4, 7.0
"""Widths of a figure in a paper, in inches."""


@dataclass(frozen=True)
class Picture:
    """A baseline.

    Attributes:
        of: the function or the name of a figure that it is of.
        draw: makes it at a size.
        heights: at one column and at two, in inches; None where it is not kept.
    """

    of: str
    draw: Callable[[tuple[float, float]], Any]
    heights: tuple[float | None, float | None] = (3.0, 4.0)


def figure_of(drawn: Any) -> Figure:
    """The figure of what a function returned."""
    found = drawn if isinstance(drawn, Figure) else np.ravel(np.asarray(drawn, dtype=object))[0].get_figure(root=True)
    assert isinstance(found, Figure)
    return found


def _of_run(name: str, run: Callable[[], Any], *heights: float | None) -> Picture:
    return Picture(name, lambda size: figure(run(), name, size=size), heights or (3.0, 4.0))


@cache
def _ordinary() -> Any:
    return drawn_everything.everything(range(0, 410, 10), failed=(12,), broken=(20, 21))


def _lines() -> Any:
    return {
        "SGD": made.line_of(made.valley),
        "Adam, $\\beta_2$ = 0.99": made.line_of(lambda x: 0.4 * made.valley(x) + 0.1),
        "SAM": made.line_of(lambda x: 0.15 + 0.3 * x**2),
    }  # fmt: skip


def _paths() -> Any:
    def hump(height: float) -> Callable[[torch.Tensor], torch.Tensor]:
        return lambda t: 0.1 + 0.2 * t + height * (4 * t * (1 - t)) ** 2

    return {
        "as trained": made.path_of(hump(2.0)), "permuted": made.path_of(hump(0.6)), "Bézier": made.path_of(hump(0.0)),
    }  # fmt: skip


@cache
def _several() -> Any:
    def change(factor: float) -> Callable[[int, float], float]:
        return lambda index, number: number * factor * (1 + 0.02 * (-1) ** index)

    return {
        f"lr {name}": drawn_everything.everything(range(0, 410, 10), change(factor), failed=(lost,))
        for name, factor, lost in (("0.1", 1.0, 12), ("0.05", 0.7, 30), ("0.2", 1.3, 5))
    }


def _surface(size: tuple[float, float]) -> Any:
    path = torch.stack([torch.linspace(-0.9, 0.02, 30), 0.8 * torch.cos(torch.linspace(0, 6, 30)) ** 3], dim=1).double()
    path[:, 1] *= torch.linspace(1, 0, 30)
    points = {"SGD": (-0.9, 0.8), "average": (0.5, -0.6)}
    plane = plane_of(bowl, radius=0.4, along=axes(0.8, 1.0), trajectory=path, points=points)
    return plot_surface(plane, size=size)


def _spectrum(size: tuple[float, float]) -> Any:
    density = spiked([2.5, 4.0, 9.0])
    return plot_spectrum(density, outliers=outliers(density), size=size)


PICTURES: dict[str, Picture] = {
    "sharpness": _of_run("sharpness", lambda: run_of(hovering(1500)), 3.6, 4.6),
    "sharpness-diverging": _of_run("sharpness", lambda: run_of(diverging()), 3.6, None),
    "sharpness-schedule": _of_run("sharpness", lambda: run_of(dropping()), None, 4.6),
    "stability": _of_run("stability", _ordinary, 4.2, 4.6),
    "stability-full-batch": _of_run("stability", lambda: run_of(hovering(1500)), None, 4.0),
    "stability-mini-batch": _of_run(
        "stability", lambda: run_of(minibatch(1500), model={"batch_size": 32, "outputs": 1}), 4.0, None
    ),
    "stability-diverging": _of_run("stability", lambda: run_of(diverging()), None, 4.0),
    "spectrum": _of_run("spectrum", _ordinary, 3.0, 4.0),
    "spectrum-of-a-density": Picture("plot_spectrum", _spectrum, (3.0, None)),
    "spectrum-logarithmic": Picture("plot_spectrum", lambda size: plot_spectrum(atom(at=1e4), size=size), (3.0, None)),
    "spectrum_over_time": _of_run("spectrum_over_time", lambda: evolving(14), 3.0, 4.0),
    "outliers": _of_run("outliers", _ordinary, 3.8, 4.6),
    "collapse": _of_run("collapse", _ordinary, 5.6, 5.8),
    "collapse-by-layer": Picture("plot_collapse", lambda size: plot_collapse(made.layers(), size=size), (5.4, None)),
    "tangent_kernel": _of_run("tangent_kernel", _ordinary, 3.8, 4.4),
    "gradient_noise": _of_run("gradient_noise", _ordinary, 5.4, 5.8),
    "trajectory": _of_run("trajectory", _ordinary, 5.6, 6.4),
    "trajectory-sketched": Picture(
        "plot_trajectory", lambda size: plot_trajectory(made.walk(dimension=60), size=size), (5.6, None)
    ),
    "layers": _of_run("layers", _ordinary, 2.8, 3.0),
    "dashboard": Picture("dashboard", lambda size: figure(_ordinary(), "dashboard", size=(11.7, 8.3)), (None, 8.3)),
    "overlay": Picture("plot_overlay", lambda size: plot_overlay(_several(), size=size), (3.8, 3.8)),
    "overlay-of-groups": Picture(
        "plot_overlay", lambda size: plot_overlay(_several(), "loss", group=["a", "a", "b"], size=size), (3.2, None)
    ),
    "multiples": Picture("plot_multiples", lambda size: plot_multiples(_several(), size=size), (None, 3.0)),
    "line": Picture(
        "plot_line",
        lambda size: plot_line(
            made.line_of(
                made.walls,
                model=made.valley_model(),
                points={"before": -0.8, "after": 0.5},
                metrics={"accuracy": lambda x: 0.95 - 0.2 * x**2},
            ),
            size=size,
        ),
        (4.4, 4.6),
    ),
    "line-several": Picture("plot_line", lambda size: plot_line(_lines(), size=size), (3.4, None)),
    "line-logarithmic": Picture(
        "plot_line",
        lambda size: plot_line(made.line_of(lambda x: 1e-5 + x**4), scale="log", size=size),
        (2.8, None),
    ),
    "path": Picture(
        "plot_path",
        lambda size: plot_path(
            made.path_of(
                lambda t: 0.1 + 0.3 * t + 2 * (4 * t * (1 - t)) ** 2,
                accuracy=lambda t: 0.97 - 0.5 * (4 * t * (1 - t)) ** 2,
            ),
            size=size,
        ),
        (4.2, None),
    ),
    "path-several": Picture("plot_path", lambda size: plot_path(_paths(), size=size), (3.4, None)),
    "surface": Picture("plot_surface", _surface, (4.2, 6.4)),
    "surface-holes": Picture("plot_surface", lambda size: plot_surface(plane_of(cliff), size=size), (3.6, None)),
    "neighbourhood": Picture(
        "plot_neighbourhood",
        lambda size: plot_neighbourhood(made.rising([10.0**k for k in (-5, -4, -3, -2.5, -2, -1.5, -1)]), size=size),
        (3.6, None),
    ),
    "class_structure": Picture(
        "plot_class_structure",
        lambda size: plot_class_structure(
            made.classes_of(6), eigenvalues=made.pairs_of([9.0, 6.5, 4.6, 3.2, 2.2, 1.0]), size=size
        ),
        (6.0, 3.6),
    ),
    "class_structure-many": Picture(
        "plot_class_structure", lambda size: plot_class_structure(made.classes_of(30), size=size), (None, 3.6)
    ),
}
"""By name; `tests/support/baselines.py` draws them all again."""


def sizes_of(picture: Picture) -> dict[str, tuple[float, float]]:
    """The sizes at which a picture is kept, by what its file's name says."""
    both = zip(("one-column", "two-columns"), (ONE_COLUMN, TWO_COLUMNS), picture.heights, strict=True)
    return {name: (width, height) for name, width, height in both if height is not None}
