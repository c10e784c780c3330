"""Batch sharpness and its kin: against all mini-batches of a small problem, identities, coverage."""

import itertools
import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from losscope.landscape import DataError, Hessian, Objective, SettingError, top_eigenpairs
from losscope.landscape.minibatch_draws import MinibatchDraws
from losscope.landscape.stability import MinibatchSharpness, minibatch_index, minibatch_sharpness

F64 = torch.float64
NAMES = (
    "mean_of_ratios", "ratio_of_means", "index", "interaction_aware", "noise_interaction", "covariance_trace",
    "covariance_curvature", "aligned_trace", "frobenius",
)  # fmt: skip
CURVATURES = NAMES[:5] + NAMES[7:]


def problem(n: int = 6, kind: str = "mean") -> Objective:
    generator = torch.Generator().manual_seed(1)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()
    x, y = (torch.randn(n, k, generator=generator, dtype=F64) for k in (3, 2))
    return Objective(model, [(x[:2], y[:2]), (x[2:], y[2:])], criterion=nn.MSELoss(reduction=kind))


class Dense:
    """Loss, gradient and Hessian of any samples, from `torch.func` alone."""

    def __init__(self, objective: Objective) -> None:
        self.x, self.y = (torch.cat([b.content[i] for b in objective.batches]) for i in (0, 1))
        self.n = len(self.x)
        self.model, self.names = objective.model, list(objective.parameters)
        self.shapes = [p.shape for p in objective.parameters.values()]
        self.flat = torch.cat([p.detach().flatten() for p in objective.parameters.values()])

    def loss(self, theta: torch.Tensor, chosen: list[int]) -> torch.Tensor:
        pieces = theta.split([s.numel() for s in self.shapes])
        values = {name: piece.view(s) for name, piece, s in zip(self.names, pieces, self.shapes, strict=True)}
        return F.mse_loss(torch.func.functional_call(self.model, values, (self.x[chosen],)), self.y[chosen])

    def of(self, chosen: list[int]) -> tuple[float, torch.Tensor, torch.Tensor]:
        found = (f(self.loss)(self.flat, chosen) for f in (torch.func.grad, torch.func.hessian))
        return float(self.loss(self.flat, chosen)), *found


def exact(objective: Objective, batch: int, scale: torch.Tensor | None = None) -> dict[str, float]:
    """By dense Hessians of all mini-batches, and of single samples."""
    dense = Dense(objective)
    L, g, H = dense.of(list(range(dense.n)))
    forms, squares, full = [], [], []
    for chosen in itertools.combinations(range(dense.n), batch):
        _, gB, HB = dense.of(list(chosen))
        u = gB if scale is None else gB / scale
        forms.append(float(u @ HB @ u))
        squares.append(float(gB @ u))
        full.append(float(gB @ H @ gB))
    count = len(forms)
    single = torch.stack([dense.of([i])[1] for i in range(dense.n)])
    Sigma = (single - g).T @ (single - g) / dense.n
    spread, aligned = float(Sigma.trace()), float((Sigma @ H).trace())
    return {
        "mean_of_ratios": sum(a / b for a, b in zip(forms, squares, strict=True)) / count,
        "ratio_of_means": sum(forms) / sum(squares),
        "index": sum(squares) / count / (2 * L),
        "interaction_aware": sum(full) / sum(squares),
        "noise_interaction": sum(full) / count / float(g @ g),
        "covariance_trace": spread,
        "covariance_curvature": aligned,
        "aligned_trace": spread / (2 * L * batch),
        "frobenius": math.sqrt(max(0.0, aligned) / (2 * L * batch)),
        "trace": float(H.trace()),
        "norm": float(H.norm()),
        "loss": L,
    }


def of_all_pairs(objective: Objective, batch: int, monkeypatch: pytest.MonkeyPatch, **options: object):
    """The function itself, on every pair of mini-batches instead of random ones."""
    all_of = list(itertools.combinations(range(6), batch))
    pairs = torch.tensor([m for pair in itertools.product(all_of, all_of) for m in pair])
    monkeypatch.setattr(MinibatchDraws, "_chosen", lambda self, count: pairs[self.count : self.count + count])
    return minibatch_sharpness(objective, batch, min_draws=len(pairs), max_draws=len(pairs), **options)


@pytest.mark.parametrize("batch", [1, 2])
def test_over_all_minibatches_every_number_is_the_dense_one(batch: int, monkeypatch: pytest.MonkeyPatch) -> None:
    right = exact(problem(), batch)
    found = of_all_pairs(problem(), batch, monkeypatch)
    assert found.engine == "together"
    for name in NAMES:
        assert getattr(found, name).value == pytest.approx(right[name], rel=1e-8), name


def test_with_a_preconditioner(monkeypatch: pytest.MonkeyPatch) -> None:
    objective = problem()
    P = torch.rand(objective.space.size, generator=torch.Generator().manual_seed(0), dtype=F64) + 0.5
    by_name = dict(zip(objective.space.names, objective.space.unflatten(P), strict=True))
    right, found = exact(objective, 2, scale=P), of_all_pairs(objective, 2, monkeypatch, preconditioner=by_name)
    for name in ("mean_of_ratios", "ratio_of_means"):
        assert getattr(found, name).value == pytest.approx(right[name], rel=1e-8)
    assert all(getattr(found, name) is None for name in NAMES[2:])


def test_the_bounds_are_those_of_trace_and_norm_with_measured_alignment() -> None:
    """tr H <= 2B / (mu_1 lr) and |H|_F <= (B / mu)^1/2 / lr are the same inequalities."""
    right, batch, lr = exact(problem(), 2), 2, 0.3
    mu_1 = right["covariance_trace"] / (2 * right["loss"] * right["trace"])
    mu = right["covariance_curvature"] / (2 * right["loss"] * right["norm"] ** 2)
    assert right["aligned_trace"] / (2 / lr) == pytest.approx(right["trace"] / (2 * batch / (mu_1 * lr)))
    assert right["frobenius"] / (1 / lr) == pytest.approx(right["norm"] / (math.sqrt(batch / mu) / lr))


def test_the_definitions_differ_and_are_not_mixed_up() -> None:
    """Interaction-aware sharpness with mini-batches' own Hessians would be the ratio of means."""
    right = exact(problem(), 1)
    assert len({round(right[name], 6) for name in NAMES}) == len(NAMES)
    found = minibatch_sharpness(problem(), 1, rtol=1e-9, max_draws=2000, min_draws=2000, seed=0)
    assert abs(right["interaction_aware"] - right["ratio_of_means"]) > 10 * found.interaction_aware.stderr
    for name in NAMES:
        assert abs(getattr(found, name).value - right[name]) <= 4 * getattr(found, name).stderr


@pytest.mark.parametrize("batch", [1, 3])
def test_intervals_cover(batch: int) -> None:
    objective, right = problem(12), exact(problem(12), batch)
    seeds, held = 300, dict.fromkeys(NAMES, 0)
    for seed in range(seeds):
        found = minibatch_sharpness(objective, batch, rtol=1e-9, min_draws=100, max_draws=100, seed=seed)
        for name in NAMES:
            estimate = getattr(found, name)
            held[name] += estimate.low <= right[name] <= estimate.high
    assert 0.9 * seeds <= min(held.values()) and max(held.values()) <= 0.98 * seeds, held  # +- 0.013 each


def test_a_few_draws_that_hold_everything_are_told_of() -> None:
    """One sample of fifty is not fitted: it holds all the gradients there are."""
    x = torch.eye(50, dtype=F64)
    model = nn.Linear(50, 1, bias=False).double()
    y = model(x).detach()
    y[7] += 1
    found = minibatch_sharpness(Objective(model, (x, y), criterion=nn.MSELoss()), 1, rtol=1e-9, seed=0)
    assert "intervals may be too narrow" in found.note
    assert not minibatch_sharpness(problem(), 2, seed=0).note


def test_full_batches_have_no_noise() -> None:
    objective = problem()
    found, right = minibatch_sharpness(objective, 6, seed=0), exact(objective, 6)
    for name in NAMES[:5]:
        assert getattr(found, name).value == pytest.approx(right[name], rel=1e-9)
        assert getattr(found, name).stderr < 1e-9
    assert all(getattr(found, name) is None for name in NAMES[5:])
    assert found.mean_of_ratios.converged


def test_a_summed_loss_is_that_of_a_mean_scaled_up() -> None:
    mean, total = (minibatch_sharpness(problem(kind=kind), 2, seed=3) for kind in ("mean", "sum"))
    for name in CURVATURES:  # the sum is 6 samples of 2 outputs
        assert getattr(total, name).value == pytest.approx(12 * getattr(mean, name).value, rel=1e-6)


def test_the_index_is_that_of_its_own_function() -> None:
    one = minibatch_sharpness(problem(), 2, rtol=1e-9, min_draws=40, max_draws=40, seed=3).index
    other = minibatch_index(problem(), 2, rtol=1e-9, min_draws=40, max_draws=40, seed=3)
    for field in ("value", "low", "high", "stderr"):
        assert getattr(one, field) == pytest.approx(getattr(other, field), rel=1e-12)


def test_weighted_samples() -> None:
    """Doubling all weights doubles the loss."""
    weights = torch.arange(1.0, 7.0, dtype=F64)
    one, two = (minibatch_sharpness(problem().weighted(c * weights), 2, seed=0) for c in (1, 2))
    for name in CURVATURES:
        assert getattr(two, name).value == pytest.approx(2 * getattr(one, name).value, rel=1e-9)


def test_interaction_aware_sharpness_is_below_the_largest_eigenvalue() -> None:
    objective = problem()
    top = float(top_eigenpairs(Hessian(objective), tol=1e-8, seed=0).values[0])
    assert minibatch_sharpness(objective, 2, seed=0).interaction_aware.low <= top


def test_it_stops_at_the_requested_accuracy() -> None:
    loose, tight = (minibatch_sharpness(problem(), 2, rtol=rtol, max_draws=9999, seed=0) for rtol in (0.5, 0.02))
    assert loose.draws < tight.draws < 9999 and tight.mean_of_ratios.converged
    ratios = tight.mean_of_ratios
    assert (ratios.high - ratios.low) / 2 <= 0.02 * ratios.value


def test_it_stops_at_the_requested_standard_error_of_both_definitions() -> None:
    found = minibatch_sharpness(problem(), 2, rtol=math.inf, stderr_rtol=0.01, max_draws=9999, seed=0)
    for estimate in (found.mean_of_ratios, found.ratio_of_means):
        assert estimate.stderr <= 0.01 * estimate.value and estimate.converged
    assert 50 < found.draws < 9999
    few = minibatch_sharpness(problem(), 2, rtol=math.inf, stderr_rtol=0.01, max_draws=60, seed=0)
    assert few.draws == 60 and not few.mean_of_ratios.converged and "NOT converged" in repr(few)


def test_a_hessian_that_is_there_serves() -> None:
    objective = problem()
    hessian = Hessian(objective)
    one, other = minibatch_sharpness(objective, 2, seed=0), minibatch_sharpness(objective, 2, hessian=hessian, seed=0)
    assert other.noise_interaction.value == one.noise_interaction.value
    assert other.kernel == hessian.kernel == "retained" and other.matvecs == 2 * other.draws + 1


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


def test_its_repr_shows_what_there_is() -> None:
    found = minibatch_sharpness(problem(), 2, seed=0)
    assert isinstance(found, MinibatchSharpness)
    text = repr(found)
    for words in ("batches of 2 of 6", "mean of ratios", "frobenius", "draws together", "products"):
        assert words in text


@pytest.mark.parametrize(
    ("batch", "options", "message"),
    [
        (0, {}, "batch_size must be an integer from 1 to the 6 samples, got 0"),
        (7, {}, "got 7"),
        (2.0, {}, r"got 2\.0"),
        (2, {"rtol": 0.0}, "rtol must be > 0"),
        (2, {"stderr_rtol": 0.0}, "stderr_rtol must be > 0 or None"),
        (2, {"confidence": 1.0}, "confidence in"),
        (2, {"max_draws": 1}, "max_draws must be an integer of at least 4, got 1"),
        (2, {"min_draws": True}, "min_draws must be"),
        (2, {"preconditioner": torch.ones(3)}, "diagonal must have shape"),
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
