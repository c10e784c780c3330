"""What every case study's script needs beside its science: a command line, seeds in parallel, figures on disk.

options = command_line(__doc__, "edge_of_stability", seeds=5, quick_seeds=2, first=5)
runs = in_parallel(train, [(seed, rate) for seed in options.seeds for rate in RATES], options.jobs)
save_figure(drawn, options.out, "hover")
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any, TypeVar

import torch
from matplotlib.figure import Figure
from PIL import Image
from tqdm import tqdm

from losscope.viz.demo import fresh_folder

__all__ = ["Options", "command_line", "in_parallel", "one_thread", "save_figure"]

Case = TypeVar("Case")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Options:
    """What the command line asked for.

    Attributes:
        quick: the short version, which asserts what is robust.
        out: folder for runs, figures and claims; it exists and was empty.
        seeds: from ``--first`` on.
        jobs: processes.
        more: the script's own arguments.
    """

    quick: bool
    out: Path
    seeds: tuple[int, ...]
    jobs: int
    more: argparse.Namespace = field(default_factory=argparse.Namespace)


def command_line(
    doc: str, study: str, *, seeds: int = 5, quick_seeds: int = 2, first: int = 5,
    more: Callable[[argparse.ArgumentParser], object] | None = None, arguments: Sequence[str] | None = None,
) -> Options:  # fmt: skip
    """Read ``--quick``, ``--out DIR``, ``--seeds N``, ``--first N`` and ``--jobs N``; a wrong argument ends the script.

    The full version begins after the seeds that were looked at while its bands were set, the short one at 0.

    Args:
        doc: of the script, shown by ``--help``.
        study: its name; without ``--out`` a fresh folder ``runs/<study>`` is made.
        seeds: how many the full version takes.
        quick_seeds: how many ``--quick`` takes.
        first: the smallest seed of the full version.
        more: adds arguments of the script's own to the parser.
        arguments: instead of those the script was called with.
    """
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="the short version, which asserts what is robust")
    parser.add_argument("--out", type=Path, help=f"folder for runs, figures and claims (default runs/{study})")
    parser.add_argument("--seeds", type=_count, help=f"how many (default {seeds}, with --quick {quick_seeds})")
    parser.add_argument("--first", type=_whole, help=f"the smallest of them (default {first}, with --quick 0)")
    parser.add_argument("--jobs", type=_count, default=1, help="processes, with one thread each (default 1)")
    if more is not None:
        more(parser)
    found = parser.parse_args(arguments)
    out = found.out or fresh_folder(Path("runs") / study)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        parser.error(f"--out {out} holds something already: give a new folder, or remove it")
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        parser.error(f"--out {out} cannot be made: {error.strerror}")
    if not os.access(out, os.W_OK):
        parser.error(f"--out {out} cannot be written to")
    count = found.seeds or (quick_seeds if found.quick else seeds)
    start = found.first if found.first is not None else (0 if found.quick else first)
    return Options(found.quick, out, tuple(range(start, start + count)), found.jobs, found)


def _count(text: str) -> int:
    if _whole(text) < 1:
        raise argparse.ArgumentTypeError(f"a whole number of at least 1, not {text!r}")
    return int(text)


def _whole(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"a whole number, not {text!r}")
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
