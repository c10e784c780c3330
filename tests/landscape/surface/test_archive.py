"""Results in a file: each class comes back as it was, and nothing else is taken for one."""

import dataclasses
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from losscope.landscape import DataError, SettingError
from losscope.landscape.surface import Axis, Line, LossPath, Plane, QuadraticModel, Refined, load, save

DOUBLE = torch.float64


def quadratic(k: int = 2) -> QuadraticModel:
    C = torch.eye(k, dtype=DOUBLE) + 0.1
    return QuadraticModel(0.1, torch.arange(k).double(), C, C.diagonal(), torch.full((k,), 1e-3).double(), 0.3, 0.1, k)


def a_line(dtype: torch.dtype = torch.float32) -> Line:
    x = torch.tensor([-1.0, 0.0, 0.1, 2.0], dtype=DOUBLE)
    values = {"loss": torch.tensor([1.0, math.nan, math.inf, -math.inf], dtype=DOUBLE), "accuracy": x / 3}
    axis = Axis(torch.tensor([1.0, 2.0, 2.0], dtype=dtype), "gradient, \N{GREEK SMALL LETTER ALPHA}")
    return Line(x, values, math.nan, axis, quadratic(1), {"first": 0.0, "second": math.inf}, note="left early")


def a_plane() -> Plane:
    x, y = torch.linspace(-1, 1, 3, dtype=DOUBLE), torch.linspace(0, 2, 4, dtype=DOUBLE)
    z = x[None] ** 2 + y[:, None] / 3
    more = Refined(torch.tensor([0.1]).double(), torch.tensor([0.2]).double(), {"loss": torch.tensor([0.3]).double()})
    axes = (Axis(torch.tensor([1.0, 2.0, 2.0]), "one"), Axis(torch.tensor([0.0, 1.0, 1.0]), "two", "a note"))
    return Plane(
        x, y, {"loss": z}, float(z[0, 1]), axes, quadratic(), more, {"a": (0.0, 1.0), "b": (0.5, 0.25)},
        torch.randn(7, 2).double(), torch.tensor([0.7, 0.2]).double(), "frozen", "batched", 13, 0.25, "note",
    )  # fmt: skip


def a_path(kind: str = "bezier") -> LossPath:
    t = torch.linspace(0, 1, 5, dtype=DOUBLE)
    more = {"control": torch.randn(6), "history": torch.rand(3).double()} if kind == "bezier" else {}
    return LossPath(
        t, {"loss": t * (1 - t)}, kind, math.nan, {"loss": math.inf}, 0.25, 0.5, 3.0, ends=("p", "q"), **more
    )


def assert_same(one: object, other: object) -> None:
    assert type(one) is type(other)
    if isinstance(one, torch.Tensor):
        assert one.dtype == other.dtype
        assert torch.equal(one.nan_to_num(7.0, 8.0, 9.0), other.nan_to_num(7.0, 8.0, 9.0))
        assert torch.equal(one.isnan(), other.isnan())
    elif dataclasses.is_dataclass(one):
        for field in dataclasses.fields(one):
            assert_same(getattr(one, field.name), getattr(other, field.name))
    elif isinstance(one, dict):
        assert list(one) == list(other)
        for key in one:
            assert_same(one[key], other[key])
    elif isinstance(one, tuple):
        assert len(one) == len(other)
        for each in zip(one, other, strict=True):
            assert_same(*each)
    elif isinstance(one, float) and math.isnan(one):
        assert math.isnan(other)
    else:
        assert one == other


@pytest.mark.parametrize(
    "result",
    [
        a_line(), a_line(torch.bfloat16), a_line(torch.float16), a_plane(), a_path(), a_path("linear"), quadratic(),
        Line(torch.zeros(1).double(), {"loss": torch.zeros(1).double()}, 0.0, Axis(torch.ones(2))),
    ],
    ids=lambda each: type(each).__name__,
)  # fmt: skip
def test_comes_back_as_it_was(result: object, tmp_path: Path) -> None:
    path = save(tmp_path / "result.npz", result)
    assert path == tmp_path / "result.npz"
    assert_same(load(path), result)
    assert [each.name for each in tmp_path.iterdir()] == ["result.npz"]


def test_without_vectors_lengths_and_angles_stay(tmp_path: Path) -> None:
    plane, line, path = a_plane(), a_line(), a_path()
    again = load(save(tmp_path / "plane", plane, vectors=False))
    torch.testing.assert_close(again.gram, plane.gram)
    assert [len(axis.vector) for axis in again.axes] == [2, 2]
    assert [(axis.name, axis.note) for axis in again.axes] == [("one", ""), ("two", "a note")]
    assert load(save(tmp_path / "line", line, vectors=False)).axis.norm == pytest.approx(line.axis.norm)
    assert load(save(tmp_path / "path", path, vectors=False)).control is None
    large = dataclasses.replace(plane, axes=tuple(Axis(torch.randn(100_000), axis.name) for axis in plane.axes))
    assert save(tmp_path / "large", large).stat().st_size > 800_000
    assert save(tmp_path / "small", large, vectors=False).stat().st_size < 10_000


def test_parallel_axes_without_vectors(tmp_path: Path) -> None:
    v = torch.rand(50)
    plane = dataclasses.replace(a_plane(), axes=(Axis(v), Axis(3 * v)))  # rounding may leave a negative square
    torch.testing.assert_close(load(save(tmp_path / "p", plane, vectors=False)).gram, plane.gram)


def test_a_later_version_is_refused(tmp_path: Path) -> None:
    path = save(tmp_path / "a.npz", a_line())
    with np.load(path) as archive:
        held = dict(archive)
    header = json.loads(str(held["header"]))
    np.savez(path, **held | {"header": np.array(json.dumps(header | {"version": 2}))})
    with pytest.raises(DataError, match="version 2, this losscope reads version 1"):
        load(path)
    del header["result"]["fields"]["x"]
    np.savez(path, **held | {"header": np.array(json.dumps(header))})
    with pytest.raises(DataError, match="damaged"):
        load(path)


def test_what_is_none_of_ours_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    path.write_bytes(b"nothing of the kind")
    with pytest.raises(DataError, match="not a file that"):
        load(path)
    np.savez(path, x=np.zeros(3))
    with pytest.raises(DataError, match="not a file that"):
        load(path)
    np.savez(path, header=np.array([{"losscope": "surface"}], dtype=object))  # a pickle
    with pytest.raises(DataError, match="Python objects, which are not loaded"):
        load(path)
    whole = save(path, a_plane()).read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match="not a file that"):
        load(path)
    path.write_bytes(b"")
    with pytest.raises(DataError, match="not a file that"):
        load(path)
    with pytest.raises(FileNotFoundError):
        load(tmp_path / "missing.npz")
    with pytest.raises(SettingError, match="got dict"):
        save(path, {})


def test_a_failed_save_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save(tmp_path / "a.npz", a_line())
    before = path.read_bytes()

    def full(*args: object, **kwargs: object) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(np, "savez", full)
    with pytest.raises(OSError, match="no space"):
        save(path, a_plane())
    assert path.read_bytes() == before
    assert [each.name for each in tmp_path.iterdir()] == ["a.npz"]
