"""The stability figure: what is in its artists."""

import dataclasses
import itertools
import math
from collections.abc import Callable

import matplotlib
import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from artists import entries, inside, line, texts
from drawn_runs import diverging, dropping, hovering, measured, minibatch, run_of
from losscope.probes import Record, Run
from losscope.probes.catalogue import CATALOGUE
from losscope.probes.phases import phases
from losscope.viz import plot_stability
from losscope.viz.marks import SHADES
from losscope.viz.quantities import quantity
from losscope.viz.stability import LOOKS
from losscope.viz.style import MUTED


def ends(ax: Axes) -> set[str]:
    return {text.get_text() for text in ax.texts if text.get_gid() == "end-label"}


def test_ratios_band_and_line_at_one() -> None:
    run = run_of(minibatch(), model={"batch_size": 32})
    ax = plot_stability(run)
    records = run.select("stability")
    for name, divisor in (("sharpness", "threshold"), ("trace", "two_over_lr"), ("s_mu", "two_over_lr")):
        assert CATALOGUE[name].threshold == divisor
        expected = [r.values[name] / r.values[divisor] for r in records]
        np.testing.assert_allclose(line(ax, f"ratio-{name}").get_ydata(), expected)
    assert set(line(ax, "one").get_ydata()) == {1.0}
    (edge,) = [p for p in ax.patches if p.get_gid() == "edge"]
    assert (edge.get_y(), edge.get_y() + edge.get_height()) == pytest.approx((0.9, 1.1))
    assert ax.get_ylabel() == "measured / threshold" and ax.get_xlabel() == "optimizer step"


def test_verdicts_are_the_audit_s_in_words() -> None:
    run = run_of(minibatch(), model={"batch_size": 32})
    ax = plot_stability(run)
    audit = run.audit()
    said = entries(ax)
    assert audit["s_mu"].verdict == "NOT_EXCLUDED"
    assert r"$S_\mu$ / (2/lr): not excluded" in said
    assert r"$\mathrm{tr}(H)$: does not apply" in said
    assert f"steps the verdicts rest on: {audit.steps[0]:,} to {audit.steps[1]:,}" in said
    assert {r"$S_\mu$", r"$\lambda_{\max}(H)$"} == ends(ax)  # the trace leaves the frame


def test_what_does_not_apply_is_muted_and_has_no_band() -> None:
    ax = plot_stability(run_of(hovering()))
    assert line(ax, "ratio-trace").get_color() == MUTED
    assert line(ax, "ratio-trace").get_linestyle() == ":"
    assert line(ax, "ratio-sharpness").get_color() != MUTED
    assert [c for c in ax.collections if isinstance(c, matplotlib.collections.PolyCollection)] == []


def test_never_colour_alone() -> None:
    ax = plot_stability(run_of(minibatch(), model={"batch_size": 32}))
    lines = [line(ax, f"ratio-{name}") for name in ("sharpness", "trace", "s_mu")]
    assert len({each.get_marker() for each in lines}) == 3
    assert len({each.get_color() for each in lines}) == 3
    assert set(LOOKS) == set(CATALOGUE)
    assert len({look["marker"] for look in LOOKS.values()}) == len(LOOKS)
    assert len({(look["color"], look["linestyle"]) for look in LOOKS.values()}) == len(LOOKS)


def every_line(value: float = 10.0, **more: float) -> list[Record]:
    """All criteria of mini-batches, close to each other."""
    records = []
    for t in range(20):
        values = {"sharpness": value, "threshold": 20.0, "two_over_lr": 20.0, "one_over_lr": 10.0, "loss": 0.1}
        for i, entry in enumerate(CATALOGUE.values()):
            unit = value / 2 if entry.threshold == "one_over_lr" else value
            number = unit * (1 + 0.002 * i)
            values |= {entry.name: number, f"{entry.name}_low": number * 0.95, f"{entry.name}_high": number * 1.05}
        records.append(Record(t, "model", "stability", value=value / 20, values=values | more))
    return records


SINGLE = {"batch_size": 1, "outputs": 1}


@pytest.mark.parametrize("size", [(6.4, 4.2), (3.9, 4.8), (8.6, 4.4)])
@pytest.mark.parametrize("formula", ["2/lr", "(2+2b)/(lr (1+2b))"])
def test_ten_lines_are_legible(size: tuple[float, float], formula: str) -> None:
    run = run_of(every_line(), model=SINGLE | {"threshold_formula": formula})
    ax = plot_stability(run, size=size)
    figure = ax.get_figure()
    inside(figure)
    every = {entry.tex for entry in CATALOGUE.values()}
    assert ends(ax) == (every if size[0] > 5 else set())  # the legend of a narrow figure has to do
    assert all(any(tex in entry for entry in entries(ax)) for tex in every)
    assert len([each for each in ax.lines if (each.get_gid() or "").startswith("ratio-")]) == 10
    box = ax.get_window_extent()
    assert box.height > 0.3 * figure.bbox.height and box.width > 0.4 * figure.bbox.width


def test_momentum_has_two_edges() -> None:
    run = run_of(every_line(threshold_small_batch=1.0), model={"batch_size": 8, "momentum": 0.9})
    ax = plot_stability(run)
    dotted = line(ax, "small-batch-edge")
    np.testing.assert_allclose(dotted.get_ydata(), 0.05)
    assert dotted.get_linestyle() == ":" and ax.get_ylim()[0] < 0.05 and ax.get_yscale() == "log"
    np.testing.assert_allclose(line(ax, "ratio-batch_sharpness").get_ydata(), 0.5, rtol=0.02)  # to that of large ones
    assert "edge of small batches" in entries(ax)
    full = plot_stability(run_of(every_line(threshold_small_batch=1.0), model={"momentum": 0.9}))
    assert not [each for each in full.lines if each.get_gid() == "small-batch-edge"]
    assert "9 criteria: do not apply" in entries(full)
    inside(full.get_figure())


# --------------------------------------------------------------------------- phases


def shades(ax: Axes) -> list[tuple[str, float, float]]:
    found = [(p.get_gid()[6:], p.get_x(), p.get_x() + p.get_width()) for p in ax.patches if p.get_gid() != "edge"]
    return sorted(found, key=lambda each: each[1])


@pytest.mark.parametrize("size", [(6.4, 4.2), (3.9, 4.8)])
def test_phases_are_shaded_and_named_once(size: tuple[float, float]) -> None:
    run = run_of(hovering())
    ax = plot_stability(run, size=size)
    assert shades(ax) == [(p.name, p.first, p.last) for p in phases(run)]
    names = [text.get_text() for text in ax.texts if text.get_gid() == "phase"] + entries(ax)
    assert [names.count(name) for name in SHADES] == [1, 1, 0]
    assert len({str(color) for color in SHADES.values()}) == 3
    assert ax.get_xlim()[1] < 3200


def test_a_phase_that_comes_again_is_named_once() -> None:
    run = run_of([*hovering(1500), *(dataclasses.replace(r, step=r.step + 20_000) for r in hovering(1500))])
    ax = plot_stability(run)
    assert len(shades(ax)) == 4
    assert sum(text.get_gid() == "phase" for text in ax.texts) + sum(name in SHADES for name in entries(ax)) == 2


def test_labels_at_the_end_do_not_overlap() -> None:
    records = [r for t in range(20) for r in measured(t, 10.0, 0.1, trace=10.1, s_mu=9.9)]
    ax = plot_stability(run_of(records, model={"batch_size": 32}))
    figure = ax.get_figure()
    figure.draw_without_rendering()
    labels = [text for text in ax.texts if text.get_gid() == "end-label"]
    spans = sorted((b.y0, b.y1) for b in (text.get_window_extent() for text in labels))
    assert len(spans) == 3
    assert all(below[1] <= above[0] + 1 for below, above in itertools.pairwise(spans))


@pytest.mark.parametrize("count", [0, 1, 2])
def test_few_records(count: int) -> None:
    ax = plot_stability(run_of([r for t in range(count) for r in measured(10 * t, 5.0, 0.1)]))
    ax.get_figure().draw_without_rendering()
    assert (texts(ax) == ["no stability recorded"]) == (count == 0)
    assert shades(ax) == []


def test_no_threshold_says_why() -> None:
    records = [Record(t, "model", "stability", values={"sharpness": 3.0}) for t in range(4)]
    run = run_of(records, model={"threshold_formula": "", "threshold_reason": "no stability rule for Adam yet"})
    assert texts(plot_stability(run)) == ["no ratio to draw: no stability rule for Adam yet"]


def test_marks_and_player_in_title() -> None:
    ax = plot_stability(run_of(diverging()))
    assert {"measurement not finite (17)", "measurement: error recorded (1)"} <= set(entries(ax))
    two = run_of([*hovering(100, player="G"), *minibatch(100, player="D")], G={}, D={"batch_size": 32})
    assert plot_stability(two, player="D").get_figure().get_suptitle() == "run: D"


def test_on_axes_of_the_user() -> None:
    ax: Axes = Figure().subplots()
    assert plot_stability(run_of(hovering(200)), ax) is ax


@pytest.mark.parametrize("size", [(6.4, 4.2), (3.9, 4.8)])
@pytest.mark.parametrize("records", [hovering, minibatch, dropping, diverging])
def test_nothing_is_clipped(records: Callable[[], list[Record]], size: tuple[float, float]) -> None:
    inside(plot_stability(run_of(records()), size=size).get_figure())


def test_a_preconditioned_optimizer_is_compared_with_its_own_threshold() -> None:
    values = {"sharpness": 37000.0, "threshold": 38000.0}
    records = [Record(step, "model", "stability", value=37 / 38, values=values) for step in range(9)]
    facts = {"preconditioned": True, "seen_formula": "(2+2b)/((1-b)lr)", "optimizer": "Adam"}
    ax = plot_stability(Run.from_records({"players": {"model": facts}}, records))
    labels = [line.get_label() for line in ax.get_lines()]
    assert any("P^{-1}H" in label and "(2+2b)/((1-b)lr)" in label for label in labels)


def test_batch_sharpness_is_labelled_as_the_preconditioner_shows_it() -> None:
    values = {"sharpness": 37000.0, "threshold": 38000.0} | dict.fromkeys(
        ("batch_sharpness", "batch_sharpness_ratio"), 3e4
    )
    records = [Record(step, "model", "stability", value=37 / 38, values=values) for step in range(9)]
    facts = {"preconditioned": True, "optimizer": "Adam", "batch_size": 8, "samples": 100}
    run = Run.from_records({"players": {"model": facts}}, records)
    said = " ".join([*entries(plot_stability(run)), quantity(run, "batch_sharpness").label])
    assert r"E[u^\top H_B u/g_B^\top u]" in said and r"E[u^\top H_B u]/E[g_B^\top u]" in said
    assert "|g_B|^2" not in said


@pytest.mark.parametrize("size", [(6.4, 4.2), (3.9, 4.8)])
@pytest.mark.parametrize("rate", [-0.1, math.nan, math.inf])
def test_steps_that_are_not_stable_at_any_curvature_are_marked(rate: float, size: tuple[float, float]) -> None:
    wrong = [Record(t, "model", "stability", lr=rate, values={"sharpness": 3.0}) for t in range(200, 500)]
    ax = plot_stability(run_of([*hovering(200), *wrong]), size=size)
    assert f"no stable step: lr {rate:g} (300)" in entries(ax)
    steps = line(ax, "wrong-rates").get_xdata()
    assert (steps.min(), steps.max()) == (200, 499) and len(steps) <= 60
    assert ax.get_xlim()[1] > 499
    inside(ax.get_figure())
    still = [dataclasses.replace(record, lr=0.0) for record in wrong]
    assert not any("no stable step" in each for each in entries(plot_stability(run_of([*hovering(200), *still]))))


def test_ratios_far_apart_of_which_some_are_negative_can_be_read() -> None:
    values = [-40.0, 0.5, 1.0, 4e4, 300.0]
    limits = {"threshold": 1.0, "two_over_lr": 1.0}
    records = [Record(t, "model", "stability", values=limits | {"sharpness": v}) for t, v in enumerate(values)]
    ax = plot_stability(run_of(records), size=(3.4, 4.0))
    places = ax.transData.transform([(0, v) for v in values])[:, 1]
    assert (np.diff(np.sort(places)) > 0.03 * ax.bbox.height).all()
    assert ax.get_ylim()[0] < -40 and ax.get_ylim()[1] > 4e4
    inside(ax.get_figure(root=True))


@pytest.mark.parametrize("formula", ["2/lr", "(2-lr weight_decay)(1+b1)/((1-b1)lr)"])
def test_a_legend_fits_one_column(formula: str) -> None:
    run = run_of(every_line(), model={"threshold_formula": formula, "batch_size": 8, "outputs": 1})
    made = plot_stability(run, size=(3.4, 4.6)).get_figure(root=True)
    inside(made)
