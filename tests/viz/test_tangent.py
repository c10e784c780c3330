"""The figure of the tangent kernel: what is in its artists."""

import math

import pytest
from matplotlib.figure import Figure

from artists import entries, inside, line, texts
from drawn_runs import meta
from losscope.landscape import SettingError
from losscope.probes import Record, Run
from losscope.viz import plot_tangent_kernel, report


def moving(count: int = 8) -> Run:
    records = []
    for i in range(count):
        done = 1 - math.exp(-i / 2)
        values = {"centred": 0.3 * done, "alignment": 0.5 + 0.2 * done, "velocity": 1e-3 * math.exp(-i) if i else None}
        records.append(Record(50 * i, "model", "tangent_kernel", value=0.1 * done, values=values))
    return Run.from_records(meta(model={}), records)


def test_lines_are_the_records() -> None:
    run = moving()
    top, bottom = plot_tangent_kernel(run)
    records = run.select("tangent_kernel")
    assert line(top, "distance").get_ydata().tolist() == [r.value for r in records]
    for name in ("centred", "alignment"):
        assert line(top, name).get_ydata().tolist() == [r.values[name] for r in records]
    assert entries(top)[1:] == ["the same, centred", "alignment with the labels, cosine"]
    assert line(bottom, "velocity").get_xdata().tolist() == [25 + 50 * i for i in range(7)]
    assert line(bottom, "velocity").get_ydata().tolist() == [r.values["velocity"] for r in records[1:]]
    assert bottom.get_yscale() == "log" and bottom.get_xlabel() == "optimizer step"


def test_nothing_little_and_broken() -> None:
    top, bottom = plot_tangent_kernel(Run.from_records(meta(model={}), []))
    assert texts(top) == ["no tangent kernel recorded"]
    top, bottom = plot_tangent_kernel(moving(1))
    assert texts(bottom) == ["no velocity: fewer than two kernels"]
    failed = Record(70, "model", "tangent_kernel", status="error", reason="on purpose")
    run = Run.from_records(meta(model={}), [*moving().records, failed])
    assert "kernel: error recorded (1)" in entries(plot_tangent_kernel(run)[0])


def test_on_axes_of_the_user() -> None:
    one, two, three = Figure().subplots(3, 1)
    assert plot_tangent_kernel(moving(), one) is one
    assert [*plot_tangent_kernel(moving(), (one, two))] == [one, two]
    with pytest.raises(SettingError, match="two"):
        plot_tangent_kernel(moving(), (one, two, three))


@pytest.mark.parametrize("size", [(6.4, 4.8), (3.3, 5.0)])
def test_nothing_is_clipped(size: tuple[float, float]) -> None:
    inside(plot_tangent_kernel(moving(), size=size)[0].get_figure())


def test_it_is_on_the_page_where_a_run_has_it(tmp_path) -> None:
    assert "tangent kernel on fixed samples" in report(moving(), tmp_path / "one.html").read_text()
    without = Run.from_records(meta(model={}), [])
    assert "tangent kernel on fixed samples" not in report(without, tmp_path / "other.html").read_text()
