"""Every block's spectral density in one call, against the blocks of dense float64 matrices."""

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
    SpectralDensity,
    block_densities,
    spectral_density,
    trace,
)
from residual import digits, resnet20

F64 = torch.float64
CASES = ["batchnorm_eval", "uneven_batches", "tied_weights", "scaled_dot_product_attention", "linear_unused_bias"]


def spectra(B: BlockDiagonal, H: Tensor) -> dict[str, Tensor]:
    """Eigenvalues of the dense blocks."""
    rows = {name: torch.cat([torch.arange(s.start, s.stop) for s in block._rows]) for name, block in B.blocks.items()}
    return {name: torch.linalg.eigvalsh(H[r][:, r]) for name, r in rows.items()}


def transport(found: SpectralDensity, exact: Tensor) -> float:
    """The Wasserstein-1 distance to a spectrum: the area between the distribution functions."""
    places = torch.cat((found.nodes, exact)).sort().values
    F = torch.zeros(len(places) - 1, dtype=F64)
    for i, x in enumerate(places[:-1]):
        F[i] = found.weights[found.nodes <= x].sum() - (exact <= x).double().mean()
    return float((F.abs() * places.diff()).sum())


@pytest.mark.parametrize("name", CASES)
def test_blocks_with_no_more_entries_than_products_are_exact(name: str) -> None:
    H = reference(name)[2]
    B = BlockDiagonal(Hessian(build(name).objective()))
    found = block_densities(B, vectors=8, steps=64, seed=0)
    assert list(found) == list(B.blocks)
    for layer, exact in spectra(B, H).items():
        density = found[layer]
        assert density.size == len(exact) and density.matvecs == len(exact)
        assert transport(density, exact) <= 1e-10 * float(H.norm())
        assert density.wasserstein <= 1e-8 * max(1.0, float(H.norm()))


def test_a_bias_of_one_entry() -> None:
    """One eigenvalue, the entry itself, beside a layer that is sampled."""
    torch.manual_seed(0)
    x, y = torch.randn(30, 40, dtype=F64), torch.randn(30, 1, dtype=F64)
    hessian = Hessian(Objective(nn.Linear(40, 1).double(), (x, y), criterion=nn.MSELoss()))
    found = block_densities(BlockDiagonal(hessian, {"weight": "weight", "bias": "bias"}), vectors=2, steps=5, seed=0)
    assert found["bias"].size == 1 and found["bias"].matvecs == 1
    torch.testing.assert_close(found["bias"].nodes, torch.tensor([2.0], dtype=F64))
    assert torch.equal(found["bias"].weights, torch.ones(1, dtype=F64)) and found["bias"].wasserstein <= 1e-12
    assert found["weight"].matvecs == 10
    assert transport(found["weight"], torch.linalg.eigvalsh(2 / 30 * x.T @ x)) <= found["weight"].wasserstein


def test_densities_of_layers_are_within_their_bounds() -> None:
    """Twenty seeds, every layer: the bound holds for 95 % at least, and says something."""
    torch.manual_seed(0)
    model = mlp(12, 20, 15, 4).double()
    x = torch.randn(40, 12, dtype=F64)
    objective = Objective(model, (x, torch.randint(4, (40,))), criterion=nn.CrossEntropyLoss())
    hessian = Hessian(objective)
    B = BlockDiagonal(hessian)
    exact = spectra(B, hessian @ torch.eye(objective.space.size, dtype=F64))
    held, ratios = [], []
    for seed in range(20):
        for layer, density in block_densities(B, vectors=2, steps=12, seed=seed).items():
            error = transport(density, exact[layer])
            assert density.matvecs == 24 and density.size == len(exact[layer])
            held.append(error <= density.wasserstein)
            ratios.append(density.wasserstein / float(exact[layer].abs().max()))
    assert np.mean(held) >= 0.95
    assert np.median(ratios) <= 0.2


def test_one_call_is_what_each_block_would_have_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    objective = Objective(mlp(12, 20, 15, 4).double(), labelled([9, 4], 12, 4), criterion=nn.CrossEntropyLoss())
    objective.data = [(x.double(), y) for x, y in objective.data]
    B = BlockDiagonal(GaussNewton(objective), {"first": "0.*", "bias": "4.bias", "rest": ["2.*", "4.weight"]})
    seeds = torch.randint(2**62, (3,), generator=torch.Generator().manual_seed(5)).tolist()
    found = block_densities(B, vectors=3, steps=10, seed=5)
    for seed, (name, block) in zip(seeds, B.blocks.items(), strict=True):
        alone = spectral_density(block, vectors=3, steps=10, seed=seed)
        torch.testing.assert_close(found[name].nodes, alone.nodes, rtol=1e-6, atol=1e-9)
        torch.testing.assert_close(found[name].weights, alone.weights, rtol=1e-5, atol=1e-9)
        assert found[name].matvecs == alone.matvecs and found[name].kernel == alone.kernel
    assert len(found["bias"].nodes) == 4


@pytest.mark.parametrize("options", [{"deflate": 3}, {"deflate": 0}, {"rtol": 0.02}, {"memory": 0}], ids=str)
def test_options_of_the_density_reach_every_block(options: dict) -> None:
    torch.manual_seed(0)
    objective = Objective(
        nn.Sequential(nn.Linear(12, 20), nn.Tanh(), nn.Linear(20, 2), nn.Tanh(), nn.Linear(2, 1)).double(),
        (torch.randn(30, 12, dtype=F64), torch.randn(30, 1, dtype=F64)), criterion=nn.MSELoss(),
    )  # fmt: skip
    hessian = Hessian(objective)
    B = BlockDiagonal(hessian)
    exact = spectra(B, hessian @ torch.eye(objective.space.size, dtype=F64))
    found = block_densities(B, vectors=2, steps=10, seed=1, **options)
    for layer, density in found.items():
        assert transport(density, exact[layer]) <= max(density.wasserstein, 1e-9)
        if "rtol" in options and density.converged:
            assert density.wasserstein <= 0.02 * float(exact[layer].abs().max()) * 1.01
    if options.get("deflate") == 3:
        assert len(found["0"].deflated) >= 3 and len(found["4"].deflated) <= 3  # the last has three entries


def test_traces_of_the_layers_add_up_to_the_whole() -> None:
    images, labels = digits(48)
    model = nn.Sequential(nn.Conv2d(1, 6, 3), nn.Tanh(), nn.MaxPool2d(4), nn.Flatten(), nn.Linear(54, 10))
    data = [(images[:30], labels[:30]), (images[30:], labels[30:])]
    hessian = Hessian(Objective(model, data, criterion=nn.CrossEntropyLoss()))
    whole = trace(hessian, method="exact", max_matvecs=hessian.shape[0])
    held = []
    for seed in range(20):
        found = block_densities(BlockDiagonal(hessian), vectors=4, steps=12, seed=seed)
        traces = [density.trace for density in found.values()]
        total = sum(t.value for t in traces)
        half = math.hypot(*((t.high - t.low) / 2 for t in traces))
        held.append(abs(total - whole.value) <= half + 1e-4 * abs(whole.value))
    assert sum(held) >= 17


def test_all_layers_of_a_residual_network() -> None:
    hessian = Hessian(Objective(resnet20(), digits(8), criterion=nn.CrossEntropyLoss()))
    B = BlockDiagonal(hessian)
    found = block_densities(B, vectors=2, steps=3, seed=0)
    assert len(found) == 39 and all(math.isclose(float(d.weights.sum()), 1, rel_tol=1e-6) for d in found.values())
    assert all(density.size == B.blocks[name].space.size for name, density in found.items())
    assert sum(density.matvecs for density in found.values()) == 39 * 6


def test_same_seed_same_density_and_no_block_like_another() -> None:
    B = BlockDiagonal(Hessian(Objective(mlp(4, 4, 4, 3), labelled([9]), criterion=nn.CrossEntropyLoss())))
    first, second = (block_densities(B, vectors=2, steps=4, seed=3) for _ in range(2))
    assert all(torch.equal(first[name].nodes, second[name].nodes) for name in first)
    state = torch.get_rng_state()
    block_densities(B, vectors=2, steps=4)
    assert torch.equal(state, torch.get_rng_state())


def test_bad_input_is_refused() -> None:
    objective = Objective(mlp(4, 5, 3), labelled([6]), criterion=nn.CrossEntropyLoss())
    hessian = Hessian(objective)
    with pytest.raises(SettingError, match=r"expected a BlockDiagonal, e\.g\. .*; got Hessian"):
        block_densities(hessian)
    with pytest.raises(SettingError, match=r"steps"):
        block_densities(BlockDiagonal(hessian), steps=1)
    with pytest.raises(SettingError, match=r"vectors"):
        block_densities(BlockDiagonal(hessian), vectors=0)
    infinite = Objective(mlp(4, 5, 3), labelled([6]), loss_fn=lambda m, b: m(b[0]).sum() ** 3 * float("inf"))
    with pytest.raises(NonFiniteError):
        block_densities(BlockDiagonal(Hessian(infinite, "retained")), seed=0)


def test_blocks_a_little_larger_than_the_products_for_them() -> None:
    values = 0.55 ** torch.arange(20.0, dtype=F64)
    model = nn.Linear(20, 1, bias=False).double()
    inputs = torch.diag((20 * values / 2).sqrt())
    layers = BlockDiagonal(Hessian(Objective(model, (inputs, torch.zeros(20, 1, dtype=F64)), criterion=nn.MSELoss())))
    for seed in range(12):
        (density,) = block_densities(layers, vectors=4, steps=4, seed=seed).values()
        assert density.starts and transport(density, values.sort().values) <= density.wasserstein
