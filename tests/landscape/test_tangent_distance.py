"""Numbers of kernels against their formulas written out entry by entry, and by hand."""

import math

import pytest
import torch
from torch import Tensor

from losscope.landscape import SettingError
from losscope.landscape.tangent import (
    EmpiricalKernel,
    effective_rank,
    kernel_distance,
    kernel_velocity,
    label_alignment,
    participation_ratio,
    relative_change,
    target_energy,
)


def kernel(seed: int, n: int = 7, rank: int = 4) -> Tensor:
    J = torch.randn(n, rank, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return J @ J.T


def inner(a: Tensor, b: Tensor) -> float:
    return sum(float(a[i, j]) * float(b[i, j]) for i in range(len(a)) for j in range(len(a)))


def centred(K: Tensor) -> Tensor:
    n = len(K)
    H = torch.eye(n, dtype=K.dtype) - torch.ones(n, n, dtype=K.dtype) / n
    return H @ K @ H


def cosine(a: Tensor, b: Tensor) -> float:
    return inner(a, b) / math.sqrt(inner(a, a) * inner(b, b))


def test_distances_entry_by_entry() -> None:
    a, b = kernel(0), kernel(1)
    assert kernel_distance(a, b) == pytest.approx(1 - cosine(a, b), rel=1e-12)
    assert kernel_distance(a, b, centred=True) == pytest.approx(1 - cosine(centred(a), centred(b)), rel=1e-12)
    assert kernel_velocity(a, b, 4.0) == pytest.approx(kernel_distance(a, b) / 4)
    assert relative_change(a, b) == pytest.approx(math.sqrt(inner(b - a, b - a) / inner(a, a)), rel=1e-12)


def test_distances_do_not_see_scale_and_resolve_small_changes() -> None:
    a = kernel(0)
    assert kernel_distance(a, 1e9 * a) < 1e-30
    assert relative_change(a, 3 * a) == pytest.approx(2)
    moved = a + 1e-9 * kernel(1)
    assert 0 < kernel_distance(a, moved) < 1e-17  # where 1 less the cosine is 0 or 1e-16
    assert kernel_distance(torch.diag(torch.tensor([1.0, 0.0])), torch.diag(torch.tensor([0.0, 2.0]))) == 1


def test_a_constant_mode_is_seen_by_the_plain_distance_alone() -> None:
    a, b = kernel(0), kernel(1)
    constant = 1e3 * torch.ones_like(a)
    assert kernel_distance(a + constant, b + constant) < 1e-3
    assert kernel_distance(a + constant, b + constant, centred=True) == pytest.approx(
        kernel_distance(a, b, centred=True), rel=1e-9
    )


def test_alignment_by_the_formula_and_by_hand() -> None:
    K, labels = kernel(2), torch.tensor([0, 2, 2, 5, 0, 5, 2])
    Y = torch.stack([(labels == c).double() for c in (0, 2, 5)], dim=1)
    of_targets = centred(Y @ Y.T)
    assert label_alignment(K, labels) == pytest.approx(cosine(centred(K), of_targets), rel=1e-12)
    assert label_alignment(K, Y) == pytest.approx(label_alignment(K, labels))
    assert label_alignment(5 * Y @ Y.T + 3, labels) == pytest.approx(1)
    signs = torch.tensor([1.0, 1.0, -1.0, -1.0])
    assert label_alignment(torch.eye(4), signs) == pytest.approx(1 / math.sqrt(3))  # |HIH| = sqrt(3)


def test_a_full_kernel_counts_by_its_trace_form() -> None:
    blocks = kernel(3, n=12).view(4, 3, 4, 3)
    trace = sum(blocks[:, c, :, c] for c in range(3)) / 3
    full = EmpiricalKernel(blocks.reshape(12, 12), "full", 4, 3, "contraction", 0.0, 0)
    labels = torch.tensor([0, 1, 1, 0])
    assert label_alignment(full, labels) == pytest.approx(label_alignment(trace, labels))
    torch.testing.assert_close(target_energy(full, labels)[0], torch.linalg.eigvalsh(trace).flip(0))


def test_ranks_by_hand() -> None:
    for many in (1, 3, 8):
        K = torch.diag(torch.tensor([2.0] * many + [0.0] * (8 - many)))
        assert effective_rank(K) == pytest.approx(many)
        assert participation_ratio(K) == pytest.approx(many)
    K = torch.diag(torch.tensor([3.0, 1.0]))
    assert participation_ratio(K) == pytest.approx(16 / 10)
    assert effective_rank(K) == pytest.approx(math.exp(-(0.75 * math.log(0.75) + 0.25 * math.log(0.25))))


def test_energies_of_the_targets() -> None:
    Q = torch.linalg.qr(torch.randn(5, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64))[0]
    K = Q @ torch.diag(torch.tensor([5.0, 4.0, 3.0, 2.0, 1.0], dtype=torch.float64)) @ Q.T
    values, shares = target_energy(K, 3 * Q[:, [1]] + 4 * Q[:, [3]])
    torch.testing.assert_close(values, torch.tensor([5.0, 4.0, 3.0, 2.0, 1.0], dtype=torch.float64))
    torch.testing.assert_close(shares, torch.tensor([0, 0.36, 0, 0.64, 0], dtype=torch.float64))


def test_bad_input() -> None:
    a = kernel(0)
    for found, words in (
        (lambda: kernel_distance(a, kernel(0, n=5)), r"different sizes: \(7, 7\) and \(5, 5\)"),
        (lambda: kernel_distance(a, a[:3]), r"square matrix, got \(3, 7\)"),
        (lambda: kernel_distance(a, torch.zeros(7, 7)), "zero"),
        (lambda: kernel_distance(torch.full((7, 7), 0.3), a, centred=True), "constant"),
        (lambda: kernel_velocity(a, a, 0), "elapsed"),
        (lambda: relative_change(torch.zeros(7, 7), a), "zero"),
        (lambda: label_alignment(a, torch.zeros(7, dtype=torch.long)), "all targets are the same"),
        (lambda: label_alignment(a, torch.zeros(5)), r"targets must be class indices \(7,\)"),
        (lambda: effective_rank(torch.zeros(2, 2)), "zero"),
    ):
        with pytest.raises(SettingError, match=words):
            found()
    one, other = (EmpiricalKernel(a, form, 7, 1, "contraction", 0.0, 0) for form in ("full", "trace"))
    with pytest.raises(SettingError, match="different forms: full and trace"):
        kernel_distance(one, other)
