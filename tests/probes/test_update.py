"""The update that was made at a measurement, and the critical sharpness along it."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from losscope.landscape.stability import critical_sharpness
from losscope.probes import Measurement, Needs, Probe, Snapshot, Stability, watch
from losscope.probes.audit_json import audit_as_dict
from probe_cases import CLASSES, Line


def flat(model: nn.Module) -> Tensor:
    return torch.cat([p.detach().reshape(-1) for p in model.parameters()]).clone()


def watched(make: Any, probe: Any, *, steps: int = 5, seed: int = 0, **options: Any) -> tuple[list[Tensor], Any]:
    """The weights before each update and after the last, and the run."""
    torch.manual_seed(seed)
    line = Line()
    optimizer = make(line.model.parameters())
    path = [flat(line.model)]
    with watch(line.model, optimizer, **line.options(probes=[probe], on_error="raise", **options)) as run:
        for _ in range(steps):
            optimizer.zero_grad()
            line.loss().backward()
            optimizer.step()
            path.append(flat(line.model))
            if options.get("drive") == "manual":
                run.step()
    return path, run


@pytest.mark.parametrize(
    "make",
    [
        lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
        lambda p: torch.optim.Adam(p, lr=0.01),
        lambda p: torch.optim.AdamW(p, lr=0.01, fused=True),
    ],
    ids=["momentum", "adam", "adamw fused"],
)
def test_it_is_the_difference_of_the_weights(make: Any) -> None:
    seen = []

    def probe(snapshot: Snapshot) -> dict[str, float]:
        assert snapshot.update is not None
        seen.append(snapshot.update)
        return {"value": 0.0}

    path, _ = watched(make, probe)
    assert len(seen) == 5
    for t, update in enumerate(seen):
        assert torch.equal(update, path[t + 1] - path[t])


def test_it_does_not_depend_on_what_a_probe_writes_on_the_weights_afterwards() -> None:
    """Nor does one that was not looked at in time pretend to be one."""
    kept: list[Snapshot] = []

    def probe(snapshot: Snapshot) -> dict[str, float]:
        if snapshot.step == 0:
            assert snapshot.update is not None
        kept.append(snapshot)
        return {"value": 0.0}

    path, _ = watched(lambda p: torch.optim.SGD(p, lr=0.1), probe, steps=3)
    assert kept[0].update is not None and torch.equal(kept[0].update, path[1] - path[0])
    assert kept[1].update is None and kept[1].critical_sharpness() is None


def test_without_hooks_there_is_none() -> None:
    seen = []

    def probe(snapshot: Snapshot) -> dict[str, float]:
        seen.append((snapshot.update, snapshot.critical_sharpness()))
        return {"value": 0.0}

    watched(lambda p: torch.optim.SGD(p, lr=0.1), probe, drive="manual")
    assert seen == [(None, None)] * 6


def test_of_what_the_optimizer_does_not_move_there_is_none() -> None:
    """A module of the model that another optimizer trains is measured too, if it is asked for."""
    line = Line()
    optimizer = torch.optim.SGD(line.model[0].parameters(), lr=0.1)  # type: ignore[index, union-attr]
    seen = []

    def probe(snapshot: Snapshot) -> dict[str, float]:
        seen.append(snapshot.update)
        return {"value": 0.0}

    with watch(line.model, optimizer, **line.options(probes=[probe], params="*", on_error="raise")):
        line.loss().backward()
        optimizer.step()
    assert seen == [None]


# --------------------------------------------------------------------------- critical sharpness


def test_of_gradient_descent_on_a_quadratic_it_is_the_curvature_along_the_gradient() -> None:
    torch.manual_seed(0)
    model = nn.Linear(4, 1, bias=False).double()
    x, y = torch.randn(20, 4, dtype=torch.float64), torch.randn(20, 1, dtype=torch.float64)
    H = 2 * x.T @ x / 20
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    found, exact = [], []

    def probe(snapshot: Snapshot) -> dict[str, float]:
        g = snapshot.gradient
        exact.append(float(g @ H @ g / (g @ g)))
        found.append(snapshot.critical_sharpness())
        assert snapshot.critical_sharpness() is found[-1]  # measured once
        return {"value": 0.0}

    with watch(model, optimizer, data=(x, y), criterion=F.mse_loss, probes=[probe], every=1, on_error="raise"):
        for _ in range(8):
            optimizer.zero_grad()
            F.mse_loss(model(x), y).backward()
            optimizer.step()
    for estimate, value in zip(found, exact, strict=True):
        assert estimate is not None and estimate.low <= value <= estimate.high
        assert estimate.value == pytest.approx(value, rel=0.06) and estimate.matvecs <= 12


def test_it_is_that_of_the_update_from_the_weights_before_it() -> None:
    def probe(snapshot: Snapshot) -> dict[str, float]:
        found = snapshot.critical_sharpness()
        assert found is not None and snapshot.update is not None and snapshot.lr == 0.02
        direct = critical_sharpness(snapshot.objective, snapshot.update / 0.02, rate=0.02, rtol=1e-3)
        return {"value": direct.value, "low": found.low, "high": found.high}

    _, run = watched(lambda p: torch.optim.Adam(p, lr=0.02), probe)
    for record in run.run.select("probe"):
        assert 0 < record.low <= record.value <= record.high <= 1.3 * record.low


def test_the_weights_stay_where_they_are_for_the_next_probe() -> None:
    losses = []

    def probe(snapshot: Snapshot) -> dict[str, float]:
        before = float(snapshot.objective.value())
        snapshot.critical_sharpness()
        pairs = snapshot.eigenpairs()
        losses.append((before, float(snapshot.objective.value()), snapshot.loss))
        return {"value": float(pairs.values[0])}

    watched(lambda p: torch.optim.SGD(p, lr=0.1), probe)
    assert all(a == b == pytest.approx(c) for a, b, c in losses)


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_a_loss_that_falls_for_ever_is_not_led_uphill(sign: float) -> None:
    """Linear, or concave: each step lowers the loss, the further the more."""
    torch.manual_seed(0)
    model, x = nn.Linear(4, 1, bias=False), torch.randn(20, 4)
    loss_fn = (lambda m, b: m(b[0]).mean()) if sign > 0 else (lambda m, b: -m(b[0]).square().mean())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with watch(model, optimizer, data=(x, x), loss_fn=loss_fn, probes=[Stability()], every=1, on_error="raise") as run:
        for _ in range(40):
            optimizer.zero_grad()
            loss_fn(model, (x, x)).backward()
            optimizer.step()
    records = run.run.select("stability")
    assert len(records) == 40
    for record in records:
        low, value = (record.values[f"critical_sharpness{end}"] for end in ("_low", ""))
        assert low == 0 and value is not None and 0 < value < 0.01 * 2 / 0.1
    said = str(audit_as_dict(run.run.audit()))
    assert "uphill" not in said and "the loss falls on far beyond the update's length" in said


def test_updates_that_do_not_move_lead_nowhere() -> None:
    line = Line()
    optimizer = torch.optim.SGD(line.model.parameters(), lr=0.0)
    with watch(line.model, optimizer, **line.options(probes=[Stability()], on_error="raise")) as run:
        for _ in range(3):
            line.loss().backward()
            optimizer.step()
    assert not [r for r in run.run.select("stability") if "critical_sharpness" in r.values]
    assert "uphill" not in str(audit_as_dict(run.run.audit()))


@pytest.mark.parametrize("case", ["two rates", "rate zero", "no update"])
def test_there_is_none_without_one_update_at_one_rate(case: str) -> None:
    line = Line()
    body, head = line.model[0].parameters(), line.model[1].parameters()  # type: ignore[index, union-attr]
    rates = {"two rates": (0.1, 0.2), "rate zero": (0.0, 0.0), "no update": (0.1, 0.1)}[case]
    optimizer = torch.optim.SGD([{"params": p, "lr": lr} for p, lr in zip((body, head), rates, strict=True)])
    seen = []

    def probe(snapshot: Snapshot) -> dict[str, float]:
        seen.append(snapshot.critical_sharpness())
        assert snapshot.update is not None
        return {"value": 0.0}

    with watch(line.model, optimizer, **line.options(probes=[probe], on_error="raise")):
        optimizer.zero_grad()
        loss = line.loss() * (0.0 if case == "no update" else 1.0)
        loss.backward()
        optimizer.step()
    assert seen == [None]


# --------------------------------------------------------------------------- the gradient of the step


@pytest.mark.parametrize("clip", ["norm", "value", None])
def test_norm_and_largest_entry_of_the_gradient_that_was_stepped_with(clip: str | None) -> None:
    class Gradient(Probe):
        name = "gradient"

        def needs(self) -> Needs:
            return Needs(training_gradient=True)

        def measure(self, snapshot: Snapshot) -> Measurement:
            norm, largest = snapshot.training_gradient_norm, snapshot.training_gradient_largest
            return Measurement(norm, values={"largest": largest})

    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, CLASSES))
    x, y = torch.randn(10, 6), torch.randint(CLASSES, (10,))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    expected = []
    with watch(
        model, optimizer, data=(x, y), criterion=F.cross_entropy, probes=[Gradient()], every=1, on_error="raise"
    ) as run:
        for _ in range(4):
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            if clip == "norm":
                torch.nn.utils.clip_grad_norm_(model.parameters(), 0.1)
            elif clip == "value":
                torch.nn.utils.clip_grad_value_(model.parameters(), 0.01)
            g = torch.cat([p.grad.reshape(-1) for p in model.parameters() if p.grad is not None]).double()
            expected.append((float(g.norm()), float(g.abs().max())))
            optimizer.step()
    found = [(r.value, r.values["largest"]) for r in run.run.select("gradient")]
    assert found == [(pytest.approx(a), pytest.approx(b)) for a, b in expected]
    if clip == "norm":
        assert [a for a, _ in expected] == [pytest.approx(0.1, rel=1e-4)] * 4
