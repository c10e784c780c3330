"""Small multiples: which panels there are, what they share, and what is in each."""

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from artists import inside
from drawn_runs import diverging, hovering, measured, minibatch, run_of
from losscope.landscape import SettingError
from losscope.probes import Record, Run
from losscope.viz import plot_multiples


def steady(level: float, lr: float = 0.1) -> Run:
    records = [r for t in range(0, 100, 10) for r in measured(t, level, lr, trace=3 * level)]
    for t in range(0, 100, 10):
        layers = {f"{i}/trace{end}": level + i for i in range(2) for end in ("", "_low", "_high")}
        records.append(Record(t, "model", "layer_traces", value=2 * level, values=layers))
    return run_of(records)


def titles(axes: np.ndarray) -> list[str]:
    return [ax.get_title(loc="left") for ax in axes]


def levels(ax: Axes, gid: str = "overlay") -> list[float]:
    found = [line for line in ax.lines if isinstance(line, Line2D) and line.get_gid() == gid]
    return [float(line.get_ydata()[0]) for line in found]


def legend(axes: np.ndarray) -> list[str]:
    return [text.get_text() for made in axes[0].figure.legends for text in made.get_texts()]


def test_a_panel_for_each_run_with_the_others_behind() -> None:
    axes = plot_multiples({"a": steady(1.0), "b": steady(2.0), "c": steady(3.0)})
    assert titles(axes) == ["a", "b", "c"]
    assert [levels(ax) for ax in axes] == [[1.0], [2.0], [3.0]]
    assert levels(axes[0], "behind") == [2.0, 3.0]
    assert len({ax.get_ylim() for ax in axes}) == len({ax.get_xlim() for ax in axes}) == 1
    assert legend(axes) == ["the other runs", "threshold"]
    assert [bool(ax.get_ylabel()) for ax in axes] == [True, False, False]


def test_a_panel_for_each_quantity_with_axes_of_its_own() -> None:
    axes = plot_multiples([steady(1.0), steady(2.0)], ["sharpness", "trace", "loss"], by="quantity")
    assert titles(axes) == ["sharpness", "trace", "loss"]
    assert [levels(ax) for ax in axes] == [[1.0, 2.0], [3.0, 6.0], [0.1, 0.1]]
    assert axes[0].get_ylim() != axes[1].get_ylim() and axes[0].get_xlim() == axes[1].get_xlim()
    assert legend(axes) == ["run (1)", "run (2)", "threshold"]
    axes = plot_multiples({"a": steady(1.0), "b": run_of([])}, ["sharpness", "trace"], by="quantity")
    assert {"b: no sharpness", "b: no trace"} <= set(legend(axes))


def test_a_panel_for_each_player() -> None:
    gan = run_of([*hovering(100, player="G"), *minibatch(100, player="D")], G={}, D={"batch_size": 32})
    axes = plot_multiples([gan, gan], by="player")
    assert titles(axes) == ["G", "D"] and [len(levels(ax)) for ax in axes] == [2, 2]
    assert titles(plot_multiples(gan, by="player", player="D")) == ["D"]


def test_a_panel_for_each_layer() -> None:
    axes = plot_multiples([steady(1.0), steady(2.0)], by="layer")
    assert titles(axes) == ["0", "1"] and [levels(ax) for ax in axes] == [[1.0, 2.0], [2.0, 3.0]]
    assert "ell" in axes[0].get_ylabel()
    (nothing,) = plot_multiples(run_of([]), by="layer")
    assert [text.get_text() for text in nothing.texts] == ["not recorded"]


@pytest.mark.parametrize("count", [1, 4, 7])
def test_nothing_is_clipped(count: int) -> None:
    runs = [steady(1.0 + i) for i in range(count - 1)] + [run_of(diverging())]
    axes = plot_multiples(runs)
    assert len(axes) == count
    inside(axes[0].figure)


def test_bad_input() -> None:
    run = steady(1.0)
    with pytest.raises(SettingError, match="by must be one of"):
        plot_multiples(run, by="seed")
    with pytest.raises(SettingError, match='by="quantity"'):
        plot_multiples(run, ["sharpness", "trace"])
    with pytest.raises(SettingError, match="60 panels do not fit"):
        plot_multiples([run] * 60)
    with pytest.raises(SettingError, match="columns"):
        plot_multiples(run, columns=0)
    with pytest.raises(SettingError, match="none"):
        plot_multiples([])


def test_long_runs_are_thinned_out() -> None:
    run = run_of([Record(t, "model", "sharpness", value=5.0 + t % 7, low=4.0) for t in range(30_000)])
    assert 500 < max(len(line.get_xdata()) for line in plot_multiples(run)[0].lines) <= 2100


def test_titles_do_not_meet_on_a_narrow_page() -> None:
    axes = plot_multiples({f"a run of some name, {i}": run_of(hovering(100)) for i in range(6)}, size=(3.4, 6.0))
    made = axes[0].get_figure(root=True)
    inside(made)
    boxes = [ax._left_title.get_window_extent() for ax in axes]
    assert all(not one.overlaps(other) for i, one in enumerate(boxes) for other in boxes[:i])
