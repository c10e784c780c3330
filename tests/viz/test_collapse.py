"""The figure of neural collapse: what is in its artists, and that it is on the page."""

from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

from artists import entries, line, texts
from drawn_runs import hovering, run_of
from losscope.landscape import SettingError, neural_collapse
from losscope.probes import Record, Run
from losscope.viz import figure, plot_collapse, report

STEPS = range(0, 100, 20)


def collapsing(*, layer: bool = False) -> list[Record]:
    found = []
    for step in STEPS:
        values: dict[str, float | None] = {
            "nc1": 0.9 / (1 + step), "nc1_quotient": 1 / (1 + step), "cdnv": 0.4 / (1 + step), "equinorm": 0.2,
            "equiangularity": 0.1, "nc3": 0.5 / (1 + step), "nc4": 0.01 * (4 - step // 20),
        }  # fmt: skip
        if layer:
            values["conv1/nc1"] = 2.0
        found.append(Record(step, "model", "neural_collapse", value=values["nc1"], unit="ratio", values=values))
    return found


def test_the_curves_are_the_records() -> None:
    top, middle, bottom = plot_collapse(run_of(collapsing(layer=True)))
    assert line(top, "nc1").get_xdata().tolist() == list(STEPS)
    assert line(top, "nc1").get_ydata() == pytest.approx([0.9 / (1 + step) for step in STEPS])
    assert line(top, "conv1/nc1").get_ydata().tolist() == [2.0] * 5
    assert "conv1" in texts(top)
    assert top.get_yscale() == middle.get_yscale() == "log"
    assert bottom.get_yscale() == "linear"
    assert line(bottom, "nc4").get_ydata() == pytest.approx([0.04, 0.03, 0.02, 0.01, 0.0])
    assert entries(top) == ["NC1", "quotient", "CDNV"]
    assert entries(middle) == ["NC2 lengths", "NC2 angles", "NC3"]
    assert bottom.get_xlabel() == "optimizer step"


def test_numbers_that_are_missing_are_gaps() -> None:
    records = collapsing()
    del records[2].values["nc1"]
    records.append(Record(100, "model", "neural_collapse", status="nonfinite", reason="the loss is nan"))
    top, *_ = plot_collapse(run_of(records))
    assert np.isnan(line(top, "nc1").get_ydata()[2])
    assert "collapse not finite (1)" in [each.get_label() for each in top.lines]


def test_from_layer_to_layer() -> None:
    x, y = torch.randn(40, 6, generator=torch.Generator().manual_seed(0)), torch.arange(40) % 4
    found = {"conv1": neural_collapse(x, y), "penultimate": neural_collapse(x, y, weight=torch.eye(4, 6))}
    top, middle, bottom = plot_collapse(found)
    assert [label.get_text() for label in bottom.get_xticklabels()] == ["conv1", "penultimate"]
    assert line(top, "nc1").get_ydata().tolist() == [each.nc1 for each in found.values()]
    assert np.isnan(line(middle, "nc3").get_ydata()[0])


def test_axes_of_ones_own() -> None:
    one = Figure().subplots()
    assert plot_collapse(run_of(collapsing()), one) is one
    three = Figure().subplots(3, 1)
    assert len(plot_collapse(run_of(collapsing()), three)) == 3
    with pytest.raises(SettingError, match="one Axes, or on three; got 2"):
        plot_collapse(run_of(collapsing()), Figure().subplots(2, 1))


def test_a_run_without_it_says_so() -> None:
    for ax in plot_collapse(Run.from_records({"players": {"model": {}}}, [])):
        assert texts(ax) == ["not measured"]


@pytest.mark.parametrize("size", [(8.6, 6.0), (3.9, 6.0)])
def test_it_is_drawn_and_on_the_page_of_runs_that_have_it(size: tuple[float, float], tmp_path: Path) -> None:
    run = run_of([*hovering(100), *collapsing(layer=True)])
    figure(run, "collapse", size=size).savefig(tmp_path / "collapse.png")
    assert "Neural collapse:" in report(run, tmp_path / "with.html").read_text()
    assert "Neural collapse:" not in report(run_of(hovering(100)), tmp_path / "without.html").read_text()


def test_what_failed_is_named_also_where_nothing_else_is_drawn() -> None:
    lost = [Record(t, "model", "neural_collapse", status="error", reason="no classes") for t in (101, 102, 103)]
    for records in (lost, [*lost, *collapsing()]):
        assert "collapse: error recorded (3)" in entries(plot_collapse(run_of(records))[0])
