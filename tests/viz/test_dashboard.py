"""All on one page: which panels there are, and that nothing lies on anything else."""

from collections.abc import Callable

import matplotlib
import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Text

from drawn_runs import diverging, hovering, measured, minibatch, run_of
from drawn_spectra import evolving
from losscope.landscape import RunError
from losscope.probes import Record, Run
from losscope.viz import figure, plot_dashboard


def titles(axes: np.ndarray) -> list[str]:
    return [(ax.get_legend().get_title().get_text() if ax.get_legend() else ax.get_title(loc="left")) for ax in axes]


def everything() -> Run:
    """A run with records of every probe that has a panel, the most of them next to nothing."""
    records = [*minibatch(400), *evolving(6).records]
    for t in range(0, 400, 50):
        layers = {f"{i}/trace{end}": 1.0 + i for i in range(3) for end in ("", "_low", "_high")}
        records.append(Record(t, "model", "layer_traces", value=3.0, values=layers))
        records.append(Record(t, "model", "neural_collapse", value=1.0, values={"nc1": 1.0, "nc3": 0.5}))
        records.append(Record(t, "model", "tangent_kernel", value=0.1, values={"centred": 0.2, "alignment": 0.5}))
        records.append(
            Record(t, "model", "gradient_noise", value=30.0, low=20.0, high=50.0, values={"conclusive": 1.0})
        )
        records.append(Record(t, "model", "trajectory", value=1.0 + t, values={"length": 2.0 + t}))
    spectra = evolving(6)
    made = run_of(records)
    made._arrays = spectra._arrays
    return made


def written(ax: Axes) -> list[Text]:
    legend = ax.get_legend()
    found = [ax.xaxis.label, ax.yaxis.label, *ax.texts]
    for axis in (ax.xaxis, ax.yaxis):
        low, high = sorted(axis.get_view_interval())
        found += [tick.label1 for tick in axis.get_major_ticks() if low <= tick.get_loc() <= high]
    found += [ax._left_title, *([*legend.get_texts(), legend.get_title()] if legend else [])]
    return [text for text in found if text.get_visible() and text.get_text().strip()]


def apart(axes: np.ndarray) -> None:
    """Assert that all words are within the page, and that no panel's are in another's frame."""
    page = axes[0].get_figure(root=True)
    page.draw_without_rendering()
    frame = page.bbox.padded(1)
    for ax in axes:
        for text in written(ax):
            box = text.get_window_extent()
            assert frame.x0 <= box.x0 and box.x1 <= frame.x1 and frame.y0 <= box.y0 and box.y1 <= frame.y1, text
            for other in axes:
                inner = other.get_window_extent().padded(-1)
                if other is not ax:
                    outside = box.x1 <= inner.x0 or inner.x1 <= box.x0 or box.y1 <= inner.y0 or inner.y1 <= box.y0
                    assert outside, (text, titles(np.array([other])))


def test_a_panel_for_everything_that_was_recorded() -> None:
    axes = plot_dashboard(everything())
    assert titles(axes) == [
        "Loss", "Sharpness", "Stability", "Trace", "Spectrum, last", "Spectrum over time", "Largest eigenvalues",
        "Curvature by layer", "Neural collapse", "Tangent kernel", "Gradient noise", "Trajectory",
    ]  # fmt: skip
    page = axes[0].get_figure(root=True)
    assert tuple(page.get_size_inches()) == (11.69, 8.27)
    apart(axes)


@pytest.mark.parametrize(
    ("records", "expected"),
    [
        (lambda: [], ["Loss", "Sharpness"]),
        (lambda: list(measured(0, 5.0, 0.1)), ["Loss", "Sharpness", "Stability"]),
        (hovering, ["Loss", "Sharpness", "Stability", "Trace"]),
        (diverging, ["Loss", "Sharpness", "Stability"]),
    ],
)
def test_panels_of_what_is_absent_are_not_there(records: Callable[[], list[Record]], expected: list[str]) -> None:
    axes = plot_dashboard(run_of(records()))
    assert titles(axes) == expected
    apart(axes)


def test_by_name_and_for_a_player() -> None:
    gan = run_of([*hovering(100, player="G"), *minibatch(100, player="D")], G={}, D={"batch_size": 32})
    made = figure(gan, "dashboard", player="D", size=(11.0, 8.5))
    assert isinstance(made, Figure) and tuple(made.get_size_inches()) == (11.0, 8.5)
    assert made.get_suptitle() == "run: D"
    with pytest.raises(RunError, match="no player 'E'"):
        plot_dashboard(gan, player="E")


def test_of_several_players_each_panel_is_of_one() -> None:
    gan = run_of([*hovering(100, player="G"), *hovering(100, player="D")], G={}, D={})
    axes = plot_dashboard(gan)
    trace = axes[titles(axes).index("Trace")]
    assert len([each for each in trace.lines if each.get_gid() == "overlay"]) == 1


@pytest.mark.parametrize("width", [3.4, 7.0])
def test_a_page_too_small_for_its_panels_is_made_higher(width: float) -> None:
    axes = plot_dashboard(everything(), size=(width, 4.0))
    page = axes[0].get_figure(root=True)
    assert page.get_figwidth() == width and page.get_figheight() > 8
    apart(axes)
    assert all(ax.get_window_extent().height > page.dpi for ax in axes)  # an inch is left of each
    before = [ax.get_position().bounds for ax in axes]
    page.draw_without_rendering()
    assert [ax.get_position().bounds for ax in axes] == before  # laid out once


def test_no_global_setting_is_touched() -> None:
    before = dict(matplotlib.rcParams)
    plot_dashboard(run_of(hovering(100)))
    assert dict(matplotlib.rcParams) == before


def test_long_runs_are_thinned_out() -> None:
    values = {"threshold": 20.0, "threshold_largest": 20.0, "two_over_lr": 20.0, "sharpness": 5.0}
    records = [Record(t, "model", "sharpness", value=5.0 + t % 7, low=4.0, values=values) for t in range(20_000)]
    records += [Record(t, "model", "log", values={"loss": 1 / (1 + t)}) for t in range(20_000)]
    made = plot_dashboard(run_of(records))[0].get_figure(root=True)
    made.draw_without_rendering()
    drawn = [len(line.get_xdata()) for ax in made.axes for line in ax.lines]
    assert 500 < max(drawn) <= 2100
