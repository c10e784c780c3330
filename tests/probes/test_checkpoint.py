"""A training that is resumed from a checkpoint is watched on as if it had not stopped."""

import copy
import functools
import io
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from losscope.landscape import RunError, SettingError
from losscope.probes import (
    Player,
    Record,
    Run,
    Sharpness,
    Spectrum,
    Stability,
    TangentKernel,
    Trace,
    Trajectory,
    Verdict,
    Watch,
    logarithmic,
    watch,
)
from probe_cases import fingerprint, loader, mlp, seed_everything

OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "edge": lambda p: torch.optim.SGD(p, lr=0.9, momentum=0.5),
    "adam": lambda p: torch.optim.Adam(p, lr=0.01),
}
STEPS = 17


def probes() -> list[Any]:
    return [
        Sharpness(2, guards=1, every=3), Trace(every=4), Stability(rtol=0.5, every=logarithmic(5)),
        Spectrum(2, 4, every=6), TangentKernel(samples=8, every=2), Trajectory(dimension=32, every=3),
    ]  # fmt: skip


class Training:
    """A loop that can be saved and gone on with: model, optimizer, order of the data, random stream."""

    def __init__(self, optimizer: str = "edge") -> None:
        seed_everything(0)
        self.model = mlp()
        self.optimizer = OPTIMIZERS[optimizer](self.model.parameters())
        self.data = list(loader("mlp"))
        self.done = 0

    def go_on(self, until: int, run: Watch | None = None) -> None:
        for step in range(self.done, until):
            x, y = self.data[step % len(self.data)]
            self.optimizer.zero_grad()
            loss = F.cross_entropy(self.model(x), y)
            loss.backward()
            self.optimizer.step()
            if run is not None:
                run.log(loss=loss)
        self.done = until

    def watched(self, **changes: Any) -> Watch:
        options: dict[str, Any] = {"data": self.data, "criterion": F.cross_entropy, "probes": probes(), "mode": "train",
                                   "kernel": "retained"}  # fmt: skip
        return watch(self.model, self.optimizer, on_error="raise", **options | changes)

    def state_dict(self) -> dict[str, Any]:
        return {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict(), "done": self.done,
                "random": torch.get_rng_state()}  # fmt: skip

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.done = state["done"]
        torch.set_rng_state(state["random"])


def stored(state: Any) -> Any:
    """What a checkpoint gives back, by the reader that takes plain content only."""
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def resumed(
    at: int, first: dict[str, Any], second: dict[str, Any], *, optimizer: str = "edge", most: int | None = None
) -> tuple[Watch, Watch]:
    """The two parts of a run that was interrupted; the first went on for a while after its checkpoint."""
    training = Training(optimizer)
    with training.watched(**first) as before:
        training.go_on(at, before)
        checkpoint = stored({"training": training.state_dict(), "watch": before.state_dict(most)})
        training.go_on(min(at + 3, STEPS), before)
    training = Training(optimizer)
    training.load_state_dict(checkpoint["training"])
    after = training.watched(**second)
    after.load_state_dict(checkpoint["watch"])
    with after:
        training.go_on(STEPS, after)
    return before, after


@functools.cache
def whole(optimizer: str) -> Run:
    training = Training(optimizer)
    with training.watched() as run:
        training.go_on(STEPS, run)
    return run.run


def told(run: Run) -> dict[Any, Any]:
    """What the records say and hold, to the bit, without times."""
    return {
        r.key: (r.status, r.lr, r.value, r.low, r.high, r.unit, r.matvecs, fingerprint([r.values, held(run, r)]))
        for r in run.records
    }  # fmt: skip


def held(run: Run, record: Record) -> dict[str, Any]:
    return {name: run.array(record, name) for name in record.arrays}


@pytest.mark.parametrize(("optimizer", "at"), [("edge", 1), ("edge", 6), ("edge", 8), ("adam", 13)])
def test_an_interrupted_run_tells_the_same_as_one_that_was_not(optimizer: str, at: int, tmp_path: Path) -> None:
    """Every schedule, the warm starts of every probe, oscillations and midpoints that were being followed."""
    out = {"out": tmp_path / "run"}
    resumed(at, out, out | {"resume": True}, optimizer=optimizer)
    found, expected = Run(tmp_path / "run"), whole(optimizer)
    assert {r.probe for r in found.records} == {p.name for p in probes()} | {"log", "oscillation", "midpoint"}
    assert told(found) == told(expected)
    assert found.meta["first_step"] == at and found.status == "finished" and found.meta["steps"] == {"model": STEPS}


def test_the_same_without_a_folder() -> None:
    before, after = (part.run for part in resumed(6, {}, {}))
    expected = told(whole("edge"))
    pending = {"midpoint", "oscillation"}  # begun before the checkpoint, and told after it
    assert {r.step for r in after.records if r.probe not in pending} == set(range(6, STEPS))
    assert told(before) | told(after) == expected


def test_warm_starts_that_have_no_room_begin_afresh(tmp_path: Path) -> None:
    """Steps and schedules are the same; eigenvalues and traces agree as two estimates do, at more products."""
    out = {"out": tmp_path / "run"}
    before, _ = resumed(8, out, out | {"resume": True}, most=0)
    assert sum(t.numel() for t in tensors(before.state_dict(0))) == 0
    found, expected = Run(tmp_path / "run"), whole("edge")
    for probe in {p.name for p in probes()} | {"log"}:
        assert [r.step for r in found.select(probe)] == [r.step for r in expected.select(probe)], probe
    lost = {r.key for r in expected.records} - {r.key for r in found.records}
    assert {probe for _, probe, _ in lost} <= {"midpoint", "oscillation"}  # what was being followed is let go
    for own, other in zip(found.select("sharpness"), expected.select("sharpness"), strict=True):
        assert own.value == pytest.approx(other.value, rel=0.02)
    ours, theirs = (sum(r.matvecs for r in run.select("sharpness")) for run in (found, expected))
    assert theirs < ours < theirs + 40


def tensors(content: Any) -> list[Tensor]:
    if isinstance(content, Tensor):
        return [content]
    items = content.values() if isinstance(content, dict) else content if isinstance(content, list | tuple) else ()
    return [tensor for item in items for tensor in tensors(item)]


def test_a_state_stays_within_its_bytes_and_stores_no_more_than_it_shows(tmp_path: Path) -> None:
    training = Training()
    with training.watched() as run:
        training.go_on(8, run)
        n = sum(p.numel() for p in training.model.parameters())
        sizes = {}
        for most in (0, 4 * n, 40 * n, None):
            state = run.state_dict(most)
            kept = tensors(state)
            sizes[most] = sum(t.numel() * t.element_size() for t in kept)
            assert most is None or sizes[most] <= most
            assert all(t.untyped_storage().nbytes() == t.numel() * t.element_size() for t in kept)
        assert 0 == sizes[0] < sizes[4 * n] < sizes[40 * n] < sizes[None]


def test_a_state_that_is_held_does_not_change_as_training_goes_on() -> None:
    training = Training()
    with training.watched() as run:
        training.go_on(7, run)
        held = run.state_dict(None)
        before = fingerprint(held)
        training.go_on(12, run)
        assert fingerprint(held) == before != fingerprint(run.state_dict(None))


# --------------------------------------------------------------------------- other loops


def test_loops_that_hooks_cannot_follow() -> None:
    def part(run: Watch, training: Training, until: int) -> list[Any]:
        with run:
            for _ in range(training.done, until):
                training.go_on(training.done + 1)
                run.step()
            state = run.state_dict() if until < STEPS else {}
        return [[r.key for r in run.run.records if r.probe in ("sharpness", "trace")], state]

    options = {"drive": "manual", "probes": [Sharpness(every=5), Trace(every=logarithmic(4))]}
    training = Training()
    keys, _ = part(training.watched(**options), training, STEPS)
    training = Training()
    first, state = part(training.watched(**options), training, 7)
    run = training.watched(**options)
    run.load_state_dict(stored(state))
    second, _ = part(run, training, STEPS)
    assert {*first, *second} == {*keys} and all(key[2] >= 7 for key in second)


def test_two_players_whose_updates_are_counted_apart() -> None:
    data = list(loader("mlp"))

    def watching(models: list[nn.Module], optimizers: list[torch.optim.Optimizer]) -> Watch:
        names = ("one", "two")
        options: dict[str, Any] = {"data": data, "criterion": F.cross_entropy, "kernel": "retained"}
        both = [Player(n, m, o, **options) for n, m, o in zip(names, models, optimizers, strict=True)]
        return watch(both, every=3, probes=[Sharpness()])

    def players() -> tuple[list[nn.Module], list[torch.optim.Optimizer], Watch]:
        seed_everything(2)
        models = [mlp(), mlp()]
        optimizers = [torch.optim.SGD(m.parameters(), lr=0.1) for m in models]
        return models, optimizers, watching(models, optimizers)

    def rounds(models: list[nn.Module], optimizers: list[torch.optim.Optimizer], count: int) -> None:
        x, y = data[0]
        for _ in range(count):
            for k in (0, 1, 1):
                optimizers[k].zero_grad()
                F.cross_entropy(models[k](x), y).backward()
                optimizers[k].step()

    models, optimizers, expected = players()
    with expected:
        rounds(models, optimizers, 7)
    models, optimizers, before = players()
    with before:
        rounds(models, optimizers, 4)
        state = stored(before.state_dict())
    again = watching(models, optimizers)
    again.load_state_dict(state)
    with again:
        rounds(models, optimizers, 3)
    assert told(before.run) | told(again.run) == told(expected.run)
    assert expected.run.meta["steps"] == again.run.meta["steps"] == {"one": 7, "two": 14}


@pytest.mark.filterwarnings("ignore:losscope. budget")
def test_the_budget_goes_on_with_what_was_spent_and_what_was_postponed() -> None:
    training = Training()
    options = {"probes": [Sharpness(every=[0, 1, 3])], "budget": 1e-9}
    with training.watched(**options) as run:
        training.go_on(5, run)
        state = stored(run.state_dict())
    assert [r.step for r in run.run.select("sharpness")] == [0]
    assert state["players"]["model"]["agenda"]["due"] == {"sharpness": 1} and state["budget"]["spent"] > 0
    again = training.watched(probes=[Sharpness(every=[0, 1, 3])], budget=0.9)
    state["budget"] = {"spent": 50.0, "total": 100.0}  # less than the share that is allowed now
    again.load_state_dict(state)
    with again:
        training.go_on(7, again)
    assert [(r.step, r.due) for r in again.run.select("sharpness")] == [(5, 1)]
    cost = again.run.meta["cost"]
    assert 50 < cost["seconds_measuring"] < 60 and 100 < cost["seconds_total"] < 120


def test_updates_that_a_scaler_skipped_are_counted_on() -> None:
    def scaled(training: Training, scaler: Any, run: Watch, steps: range) -> None:
        for t in steps:
            x, y = training.data[0]
            training.optimizer.zero_grad()
            loss = F.cross_entropy(training.model(x), y) * (math.inf if t in (2, 3, 9) else 1.0)
            scaler.scale(loss).backward()
            scaler.step(training.optimizer)
            scaler.update()

    training, scaler = Training(), torch.amp.GradScaler("cpu", init_scale=4.0)
    with training.watched(scaler=scaler, probes=[Sharpness()], every=2) as run:
        scaled(training, scaler, run, range(6))
        state = stored([run.state_dict(), scaler.state_dict()])
    scaler = torch.amp.GradScaler("cpu")
    scaler.load_state_dict(state[1])
    again = training.watched(scaler=scaler, probes=[Sharpness()], every=2)
    again.load_state_dict(state[0])
    with again:
        scaled(training, scaler, again, range(6, 12))
    facts = again.run.meta["players"]["model"]
    assert (facts["skipped_updates"], facts["updates"], again.steps) == (3, 9, 9)


def test_verdicts_that_were_told_are_not_told_again() -> None:
    def part(training: Training, heard: list[Verdict], until: list[int], state: Any = None) -> dict[str, Any]:
        options = {"probes": [Stability(rtol=0.5)], "every": 1, "on_verdict": heard.append, "batch_size": 8}
        run = training.watched(**options)
        if state is not None:
            run.load_state_dict(state)
        with run:
            for step in until:
                training.optimizer.param_groups[0]["lr"] = 9.0 if step > 7 else 0.05
                training.go_on(step, run)
            return stored(run.state_dict())

    def said(heard: list[Verdict]) -> list[Any]:
        return [(v.step, v.criterion, v.previous, v.verdict, v.ratio) for v in heard]

    expected: list[Verdict] = []
    part(Training(), expected, [7, 14])
    heard: list[Verdict] = []
    training = Training()
    state = part(training, heard, [5])
    part(training, heard, [7, 14], state)
    assert said(heard) == said(expected) != []
    told = [v.previous for v in heard]
    assert {v.step for v in heard} & set(range(5)) and any(told) and not all(told)  # some changed, after the checkpoint


def test_warm_starts_of_layers_that_are_frozen_now_are_left_out() -> None:
    """The state of a model as a loop makes it, which freezes a layer on the way."""
    training = Training()
    with training.watched(probes=[Sharpness()], every=2) as run:
        training.go_on(3, run)
        training.model[0].requires_grad_(False)
        training.go_on(6, run)
        state = run.state_dict()
    training.model[0].requires_grad_(True)
    again = training.watched(probes=[Sharpness()], every=2)
    again.load_state_dict(state)
    with again:
        training.model[0].requires_grad_(False)
        training.go_on(9, again)
    assert [(r.step, r.status) for r in again.run.select("sharpness")] == [(6, "ok"), (8, "ok")]
    assert again.run.meta["players"]["model"]["parameters"] == sum(p.numel() for p in training.model[2].parameters())


# --------------------------------------------------------------------------- what is refused


def checkpointed(**changes: Any) -> tuple[Training, dict[str, Any]]:
    training = Training()
    with training.watched(probes=[Sharpness(), Trace()], **changes) as run:
        training.go_on(2, run)
        return training, run.state_dict()


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        (lambda state: None, SettingError, r"takes what run.state_dict\(\) gave; got <class 'NoneType'>"),
        (lambda state: {"model": {}, "epoch": 3}, SettingError, "got a dict of model, epoch"),
        (lambda state: state | {"version": 99}, RunError, "of version 99, and this losscope reads version 1"),
        (lambda state: state | {"identity": {"critic": {}}}, RunError, "players critic; this watch has model"),
        (lambda state: state | {"probes": ["spectrum"]}, RunError, "probes spectrum; this watch has sharpness, trace"),
    ],
)  # fmt: skip
def test_a_state_of_something_else(change: Callable[[Any], Any], error: type[Exception], words: str) -> None:
    training, state = checkpointed()
    with pytest.raises(error, match=words):
        training.watched(probes=[Sharpness(), Trace()]).load_state_dict(change(copy.deepcopy(state)))


def test_a_state_of_another_model() -> None:
    _, state = checkpointed()
    training = Training()
    training.model = nn.Sequential(nn.Linear(6, 3))
    training.optimizer = torch.optim.SGD(training.model.parameters(), lr=0.1)
    with pytest.raises(RunError, match="another 'model': parameters 83, not 21; digest"):
        training.watched(probes=[Sharpness(), Trace()]).load_state_dict(state)


def test_a_state_comes_before_the_first_update() -> None:
    training, state = checkpointed()
    run = training.watched(probes=[Sharpness(), Trace()])
    with pytest.raises(SettingError, match="from `with watch"):
        run.state_dict()
    with pytest.raises(SettingError, match="max_bytes must be"), run:
        run.state_dict(-1)
    with training.watched(probes=[Sharpness(), Trace()], every=7) as run:
        run.load_state_dict(state)  # in the context, before the first update
        training.go_on(3, run)
        with pytest.raises(SettingError, match="before the first update"):
            run.load_state_dict(state)
    assert run.steps == 3
