"""Several runs in one panel: what is drawn of each, and what the legend says of those that cannot be drawn."""

from pathlib import Path

import matplotlib
import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from artists import entries, inside, texts
from drawn_runs import diverging, dropping, hovering, measured, minibatch, run_of, write
from losscope.landscape import RunError, SettingError
from losscope.probes import Record, Run
from losscope.viz import plot_overlay


def curves(ax: Axes, gid: str = "overlay") -> list[Line2D]:
    return [each for each in ax.lines if each.get_gid() == gid]


def steady(level: float, lr: float = 0.1, steps: range = range(0, 100, 10), bounded: bool = False) -> Run:
    return run_of([r for t in steps for r in measured(t, level, lr, bounded=bounded, trace=3 * level)])


def test_every_run_has_its_values_its_band_and_its_threshold() -> None:
    runs = {"slow": steady(5.0, 0.1, bounded=True), "fast": steady(3.0, 0.4, bounded=True)}
    ax = plot_overlay(runs)
    assert [each.get_ydata().tolist() for each in curves(ax)] == [[5.0] * 10, [3.0] * 10]
    bands = [each for each in ax.collections if each.get_gid() == "overlay-interval"]
    assert [round(float(each.get_paths()[0].vertices[:, 1].max()), 6) for each in bands] == [5.4, 3.24]
    limits = curves(ax, "threshold")
    assert [set(each.get_ydata()) for each in limits] == [{20.0}, {5.0}]
    assert [each.get_color() for each in limits] == [each.get_color() for each in curves(ax)]
    assert entries(ax) == ["slow", "fast", "threshold 2/lr of each run"]
    assert "lambda" in ax.get_ylabel() and ax.get_xlabel() == "optimizer step"


def test_a_threshold_that_all_share_is_one_line_with_its_value() -> None:
    ax = plot_overlay([steady(5.0), steady(3.0)])
    (limit,) = curves(ax, "threshold")
    assert set(limit.get_ydata()) == {20.0}
    assert entries(ax) == ["run (1)", "run (2)", "threshold 2/lr = 20"]


def test_a_threshold_follows_its_schedule() -> None:
    ax = plot_overlay([run_of(dropping()), steady(3.0)])
    schedule, _ = curves(ax, "threshold")
    assert schedule.get_drawstyle() == "steps-post"
    assert sorted(set(np.round(schedule.get_ydata(), 6))) == [20.0, 200.0, 2000.0]


def test_a_run_without_the_quantity_is_said() -> None:
    ax = plot_overlay({"with": steady(5.0), "without": run_of([])}, "trace")
    assert entries(ax) == ["with", "without: no trace"]
    few = {str(i): run_of([]) for i in range(5)}
    assert entries(plot_overlay(few | {"with": steady(5.0)}, "trace"))[-1] == "5 more runs have no trace"


def test_what_is_not_finite_and_what_failed_is_counted_and_crossed() -> None:
    ax = plot_overlay({"a": steady(5.0), "b": run_of(diverging())})
    assert "b (17 not finite, 1 failed)" in entries(ax)
    crosses = curves(ax, "unmeasured")
    assert {each.get_color() for each in crosses} == {curves(ax)[1].get_color()}
    assert [len(each.get_xdata()) for each in crosses] == [17, 1]


def test_what_no_axis_holds_is_counted_too() -> None:
    run = run_of([Record(t, "model", "trace", value=value) for t, value in enumerate((1.0, 1e200, 2.0))])
    ax = plot_overlay([run, steady(5.0)], "trace")
    assert entries(ax)[0] == "run (1) (1 beyond any axis)"
    assert ax.get_ylim()[1] < 1e6
    ax.get_figure().draw_without_rendering()


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("sharpness", 4.0),
        ("trace", 12.0),
        ("stability.trace", 12.0),
        ("trace/threshold", 0.6),
        ("sharpness/threshold", 0.2),
        ("loss", 0.5),
        ("accuracy", 0.75),
        ("residual", 0.01),
        ("gradient_norm", 0.5),
        ("neural_collapse", 0.3),
        ("nc3", 0.1),
    ],
)
def test_any_recorded_number_by_name(name: str, expected: float) -> None:
    records = [*measured(0, 4.0, 0.1, trace=12.0), Record(0, "model", "log", values={"loss": 0.5, "accuracy": 0.75})]
    records.append(Record(0, "model", "neural_collapse", value=0.3, values={"nc3": 0.1}))
    (drawn,) = curves(plot_overlay(run_of(records), name))
    assert drawn.get_ydata().tolist() == [pytest.approx(expected)]


def test_a_ratio_has_its_threshold_at_one() -> None:
    """The main number of probe stability is over its threshold already."""
    ax = plot_overlay(steady(5.0), "stability")
    (limit,) = curves(ax, "threshold")
    assert set(limit.get_ydata()) == {1.0} and entries(ax)[-1] == "threshold"
    assert curves(ax)[0].get_ydata().tolist() == [0.25] * 10 and "threshold" in ax.get_ylabel()


def test_intervals_of_a_number_among_the_values() -> None:
    ax = plot_overlay([steady(5.0), steady(4.0)], "stability.trace")
    tops = [float(each.get_paths()[0].vertices[:, 1].max()) for each in ax.collections]
    assert tops == pytest.approx([15 * 1.08, 12 * 1.08])


def test_what_nobody_recorded_lists_what_there_is() -> None:
    assert texts(plot_overlay(steady(5.0), "nc1")) == [
        "no nc1 recorded\nthere is sharpness, sharpness/threshold, trace/threshold, ..."
    ]
    assert texts(plot_overlay([run_of([]), run_of([])])) == ["no sharpness recorded"]


def test_a_sharpness_of_something_else_is_said() -> None:
    """Probe stability alone measures P^-1 H where the optimizer has a preconditioner."""
    records = [r for t in range(3) for r in measured(t, 5.0, 0.1) if r.probe == "stability"]
    adam = run_of(records, model={"preconditioned": True})
    assert entries(plot_overlay({"Adam": adam, "SGD": steady(5.0)}))[:2] == ["Adam (of $P^{-1}H$)", "SGD"]


def test_players_are_lines_of_their_own() -> None:
    gan = run_of([*hovering(100, player="G"), *minibatch(100, player="D")], G={}, D={"batch_size": 32})
    assert entries(plot_overlay({"gan": gan, "net": steady(5.0)}))[:3] == ["gan: G", "gan: D", "net: model"]
    assert entries(plot_overlay({"gan": gan, "net": steady(5.0)}, player="G"))[::2] == ["gan", "net: no sharpness"]


def test_runs_of_the_same_folder_name_are_told_apart(tmp_path: Path) -> None:
    records = list(measured(0, 4.0, 0.1))
    runs = [write(tmp_path / parent / "run", records) for parent in ("a", "b")]
    assert entries(plot_overlay(runs))[:2] == ["a/run", "b/run"]
    names = entries(plot_overlay([runs[0], runs[0]]))[:2]
    assert names == ["run (1)", "run (2)"]
    assert entries(plot_overlay([*runs, runs[0]]))[:3] == ["a/run (1)", "b/run", "a/run (2)"]


def test_long_names_keep_what_differs() -> None:
    names = [f"a_very_long_name_of_an_experiment_with_lr_{lr}_and_then_more_of_the_same" for lr in (0.1, 0.2)]
    shown = entries(plot_overlay({name: steady(5.0) for name in names}))[:2]
    assert all(len(name) <= 32 for name in shown) and "0.1" in shown[0] and "0.2" in shown[1]


def test_twelve_runs_differ_in_colour_or_dash_and_in_marker() -> None:
    ax = plot_overlay([steady(1.0 + i) for i in range(12)])
    drawn = curves(ax)
    assert len({(each.get_color(), each.get_linestyle()) for each in drawn}) == 12
    assert len({each.get_marker() for each in drawn}) == 12
    assert len(entries(ax)) == 13


def test_more_runs_are_a_ramp_with_a_short_legend() -> None:
    ax = plot_overlay([steady(1.0 + i) for i in range(30)])
    lightness = [sum(int(to_hex(each.get_color())[k : k + 2], 16) for k in (1, 3, 5)) for each in curves(ax)]
    assert len(lightness) == 30 and lightness[0] < lightness[15] < lightness[-1]
    assert "30 runs in order, from dark to light" in entries(ax) and len(entries(ax)) == 7


def test_seeds_are_their_median_and_range() -> None:
    runs = [steady(level, 0.1) for level in (3.0, 4.0, 8.0)] + [steady(level, 0.4) for level in (1.0, 2.0)]
    for group in (["a"] * 3 + ["b"] * 2, lambda run: "a" if run.records[0].lr == 0.1 else "b"):
        ax = plot_overlay(runs, group=group)
        assert [set(each.get_ydata()) for each in curves(ax, "overlay-median")] == [{4.0}, {1.5}]
        ranges = [each.get_paths()[0].vertices[:, 1] for each in ax.collections if each.get_gid() == "range"]
        assert [(each.min(), each.max()) for each in ranges] == [(3.0, 8.0), (1.0, 2.0)]
        assert entries(ax)[:2] == ["a (3 runs)", "b (2 runs)"]


def test_a_seed_that_diverged_is_not_silently_left_out() -> None:
    short = steady(6.0, steps=range(0, 50, 10))
    ax = plot_overlay([steady(3.0), steady(5.0), short], group=["g"] * 3)
    (everyone,), (some,) = curves(ax, "overlay-median"), curves(ax, "overlay-some")
    assert everyone.get_ydata()[:5].tolist() == [5.0] * 5 and np.isnan(everyone.get_ydata()[5:]).all()
    assert some.get_ydata()[5:].tolist() == [4.0] * 5
    ax = plot_overlay([steady(3.0), run_of([])], group=["g"] * 2)
    assert entries(ax)[0] == "g (1 of 2 runs)" and entries(ax)[-1] == "run (2): no sharpness"


def test_bad_input() -> None:
    with pytest.raises(SettingError, match="none"):
        plot_overlay([])
    with pytest.raises(SettingError, match="got str"):
        plot_overlay(["runs/a"])  # type: ignore[list-item]
    with pytest.raises(SettingError, match="one label for each of 1 runs"):
        plot_overlay(steady(5.0), group=["a", "b"])
    with pytest.raises(RunError):
        Run("nowhere")


def test_on_axes_of_the_user_and_without_global_settings() -> None:
    before = dict(matplotlib.rcParams)
    ax = Figure().subplots()
    assert plot_overlay([steady(5.0), run_of(diverging())], ax=ax) is ax
    ax.get_figure().draw_without_rendering()
    assert dict(matplotlib.rcParams) == before


@pytest.mark.parametrize("size", [(6.4, 4.2), (3.4, 3.8)])
def test_nothing_is_clipped(size: tuple[float, float]) -> None:
    runs = {"hovering": run_of(hovering()), "drops": run_of(dropping()), "diverges": run_of(diverging())}
    inside(plot_overlay(runs, size=size).get_figure())


def test_hostile_names_are_taken_as_they_are() -> None:
    ax = plot_overlay({"$\\frac{1}{": steady(5.0), "<b>x</b> $x$": steady(4.0), "‮evil😀": steady(3.0)})
    ax.get_figure().draw_without_rendering()


def test_long_runs_are_thinned_out() -> None:
    records = [
        Record(t, "model", "sharpness", value=5 + t % 7, low=4.0, high=15.0, values={"threshold": 20.0})
        for t in range(30_000)
    ]
    ax = plot_overlay(run_of(records))
    (drawn,) = curves(ax)
    assert len(drawn.get_xdata()) < 2100 and set(drawn.get_ydata()) >= {5, 11}


def test_the_label_is_beside_the_axes_below_a_high_legend() -> None:
    ax = plot_overlay({f"run {i}": run_of(hovering(100)) for i in range(8)}, size=(3.4, 3.4))
    made = ax.get_figure(root=True)
    made.draw_without_rendering()
    assert ax.yaxis.label.get_window_extent().y1 < made.legends[0].get_window_extent().y0
    inside(made)
