"""Clocks and memory meters: interleaved repeats, and peak memory above the state before a call."""

import contextlib
import ctypes
import gc
import platform
import random
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

MIB = 1 << 20
LONG = 1.0
"""Seconds from which a first call is not repeated to see how long a later one takes."""


def synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def short(error: BaseException, length: int = 90) -> str:
    """An error in one short line, fit for a table."""
    lines = str(error).strip().splitlines() or [""]
    text = f"{type(error).__name__}: {lines[0]}".replace("|", "/")
    return text if len(text) <= length else text[: length - 3] + "..."


@dataclass
class Slot:
    """Something timed: ``run(calls)`` does it that many times in a row.

    Attributes:
        run: what to do.
        seconds: per call, one entry per repeat.
        first: seconds of a call that was made before; where it was long, it is estimate enough.
    """

    run: Callable[[int], Any]
    seconds: list[float] = field(default_factory=list)
    first: float = 0.0
    calls: int = 1
    repeats: int = 1

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)


def timed(run: Callable[[], Any], device: torch.device) -> float:
    """Seconds of one run."""
    synchronise(device)
    started = time.perf_counter()
    run()
    synchronise(device)
    return time.perf_counter() - started


def interleave(slots: list[Slot], repeats: int, device: torch.device, *, least: float, budget: float) -> None:
    """Time all slots in turns, in another order each round.

    Args:
        slots: what to time; each has run before.
        repeats: rounds.
        device: where it runs.
        least: a turn lasts at least about so many seconds: short calls are repeated.
        budget: a slot whose turns would last longer than this altogether gets fewer, at least two.
    """
    for slot in slots:
        again = slot.first < LONG
        once = timed(lambda slot=slot: slot.run(1), device) if again else slot.first
        slot.calls = max(1, min(500, round(least / once)))
        slot.repeats = max(min(2, repeats), min(repeats, int(budget / (slot.calls * once))))
    order = random.Random(0)
    for turn in range(repeats):
        for slot in order.sample(slots, len(slots)):
            if turn < slot.repeats:
                slot.seconds.append(timed(lambda slot=slot: slot.run(slot.calls), device) / slot.calls)


# --------------------------------------------------------------------------- memory


def peak_memory(call: Callable[[], Any], device: torch.device) -> int:
    """Most bytes in use during ``call`` above those in use before it.

    On a CPU resident memory, as the kernel counts it: freed memory is given back first, and the process must run with
    a small ``MALLOC_MMAP_THRESHOLD_``, so that what is freed in between does not count as in use.
    """
    gc.collect()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        call()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    before = resident("VmRSS")
    call()
    return max(0, resident("VmHWM") - before)


def resident(key: str) -> int:
    """Bytes of resident memory: ``"VmRSS"`` now, ``"VmHWM"`` at most so far."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{key}:"):
            return int(line.split()[1]) << 10
    raise KeyError(key)


# --------------------------------------------------------------------------- the machine


def machine(device: torch.device) -> str:
    """The machine in one line."""
    model = platform.processor() or platform.machine()
    with contextlib.suppress(OSError):
        names = [
            line.split(":")[1].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ]
        model = f"{names[0]}, {len(names)} cores" if names else model
    parts = [model, f"{torch.get_num_threads()} threads", f"torch {torch.__version__}"]
    if device.type == "cuda":
        parts.insert(0, torch.cuda.get_device_name(device))
    return ", ".join(parts)
