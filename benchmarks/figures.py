"""The figure of the first table: cost per vector in gradients, one lane per library and kernel.

    python benchmarks/figures.py benchmarks/results/kernels-cpu.json

draws it again from the raw numbers.
"""

import json
import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
from contenders import CURVLINOPS, OURS, PLAIN, PYHESSIAN
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, NullLocator
from products import EXACT, Result, Row, from_json

# Okabe and Ito (2008): told apart with any colour vision; the markers tell the same once more.
STYLES = {
    (PLAIN, "rebuilt"): ("#000000", "s", "plain PyTorch, rebuilt"),
    (PLAIN, "retained"): ("#000000", "D", "plain PyTorch, all graphs kept"),
    (PYHESSIAN, "Hessian"): ("#E69F00", "^", "PyHessian"),
    (CURVLINOPS, "Hessian"): ("#CC79A7", "v", "curvlinops"),
    (OURS, "retained"): ("#0072B2", "o", "losscope, retained"),
    (OURS, "batched"): ("#56B4E9", "P", "losscope, batched"),
    (OURS, "compiled"): ("#009E73", "*", "losscope, compiled"),
    (OURS, "finite_difference"): ("#D55E00", "X", "losscope, finite difference"),
}
LANES = list(STYLES)
HEIGHT = 1.0 + len(LANES)  # of a problem, in lanes


def draw(results: list[Result], blocks: tuple[int, ...], where: str, target: Path) -> list[Path]:
    """One panel per block size, one band per problem; returns the files, a PNG and an SVG."""
    with plt.rc_context({"font.size": 9, "svg.fonttype": "none", "svg.hashsalt": "losscope", "axes.linewidth": 0.8}):
        inches = 1.9 + 0.095 * HEIGHT * len(results)
        figure, axes = plt.subplots(
            1, len(blocks), figsize=(3.4 + 2.9 * len(blocks), inches), sharey=True, sharex=True, squeeze=False
        )
        for axis, k in zip(axes[0], blocks, strict=True):
            _panel(axis, results, k)
        axes[0, 0].set_yticks(
            [HEIGHT * i + (len(LANES) - 1) / 2 for i in range(len(results))],
            [result.title.replace(" in batches", "\nin batches") for result in results],
        )
        axes[0, 0].set_ylim(HEIGHT * len(results) - 1.0, -1.0)
        figure.legend(handles=_legend(results), loc="outside upper center", ncols=3, frameon=False, fontsize=8)
        figure.text(0.005, 0.002, _failures(results), ha="left", va="bottom", fontsize=6, color="0.35")
        figure.text(0.995, 0.002, where, ha="right", va="bottom", fontsize=6, color="0.35")
        figure.set_layout_engine("constrained", rect=(0, 0.2 / inches, 1, 1 - 0.2 / inches))
        files = [target.with_suffix(".png"), target.with_suffix(".svg")]
        figure.savefig(files[0], dpi=200)
        figure.savefig(files[1], metadata={"Date": None})
        plt.close(figure)
    return files


def _panel(axis: Axes, results: list[Result], k: int) -> None:
    axis.set_xscale("log")
    axis.set_xlabel("time per vector / time of one gradient", fontsize=9)
    axis.set_title("one vector at a time" if k == 1 else f"blocks of {k} vectors", fontsize=9)
    for i, result in enumerate(results):
        if i % 2:
            axis.axhspan(HEIGHT * i - 1, HEIGHT * (i + 1) - 1, color="0.95", lw=0, zorder=0)
        for row in result.rows:
            _point(axis, row, k, HEIGHT * i, result.gradient)
    axis.axvline(1.0, color="0.6", lw=0.8, ls=(0, (4, 3)), zorder=1)
    axis.grid(axis="x", which="major", color="0.85", lw=0.6, zorder=0)
    axis.tick_params(axis="y", length=0)
    axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.xaxis.set_major_formatter(lambda x, _: f"{x:g}")
    axis.xaxis.set_minor_locator(NullLocator())
    for side in ("top", "right", "left"):
        axis.spines[side].set_visible(False)


def _failures(results: list[Result]) -> str:
    """Who fails where, and what is shown instead."""
    failed = [(row.package, result.title.split(",")[0]) for result in results for row in result.rows if row.failed]
    notes = []
    for model in dict.fromkeys(model for _, model in failed):
        libraries = list(dict.fromkeys(library for library, where in failed if where == model))
        again = any(row.name.endswith("unfused attention") and row.correct for result in results for row in result.rows)
        shown = "; shown with attention unfused for them" if again else ""
        notes.append(f"{model}: {', '.join(libraries)} fail as called{shown}.")
    return " ".join(notes)


def _point(axis: Axes, row: Row, k: int, top: float, gradient: float) -> None:
    style = STYLES.get((row.package, row.kernel))
    if style is None or row.missing(k):
        return
    colour, marker, _ = style
    y, x = top + LANES.index((row.package, row.kernel)), row.blocks[k].seconds / gradient
    hollow = row.error > EXACT or (row.package, row.kernel) == (PLAIN, "retained")
    size = 7.0 if marker == "*" else 4.8
    axis.plot(x, y, marker=marker, ms=size, mfc="white" if hollow else colour, mec=colour, mew=0.9, ls="none", zorder=3)
    if not row.correct:
        axis.plot(x, y, marker="x", ms=8, mec="black", mew=1.1, ls="none", zorder=4)


def _legend(results: list[Result]) -> list[Line2D]:
    shown = {(row.package, row.kernel) for result in results for row in result.rows if row.blocks}
    handles = []
    for key, (colour, marker, label) in STYLES.items():
        if key in shown:
            face = "white" if key == (PLAIN, "retained") else colour
            size = 7.0 if marker == "*" else 4.8
            handles.append(Line2D([], [], marker=marker, ms=size, mfc=face, mec=colour, ls="none", label=label))
    measured = [row for result in results for row in result.rows if row.blocks and not row.failure]
    colour, marker, label = STYLES[OURS, "finite_difference"]
    if any(row.correct and row.error > EXACT for row in measured):
        stated = f"the same, off by more than {EXACT:.1%}, as it states"
        handles.append(Line2D([], [], marker=marker, ms=4.8, mfc="white", mec=colour, ls="none", label=stated))
    if not all(row.correct for row in measured):
        handles.append(Line2D([], [], marker="x", ms=8, mec="black", ls="none", label="wrong result"))
    return handles


if __name__ == "__main__":
    source = Path(sys.argv[1])
    raw = json.loads(source.read_text())
    measured = from_json(raw["hessian"])
    sizes = tuple(sorted({k for result in measured for row in result.rows for k in row.blocks}))
    print(*draw(measured, sizes, raw["machine"], source.with_suffix("")))
