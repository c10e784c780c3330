"""The figures of spectra: what is in their artists."""

import math

import numpy as np
import pytest
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from artists import entries, inside, line, texts
from drawn_runs import hovering, run_of
from drawn_spectra import atom, evolving, scaled, spiked
from losscope.landscape import RunError, SettingError, SpectralDensity, spectral_density
from losscope.landscape.outliers import outliers
from losscope.probes import Record, Run
from losscope.viz import plot_outliers, plot_spectrum, plot_spectrum_over_time
from losscope.viz.eigenvalue_axis import power, readable_ticks
from losscope.viz.smoothing import Axis

WIDE, NARROW = (6.4, 4.2), (3.3, 3.2)


def drawn_mass(ax: Axes, low: float, high: float) -> float:
    """Area under the drawn curve between two eigenvalues; on a logarithmic axis it is drawn per decade."""
    curve = line(ax, "density")
    x, y = curve.get_xdata(), curve.get_ydata()
    if ax.get_xscale() != "linear":
        x = np.arcsinh(x / ax.xaxis.get_transform().linear_width) / math.log(10)
        low, high = (math.asinh(v / ax.xaxis.get_transform().linear_width) / math.log(10) for v in (low, high))
    part = (low <= x) & (x <= high)
    return float(np.trapezoid(y[part], x[part]))


# --------------------------------------------------------------------------- one spectrum


@pytest.mark.parametrize("logarithmic", [None, True, False])
def test_the_area_under_the_curve_is_one(logarithmic: bool | None) -> None:
    for density in (atom(), spiked([5.0, 7.0]), spectral_density(torch.diag(torch.linspace(-1, 2, 300)), seed=0)):
        ax = plot_spectrum(density, logarithmic=logarithmic)
        assert drawn_mass(ax, -1e9, 1e9) == pytest.approx(1, abs=2e-3)


@pytest.mark.parametrize("logarithmic", [None, True, False])
@pytest.mark.parametrize("scale", [1.0, 1e-12, 1e9])
def test_a_far_atom_of_one_per_cent_keeps_its_mass_on_display(scale: float, logarithmic: bool | None) -> None:
    density = atom(scale=scale, starts=16)
    known = density.mass(0.5e5 * scale, 2e5 * scale).value
    assert known == pytest.approx(0.01, rel=0.4)  # as far as 16 random starts know it
    ax = plot_spectrum(density, logarithmic=logarithmic)
    assert drawn_mass(ax, 0.5e5 * scale, 2e5 * scale) == pytest.approx(known, rel=1e-3)
    exact = SpectralDensity.of_eigenvalues(scale * torch.cat([torch.linspace(-0.5, 0.5, 990), torch.full((10,), 1e5)]))
    ax = plot_spectrum(exact, logarithmic=logarithmic)
    assert drawn_mass(ax, 0.5e5 * scale, 2e5 * scale) == pytest.approx(0.01, rel=1e-3)


def test_the_figure_of_c_times_the_spectrum_is_the_same_but_for_its_numbers() -> None:
    one, other = plot_spectrum(spiked([5.0])), plot_spectrum(scaled(spiked([5.0]), 1e4))
    assert line(other, "density").get_xdata() == pytest.approx(1e4 * line(one, "density").get_xdata())
    assert line(other, "density").get_ydata() == pytest.approx(1e-4 * line(one, "density").get_ydata())
    assert other.get_xlim() == pytest.approx([1e4 * end for end in one.get_xlim()])


def test_band_ticks_and_words() -> None:
    ax = plot_spectrum(spiked([5.0, 7.0], starts=3))
    assert entries(ax) == [
        r"400 eigenvalues, $W_1$ error $\leq$ 0.01",
        "95 % interval, 3 random starts",
        "2 of them found one by one",
    ]
    (band,) = ax.collections
    assert band.get_gid() == "band"
    assert line(ax, "known").get_xdata().tolist() == [5.0, 7.0]
    curve = line(ax, "density")
    corners = band.get_paths()[0].vertices
    middle = np.interp(0.2, curve.get_xdata(), curve.get_ydata())
    heights = corners[np.abs(corners[:, 0] - 0.2) < 0.02, 1]
    assert heights.min() < middle < heights.max()
    one = plot_spectrum(spiked([], starts=1))
    assert entries(one)[:2] == [entries(ax)[0], "95 % interval, 1 random start"]
    exact = plot_spectrum(SpectralDensity.of_eigenvalues(torch.linspace(0, 1, 50)))
    assert entries(exact) == ["50 eigenvalues"]  # no tick for each of them


def test_where_single_nodes_are_seen_the_ground_is_grey() -> None:
    values = torch.cat(
        [1e-4 * torch.randn(900, generator=torch.Generator().manual_seed(0)), torch.linspace(0.1, 5, 100)]
    )
    coarse = plot_spectrum(spectral_density(torch.diag(values), vectors=1, steps=6, deflate=0, seed=0))
    grey = [each for each in coarse.patches if each.get_gid() == "blurred"]
    assert grey and entries(coarse).count("not resolved further") == 1
    exact = plot_spectrum(SpectralDensity.of_eigenvalues(values))
    assert not exact.patches


def test_shares_in_words_are_those_of_the_density() -> None:
    values = torch.cat([torch.full((30,), -1.0), torch.zeros(50), torch.linspace(1, 10, 20)])
    ax = plot_spectrum(SpectralDensity.of_eigenvalues(values))
    (said,) = [t.get_text() for t in ax.texts if t.get_gid() == "shares"]
    assert [part.split(": ")[1] for part in said.split("    ")] == ["30%", "50%", "20%"]
    ax = plot_spectrum(SpectralDensity.of_eigenvalues(values), size=NARROW)
    assert texts(ax) == ["below, near, above zero: 30, 50, 20 %"]


def test_outliers_are_marked_where_they_are_given() -> None:
    generator = torch.Generator().manual_seed(0)
    X = torch.randn(500, 500, generator=generator, dtype=torch.float64)
    A = (X + X.T) / 1000**0.5
    A += 4 * torch.ones(500, 500) / 500
    density = spectral_density(A, vectors=4, seed=0)
    found = outliers(density)
    ax = plot_spectrum(density, outliers=found)
    edge = line(ax, "edge")
    assert edge.get_xdata()[0] == found.upper.edge
    assert "edge of the bulk, 1 outlier above" in entries(ax)


def test_of_a_run() -> None:
    run = evolving()
    ax = plot_spectrum(run)
    assert ax.get_figure().get_suptitle() == "run, step 550"
    assert line(ax, "known").get_xdata().tolist() == pytest.approx([3.4, 9.2, 13.0])
    assert "edge of the bulk, 3 outliers above" in entries(ax)
    assert ax.get_xlabel() == r"eigenvalue $\lambda$ [loss / parameter$^2$]"
    assert plot_spectrum(run, step=100).get_figure().get_suptitle() == "run, step 100"
    with pytest.raises(RunError, match=r"no spectrum was measured at step 30; there are spectra of steps 0, 50, 100"):
        plot_spectrum(run, step=30)
    with pytest.raises(RunError, match="no player 'E'"):
        plot_spectrum(run, player="E")
    nothing = plot_spectrum(run_of(hovering(50)))
    assert texts(nothing) == ["no spectrum recorded"]


def test_the_threshold_is_drawn_where_it_is_on_the_axis() -> None:
    run = evolving(25)
    assert [t.get_text() for t in plot_spectrum(run).texts if t.get_gid() == "threshold-label"] == ["threshold 20"]
    assert line(plot_spectrum(run), "threshold").get_xdata()[0] == 20.0
    assert not [each for each in plot_spectrum(run, step=0).lines if each.get_gid() == "threshold"]


@pytest.mark.parametrize(
    "density",
    [
        SpectralDensity.of_eigenvalues(torch.zeros(3)),
        SpectralDensity.of_eigenvalues(torch.tensor([2.0])),
        SpectralDensity.of_eigenvalues(torch.tensor([-1e-30, 1e30])),
        spectral_density(torch.eye(20), seed=0),
    ],
    ids=["zero", "one", "sixty decades", "identity"],
)
@pytest.mark.parametrize("logarithmic", [None, True, False])
def test_what_is_hardly_a_spectrum(density: SpectralDensity, logarithmic: bool | None) -> None:
    ax = plot_spectrum(density, logarithmic=logarithmic)
    ax.get_figure().draw_without_rendering()
    assert all(map(math.isfinite, (*ax.get_xlim(), *ax.get_ylim())))
    assert 1 <= len(ax.get_xticks()) < 20


def test_a_run_without_spectra_has_its_name_and_no_numbers() -> None:
    ax = plot_spectrum(run_of(hovering(50)))
    assert texts(ax) == ["no spectrum recorded"] and ax.figure.get_suptitle() == "run"
    assert "eigenvalue" in ax.get_xlabel() and not ax.get_xticks().size


def test_a_narrow_spectrum_far_from_zero_has_ticks_that_differ() -> None:
    ax = plot_spectrum(spectral_density(torch.diag(torch.linspace(99.9999, 100.0001, 50, dtype=torch.float64)), seed=0))
    ax.figure.draw_without_rendering()
    words = [label.get_text() for label in ax.get_xticklabels()]
    assert len(words) > 3 and len(set(words)) == len(words)


def test_one_eigenvalue_and_none_that_is_not_zero() -> None:
    one = plot_spectrum(spectral_density(torch.eye(1, dtype=torch.float64), seed=0))
    assert entries(one)[0].startswith("1 eigenvalue,") or entries(one)[0] == "1 eigenvalue"
    zero = plot_spectrum(spectral_density(torch.zeros(9, 9, dtype=torch.float64), seed=0))
    assert texts(zero) == [r"$\lambda < 0$: 0%    $|\lambda| = 0$: 100%    $\lambda > 0$: 0%"]


def test_on_axes_of_the_user() -> None:
    figure = Figure()
    one, two = figure.subplots(1, 2)
    assert plot_spectrum(atom(), one) is one
    assert plot_spectrum_over_time(evolving(4), two) is two
    assert figure.get_suptitle() == ""


@pytest.mark.parametrize("size", [WIDE, NARROW])
@pytest.mark.parametrize("step", [0, 100, 550])
def test_nothing_is_clipped_or_overlaps(step: int, size: tuple[float, float]) -> None:
    for ax in (plot_spectrum(evolving(), step=step, size=size), plot_spectrum(atom(), size=size)):
        inside(ax.get_figure())
        apart(ax)


def apart(ax: Axes) -> None:
    """Assert that no two tick labels of an axis lie on each other."""
    for axis in (ax.xaxis, ax.yaxis):
        boxes = [t.get_window_extent() for t in axis.get_ticklabels() if t.get_text() and t.get_visible()]
        for i, one in enumerate(boxes):
            assert not any(one.overlaps(other) for other in boxes[i + 1 :]), axis


# --------------------------------------------------------------------------- ticks


@pytest.mark.parametrize("linear", [1e-12, 1e-3, 1.0, 1e8])
@pytest.mark.parametrize("ends", [(-2.0, 9.0), (-0.5, 3.0), (1.0, 25.0), (-40.0, 40.0)])
def test_ticks_are_apart_and_within(linear: float, ends: tuple[float, float]) -> None:
    axis = Axis(linear)
    ticks = readable_ticks(axis, ends, 0.07)
    places = axis.place(np.array(ticks))
    assert ticks and np.all(np.diff(places) >= 0.069 * (ends[1] - ends[0]))
    assert places.min() >= ends[0] and places.max() <= ends[1]
    assert 2 <= len(ticks) <= 15


def test_powers_in_words() -> None:
    assert [power(v) for v in (0.0, 1.0, -1.0, 1e-3, -1e5)] == ["0", "1", "−1", "$10^{-3}$", "−$10^{5}$"]


# --------------------------------------------------------------------------- over time


def test_columns_are_the_spectra() -> None:
    run = evolving()
    ax = plot_spectrum_over_time(run)
    (mesh,) = [c for c in ax.collections if c.get_gid() == "density"]
    image = np.ma.filled(mesh.get_array().astype(float), np.nan)
    assert image.shape[1] == 12
    assert np.isnan(image[:, 4]).all()  # the one that failed is empty, and marked
    assert np.isfinite(np.delete(image, 4, axis=1)).all()
    marks = [each for each in ax.lines if each.get_gid() == "unmeasured"]
    assert [m.get_xdata().tolist() for m in marks] == [[200]]
    corners = mesh.get_coordinates()
    assert corners[0, :, 0].tolist() == [-25 + 50 * i for i in range(13)]
    known = line(ax, "largest")
    assert known.get_xdata().tolist()[:4] == [0, 0, 0, 50]
    assert sorted(known.get_ydata()[:3]) == pytest.approx([1.2, 1.5, 2.0])
    (bar,) = [each for each in ax.get_figure().axes if each is not ax]
    assert bar.get_ylabel() == r"density $\phi(\lambda)$ [parameter$^2$ / loss]"


def test_each_column_has_mass_one() -> None:
    from losscope.viz.spectra import spectra

    for logarithmic in (True, False):
        found = spectra(evolving(), logarithmic=logarithmic)
        edges, image = found.image(200)
        lengths = np.diff(found.axis.place(edges)) / found.axis.unit
        assert lengths @ image == pytest.approx(1)


def test_few_many_and_broken_spectra(tmp_path) -> None:
    for count in (1, 2):
        ax = plot_spectrum_over_time(evolving(count, failed=()))
        ax.get_figure().draw_without_rendering()
    assert texts(plot_spectrum_over_time(run_of([]))) == ["no spectrum recorded"]
    only = evolving(3, failed=(0, 1, 2))
    assert texts(plot_spectrum_over_time(only)) == ["no spectrum recorded"]
    some = evolving(6)
    gone = Run.from_records(some.meta, some.records, {k: v for k, v in some._arrays.items() if "-50-" not in k})
    ax = plot_spectrum_over_time(gone)  # one whose arrays were lost does not take the others along
    assert line(ax, "largest").get_xdata().tolist()[:4] == [0, 0, 0, 100]


@pytest.mark.parametrize("size", [WIDE, NARROW])
@pytest.mark.parametrize("logarithmic", [True, False])
def test_the_heat_map_is_legible(size: tuple[float, float], logarithmic: bool) -> None:
    ax = plot_spectrum_over_time(evolving(), size=size, logarithmic=logarithmic)
    inside(ax.get_figure())
    apart(ax)


# --------------------------------------------------------------------------- outliers


def test_eigenvalues_edge_and_count_are_those_of_the_records() -> None:
    run = evolving()
    top, bottom = plot_outliers(run)
    records = run.select("spectrum")
    rows = [each for each in top.lines if each.get_gid() == "eigenvalue"]
    assert len(rows) == 3
    assert rows[0].get_ydata().tolist() == [r.value for r in records]
    assert rows[2].get_ydata().tolist() == [r.values["lambda_3"] for r in records]
    assert len([each for each in top.lines if each.get_gid() == "outlier"]) == 3
    assert set(line(top, "edge").get_ydata()) == {1.1}
    assert line(bottom, "count").get_ydata().tolist() == [3.0] * 11
    (bars,) = bottom.collections
    assert len(bars.get_segments()) == 11  # the methods count 2 and 3
    assert {"outliers", "edge of the bulk", "the 3 largest eigenvalues", "spectrum: error recorded (1)"} <= set(
        entries(top)
    )
    inside(top.get_figure())


def test_outliers_that_were_not_counted() -> None:
    records = [r for t in range(5) for r in run_of(hovering(100)).select("sharpness")[:1]]
    top, bottom = plot_outliers(run_of(records))
    assert texts(bottom) == ["no outliers counted"]
    assert len([each for each in top.lines if each.get_gid() == "eigenvalue"]) == 1
    top, bottom = plot_outliers(run_of([]))
    assert texts(top) == ["no eigenvalues recorded"]
    run = evolving(5)
    for record in run.records:
        record.values["outliers"] = 0.0
    assert texts(plot_outliers(run)[1]) == ["none separated from the bulk"]


def test_one_eigenvalue_alone_and_several_close_together() -> None:
    def of(values: dict[str, float]) -> Run:
        return run_of(
            [Record(t, "model", "spectrum", value=-1.0, values=values | {"threshold": 200.0}) for t in (0, 5)]
        )

    top, _ = plot_outliers(of({}))
    assert entries(top)[0] == "the largest eigenvalue"
    top, _ = plot_outliers(of({"lambda_2": -2.0, "lambda_3": -3.0}))  # on an axis that reaches to 200
    assert [text for text in texts(top) if "lambda" in text] == [r"$\lambda_1 \ldots \lambda_{3}$"]


def test_outliers_on_axes_of_the_user() -> None:
    figure = Figure()
    one, two, three = figure.subplots(3, 1)
    assert plot_outliers(evolving(5), one) is one
    assert [*plot_outliers(evolving(5), (two, three))] == [two, three]
    with pytest.raises(SettingError, match="two"):
        plot_outliers(evolving(5), (one, two, three))


@pytest.mark.parametrize("size", [WIDE, NARROW])
def test_outliers_are_legible(size: tuple[float, float]) -> None:
    top, _ = plot_outliers(evolving(), size=size)
    inside(top.get_figure())


@pytest.mark.parametrize("shown", [None, "runs/first", torch.ones(3)])
def test_what_is_neither_a_density_nor_a_run(shown: object) -> None:
    with pytest.raises(SettingError, match=f"a SpectralDensity .* or a Run .* got {type(shown).__name__}"):
        plot_spectrum(shown)
