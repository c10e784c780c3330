"""The numbers behind the figures."""

import numpy as np

from drawn_runs import diverging, measured, run_of
from losscope.probes import Record
from losscope.viz import series


def test_sharpness_of_its_own_probe_or_of_stability() -> None:
    records = [r for t in range(3) for r in measured(t, 5.0 + t, 0.1, bounded=t == 1)]
    both = series.sharpness(run_of(records))
    only = series.sharpness(run_of([r for r in records if r.probe == "stability"]))
    for data in (both, only):
        assert data.steps.tolist() == [0, 1, 2]
        assert data.value.tolist() == [5.0, 6.0, 7.0]
        assert data.bounded.tolist() == [False, True, False]
        assert data.threshold.tolist() == [20.0] * 3


def test_ratios_divide_bounds_by_both_groups() -> None:
    (record,) = [r for r in measured(0, 18.0, 0.1, bounded=True, largest=40.0, trace=60.0) if r.probe == "stability"]
    data = series.ratios(run_of([record]), "sharpness")
    np.testing.assert_allclose(
        [data.low[0], data.value[0], data.high[0]], [18 / 40, 18 / 20, 18 * 1.08 / 20], rtol=1e-5
    )
    assert series.ratios(run_of([record]), "trace").value[0] == 3.0
    assert np.isnan(series.ratios(run_of([record]), "s_mu").value[0])


def test_loss_prefers_what_was_logged() -> None:
    records = [*measured(0, 5.0, 0.1, loss=0.7), Record(0, "model", "log", values={"loss": 0.5})]
    assert series.loss(run_of(records))[1:] == ([0.5], "training loss")
    steps, values, what = series.loss(run_of(records[:-1]))
    assert (steps.tolist(), values.tolist(), what) == ([0], [0.7], "measured loss")
    assert len(series.loss(run_of([]))[0]) == 0


def test_unmeasured_steps_by_what_went_wrong() -> None:
    missing = series.unmeasured(run_of(diverging()), "sharpness")
    assert missing.errors == (100,)
    assert missing.nonfinite == tuple(range(330, 500, 10))


def test_an_infinite_value_counts_as_not_finite() -> None:
    run = run_of([Record(0, "model", "sharpness", value=float("inf"))])
    assert series.unmeasured(run, "sharpness").nonfinite == (0,)
    assert np.isnan(series.sharpness(run).value[0])


def test_decimation_keeps_the_extremes_and_the_gaps() -> None:
    steps, values = np.arange(100_000), np.zeros(100_000)
    values[12_345], values[54_321] = 7.0, -3.0
    values[70_000:80_000] = np.nan
    kept_steps, kept = series.decimate(steps, values, most=500)
    assert len(kept) <= 502
    assert np.all(np.diff(kept_steps) > 0)
    assert np.nanmax(kept) == 7.0 and np.nanmin(kept) == -3.0
    assert np.isnan(kept[(kept_steps > 71_000) & (kept_steps < 79_000)]).all()
    assert kept_steps[0] == 0 and kept_steps[-1] == 99_999
