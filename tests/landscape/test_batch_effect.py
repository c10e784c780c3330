"""The batch-size effect: quadratics whose samples have matrices that are known, and digits."""

import functools
import math
import pickle

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from digits_nets import digits, train
from landscape_cases import mlp
from losscope.landscape import GaussNewton, LossError, Objective, SettingError, batch_effect
from losscope.landscape.batch_effect import BatchEffect
from spectra import rotated

F64 = torch.float64


class Point(nn.Module):
    """Parameters and nothing else."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.ones(size, dtype=F64))


def quadratic(model: nn.Module, batch: tuple[Tensor]) -> Tensor:
    """The mean of w'H_i w / 2, so that the Hessian of sample i is H_i."""
    w = model.w
    return 0.5 * torch.einsum("i,nij,j->n", w, batch[0], w).mean()


@functools.cache
def samples(sigma: float, spikes: tuple[float, ...], size: int = 100, count: int = 240) -> Tensor:
    """H_i = H + noise, symmetric with independent entries of variance sigma^2 (twice that on the diagonal)."""
    generator = torch.Generator().manual_seed(3)
    noise = torch.randn(count, size, size, generator=generator, dtype=F64).mul_(sigma / math.sqrt(2))
    values = torch.zeros(size, dtype=F64)
    values[: len(spikes)] = torch.tensor(spikes, dtype=F64)
    return rotated(values) + noise + noise.transpose(1, 2)


def objective_on(matrices: Tensor, batch: int = 70) -> Objective:
    return Objective(Point(matrices.shape[1]), [(part,) for part in matrices.split(batch)], loss_fn=quadratic)


@functools.cache
def effect(sigma: float, spikes: tuple[float, ...]) -> BatchEffect:
    return batch_effect(objective_on(samples(sigma, spikes)), [4, 12, 40, 120], draws=6, seed=0)


# --------------------------------------------------------------------------- known matrices


@pytest.mark.parametrize(("sigma", "spikes"), [(1.0, (14.0, -9.0)), (3.0, (20.0, 4.0, -30.0)), (1e-3, (0.03, -0.02))])
def test_the_formula_is_within_ten_percent(sigma: float, spikes: tuple[float, ...]) -> None:
    """Above the threshold and below it, at both ends."""
    found = effect(sigma, spikes)
    for B, largest, smallest in zip(found.batch_sizes, found.largest, found.smallest, strict=True):
        assert found.predicted(B)[0] == pytest.approx(largest.value, rel=0.1)
        assert found.predicted(B, smallest=True)[0] == pytest.approx(smallest.value, rel=0.1)
        assert largest.low <= largest.value <= largest.high and smallest.low <= smallest.value <= smallest.high
    assert math.sqrt(found.fitted) == pytest.approx(sigma, rel=0.1)


def test_intervals_hold_the_noise_of_these_samples() -> None:
    """The variance between the samples there are, against their dense matrices."""
    matrices = samples(1.0, (14.0, -9.0))[:120]
    exact = float((matrices - matrices.mean(dim=0)).square().sum() / (len(matrices) - 1)) / matrices.shape[1] ** 2
    objective = objective_on(matrices)
    found = [batch_effect(objective, [60], draws=2, probes=2, tol=0.5, seed=seed).noise for seed in range(12)]
    assert sum(e.low <= exact <= e.high for e in found) >= 10
    assert sum(e.value for e in found) / 12 == pytest.approx(exact, rel=0.02)
    assert all(e.high - e.low < 0.3 * exact for e in found)


def test_eigenvalues_are_those_of_mini_batches() -> None:
    """Mean and interval against dense matrices of many subsets."""
    matrices = samples(1.0, (14.0, -9.0))
    generator = torch.Generator().manual_seed(0)
    ends = []
    for _ in range(100):
        H = matrices[torch.randperm(len(matrices), generator=generator)[:12]].mean(dim=0)
        ends.append(torch.linalg.eigvalsh(H)[[-1, 0]])
    expected = torch.stack(ends).mean(dim=0).tolist()
    objective = objective_on(matrices)
    found = [batch_effect(objective, [12], draws=5, tol=1e-3, probes=1, seed=seed) for seed in range(8)]
    for end, estimates in enumerate(zip(*[(e.largest[0], e.smallest[0]) for e in found], strict=True)):
        assert sum(e.low <= expected[end] <= e.high for e in estimates) >= 6
        assert sum(e.value for e in estimates) / 8 == pytest.approx(expected[end], rel=0.01)


def test_all_samples_are_a_batch_without_noise() -> None:
    found = effect(1.0, (14.0, -9.0))
    assert found.predicted(240) == (pytest.approx(float(found.full.values[0])),) * 3
    assert found.law(240).scale == 0
    b = 1 / (1 / 12 - 1 / 240)
    assert found.law(12).scale == pytest.approx(math.sqrt(100 * found.noise.value / b))


def test_rates() -> None:
    found = effect(1.0, (14.0, -9.0))
    rates = [found.stable_rate(B) for B in found.batch_sizes]
    for (value, low, high), largest in zip(rates, found.largest, strict=True):
        assert (value, low, high) == (2 / largest.value, 2 / largest.high, 2 / largest.low)
    assert found.stable_rate(20)[0] == pytest.approx(2 / found.predicted(20)[0])  # not measured: by the formula


def test_a_summed_loss_is_scaled_up_to_all_samples() -> None:
    matrices = samples(1.0, (14.0, -9.0))[:100]

    def summed(model: nn.Module, batch: tuple[Tensor]) -> Tensor:
        return len(batch[0]) * quadratic(model, batch)

    mean, total = (
        batch_effect(Objective(Point(100), [(m,) for m in matrices.split(30)], loss_fn=f), [10], draws=3, seed=0)
        for f in (quadratic, summed)
    )
    assert total.largest[0].value == pytest.approx(100 * mean.largest[0].value, rel=1e-2)
    assert total.noise.value == pytest.approx(100**2 * mean.noise.value, rel=1e-6)
    assert total.predicted(10)[0] == pytest.approx(100 * mean.predicted(10)[0], rel=1e-2)


def test_batches_of_the_data_do_not_matter() -> None:
    """An uneven last one included: mini-batches are drawn from all samples."""
    matrices = samples(1.0, (14.0, -9.0))[:100]
    one, other = (batch_effect(objective_on(matrices, batch), [10], draws=3, tol=1e-4, seed=0) for batch in (100, 33))
    assert one.largest[0].value == pytest.approx(other.largest[0].value, rel=1e-3)


# --------------------------------------------------------------------------- digits


@functools.cache
def trained() -> Objective:
    x, y = digits(512)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = mlp(64, 16, 10).double()
    train(model, (x, y), F.cross_entropy, 15)
    return Objective(model, (x, y), criterion=nn.CrossEntropyLoss())


def test_the_largest_eigenvalue_grows_as_the_batch_shrinks() -> None:
    found = batch_effect(trained(), [8, 32, 128], draws=16, seed=0)
    for smaller, larger in zip(found.largest, found.largest[1:], strict=False):
        assert smaller.low > larger.high
    assert found.largest[-1].high > float(found.full.values[0])
    for B, largest in zip(found.batch_sizes, found.largest, strict=True):  # with one sigma_e fitted, its formula holds
        assert found.predicted(B, variance=found.fitted)[0] == pytest.approx(largest.value, rel=0.1)
    assert found.fitted > 4 * found.noise.value  # and it is not that of all directions alike


def test_of_a_positive_matrix_there_is_no_smallest() -> None:
    found = batch_effect(trained(), [32], curvature=GaussNewton, draws=3, seed=0)
    assert found.smallest == () and len(found.full.values) == 1
    assert found.largest[0].value > float(found.full.values[0])


def test_tokens_and_dictionaries() -> None:
    """Sequences of other lengths in one batch: the mean of a mini-batch is over its tokens."""
    x = torch.randn(40, 6, 5, generator=torch.Generator().manual_seed(0), dtype=F64)
    y = torch.randint(0, 3, (40, 6), generator=torch.Generator().manual_seed(1))
    y[torch.arange(40)[:, None] % 5 < torch.arange(6)[None, :] - 1] = -100
    data = [{"x": x[:25], "y": y[:25]}, {"x": x[25:], "y": y[25:]}]
    objective = Objective(
        nn.Linear(5, 3).double(), data, criterion=nn.CrossEntropyLoss(),
        forward=lambda model, batch: model(batch["x"]).flatten(0, 1), targets=lambda batch: batch["y"].flatten(),
    )  # fmt: skip
    found = batch_effect(objective, [4, 20], draws=6, seed=0)
    assert found.samples == 40 and found.largest[0].value > found.largest[1].value > float(found.full.values[0])


def test_seeds_and_what_is_shown() -> None:
    objective = objective_on(samples(1.0, (14.0, -9.0))[:60])
    state = torch.get_rng_state()
    one, same, other = (batch_effect(objective, [6], draws=2, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), state)
    assert repr(one) == repr(same) != repr(other)
    assert "lambda_max of mini-batches of 6: " in repr(one) and "of all 60" in repr(one)
    assert repr(pickle.loads(pickle.dumps(one))) == repr(one)
    assert one.matvecs > 0


def test_by_default_the_data_is_halved() -> None:
    objective = objective_on(samples(1.0, (14.0, -9.0))[:20])
    assert batch_effect(objective, draws=2, seed=0).batch_sizes == (1, 2, 5, 10)


# --------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_sizes": [0]}, "batch sizes must be integers from 1 to N - 1 = 29, got 0"),
        ({"batch_sizes": [30]}, "from 1 to N - 1 = 29, got 30"),
        ({"batch_sizes": [2.5]}, "got 2.5"),
        ({"batch_sizes": []}, "batch_sizes is empty"),
        ({"draws": 1}, "draws must be an integer of at least 2, got 1"),
        ({"probes": 0}, "probes must be an integer of at least 1"),
        ({"confidence": 1.0}, "confidence must be between 0 and 1"),
    ],
)
def test_bad_settings_are_refused(options: dict, message: str) -> None:
    with pytest.raises(SettingError, match=message):
        batch_effect(objective_on(samples(1.0, (14.0, -9.0))[:30]), **options)


def test_what_has_no_mini_batches_is_refused() -> None:
    matrices = samples(1.0, (14.0, -9.0))
    with pytest.raises(SettingError, match="7 samples are too few"):
        batch_effect(objective_on(matrices[:7]))
    weighted = trained().weighted(torch.ones(512))
    with pytest.raises(SettingError, match="samples have weights"):
        batch_effect(weighted)
    x, y = digits(64)
    norm = nn.Sequential(nn.Linear(64, 8), nn.BatchNorm1d(8), nn.Linear(8, 10)).double()
    with pytest.raises(LossError, match="depends on its batch"):
        batch_effect(Objective(norm, (x, y), criterion=nn.CrossEntropyLoss(), mode="train"))
    found = effect(1.0, (14.0, -9.0))
    for size in (0, 241):
        with pytest.raises(SettingError, match="at most the 240 samples"):
            found.law(size)
