"""Thresholds of optimizers: the real torch optimizer decays just below and grows just above them."""

import pytest
import torch
from torch.optim import SGD

from descents import outcome, parameter
from losscope.landscape import SettingError
from losscope.landscape.stability import Rule, register_rule, stability_threshold

# --------------------------------------------------------------------------- thresholds


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
        ({"lr": 0.1, "momentum": 1.2}, "momentum 1.2 is above 1"),
        ({"lr": 0.1, "weight_decay": 30.0}, "weight decay alone makes the step unstable: 2/lr - weight_decay is -10"),
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


@pytest.mark.parametrize("rate", [None, "fast", [0.1]])
def test_what_is_no_rate_is_named(rate: object) -> None:
    optimizer = SGD([torch.nn.Parameter(torch.ones(2))], lr=0.1)
    optimizer.param_groups[0]["lr"] = rate
    found = stability_threshold(optimizer)
    assert found.value is None and f"the learning rate is {rate!r}" in found.reason


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
