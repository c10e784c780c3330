"""Reading a run: its facts, its records, its audit."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from losscope.landscape import RunError, SpectralDensity

from .audit import Audit, audit
from .cost import Cost, cost
from .density_arrays import ARRAYS, from_arrays
from .folder import META, RECORDS
from .phases import Phase, phases
from .records import Record
from .run_html import run_html

if TYPE_CHECKING:
    import pandas

__all__ = ["Run", "ShownAsRun"]


class Run:
    """A recorded run, finished or still being written.

    Args:
        path: the run folder.

    Raises:
        RunError: if there is no run there, or it cannot be read.

    Attributes:
        path: the folder, None for a run kept in memory.
        meta: the run's facts: versions, players, status ...
        records: all complete records in order; of several with the same player, probe and step the
            last one, as after a resume.
        malformed: number of complete lines that are not records.
    """

    _sorted: tuple[int, dict[tuple[str, str], list[Record]]] = (-1, {})  # how many records, and those of each probe

    def __init__(self, path: str | Path) -> None:
        self.path: Path | None = Path(path)
        self._arrays: Mapping[str, np.ndarray] = {}
        self.meta = _read_meta(self.path)
        lines, self.malformed = _read_records(self.path / RECORDS)
        self.records = _latest(lines)

    @classmethod
    def from_records(
        cls, meta: dict[str, Any], records: list[Record], arrays: Mapping[str, np.ndarray] | None = None
    ) -> Run:
        """A run that was kept in memory; its arrays by the paths they would have in a folder."""
        run = cls.__new__(cls)
        run.path, run.meta, run.malformed, run._arrays = None, meta, 0, arrays or {}
        run.records = _latest(records)
        return run

    def __repr__(self) -> str:
        """Where, how long, how it stands."""
        where = self.path if self.path is not None else "in memory"
        return f"Run({where}: {self.status}, {len(self.records)} records, probes {', '.join(self.probes) or 'none'})"

    def _repr_html_(self) -> str:
        """What a notebook shows: what every probe last measured; with `losscope.viz` imported, a picture too."""
        return run_html(self)

    @property
    def name(self) -> str:
        """The folder's name."""
        return self.path.resolve().name if self.path is not None else "run"

    @property
    def status(self) -> str:
        """``"running"`` (or killed), ``"finished"`` or ``"failed"``."""
        return str(self.meta.get("status", "running"))

    @property
    def players(self) -> list[str]:
        """Names of the players; one for a single model."""
        return list(self.meta.get("players", {}))

    @property
    def probes(self) -> list[str]:
        """Names of the probes that left records, in order of appearance."""
        return list(dict.fromkeys(r.probe for r in self.records if r.probe != "log"))

    def select(self, probe: str, player: str | None = None, *, ok: bool = True) -> list[Record]:
        """Records of one probe in order of step.

        Args:
            probe: its name; ``"log"`` for logged values.
            player: one player; default: the first.
            ok: only those that were measured.

        Raises:
            RunError: if the run has no such player.
        """
        found = self._of(self._player(player), probe)
        return [record for record in found if record.status == "ok" or not ok]

    def _of(self, player: str, probe: str) -> list[Record]:
        """All records of one probe by step; sorted once for all, and again where there are more than there were."""
        if self._sorted[0] != len(self.records):
            found: dict[tuple[str, str], list[Record]] = {}
            for record in sorted(self.records, key=lambda record: record.step):
                found.setdefault(record.key[:2], []).append(record)
            self._sorted = len(self.records), found
        return self._sorted[1].get((player, probe), [])

    def logged(self, name: str, player: str | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Steps and values of one logged quantity, e.g. ``"loss"``; NaN where it was not finite."""
        records = [r for r in self.select("log", player) if name in r.values]
        steps = np.array([r.step for r in records], dtype=int)
        return steps, np.array([np.nan if (v := r.values[name]) is None else v for r in records], dtype=float)

    def array(self, record: Record, name: str) -> np.ndarray:
        """Load an array of a record.

        Raises:
            RunError: if the record has no such array, or its file is gone or outside the folder.
        """
        path = record.arrays.get(name, "")
        if path in self._arrays:
            return self._arrays[path]
        if not path or self.path is None:
            raise RunError(f"record {record.key} has no array {name!r}; it has {sorted(record.arrays)}")
        if Path(path).is_absolute() or ".." in Path(path).parts:  # folders may come from anyone
            raise RunError(f"array {name!r} of record {record.key} is said to be at {path!r}, outside the run folder")
        try:
            return np.asarray(np.load(self.path / path, allow_pickle=False))
        except (OSError, ValueError) as error:
            raise RunError(f"cannot read {path} of {self.path}: {error}") from error

    def spectrum(self, step: int | None = None, player: str | None = None) -> SpectralDensity:
        """The spectral density that probe ``spectrum`` measured.

        Args:
            step: at which step; default: the last one there is.
            player: one player; default: the first.

        Raises:
            RunError: if none was measured at that step, or its arrays are gone.
        """
        records = self.select("spectrum", player)
        found = [r for r in records if step is None or r.step == step]
        if not found:
            steps = ", ".join(str(r.step) for r in records[:8]) + (" ..." if len(records) > 8 else "")
            there = f"there are spectra of steps {steps}" if records else "the run has none: add probe Spectrum()"
            raise RunError(f"no spectrum was measured{'' if step is None else f' at step {step}'}; {there}")
        try:
            return from_arrays(found[-1], {name: self.array(found[-1], name) for name in ARRAYS})
        except (KeyError, ValueError, TypeError, IndexError) as error:
            raise RunError(f"the spectrum of step {found[-1].step} cannot be read: {error}") from error

    def audit(self, player: str | None = None) -> Audit:
        """The stability audit of one player over the last part of the run."""
        return audit(self, self._player(player))

    def phases(self, player: str | None = None) -> tuple[Phase, ...]:
        """The phases that one player went through: see `losscope.probes.phases`."""
        return phases(self, self._player(player))

    def cost(self) -> Cost:
        """What every probe cost in seconds, products and memory, how it was computed, and what was put off."""
        return cost(self)

    def to_pandas(self) -> pandas.DataFrame:
        """One row per record; ``values`` as columns ``values.<name>``.

        Raises:
            ImportError: if pandas is not installed.
        """
        try:
            import pandas
        except ImportError as error:
            raise ImportError('to_pandas needs pandas: pip install "losscope[pandas]"') from error
        return pandas.DataFrame(list(self._rows()))

    def _rows(self) -> Iterator[dict[str, Any]]:
        plain = [name for name in Record.__dataclass_fields__ if name not in ("values", "arrays")]
        for record in self.records:
            row = {name: getattr(record, name) for name in plain}
            row |= {f"values.{k}": v for k, v in record.values.items()}
            row |= {f"arrays.{k}": v for k, v in record.arrays.items()}
            yield row

    def _player(self, player: str | None) -> str:
        players = self.players or ["model"]  # a description that says little is still readable
        if player is None:
            return players[0]
        if player not in players:
            raise RunError(f"the run has no player {player!r}; it has {', '.join(players)}")
        return player


class ShownAsRun:
    """What a notebook shows as it shows its run."""

    @property
    def run(self) -> Run:
        """The run."""
        raise NotImplementedError

    def __repr__(self) -> str:
        """Of what, and the run so far."""
        try:
            return f"{type(self).__name__} of {self.run!r}"
        except RunError:
            return f"{type(self).__name__}(no run yet)"

    def _repr_html_(self) -> str:
        return run_html(self.run)


def _read_meta(path: Path) -> dict[str, Any]:
    if not path.is_dir():
        raise RunError(f"there is no run at {str(path)!r}: no such folder")
    try:
        meta = json.loads((path / META).read_text())
    except FileNotFoundError:
        raise RunError(f"{str(path)!r} is not a losscope run: it has no {META}") from None
    except (ValueError, OSError) as error:
        raise RunError(f"{path / META} cannot be read: {error}") from error
    if (
        not isinstance(meta, dict)
        or not isinstance(meta.get("identity"), dict)
        or not isinstance(meta.get("players"), dict)
    ):
        raise RunError(f"{path / META} is not the description of a losscope run")
    return meta


def _read_records(path: Path) -> tuple[list[Record], int]:
    """All complete records and the number of lines that are none; a torn last line is not counted."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return [], 0
    except OSError as error:
        raise RunError(f"{path} cannot be read: {error}") from error
    records, malformed = [], 0
    complete, _, _ = data.rpartition(b"\n")
    for line in complete.split(b"\n"):
        if not line.strip():
            continue
        try:
            records.append(Record.from_json(line))
        except (ValueError, TypeError, KeyError):
            malformed += 1
    if malformed and not records:
        raise RunError(f"{path} holds no readable record ({malformed} lines are not records)")
    return records, malformed


def _latest(records: list[Record]) -> list[Record]:
    """Of several records with the same key the last; logged values of one step are merged."""
    kept: dict[tuple[str, str, int], Record] = {}
    for record in records:
        earlier = kept.get(record.key)
        if earlier is not None and record.probe == "log":
            earlier.values.update(record.values)
        else:
            kept[record.key] = record
    return list(kept.values())
