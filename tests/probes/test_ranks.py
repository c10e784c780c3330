"""Watching data-parallel training: what every rank sees, does and writes."""

from pathlib import Path

import pytest
import torch
from torch import nn

from losscope.probes import Run, watch
from rank_cases import probes, trained
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


@pytest.mark.parametrize("size", [2, 4])
def test_watched_ranks_record_what_one_process_does(size: int, tmp_path: Path) -> None:
    out = str(tmp_path / "run")
    everyones, expected = on_ranks(trained, size, size, {"out": out}), alone()
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
    watched, unwatched = on_ranks(trained, 2, 2, {"budget": 0.5}), on_ranks(trained, 2, 2, None)
    for seen, unseen in zip(watched, unwatched, strict=True):
        assert seen["records"]
        assert all(seen[name] == unseen[name] for name in ("weights", "random", "gradients"))
