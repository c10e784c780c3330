"""To every measurement, a network with complex parameters is one with pairs of real ones."""

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from landscape_nets import Spectral
from losscope.landscape import (
    BlockDiagonal,
    EmpiricalFisher,
    Estimate,
    GaussNewton,
    Hessian,
    Jacobian,
    KernelError,
    MonteCarloFisher,
    Objective,
    Preconditioned,
    SymmetricOperator,
    block_traces,
    gradient_noise,
    layer_traces,
    line,
    linear_path,
    merge,
    minibatch_noise,
    parameter_signal,
    per_sample_gradients,
    plane,
    solve,
    spectral_density,
    tangent_kernel,
    top_eigenpairs,
    trace,
)  # fmt: skip
from losscope.landscape.complex_parts import as_real, like
from losscope.landscape.in_double import in_double
from losscope.landscape.kernels import agreement
from losscope.landscape.stability import critical_sharpness, step_preconditioner
from losscope.landscape.surface import (
    Axis,
    average_sharpness,
    parameters_at,
    random_direction,
    relative_flatness,
    sam_sharpness,
    scaled_curvature,
)  # fmt: skip

CE = nn.CrossEntropyLoss()


@pytest.fixture(autouse=True)
def _nothing_imaginary_is_dropped() -> Any:
    """Torch only warns of it."""
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="Casting complex values to real")
        yield


def objective(pairs: bool, samples: tuple[int, ...] = (5, 8)) -> Objective:
    torch.manual_seed(0)
    model = Spectral(pairs)
    data = [(torch.randn(n, 8), torch.randint(3, (n,))) for n in samples]
    return Objective(model, data, criterion=CE)


def same(found: Any, expected: Any, rtol: float = 2e-4) -> None:
    """Of numbers and tensors, and of those in results."""
    if isinstance(expected, list | tuple):
        for one, other in zip(found, expected, strict=True):
            same(one, other, rtol)
        return
    found, expected = torch.as_tensor(found).double(), torch.as_tensor(expected).double()
    assert found.shape == expected.shape and bool(expected.isfinite().all())
    assert float((found - expected).norm()) <= rtol * float(expected.norm()) + 1e-9


def numbers(result: Any) -> list[Any]:
    """What a result says, but for the time it took."""
    found = [getattr(result, name) for name in result.__dataclass_fields__ if name != "seconds"]
    values = [v.value if isinstance(v, Estimate) else v for v in found]
    return [v for v in values if isinstance(v, Tensor | float) and bool(torch.as_tensor(v).isfinite().all())]


def block(o: Objective) -> Tensor:
    return o.space.random(2, torch.Generator().manual_seed(1))


@pytest.mark.parametrize("kernel", ["retained", "batched", "finite_difference", "auto"])
def test_products_are_those_of_the_dense_hessian(kernel: str) -> None:
    o = objective(False)
    parameters = list(o.model.parameters())
    loss = sum(len(y) * CE(o.model(x), y) for x, y in (b.content for b in o.batches)) / 13
    gradient = torch.cat([as_real(g).flatten() for g in torch.autograd.grad(loss, parameters, create_graph=True)])
    rows = [torch.autograd.grad(g, parameters, retain_graph=True) for g in gradient]
    dense = torch.stack([torch.cat([as_real(t).flatten() for t in row]) for row in rows])
    V = block(o)
    H = Hessian(o, kernel=kernel)
    same(H @ V, dense @ V, max(2e-5, 3 * H.space.rounding))
    assert float((dense - dense.T).norm()) < 1e-5 * float(dense.norm())


def test_compiled_products_are_right_or_refused() -> None:
    o = objective(False, (8,))
    try:
        found = Hessian(o, kernel="compiled") @ block(o)
    except KernelError:
        return
    same(found, Hessian(o, kernel="retained") @ block(o))


def test_double_backward_is_compared_with_differences() -> None:
    assert agreement(objective(False)).status == "agrees"


def moved(o: Objective) -> dict[str, Tensor]:
    return {name: (0.5 + 0.1 * i) * t for i, (name, t) in enumerate(o.model.state_dict().items())}


def along(o: Objective, normalise: str | None, seed: int = 0) -> Axis:
    """With biases: those of one complex dimension have two as pairs, and would not be left out."""
    return random_direction(o, normalise, biases=True, seed=seed)


def sliced(o: Objective, normalise: str | None, engine: str) -> Tensor:
    return line(o, along(o, normalise), points=5, normalise=None, engine=engine).values["loss"]


def adam_like(o: Objective) -> SymmetricOperator:
    optimizer = torch.optim.Adam(o.model.parameters())
    o.loss(o.model, o.batches[0].content).backward()
    optimizer.step()
    return Preconditioned(Hessian(o), step_preconditioner(optimizer, o))


MEASURED: dict[str, Callable[[Objective], Any]] = {
    "Gauss-Newton": lambda o: GaussNewton(o) @ block(o),
    "empirical Fisher": lambda o: EmpiricalFisher(o) @ block(o),
    "Fisher": lambda o: MonteCarloFisher(o, seed=0) @ block(o),
    "Jacobian": lambda o: Jacobian(o) @ block(o),
    "blocks": lambda o: BlockDiagonal(Hessian(o)) @ block(o),
    "preconditioned": lambda o: (lambda A: A @ A.space.random(2, torch.Generator().manual_seed(1)))(adam_like(o)),
    "in float64": lambda o: _gradient_in_double(o),
    "eigenpairs": lambda o: top_eigenpairs(Hessian(o), 3, tol=1e-4, seed=0).values,
    "trace": lambda o: trace(Hessian(o), seed=0).value,
    "traces of layers": lambda o: [e.value for e in layer_traces(BlockDiagonal(Hessian(o)), seed=0).values()],
    "traces of blocks": lambda o: [e.value for e in block_traces(BlockDiagonal(Hessian(o)), seed=0).values()],
    "density": lambda o: spectral_density(Hessian(o), seed=0).moment(2).value,
    "solve": lambda o: solve(Hessian(o), o.gradient(), damping=1.0).x,
    "tangent kernel": lambda o: numbers(tangent_kernel(o)),
    "gradients of samples": lambda o: torch.cat(list(per_sample_gradients(o))),
    "signal": lambda o: numbers(parameter_signal(o)),
    "noise": lambda o: numbers(gradient_noise(o, seed=0)),
    "noise, with curvature": lambda o: numbers(gradient_noise(o, curvature=Hessian(o), seed=0)),
    "mini-batches": lambda o: numbers(minibatch_noise(o, 4, curvature=Hessian(o), draws=20, groups=5, seed=0)),
    "critical sharpness": lambda o: critical_sharpness(o, -o.gradient(), rate=1.0).value,
    "SAM": lambda o: numbers(sam_sharpness(o, 0.05)),
    "average sharpness": lambda o: numbers(average_sharpness(o, [0.05], seed=0)),
    "scaled curvature": lambda o: numbers(scaled_curvature(o, "layer")),
    "relative flatness": lambda o: relative_flatness(o, "weight").value,
    "line": lambda o: sliced(o, None, "one by one"),
    "line, by layers": lambda o: sliced(o, "layer", "one by one"),
    "line, batched": lambda o: sliced(o, "parameter", "batched"),
    "plane": lambda o: plane(o, (along(o, "layer", 0), along(o, "layer", 1)), points=3, normalise=None).values["loss"],
    "path": lambda o: linear_path(o, o.model.state_dict(), moved(o), points=5).values["loss"],
    "merged": lambda o: numbers(merge(o, [o.model.state_dict(), moved(o)])),
    "a point": lambda o: parameters_at(o, moved(o)),
}  # fmt: skip


def _gradient_in_double(o: Objective) -> Tensor:
    with in_double(o) as precise:
        assert precise.space.dtype == torch.float64
        return precise.gradient()


@pytest.mark.parametrize("what", MEASURED)
def test_measurements_are_those_of_pairs(what: str) -> None:
    same(MEASURED[what](objective(False)), MEASURED[what](objective(True)))


def test_a_vector_of_complex_parameters_has_their_parts_side_by_side() -> None:
    o = objective(False)
    assert o.space.shapes[list(o.space.names).index("bias")] == (4, 2)
    there = o.space.unflatten(o.space.flatten(list(o.parameters.values())))
    assert all(torch.equal(t, p) and t.dtype == p.dtype for t, p in zip(there, o.parameters.values(), strict=True))
    z = torch.tensor([1 + 2j, 3 - 4j])
    assert torch.equal(as_real(z.conj()), torch.tensor([[1.0, -2.0], [3.0, 4.0]]))
    assert torch.equal(like(as_real(z), torch.complex128), z.to(torch.complex128))
    assert like(torch.ones(2), torch.bfloat16).dtype == torch.bfloat16


def test_filters_of_complex_weights_are_of_their_first_dimension() -> None:
    o = objective(False)
    axis = random_direction(o, "filter")
    pieces = dict(zip(o.space.names, axis.vector.split(o.space.numels), strict=True))
    assert not bool(pieces["bias"].any())  # of one dimension, as complex numbers
    same(pieces["weight"].view(3, -1).norm(dim=1), o.model.weight.detach().flatten(1).norm(dim=1))
