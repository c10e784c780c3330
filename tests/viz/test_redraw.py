"""Figures of results that were kept in files, by the function and by the command line."""

from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner, Result

from drawn_planes import bowl, even, plane_of, taylor
from losscope.landscape import SettingError
from losscope.landscape.surface import Axis, Line, LossPath, save
from losscope.viz.cli import app
from losscope.viz.redraw import redraw

T = even(0, 1, 9)


def losscope(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, [str(a) for a in arguments], prog_name="losscope")


@pytest.fixture
def kept(tmp_path: Path) -> Path:
    plane = plane_of(bowl, radius=0.3, metrics={"accuracy": bowl})
    for vectors in (True, False):
        save(tmp_path / ("plane.npz" if vectors else "light.npz"), plane, vectors=vectors)
    for name in ("one", "two"):
        save(tmp_path / f"{name}.npz", Line(T, {"loss": T**2}, 0.0, Axis(torch.ones(3), name)))
        path = LossPath(T, {"loss": T * (1 - T)}, "linear", 0.25, {"loss": 0.25}, 0.25, 0.5, 1.0)
        save(tmp_path / f"path-{name}.npz", path)
    save(tmp_path / "model.npz", taylor(bowl, 0.3))
    return tmp_path


def test_each_kind_is_drawn(kept: Path) -> None:
    for name in ("plane", "light", "one", "path-one"):
        result = losscope("surface", kept / f"{name}.npz")
        assert result.exit_code == 0, result.output
        assert result.stdout.split() == [str(kept / f"{name}.png")]
        assert (kept / f"{name}.png").stat().st_size > 10_000
    assert redraw([kept / "plane.npz"], kept / "a.pdf", value="accuracy", scale="linear", size=(3.3, 3.4)).exists()
    assert (kept / "a.pdf").read_bytes().startswith(b"%PDF")


def test_vectors_are_not_needed(kept: Path) -> None:
    redraw([kept / "plane.npz"], kept / "a.png")
    redraw([kept / "light.npz"], kept / "b.png")
    assert (kept / "a.png").read_bytes() == (kept / "b.png").read_bytes()


def test_several_are_drawn_together(kept: Path) -> None:
    assert losscope("surface", kept / "one.npz", kept / "two.npz", "-o", kept / "both.svg").exit_code == 0
    assert "<svg" in (kept / "both.svg").read_text()
    assert losscope("surface", kept / "path-one.npz", kept / "path-two.npz", "--size", "3.3", "3").exit_code == 0


def test_a_page_to_turn(kept: Path) -> None:
    pytest.importorskip("plotly")
    assert losscope("surface", kept / "plane.npz", "-o", kept / "plane.html", "--scale", "log").exit_code == 0
    assert "surface" in (kept / "plane.html").read_text()
    with pytest.raises(SettingError, match="for planes"):
        redraw([kept / "one.npz"], kept / "one.html")


def test_what_cannot_be_drawn_is_said_in_a_line(kept: Path) -> None:
    (kept / "text.npz").write_text("nothing")
    for files, words in [
        (["one", "plane"], "one (Line), plane (Plane)"), (["plane", "light"], "light (Plane)"),
        (["text"], "is not a file that"), (["missing"], "No such file"), (["model"], "no figure of a QuadraticModel"),
    ]:  # fmt: skip
        result = losscope("surface", *[kept / f"{name}.npz" for name in files])
        assert result.exit_code == 2 and words in result.stderr, result.output
        assert len(result.stderr.splitlines()) == 1
        assert "pickle" not in result.stderr and "Errno" not in result.stderr  # numpy's advice to load it unsafely
    result = losscope("surface", kept / "plane.npz", "-o", kept / "plane.xyz")
    assert result.exit_code == 2 and "plane.xyz" in result.stderr
