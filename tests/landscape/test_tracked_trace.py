"""The tracked trace: coverage whatever its basis, what it costs when warm, and what it is refused."""

import pytest
import torch
from torch import Tensor

from losscope.landscape import NonFiniteError, SettingError
from losscope.landscape.tracked_trace import TrackedTrace

N = 300
_I = torch.arange(1, N + 1, dtype=torch.float64)
SPECTRA = {
    "power law": 1 / _I,
    "equal outliers": torch.cat((torch.full((20,), 50.0, dtype=torch.float64), _I[20:] / N)),
    "indefinite": torch.cat((20 / _I[:20], torch.linspace(-0.3, 0.35, N - 20, dtype=torch.float64))),
    "exponential": torch.exp(-_I / 10),
}


def rotated(values: Tensor, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    Q = torch.linalg.qr(torch.randn(N, N, generator=generator, dtype=torch.float64))[0]
    return (Q * values) @ Q.T


@pytest.mark.parametrize("state", ["cold", "warm", "stale"])
@pytest.mark.parametrize("name", SPECTRA)
def test_intervals_cover_whatever_the_basis(name, state):
    A, true = rotated(SPECTRA[name]), float(SPECTRA[name].sum())
    other = rotated(SPECTRA[name], seed=1)
    hits, seeds = 0, 150
    for seed in range(seeds):
        tracked = TrackedTrace()
        if state != "cold":
            tracked.measure(A if state == "warm" else other, seed=1000 + seed)
        found = tracked.measure(A, rtol=0.1, seed=seed)
        hits += found.low <= true <= found.high
        assert found.converged == ((found.high - found.low) / 2 <= 0.1 * abs(found.value))
    assert hits >= 0.9 * seeds  # 0.95 nominal: 0.92 to 0.98 in 400 seeds


def test_a_warm_basis_saves_what_finding_it_costs_and_a_stale_one_is_replaced():
    A, B = rotated(SPECTRA["equal outliers"][:N]), rotated(SPECTRA["equal outliers"], seed=1)
    tracked = TrackedTrace(rank=25)
    cold = tracked.measure(A, rtol=0.05, seed=0).matvecs
    warm = tracked.measure(A, rtol=0.05, seed=1).matvecs
    assert warm <= cold - 25 + 4
    stale = tracked.measure(B, rtol=0.05, max_matvecs=1000, seed=2).matvecs
    again = tracked.measure(B, rtol=0.05, seed=3).matvecs
    assert again < stale
    assert stale < 200


def test_what_grows_outside_of_the_basis_comes_into_it():
    values = torch.cat((torch.full((8,), 10.0, dtype=torch.float64), torch.full((N - 8,), 0.01, dtype=torch.float64)))
    tracked = TrackedTrace()
    tracked.measure(rotated(values), seed=0)
    values = values.clone()
    values[100] = 500.0  # a direction that the basis is normal to
    for seed in range(3):
        found = tracked.measure(rotated(values), rtol=0.1, seed=seed)
    assert found.matvecs <= tracked.rank + tracked.samples
    assert found.low <= float(values.sum()) <= found.high
    direction = rotated(values) @ tracked.leading
    assert float(direction.norm()) == pytest.approx(500.0, rel=1e-2)


def test_samples_are_as_many_as_the_last_measurement_says_it_takes():
    A = rotated(SPECTRA["equal outliers"])
    for rtol in (0.5, 0.1):
        tracked = TrackedTrace(rank=20)
        spent = [tracked.measure(A, rtol=rtol, seed=seed).matvecs for seed in range(9)]
        assert spent[0] >= 2 * tracked.rank + tracked.samples
        assert sorted(spent[3:])[3] < tracked.rank + tracked.samples  # what is left outside spreads little
    tracked = TrackedTrace()
    wide = [tracked.measure(A, rtol=0.3, seed=seed).matvecs for seed in range(5)][-1]
    narrow = [tracked.measure(A, rtol=0.06, seed=seed).matvecs for seed in range(5)][-1]
    assert narrow > wide + 8


def test_small_operators_and_small_budgets_take_the_ordinary_trace():
    assert TrackedTrace().measure(torch.eye(20), seed=0).value == pytest.approx(20.0)
    found = TrackedTrace().measure(rotated(SPECTRA["power law"]), max_matvecs=10, seed=0)
    assert found.matvecs <= 10
    assert not found.converged


def test_the_least_matvecs_that_converge_and_the_most_that_are_allowed():
    A = rotated(SPECTRA["exponential"])
    found = TrackedTrace().measure(A, rtol=1e-4, max_matvecs=60, seed=0)
    assert found.matvecs == 60
    assert not found.converged
    flat = TrackedTrace()
    flat.measure(2 * torch.eye(N, dtype=torch.float64), seed=0)
    assert flat.measure(2 * torch.eye(N, dtype=torch.float64), seed=1).value == pytest.approx(2 * N)


def test_zero_is_zero():
    found = TrackedTrace().measure(torch.zeros(N, N), max_matvecs=40, seed=0)
    assert found.value == 0.0
    assert found.low <= 0.0 <= found.high


def test_the_same_seed_gives_the_same_and_the_global_stream_is_left_alone():
    A, state = rotated(SPECTRA["power law"]), torch.get_rng_state()
    first, second = (TrackedTrace().measure(A, seed=5) for _ in range(2))
    assert first.value == second.value
    assert torch.equal(state, torch.get_rng_state())


def test_what_is_refused():
    with pytest.raises(SettingError, match="rank >= 1"):
        TrackedTrace(rank=0)
    with pytest.raises(SettingError, match="rtol must be > 0"):
        TrackedTrace().measure(torch.eye(N), rtol=0.0)
    with pytest.raises(SettingError, match="not symmetric"):
        TrackedTrace().measure(torch.triu(torch.ones(N, N)), seed=0)
    with pytest.raises(NonFiniteError):
        TrackedTrace().measure(torch.full((N, N), torch.nan), seed=0)
