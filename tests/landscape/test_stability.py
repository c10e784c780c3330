import functools
import itertools

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from losscope.landscape import Objective, SettingError
from losscope.landscape.stability import (
    judge,
    loss_family,
    minibatch_index,
    outputs_per_sample,
)

# --------------------------------------------------------------------------- the mini-batch criterion


def half_squares(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return ((outputs - targets) ** 2).flatten(1).sum(1).mean() / 2


def regression(samples: int = 12, outputs: int = 1) -> tuple[nn.Module, torch.Tensor, torch.Tensor]:
    model = nn.Linear(3, outputs, bias=False).double()
    inputs = torch.randn(samples, 3, dtype=torch.float64)
    targets = inputs @ torch.randn(3, outputs, dtype=torch.float64) + 0.3 * torch.randn(samples, outputs).double()
    return model, inputs, targets


def network() -> tuple[nn.Module, torch.Tensor, torch.Tensor]:
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()
    return model, torch.randn(8, 3, dtype=torch.float64), torch.randn(8, 2, dtype=torch.float64)


def sample_gradients(model, inputs, targets, criterion=half_squares) -> torch.Tensor:
    """(n, P): the gradient of each sample's loss, one at a time."""
    rows = []
    for i in range(len(inputs)):
        loss = criterion(model(inputs[i : i + 1]), targets[i : i + 1])
        rows.append(torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(model.parameters()))]))
    return torch.stack(rows)


def enumerated_index(model, inputs, targets, batch: int) -> float:
    """S_mu over all mini-batches without replacement, each once."""
    gradients = sample_gradients(model, inputs, targets)
    subsets = list(itertools.combinations(range(len(inputs)), batch))
    norms = torch.stack([gradients[list(s)].mean(0).square().sum() for s in subsets])
    return float(norms.mean() / (2 * half_squares(model(inputs), targets).detach()))


def mean_of_draws(objective: Objective, batch: int, draws: int, **options):
    return minibatch_index(objective, batch, rtol=1e-12, max_draws=draws, seed=0, **options)


@pytest.mark.parametrize("batch", [1, 2, 5, 7])
@pytest.mark.parametrize("build", [network, functools.partial(regression, 8, 2)], ids=["network", "linear"])
def test_the_mean_is_that_of_all_minibatches(build, batch):
    model, inputs, targets = build()
    exact = enumerated_index(model, inputs, targets, batch)
    estimate = mean_of_draws(Objective(model, (inputs, targets), criterion=half_squares), batch, 1000)
    assert estimate.matvecs == 1000
    assert abs(estimate.value - exact) < 4 * estimate.stderr + 1e-12
    assert estimate.stderr < 0.05 * exact
    assert estimate.low < estimate.value < estimate.high


def test_each_draw_is_a_minibatch_without_replacement():
    model, inputs, targets = network()
    gradients = sample_gradients(model, inputs, targets)
    objective = Objective(model, (inputs, targets), criterion=half_squares)
    estimate = mean_of_draws(objective, 7, 64)
    generator = torch.Generator().manual_seed(0)
    drawn = [torch.randperm(8, generator=generator)[:7] for _ in range(64)]
    norms = torch.stack([gradients[d].mean(0).square().sum() for d in drawn])
    assert estimate.value == pytest.approx(float(norms.mean()) / (2 * objective.value()), rel=1e-12)
    assert estimate.stderr == pytest.approx(float(norms.std() / 8) / (2 * objective.value()), rel=1e-9)


@pytest.mark.parametrize("batch", [1, 3, 6])
def test_the_cut_into_batches_does_not_matter(batch):
    model, inputs, targets = regression(12)
    whole = Objective(model, (inputs, targets), criterion=half_squares)
    for cut in ([5, 5, 2], [7, 1, 4], [1] * 12):
        pieces = list(zip(inputs.split(cut), targets.split(cut), strict=True))
        parts = Objective(model, pieces, criterion=half_squares)
        a, b = mean_of_draws(whole, batch, 60), mean_of_draws(parts, batch, 60)
        assert b.value == pytest.approx(a.value, rel=1e-12)
        assert b.high == pytest.approx(a.high, rel=1e-12)


def test_minibatches_of_uneven_weight_are_weighted_as_training_weights_them():
    # Cross entropy with ignored targets: a mini-batch's mean is over what it does not ignore.
    model = nn.Linear(3, 4).double()
    inputs, targets = torch.randn(9, 3, dtype=torch.float64), torch.tensor([0, 1, 2, 3, 0, -100, 1, -100, 2])
    objective = Objective(model, list(zip(inputs.split(2), targets.split(2), strict=True)), criterion=F.cross_entropy)
    generator = torch.Generator().manual_seed(0)
    norms = []
    for _ in range(40):
        chosen = torch.randperm(9, generator=generator)[:4]
        loss = F.cross_entropy(model(inputs[chosen]), targets[chosen])
        norms.append(float(sum(g.square().sum() for g in torch.autograd.grad(loss, list(model.parameters())))))
    expected = sum(norms) / 40 / (2 * float(F.cross_entropy(model(inputs), targets).detach()))
    assert mean_of_draws(objective, 4, 40).value == pytest.approx(expected, rel=1e-10)


def test_at_batch_size_one_it_is_the_alignment_times_the_trace():
    # g_i = r_i a_i, H = mean of a_i a_i': E|g_i|^2 = 2L mu tr H with mu = E r^2|a|^2 / (E r^2 E|a|^2).
    model, inputs, targets = regression(40)
    with torch.no_grad():  # near interpolation: the least-squares solution of nearly consistent equations
        solution = torch.linalg.lstsq(inputs, targets).solution
        model.weight.copy_(solution.T + 0.05 * torch.randn(1, 3).double())
        targets = inputs @ solution
        r2, a2 = (inputs @ model.weight.T - targets).square()[:, 0], inputs.square().sum(1)
    mu, trace = float((r2 * a2).mean() / (r2.mean() * a2.mean())), float(a2.mean())
    exact = enumerated_index(model, inputs, targets, 1)
    assert exact == pytest.approx(mu * trace, rel=1e-10)
    estimate = mean_of_draws(Objective(model, (inputs, targets), criterion=half_squares), 1, 1000)
    assert abs(estimate.value - mu * trace) < 4 * estimate.stderr


def test_equal_norms_make_it_the_trace_exactly():
    # |a_i| the same for all i: mu = 1, and each draw at B = 1 differs by its residual only.
    model, inputs, _ = regression(20)
    inputs = 2 * inputs / inputs.norm(dim=1, keepdim=True)
    targets = inputs @ torch.randn(3, 1, dtype=torch.float64)
    assert enumerated_index(model, inputs, targets, 1) == pytest.approx(4.0, rel=1e-10)


def test_scaling_the_loss_scales_it():
    model, inputs, targets = network()
    plain = Objective(model, (inputs, targets), criterion=half_squares)
    scaled = Objective(model, (inputs, targets), criterion=lambda o, t: 7 * half_squares(o, t))
    a, b = mean_of_draws(plain, 3, 40), mean_of_draws(scaled, 3, 40)
    assert b.value == pytest.approx(7 * a.value, rel=1e-12)  # |7 g|^2 / (2 * 7 L)
    assert b.low == pytest.approx(7 * a.low, rel=1e-12)
    assert mean_of_draws(plain, 3, 40, loss=2 * plain.value()).value == pytest.approx(a.value / 2, rel=1e-12)


def test_intervals_cover():
    model, inputs, targets = network()
    exact = enumerated_index(model, inputs, targets, 3)
    objective = Objective(model, (inputs, targets), criterion=half_squares)
    seeds = 250
    found = [minibatch_index(objective, 3, rtol=1e-12, max_draws=30, seed=s) for s in range(seeds)]
    covered = sum(e.low <= exact <= e.high for e in found) / seeds
    assert 0.92 <= covered <= 0.98
    mean = sum(e.value for e in found) / seeds
    assert mean == pytest.approx(exact, rel=0.02)


def test_it_stops_at_the_requested_accuracy_but_not_before_the_first_look():
    model, inputs, targets = network()
    objective = Objective(model, (inputs, targets), criterion=half_squares)
    coarse = minibatch_index(objective, 3, rtol=10.0, seed=0)
    fine = minibatch_index(objective, 3, rtol=0.1, max_draws=5000, seed=0)
    spent = minibatch_index(objective, 3, rtol=1e-9, max_draws=50, seed=0)
    assert (coarse.matvecs, coarse.converged) == (20, True)
    assert fine.converged
    assert 20 < fine.matvecs < 5000
    assert (fine.high - fine.low) / 2 <= 0.1 * fine.value
    assert (spent.matvecs, spent.converged) == (50, False)
    again = minibatch_index(objective, 3, rtol=0.1, max_draws=5000, seed=0)
    assert again.value == fine.value


@pytest.mark.parametrize("batch", [8, 9, 0, -1, 1.5, None, True])
def test_a_batch_must_be_smaller_than_the_data(batch):
    model, inputs, targets = network()
    objective = Objective(model, (inputs, targets), criterion=half_squares)
    with pytest.raises(SettingError, match=r"8 samples.*got " + str(batch)):
        minibatch_index(objective, batch)


def test_a_loss_of_zero_has_no_index():
    model, inputs, _ = network()
    targets = model(inputs).detach()
    estimate = mean_of_draws(Objective(model, (inputs, targets), criterion=half_squares), 3, 20)
    assert torch.tensor(estimate.value).isnan()


# --------------------------------------------------------------------------- what the theory assumes


def classifier(outputs: int = 3) -> Objective:
    return Objective(
        nn.Linear(4, outputs), (torch.randn(6, 4), torch.randint(outputs, (6,))), criterion=F.cross_entropy
    )


@pytest.mark.parametrize(
    ("criterion", "family"),
    [
        (nn.MSELoss(), "squared"),
        (nn.MSELoss(reduction="sum"), "squared"),
        (F.mse_loss, "squared"),
        (half_squares, "squared"),
        (lambda o, t: 1e-6 * half_squares(o, t), "squared"),
        (lambda o, t: half_squares(o, t) + 1000, "squared"),
        (nn.HuberLoss(), "other"),
        (nn.SmoothL1Loss(), "other"),
        (nn.L1Loss(), "other"),
        (lambda o, t: ((o - t) ** 4).mean(), "other"),
        (lambda o, t: o.mean(), "other"),
        (lambda o, t: torch.log(torch.cosh(o - t)).mean(), "other"),
    ],
)
def test_family_of_regression_losses(criterion, family):
    objective = Objective(nn.Linear(4, 3), (torch.randn(6, 4), torch.randn(6, 3)), criterion=criterion)
    assert loss_family(objective) == family


@pytest.mark.parametrize(
    "criterion",
    [
        nn.CrossEntropyLoss(),
        nn.CrossEntropyLoss(label_smoothing=0.1),
        F.cross_entropy,
        functools.partial(F.cross_entropy, label_smoothing=0.1),
        functools.partial(nn.CrossEntropyLoss()),
    ],
)
def test_family_of_cross_entropy(criterion):
    objective = Objective(nn.Linear(4, 3), (torch.randn(6, 4), torch.randint(3, (6,))), criterion=criterion)
    assert loss_family(objective) == "cross-entropy"


@pytest.mark.parametrize("criterion", [nn.BCEWithLogitsLoss(), F.binary_cross_entropy_with_logits])
def test_family_of_binary_cross_entropy(criterion):
    objective = Objective(nn.Linear(4, 1), (torch.randn(6, 4), torch.ones(6, 1)), criterion=criterion)
    assert loss_family(objective) == "cross-entropy"


def test_family_is_unknown_where_the_outputs_are_hidden():
    model, inputs = nn.Linear(4, 3), torch.randn(6, 4)
    hidden = Objective(model, [inputs], loss_fn=lambda m, x: m(x).square().mean())
    assert loss_family(hidden) == "unknown"
    assert outputs_per_sample(hidden) is None

    def strict(outputs, targets):
        if outputs.dtype != torch.float32:
            raise TypeError("float32 only")
        return half_squares(outputs, targets)

    assert loss_family(Objective(model, (inputs, torch.randn(6, 3)), criterion=strict)) == "unknown"


@pytest.mark.parametrize(("shape", "outputs"), [((), 1), ((1,), 1), ((10,), 10), ((5, 7), 35)])
def test_outputs_per_sample(shape, outputs):
    size = max(1, torch.Size(shape).numel())
    model = nn.Sequential(nn.Linear(4, size), nn.Flatten(0) if shape == () else nn.Unflatten(1, shape))
    objective = Objective(model, (torch.randn(6, 4), torch.randn(6, *shape)), criterion=F.mse_loss)
    assert outputs_per_sample(objective) == outputs


def test_outputs_that_are_no_tensor_have_no_number():
    class Wrapped(nn.Linear):
        def forward(self, x):
            return {"logits": super().forward(x)}

    objective = Objective(
        Wrapped(4, 3), (torch.randn(6, 4), torch.randn(6, 3)), criterion=lambda o, t: half_squares(o["logits"], t)
    )
    assert outputs_per_sample(objective) is None
    assert loss_family(objective) == "unknown"


# --------------------------------------------------------------------------- verdicts

NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("ratio", "low", "high", "necessary", "oscillates", "verdict"),
    [
        (0.5, 0.45, 0.55, False, None, "BELOW_EDGE"),
        (0.5, 0.45, 0.55, True, True, "NOT_EXCLUDED"),
        (0.89, 0.88, 0.899, False, True, "BELOW_EDGE"),
        (0.5, None, 0.55, False, None, "BELOW_EDGE"),
        (0.5, 0.5, None, False, None, "INCONCLUSIVE"),
        (0.5, 0.5, INF, False, None, "INCONCLUSIVE"),
        (0.5, 0.4, 0.95, False, None, "INCONCLUSIVE"),
        (1.5, 1.4, None, False, None, "ABOVE_EDGE"),
        (1.5, 1.4, 1.6, True, None, "ABOVE_EDGE"),
        (1.5, 1.05, 2.0, True, True, "INCONCLUSIVE"),
        (1.5, None, 2.0, False, True, "INCONCLUSIVE"),
        (1.0, 0.99, 1.05, False, True, "AT_EDGE"),
        (1.0, 0.99, 1.05, True, True, "AT_EDGE"),
        (1.0, 0.99, 1.05, False, False, "NEAR_EDGE_NO_OSCILLATION"),
        (1.0, 0.99, 1.05, False, None, "NEAR_EDGE_NO_OSCILLATION"),
        (1.0, 0.99, None, False, True, "INCONCLUSIVE"),
        (1.0, 0.5, 1.5, False, True, "INCONCLUSIVE"),
        (0.9, 0.85, 0.95, False, True, "AT_EDGE"),
        (1.1, 1.05, 1.15, False, True, "AT_EDGE"),
        (1.12, 1.09, 1.15, False, True, "INCONCLUSIVE"),
        (0.88, 0.86, 0.91, False, True, "INCONCLUSIVE"),
        (-0.2, -0.3, -0.1, False, None, "BELOW_EDGE"),
        (None, None, None, False, True, "INCONCLUSIVE"),
        (NAN, 0.1, 0.2, False, True, "INCONCLUSIVE"),
        (INF, INF, INF, False, True, "INCONCLUSIVE"),
        (0.5, NAN, NAN, False, True, "INCONCLUSIVE"),
    ],
)
def test_verdicts(ratio, low, high, necessary, oscillates, verdict):
    assert judge(ratio, low, high, necessary=necessary, oscillates=oscillates) == verdict
