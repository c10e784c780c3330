"""Figures of `batch_size.py`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

from matplotlib.figure import Figure

from losscope.landscape import BatchEffect
from panels import BLUE, GREEN, GREY, RED, band, labels, log, panels, shade

__all__ = ["draw_rates", "draw_shift", "draw_spectrum"]


def draw_shift(effects: Mapping[int, BatchEffect]) -> Figure:
    """Measured eigenvalues by batch size, with the formula; the rates that they allow."""
    figure, (left, right) = panels("Largest eigenvalue of mini-batches", "over the formula with one fitted variance")
    for i, (seed, effect) in enumerate(effects.items()):
        color, sizes = shade(i, len(effects)), effect.batch_sizes
        values = [x.value for x in effect.largest]
        bars = [[x.value - x.low for x in effect.largest], [x.high - x.value for x in effect.largest]]
        fitted = [effect.predicted(B, variance=effect.fitted)[0] for B in sizes]
        ratio = [v / f for v, f in zip(values, fitted, strict=True)]
        left.errorbar(sizes, values, bars, fmt="o", color=color, markersize=3, linewidth=0.8, label=f"seed {seed}")
        left.plot(sizes, fitted, color=color, linewidth=1)
        left.plot(sizes, [effect.predicted(B)[0] for B in sizes], color=color, linewidth=0.8, linestyle=":")
        right.plot(sizes, ratio, "o-", color=color, markersize=3, linewidth=0.8)
    right.axhline(1, color=GREY, linestyle="--", linewidth=1)
    log(left, "yx", effect.batch_sizes)
    log(right, "x", effect.batch_sizes)
    labels(left, "batch size B", r"$\lambda_{\max}(H_B)$ (line: fitted, dotted: not)", "upper right")
    labels(right, "batch size B", "measured over formula")
    return figure


def draw_rates(
    rates: Mapping[tuple[str, int, int], float],
    exact: Sequence[Mapping[int, float]],
    effects: Mapping[int, BatchEffect],
) -> Figure:
    """The largest rates: exact at a minimum, and from the start for SGD and Adam."""
    figure, axes = panels("SGD at a minimum, exactly", "SGD from the start", "Adam from the start")
    band(axes[0], [(B, rate) for found in exact for B, rate in found.items()], BLUE, "o", label="measured")
    _guide(axes[0], [(B, rate) for found in exact for B, rate in found.items()], 1.0)
    for ax, rule, color, marker, power in ((axes[1], "SGD", GREEN, "^", 1.0), (axes[2], "Adam", RED, "s", 0.5)):
        points = [(B, rate) for (r, B, _), rate in rates.items() if r == rule and rate > 0]
        band(ax, points, color, marker, label="measured")
        _guide(ax, points, power)
    limit = median(2 / float(effect.full.values[0]) for effect in effects.values())
    axes[1].axhline(limit, color=GREY, linestyle=":", linewidth=1, label=r"2/$\lambda_{\max}(H)$ after some training")
    for ax in axes:
        log(ax, "xy")
    labels(axes[0], "batch size B", "largest stable rate over that of gradient descent", "lower right")
    labels(axes[1], "batch size B", "largest rate that trains", "lower right")
    labels(axes[2], "batch size B", "largest rate that trains", "lower right")
    return figure


def _guide(ax: Any, points: Sequence[tuple[float, float]], power: float) -> None:
    """B to a power, from the smallest batch on to where it passes the largest rate."""
    first = min(B for B, _ in points)
    start, most = median(rate for B, rate in points if first == B), max(rate for _, rate in points)
    sizes = sorted({B for B, _ in points})
    shown = [B for B in sizes if start * (B / first) ** power <= 1.5 * most]
    name = "proportional to B" if power == 1 else "proportional to the root of B"
    ax.plot(shown, [start * (B / first) ** power for B in shown], color=GREY, linestyle="--", linewidth=1, label=name)


def draw_spectrum(found: Mapping[tuple[float, bool, int], Any]) -> Figure:
    """The loss that each rate reaches, fixed or measured, and the rates that were measured."""
    figure, (fixed, measured, rates) = panels("Fixed rates", "Rates from the spectrum", "Rates on the way")
    for ax, is_fixed, color, marker in ((fixed, True, BLUE, "o"), (measured, False, RED, "s")):
        points = [(c, run.loss) for (c, f, _), run in found.items() if f == is_fixed and run.loss < 10]
        band(ax, points, color, marker)
        lost = sorted({c for (c, f, _), run in found.items() if f == is_fixed and not run.loss < 10})
        for c in lost:
            ax.axvline(c, color=GREY, linestyle=":", linewidth=1, label="some seed diverged")
    factors, first = sorted({c for c, f, _ in found if not f}), min(seed for *_, seed in found)
    for i, c in enumerate(factors):
        run = found[c, False, first]
        steps, used = list(run.rates), list(run.rates.values())
        rates.plot(steps, used, color=shade(i, len(factors)))
        rates.annotate(f"c = {c:g}", (steps[-1], used[-1]), (4, 0), textcoords="offset points", fontsize=7, va="center")
    rates.set_xlim(None, 1.2 * max(rates.get_xlim()))
    low = min(ax.get_ylim()[0] for ax in (fixed, measured))
    high = max(ax.get_ylim()[1] for ax in (fixed, measured))
    for ax in (fixed, measured):
        ax.set_ylim(max(low, 5e-3), high)
        log(ax, "y")
    log(fixed, "x")
    log(rates, "y")
    labels(fixed, "learning rate", "training loss after 600 updates")
    labels(measured, r"c of the rate $c/\lambda_{\max}$", "", "upper left")
    labels(rates, "update", rf"$c/\lambda_{{\max}}$, seed {first}")
    return figure
