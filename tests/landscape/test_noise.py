"""The noise of an objective's gradients: against dense matrices of all of them, coverage, and what has no samples."""

import math

import pytest
import torch
from torch import Tensor, nn

from digits_nets import digits, squares
from losscope.landscape import DataError, Hessian, LossError, Objective, SettingError
from losscope.landscape.noise import gradient_noise, minibatch_noise
from losscope.landscape.sample_gradients import per_sample_gradients

F64 = torch.float64


def trained(criterion: object, n: int = 200, steps: int = 20) -> Objective:
    x, y = digits(n)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(64, 6), nn.Tanh(), nn.Linear(6, 10)).double()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(steps):
        optimizer.zero_grad()
        criterion(model(x), y).backward()
        optimizer.step()
    return Objective(model, list(zip(x.split(70), y.split(70), strict=True)), criterion=criterion)


def dense(objective: Objective) -> tuple[Tensor, Tensor, Tensor]:
    """All gradients, their mean, and their covariance with n - 1."""
    g = torch.cat(list(per_sample_gradients(objective)))
    return g, g.mean(dim=0), torch.cov(g.T)


@pytest.mark.parametrize("criterion", [nn.CrossEntropyLoss(), squares, nn.CrossEntropyLoss(reduction="sum")])
def test_all_samples_give_the_dense_numbers(criterion: object) -> None:
    objective = trained(criterion, steps=0)
    g, mean, covariance = dense(objective)
    found = gradient_noise(objective, seed=0)
    assert found.covariance_trace.value == pytest.approx(float(covariance.trace()), rel=1e-10)
    square = float(mean @ mean - covariance.trace() / len(g))
    assert found.gradient_square.value == pytest.approx(square, rel=1e-8)
    assert found.simple.value == pytest.approx(float(covariance.trace()) / square, rel=1e-8)
    assert torch.allclose(found.norms.sort().values, g.norm(dim=1).sort().values)
    assert found.draws == 200
    assert found.engine == "together"


def test_a_pass_in_pieces_is_a_pass_in_one() -> None:
    objective = trained(nn.CrossEntropyLoss())
    whole, pieces = gradient_noise(objective, seed=0), gradient_noise(objective, memory=60_000, seed=0)
    assert pieces.simple.value == pytest.approx(whole.simple.value, rel=1e-10)
    assert pieces.projected.value == pytest.approx(whole.projected.value, rel=1e-8)
    assert torch.allclose(pieces.covariance, whole.covariance, rtol=1e-8)


def test_curvature_weighted_is_that_of_the_groups_means() -> None:
    objective = trained(squares)
    _, mean, covariance = dense(objective)
    H = Hessian(objective) @ torch.eye(len(mean), dtype=F64)
    inside = torch.zeros(2)
    for seed in range(40):
        found = minibatch_noise(objective, 4, draws=200, groups=40, curvature=Hessian(objective), seed=seed)
        scale = found.curvature_weighted
        assert scale is not None
        assert found.matvecs == 40
        inside += torch.tensor(
            [
                scale.noise.low <= float((H @ covariance).trace()) * 199 / 200 <= scale.noise.high,
                scale.signal.low <= float(mean @ H @ mean) <= scale.signal.high,
            ]
        )
    assert float(inside.min()) >= 35


@pytest.mark.parametrize("criterion", [nn.CrossEntropyLoss(), squares])
@pytest.mark.parametrize("steps", [2, 200])
def test_coverage_of_mini_batches(criterion: object, steps: int) -> None:
    objective = trained(criterion, steps=steps)
    _, mean, covariance = dense(objective)
    trace, square = float(covariance.trace()) * 199 / 200, float(mean @ mean)
    along = float(mean @ covariance @ mean) * 199 / 200
    covered = torch.zeros(4)
    for seed in range(100):
        found = minibatch_noise(objective, (1, 4, 16)[seed % 3], draws=64, seed=seed)
        assert found.simple.conclusive == math.isfinite(found.simple.high)
        pairs = (
            (found.covariance_trace, trace), (found.gradient_square, square), (found.simple, trace / square),
            (found.projected, along),
        )  # fmt: skip
        covered += torch.tensor([estimate.low <= value <= estimate.high for estimate, value in pairs])
    assert float(covered[:3].min()) >= 89
    assert float(covered[3]) >= 80


def test_parts_of_the_data_tell_of_all_of_it() -> None:
    objective = trained(nn.CrossEntropyLoss(), n=1000, steps=20)
    _, mean, covariance = dense(objective)
    covered = torch.zeros(2)
    for seed in range(60):
        found = gradient_noise(objective, samples=100, seed=seed)
        assert found.draws == 100
        pairs = ((found.covariance_trace, float(covariance.trace())), (found.gradient_square, float(mean @ mean)))
        covered += torch.tensor([estimate.low <= value <= estimate.high for estimate, value in pairs])
    assert float(covered.min()) >= 54


def test_tests_of_the_batch_size_agree_with_the_noise_scale() -> None:
    found = gradient_noise(trained(nn.CrossEntropyLoss()), seed=0)
    norm, inner, orthogonality = found.tests(32)
    assert norm.statistic == pytest.approx(math.sqrt(found.simple.value / 32))
    assert norm.needed[0] == pytest.approx(found.simple.value / 0.81)
    assert inner.statistic <= norm.statistic
    assert orthogonality.statistic <= norm.statistic
    assert norm.low <= norm.statistic <= norm.high


def test_lengths_tell_what_clipping_cuts() -> None:
    found = gradient_noise(trained(nn.CrossEntropyLoss()), seed=0)
    median = found.quantile(0.5)
    share = found.share_above(median.value)
    assert median.low < median.value < median.high
    assert share.low <= 0.5 <= share.high


def contrastive(outputs: Tensor, targets: Tensor) -> Tensor:
    return nn.functional.cross_entropy(outputs @ outputs.T, torch.arange(len(outputs)))


def test_what_has_no_samples_says_so_and_goes_by_mini_batches() -> None:
    x, y = digits(60)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        plain = nn.Linear(64, 10).double()
        batch_norm = nn.Sequential(nn.Linear(64, 8), nn.BatchNorm1d(8), nn.Linear(8, 10)).double()
    ignored = torch.where(torch.arange(60) % 3 == 0, -100, y)
    weights = torch.linspace(0.1, 3.0, 10, dtype=F64)
    cases = {
        "compares samples": Objective(plain, (x, y), criterion=contrastive),
        "ignored": Objective(plain, (x, ignored), criterion=nn.CrossEntropyLoss()),
        "class weights": Objective(plain, (x, y), criterion=nn.CrossEntropyLoss(weight=weights)),
    }
    for objective in cases.values():
        with pytest.raises(LossError, match=r"do not average to the loss's gradient.*minibatch_noise"):
            gradient_noise(objective, seed=0)
        assert minibatch_noise(objective, 16, draws=20, seed=0).covariance_trace.value > 0
    in_training = Objective(batch_norm, (x, y), criterion=nn.CrossEntropyLoss(), mode="train")
    with pytest.raises(LossError, match="minibatch_noise"):
        gradient_noise(in_training, seed=0)
    found = minibatch_noise(in_training, 16, draws=20, seed=0)
    assert found.engine == "one by one"
    assert found.note


def test_a_few_draws_that_hold_the_noise_are_said() -> None:
    x, y = digits(60)
    model = nn.Linear(64, 10).double()
    x[0] *= 1000
    found = gradient_noise(Objective(model, (x, y), criterion=squares), seed=0)
    assert "hold most of the gradients' noise" in found.note


def test_bad_input() -> None:
    objective = trained(nn.CrossEntropyLoss(), n=20, steps=0)
    one = Objective(
        objective.model, tuple(t[:1] for t in objective.batches[0].content), criterion=nn.CrossEntropyLoss()
    )
    with pytest.raises(DataError, match="1 in the data are too few, pass 8"):
        gradient_noise(one)
    for arguments in ({"samples": 21}, {"samples": 2}, {"groups": 3}, {"confidence": 0.0}):
        with pytest.raises(SettingError):
            gradient_noise(objective, **arguments)
    with pytest.raises(SettingError, match="number of draws must be an integer of at least 8"):
        minibatch_noise(objective, 4, draws=2)
    with pytest.raises(SettingError, match="batch_size"):
        minibatch_noise(objective, 0)
    with pytest.raises(SettingError, match="have weights"):
        gradient_noise(objective.weighted(torch.ones(20, dtype=F64)))
    with pytest.raises(SettingError, match="curvature must be of the objective's"):
        gradient_noise(objective, curvature=torch.eye(3, dtype=F64))
