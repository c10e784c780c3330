"""One quantity of several runs over their steps, in one panel with one legend."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from losscope.landscape import SettingError
from losscope.probes import Run

from . import style
from .overlay_lines import LEGIBLE, Line, Look, lines_of, nothing
from .seeds import spread_of
from .series import runs_of
from .style import INK, MUTED

__all__ = ["plot_overlay"]

MARKED = 12
"""Of a line's points that carry its marker."""
NAMED = 3
"""Runs that are named where they lack the quantity; more are counted."""
DASHES: Any = (0, (5, 2))
BELOW, ROW = 0.7, 0.17
"""Inches of height below the axes, and of a row of the legend above them."""


def plot_overlay(
    runs: Run | Sequence[Run] | Mapping[str, Run],
    quantity: str = "sharpness",
    ax: Axes | None = None,
    *,
    player: str | None = None,
    group: Callable[[Run], str] | Sequence[str] | None = None,
    size: tuple[float, float] | None = None,
) -> Axes:
    """Draw one quantity of several runs, with intervals, and with their thresholds where it has any.

    Bands and bars are the recorded intervals. The threshold of each measurement is dashed in the colour of its run, or
    black where all runs share it. Crosses at the bottom are measurements that are not finite or failed, of which the
    legend has the number. A run without the quantity is named in the legend too. Of more than twelve runs the colour,
    from dark to light, is their order, and the legend names some.

    With ``group``, runs of the same group are drawn as their median, thin where not all of them have a value any more,
    over the range of their values.

    Args:
        runs: one run, several, or several by name.
        quantity: ``"sharpness"``, ``"loss"``, a criterion of the audit over its threshold (``"trace/threshold"``), a
            probe for its main number (``"trace"``), a number among a probe's values (``"nc1"``), or what was logged.
        ax: where to draw; None makes a figure.
        player: which player of each run; default: all of them.
        group: label of the group of a run, by a function or in the order of the runs, as of seeds of one configuration.
        size: width and height in inches of the figure made.

    Returns:
        The Axes drawn on.

    Raises:
        SettingError: if there is no run, or there are not as many groups as runs.

    Example:
        >>> from losscope.probes import Record, Run
        >>> from losscope.viz import plot_overlay
        >>> def run(rate):
        ...     limit = {"threshold": 2 / rate}
        ...     records = [Record(t, "model", "sharpness", value=t * rate, values=limit) for t in range(9)]
        ...     return Run.from_records({"players": {"model": {}}}, records)
        >>> ax = plot_overlay({"slow": run(0.1), "fast": run(0.4)})
        >>> [text.get_text() for text in ax.figure.legends[0].get_texts()]
        ['slow', 'fast', 'threshold of each run']
    """
    lines = lines_of(runs, quantity, player, "plot_overlay")
    groups = None if group is None else _groups(lines, group, runs)
    looks = [Look(index, len(lines)) for index in range(len(lines))]
    if groups is not None:
        order = list(dict.fromkeys(groups))
        looks = [Look(order.index(each), len(order)) for each in groups]
    own = ax is None
    if ax is None:
        rows = min(looks[0].of, LEGIBLE) // 3
        _, axes = style.new_figure((1,), size or (6.4, 3.8 + 0.17 * rows))
        ax = axes[0]
    drawn = [line for line in lines if line.found]
    labels = {line.found.label for line in drawn or lines}
    ax.set_ylabel(labels.pop() if len(labels) == 1 else style.plain(quantity, 40))
    if not drawn:
        style.say(ax, nothing(lines, quantity))
        style.step_axis(ax, np.array([]))
        return ax
    _scale(ax, drawn)
    entries = _draw_runs(ax, lines, looks) if groups is None else _draw_groups(ax, lines, looks, groups)
    entries += _draw_thresholds(ax, [(line, look) for line, look in zip(lines, looks, strict=True) if line.found])
    entries += _lacking([line for line in lines if not line.found], quantity)
    style.step_axis(ax, np.concatenate([line.found.data.steps for line in drawn]))
    _legend(ax, entries, own=own)
    figure = ax.get_figure(root=True)
    if own and isinstance(figure, Figure):
        style.note(figure, _note(drawn, grouped=groups is not None))
    return ax


def _groups(lines: Sequence[Line], group: Callable[[Run], str] | Sequence[str], runs: Any) -> list[str]:
    """The label of every line's group."""
    if callable(group):
        return [style.plain(str(group(line.run))) for line in lines]
    every = [runs] if isinstance(runs, Run) else list(runs.values() if isinstance(runs, Mapping) else runs)
    if isinstance(group, str) or len(group) != len(every):
        raise SettingError(
            f"group= takes a function of a run, or one label for each of {len(every)} runs; got {group!r}"
        )
    labels = {id(run): style.plain(str(label)) for run, label in zip(every, group, strict=True)}
    return [labels[id(line.run)] for line in lines]


def _scale(ax: Axes, lines: Sequence[Line]) -> None:
    """A logarithmic axis where numbers are far apart; loose upper bounds do not squeeze the curves."""
    values = np.concatenate([each for line in lines for each in (line.found.data.value, line.found.data.threshold)])
    values = values[np.isfinite(values)]
    highs = np.concatenate([line.found.data.high for line in lines])
    highest = float(highs[np.isfinite(highs)].max(initial=values.max()))
    lowest, top = float(values.min()), float(values.max())
    if style.log_if_wide(ax, values, wide=30):
        ax.set_ylim(lowest / 1.6, max(top * 1.6, min(highest * 1.1, top * 4)))
        return
    if style.symmetric_if_wide(ax, values):
        ax.set_ylim(min(lowest * 1.6, 0.0), top * 1.6)
        return
    least = lowest if lowest < 0 or lowest > 0.7 * top else 0.0  # zero is in sight unless it is far away
    height = (top - least) or abs(top) or 1.0
    bottom = least - (0.05 * height if least != 0 else 0)
    ax.set_ylim(bottom, max(top + 0.08 * height, min(highest, top + 0.5 * height)))


def _draw_runs(ax: Axes, lines: Sequence[Line], looks: Sequence[Look]) -> list[Any]:
    """Each run's curve, interval and crosses; handles for the legend."""
    handles = []
    for line, look in zip(lines, looks, strict=True):
        data = line.thinned
        _cross(ax, line, look)
        if not line.found:
            continue
        thin = look.many or len(data) > 500
        (handle,) = ax.plot(
            data.steps, data.value, linewidth=0.9 if thin else 1.3, markevery=_marked(data.value, look),
            label=line.label, zorder=3, gid="overlay", **look.options,
        )  # fmt: skip
        handles.append(handle)
        if not look.many:
            _draw_interval(ax, line, look)
    if len(handles) <= LEGIBLE:
        return handles
    some = [handles[i] for i in np.unique(np.linspace(0, len(handles) - 1, 5).astype(int))]
    return [*some, _word(f"{len(handles)} runs in order, from dark to light")]


def _marked(values: np.ndarray, look: Look) -> list[int]:
    """Points with a marker: some at equal distances, other ones for each run, and those that no line reaches."""
    known = np.isfinite(values)
    beside = np.concatenate([[False], known[:-1]]) | np.concatenate([known[1:], [False]])
    marked = known & ~beside
    every = max(len(values) // MARKED, 1)
    marked[(look.index * every) // max(look.of, 1) :: every] = True
    return [int(i) for i in np.flatnonzero(marked & known)]


def _draw_interval(ax: Axes, line: Line, look: Look) -> None:
    """Bands where neighbours are bounded on both sides, bars where one alone is."""
    data, colour = line.thinned, look.options["color"]
    low = np.where(np.isfinite(data.low), data.low, data.value)
    for first, end in runs_of(data.bounded & np.isfinite(low)):
        part = slice(first, end)
        if end - first > 1:
            ax.fill_between(
                data.steps[part], low[part], data.high[part], color=colour, alpha=0.18 if look.of <= 4 else 0.1,
                linewidth=0, zorder=2, gid="overlay-interval",
            )  # fmt: skip
        else:
            ax.errorbar(
                data.steps[part], data.value[part], color=colour, linewidth=0.8, capsize=2, fmt="none", zorder=2.5,
                yerr=[np.maximum(data.value[part] - low[part], 0), np.maximum(data.high[part] - data.value[part], 0)],
            )  # fmt: skip


def _cross(ax: Axes, line: Line, look: Look) -> None:
    """Crosses at the bottom, in the run's colour, where there is no number, and at the top where it is too large."""
    lost = line.found.missing
    row = 0.02 if look.many else 0.02 + 0.025 * look.index
    for steps, marker, height in ((lost.nonfinite, "x", row), (lost.errors, "+", row), (lost.beyond, "^", 1 - row)):
        if steps:
            shown = np.array(steps)[np.unique(np.linspace(0, len(steps) - 1, min(len(steps), 60)).astype(int))]
            ax.plot(
                shown, np.full(len(shown), height), transform=ax.get_xaxis_transform(), linestyle="none",
                marker=marker, markersize=4.5, markeredgewidth=1, color=look.options["color"], zorder=4, clip_on=False,
                gid="unmeasured",
            )  # fmt: skip


def _draw_groups(ax: Axes, lines: Sequence[Line], looks: Sequence[Look], groups: Sequence[str]) -> list[Any]:
    """Each group's median over the range of its runs."""
    handles = []
    for label in dict.fromkeys(groups):
        members = [line for line, own in zip(lines, groups, strict=True) if own == label]
        look = looks[groups.index(label)]
        there = [line.found.data for line in members if line.found]
        for line in members:
            _cross(ax, line, look)
        if not there:
            continue
        found = spread_of(there)
        options = look.options | {"zorder": 3, "markevery": _marked(found.median, look)}
        ax.fill_between(
            found.steps, found.low, found.high, color=options["color"], alpha=0.18, linewidth=0, zorder=2, gid="range"
        )  # fmt: skip
        some = f"{len(there)} of {len(members)} runs" if len(there) < len(members) else f"{len(members)} runs"
        ax.plot(found.steps, found.median, linewidth=0.7, gid="overlay-some", **options)
        everyone = np.where(found.count == len(members), found.median, np.nan)
        ax.plot(found.steps, everyone, linewidth=1.8, zorder=3, color=options["color"], gid="overlay-median")
        handles.append(Line2D([], [], label=f"{label} ({some})", linewidth=1.8, **look.options))
    return handles if len(handles) <= LEGIBLE else [*handles[:4], _word(f"... {len(handles)} groups")]


def _draw_thresholds(ax: Axes, drawn: Sequence[tuple[Line, Look]]) -> list[Any]:
    """Dashed, in the colour of its run; one black line where all share it; and one entry of the legend."""
    levels = np.concatenate([np.empty(0), *(line.found.data.threshold for line, _ in drawn)])
    levels = levels[np.isfinite(levels)]
    if not len(levels):
        return []
    formulas = {line.formula for line, _ in drawn if np.isfinite(line.found.data.threshold).any()}
    ratio = drawn[0][0].found.ratio
    formula = formulas.pop() if len(formulas) == 1 and not ratio else ""
    formula = f" {style.plain(formula, 30)}" if formula else ""
    if np.allclose(levels, levels[0], rtol=1e-9, atol=0):
        ax.axhline(levels[0], color=style.ink(ax), linewidth=1.1, linestyle=DASHES, zorder=2.8, gid="threshold")
        said = "threshold" if ratio else f"threshold{formula} = {style.figure_number(float(levels[0]))}"
        return [Line2D([], [], color=style.ink(ax), linewidth=1.1, linestyle=DASHES, label=said)]
    seen: set[tuple[int, bytes]] = set()
    for line, look in drawn:
        data = line.thinned
        known = (look.index, data.threshold.tobytes() + data.steps.tobytes())
        if np.isfinite(data.threshold).any() and known not in seen:
            seen.add(known)
            ax.plot(
                data.steps, data.threshold, color=look.options["color"], linewidth=1, linestyle=DASHES,
                drawstyle="steps-post", zorder=2.8, gid="threshold",
            )  # fmt: skip
    return [Line2D([], [], color=MUTED, linewidth=1, linestyle=DASHES, label=f"threshold{formula} of each run")]


def _lacking(lines: Sequence[Line], name: str) -> list[Any]:
    """Entries of the legend for the runs without the quantity."""
    if len(lines) > NAMED:
        return [_word(f"{len(lines)} more runs have no {style.plain(name, 40)}")]
    return [_word(f"{line.label}: no {style.plain(name, 40)}") for line in lines]


def _word(text: str) -> Line2D:
    return Line2D([], [], linestyle="none", label=text)


def _legend(ax: Axes, handles: Sequence[Any], *, own: bool) -> None:
    """Above a figure of ours, in as many columns as fit; where matplotlib finds room in a user's."""
    figure = ax.get_figure(root=True)
    common: dict[str, Any] = {
        "handles": handles, "fontsize": style.FONT - 1, "handlelength": 2.6, "columnspacing": 1.4, "borderpad": 0.2
    }  # fmt: skip
    if not own or not isinstance(figure, Figure):
        ax.legend(loc="best", framealpha=0.8, **common)
        return
    longest = max(len(str(each.get_label())) for each in handles)
    columns = max(int(figure.get_figwidth() / (longest * style.LETTER + 0.65)), 1)
    columns = min(columns, len(handles))
    made = figure.legend(loc="outside upper left", ncols=columns, frameon=False, borderaxespad=0.2, **common)
    height = figure.get_figheight() - BELOW - ROW * -(-len(handles) // columns)
    if style.inches(ax.get_ylabel(), style.FONT) > height:
        ax.set_ylabel(in_lines(ax.get_ylabel()))
    for text in made.get_texts():
        text.set_color(INK)


def in_lines(label: str) -> str:
    """A long label in several lines: its unit in one of its own."""
    return label.replace(" [", "\n[") if "$" in label else textwrap.fill(label, 26)


def _note(drawn: Sequence[Line], *, grouped: bool) -> str:
    said = []
    if grouped:
        said.append("median and range")
    elif len(drawn) > LEGIBLE and any(line.found.data.bounded.any() for line in drawn):
        said.append(f"more than {LEGIBLE} runs: no intervals")
    if any(line.from_below for line in drawn):
        said.append("values without an upper bar are lower bounds" if not grouped else "of lower bounds")
    return ", ".join(said) if grouped else "; ".join(said)
