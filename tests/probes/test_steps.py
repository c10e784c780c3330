"""What a step is: record t holds the weights before update t and the rate that this update used."""

import copy
import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from line_loops import sgd, update
from losscope.probes import Stability, watch
from probe_cases import Line, checksum, checksum_of, records

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


def test_hooks_that_come_later_are_called_before() -> None:
    """They may clip, or set the rate: the gradient and the rate of a record are those of the step."""
    line = Line()
    optimizer = sgd(line)

    def halved(*_: object) -> None:
        for p in line.model.parameters():
            assert p.grad is not None
            p.grad.mul_(0.5)
        optimizer.param_groups[0]["lr"] = 0.05

    with watch(line.model, optimizer, **line.options(probes=[Stability(level="sharpness")])) as run:
        for step in range(4):
            if step == 1:
                handle = optimizer.register_step_pre_hook(halved)
            optimizer.zero_grad()
            line.loss().backward()
            optimizer.step()
    handle.remove()
    found = run.run.select("stability")
    assert [r.values["gradient_scale"] for r in found[2:]] == pytest.approx([0.5, 0.5])
    assert [r.lr for r in found[2:]] == [0.05, 0.05]
    assert not optimizer._optimizer_step_pre_hooks and not optimizer._optimizer_step_post_hooks
