"""Restricting operators to parameters, and all their blocks in one call, against dense float64 matrices."""

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from composed import F64, TOLERANCE, close, probes
from landscape_cases import build, labelled, reference
from losscope.landscape import (
    BlockDiagonal,
    Hessian,
    Objective,
    ParameterError,
    Preconditioned,
    Restricted,
    SettingError,
    SymmetricOperator,
)
from losscope.landscape.operators import DenseOperator
from losscope.landscape.space import ParameterSpace
from residual import digits, resnet20
from spectra import rotated

BLOCK_CASES = ["mlp_cross_entropy", "uneven_batches", "batchnorm_train", "tied_weights"]


def rows_of(names: tuple[str, ...], model: nn.Module) -> dict[str, Tensor]:
    """Which rows belong to each parameter, counted from the model itself."""
    sizes = [p.numel() for p in model.parameters()]
    return dict(zip(names, torch.arange(sum(sizes)).split(sizes), strict=True))


@pytest.mark.parametrize("dtype", TOLERANCE, ids=["double", "single"])
@pytest.mark.parametrize("name", BLOCK_CASES)
def test_blocks_are_those_of_the_dense_matrix(name: str, dtype: torch.dtype) -> None:
    H = reference(name)[2]
    setup = build(name, dtype)
    hessian = Hessian(setup.objective())
    rows = rows_of(hessian.space.names, setup.model)
    blocks = BlockDiagonal(hessian)
    V = probes(len(H), 3, dtype)
    expected = torch.zeros(len(H), 3, dtype=F64)
    for module, block in blocks.blocks.items():
        inside = torch.cat([r for n, r in rows.items() if n.rpartition(".")[0] == module])
        expected[inside] = H[inside][:, inside] @ V[inside].double()
        close(block @ V[inside], expected[inside], 10 * TOLERANCE[dtype])
        close(block @ torch.eye(len(inside), dtype=dtype), H[inside][:, inside], TOLERANCE[dtype])
        assert torch.equal(blocks.split(V)[module], V[inside])
        assert torch.equal(blocks.split(V[:, 0])[module], V[inside, 0])
    close(blocks @ V, expected, TOLERANCE[dtype])
    close(blocks @ V[:, 1], expected[:, 1], TOLERANCE[dtype])
    assert (blocks @ V[:, :0]).shape == (len(H), 0)
    assert list(blocks.blocks) == list(dict.fromkeys(n.rpartition(".")[0] for n in rows))


GROUPS = {
    "every parameter": lambda m: {n: n for n, _ in m.named_parameters()},
    "some": lambda m: {"head": m[2], "bias": m[0].bias},
    "scattered": lambda m: {"weights": lambda n, p: p.ndim == 2, "biases": "*.bias"},
    "all": lambda m: {"model": m},
}


@pytest.mark.parametrize("kind", GROUPS)
@pytest.mark.parametrize("compose", ["plain", "composed"])
def test_blocks_of_any_selection(kind: str, compose: str) -> None:
    """Of a Hessian and of what is made of one; the rows in no group are zero."""
    setup, H = build("mlp_cross_entropy"), reference("mlp_cross_entropy")[2]
    A = Hessian(setup.objective())
    if compose == "composed":
        D = torch.linspace(0.5, 2, len(H), dtype=F64)
        A = Preconditioned((A - 3 * DenseWithNames(H.flip(0, 1), A.space)).shifted(0.7), D)
        H = H - 3 * H.flip(0, 1) + 0.7 * torch.eye(len(H), dtype=F64)
        H = D.rsqrt()[:, None] * H * D.rsqrt()
    blocks = BlockDiagonal(A, GROUPS[kind](setup.model))
    rows = rows_of(A.space.names, setup.model)
    mask = torch.zeros_like(H)
    for block in blocks.blocks.values():
        inside = torch.cat([rows[name] for name in block.space.names])
        mask[inside[:, None], inside] = 1
    close(blocks @ torch.eye(len(H), dtype=F64), mask * H)
    assert blocks.psd == A.psd


class DenseWithNames(DenseOperator):
    """A matrix over a model's parameters, without the model."""

    def __init__(self, matrix: Tensor, space: ParameterSpace) -> None:
        super().__init__(matrix)
        self.space = space


SELECTIONS: dict[str, Callable[[nn.Sequential], Any]] = {
    "pattern": lambda m: "*.weight",
    "module": lambda m: m[2],
    "parameter": lambda m: m[0].bias,
    "predicate": lambda m: lambda name, p: p.ndim == 1 and name.startswith("2"),
    "list": lambda m: ["0.bias", m[2]],
}


@pytest.mark.parametrize("kind", SELECTIONS)
def test_restricting_an_operator_is_selecting_in_the_objective(kind: str) -> None:
    setup = build("uneven_batches")
    params = SELECTIONS[kind](setup.model)
    expected = Hessian(setup.objective(params=params))
    whole = Hessian(setup.objective())
    V = probes(expected.shape[0], 2)
    for found in (whole.restricted(params), Restricted(whole + whole.restricted("*"), params) / 2):
        assert found.space.names == expected.space.names and found.space.shapes == expected.space.shapes
        close(found @ V, expected @ V)
    twice = whole.restricted([params, setup.model[0]]).restricted(params)
    close(twice @ V, expected @ V)
    close(BlockDiagonal(whole.restricted(params)).split(V)[expected.space.names[0].rpartition(".")[0]][:1], V[:1])


@pytest.mark.parametrize("alias", ["embed.weight", "head.weight"])
def test_a_tied_parameter_is_restricted_to_by_either_name(alias: str) -> None:
    H = reference("tied_weights")[2][:28, :28]
    block = Hessian(build("tied_weights").objective()).restricted(alias)
    assert block.space.names == ("embed.weight",)
    close(block @ torch.eye(28, dtype=F64), H)


def test_operators_of_others_are_cut_by_name_and_shape() -> None:
    matrix = rotated(torch.linspace(-1.0, 3, 7, dtype=F64))
    space = ParameterSpace({"a.weight": torch.ones(2, 2, dtype=F64), "a.bias": torch.ones(2, dtype=F64),
                            "b": torch.ones(1, dtype=F64)})  # fmt: skip
    A = DenseWithNames(matrix, space)
    eye = torch.eye(7, dtype=F64)
    close(A.restricted("a.*") @ eye[:6, :6], matrix[:6, :6])
    close(A.restricted(lambda name, p: p.ndim == 2) @ eye[:4, :4], matrix[:4, :4])
    blocks = BlockDiagonal(A)
    assert list(blocks.blocks) == ["a", ""]
    close(blocks @ eye, torch.block_diag(matrix[:6, :6], matrix[6:, 6:]))


@pytest.mark.parametrize(
    ("groups", "error", "message"),
    [
        ({"a": "0.*", "b": "*.bias"}, ParameterError, r"disjoint: 0\.bias is in 'a' and in 'b'"),
        ({"a": "missing"}, ParameterError, r"'missing' selects none of the operator's parameters: 0\.weight, 0\.bias"),
        ({"a": nn.Linear(1, 1)}, ParameterError, r"Linear selects none"),
        ({"a": lambda name, p: False}, ParameterError, r"function selects none"),
        ({"a": 3}, SettingError, r"params must be a name pattern, .* got int"),
        ({}, SettingError, r"groups must map names to selections of parameters, got \{\}"),
        (["0.*"], SettingError, r"groups must map names"),
    ],
)
def test_groups_that_cannot_be_are_refused(groups: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        BlockDiagonal(Hessian(build("mlp_cross_entropy").objective()), groups)


@pytest.mark.parametrize(
    "make",
    [
        lambda A: 2 * A,
        lambda A: A.shifted(1),
        lambda A: Preconditioned(A, torch.ones(A.shape[0])),
        lambda A: A.restricted("*"),
        BlockDiagonal,
    ],
    ids=["multiple", "shift", "preconditioned", "restricted", "blocks"],
)
def test_vectors_that_do_not_fit_a_composition_are_refused(make: Callable[[Any], SymmetricOperator]) -> None:
    A = make(Hessian(build("mlp_cross_entropy").objective()))
    for V, message in (
        (torch.ones(50, dtype=F64), r"expected shape \(51,\) or \(51, k\), got \(50,\)"),
        (torch.ones(51), r"expected torch\.float64 on cpu, got torch\.float32"),
        (torch.ones(51, dtype=F64, device="meta"), r"got torch\.float64 on meta"),
        (np.ones(51), r"got ndarray"),
    ):
        with pytest.raises(SettingError, match=message):
            A @ V


def test_vectors_that_cannot_be_split_are_refused() -> None:
    with pytest.raises(SettingError, match=r"expected shape \(51,\) or \(51, k\), got \(3, 51\)"):
        BlockDiagonal(Hessian(build("mlp_cross_entropy").objective())).split(torch.ones(3, 51))


class TwoPrecisions(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 5), nn.Linear(5, 3).bfloat16()

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x).tanh().bfloat16()).float()


def test_blocks_of_parameters_in_half_precision() -> None:
    hessian = Hessian(Objective(TwoPrecisions(), labelled([6])[0], criterion=nn.CrossEntropyLoss()))
    blocks = BlockDiagonal(hessian)
    V = probes(hessian.shape[0], 2, torch.float32)
    for name, found in blocks.split(blocks @ V).items():
        masked = torch.zeros_like(V)
        blocks.split(masked)[name].copy_(blocks.split(V)[name])
        expected = blocks.split(hessian @ masked)[name]
        assert expected.norm() > 0
        torch.testing.assert_close(found, expected, rtol=0, atol=0.02 * float(expected.abs().max()))


def test_all_layers_of_a_resnet_in_one_call_agree_with_full_products() -> None:
    """Against a masked product with the full Hessian for each layer: convolutions, normalisations, the head."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = resnet20().double()
    x, y = digits(8)
    hessian = Hessian(Objective(model, [(x.double(), y)], criterion=nn.CrossEntropyLoss(), mode="train"))
    blocks = BlockDiagonal(hessian)
    V = probes(hessian.shape[0], 1)
    with blocks.held():
        found = blocks.split(blocks @ V)
        rows = rows_of(hessian.space.names, model)
        assert len(found) == 39
        for name in itertools.islice(found, 0, None, 6):
            inside = torch.cat([r for n, r in rows.items() if n.rpartition(".")[0] == name])
            masked = torch.zeros_like(V)
            masked[inside] = V[inside]
            close(found[name], (hessian @ masked)[inside], 1e-9)
