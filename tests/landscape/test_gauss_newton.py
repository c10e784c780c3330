"""Gauss-Newton products against J' H J from dense constructions that share no code with the package."""

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from custom_functions import Once
from landscape_cases import Checkpointed, labelled, mlp, selected
from losscope.landscape import (
    DoubleBackwardError,
    GaussNewton,
    Hessian,
    LossError,
    Objective,
    SettingError,
    top_eigenpairs,
    trace,
)
from losscope.landscape.operators import Observed
from output_cases import CASES, build, by_hand, dense, dense_jacobian

TOLERANCE = {torch.float64: 1e-11, torch.float32: 1e-5}


IN_CLOSED_FORM = {
    *("mlp_cross_entropy", "uneven_batches", "sum_reduction", "class_weights", "functional_label_smoothing"),
    *("frozen_parameters", "unused_parameters", "token_weights_criterion", "batchnorm_eval", "batchnorm_train"),
    *("batchnorm_train_frozen", "spectral_norm_eval", "scaled_dot_product_attention", "multihead_attention"),
    *("transformer_encoder_layer", "cross_entropy_in_a_lambda", "cross_entropy_reduced_by_hand"),
    *("shifted_language_model", "transposed_lstm", "soft_targets", "smoothing_weights_and_ignored"),
    *("squared_error", "squared_error_turned_round", "binary_cross_entropy", "convolution"),
}


def distance(found: Tensor, expected: Tensor) -> float:
    return float((found.double() - expected).norm() / expected.norm())


def probes(n: int, k: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(n, k, generator=torch.Generator().manual_seed(1), dtype=torch.float32).to(dtype)


def eye(operator: GaussNewton) -> Tensor:
    return torch.eye(operator.shape[0], dtype=operator.space.dtype)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=["double", "single"])
@pytest.mark.parametrize("name", CASES)
def test_products_match_the_dense_construction(name: str, dtype: torch.dtype) -> None:
    G = dense(name).G
    operator = GaussNewton(build(name, dtype).objective())
    assert operator.shape == tuple(G.shape)
    assert G.abs().max() > 0
    V = probes(len(G), 4, dtype)
    assert distance(operator @ V, G @ V.double()) <= TOLERANCE[dtype]
    assert distance(operator @ V[:, 1], G @ V[:, 1].double()) <= TOLERANCE[dtype]


@pytest.mark.parametrize("name", CASES)
def test_convex_losses_are_seen_and_others_are_not(name: str) -> None:
    """What is seen inside a lambda is psd; a case that is not seen still has the right products."""
    operator = GaussNewton(build(name).objective())
    assert operator.psd == (name in IN_CLOSED_FORM)
    if operator.psd:
        values = torch.linalg.eigvalsh(operator @ eye(operator))
        assert values[0] >= -1e-12 * values[-1]


def test_single_precision_where_the_fit_is_perfect() -> None:
    """All probabilities are 0 or 1 but for 2e-5 at most, which the distance to 1 in single precision does not hold."""
    torch.manual_seed(0)
    z = torch.randn(8, 4).mul(4)
    z[torch.arange(8), torch.arange(8) % 4] += 25
    x, y = z.double(), torch.arange(8) % 4
    model = nn.Linear(4, 4, bias=False).double()
    with torch.no_grad():
        model.weight.copy_(torch.eye(4))
    p = model(x).detach().softmax(1)
    assert float(p.max(dim=1).values.min()) > 1 - 2e-5
    exact = GaussNewton(Objective(model, (x, y), criterion=nn.CrossEntropyLoss())) @ torch.eye(16, dtype=torch.float64)
    by_definition = torch.einsum("nab,ni,nj->aibj", torch.diag_embed(p) - p[:, :, None] * p[:, None], x, x) / 8
    torch.testing.assert_close(exact, by_definition.reshape(16, 16), rtol=1e-9, atol=1e-13)
    single = GaussNewton(Objective(model.float(), (z, y), criterion=nn.CrossEntropyLoss())) @ torch.eye(16)
    assert distance(single, exact) <= 1e-5


@pytest.mark.parametrize("name", ["class_weights", "transposed_lstm", "batchnorm_train", "loss_across_samples"])
def test_the_matrix_is_symmetric(name: str) -> None:
    operator = GaussNewton(build(name).objective())
    G = operator @ eye(operator)
    torch.testing.assert_close(G, G.T, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("criterion", [nn.CrossEntropyLoss(), lambda z, y: F.cross_entropy(z.square(), y)])
def test_it_is_the_hessian_of_a_linear_model(criterion: Callable) -> None:
    model = nn.Linear(4, 3).double()
    data = [(x.double(), y) for x, y in labelled([6, 2])]
    objective = Objective(model, data, criterion=criterion)
    operator = GaussNewton(objective)
    assert distance(operator @ eye(operator), Hessian(objective) @ eye(operator)) <= 1e-13


# --------------------------------------------------------------------------- weights, selections, memory


@pytest.mark.parametrize("criterion", ["cross-entropy", "lambda"])
def test_weights_multiply_each_samples_term(criterion: str) -> None:
    setup = build("uneven_batches")
    reference = dense("uneven_batches")
    weights = torch.randn(15, dtype=torch.float64).abs()
    options = {} if criterion == "cross-entropy" else {"criterion": lambda z, y: F.cross_entropy(z, y)}
    operator = GaussNewton(setup.objective(**options), weights=weights)
    H = reference.H * weights.repeat_interleave(3)[:, None]
    assert distance(operator @ eye(operator), reference.J.T @ H @ reference.J) <= 1e-11
    assert not GaussNewton(setup.objective(**options), weights=-weights).psd


def test_a_selection_gives_the_block() -> None:
    setup, G = build("mlp_cross_entropy"), dense("mlp_cross_entropy").G
    operator = GaussNewton(setup.objective(params="2.*"))
    n = operator.shape[0]
    assert distance(operator @ eye(operator), G[-n:, -n:]) <= 1e-12


@pytest.mark.parametrize("name", ["uneven_batches", "batchnorm_train", "multi_output_regression"])
def test_graphs_that_are_not_kept_give_the_same(name: str) -> None:
    operator = GaussNewton(build(name).objective())
    operator._engine.graphs._keeps = False
    operator._engine.graphs._kept.clear()
    V = probes(operator.shape[0], 3)
    assert distance(operator @ V, dense(name).G @ V) <= 1e-11
    assert not operator._engine.graphs._kept


def test_dropout_is_one_matrix() -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Dropout(0.5), nn.Linear(8, 3)).double()
    data = [(x.double(), y) for x, y in labelled([5, 3])]
    objective = Objective(model, data, criterion=nn.CrossEntropyLoss(), mode="train", seed=3)
    operator = GaussNewton(objective)
    V = probes(operator.shape[0], 2)
    first = operator @ V
    torch.rand(3)
    assert torch.equal(operator @ V, first)
    assert torch.equal(GaussNewton(objective) @ V, first)
    generic = GaussNewton(
        Objective(model, data, criterion=lambda z, y: F.nll_loss(z.log_softmax(-1), y), mode="train", seed=3)
    )
    assert distance(generic @ V, first) <= 1e-12  # the same masks, whichever way the loss goes


def test_a_criterion_that_draws_sees_the_numbers_that_the_objective_sees() -> None:
    """Being looked at for a closed form must not move the random stream of what is measured."""
    model = nn.Linear(4, 3).double()
    x, y = labelled([6])[0]

    def criterion(z: Tensor, y: Tensor) -> Tensor:
        return (F.cross_entropy(z, y, reduction="none") * torch.rand(len(y)).to(z)).mean() + z.square().mean()

    objective = Objective(model, (x.double(), y), criterion=criterion)
    operator = GaussNewton(objective)
    assert distance(operator @ eye(operator), Hessian(objective) @ eye(operator)) <= 1e-12


# --------------------------------------------------------------------------- an operator like the others


def test_it_leaves_no_trace() -> None:
    setup = build("batchnorm_train")
    model, before = setup.model, copy.deepcopy(setup.model.state_dict())
    state = torch.get_rng_state()
    operator = GaussNewton(setup.objective())
    operator @ eye(operator)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())


def test_it_follows_the_parameters() -> None:
    setup = build("mlp_cross_entropy")
    operator = GaussNewton(setup.objective())
    V = probes(operator.shape[0], 1)
    before = operator @ V
    with torch.no_grad():
        setup.model[2].weight.mul_(1.5)
    expected = GaussNewton(setup.objective()) @ V
    assert distance(expected, before) > 1e-2
    assert torch.equal(operator @ V, expected)


def test_it_goes_where_a_hessian_goes() -> None:
    operator, G = GaussNewton(build("uneven_batches").objective()), dense("uneven_batches").G
    values = torch.linalg.eigvalsh(G)
    pairs = top_eigenpairs(operator, k=2, seed=0, tol=1e-8)
    torch.testing.assert_close(pairs.values, values.flip(0)[:2], rtol=1e-6, atol=0)
    estimate = trace(operator, seed=0)
    assert abs(estimate.value - float(values.sum())) <= 5 * estimate.stderr + 1e-9
    observed = Observed(operator)
    V = probes(len(G), 3)
    assert distance(observed @ V, G @ V) <= 1e-11
    assert observed.matvecs == 3 and observed.psd and observed.kernel == "jacobian"
    assert distance(torch.as_tensor(operator.to_scipy() @ V.numpy()), G @ V) <= 1e-11
    with operator.held():
        assert distance(operator @ V, G @ V) <= 1e-11
    assert (operator @ V[:, :0]).shape == (len(G), 0)


# --------------------------------------------------------------------------- bad input


def test_a_loss_fn_is_refused_with_advice() -> None:
    objective = Objective(nn.Linear(2, 1), [torch.ones(3, 2)], loss_fn=lambda m, x: m(x).square().mean())
    with pytest.raises(LossError, match="criterion="):
        GaussNewton(objective)


def test_outputs_without_parameters_are_refused() -> None:
    model, (x, y) = mlp(4, 5, 3), labelled([6])[0]
    with pytest.raises(LossError, match="no floating-point tensor with a gradient"):
        GaussNewton(Objective(model, (x, y), criterion=nn.CrossEntropyLoss(), forward=lambda m, b: m(b[0]).detach()))
    with pytest.raises(LossError, match="do not depend on any of the 2 selected parameters"):
        GaussNewton(
            Objective(
                model, (x, y), criterion=nn.CrossEntropyLoss(), forward=lambda m, b: m[2](b[0].repeat(1, 2)[:, :5]),
                params="0.*",
            )
        )  # fmt: skip


def test_reentrant_checkpointing_is_differentiated_twice() -> None:
    model = Checkpointed(use_reentrant=True)
    operator = GaussNewton(Objective(model, labelled([4]), criterion=nn.CrossEntropyLoss()))
    found = operator @ torch.ones(operator.shape[0])
    model.use_reentrant = False
    assert torch.equal(found, GaussNewton(operator.objective) @ torch.ones(operator.shape[0]))


@pytest.mark.parametrize("where", ["model", "criterion"])
def test_operations_that_can_be_differentiated_once_are_refused_by_name(where: str) -> None:
    """Torch itself may be silent about them, and leave their part out."""
    model, (x, y) = nn.Linear(4, 3), labelled([6])[0]
    options = {
        "model": {"forward": lambda m, b: Once.apply(m(b[0])), "criterion": nn.CrossEntropyLoss()},
        "criterion": {"criterion": lambda z, y: Once.apply(z).mean() + F.cross_entropy(z, y)},
    }
    with pytest.raises(DoubleBackwardError, match="differentiate twice through Once"):
        GaussNewton(Objective(model, (x, y), **options[where]))


@pytest.mark.parametrize("V", [torch.ones(3), torch.ones(51, 2, dtype=torch.float32), [1.0]])
def test_wrong_vectors_are_refused(V: object) -> None:
    operator = GaussNewton(build("mlp_cross_entropy").objective())
    with pytest.raises(SettingError, match="expected"):
        operator @ V


def test_a_criterion_that_is_linear_in_the_outputs_has_a_matrix_of_zero_and_says_so() -> None:
    model, (x, y) = nn.Sequential(nn.Linear(4, 3), nn.LogSoftmax(-1)), labelled([6])[0]
    with pytest.warns(UserWarning, match="linear in the model's outputs"):
        operator = GaussNewton(Objective(model, (x, y), criterion=nn.NLLLoss()))
    assert torch.equal(operator @ torch.ones(15), torch.zeros(15))


def test_checkpointing_is_differentiated() -> None:
    torch.manual_seed(0)
    model, (x, y) = Checkpointed().double(), labelled([5])[0]
    x = x.double()
    operator = GaussNewton(Objective(model, (x, y), criterion=nn.CrossEntropyLoss()))
    z = model.head(model.body(model.first(x))).flatten()
    H = torch.func.hessian(lambda z: by_hand(z.view(5, 3), y))(z.detach())
    J = dense_jacobian(z, selected(model))
    assert distance(operator @ eye(operator), J.T @ H @ J) <= 1e-11
