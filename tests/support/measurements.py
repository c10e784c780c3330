"""One measurement of each kind, as functions of an objective, for tests that compare two objectives in all of them."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from losscope.landscape import (
    BlockDiagonal,
    EmpiricalFisher,
    Estimate,
    GaussNewton,
    Hessian,
    Jacobian,
    MonteCarloFisher,
    Objective,
    block_densities,
    block_traces,
    class_structure,
    diagonal,
    frobenius_norm,
    gradient_noise,
    layer_traces,
    line,
    merge,
    minibatch_noise,
    parameter_signal,
    plane,
    sampling_error,
    solve,
    spectral_density,
    tangent_kernel,
    top_eigenpairs,
    trace,
    trace_function,
)  # fmt: skip
from losscope.landscape.in_double import in_double
from losscope.landscape.kernels import agreement
from losscope.landscape.stability import critical_sharpness
from losscope.landscape.surface import Axis, average_sharpness, quadratic_model, random_direction, sam_sharpness

__all__ = ["MEASURED", "block", "direction", "numbers"]


def block(o: Objective) -> Tensor:
    """Three vectors."""
    return o.space.random(3, torch.Generator(device=o.space.device).manual_seed(1))


def direction(o: Objective, seed: int = 0) -> Axis:
    """With biases: those of one complex dimension have two as pairs, and would not be left out."""
    return random_direction(o, None, biases=True, seed=seed)


def _gradient_in_double(o: Objective) -> Tensor:
    with in_double(o) as precise:
        assert precise.space.dtype == torch.float64
        return precise.gradient()


def _shrunk(o: Objective) -> dict[str, Tensor]:
    return {name: 0.9 * t for name, t in o.model.state_dict().items()}


MEASURED: dict[str, Callable[[Objective], Any]] = {
    "retained": lambda o: Hessian(o, kernel="retained") @ block(o),
    "batched": lambda o: Hessian(o, kernel="batched") @ block(o),
    "finite differences": lambda o: Hessian(o, kernel="finite_difference") @ block(o),
    "chosen": lambda o: Hessian(o) @ block(o),
    "agreement": lambda o: float(agreement(o).status == "agrees"),
    "Gauss-Newton": lambda o: GaussNewton(o) @ block(o),
    "Fisher": lambda o: MonteCarloFisher(o, seed=0) @ block(o),
    "empirical Fisher": lambda o: EmpiricalFisher(o) @ block(o),
    "Jacobian": lambda o: Jacobian(o) @ block(o),
    "blocks": lambda o: BlockDiagonal(Hessian(o)) @ block(o),
    "in float64": _gradient_in_double,
    "eigenpairs": lambda o: top_eigenpairs(Hessian(o), 3, tol=1e-4, seed=0).values,
    "trace": lambda o: trace(Hessian(o), seed=0),
    "trace of a function": lambda o: trace_function(Hessian(o), torch.exp, seed=0),
    "diagonal": lambda o: diagonal(Hessian(o), max_matvecs=40, seed=0).value,
    "norm": lambda o: frobenius_norm(Hessian(o), seed=0),
    "density": lambda o: [spectral_density(Hessian(o), steps=20, seed=0).moment(p) for p in (1, 2, 3)],
    "lean density": lambda o: spectral_density(Hessian(o), steps=20, memory=0, seed=0).moment(2),
    "densities of layers": lambda o: [d.moment(2) for d in block_densities(BlockDiagonal(Hessian(o)), seed=0).values()],
    "traces of layers": lambda o: list(layer_traces(BlockDiagonal(Hessian(o)), seed=0).values()),
    "traces of blocks": lambda o: list(block_traces(BlockDiagonal(Hessian(o)), seed=0).values()),
    "solve": lambda o: solve(Hessian(o), o.gradient(), damping=1.0).x,
    "class structure": lambda o: class_structure(o, seed=0),
    "sampling error": lambda o: sampling_error(o, groups=6, matvecs=10, seed=0),
    "noise": lambda o: gradient_noise(o, seed=0),
    "noise, with curvature": lambda o: gradient_noise(o, curvature=Hessian(o), seed=0),
    "mini-batches": lambda o: minibatch_noise(o, 4, draws=16, groups=4, curvature=Hessian(o), seed=0),
    "signal": lambda o: parameter_signal(o),
    "tangent kernel": lambda o: tangent_kernel(o),
    "critical sharpness": lambda o: critical_sharpness(o, -o.gradient(), rate=1.0),
    "a line": lambda o: line(o, direction(o), points=5, normalise=None, engine="one by one").values["loss"],
    "a line, batched": lambda o: line(o, direction(o), points=5, normalise=None, engine="batched").values["loss"],
    "a plane": lambda o: plane(o, (direction(o), direction(o, 1)), points=3, normalise=None).values["loss"],
    "a quadratic model": lambda o: quadratic_model(o, [direction(o)]),
    "average sharpness": lambda o: average_sharpness(o, [2.0], max_pairs=32, seed=0),
    "SAM": lambda o: sam_sharpness(o, 0.05),
    "a merge": lambda o: merge(o, [o.model.state_dict(), _shrunk(o)]),
}


def numbers(found: Any, depth: int = 0) -> list[Tensor]:
    """All that a result holds, but for the time it took, each as a vector of float64 on the host."""
    if isinstance(found, Estimate):
        found = [found.value, found.low, found.high]
    if isinstance(found, Tensor):
        return [found.detach().cpu().double().flatten()]
    if isinstance(found, float):
        return [torch.tensor([found], dtype=torch.float64)]
    if isinstance(found, list | tuple):
        return [t for part in found for t in numbers(part, depth)]
    if hasattr(found, "__dataclass_fields__") and depth < 2:
        parts = [getattr(found, name) for name in found.__dataclass_fields__ if name != "seconds"]
        return [t for part in parts for t in numbers(part, depth + 1)]
    return []
