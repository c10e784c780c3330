"""What can be measured here, and what the measuring of a run cost, on a terminal."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
from collections.abc import Sequence

import torch
from rich.console import Console
from rich.table import Table
from rich.text import Text

from losscope.probes.capabilities import Capability, capabilities
from losscope.probes.cost import Cost

from .cleaned import Cleaned

__all__ = ["environment", "print_cost", "print_doctor"]

OPTIONAL = {
    "scikit-learn": "losscope demo", "pandas": "run.to_pandas()", "plotly": "turning planes in the browser",
    "lightning": "the callback for Lightning", "transformers": "the callback for Hugging Face's Trainer",
    "accelerate": "loops of accelerate", "tensorboard": "records in TensorBoard", "wandb": "records in W&B",
}  # fmt: skip
"""What else losscope works with, and for what."""


def environment() -> list[tuple[str, str]]:
    """Versions, devices and threads, as pairs of a name and words."""
    found = [(name, _version(name) or "not installed") for name in ("losscope", "torch", "numpy", "scipy")]
    found.append(("python", f"{platform.python_version()} on {platform.platform()}"))
    found.append(("threads", f"{torch.get_num_threads()} of {os.cpu_count()} cores"))
    found.append(("devices", ", ".join(_devices())))
    compiler = next((name for name in ("g++", "clang++", "c++", "cl") if shutil.which(name)), None)
    found.append(("C++ compiler", compiler or "none: kernel='compiled' is not available on the CPU"))
    return found


def print_doctor(console: Console | None = None) -> None:
    """Print versions, what of torch can be measured and by which kernel, and the optional packages there are."""
    console = console or Console(highlight=False)
    console.print(Text("\nEnvironment", style="bold"))
    console.print(_pairs(environment()))
    console.print(Text("\nTried just now, on a small model each", style="bold"))
    console.print(_tried(capabilities()))
    console.print(Text("\nOptional packages", style="bold"))
    console.print(_pairs([(name, f"{_version(name) or 'not installed'}: {use}") for name, use in OPTIONAL.items()]))


def print_cost(cost: Cost, console: Console | None = None, *, title: str = "") -> None:
    """Print what each probe cost, how it was computed, and what was put off.

    Args:
        cost: of a run.
        console: where to; default: standard output, without colours when that is not a terminal.
        title: which run.

    Example:
        >>> from losscope.probes import Record, Run
        >>> from losscope.viz.doctor import print_cost
        >>> from rich.console import Console
        >>> run = Run.from_records({"players": {"model": {}}}, [Record(0, "model", "trace", seconds=0.5, matvecs=9)])
        >>> print_cost(run.cost(), Console(width=100, no_color=True))
        <BLANKLINE>
        probe  measured  seconds  each   products
        trace  1         0.5      0.5 s  9
        ...
    """
    console = console or Console(highlight=False)
    console.print(Cleaned(Text(f"\n{title}".rstrip(), style="bold")) if title else "")
    header, *rows = cost.table()
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold", pad_edge=False)
    for name in header:
        table.add_column(name, overflow="fold")
    for row in rows:
        table.add_row(*map(Text, row))
    console.print(Cleaned(table) if rows else Text("Nothing was measured."))
    console.print()
    names = {each.probe for each in cost.probes}
    for note in cost.notes():
        first = note[0] if note.partition(" ")[0] in names else note[0].upper()  # a probe's name is as it is
        console.print(Cleaned(Text(f"{first}{note[1:]}.")))
    console.print(Text("Products, gradients and memory are those of one measurement.", style="dim"))


def _tried(found: Sequence[Capability]) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold", pad_edge=False)
    table.add_column("what", no_wrap=True)
    table.add_column("products by", no_wrap=True)
    table.add_column("why", overflow="fold")
    for each in found:
        table.add_row(each.name, Text(each.kernel or "fails", style="" if each.kernel else "bold red"), each.reason)
    return table


def _pairs(pairs: Sequence[tuple[str, str]]) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), show_header=False, pad_edge=False)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for name, words in pairs:
        table.add_row(name, words)
    return table


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _devices() -> list[str]:
    found = ["cpu"]
    if torch.cuda.is_available():
        for i in range(torch.cuda.device_count()):
            free, whole = torch.cuda.mem_get_info(i)
            found.append(f"{torch.cuda.get_device_name(i)} ({free / 2**30:.3g} of {whole / 2**30:.3g} GiB free)")
    if torch.backends.mps.is_available():
        found.append("mps")
    return found
