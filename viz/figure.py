"""Figures of a run by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from losscope.landscape import SettingError
from losscope.probes import Run

from .collapse import plot_collapse
from .dashboard import plot_dashboard
from .gradient_noise import plot_gradient_noise
from .layers import plot_layers
from .outliers import plot_outliers
from .sharpness import plot_sharpness
from .spectrum import plot_spectrum
from .spectrum_over_time import plot_spectrum_over_time
from .stability import plot_stability
from .tangent import plot_tangent_kernel
from .trajectory import plot_trajectory

__all__ = ["FIGURES", "figure"]

FIGURES: dict[str, Callable[..., Any]] = {
    "sharpness": plot_sharpness,
    "stability": plot_stability,
    "spectrum": plot_spectrum,
    "spectrum_over_time": plot_spectrum_over_time,
    "outliers": plot_outliers,
    "collapse": plot_collapse,
    "tangent_kernel": plot_tangent_kernel,
    "gradient_noise": plot_gradient_noise,
    "trajectory": plot_trajectory,
    "layers": plot_layers,
    "dashboard": plot_dashboard,
}


def figure(run: Run, name: str, *, player: str | None = None, size: tuple[float, float] | None = None) -> Figure:
    """Make one of the figures of a run.

    It belongs to nobody: ``figure(run, "sharpness").savefig("sharpness.pdf")`` needs no pyplot and leaves none.

    Args:
        run: the run.
        name: ``"sharpness"``, ``"stability"``, ``"spectrum"``, ``"spectrum_over_time"``, ``"outliers"``,
            ``"collapse"``, ``"tangent_kernel"``, ``"gradient_noise"``, ``"trajectory"``, ``"layers"``, or
            ``"dashboard"`` for all that was recorded.
        player: which player; default: the first.
        size: width and height in inches.

    Raises:
        SettingError: if there is no figure of that name.
        RunError: if the run has no such player.

    Example:
        >>> from losscope.probes import Run
        >>> from losscope.viz import figure
        >>> figure(Run.from_records({"players": {}}, []), "stability")
        <Figure size 640x420 with 1 Axes>
    """
    if name not in FIGURES:
        raise SettingError(f"there is no figure {name!r}; there are {', '.join(map(repr, FIGURES))}")
    axes = FIGURES[name](run, player=player, **({} if size is None else {"size": size}))
    made = np.ravel(np.asarray(axes, dtype=object))[0].get_figure(root=True)
    assert isinstance(made, Figure)
    return made
