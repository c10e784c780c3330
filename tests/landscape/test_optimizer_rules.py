"""Rules under gradient noise: the exact mean-square edge of the real optimizer's own step lies where they say."""

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD, Adagrad, Adam, AdamW, NAdam, Optimizer, RMSprop

from losscope.landscape.stability import Rule, register_rule, stability_threshold

F64 = torch.float64
LR, SECOND, SLOW = 0.01, 0.81, 1 - 1e-13  # rate; second moment, P = 0.9; a memory of it that does not move
CASES: dict[str, tuple[type[Optimizer], dict, str]] = {
    "plain": (SGD, {}, "2/lr"),
    "heavy ball 0.5": (SGD, {"momentum": 0.5}, "2(1-b)/lr"),
    "heavy ball 0.9": (SGD, {"momentum": 0.9}, "2(1-b)/lr"),
    "dampened": (SGD, {"momentum": 0.9, "dampening": 0.6}, "2(1-b)/(lr(1-d))"),
    "average": (SGD, {"momentum": 0.9, "dampening": 0.9}, "2(1-b)/(lr(1-d))"),
    "nesterov 0.5": (SGD, {"momentum": 0.5, "nesterov": True}, "2(1-b)/lr"),
    "nesterov 0.9": (SGD, {"momentum": 0.9, "nesterov": True}, "2(1-b)/lr"),
    "Adam": (Adam, {"betas": (0.9, SLOW)}, "2/lr"),
    "Adam 0.5": (Adam, {"betas": (0.5, SLOW)}, "2/lr"),
    "Adam 0": (Adam, {"betas": (0.0, SLOW)}, "2/lr"),
    "AMSGrad": (Adam, {"betas": (0.9, SLOW), "amsgrad": True}, "2/lr"),
    "AdamW": (AdamW, {"betas": (0.9, SLOW), "weight_decay": 0.01}, "(2-lr weight_decay)/lr"),
    "NAdam": (NAdam, {"betas": (0.9, SLOW)}, "2/lr"),
    "RMSprop": (RMSprop, {"alpha": SLOW}, "2/lr"),
    "RMSprop, momentum": (RMSprop, {"alpha": SLOW, "momentum": 0.9}, "2(1-b)/lr"),
    "Adagrad": (Adagrad, {}, "2/lr"),
}
BUFFERS = ("momentum_buffer", "exp_avg")


def prepared(name: str, made: float = 1e15) -> tuple[Optimizer, nn.Parameter]:
    """An optimizer of two scalars with P = 0.9, after ``made`` steps: w = 1 and no buffer, w = 0 and a buffer of 1."""
    cls, options, _ = CASES[name]
    p = nn.Parameter(torch.zeros(2, dtype=F64))
    optimizer = cls([p], lr=LR, **options, **({} if cls is SGD else {"eps": 1e-20}))
    p.grad = torch.zeros_like(p)
    optimizer.step()
    for key, value in optimizer.state[p].items():
        if key in BUFFERS and value is not None:
            value.copy_(1e-9 * torch.tensor([0.0, 1.0], dtype=F64))
        elif key in ("exp_avg_sq", "max_exp_avg_sq"):
            value.fill_(SECOND * (1 - SLOW ** (made + 1)) if "exp_avg_sq" in key else SECOND)
        elif key in ("square_avg", "sum"):
            value.fill_(SECOND if key == "square_avg" else 1e12 * SECOND)
        elif key == "mu_product":
            value.fill_(0.0)
        elif key == "step" and cls is not Adagrad:
            value.fill_(made)
    with torch.no_grad():
        p.copy_(1e-9 * torch.tensor([1.0, 0.0], dtype=F64))
    return optimizer, p


def one_step(name: str, curvature: float, made: float = 1e15) -> Tensor:
    """What the optimizer's own step makes of (weight, buffer), as a matrix."""
    optimizer, p = prepared(name, made)
    p.grad = curvature * p.detach().clone()
    optimizer.step()
    buffers = [value for key, value in optimizer.state[p].items() if key in BUFFERS and value is not None]
    return 1e9 * torch.stack([p.detach(), *buffers]) if buffers else 1e9 * p.detach()[:1, None]


def growth(name: str, curvature: float, share: float, made: float = 1e15) -> float:
    """By what mean squares grow where the curvature is met in a share of the steps, and none in the others."""
    met, not_met = one_step(name, curvature, made), one_step(name, 0.0, made)
    squares = share * torch.kron(met, met) + (1 - share) * torch.kron(not_met, not_met)
    return float(torch.linalg.eigvals(squares).abs().max())


def edge(name: str, share: float, made: float = 1e15) -> float:
    """The curvature at which mean squares neither grow nor decay."""
    low, high = 1e-3, 1e10
    for _ in range(80):
        middle = (low * high) ** 0.5
        low, high = (middle, high) if growth(name, middle, share, made) < 1 else (low, middle)
    return low


def index(name: str, share: float, made: float = 1e15) -> float:
    """E h^2 / E h at the edge, of the divided curvature h and the decay; less the decay, which is in the threshold."""
    divisor = {"Adagrad": 0.9e6}.get(name, 1.0 if CASES[name][0] is SGD else 0.9)
    met, decay = edge(name, share, made) / divisor, CASES[name][1].get("weight_decay", 0.0)
    return (share * (met + decay) ** 2 + (1 - share) * decay**2) / (share * met + decay) - decay


@pytest.mark.parametrize("name", CASES)
def test_the_edge_of_mean_squares_goes_from_the_threshold_to_that_of_small_batches(name: str) -> None:
    """Without noise (the curvature is there in every step), with little else, and in between."""
    threshold = stability_threshold(prepared(name)[0])
    assert threshold.small_batch_formula == CASES[name][2]
    assert index(name, 1.0) == pytest.approx(threshold.value, rel=1e-6)
    assert index(name, 1e-5) == pytest.approx(threshold.small_batch, rel=1e-3)
    least, most = sorted((threshold.value, threshold.small_batch))
    assert all(0.999 * least <= index(name, share) <= 1.001 * most for share in (0.5, 0.1, 0.01))


@pytest.mark.parametrize("made", [0, 1, 4, 29])
def test_the_first_steps_of_adam_are_longer_under_noise_too(made: int) -> None:
    """With the bias correction of that step kept."""
    threshold = stability_threshold(prepared("Adam", made + 1)[0])  # the state that the step leaves
    assert threshold.small_batch == pytest.approx(2 * (1 - 0.9 ** (made + 1)) / LR)
    assert index("Adam", 1e-5, made) == pytest.approx(threshold.small_batch, rel=1e-3)


@pytest.mark.parametrize("momentum", [0.5, 0.9])
@pytest.mark.parametrize("decay", [0.1, 3.0])
def test_decay_is_taken_off_whole(momentum: float, decay: float) -> None:
    """It has no noise, so that with momentum it costs less, by at most itself."""
    CASES["decay"] = (SGD, {"momentum": momentum, "weight_decay": decay}, "")
    try:
        threshold = stability_threshold(prepared("decay")[0])
        assert threshold.small_batch == pytest.approx(2 * (1 - momentum) / LR - decay)
        assert threshold.small_batch_formula == "2(1-b)/lr - weight_decay"
        beyond = index("decay", 1e-8) - threshold.small_batch
        assert beyond == pytest.approx(decay * 2 * momentum / (1 + momentum), rel=0.05)
    finally:
        del CASES["decay"]


@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.9])
@pytest.mark.parametrize("share", [1.0, 0.3, 0.01])
def test_heavy_ball_has_a_closed_form_between_the_two(momentum: float, share: float) -> None:
    """lr ((1+b) v + (1-b) m^2) = 2 (1-b^2) m for curvatures of mean m and variance v."""
    name = {0.0: "plain", 0.5: "heavy ball 0.5", 0.9: "heavy ball 0.9"}[momentum]
    found = edge(name, share)
    mean, variance = share * found, share * (1 - share) * found**2
    left = LR * ((1 + momentum) * variance + (1 - momentum) * mean**2)
    assert left == pytest.approx(2 * (1 - momentum**2) * mean, rel=1e-8)


def test_groups_rates_and_what_is_not_known() -> None:
    first, second = (nn.Parameter(torch.ones(1)) for _ in range(2))
    groups = [{"params": [first]}, {"params": [second], "lr": 0.1}, {"params": []}]
    threshold = stability_threshold(SGD(groups, lr=0.2, momentum=0.5))
    assert threshold.per_group_small_batch == pytest.approx((5.0, 10.0))
    assert threshold.small_batch == pytest.approx(5.0) and threshold.value == pytest.approx(15.0)
    endless = stability_threshold(SGD([first], lr=0.2, momentum=1.0))
    assert endless.value == pytest.approx(20.0) and endless.small_batch is None
    assert stability_threshold(RMSprop([first], momentum=1.0)).small_batch is None
    for cls in (Adam, NAdam, Adagrad):
        assert stability_threshold(cls([first])).small_batch is None  # no step made


def test_a_rule_need_not_know_it() -> None:
    class Half(SGD):
        def step(self, closure=None): ...

    rule = Rule(lambda group, state: (4 / group["lr"], "4/lr"))
    register_rule(Half, rule)
    p = nn.Parameter(torch.ones(1))
    assert stability_threshold(Half([p], lr=0.5)).small_batch is None
    register_rule(Half, Rule(rule.threshold, small_batch=lambda group, state: (3 / group["lr"], "3/lr")))
    found = stability_threshold(Half([p], lr=0.5))
    assert (found.small_batch, found.small_batch_formula) == (6.0, "3/lr")
