"""Watching data-parallel training: what every rank sees, does and writes."""

from pathlib import Path

import pytest
import torch
from torch import nn

from losscope.probes import Run, watch
from rank_cases import apart, failing, killed, probes, refused, trained
from ranks import SAMPLES, net, on_ranks, samples


def alone() -> list[tuple[object, ...]]:
    """The records of one process with all the data."""
    model, (x, y) = net(), samples()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    batches = list(zip(x.split(8), y.split(8), strict=True))
    with watch(model, optimizer, data=batches, criterion=nn.CrossEntropyLoss(), every=2, probes=probes()) as run:
        for _ in range(6):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x), y, reduction="sum").div(SAMPLES).backward()
            optimizer.step()
            run.log(loss=0.0)
    return [(r.step, r.probe, r.status, r.reason, r.value, r.values) for r in run.run.records]


def agrees(value: float | None, other: float | None) -> bool:
    return value == other if value is None or other is None else value == pytest.approx(other, rel=1e-8, abs=1e-10)


def test_watched_ranks_record_what_one_process_does(tmp_path: Path) -> None:
    out = str(tmp_path / "run")
    everyones, expected = on_ranks(trained, 3, 3, {"out": out}), alone()
    found = [r for r in everyones[0]["records"] if r[1] not in ("log", "neural_collapse")]
    expected = [r for r in expected if r[1] not in ("log", "neural_collapse")]
    assert [r[:3] for r in found] == [r[:3] for r in expected]
    for (step, probe, _, _, value, values), (*_, other, others) in zip(found, expected, strict=True):
        assert agrees(value, other), (step, probe)
        assert values.keys() == others.keys()
        different = {
            name: (number, others[name]) for name, number in values.items() if not agrees(number, others[name])
        }
        assert not different, (step, probe)
    for other in everyones[1:]:
        assert [r for r in other["records"] if r[1] != "log"] == [r for r in everyones[0]["records"] if r[1] != "log"]
    run = Run(out)
    assert run.status == "finished"
    assert [r.values["loss"] for r in run.select("log")] == [0.0] * 6
    skipped = run.select("neural_collapse", ok=False)
    assert {r.status for r in skipped} == {"skipped"}
    assert "every rank holds a part" in str(skipped[0].reason)


def test_watching_ranks_changes_no_bit_of_their_training() -> None:
    watched, unwatched = on_ranks(trained, 2, 2, {"budget": 0.5, "batch_size": 8}), on_ranks(trained, 2, 2, None)
    for seen, unseen in zip(watched, unwatched, strict=True):
        reason = next(reason for _, probe, _, reason, *_ in seen["records"] if probe == "stability")
        assert "mini-batches: not measured" in reason
        assert all(seen[name] == unseen[name] for name in ("weights", "random", "gradients"))


# --------------------------------------------------------------------------- faults


def test_a_killed_rank_ends_the_measurement_of_the_others() -> None:
    *others, dead = on_ranks(killed, 3, 3, lost=1)
    assert dead is None
    for found in others:
        assert found["first"] == ["ok", "ok"]
        assert [status for status, _ in found["second"]] == ["error", "error"]
        assert all("RankError" in reason and "contact" in reason for _, reason in found["second"])
        assert found["seconds"] < 20  # gloo sees the connection close: nobody waits for a timeout
        assert found["warnings"]


def test_what_fails_on_one_rank_fails_on_all_and_the_next_does_not() -> None:
    first, second = on_ranks(failing, 2, 2)
    assert [r[:3] for r in first["records"]] == [r[:3] for r in second["records"]]
    expected = [
        ("raises", "error", "rank 1 failed: ValueError: of this rank alone"),
        ("sharpness", "ok", ""),
        ("goes_on_without_products", "error", "different things"),
        ("has_no_room", "error", "no room for it"),
        ("swallows", "ok", ""),
        ("is_not_finite", "nonfinite", "the loss is nan"),
        ("trace", "ok", ""),
    ]
    for step in (0, 1):
        records = [r[1:] for r in first["records"] if r[0] == step]
        assert [r[:2] for r in records] == [e[:2] for e in expected]
        assert all(part in (reason or "") for (_, _, reason), (_, _, part) in zip(records, expected, strict=True))
    assert any("of this rank alone" in message for message in first["warnings"])
    assert not second["warnings"]  # rank 0 speaks for all


# --------------------------------------------------------------------------- bad input


def test_ranks_that_are_not_asked_for_the_same_are_refused_on_all() -> None:
    first, second = on_ranks(refused, 2, 2)
    assert first.keys() == second.keys()
    for name, part in {
        "probes": "sharpness(",
        "settings": "k=2",
        "schedule": "every: 2 on rank 0, 3 on rank 1",
        "kernel": "'kernel': 'retained'",
        "no data": "the data yielded no batch",
        "no option": "on_error must be one of",
        "meaning": "data_parallel must be",
        "weights": "norm",
    }.items():
        assert part in first[name], name
        assert part in second[name], name
    assert first["none"] == second["none"]
    assert float(first["none"]) > 0  # rank 0's seed is that of all


def test_what_is_not_wrapped_is_measured_by_each_rank_for_itself() -> None:
    (own, measured, together), (other, nothing, the_same) = on_ranks(apart, 2, 2)
    assert measured == own
    assert nothing == 0
    assert own != other
    assert together == the_same
