"""To every measurement, a network with complex parameters is one with pairs of real ones."""

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from landscape_nets import Spectral
from losscope.landscape import (
    Hessian,
    KernelError,
    Objective,
    Preconditioned,
    SymmetricOperator,
    line,
    linear_path,
    per_sample_gradients,
    plane,
)  # fmt: skip
from losscope.landscape.complex_parts import as_real, like
from losscope.landscape.stability import step_preconditioner
from losscope.landscape.surface import (
    Axis,
    parameters_at,
    random_direction,
    relative_flatness,
    scaled_curvature,
)  # fmt: skip
from measurements import MEASURED, block, numbers

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
    """Of all numbers that are in results, but for what none is known of: open ends of intervals, ratios of nothing."""
    pairs = list(zip(numbers(found), numbers(expected), strict=True))
    assert any(bool(other.isfinite().any()) for _, other in pairs)
    for one, other in pairs:
        bounded = other.isfinite()
        assert one.shape == other.shape
        torch.testing.assert_close(one[~bounded], other[~bounded], equal_nan=True)
        assert float((one - other)[bounded].norm()) <= rtol * float(other[bounded].norm()) + 1e-9


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


def moved(o: Objective) -> dict[str, Tensor]:
    return {name: (0.5 + 0.1 * i) * t for i, (name, t) in enumerate(o.model.state_dict().items())}


def along(o: Objective, normalise: str | None, seed: int = 0) -> Axis:
    """With biases: those of one complex dimension have two as pairs, and would not be left out."""
    return random_direction(o, normalise, biases=True, seed=seed)


def sliced(o: Objective, normalise: str | None, engine: str) -> Tensor:
    return line(o, along(o, normalise), points=5, normalise=None, engine=engine).values["loss"]


def planar(o: Objective, normalise: str | None) -> Tensor:
    axes = along(o, normalise), along(o, normalise, 1)
    return plane(o, axes, points=3, normalise=None).values["loss"]


def adam_like(o: Objective) -> SymmetricOperator:
    optimizer = torch.optim.Adam(o.model.parameters())
    o.loss(o.model, o.batches[0].content).backward()
    optimizer.step()
    return Preconditioned(Hessian(o), step_preconditioner(optimizer, o))


HERE: dict[str, Callable[[Objective], Any]] = {
    "preconditioned": lambda o: (lambda A: A @ A.space.random(2, torch.Generator().manual_seed(1)))(adam_like(o)),
    "gradients of samples": lambda o: torch.cat(list(per_sample_gradients(o))),
    "scaled curvature": lambda o: scaled_curvature(o, "layer"),
    "relative flatness": lambda o: relative_flatness(o, "weight").value,
    "line, by layers": lambda o: sliced(o, "layer", "one by one"),
    "line by tensors, batched": lambda o: sliced(o, "parameter", "batched"),
    "plane, by layers": lambda o: planar(o, "layer"),
    "path": lambda o: linear_path(o, o.model.state_dict(), moved(o), points=5).values["loss"],
    "a point": lambda o: parameters_at(o, moved(o)),
}  # fmt: skip


@pytest.mark.parametrize("what", [*MEASURED, *HERE])
def test_measurements_are_those_of_pairs(what: str) -> None:
    measure = (MEASURED | HERE)[what]
    same(measure(objective(False)), measure(objective(True)))


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
