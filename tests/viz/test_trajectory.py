"""The figure of a trajectory: what is in its artists, of runs and of paths, whole and sketched."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure

from artists import entries, inside, line, texts
from drawn_runs import meta, write
from losscope.landscape import SettingError
from losscope.landscape.surface import WeightSketch, WeightTrajectory, weight_trajectory
from losscope.probes import Record, Run, Trajectory, trajectory_of, watch
from losscope.viz import plot_trajectory, report


def walk(count: int = 20, n: int = 300) -> torch.Tensor:
    steps = torch.randn(count, n, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return (steps + 0.1).cumsum(dim=0)


def path(count: int = 20, dimension: int | None = None) -> WeightTrajectory:
    points, steps = walk(count), range(0, 50 * count, 50)
    if dimension is None:
        return weight_trajectory(points, steps=steps)
    sketch = WeightSketch(300, dimension)
    return weight_trajectory(torch.stack([sketch(p) for p in points]), sketch=sketch, steps=steps)


def recorded(steps: int = 12, **options: object) -> Run:
    torch.manual_seed(0)
    model = torch.nn.Linear(20, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    data, criterion = (torch.randn(30, 20), torch.randn(30, 1)), torch.nn.MSELoss()
    with watch(model, optimizer, data=data, criterion=criterion, every=1, probes=[Trajectory(**options)]) as run:
        for _ in range(steps):
            optimizer.zero_grad()
            criterion(model(data[0]), data[1]).backward()
            optimizer.step()
    return run.run


def drawn(ax) -> LineCollection:
    (found,) = [each for each in ax.collections if each.get_gid() == "path"]
    return found


def bands(ax) -> list[str]:
    return [each.get_gid() for each in ax.collections if (each.get_gid() or "").endswith("-band")]


def test_the_map_is_the_path():
    found = path()
    where, lengths, turns = plot_trajectory(found)
    at = found.coordinates.numpy()
    pieces = drawn(where)
    np.testing.assert_allclose(np.array(pieces.get_segments()), np.stack((at[:-1], at[1:]), axis=1))
    assert pieces.get_array().tolist() == [50 * i + 25 for i in range(19)]
    for gid, t in (("start", 0), ("end", 19)):
        assert (line(where, gid).get_xdata()[0], line(where, gid).get_ydata()[0]) == tuple(at[t])
    assert entries(where) == ["start, step 0", "end, step 950"]
    assert where.get_xlabel() == f"component 1 ({100 * float(found.explained[0]):.1f} %)"
    assert where.get_aspect() == 1.0  # to scale
    assert line(lengths, "distance").get_ydata().tolist() == found.distances.tolist()
    assert line(lengths, "length").get_ydata().tolist() == found.lengths.tolist()
    assert line(turns, "turns").get_xdata().tolist() == list(range(50, 950, 50))
    assert line(turns, "turns").get_ydata().tolist() == found.cosines.tolist()
    assert bands(lengths) == bands(turns) == []
    assert turns.get_xlabel() == "optimizer step"


def test_what_is_sketched_has_bars_and_bands():
    found = path(dimension=60)
    where, lengths, turns = plot_trajectory(found)
    assert "±" in where.get_xlabel() and "±" in where.get_ylabel()
    bars = [each for each in where.collections if isinstance(each, LineCollection) and each.get_gid() != "path"]
    assert len(bars) == 2  # across and up
    first = np.array(bars[0].get_segments()[0])
    assert np.ptp(first[:, 0]) == pytest.approx(2 * 1.96 * float(found.coordinate_errors[0, 0]))
    assert bands(lengths) == ["distance-band", "length-band"] and bands(turns) == ["turns-band"]


@pytest.mark.parametrize("options", [{}, {"dimension": 8, "copies": False}])
def test_a_run(options):
    run = recorded(**options)
    found = trajectory_of(run)
    where, lengths, turns = plot_trajectory(run)
    np.testing.assert_allclose(np.array(drawn(where).get_segments())[:, 0], found.coordinates[:-1])
    records = run.select("trajectory")
    assert line(lengths, "distance").get_ydata().tolist() == [r.value for r in records]
    assert line(lengths, "length").get_ydata().tolist() == [r.values["path_length"] for r in records]
    assert line(turns, "turns").get_xdata().tolist() == list(range(1, 11))
    assert line(turns, "turns").get_ydata().tolist() == [r.values["cosine"] for r in records[2:]]
    assert bool(bands(lengths)) == bool(options)


def test_nothing_little_and_broken(tmp_path: Path):
    where, lengths, _ = plot_trajectory(Run.from_records(meta(model={}), []))
    assert texts(where) == texts(lengths) == ["no trajectory recorded"]
    *_, turns = plot_trajectory(path(1))
    assert texts(turns) == ["no turns: fewer than\nthree points that differ"]
    where, *_ = plot_trajectory(weight_trajectory(torch.ones(5, 3)))
    assert where.get_xlabel() == "component 1" and len(drawn(where).get_segments()) == 4
    where, *_ = plot_trajectory(weight_trajectory(walk(), components=1))
    assert where.get_ylabel() == "component 2"
    run = recorded()
    failed = Record(70, "model", "trajectory", status="error", reason="on purpose")
    _, lengths, _ = plot_trajectory(Run.from_records(run.meta, [*run.records, failed], run._arrays))
    assert "weights: error recorded (1)" in entries(lengths)
    kept = write(tmp_path / "run", [dataclasses.replace(r) for r in run.records])  # without the arrays' files
    where, lengths, _ = plot_trajectory(kept)
    assert texts(where) == ["the arrays of the trajectory are gone"]
    assert line(lengths, "distance").get_ydata()[-1] == run.records[-1].value


def test_on_axes_of_the_user():
    one, two, three = Figure().subplots(3, 1)
    assert plot_trajectory(path(), one) is one
    assert [*plot_trajectory(path(), (one, two, three))] == [one, two, three]
    with pytest.raises(SettingError, match="three"):
        plot_trajectory(path(), (one, two))
    with pytest.raises(SettingError, match="WeightTrajectory, got list"):
        plot_trajectory([1, 2])


@pytest.mark.parametrize("size", [(6.4, 6.6), (3.3, 5.6)])
@pytest.mark.parametrize("dimension", [None, 40])
def test_nothing_is_clipped(size, dimension, caplog):
    inside(plot_trajectory(path(dimension=dimension), size=size)[0].get_figure())
    assert caplog.messages == []  # no complaint that limits and scale contradict each other


def test_it_is_on_the_page_where_a_run_has_it(tmp_path: Path):
    assert "Where the weights went" in report(recorded(), tmp_path / "one.html").read_text()
    without = Run.from_records(meta(model={}), [])
    assert "Where the weights went" not in report(without, tmp_path / "other.html").read_text()
