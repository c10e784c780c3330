"""The sharpness figure: what is in its artists."""

from collections.abc import Callable

import numpy as np
import pytest
from matplotlib.figure import Figure

from artists import entries, inside, line, texts
from drawn_runs import diverging, dropping, hovering, measured, minibatch, run_of
from losscope.landscape import RunError, SettingError
from losscope.probes import Record, Run
from losscope.viz import plot_sharpness


def test_values_bounds_and_threshold_are_those_of_the_records() -> None:
    run = run_of(hovering())
    records = run.select("sharpness")
    top, bottom = plot_sharpness(run)
    assert line(top, "sharpness").get_xdata().tolist() == [r.step for r in records]
    assert line(top, "sharpness").get_ydata().tolist() == [r.value for r in records]
    assert set(line(top, "threshold").get_ydata()) == {20.0}
    assert texts(top) == ["2/lr = 20"]
    segments = [s for c in top.containers for s in c[2][0].get_segments()]
    expected = [[(r.step, r.low), (r.step, r.high)] for r in records if r.high is not None]
    np.testing.assert_allclose(sorted(s.tolist() for s in segments), expected)
    assert "bounded from below only" in entries(top)
    assert set(line(top, "from-below").get_xdata()) <= {r.step for r in records if r.high is None}
    assert bottom.get_xlabel() == "optimizer step" and "lambda" in top.get_ylabel()
    assert bottom.get_ylabel() == "training loss"


def test_a_stretch_of_bounded_points_gets_a_band() -> None:
    run = run_of([r for t in range(6) for r in measured(t, 10.0 + t, 0.1, bounded=True)])
    top, _ = plot_sharpness(run)
    (band,) = top.collections
    corners = band.get_paths()[0].vertices
    assert corners[:, 1].max() == pytest.approx(15 * 1.08)
    assert corners[:, 1].min() == pytest.approx(10, rel=1e-5)
    assert "bounded from below only" not in entries(top)


def test_threshold_follows_the_schedule_and_is_labelled_on_each_plateau() -> None:
    run = run_of(dropping())
    top, _ = plot_sharpness(run)
    drawn = line(top, "threshold")
    assert drawn.get_drawstyle() == "steps-post"
    assert sorted(set(np.round(drawn.get_ydata(), 6))) == [20.0, 200.0, 2000.0]
    assert texts(top) == ["2/lr = 20", "2/lr = 200", "2/lr = 2,000"]
    assert top.get_yscale() == "log"


def test_labels_that_are_longer_than_their_plateaus_are_at_both_ends() -> None:
    records = [r for t in range(9) for r in measured(10 * t, 5.0, (0.1, 0.05, 0.02)[t // 3])]
    formula = {"threshold_formula": "(2+2b)/(lr(1+2b))"}
    assert texts(plot_sharpness(run_of(records, model=formula), size=(12.0, 4.8))[0]) == [
        f"(2+2b)/(lr(1+2b)) = {level}" for level in (20, 40, 100)
    ]
    narrow = texts(plot_sharpness(run_of(records, model=formula))[0])
    assert narrow == ["(2+2b)/(lr(1+2b)), first 20", "(2+2b)/(lr(1+2b)), last 100"]


def test_a_smooth_schedule_is_labelled_at_both_ends() -> None:
    run = run_of([r for t in range(50) for r in measured(t, 5.0, 0.1 / (1 + t))], model={"threshold_formula": "2/lr"})
    top, _ = plot_sharpness(run)
    assert texts(top) == ["2/lr, first 20", "2/lr, last 1,000"]


def test_thresholds_of_groups_that_differ() -> None:
    run = run_of([r for t in range(5) for r in measured(t, 5.0, 0.1, largest=40.0)])
    top, _ = plot_sharpness(run)
    assert "thresholds of the parameter groups" in entries(top)


def test_no_threshold_says_why() -> None:
    records = [Record(t, "model", "sharpness", value=3.0, low=3.0) for t in range(4)]
    run = run_of(
        records, model={"threshold_formula": "", "threshold_reason": "no stability rule for LBFGS; see the audit"}
    )
    top, _ = plot_sharpness(run, size=(3.4, 3.6))
    assert entries(top)[-1] == "no threshold: no stability rule for\nLBFGS; see the audit"
    assert not texts(top)  # nothing lies on the curve


def test_what_was_not_finite_and_what_failed_is_marked() -> None:
    top, bottom = plot_sharpness(run_of(diverging()))
    marks = {each.get_label(): each for each in top.lines if each.get_gid() == "unmeasured"}
    assert set(marks) == {"sharpness not finite (17)", "sharpness: error recorded (1)"}
    assert marks["sharpness: error recorded (1)"].get_xdata().tolist() == [100]
    assert len({each.get_marker() for each in marks.values()}) == 2
    assert set(marks) <= set(entries(top))
    assert texts(bottom) == ["not finite from step 330"]
    assert bottom.get_yscale() == "log"


def test_the_log_is_thinned_out() -> None:
    records = [Record(t, "model", "log", values={"loss": 1.0 + t % 7}) for t in range(30_000)]
    _, bottom = plot_sharpness(run_of(records))
    assert len(line(bottom, "loss").get_xdata()) <= 2002
    assert set(line(bottom, "loss").get_ydata()[1:-1]) == {1.0, 7.0}


@pytest.mark.parametrize("count", [0, 1, 2])
def test_few_records(count: int) -> None:
    run = run_of([r for t in range(count) for r in measured(10 * t, 5.0, 0.1)])
    top, bottom = plot_sharpness(run)
    top.get_figure().draw_without_rendering()
    assert texts(top) == (["no sharpness recorded"] if count == 0 else ["2/lr = 20"])
    assert (texts(bottom) == ["no loss recorded"]) == (count == 0)


def test_nothing_finite() -> None:
    top, _ = plot_sharpness(run_of([Record(0, "model", "sharpness", value=float("nan"), status="ok")]))
    assert texts(top) == ["no finite sharpness recorded"]


def test_on_axes_of_the_user() -> None:
    run = run_of(minibatch(200))
    figure = Figure()
    one, two, three = figure.subplots(3, 1)
    assert plot_sharpness(run, one) is one
    assert one.get_xlabel() == "optimizer step" and two.lines[:] == []
    drawn = plot_sharpness(run, (two, three))
    assert [*drawn] == [two, three]
    assert [each.get_gid() for each in three.lines] == ["loss"]
    with pytest.raises(SettingError, match="two"):
        plot_sharpness(run, (one, two, three))


def test_several_players() -> None:
    run = run_of([*hovering(100, player="G"), *minibatch(100, player="D")], G={}, D={"batch_size": 32})
    assert plot_sharpness(run, player="D")[0].get_figure().get_suptitle() == "run: D"
    assert plot_sharpness(run)[0].get_figure().get_suptitle() == "run: G"
    with pytest.raises(RunError, match="no player 'E'"):
        plot_sharpness(run, player="E")


def test_a_run_whose_description_says_little() -> None:
    records = list(measured(0, 5.0, 0.1))
    assert texts(plot_sharpness(Run.from_records({"players": {}}, records))[0]) == ["2/lr = 20"]


@pytest.mark.parametrize("size", [(6.4, 4.8), (3.9, 4.8)])
@pytest.mark.parametrize("records", [hovering, minibatch, dropping, diverging])
def test_nothing_is_clipped(records: Callable[[], list[Record]], size: tuple[float, float]) -> None:
    inside(plot_sharpness(run_of(records()), size=size)[0].get_figure())


@pytest.mark.parametrize("height", [2.8, 3.0, 4.0])
def test_labels_of_panels_do_not_lie_on_one_another_in_one_column(height: float) -> None:
    top, bottom = plot_sharpness(run_of(hovering()), size=(3.3, height))
    for _ in range(2):  # drawn again they stay as they are
        top.figure.draw_without_rendering()
        above, below = (ax.yaxis.label.get_window_extent() for ax in (top, bottom))
        assert below.y1 <= above.y0 + 1 and below.y0 >= 0 and above.y1 <= top.figure.bbox.y1


def test_without_a_rule_the_reason_is_short() -> None:
    listed = "no stability rule for LBFGS: there is one for SGD, Adam, AdamW, NAdam, RMSprop, Adagrad and SAM"
    run = run_of([Record(0, "model", "sharpness", value=1.0)], model={"threshold_reason": listed})
    assert "no threshold: no stability rule for LBFGS" in entries(plot_sharpness(run)[0])
    run = run_of(
        [Record(0, "model", "sharpness", value=1.0)], model={"threshold_reason": "that of Adam is one of P^-1 H"}
    )
    assert "no threshold: that of Adam is one of $P^{-1}H$" in entries(plot_sharpness(run)[0])
