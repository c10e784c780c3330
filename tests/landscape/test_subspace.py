"""Shares of gradients and overlaps of subspaces: dense oracles, and intervals that hold the exact eigenspaces."""

import math
import pickle

import pytest
import torch
from scipy.linalg import subspace_angles
from torch import Tensor, nn

from landscape_cases import mlp
from losscope.landscape import (
    Eigenpairs,
    Hessian,
    NonFiniteError,
    Objective,
    SettingError,
    gradient_share,
    subspace_overlap,
    top_eigenpairs,
)
from spectra import rotated

F64 = torch.float64


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def exact_shares(A: Tensor, g: Tensor, k: int, which: str) -> Tensor:
    values, vectors = torch.linalg.eigh(A)
    order = {"LA": values.argsort(descending=True), "SA": values.argsort(), "LM": values.abs().argsort(descending=True)}
    if which == "BE":
        top = values.argsort(descending=True)
        chosen = torch.cat([top[: (k + 1) // 2], top[len(top) - k // 2 :]])
    else:
        chosen = order[which][:k]
    return ((vectors[:, chosen].T @ g).square() / (g @ g)).cumsum(0)


SPECTRUM = torch.cat(
    [torch.tensor([9.0, 7.0, 5.0, 4.9, 3.0]), torch.linspace(-1, 1, 90), torch.tensor([-6.0])]
).double()


@pytest.mark.parametrize("which", ["LA", "SA", "LM", "BE"])
@pytest.mark.parametrize("tol", [1e-9, 1e-2, 0.3])
def test_intervals_hold_the_share_in_the_exact_eigenspace(which: str, tol: float) -> None:
    A = rotated(SPECTRUM)
    for seed in range(6):
        g = A @ random(96, seed=seed)  # most of it in the top space
        pairs = top_eigenpairs(A, 6, which=which, tol=tol, seed=seed)
        found = gradient_share(g, pairs)
        exact = exact_shares(A, g, 6, which)
        assert bool(((found.low - 1e-9 <= exact) & (exact <= found.high + 1e-9)).all())
        assert bool(((found.low <= found.shares + 1e-12) & (found.shares <= found.high + 1e-12)).all())
        assert bool((found.shares.diff() >= 0).all())
        if tol == 1e-9 and which == "LA":
            torch.testing.assert_close(found.shares, exact, rtol=0, atol=1e-7)
            assert float((found.high - found.low)[:5].max()) < 1e-5


def test_equal_eigenvalues_at_the_boundary_leave_everything_open() -> None:
    """The first of two is any direction of their plane; the plane itself is one."""
    A = rotated(torch.cat([torch.tensor([5.0, 5.0]), torch.linspace(0, 1, 60)]).double())
    g = random(62)
    found = gradient_share(g, top_eigenpairs(A, 3, block=3, tol=1e-8, seed=0))
    assert (float(found.low[0]), float(found.high[0])) == (0.0, 1.0)
    assert float(found.high[1] - found.low[1]) < 1e-4
    assert float(found.low[1]) <= float(exact_shares(A, g, 2, "LA")[1]) <= float(found.high[1])


def test_of_an_objective() -> None:
    model = mlp(6, 5, 3).double()
    data = (random(40, 6), torch.arange(40) % 3)
    objective = Objective(model, data, criterion=nn.CrossEntropyLoss())
    pairs = top_eigenpairs(Hessian(objective), 4, tol=1e-6, seed=0)
    found, by_hand = gradient_share(objective, pairs), gradient_share(objective.gradient(), pairs)
    assert torch.equal(found.shares, by_hand.shares)
    assert found.norm == pytest.approx(float(objective.gradient().norm()))
    assert found.size == objective.space.size and found.value == float(found.shares[-1])


def test_the_whole_space_has_all_of_it() -> None:
    A = rotated(torch.tensor([3.0, 1.0, 1.0, -2.0]).double())
    found = gradient_share(random(4), top_eigenpairs(A, 4, seed=0))
    assert found.value == pytest.approx(1.0) and float(found.low[-1]) == pytest.approx(1.0)


def test_scale_does_not_matter() -> None:
    A, g = rotated(SPECTRUM), random(96)
    one, other = (gradient_share(c * g, top_eigenpairs(c * A, 4, seed=0)) for c in (1.0, 1e-9))
    torch.testing.assert_close(one.shares, other.shares)
    torch.testing.assert_close(one.low, other.low)


# --------------------------------------------------------------------------- overlaps


@pytest.mark.parametrize(("a", "b"), [(1, 1), (3, 3), (5, 2), (2, 40)])
def test_angles_are_those_of_scipy(a: int, b: int) -> None:
    U, V = random(60, a), random(60, b, seed=1)
    found = subspace_overlap(U, V)
    expected = torch.tensor(subspace_angles(U.numpy(), V.numpy())).flip(0)
    torch.testing.assert_close(found.angles, expected, rtol=1e-9, atol=0)
    assert found.value == pytest.approx(float(expected.cos().square().mean()), rel=1e-9)
    assert (found.low, found.high) == (found.value, found.value)
    assert found.dimensions == (a, b) and found.chance == max(a, b) / 60


def test_small_angles_are_resolved() -> None:
    """As cosines do not: planes that are turned by known angles, in bases that do not show them."""
    E, angles = torch.linalg.qr(random(40, 4))[0], torch.tensor([1e-7, 0.7], dtype=F64)
    V = E[:, :2] * angles.cos() + E[:, 2:] * angles.sin()
    found = subspace_overlap(E[:, :2] @ random(2, 2, seed=1), V @ random(2, 2, seed=2))
    torch.testing.assert_close(found.angles, angles, rtol=1e-7, atol=0)


def test_it_is_symmetric_and_does_not_depend_on_the_basis() -> None:
    U, V = random(50, 4), random(50, 4, seed=1)
    turned = subspace_overlap(U @ random(4, 4, seed=2), -1e-8 * V)
    assert subspace_overlap(U, V).value == pytest.approx(turned.value, rel=1e-9)
    assert subspace_overlap(V, U).value == pytest.approx(turned.value, rel=1e-9)


def test_chance_is_what_random_subspaces_have() -> None:
    values = [subspace_overlap(random(80, 4, seed=i), random(80, 10, seed=1000 + i)).value for i in range(200)]
    assert sum(values) / 200 == pytest.approx(10 / 80, rel=0.05)


def test_bases_that_are_nearly_dependent() -> None:
    """Copies of a vector, and zeros, do not count as dimensions of their own."""
    U = random(50, 3)
    degenerate = torch.cat([U, U[:, :1] * (1 + 1e-12), torch.zeros(50, 1, dtype=F64)], dim=1)
    found = subspace_overlap(degenerate, U)
    assert found.dimensions == (3, 3) and found.value == pytest.approx(1.0, abs=1e-9)
    single = subspace_overlap(degenerate.float(), U.float())
    assert single.value == pytest.approx(1.0, abs=1e-5) and float(single.angles[-1]) < 1e-3


@pytest.mark.parametrize("tol", [1e-8, 0.1, 0.3])
def test_intervals_hold_the_overlap_of_exact_eigenspaces(tol: float) -> None:
    A = rotated(SPECTRUM)
    B = A + 0.3 * (lambda W: (W + W.T) / 20)(random(96, 96))
    exact = subspace_overlap(*(torch.linalg.eigh(M)[1][:, -5:] for M in (A, B))).value
    for seed in range(5):
        found = subspace_overlap(*(top_eigenpairs(M, 5, tol=tol, seed=seed) for M in (A, B)))
        assert found.low - 1e-12 <= exact <= found.high + 1e-12
        if tol == 1e-8:
            assert found.high - found.low < 1e-5 and found.value == pytest.approx(exact, abs=1e-6)


def test_what_is_shown() -> None:
    A = rotated(SPECTRUM)
    pairs = top_eigenpairs(A, 3, seed=0)
    shown = repr(gradient_share(random(96), pairs))
    assert "in the top 3" in shown and "by chance 0.031" in shown
    assert "dimensions 3 and 3" in repr(subspace_overlap(pairs, pairs))
    for result in (gradient_share(random(96), pairs), subspace_overlap(pairs, pairs)):
        assert repr(pickle.loads(pickle.dumps(result))) == repr(result)


# --------------------------------------------------------------------------- bad input


def pairs_of(n: int) -> Eigenpairs:
    return top_eigenpairs(torch.diag(torch.arange(n).double()), 2, seed=0)


def test_gradients_that_mean_nothing_are_refused() -> None:
    with pytest.raises(SettingError, match=r"must have shape \(5,\).*got \(6,\)"):
        gradient_share(torch.ones(6), pairs_of(5))
    with pytest.raises(SettingError, match="got float"):
        gradient_share(1.0, pairs_of(5))  # type: ignore[arg-type]
    with pytest.raises(SettingError, match="the gradient is zero"):
        gradient_share(torch.zeros(5), pairs_of(5))
    with pytest.raises(NonFiniteError, match="NaN or infinite"):
        gradient_share(torch.full((5,), math.nan), pairs_of(5))


def test_subspaces_that_mean_nothing_are_refused() -> None:
    U = torch.eye(5)[:, :2]
    with pytest.raises(SettingError, match="of spaces of 5 and 6 dimensions"):
        subspace_overlap(U, torch.eye(6)[:, :2])
    with pytest.raises(SettingError, match="V spans nothing"):
        subspace_overlap(U, torch.zeros(5, 2))
    with pytest.raises(SettingError, match=r"U must be eigenpairs or a real tensor of shape \(n, k\), got list"):
        subspace_overlap([1.0], U)  # type: ignore[arg-type]
    with pytest.raises(SettingError, match=r"got torch\.int64"):
        subspace_overlap(torch.eye(5, dtype=torch.int64), U)
    with pytest.raises(NonFiniteError, match="U has a NaN"):
        subspace_overlap(U * math.nan, U)


def test_long_single_precision_vectors_add_up() -> None:
    """Torch adds four million float32 entries one after the other, which is 3e-4 off here."""
    generator = torch.Generator().manual_seed(0)
    U, W = torch.randn(2, 1 << 22, generator=generator)
    V = U + W / 2
    cosine = torch.cosine_similarity(U.double(), V.double(), dim=0)
    found = subspace_overlap(U, V)
    assert found.value == pytest.approx(float(cosine.square()), rel=1e-5)
    assert float(found.angles[0]) == pytest.approx(float(cosine.acos()), rel=1e-5)
    assert float(subspace_overlap(U, 2 * U).angles[0]) < 1e-5
