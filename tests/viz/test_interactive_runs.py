"""Plotly figures of runs: what is in their traces and under the pointer, and that names of a run stay words."""

import json

import numpy as np
import pytest

from drawn_runs import diverging, dropping, hovering, measured, minibatch, run_of
from drawn_spectra import evolving
from losscope.landscape import RunError
from losscope.probes import Record, Run
from losscope.viz import interactive_density, interactive_layers, interactive_sharpness, interactive_stability
from losscope.viz.inert import inert
from losscope.viz.page_figures import drawn

pytest.importorskip("plotly")

EVERY = (interactive_density, interactive_layers, interactive_sharpness, interactive_stability)
HOSTILE = '<a href="javascript:alert(1)"><b>$x$</b></a> %{x} &lt;script&gt;'


def strict(figure: object) -> str:
    text = figure.to_json()
    json.loads(text, parse_constant=lambda name: pytest.fail(f"bare {name}"))
    return text


def layered(traces: np.ndarray, name: str = "block") -> Run:
    ends = (("", 0.0), ("_low", -0.1), ("_high", 0.1))
    return run_of(
        Record(10 * t, "model", "layer_traces", value=1.0, values={
            f"{name}.{i}/trace{end}": float(v) + off for i, v in enumerate(column) for end, off in ends
        })
        for t, column in enumerate(traces.T)
    )  # fmt: skip


# --------------------------------------------------------------------------- stability, sharpness


def test_a_point_of_the_stability_says_all_there_is() -> None:
    run = run_of(minibatch(600), model={"batch_size": 32})
    figure = interactive_stability(run)
    audited = {line.name: line for line in run.audit().criteria}
    curve = next(trace for trace in figure.data if "lambda_max" in trace.name)
    record = run.select("stability")[3]
    assert curve.x[3] == record.step and curve.y[3] == pytest.approx(record.values["sharpness"] / 20)
    value, threshold, alone, verdict, reason = curve.text[3].split("<br>")
    assert value.startswith(f"<b>lambda_max(H) = {record.values['sharpness']:.4g}</b>")
    assert threshold.startswith("threshold 2/lr = 20, ratio 0.")
    assert alone.startswith("this measurement alone: ") and verdict == "the run: not excluded"
    assert reason.split()[0] in audited["sharpness"].reason
    strict(figure)


def test_what_does_not_apply_waits_in_the_legend() -> None:
    figure = interactive_stability(run_of(hovering(600)))
    shown = {trace.name: trace.visible for trace in figure.data}
    assert shown == {"lambda_max(H): at the edge": True, "tr(H): does not apply": "legendonly"}
    modes = [button.args[0]["hovermode"] for button in figure.layout.updatemenus[0].buttons]
    assert modes == ["closest", "x unified"]


def test_rates_without_a_stable_step_are_marked() -> None:
    wrong = [Record(t, "model", "stability", lr=-0.1, values={"sharpness": 3.0}) for t in (600, 625)]
    run = run_of([*hovering(600), *wrong])
    (mark,) = [trace for trace in interactive_stability(run).data if trace.name == "no stable step: lr -0.1 (2)"]
    assert list(mark.x) == [600, 625]
    traces, _ = drawn(run, "stability", "model") or ([], {})
    assert [t["x"] for t in traces if t["name"] == "no stable step: lr -0.1 (2)"] == [[600, 625]]


def test_a_huge_first_ratio_does_not_flatten_the_others() -> None:
    """Plotly has no scale about zero: what is not above it is marked at the bottom of a logarithmic one."""
    ratios = [2000.0, -0.02, 0.01, 0.012, 0.013]
    run = run_of(
        Record(10 * i, "model", "stability", lr=0.1, value=r, low=r - 1, high=r + 1,
               values={"sharpness": 20 * r, "threshold": 20.0, "two_over_lr": 20.0})
        for i, r in enumerate(ratios)
    )  # fmt: skip
    figure = interactive_stability(run)
    assert figure.layout.yaxis.type == "log"
    (mark,) = [trace for trace in figure.data if trace.name == "not above zero (1)"]
    assert list(mark.x) == [10] and "ratio -0.02" in mark.text[0] and 0 < mark.y[0] < 0.01
    traces, arranged = drawn(run, "stability", "model") or ([], {})
    assert arranged["yaxis"]["type"] == "log"
    assert [t["x"] for t in traces if t["name"] == "not above zero"] == [[10]]
    assert all(y is None or y > 0 for trace in traces for y in trace["y"])
    calm = run_of(Record(i, "model", "stability", value=r, values={"sharpness": 20 * r, "threshold": 20.0})
                  for i, r in enumerate([2.0, -0.02, 0.5]))  # fmt: skip
    assert interactive_stability(calm).layout.yaxis.type == "linear"


def test_bars_are_the_intervals() -> None:
    run = run_of([r for t in range(5) for r in measured(10 * t, 10.0, 0.1, bounded=t == 2)])
    for figure, unit in ((interactive_stability(run), 20.0), (interactive_sharpness(run), 1.0)):
        bars = figure.data[0].error_y
        assert bars.array[2] == pytest.approx(0.8 / unit) and bars.array[1] is None


def test_sharpness_with_its_threshold_and_the_loss() -> None:
    run = run_of(dropping())
    values, threshold, loss = interactive_sharpness(run).data
    assert list(values.y) == [r.value for r in run.select("sharpness")]
    assert sorted({round(y, 6) for y in threshold.y}) == [20.0, 200.0, 2000.0] and threshold.line.shape == "hv"
    assert "bounded from below only" in values.text[1] and "threshold 2/lr = 20, ratio" in values.text[1]
    assert loss.yaxis == "y2"


# --------------------------------------------------------------------------- layers, density


def test_layers_under_the_pointer() -> None:
    figure = interactive_layers(layered(np.array([[1.0, 10.0], [100.0, 0.05]])))
    heat, marks = figure.data
    np.testing.assert_allclose(np.array(heat.z, dtype=float), [[0, 1], [2, 0]], atol=1e-12)
    assert heat.text[0][1] == "block.0<br>tr(H) = 10 (9.9 to 10.1)"
    assert heat.text[1][1].endswith("the interval holds zero") and (marks.x, marks.y) == ((10,), (1,))
    assert figure.layout.yaxis.range == (1.5, -0.5) and figure.layout.yaxis.ticktext == ("block.0", "block.1")


def test_layers_of_both_signs() -> None:
    figure = interactive_layers(layered(np.array([[1.0, -10.0], [100.0, 10.0]])))
    heat = figure.data[0]
    assert heat.zmin == -heat.zmax and heat.z[0][1] == pytest.approx(-heat.z[1][1])
    assert heat.colorbar.ticktext[len(heat.colorbar.ticktext) // 2] == "0"


@pytest.mark.parametrize("traces", [[[1.2, 1.4]], [[0.03, 0.06]], [[1e-12, 3e12]], [[2e-12, 3e-12]], [[5.0, -200.0]]])
def test_the_bar_of_the_layers_has_ticks_that_can_be_read(traces: list[list[float]]) -> None:
    bar = interactive_layers(layered(np.array(traces))).data[0].colorbar
    assert 2 <= len(bar.tickvals) <= 9 and len(set(bar.ticktext)) == len(bar.ticktext) == len(bar.tickvals)


def test_the_slider_has_every_step() -> None:
    run = evolving(6)
    figure = interactive_density(run)
    steps = [r.step for r in run.select("spectrum")]
    assert [frame.name for frame in figure.frames] == [str(step) for step in steps]
    assert [step.args[0][0] for step in figure.layout.sliders[0].steps] == [str(step) for step in steps]
    first, density, known, _ = figure.data
    np.testing.assert_allclose(first.y, figure.frames[0].data[0].y)
    np.testing.assert_allclose(density.y, figure.frames[-1].data[0].y)
    assert len(known.x) == len(run.spectrum(steps[-1]).deflated)
    strict(figure)


# --------------------------------------------------------------------------- whatever comes


@pytest.mark.parametrize("draw", EVERY)
def test_runs_with_little_in_them(draw: object) -> None:
    for records in ([], list(measured(0, 5.0, 0.1)), diverging()):
        strict(draw(run_of(records)))
    assert draw(run_of([])).layout.annotations[0].text.startswith("no ")
    with pytest.raises(RunError, match="no player 'E'"):
        draw(run_of([]), player="E")


def test_names_of_the_run_are_words() -> None:
    records = [*minibatch(200, player=HOSTILE)]
    layers = {f"{HOSTILE}/trace{end}": 2.0 for end in ("", "_low", "_high")}
    records += [Record(t, HOSTILE, "layer_traces", value=1.0, values=layers) for t in (0, 50)]
    run = run_of(records, **{HOSTILE: {"threshold_formula": HOSTILE}, "other": {}})
    for draw in (interactive_layers, interactive_sharpness, interactive_stability):
        text = strict(draw(run, player=HOSTILE)).replace("\\u003c", "<")
        assert "javascript" in text, draw
        for bad in ("<a", "<script", "&lt;script", "$x$", "%{x} &"):
            assert bad not in text.replace("&amp;lt;script", ""), (draw, bad)


def test_inert_keeps_words_and_cuts() -> None:
    assert inert("a < b & c") == "a &lt; b &amp; c"
    assert inert("x" * 100, 10) == "x" * 9 + "…"
    assert inert("\u202egnp\x1b[2J") == "·gnp·[2J"


def test_long_runs_are_thinned_out() -> None:
    values = {"threshold": 20.0, "sharpness": 5.0, "threshold_largest": 20.0}
    run = run_of([Record(t, "model", "stability", value=0.25, values=values) for t in range(30_000)])
    assert 500 < len(interactive_stability(run).data[0].x) <= 2100
    assert len(interactive_sharpness(run).data[0].x) <= 2100
