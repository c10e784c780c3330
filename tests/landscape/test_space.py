"""The parameter space: flattening, random vectors, generators."""

import pytest
import torch
from torch import nn

from losscope.landscape import SettingError
from losscope.landscape.space import ParameterSpace, VectorSpace, generator_for

CPU = torch.device("cpu")


def space_of(*parameters: torch.Tensor) -> ParameterSpace:
    return ParameterSpace({f"p{i}": p for i, p in enumerate(parameters)})


def test_flatten_and_unflatten_are_inverse_in_the_order_of_the_names() -> None:
    parameters = [torch.arange(6.0).view(2, 3), torch.tensor(7.0), torch.empty(0, 4), torch.arange(8.0, 10)]
    space = space_of(*parameters)
    vector = space.flatten(parameters)
    assert vector.tolist() == [0, 1, 2, 3, 4, 5, 7, 8, 9]
    assert space.size == 9 and space.names == ("p0", "p1", "p2", "p3")
    assert all(map(torch.equal, space.unflatten(vector), parameters))


def test_pieces_are_views_where_the_dtype_is_the_same() -> None:
    space = space_of(torch.zeros(2), torch.zeros(3))
    vector = torch.zeros(5)
    space.unflatten(vector)[1].fill_(1)
    assert vector.tolist() == [0, 0, 1, 1, 1]


@pytest.mark.parametrize(
    ("dtypes", "expected"),
    [
        ([torch.float16], torch.float32),
        ([torch.bfloat16, torch.float16], torch.float32),
        ([torch.bfloat16, torch.float64], torch.float64),
        ([torch.float32], torch.float32),
    ],
)
def test_vectors_are_never_of_half_precision(dtypes: list[torch.dtype], expected: torch.dtype) -> None:
    space = space_of(*(torch.ones(2, dtype=dtype) for dtype in dtypes))
    assert space.dtype == expected
    assert [p.dtype for p in space.unflatten(torch.ones(space.size, dtype=expected))] == dtypes


def test_inner_products_are_those_of_the_columns() -> None:
    U, V = torch.randn(7, 2), torch.randn(7, 3)
    torch.testing.assert_close(VectorSpace(7, torch.float32, CPU).inner(U, V), U.T @ V)


def test_random_vectors_have_the_distribution_they_say() -> None:
    space = VectorSpace(20_000, torch.float64, CPU)
    normal = space.random(2, torch.Generator().manual_seed(0))
    assert normal.shape == (20_000, 2) and normal.dtype == torch.float64
    assert abs(float(normal.mean())) < 0.02 and abs(float(normal.var()) - 1) < 0.03
    signs = space.random(2, torch.Generator().manual_seed(0), "rademacher")
    assert set(signs.unique().tolist()) == {-1.0, 1.0}
    assert abs(float(signs.mean())) < 0.02 and abs(float((signs[:, 0] * signs[:, 1]).mean())) < 0.03


def test_vectors_drawn_together_or_one_by_one_are_contiguous_each() -> None:
    block = VectorSpace(50, torch.float32, CPU).random(4, torch.Generator().manual_seed(0))
    assert all(column.is_contiguous() for column in block.T)


def test_an_unknown_distribution_is_refused() -> None:
    with pytest.raises(SettingError, match=r'"normal" or "rademacher", got .uniform.'):
        VectorSpace(5, torch.float32, CPU).random(1, torch.Generator(), "uniform")


def test_generators() -> None:
    ready = torch.Generator()
    assert generator_for(ready, CPU) is ready
    first, again, other = (torch.rand(3, generator=generator_for(seed, CPU)) for seed in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert torch.equal(torch.rand(1, generator=generator_for(-1, CPU)), torch.rand(1, generator=generator_for(-1, CPU)))
    fresh = {float(torch.rand((), generator=generator_for(None, CPU))) for _ in range(5)}
    assert len(fresh) == 5


@pytest.mark.parametrize("seed", [1.0, "1", True, (1,)])
def test_a_seed_that_is_none_is_refused(seed: object) -> None:
    with pytest.raises(SettingError, match="seed must be an int"):
        generator_for(seed, CPU)


def test_parameters_of_mixed_precision_are_measured() -> None:
    """A half-precision layer in a single-precision model: the products come in single precision."""
    from losscope.landscape import Hessian, Objective

    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(3, 3), nn.Linear(3, 1, dtype=torch.bfloat16)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.b(self.a(x).tanh().bfloat16()).float()

    objective = Objective(Mixed(), (torch.randn(4, 3), torch.randn(4, 1)), criterion=nn.MSELoss())
    product = Hessian(objective) @ torch.ones(objective.space.size)
    assert product.dtype == torch.float32 and product.isfinite().all() and product.abs().max() > 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("n", [10, 1000, 3_000_000])
def test_lengths_and_inner_products_of_long_vectors(n: int, dtype: torch.dtype) -> None:
    """To rounding, also where millions of terms have the same sign; by itself, torch is 3e-5 off there."""
    space = VectorSpace(n, dtype, torch.device("cpu"))
    U, V = torch.rand(3, n, dtype=dtype).T, torch.rand(2, n, dtype=dtype).T
    close = 20 * torch.finfo(dtype).eps
    torch.testing.assert_close(space.norms(V).double(), V.double().norm(dim=0), rtol=close, atol=0)
    for A, B in ((U, V), (V, U), (U, V[:, :1])):
        torch.testing.assert_close(space.inner(A, B).double(), A.double().T @ B.double(), rtol=close, atol=0)
    for v in V.T:
        torch.testing.assert_close(space.length(v).double(), v.double().norm()[None], rtol=close, atol=0)
        torch.testing.assert_close(space.coordinates(U.T, v).double(), U.double().T @ v.double(), rtol=close, atol=0)
