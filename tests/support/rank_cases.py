"""What the processes of the tests of data-parallel objectives do."""

import contextlib
from typing import Any

import torch
from torch import nn

from losscope.landscape import (
    EmpiricalFisher,
    GaussNewton,
    Hessian,
    Objective,
    Ranks,
    spectral_density,
    top_eigenpairs,
    trace,
)
from losscope.probes import NeuralCollapse, Sharpness, Spectrum, Stability, Trace, watch
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


def measured_together(rank: int, size: int) -> dict[Any, Any]:
    torch.manual_seed(rank)
    before, ranks = torch.get_rng_state(), Ranks(timeout=60)
    found: dict[Any, Any] = {}
    for dtype, kernel in ((torch.float32, "auto"), (torch.float64, "auto"), (torch.float64, "finite_difference")):
        model = nn.parallel.DistributedDataParallel(net(dtype))
        objective = Objective(model, shard(rank, size, dtype), criterion=nn.CrossEntropyLoss(), ranks=ranks)
        found[str(dtype), kernel] = measured(objective, kernel)
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

    return [Sharpness(tol=1e-5), Trace(), Spectrum(vectors=2, steps=12), Stability(), NeuralCollapse(), own]
