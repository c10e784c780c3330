"""Clipped gradients are told from the norms and entries that the optimizer stepped with."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import nn

from losscope.probes import Record
from losscope.probes.clipping import clipping
from observed_runs import facts_and_window, observed_run

Change = Callable[[nn.Module, int], None]


def records(norms: list[float], largest: list[float] | None = None, scales: list[float] | None = None) -> list[Record]:
    found = []
    for i, norm in enumerate(norms):
        values: dict[str, float | None] = {"training_gradient_norm": norm}
        if largest:
            values["training_gradient_largest"] = largest[i]
        if scales:
            values["gradient_scale"] = scales[i]
        found.append(Record(i, "model", "stability", values=values))
    return found


def drawn(seed: int, count: int, spread: float) -> list[float]:
    return torch.randn(count, generator=torch.Generator().manual_seed(seed)).mul(spread).exp().tolist()


def norm(most: float) -> Change:
    return lambda model, _: (torch.nn.utils.clip_grad_norm_(model.parameters(), most), None)[1]


def value(most: float) -> Change:
    return lambda model, _: torch.nn.utils.clip_grad_value_(model.parameters(), most)


# --------------------------------------------------------------------------- mini-batches


@pytest.mark.parametrize("spread", [0.02, 0.3, 1.5])
@pytest.mark.parametrize("most", [0.5, 1.0, 2.0])
def test_the_share_of_norms_that_were_clipped(spread: float, most: float) -> None:
    for seed in range(20):
        raw = drawn(seed, 40, spread)
        clipped = [min(v, most * v / (v + 1e-6)) if v > most else v for v in raw]
        share = sum(v > most for v in raw) / 40
        found = clipping(records(clipped), records(clipped), full_batch=False, dtype="float32")
        assert found.measured == 40
        if share * 40 >= 3:
            assert (found.kind, found.share) == ("norm", share)
            assert found.at == pytest.approx(most, rel=1e-5)
        else:
            assert found == type(found)(0.0, 40)


@pytest.mark.parametrize(("count", "runs"), [(3, 100), (10, 100), (100, 100), (2000, 34)])
@pytest.mark.parametrize("spread", [1e-4, 1e-3, 0.1, 1.0])
def test_gradients_that_are_not_clipped_are_not_called_so(count: int, runs: int, spread: float) -> None:
    """However little they scatter: 3 % at most of runs."""
    called = 0
    for seed in range(runs):
        raw = drawn(seed, count, spread)
        called += clipping(records(raw), records(raw), full_batch=False, dtype="float32").share > 0
    assert called <= 0.03 * runs


def test_clipped_by_value_and_not_by_norm() -> None:
    raw = drawn(0, 30, 0.5)
    largest = [min(v, 1.2) for v in drawn(1, 30, 0.5)]
    found = clipping(records(raw, largest), records(raw, largest), full_batch=False, dtype="float32")
    assert (found.kind, found.at) == ("value", 1.2) and found.share == sum(v == 1.2 for v in largest) / 30


def test_the_value_shows_in_the_whole_run_and_the_share_is_of_the_window() -> None:
    raw = [min(v, 1.0) for v in drawn(0, 40, 0.5)]
    everything = records(raw)
    window = [r for r in everything if (r.values["training_gradient_norm"] or 0) < 1][:10]
    assert clipping(window, everything, full_batch=False, dtype="float32").share == 0
    assert (
        clipping(everything[-8:], everything, full_batch=False, dtype="float32").share
        == sum(v == 1.0 for v in raw[-8:]) / 8
    )


def test_half_precision_divides_by_a_rounded_norm() -> None:
    model = nn.Linear(200, 50)
    norms = []
    for seed in range(12):
        generator = torch.Generator().manual_seed(seed)
        for p in model.parameters():
            p.grad = torch.randn(p.shape, generator=generator) * (1 + seed)
        half = [p.grad.bfloat16() for p in model.parameters() if p.grad is not None]
        stand_in = [nn.Parameter(torch.zeros_like(g)) for g in half]
        for p, g in zip(stand_in, half, strict=True):
            p.grad = g
        torch.nn.utils.clip_grad_norm_(stand_in, 1.0)
        norms.append(math.sqrt(sum(float(p.grad.double().square().sum()) for p in stand_in if p.grad is not None)))
    found = clipping(records(norms), records(norms), full_batch=False, dtype="bfloat16")
    assert (found.kind, found.share) == ("norm", 1.0) and found.at == pytest.approx(1.0, rel=0.01)


def test_nothing_measured() -> None:
    assert clipping([], [], full_batch=False, dtype="float32").measured == 0
    bare = [Record(0, "model", "stability", values={"loss": 1.0})]
    assert clipping(bare, bare, full_batch=None, dtype="").measured == 0


# --------------------------------------------------------------------------- all the data


def test_full_batch_steps_are_compared_with_the_gradient_itself() -> None:
    scales = [1.0, 0.5, 0.99, 0.9, 1.0, 1.0]
    raw = [0.9, 1.0, 0.95, 1.0, 0.8, 0.7]
    found = clipping(records(raw, scales=scales), records(raw, scales=scales), full_batch=True, dtype="float32")
    assert (found.share, found.measured, found.at) == (2 / 6, 6, None)


# --------------------------------------------------------------------------- real loops


_MOST = {("norm", 4): (0.8, 1.2), ("value", 4): (0.1, 0.25), ("norm", None): (0.1, 0.2), ("value", None): (0.005, 0.02)}
"""What is clipped to, always and now and then."""


@pytest.mark.parametrize("size", [4, None], ids=["batches of 4", "all data"])
@pytest.mark.parametrize(
    ("kind", "part"),
    [("norm", "always"), ("norm", "now and then"), ("value", "always"), ("value", "now and then"), ("norm", "never")],
)
def test_in_real_loops(size: int | None, kind: str, part: str) -> None:
    always, partly = _MOST[kind, size]
    most = always if part == "always" else partly
    change = norm(most) if kind == "norm" else value(most)
    truth: set[int] = set()

    def clip(model: nn.Module, step: int) -> None:
        before = [p.grad.clone() for p in model.parameters() if p.grad is not None]
        change(model, step)
        after = [p.grad for p in model.parameters() if p.grad is not None]
        if max(float((a - b).abs().max() / b.abs().max()) for a, b in zip(after, before, strict=True)) > 1e-5:
            truth.add(step)

    run = observed_run(size=size, steps=120, every=5, change=None if part == "never" else clip)
    facts, _ = facts_and_window(run)
    everything = run.select("stability")
    found = clipping(everything, everything, full_batch=size is None, dtype=facts["weights_dtype"])
    assert found.measured == 24
    if part == "never":
        assert found.share == 0
        return
    clipped = [r.step for r in everything if r.step in truth]
    assert found.share == len(clipped) / 24
    assert found.share == 1.0 if part == "always" else 0.15 <= found.share <= 0.85
    assert found.kind == kind and found.at == pytest.approx(most, rel=1e-4)


# --------------------------------------------------------------------------- gradients that stay as they are


def test_a_constant_gradient_is_not_a_clipped_one() -> None:
    """Of a linear loss, or at a rate of 0: the norms are all the same, and those of the objective's own gradient."""
    same = records([3.3] * 8, [2.1] * 8, [1.0] * 8)
    assert clipping(same, same, full_batch=True, dtype="float32").share == 0
    shorter = records([1.0] * 8, [0.5] * 8, [0.6, 0.5, 0.4, 0.3, 0.6, 0.5, 0.4, 0.3])
    found = clipping(shorter, shorter, full_batch=True, dtype="float32")
    assert (found.share, found.kind, found.at) == (1.0, "norm", 1.0)
