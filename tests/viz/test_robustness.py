"""Every figure of everything: of runs and results that are empty, broken, huge or long, on every backend."""

from __future__ import annotations

import inspect
import io
import warnings
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import matplotlib
import numpy as np
import pytest
from matplotlib import _pylab_helpers
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from artists import inside
from figure_cases import figure_of
from hostile_cases import RESULTS, RUNS, SOME, long_run
from losscope import viz
from losscope.probes import Run
from losscope.viz.figure import FIGURES, figure

SIZES = {"dashboard": [(11.7, 8.3)]}
"""Of figures that are not for a column."""
COLUMNS = [(3.4, 5.0), (7.0, 5.0)]


@cache
def run_of(odd: str) -> Run:
    return RUNS[odd]()


@pytest.fixture(autouse=True)
def _strict() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", category=DeprecationWarning, module="torch")
        yield


def check(drawn: Figure) -> None:
    """It can be drawn, nothing is cut off, no axis is endless, and what is empty says so."""
    inside(drawn)
    for ax in drawn.axes:
        assert np.isfinite([*ax.get_xlim(), *ax.get_ylim()]).all()
        if ax.get_label() != "<colorbar>":
            marks = [*ax.lines, *ax.collections, *ax.patches, *ax.images]
            assert marks or any(t.get_gid() == "nothing" for t in ax.texts), "an empty frame"
            assert len(ax.get_xticks()) < 50 and len(ax.get_yticks()) < 50


def said(drawn: Figure) -> list[str]:
    return [text.get_text() for ax in drawn.axes for text in ax.texts if text.get_gid() == "nothing"]


@pytest.mark.parametrize(
    ("name", "odd"), [(name, odd) for name in FIGURES for odd in (SOME if name == "dashboard" else RUNS)]
)
def test_of_any_run(name: str, odd: str) -> None:
    sizes = SIZES.get(name, COLUMNS)
    check(figure(run_of(odd), name, size=sizes[len(odd) % len(sizes)]))


@pytest.mark.parametrize(("plot", "odd"), [(plot, odd) for plot, cases in RESULTS.items() for odd in cases])
def test_of_any_result(plot: str, odd: str) -> None:
    check(figure_of(getattr(viz, plot)(RESULTS[plot][odd](), size=COLUMNS[len(odd) % 2])))


@pytest.mark.parametrize("name", FIGURES)
def test_what_is_there_is_drawn_and_what_is_not_is_said(name: str) -> None:
    assert not said(figure(run_of("ordinary"), name)), "tests/support/drawn_everything.py has nothing for it to draw"
    found = said(figure(run_of("empty"), name))
    assert found and all(len(text.split()) > 1 for text in found)


def test_every_figure_of_a_result_is_here() -> None:
    of_runs = {plot.__name__ for plot in FIGURES.values()}
    plots = {name for name in viz.__all__ if name.startswith("plot_")} - of_runs
    assert plots <= set(RESULTS), "add what is odd about its input to tests/support/hostile_cases.py"


# --------------------------------------------------------------------------- long runs


MANY = 30_000  # records; benchmarks/long_runs.py times more


@pytest.mark.parametrize("name", [name for name in FIGURES if name != "dashboard"])
def test_figures_of_long_runs_are_small(name: str) -> None:
    """Thinned out, with what is drawn counted in bytes: a point of a curve takes about twenty in an SVG."""
    run, file = long_run(name, MANY), io.BytesIO()
    assert len(run.records) >= MANY - len(FIGURES)
    figure(run, name).savefig(file, format="svg")
    assert len(file.getvalue()) < 1e6


@pytest.mark.parametrize("plot", ["plot_surface", "plot_neighbourhood"])
def test_figures_of_long_results_are_small(plot: str) -> None:
    file = io.BytesIO()
    figure_of(getattr(viz, plot)(RESULTS[plot]["long"]())).savefig(file, format="svg")
    assert len(file.getvalue()) < 1e6


def test_a_peak_of_one_step_is_still_there() -> None:
    run = long_run("sharpness", MANY)
    highest = max(r.value for r in run.select("sharpness") if r.value is not None)
    axes = figure(run, "sharpness").axes
    curve = next(each for each in axes[0].lines if each.get_gid() == "sharpness")
    assert np.nanmax(curve.get_ydata()) == highest


# --------------------------------------------------------------------------- nothing is touched


def settings() -> tuple[dict[str, Any], int, str]:
    return dict(matplotlib.rcParams), len(_pylab_helpers.Gcf.figs), matplotlib.get_backend()


def state(ax: Axes) -> list[Any]:
    return [len(ax.get_children()), ax.get_xlim(), ax.get_ylim(), ax.get_xlabel(), ax.get_xscale(), ax.get_title()]


def plots() -> Iterator[Any]:
    for name, plot in FIGURES.items():
        yield pytest.param(plot, lambda: run_of("ordinary"), id=name)
    for plot, cases in RESULTS.items():
        yield pytest.param(getattr(viz, plot), next(iter(cases.values())), id=plot)


@pytest.mark.parametrize(("plot", "make"), [each for each in plots() if each.id not in FIGURES])  # see test_figure.py
def test_on_any_backend_without_a_trace(plot: Callable[..., Any], make: Callable[[], Any]) -> None:
    shown, before = make(), settings()
    made = figure_of(plot(shown))
    for kind in ("png", "svg", "pdf"):
        file = io.BytesIO()
        made.savefig(file, format=kind)
        assert len(file.getvalue()) > 1000
    assert settings() == before


@pytest.mark.parametrize(
    ("plot", "make"), [each for each in plots() if "ax" in inspect.signature(each.values[0]).parameters]
)
def test_given_axes_are_used_and_others_left_alone(plot: Callable[..., Any], make: Callable[[], Any]) -> None:
    mine = Figure(figsize=(9, 5))
    given, other = mine.subplots(1, 2)
    other.plot([1, 2], [3, 4])
    mine.suptitle("mine")
    before, texts = state(other), [text.get_text() for text in mine.texts]
    assert plot(make(), ax=given) is given
    mine.savefig(io.BytesIO())
    assert state(other) == before
    assert [text.get_text() for text in mine.texts] == texts and not mine.legends
    assert mine.axes[:2] == [given, other]
