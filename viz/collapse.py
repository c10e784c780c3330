"""Neural collapse over training, or from layer to layer."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes

from losscope.landscape import Collapse
from losscope.probes import Run

from . import series, style
from .lines import draw_line
from .marks import mark_unmeasured
from .sharpness import _title
from .style import BLUE, GREEN, MUTED, ORANGE, PURPLE, VERMILLION

__all__ = ["plot_collapse"]

PROBE = "neural_collapse"
Row = Mapping[str, float | None]
Curve = tuple[str, str, str, str, str]  # name of the number, label, colour, line style, marker

PANELS: tuple[tuple[str, tuple[Curve, ...]], ...] = (
    (
        "within classes",
        (
            ("nc1", "NC1", BLUE, "-", "o"),
            ("nc1_quotient", "quotient", ORANGE, "--", "s"),
            ("cdnv", "CDNV", GREEN, ":", "^"),
        ),
    ),
    (
        "geometry",
        (
            ("equinorm", "NC2 lengths", BLUE, "-", "o"),
            ("equiangularity", "NC2 angles", VERMILLION, "-", "s"),
            ("equinorm_classifier", "lengths, classifier", BLUE, ":", "^"),
            ("equiangularity_classifier", "angles, classifier", VERMILLION, ":", "v"),
            ("gnc2_variance", "GNC2 variance", GREEN, "-.", "P"),
            ("nc3", "NC3", PURPLE, "--", "D"),
        ),
    ),
    (
        "share of samples",
        (
            ("nc4", "NC4", BLUE, "-", "o"),
            ("nearest_mean_error", "nearest mean is not the label's", ORANGE, "--", "s"),
        ),
    ),
)
HEIGHTS = (1.5, 1.8, 1.0)
LETTERS_PER_INCH = 13
"""Of the names of layers below the axis."""


def plot_collapse(
    shown: Run | Mapping[str, Collapse],
    ax: Axes | Sequence[Axes] | np.ndarray | None = None,
    *,
    player: str | None = None,
    size: tuple[float, float] = (6.4, 6.0),
) -> Axes | np.ndarray:
    r"""Draw how features and classifier collapse: over the steps of a run, or from layer to layer.

    Above, the variation within classes against that between them (NC1, its quotient form, CDNV), with NC1 of a run's
    further layers in grey; then lengths and angles of the class means, solid, and of the classifier's rows, dotted
    (NC2), and their distance from each other (NC3); below, the share of samples whose nearest class mean is not the
    class that the classifier takes (NC4), or not their label's. All but shares are logarithmic where they spread by
    more than a factor of 20. Where classes outnumber d + 1, NC2's angles cannot become 0, and GNC2's variance can.

    Args:
        shown: a run with probe ``neural_collapse``, or what `neural_collapse_by_layer` returns.
        ax: one Axes draws the first panel only, three draw all; None makes a figure.
        player: of a run, which player; default: the first.
        size: width and height in inches of the figure made.

    Returns:
        The Axes drawn on: an array of three, or the one that was given.

    Raises:
        SettingError: if ``ax`` is a number of Axes other than one or three.
        RunError: if the run has no such player.

    Example:
        >>> from losscope.probes import Record, Run
        >>> from losscope.viz import plot_collapse
        >>> records = [Record(step, "model", "neural_collapse", values={"nc1": 1 / (1 + step)}) for step in range(9)]
        >>> top, *_ = plot_collapse(Run.from_records({"players": {"model": {}}}, records))
        >>> top.get_ylabel()
        'within classes'
    """
    rows, places = _rows(shown, player)
    if isinstance(ax, Axes):
        _draw(ax, rows, places, *PANELS[0])
        axes = np.array([ax], dtype=object)
    elif ax is None:
        figure, axes = style.new_figure(HEIGHTS, size)
        if isinstance(shown, Run):
            style.title(figure, _title(shown, player))
    else:
        axes = style.given_axes(ax, 3, "plot_collapse", "three")
    if not isinstance(ax, Axes):
        for panel, drawn in zip(axes, PANELS, strict=True):
            _draw(panel, rows, places, *drawn)
    if isinstance(shown, Run):
        mark_unmeasured(axes[0], series.unmeasured(shown, PROBE, player), "collapse")
    for panel in axes:
        style.legend(panel, outside=ax is None, columns=3)
    if isinstance(shown, Run):
        style.step_axis(axes[-1], places)
    else:
        room = max(int(LETTERS_PER_INCH * style.width_of(axes[-1])), 1)
        words = [style.plain(name, 14) for name in shown]
        every = max(math.ceil(sum(len(each) + 2 for each in words) / room), 1)
        axes[-1].set_xticks(places[::every], words[::every])
        axes[-1].set_xlabel("layer")
    return ax if isinstance(ax, Axes) else axes


def _rows(shown: Run | Mapping[str, Collapse], player: str | None) -> tuple[list[Row], np.ndarray]:
    """The numbers of each measurement, and where it is on the x-axis."""
    if isinstance(shown, Run):
        records = shown.select(PROBE, player)
        return [record.values for record in records], np.array([r.step for r in records], dtype=int)
    return [each.numbers for each in shown.values()], np.arange(len(shown))


def _draw(ax: Axes, rows: list[Row], places: np.ndarray, label: str, curves: Sequence[Curve]) -> None:
    ax.set_ylabel(label)
    drawn = []
    for name, words, colour, line, marker in curves:
        values = _column(rows, name)
        if not np.isfinite(values).any():
            continue
        drawn.append(values)
        draw_line(
            ax, places, values, color=colour, linestyle=line, linewidth=1.3, marker=marker, markersize=2.8, label=words,
            zorder=3, gid=name,
        )  # fmt: skip
    if curves[0][0] == "nc1":
        drawn += _draw_other_layers(ax, rows, places)
    if not drawn:
        style.say(ax, "not measured")
        return
    if label == "share of samples":
        ax.set_ylim(-0.02, max(0.1, 1.1 * max(float(np.nanmax(values)) for values in drawn)))
    else:
        style.log_if_wide(ax, np.concatenate([values[values > 0] for values in drawn]))


def _draw_other_layers(ax: Axes, rows: list[Row], places: np.ndarray) -> list[np.ndarray]:
    """NC1 of further layers, each named at its end."""
    every = dict.fromkeys(name for names in dict.fromkeys(tuple(row) for row in rows) for name in names)
    found = []
    for name in [each for each in every if each.endswith("/nc1")]:
        values = _column(rows, name)
        if not np.isfinite(values).any():
            continue
        found.append(values)
        draw_line(ax, places, values, color=MUTED, linewidth=0.9, marker=".", markersize=3, zorder=2.5, gid=name)
        last = np.flatnonzero(np.isfinite(values))[-1:]
        for index in last:
            ax.annotate(
                style.plain(name.removesuffix("/nc1"), 16), (places[index], values[index]), xytext=(3, 0),
                textcoords="offset points", va="center", color=MUTED, fontsize=style.FONT - 1,
                path_effects=style.halo(ax), gid="layer",
            )  # fmt: skip
    return found


def _column(rows: Sequence[Row], name: str) -> np.ndarray:
    return series.numbers([row.get(name) for row in rows])
