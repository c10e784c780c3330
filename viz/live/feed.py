"""A run as it grows: what has come since the last look is read, and nothing twice."""

from __future__ import annotations

import dataclasses
import json
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from losscope.landscape import RunError
from losscope.probes import Record

from .followed import FollowedRun
from .inside import all_of, open_inside

__all__ = ["Feed"]

META, RECORDS = "meta.json", "records.jsonl"
BEGINNINGS = {RECORDS, META, f"{META}.tmp"}
CHUNK = 1 << 22
LONGEST_LINE = 1 << 22
LARGEST_META = 1 << 24
REMEMBERED = 256  # bytes before the place reached, by which a file that was written anew is known


@dataclass
class _Place:
    """How far a file was read: which file, to which byte, and the bytes before it."""

    file: tuple[int, int] | None = None
    offset: int = 0
    before: bytes = b""


@dataclass
class Feed:
    r"""Follows a run folder that is being written to.

    A run that was killed and resumed goes on; where its records were replaced or cut short, they are read anew, and
    `generation` counts up.

    Args:
        path: the run folder.

    Raises:
        RunError: if there is no such folder, or what is in it is no run. A folder in which nothing is yet will do.

    Attributes:
        generation: how often the records were begun anew.
        changes: how often anything has changed.
        came: the records in the order in which they came, also those that later ones replaced.
        meta: the run's facts; None until there are any.
        malformed: complete lines that are no records.
        latest: when the youngest record was written, in seconds since the epoch; 0 where there is none.
        step: of the record that came last; None where there is none.
        problem: why the run cannot be followed just now; empty if it can.

    Example:
        >>> import pathlib, tempfile
        >>> from losscope.probes import Record
        >>> from losscope.viz.live.feed import Feed
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = (pathlib.Path(folder) / "meta.json").write_text('{"identity": {}, "players": {"model": {}}}')
        ...     feed = Feed(pathlib.Path(folder))
        ...     with (pathlib.Path(folder) / "records.jsonl").open("w") as file:
        ...         _ = file.write(Record(0, "model", "trace", value=1.0).to_json() + "\n{torn")
        ...     feed.look(), feed.look(), len(feed.run.records)
        (True, False, 1)
    """

    path: Path
    generation: int = field(default=0, init=False)
    changes: int = field(default=0, init=False)
    came: list[Record] = field(default_factory=list, init=False)
    meta: dict[str, Any] | None = field(default=None, init=False)
    malformed: int = field(default=0, init=False)
    latest: float = field(default=0.0, init=False)
    step: int | None = field(default=None, init=False)
    problem: str = field(default="", init=False)
    _place: _Place = field(default_factory=_Place, init=False)
    _kept: dict[tuple[str, str, int], Record] = field(default_factory=dict, init=False)
    _described: bytes = field(default=b"", init=False)
    _newer: str = field(default="", init=False)
    _run: FollowedRun | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        if not self.path.is_dir():
            raise RunError(f"there is no run at {str(self.path)!r}: no such folder")
        if not (self.path / META).exists() and not {entry.name for entry in self.path.iterdir()} <= BEGINNINGS:
            raise RunError(f"{str(self.path)!r} is not a losscope run: it has no {META}")
        self._advance()

    @property
    def players(self) -> list[str]:
        """Names of the players; none while nothing is known of the run."""
        return list((self.meta or {}).get("players", {}))

    @property
    def status(self) -> str:
        """Of the run, ``"waiting"`` while nothing is known of it."""
        return str(self.meta.get("status", "running")) if self.meta else "waiting"

    def __len__(self) -> int:
        """How many records the run has."""
        return len(self._kept)

    @property
    def run(self) -> FollowedRun:
        """The run as it stands; without players while nothing is known of it."""
        if self._run is None:
            meta = self.meta or {"identity": {}, "players": {}}
            self._run = FollowedRun(self.path, meta, list(self._kept.values()), self.malformed)
        return self._run

    def look(self) -> bool:
        """Read what has come; whether anything has changed. Once begun, nothing that is found there raises."""
        before = self.problem
        try:
            changed, self.problem = self._advance(), ""
        except (OSError, RunError) as error:
            changed, self.problem = False, " ".join(str(error).split())
        return changed or self.problem != before

    def _advance(self) -> bool:
        described = self._describe()
        changed = self._append() or described
        self.changes += changed
        return changed

    def _describe(self) -> bool:
        """Read the run's facts if they are not those that are known."""
        try:
            with open_inside(self.path, META) as file:
                content = all_of(file, LARGEST_META)
        except FileNotFoundError:
            if self.meta is None and self.path.is_dir():
                return False  # it is about to begin
            raise RunError(f"the run at {str(self.path)!r} is gone") from None
        if content == self._described:
            return False
        self.meta, self._described, self._run = _facts(content, self.path), content, None
        return True

    def _append(self) -> bool:
        """Read the records that are new."""
        try:
            file = open_inside(self.path, RECORDS)
        except FileNotFoundError:
            changed = bool(self._kept)
            self._begin()
            return changed
        with file:
            changed = not self._goes_on(file)
            if changed:
                self._begin()
            found = os.fstat(file.fileno())
            self._place.file = (found.st_dev, found.st_ino)
            file.seek(self._place.offset)
            for line in self._lines(file):
                changed = True
                self._take(line)
        if self._newer:
            raise RunError(self._newer)
        if self.malformed and not self._kept:
            raise RunError(f"{self.path / RECORDS} holds no readable record ({self.malformed} lines are not records)")
        return changed

    def _goes_on(self, file: BinaryIO) -> bool:
        """Whether it is still the file that was read, with more at its end at most."""
        found, place = os.fstat(file.fileno()), self._place
        if place.file is None:
            return True
        if place.file != (found.st_dev, found.st_ino) or found.st_size < place.offset:
            return False
        file.seek(place.offset - len(place.before))
        return file.read(len(place.before)) == place.before

    def _begin(self) -> None:
        if self._place.offset:
            self.generation += 1
        self._place, self._kept, self.malformed, self.latest, self._newer = _Place(), {}, 0, 0.0, ""
        self.came, self.step, self._run = [], None, None

    def _lines(self, file: BinaryIO) -> Iterator[bytes]:
        """Complete lines from the place reached on; a line that is not complete waits."""
        rest = b""
        while chunk := file.read(CHUNK):
            complete, newline, rest = (rest + chunk).rpartition(b"\n")
            if newline:
                self._place.offset += len(complete) + 1
                self._place.before = (self._place.before + complete[-REMEMBERED:] + newline)[-REMEMBERED:]
                yield from complete.split(b"\n")
            elif len(rest) > LONGEST_LINE:  # no record: is passed over as it grows
                self._place.offset += len(rest)
                self._place.before, rest = rest[-REMEMBERED:], b""

    def _take(self, line: bytes) -> None:
        if not line.strip():
            return
        self._run = None
        try:
            record = Record.from_json(line)
        except RunError as error:
            self._newer = str(error)
            return
        except (ValueError, TypeError, KeyError, RecursionError):
            self.malformed += 1
            return
        self.step = record.step
        if math.isfinite(record.time):
            self.latest = max(self.latest, record.time)
        earlier = self._kept.get(record.key)
        if earlier is not None and record.probe == "log":  # another thread may be reading the earlier one
            record = dataclasses.replace(earlier, values=earlier.values | record.values)
        self._kept[record.key] = record
        self.came.append(record)


def _facts(content: bytes, path: Path) -> dict[str, Any]:
    try:
        meta = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise RunError(f"{path / META} cannot be read: {error}") from error
    players = meta.get("players") if isinstance(meta, dict) else None
    if not isinstance(players, dict) or not isinstance(meta.get("identity"), dict):
        raise RunError(f"{path / META} is not the description of a losscope run")
    if not players or not all(isinstance(facts, dict) for facts in players.values()):
        raise RunError(f"{str(path)!r} is not a readable run: its {META} does not describe its players")
    return meta
