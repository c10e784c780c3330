"""What iterations see of a damped system, against the matrices written out."""

import math

import numpy as np
import pytest
import torch

from losscope.landscape import NonFiniteError
from losscope.landscape.damped_system import DampedSystem, KeptVectors
from losscope.landscape.operators import DenseOperator, Observed
from spectra import rotated

F64 = torch.float64
A = rotated(torch.linspace(-1, 2, 12, dtype=F64))
D = 0.1 + torch.linspace(0, 1, 12, dtype=F64)
B = A + 0.3 * torch.eye(12, dtype=F64)


def system(diagonal: torch.Tensor | None = None, matrix: torch.Tensor = A) -> DampedSystem:
    return DampedSystem(Observed(DenseOperator(matrix)), 0.3, diagonal, 100)


def test_products_lengths_and_residuals_without_a_diagonal() -> None:
    plain, V = system(), torch.randn(3, 12, dtype=F64)
    BV, lengths = plain.product(V)
    torch.testing.assert_close(BV, V @ B)
    torch.testing.assert_close(lengths, V.norm(dim=1))
    torch.testing.assert_close(plain.residual(V, BV), V - BV @ B)
    assert plain.inward(V) is V and plain.least == pytest.approx(0.3)
    plain.read(lengths)
    assert plain.norm == pytest.approx(float(((V @ A).norm(dim=1) / V.norm(dim=1)).max()))
    assert plain.operator.matvecs == 6


def test_with_a_diagonal_it_is_the_system_between_its_roots() -> None:
    scaled, V = system(D), torch.randn(3, 12, dtype=F64)
    roots = D.rsqrt()
    BV, lengths = scaled.product(V)
    torch.testing.assert_close(BV, V @ (roots[:, None] * B * roots))
    torch.testing.assert_close(lengths, (V * roots).norm(dim=1))
    torch.testing.assert_close(scaled.inward(V), V * roots)
    torch.testing.assert_close(scaled.lengths(V * roots), V.norm(dim=1))
    torch.testing.assert_close(scaled.residual(V, BV), V - BV @ B)  # that of the parameters
    assert scaled.least == pytest.approx(0.3 / float(D.max()))


@pytest.mark.parametrize("diagonal", [None, D])
def test_a_direction_is_certified_by_its_own_curvature(diagonal: torch.Tensor | None) -> None:
    values, vectors = torch.linalg.eigh(B)
    found = system(diagonal)
    inward = 1.0 if diagonal is None else diagonal.sqrt()
    assert not found.bends_down(inward * vectors[:, -1]) and found.found is None
    assert found.bends_down(inward * vectors[:, 0])
    assert found.found.curvature == pytest.approx(float(values[0]) - 0.3)
    assert abs(float(found.found.direction @ vectors[:, 0])) == pytest.approx(1)
    assert found.operator.matvecs == 2


def test_curvature_within_rounding_of_zero_is_no_negative_curvature() -> None:
    least = float(torch.linalg.eigvalsh(A)[0])
    vector = torch.linalg.eigh(A).eigenvectors[:, 0]
    nearly = DampedSystem(Observed(DenseOperator(A)), -least - 1e-16, None, 100)
    assert not nearly.bends_down(vector)
    nearly.space.rounding = 0.1
    assert not nearly.certify(vector, -0.05)
    assert nearly.certify(vector, -0.5)
    assert nearly.found.error >= 0.1


def test_products_that_are_not_finite_are_refused_when_numbers_are_read() -> None:
    bad = A.clone()
    bad[2, 2] = math.nan
    broken = system(matrix=bad)
    _, lengths = broken.product(torch.ones(1, 12, dtype=F64))
    with pytest.raises(NonFiniteError):
        broken.read(lengths)


def test_room_is_what_is_left_besides_the_reserve() -> None:
    plain = system()
    plain.product(torch.ones(40, 12, dtype=F64))
    plain.reserved = 10
    assert plain.room(50) and not plain.room(51)


@pytest.mark.parametrize("k", [1, 3])
def test_kept_vectors_are_taken_out_and_stay_within_their_memory(k: int) -> None:
    n, room = 200, 90
    Q = torch.linalg.qr(torch.randn(k, n, n, dtype=F64)).Q
    kept = KeptVectors(Q[:, 0], room * k * n * 8 + 5)
    for i in range(100):
        assert kept.complete == (i <= room)
        kept.add(Q[:, :, i])
    W = torch.randn(k, n, dtype=F64)
    expected = W - torch.einsum("kni,kmi,km->kn", Q[:, :, :room], Q[:, :, :room], W)
    only = W.clone()
    kept.take_out_of(W)
    torch.testing.assert_close(W, expected)
    assert sum(chunk.numel() * 8 for chunk in kept._chunks) <= room * k * n * 8
    if k == 3:
        kept.keep(torch.from_numpy(np.array([False, True, True])))
        rest = only[1:].clone()
        kept.take_out_of(rest)
        torch.testing.assert_close(rest, expected[1:])
