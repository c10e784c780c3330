"""Figures of the case studies: each is drawn from what its study measures, which the short versions skip for most."""

from types import SimpleNamespace

import pytest
import torch
from matplotlib.figure import Figure

import batch_size
import hessian_outliers
import neural_collapse
from collapse.figures import draw_free, draw_networks, draw_properties
from over_parametrised.batch_size_figures import draw_rates, draw_shift, draw_spectrum
from over_parametrised.outlier_figures import draw_clusters, draw_elsewhere, draw_paths, draw_widths
from panels import band, bars, labels, log, panels
from sgd.bounds import Real
from sgd.figures import draw_bounds, draw_diagonal, draw_rows
from sgd.linear import ROWS, Rows
from sgd.sparse import Sparse
from tangent.figures import draw_early, draw_gap, draw_grokking, draw_lazy
from tangent.grokking import Grokking, Start
from tangent.quadratic_network import Fit, Setting
from tangent_kernel import Course, Drift

SEEDS = (5, 6)
POINTS = [(2.0, 5.0), (1.0, 1.0), (1.0, 4.0), (1.0, 3.0), (2.0, 7.0)]


def test_bands_are_medians_and_ranges_in_the_order_of_x() -> None:
    _, (shaded, barred) = panels("a", "b")
    band(shaded, POINTS, marker="s", label="seeds")
    (line,) = shaded.lines
    assert line.get_xydata().tolist() == [[1, 3], [2, 6]] and (line.get_marker(), line.get_label()) == ("s", "seeds")
    corners = {tuple(corner) for corner in shaded.collections[0].get_paths()[0].vertices.tolist()}
    assert corners == {(1, 1), (1, 4), (2, 5), (2, 7)}
    bars(barred, POINTS)
    (drawn,) = barred.containers
    assert drawn[0].get_xydata().tolist() == [[1, 3], [2, 6]]
    assert [ends.tolist() for ends in drawn[2][0].get_segments()] == [[[1, 1], [1, 4]], [[2, 5], [2, 7]]]


def test_rows_of_panels_and_plain_numbers_on_logarithmic_axes() -> None:
    figure, axes = panels(*"abcde", size=(2, 1), columns=3)
    assert len(axes) == len(figure.axes) == 5 and figure.get_size_inches().tolist() == [6, 2]
    assert [ax.get_title(loc="left") for ax in axes] == list("abcde")
    axes[0].plot([1, 10, 1000], [1, 2, 3], label="line")
    log(axes[0], "yx", (1, 10, 1000))
    figure.canvas.draw()
    assert [text.get_text() for text in axes[0].get_xticklabels()] == ["1", "10", "1000"]
    assert {"1", "2", "3"} <= {text.get_text() for text in axes[0].get_yticklabels()}
    labels(axes[0], "x", "y", "upper left")
    assert [text.get_text() for text in axes[0].get_legend().get_texts()] == ["line"]


def sgd_figures() -> list[Figure]:
    rows = {(kind, s): Rows({1: 0.5, 4: 1.0}, {1: 0.9, 4: 0.8}, 2.0, (0.9, 1.1)) for kind in ROWS for s in SEEDS}
    sparse = {
        (s, r, d): Sparse(0.0, 9.0 + s, 4.0, 0.1 * r, 1.0) for s in SEEDS for r in (0.1, 0.2) for d in (False, True)
    }
    sparse[5, 0.2, False] = None
    real = {(s, B, r): Real(1e-3, 40.0 / r, 0.9, 0.5, 0.5, 0.8, 1.0, 0.3, 0.1)
            for s in SEEDS for B in (1, 8, 100) for r in (0.1, 0.2)}  # fmt: skip
    return [draw_rows(rows, (1, 4)), draw_diagonal(sparse), draw_bounds(real, 100)]


def outlier_figures() -> list[Figure]:
    spectrum = hessian_outliers.Spectrum(
        torch.logspace(0, -3, 30), 300, 0.1, SimpleNamespace(mass=lambda low, high: SimpleNamespace(value=0.9))
    )
    case = hessian_outliers.Case
    by_k = {case(s, k): spectrum for s in SEEDS for k in (2, 3)}
    path = SimpleNamespace(t=torch.linspace(0, 1, 3), loss=torch.tensor([0.1, 1.0, 0.2]))
    paths = {s: SimpleNamespace(onward=path, faster=path, apart=path, bent=path) for s in SEEDS}
    return [
        draw_widths({case(s, width=w): spectrum for s in SEEDS for w in (8, 16)}, 0.01),
        draw_clusters(by_k, {case(s, apart=d): spectrum for s in SEEDS for d in (1.0, 2.0)}, 5, 0.01),
        draw_elsewhere(by_k, by_k),
        draw_paths(paths),
    ]


def batch_figures() -> list[Figure]:
    effect = SimpleNamespace(
        batch_sizes=(4, 8), largest=[SimpleNamespace(value=9.0 - i, low=8.0 - i, high=10.0 - i) for i in range(2)],
        fitted=2.0, predicted=lambda B, variance=1.0: (5 + variance / B,),
        full=SimpleNamespace(values=torch.tensor([5.0])),
    )  # fmt: skip
    rates = {(rule, B, s): 0.1 * B for rule in ("SGD", "Adam") for B in (1, 2, 4) for s in SEEDS}
    trained = {(c, fixed, s): batch_size.Trained(0.01 * c if c < 3 else float("inf"), {0: c, 20: c / 2})
               for c in (1.0, 2.0, 3.0) for fixed in (False, True) for s in SEEDS}  # fmt: skip
    effects = dict.fromkeys(SEEDS, effect)
    return [draw_shift(effects), draw_rates(rates, [{1: 0.3, 4: 0.9}], effects), draw_spectrum(trained)]


def collapse_figures() -> list[Figure]:
    values = dict.fromkeys((*neural_collapse.PROPERTIES, "nc1_quotient", "1/nc1_quotient", "3/nc1_quotient"), 0.1)
    training = neural_collapse.Training((0, 7), (values, values), 7, (0.1, 0.1), 0.2, 0.1)
    case = neural_collapse.Case
    found = {case(s, decay=d): training for s in SEEDS for d in neural_collapse.DECAYS}
    found |= {case(s, normalised=False, decay=d): training for s in SEEDS for d in neural_collapse.PLAIN_DECAYS}
    free = {"path 0": 1.0, "path 1": 0.5, "beta 0.1": 0.2, "beta 1": 0.9, "ratio 1": -0.1, "ratio 10": 1.0}
    return [
        draw_properties(found, neural_collapse.PROPERTIES), draw_networks(found),
        draw_free(dict.fromkeys(SEEDS, free), (0.1, 1.0), (1, 10)),
    ]  # fmt: skip


def tangent_figures() -> list[Figure]:
    drift = Drift(0.1, 0.01, 0.1, 0.1, 0.05, 1.0, 0.9, 0.9, 0.95)
    by_width = {(w, 1.0, s): drift for w in (32, 64) for s in SEEDS}
    by_scale = {(64, a, s): drift for a in (1.0, 10.0) for s in SEEDS}
    course = Course((0.0, 0.1), (0.0, 0.1), (0.5, 0.6), (0.08, 0.06, 0.04), 0.03)
    fit = Fit((0, 10), (1.0, 0.1), (1.0, 0.2), 0.1, 0.1, 0.4, 0.1)
    fits = {Setting(a, s, eps=e): fit for a, e in ((1.0, 0.5), (10.0, 0.5), (10.0, 0.1)) for s in SEEDS}
    grokking = Grokking(
        (0, 1, 9), (0.9, 0.0, 0.0), (0.9, 0.8, 0.1), (9.0, 8.0, 3.0), (0, 9), (0.0, 0.1), (0.5, 0.6), 0.8
    )
    return [
        draw_lazy(by_width, by_scale, by_scale), draw_early({(w, s): course for w in (32, 128, 512) for s in SEEDS}, 1),
        draw_gap(fits), draw_grokking({Start(s, scale): grokking for s in SEEDS for scale in (6.0, 1.0)}),
    ]  # fmt: skip


@pytest.mark.parametrize("drawn", [sgd_figures, outlier_figures, batch_figures, collapse_figures, tangent_figures])
def test_every_panel_has_its_title_a_name_of_x_and_what_it_draws(drawn) -> None:
    for figure in drawn():
        for ax in figure.axes:
            assert ax.get_title(loc="left") and ax.get_xlabel() and ax.has_data()
            assert any(line.get_xydata().size for line in ax.lines) or ax.collections
