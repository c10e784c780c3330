"""What every case study's script needs beside its science: a command line, seeds in parallel, figures on disk.

options = command_line(__doc__, "edge_of_stability", seeds=5, quick_seeds=2)
runs = in_parallel(train, [(seed, rate) for seed in options.seeds for rate in RATES], options.jobs)
save_figure(drawn, options.out, "hover")
"""

from __future__ import annotations

import argparse
import multiprocessing
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any, TypeVar

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image
from tqdm import tqdm

from losscope.viz.demo import fresh_folder

__all__ = ["COLOURS", "Options", "command_line", "in_parallel", "one_thread", "panels", "save_figure"]

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#1f2328")
"""Okabe and Ito's palette, in an order that keeps neighbours apart with every kind of colour vision."""

Case = TypeVar("Case")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Options:
    """What the command line asked for.

    Attributes:
        quick: the short version, which asserts what is robust.
        out: folder for runs, figures and claims; it exists and was empty.
        seeds: 0, 1, ...
        jobs: processes.
        more: the script's own arguments.
    """

    quick: bool
    out: Path
    seeds: tuple[int, ...]
    jobs: int
    more: argparse.Namespace = field(default_factory=argparse.Namespace)


def command_line(
    doc: str, study: str, *, seeds: int = 5, quick_seeds: int = 2,
    more: Callable[[argparse.ArgumentParser], object] | None = None, arguments: Sequence[str] | None = None,
) -> Options:  # fmt: skip
    """Read ``--quick``, ``--out DIR``, ``--seeds N`` and ``--jobs N``; an argument that is wrong ends the script.

    Args:
        doc: of the script, shown by ``--help``.
        study: its name; without ``--out`` a fresh folder ``runs/<study>`` is made.
        seeds: how many the full version takes.
        quick_seeds: how many ``--quick`` takes.
        more: adds arguments of the script's own to the parser.
        arguments: instead of those the script was called with.
    """
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="the short version, which asserts what is robust")
    parser.add_argument("--out", type=Path, help=f"folder for runs, figures and claims (default runs/{study})")
    parser.add_argument("--seeds", type=_count, help=f"how many (default {seeds}, with --quick {quick_seeds})")
    parser.add_argument("--jobs", type=_count, default=1, help="processes, with one thread each (default 1)")
    if more is not None:
        more(parser)
    found = parser.parse_args(arguments)
    out = found.out or fresh_folder(Path("runs") / study)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        parser.error(f"--out {out} holds something already: give a new folder, or remove it")
    out.mkdir(parents=True, exist_ok=True)
    count = found.seeds or (quick_seeds if found.quick else seeds)
    return Options(found.quick, out, tuple(range(count)), found.jobs, found)


def _count(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"a whole number of at least 1, not {text!r}")
    return int(text)


def in_parallel(
    task: Callable[[Case], Result], cases: Sequence[Case], jobs: int = 1, *, name: str = ""
) -> list[Result]:
    """The task's result for each case, in their order; the same bits for every number of jobs.

    Args:
        task: a function at the top level of a module, or a ``functools.partial`` of one; it must draw from seeds that
            its case names. Tensors that it returns should be on the host.
        cases: what to call it with, e.g. seeds.
        jobs: processes. Each has one thread of torch, and so has this one for ``jobs=1``.
        name: shown beside the bar that counts the cases done.

    Raises:
        Exception: what a task raises, with a note that names its case.
    """
    bar = tqdm(total=len(cases), desc=name or None, disable=not sys.stderr.isatty(), leave=False)
    with bar:
        if jobs == 1:
            with one_thread():
                return [_noted(task, case, bar) for case in cases]
        # Spawned: a forked process may inherit a lock that a thread of torch's held.
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(min(jobs, len(cases) or 1), context, torch.set_num_threads, (1,)) as pool:
            waiting = [pool.submit(task, case) for case in cases]
            try:
                return [_noted(_wait, each, bar, case) for each, case in zip(waiting, cases, strict=True)]
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise


def _wait(future: Any) -> Any:
    return future.result()


def _noted(task: Callable[[Any], Any], argument: Any, bar: Any, case: Any = None) -> Any:
    try:
        result = task(argument)
    except Exception as error:
        error.add_note(f"in case {argument if case is None else case!r}")
        raise
    bar.update()
    return result


@contextmanager
def one_thread() -> Iterator[None]:
    """One thread for torch within: what is small runs fastest so, and sums in the same order everywhere."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def panels(
    count: int, titles: Sequence[str] = (), *, size: tuple[float, float] = (3.6, 3.1), columns: int = 4
) -> tuple[Figure, list[Axes]]:
    """Panels in rows, plainly dressed, lettered where they have titles; ``size`` is that of one."""
    columns = min(count, columns)
    rows = -(-count // columns)
    figure = Figure(figsize=(columns * size[0], rows * size[1]), layout="constrained")
    axes = list(figure.subplots(rows, columns, squeeze=False).ravel())
    for spare in axes[count:]:
        spare.remove()
    axes = axes[:count]
    for ax in axes:
        ax.spines[["top", "right"]].set_visible(False)
        ax.grid(color="#d8dee4", linewidth=0.5)
        ax.set_axisbelow(True)
        ax.tick_params(labelsize=8)
        ax.xaxis.label.set_fontsize(9)
        ax.yaxis.label.set_fontsize(9)
    for ax, letter, title in zip(axes, "abcdefgh", titles, strict=False):
        ax.set_title(f"({letter}) {title}", loc="left", fontsize=9)
    return figure, axes


def save_figure(figure: Figure, out: Path, name: str, *, dpi: int = 110) -> Path:
    """Write ``<name>.png``, in 256 colours, for a page and ``<name>.pdf`` for a paper; returns the PNG's path."""
    out.mkdir(parents=True, exist_ok=True)
    figure.savefig(out / f"{name}.pdf", bbox_inches="tight")
    drawn = BytesIO()
    figure.savefig(drawn, format="png", dpi=dpi, bbox_inches="tight")
    Image.open(drawn).convert("RGB").quantize(256, method=Image.Quantize.MAXCOVERAGE).save(
        out / f"{name}.png", optimize=True
    )
    return out / f"{name}.png"
