"""Evaluated points in a file, appended as they are computed, so that what was interrupted goes on where it was.

A file of JSON lines: the first says what was asked (`asked_of`), each of the others holds one point and its values.
Lines are only ever appended, each block of points by one write, so that a process that is killed loses the block it
was computing and no other; a line that is torn is not read.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..batches import tensors_of
from ..errors import DataError, SettingError
from ..objective import Objective
from .points import Point, parameters_at
from .results import Axis

__all__ = ["PointStore", "asked_of"]

VERSION = 1
"""Of the file's form; what is of another one is refused."""

Asked = Mapping[str, Mapping[str, Any]]
"""By the name of each thing that was asked: ``said`` in words, and its ``mark``: a text, or numbers (see `_same`)."""

_PIECE = 2**20  # entries of a vector that are looked at together
_CLOSE = 1e-4  # relative: what is computed again on another machine differs by rounding


class PointStore:
    """Points that were evaluated, in a file; new ones are appended.

    Points are found by their coordinates, so that a finer grid over the same axes uses those of a coarser one.

    Args:
        path: the file; made with its folder where it is not there.
        asked: what is evaluated, as `asked_of` says it.
        names: of the values, ``"loss"`` first.

    Attributes:
        path: the file.

    Raises:
        SettingError: if the file holds points of something else; says what differs.
        DataError: if the file is none of ours, or of a version that this one does not know.
        OSError: if it cannot be read or written.

    Example:
        >>> import tempfile, torch
        >>> from losscope.landscape.surface import PointStore
        >>> asked = {"data": {"said": "4 samples", "mark": "ab12"}}
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     store = PointStore(f"{folder}/points.jsonl", asked, ["loss"])
        ...     store.write(torch.tensor([[0.5]]), {"loss": torch.tensor([2.0])})
        ...     again = PointStore(f"{folder}/points.jsonl", asked, ["loss"])
        ...     known, values = again.read(torch.tensor([[0.5], [1.0]]))
        >>> known, values["loss"]
        (tensor([ True, False]), tensor([2., nan], dtype=torch.float64))
    """

    def __init__(self, path: str | Path, asked: Asked, names: Sequence[str]) -> None:
        self.path, self._names = Path(path), tuple(names)
        self._known: dict[tuple[float, ...], tuple[float, ...]] = {}
        self._torn = False  # whether the last line has no end
        header = {"losscope": "points", "version": VERSION, "names": list(self._names), "asked": asked}
        line = json.dumps(header, allow_nan=False) + "\n"
        content = self.path.read_bytes() if self.path.exists() else b""
        if b"\n" in content:
            self._resume(content, header)
        elif not line.encode().startswith(content[:20]):
            raise DataError(f"resume={str(self.path)!r} is not a file of points; name another, or remove it")
        else:  # new, or killed before the header was written
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.path.write_text(line, encoding="utf-8")

    def __len__(self) -> int:
        """Number of points."""
        return len(self._known)

    def __repr__(self) -> str:
        """File and number of points."""
        return f"PointStore({str(self.path)!r}, {len(self)} points)"

    def read(self, coordinates: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Which points are known, and their values.

        Args:
            coordinates: (G, k) float64.

        Returns:
            (G,) bool, and (G,) float64 per name; NaN where a point is not known.
        """
        missing = (math.nan,) * len(self._names)
        rows = [self._known.get(tuple(point)) for point in coordinates.double().tolist()]
        table = torch.tensor([missing if row is None else row for row in rows], dtype=torch.float64)
        columns = table.reshape(len(rows), len(self._names)).unbind(1)
        return torch.tensor([row is not None for row in rows]), dict(zip(self._names, columns, strict=True))

    def write(self, coordinates: Tensor, values: Mapping[str, Tensor]) -> None:
        """Append points (G, k) and their values (G,) per name."""
        points = coordinates.double().tolist()
        rows = torch.stack([values[name].double() for name in self._names], dim=1).tolist()
        lines = [json.dumps([list(map(_written, part)) for part in pair]) for pair in zip(points, rows, strict=True)]
        with self.path.open("ab") as file:
            file.write(("\n" * self._torn + "".join(f"{line}\n" for line in lines)).encode())
        self._torn = False
        self._known.update(zip(map(tuple, points), map(tuple, rows), strict=True))

    def _resume(self, content: bytes, header: dict[str, Any]) -> None:
        first, *lines = content.split(b"\n")
        try:
            there = json.loads(first)
            if there["losscope"] != "points":
                raise ValueError("its first line is another program's")
            version, names, asked = there["version"], there["names"], there["asked"]
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(
                f"resume={str(self.path)!r} is not a file of points ({error}); name another, or remove it"
            ) from error
        if version != VERSION:
            raise DataError(
                f"resume={str(self.path)!r} is of version {version!r}, this losscope reads version {VERSION}: name "
                "another file"
            )
        differing = _differences(asked, header["asked"])
        if names != header["names"]:
            differing.append(f"the values ({', '.join(names)} there, {', '.join(self._names)} here)")
        if differing:
            raise SettingError(
                f"resume={str(self.path)!r} holds points of something else; what differs: {'; '.join(differing)}. "
                "Name another file to evaluate this, or ask for what was asked there"
            )
        for line in lines:
            entry = _entry(line, len(self._names))
            if entry is not None:
                self._known[entry[0]] = entry[1]
        self._torn = bool(lines[-1])


def asked_of(
    objective: Objective, origin: Point, axes: Sequence[Axis], *, statistics: str, center: Mapping[str, float]
) -> dict[str, dict[str, Any]]:
    """What determines the values at points, to be compared with what a file holds.

    Parameters and data are compared to the bit. Axes and the values at the origin are computed anew when an
    evaluation is resumed, maybe on another machine: they are compared up to rounding, the axes by their length and
    three products with fixed vectors. The values at the origin stand for what cannot be looked into: the code of the
    loss and of metrics.

    Args:
        objective: the loss.
        origin: the point with coordinates 0.
        axes: the directions.
        statistics: how normalisation layers take their statistics.
        center: the values at the origin, by name.
    """
    start = parameters_at(objective, origin, "the origin")
    buffers = [buffer for _, buffer in objective.model.named_buffers()]
    contents = [tensor for batch in objective.batches for tensor in tensors_of(batch.content)]
    weights = [batch.weight for batch in objective.batches]
    said = {name: f"{value:.6g}" for name, value in center.items()}
    found = {
        "parameters": (_counted(len(start), "parameter"), _hash([start])),
        "buffers": (_counted(len(buffers), "buffer"), _hash(buffers)),
        "data": (f"{_counted(len(weights), 'batch')} of weight {sum(weights):g}", _hash(contents, repr(weights))),
        "mode": (repr(objective.mode), objective.mode),
        "seed": (str(objective.seed), str(objective.seed)),
        "precision": (repr(objective.precision), objective.precision),
        "statistics": (repr(statistics), statistics),
    }
    for number, axis in enumerate(axes, start=1):
        found[f"axis {number}"] = (f"{axis.name}, of length {axis.norm:.6g}", _sketch(axis.vector))  # type: ignore[assignment]
    for name, value in center.items():
        found[f"{name} at the origin"] = (said[name], [_written(value)])  # type: ignore[assignment]
    return {name: {"said": words, "mark": mark} for name, (words, mark) in found.items()}


def _differences(there: Asked, here: Asked) -> list[str]:
    """In words."""
    found = []
    for name in here.keys() | there.keys():
        before, now = there.get(name), here.get(name)
        if before is None or now is None or not _same(before["mark"], now["mark"]):
            told = [each["said"] if each else "none" for each in (before, now)]
            same = " of another content" if told[0] == told[1] else ""
            found.append(f"{name} ({told[0]} there, {told[1]}{same} here)")
    return sorted(found)


def _same(before: Any, now: Any) -> bool:
    """Texts: equal. Numbers: equal up to rounding, in units of the first."""
    if not (isinstance(before, list) and isinstance(now, list)):
        return bool(before == now)
    first, second = [list(map(float, each)) for each in (before, now)]
    size = abs(first[0]) if first and math.isfinite(first[0]) else 0.0
    return len(first) == len(second) and all(
        a == b or (math.isnan(a) and math.isnan(b)) or abs(a - b) <= _CLOSE * size
        for a, b in zip(first, second, strict=True)
    )


def _sketch(vector: Tensor) -> list[float]:
    """Length, and the products with three fixed waves, which are of the size of the length."""
    found = torch.zeros(4, dtype=torch.float64)
    for start in range(0, len(vector), _PIECE):
        v = vector[start : start + _PIECE].detach().cpu().double()
        positions = start + torch.arange(len(v), dtype=torch.float64)
        found += torch.stack([v @ v, *(v @ (positions * math.sqrt(each)).cos() for each in (2, 3, 5))])
    return [float(found[0].sqrt()), *found[1:].tolist()]


def _hash(tensors: Sequence[Tensor], further: str = "") -> str:
    digest = hashlib.sha256(further.encode())
    for tensor in tensors:
        held = tensor.detach().cpu().contiguous()
        digest.update(f"{tuple(held.shape)} {held.dtype}".encode())
        digest.update(held.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _entry(line: bytes, names: int) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
    """A point and its values; None where the line is torn."""
    try:
        point, row = json.loads(line)
        entry = tuple(map(float, point)), tuple(map(float, row))
    except (ValueError, TypeError):
        return None
    return entry if len(entry[1]) == names else None


def _written(number: float) -> float | str:
    """Strict JSON has no NaN and no infinity: they are texts."""
    return number if math.isfinite(number) else str(number)


def _counted(number: int, what: str) -> str:
    plural = what + ("es" if what.endswith("ch") else "s")
    return f"{number:,} {what if number == 1 else plural}"
