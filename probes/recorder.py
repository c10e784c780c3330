"""Where the records of a run go: into its folder, or into memory where there is none or it cannot be written."""

from __future__ import annotations

import contextlib
import datetime
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from losscope.landscape import RunError

from .folder import RunFolder, array_path, check_folder
from .guard import say
from .outlets import Outlets
from .records import Record
from .run import Run

__all__ = ["Recorder", "now", "resumes", "steps_done"]


class Recorder:
    """Takes the records of a run and its facts. Nothing that fails in here reaches the training loop.

    Args:
        out: the run folder; None keeps everything in memory.
        meta: the run's facts, as `losscope.probes.Run.meta` gives them back; written by `write_meta`.
        arrays: whether to keep arrays in memory too, where there is no folder.
        outlets: the sinks that get every record too.

    Attributes:
        taken: how many records.
    """

    def __init__(
        self, out: Path | None, meta: dict[str, Any], *, arrays: bool = True, outlets: Outlets | None = None
    ) -> None:
        self.out, self.meta, self._arrays = out, meta, arrays or out is not None
        self._folder: RunFolder | None = None
        self._outlets = Outlets(()) if outlets is None else outlets
        self.taken = 0
        self._opened = self._failed = False
        self._kept: list[Record] = []
        self._kept_arrays: dict[str, np.ndarray] = {}

    def open(self, *, resume: bool) -> None:
        """Open the folder; one that cannot be written to is warned about.

        Raises:
            RunError: if it holds another run; see `RunFolder`.
        """
        try:
            if self.out is not None:
                self._folder = RunFolder(self.out, self.meta["identity"], resume=resume)
        except OSError as error:
            self._cannot_write(error)
        self._opened = True
        self.write_meta()

    def record(self, record: Record, arrays: Mapping[str, np.ndarray]) -> None:
        """Take one record with its arrays, whose paths it is given."""
        self.taken += 1
        names = {name: _file_name(f"{record.player}-{record.probe}-{record.step}-{name}") for name in arrays}
        record.arrays.update({name: array_path(file) for name, file in names.items()})
        try:
            if self._folder is not None:
                for name, array in arrays.items():
                    self._folder.save_array(names[name], array)
                self._folder.append(record)
        except OSError as error:
            self._cannot_write(error)
        if self._folder is None or self._failed:
            self._kept.append(record)
            if self._arrays:
                self._kept_arrays |= {record.arrays[name]: np.array(array) for name, array in arrays.items()}
        self._outlets(record)

    def tell(self, player: str, facts: dict[str, Any]) -> None:
        """Take facts of a player that only a measurement reveals."""
        known = self.meta["players"][player]
        if any(known.get(name, known) != fact for name, fact in facts.items()):
            known |= facts
            self.write_meta()

    def write_meta(self) -> None:
        """Write the run's facts as they stand."""
        try:
            if self._folder is not None:
                self._folder.write_meta(self.meta)
        except OSError as error:
            self._cannot_write(error)

    def close(self, **facts: Any) -> None:
        """Add what is known at the end, and close the folder; it stays readable."""
        self._outlets.close()
        self.meta |= facts | ({"sink_failures": failures} if (failures := self._outlets.failures) else {})
        self.write_meta()
        if self._folder is not None:
            self._folder.close()

    @property
    def run(self) -> Run:
        """The run so far, as a reader sees it."""
        if self.out is None or not self._opened:
            return Run.from_records(self.meta, list(self._kept), dict(self._kept_arrays))
        if not self._failed:
            return Run(self.out)
        written: list[Record] = []
        with contextlib.suppress(RunError):
            written = Run(self.out).records
        return Run.from_records(self.meta, [*written, *self._kept], dict(self._kept_arrays))

    def _cannot_write(self, error: OSError) -> None:
        """A full disk must not end a training run."""
        if not self._failed:
            self._failed = True
            say(f"losscope: cannot write to {self.out}: {error}; records are kept in memory")


def resumes(out: Path | None, identity: dict[str, Any], resume: bool) -> bool:
    """Whether there is a run in the folder to go on with.

    Raises:
        RunError: if there is another one; see `check_folder`.
    """
    try:
        return out is not None and check_folder(out, identity, resume=resume)
    except OSError:  # as the run opens, that is said, and records are kept in memory
        return False


def steps_done(out: Path) -> int:
    """Updates that the run in this folder has seen: one that was killed shows its last record, a closed one says it."""
    run = Run(out)
    closed = [int(steps) for steps in (run.meta.get("steps") or {}).values()]
    return max([record.step + 1 for record in run.records] + closed, default=0)


def now() -> str:
    """The time of day, in the words of the run's facts."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def _file_name(text: str) -> str:
    return "".join(c if c.isalnum() or c in "-_." else "_" for c in text)
