"""Every kernel against dense float64 Hessians, on every case that it can run."""

import contextlib

import pytest
import torch

from landscape_cases import CASES, build, reference
from losscope.landscape import KernelError
from losscope.landscape.kernels.batched import Batched
from losscope.landscape.kernels.compiled import Compiled
from losscope.landscape.kernels.finite_difference import FiniteDifference
from losscope.landscape.kernels.retained import Retained

TOLERANCE = {torch.float64: 1e-11, torch.float32: 1e-5}
MAY_BE_REFUSED = {"lstm", "checkpointing", "gradient_penalty"}  # by the compiler; versions of torch differ


def distance(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Relative distance of each column, the largest of them."""
    return float(((found.double() - expected).norm(dim=0) / expected.norm(dim=0)).max())


def vectors(n: int, k: int, dtype: torch.dtype) -> torch.Tensor:
    return torch.randn(n, k, generator=torch.Generator().manual_seed(2)).to(dtype)


# How vectors are cut to the memory does not depend on their type.
@pytest.mark.parametrize(
    ("memory", "dtype"), [(None, torch.float64), (None, torch.float32), (1 << 22, torch.float64)],
    ids=["double", "single", "4 MiB"],
)  # fmt: skip
@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("kernel", [Retained, Batched])
def test_double_backward_equals_the_dense_hessian(kernel: type, memory: int, name: str, dtype: torch.dtype) -> None:
    _, _, H = reference(name)
    engine = kernel(build(name, dtype).objective(), memory=memory)
    V = vectors(len(H), 5, dtype)
    assert distance(engine(V), H @ V.double()) <= TOLERANCE[dtype]
    assert distance(engine(V[:, :1]), H @ V[:, :1].double()) <= TOLERANCE[dtype]


@pytest.mark.parametrize("name", CASES)
def test_compiled_products_equal_the_dense_hessian(name: str) -> None:
    """Traced and differentiated as a compiled product is; the code that inductor writes is tested in test_compiled."""
    _, _, H = reference(name)
    engine = Compiled(build(name, torch.float32).objective(), backend="aot_eager")
    V = vectors(len(H), 2, torch.float32)
    if name in MAY_BE_REFUSED:
        try:
            engine(V)
        except KernelError:
            with pytest.raises(KernelError, match=r"cannot be compiled .*kernel=.retained."):
                engine(V)
            return
    assert distance(engine(V), H @ V.double()) <= TOLERANCE[torch.float32]


@pytest.mark.parametrize("dtype", TOLERANCE, ids=["double", "single"])
@pytest.mark.parametrize("name", CASES)
def test_finite_differences_are_within_their_stated_error(name: str, dtype: torch.dtype) -> None:
    """Also along the extremal eigenvectors, where the third derivative counts most."""
    _, _, H = reference(name)
    engine = FiniteDifference(build(name, dtype).objective())
    values, eigenvectors = torch.linalg.eigh(H)
    V = torch.cat([vectors(len(H), 3, dtype), eigenvectors[:, [0, -1]].to(dtype)], dim=1)
    V = V * torch.tensor([1e-6, 1.0, 1e6, 1.0, 1.0], dtype=dtype)  # steps are scaled by the vectors' norms
    errors = (engine(V).double() - H @ V.double()).norm(dim=0) / V.double().norm(dim=0)
    norm = float(values.abs().max())
    assert float(errors.max()) <= engine.error * norm
    assert engine.error <= (1e-3 if dtype == torch.float32 else 1e-8)


def test_a_product_that_cannot_be_compiled_leaves_torch_as_it_was() -> None:
    """Else checkpointed models could not be trained after it."""
    engine = Compiled(build("checkpointing", torch.float32).objective(), backend="aot_eager")
    with contextlib.suppress(KernelError):  # of torch 2.13; others trace it
        engine(torch.ones(engine.objective.space.size, 1))
    with torch.autograd.graph.saved_tensors_hooks(lambda t: t, lambda t: t):
        engine.objective.gradient()
