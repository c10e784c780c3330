"""At which steps a loop is measured: schedules, first steps, budgets."""

import warnings
from typing import Any

import pytest

from line_loops import sgd, update
from losscope.probes import Snapshot, Stability, Watch, logarithmic, watch
from probe_cases import Line, checksum, checksum_of, records

# --------------------------------------------------------------------------- schedules


@pytest.mark.parametrize(
    ("every", "due"),
    [
        (1, [0, 1, 2, 3, 4, 5, 6, 7]),
        (3, [0, 3, 6]),
        ([0, 5, 99], [0, 5]),
        (range(2, 5), [2, 3, 4]),
        (lambda step: step in (1, 6), [1, 6]),
        (logarithmic(2), [0, 1, 3]),
    ],
    ids=["1", "3", "steps", "range", "callable", "logarithmic"],
)
def test_schedules(every: Any, due: list[int]) -> None:
    line = Line()
    optimizer = sgd(line)
    with watch(line.model, optimizer, **line.options(every=every)) as run:
        for _ in range(8):
            update(line, optimizer)
    assert records(run) == [line.noted[t] for t in due]


def test_a_probe_may_have_a_schedule_of_its_own() -> None:
    line = Line()
    optimizer = sgd(line)
    with watch(line.model, optimizer, **line.options(probes=[checksum, Stability(every=4, rtol=0.9)], every=3)) as run:
        for _ in range(9):
            update(line, optimizer)
    assert [r.step for r in run.run.select("checksum")] == [0, 3, 6]
    assert [r.step for r in run.run.select("stability")] == [0, 4, 8]


@pytest.mark.parametrize("drive", ["hooks", "manual"])
def test_a_schedule_that_fails_is_warned_about_once_and_the_loop_goes_on(drive: str) -> None:
    line = Line()
    optimizer = sgd(line)

    def every(step: int) -> bool:
        raise ArithmeticError("on purpose")

    def loop() -> Watch:
        with watch(line.model, optimizer, **line.options(every=every, drive=drive)) as run:
            for _ in range(3):
                update(line, optimizer)
                if drive == "manual":
                    run.step()
        return run

    with pytest.warns(RuntimeWarning, match="on purpose") as caught:
        run = loop()
    assert len(caught) == 1 and run.run.status == "finished" and run.steps == 3


def test_steps_made_before() -> None:
    line = Line()
    optimizer = sgd(line)
    with watch(line.model, optimizer, **line.options(every=4, first_step=6)) as run:
        for _ in range(4):
            run.log(loss=update(line, optimizer))
    assert [(step, value) for step, _, value in records(run)] == [(8, line.noted[2][2])]
    assert run.run.logged("loss")[0].tolist() == [6, 7, 8, 9] and run.steps == 10


@pytest.mark.parametrize("drive", ["hooks", "manual"])
def test_a_budget_postpones_but_never_the_first(drive: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a clock of our own: a measurement takes one second, an update one too, and a fifth may be spent.

    Before step t, t + m seconds are over with m measurements made: the third waits until 2 are three quarters of a
    fifth of that (the first is still being paid off), those after it until m + 1 are a fifth.
    """
    now = [0.0]
    monkeypatch.setattr("losscope.probes.budget.time.perf_counter", lambda: now[0])

    def costly(snapshot: Snapshot) -> dict[str, float]:
        now[0] += 1.0
        return {"value": checksum_of(snapshot.model)}

    line = Line()
    optimizer = sgd(line)
    watching = watch(line.model, optimizer, **line.options(probes=[costly], every=3, budget=0.2, drive=drive))
    with warnings.catch_warnings(record=True) as caught, watching as run:
        warnings.simplefilter("always")
        for _ in range(32):
            update(line, optimizer)
            now[0] += 1.0
            if drive == "manual":
                run.step()
    line.note(0.1)
    measured = run.run.select("costly")
    assert [(r.step, r.due) for r in measured] == [
        (0, None), (3, None), (12, 6), (17, 15), (21, 18), (25, 24), (29, 27),
    ]  # fmt: skip
    assert [r.value for r in measured] == [line.noted[r.step][2] for r in measured]
    assert run.run.meta["cost"]["seconds_measuring"] == len(measured)
    assert len(caught) == 1 and "stretches the schedule: 'costly' of 'model' is due at step 6" in str(caught[0].message)
