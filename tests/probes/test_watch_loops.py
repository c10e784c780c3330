"""Loops that fail, diverge or are expensive: what is recorded, what comes out, and that training goes on."""

import json
import math
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from losscope.probes import Player, Run, Sharpness, Snapshot, Stability, Trace, Watch, watch
from noted import Noted
from probe_cases import Line, checksum, checksum_of, counted_products, loader, mlp


def sgd(line: Line, lr: float = 0.1) -> torch.optim.SGD:
    return torch.optim.SGD(line.model.parameters(), lr=lr)


def updates(line: Line, optimizer: torch.optim.Optimizer, run: Watch | None = None, steps: int = 4) -> None:
    for _ in range(steps):
        optimizer.zero_grad()
        loss = line.loss()
        loss.backward()
        line.note(optimizer.param_groups[0]["lr"])
        optimizer.step()
        if run is not None:
            run.log(loss=loss)


def quietly(loop: Callable[[], Watch]) -> tuple[Watch, list[str]]:
    """The watch of a loop, and the warnings it gave."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        run = loop()
    return run, [str(w.message) for w in caught]


def attached(optimizer: torch.optim.Optimizer) -> int:
    return sum(len(table) for name, table in vars(optimizer).items() if name.endswith("_hooks"))


# --------------------------------------------------------------------------- the loop fails


@pytest.mark.parametrize("error", [KeyError("on purpose"), KeyboardInterrupt(), SystemExit(3)], ids=repr)
@pytest.mark.parametrize("drive", ["hooks", "manual"])
def test_an_exception_of_the_loop_comes_out_unchanged(error: BaseException, drive: str, tmp_path: Path) -> None:
    line = Line()
    optimizer = sgd(line)

    def loop() -> None:
        with watch(line.model, optimizer, out=tmp_path / "run", **line.options(drive=drive)):
            updates(line, optimizer, steps=2)
            raise error

    with pytest.raises(type(error)) as caught:
        loop()
    assert caught.value is error and error.__cause__ is None and error.__context__ is None
    run = Run(tmp_path / "run")
    assert run.status == "failed" and run.meta["reason"].startswith(type(error).__name__)
    assert "on purpose" in run.meta["reason"] or not isinstance(error, KeyError)
    assert [r.step for r in run.records] == ([0, 1] if drive == "hooks" else [0])
    assert attached(optimizer) == 0


def test_nothing_stays_attached_after_a_loop_that_ends_well() -> None:
    line = Line()
    optimizer = sgd(line)
    optimizer.register_step_post_hook(lambda *_: None)
    with watch(line.model, optimizer, **line.options()) as run:
        assert attached(optimizer) == 3
        updates(line, optimizer)
    assert attached(optimizer) == 1 and run.run.status == "finished" and run.run.meta["reason"] is None
    before = len(run.run.records)
    updates(line, optimizer)
    assert len(run.run.records) == before == 4


def test_an_exception_inside_a_closure_comes_out_and_counts_no_step() -> None:
    line = Line()
    optimizer = torch.optim.LBFGS(line.model.parameters())
    error = ArithmeticError("on purpose")

    def closure() -> float:
        raise error

    run = watch(line.model, optimizer, **line.options())

    def loop() -> None:
        with run:
            optimizer.step(closure)

    with pytest.raises(ArithmeticError) as caught:
        loop()
    assert caught.value is error
    assert run.run.status == "failed" and run.run.records == [] and run.run.meta["steps"] == {"model": 0}


def test_a_loop_may_be_left_early() -> None:
    line = Line()
    optimizer = sgd(line)
    for _ in range(1):
        with watch(line.model, optimizer, **line.options()) as run:
            updates(line, optimizer, steps=2)
            break
    assert run.run.status == "finished" and len(run.run.records) == 2


# --------------------------------------------------------------------------- a probe fails


def failing(snapshot: Snapshot) -> dict[str, float]:
    snapshot.eigenpairs()
    raise ArithmeticError("on purpose")


def test_an_exception_of_a_probe_is_recorded_and_warned_about_once(tmp_path: Path) -> None:
    line = Line()
    optimizer = sgd(line)

    def loop() -> Watch:
        options = line.options(probes=[Trace(rtol=0.9), failing, checksum])
        with watch(line.model, optimizer, out=tmp_path / "run", **options) as run:
            updates(line, optimizer)
        return run

    _, messages = quietly(loop)
    assert len(messages) == 1 and "failing" in messages[0] and "ArithmeticError: on purpose" in messages[0]
    read = Run(tmp_path / "run")
    assert read.status == "finished"
    failed = read.select("failing", ok=False)
    assert [(r.step, r.status, r.reason) for r in failed] == [
        (t, "error", "ArithmeticError: on purpose") for t in range(4)
    ]
    assert all(r.value is None and r.matvecs > 0 and r.seconds > 0 for r in failed)
    assert read.select("failing") == []
    assert [r.value for r in read.select("checksum")] == [value for _, _, value in line.noted]
    assert [r.status for r in read.select("trace", ok=False)] == ["ok"] * 4


def test_each_player_is_warned_about_on_its_own() -> None:
    lines = [Line(), Line()]
    optimizers = [sgd(line) for line in lines]
    players = [
        Player(n, line.model, o, line.data, criterion=F.mse_loss)
        for n, line, o in zip("ab", lines, optimizers, strict=True)
    ]

    def loop() -> Watch:
        with watch(players, probes=[failing], every=1) as run:
            for line, optimizer in zip(lines, optimizers, strict=True):
                updates(line, optimizer)
        return run

    _, messages = quietly(loop)
    assert sorted("'b'" in m for m in messages) == [False, True]


@pytest.mark.parametrize(
    "returned", [None, 3.0, {"name": "high"}, {"value": object()}], ids=["None", "number", "text", "object"]
)
def test_what_a_probe_must_not_return_is_an_error_of_the_probe(returned: Any) -> None:
    line = Line()
    optimizer = sgd(line)

    def odd(snapshot: Snapshot) -> Any:
        return returned

    def loop() -> Watch:
        with watch(line.model, optimizer, **line.options(probes=[odd, checksum])) as run:
            updates(line, optimizer, steps=2)
        return run

    run, messages = quietly(loop)
    assert len(messages) == 1 and "odd" in messages[0]
    assert [r.status for r in run.run.select("odd", ok=False)] == ["error"] * 2
    assert len(run.run.select("checksum")) == 2


def test_a_loss_that_fails_in_the_measurement_only() -> None:
    line = Line()
    optimizer = sgd(line)
    calls = Noted()

    def loss_fn(model: nn.Module, batch: Any) -> torch.Tensor:
        calls.append(1)
        if len(calls) > 1:  # the first call is the check before the loop
            raise MemoryError("on purpose")
        return F.mse_loss(model(batch[0]), batch[1])

    def loop() -> Watch:
        with watch(line.model, optimizer, data=line.data, loss_fn=loss_fn, every=1, probes=[checksum, Trace()]) as run:
            updates(line, optimizer)
        return run

    run, messages = quietly(loop)
    assert sum("MemoryError" in m for m in messages) == 2  # one for each probe
    assert {(r.status, r.reason) for r in run.run.records} == {("error", "MemoryError: on purpose")}
    assert len(run.run.records) == 8 and run.steps == 4


def test_on_error_raise_lets_exceptions_out() -> None:
    line = Line()
    optimizer = sgd(line)
    run = watch(line.model, optimizer, **line.options(probes=[failing], on_error="raise"))

    def loop() -> Watch:
        with pytest.raises(ArithmeticError, match="on purpose"), run:
            updates(line, optimizer)
        return run

    _, messages = quietly(loop)
    assert len(line.noted) == 1 and len(messages) <= 1
    assert run.run.status == "failed" and "on purpose" in run.run.meta["reason"]
    assert [r.status for r in run.run.records] == ["error"] and attached(optimizer) == 0


# --------------------------------------------------------------------------- the loss is not finite


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_a_loss_that_is_not_finite_is_recorded_as_such(number: float, tmp_path: Path) -> None:
    line = Line()
    optimizer = sgd(line)
    factor = [1.0]

    def loss_fn(model: nn.Module, batch: Any) -> torch.Tensor:
        return F.mse_loss(model(batch[0]), batch[1]) * factor[0]

    probes = [Sharpness(), Trace(rtol=0.9), Stability(rtol=0.9), checksum]

    def loop() -> Watch:
        options: dict[str, Any] = {"data": line.data, "loss_fn": loss_fn, "probes": probes, "every": 1}
        with watch(line.model, optimizer, out=tmp_path / "run", batch_size=4, **options) as run:
            updates(line, optimizer, run, steps=2)
            factor[0] = number
            updates(line, optimizer, run, steps=2)
            run.log(loss=number, rest=1.0)
        return run

    run, messages = quietly(loop)
    assert messages == [] and run.run.status == "finished"
    lost = [r for r in Run(tmp_path / "run").records if r.status == "nonfinite" and r.probe != "midpoint"]
    assert [(r.probe, r.step) for r in lost] == [
        (p, t) for t in (2, 3) for p in ("sharpness", "trace", "stability", "checksum")
    ]
    assert all(str(r.values["loss"]) == str(number) and r.matvecs == 0 and "loss is" in str(r.reason) for r in lost)
    assert [r.step for r in run.run.select("sharpness")] == [0, 1]
    *_, last = run.run.select("log")
    assert str(last.values["loss"]) == str(number) and last.values["rest"] == 1.0
    for text in (tmp_path / "run" / "records.jsonl").read_text().splitlines():
        json.loads(text, parse_constant=pytest.fail)  # strict JSON, no bare NaN
    assert run.run.audit()["sharpness"].verdict == "INCONCLUSIVE"


def test_a_probe_may_return_numbers_that_are_not_finite(tmp_path: Path) -> None:
    line = Line()
    optimizer = sgd(line)

    def odd(snapshot: Snapshot) -> dict[str, Any]:
        return {"value": math.nan, "low": -math.inf, "high": math.inf, "other": torch.tensor(math.nan), "n": 3}

    with watch(line.model, optimizer, out=tmp_path / "run", **line.options(probes=[odd], every=[0])) as run:
        updates(line, optimizer, steps=1)
    (record,) = run.run.select("odd")
    assert math.isnan(record.value or 0) and (record.low, record.high) == (-math.inf, math.inf)
    assert math.isnan(record.values["other"] or 0) and record.values["n"] == 3.0
    json.loads((tmp_path / "run" / "records.jsonl").read_text(), parse_constant=pytest.fail)


def test_a_training_that_diverges_is_recorded_to_its_end() -> None:
    line = Line()
    optimizer = sgd(line, lr=1e6)
    with watch(line.model, optimizer, **line.options(probes=[Sharpness(), checksum])) as run:
        updates(line, optimizer, run, steps=12)
    assert run.run.status == "finished"
    statuses = [r.status for r in run.run.select("sharpness", ok=False)]
    assert len(statuses) == 12 and statuses[0] == "ok" and statuses[-1] == "nonfinite"
    assert not math.isfinite(run.run.logged("loss")[1][-1])


def test_arrays_of_a_users_probe(tmp_path: Path) -> None:
    line = Line()
    optimizer = sgd(line)
    seen: list[torch.Tensor] = []

    def gradient(snapshot: Snapshot) -> dict[str, Any]:
        seen.append(snapshot.gradient.clone())
        return {"value": snapshot.gradient_norm, "gradient": snapshot.gradient}

    with watch(line.model, optimizer, out=tmp_path / "run", **line.options(probes=[gradient])) as run:
        updates(line, optimizer, steps=2)
    for record, expected in zip(run.run.select("gradient"), seen, strict=True):
        assert torch.equal(torch.from_numpy(run.run.array(record, "gradient")).float(), expected)
        assert record.value == pytest.approx(float(expected.norm()))


# --------------------------------------------------------------------------- what it costs


def trained_mlp(probes: list[Any], steps: int, every: Any = 1, **options: Any) -> Run:
    """A small network on one batch, watched; returns the run."""
    torch.manual_seed(0)
    model = mlp()
    data = tuple(next(iter(loader("mlp", batches=1, size=24))))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    with watch(
        model, optimizer, data=data, criterion=F.cross_entropy, probes=probes, every=every, batch_size=6, **options
    ) as run:
        for _ in range(steps):
            optimizer.zero_grad()
            F.cross_entropy(model(data[0]), data[1]).backward()
            optimizer.step()
    return run.run


def test_a_warm_start_needs_fewer_products() -> None:
    warm = trained_mlp([Sharpness()], steps=12).select("sharpness")
    cold = trained_mlp([Sharpness(bound_every=1)], steps=12).select("sharpness")
    assert warm[0].matvecs == cold[0].matvecs and warm[0].high is not None
    assert all(r.high is not None for r in cold) and all(r.high is None for r in warm[1:])
    assert sum(r.matvecs for r in warm[1:]) <= 3 * len(warm[1:])
    assert sum(r.matvecs for r in cold[1:]) > 2 * sum(r.matvecs for r in warm[1:])
    for a, b in zip(warm, cold, strict=True):
        assert a.value == pytest.approx(b.value, rel=2e-2)


@pytest.mark.parametrize("on_error", ["warn", "raise"])
def test_matvecs_in_the_records_are_the_products_made(on_error: str) -> None:
    def own(snapshot: Snapshot) -> dict[str, float]:
        snapshot.hessian @ torch.eye(snapshot.objective.space.size)[:, :5]
        return {"value": snapshot.eigenpairs(3, 1e-3).matvecs}

    with counted_products() as blocks:
        run = trained_mlp([Sharpness(k=2), Trace(rtol=0.3), Stability(rtol=0.3), own], 6, 2, on_error=on_error)
    assert len(run.records) >= 12
    assert sum(r.matvecs for r in run.records) == sum(blocks)
    assert all(r.matvecs >= 5 for r in run.select("own"))
    # What several probes need is computed once, and the first one pays.
    assert all(r.matvecs > 0 for p in ("sharpness", "trace") for r in run.select(p))
    first, *others = (r.matvecs for r in run.select("stability"))
    assert set(others) == {1} and 1 < first <= 21  # that with the gradient; at first also the smallest eigenvalue
    for shared, name in (("sharpness", "sharpness"), ("trace", "trace")):
        assert [r.value for r in run.select(shared)] == [r.values[name] for r in run.select("stability")]


def test_products_of_a_probe_that_fails_are_counted_too() -> None:
    with counted_products() as blocks:
        run, messages = quietly(lambda: trained_mlp([failing], 3))  # type: ignore[arg-type, return-value]
    assert len(messages) == 1
    assert sum(r.matvecs for r in run.records) == sum(blocks) > 0  # type: ignore[attr-defined]


def test_nothing_is_computed_that_no_probe_needs() -> None:
    with counted_products() as blocks:
        trained_mlp([checksum], 3)
    assert blocks == []


def test_the_numbers_do_not_depend_on_what_else_is_measured() -> None:
    alone = trained_mlp([Trace(rtol=0.3)], 6, 2).select("trace")
    together = trained_mlp([Sharpness(), checksum, Trace(rtol=0.3)], 6, 2).select("trace")
    assert [(r.step, r.value, r.low, r.high) for r in alone] == [(r.step, r.value, r.low, r.high) for r in together]


def test_two_runs_of_one_seed_are_equal_and_of_another_are_not() -> None:
    first, again, other = (trained_mlp([Trace(rtol=0.5)], 3, seed=seed).select("trace") for seed in (1, 1, 2))
    assert [r.value for r in first] == [r.value for r in again] != [r.value for r in other]


def test_measuring_now_in_a_loop_and_on_schedule_agree() -> None:
    line = Line()
    optimizer = sgd(line)
    with watch(line.model, optimizer, **line.options(probes=[Sharpness(), checksum], every=[0, 1])) as run:
        first = run.measure_now()
        updates(line, optimizer, steps=2)
    assert [r.probe for r in first] == ["sharpness", "checksum"] and first[1].value == line.noted[0][2]
    assert [r.step for r in run.run.select("checksum")] == [0, 1]
    assert run.run.select("sharpness")[0].value == pytest.approx(first[0].value, rel=1e-2)
    assert checksum_of(line.model) not in [value for _, _, value in line.noted]
