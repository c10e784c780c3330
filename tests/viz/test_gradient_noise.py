"""The figure of the gradients' noise: what is drawn where, inconclusive points, the page."""

from typing import Any

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from losscope.landscape import RunError, SettingError
from losscope.probes import Record, Run
from losscope.viz import figure, plot_gradient_noise, report


def record(step: int, *, conclusive: bool = True, **more: Any) -> Record:
    values = {
        "conclusive": float(conclusive), "batch_size": 16.0, "covariance_trace": 4.0, "covariance_trace_low": 3.0,
        "covariance_trace_high": 5.0, "gradient_square": 0.1, "gradient_square_low": 0.05 if conclusive else -0.1,
        "gradient_square_high": 0.2, "curvature_weighted": 30.0, "curvature_weighted_low": 20.0,
        "curvature_weighted_high": 50.0, "curvature_conclusive": 1.0, "norm_05": 1.0, "norm_25": 2.0, "norm_50": 3.0,
        "norm_75": 4.0, "norm_95": 5.0, "draw_size": 1.0,
    }  # fmt: skip
    value, high = (40.0, 60.0) if conclusive else (None, None)
    return Record(step, "model", "gradient_noise", value=value, low=25.0, high=high, values=values | more)


def run_of(*records: Record) -> Run:
    return Run.from_records({"players": {"model": {}}}, list(records))


def drawn(ax: Axes, gid: str) -> np.ndarray:
    (found,) = [line for line in ax.get_lines() if line.get_gid() == gid]
    return np.column_stack(found.get_data())


def test_what_is_drawn_where() -> None:
    top, middle, bottom = plot_gradient_noise(run_of(*(record(step) for step in (0, 10, 20))))
    assert top.get_yscale() == middle.get_yscale() == "log"
    assert drawn(top, "simple").tolist() == [[0, 40], [10, 40], [20, 40]]
    assert drawn(top, "curvature-weighted")[:, 1].tolist() == [30] * 3
    assert drawn(top, "batch-size")[:, 1].tolist() == [16] * 3
    assert drawn(middle, "covariance_trace")[:, 1].tolist() == [4] * 3
    assert drawn(middle, "gradient_square")[:, 1].tolist() == [0.1] * 3
    assert drawn(bottom, "norm_50")[:, 1].tolist() == [3] * 3
    assert bottom.get_xlabel() == "optimizer step"


def test_inconclusive_points_are_hollow_and_apart() -> None:
    top, middle, _ = plot_gradient_noise(run_of(record(0), record(10, conclusive=False), record(20)))
    assert np.isnan(drawn(top, "simple")[1, 1])
    (hollow,) = [line for line in top.get_lines() if line.get_gid() == "simple-inconclusive"]
    assert hollow.get_markerfacecolor() == "none"
    assert np.column_stack(hollow.get_data()).tolist() == [[10, 25]]  # at the lower end of its interval
    assert middle.get_ylim()[0] > 0


def test_missing_numbers_leave_gaps() -> None:
    negative = {"gradient_square": -0.1, "gradient_square_low": -0.2, "gradient_square_high": -0.01}
    top, middle, _ = plot_gradient_noise(run_of(record(0), record(5, **negative), record(9)))
    assert np.isnan(drawn(middle, "gradient_square")[1, 1])
    without = {"curvature_weighted": None, "batch_size": None, "clip": 2.5}
    top, _, bottom = plot_gradient_noise(run_of(record(0, **without)))
    assert not [line for line in top.get_lines() if line.get_gid() in ("curvature-weighted", "batch-size")]
    assert drawn(bottom, "clip")[0, 1] == 2.5


def test_nothing_recorded_and_errors() -> None:
    axes = plot_gradient_noise(run_of())
    assert all(ax.texts[0].get_text() == "no gradient noise recorded" for ax in axes)
    failed = Record(3, "model", "gradient_noise", status="error", reason="LossError")
    top, *_ = plot_gradient_noise(run_of(record(0), failed))
    assert any("error recorded" in str(line.get_label()) for line in top.get_lines())
    with pytest.raises(RunError):
        plot_gradient_noise(run_of(record(0)), player="nobody")


def test_axes_that_are_given() -> None:
    run = run_of(record(0), record(1))
    one = Figure().subplots()
    assert plot_gradient_noise(run, one) is one
    three = Figure().subplots(3)
    assert len(plot_gradient_noise(run, three)) == 3
    with pytest.raises(SettingError, match="one Axes, or on three; got 2"):
        plot_gradient_noise(run, Figure().subplots(2))


def test_by_name_and_on_the_page(tmp_path: Any) -> None:
    run = run_of(record(0), record(1))
    assert len(figure(run, "gradient_noise", size=(3.9, 6.0)).axes) == 3
    page = report(run, tmp_path / "report.html").read_text()
    assert "gradient_noise-wide" in page
    bare = report(run_of(Record(0, "model", "sharpness", value=1.0)), tmp_path / "bare.html").read_text()
    assert "gradient_noise-wide" not in bare
