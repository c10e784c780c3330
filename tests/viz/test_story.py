"""The story of a run: every sentence is true, whatever was recorded."""

import math
import re
from pathlib import Path

import numpy as np
import pytest

from drawn_runs import diverging, dropping, hovering, measured, meta, minibatch, run_of, write
from drawn_spectra import evolving
from losscope.landscape import RunError
from losscope.probes import Record, Run
from losscope.viz.edge_story import readings
from losscope.viz.spikes import spikes
from losscope.viz.story import Sentence, story


def told(run: Run, about: str, player: str | None = None) -> str:
    return " ".join(sentence.text for sentence in story(run, player) if sentence.about == about)


def below(ratios: list[float], every: int = 10, *, high: float | None = None, **facts: object) -> Run:
    """A run whose sharpness over threshold is this."""
    records = [
        Record(
            every * i, "model", "sharpness", lr=0.1, value=20 * r, low=20 * r,
            high=None if high is None else 20 * r * high, values={"threshold": 20.0},
        )
        for i, r in enumerate(ratios)
    ]  # fmt: skip
    return run_of(records, model=facts)


def test_one_update_is_one() -> None:
    for count, words in ((1, "1 update was made."), (2, "2 updates were made.")):
        run = Run.from_records(meta() | {"steps": {"model": count}, "status": "finished"}, [])
        assert words in told(run, "training")


# --------------------------------------------------------------------------- the edge


def test_a_crossing_lies_between_two_measurements() -> None:
    run = below([0.5, 0.8, 0.9, 1.02, 0.97, 1.1], every=50)
    (first, *_) = [s for s in story(run) if s.about == "edge"]
    assert first.text == (
        "The sharpness was first measured above its threshold, 2/lr = 20, at step 150; at step 100 it was still below. "
        "It was measured above it 2 times in 6 measurements."
    )
    assert first.steps == (100, 150)


def test_a_crossing_is_only_sure_with_upper_bounds() -> None:
    """A value is a lower bound: that it is below the threshold does not show that the sharpness was."""
    sure = told(below([0.5, 0.8, 1.1], high=1.05), "edge")
    assert "The sharpness first crossed its threshold, 2/lr = 20, between step 10 and step 20." in sure
    assert "crossed" not in told(below([0.5, 0.97, 1.1], high=1.05), "edge")  # 0.97 might have been 1.02
    assert "crossed" not in told(below([0.5, 0.8, 1.1]), "edge")


def test_what_is_no_verdict_for_the_audit_is_none_here() -> None:
    """Ratios measured in eval mode, of a model that computes something else in training; and lower bounds alone."""
    no_verdict = "For the audit these ratios are no verdict on stability: "
    run = run_of(hovering(800), model={"mode": "eval", "mode_matters": True})
    assert run.audit()["sharpness"].verdict == "INCONCLUSIVE"
    assert told(run, "edge").endswith(f"{no_verdict}{run.audit()['sharpness'].reason}.") and "mode" in told(run, "edge")
    assert run_of(hovering(800)).audit()["sharpness"].verdict == "AT_EDGE"
    assert no_verdict not in told(run_of(hovering(800)), "edge")


def test_no_crossing() -> None:
    said = told(below([0.5, 0.8, 0.6]), "edge")
    assert "above its threshold at none of 3 measurements (steps 0 to 20, at most 10 apart)" in said
    assert "nearest at step 10: 0.80 times its threshold, 2/lr = 20." in said
    assert "no upper bound shows" in said
    assert "Upper bounds were below it as well." in told(below([0.5, 0.8, 0.6], high=1.05), "edge")
    assert "known at 2 of the 3 measurements" in told(below([0.5, 0.98, 0.6], high=1.05), "edge")


def test_above_from_the_start() -> None:
    said = told(below([1.5, 1.6, 1.4]), "edge")
    assert "above its threshold, 2/lr = 20, at the first measurement already, step 0: 1.50 times it." in said
    assert "It was measured above it 3 times in 3 measurements." in said
    assert "2 times in 3" in told(below([1.5, 1.6, 0.4]), "edge")


def test_hovering() -> None:
    run = run_of(hovering())
    (hover,) = [s for s in story(run) if "hovered" in s.text]
    (phase,) = [p for p in run.phases() if p.name == "edge of stability"]
    assert hover.steps == (phase.first, phase.last)
    inside = [r.ratio for r in readings(run) if phase.first <= r.step <= phase.last]
    assert f"{len(inside)} measurements, median {np.median(inside):.2f} times" in hover.text
    assert f"from {min(inside):.2f} to {max(inside):.2f}." in hover.text
    assert "it sharpened progressively, from " in told(run, "edge")


def test_a_threshold_that_moves_is_that_of_each_step() -> None:
    run = run_of(dropping())
    crossed = next(s for s in story(run) if s.about == "edge")
    first = next(r for r in readings(run) if r.ratio > 1)
    assert crossed.steps[-1] == first.step
    assert "The learning rate was between 0.001 and 0.1, and 0.001 at the last record." in told(run, "training")


def test_rates_without_a_stable_step() -> None:
    wrong = [Record(t, "model", "stability", lr=-0.1, values={"sharpness": 3.0}) for t in (400, 425)]
    said = told(run_of([*hovering(400), *wrong]), "edge")
    assert "The learning rate was -0.1 in 2 measured updates, steps 400 to 425: there is no stable step." in said
    assert "At the last measurement with a threshold, step 3" in said
    assert "stable step" not in told(run_of(hovering(400)), "edge")


def test_no_threshold() -> None:
    records = [Record(t, "model", "sharpness", value=3.0 + t) for t in range(3)]
    run = run_of(records, model={"threshold_formula": None, "threshold_reason": "Muon has none"})
    said = told(run, "edge")
    assert said == (
        "The sharpness went from 3 at step 0 to 5 at step 2. No threshold is known to compare it with: Muon has none."
    )


def test_of_a_preconditioned_optimizer() -> None:
    values = {"sharpness": 30.0, "threshold": 38.0}
    run = run_of([Record(0, "model", "stability", values=values)], model={"preconditioned": True})
    assert "step 0, the sharpness of P^-1 H was 0.79 times its threshold" in told(run, "edge")


def test_a_long_gap_is_told() -> None:
    records = [r for t in [0, 10, 20, 30, 500, 510] for r in measured(t, 10.0, 0.1)]
    assert "Between step 30 and step 500 the sharpness was not measured." in told(run_of(records), "edge")


def test_out_of_order_is_the_same_story() -> None:
    records = hovering(800)
    assert story(run_of(records[::-1])) == story(run_of(records))


# --------------------------------------------------------------------------- spikes


@pytest.mark.parametrize("seed", range(5))
def test_noise_is_no_spike(seed: int) -> None:
    rng = np.random.default_rng(seed)
    steps = np.arange(20_000)
    assert spikes(steps, np.exp(0.5 * rng.standard_normal(20_000) - steps / 5000)) == []
    assert spikes(steps, 0.3 + 0.02 * (-1.0) ** steps) == []  # a period of two


@pytest.mark.parametrize("seed", range(5))
def test_spikes_are_found_where_they_are(seed: int) -> None:
    rng = np.random.default_rng(seed)
    loss = np.exp(0.05 * rng.standard_normal(2000) - np.arange(2000) / 1000)
    for at in (400, 1500):
        loss[at : at + 5] *= [1.8, 4.0, 3.0, 2.2, 1.8]
    found = spikes(10 * np.arange(2000), loss)
    assert [(s.before, s.first, s.peak) for s in found] == [(3990, 4000, 4010), (14990, 15000, 15010)]
    assert all(3.2 < s.height < 4.8 and s.back == s.first + 50 for s in found)


def test_what_is_not_a_positive_number_is_passed_over() -> None:
    loss = np.full(100, 0.5)
    loss[[3, 40, 41]] = [np.nan, np.inf, -1.0]
    assert spikes(np.arange(100), loss) == []
    loss[60:] = 3.0
    (rise,) = spikes(np.arange(100), loss)
    assert rise.first == 60 and rise.back is None
    assert spikes(np.arange(0), np.zeros(0)) == [] and spikes(np.arange(3), np.ones(3)) == []


def test_the_sharpness_before_a_spike() -> None:
    records = [r for t, r in ((0, 12.0), (40, 18.0), (80, 24.0), (120, 9.0)) for r in measured(t, r, 0.1)]
    loss = np.full(150, 0.5)
    loss[90:94] = [0.8, 1.5, 1.2, 0.9]
    records += [Record(t, "model", "log", values={"loss": float(v)}) for t, v in enumerate(loss)]
    (said,) = [s for s in story(run_of(records)) if s.about == "spikes"]
    assert said.steps == (91,)
    assert said.text == (
        "The training loss spiked once. From step 90 on it stood out, at most 3.00 times the median before, at step 91,"
        " and back by step 94; the last sharpness before, at step 80, was 1.20 times its threshold, up from 0.90 at "
        "step 40."
    )


def test_spikes_of_mini_batches_may_be_hard_batches() -> None:
    loss = np.full(100, 0.5)
    loss[60] = 2.0
    records = [Record(t, "model", "log", values={"loss": float(v)}) for t, v in enumerate(loss)]
    assert "hard batch" not in told(run_of(records), "spikes")
    assert "hard batch" in told(run_of(records, model={"batch_size": 32}), "spikes")
    assert "hard batch" in told(run_of(records, model={"batch_size": None}), "spikes")


def test_many_spikes_are_counted_and_the_highest_told() -> None:
    loss = np.full(1000, 0.5)
    loss[100::100] = np.linspace(1, 3, 9)
    run = run_of([Record(t, "model", "log", values={"loss": float(v)}) for t, v in enumerate(loss)])
    said = told(run, "spikes")
    assert "spiked 9 times. The highest 3:" in said and re.findall(r"At step (\d+)", said) == ["700", "800", "900"]
    assert said.count("the sharpness had not been measured by then") == 3


# --------------------------------------------------------------------------- the rest


def test_changes_have_intervals_and_say_where_they_show_nothing() -> None:
    def record(step: int, value: float, error: float) -> Record:
        return Record(step, "model", "trace", value=value, low=value - error, high=value + error)

    said = told(run_of([record(0, 10, 1), record(50, 20, 1)]), "changes")
    assert said == "The trace of the Hessian went from 10 (9 to 11) at step 0 to 20 (19 to 21) at step 50."
    assert "no change is shown" in told(run_of([record(0, 10, 6), record(50, 20, 6)]), "changes")
    assert "was 10 (9 to 11) at step 0, the only" in told(run_of([record(0, 10, 1)]), "changes")


def test_spectra_and_failures() -> None:
    said = told(evolving(), "changes")
    assert "eigenvalues that stand above the bulk was 3 (2 to 3) both at step 0 and at step 550" in said
    gaps = told(evolving(), "gaps")
    assert "Probe spectrum failed at 1 of 12 measurements (step 200): RuntimeError: out of memory." in gaps
    assert "Of the probes that were asked for, sharpness, trace and stability have left no record." in gaps


def test_a_diverged_run() -> None:
    run = run_of(diverging())
    training, gaps = told(run, "training"), told(run, "gaps")
    assert "not finite at 170 of 500 steps, first at step 330 and at all after it." in training
    assert "Probe sharpness met numbers that were not finite at 17 of 50 measurements (steps 330 to 490)" in gaps
    assert "had not come back where the records end or cease to be finite" in told(run, "spikes")


def test_an_empty_run() -> None:
    run = Run.from_records({"players": {"model": {}}}, [])
    assert [s.text for s in story(run)] == [
        "The run is not finished: it is still going on, or was killed.", "Nothing was recorded.",
        "No loss was recorded.", "There is no measurement of the sharpness.",
        "There is no verdict on stability: nothing was measured that one could rest on.",
    ]  # fmt: skip
    alone = Run.from_records({"players": {"model": {}}}, [Record(7, "model", "log", values={"loss": 1.0})])
    assert "or was killed; all records are of step 7." in told(alone, "training")
    assert story(Run.from_records({"players": {}}, []))


def test_a_single_record() -> None:
    run = run_of(measured(7, 15.0, 0.1))
    assert "The measured loss was 0.1 at step 7." in told(run, "training")
    assert "At the only measurement, step 7, the sharpness was 0.75 times its threshold" in told(run, "edge")
    assert told(run, "verdict").startswith("At step 7")


def test_how_it_ended_and_where_it_was_resumed() -> None:
    made = meta(model={}) | {
        "status": "failed",
        "reason": "KeyboardInterrupt",
        "first_step": 50,
        "steps": {"model": 90},
    }
    said = told(Run.from_records(made, list(minibatch(90))), "training")
    assert "The run failed: KeyboardInterrupt; 90 updates were made." in said
    assert "It was resumed at step 50." in said
    assert "resumed" not in told(run_of(minibatch(90)), "training")


def test_each_player_has_its_own() -> None:
    run = run_of([*hovering(300, player="G"), *minibatch(300, player="D")], G={}, D={"batch_size": 32})
    assert told(run, "edge", "G") != told(run, "edge", "D")
    assert "Measuring of all players took" in told(run, "cost", "G")
    with pytest.raises(RunError, match="no player"):
        story(run, "E")


def test_what_the_budget_put_off_and_what_cannot_be_read(tmp_path: Path) -> None:
    description = meta(model={})
    description["cost"] = {
        "seconds_measuring": 1.0, "seconds_total": 10.0, "budget": 0.05,
        "players": {"model": {"postponed": {"sharpness": 3}, "left_out": {"sharpness": 4}}},
    }  # fmt: skip
    write(tmp_path / "run", minibatch(100), description)
    with (tmp_path / "run" / "records.jsonl").open("a") as file:
        file.write("{torn\n")
    said = told(Run(tmp_path / "run"), "gaps")
    assert "The budget of time put off measurements of sharpness: 3 made later than due and 4 left out." in said
    assert "1 line of the records could not be read" in said
    assert "Measuring took 1 s of 10 s (10 %)" in told(Run(tmp_path / "run"), "cost")


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 0.0, -3.0, 1e300, 1e-300])
def test_odd_numbers_do_not_break_it(value: float) -> None:
    records = [
        Record(t, "model", probe, lr=value, value=value, low=value, high=value, values={
            "threshold": value, "sharpness": value, "loss": value, "outliers": value, "nc1": value, "alignment": value,
        })
        for t in range(4) for probe in ("sharpness", "stability", "trace", "spectrum", "tangent_kernel", "trajectory")
    ]  # fmt: skip
    records += [Record(t, "model", "log", values={"loss": value}) for t in range(80)]
    for sentence in story(run_of(records)):
        assert isinstance(sentence, Sentence) and sentence.text.endswith(".")
        assert "nan" not in sentence.text or "learning rate" in sentence.text
