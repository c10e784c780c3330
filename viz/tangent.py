"""How the tangent kernel moves over a run."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes

from losscope.probes import Record, Run

from . import series, style
from .lines import draw_line
from .marks import mark_unmeasured
from .sharpness import _title
from .style import BLUE, GREEN, ORANGE

__all__ = ["plot_tangent_kernel"]

PROBE = "tangent_kernel"


def plot_tangent_kernel(
    run: Run,
    ax: Axes | Sequence[Axes] | np.ndarray | None = None,
    *,
    player: str | None = None,
    size: tuple[float, float] = (6.4, 4.8),
) -> Axes | np.ndarray:
    r"""Draw how far the tangent kernel is from the first one, its alignment with the labels, and its velocity.

    The distance is :math:`1 - \cos(K_0, K_t)`, plain and without the constant mode (centred). The velocity is the
    distance between neighbouring measurements per step, drawn halfway between them on a logarithmic axis.

    Args:
        run: a run with probe ``tangent_kernel``.
        ax: one Axes draws the distances only, two draw the velocity on the second; None makes a figure.
        player: which player; default: the first.
        size: width and height in inches of the figure made.

    Returns:
        The Axes drawn on: an array of two, or the one that was given.

    Raises:
        SettingError: if ``ax`` is a number of Axes other than one or two.
        RunError: if the run has no such player.

    Example:
        >>> from losscope.probes import Record, Run
        >>> from losscope.viz import plot_tangent_kernel
        >>> records = [Record(step, "model", "tangent_kernel", value=0.01 * step, values={}) for step in range(9)]
        >>> top, bottom = plot_tangent_kernel(Run.from_records({"players": {"model": {}}}, records))
        >>> bottom.get_xlabel()
        'optimizer step'
    """
    records = run.select(PROBE, player)
    steps = np.array([r.step for r in records], dtype=int)
    if isinstance(ax, Axes):
        _draw_distances(run, records, ax, player, own=False)
        style.step_axis(ax, steps)
        return ax
    own = ax is None
    if ax is None:
        figure, axes = style.new_figure((1.8, 1.0), size)
        style.title(figure, _title(run, player))
    else:
        axes = style.given_axes(ax, 2, "plot_tangent_kernel", "two (distance, velocity)")
    _draw_distances(run, records, axes[0], player, own=own)
    _draw_velocity(records, axes[1], own=own)
    style.step_axis(axes[1], steps)
    return axes


def _draw_distances(run: Run, records: Sequence[Record], ax: Axes, player: str | None, *, own: bool) -> None:
    ax.set_ylabel("distance, alignment")
    steps = np.array([r.step for r in records], dtype=int)
    plain = series.numbers(r.value for r in records)
    if not np.isfinite(plain).any():
        style.say(ax, "no tangent kernel recorded" if not len(plain) else "no finite tangent kernel recorded")
    else:
        lines = (
            (plain, BLUE, "-", "o", r"distance from the first, $1 - \cos(K_0, K_t)$", "distance"),
            (series.column(records, "centred"), ORANGE, "--", "s", "the same, centred", "centred"),
            (series.column(records, "alignment"), GREEN, ":", "^", "alignment with the labels, cosine", "alignment"),
        )
        for values, colour, dash, marker, label, gid in lines:
            if np.isfinite(values).any():
                draw_line(
                    ax, steps, values, color=colour, linestyle=dash, linewidth=1.4, marker=marker, markersize=3,
                    zorder=3, label=label, gid=gid,
                )  # fmt: skip
        ax.set_ylim(min(0.0, ax.get_ylim()[0]), None)
    mark_unmeasured(ax, series.unmeasured(run, PROBE, player), "kernel")
    style.legend(ax, outside=own)


def _draw_velocity(records: Sequence[Record], ax: Axes, *, own: bool) -> None:
    ax.set_ylabel("velocity\n[distance / step]")
    steps = np.array([r.step for r in records], dtype=float)
    drawn = False
    for name, colour, dash, marker, label in (
        ("velocity", BLUE, "-", "o", "plain"), ("velocity_centred", ORANGE, "--", "s", "centred"),
    ):  # fmt: skip
        values = _positive(series.column(records, name)[1:])  # nothing was measured before the first
        if np.isfinite(values).any():
            draw_line(
                ax, (steps[1:] + steps[:-1]) / 2, values, color=colour, linestyle=dash, linewidth=1.2, zorder=3,
                label=label, gid=name, marker=marker, markersize=3,
            )  # fmt: skip
            drawn = True
    if drawn:
        ax.set_yscale("log")
        style.log_ticks(ax, *ax.get_ylim())
    else:
        style.say(ax, "no velocity: fewer than two kernels" if len(records) < 2 else "no velocity above zero recorded")
    style.legend(ax, outside=own)


def _positive(values: np.ndarray) -> np.ndarray:
    return np.where(values > 0, values, np.nan)
