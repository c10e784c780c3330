"""The error from the choice of samples: against exact contributions of every sample, and many draws of subsets."""

import functools
import math

import numpy as np
import pytest
import torch
from scipy.stats import t
from torch import Tensor, nn
from torch.func import functional_call, hessian, vmap
from torch.nn import functional as F

from digits_nets import digits, train
from landscape_cases import mlp
from losscope.landscape import (
    GaussNewton,
    Hessian,
    LossError,
    Objective,
    SettingError,
    diagonal,
    sampling_error,
    trace,
)

F64 = torch.float64


@functools.cache
def population() -> tuple[nn.Module, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """A trained network, pixels of 1797 digits, labels; of every sample's Hessian the diagonal, and v'Hv for a v."""
    x, y = digits()
    x = x[:, 16:32]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = mlp(16, 4, 10).double()
        v = F.normalize(torch.randn(sum(p.numel() for p in model.parameters()), dtype=F64), dim=0)
    train(model, (x[:300], y[:300]), F.cross_entropy, 100)
    parameters = {name: p.detach() for name, p in model.named_parameters()}
    sizes = [p.numel() for p in parameters.values()]

    def loss(flat: Tensor, image: Tensor, label: Tensor) -> Tensor:
        pieces = zip(parameters.items(), flat.split(sizes), strict=True)
        values = {name: piece.view_as(p) for (name, p), piece in pieces}
        return F.cross_entropy(functional_call(model, values, (image[None],)), label[None])

    flat = torch.cat([p.flatten() for p in parameters.values()])
    dense = vmap(hessian(loss), in_dims=(None, 0, 0))
    parts = [dense(flat, *part) for part in zip(x.split(200), y.split(200), strict=True)]
    diagonals = torch.cat([H.diagonal(dim1=1, dim2=2) for H in parts])
    return model, x, y, diagonals, torch.cat([H @ v @ v for H in parts]), v


def objective_on(chosen: Tensor, batch: int = 0) -> Objective:
    model, x, y = population()[:3]
    x, y = x[chosen], y[chosen]
    data = list(zip(x.split(batch), y.split(batch), strict=True)) if batch else (x, y)
    return Objective(model, data, criterion=nn.CrossEntropyLoss())


def subsets(count: int, size: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randperm(1797, generator=generator)[:size] for _ in range(count)]


# --------------------------------------------------------------------------- exact oracles


@pytest.mark.parametrize("batch", [0, 64])
def test_values_are_those_of_the_samples_there_are(batch: int) -> None:
    *_, diagonals, _, v = population()
    (chosen,) = subsets(1, 200)
    objective = objective_on(chosen, batch)
    H = Hessian(objective)
    of_vector = sampling_error(objective, v, seed=0)
    assert float(of_vector.value) == pytest.approx(float(v @ (H @ v)), rel=1e-9)
    assert (float(of_vector.probing), of_vector.matvecs, of_vector.of) == (0, 1, "v'Hv")
    entries = sampling_error(objective, "diagonal", groups=4, matvecs=objective.space.size, seed=0)
    torch.testing.assert_close(entries.value, diagonals[chosen].mean(dim=0), rtol=1e-8, atol=1e-12)
    assert not entries.probing.any() and entries.matvecs == objective.space.size
    whole = sampling_error(objective, groups=4, matvecs=objective.space.size, seed=0)
    assert float(whole.value) == pytest.approx(float(diagonals[chosen].sum(dim=1).mean()), rel=1e-9)


def test_a_pair_of_groups_is_compared_by_hand() -> None:
    """Four samples, four groups: half the differences' squares, from the samples' own curvature."""
    *_, forms, v = population()
    chosen = torch.tensor([3, 50, 700, 1700])
    found = sampling_error(objective_on(chosen), v, seed=7)
    order = torch.randperm(4, generator=torch.Generator().manual_seed(7))
    y = forms[chosen][order]
    expected = math.sqrt(float((y[0] - y[1]) ** 2 + (y[2] - y[3]) ** 2)) / 4
    assert float(found.sampling) == pytest.approx(expected, rel=1e-8)
    assert (found.samples, found.degrees) == (4, 2)


def test_equal_samples_have_no_sampling_error() -> None:
    x = torch.randn(1, 5, dtype=F64).expand(40, 5)
    objective = Objective(mlp(5, 4, 3).double(), (x, torch.zeros(40).long()), criterion=nn.CrossEntropyLoss())
    for of in ("trace", "diagonal", torch.ones(objective.space.size, dtype=F64)):
        found = sampling_error(objective, of, seed=0)
        assert float(found.sampling.max()) <= 1e-12 * float(found.value.abs().max())


# --------------------------------------------------------------------------- calibration


def test_the_error_of_a_form_is_the_spread_over_subsets() -> None:
    """v'Hv of subsets of the 1797 digits: the exact spread, the errors reported, and how often they cover."""
    *_, forms, v = population()
    n, N = 500, len(forms)
    found = [sampling_error(objective_on(chosen), v, population=N, seed=i) for i, chosen in enumerate(subsets(16, n))]
    truth = float(forms.std()) * math.sqrt((1 - n / N) / n)
    assert math.sqrt(np.mean([float(e.sampling) ** 2 for e in found])) == pytest.approx(truth, rel=0.12)
    assert np.std([float(e.value) for e in found], ddof=1) == pytest.approx(truth, rel=0.5)
    assert np.mean([abs(float(e.value - forms.mean())) <= float(e.half_width) for e in found]) >= 0.85


def test_a_population_without_end_is_farther_away() -> None:
    *_, v = population()
    objective = objective_on(torch.arange(500))
    finite, infinite = (sampling_error(objective, v, population=N, seed=0) for N in (1797, None))
    assert float(finite.sampling / infinite.sampling) == pytest.approx(math.sqrt(1 - 500 / 1797), rel=1e-9)
    assert float(sampling_error(objective, v, population=500, seed=0).sampling) == 0  # all of it


def test_the_error_of_a_trace_leaves_out_what_the_vectors_scatter() -> None:
    diagonals = population()[3]
    n, N = 300, len(diagonals)
    exact = diagonals.sum(dim=1)
    found = [
        sampling_error(objective_on(chosen), groups=30, matvecs=8, population=N, seed=i)
        for i, chosen in enumerate(subsets(10, n))
    ]
    truth = float(exact.std()) * math.sqrt((1 - n / N) / n)
    assert math.sqrt(np.mean([float(e.sampling) ** 2 for e in found])) == pytest.approx(truth, rel=0.2)
    apart = np.array([float(e.value - exact.mean()) for e in found])
    assert np.mean(apart**2) == pytest.approx(np.mean([float(e.total) ** 2 for e in found]), rel=0.7)


def test_the_error_of_a_diagonal() -> None:
    diagonals = population()[3]
    n, size = 200, diagonals.shape[1]
    found = [
        sampling_error(objective_on(chosen), "diagonal", groups=10, matvecs=size, seed=i)
        for i, chosen in enumerate(subsets(4, n))
    ]
    squares = torch.stack([e.sampling.square() for e in found]).mean(dim=0)
    truth = diagonals.var(dim=0) / n
    assert float(squares.sum() / truth.sum()) == pytest.approx(1, rel=0.25)
    inside = torch.stack([(e.value - diagonals.mean(dim=0)).abs() <= e.half_width for e in found])
    assert float(inside.double().mean()) >= 0.9


def test_groups_weigh_as_much_as_their_batches_do() -> None:
    """A mean over tokens that count, a different number in each sequence: a ratio, like the objective."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(400, 1, generator=generator, dtype=F64).abs()
    counts = torch.randint(1, 20, (400,), generator=generator)
    objective = Objective(
        nn.Linear(1, 1, bias=False).double(), (x, counts),
        loss_fn=lambda m, b: (b[1] * m(b[0])[:, 0].square()).sum() / b[1].sum(), weight=lambda b: b[1].sum(),
    )  # fmt: skip
    w, y = counts / counts.sum(), 2 * x[:, 0].square()
    mean = float((w * y).sum())
    truth = math.sqrt(float((w.square() * (y - mean).square()).sum()))
    found = [sampling_error(objective, groups=100, seed=i) for i in range(6)]
    assert all(float(e.value) == pytest.approx(mean, rel=0.02) for e in found)
    assert math.sqrt(np.mean([float(e.sampling) ** 2 for e in found])) == pytest.approx(truth, rel=0.1)


@pytest.mark.parametrize("said", [True, False])
def test_summed_losses(said: bool) -> None:
    """Of a sum the samples' number is part: n times the error of the mean."""
    *_, v = population()
    model, x, y = population()[:3]
    summed = nn.CrossEntropyLoss(reduction="sum") if said else lambda o, y: F.cross_entropy(o, y, reduction="sum")
    mean = sampling_error(objective_on(torch.arange(200)), v, seed=0)
    for batch in (200, 50):
        data = list(zip(x[:200].split(batch), y[:200].split(batch), strict=True))
        found = sampling_error(Objective(model, data, criterion=summed), v, seed=0)
        assert float(found.value) == pytest.approx(200 * float(mean.value), rel=1e-9)
        assert float(found.sampling) == pytest.approx(200 * float(mean.sampling), rel=1e-9)


def test_other_curvatures() -> None:
    *_, v = population()
    objective = objective_on(torch.arange(100))
    found = sampling_error(objective, v, curvature=GaussNewton, seed=0)
    assert float(found.value) == pytest.approx(float(v @ (GaussNewton(objective) @ v)), rel=1e-9)
    assert found.kernel == GaussNewton(objective).kernel


# --------------------------------------------------------------------------- together with estimates


def test_added_to_a_trace_it_widens_the_interval() -> None:
    objective = objective_on(torch.arange(300))
    estimate = trace(Hessian(objective), rtol=1e-9, max_matvecs=100, seed=0)
    error = sampling_error(objective, matvecs=8, seed=0)
    both = error.added_to(estimate)
    assert (both.value, both.matvecs) == (estimate.value, estimate.matvecs)
    assert both.stderr == pytest.approx(math.hypot(estimate.stderr, float(error.sampling)), rel=1e-12)
    own = t.ppf(0.975, error.degrees) * float(error.sampling)
    assert both.high - both.value == pytest.approx(math.hypot(estimate.high - estimate.value, own), rel=1e-9)
    assert both.value - both.low == pytest.approx(math.hypot(estimate.value - estimate.low, own), rel=1e-9)
    assert "sampling" in both.method and "sampling" not in estimate.method


def test_added_to_a_diagonal_it_widens_every_interval() -> None:
    objective = objective_on(torch.arange(100))
    estimate = diagonal(Hessian(objective), method="exact")
    error = sampling_error(objective, "diagonal", groups=4, matvecs=objective.space.size, seed=0)
    both = error.added_to(estimate)
    torch.testing.assert_close(both.stderr, error.sampling)
    assert bool((both.low < estimate.low).all()) and bool((both.high > estimate.high).all())
    with pytest.raises(SettingError, match="sampling error of the diagonal cannot be added"):
        error.added_to(trace(Hessian(objective), seed=0))


def test_it_says_which_error_is_which() -> None:
    found = sampling_error(objective_on(torch.arange(100)), matvecs=8, population=1797, seed=0)
    shown = repr(found)
    assert f"{float(found.sampling):.3g} from the choice of 100 samples out of 1797" in shown
    assert f"{float(found.probing):.3g} from 8 random vectors" in shown
    *_, v = population()
    assert "none from random vectors" in repr(sampling_error(objective_on(torch.arange(100)), v, seed=0))
    assert float(found.total) == pytest.approx(math.hypot(float(found.sampling), float(found.probing)))


def test_seeds_and_the_model_is_left_alone() -> None:
    objective = objective_on(torch.arange(100))
    state, kept = torch.get_rng_state(), dict(objective.kept)
    for p in objective.parameters.values():
        p.grad = torch.ones_like(p)
    one, same, other = (sampling_error(objective, matvecs=4, seed=seed) for seed in (3, 3, 4))
    assert torch.equal(one.sampling, same.sampling) and torch.equal(one.value, same.value)
    assert not torch.equal(one.sampling, other.sampling)
    assert torch.equal(torch.get_rng_state(), state) and objective.kept == kept
    assert all(torch.equal(p.grad, torch.ones_like(p)) for p in objective.parameters.values())


def test_scaling_the_loss_scales_everything() -> None:
    model, x, y = population()[:3]
    losses = (F.cross_entropy, lambda o, y: 1e-6 * F.cross_entropy(o, y))
    one, many = (sampling_error(Objective(model, (x[:99], y[:99]), criterion=c), matvecs=4, seed=0) for c in losses)
    for name in ("value", "sampling", "probing", "half_width"):
        assert float(getattr(many, name)) == pytest.approx(1e-6 * float(getattr(one, name)), rel=1e-8)


# --------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("of", "options", "message"),
    [
        ("norm", {}, r'of must be "trace", "diagonal" or a vector \(118,\), got \'norm\''),
        (torch.ones(3), {}, r"must have shape \(118,\) and finite entries, got shape \(3,\)"),
        ("trace", {"groups": 3}, r"groups must be an integer of at least 4, got 3"),
        ("trace", {"matvecs": 1}, r"matvecs must be an integer of at least 2, got 1"),
        ("trace", {"population": 19}, r"at least the number of samples, 20; got 19"),
        ("trace", {"confidence": 1.0}, r"confidence must be between 0 and 1, got 1\.0"),
    ],
)
def test_options_that_mean_nothing_are_refused(of: str | Tensor, options: dict, message: str) -> None:
    with pytest.raises(SettingError, match=message):
        sampling_error(objective_on(torch.arange(20)), of, **options)


def test_too_few_samples_and_weighted_objectives_are_refused() -> None:
    with pytest.raises(SettingError, match="3 samples are too few"):
        sampling_error(objective_on(torch.arange(3)))
    with pytest.raises(SettingError, match="pass the objective that it was made from"):
        sampling_error(objective_on(torch.arange(20)).weighted(torch.ones(20)))


def test_samples_that_depend_on_their_batch_are_refused() -> None:
    model = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Linear(6, 3)).double()
    data = (torch.randn(200, 4, dtype=F64), torch.randint(3, (200,)))
    with pytest.raises(LossError, match="depends on its batch"):
        sampling_error(Objective(model, data, criterion=nn.CrossEntropyLoss(), mode="train"), seed=0)
    assert float(sampling_error(Objective(model, data, criterion=nn.CrossEntropyLoss()), seed=0).sampling) > 0
