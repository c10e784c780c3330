"""Updates that a GradScaler skips are counted as they are, and counting them waits for nothing."""

from typing import Any

import pytest
import torch
from torch import Tensor

from losscope.landscape import SettingError
from losscope.probes import Watch, watch
from losscope.probes.skipped import SkippedUpdates, checked_scaler
from probe_cases import Line, fingerprint, outcome

KINDS: dict[str, tuple[Any, dict[str, Any]]] = {
    "sgd": (torch.optim.SGD, {"momentum": 0.5}),
    "sgd fused": (torch.optim.SGD, {"fused": True}),
    "adam": (torch.optim.Adam, {}),
    "adamw fused": (torch.optim.AdamW, {"fused": True}),
}


def scaler_of(**options: Any) -> torch.amp.GradScaler:
    return torch.amp.GradScaler("cpu", **{"init_scale": 1024.0} | options)


def loop(line: Line, optimizer: Any, scaler: torch.amp.GradScaler, infinite: list[bool], accumulate: int = 1) -> int:
    """Train with infinite gradients where they are wanted; the number of updates that did not come about."""
    skipped = 0
    for inf in infinite:
        optimizer.zero_grad()
        for part in range(accumulate):
            loss = line.loss() * (float("inf") if inf and part == 0 else 1.0) / accumulate
            scaler.scale(loss).backward()
        before = scaler.get_scale()
        scaler.step(optimizer)
        scaler.update()
        skipped += scaler.get_scale() < before
    return skipped


def pattern(seed: int, share: float, steps: int = 40) -> list[bool]:
    drawn = torch.rand(steps, generator=torch.Generator().manual_seed(seed))
    return (drawn < share).tolist()


# --------------------------------------------------------------------------- counted in real loops


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("interval", [1, 2, 5, 2000])
@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9])
def test_every_skip_is_counted_also_where_the_scale_grows_back(kind: str, interval: int, share: float) -> None:
    for seed in range(2):
        line, scaler = Line(), scaler_of(growth_interval=interval)
        make, options = KINDS[kind]
        optimizer = make(line.model.parameters(), lr=0.01, **options)
        infinite = pattern(seed, share)
        with watch(line.model, optimizer, **line.options(scaler=scaler, every=[0], on_error="raise")) as run:
            skipped = loop(line, optimizer, scaler, infinite)
        facts = run.run.meta["players"]["model"]
        assert skipped == sum(infinite)
        assert (facts["skipped_updates"], facts["updates"]) == (skipped, len(infinite) - skipped)
        assert run.steps == facts["updates"]


@pytest.mark.parametrize(("growth", "backoff"), [(2.0, 0.5), (3.0, 0.9), (1.5, 0.1)])
def test_with_other_factors(growth: float, backoff: float) -> None:
    line, scaler = Line(), scaler_of(growth_interval=4, growth_factor=growth, backoff_factor=backoff)
    optimizer = torch.optim.SGD(line.model.parameters(), lr=0.01)
    infinite = pattern(7, 0.25, steps=50)
    with watch(line.model, optimizer, **line.options(scaler=scaler, every=7, on_error="raise")) as run:
        loop(line, optimizer, scaler, infinite, accumulate=2)
    assert run.run.meta["players"]["model"]["skipped_updates"] == sum(infinite) > 5


def test_a_long_run_is_folded_as_it_goes() -> None:
    line, scaler = Line(), scaler_of(growth_interval=3)
    optimizer = torch.optim.SGD(line.model.parameters(), lr=0.001)
    infinite = pattern(1, 0.2, steps=900)
    with watch(line.model, optimizer, **line.options(scaler=scaler, every=[10**6], on_error="raise")) as run:
        loop(line, optimizer, scaler, infinite)
        assert len(run._follower(None)._skips._looks) <= 257
    assert run.run.meta["players"]["model"]["skipped_updates"] == sum(infinite)


def test_a_snapshot_knows_those_before_it() -> None:
    line, scaler = Line(), scaler_of()
    optimizer = torch.optim.SGD(line.model.parameters(), lr=0.01)
    seen = []

    def probe(snapshot: Any) -> dict[str, float]:
        seen.append(snapshot.skipped_updates)
        return {"value": 0.0}

    with watch(line.model, optimizer, **line.options(probes=[probe], scaler=scaler, on_error="raise")):
        loop(line, optimizer, scaler, [True, True, False, False, True, False, True])
    assert seen == [2, 2, 3]  # the last comes after the last measurement


def test_a_scaler_that_has_been_used_before() -> None:
    line, scaler = Line(), scaler_of(growth_interval=3)
    optimizer = torch.optim.SGD(line.model.parameters(), lr=0.01)
    loop(line, optimizer, scaler, [True, False, False])
    with watch(line.model, optimizer, **line.options(scaler=scaler, on_error="raise")) as run:
        loop(line, optimizer, scaler, [False, True, True, False])
    facts = run.run.meta["players"]["model"]
    assert (facts["skipped_updates"], facts["updates"]) == (2, 2)


def test_two_optimizers_in_one_round() -> None:
    line, scaler = Line(), scaler_of(growth_interval=2)
    body = torch.optim.SGD(line.model[0].parameters(), lr=0.01)  # type: ignore[index, union-attr]
    head = torch.optim.Adam(line.model[1].parameters(), lr=0.01)  # type: ignore[index, union-attr]
    infinite = pattern(3, 0.3, steps=40)
    with watch(line.model, [body, head], **line.options(scaler=scaler, on_error="raise")) as run:
        for inf in infinite:
            body.zero_grad(), head.zero_grad()
            scaler.scale(line.loss() * (float("inf") if inf else 1.0)).backward()
            scaler.step(body), scaler.step(head)
            scaler.update()
    facts = run.run.meta["players"]["model"]
    assert (facts["skipped_updates"], facts["updates"]) == (sum(infinite), 40 - sum(infinite))


def test_driven_by_hand() -> None:
    line, scaler = Line(), scaler_of()
    optimizer = torch.optim.SGD(line.model.parameters(), lr=0.01)
    with watch(line.model, optimizer, **line.options(scaler=scaler, drive="manual", on_error="raise")) as run:
        for inf in (True, False, False, True, False):
            loop(line, optimizer, scaler, [inf])
            run.step()
    assert run.run.meta["players"]["model"]["skipped_updates"] == 2


# --------------------------------------------------------------------------- without a scaler


@pytest.mark.parametrize("fused", [True, False])
def test_without_it_only_fused_optimizers_are_told(fused: bool) -> None:
    line, scaler = Line(), scaler_of()
    optimizer = torch.optim.SGD(line.model.parameters(), lr=0.01, fused=fused)
    with watch(line.model, optimizer, **line.options(on_error="raise")) as run:
        loop(line, optimizer, scaler, [True, False, False, True, False])
    facts = run.run.meta["players"]["model"]
    assert facts.get("skipped_updates") == (2 if fused else None)
    assert run.steps == 3


def test_a_scaler_that_is_off_is_none() -> None:
    line = Line()
    optimizer = torch.optim.SGD(line.model.parameters(), lr=0.01)
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    with watch(line.model, optimizer, **line.options(scaler=scaler, on_error="raise")) as run:
        line.loss().backward()
        optimizer.step()
    assert checked_scaler(scaler) is None
    assert "skipped_updates" not in run.run.meta["players"]["model"]


@pytest.mark.parametrize("wrong", [2.0, torch.tensor(2.0), "scaler", torch.amp.GradScaler])
def test_what_is_no_scaler_is_refused(wrong: Any) -> None:
    line = Line()
    with pytest.raises(SettingError, match=r"scaler must be a torch.amp.GradScaler"):
        watch(line.model, torch.optim.SGD(line.model.parameters(), lr=0.1), **line.options(scaler=wrong))


def test_a_scaler_that_fails_is_warned_about_once_and_the_loop_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    line, scaler = Line(), scaler_of()
    optimizer = torch.optim.SGD(line.model.parameters(), lr=0.01)
    run = watch(line.model, optimizer, **line.options(scaler=scaler))

    def failing(*_: Any) -> None:
        raise ArithmeticError("on purpose")

    monkeypatch.setattr(SkippedUpdates, "look", failing)
    with pytest.warns(RuntimeWarning, match="on purpose") as caught, run:
        loop(line, optimizer, scaler, [False] * 4)
    assert len(caught) == 1 and run.steps == 4 and len(run.run.select("checksum")) == 4


# --------------------------------------------------------------------------- training does not notice


@pytest.mark.parametrize("kind", KINDS)
def test_training_and_scaler_are_the_same_to_the_bit(kind: str) -> None:
    found = []
    for watched in (False, True):
        torch.manual_seed(0)
        line, scaler = Line(), scaler_of(growth_interval=3)
        make, options = KINDS[kind]
        optimizer = make(line.model.parameters(), lr=0.05, **options)
        run: Watch | None = None
        if watched:
            run = watch(line.model, optimizer, **line.options(scaler=scaler, on_error="raise")).__enter__()
        loop(line, optimizer, scaler, [True, *pattern(2, 0.3, steps=20)])
        if run is not None:
            run.__exit__(None, None, None)
        found.append((outcome([line.model], [optimizer], []), fingerprint(scaler.state_dict())))
    assert found[1][0].differences(found[0][0]) == [] and found[1][1] == found[0][1]


def test_looking_reads_nothing_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a device that would make the loop wait: here one that refuses to be read."""
    scaler = scaler_of(growth_interval=2)
    counted = SkippedUpdates(scaler)
    scaler.scale(torch.ones(()))

    def refusing(*_: Any, **__: Any) -> Any:
        raise AssertionError("read back")

    with monkeypatch.context() as patched:
        for name in ("item", "__float__", "__int__", "__bool__", "tolist", "cpu", "numpy"):
            patched.setattr(Tensor, name, refusing)
        for _ in range(600):  # it is folded twice
            counted.look(made=True)
    assert counted.read() == 0
