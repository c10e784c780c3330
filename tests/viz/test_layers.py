"""The heat map of the layers: rows, scale, and what is marked."""

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm, SymLogNorm
from matplotlib.figure import Figure

from artists import entries, inside, line, texts
from drawn_runs import run_of
from losscope.landscape import RunError
from losscope.probes import Record, Run
from losscope.viz import figure, plot_layers


def layered(traces: np.ndarray, half: float = 0.1, failed: tuple[int, ...] = ()) -> Run:
    """Traces (L, t) of layers called block.0 and so on, with intervals of this half-width."""
    records = []
    for t, column in enumerate(traces.T):
        if t in failed:
            records.append(Record(10 * t, "model", "layer_traces", status="error", reason="OutOfMemoryError"))
            continue
        ends = (("", 0.0), ("_low", -half), ("_high", half))
        values = {f"block.{i}/trace{end}": float(v) + off for i, v in enumerate(column) for end, off in ends}
        records.append(Record(10 * t, "model", "layer_traces", value=float(column.sum()), values=values))
    return run_of(records)


def cells(ax: Axes, gid: str = "layers") -> np.ma.MaskedArray:
    (mesh,) = [each for each in ax.collections if each.get_gid() == gid]
    return mesh.get_array()


def test_rows_are_the_layers_from_the_input_down() -> None:
    traces = np.array([[1.0, 2.0, 4.0], [10.0, 20.0, 40.0]])
    ax = plot_layers(layered(traces))
    np.testing.assert_allclose(cells(ax), traces)
    assert [label.get_text() for label in ax.get_yticklabels()] == ["block.0", "block.1"]
    assert ax.get_ylim() == (1.5, -0.5)  # the first at the top
    assert isinstance(ax.collections[-1].norm, LogNorm)
    assert "tr" in ax.get_figure().axes[1].get_ylabel() and "parameter" in ax.get_figure().axes[1].get_ylabel()


def test_both_signs_have_a_scale_about_zero() -> None:
    ax = plot_layers(layered(np.array([[5.0, 5.0], [-5.0, 1.0]])))
    norm = ax.collections[-1].norm
    assert isinstance(norm, SymLogNorm) and norm.vmin == -norm.vmax


def test_a_sign_by_chance_does_not_change_the_scale() -> None:
    traces = np.array([[5.0, 5.0], [-0.15, 1.0]])  # a half-width and a half below zero
    ax = plot_layers(layered(traces))
    assert isinstance(ax.collections[-1].norm, LogNorm)
    assert cells(ax, "below").mask.tolist() == [[True, True], [False, True]]
    assert entries(ax)[0] == "zero or below"


def test_cells_whose_interval_holds_zero_are_marked() -> None:
    ax = plot_layers(layered(np.array([[5.0, 0.05], [-0.05, 1.0]])))
    marks = line(ax, "uncertain")
    assert sorted(zip(marks.get_xdata(), marks.get_ydata(), strict=True)) == [(0, 1), (10, 0)]
    assert "the interval holds zero" in entries(ax)


def test_what_failed_is_a_gap_and_marked() -> None:
    ax = plot_layers(layered(np.ones((2, 5)), failed=(2,)))
    assert cells(ax).mask[:, 2].all() and not cells(ax).mask[:, 1].any()
    assert line(ax, "unmeasured").get_xdata().tolist() == [20]


def test_nothing_one_record_and_nothing_finite() -> None:
    assert texts(plot_layers(run_of([]))) == ["no layers recorded"]
    assert texts(plot_layers(layered(np.full((2, 2), np.nan)))) == ["no finite trace recorded"]
    for traces in (np.ones((1, 1)), np.zeros((2, 2)), np.array([[np.inf, 1.0], [np.nan, 2.0]])):
        plot_layers(layered(traces)).get_figure().draw_without_rendering()
    with pytest.raises(RunError, match="no player 'E'"):
        plot_layers(run_of([]), player="E")


def test_layers_that_come_later() -> None:
    one, two = layered(np.ones((1, 1))).records[0], layered(np.ones((2, 1))).records[0]
    run = run_of([one, Record(10, "model", "layer_traces", value=2.0, values=two.values)])
    assert cells(plot_layers(run)).mask.tolist() == [[False, False], [True, False]]


@pytest.mark.parametrize("size", [(6.4, 4.0), (3.4, 3.0)])
def test_many_layers_with_long_names_fit(size: tuple[float, float]) -> None:
    records = [
        Record(t, "model", "layer_traces", value=1.0, values={
            f"model.encoder.layers.{i}.attention.out_projection/trace": 1.0 + i * t for i in range(90)
        })
        for t in range(3)
    ]  # fmt: skip
    ax = plot_layers(run_of(records), size=size)
    inside(ax.get_figure())
    names = [label.get_text() for label in ax.get_yticklabels()]
    assert 5 < len(names) < 45 and len(set(names)) == len(names)


def test_on_axes_of_the_user_and_by_name() -> None:
    run = layered(np.ones((2, 3)))
    ax = Figure().subplots()
    assert plot_layers(run, ax) is ax
    assert isinstance(figure(run, "layers"), Figure)
