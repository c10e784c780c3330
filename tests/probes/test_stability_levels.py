"""What each level of the stability probe measures, at what cost, and what it says when a part of it fails."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from losscope.landscape import Hessian, Objective, SettingError
from losscope.landscape.stability import linearised_rows, mean_square_threshold, minibatch_sharpness
from losscope.probes import Run, Snapshot, Stability, watch
from losscope.probes.minibatches import NAMES


def half_square(outputs: Tensor, targets: Tensor) -> Tensor:
    return (outputs - targets).square().sum(dim=1).mean() / 2


def data(samples: int = 48) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(samples, 4, generator=generator)
    return x, torch.sin(x[:, :2])


def trained(
    *probes: Any, batch: int | None = 8, make: Any = None, steps: int = 60, every: int = 10, **options: Any
) -> Run:
    torch.manual_seed(0)
    x, y = data()
    model = nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, 2))
    optimizer = make(model.parameters()) if make else torch.optim.SGD(model.parameters(), lr=0.05)
    generator = torch.Generator().manual_seed(2)
    with watch(
        model, optimizer, data=(x, y), criterion=half_square, probes=probes, every=every, batch_size=batch or len(x),
        on_error="raise", **options,
    ) as run:  # fmt: skip
        for _ in range(steps):
            some = torch.randperm(len(x), generator=generator)[:batch] if batch else slice(None)
            optimizer.zero_grad()
            half_square(model(x[some]), y[some]).backward()
            optimizer.step()
    return run.run


def test_the_sharpness_level_measures_that_and_no_more():
    run = trained(Stability(level="sharpness"))
    records = run.select("stability")
    assert all("sharpness" in r.values and "trace" not in r.values for r in records)
    assert not any(name in r.values for r in records for name in NAMES)
    assert not run.select("midpoint")
    assert min(r.matvecs for r in records) <= 3  # warm, between renewals of the bound
    audit = run.audit()
    assert audit["sharpness"].verdict in ("NOT_EXCLUDED", "INCONCLUSIVE")
    assert 'level="full"' in audit["s_mu"].reason


def test_the_full_level_measures_every_line_as_the_estimators_do():
    seen: dict[int, dict[str, float]] = {}

    def dense(snapshot: Snapshot) -> dict[str, float]:
        objective = snapshot.objective
        H = Hessian(objective) @ torch.eye(objective.space.size)
        found = minibatch_sharpness(objective, 8, rtol=0.02, max_draws=3000, seed=0)
        seen[snapshot.step] = {"trace": float(H.trace())} | {
            name: getattr(found, attribute).value
            for name, attribute in (("batch_sharpness", "mean_of_ratios"), ("s_mu", "index"), ("frobenius",) * 2)
        }
        return {"value": float(torch.linalg.eigvalsh(H.double())[-1])}

    run = trained(Stability(), dense)
    sharpest = {r.step: r.value for r in run.select("dense")}
    for record in run.select("stability"):
        values = record.values
        assert values["sharpness"] == pytest.approx(sharpest[record.step], rel=2e-2)
        assert set(NAMES) <= set(values)
        for name, true in seen[record.step].items():
            half = (values[f"{name}_high"] - values[f"{name}_low"]) / 2
            assert abs(values[name] - true) <= 2.5 * half, (record.step, name)
        assert values["mu"] == pytest.approx(values["aligned_trace"] * 8 / values["trace"])
        assert values["critical_sharpness"] is None or values["critical_sharpness"] > 0
    assert len(run.select("midpoint")) >= 5


def test_a_full_batch_has_no_mini_batches():
    run = trained(Stability(), batch=None)
    assert not any(name in r.values for r in run.select("stability") for name in NAMES)
    assert run.audit()["s_mu"].verdict == "NOT_APPLICABLE"


@pytest.mark.parametrize("name", ["Adam", "RMSprop", "NAdam"])
def test_a_preconditioner_has_larger_epsilons_and_batch_sharpness_of_its_own(name):
    run = trained(Stability(), make=lambda p: getattr(torch.optim, name)(p, lr=1e-3))
    for record in run.select("stability"):
        values = record.values
        assert values["sharpness_epsilon_100"] <= 1.001 * values["sharpness"]
        assert values["batch_sharpness"] is not None
        assert "s_mu" not in values
        assert 0 < values["threshold_small_batch"] <= values["threshold"]
    lines = [c.name for c in run.audit().criteria if c.verdict != "NOT_APPLICABLE"]
    assert lines == ["sharpness", "batch_sharpness", "batch_sharpness_ratio"]


def test_coordinates_that_only_epsilon_moves_are_found_out():
    """One input is always zero, so that its weights' gradients vanish; their decay is all the curvature they have."""
    torch.manual_seed(0)
    x, y = data()
    x = torch.cat((x, torch.zeros(len(x), 1)), dim=1)
    model = nn.Linear(5, 2)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, weight_decay=0.0)

    def loss(model: nn.Module, batch: Any) -> Tensor:
        return half_square(model(batch[0]), batch[1]) + 0.5e-3 * model.weight[:, 4].square().sum()

    with torch.no_grad():
        model.weight[:, 4] = 0.0  # a minimum of the penalty: no gradient, and a curvature of 1e-3
    with watch(model, optimizer, data=(x, y), loss_fn=loss, probes=[Stability()], every=5, batch_size=len(x)) as run:
        for _ in range(30):
            optimizer.zero_grad()
            loss(model, (x, y)).backward()
            optimizer.step()
    last = run.run.select("stability")[-1].values
    assert last["dead_share"] > 0.9
    assert last["sharpness_epsilon_10"] < 0.2 * last["sharpness"]
    dead = [a for a in run.run.audit()["sharpness"].assumptions if "epsilon" in a.text]
    assert [a.holds for a in dead] == [False]


def test_the_exact_threshold_of_the_linearised_model():
    def direct(snapshot: Snapshot) -> dict[str, float]:
        rows = linearised_rows(snapshot.objective)
        return {"value": 2 / mean_square_threshold(rows, 8, replacement=False, seed=1).value}

    run = trained(Stability(mean_square=True), direct, steps=20)
    for measured, exact in zip(run.select("stability"), run.select("direct"), strict=True):
        values = measured.values
        assert values["mean_square"] == pytest.approx(exact.value, rel=1e-3)
        assert values["mean_square_low"] <= exact.value <= values["mean_square_high"] * (1 + 1e-9)
    assert run.audit()["mean_square"].verdict == "BELOW_EDGE"


def test_a_part_that_fails_leaves_the_rest_and_says_so():
    """A loss that is none of squares has no such threshold."""
    torch.manual_seed(0)
    x, y = data()
    model = nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)

    def fourth(outputs: Tensor, targets: Tensor) -> Tensor:
        return (outputs - targets).pow(4).mean()

    with watch(
        model, optimizer, data=(x, y), criterion=fourth, probes=[Stability(mean_square=True)], every=5, batch_size=8
    ) as run:
        for _ in range(10):
            optimizer.zero_grad()
            fourth(model(x[:8]), y[:8]).backward()
            optimizer.step()
    for record in run.run.select("stability"):
        assert record.status == "ok"
        assert record.values["mean_square"] is None
        assert record.values["batch_sharpness"] is not None
        assert "mean_square: not measured: SettingError: the loss is no squared error" in record.reason


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"level": "all"}, "level must be one of"),
        ({"level": "sharpness", "mean_square": True}, 'level="full"'),
        ({"tol": 0.0}, "0 < tol < 1"),
        ({"rtol": -1.0}, "rtol > 0"),
    ],
)
def test_what_is_refused(options, words):
    with pytest.raises(SettingError, match=words):
        Stability(**options)


def test_the_trace_is_tracked_and_the_sharpness_starts_from_it():
    """Once warm, a measurement costs the basis, its samples, and a product or two."""
    run = trained(Stability(bound_every=10_000), batch=None, steps=200, every=5)
    warm = [r.matvecs for r in run.select("stability")[4:]]
    assert sorted(warm)[len(warm) // 2] <= 8 + 10 + 3
    objective = Objective(nn.Linear(2, 1), (torch.eye(2), torch.ones(2, 1)), criterion=nn.MSELoss())
    assert Snapshot(0, objective).trace(0.1).converged
