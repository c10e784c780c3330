"""The stability figure: what is in its artists."""

import itertools
from collections.abc import Callable

import matplotlib
import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from artists import entries, inside, line, texts
from drawn_runs import diverging, dropping, hovering, measured, minibatch, run_of
from losscope.probes import Record, Run
from losscope.viz import plot_stability
from losscope.viz.style import MUTED


def test_ratios_band_and_line_at_one() -> None:
    run = run_of(minibatch(), model={"batch_size": 32})
    ax = plot_stability(run)
    records = run.select("stability")
    for name, divisor in (("sharpness", "threshold"), ("trace", "two_over_lr"), ("s_mu", "two_over_lr")):
        expected = [r.values[name] / r.values[divisor] for r in records]
        np.testing.assert_allclose(line(ax, f"ratio-{name}").get_ydata(), expected)
    assert set(line(ax, "one").get_ydata()) == {1.0}
    (edge,) = [p for p in ax.patches if p.get_gid() == "edge"]
    assert (edge.get_y(), edge.get_y() + edge.get_height()) == pytest.approx((0.9, 1.1))
    assert ax.get_yscale() == "log"
    assert ax.get_ylabel() == "measured / threshold" and ax.get_xlabel() == "optimizer step"


def test_verdicts_are_the_audit_s_in_words() -> None:
    run = run_of(minibatch(), model={"batch_size": 32})
    ax = plot_stability(run)
    audit = run.audit()
    said = entries(ax)
    assert audit["s_mu"].verdict == "NOT_EXCLUDED"
    assert r"$S_\mu$ / (2/lr): not excluded" in said
    assert r"$\mathrm{tr}(H)$ / (2/lr): does not apply" in said
    assert f"steps the verdicts rest on: {audit.steps[0]:,} to {audit.steps[1]:,}" in said
    assert {r"$S_\mu$", r"$\mathrm{tr}(H)$", r"$\lambda_{\max}(H)$"} == set(texts(ax))


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
