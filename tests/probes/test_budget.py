"""The budget of time, by a clock of the tests' own: no figure here depends on the machine."""

from __future__ import annotations

import contextlib
import itertools
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from losscope.probes import Probe
from losscope.probes.agenda import Agenda
from losscope.probes.budget import Account, Budget
from losscope.probes.schedule import as_schedule

STEP = 0.1
"""Seconds of one update."""


class Clock:
    """Time that passes when it is told to."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        monkeypatch.setattr("losscope.probes.budget.time.perf_counter", lambda: self.now)


class Costly(Probe):
    """A probe that takes so many seconds, and others the first time."""

    def __init__(self, name: str, every: Any, seconds: float, first: float) -> None:
        super().__init__(every)
        self.name, self.seconds, self.first = name, seconds, first
        self.made: list[int] = []


@dataclass
class Course:
    """What happened: total time and time of measuring before each update, first measurements left out or not."""

    total: list[float] = field(default_factory=list)
    spent: list[float] = field(default_factory=list)
    first: list[float] = field(default_factory=list)

    def share(self, begin: float, end: float = 1.0) -> float:
        """Of measuring between two parts of the whole time."""
        at = [next(i for i, t in enumerate(self.total) if t >= part * self.total[-1]) for part in (begin, end)]
        return (self.spent[at[1]] - self.spent[at[0]]) / (self.total[at[1]] - self.total[at[0]])


def course(clock: Clock, share: float | None, probes: list[Costly], steps: int) -> tuple[Course, Agenda]:
    """Train for so many updates, with measurements that take what their probe says."""
    clock.now, found = 0.0, Course()
    budget = Budget(share)
    agenda = Agenda("model", probes, as_schedule(1), budget)
    for step in range(steps):
        for each in (chosen := agenda.now(step)):
            with budget.spending(agenda.key(each), measured=True):
                clock.now += each.seconds if each.made else each.first
            each.made.append(step)
        agenda.taken(chosen, step)
        clock.now += STEP
        found.total.append(clock.now)
        found.spent.append(budget.spent)
        found.first.append(sum(each.first for each in probes if each.made))
    agenda.close()
    return found, agenda


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


@pytest.mark.filterwarnings("ignore:losscope. budget")
@pytest.mark.parametrize("first", [0.5, 5.0, 50.0])
@pytest.mark.parametrize("every", [1, 7, 20])
def test_a_costly_schedule_takes_the_share_and_no_more(clock: Clock, every: int, first: float) -> None:
    probe = Costly("costly", every, 0.5, first)
    found, agenda = course(clock, 0.05, [probe], 20_000)
    unbounded, _ = course(clock, None, [Costly("costly", every, 0.5, first)], 20_000)
    assert unbounded.share(0.5) >= 0.19
    assert sum(step >= 10_000 for step in probe.made) >= 20
    assert 0.035 <= found.share(0.5) <= 0.051
    assert found.spent[-1] - first <= 0.05 * found.total[-1]
    late = agenda.postponed["costly"]
    assert agenda.left_out["costly"] + len(probe.made) == len(range(0, 20_000, every))
    assert 0 < late <= len(probe.made)


@pytest.mark.parametrize("first", [0.05, 0.2, 0.5])
@pytest.mark.parametrize("every", [16, 50, 200])
def test_a_cheap_schedule_is_left_as_it_is(clock: Clock, every: int, first: float) -> None:
    """Up to three quarters of the share, where the first one takes up to ten times as long."""
    probe = Costly("cheap", every, 0.05, first)
    _, agenda = course(clock, 0.05, [probe], 5000)
    assert probe.made == list(range(0, 5000, every))
    assert agenda.postponed == agenda.left_out == {}


@pytest.mark.filterwarnings("ignore:losscope. budget")
def test_after_a_compilation_only_the_second_waits(clock: Clock) -> None:
    """The first takes 1200 times as long: a tenth of that, 6 s, are three quarters of a twentieth of 160 s."""
    probe = Costly("cheap", 20, 0.05, 60.0)
    _, agenda = course(clock, 0.05, [probe], 5000)
    assert 1000 <= probe.made[1] <= 1001 and probe.made[2:] == list(range(1020, 5000, 20))
    assert agenda.postponed == {"cheap": 1} and agenda.left_out == {"cheap": 49}


@pytest.mark.filterwarnings("ignore:losscope. budget")
def test_what_the_beginning_took_is_paid_off(clock: Clock) -> None:
    """In the end the whole time of measuring, the first one too, is below the share; and near it."""
    probe = Costly("costly", 1, 0.2, 20.0)
    found, _ = course(clock, 0.05, [probe], 40_000)
    assert 0.045 < found.spent[-1] / found.total[-1] <= 0.05


@pytest.mark.filterwarnings("ignore:losscope. budget")
def test_a_costly_probe_does_not_starve_a_cheap_one(clock: Clock) -> None:
    cheap, costly = Costly("sharpness", 20, 0.02, 0.02), Costly("spectrum", 20, 10.0, 20.0)
    found, agenda = course(clock, 0.05, [costly, cheap], 50_000)
    assert cheap.made == list(range(0, 50_000, 20)) and "sharpness" not in agenda.postponed
    assert len(costly.made) > 15 and 0.03 < found.share(0.5) <= 0.06


@pytest.mark.filterwarnings("ignore:losscope. budget")
def test_what_one_leaves_another_may_take_and_equal_ones_share_evenly(clock: Clock) -> None:
    """Ten times as costly: as much time, a tenth of the measurements. Three more that need nothing do not matter."""
    small, large = Costly("small", 5, 0.2, 0.2), Costly("large", 5, 2.0, 2.0)
    idle = [Costly(f"idle {i}", 5000, 0.001, 0.001) for i in range(3)]
    found, _ = course(clock, 0.05, [small, large, *idle], 60_000)
    assert 0.045 < found.share(0.5) <= 0.052
    assert len(small.made) * 0.2 == pytest.approx(len(large.made) * 2.0, rel=0.15)


@pytest.mark.filterwarnings("ignore:losscope. budget")
def test_one_that_begins_late_gets_its_part(clock: Clock) -> None:
    early = Costly("early", 1, 0.2, 0.2)
    late = Costly("late", lambda step: step >= 20_000, 0.2, 0.2)
    found, _ = course(clock, 0.05, [early, late], 40_000)
    since = [step for step in early.made if step >= 20_000]
    assert late.made[0] == 20_000 and found.share(0.5) < 0.055
    assert 0.8 < len(late.made) / len(since) < 1.25


@pytest.mark.filterwarnings("ignore:losscope. budget")
@settings(max_examples=40, deadline=None)
@given(
    share=st.sampled_from([0.01, 0.05, 0.3]),
    probes=st.lists(
        st.tuples(st.integers(1, 60), st.floats(0.001, 3.0), st.floats(0.001, 30.0)), min_size=1, max_size=4
    ),
)
def test_the_share_is_kept_at_any_time(share: float, probes: list[tuple[int, float, float]]) -> None:
    """But for the first of each, and one of each that its own part allows where others have taken the rest."""
    with pytest.MonkeyPatch.context() as patch:
        made = [Costly(str(i), every, seconds, first) for i, (every, seconds, first) in enumerate(probes)]
        found, agenda = course(Clock(patch), share, made, 3000)
    once = 2 * sum(each.seconds for each in made)
    for total, spent, first in zip(found.total, found.spent, found.first, strict=True):
        assert spent - first <= share * total + once + 1e-9
    for each, (every, *_) in zip(made, probes, strict=True):
        assert each.made[0] == 0
        due = len(range(0, 3000, every))
        assert len(each.made) + agenda.left_out.get(each.name, 0) == due


def test_what_a_measurement_takes_besides_is_shared_evenly(clock: Clock) -> None:
    budget = Budget(0.1)
    with budget.spending(("m", "a"), ("m", "b"), measured=True) as noted:
        clock.now += 5.0
        noted["m", "a"] = 3.0
    assert budget.spent == 5.0
    assert [budget.accounts["m", name].seconds for name in "ab"] == [4.0, 1.0]
    with contextlib.suppress(ArithmeticError), budget.spending(("m", "a"), measured=True):
        clock.now += 2.0
        raise ArithmeticError
    assert budget.accounts["m", "a"] == Account(seconds=6.0, first=4.0, made=2)
    assert budget.accounts["m", "a"].expected == 2.0


def test_a_checkpoint_holds_the_accounts(clock: Clock) -> None:
    budget = Budget(0.1)
    for seconds in (4.0, 1.0):
        with budget.spending(("m", "a"), measured=True):
            clock.now += seconds
    state = budget.state_dict()
    clock.now += 1000.0
    again = Budget(0.1)
    again.load_state_dict(state)
    again.start()
    assert (again.spent, again.total, again.accounts) == (5.0, 5.0, budget.accounts)
    for now in itertools.accumulate([1.0] * 30):
        clock.now = 1005.0 + now
        assert (again.allowed([("m", "a")]) == [("m", "a")]) == (now + 5.0 >= 2.0 / 0.075)


def test_time_before_the_loop_is_not_its_time(clock: Clock) -> None:
    budget = Budget(0.05)
    clock.now += 100.0
    budget.start()
    assert budget.total == 0.0


def test_an_update_that_did_not_come_about_is_not_another_one(clock: Clock) -> None:
    """The same step is asked for again: its schedule has been noted."""
    agenda = Agenda("model", [probe := Costly("p", 2, 1.0, 1.0)], as_schedule(1), Budget(None))
    assert agenda.now(0) == agenda.now(0) == [probe]
    assert agenda.taken([probe], 0) == {} and agenda.now(1) == []
    assert agenda.now(2) == [probe] and agenda.now(3) == [probe] and agenda.taken([probe], 3) == {"p": 2}
    assert agenda.postponed == {"p": 1} and agenda.left_out == {}
