"""The mean-square threshold against the spectral radius of the dense second-moment operator, and SGD itself."""

import math

import pytest
import torch
from torch import Tensor

from losscope.landscape import SettingError
from losscope.landscape.mean_square import mean_square_threshold

F64 = torch.float64


def drawn(seed: int, n: int = 12, d: int = 6, outputs: int = 1, heavy: bool = False) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    J = torch.randn(n, outputs, d, generator=generator, dtype=F64)
    return J * torch.randn(n, 1, 1, generator=generator, dtype=F64).exp() if heavy else J


def radius(J: Tensor, eta: float, share: float) -> float:
    """Spectral radius of T on all d x d matrices over the range of H, as a dense matrix."""
    n = len(J)
    G = torch.einsum("ica,icb->iab", J, J)
    H = G.mean(dim=0)
    basis = torch.linalg.eigh(H).eigenvectors[:, torch.linalg.eigvalsh(H) > 1e-10]
    G, H = basis.T @ G @ basis, basis.T @ H @ basis
    step = torch.eye(len(H), dtype=F64) - eta * H
    both = sum(torch.kron(g, g) for g in G) / n
    T = torch.kron(step, step) + eta**2 * share * (both - torch.kron(H, H))
    return float(torch.linalg.eigvals(T).abs().max())


def by_bisection(J: Tensor, share: float) -> float:
    low, high = 0.0, 1.0
    while radius(J, high, share) < 1:
        high *= 2
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if radius(J, middle, share) < 1 else (low, middle)
    return low


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("batch", [1, 2, 5, 12])
@pytest.mark.parametrize(
    ("n", "d", "outputs", "heavy"), [(12, 5, 1, False), (12, 5, 1, True), (4, 9, 1, False), (6, 4, 3, False)]
)
def test_it_is_where_the_dense_spectral_radius_is_one(
    n: int, d: int, outputs: int, heavy: bool, batch: int, seed: int
) -> None:
    J = drawn(seed, n, d, outputs, heavy)
    exact = by_bisection(J, 1 / batch)
    found = mean_square_threshold(J, batch, seed=seed)
    assert found.value == pytest.approx(exact, rel=1e-6)
    assert found.low <= exact * (1 + 1e-9) and exact <= found.high * (1 + 1e-9) and found.converged
    if batch <= n > 1:
        without = mean_square_threshold(J, batch, replacement=False, seed=seed)
        assert without.value == pytest.approx(by_bisection(J, (n - batch) / (batch * (n - 1))), rel=1e-6)


@pytest.mark.parametrize("seed", range(5))
def test_rows_of_equal_length_one_at_a_time_give_two_over_the_trace(seed: int) -> None:
    rows = drawn(seed)[:, 0]
    rows = 3 * rows / rows.norm(dim=1, keepdim=True)
    assert mean_square_threshold(rows, 1, seed=0).value == pytest.approx(2 / 9, rel=1e-9)


@pytest.mark.parametrize("seed", range(20))
def test_it_is_between_the_longest_row_and_the_trace(seed: int) -> None:
    rows = drawn(seed, heavy=seed % 2 == 1)[:, 0]
    squares = rows.square().sum(dim=1)
    found = mean_square_threshold(rows, 1, seed=0).value
    assert 2 / float(squares.max()) <= found * (1 + 1e-9)
    assert found <= 2 / float(squares.mean()) * (1 + 1e-9)


def test_full_batches_without_replacement_are_gradient_descent() -> None:
    rows = drawn(0)[:, 0]
    top = float(torch.linalg.eigvalsh(rows.T @ rows / len(rows)).max())
    assert mean_square_threshold(rows, 12, replacement=False, seed=0).value == pytest.approx(2 / top, rel=1e-9)
    thresholds = [mean_square_threshold(rows, B, replacement=False, seed=0).value for B in range(1, 13)]
    assert thresholds == sorted(thresholds)


@pytest.mark.parametrize(("factor", "grows"), [(0.9, False), (1.15, True)])
@pytest.mark.parametrize("batch", [1, 3])
def test_sgd_itself(batch: int, factor: float, grows: bool) -> None:
    """Few samples, that the mean square be seen in a mean: heavy tails carry it above the threshold."""
    J = drawn(2, 4, 2)
    eta = factor * mean_square_threshold(J, batch, seed=0).value
    generator = torch.Generator().manual_seed(0)
    d = torch.randn(200_000, 2, generator=generator, dtype=F64)
    sizes = []
    for _ in range(12):
        chosen = J[torch.randint(4, (len(d), batch), generator=generator), 0]
        d = d - eta * (chosen * (chosen @ d[:, :, None])).mean(dim=1)
        sizes.append(float(d.square().sum(dim=1).mean()))
    assert (sizes[-1] > sizes[3]) == grows


def test_scaling_the_rows_scales_it() -> None:
    J = drawn(1)
    plain, scaled = (mean_square_threshold(c * J, 3, seed=0).value for c in (1.0, 1e-3))
    assert scaled == pytest.approx(1e6 * plain, rel=1e-9)


def test_three_hundred_samples_of_a_thousand_parameters() -> None:
    J = drawn(0, 300, 1000)
    found = mean_square_threshold(J, 8, tol=1e-3, seed=0)
    assert found.converged and 2 / float(J.square().sum(dim=(1, 2)).max()) < found.value < math.inf


def test_rows_that_vanish() -> None:
    assert mean_square_threshold(torch.zeros(3, 2), 1).value == math.inf
    J = drawn(0)
    J[3] = 0.0
    assert mean_square_threshold(J, 2, seed=0).value == pytest.approx(by_bisection(J, 0.5), rel=1e-6)


@pytest.mark.parametrize(
    ("rows", "batch", "options", "message"),
    [
        (torch.ones(3), 1, {}, r"rows must be .* got \(3,\)"),
        ([1.0], 1, {}, "got list"),
        (torch.ones(3, 0), 1, {}, "not empty"),
        (torch.full((2, 2), math.nan), 1, {}, "finite"),
        (torch.ones(3, 2), 0, {}, "batch_size must be an integer of at least 1, got 0"),
        (torch.ones(3, 2), 1.5, {}, "got 1.5"),
        (torch.ones(3, 2), 4, {"replacement": False}, "at most n = 3 samples, got 4"),
    ],
)
def test_what_means_nothing_is_refused(rows: object, batch: object, options: dict, message: str) -> None:
    with pytest.raises(SettingError, match=message):
        mean_square_threshold(rows, batch, **options)
