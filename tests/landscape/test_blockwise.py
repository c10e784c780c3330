"""Every block's eigenpairs in one call, against the blocks of dense float64 matrices."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from landscape_cases import build, labelled, mlp, reference
from losscope.landscape import (
    BlockDiagonal,
    GaussNewton,
    Hessian,
    NonFiniteError,
    Objective,
    SettingError,
    block_eigenpairs,
    block_traces,
    trace,
)
from residual import digits, resnet20

F64 = torch.float64
CASES = ["batchnorm_eval", "uneven_batches", "tied_weights", "scaled_dot_product_attention", "linear_unused_bias"]


def dense_blocks(B: BlockDiagonal, H: Tensor) -> dict[str, Tensor]:
    spans = {name: torch.cat([torch.arange(s.start, s.stop) for s in block._rows]) for name, block in B.blocks.items()}
    return {name: H[rows][:, rows] for name, rows in spans.items()}


@pytest.mark.parametrize("which", ["LA", "SA", "LM"])
@pytest.mark.parametrize("name", CASES)
def test_all_blocks_of_model_hessians(name: str, which: str) -> None:
    B = BlockDiagonal(Hessian(build(name).objective()))
    H = reference(name)[2]
    found = block_eigenpairs(B, 2, which=which, tol=1e-8, guards=1, seed=0)
    assert list(found) == list(B.blocks)
    for layer, A in dense_blocks(B, H).items():
        pairs, values = found[layer], torch.linalg.eigvalsh(A)
        order = {"LA": values.flip(0), "SA": values, "LM": values[values.abs().argsort(descending=True)]}[which]
        k = min(2, len(A))
        assert pairs.values.shape == (k,) and pairs.vectors.shape == (len(A), k)
        ours, exact = (pairs.values.abs(), order[:k].abs()) if which == "LM" else (pairs.values, order[:k])
        torch.testing.assert_close(ours, exact, rtol=0, atol=1e-6 * float(H.norm()))
        explicit = (A @ pairs.vectors - pairs.vectors * pairs.values).norm(dim=0)
        assert float(explicit.max()) <= 1e-7 * float(H.norm())
        assert pairs.kernel == "retained"


def test_one_pass_over_the_data_serves_all_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    B = BlockDiagonal(Hessian(Objective(mlp(4, 6, 5, 3), labelled([7, 7, 3]), criterion=nn.CrossEntropyLoss())))
    passes: list[int] = []
    products = Hessian.block_products

    def counting(A: Hessian, V: Tensor, groups: list) -> Tensor:
        passes.append(len(groups))
        return products(A, V, groups)

    monkeypatch.setattr(Hessian, "block_products", counting)
    found = block_eigenpairs(B, tol=1e-4, seed=0)
    assert len(passes) == max(pairs.matvecs for pairs in found.values())
    assert sum(passes) == sum(pairs.matvecs for pairs in found.values())
    assert passes[0] == len(B.blocks) and passes == sorted(passes, reverse=True)


def test_all_layers_of_a_residual_network() -> None:
    objective = Objective(resnet20(), digits(8), criterion=nn.CrossEntropyLoss())
    hessian = Hessian(objective)
    found = block_eigenpairs(BlockDiagonal(hessian), tol=1e-2, max_matvecs=12, seed=0)
    assert len(found) == 39
    for name in list(found)[::13]:
        alone, v = hessian.restricted(f"{name}.*"), found[name].vectors
        assert float((v * (alone @ v)).sum()) == pytest.approx(float(found[name].values[0]), rel=1e-3)


# --------------------------------------------------------------------------- traces


@pytest.mark.parametrize("name", CASES)
def test_traces_of_all_blocks_cover_and_small_ones_are_exact(name: str) -> None:
    H = reference(name)[2]
    B = BlockDiagonal(Hessian(build(name).objective()))
    exact = {layer: float(A.trace()) for layer, A in dense_blocks(B, H).items()}
    small = block_traces(B, min_matvecs=400, max_matvecs=400, seed=0)
    for layer, found in small.items():
        assert found.method == "exact" and found.matvecs == B.blocks[layer].space.size and found.low == found.high
        assert found.value == pytest.approx(exact[layer], rel=1e-10, abs=1e-10 * float(H.norm()))
    covered = []
    for seed in range(40):
        for layer, found in block_traces(B, rtol=0.1, min_matvecs=5, max_matvecs=40, seed=seed).items():
            slack = 1e-10 * float(H.norm())
            covered.append(found.low - slack <= exact[layer] <= found.high + slack)
            assert found.converged == ((found.high - found.low) / 2 <= 0.1 * abs(found.value))
            assert found.converged or found.matvecs == 40
    assert np.mean(covered) >= 0.85  # five products are few


def test_traces_of_layers_add_up_to_the_whole() -> None:
    images, labels = digits(64)
    model = nn.Sequential(nn.Conv2d(1, 6, 3), nn.Tanh(), nn.MaxPool2d(4), nn.Flatten(), nn.Linear(54, 10))
    objective = Objective(
        model, [(images[:40], labels[:40]), (images[40:], labels[40:])], criterion=nn.CrossEntropyLoss()
    )
    hessian = Hessian(objective)
    whole = trace(hessian, rtol=0.02, seed=1)
    held = []
    for seed in range(20):
        layers = block_traces(BlockDiagonal(hessian), rtol=0.1, seed=seed)
        assert set(layers) == {"0", "4"}
        total, stderr = sum(e.value for e in layers.values()), math.hypot(*(e.stderr for e in layers.values()))
        held.append(abs(total - whole.value) <= 2 * math.hypot(stderr, whole.stderr))
    assert sum(held) >= 17


def test_every_block_has_the_method_that_suits_it() -> None:
    """Sketches where the spectrum decays, exactly where there is little to know, samples where few are asked for."""
    torch.manual_seed(0)
    objective = Objective(
        mlp(64, 20, 10).double(), [(x.double(), y) for x, y in labelled([60], 64, 10)], criterion=nn.CrossEntropyLoss()
    )
    for operator, sketch in ((Hessian(objective), "xtrace"), (GaussNewton(objective), "xnystrace")):
        groups = {"first": "0.weight", "last": "2.weight", "bias": "2.bias"}
        B = BlockDiagonal(operator, groups)
        dense = dense_blocks(B, operator @ torch.eye(objective.space.size, dtype=F64))
        found = block_traces(B, rtol=0.02, max_matvecs=120, seed=0)
        assert found["bias"].method == "exact" and found["bias"].matvecs == 10
        assert sketch in found["first"].method and sketch in found["last"].method
        for name, A in dense.items():
            slack = 1e-10 * abs(found[name].value)
            assert found[name].low - slack <= float(A.trace()) <= found[name].high + slack
        few = block_traces(B, min_matvecs=5, max_matvecs=5, memory=0, seed=0)
        assert {e.method for e in few.values()} == {"hutchinson"}


def test_layers_of_a_residual_network_are_worth_a_sketch() -> None:
    objective = Objective(resnet20(), digits(8), criterion=nn.CrossEntropyLoss())
    names = [name for name, p in objective.parameters.items() if p.ndim == 4]
    B = BlockDiagonal(Hessian(objective), {name: name for name in names[::9]})
    found = block_traces(B, rtol=0.02, max_matvecs=30, seed=0)
    plain = block_traces(B, rtol=0.02, max_matvecs=30, method="hutchinson", seed=0)
    for name, e in found.items():
        assert e.method == "xtrace" and e.converged and not plain[name].converged
        assert abs(e.value - plain[name].value) <= 2 * (plain[name].high - plain[name].low)


def test_same_seed_same_pairs_and_no_block_like_another() -> None:
    B = BlockDiagonal(Hessian(Objective(mlp(4, 4, 4, 3), labelled([9]), criterion=nn.CrossEntropyLoss())))
    first, second = (block_eigenpairs(B, tol=0.5, max_matvecs=2, seed=3) for _ in range(2))
    assert all(torch.equal(first[name].vectors, second[name].vectors) for name in first)
    assert not torch.equal(first["0"].vectors, first["2"].vectors)  # both have 20 entries


def test_bad_input_is_refused() -> None:
    objective = Objective(mlp(4, 5, 3), labelled([6]), criterion=nn.CrossEntropyLoss())
    hessian = Hessian(objective)
    with pytest.raises(SettingError, match=r"expected a BlockDiagonal, e\.g\. .*; got Hessian"):
        block_eigenpairs(hessian)
    with pytest.raises(SettingError, match=r"got Hessian"):
        block_traces(hessian)
    with pytest.raises(SettingError, match=r"rtol must be > 0"):
        block_traces(BlockDiagonal(hessian), rtol=0.0)
    B = BlockDiagonal(hessian)
    with pytest.raises(SettingError, match=r"k must be an integer between 1 and n"):
        block_eigenpairs(B, 0)
    with pytest.raises(SettingError, match=r"no block is called \['head'\]; there are \['0', '2'\]"):
        B.products({"head": torch.ones(3, 1)})
    with pytest.raises(SettingError, match=r"block '0' has 25 entries, its vectors 24"):
        B.products({"0": torch.ones(24, 1)})
    infinite = Objective(mlp(4, 5, 3), labelled([6]), loss_fn=lambda m, b: m(b[0]).sum() ** 3 * float("inf"))
    with pytest.raises(NonFiniteError):
        block_eigenpairs(BlockDiagonal(Hessian(infinite, "retained")), seed=0)
