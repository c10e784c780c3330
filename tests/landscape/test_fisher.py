"""Fisher matrices against sums of outer products of gradients, taken sample by sample."""

import functools
from collections.abc import Callable, Iterable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from landscape_cases import IGNORED, LanguageModel, flat, labelled, mlp, padded, selected
from losscope.landscape import (
    EmpiricalFisher,
    GaussNewton,
    LossError,
    MonteCarloFisher,
    Objective,
    SettingError,
    top_eigenpairs,
)
from output_cases import build, by_hand, dense

CLASS_WEIGHTS = torch.tensor([1.0, 4.0, 0.25], dtype=torch.float64)


def distance(found: Tensor, expected: Tensor) -> float:
    return float((found.double() - expected).norm() / expected.norm())


def eye(operator: object) -> Tensor:
    return torch.eye(operator.shape[0], dtype=operator.space.dtype)


def second_moment(model: nn.Module, data: list, own: Callable[[Tensor, Tensor], Tensor], omega: Iterable) -> Tensor:
    """``sum_i omega_i g_i g_i'`` with ``own(z_i, y_i)`` the loss of one sample by hand, one gradient at a time."""
    samples = [(x[None], y) for xs, ys in data for x, y in zip(xs, ys, strict=True)]
    total = 0.0
    for (x, y), w in zip(samples, omega, strict=True):
        g = flat(torch.autograd.grad(own(model(x)[0], y), selected(model), materialize_grads=True))
        total = total + w * torch.outer(g, g)
    return total


def nll(z: Tensor, y: Tensor) -> Tensor:
    return -z.log_softmax(-1)[y]


def squares(z: Tensor, y: Tensor) -> Tensor:
    return (z - y).square().mean()


def binary(z: Tensor, y: Tensor) -> Tensor:
    p = z.sigmoid()
    return -(y * p.log() + (1 - y) * (1 - p).log()).mean()


def smoothed(z: Tensor, y: Tensor) -> Tensor:
    return 0.9 * nll(z, y) - 0.1 * z.log_softmax(-1).mean()


# criterion, one sample's own loss, whether it is summed, what the targets are
CRITERIA: dict[str, tuple[Callable, Callable, bool, str]] = {
    "cross-entropy": (nn.CrossEntropyLoss(), nll, False, "classes"),
    "summed": (nn.CrossEntropyLoss(reduction="sum"), nll, True, "classes"),
    "partial": (functools.partial(F.cross_entropy, label_smoothing=0.1), smoothed, False, "classes"),
    "lambda": (lambda z, y: F.cross_entropy(z, y), nll, False, "classes"),
    "summed lambda": (lambda z, y: F.cross_entropy(z, y, reduction="sum"), nll, True, "classes"),
    "scaled lambda": (lambda z, y: 3 * F.cross_entropy(z, y), lambda z, y: 3 * nll(z, y), False, "classes"),
    "squared error": (nn.MSELoss(), squares, False, "values"),
    "summed squares": (nn.MSELoss(reduction="sum"), lambda z, y: 3 * squares(z, y), True, "values"),
    "half squares": (
        lambda z, y: 0.5 * (z - y).square().sum(1).mean(),
        lambda z, y: 1.5 * squares(z, y),
        False,
        "values",
    ),
    "binary": (nn.BCEWithLogitsLoss(), binary, False, "bits"),
}


def example(kind: str, sizes: list[int], dtype: torch.dtype = torch.float64) -> tuple[nn.Module, list]:
    torch.manual_seed(0)
    model = mlp(4, 5, 3).to(dtype)
    data = [(x.to(dtype), y) for x, y in labelled(sizes)]
    if kind != "classes":
        data = [(x, torch.randn(len(x), 3).to(dtype)) for x, _ in data]
    if kind == "bits":
        data = [(x, (y > 0).to(dtype)) for x, y in data]
    return model, data


@pytest.mark.parametrize("sizes", [[9], [5, 3, 1]], ids=["one batch", "uneven batches"])
@pytest.mark.parametrize("name", CRITERIA)
def test_empirical_fisher_is_the_second_moment_of_gradients(name: str, sizes: list[int]) -> None:
    criterion, own, summed, kind = CRITERIA[name]
    model, data = example(kind, sizes)
    omega = torch.full((9,), 1.0 if summed else 1 / 9, dtype=torch.float64)
    expected = second_moment(model, data, own, omega)
    operator = EmpiricalFisher(Objective(model, data, criterion=criterion))
    assert distance(operator @ eye(operator), expected) <= 1e-11
    assert operator.psd
    single, data = example(kind, sizes, torch.float32)
    operator = EmpiricalFisher(Objective(single, data, criterion=criterion))
    assert distance(operator @ eye(operator), expected) <= 1e-5


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_class_weights_and_ignored_targets(reduction: str) -> None:
    model, data = example("classes", [6, 3])
    data[0][1][1] = IGNORED
    y = torch.cat([y for _, y in data])
    w = CLASS_WEIGHTS[y.clamp(min=0)] * (y != IGNORED)
    criterion = nn.CrossEntropyLoss(weight=CLASS_WEIGHTS, reduction=reduction)
    operator = EmpiricalFisher(Objective(model, data, criterion=criterion))
    if reduction == "mean":  # the share of its weight, its own loss without it
        expected = second_moment(model, data, lambda z, y: nll(z, y.clamp(min=0)), w / w.sum())
    else:
        expected = second_moment(model, data, lambda z, y: nll(z, y.clamp(min=0)), w**2)
    assert distance(operator @ eye(operator), expected) <= 1e-11


def test_tokens_are_samples_where_forward_flattens_them_and_sequences_where_not() -> None:
    torch.manual_seed(0)
    model, batch = LanguageModel().double(), padded([4, 2, 3])
    tokens = Objective(
        model,
        batch,
        forward=lambda m, b: m(b["input_ids"]).flatten(0, 1),
        targets=lambda b: b["labels"].flatten(),
        criterion=nn.CrossEntropyLoss(),
    )
    sequences = Objective(
        model,
        batch,
        forward=lambda m, b: m(b["input_ids"]).transpose(1, 2),
        targets=lambda b: b["labels"],
        criterion=nn.CrossEntropyLoss(),
    )
    ids, labels = batch["input_ids"], batch["labels"]

    def gradient(loss: Tensor) -> Tensor:
        return flat(torch.autograd.grad(loss, selected(model)))

    by_token, by_sequence = 0.0, 0.0
    for row, y in zip(ids, labels, strict=True):
        own = [gradient(by_hand(model(row[None])[0][t : t + 1], y[t : t + 1])) for t in range(4) if y[t] != IGNORED]
        by_token = by_token + sum(torch.outer(g, g) for g in own) / 9
        mean = sum(own) / len(own)
        by_sequence = by_sequence + len(own) / 9 * torch.outer(mean, mean)
    for objective, expected in ((tokens, by_token), (sequences, by_sequence)):
        operator = EmpiricalFisher(objective)
        assert distance(operator @ eye(operator), expected) <= 1e-11


def test_weights_multiply_each_samples_outer_product() -> None:
    model, data = example("classes", [5, 4])
    weights = torch.rand(9, dtype=torch.float64)
    objective = Objective(model, data, criterion=nn.CrossEntropyLoss())
    for operator in (EmpiricalFisher(objective, weights=weights), EmpiricalFisher(objective.weighted(weights))):
        assert distance(operator @ eye(operator), second_moment(model, data, nll, weights / 9)) <= 1e-11
    assert not EmpiricalFisher(objective, weights=-weights).psd


def test_several_outputs_share_a_gradient() -> None:
    model, data = example("classes", [7])
    x, y = data[0]

    def forward(m: nn.Module, batch: tuple) -> dict:
        z = m(batch[0])
        return {"a": z, "unused": 2 * z, "b": z.exp()}

    def criterion(z: dict, y: Tensor) -> Tensor:
        return F.cross_entropy(z["a"], y) + z["b"].square().sum(1).mean()

    operator = EmpiricalFisher(Objective(model, (x, y), forward=forward, criterion=criterion))
    expected = second_moment(model, data, lambda z, y: nll(z, y) + (2 * z).exp().sum(), [1 / 7] * 7)
    assert distance(operator @ eye(operator), expected) <= 1e-11


def test_a_loss_that_does_not_add_over_samples_is_refused() -> None:
    model, data = example("classes", [6])
    objective = Objective(model, data, criterion=lambda z, y: F.cross_entropy(z @ z.T, torch.arange(len(z))))
    with pytest.raises(LossError, match="does not add over samples"):
        EmpiricalFisher(objective)


@pytest.mark.parametrize("kind", [EmpiricalFisher, MonteCarloFisher])
def test_a_loss_fn_is_refused_with_advice(kind: type) -> None:
    objective = Objective(nn.Linear(2, 1), [torch.ones(3, 2)], loss_fn=lambda m, x: m(x).square().mean())
    with pytest.raises(LossError, match="criterion="):
        kind(objective)


# --------------------------------------------------------------------------- drawn targets

DRAWN = [
    *("mlp_cross_entropy", "uneven_batches", "class_weights", "smoothing_weights_and_ignored", "soft_targets"),
    *("shifted_language_model", "squared_error", "binary_cross_entropy", "cross_entropy_reduced_by_hand"),
    *("transposed_lstm", "convolution"),
]


@pytest.mark.parametrize("name", DRAWN)
def test_drawn_fisher_is_gauss_newton_in_expectation(name: str) -> None:
    """A fixed quadratic form over many independent draws: its mean is within five standard errors.

    With 11 cases of 3 forms, chance alone fails this once in 50,000 runs; the seeds are fixed.
    """
    objective, G = build(name).objective(), dense(name).G
    V = torch.randn(len(G), 3, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    expected = (V * (G @ V)).sum(0)
    forms = []
    for seed in range(60):
        operator = MonteCarloFisher(objective, samples=20, seed=seed)
        forms.append((V * (operator @ V)).sum(0))
    forms = torch.stack(forms)
    error = forms.std(0) / len(forms) ** 0.5
    assert torch.all((forms.mean(0) - expected).abs() <= 5 * error + 1e-12)
    assert torch.all(error <= 0.1 * expected)  # or the test would prove nothing


@pytest.mark.parametrize("name", ["uneven_batches", "squared_error", "binary_cross_entropy", "transposed_lstm"])
def test_drawn_fisher_is_symmetric_psd_and_of_low_rank(name: str) -> None:
    operator = MonteCarloFisher(build(name).objective(), seed=0)
    matrix = operator @ eye(operator)
    torch.testing.assert_close(matrix, matrix.T, rtol=1e-11, atol=1e-13)
    values = torch.linalg.eigvalsh(matrix)
    assert operator.psd and values[0] >= -1e-12 * values[-1]
    samples = len(dense(name).z)
    assert int((values > 1e-10 * values[-1]).sum()) <= samples


def test_drawn_fisher_of_one_prediction_is_one_outer_product() -> None:
    torch.manual_seed(0)
    model, x = mlp(4, 5, 3).double(), torch.randn(1, 4).double()
    operator = MonteCarloFisher(Objective(model, (x, torch.tensor([1])), criterion=nn.CrossEntropyLoss()), seed=4)
    found = operator @ eye(operator)
    outer = []
    for label in range(3):
        g = flat(torch.autograd.grad(nll(model(x)[0], torch.tensor(label)), selected(model)))
        outer.append(torch.outer(g, g))
    assert min(distance(found, candidate) for candidate in outer) <= 1e-12


def test_targets_are_drawn_once_and_from_a_stream_of_their_own() -> None:
    objective = build("uneven_batches").objective()
    state = torch.get_rng_state()
    operator = MonteCarloFisher(objective, seed=5)
    V = torch.ones(operator.shape[0], 2, dtype=torch.float64)
    first = operator @ V
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(operator @ V, first)
    operator._engine.graphs._keeps = False
    operator._engine.graphs._kept.clear()
    assert torch.equal(operator @ V, first)  # also where graphs are made anew
    assert torch.equal(MonteCarloFisher(objective, seed=5) @ V, first)
    assert not torch.equal(MonteCarloFisher(objective, seed=6) @ V, first)
    assert not torch.equal(MonteCarloFisher(objective) @ V, MonteCarloFisher(objective) @ V)
    own = torch.Generator().manual_seed(5)
    assert torch.equal(MonteCarloFisher(objective, seed=own) @ V, first)


def test_many_draws_are_close_to_gauss_newton_for_solvers_too() -> None:
    objective = build("uneven_batches").objective()
    drawn = top_eigenpairs(MonteCarloFisher(objective, samples=4000, seed=0), k=1, seed=0)
    exact = top_eigenpairs(GaussNewton(objective), k=1, seed=0)
    assert float(drawn.values[0]) == pytest.approx(float(exact.values[0]), rel=0.1)


@pytest.mark.parametrize("name", ["log_softmax_in_a_lambda", "huber", "focal", "cross_entropy_and_a_term"])
def test_criteria_without_a_known_distribution_are_refused(name: str) -> None:
    with pytest.raises(SettingError, match="Use GaussNewton"):
        MonteCarloFisher(build(name).objective())


def test_negative_weights_are_refused() -> None:
    objective = build("uneven_batches").objective().weighted(-torch.ones(15))
    with pytest.raises(SettingError, match="negative weight"):
        MonteCarloFisher(objective)


@pytest.mark.parametrize("samples", [0, -1, 1.5, True])
def test_a_number_of_samples_that_means_nothing_is_refused(samples: object) -> None:
    with pytest.raises(SettingError, match="samples must be"):
        MonteCarloFisher(build("mlp_cross_entropy").objective(), samples=samples)
