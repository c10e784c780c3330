"""A callback for verdicts that change: what it is told, what it may do, and that nothing else changes."""

import dataclasses
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import losscope.probes.verdicts as live
from audited_runs import flips, stability, steady
from drawn_runs import meta, run_of
from losscope.landscape import SettingError
from losscope.probes import Audit, Player, Record, Run, Stability, Verdict, Watch, watch
from probe_cases import fingerprint, train


class Regression:
    """Linear least squares in double precision, whose sharpness is known and stays."""

    def __init__(self, seed: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.x = torch.randn(32, 4, dtype=torch.float64, generator=generator)
        self.y = self.x @ torch.randn(4, 1, dtype=torch.float64, generator=generator) + 1
        self.model = nn.Linear(4, 1, bias=False).double()
        nn.init.zeros_(self.model.weight)
        self.sharpness = float(torch.linalg.eigvalsh(self.x.T @ self.x / 32)[-1])
        self.options: dict[str, Any] = {
            "data": (self.x, self.y), "criterion": self.loss_of, "every": 10,
            "probes": [Stability(level="sharpness", bound_every=1)],
        }  # fmt: skip

    @staticmethod
    def loss_of(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return (outputs - targets).square().sum(1).mean() / 2

    def sgd(self, ratio: float) -> torch.optim.SGD:
        """At a rate of which 2/lr is the sharpness over ``ratio``."""
        return torch.optim.SGD(self.model.parameters(), lr=ratio * 2 / self.sharpness)

    def update(self, optimizer: torch.optim.Optimizer) -> None:
        optimizer.zero_grad()
        self.loss_of(self.model(self.x), self.y).backward()
        optimizer.step()

    def loop(self, optimizer: torch.optim.Optimizer, steps: int) -> None:
        for _ in range(steps):
            self.update(optimizer)


def told(verdicts: list[Verdict], criterion: str = "sharpness") -> list[tuple[int, str | None, str]]:
    return [(v.step, v.previous, v.verdict) for v in verdicts if v.criterion == criterion]


# --------------------------------------------------------------------------- what it may do


def test_a_loop_that_lowers_its_rate_at_the_edge():
    problem = Regression()
    optimizer = problem.sgd(0.98)
    heard: list[Verdict] = []

    def lower(verdict: Verdict) -> None:
        heard.append(verdict)
        if verdict.criterion == "sharpness" and verdict.verdict == "AT_EDGE":
            optimizer.param_groups[0]["lr"] /= 2

    with watch(problem.model, optimizer, on_verdict=lower, **problem.options) as run:
        problem.loop(optimizer, 90)
    assert told(heard)[:2] == [
        (0, None, "NEAR_EDGE_NO_OSCILLATION"), (10, "NEAR_EDGE_NO_OSCILLATION", "AT_EDGE")
    ]  # fmt: skip
    assert [v.verdict for v in heard].count("AT_EDGE") == 1 and heard[-1].verdict == "BELOW_EDGE"
    assert heard[-1].step <= 60  # the last five measurements are at the lower rate then
    rates = {r.step: r.lr for r in run.run.select("stability")}
    assert rates[10] == 2 * rates[20] == 2 * optimizer.param_groups[0]["lr"]
    assert run.run.select("stability")[2].value == pytest.approx(0.49, rel=1e-3)
    assert {v.criterion for v in heard} == {"sharpness"}  # the rest never applies

    plain = Regression()
    other = plain.sgd(0.98)
    plain.loop(other, 11)
    other.param_groups[0]["lr"] /= 2
    plain.loop(other, 79)
    assert fingerprint(plain.model.weight) == fingerprint(problem.model.weight)


class Stop(Exception):
    """A user's own."""


@pytest.mark.parametrize("on_error", ["warn", "raise"])
@pytest.mark.parametrize("caught", ["inside", "outside"])
def test_a_loop_that_stops_above_the_edge(on_error: str, caught: str, tmp_path: Path):
    problem = Regression()
    optimizer = problem.sgd(0.5)
    stop = Stop("enough")

    def end(verdict: Verdict) -> None:
        if verdict.verdict == "ABOVE_EDGE":
            raise stop

    def loop() -> None:
        problem.loop(optimizer, 15)
        optimizer.param_groups[0]["lr"] *= 2.6
        problem.loop(optimizer, 100)

    def watched(body: Callable[[], object]) -> None:
        options = problem.options | {"out": tmp_path / "run", "on_verdict": end, "on_error": on_error}
        with warnings.catch_warnings(), watch(problem.model, optimizer, **options):
            warnings.simplefilter("error")
            body()

    def stopped(body: Callable[[], object]) -> None:
        with pytest.raises(Stop) as escaped:
            body()
        assert escaped.value is stop and stop.__cause__ is None and stop.__context__ is None

    if caught == "inside":
        watched(lambda: stopped(loop))
    else:
        stopped(lambda: watched(loop))
    run = Run(tmp_path / "run")
    assert run.status == ("finished" if caught == "inside" else "failed")
    assert run.select("stability")[-1].step == 40 and run.meta["steps"] == {"model": 41}  # the update is complete

    plain = Regression()
    other = plain.sgd(0.5)
    plain.loop(other, 15)
    other.param_groups[0]["lr"] *= 2.6
    plain.loop(other, 26)
    assert fingerprint(plain.model.weight) == fingerprint(problem.model.weight)
    assert not optimizer._optimizer_step_post_hooks


def test_training_goes_on_after_an_exception_that_was_caught():
    problem = Regression()
    optimizer = problem.sgd(1.5)
    stopped: list[str] = []

    def end(verdict: Verdict) -> None:
        raise Stop(verdict.verdict)

    with watch(problem.model, optimizer, on_verdict=end, **problem.options) as run:
        for _ in range(25):
            try:
                problem.update(optimizer)
            except Stop as stop:
                stopped.append(str(stop))
    assert stopped == ["ABOVE_EDGE"]
    assert [r.step for r in run.run.select("stability")] == [0, 10, 20] and run.steps == 25


def test_no_bit_of_the_training_changes():
    def watching(model: nn.Module, optimizer: torch.optim.Optimizer, data: Any) -> Watch:
        return watch(
            model, optimizer, data=data, criterion=nn.functional.cross_entropy, every=2, batch_size=8,
            on_verdict=heard.append,
        )  # fmt: skip

    heard: list[Verdict] = []
    assert train("mlp", "momentum", watching).differences(train("mlp", "momentum")) == []
    assert heard


# --------------------------------------------------------------------------- what it is told


@pytest.mark.parametrize("drive", ["hooks", "manual"])
def test_a_resumed_run_is_taken_up_where_it_was(drive: str, tmp_path: Path):
    def session(problem: Regression, ratio: float, steps: int, **options: Any) -> list[tuple[int, str | None, str]]:
        heard: list[Verdict] = []
        optimizer = problem.sgd(ratio)
        with watch(
            problem.model, optimizer, out=tmp_path / "run", on_verdict=heard.append, drive=drive,
            **problem.options | options,
        ) as run:  # fmt: skip
            for _ in range(steps):
                problem.update(optimizer)
                if drive == "manual":
                    run.step()
        return told(heard)

    problem = Regression()
    assert session(problem, 0.98, 45)[-1] == (10, "NEAR_EDGE_NO_OSCILLATION", "AT_EDGE")
    assert session(problem, 0.98, 20, resume=True) == []
    lowered = session(problem, 0.5, 60, resume=True)
    assert lowered[0][1] == "AT_EDGE" and lowered[0][0] >= 70 and lowered[-1][0] <= 110
    assert lowered[-1][2] == ("BELOW_EDGE" if drive == "hooks" else "NOT_EXCLUDED")  # without hooks no gradient is seen
    back = session(problem, 0.5, 60, resume=True, first_step=65)  # an earlier checkpoint: what came after is forgotten
    assert back == lowered


def test_several_players_are_told_apart():
    first, second = Regression(), Regression(seed=1)
    optimizers = first.sgd(1.4), second.sgd(0.4)
    heard: list[Verdict] = []
    players = [
        Player(name, p.model, o, (p.x, p.y), criterion=p.loss_of)
        for name, p, o in zip("AB", (first, second), optimizers, strict=True)
    ]
    with watch(players, every=10, probes=[Stability(level="sharpness")], on_verdict=heard.append):
        for _ in range(12):
            first.update(optimizers[0])
            second.update(optimizers[1])
    assert [(v.player, v.verdict, v.audit.player) for v in heard] == [
        ("A", "ABOVE_EDGE", "A"),
        ("B", "BELOW_EDGE", "B"),
    ]
    assert heard[1].ratio_low <= heard[1].ratio == pytest.approx(0.4, rel=1e-3)
    assert heard[1].ratio_high >= heard[1].ratio


def test_two_optimizers_of_one_player():
    """Their round may end as the next one begins, or as the run does."""
    problem = Regression()
    other = nn.Parameter(torch.zeros(1, dtype=torch.float64))
    optimizers = [problem.sgd(0.5), torch.optim.SGD([other], lr=0.1)]
    heard: list[Verdict] = []
    with watch(problem.model, optimizers, on_verdict=heard.append, **problem.options | {"every": 1}):
        problem.loop(optimizers[0], 3)
    assert heard == []  # nothing applies


def test_a_callback_may_measure_and_log():
    problem = Regression()
    optimizer = problem.sgd(1.4)
    heard: list[str] = []

    def measure(verdict: Verdict) -> None:
        heard.append(verdict.verdict)
        run.log(above=1.0)
        assert [r.status for r in run.measure_now()] == ["ok"]

    with watch(problem.model, optimizer, on_verdict=measure, **problem.options) as run:
        problem.loop(optimizer, 25)
    assert heard == ["ABOVE_EDGE"]
    assert [r.step for r in run.run.select("stability")] == [0, 1, 10, 20]
    assert run.run.logged("above")[0].tolist() == [0]


def test_what_diverged_is_told():
    problem = Regression()
    optimizer = problem.sgd(0.5)
    heard: list[Verdict] = []
    with watch(problem.model, optimizer, on_verdict=heard.append, **problem.options):
        problem.loop(optimizer, 15)
        with torch.no_grad():
            problem.model.weight.fill_(float("nan"))
        problem.loop(optimizer, 15)
    assert told(heard) == [(0, None, "BELOW_EDGE"), (20, "BELOW_EDGE", "INCONCLUSIVE")]


# --------------------------------------------------------------------------- the live audit


def live_audit(records: list[Record]) -> Audit:
    watcher = live.LiveAudit("model")
    for record in records:
        watcher.note(record)
    return watcher.look(meta(model={}))


def test_it_is_the_audit_of_a_short_run():
    records = sorted(steady(1.0, 5) + flips(1.0, 5), key=lambda r: r.step)
    assert live_audit(records) == run_of(records).audit()


def test_it_rests_on_the_last_five_measurements_and_its_memory_is_bounded():
    records = steady(0.5, 400)
    watcher = live.LiveAudit("model")
    for record in records:
        watcher.note(record)
        for step in range(record.step, record.step + 50):
            watcher.note(Record(step, "model", "log", values={"loss": 1.0}))
    seen = watcher.look(meta(model={}))
    assert seen.steps == (records[-5].step, records[-1].step) and seen.measurements == 5
    held = sum(len(kept) for kept in watcher._kept.values())
    assert held == sum(live.REMEMBERED.values())


def test_it_rests_on_the_last_five_where_they_are_unevenly_spaced():
    records = [stability(2**i, 0.5) for i in range(12)]
    assert live_audit(records).steps == (2**7, 2**11)


def test_a_pause_at_a_rate_of_zero_pushes_no_measurement_out():
    paused = [dataclasses.replace(r, step=r.step + 600, lr=0.0) for r in steady(0.5, threshold=None, rate=None)]
    seen = live_audit([*steady(0.5), *paused])
    assert seen.steps == (350, 550) and seen["sharpness"].verdict == "BELOW_EDGE"
    assert live_audit(paused)["sharpness"].verdict == "NOT_APPLICABLE"


def test_a_rate_that_turns_negative_is_told_at_once() -> None:
    climbing = dataclasses.replace(stability(600, 0.5, threshold=None, rate=None), lr=-0.1)
    line = live_audit([*steady(0.5), climbing])["sharpness"]
    assert line.verdict == "ABOVE_EDGE" and "-0.1 at step 600" in line.reason
    later = [stability(650 + 50 * i, 0.5) for i in range(5)]
    assert live_audit([*steady(0.5), climbing, *later])["sharpness"].verdict == "BELOW_EDGE"


def test_failures_push_no_measurement_out():
    """Diverged long ago: what was measured before is still what the audit of the whole run rests on."""
    lost = [Record(600 + 50 * i, "model", "stability", status="nonfinite", reason="nan") for i in range(40)]
    records = [*steady(0.5), *lost]
    seen = live_audit(records)
    assert seen.criteria == run_of(records).audit().criteria and seen["sharpness"].verdict == "INCONCLUSIVE"
    assert "from step 600 on" in seen["sharpness"].reason
    again = live_audit([*records, *(dataclasses.replace(r, step=r.step + 5000) for r in steady(0.5))])
    assert again["sharpness"].verdict == "BELOW_EDGE"  # a checkpoint was loaded
    failing = [dataclasses.replace(r, status="error", reason="broken") for r in lost]
    assert live_audit(failing)["sharpness"].reason == run_of(failing).audit()["sharpness"].reason


def test_an_upper_bound_lasts_as_long_as_in_the_audit():
    """Values come more often than bounds."""
    records = [r for t in range(0, 100, 2) for r in steady_at(t, bounded=t == 0)]
    assert live_audit(records)["sharpness"].verdict == run_of(records).audit()["sharpness"].verdict == "BELOW_EDGE"


def steady_at(step: int, *, bounded: bool) -> list[Record]:
    values = {"sharpness": 10.0, "sharpness_low": 10.0, "threshold": 20.0, "threshold_largest": 20.0}
    high = 0.55 if bounded else None
    return [Record(step, "model", "stability", value=0.5, low=0.5, high=high, values=values)]


def test_an_audit_that_fails_is_warned_about_once(monkeypatch: pytest.MonkeyPatch):
    def broken(*_: Any) -> Audit:
        raise ZeroDivisionError("broken")

    monkeypatch.setattr(live, "audit", broken)
    problem = Regression()
    optimizer = problem.sgd(0.5)
    with (
        pytest.warns(RuntimeWarning, match="verdicts of 'model' failed at step 1: ZeroDivisionError") as caught,
        watch(problem.model, optimizer, on_verdict=print, **problem.options) as run,
    ):
        problem.loop(optimizer, 25)
    assert len(caught) == 1 and len(run.run.select("stability")) == 3
    with (
        pytest.raises(ZeroDivisionError),
        watch(problem.model, optimizer, on_verdict=print, on_error="raise", **problem.options),
    ):
        problem.loop(optimizer, 1)


def test_bad_input():
    problem = Regression()
    with pytest.raises(SettingError, match="on_verdict takes a function of a Verdict, got str"):
        watch(problem.model, problem.sgd(1.0), on_verdict="print", **problem.options)
