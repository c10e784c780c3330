"""Products with the Jacobian of the outputs against one that is made row by row."""

import numpy as np
import pytest
import torch
from scipy.sparse.linalg import svds
from torch import Tensor, nn

from landscape_cases import flat, labelled, mlp, selected
from losscope.landscape import Jacobian, LossError, Objective, SettingError
from output_cases import CASES, build, dense, dense_jacobian

TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5}


def distance(found: Tensor, expected: Tensor) -> float:
    return float((found.double() - expected).norm() / expected.norm())


def probes(n: int, k: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(n, k, generator=torch.Generator().manual_seed(1), dtype=torch.float32).to(dtype)


# Those whose forward= returns the outputs in the order in which the oracle flattens them.
SAME_ORDER = [name for name in CASES if name != "transposed_lstm"]


@pytest.mark.parametrize("dtype", TOLERANCE, ids=["double", "single"])
@pytest.mark.parametrize("name", SAME_ORDER)
def test_products_match_the_dense_jacobian(name: str, dtype: torch.dtype) -> None:
    expected = dense(name).J
    J = Jacobian(build(name, dtype).objective())
    assert J.shape == tuple(expected.shape) and J.T.shape == tuple(expected.T.shape)
    V, W = probes(J.shape[1], 3, dtype), probes(J.shape[0], 3, dtype)
    assert distance(J @ V, expected @ V.double()) <= TOLERANCE[dtype]
    assert distance(J.T @ W, expected.T @ W.double()) <= TOLERANCE[dtype]
    assert distance(J @ V[:, 0], expected @ V[:, 0].double()) <= TOLERANCE[dtype]
    assert distance(J.T @ W[:, 0], expected.T @ W[:, 0].double()) <= TOLERANCE[dtype]


def test_all_floating_outputs_with_a_gradient_are_rows() -> None:
    torch.manual_seed(0)
    model, (x, y) = mlp(4, 5, 3).double(), labelled([6])[0]
    x = x.double()

    def forward(m: nn.Module, batch: tuple) -> dict:
        h = m[:2](batch[0])
        return {"logits": m[2](h), "labels": batch[1], "fixed": h.detach(), "more": (h, [h.sum()])}

    J = Jacobian(Objective(model, (x, y), criterion=nn.CrossEntropyLoss(), forward=forward))
    h = model[:2](x)
    expected = dense_jacobian(flat([model[2](h), h, h.sum()]), selected(model))
    assert J.shape == tuple(expected.shape)
    assert distance(J @ torch.eye(J.shape[1], dtype=torch.float64), expected) <= 1e-12
    assert distance(J.T @ torch.eye(J.shape[0], dtype=torch.float64), expected.T) <= 1e-12


def test_the_criterion_is_not_evaluated() -> None:
    def criterion(z: Tensor, y: Tensor) -> Tensor:
        raise AssertionError("evaluated")

    model, (x, y) = mlp(4, 5, 3), labelled([6])[0]
    objective = Objective(model, (x, y), criterion=criterion, weight=len)
    assert Jacobian(objective).shape == (18, sum(p.numel() for p in model.parameters()))


def test_transpose_of_the_transpose_and_no_vectors() -> None:
    J = Jacobian(build("uneven_batches").objective())
    assert J.T.T is J
    m, n = J.shape
    assert (J @ torch.zeros(n, 0, dtype=torch.float64)).shape == (m, 0)
    assert (J.T @ torch.zeros(m, 0, dtype=torch.float64)).shape == (n, 0)


def test_scipy_takes_it() -> None:
    J, expected = Jacobian(build("uneven_batches").objective()).to_scipy(), dense("uneven_batches").J
    found = np.sort(svds(J, k=3, return_singular_vectors=False, random_state=0))
    np.testing.assert_allclose(found[::-1], torch.linalg.svdvals(expected)[:3].numpy(), rtol=1e-9)


def test_vectors_are_left_alone() -> None:
    J = Jacobian(build("mlp_cross_entropy").objective())
    V = probes(J.shape[1], 1)
    before = V.clone()
    J @ V
    assert torch.equal(V, before)


@pytest.mark.parametrize("wrong", [torch.ones(3), torch.ones(51, 2), [1.0], torch.ones(1, 1, 1)])
def test_wrong_vectors_are_refused(wrong: object) -> None:
    J = Jacobian(build("mlp_cross_entropy").objective())
    for A in (J, J.T):
        with pytest.raises(SettingError, match="expected"):
            A @ wrong


def test_a_loss_fn_is_refused_with_advice() -> None:
    J = Jacobian(Objective(nn.Linear(2, 1), [torch.ones(3, 2)], loss_fn=lambda m, x: m(x).square().mean()))
    with pytest.raises(LossError, match="criterion="):
        J @ torch.ones(3)
