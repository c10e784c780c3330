"""Batch sharpness in its definitions: against all mini-batches of a small problem, identities, coverage."""

import itertools
import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from losscope.landscape import DataError, Hessian, Objective, SettingError, top_eigenpairs
from losscope.landscape.stability import minibatch_sharpness

F64 = torch.float64
NAMES = ("mean_of_ratios", "ratio_of_means", "interaction_aware", "noise_interaction")


def problem(n: int = 7, kind: str = "mean") -> Objective:
    generator = torch.Generator().manual_seed(1)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()
    x, y = (torch.randn(n, k, generator=generator, dtype=F64) for k in (3, 2))
    return Objective(model, [(x[:3], y[:3]), (x[3:], y[3:])], criterion=nn.MSELoss(reduction=kind))


def exact(objective: Objective, batch: int) -> dict[str, float]:
    """By dense Hessians of all mini-batches."""
    x, y = (torch.cat([b.content[i] for b in objective.batches]) for i in (0, 1))
    names = list(objective.parameters)
    flat = torch.cat([p.detach().flatten() for p in objective.parameters.values()])
    shapes = [p.shape for p in objective.parameters.values()]

    def loss(theta: torch.Tensor, chosen: list[int]) -> torch.Tensor:
        pieces = theta.split([s.numel() for s in shapes])
        values = {name: piece.view(s) for name, piece, s in zip(names, pieces, shapes, strict=True)}
        return F.mse_loss(torch.func.functional_call(objective.model, values, (x[chosen],)), y[chosen])

    def both(chosen: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.func.grad(loss)(flat, chosen), torch.func.hessian(loss)(flat, chosen)

    g, H = both(list(range(len(x))))
    forms, squares, full = [], [], []
    for chosen in itertools.combinations(range(len(x)), batch):
        gB, HB = both(list(chosen))
        forms.append(float(gB @ HB @ gB))
        squares.append(float(gB @ gB))
        full.append(float(gB @ H @ gB))
    count = len(forms)
    return {
        "mean_of_ratios": sum(a / b for a, b in zip(forms, squares, strict=True)) / count,
        "ratio_of_means": sum(forms) / sum(squares),
        "interaction_aware": sum(full) / sum(squares),
        "noise_interaction": sum(full) / count / float(g @ g),
    }


@pytest.mark.parametrize("batch", [1, 3])
def test_intervals_cover_the_mean_over_all_minibatches(batch: int) -> None:
    objective, right = problem(), exact(problem(), batch)
    seeds, held = 60, dict.fromkeys(NAMES, 0)
    for seed in range(seeds):
        found = minibatch_sharpness(objective, batch, rtol=1e-9, max_draws=30, full_draws=30, seed=seed)
        assert found.draws == 30 and found.matvecs == 61  # of 30 mini-batches, and of all samples with 30 and g
        for name in NAMES:
            estimate = getattr(found, name)
            held[name] += estimate.low <= right[name] <= estimate.high
    assert min(held.values()) >= 0.85 * seeds  # 30 skewed draws, and the mean of ratios of few gradients


def test_full_batches_have_no_noise() -> None:
    objective = problem()
    found, right = minibatch_sharpness(objective, 7, seed=0), exact(objective, 7)
    for name in NAMES:
        assert getattr(found, name).value == pytest.approx(right[name], rel=1e-9)
        assert getattr(found, name).stderr < 1e-9
    assert found.mean_of_ratios.converged


def test_the_definitions_differ_and_are_not_mixed_up() -> None:
    right = exact(problem(), 1)
    assert len({round(value, 6) for value in right.values()}) == 4
    found = minibatch_sharpness(problem(), 1, rtol=1e-9, max_draws=400, full_draws=400, seed=0)
    for name in NAMES:
        assert abs(getattr(found, name).value - right[name]) <= 4 * getattr(found, name).stderr


def test_a_summed_loss_is_that_of_a_mean_scaled_up() -> None:
    mean, total = (minibatch_sharpness(problem(kind=kind), 2, seed=3) for kind in ("mean", "sum"))
    for name in NAMES:  # the sum is 7 samples of 2 outputs
        assert getattr(total, name).value == pytest.approx(14 * getattr(mean, name).value, rel=1e-6)


def test_interaction_aware_sharpness_is_below_the_largest_eigenvalue() -> None:
    objective = problem()
    top = float(top_eigenpairs(Hessian(objective), tol=1e-8, seed=0).values[0])
    assert minibatch_sharpness(objective, 2, seed=0).interaction_aware.value <= top


def test_it_stops_at_the_requested_accuracy() -> None:
    loose, tight = (minibatch_sharpness(problem(), 2, rtol=rtol, seed=0) for rtol in (0.5, 0.03))
    assert loose.draws < tight.draws and tight.mean_of_ratios.converged
    assert tight.mean_of_ratios.high - tight.mean_of_ratios.value <= 0.03 * tight.mean_of_ratios.value


def test_minibatches_without_a_gradient_do_not_count() -> None:
    tokens = torch.tensor([[0, 1], [1, 0], [1, 1], [0, 0]])
    targets = torch.tensor([[1, 0], [-100, -100], [0, 1], [-100, -100]])
    model = nn.Sequential(nn.Embedding(2, 3), nn.Linear(3, 2)).double()

    def criterion(outputs: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
        total = F.cross_entropy(outputs.flatten(0, 1), wanted.flatten(), ignore_index=-100, reduction="sum")
        return total / wanted.ne(-100).sum().clamp(min=1)

    def weight(batch: tuple[torch.Tensor, torch.Tensor]) -> float:
        return float(batch[1].ne(-100).sum()) or 1e-9

    objective = Objective(model, (tokens, targets), criterion=criterion, weight=weight)
    found = minibatch_sharpness(objective, 1, seed=0)
    assert math.isfinite(found.mean_of_ratios.value) and found.mean_of_ratios.matvecs < found.draws


def test_the_same_seed_gives_the_same_and_the_global_stream_is_left_alone() -> None:
    before = torch.get_rng_state()
    one, other = (minibatch_sharpness(problem(), 2, seed=5) for _ in range(2))
    assert one.mean_of_ratios.value == other.mean_of_ratios.value
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize(
    ("batch", "options", "message"),
    [
        (0, {}, "batch_size must be an integer from 1 to the 7 samples, got 0"),
        (8, {}, "got 8"),
        (2.0, {}, r"got 2\.0"),
        (2, {"rtol": 0.0}, "rtol must be > 0"),
        (2, {"confidence": 1.0}, "confidence in"),
        (2, {"max_draws": 1}, "max_draws must be an integer of at least 2, got 1"),
        (2, {"full_draws": 1}, "full_draws must be 0, or an integer of at least 2, got 1"),
        (2, {"stderr_rtol": 0.0}, "stderr_rtol must be > 0 or None"),
    ],
)
def test_what_means_nothing_is_refused(batch: object, options: dict, message: str) -> None:
    with pytest.raises(SettingError, match=message):
        minibatch_sharpness(problem(), batch, **options)


def test_data_that_cannot_be_cut_are_refused() -> None:
    model = nn.Linear(2, 1)
    objective = Objective(model, [object()], loss_fn=lambda m, _: m.weight.square().sum())
    with pytest.raises(DataError):
        minibatch_sharpness(objective, 1)
