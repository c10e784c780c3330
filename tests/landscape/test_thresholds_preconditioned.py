"""Thresholds of optimizers with a preconditioner: frozen, they decay just below and grow just above them."""

import pytest
import torch
from torch import nn
from torch.optim import SGD

from descents import parameter
from losscope.landscape import Hessian, Objective, ParameterError, Preconditioned, SettingError, top_eigenpairs
from losscope.landscape.stability import stability_threshold, step_preconditioner

LR, SECOND = 0.01, 0.81  # rate, and second moment: P = 0.9 but for centering


LATE, SLOW = 1e15, 1 - 1e-13  # steps made, and a memory of the second moment that does not move


ADAPTIVE = {
    "Adam": (torch.optim.Adam, {"betas": (0.9, SLOW)}, 3.8 / 0.1),
    "Adam 0.5": (torch.optim.Adam, {"betas": (0.5, SLOW)}, 3.0 / 0.5),
    "Adam, L2": (torch.optim.Adam, {"betas": (0.9, SLOW), "weight_decay": 100.0}, 38.0),
    "AMSGrad": (torch.optim.Adam, {"betas": (0.9, SLOW), "amsgrad": True}, 38.0),
    "AdamW": (torch.optim.AdamW, {"betas": (0.9, SLOW), "weight_decay": 1.0}, 1.9 * 1.99 / 0.1),
    "AdamW 10": (torch.optim.AdamW, {"betas": (0.8, SLOW), "weight_decay": 10.0}, 1.8 * 1.9 / 0.2),
    "NAdam": (torch.optim.NAdam, {"betas": (0.9, SLOW)}, 3.8 / 0.1 / 2.8),
    "NAdam, L2": (torch.optim.NAdam, {"betas": (0.9, SLOW), "weight_decay": 50.0}, 3.8 / 0.1 / 2.8),
    "NAdam, decoupled": (
        torch.optim.NAdam,
        {"betas": (0.9, SLOW), "weight_decay": 5.0, "decoupled_weight_decay": True},
        1.9 * 1.95 / 0.1 / 2.8,
    ),
    "RMSprop": (torch.optim.RMSprop, {"alpha": SLOW}, 2.0),
    "RMSprop, L2": (torch.optim.RMSprop, {"alpha": SLOW, "weight_decay": 20.0}, 2.0),
    "RMSprop, momentum": (torch.optim.RMSprop, {"alpha": SLOW, "momentum": 0.9}, 3.8),
    "RMSprop, centered": (torch.optim.RMSprop, {"alpha": SLOW, "centered": True, "momentum": 0.5}, 3.0),
    "Adagrad": (torch.optim.Adagrad, {}, 2.0),
    "Adagrad, L2": (torch.optim.Adagrad, {"weight_decay": 10.0}, 2.0),
}


def freeze(optimizer: torch.optim.Optimizer, second: torch.Tensor) -> None:
    """Set the state that the preconditioner is made of, late in a run."""
    for p, state in optimizer.state.items():
        for name in ("exp_avg_sq", "max_exp_avg_sq", "square_avg"):
            if name in state:
                state[name].copy_(second)
        if "sum" in state:  # grows by squared gradients, which are nothing beside it
            state["sum"].copy_(1e24 * second)
        elif "step" in state:
            state["step"].fill_(LATE)
        if "mu_product" in state:
            state["mu_product"].fill_(0.0)
        if "grad_avg" in state:
            state["grad_avg"].copy_(0.5 * torch.ones_like(p))


def frozen(name: str, size: int, second: torch.Tensor) -> tuple[torch.optim.Optimizer, nn.Parameter]:
    cls, options, _ = ADAPTIVE[name]
    p = nn.Parameter(torch.full((size,), 1e-9, dtype=torch.float64))
    optimizer = cls([p], lr=LR, eps=1e-20, **options)
    p.grad = torch.zeros_like(p)
    optimizer.step()
    freeze(optimizer, second)
    return optimizer, p


def course(name: str, hessian: torch.Tensor, second: torch.Tensor) -> str:
    """What the optimizer, frozen, makes of w'Hw/2 within some thousand steps."""
    optimizer, p = frozen(name, len(second), second)
    with torch.no_grad():
        p.fill_(1e-9)
    recent = []
    for _ in range(6000):
        recent = [*recent[-3:], float(p.detach().norm())]
        if recent[-1] > 1e-6:
            return "grows"
        if len(recent) == 4 and max(recent) < 1e-12:
            return "decays"
        p.grad = hessian @ p.detach()
        optimizer.step()
        freeze(optimizer, second)
    return "neither"


@pytest.mark.parametrize("name", ADAPTIVE)
def test_frozen_adaptive_optimizers_decay_just_below_and_grow_just_above(name: str) -> None:
    second = torch.full((1,), SECOND, dtype=torch.float64)
    optimizer, p = frozen(name, 1, second)
    threshold = stability_threshold(optimizer)
    assert threshold.preconditioned and threshold.value == pytest.approx(ADAPTIVE[name][2] / LR, rel=1e-9)
    objective = Objective(Point(p), [torch.zeros(1)], loss_fn=lambda model, _: model.p.square().sum())
    P = step_preconditioner(optimizer, objective)["p"]
    assert float(P) == pytest.approx(
        {"Adagrad": 0.9e12, "RMSprop, centered": (SECOND - 0.25) ** 0.5}.get(name.split(", L2")[0], 0.9), rel=1e-9
    )
    group = optimizer.param_groups[0]
    decay = 0.0 if group.get("decoupled_weight_decay") else group["weight_decay"]
    for factor, expected in ((0.99, "decays"), (1.01, "grows")):
        curvature = factor * threshold.value * float(P) - decay
        assert course(name, torch.tensor([[curvature]], dtype=torch.float64), second) == expected


@pytest.mark.parametrize("name", ["Adam", "NAdam", "RMSprop, momentum", "Adagrad", "AdamW"])
def test_the_top_eigenvalue_of_the_preconditioned_hessian_decides(name: str) -> None:
    """Three coordinates that P scales differently, coupled."""
    generator = torch.Generator().manual_seed(3)
    second = torch.tensor([0.01, 1.0, 25.0], dtype=torch.float64)
    half = torch.randn(3, 3, generator=generator, dtype=torch.float64)
    optimizer, p = frozen(name, 3, second)
    matrix = half @ half.T

    def loss(model: nn.Module, _: object) -> torch.Tensor:
        return 0.5 * model.p @ matrix @ model.p

    objective = Objective(Point(p), [torch.zeros(1)], loss_fn=loss)
    seen = Preconditioned(Hessian(objective), step_preconditioner(optimizer, objective))
    top = float(top_eigenpairs(seen, tol=1e-10, seed=0).values[0])
    scale = stability_threshold(optimizer).value / top
    assert course(name, 0.99 * scale * matrix, second) == "decays"
    assert course(name, 1.01 * scale * matrix, second) == "grows"


class Point(nn.Module):
    """A model that is nothing but its parameter."""

    def __init__(self, p: nn.Parameter) -> None:
        super().__init__()
        self.p = p


@pytest.mark.parametrize("t", [1, 2, 5, 30])
def test_the_first_steps_of_adam_have_a_larger_rate(t: int) -> None:
    p = parameter()
    optimizer = torch.optim.Adam([p], lr=0.1, betas=(0.9, 0.999))
    for _ in range(t):
        p.grad = torch.ones_like(p)
        optimizer.step()
    assert stability_threshold(optimizer).value == pytest.approx(380.0 * (1 - 0.9**t))


def test_what_adagrad_has_made_lowers_its_rate() -> None:
    p = parameter()
    optimizer = torch.optim.Adagrad([p], lr=0.1, lr_decay=0.5)
    for _ in range(5):
        p.grad = torch.ones_like(p)
        optimizer.step()
    assert stability_threshold(optimizer).value == pytest.approx(2 / (0.1 / (1 + 4 * 0.5)))


@pytest.mark.parametrize("cls", [torch.optim.Adam, torch.optim.NAdam, torch.optim.Adagrad])
def test_before_the_first_step_there_is_no_threshold(cls: type) -> None:
    threshold = stability_threshold(cls([parameter()], lr=0.1))
    assert threshold.value is None and "not made a step yet" in threshold.reason


def test_groups_whose_preconditioned_dynamics_differ_have_no_common_threshold() -> None:
    first, second = parameter(), parameter()
    optimizer = torch.optim.RMSprop([{"params": [first]}, {"params": [second], "momentum": 0.5}], lr=0.1)
    assert "dynamics (momentum)" in stability_threshold(optimizer).reason


@pytest.mark.parametrize("cls", [torch.optim.AdamW, torch.optim.NAdam])
def test_groups_of_different_decoupled_decays_have_a_strictest_and_a_largest_threshold(cls: type) -> None:
    """As most people train transformers; a Hessian that couples the groups is decided outside the two."""
    decays, found = (10.0, 0.0), {}
    second = torch.full((1,), SECOND, dtype=torch.float64)
    options = {"decoupled_weight_decay": True} if cls is torch.optim.NAdam else {}

    def fresh() -> tuple[torch.optim.Optimizer, list[nn.Parameter]]:
        points = [nn.Parameter(torch.full((1,), 1e-9, dtype=torch.float64)) for _ in decays]
        groups = [{"params": [p], "weight_decay": w} for p, w in zip(points, decays, strict=True)]
        optimizer = cls(groups, lr=LR, betas=(0.9, SLOW), eps=1e-20, **options)
        for p in points:
            p.grad = torch.zeros_like(p)
        optimizer.step()
        freeze(optimizer, second)
        return optimizer, points

    def course_of(hessian: torch.Tensor) -> str:
        optimizer, points = fresh()
        with torch.no_grad():
            points[0].fill_(1e-9), points[1].fill_(0.5e-9)
        for _ in range(6000):
            w = torch.cat([p.detach() for p in points])
            if not 1e-12 < float(w.norm()) < 1e-6:
                break
            for p, gradient in zip(points, hessian @ w, strict=True):
                p.grad = gradient[None]
            optimizer.step()
            freeze(optimizer, second)
        return "grows" if float(w.norm()) > 1e-6 else "decays" if float(w.norm()) < 1e-12 else "neither"

    threshold = stability_threshold(fresh()[0])
    assert threshold.largest == pytest.approx(2 / (2 - LR * 10.0) * threshold.value) and threshold.preconditioned
    for seed in range(4):
        generator = torch.Generator().manual_seed(seed)
        rotation = torch.linalg.qr(torch.randn(2, 2, generator=generator, dtype=torch.float64)).Q
        for top, expected in ((0.98 * threshold.value, "decays"), (1.02 * threshold.largest, "grows")):
            spectrum = torch.tensor([0.3 * top, top], dtype=torch.float64)
            found[seed, expected] = course_of(SECOND**0.5 * rotation @ torch.diag(spectrum) @ rotation.T)
    assert all(course == expected for (_, expected), course in found.items()), found


def test_a_tensor_rate_and_an_empty_group() -> None:
    p = parameter()
    optimizer = torch.optim.Adam([{"params": [p]}, {"params": []}], lr=torch.tensor(0.1, dtype=torch.float64))
    p.grad = torch.ones_like(p)
    optimizer.step()
    assert stability_threshold(optimizer).per_group == pytest.approx((38.0,))


def test_a_preconditioner_needs_a_step_and_a_rule() -> None:
    model = nn.Linear(2, 1)
    objective = Objective(model, (torch.eye(2), torch.ones(2, 1)), criterion=nn.functional.mse_loss)
    with pytest.raises(SettingError, match="SGD has no preconditioner: its threshold is one for the Hessian itself"):
        step_preconditioner(SGD(model.parameters(), lr=0.1), objective)
    with pytest.raises(SettingError, match="RAdam has no preconditioner: there is no rule"):
        step_preconditioner(torch.optim.RAdam(model.parameters()), objective)
    optimizer = torch.optim.Adam([model.weight])
    model.weight.grad = torch.ones_like(model.weight)
    optimizer.step()
    with pytest.raises(ParameterError, match=r"has not moved bias yet \(1 of 2 parameters\)"):
        step_preconditioner(optimizer, objective)
    on_weight = Objective(model, (torch.eye(2), torch.ones(2, 1)), criterion=nn.functional.mse_loss, params="weight")
    assert step_preconditioner(optimizer, on_weight)["weight"].shape == (1, 2)
