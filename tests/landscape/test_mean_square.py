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


# --------------------------------------------------------------------------- momentum

MOMENTA: dict[str, dict] = {
    "heavy ball 0.3": {"momentum": 0.3},
    "heavy ball 0.9": {"momentum": 0.9},
    "heavy ball 0.99": {"momentum": 0.99},
    "dampened": {"momentum": 0.9, "dampening": 0.4},
    "nesterov 0.3": {"momentum": 0.3, "nesterov": True},
    "nesterov 0.9": {"momentum": 0.9, "nesterov": True},
}


def sgd_step(G: Tensor, eta: float, options: dict) -> Tensor:
    """What torch's own optimizer makes of (weights, buffer) under the gradient G w, as a matrix."""
    r = len(G)
    state = torch.eye(2 * r, dtype=F64)  # columns are starts; each is a row of the optimizer's parameter
    p = torch.nn.Parameter(state[:, :r].clone())
    optimizer = torch.optim.SGD([p], lr=eta, **options)
    optimizer.state[p]["momentum_buffer"] = state[:, r:].clone()
    p.grad = p.detach() @ G
    optimizer.step()
    return torch.cat([p.detach(), optimizer.state[p]["momentum_buffer"]], dim=1).T


def reduced(J: Tensor) -> Tensor:
    """The same rows over their range."""
    U, sizes, _ = torch.linalg.svd(J.flatten(0, 1), full_matrices=False)
    kept = sizes > 1e-10 * sizes.max()
    return (U[:, kept] * sizes[kept]).reshape(*J.shape[:2], -1)


def second_moments(J: Tensor, eta: float, share: float, options: dict) -> Tensor:
    """E[A (x) A] of torch's own step over mini-batches, which it depends on linearly."""
    G = torch.einsum("ica,icb->iab", J, J)
    mean = sgd_step(G.mean(dim=0), eta, options)
    apart = [sgd_step(g, eta, options) - mean for g in G]
    return torch.kron(mean, mean) + share / len(J) * sum(torch.kron(a, a) for a in apart)


def momentum_radius(J: Tensor, eta: float, share: float, options: dict) -> float:
    return float(torch.linalg.eigvals(second_moments(J, eta, share, options)).abs().max())


@pytest.mark.parametrize("batch", [1, 2, 8])
@pytest.mark.parametrize(
    ("n", "d", "outputs", "heavy"), [(8, 3, 1, False), (8, 3, 1, True), (3, 5, 1, False), (4, 3, 2, True)]
)
@pytest.mark.parametrize("name", MOMENTA)
def test_with_momentum_it_is_where_mean_squares_of_torchs_own_steps_neither_grow_nor_decay(
    name: str, n: int, d: int, outputs: int, heavy: bool, batch: int
) -> None:
    J = drawn(3, n, d, outputs, heavy)
    found = mean_square_threshold(J, batch, seed=0, **MOMENTA[name])
    over_range = reduced(J)
    assert found.converged and found.low <= found.value <= found.high
    assert momentum_radius(over_range, found.value, 1 / batch, MOMENTA[name]) == pytest.approx(1, abs=1e-6)
    for factor, stable in ((0.5, True), (0.97, True), (1.03, False)):
        assert (momentum_radius(over_range, factor * found.value, 1 / batch, MOMENTA[name]) < 1) == stable


@pytest.mark.parametrize("name", MOMENTA)
def test_it_goes_from_the_noise_dominated_to_the_deterministic_edge(name: str) -> None:
    """From (1-b)/(1-d) of plain SGD's, at single samples of many directions, to the optimizer's own threshold."""
    options = MOMENTA[name]
    b, d = options["momentum"], options.get("dampening", 0.0)
    rows = drawn(0, 30, 20)[:, 0]
    top = float(torch.linalg.eigvalsh(rows.T @ rows / len(rows)).max())
    single, without = (
        mean_square_threshold(rows, 1, seed=0, **options).value,
        mean_square_threshold(rows, 1, seed=0).value,
    )
    assert (1 - b) / (1 - d) * without <= single * (1 + 1e-9)
    assert single <= 1.4 * (1 - b) / (1 - d) * without
    largest = (2 + 2 * b) / top / (1 + 2 * b if options.get("nesterov") else 1 - d)
    assert mean_square_threshold(rows, 10**9, tol=1e-4, seed=0, **options).value == pytest.approx(largest, rel=1e-4)
    full = mean_square_threshold(rows, 30, replacement=False, seed=0, **options)
    assert full.value == pytest.approx(largest, rel=1e-6)
    sizes = [mean_square_threshold(rows, B, seed=0, tol=1e-4, **options).value for B in (1, 8, 1000)]
    assert sizes == sorted(sizes)


@pytest.mark.parametrize(("mean", "variance"), [(1.0, 0.0), (0.3, 5.0), (2.0, 1.0)])
def test_a_scalar_has_the_closed_form(mean: float, variance: float) -> None:
    b, spread = 0.9, variance**0.5
    h = torch.tensor([mean - spread, mean + spread], dtype=F64)
    if h.min() < 0:  # curvatures of squared loss are not negative: two unequal shares instead
        h = torch.tensor([0.0] * 99 + [100 * mean], dtype=F64)
        variance = float(h.var(correction=0))
    found = mean_square_threshold(h.sqrt()[:, None], 1, momentum=b, seed=0).value
    assert found == pytest.approx(2 * (1 - b**2) * mean / ((1 + b) * variance + (1 - b) * mean**2), rel=1e-9)


@pytest.mark.parametrize("nesterov", [False, True])
def test_the_interval_holds_it_at_a_loose_tolerance_too(nesterov: bool) -> None:
    """Of 200 such draws all were held; the lower end is one of 95 %."""
    held = []
    for seed in range(14):
        J, batch = drawn(seed, 3 + seed, 2 + seed % 6, 1 + seed % 2, seed % 3 == 0), (1, 2, 5, 30)[seed % 4]
        options = {"momentum": (0.3, 0.9, 0.99)[seed % 3], "nesterov": nesterov}
        found = mean_square_threshold(J, batch, tol=0.1, seed=seed, **options)
        exact = mean_square_threshold(J, batch, tol=1e-8, seed=100 + seed, **options).value
        assert found.low <= found.value <= found.high and exact <= found.high * (1 + 1e-9)
        held.append(found.low <= exact * (1 + 1e-9))
    assert sum(held) >= 12


def test_rows_that_are_all_the_same_have_no_noise() -> None:
    rows = torch.ones(5, 1, dtype=F64)
    assert mean_square_threshold(rows, 1, momentum=0.9, nesterov=True, seed=0).value == pytest.approx(3.8 / 2.8)
    assert mean_square_threshold(rows, 1, momentum=0.9, seed=0).value == pytest.approx(3.8)


@pytest.mark.parametrize("batch", [1, 2, 8, 16])
@pytest.mark.parametrize("name", ["heavy ball 0.9", "nesterov 0.9"])
def test_torchs_sgd_on_drawn_batches_grows_in_mean_square_just_above_and_decays_just_below(
    name: str, batch: int
) -> None:
    """Many replicas in one parameter, started from the second moment that keeps its form."""
    options, n, d = MOMENTA[name], 16, 3
    J = drawn(5, n, d)
    generator = torch.Generator().manual_seed(batch)
    for factor in (0.97, 1.03):
        eta = factor * mean_square_threshold(J, batch, seed=0, **options).value
        squares = second_moments(J, eta, 1 / batch, options)
        values, vectors = torch.linalg.eig(squares)
        top = int(values.abs().argmax())
        growth, start = float(values[top].real), vectors[:, top].real.reshape(2 * d, 2 * d)
        assert (growth > 1) == (factor > 1)
        low, basis = torch.linalg.eigh(start * start.trace().sign() / start.norm())
        state = torch.randn(40_000, 2 * d, generator=generator, dtype=F64) * low.clamp(min=0).sqrt() @ basis.T
        p = torch.nn.Parameter(state[:, :d].clone())
        optimizer = torch.optim.SGD([p], lr=eta, **options)
        optimizer.state[p]["momentum_buffer"] = state[:, d:].clone()
        before = state.square().sum(dim=1)
        steps = min(30, math.ceil(0.2 / abs(math.log(growth))))  # few, before tails are heavy
        for _ in range(steps):
            rows = J[torch.randint(n, (len(state), batch), generator=generator), 0]
            p.grad = (rows * (rows @ p.detach()[:, :, None])).mean(dim=1)
            optimizer.step()
        after = torch.cat([p.detach(), optimizer.state[p]["momentum_buffer"]], dim=1).square().sum(dim=1)
        change = after - growth**steps * before  # nothing in the mean
        error = float(change.std() / len(change) ** 0.5)
        assert abs(float(change.mean())) < 4 * error
        moved, error = (after - before).mean(), (after - before).std() / len(after) ** 0.5
        assert float(moved if factor > 1 else -moved) > 2 * float(error)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"momentum": 1.0}, r"momentum must be in \[0, 1\), got 1\.0"),
        ({"momentum": -0.1}, "momentum must be"),
        ({"momentum": math.nan}, "momentum must be"),
        ({"momentum": 0.9, "dampening": 1.0}, "dampening must be below 1"),
        ({"nesterov": True}, "nesterov needs a momentum and no dampening"),
        ({"momentum": 0.9, "dampening": 0.1, "nesterov": True}, "nesterov needs a momentum"),
    ],
)
def test_momentum_that_means_nothing_is_refused(options: dict, message: str) -> None:
    with pytest.raises(SettingError, match=message):
        mean_square_threshold(torch.ones(3, 2), 1, **options)


# --------------------------------------------------------------------------- scale and bad input


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
