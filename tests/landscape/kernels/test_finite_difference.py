"""Differences of gradients: the error they state, and the live model they pass over."""

import copy
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from landscape_cases import build, labelled, mlp, reference
from losscope.landscape import Hessian, Objective, SettingError, top_eigenpairs, trace
from losscope.landscape.kernels.finite_difference import FiniteDifference
from losscope.landscape.kernels.retained import Retained
from noted import Noted

CE = nn.CrossEntropyLoss()


def vectors(objective: Objective, k: int) -> Tensor:
    return torch.randn(objective.space.size, k, generator=torch.Generator().manual_seed(k)).to(objective.space.dtype)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_refused_with_the_parameter_and_the_way_out(dtype: torch.dtype) -> None:
    model = mlp(4, 5, 3)
    model[2].to(dtype)
    objective = Objective(model, labelled([6]), criterion=CE)
    for make in (FiniteDifference, lambda o: Hessian(o, "finite_difference")):
        with pytest.raises(SettingError, match=rf"2\.weight is {dtype}.*kernel=.retained."):
            make(objective)


def test_a_half_precision_layer_that_is_not_selected_does_not_matter() -> None:
    model = nn.Sequential(nn.Linear(4, 5).bfloat16(), nn.Tanh(), nn.Linear(5, 3))

    def forward(m: nn.Module, b: Any) -> Tensor:
        return m[2](m[1](m[0](b[0].bfloat16())).float())

    objective = Objective(model, labelled([6])[0], criterion=CE, forward=forward, targets=lambda b: b[1], params="2.*")
    V = vectors(objective, 2)
    expected = Retained(objective)(V)
    assert float((FiniteDifference(objective)(V) - expected).norm() / expected.norm()) <= 1e-3


def test_zero_vectors_and_zero_weights() -> None:
    model = nn.Linear(4, 3)
    with torch.no_grad():
        for p in model.parameters():
            p.zero_()
    objective = Objective(model, labelled([8]), criterion=CE)
    V = vectors(objective, 3)
    V[:, 1] = 0.0
    engine = FiniteDifference(objective)
    found, expected = engine(V), Retained(objective)(V)
    assert torch.equal(found[:, 1], torch.zeros(len(V)))
    norm = float(torch.linalg.matrix_norm(Retained(objective)(torch.eye(len(V))), 2))
    errors = (found - expected).norm(dim=0) / V.norm(dim=0).clamp(min=1e-30)
    assert float(errors.max()) <= engine.error * norm
    assert 0 < engine.error < 1e-2


@pytest.mark.parametrize("scale", [1e-15, 1e-6, 1e6, 1e15])
def test_the_length_of_a_vector_does_not_matter(scale: float) -> None:
    objective = Objective(mlp(4, 5, 3), labelled([8]), criterion=CE)
    engine, v = FiniteDifference(objective), vectors(objective, 1)
    torch.testing.assert_close(engine(scale * v) / scale, engine(v), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("scale", [1e-8, 1e8])
def test_the_error_is_relative_to_the_size_of_the_loss(scale: float) -> None:
    model, data = mlp(4, 5, 3).double(), [(x.double(), y) for x, y in labelled([8])]
    one = FiniteDifference(Objective(model, data, criterion=CE))
    scaled = FiniteDifference(Objective(model, data, criterion=lambda out, y: scale * F.cross_entropy(out, y)))
    V = vectors(one.objective, 2)
    torch.testing.assert_close(scaled(V) / scale, one(V), rtol=1e-6, atol=1e-8)
    assert scaled.error <= 1e-6


# --------------------------------------------------------------------------- the stated error


@pytest.mark.parametrize("name", ["uneven_batches", "batchnorm_train", "multihead_attention"])
def test_bounds_contain_the_dense_answer(name: str) -> None:
    _, _, H = reference(name)
    operator = Hessian(build(name, torch.float32).objective(), "finite_difference")
    result = top_eigenpairs(operator, tol=1e-2, seed=0)
    top = float(torch.linalg.eigvalsh(H)[-1])
    assert float(result.low[0]) <= top <= float(result.high[0])
    assert result.kernel == "finite_difference"
    stated = operator._kernels["finite_difference"].error
    assert operator.space.rounding >= stated > 0
    assert f"products within {stated:.1e} of the largest" == result.note
    assert float(result.residuals[0]) >= stated * top * 0.5  # a residual never hides the error
    estimate = trace(operator, seed=0)
    assert estimate.kernel == "finite_difference" and "products within" in estimate.note


def test_a_tolerance_below_the_error_is_not_called_converged() -> None:
    operator = Hessian(build("uneven_batches", torch.float32).objective(), "finite_difference")
    result = top_eigenpairs(operator, tol=5e-6, seed=0, max_matvecs=60)
    assert not result.converged
    assert float(result.residuals[0]) >= operator.space.rounding * abs(float(result.values[0]))


class Kinked(nn.Module):
    """Smooth along all but one parameter, whose kink is so near that every step crosses it."""

    def __init__(self) -> None:
        super().__init__()
        self.smooth, self.kinked = nn.Parameter(torch.ones(6)), nn.Parameter(torch.full((1,), 1e-9))

    def forward(self) -> Tensor:
        return self.smooth.square().sum() + 100.0 * self.kinked.abs().pow(1.5).sum()


def test_the_error_grows_when_a_later_vector_is_worse() -> None:
    objective = Objective(Kinked().double(), [torch.ones(1)], loss_fn=lambda m, _: m(), weight=lambda _: 1)
    engine = FiniteDifference(objective)
    smooth, kinked = torch.zeros(7, 1).double(), torch.zeros(7, 1).double()
    smooth[:6], kinked[6] = 1.0, 1.0
    engine.calibrate = lambda: None  # in a direction without the kink
    engine.step = 1e-4
    engine(smooth)
    before = engine.error
    assert before < 1e-6
    engine(kinked)
    assert engine.error > 1e-2 > before


def test_kinks_within_a_step_are_in_the_stated_error() -> None:
    model = nn.Sequential(nn.Linear(4, 32), nn.ReLU(), nn.Linear(32, 3))
    objective = Objective(model, (torch.randn(300, 4), torch.randint(3, (300,))), criterion=CE)
    engine, V = FiniteDifference(objective), vectors(objective, 8)
    H = Retained(objective)(torch.eye(objective.space.size))
    errors = (engine(V) - H @ V).norm(dim=0) / V.norm(dim=0)
    assert float(errors.max()) <= engine.error * float(torch.linalg.matrix_norm(H, 2))


# --------------------------------------------------------------------------- where it runs


def test_fused_attention_is_what_the_products_are_of() -> None:
    seen: list[bool] = []

    class Fused(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.qkv = nn.Linear(4, 12)

        def forward(self, x: Tensor) -> Tensor:
            q, k, v = self.qkv(x).unsqueeze(1).chunk(3, dim=-1)
            seen.append(torch.backends.cuda.flash_sdp_enabled())
            return F.scaled_dot_product_attention(q, k, v)

    objective = Objective(Fused(), [torch.randn(2, 5, 4)], loss_fn=lambda m, x: m(x).square().mean(), weight=len)
    V = vectors(objective, 2)
    with sdpa_kernel(SDPBackend.MATH):
        expected = Retained(objective)(V)
        seen.clear()
        found = FiniteDifference(objective)(V)
    assert all(seen)
    assert float((found - expected).norm() / expected.norm()) <= 1e-3


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_torch_modes_do_not_matter(context: Any) -> None:
    objective = Objective(mlp(4, 5, 3), labelled([6, 3]), criterion=CE)
    expected = FiniteDifference(objective)(vectors(objective, 2))
    with context():
        found = FiniteDifference(objective)(vectors(objective, 2))
    torch.testing.assert_close(found, expected, rtol=1e-2, atol=1e-3)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(FiniteDifference(objective)(vectors(objective, 2)), expected)


@pytest.mark.parametrize("fails", [False, True])
def test_live_parameters_stay_where_they_are_also_after_an_error(fails: bool) -> None:
    model = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Dropout(0.5), nn.Linear(5, 3)).train()
    calls = Noted()

    def loss_fn(m: nn.Module, b: Any) -> Tensor:
        calls.append(1)
        if fails and len(calls) > 7:
            raise RuntimeError("stop here")
        return F.cross_entropy(m(b[0]), b[1])

    objective = Objective(model, labelled([6]), loss_fn=loss_fn, mode="train")
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    before = copy.deepcopy(model.state_dict())
    marks = [(p.data_ptr(), p._version) for p in (*model.parameters(), *model.buffers())]
    state = torch.get_rng_state()
    if fails:
        with pytest.raises(RuntimeError, match="stop here"):
            FiniteDifference(objective)(vectors(objective, 2))
    else:
        assert math.isfinite(float(FiniteDifference(objective)(vectors(objective, 2)).sum()))
    assert [(p.data_ptr(), p._version) for p in (*model.parameters(), *model.buffers())] == marks
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(bool((p.grad == 1).all()) for p in model.parameters())
    assert torch.equal(torch.get_rng_state(), state)
    assert model.training


def test_the_model_trains_on_while_differences_are_used() -> None:
    objective = Objective(mlp(4, 5, 3), labelled([6]), criterion=CE)
    operator, V = Hessian(objective, "finite_difference"), vectors(objective, 1)
    before = operator @ V
    with torch.no_grad():
        objective.model[2].weight.mul_(2.0)
    expected = Retained(objective)(V)
    assert float((operator @ V - expected).norm() / expected.norm()) <= 1e-3
    assert float((before - expected).norm() / expected.norm()) > 1e-2
