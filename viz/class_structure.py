"""What the classes make of the Gauss-Newton matrix: eigenvalues of its parts, and a map of the classes' means."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter
from torch import Tensor

from losscope.landscape import Eigenpairs, SettingError
from losscope.landscape.class_structure import ClassStructure

from . import style
from .series import drawable
from .style import BLUE, GREEN, INK, MUTED, ORANGE, PURPLE, SKY, VERMILLION

__all__ = ["plot_class_structure"]

MOST_RANKS = 200
LEAST = 1e-5
"""Of the largest eigenvalue, what is drawn."""
MOST_NAMED = 20
"""Classes that are told apart by a colour and a number."""
COLOURS = (BLUE, VERMILLION, GREEN, ORANGE, PURPLE, SKY, INK, "#882255", "#999933", "#44aa99")
DARK = frozenset({BLUE, VERMILLION, GREEN, INK, "#882255"})
"""Those on which a number is white."""


def plot_class_structure(
    structure: ClassStructure,
    ax: Axes | Sequence[Axes] | np.ndarray | None = None,
    *,
    eigenvalues: Eigenpairs | Tensor | None = None,
    size: tuple[float, float] = (6.8, 3.6),
) -> Axes | np.ndarray:
    r"""Draw the eigenvalues of the parts that classes make, beside the whole matrix's, and the means on a map.

    At the left the eigenvalues by rank of the class-pair means' part A, and of the class and the cross-class part
    that it is the sum of; where A explains the outliers of the Gauss-Newton matrix, its points lie on theirs. At the
    right the means :math:`\delta_c` of the classes (numbers) and :math:`\delta_{cc'}` of pairs of classes (dots, joined
    with their class, larger where more probability is mistaken so), along the two directions in which they are
    furthest apart.

    Args:
        structure: of `losscope.landscape.class_structure`.
        ax: one Axes draws the eigenvalues only, two draw the map on the second; None makes a figure.
        eigenvalues: the largest of the whole Gauss-Newton matrix, to compare with.
        size: width and height in inches of the figure made; narrower than 5 puts the map below.

    Returns:
        The Axes drawn on: an array of two, or the one that was given.

    Raises:
        SettingError: if ``structure`` is none, or ``ax`` a number of Axes other than one or two.
    """
    if not isinstance(structure, ClassStructure):
        raise SettingError(
            f"plot_class_structure draws a ClassStructure (of class_structure), got {type(structure).__name__}"
        )
    whole = eigenvalues.values if isinstance(eigenvalues, Eigenpairs) else eigenvalues
    if isinstance(ax, Axes):
        _draw_values(structure, whole, ax)
        return ax
    axes = _new_axes(size) if ax is None else style.given_axes(ax, 2, "plot_class_structure", "two (eigenvalues, map)")
    _draw_values(structure, whole, axes[0])
    _draw_map(structure, axes[1])
    return axes


def _new_axes(size: tuple[float, float]) -> np.ndarray:
    figure = style.blank(size)
    beside = size[0] >= 5
    axes = figure.subplots(1 if beside else 2, 2 if beside else 1, squeeze=False).ravel()
    for ax in axes:
        style.dress(ax)
    return axes


def _draw_values(structure: ClassStructure, whole: Tensor | None, ax: Axes) -> None:
    shares = structure.shares
    within = shares["within"]
    half = 100 * max(within.high - within.value, within.value - within.low)
    of_pairs = f"{100 * (1 - within.value):.0f} \N{PLUS-MINUS SIGN} {half:.1g} % of trace"
    series = [
        ("Gauss-Newton matrix", whole, INK, "o", 5.0, "none"),
        (f"pair means ({of_pairs})", structure.pair_values, BLUE, "o", 2.6, BLUE),
        (f"class part ({shares['class'].value:.0%})", structure.class_values, VERMILLION, "^", 3.6, "none"),
        (f"cross-class part ({shares['cross'].value:.0%})", structure.cross_values, GREEN, "s", 2.8, "none"),
    ]
    found = [None if v is None else np.sort(drawable(v.detach().cpu().double().numpy()))[::-1] for _, v, *_ in series]
    everything = np.concatenate([values for values in found if values is not None])
    largest = float(everything[np.isfinite(everything)].max(initial=0.0))
    ax.set_xlabel("rank")
    ax.set_ylabel(r"eigenvalue [loss / parameter$^2$]")
    if not largest > 0:
        style.say(ax, "no eigenvalue above zero" if np.isfinite(everything).any() else "no finite eigenvalue")
        return
    least, ranks = [largest], 1
    for (label, _, colour, marker, width, face), values in zip(series, found, strict=True):
        if values is None or not len(values):
            continue
        shown = values[:MOST_RANKS]
        shown = np.where(shown > LEAST * largest, shown, np.nan)
        least += [float(shown[np.isfinite(shown)].min())] if np.isfinite(shown).any() else []
        ranks = max(ranks, int(np.isfinite(shown).sum()))
        ax.plot(
            np.arange(1, len(shown) + 1), shown, linestyle="none", marker=marker, markersize=width, color=colour,
            markerfacecolor=face, markeredgewidth=0.9, label=label, zorder=3 if face == "none" else 4,
            gid=label.split(" (")[0],
        )  # fmt: skip
    ax.set_yscale("log")
    ax.set_xscale("log")
    ax.set_xlim(0.9, max(1.15 * ranks, 2.0))
    ax.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if ranks < 20 else (1.0,), numticks=12))
    ax.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
    ax.xaxis.set_minor_formatter(NullFormatter())
    style.log_ticks(ax, min(least), largest)
    ax.legend(loc="best", frameon=False, fontsize=style.FONT - 1, handletextpad=0.3, borderaxespad=0.2)
    ax.set_ylim(min(least) / 3, 2 * largest)


def _draw_map(structure: ClassStructure, ax: Axes) -> None:
    pairs, centres = (
        drawable(t.detach().cpu().double().numpy()) for t in (structure.pair_means, structure.class_means)
    )
    ax.set_xlabel("along eigenvector 1 of the pair part")
    ax.set_ylabel("along eigenvector 2")
    if pairs.shape[-1] < 2:
        style.say(ax, "fewer than two directions")
        return
    if not np.isfinite(centres[:, :2]).all(axis=1).any():
        style.say(ax, "no finite means")
        return
    classes = len(centres)
    masses = structure.masses.detach().cpu().double().numpy() * (1 - np.eye(classes))
    largest = masses.max() or 1.0
    many = classes > MOST_NAMED
    for c in range(classes):
        colour = MUTED if many else COLOURS[c % len(COLOURS)]
        others = (np.arange(classes) != c) & np.isfinite(pairs[c, :, :2]).all(axis=1)
        ends, sizes = pairs[c, others, :2], 600 / max(classes, 10) * np.sqrt(masses[c, others] / largest)
        centre = centres[c, :2]
        if not np.isfinite(centre).all():
            continue
        spokes = np.stack([np.broadcast_to(centre, ends.shape), ends], axis=1)
        ax.add_collection(LineCollection(list(spokes), colors=colour, linewidths=0.6, alpha=0.45, zorder=2))
        ax.scatter(
            ends[:, 0],
            ends[:, 1],
            s=np.maximum(sizes, 2.0),
            color=colour,
            linewidth=0,
            alpha=0.8,
            zorder=3,
            gid="pairs",
        )
        if many:
            ax.plot(*centre, marker="o", markersize=3, color=BLUE, zorder=4)
        else:
            ax.text(
                float(centre[0]), float(centre[1]), str(c), ha="center", va="center", fontsize=style.FONT - 2.5,
                color=style.PAPER if colour in DARK else INK, zorder=5, gid="class",
                bbox={"boxstyle": "circle,pad=0.15", "facecolor": colour, "edgecolor": style.PAPER, "linewidth": 0.6},
            )  # fmt: skip
    ax.grid(color=style.GRID, linewidth=0.6)
    ax.margins(0.08)
    ax.set_aspect("equal", adjustable="datalim")
    ax.locator_params(nbins=5)
