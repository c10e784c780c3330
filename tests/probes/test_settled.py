"""Whether P stays put beside the oscillation: two numbers, against the optimizers, and what verdicts make of them."""

import copy
import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.optim import Adagrad, Adam, AdamW, NAdam, Optimizer, RMSprop

from audited_runs import audit_of, flips, steady, with_gradient
from digits_training import train
from drawn_runs import run_of
from losscope.landscape import Objective
from losscope.landscape.optimizer_rules import _RULES, Rule, register_rule, rule_for
from losscope.landscape.tracked_pair import TrackedPair
from losscope.probes import Audit, Record, Run, Stability, Verdict, watch
from losscope.probes.checkpoint import Room
from losscope.probes.memory import Memory
from losscope.probes.seen import SeenCurvature, seen_by
from losscope.probes.settled import CHANGE, NEWEST
from losscope.viz.demo import digits, half_squared_error, network

F64 = torch.float64
Build = Callable[[Any], Optimizer]
BUILDS: dict[str, Build] = {
    "Adam": lambda p: Adam(p, lr=0.01, betas=(0.9, 0.95), eps=1e-30),
    "AdamW": lambda p: AdamW(p, lr=0.01, eps=1e-30),
    "NAdam": lambda p: NAdam(p, lr=0.01, betas=(0.9, 0.5), eps=1e-30),
    "RMSprop": lambda p: RMSprop(p, lr=0.01, alpha=0.9, eps=1e-30),
    "Adagrad": lambda p: Adagrad(p, lr=0.01, eps=1e-30),
}


# --------------------------------------------------------------------------- the numbers


def stepped(optimizer: Optimizer, gradient: float) -> Tensor:
    """What the step divided by."""
    p = optimizer.param_groups[0]["params"][0]
    p.grad = torch.full_like(p, gradient)
    optimizer.step()
    rule = rule_for(optimizer)
    assert rule is not None and rule.preconditioner is not None
    return rule.preconditioner(optimizer.param_groups[0], optimizer.state[p])


@pytest.mark.parametrize("steps", [1, 2, 7, 60])
@pytest.mark.parametrize("name", BUILDS)
def test_the_newest_share_is_what_p_squared_lacks_without_the_newest_gradient(name: str, steps: int) -> None:
    weight = nn.Parameter(torch.ones(1, dtype=F64))
    optimizer = BUILDS[name]([weight])
    for _ in range(steps - 1):
        stepped(optimizer, 2.0)
    without = stepped(copy.deepcopy(optimizer), 0.0)
    whole = stepped(optimizer, 2.0)
    objective = Objective(nn.ParameterList([weight]), (weight,), loss_fn=lambda m, _: m[0].square().sum())
    seen = seen_by(optimizer, objective)
    assert seen is not None
    expected = 1 - float(without / whole) ** 2
    assert seen.newest_share(torch.ones(1, dtype=F64)) == pytest.approx(expected, abs=1e-12)
    assert expected >= 1 / steps or name != "Adagrad"


@pytest.mark.parametrize("steps", [1, 2, 10, 200])
def test_a_step_answers_to_its_gradient_by_what_the_share_leaves(steps: int) -> None:
    """That is why the edge lies at a ratio between 1 and 1/(1 - share)."""

    def moved(last: float) -> float:
        weight = nn.Parameter(torch.zeros(1, dtype=F64))
        optimizer = RMSprop([weight], lr=1.0, alpha=0.9, eps=1e-30)
        for _ in range(steps - 1):
            stepped(optimizer, 2.0)
        before = weight.item()
        stepped(optimizer, last)
        return before - weight.item()

    share, by = (1 - 0.9) / (1 - 0.9**steps), 1e-5
    frozen = moved(2.0) / 2.0
    assert (moved(2.0 + by) - moved(2.0 - by)) / (2 * by) == pytest.approx((1 - share) * frozen, abs=1e-8)


def test_of_a_rule_that_says_nothing_there_is_no_more_than_one_gradient_of_all() -> None:
    class Told(Adam):
        def step(self, closure: Any = None) -> None:  # type: ignore[override]
            super().step(closure)

    weight = nn.Parameter(torch.ones(2, dtype=F64))
    objective = Objective(nn.ParameterList([weight]), (weight,), loss_fn=lambda m, _: m[0].square().sum())
    optimizer = Told([weight], lr=0.1)
    register_rule(Told, Rule(lambda group, state: (1.0, ""), (), _RULES[Adam].preconditioner))
    try:
        for _ in range(4):
            stepped(optimizer, 1.0)
        seen = seen_by(optimizer, objective)
        assert seen is not None and seen.newest_share(torch.ones(2, dtype=F64)) == 0.25
        register_rule(Told, Rule(lambda group, state: (1.0, ""), (), lambda group, state: state["P"]))
        optimizer.state[weight] = {"P": torch.ones(2, dtype=F64)}
        seen = seen_by(optimizer, objective)
        assert seen is not None and seen.newest_share(torch.ones(2, dtype=F64)) is None
    finally:
        del _RULES[Told]


def test_where_parameters_have_made_other_numbers_of_steps_the_eigenvector_weighs() -> None:
    ones = {"a": torch.ones(2), "b": torch.ones(3)}
    nothing = {"a": 0.0, "b": 0.0}
    seen = SeenCurvature(None, ones, nothing, nothing, {"a": 1.0, "b": 0.1})  # type: ignore[arg-type]
    vector = torch.tensor([0.6, 0.0, 0.8, 0.0, 0.0])
    assert seen.newest_share(vector) == pytest.approx(0.36 + 0.064)


def test_the_change_is_that_of_p_along_the_last_eigenvector() -> None:
    """A dense problem in double precision, measured at every second step."""
    torch.manual_seed(0)
    x, y = torch.randn(30, 6, dtype=F64), torch.randn(30, 1, dtype=F64)
    model = nn.Linear(6, 1, bias=False).double()
    optimizer = RMSprop(model.parameters(), lr=1e-2, alpha=0.9)
    hessian, divisors = x.T @ x / 30, []
    with watch(
        model, optimizer, data=(x, y), criterion=half_squared_error, every=2,
        probes=[Stability(level="sharpness", tol=1e-8)],
    ) as run:  # fmt: skip
        for _ in range(60):
            optimizer.zero_grad()
            half_squared_error(model(x), y).backward()
            optimizer.step()
            divisors.append(optimizer.state[model.weight]["square_avg"].sqrt().flatten() + 1e-8)
    found = {r.step: r.values for r in run.run.select("stability")}
    assert found[0][NEWEST] == pytest.approx(1.0) and found[58][NEWEST] == pytest.approx(0.1, rel=0.01)
    assert CHANGE not in found[2]  # the first eigenvectors are where the first gradients were small
    for step in range(40, 60, 2):
        before, now = divisors[step - 2], divisors[step]
        top = torch.linalg.eigh(hessian / (before[:, None] * before).sqrt()).eigenvectors[:, -1]
        expected = float((top.square() * now / before).sum()) ** 0.5 - 1
        assert found[step][CHANGE] == pytest.approx(expected, rel=1e-4)


def test_a_checkpoint_keeps_when_it_was() -> None:
    known = TrackedPair(torch.eye(2), np.array([2.0, 1.0]))
    objective = Objective(nn.Linear(2, 1, bias=False), (torch.eye(2), torch.ones(2, 1)), criterion=half_squared_error)
    state = Memory(seen=known, seen_step=40, seen_bound_step=0).state_dict(Room(1 << 20))
    again, older = Memory(), Memory()
    again.load_state_dict(state, objective)
    assert again.seen_step == 40
    del state["seen"]["step"]
    older.load_state_dict(state, objective)
    assert older.seen_step is None and older.seen is not None


# --------------------------------------------------------------------------- verdicts


def of(ratio: float, newest: float | None, change: float | None = None, count: int = 6) -> list[Record]:
    """Full-batch measurements; those before this was measured have neither number."""
    found = with_gradient(steady(ratio, count, width=0.01), 1.0)
    for record in found:
        record.values.update({n: v for n, v in ((NEWEST, newest), (CHANGE, change)) if v is not None})
    return found


def audited(*parts: list[Record]) -> Audit:
    records = [dataclasses.replace(r, step=50 * i) for i, r in enumerate(r for part in parts for r in part)]
    return audit_of([*records, *flips(1.0)], preconditioned=True, batch_size=1000)


def told(audit: Audit) -> tuple[str, bool | None]:
    (held,) = {a.holds for a in audit["sharpness"].assumptions if a.text.startswith("the preconditioner changes")}
    (once,) = [a.holds for a in audit.preconditions if a.text.startswith("the preconditioner changes")]
    assert held is once
    return audit["sharpness"].verdict, held


def test_of_older_runs_it_is_not_known() -> None:
    assert told(audited(of(1.3, None))) == ("ABOVE_EDGE", None)
    assert told(audited(of(0.5, None))) == ("BELOW_EDGE", None)


@pytest.mark.parametrize(("ratio", "verdict"), [(0.5, "BELOW_EDGE"), (1.0, "AT_EDGE"), (1.3, "ABOVE_EDGE")])
def test_of_a_p_that_stays_the_verdict_is_as_it_was(ratio: float, verdict: str) -> None:
    assert told(audited(of(ratio, 0.001, 0.002))) == (verdict, True)


@pytest.mark.parametrize("ratio", [0.5, 1.0, 1.3, 20.0])
@pytest.mark.parametrize(("newest", "change"), [(0.5, None), (0.001, 0.2), (0.001, -0.2), (None, 0.2)])
def test_of_a_p_that_moves_there_is_none(ratio: float, newest: float | None, change: float | None) -> None:
    audit = audited(of(ratio, newest, change))
    assert told(audit) == ("INCONCLUSIVE", False) and not audit.above_edge
    assert ("50%" if newest == 0.5 else "20%") in audit["sharpness"].reason


def test_the_edge_may_lie_higher_by_as_much_as_the_step_is_part_of_p() -> None:
    line = audited(of(1.18, 0.1))["sharpness"]
    assert line.verdict == "INCONCLUSIVE" and line.ratio_low == pytest.approx(1.18 * 0.99 * 0.9)
    assert audited(of(1.3, 0.1))["sharpness"].verdict == "ABOVE_EDGE"


def test_the_first_measurements_are_left_out() -> None:
    audit = audited(of(20.0, 1.0, count=1), of(0.5, 0.02, count=1))
    assert told(audit) == ("BELOW_EDGE", True) and audit.steps == (50, 50)
    assert audited(of(20.0, 1.0, count=3), of(0.5, 0.02, count=2)).steps == (150, 200)


def test_one_in_between_is_left_out_too_and_most_are_not() -> None:
    audit = audited(of(0.5, 0.02, count=4), of(20.0, 0.02, 0.3, count=1), of(0.5, 0.02, count=1))
    assert told(audit) == ("BELOW_EDGE", True) and audit.measurements == 4
    assert told(audited(of(0.5, 0.02, count=8), of(20.0, 0.5, count=5))) == ("INCONCLUSIVE", False)


def test_first_steps_are_in_no_phase() -> None:
    """Of a ratio that falls from 20 to 1 at a loss that rises and falls, one would be a catapult."""
    losses = [0.1, 0.3, 0.1, 0.1, 0.1]

    def records(newest: float | None) -> list[Record]:
        found = [*of(20.0, newest, count=2), *of(0.5, 0.02, count=3)]
        for i, record in enumerate(found):
            record.values["loss"] = losses[i]
        return [dataclasses.replace(r, step=50 * i) for i, r in enumerate(found)]

    assert [p.name for p in run_of(records(None)).phases()] == ["catapult"]
    assert run_of(records(0.5)).phases() == ()


def test_mini_batches_too() -> None:
    records = [dataclasses.replace(r, values=r.values | {NEWEST: 0.5}) for r in steady(1.3)]
    audit = audit_of(records, preconditioned=True, batch_size=8)
    assert {audit[name].verdict for name in ("sharpness", "batch_sharpness", "batch_sharpness_ratio")} == {
        "INCONCLUSIVE"
    }


# --------------------------------------------------------------------------- training


def trained(build: Build, steps: int, every: int, seed: int) -> tuple[Run, list[Verdict]]:
    x, y = digits(seed)
    model, heard = network(seed), list[Verdict]()
    optimizer = build(model.parameters())
    with watch(
        model, optimizer, data=(x, y), criterion=half_squared_error, every=every, batch_size=len(x),
        probes=[Stability(level="sharpness")], on_verdict=heard.append,
    ) as run:  # fmt: skip
        for _ in range(steps):
            optimizer.zero_grad()
            loss = half_squared_error(model(x), y)
            loss.backward()
            optimizer.step()
            run.log(loss=loss)
    return run.run, heard


@pytest.mark.parametrize("seed", [1, 4])
@pytest.mark.parametrize("build", [lambda p: Adam(p, lr=1e-3), lambda p: RMSprop(p, lr=1e-4)], ids=["Adam", "RMSprop"])
def test_the_first_step_is_no_verdict(build: Build, seed: int) -> None:
    """There P is the gradient's size, and P^-1 H is large where that happened to be small; the loss never rises."""
    run, heard = trained(build, 60, 50, seed)
    first = run.select("stability")[0]
    assert first.value is not None and first.value > 1.1  # which would be above the edge
    assert [(v.step, v.verdict) for v in heard] == [(0, "INCONCLUSIVE"), (50, "BELOW_EDGE")]
    line = run.audit()["sharpness"]
    assert line.verdict == "BELOW_EDGE" and any(a.holds and "preconditioner" in a.text for a in line.assumptions)


def test_where_p_follows_every_gradient_the_threshold_of_a_frozen_one_says_nothing() -> None:
    """It hovers at nearly twice that, its loss falling in each step."""
    model = network(0)
    run = train(model, RMSprop(model.parameters(), lr=1e-4, alpha=0.5), steps=150)
    last = run.select("stability")[-1]
    assert last.value is not None and last.value > 1.2
    assert run.audit()["sharpness"].verdict == "INCONCLUSIVE" and not run.audit().above_edge
    assert np.all(np.diff(run.logged("loss")[1]) < 0)
