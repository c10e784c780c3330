"""Writing a run folder, so that it can be read at any moment, also after ``kill -9``.

``meta.json`` is replaced atomically, ``records.jsonl`` is appended to with one write per record, arrays
are written beside and renamed. Nothing is ever rewritten.
"""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

import numpy as np

from losscope.landscape import RunError

from .records import Record

__all__ = ["RunFolder"]

META, RECORDS, ARRAYS = "meta.json", "records.jsonl", "arrays"


class RunFolder:
    """A run folder open for writing.

    Args:
        path: the folder; created with its parents if need be.
        identity: what makes a run the same run: resuming refuses a folder with another one.
        resume: append to the run that is there.

    Raises:
        RunError: if the folder holds a run and ``resume`` is False, holds another run, or other files.
    """

    def __init__(self, path: Path, identity: dict[str, Any], *, resume: bool) -> None:
        self.path = path
        self.resumed = check_folder(path, identity, resume=resume)
        path.mkdir(parents=True, exist_ok=True)
        records = path / RECORDS
        torn = records.exists() and records.stat().st_size > 0 and not _ends_with_newline(records)
        self._fd = os.open(records, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        self._torn = torn  # a line that was cut short: the next record closes it and stands on its own

    def append(self, record: Record) -> None:
        """Append one record with a single write."""
        if os.fstat(self._fd).st_nlink == 0:
            raise FileNotFoundError(f"{self.path / RECORDS} was removed")
        data = (b"\n" if self._torn else b"") + (record.to_json() + "\n").encode()
        written = os.write(self._fd, data)
        self._torn = data[:written][-1:] != b"\n" if written else self._torn
        if written != len(data):
            raise OSError(f"only {written} of {len(data)} bytes of a record could be written to {self.path}")

    def save_array(self, name: str, array: np.ndarray) -> str:
        """Store an array; returns its path relative to the folder."""
        target = self.path / array_path(name)
        target.parent.mkdir(exist_ok=True)
        temporary = target.with_name(f"{name}.npy.tmp")
        with temporary.open("wb") as file:
            np.save(file, array, allow_pickle=False)
        temporary.replace(target)
        return array_path(name)

    def write_meta(self, meta: dict[str, Any]) -> None:
        """Replace ``meta.json`` in one step."""
        temporary = self.path / (META + ".tmp")
        temporary.write_text(json.dumps(_strict(meta), indent=2, allow_nan=False, default=str) + "\n")
        temporary.replace(self.path / META)

    def close(self) -> None:
        """Close the records file; the folder stays readable."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def array_path(name: str) -> str:
    """Where an array of that name lies, relative to the folder."""
    return f"{ARRAYS}/{name}.npy"


def check_folder(path: Path, identity: dict[str, Any], *, resume: bool) -> bool:
    """Whether a run is there to be appended to; refuses a folder that must not be written to.

    Raises:
        RunError: see `RunFolder`.
    """
    if path.exists() and not path.is_dir():
        raise RunError(f"out={str(path)!r} is a file, expected a folder to write the run to")
    if not path.exists() or _is_unbegun(path):
        return False
    if not (path / META).exists():
        raise RunError(f"out={str(path)!r} holds files that are not a losscope run; choose another folder")
    if not resume:
        raise RunError(
            f"out={str(path)!r} holds a run already; choose another folder, or pass resume=True to append to that run"
        )
    try:
        there = json.loads((path / META).read_text())["identity"]
    except (ValueError, KeyError, TypeError, OSError) as error:
        raise RunError(f"cannot resume: {path / META} is not readable ({error})") from error
    expected = json.loads(json.dumps(identity))
    if there != expected:
        differing = [k for k in expected if not isinstance(there, dict) or there.get(k) != expected[k]]
        raise RunError(
            f"cannot resume: out={str(path)!r} holds another run (it differs in {', '.join(differing) or 'players'})"
        )
    return True


def _is_unbegun(path: Path) -> bool:
    """Whether a folder is empty, or holds no more than a process that was killed at once left."""
    left = {entry.name: entry for entry in path.iterdir()}
    beginnings = left.keys() <= {RECORDS, META + ".tmp"}
    return beginnings and (RECORDS not in left or left[RECORDS].stat().st_size == 0)


def _ends_with_newline(path: Path) -> bool:
    with path.open("rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read(1) == b"\n"


def _strict(content: Any) -> Any:
    """Strict JSON: facts that are not finite (a rate of NaN) are written as words."""
    if isinstance(content, dict):
        return {key: _strict(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [_strict(value) for value in content]
    return str(content) if isinstance(content, float) and not math.isfinite(content) else content
