"""What the processes of the tests of data-parallel objectives do."""

import contextlib
import os
import signal
import time
import warnings
from typing import Any

import pytest
import torch
from torch import nn

from losscope.landscape import (
    EmpiricalFisher,
    GaussNewton,
    Hessian,
    LosscopeError,
    NonFiniteError,
    Objective,
    Ranks,
    SettingError,
    gradient_noise,
    line,
    neural_collapse_of,
    shuffled_labels,
    spectral_density,
    tangent_kernel,
    top_eigenpairs,
    trace,
)
from losscope.probes import LayerTraces, NeuralCollapse, Sharpness, Spectrum, Stability, Trace, watch
from losscope.probes.snapshot import Snapshot
from noted import Noted
from ranks import SAMPLES, net, shard


def measured(objective: Objective, kernel: str) -> dict[str, list[float]]:
    H = Hessian(objective, kernel)
    value, gradient = H.value_and_gradient()
    V = objective.space.random(2, torch.Generator().manual_seed(0))
    groups = [[0, 1], [2, 3]]
    found = {
        "eigenvalues": top_eigenpairs(H, 2, tol=1e-5, seed=0).values,
        "trace": torch.tensor(trace(H, seed=0, rtol=0.1).value),
        "density": spectral_density(H, vectors=2, steps=12, seed=0).nodes.flatten(),
        "value": torch.tensor([value, objective.value()]),
        "gradient": gradient,
        "product": H @ V,
        "blocks": H.block_products(V, groups),
        "gauss_newton": GaussNewton(objective) @ V,
        "fisher": EmpiricalFisher(objective) @ V,
        "samples": torch.tensor(float(objective.samples)),
    }
    return {name: t.double().flatten().tolist() for name, t in found.items()}


def refuse_parts(objective: Objective) -> None:
    """What takes the data apart is refused, and not computed from a part of it."""
    for take_apart in (
        lambda: objective.outputs(0),
        lambda: gradient_noise(objective),
        lambda: shuffled_labels(objective),
        lambda: objective.weighted(torch.ones(SAMPLES)),
        lambda: line(objective, "random", points=3),
        lambda: neural_collapse_of(objective),
        lambda: tangent_kernel(objective),
    ):
        with pytest.raises(SettingError, match="ranks"):
            take_apart()


def measured_together(rank: int, size: int) -> dict[Any, Any]:
    torch.manual_seed(rank)
    before, ranks = torch.get_rng_state(), Ranks(timeout=60)
    found: dict[Any, Any] = {}
    for dtype, kernel in ((torch.float32, "auto"), (torch.float64, "auto"), (torch.float64, "finite_difference")):
        model = nn.parallel.DistributedDataParallel(net(dtype))
        objective = Objective(model, shard(rank, size, dtype), criterion=nn.CrossEntropyLoss(), ranks=ranks)
        found[str(dtype), kernel] = measured(objective, kernel)
    refuse_parts(objective)
    ranks.close()
    assert torch.equal(before, torch.get_rng_state())
    return found


def trained(rank: int, size: int, options: dict[str, Any] | None) -> dict[str, Any]:
    """Train on this rank's shard for six updates, watched if there are options; what it has left."""
    torch.manual_seed(rank)
    model = nn.parallel.DistributedDataParallel(net())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    criterion, data = nn.CrossEntropyLoss(), shard(rank, size)
    x, y = (torch.cat(parts) for parts in zip(*data, strict=True))
    asked = {"data": data, "criterion": criterion, "every": 2, "probes": probes(), **(options or {})}
    with contextlib.nullcontext() if options is None else watch(model, optimizer, **asked) as run:
        for _ in range(6):
            optimizer.zero_grad()
            # The mean over ranks of a sum over samples: that of all samples, up to a factor.
            (nn.functional.cross_entropy(model(x), y, reduction="sum") * size / SAMPLES).backward()
            optimizer.step()
            if run is not None:
                run.log(loss=float(rank))
    gradients = [p.grad.tolist() for p in model.parameters() if p.grad is not None]
    weights = [p.tolist() for p in model.parameters()]
    found: dict[str, Any] = {"weights": weights, "gradients": gradients, "random": torch.get_rng_state().tolist()}
    if run is not None:
        found["records"] = [(r.step, r.probe, r.status, r.reason, r.value, r.values) for r in run.run.records]
        found["folder"] = None if run.run.path is None else str(run.run.path)
    return found


def probes() -> list[Any]:
    def own(snapshot: Any) -> dict[str, float]:
        return {"value": float(snapshot.gradient.norm())}

    layers = LayerTraces(vectors=4, rank=2)
    return [Sharpness(tol=1e-5), Trace(), Spectrum(vectors=2, steps=12), Stability(), NeuralCollapse(), layers, own]


def killed(rank: int, size: int) -> dict[str, Any]:
    """The last rank dies as it computes a product of the second measurement; what the others see of it."""
    calls = Noted()

    def criterion(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        calls.append(1)
        if measuring and rank == size - 1 and len(calls) == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        return nn.functional.cross_entropy(outputs, targets)

    measuring = False
    model = nn.parallel.DistributedDataParallel(net())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    options: dict[str, Any] = {"criterion": criterion, "drive": "manual", "every": [1000]}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with watch(model, optimizer, data=shard(rank, size), probes=[Sharpness(), Trace()], **options) as run:
            first = run.measure_now()
            measuring = True
            calls.clear()
            started = time.perf_counter()
            second = run.measure_now()
            seconds = time.perf_counter() - started
    found = {"first": [r.status for r in first], "second": [(r.status, r.reason) for r in second], "seconds": seconds}
    return found | {"warnings": [str(w.message) for w in caught if "losscope" in str(w.message)]}


def failing(rank: int, size: int) -> dict[str, Any]:
    """Probes of which each fails on one rank, in its own way, with good ones between and after them."""
    there = rank == size - 1
    failures = 0

    def criterion(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        if failures:
            raise torch.OutOfMemoryError("no room for it")
        return nn.functional.cross_entropy(outputs, targets)

    def raises(snapshot: Snapshot) -> dict[str, float]:
        if there:
            raise ValueError("of this rank alone")
        return {"value": snapshot.loss}

    def goes_on_without_products(snapshot: Snapshot) -> dict[str, float]:
        if there:
            return {"value": 0.0}
        return {"value": float((snapshot.hessian @ snapshot.gradient).norm())}

    def has_no_room(snapshot: Snapshot) -> dict[str, float]:
        nonlocal failures
        failures = int(there)
        try:
            return {"value": snapshot.objective.value()}
        finally:
            failures = 0

    def swallows(snapshot: Snapshot) -> dict[str, float]:
        """One rank catches what it raises in the middle, and would then add up other products than the others."""
        nonlocal failures
        failures = int(there)
        with contextlib.suppress(Exception):
            snapshot.objective.gradient()
        failures = 0
        return {"value": float((snapshot.hessian @ snapshot.gradient).norm())}

    def is_not_finite(snapshot: Snapshot) -> dict[str, float]:
        if there:
            raise NonFiniteError("the loss is nan")
        return {"value": snapshot.loss}

    asked = [raises, Sharpness(), goes_on_without_products, has_no_room, swallows, is_not_finite, Trace()]
    model = nn.parallel.DistributedDataParallel(net())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with watch(model, optimizer, data=shard(rank, size), criterion=criterion, probes=asked, every=1) as run:
            for _ in range(2):
                optimizer.zero_grad()
                model(torch.ones(1, 6, dtype=torch.float64)).sum().backward()
                optimizer.step()
    records = [(r.step, r.probe, r.status, r.reason) for r in run.run.records if r.probe != "oscillation"]
    return {"records": records, "warnings": [str(w.message) for w in caught if "losscope" in str(w.message)]}


def refused(rank: int, size: int) -> dict[str, str]:
    """What watch says where the ranks are not asked for the same, and that it then still works."""
    last = rank == size - 1
    found: dict[str, str] = {}
    cases: dict[str, dict[str, Any]] = {
        "probes": {"probes": [Trace()] if last else [Sharpness()]},
        "settings": {"probes": [Sharpness(2 if last else 1)]},
        "schedule": {"every": 3 if last else 2},
        "kernel": {"kernel": "retained" if last else "auto"},
        "no data": {"data": [] if last else shard(rank, size)},
        "no option": {"on_error": "never" if last else "warn"},
        "meaning": {"data_parallel": "sometimes"},
        "weights": {"data_parallel": True},
        "none": {"seed": rank},
    }
    for name, options in cases.items():
        model = nn.parallel.DistributedDataParallel(net())
        if name == "weights":
            torch.nn.init.constant_(next(model.module.parameters()), float(rank))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
        given = {"data": shard(rank, size), "criterion": nn.CrossEntropyLoss(), "probes": [Trace()], "drive": "manual"}
        try:
            with watch(model.module if name == "weights" else model, optimizer, **(given | options)) as run:
                found[name] = str(run.measure_now()[0].value)
        except LosscopeError as error:
            found[name] = f"{type(error).__name__}: {error}"
    return found


def apart(rank: int, size: int) -> tuple[float, float, float]:
    """A module that is not wrapped is measured by a rank for itself, and a loss may use the wrapper."""
    model = nn.parallel.DistributedDataParallel(net())
    x, y = next(iter(shard(rank, size)))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    own = Objective(model.module, (x, y), criterion=nn.CrossEntropyLoss()).value()
    measured = 0.0
    if rank == 0:
        with watch(model.module, optimizer, data=(x, y), criterion=nn.CrossEntropyLoss(), probes=[Trace()]) as run:
            measured = float(run.measure_now()[0].values["loss"] or 0.0)

    def loss_fn(_: nn.Module, batch: Any) -> torch.Tensor:
        return nn.functional.cross_entropy(model(batch[0]), batch[1])

    with watch(model, optimizer, data=(x, y), loss_fn=loss_fn, probes=[Trace()]) as run:
        for _ in range(3):  # the wrapper would refuse to go on if a measurement had got it ready for a backward pass
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x), y).backward()
            optimizer.step()
        together = float(run.measure_now()[0].values["loss"] or 0.0)
    return own, measured, together
