"""What the processes of the tests of data-parallel objectives do."""

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
from ranks import net, shard


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
