"""The figures of matrix_factorisation.py: sharpness at minimisers, escapes, what the rate chooses, limits."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from deep_factorisation.measurements import Found, Plan, watched
from panels import BLACK, BLUE, COLOURS, GREEN, GREY, PURPLE, RED, SKY, STYLES, bars, labels, log, panels
from study import save_figure

__all__ = ["draw"]

MARKERS = "osD^v"
RATES = r"$\eta$ in units of $2/\lambda_{flow}$ (0: flow)"
WATCHED = 3
"""Depth of the descents drawn step by step."""


def draw(found: Sequence[Found], plan: Plan, out: Path, first: int) -> list[Path]:
    """The figures of what the plan has; descents of the ``first`` seed are watched anew, their runs below ``out``."""
    wanted = {
        draw_sharpness: plan.depths,
        draw_escapes: plan.escapes,
        partial(draw_rates, seed=first): plan.lopsided,
        draw_limits: plan.depths,
    }
    return [drawn(found, plan, out) for drawn, tried in wanted.items() if tried]


def draw_sharpness(found: Sequence[Found], plan: Plan, out: Path) -> Path:
    """Measured against exact, and how flat minimisers of depth 2 are by how unbalanced."""
    figure, (left, right) = panels("Measured and exact", "Depth 2: flat needs equal norms", size=(4.2, 3.4))
    points = [p for each in found for p in each.points]
    measured = [p for p in points if not math.isnan(p.measured)]
    for depth, colour, marker in zip(plan.depths, COLOURS, MARKERS, strict=False):
        some = [p for p in measured if p.depth == depth]
        exact, found_there = [p.exact for p in some], [p.measured for p in some]
        left.plot(exact, found_there, marker, color=colour, ms=4, mfc="none", label=f"L = {depth}")
    ends = [min(p.exact for p in measured) / 1.5, max(p.exact for p in measured) * 1.5]
    left.plot(ends, ends, color=GREY, lw=0.8, zorder=0)
    worst = max(abs(p.measured / p.exact - 1) for p in measured)
    left.text(0.97, 0.05, f"largest relative error {worst:.0e}", transform=left.transAxes, ha="right", fontsize=8)
    log(left, "xy")
    labels(left, r"exact $\lambda_{\max}$", r"measured $\lambda_{\max}$", "upper left")

    kinds = {
        ("drawn", "drawn, not measured"): (".", SKY, 5, "drawn at random"),
        ("flattened",): ("o", BLUE, 7, "flattest found by descent"),
        ("flat, not Frobenius balanced",): ("^", GREEN, 7, "unequal Frobenius norms"),
        ("Frobenius balanced",): ("D", RED, 6, "equal Frobenius norms"),
        ("equal norms",): ("*", PURPLE, 10, r"equal norms, product $3^2 \sigma_1(M)$"),
    }
    two = [p for p in points if p.depth == 2 and min(p.shape[:2]) > 1]
    for names, (marker, colour, size, label) in kinds.items():
        some = [p for p in two if p.kind in names]
        right.plot([p.imbalance for p in some], [p.exact / p.least for p in some], marker, color=colour, ms=size,
                   mfc=colour if marker == "." else "none", label=label)  # fmt: skip
    most = max((p.imbalance for p in two), default=1.0)
    grid = [1 + (most - 1) * i / 100 for i in range(101)]
    right.plot(grid, [(r + 1 / r) / 2 for r in grid], color=BLACK, lw=1, label="least at this imbalance")
    right.set_ylim(0.9, 30)  # room for the legend
    log(right, "y", (1, 2, 3, 5, 9))
    labels(right, r"imbalance, larger over smaller of $\|W_1\|$, $\|W_2\|$", r"$\lambda_{\max}$ / least", "upper right")
    return save_figure(figure, out, "sharpness")


def draw_escapes(found: Sequence[Found], plan: Plan, out: Path) -> Path:
    """Losses beside a minimiser, how far descents get by their rate, and where those that escape end."""
    figure, (left, middle, right) = panels("Beside a minimiser", "Escape", "Where escapes end", size=(3.5, 3.2))
    escapes = [e for each in found for e in each.escapes]
    depth = plan.escapes[min(1, len(plan.escapes) - 1)]
    drawn = [e for e in found[0].escapes if e.depth == depth][: len(plan.near)]
    for i, (e, colour) in enumerate(zip(drawn, COLOURS, strict=False)):
        losses = [max(loss, 1e-26) for loss in e.losses[:1500]]
        left.plot(losses, color=colour, lw=1.2, ls=STYLES[i % 3], label=rf"$\eta\lambda/2$ = {e.ratio:g}")
    left.set(yscale="log", ylim=(1e-19, 1e2))
    labels(left, "step", f"loss, L = {depth}")
    left.legend(fontsize=7, frameon=False, ncols=2, loc="upper right", handlelength=1.8, columnspacing=0.8)

    shift = {d: 0.0012 * (i - (len(plan.escapes) - 1) / 2) for i, d in enumerate(plan.escapes)}
    for each, colour, marker in zip(plan.escapes, COLOURS, MARKERS, strict=False):
        some = [e for e in escapes if e.depth == each]
        middle.plot([e.ratio + shift[each] for e in some], [e.farthest for e in some], marker, color=colour, ms=3.5,
                    mfc="none", label=f"L = {each}")  # fmt: skip
        away = [e for e in some if not math.isnan(e.end)]
        right.plot(
            [e.ratio + shift[each] for e in away], [e.end for e in away], marker, color=colour, ms=3.5, mfc="none"
        )
    middle.axvline(1, color=GREY, lw=0.8)
    middle.set_yscale("log")
    labels(middle, r"$\eta\lambda/2$ at the minimiser", "farthest distance / first", "upper left")
    right.axhline(1, color=GREY, lw=0.8)
    right.set_xlim(0.99, None)
    labels(right, r"$\eta\lambda/2$ at the minimiser", r"$\eta\lambda/2$ where it ends")
    return save_figure(figure, out, "escape")


def draw_rates(found: Sequence[Found], plan: Plan, out: Path, seed: int) -> Path:
    """Sharpness along descents at several rates, and sharpness and balance where they end."""
    titles = f"Sharpness, L = {WATCHED}", "Where they end", "How balanced that is"
    figure, (left, middle, right) = panels(*titles, size=(3.5, 3.2))
    flow = next((d for d in found[0].descents if d.depth == WATCHED), found[0].descents[0])
    for times, colour in zip((0.5, 1.2, 1.5, 2.0), COLOURS, strict=False):
        rate = times * 2 / flow.sharpness
        run = watched(flow.depth, seed, rate, 150 if len(plan.times) > 2 else 12, out / "runs" / f"times-{times:g}")
        records = [r for r in run.select("sharpness") if r.value is not None]
        left.plot([r.step for r in records], [r.value for r in records], color=colour, lw=1.2,
                  label=rf"$\eta$ = {times:g} $\times\ 2/\lambda_{{flow}}$")  # fmt: skip
        left.axhline(2 / rate, color=colour, lw=0.8, ls="--")
    left.set_ylim(0, 2.3 * flow.sharpness)
    labels(left, "step", r"$\lambda_{\max}$ (dashed: $2/\eta$)", "upper right")

    descents = [d for each in found for d in each.descents]
    for depth, colour, marker in zip(plan.lopsided, COLOURS, MARKERS, strict=False):
        some = [d for d in descents if d.depth == depth and d.converged]
        bars(middle, [(d.times, d.sharpness / d.least) for d in some], colour, marker, label=f"L = {depth}")
        bars(right, [(d.times, d.imbalance) for d in some], colour, marker)
    log(middle, "y", (1, 2, 3, 5, 8))
    right.set_ylim(1, None)
    labels(middle, RATES, r"$\lambda_{\max}$ / least", "upper right")
    labels(right, RATES, r"largest / smallest $\|A_l\|\,\|B_l\|$")
    return save_figure(figure, out, "rates")


def draw_limits(found: Sequence[Found], plan: Plan, out: Path) -> Path:
    """How far the bound is above the sharpness by depth, and the formula's error away from minimisers."""
    figure, (left, right) = panels("Bound over sharpness", "Away from minimisers, L = 3", size=(3.6, 3.0))
    points = [p for each in found for p in each.points if p.kind.startswith("drawn")]
    groups = {"scalars": [p for p in points if p.shape[0] == p.shape[1] == 1]}
    groups |= {str(d): [p for p in points if p.depth == d and min(p.shape[:2]) > 1] for d in plan.depths}
    groups = {name: some for name, some in groups.items() if some}
    left.boxplot([[p.bound / p.exact for p in some] for some in groups.values()], tick_labels=list(groups), widths=0.5,
                 flierprops={"ms": 2}, medianprops={"color": RED})  # fmt: skip
    labels(left, "L", r"$2\sum\|A_l\|^2\|B_l\|^2 \;/\; \lambda_{\max}$")
    for each in found:
        right.plot(list(each.away), list(each.away.values()), "o-", color=BLUE, ms=3, lw=0.7, alpha=0.7)
    log(right, "xy")
    labels(right, "relative distance of each factor", "relative error of the formula")
    return save_figure(figure, out, "limits")
