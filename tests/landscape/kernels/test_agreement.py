"""Whether double backward is trusted: smooth and kinked losses agree, losses that lie to autograd do not."""

import contextlib
import copy
import math
import random
import re
import sys
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from custom_functions import DropsItsDerivative
from landscape_cases import CASES, build, labelled
from losscope.landscape import Hessian, Objective
from losscope.landscape.kernels.agreement import Agreement, agreement
from noted import Noted

CE, MSE = nn.CrossEntropyLoss(), nn.MSELoss()


def net(activation: type[nn.Module] = nn.Tanh) -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 8), activation(), nn.Linear(8, 3))


def classified() -> tuple[Tensor, Tensor]:
    return labelled([20])[0]


def regression() -> tuple[Tensor, Tensor]:
    return torch.randn(20, 4), torch.randn(20, 3)


# --------------------------------------------------------------------------- what agrees


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["double", "single"])
@pytest.mark.parametrize("name", CASES)
def test_every_case_agrees(name: str, dtype: torch.dtype) -> None:
    found = agreement(build(name, dtype).objective())
    assert found.status == "agrees", found.reason
    assert found.reason == ""
    assert math.isfinite(found.double_backward)


def test_a_single_parameter_is_no_reason_to_warn() -> None:
    """torch warns of numbers made from what requires a gradient, by default once in a process."""
    always = torch.is_warn_always_enabled()
    torch.set_warn_always(True)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            objective = Objective(nn.Linear(4, 3, bias=False), regression(), criterion=MSE)
            assert agreement(objective).status == "agrees"
    finally:
        torch.set_warn_always(always)


class Casts(nn.Module):
    """A model that computes a part of itself in a dtype of its own."""

    def __init__(self, inside: torch.dtype) -> None:
        super().__init__()
        self.first, self.last, self.inside = nn.Linear(4, 8), nn.Linear(8, 3), inside

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.first(x).to(self.inside).tanh().to(self.last.weight.dtype))


class NeedsSingle(nn.Module):
    """A model that casts its input, so that it runs in float32 only."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = net()

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x.float())


def _convolutions() -> Objective:
    layers = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(36, 3))
    return Objective(layers, (torch.randn(20, 1, 8, 8), torch.randint(3, (20,))), criterion=CE)


def _with_batchnorm() -> Objective:
    layers = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))
    return Objective(layers, classified(), criterion=CE, mode="train")


def _with_dropout() -> Objective:
    layers = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.5), nn.Tanh(), nn.Linear(8, 3))
    return Objective(layers, classified(), criterion=CE, mode="train")


def _deep() -> Objective:
    layers = [layer for _ in range(20) for layer in (nn.Linear(8, 8), nn.ReLU())]
    return Objective(
        nn.Sequential(*layers, nn.Linear(8, 3)), (torch.randn(64, 8), torch.randint(3, (64,))), criterion=CE
    )


def _in_bfloat16() -> Objective:
    x, y = classified()
    return Objective(net().bfloat16(), (x.bfloat16(), y), criterion=CE)


def _of_a_dict() -> Objective:
    x, y = classified()
    return Objective(net(), {"x": x, "y": y}, loss_fn=lambda m, b: F.cross_entropy(m(b["x"]), b["y"]))


def _scaled(factor: float, activation: type[nn.Module] = nn.Tanh) -> Objective:
    return Objective(net(activation), classified(), criterion=lambda out, y: factor * F.cross_entropy(out, y))


def _at_a_minimum() -> Objective:
    model, x = net(), torch.randn(20, 4)
    return Objective(model, (x, model(x).detach()), criterion=MSE)


def _zero_weights() -> Objective:
    model = nn.Linear(4, 3)
    with torch.no_grad():
        for p in model.parameters():
            p.zero_()
    return Objective(model, classified(), criterion=CE)


def _scripted(mode: str) -> Objective:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # torch.jit's of itself
        inner = torch.jit.script(nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8)))
    return Objective(nn.Sequential(inner, nn.Tanh(), nn.Linear(8, 3)), classified(), criterion=CE, mode=mode)


TRUSTED: dict[str, Callable[[], Objective]] = {
    "scripted": lambda: _scripted("eval"),
    "scripted in train mode": lambda: _scripted("train"),
    "relu": lambda: Objective(net(nn.ReLU), classified(), criterion=CE),
    "convolutions and max-pooling": _convolutions,
    "deep relu": _deep,
    "dropout in train mode": _with_dropout,
    "batch statistics": _with_batchnorm,
    "float32 inside a float64 model": lambda: Objective(
        Casts(torch.float32).double(), (torch.randn(20, 4).double(), torch.randint(3, (20,))), criterion=CE
    ),
    "float32 inside a float32 model": lambda: Objective(Casts(torch.float32), classified(), criterion=CE),
    "float32 only": lambda: Objective(NeedsSingle(), classified(), criterion=CE),
    "bfloat16": _in_bfloat16,
    "weights per sample": lambda: Objective(net(), classified(), criterion=CE).weighted(torch.rand(20)),
    "weights of both signs": lambda: Objective(net(), classified(), criterion=CE).weighted(torch.randn(20)),
    "dict": _of_a_dict,
    "1e8": lambda: _scaled(1e8),
    "1e-8": lambda: _scaled(1e-8),
    "1e-8 relu": lambda: _scaled(1e-8, nn.ReLU),
    "1e-30": lambda: _scaled(1e-30),
    "at a minimum": _at_a_minimum,
    "far from zero": lambda: Objective(net(), regression(), loss_fn=lambda m, b: m(b[0]).square().mean() + 1e8),
    "L1": lambda: Objective(net(), regression(), criterion=nn.L1Loss()),
    "zero weights": _zero_weights,
    "stop-gradient on a constant": lambda: Objective(
        net(), regression(), loss_fn=lambda m, b: (m(b[0]) - b[1].square().detach()).square().mean()
    ),
}


@pytest.mark.parametrize("name", TRUSTED)
def test_honest_losses_agree(name: str) -> None:
    found = agreement(TRUSTED[name]())
    assert found.status == "agrees", found.reason
    assert abs(found.double_backward) > 0


@pytest.mark.parametrize(
    "loss_fn",
    [lambda m, b: m(b[0]).mean(), lambda m, b: (0 * m(b[0])).sum() + 3.0, lambda m, b: m(b[0]).mean() + 1e6],
    ids=["linear", "constant", "linear and far from zero"],
)
def test_losses_without_curvature_agree_that_there_is_none(loss_fn: Callable[..., Tensor]) -> None:
    found = agreement(Objective(nn.Linear(4, 3), regression(), loss_fn=loss_fn))
    assert (found.status, found.double_backward, found.difference) == ("agrees", 0.0, 0.0)


class Counts(nn.Module):
    """A layer with a schedule: what it computes depends on how often it was called."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.calls = nn.Linear(4, 3), 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return self.linear(x).tanh() * self.calls


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=["double", "single", "half"])
def test_every_evaluation_is_of_the_same_function(dtype: torch.dtype) -> None:
    model, (x, y) = Counts().to(dtype), regression()
    found = agreement(Objective(model, (x.to(dtype), y.to(dtype)), criterion=MSE, mode="train"))
    assert found.status == "agrees", found.reason
    assert model.calls == 0


@pytest.mark.parametrize("loss_fn", [lambda m, b: _squared(m(b[0]), b), lambda m, b: _bootstrapped(m, b)])
def test_vectors_that_are_long_are_compared_piece_by_piece(
    loss_fn: Callable[..., Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, (x, y) = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3, bias=False)).double(), regression()
    objective = lambda: Objective(model, (x.double(), y.double()), loss_fn=loss_fn)  # noqa: E731
    before = [(p.detach().clone(), p._version) for p in model.parameters()]
    whole = agreement(objective())
    monkeypatch.setattr(sys.modules[Agreement.__module__], "_PIECE", 10)
    in_pieces = agreement(objective())
    assert in_pieces.status == whole.status in ("agrees", "ambiguous")
    assert in_pieces.double_backward != whole.double_backward  # another direction, drawn tensor by tensor
    assert all(torch.equal(p, t) and p._version == v for p, (t, v) in zip(model.parameters(), before, strict=True))


# --------------------------------------------------------------------------- what does not


class _Rounds(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.round()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad


class _Reversed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return -grad


class _WrongFactor(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.square()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return 2.5 * ctx.saved_tensors[0] * grad


def _squared(values: Tensor, b: Any) -> Tensor:
    return (values - b[1]).square().mean()


def _bootstrapped(m: nn.Module, b: Any) -> Tensor:
    q = m(b[0])
    return (q - b[1] - 0.9 * q.detach().roll(1, 0)).square().mean()


def _rounded_by_detaching(m: nn.Module, b: Any) -> Tensor:
    hidden = 3 * m[1](m[0](b[0]))
    return _squared(m[2](hidden + (hidden.round() - hidden).detach()), b)


DOUBTED: dict[str, Callable[[nn.Module, Any], Tensor]] = {
    "bootstrapped target": _bootstrapped,
    "detached term": lambda m, b: _squared(m(b[0]), b) + m(b[0]).square().mean().detach(),
    "rounding in a custom function": lambda m, b: _squared(m[2](_Rounds.apply(3 * m[1](m[0](b[0])))), b),
    "rounding by detaching": _rounded_by_detaching,
    "wrong factor before linear": lambda m, b: _WrongFactor.apply(m(b[0])).mean(),
    "wrong factor before curved": lambda m, b: _WrongFactor.apply(m(b[0])).square().mean(),
    "reversal inside": lambda m, b: _squared(m[2](_Reversed.apply(m[1](m[0](b[0])))), b),
    "reversal of the outputs": lambda m, b: _squared(_Reversed.apply(m(b[0])), b),
    "reversal of the loss": lambda m, b: _Reversed.apply(_squared(m(b[0]), b)),
    "own derivative dropped before linear": lambda m, b: DropsItsDerivative.apply(m(b[0])).mean(),
    "own derivative dropped before curved": lambda m, b: DropsItsDerivative.apply(m(b[0])).square().mean(),
}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["double", "single"])
@pytest.mark.parametrize("name", DOUBTED)
def test_what_lies_to_autograd_is_ambiguous_and_names_both_values(name: str, dtype: torch.dtype) -> None:
    x, y = regression()
    found = agreement(Objective(net().to(dtype), (x.to(dtype), y.to(dtype)), loss_fn=DOUBTED[name]))
    assert found.status == "ambiguous"
    values = [float(number) for number in re.findall(r"(?:= |give |by )(-?\d+\.?\d*(?:e[-+]\d+)?)", found.reason)]
    assert len(values) == 2, found.reason
    assert abs(values[0] - values[1]) > 1e-3 * abs(values[0])
    assert math.isfinite(found.double_backward)
    if math.isfinite(found.difference):  # products differ; else slopes do
        assert values == pytest.approx([found.double_backward, found.difference], rel=1e-4)


@pytest.mark.parametrize("dim", [0, 1, None])
@pytest.mark.parametrize("old", [False, True], ids=["parametrization", "old"])
def test_weight_norm_has_the_hessian_of_what_it_computes(old: bool, dim: int | None) -> None:
    """Torch's own double backward (2.15) takes the norm for a constant: a third off, and not symmetric."""
    x, y = (t.double() if t.is_floating_point() else t for t in classified())
    axes = [i for i in (0, 1) if i != dim]
    layer = nn.Linear(4, 3).double()
    with contextlib.nullcontext() if not old else pytest.warns(FutureWarning, match="weight_norm"):
        (nn.utils.weight_norm if old else nn.utils.parametrizations.weight_norm)(layer, dim=dim)
    shapes = [p.shape for p in layer.parameters()]

    def by_hand(theta: Tensor) -> Tensor:
        pieces = theta.split([shape.numel() for shape in shapes])
        b, g, v = (piece.view(shape) for piece, shape in zip(pieces, shapes, strict=True))
        return CE(x @ (g * v / v.square().sum(axes, keepdim=True).sqrt()).T + b, y)

    expected = torch.autograd.functional.hessian(by_hand, torch.cat([p.detach().flatten() for p in layer.parameters()]))
    objective = Objective(layer, (x, y), criterion=CE)
    torch.testing.assert_close(Hessian(objective) @ torch.eye(len(expected)).double(), expected)
    assert agreement(objective).status == "agrees"
    assert torch._weight_norm is sys.modules["torch.nn.utils.weight_norm"]._weight_norm
    assert torch._weight_norm.__module__ != "losscope.landscape.isolation"


@pytest.mark.parametrize("scale", [1e-8, 1.0, 1e8])
def test_ambiguity_does_not_depend_on_the_scale_of_the_loss(scale: float) -> None:
    objective = Objective(net(), regression(), loss_fn=lambda m, b: scale * _bootstrapped(m, b))
    assert agreement(objective).status == "ambiguous"


def test_the_value_by_differences_is_the_jacobian_of_the_gradient() -> None:
    """Half the square of (q - stop(q)/2): the gradient is q/2, and its derivative 1/2, where double backward says 1."""
    model = nn.Linear(1, 1, bias=False).double()

    def loss_fn(m: nn.Module, x: Tensor) -> Tensor:
        q = m(x)
        return 0.5 * (q - 0.5 * q.detach()).square().mean()

    found = agreement(Objective(model, [torch.ones(4, 1).double()], loss_fn=loss_fn))
    assert found.status == "ambiguous"
    assert found.double_backward == pytest.approx(1.0, rel=1e-6)
    assert found.difference == pytest.approx(0.5, rel=1e-6)


# --------------------------------------------------------------------------- what cannot be told


@pytest.mark.parametrize("factor", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_is_unverified_without_a_warning(factor: float) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = agreement(Objective(net(), regression(), loss_fn=lambda m, b: factor * m(b[0]).square().mean()))
    assert found.status == "unverified"
    assert ("nan" if math.isnan(factor) else "inf") in found.reason


@pytest.mark.parametrize("activation", [nn.Tanh, nn.ReLU])
@pytest.mark.parametrize("seed", range(12))
def test_casting_down_is_not_taken_for_a_stopped_gradient(seed: int, activation: type[nn.Module]) -> None:
    """Logits in float32, autocast inside the model: their rounding is far above a step of a float64 difference."""
    torch.manual_seed(seed)
    layers = net(activation)

    def in_autocast(m: nn.Module, x: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return m(x).float()

    for forward in (lambda m, b: m(b[0]).float(), lambda m, b: in_autocast(m, b[0])):
        objective = Objective(layers, classified(), criterion=CE, forward=forward, targets=lambda b: b[1])
        found = agreement(objective)
        assert found.status == "agrees", found.reason
    stopped = Objective(layers, regression(), loss_fn=lambda m, b: _bootstrapped(lambda x: m(x).float(), b))
    assert agreement(stopped).status == "ambiguous"


def test_captured_parameters_are_unverified() -> None:
    """They cannot be moved through the model, so that nothing was compared."""
    model = nn.Linear(4, 3)
    live = list(model.parameters())
    objective = Objective(
        model, regression(), loss_fn=lambda m, b: m(b[0]).square().mean() + sum(p.square().sum() for p in live)
    )
    found = agreement(objective)
    assert found.status == "unverified"
    assert "holds on to the parameter weight" in found.reason


def test_no_second_derivative_is_unverified_with_the_reason() -> None:
    found = agreement(Objective(net(), classified(), criterion=nn.MultiMarginLoss()))
    assert found.status == "unverified"
    assert "multi_margin_loss_backward" in found.reason


# --------------------------------------------------------------------------- cost and traces


def test_one_comparison_serves_an_objective_and_its_snapshots() -> None:
    seen = Noted()

    def loss_fn(m: nn.Module, b: Any) -> Tensor:
        seen.append(len(b[0]))
        return m(b[0]).square().mean()

    x = torch.randn(500, 4)
    objective = Objective(net(), (x, x), loss_fn=loss_fn)
    first = agreement(objective)
    assert max(seen) <= 16
    assert len(seen) <= 6
    seen.clear()
    assert agreement(objective) is first
    assert agreement(objective.snapshot(3)) is first
    assert not seen


@pytest.mark.parametrize("flattened", [False, True])
def test_a_few_samples_are_enough_also_where_targets_are_flattened(flattened: bool) -> None:
    seen = Noted()

    def forward(m: nn.Module, b: Any) -> Tensor:
        seen.append(len(b[0]))
        return m(b[0]).flatten(0, 1) if flattened else m(b[0]).mean(dim=1)

    x, y = torch.randn(50, 6, 4), torch.randint(3, (300 if flattened else 50,))
    weight = lambda b: b[1].numel()  # noqa: E731
    checked = Objective(net(), (x, y), forward=forward, targets=lambda b: b[1], criterion=CE, weight=weight)
    assert agreement(checked).status == "agrees"
    assert len(seen) == 2 and set(seen) == {4}


@pytest.mark.parametrize("loss_fn", [DOUBTED["bootstrapped target"], lambda m, b: m(b[0]).square().mean() * math.nan])
def test_no_trace_is_left(loss_fn: Callable[..., Tensor]) -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.5), nn.Linear(8, 3)).train()
    for p in model.parameters():
        p.grad = torch.full_like(p, 7.0)
    before = copy.deepcopy(model.state_dict())
    pointers = [(p.data_ptr(), p._version, p.dtype) for p in model.parameters()]
    x, y = regression()
    data = (x.clone(), y.clone())
    streams = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()  # noqa: NPY002
    agreement(Objective(model, data, loss_fn=loss_fn, mode="train"))
    assert torch.equal(torch.get_rng_state(), streams[0])
    assert random.getstate() == streams[1]
    assert (np.random.get_state()[1] == streams[2]).all()  # noqa: NPY002
    assert all(torch.equal(a, before[name]) for name, a in model.state_dict().items())
    assert [(p.data_ptr(), p._version, p.dtype) for p in model.parameters()] == pointers
    assert all(bool((p.grad == 7.0).all()) for p in model.parameters())
    assert model.training
    assert torch.equal(data[0], x) and torch.equal(data[1], y)
