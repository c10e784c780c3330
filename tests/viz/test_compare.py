"""Several runs side by side."""

from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure

from drawn_runs import diverging, dropping, hovering, meta, minibatch, run_of, write
from drawn_spectra import evolving
from losscope.landscape import RunError, SettingError
from losscope.probes import Record, Run
from losscope.viz import report
from losscope.viz.compare import compare, distinct_runs, overlaid, overlays
from losscope.viz.page import data, page
from read_page import HOSTILE, Page


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Run]:
    folder = tmp_path_factory.mktemp("runs")
    small = {"batch_size": 32}
    return [
        write(folder / "full", hovering(600), meta(model={})), write(folder / "mini", minibatch(600), meta(model=small))
    ]  # fmt: skip


@pytest.fixture
def blank(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pages whose figures are empty: to draw them takes nearly all of the time."""
    monkeypatch.setattr("losscope.viz.page.figure", lambda run, kind, *, player, size: Figure(figsize=size))
    monkeypatch.setattr("losscope.viz.page.overlay", lambda runs, name, size: Figure(figsize=size))


def cells(runs: list[Run], name: str) -> tuple[str, ...]:
    return next(row.cells for row in compare(runs).rows if row.name == name)


def test_differences_are_marked(runs: list[Run]) -> None:
    found = compare(runs)
    assert found.columns == ("full", "mini")
    differs = {row.name: row.differs for row in found.rows}
    assert differs["batch size"] and differs["verdict"] and differs["audit: sharpness"]
    assert not differs["model"] and not differs["optimizer"] and not differs["created"]
    assert cells(runs, "batch size") == ("1,000 (full batch)", "32")
    assert cells(runs, "first measured above the threshold")[1] == "never"
    assert all(len(row.cells) == 2 and any(row.cells) for row in found.rows)
    assert not [row for row in found.rows if set(row.cells) == {"– does not apply"}]


def test_of_each_player_a_column(runs: list[Run]) -> None:
    two = run_of([*hovering(300, player="G"), *minibatch(300, player="D")], G={}, D={"batch_size": 32})
    assert compare([runs[0], two]).columns == ("full", "run: G", "run: D")
    assert len(overlaid([runs[0], two], "loss")[0]) == 3


def test_the_same_run_twice_is_one(runs: list[Run], blank: None) -> None:
    again = Run(runs[0].path or "")
    assert distinct_runs([runs[0], runs[1], again]) == runs
    shown = Page(page([runs[0], again, runs[1]], interactive=False))
    assert "A run that was given more than once is shown once." in shown.words
    assert len(shown.tags("section")) == 6  # side by side, and of each run its own and that of its player; the words


def test_the_same_name_twice(tmp_path: Path, blank: None) -> None:
    made = [write(tmp_path / each / "run", hovering(100)) for each in ("a", "b")]
    assert compare(made).columns == ("a/run", "b/run")
    headings = [text.strip() for text in Page(page(made, interactive=False)).text["h2"] if text.strip()]
    assert headings[:3] == ["Side by side", "a/run", "b/run"]


def test_runs_with_different_probes(runs: list[Run], blank: None) -> None:
    spectral, empty = evolving(3), Run.from_records({"players": {}}, [])
    every = [runs[0], spectral, empty, run_of(diverging())]
    found = compare(every)
    assert len(found.columns) == 4 and all(len(row.cells) == 4 for row in found.rows)
    assert cells(every, "sharpness / threshold, last")[1:3] == ("", "")
    assert overlays([spectral, empty]) == []
    shown = Page(page(every))
    assert len(shown.data["runs"]) == 4
    assert {each["id"] for each in shown.data["figures"]} == {
        f"compare-{name}" for name in ("sharpness", "loss", "trace")
    }
    assert max(map(shown.attribute("id").count, shown.attribute("id"))) == 1


def test_ratios_are_drawn_where_thresholds_differ(runs: list[Run]) -> None:
    assert "sharpness/threshold" not in overlays(runs)
    both = [runs[0], run_of(dropping())]
    assert "sharpness/threshold" in overlays(both)
    traces, _ = overlaid(both, "sharpness/threshold")
    named = sorted((trace for trace in traces if trace.get("showlegend")), key=lambda trace: trace["legendrank"])
    assert [trace["name"] for trace in named] == ["full", "run"]
    ratios = [r.value / (2 / r.lr) for r in both[1].select("sharpness") if r.value and r.lr]
    assert named[1]["y"] == pytest.approx(ratios, rel=1e-5)


def test_curves_are_those_of_the_runs(runs: list[Run]) -> None:
    traces, layout = overlaid(runs, "sharpness")
    named = sorted((trace for trace in traces if trace.get("showlegend")), key=lambda trace: trace["legendrank"])
    for run, trace in zip(runs, named, strict=True):
        assert trace["x"] == [r.step for r in run.select("sharpness")]
        assert trace["y"] == pytest.approx([r.value for r in run.select("sharpness")], rel=1e-5)
    assert layout["meta"]["steps"] and len({trace["line"]["color"] for trace in named}) == 2


def test_a_noisy_curve_does_not_cover_a_smooth_one(runs: list[Run]) -> None:
    for order in (runs, runs[::-1]):
        traces, _ = overlaid(order, "loss")
        assert [trace["name"] for trace in traces] == ["mini", "full"]  # the last one is on top
        legend = sorted(traces, key=lambda trace: trace["legendrank"])
        assert [trace["name"] for trace in legend] == [run.name for run in order]


def test_names_of_folders_are_inert(tmp_path: Path, blank: None) -> None:
    made = [write(tmp_path / f"<b>{name}</b>", hovering(100)) for name in ("a", "b")]
    assert "<" not in data(made)
    names = sorted(trace.get("name", "") for trace in overlaid(made, "loss")[0])
    assert names == ["&lt;b&gt;a&lt;/b&gt;", "&lt;b&gt;b&lt;/b&gt;"]
    hostile = [run_of([Record(0, "model", "trace", value=1.0)], model={"optimizer": HOSTILE}), made[0]]
    shown = Page(page(hostile, interactive=False))
    assert HOSTILE in shown.words and "img" not in {tag for tag, _ in shown.elements}


def test_a_report_of_several(runs: list[Run], tmp_path: Path) -> None:
    out = report([runs[0].path or "", runs[1]], tmp_path / "ab.html", static=True)
    shown = Page(out)
    assert "full – mini – losscope" in shown.text["title"] and not shown.tags("script")
    assert len(shown.figures) == 2 * (3 + 2 + 2)
    with pytest.raises(SettingError, match="one run or more"):
        report([], tmp_path / "none.html")
    with pytest.raises(RunError, match="no such folder"):
        report([runs[0], tmp_path / "nothing"], tmp_path / "none.html")
    assert [each.name for each in tmp_path.glob("none*")] == []


def test_many_runs() -> None:
    rng = np.random.default_rng(0)
    many = [
        run_of([Record(t, "model", "log", values={"loss": float(rng.random())}) for t in range(10)]) for _ in range(30)
    ]
    traces, _ = overlaid(many, "loss")
    assert len({(trace["line"]["color"], trace["line"]["dash"]) for trace in traces}) == 28
    assert len({trace["name"] for trace in traces}) == 30
