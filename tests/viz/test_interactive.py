"""The plotly figures: what is in their traces; plotly itself is loaded only when one is made."""

import json
import math

import numpy as np
import pytest

from drawn_runs import run_of
from drawn_spectra import evolving
from losscope.landscape import RunError
from losscope.viz import interactive_spectrum
from losscope.viz.smoothing import Axis, reach, smooth
from losscope.viz.spectra import spectra

plotly = pytest.importorskip("plotly")


@pytest.mark.parametrize("logarithmic", [True, False])
def test_the_heat_map_is_that_of_the_spectra(logarithmic: bool) -> None:
    run = evolving(25)
    figure = interactive_spectrum(run, logarithmic=logarithmic)
    heat, known, threshold = figure.data
    assert list(heat.x) == [50 * t for t in range(25) if t != 4]
    found = spectra(run, logarithmic=logarithmic)
    z, last = np.array(heat.z), found.densities[-1]
    curve = smooth(last, found.axis, span=found.span, bins=z.shape[0])
    drawn = curve.density > 10**heat.zmin
    np.testing.assert_allclose(10 ** z[drawn, -1], curve.density[drawn], rtol=1e-9)
    assert heat.customdata[0][0][0].startswith("-")  # the least eigenvalue in words
    places = dict(zip(zip(known.x, [rank for rank, _ in known.customdata], strict=True), known.y, strict=True))
    assert places[(0, 1)] == pytest.approx(float(found.axis.place(np.array(2.0))))
    assert places[(0, 3)] == pytest.approx(float(found.axis.place(np.array(1.2))))
    assert set(threshold.customdata) == {"20"}
    json.loads(figure.to_json())


def test_ticks_are_eigenvalues() -> None:
    figure = interactive_spectrum(evolving(), logarithmic=True)
    texts, places = figure.layout.yaxis.ticktext, figure.layout.yaxis.tickvals
    found = spectra(evolving(), logarithmic=True)
    values = [float(t.replace("\N{MINUS SIGN}", "-")) for t in texts]
    np.testing.assert_allclose(found.axis.place(np.array(values)), places)
    assert interactive_spectrum(evolving(), logarithmic=False).layout.yaxis.tickvals is None


def test_without_spectra() -> None:
    figure = interactive_spectrum(run_of([]))
    assert not figure.data and figure.layout.annotations[0].text == "no spectrum recorded"
    with pytest.raises(RunError, match="no player 'E'"):
        interactive_spectrum(run_of([]), player="E")


def test_many_spectra_are_thinned_out() -> None:
    found = spectra(evolving(30, failed=()), most=10)
    assert len(found.densities) == 10
    assert (found.steps[0], found.steps[-1]) == (0, 1450)
    assert reach(*found.densities, axis=Axis())[1] > found.densities[-1].bounds[1]
    assert math.isfinite(found.span[1])
