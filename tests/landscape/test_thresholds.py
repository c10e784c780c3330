"""Thresholds of optimizers: the real torch optimizer decays just below and grows just above them."""

import pytest
import torch
from torch import nn
from torch.optim import SGD

from losscope.landscape import Hessian, Objective, ParameterError, Preconditioned, SettingError, top_eigenpairs
from losscope.landscape.stability import Rule, register_rule, stability_threshold, step_preconditioner

# --------------------------------------------------------------------------- thresholds


def parameter(size: int = 1) -> nn.Parameter:
    return nn.Parameter(torch.ones(size, dtype=torch.float64))


def outcome(optimizer: SGD, hessian: torch.Tensor, steps: int = 6000) -> str:
    """What the optimizer makes of w'Hw/2 from w = 1: ``"decays"``, ``"grows"`` or ``"neither"``."""
    weights = [p for group in optimizer.param_groups for p in group["params"]]
    recent = []
    for _ in range(steps):
        joined = torch.cat([p.detach() for p in weights])
        recent = [*recent[-3:], float(joined.norm())]
        if recent[-1] > 1e6:
            return "grows"
        if len(recent) == 4 and max(recent) < 1e-4:
            return "decays"
        gradient = hessian @ joined
        for p, g in zip(weights, gradient.split([len(p) for p in weights]), strict=True):
            p.grad = g.clone()
        optimizer.step()
    return "neither"


SETTINGS = {
    "plain": ({}, 2.0, "2/lr"),
    "decay": ({"weight_decay": 0.3}, 1.97, "2/lr - weight_decay"),
    "heavy ball 0.3": ({"momentum": 0.3}, 2.6, "(2+2b)/lr"),
    "heavy ball 0.9": ({"momentum": 0.9}, 3.8, "(2+2b)/lr"),
    "heavy ball 0.99": ({"momentum": 0.99}, 3.98, "(2+2b)/lr"),
    "dampened": ({"momentum": 0.9, "dampening": 0.5}, 7.6, "(2+2b)/(lr(1-d))"),
    "average": ({"momentum": 0.9, "dampening": 0.9}, 38.0, "(2+2b)/(lr(1-d))"),
    "negative dampening": ({"momentum": 0.5, "dampening": -0.5}, 2.0, "(2+2b)/(lr(1-d))"),
    "dampening without momentum": ({"dampening": 0.5}, 2.0, "2/lr"),
    "nesterov 0.5": ({"momentum": 0.5, "nesterov": True}, 1.5, "(2+2b)/(lr(1+2b))"),
    "nesterov 0.9": ({"momentum": 0.9, "nesterov": True}, 3.8 / 2.8, "(2+2b)/(lr(1+2b))"),
    "heavy ball, decay": ({"momentum": 0.9, "weight_decay": 1.0}, 3.7, "(2+2b)/lr - weight_decay"),
    "nesterov, decay": ({"momentum": 0.9, "nesterov": True, "weight_decay": 0.5}, 3.8 / 2.8 - 0.05, None),
    "dampened, decay": ({"momentum": 0.6, "dampening": 0.2, "weight_decay": 2.0}, 4.0 - 0.2, None),
}


@pytest.mark.parametrize("name", SETTINGS)
def test_sgd_decays_just_below_its_threshold_and_grows_just_above(name):
    options, times_lr, formula = SETTINGS[name]
    threshold = stability_threshold(SGD([parameter()], lr=0.1, **options))
    assert threshold.value == pytest.approx(times_lr / 0.1, rel=1e-12)
    assert threshold.largest == threshold.value
    assert formula is None or threshold.formula == formula
    assert threshold.reason == ""
    for factor, expected in ((0.99, "decays"), (1.01, "grows")):
        optimizer = SGD([parameter()], lr=0.1, **options)
        assert outcome(optimizer, torch.tensor([[factor * threshold.value]], dtype=torch.float64)) == expected


@pytest.mark.parametrize("options", [{}, {"momentum": 0.9}, {"momentum": 0.8, "nesterov": True, "weight_decay": 0.2}])
def test_the_top_eigenvalue_decides_in_two_dimensions(options):
    rotation = torch.linalg.qr(torch.randn(2, 2, dtype=torch.float64)).Q
    threshold = stability_threshold(SGD([parameter(2)], lr=0.05, **options)).value
    for factor, expected in ((0.99, "decays"), (1.01, "grows")):
        hessian = rotation @ torch.diag(torch.tensor([1.0, factor * threshold], dtype=torch.float64)) @ rotation.T
        assert outcome(SGD([parameter(2)], lr=0.05, **options), hessian) == expected


def test_groups_of_different_rates_have_a_strictest_and_a_largest_threshold():
    def optimizer() -> SGD:
        groups = [{"params": [parameter()], "lr": 0.1}, {"params": [parameter()], "lr": 0.02, "weight_decay": 1.0}]
        return SGD(groups, lr=1.0, momentum=0.5)

    threshold = stability_threshold(optimizer())
    assert threshold.per_group == pytest.approx((30.0, 149.0))
    assert (threshold.value, threshold.largest) == (pytest.approx(30.0), pytest.approx(149.0))
    for first, second, expected in ((0.99, 0.99, "decays"), (1.01, 0.5, "grows"), (0.5, 1.01, "grows")):
        hessian = torch.diag(torch.tensor([first * 30.0, second * 149.0], dtype=torch.float64))
        assert outcome(optimizer(), hessian) == expected
    # A Hessian that couples the groups: certain only outside the two thresholds.
    ones = torch.full((2, 2), 0.5, dtype=torch.float64)  # eigenvalues 0 and 1
    assert outcome(optimizer(), 0.99 * 29.0 * ones + 0.1 * torch.eye(2, dtype=torch.float64)) == "decays"
    assert outcome(optimizer(), 1.01 * 149.0 * ones) == "grows"


def test_the_rate_may_be_a_tensor_and_is_read_afresh():
    optimizer = SGD([parameter()], lr=torch.tensor(0.1, dtype=torch.float64))
    assert stability_threshold(optimizer).value == pytest.approx(20.0)
    assert isinstance(stability_threshold(optimizer).value, float)
    optimizer = SGD([parameter()], lr=0.1)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5)
    optimizer.step()
    schedule.step()
    assert stability_threshold(optimizer).value == pytest.approx(40.0)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"lr": 0.0}, "learning rate is 0: nothing moves"),
        ({"lr": 0.1, "maximize": True}, "maximises"),
        ({"lr": 0.1, "momentum": 0.9, "dampening": 1.0}, "dampening 1"),
    ],
)
def test_settings_without_a_threshold_say_why(options, words):
    threshold = stability_threshold(SGD([parameter()], **options))
    assert threshold.value is None
    assert threshold.largest is None
    assert words in threshold.reason


def test_groups_of_different_dynamics_have_no_common_threshold():
    optimizer = SGD([{"params": [parameter()], "momentum": 0.5}, {"params": [parameter()]}], lr=0.1)
    threshold = stability_threshold(optimizer)
    assert threshold.value is None
    assert "dynamics (momentum, dampening, nesterov)" in threshold.reason


@pytest.mark.parametrize("cls", [torch.optim.Adadelta, torch.optim.RAdam, torch.optim.LBFGS])
def test_optimizers_without_a_rule_are_named_and_told_how_to_get_one(cls):
    threshold = stability_threshold(cls([parameter()], lr=0.1))
    assert threshold.value is None
    assert f"for {cls.__name__}:" in threshold.reason and "register_rule" in threshold.reason


def test_a_subclass_has_the_rule_unless_it_steps_otherwise():
    class Renamed(SGD):
        pass

    class Halved(SGD):
        def step(self, closure=None):
            for group in self.param_groups:
                for p in group["params"]:
                    p.data -= group["lr"] / 2 * p.grad

    assert stability_threshold(Renamed([parameter()], lr=0.1)).value == pytest.approx(20.0)
    threshold = stability_threshold(Halved([parameter()], lr=0.1))
    assert threshold.value is None
    assert "Halved" in threshold.reason


def test_a_scheduler_and_hooks_do_not_hide_the_rule():
    optimizer = SGD([parameter()], lr=0.1)
    torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 10)  # replaces the instance's step
    optimizer.register_step_post_hook(lambda *_: None)
    assert stability_threshold(optimizer).value == pytest.approx(20.0)


# --------------------------------------------------------------------------- optimizers with a preconditioner

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
    assert "dynamics (momentum, weight decay)" in stability_threshold(optimizer).reason


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
    on_weight = Objective(model, objective_data(), criterion=nn.functional.mse_loss, params="weight")
    assert step_preconditioner(optimizer, on_weight)["weight"].shape == (1, 2)


def objective_data() -> tuple[torch.Tensor, torch.Tensor]:
    return torch.eye(2), torch.ones(2, 1)


def test_a_rule_of_ones_own() -> None:
    class Doubled(SGD):
        def step(self, closure=None):
            for group in self.param_groups:
                for p in group["params"]:
                    p.data -= 2 * group["lr"] * p.grad

    assert stability_threshold(Doubled([parameter()], lr=0.1)).value is None
    register_rule(Doubled, Rule(lambda group, state: (1 / group["lr"], "1/lr")))
    threshold = stability_threshold(Doubled([parameter()], lr=0.1))
    assert (threshold.value, threshold.formula, threshold.preconditioned) == (10.0, "1/lr", False)
    for factor, expected in ((0.99, "decays"), (1.01, "grows")):
        hessian = torch.tensor([[factor * 10.0]], dtype=torch.float64)
        assert outcome(Doubled([parameter()], lr=0.1), hessian) == expected
    with pytest.raises(SettingError, match="expected a class of optimizers and a Rule"):
        register_rule(Doubled([parameter()], lr=0.1), Rule(lambda group, state: (1.0, "")))


# --------------------------------------------------------------------------- bad input

BUILT_IN = (SGD, torch.optim.Adam, torch.optim.AdamW, torch.optim.NAdam, torch.optim.RMSprop, torch.optim.Adagrad)


def stepped(cls: type, groups: list, **options: object) -> torch.optim.Optimizer:
    optimizer = cls(groups, **options)
    for group in optimizer.param_groups:
        for p in group["params"]:
            p.grad = torch.ones_like(p)
    optimizer.step()
    return optimizer


@pytest.mark.parametrize("cls", BUILT_IN)
@pytest.mark.parametrize("rate", [-0.1, float("nan"), float("inf")])
def test_a_rate_that_a_schedule_has_made_meaningless(cls: type, rate: float) -> None:
    optimizer = stepped(cls, [parameter()], lr=0.1)
    optimizer.param_groups[0]["lr"] = rate
    threshold = stability_threshold(optimizer)
    assert threshold.value is None and threshold.small_batch is None
    assert f"learning rate is {rate:g}, which is not a positive number" in threshold.reason


@pytest.mark.parametrize("cls", BUILT_IN)
def test_groups_at_rate_zero_and_without_parameters_are_left_out(cls: type) -> None:
    alone = stability_threshold(stepped(cls, [parameter()], lr=0.1))
    groups = [{"params": []}, {"params": [parameter()], "lr": 0.0}, {"params": [parameter()]}]
    among = stability_threshold(stepped(cls, groups, lr=0.1))
    assert among == alone and len(among.per_group) == 1
    still = stability_threshold(stepped(cls, [parameter()], lr=0.0))
    assert still.value is None and still.reason == "the learning rate is 0: nothing moves"


@pytest.mark.parametrize("cls", BUILT_IN)
def test_groups_without_any_parameter(cls: type) -> None:
    optimizer = cls([parameter()], lr=0.1)
    optimizer.param_groups[0]["params"] = []
    threshold = stability_threshold(optimizer)
    assert threshold.value is None and threshold.reason == "the optimizer has no parameters"


@pytest.mark.parametrize("cls", [torch.optim.Adam, torch.optim.AdamW, torch.optim.NAdam, torch.optim.RMSprop])
def test_capturable_optimizers_keep_everything_in_tensors(cls: type) -> None:
    """As for CUDA graphs: rate and counts are tensors, here put into the state that a step would leave on a GPU."""
    first = {} if cls is torch.optim.RMSprop else {"betas": (torch.tensor(0.9), torch.tensor(0.999))}
    numbers = {} if cls is torch.optim.RMSprop else {"betas": (0.9, 0.999)}
    p = parameter()
    plain = stepped(cls, [p], lr=0.1, **numbers)
    captured = cls([p], lr=torch.tensor(0.1, dtype=torch.float64), capturable=True, **first)
    assert (stability_threshold(captured).value is None) == (cls is not torch.optim.RMSprop)  # no step made yet
    for name, value in plain.state[p].items():
        captured.state[p][name] = torch.as_tensor(value)
    expected, found = stability_threshold(plain), stability_threshold(captured)
    assert found.value == pytest.approx(expected.value, rel=1e-6) and isinstance(found.value, float)
    assert found.small_batch == pytest.approx(expected.small_batch, rel=1e-6)


def test_what_is_no_optimizer_has_no_rule() -> None:
    class Foreign:
        param_groups = ()

    threshold = stability_threshold(Foreign())
    assert threshold.value is None and "no stability rule for Foreign" in threshold.reason
