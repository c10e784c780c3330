"""Scaled curvature against dense matrices, and that each measure is invariant to what it claims, and to no more."""

import copy
import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from losscope.landscape import (
    Hessian,
    Objective,
    ParameterError,
    SettingError,
    average_sharpness,
    sam_sharpness,
)
from losscope.landscape.surface import neighbourhood, relative_flatness, scaled_curvature
from losscope.landscape.surface.weight_scales import SCALES, scale_of

F64 = torch.float64


def relu_net() -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3)).double()


def normalised_net() -> nn.Sequential:
    """Every layer's scale is taken out by a BatchNorm without gain."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return nn.Sequential(
            nn.Linear(4, 6, bias=False), nn.BatchNorm1d(6, eps=1e-30, affine=False), nn.Tanh(),
            nn.Linear(6, 3, bias=False), nn.BatchNorm1d(3, eps=1e-30, affine=False),
        ).double()  # fmt: skip


def objective_of(model: nn.Module) -> Objective:
    generator = torch.Generator().manual_seed(2)
    x, y = torch.randn(50, 4, generator=generator, dtype=F64), torch.randint(3, (50,), generator=generator)
    return Objective(model, [(x, y)], criterion=nn.CrossEntropyLoss(), mode="train")


def dense(objective: Objective) -> Tensor:
    return Hessian(objective) @ torch.eye(objective.space.size, dtype=F64)


# --------------------------------------------------------------------------- rescalings


def whole(model: nn.Sequential) -> None:
    for p in model.parameters():
        p.data *= 3.0


def layers(model: nn.Sequential) -> None:
    """ReLU layers by 3 and by a third of that; biases along with what they are added to."""
    model[0].weight.data *= 3.0
    model[0].bias.data *= 3.0
    model[2].bias.data *= 6.0
    model[2].weight.data *= 2.0
    model[4].weight.data /= 6.0


def tensors(model: nn.Sequential) -> None:
    model[0].weight.data *= 5.0
    model[3].weight.data *= 0.3


def rows(model: nn.Sequential) -> None:
    """Each filter in front of its normalisation."""
    model[0].weight.data *= torch.linspace(0.5, 4.0, 6, dtype=F64)[:, None]


def units(model: nn.Sequential) -> None:
    """Each hidden ReLU unit: what comes in times a number, what goes out divided by it."""
    a = torch.linspace(0.5, 4.0, 6, dtype=F64)
    model[0].weight.data *= a[:, None]
    model[0].bias.data *= a
    model[2].weight.data /= a


RESCALINGS: dict[str, tuple[Callable[[], nn.Sequential], Callable[[nn.Sequential], None], str]] = {
    "whole": (normalised_net, whole, "model"),
    "layers": (relu_net, layers, "layer"),
    "tensors": (normalised_net, tensors, "layer"),
    "rows": (normalised_net, rows, "filter"),
    "units": (relu_net, units, "entry"),
}


def pair(name: str) -> tuple[Objective, Objective, str]:
    build, rescale, kind = RESCALINGS[name]
    before = build()
    after = copy.deepcopy(before)
    rescale(after)
    return objective_of(before), objective_of(after), kind


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("name", RESCALINGS)
def test_curvature_is_invariant_to_what_it_claims_and_to_no_more(name: str, scale: str) -> None:
    before, after, kind = pair(name)
    assert math.isclose(before.value(), after.value(), rel_tol=1e-12)  # the same function
    (first, second) = (scaled_curvature(o, scale, tol=1e-6) for o in (before, after))
    largest = [float(found.largest.values[0]) for found in (first, second)]
    exact = [float((dense(o).diagonal() * scale_of(o, scale) ** 2).sum()) for o in (before, after)]
    for found, by_hand in zip((first, second), exact, strict=True):
        assert found.trace.low - 1e-9 <= by_hand <= found.trace.high + 1e-9
    same = [math.isclose(*numbers, rel_tol=1e-6) for numbers in (largest, exact)]
    assert same == [kind in first.invariant_to] * 2


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("name", RESCALINGS)
def test_so_are_rises_at_any_radius(name: str, scale: str) -> None:
    before, after, kind = pair(name)
    rho = 0.3 / float(scale_of(before, scale).max())
    worst = [sam_sharpness(o, rho, steps=3, scale=scale).value for o in (before, after)]
    average = [average_sharpness(o, rho, scale=scale, max_pairs=32).rises[0].value for o in (before, after)]
    claimed = scaled_curvature(before, scale).invariant_to
    assert [math.isclose(*numbers, rel_tol=1e-6) for numbers in (worst, average)] == [kind in claimed] * 2


@pytest.mark.parametrize("name", ["whole", "layers", "tensors", "rows", "units"])
def test_relative_flatness_is_invariant_but_for_single_inputs(name: str) -> None:
    before, after, _ = pair(name)
    layer = "2.weight" if name in ("layers", "units") else "0.weight"
    first, second = (relative_flatness(o, layer).value for o in (before, after))
    assert math.isclose(first, second, rel_tol=1e-6) == (name != "units")  # its inputs, each by another number
    assert not math.isclose(*(float(dense(o).trace()) for o in (before, after)), rel_tol=1e-2)
    if name == "units":
        assert math.isclose(*(relative_flatness(o, "0.weight").value for o in (before, after)), rel_tol=1e-6)


# --------------------------------------------------------------------------- values


@pytest.mark.parametrize("layer", ["0.weight", "2.weight", "4.weight"])
def test_relative_flatness_by_its_definition(layer: str) -> None:
    objective = objective_of(relu_net())
    H, names = dense(objective), objective.space.names
    (rows_,) = objective.space.rows([names.index(layer)])
    W = objective.parameters[layer].detach()
    d, m = W.shape
    block = H[rows_, rows_].view(d, m, d, m)
    exact = sum(float(W[s] @ W[t]) * float(block[s, :, t, :].trace()) for s in range(d) for t in range(d))
    found = relative_flatness(objective, layer)
    assert found.low - 1e-9 <= exact <= found.high + 1e-9
    assert math.isclose(found.value, exact, rel_tol=0.05)


def test_relative_flatness_of_a_convolution_takes_filters_as_rows() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv2d(2, 3, 2), nn.Tanh(), nn.Flatten(), nn.Linear(12, 2)).double()
        x, y = torch.randn(6, 2, 3, 3, dtype=F64), torch.randn(6, 2, dtype=F64)
    objective = Objective(model, [(x, y)], criterion=nn.MSELoss(), params="0.weight")
    K = model[0].weight.detach().flatten(1) @ model[0].weight.detach().flatten(1).T
    exact = float((dense(objective) * torch.kron(K, torch.eye(8, dtype=F64))).sum())
    assert math.isclose(relative_flatness(objective, model[0].weight).value, exact, rel_tol=0.05)


def test_largest_eigenvalues_are_dense_ones() -> None:
    objective = objective_of(relu_net())
    H = dense(objective)
    for scale in SCALES:
        T = torch.diag(scale_of(objective, scale))
        exact = float(torch.linalg.eigvalsh(T @ H @ T)[-1])
        assert math.isclose(float(scaled_curvature(objective, scale).largest.values[0]), exact, rel_tol=1e-3)


def test_all_together_over_the_same_lengths() -> None:
    objective = objective_of(relu_net())
    found = neighbourhood(objective, [0.1, 0.001, 0.01], scale="filter", steps=2, max_pairs=32)
    torch.testing.assert_close(found.average.lengths, torch.tensor([0.001, 0.01, 0.1], dtype=F64))
    assert [ball.radius for ball in found.worst] == [0.001, 0.01, 0.1]
    assert found.average.scale == found.curvature.scale == found.worst[0].scale == "filter"
    assert found.average.trace is not None
    assert found.average.trace.low < found.curvature.trace.high and found.average.trace.high > found.curvature.trace.low
    assert all(ball.value >= rise.low for ball, rise in zip(found.worst, found.average.rises, strict=True))
    assert repr(found).startswith("Neighbourhood(AverageSharpness(3 radii")


def test_errors() -> None:
    objective = objective_of(relu_net())
    with pytest.raises(SettingError, match=r"one parameter of two or more dimensions; got 0.bias \(6,\)"):
        relative_flatness(objective, "0.bias")
    with pytest.raises(SettingError, match="one parameter of two or more dimensions"):
        relative_flatness(objective, "*.weight")
    with pytest.raises(ParameterError):
        relative_flatness(objective, "9.weight")
    with pytest.raises(SettingError, match="lengths must be positive and finite"):
        neighbourhood(objective, [0.1, 0.0])
    with pytest.raises(SettingError, match="scale must be one of"):
        scaled_curvature(objective, "relative")
