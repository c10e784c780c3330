"""What a step is: record t holds the weights before update t and the rate that this update used."""

import copy
import itertools
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from losscope.landscape import SettingError
from losscope.probes import Player, Snapshot, Stability, Watch, logarithmic, watch
from probe_cases import Line, checksum, checksum_of, records


def sgd(line: Line, **options: Any) -> torch.optim.SGD:
    return torch.optim.SGD(line.model.parameters(), **{"lr": 0.1, "momentum": 0.5} | options)


def update(line: Line, optimizer: torch.optim.Optimizer) -> float:
    optimizer.zero_grad()
    loss = line.loss()
    loss.backward()
    line.note(optimizer.param_groups[0]["lr"])
    optimizer.step()
    return loss.item()


# --------------------------------------------------------------------------- plain loops


def test_record_t_holds_the_weights_before_update_t_and_its_rate() -> None:
    line = Line()
    optimizer = sgd(line)
    scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
    with watch(line.model, optimizer, **line.options()) as run:
        for _ in range(5):
            update(line, optimizer)
            scheduler.step()
    assert records(run) == line.noted
    assert [rate for _, rate, _ in line.noted] == [0.1, 0.05, 0.025, 0.0125, 0.00625]
    assert run.run.meta["steps"] == {"model": 5}


def test_a_rate_that_is_a_tensor() -> None:
    line = Line()
    optimizer = sgd(line, lr=torch.tensor(0.25))
    with watch(line.model, optimizer, **line.options()) as run:
        update(line, optimizer)
    assert [r.lr for r in run.run.records] == [0.25]


def test_groups_that_differ_have_no_one_rate() -> None:
    line = Line()
    groups = [{"params": line.model[0].parameters(), "lr": 0.1}, {"params": line.model[1].parameters(), "lr": 0.2}]
    optimizer = torch.optim.SGD(groups)
    with watch(line.model, optimizer, **line.options()) as run:
        update(line, optimizer)
    assert [r.lr for r in run.run.records] == [None]


def test_accumulation_is_one_step() -> None:
    line = Line()
    optimizer = sgd(line)
    with watch(line.model, optimizer, **line.options()) as run:
        for _ in range(3):
            optimizer.zero_grad()
            for x, y in zip(line.x.split(2), line.y.split(2), strict=True):
                (F.mse_loss(line.model(x), y) / 4).backward()
            line.note(0.1)
            optimizer.step()
    assert records(run) == line.noted and len(line.noted) == 3


def test_the_present_loss_is_that_of_the_same_step() -> None:
    line = Line()
    optimizer = sgd(line)
    with watch(line.model, optimizer, **line.options(probes=[lambda s: {"value": s.loss}])) as run:
        losses = []
        for _ in range(4):
            losses.append(update(line, optimizer))
            run.log(loss=losses[-1])
    assert [r.value for r in run.run.select("<lambda>")] == pytest.approx(losses)
    assert run.run.logged("loss")[0].tolist() == [0, 1, 2, 3]


# --------------------------------------------------------------------------- scaled gradients


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (torch.optim.SGD, {"momentum": 0.5}),
        (torch.optim.SGD, {"fused": True}),  # with momentum, torch leaves its buffer unset when the first is skipped
        (torch.optim.Adam, {}),
        (torch.optim.Adam, {"fused": True}),
        (torch.optim.AdamW, {"fused": True}),
    ],
    ids=["sgd", "sgd fused", "adam", "adam fused", "adamw fused"],
)
def test_a_step_that_the_scaler_skips_does_not_count(kind: Any, options: dict[str, Any]) -> None:
    line = Line()
    optimizer = kind(line.model.parameters(), lr=0.1, **options)
    scaler = torch.amp.GradScaler("cpu", init_scale=16.0)
    with watch(line.model, optimizer, **line.options()) as run:
        for i in range(6):
            optimizer.zero_grad()
            skipped = i in (0, 3, 4)
            scaler.scale(line.loss() * (float("inf") if skipped else 1.0)).backward()
            before = checksum_of(line.model)
            if not skipped:
                line.note(0.1)
            scaler.step(optimizer)
            scaler.update()
            assert (checksum_of(line.model) == before) == skipped
            assert run.steps == len(line.noted)
    assert records(run) == line.noted and len(line.noted) == 3


def test_steps_skipped_to_the_end_leave_no_record() -> None:
    line = Line()
    optimizer = sgd(line, fused=True)
    scaler = torch.amp.GradScaler("cpu")
    with watch(line.model, optimizer, **line.options()) as run:
        scaler.scale(line.loss() * float("nan")).backward()
        scaler.step(optimizer)
    assert run.steps == 0 and run.run.records == []


# --------------------------------------------------------------------------- several optimizers, one model


def body_and_head(line: Line) -> list[torch.optim.Optimizer]:
    body = torch.optim.SGD(line.model[0].parameters(), lr=0.1)  # type: ignore[index, union-attr]
    head = torch.optim.Adam(line.model[1].parameters(), lr=0.1)  # type: ignore[index, union-attr]
    return [body, head]


@pytest.mark.parametrize("period", [1, 5], ids=["both each time", "the second every fifth time"])
def test_two_optimizers_are_one_step_per_round(period: int) -> None:
    line = Line()
    body, head = body_and_head(line)
    options = line.options(probes=[checksum, Stability(rtol=0.9)], batch_size=4)
    with watch(line.model, [body, head], **options) as run:
        for i in range(11):
            body.zero_grad(), head.zero_grad()
            loss = line.loss()
            loss.backward()
            line.note(0.1)
            body.step()
            if i % period == 0:
                head.step()
            run.log(loss=loss)
    assert records(run) == line.noted
    assert run.run.meta["steps"] == {"model": 11}
    assert run.run.logged("loss")[0].tolist() == list(range(11))
    assert {c.verdict for c in run.run.audit().criteria} == {"NOT_APPLICABLE"}
    assert "optimizers" in run.run.audit()["sharpness"].reason


def test_two_optimizers_of_which_the_first_rests() -> None:
    """The one that steps less often comes first in the loop: a round may begin with either."""
    line = Line()
    body, head = body_and_head(line)
    with watch(line.model, [body, head], **line.options()) as run:
        for i in range(4):
            line.loss().backward()
            if i % 2 == 0:
                body.step()
            head.step()
    assert run.steps == 4 and [step for step, _, _ in records(run)] == [0, 1, 2, 3]


def test_measuring_now_in_a_round_that_may_be_over() -> None:
    """The second optimizer has not stepped, and may not: the weights are those before the next update."""
    line = Line()
    body, head = body_and_head(line)
    with watch(line.model, [body, head], **line.options(every=[99])) as run:
        for i in range(3):
            line.loss().backward()
            body.step()
            assert [r.step for r in run.measure_now()] == [i + 1]
    assert run.run.meta["steps"] == {"model": 3}


# --------------------------------------------------------------------------- two players


def test_two_players_count_their_own_steps() -> None:
    first, second = Line(), Line()
    optimizers = [sgd(first), sgd(second, lr=0.01)]
    players = [
        Player(name, line.model, optimizer, line.data, criterion=F.mse_loss)
        for name, line, optimizer in zip("ab", (first, second), optimizers, strict=True)
    ]
    with watch(players, probes=[checksum], every=2) as run:
        for i in range(3):
            loss = update(first, optimizers[0])
            run.log(loss=loss)
            for _ in range(2):
                loss = update(second, optimizers[1])
                run.log(loss=loss, player="b")
            assert run.steps == i + 1
    assert records(run, "a") == [n for n in first.noted if n[0] % 2 == 0]
    assert records(run, "b") == [n for n in second.noted if n[0] % 2 == 0]
    assert run.run.meta["steps"] == {"a": 3, "b": 6}
    assert run.run.logged("loss", "b")[0].tolist() == list(range(6))
    assert set(run.run.to_pandas()["player"]) == {"a", "b"}


def test_a_player_that_depends_on_the_other_gets_no_verdict() -> None:
    first, second = Line(), Line()
    optimizers = [sgd(first), sgd(second)]

    def against(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        return F.mse_loss(model(batch[0]), second.model(batch[0]))

    players = [
        Player("a", first.model, optimizers[0], first.data, 4, loss_fn=against),
        Player("b", second.model, optimizers[1], second.data, 4, criterion=F.mse_loss),
    ]
    with watch(players, probes=[Stability(rtol=0.9)], every=1) as run:
        for line, optimizer in zip((first, second), optimizers, strict=True):
            update(line, optimizer)
    assert {c.verdict for c in run.run.audit("a").criteria} == {"NOT_APPLICABLE"}
    assert run.run.audit("b")["sharpness"].verdict != "NOT_APPLICABLE"


# --------------------------------------------------------------------------- closures


@pytest.mark.parametrize("kind", ["lbfgs", "sgd"])
def test_a_closure_is_one_step_however_often_it_is_called(kind: str) -> None:
    line = Line()
    optimizer: torch.optim.Optimizer = (
        torch.optim.LBFGS(line.model.parameters(), lr=0.5, max_iter=4) if kind == "lbfgs" else sgd(line)
    )
    calls = itertools.count()

    def closure() -> Tensor:
        next(calls)
        optimizer.zero_grad()
        loss = line.loss()
        loss.backward()
        return loss

    with watch(line.model, optimizer, **line.options()) as run:
        for _ in range(3):
            line.note(optimizer.param_groups[0]["lr"])
            optimizer.step(closure)  # type: ignore[arg-type]
    assert records(run) == line.noted and len(line.noted) == 3
    assert next(calls) > 3 if kind == "lbfgs" else next(calls) == 3


class Derived(torch.optim.Adam):
    """A step that calls its superclass's: once that class is in use by itself, torch calls the hooks of both."""

    def step(self, closure: Any = None) -> Any:
        return super().step(closure)


@pytest.mark.parametrize("others", [False, True], ids=["first of its kind", "beside its superclass"])
@pytest.mark.parametrize("fused", [False, True])
def test_a_step_that_calls_its_superclass_is_one(others: bool, fused: bool) -> None:
    if others:
        torch.optim.Adam([nn.Parameter(torch.zeros(1))])
    line = Line()
    derived = Derived(line.model[0].parameters(), lr=0.1, fused=fused)  # type: ignore[index, union-attr]
    head = torch.optim.SGD(line.model[1].parameters(), lr=0.1)  # type: ignore[index, union-attr]
    scaler = torch.amp.GradScaler("cpu", init_scale=16.0)
    with watch(line.model, [derived, head], **line.options()) as run:
        for i in range(6):
            derived.zero_grad(), head.zero_grad()
            skipped = i in (1, 2)
            scaler.scale(line.loss() * (float("inf") if skipped else 1.0)).backward()
            if not skipped:
                line.note(0.1)
            scaler.step(derived), scaler.step(head)
            scaler.update()
    assert records(run) == line.noted and len(line.noted) == run.steps == 4


# --------------------------------------------------------------------------- driven by hand


def test_driven_by_hand() -> None:
    line = Line()
    optimizer = sgd(line)
    with watch(line.model, optimizer, **line.options(every=2, drive="manual")) as run:
        for _ in range(5):
            run.log(loss=update(line, optimizer))
            run.step()
    line.note(0.1)  # after the last update a measurement of the weights before the next one may be due
    assert records(run) == [n for n in line.noted if n[0] % 2 == 0]
    assert run.steps == 5


def test_driven_by_hand_an_optimizer_that_takes_no_hooks() -> None:
    line = Line()
    inner = sgd(line)

    class Foreign:
        param_groups, zero_grad = inner.param_groups, inner.zero_grad

        def step(self) -> None:
            inner.step()

    with pytest.raises(SettingError, match="manual"):
        watch(line.model, Foreign(), **line.options())
    with watch(line.model, Foreign(), **line.options(drive="manual")) as run:
        update(line, Foreign())  # type: ignore[arg-type]
        run.step()
    assert [step for step, _, _ in records(run)] == [0, 1]


def test_driven_by_hand_the_motion_along_the_top_eigenvector_is_followed_too() -> None:
    found = []
    for drive in ("hooks", "manual"):
        line = Line()
        optimizer = sgd(line, lr=0.4, momentum=0.0)
        with watch(line.model, optimizer, **line.options(drive=drive, probes=[Stability()], every=[0])) as run:
            for _ in range(12):
                update(line, optimizer)
                if drive == "manual":
                    run.step()
        found.append([(r.step, r.values) for r in run.run.select("oscillation")])
    assert found[0] == found[1] and len(found[0]) == 1


def test_a_step_by_hand_is_refused_where_hooks_drive() -> None:
    line = Line()
    with watch(line.model, sgd(line), **line.options()) as run, pytest.raises(SettingError, match="manual"):
        run.step()


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


# --------------------------------------------------------------------------- logging and measuring by hand


def test_logged_values_belong_to_the_last_update() -> None:
    line = Line()
    optimizer = sgd(line)
    with watch(line.model, optimizer, **line.options(every=[99])) as run:
        for i in range(3):
            loss = update(line, optimizer)
            run.log(loss=loss)
            run.log(accuracy=i / 10, loss_twice=torch.tensor(2 * loss))
        run.log(step=40, validation=0.5)
    logs = run.run.select("log")
    assert [(r.step, sorted(r.values)) for r in logs] == [
        *((t, ["accuracy", "loss", "loss_twice"]) for t in range(3)), (40, ["validation"]),
    ]  # fmt: skip
    assert run.run.logged("accuracy")[1].tolist() == [0.0, 0.1, 0.2]


def test_what_is_no_number_is_not_logged() -> None:
    line = Line()
    with watch(line.model, sgd(line), **line.options()) as run:
        for value in ("high", torch.ones(2)):
            with pytest.raises(SettingError, match="loss"):
                run.log(loss=value)


def test_measuring_now_has_the_weights_of_now_and_the_next_step() -> None:
    line = Line()
    optimizer = sgd(line)
    with watch(line.model, optimizer, **line.options(every=[1])) as run:
        for t in range(3):
            update(line, optimizer)
            (record,) = run.measure_now()
            assert (record.step, record.lr, record.value) == (t + 1, 0.1, checksum_of(line.model))
    assert [r.step for r in run.run.select("checksum")] == [1, 2, 3]
    assert run.run.select("checksum")[0].value == line.noted[1][2]


@pytest.mark.parametrize("method", ["log", "measure_now", "step"])
def test_what_the_loop_may_call_needs_an_open_watch(method: str) -> None:
    line = Line()
    run = watch(line.model, sgd(line), **line.options(drive="manual"))
    with pytest.raises(SettingError, match="new"):
        getattr(run, method)()
    with run:
        pass
    with pytest.raises(SettingError, match="closed"):
        getattr(run, method)()
    with pytest.raises(SettingError, match="once"), run:
        pass


# --------------------------------------------------------------------------- unusual loops


def token_batches() -> list[dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(2)
    tokens = [torch.randint(5, (2, 6), generator=generator) for _ in range(2)]
    tokens[0][0, 2:] = -100
    tokens[1][1, 5:] = -100
    return [{"ids": t.clamp_min(0), "labels": t} for t in tokens]


def test_dict_batches_weighted_by_tokens() -> None:
    """The recorded loss and curvature are those of all tokens as one batch, however unevenly they are spread."""
    batches = token_batches()
    whole = {key: torch.cat([b[key] for b in batches]) for key in batches[0]}
    found = []
    for data in (batches, [whole]):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Embedding(5, 3), nn.Linear(3, 5)).double()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

        def loss_fn(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
            return F.cross_entropy(model(batch["ids"]).flatten(0, 1), batch["labels"].flatten(), ignore_index=-100)

        options: dict[str, Any] = {"loss_fn": loss_fn, "weight": lambda b: b["labels"].ne(-100).sum()}
        with watch(model, optimizer, data=data, probes=[Stability(tol=1e-8)], every=1, **options) as run:
            for _ in range(3):
                optimizer.zero_grad()
                loss_fn(model, whole).backward()
                optimizer.step()
                run.log(loss=loss_fn(model, whole))
        measured = run.run.select("stability")
        found.append([[r.values[k] for k in ("loss", "sharpness", "trace")] for r in measured])
    assert len(found[0]) == 3
    torch.testing.assert_close(torch.tensor(found[0]), torch.tensor(found[1]), rtol=1e-7, atol=0)


def test_a_compiled_model() -> None:
    line, plain = Line(), Line()
    plain.model.load_state_dict(copy.deepcopy(line.model.state_dict()))
    losses: list[list[float]] = []
    for each, compiled in ((line, True), (plain, False)):
        optimizer = sgd(each)
        model: Callable[..., Tensor] = torch.compile(each.model, backend="eager") if compiled else each.model
        losses.append([])
        with watch(model, optimizer, **each.options(probes=[checksum, Stability(rtol=0.9)], every=2)) as run:  # type: ignore[arg-type]
            for _ in range(5):
                optimizer.zero_grad()
                loss = F.mse_loss(model(each.x), each.y)
                loss.backward()
                each.note(0.1)
                optimizer.step()
                losses[-1].append(loss.item())
        assert records(run) == each.noted[::2]
        assert [r.status for r in run.run.select("stability", ok=False)] == ["ok"] * 3
    assert losses[0] == losses[1] and line.noted == plain.noted


def test_a_compiled_step() -> None:
    """The optimizer's hooks are called while dynamo follows its step, where no stance can be set."""
    line = Line()
    optimizer = sgd(line)
    step = torch.compile(optimizer.step, backend="eager")
    with watch(line.model, optimizer, **line.options(probes=[checksum, Stability(rtol=0.9)])) as run:
        for _ in range(4):
            optimizer.zero_grad()
            line.loss().backward()
            line.note(0.1)
            step()
    assert records(run) == line.noted and len(line.noted) == 4
    assert [r.status for r in run.run.select("stability", ok=False)] == ["ok"] * 4
