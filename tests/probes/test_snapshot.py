"""What a snapshot shares between probes: the smallest eigenvalue of the Hessian."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from losscope.landscape import Objective
from losscope.probes import Measurement, Needs, Probe, Run, Snapshot, watch
from losscope.probes.memory import Memory


class Lowest(Probe):
    name = "lowest"

    def needs(self) -> Needs:
        return Needs(1, 1e-3, bound_every=8)

    def measure(self, snapshot: Snapshot) -> Measurement:
        top = snapshot.eigenpairs(1, 1e-3)
        found = snapshot.lowest()
        assert found is snapshot.lowest()  # measured once
        flat = torch.cat([p.detach().reshape(-1) for p in snapshot.model.parameters()])
        exact = torch.linalg.eigvalsh(torch.func.hessian(lambda w: loss_at(snapshot.model, w))(flat))
        values = {"exact": float(exact[0]), "top": float(top.values[0])}
        return Measurement(None if found is None else float(found.values[0]), values=values)


X, Y = (torch.randn(30, k, generator=torch.Generator().manual_seed(k), dtype=torch.float64) for k in (3, 1))


def loss_at(model: nn.Module, weights: Tensor) -> Tensor:
    pieces = weights.split([p.numel() for p in model.parameters()])
    named = {n: w.view_as(p) for (n, p), w in zip(model.named_parameters(), pieces, strict=True)}
    return F.mse_loss(torch.func.functional_call(model, named, (X,)), Y)


def trained(seed: int, **options: Any) -> Run:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 1)).double()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    given: dict[str, Any] = {"probes": [Lowest()], "every": 2, "on_error": "raise"} | options
    with watch(model, optimizer, data=(X, Y), criterion=F.mse_loss, **given) as run:
        for _ in range(20):
            optimizer.zero_grad()
            F.mse_loss(model(X), Y).backward()
            optimizer.step()
    return run.run


@pytest.mark.parametrize("seed", range(5))
def test_the_smallest_eigenvalue_where_the_upper_bound_is_renewed(seed: int) -> None:
    found = trained(seed).select("lowest")
    measured = [r for r in found if r.value is not None]
    assert [r.step for r in measured] == [0, 2, 4, 8, 16]
    for r in measured:
        exact, top = r.values["exact"], r.values["top"]
        assert r.value is not None and exact is not None and top is not None
        assert exact - 1e-9 <= r.value <= exact + 0.1 * abs(exact) + 0.02 * top  # a Ritz value, from above
    assert all(1 <= r.matvecs <= 60 for r in measured)


def test_with_a_preconditioner_it_is_of_what_the_optimizer_sees() -> None:
    """After one step of Adam P is |g|, but for epsilon."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 1)).double()
    flat = torch.cat([p.detach().reshape(-1) for p in model.parameters()])
    H, P = torch.func.hessian(lambda w: loss_at(model, w))(flat), torch.func.grad(lambda w: loss_at(model, w))(flat)
    inverse = (P.abs() + 1e-2).rsqrt()
    exact = torch.linalg.eigvalsh(inverse[:, None] * H * inverse)
    found: list[float] = []

    class Seen(Probe):
        name = "seen"

        def needs(self) -> Needs:
            return Needs(1, 1e-3, seen=True)

        def measure(self, snapshot: Snapshot) -> Measurement:
            assert snapshot.seen_pair(1e-3) is not None
            lowest = snapshot.lowest()
            assert lowest is not None
            found.append(float(lowest.values[0]))
            return Measurement()

    optimizer = torch.optim.Adam(model.parameters(), lr=0.01, eps=1e-2)
    options: dict[str, Any] = {"criterion": F.mse_loss, "probes": [Seen()], "every": [0], "on_error": "raise"}
    with watch(model, optimizer, data=(X, Y), **options):
        F.mse_loss(model(X), Y).backward()
        optimizer.step()
    low, high = float(exact[0]), float(exact[-1])
    assert low - 1e-9 <= found[0] <= low + 0.1 * abs(low) + 0.02 * high


def test_the_value_is_negative_at_a_saddle() -> None:
    found = trained(0).select("lowest")[0]
    assert found.value is not None and found.value < 0 and found.values["exact"] < 0  # type: ignore[operator]


def test_the_eigenpair_takes_over_what_the_trace_of_this_step_has_multiplied() -> None:
    """And nothing of an earlier step: the Hessian has changed since."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 24), nn.Tanh(), nn.Linear(24, 1)).double()
    x = torch.randn(60, 8, dtype=torch.float64)
    objective = Objective(model, (x, x[:, :1].sin()), criterion=F.mse_loss)
    memory, spent = Memory(), {}
    for step in range(6):
        with torch.no_grad():
            for p in model.parameters():
                p.add_(0.02 * torch.randn_like(p))
        for first in ("pair", "trace"):
            known = copy.copy(memory.pairs)
            snapshot = Snapshot(step, objective.snapshot(step), needs=Needs(1, 1e-3), memory=memory)
            with snapshot.objective.isolated():
                if first == "trace":
                    snapshot.trace(0.3)
                before = snapshot.matvecs
                pair = snapshot.eigenpairs()
                spent[step, first] = snapshot.matvecs - before
                v = pair.vectors[:, 0]
                assert torch.linalg.vector_norm(snapshot.hessian @ v - pair.values[0] * v) <= pair.residuals[0] * 1.01
            if first == "pair":
                memory.pairs = known  # so that both begin alike
        assert memory.trace.product is None
    assert sum(spent[step, "trace"] for step in range(2, 6)) <= sum(spent[step, "pair"] for step in range(2, 6)) - 2
