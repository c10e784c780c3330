"""A slice or a path in one file, so that its figure can be drawn again without the model.

A NumPy archive: the tensors, and a JSON header that says what they belong to. Nothing is pickled, so that a file from
elsewhere runs no code when it is read.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import DataError, SettingError
from .results import Axis, Line, LossPath, Plane, QuadraticModel, Refined

__all__ = ["load", "save"]

VERSION = 1
"""Of the file's form; what is of another one is refused."""
HEADER = "header"
CLASSES = {each.__name__: each for each in (Axis, Line, LossPath, Plane, QuadraticModel, Refined)}
RESULTS: tuple[type, ...] = (Line, LossPath, Plane, QuadraticModel)


def save(path: str | Path, result: Line | Plane | LossPath | QuadraticModel, *, vectors: bool = True) -> Path:
    """Write a result to a file, in one step.

    Args:
        path: the file; replaced if it is there. By custom ``.npz``, which is not added.
        result: a line, a plane, a path or a quadratic model.
        vectors: whether the vectors of parameters (directions, control point) are kept, which make the file as large
            as the model. Without them a direction is kept as a short vector that has the same inner products, so that
            lengths and angles stay as they are, and a control point is None.

    Returns:
        Where it was written.

    Raises:
        SettingError: if the result is something else.
        OSError: if the file cannot be written.

    Example:
        >>> import tempfile, torch
        >>> from pathlib import Path
        >>> from losscope.landscape.surface import Axis, Line, load, save
        >>> x = torch.linspace(-1, 1, 5, dtype=torch.float64)
        >>> line = Line(x, {"loss": x**2}, 0.0, Axis(torch.ones(4), "ones"))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     again = load(save(Path(folder) / "line.npz", line))
        >>> again.axis, again.loss.tolist()
        (Axis('ones', 4 parameters, norm 2), [1.0, 0.25, 0.0, 0.25, 1.0])
    """
    if not isinstance(result, RESULTS):
        names = ", ".join(each.__name__ for each in RESULTS)
        raise SettingError(f"save() keeps one of {names}; got {type(result).__name__}")
    arrays: dict[str, np.ndarray] = {}
    content = _written(result if vectors else _without_vectors(result), arrays)
    header = json.dumps({"losscope": "surface", "version": VERSION, "result": content}, allow_nan=False)
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            np.savez(file, allow_pickle=False, **{HEADER: np.array(header)}, **arrays)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    return path


def load(path: str | Path) -> Line | Plane | LossPath | QuadraticModel:
    """Read what `save` wrote; tensors are on the CPU.

    Args:
        path: the file.

    Raises:
        DataError: if the file is none of ours, is damaged, or is of a version that this one does not know.
        OSError: if it cannot be read.
    """
    path = Path(path)
    try:
        with np.load(path, allow_pickle=False) as archive:
            header = json.loads(str(archive[HEADER]))
            arrays = {name: archive[name] for name in archive.files if name != HEADER}
        if header["losscope"] != "surface":
            raise ValueError("its header is another program's")
        version = header["version"]
    except (ValueError, KeyError, TypeError, AttributeError, EOFError, zipfile.BadZipFile) as error:
        objects = " (it holds Python objects, which are not loaded)" if "Object arrays" in str(error) else ""
        raise DataError(f"{str(path)!r} is not a file that losscope.landscape.surface.save wrote{objects}") from error
    if version != VERSION:
        raise DataError(
            f"{str(path)!r} is of version {version!r}, this losscope reads version {VERSION}: "
            "read it with the losscope that wrote it, or install a newer one"
        )
    try:
        result: Any = _read(header["result"], arrays)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise DataError(f"{str(path)!r} is damaged: {error}") from error
    if type(result) not in RESULTS:
        raise DataError(f"{str(path)!r} holds a {type(result).__name__}, not a result")
    return result


def _without_vectors(result: Line | Plane | LossPath | QuadraticModel) -> Line | Plane | LossPath | QuadraticModel:
    if isinstance(result, Line):
        length = torch.tensor([result.axis.norm], dtype=torch.float64)
        return dataclasses.replace(result, axis=dataclasses.replace(result.axis, vector=length))
    if isinstance(result, Plane):
        rows = _with_inner_products(result.gram)
        first, second = (dataclasses.replace(axis, vector=row) for row, axis in zip(rows, result.axes, strict=True))
        return dataclasses.replace(result, axes=(first, second))
    if isinstance(result, LossPath):
        return dataclasses.replace(result, control=None)
    return result


def _with_inner_products(gram: Tensor) -> Tensor:
    """Two rows (2, 2) with these inner products; by formula, since a square root of rounding must not be refused."""
    a = math.sqrt(float(gram[0, 0]))
    b = float(gram[0, 1]) / a if a > 0 else 0.0
    return torch.tensor([[a, 0.0], [b, math.sqrt(max(float(gram[1, 1]) - b * b, 0.0))]], dtype=torch.float64)


def _written(value: Any, arrays: dict[str, np.ndarray]) -> Any:
    """What JSON can say of it; tensors go to ``arrays``."""
    if isinstance(value, Tensor):
        name = f"a{len(arrays)}"
        held = value.detach().cpu().contiguous()
        arrays[name] = (held.view(torch.int16) if held.dtype == torch.bfloat16 else held).numpy()  # NumPy has none
        return {"tensor": name, "dtype": str(held.dtype).removeprefix("torch.")}
    if dataclasses.is_dataclass(value):
        fields = {f.name: _written(getattr(value, f.name), arrays) for f in dataclasses.fields(value)}
        return {"class": type(value).__name__, "fields": fields}
    if isinstance(value, Mapping):
        return {"mapping": [[str(key), _written(each, arrays)] for key, each in value.items()]}
    if isinstance(value, tuple | list):
        return {"tuple": [_written(each, arrays) for each in value]}
    if isinstance(value, float) and not math.isfinite(value):
        return {"number": str(float(value))}
    if value is None or isinstance(value, str | bool):
        return value
    return int(value) if isinstance(value, int) else float(value)


def _read(value: Any, arrays: Mapping[str, np.ndarray]) -> Any:
    if not isinstance(value, dict):
        return value
    if "tensor" in value:
        held = torch.from_numpy(arrays[value["tensor"]])
        return held.view(torch.bfloat16) if value["dtype"] == "bfloat16" else held
    if "class" in value:
        fields = {name: _read(each, arrays) for name, each in value["fields"].items()}
        return CLASSES[value["class"]](**fields)
    if "mapping" in value:
        return {key: _read(each, arrays) for key, each in value["mapping"]}
    return tuple(_read(each, arrays) for each in value["tuple"]) if "tuple" in value else float(value["number"])
