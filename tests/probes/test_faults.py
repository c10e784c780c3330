"""Faults at random moments: training finishes, or ends as it does unwatched, and what was recorded can be read.

Three times each; ``FAULTS=20 pytest tests/probes/test_faults.py`` is what docs/faults.md tells of, and
``FAULTS_TABLE=file`` writes its counts.
"""

import contextlib
import errno
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from faults import AtCall, Ending, Fault, Rig, is_measuring, measuring, raising, trained
from losscope.landscape.kernels.batched import Batched
from losscope.probes import Measurement, Probe, Record, Run, Sharpness

REPEATS = int(os.environ.get("FAULTS", "3"))
LINES = 4000
"""Of ours that a measurement executes, at least."""

COUNTS: dict[str, Counter[str]] = {}


@pytest.fixture(scope="module", autouse=True)
def _table() -> Iterator[None]:
    """The counts, as a table in Markdown."""
    yield
    if path := os.environ.get("FAULTS_TABLE"):
        rows = [
            f"| {name} | {c['injected']} | {c['finished']} | {c['ended']} | {c['same']} | {c['read']} |"
            for name, c in COUNTS.items()
        ]
        head = (
            "| Fault | Injected | Training finished | Ended as unwatched | Same weights to the bit | Records readable |"
        )
        Path(path).write_text("\n".join([head, "|" + " --- |" * 6, *rows]) + "\n")


def reasons(run: Run, status: str) -> set[str | None]:
    return {r.reason for r in run.records if r.status == status}


def count(name: str, **what: bool) -> None:
    COUNTS.setdefault(name, Counter()).update({key: int(value) for key, value in what.items()})


# --------------------------------------------------------------------------- in a measurement


@contextlib.contextmanager
def out_of_memory_with_many_vectors(rig: Rig) -> Iterator[None]:
    """Products of several vectors at once do not fit: fewer are computed together."""
    most, engine = rig.random.randrange(1, 4), Batched._pulled_back_together

    def limited(self: Batched, gradient: Any, rows: torch.Tensor) -> torch.Tensor:
        if len(rows) > most:
            limited.failed += 1
            raise torch.OutOfMemoryError(f"{len(rows)} vectors")
        return engine(self, gradient, rows)

    limited.failed = 0
    rig.options["kernel"] = "batched"
    rig.shows = lambda run: {r.status for r in run.records} == {"ok"} and limited.failed > 0
    Batched._pulled_back_together = limited
    try:
        yield
    finally:
        Batched._pulled_back_together = engine


@contextlib.contextmanager
def out_of_memory(rig: Rig) -> Iterator[None]:
    """Nothing fits, at one moment or from one on: the measurement is left out, and recorded as failed."""
    fail = AtCall(
        rig.random.randrange(1, 6), raising(torch.OutOfMemoryError("on purpose")), on=rig.random.random() < 0.5
    )
    rig.options["criterion"] = measuring(rig, F.cross_entropy, fail)
    rig.shows = lambda run: fail.happened and reasons(run, "error") <= {"OutOfMemoryError: on purpose"}
    yield


@contextlib.contextmanager
def failing_probe(rig: Rig) -> Iterator[None]:
    kinds: list[type[Exception]] = [ValueError, RuntimeError, AssertionError, MemoryError, RecursionError, KeyError]
    fail = AtCall(rig.random.randrange(1, 4), raising(rig.random.choice(kinds)), on=rig.random.random() < 0.5)

    def user_probe(snapshot: Any) -> dict[str, float]:
        if rig.random.random() < 0.5:
            snapshot.eigenpairs()
        fail()
        return {"value": snapshot.loss}

    rig.options["probes"] = [Sharpness(), user_probe]
    rig.shows = lambda run: reasons(run, "error")
    yield


class Unwritable(Probe):
    """Returns what JSON cannot hold."""

    name = "unwritable"

    def measure(self, snapshot: Any) -> Measurement:
        return Measurement(1.0, values={"x": object()})  # type: ignore[dict-item]


@contextlib.contextmanager
def probe_with_unwritable_values(rig: Rig) -> Iterator[None]:
    rig.options["probes"] = [Sharpness(), Unwritable()]
    rig.shows = lambda run: run.select("unwritable") == [] and len(run.select("sharpness")) == 5
    yield


@contextlib.contextmanager
def user_hooks(rig: Rig) -> Iterator[None]:
    """Hooks that note what passes, that change it, and one that fails in our forward pass."""
    kind = rig.random.randrange(4)
    layer = rig.model[0]  # type: ignore[index]
    if kind == 0:
        layer.register_forward_hook(lambda m, i, o: rig.heard.append(float(o.detach().sum())))
    elif kind == 1:
        layer.register_full_backward_hook(lambda *_: rig.heard.append("backward"))
        layer.weight.register_hook(lambda g: rig.heard.append(float(g.sum())))
    elif kind == 2:
        layer.weight.register_post_accumulate_grad_hook(lambda p: rig.heard.append(float(p.grad.sum())))
        layer.register_forward_hook(lambda m, i, o: 2 * o)
    else:

        def failing(module: Any, inputs: Any, output: torch.Tensor) -> torch.Tensor:
            if rig.begun and is_measuring():
                raise RuntimeError("a hook that is not meant for this")
            return output * 1.5

        layer.register_forward_hook(failing)
        rig.shows = lambda run: reasons(run, "error") == {"RuntimeError: a hook that is not meant for this"}
    yield


# --------------------------------------------------------------------------- in the training


@contextlib.contextmanager
def nan_weights(rig: Rig) -> Iterator[None]:
    def spoil() -> None:
        with torch.no_grad():
            next(rig.model.parameters()).fill_(float("nan"))

    rig.before[rig.moment()] = spoil
    rig.shows = lambda run: reasons(run, "nonfinite") == {"the loss is nan"}
    yield


@contextlib.contextmanager
def exception_in_the_loop(rig: Rig) -> Iterator[None]:
    when = rig.random.choice([rig.before, rig.after])
    when[rig.moment()] = raising(rig.random.choice([ValueError("on purpose"), SystemExit(3), MemoryError()]))
    yield


@contextlib.contextmanager
def ctrl_c_in_the_loop(rig: Rig) -> Iterator[None]:
    when = rig.random.choice([rig.before, rig.after])
    when[rig.moment()] = lambda: signal.raise_signal(signal.SIGINT)
    yield


class _Pressed:
    """Ctrl-C at the n-th line of losscope's that is executed from a moment on."""

    def __init__(self, line: int) -> None:
        self.left = line
        self.root = str(Path(Run.__init__.__code__.co_filename).parents[1])

    def called(self, frame: FrameType, event: str, _: Any) -> Any:
        return self.stepped if frame.f_code.co_filename.startswith(self.root) else None

    def stepped(self, frame: FrameType, event: str, _: Any) -> Any:
        self.left -= event == "line"
        if self.left == 0:
            sys.settrace(None)
            signal.raise_signal(signal.SIGINT)
        return self.stepped


@contextlib.contextmanager
def ctrl_c_in_a_measurement(rig: Rig) -> Iterator[None]:
    """At a random line of what is done for a measurement at step 4: unwatched before the update, or after it."""
    pressed = _Pressed(rig.random.randrange(1, LINES))
    rig.shows = lambda run: pressed.left == 0
    if rig.watched:
        rig.before[4] = lambda: sys.settrace(pressed.called)
        rig.after[4] = lambda: (sys.settrace(None), signal.raise_signal(signal.SIGINT))
    else:
        (rig.between if rig.variant else rig.after)[4] = lambda: signal.raise_signal(signal.SIGINT)
    try:
        yield
    finally:
        sys.settrace(None)


# --------------------------------------------------------------------------- of the disk


@contextlib.contextmanager
def disk_full(rig: Rig) -> Iterator[None]:
    """ENOSPC at a random write, for a while or for good, and sometimes half of a record is written."""
    write, torn = os.write, rig.random.random() < 0.5
    first, last = rig.random.randrange(1, 15), rig.random.choice([1000, 18])
    calls = Counter[str]()

    def full(fd: int, data: bytes) -> int:
        if not (data.startswith((b"{", b"\n{"))):
            return write(fd, data)
        calls["all"] += 1
        if first <= calls["all"] < last:
            if torn and calls["all"] == first:
                return write(fd, data[: len(data) // 2])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(fd, data)

    os.write = full
    rig.shows = lambda run: calls["all"] >= first
    try:
        yield
    finally:
        os.write = write


@contextlib.contextmanager
def full_file_system(rig: Rig) -> Iterator[None]:
    """A file system of a few pages, for which one must be allowed to mount it."""
    size, there = rig.random.choice([8, 12]), rig.out.parent
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}k", "tmpfs", str(there)]
    if rig.watched and subprocess.run(command, capture_output=True, check=False).returncode != 0:
        pytest.skip("may not mount a file system")

    def cut_short(run: Run) -> bool:
        there = Run(rig.out)
        return there.status != "finished" or len(there.records) < len(run.records)

    rig.shows = cut_short
    try:
        yield
    finally:
        if rig.watched:
            saved = shutil.copytree(there, there.with_name(f"{there.name}-saved"))
            subprocess.run(["umount", str(there)], check=True)
            shutil.copytree(saved, there, dirs_exist_ok=True)


@contextlib.contextmanager
def unwritable_folder(rig: Rig) -> Iterator[None]:
    """Below what nobody may write to, or in a file's place."""
    (rig.out.parent / "file").write_text("")
    rig.options["out"] = rig.random.choice(["/sys/losscope/run", "/proc/losscope/run", rig.out.parent / "file" / "run"])
    yield


@contextlib.contextmanager
def folder_that_goes_away(rig: Rig) -> Iterator[None]:
    rig.before[rig.moment()] = lambda: (
        shutil.rmtree(rig.out, ignore_errors=True),
        rig.written.clear(),
        rig.taken.clear(),
    )
    yield


@contextlib.contextmanager
def slow_disk(rig: Rig) -> Iterator[None]:
    """Each write takes 20 ms: that is counted as time of watching."""
    write = os.write

    def slow(fd: int, data: bytes) -> int:
        time.sleep(0.02 if data.startswith(b"{") else 0)
        return write(fd, data)

    os.write = slow
    rig.shows = lambda run: run.meta["cost"]["seconds_measuring"] > 0.02 * len(run.records)
    try:
        yield
    finally:
        os.write = write


# --------------------------------------------------------------------------- of sinks


@contextlib.contextmanager
def failing_sink(rig: Rig) -> Iterator[None]:
    kinds: list[type[Exception]] = [ValueError, RuntimeError, OSError, KeyError, TypeError]
    fail = AtCall(rig.random.randrange(1, 12), raising(rig.random.choice(kinds)), on=rig.random.random() < 0.5)
    heard: list[int] = []

    def sink(record: Record) -> None:
        fail()
        heard.append(record.step)

    rig.options["sinks"] = [sink]
    rig.shows = lambda run: fail.happened and (fail.on or len(heard) == len(rig.taken) - 1)
    yield


@contextlib.contextmanager
def dead_sink(rig: Rig) -> Iterator[None]:
    """A connection whose other end is gone from one moment on."""
    ours, theirs = socket.socketpair()
    rig.options["sinks"] = [lambda record: ours.sendall(record.to_json().encode())]
    rig.before[rig.moment()] = theirs.close
    with ours, theirs:
        yield


@contextlib.contextmanager
def slow_sink(rig: Rig) -> Iterator[None]:
    """Each record takes 20 ms: that is counted as time of watching."""
    rig.options["sinks"] = [lambda record: time.sleep(0.02)]
    rig.shows = lambda run: run.meta["cost"]["seconds_measuring"] > 0.02 * len(run.records)
    yield


FAULTS: dict[str, Fault] = {
    "Out of memory with several vectors at once": out_of_memory_with_many_vectors,
    "Out of memory in a measurement": out_of_memory,
    "Weights become NaN": nan_weights,
    "Disk full (ENOSPC, torn records)": disk_full,
    "File system of a few pages, full": full_file_system,
    "Folder that cannot be written to": unwritable_folder,
    "Folder removed while training": folder_that_goes_away,
    "Slow disk (20 ms a write)": slow_disk,
    "Exception in the user's loop": exception_in_the_loop,
    "Exception in a probe": failing_probe,
    "A probe that returns what cannot be written": probe_with_unwritable_values,
    "Exception in a sink": failing_sink,
    "Dead sink (a connection that broke)": dead_sink,
    "Slow sink (20 ms a record)": slow_sink,
    "User's hooks that fire in our forward pass": user_hooks,
    "Ctrl-C in the loop": ctrl_c_in_the_loop,
    "Ctrl-C at a random line of a measurement": ctrl_c_in_a_measurement,
}


def readable(ending: Ending, out: Path) -> bool:
    """Whether every record that was written is in the folder, and all others are held in memory."""
    assert ending.run is not None
    there = {r.key for r in Run(out).records} if ending.written else set()
    return there >= set(ending.written) and {r.key for r in ending.run.run.records} >= set(ending.taken)


@pytest.mark.filterwarnings("ignore:losscope")
@pytest.mark.parametrize("name", FAULTS)
def test_training_goes_on_or_ends_as_it_does_unwatched(name: str, tmp_path: Path) -> None:
    for repeat in range(REPEATS):
        out = tmp_path / f"{repeat}" / "run"
        out.parent.mkdir()
        watched = trained(FAULTS[name], repeat, out, watched=True)
        alone = [trained(FAULTS[name], repeat, out, watched=False, variant=variant) for variant in (0, 1)]
        differing = [watched.outcome.differences(each.outcome) for each in alone]
        same, read, ended = [] in differing, readable(watched, out), watched.error == alone[0].error
        finished = ended and watched.error is None
        count(name, injected=True, finished=finished, ended=ended and not finished, same=same, read=read)
        assert ended, (repeat, watched.error, alone[0].error)
        assert same, (repeat, differing)
        assert read and watched.shown, (repeat, read, watched.shown)
        assert watched.taken


@pytest.mark.filterwarnings("ignore:losscope")
def test_memory_that_does_not_suffice_from_the_beginning_keeps_nothing_from_running(tmp_path: Path) -> None:
    """Not even `watch`, which evaluates the loss once."""

    @contextlib.contextmanager
    def never_any(rig: Rig) -> Iterator[None]:
        rig.begun = True
        rig.options["criterion"] = measuring(rig, F.cross_entropy, raising(torch.OutOfMemoryError("on purpose")))
        rig.shows = lambda run: {r.status for r in run.records if r.probe != "log"} == {"error"}
        yield

    ending = trained(never_any, 0, tmp_path / "run", watched=True)
    assert ending.error is None and ending.shown and len(ending.taken) > 9
    assert ending.outcome.differences(trained(never_any, 0, tmp_path / "run", watched=False).outcome) == []
