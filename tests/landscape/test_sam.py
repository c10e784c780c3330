"""SAM's threshold: the wrapper about the real torch optimizer decays just below and grows just above it."""

import math
import re

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD, Adam, Optimizer

from losscope.landscape import SettingError
from losscope.landscape.sam import perturbed_threshold
from losscope.landscape.stability import Rule, register_rule, stability_threshold
from sam import SAM, LookSAM, SAMOnOtherGroups

F64 = torch.float64
LR, SLOPE = 0.1, 2.0
BASES: dict[str, dict] = {
    "plain": {},
    "decay": {"weight_decay": 0.5},
    "heavy ball": {"momentum": 0.9},
    "dampened": {"momentum": 0.9, "dampening": 0.5},
    "nesterov": {"momentum": 0.9, "nesterov": True},
    "nesterov, decay": {"momentum": 0.6, "nesterov": True, "weight_decay": 1.0},
}


def outcome(optimizer: SAM, curved: nn.Parameter, straight: nn.Parameter, hessian: Tensor, *, by_hand: bool) -> str:
    """What SAM makes of w'Hw/2 along one parameter, under a slope along another that holds the gradient's norm."""

    def evaluate() -> Tensor:
        loss = curved @ hessian @ curved / 2 + SLOPE * straight.sum()
        loss.backward()
        return loss

    recent: list[float] = []
    for _ in range(8000):
        recent = [*recent[-3:], float(curved.detach().norm())]
        if recent[-1] > 1e-6:
            return "grows"
        if len(recent) == 4 and max(recent) < 1e-12:
            return "decays"
        optimizer.zero_grad()
        evaluate()
        if by_hand:
            optimizer.first_step(zero_grad=True)
            evaluate()
            optimizer.second_step()
        else:
            optimizer.step(evaluate)
    return "neither"


def problem(size: int = 1) -> tuple[nn.Parameter, nn.Parameter]:
    return nn.Parameter(torch.full((size,), 1e-9, dtype=F64)), nn.Parameter(torch.zeros(1, dtype=F64))


@pytest.mark.parametrize("by_hand", [True, False], ids=["two steps", "closure"])
@pytest.mark.parametrize("rho", [0.01, 0.5])
@pytest.mark.parametrize("name", BASES)
def test_it_decays_just_below_and_grows_just_above(name: str, rho: float, by_hand: bool) -> None:
    for factor, expected in ((0.99, "decays"), (1.01, "grows")):
        curved, straight = problem()
        groups = [{"params": [curved]}, {"params": [straight], "weight_decay": 0.0}]
        optimizer = SAM(groups, SGD, rho=rho, lr=LR, **BASES[name])
        threshold = stability_threshold(optimizer, gradient_norm=SLOPE).value
        assert threshold < stability_threshold(optimizer.base_optimizer).value
        hessian = torch.tensor([[factor * threshold]], dtype=F64)
        assert outcome(optimizer, curved, straight, hessian, by_hand=by_hand) == expected


@pytest.mark.parametrize("options", [{}, {"momentum": 0.8}])
def test_the_top_eigenvalue_decides_in_three_dimensions(options: dict) -> None:
    half = torch.randn(3, 3, generator=torch.Generator().manual_seed(1), dtype=F64)
    matrix = half @ half.T
    for factor, expected in ((0.99, "decays"), (1.01, "grows")):
        curved, straight = problem(3)
        optimizer = SAM([curved, straight], SGD, rho=0.2, lr=LR, **options)
        threshold = stability_threshold(optimizer, gradient_norm=SLOPE).value
        hessian = factor * threshold / torch.linalg.eigvalsh(matrix)[-1] * matrix
        assert outcome(optimizer, curved, straight, hessian, by_hand=True) == expected


@pytest.mark.parametrize(("rho", "norm", "rate"), [(0.05, 0.3, 0.1), (1.0, 1e-3, 0.02), (1e-9, 5.0, 0.7)])
def test_about_gradient_descent_it_is_that_of_long_and_bartlett(rho: float, norm: float, rate: float) -> None:
    (curved, _) = problem()
    value = stability_threshold(SAM([curved], SGD, rho=rho, lr=rate), gradient_norm=norm).value
    assert rate * value * (1 + rho * value / norm) == pytest.approx(2, rel=1e-12)
    if rho * value / norm > 1e-3:
        assert value == pytest.approx(norm / (2 * rho) * (math.sqrt(1 + 8 * rho / (rate * norm)) - 1), rel=1e-9)


def test_it_rises_with_the_gradient_to_the_threshold_of_the_base() -> None:
    values = [perturbed_threshold(20.0, 0.05, norm) for norm in (1e-6, 1e-3, 1.0, 1e3, 1e12)]
    assert values == sorted(values) and values[-1] == pytest.approx(20.0)
    assert values[0] == pytest.approx(math.sqrt(20.0 * 1e-6 / 0.05), rel=1e-2)
    assert perturbed_threshold(20.0, 0.0, 1.0) == 20.0


def test_without_the_gradients_norm_it_says_what_to_pass() -> None:
    threshold = stability_threshold(SAM([problem()[0]], SGD, lr=LR, momentum=0.9))
    assert threshold.value is None and threshold.small_batch is None
    assert threshold.reason.endswith("pass gradient_norm=, its norm at the weights themselves")
    assert threshold.formula == "s where s(1+rho s/|g|) = (2+2b)/lr"
    found = threshold.at(1.0)
    assert found.reason == "" and found.value == pytest.approx(perturbed_threshold(38.0, 0.05, 1.0))


@pytest.mark.parametrize("norm", [0.0, math.inf, math.nan])
def test_a_gradient_that_vanishes_or_is_not_finite(norm: float) -> None:
    threshold = stability_threshold(SAM([problem()[0]], SGD, lr=LR), gradient_norm=norm)
    assert threshold.value is None and f"norm is {norm:g}" in threshold.reason


def test_a_negative_norm_is_refused_and_others_need_none() -> None:
    (curved, _) = problem()
    with pytest.raises(SettingError, match=r"gradient_norm must be at least 0, got -1\.0"):
        stability_threshold(SAM([curved], SGD, lr=LR), gradient_norm=-1.0)
    assert stability_threshold(SGD([curved], lr=LR), gradient_norm=3.0).value == pytest.approx(20.0)


def test_groups_that_differ() -> None:
    curved, straight = problem()
    groups = [{"params": [curved], "rho": 0.5}, {"params": [straight], "lr": 0.2}, {"params": []}]
    threshold = stability_threshold(SAM(groups, SGD, rho=0.1, lr=LR), gradient_norm=2.0)
    expected = (perturbed_threshold(20.0, 0.5, 2.0), perturbed_threshold(10.0, 0.1, 2.0))
    assert threshold.per_group == pytest.approx(expected)


def test_a_base_on_the_same_parameters_in_groups_of_its_own() -> None:
    curved, straight = problem()
    wrapper = SAMOnOtherGroups([curved, straight], SGD([{"params": [straight]}, {"params": [curved]}], lr=LR), rho=0.2)
    assert stability_threshold(wrapper, gradient_norm=1.0).per_group == (perturbed_threshold(20.0, 0.2, 1.0),) * 2
    elsewhere = SAMOnOtherGroups([curved], SGD([straight], lr=LR))
    assert "has no rule for rho" in stability_threshold(elsewhere, gradient_norm=1.0).reason


def test_without_a_perturbation_it_is_the_base() -> None:
    (curved, _) = problem()
    wrapper = SAM([curved], SGD, rho=0.0, lr=LR, momentum=0.5)
    threshold = stability_threshold(wrapper)
    assert (threshold.value, threshold.small_batch) == (pytest.approx(30.0), pytest.approx(10.0))
    adaptive = SAM([curved], Adam, rho=0.0, adaptive=True, lr=LR)
    curved.grad = torch.ones_like(curved)
    adaptive.base_optimizer.step()
    assert stability_threshold(adaptive).preconditioned


class Renamed(SAM):
    """A copy under another name."""


class Told(SAM):
    """Has a rule of its own."""


def adaptive_by_attribute(curved: nn.Parameter) -> Optimizer:
    wrapper = SAM([curved], SGD, lr=LR)
    wrapper.adaptive = True
    return wrapper


def centralising(curved: nn.Parameter) -> Optimizer:
    wrapper = SAM([curved], SGD, lr=LR)
    wrapper.use_gc = True
    return wrapper


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (centralising, "settings that plain SAM has not: use_gc"),
        (lambda p: SAM([p], SGD, lr=LR, adaptive=True), "SAM is adaptive"),
        (adaptive_by_attribute, "SAM is adaptive"),
        (lambda p: SAM([p], Adam, lr=LR), "SAM wraps Adam, whose preconditioner divides"),
        (lambda p: LookSAM([p], SGD, lr=LR), "settings that plain SAM has not: k"),
        (lambda p: SAM([p], SGD, lr=LR, rho=-0.1), "has no rule for rho"),
        (lambda p: SAM([p], SGD, lr=LR, rho=math.nan), "has no rule for rho"),
        (lambda p: SAM([p], SGD, lr=LR, weight_decay=30.0), "weight decay alone makes the step unstable"),
        (lambda p: SAM([p], SGD, lr=0.0), "learning rate is 0"),
        (lambda p: SAM([p], SGD, lr=LR, maximize=True), "maximises"),
        (lambda p: SAM([p], torch.optim.RAdam, lr=LR), "no stability rule for RAdam"),
    ],
)
def test_what_has_no_rule_says_why(build, words: str) -> None:
    optimizer = build(problem()[0])
    for norm in (None, 1.0):
        threshold = stability_threshold(optimizer, gradient_norm=norm)
        assert threshold.value is None
        assert re.search(words, threshold.reason)


def test_options_of_a_wrapper_that_are_off_do_not_matter() -> None:
    (curved, _) = problem()
    wrapper = SAM([curved], SGD, lr=LR)
    wrapper.use_gc, wrapper.perturb_eps, wrapper.rho = False, 1e-12, 0.05
    assert stability_threshold(wrapper, gradient_norm=1.0).value is not None


def test_other_names_and_rules_of_ones_own() -> None:
    (curved, _) = problem()
    assert stability_threshold(Renamed([curved], SGD, lr=LR), gradient_norm=1.0).value is not None
    register_rule(Told, Rule(lambda group, state: (7.0, "seven")))
    assert stability_threshold(Told([curved], SGD, lr=LR)).value == 7.0
