"""Every optimizer of torch under watch, known or not: the loop goes on, and a missing threshold has a reason."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Optimizer

from losscope.landscape.stability import stability_threshold
from losscope.probes import Run, Sharpness, Stability, Watch, watch

DENSE = sorted(
    name
    for name, value in vars(torch.optim).items()
    if isinstance(value, type) and issubclass(value, Optimizer) and value is not Optimizer and name != "SparseAdam"
)
KNOWN = {"Adagrad", "Adam", "AdamW", "NAdam", "RMSprop", "SGD"}


def problem(bias: bool = True) -> tuple[nn.Module, Tensor, Tensor]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(3, 5, bias=bias), nn.Tanh(), nn.Linear(5, 2, bias=bias))
        return model, torch.randn(20, 3), torch.randn(20, 2)


def trained(
    build: Callable[[nn.Module], Any], *, closure: bool = False, before: Callable[[int, Any], None] | None = None,
    bias: bool = True, **options: Any,
) -> Run:  # fmt: skip
    """The run of six updates; ``before`` is called with each update's number and the optimizer."""
    model, x, y = problem(bias)
    optimizer = build(model)

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = F.mse_loss(model(x), y)
        value.backward()
        return value

    live: Watch
    settings: dict[str, Any] = {"probes": [Sharpness(), Stability(rtol=0.5)], "every": 1, "batch_size": 20} | options
    with watch(model, optimizer, data=(x, y), criterion=F.mse_loss, on_error="raise", **settings) as live:
        for step in range(6):
            if before is not None:
                before(step, optimizer)
            if closure:
                optimizer.step(loss)
            else:
                loss()
                optimizer.step()
    assert live.steps == 6
    return live.run


@pytest.mark.parametrize("closure", [False, True], ids=["plain", "closure"])
@pytest.mark.parametrize("name", DENSE)
def test_every_optimizer_of_torch(name: str, closure: bool) -> None:
    if name == "LBFGS" and not closure:
        pytest.skip("LBFGS steps with a closure only")
    cls = getattr(torch.optim, name)
    run = trained(lambda m: cls(m.parameters(), lr=0.01), closure=closure, bias=name != "Muon")  # matrices only
    records = run.select("stability")
    assert [r.step for r in records] == list(range(6)) and {r.lr for r in records} == {0.01}
    line = run.audit()["sharpness"]
    if name in KNOWN:
        assert all(r.values["threshold"] > 0 for r in records) and line.verdict != "NOT_APPLICABLE"
    else:
        assert all(r.values["threshold"] is None and r.value is None for r in records)
        assert {c.verdict for c in run.audit().criteria} == {"NOT_APPLICABLE"}
        assert f"no stability rule for {name}" in line.reason and "register_rule" in line.reason


def set_rate(values: dict[int, float]) -> Callable[[int, Any], None]:
    def change(step: int, optimizer: Any) -> None:
        optimizer.param_groups[0]["lr"] = values.get(step, 0.01)

    return change


@pytest.mark.parametrize("name", sorted(KNOWN))
def test_a_rate_of_zero_for_a_while_has_no_threshold_then(name: str) -> None:
    cls = getattr(torch.optim, name)
    run = trained(lambda m: cls(m.parameters(), lr=0.01), before=set_rate({0: 0.0, 3: 0.0}))
    thresholds = [r.values["threshold"] for r in run.select("stability")]
    assert [t is None for t in thresholds] == [True, False, False, True, False, False]
    assert run.audit()["sharpness"].verdict != "NOT_APPLICABLE"


def test_a_rate_of_zero_to_the_end() -> None:
    run = trained(lambda m: torch.optim.SGD(m.parameters(), lr=0.0))
    line = run.audit()["sharpness"]
    assert line.verdict == "NOT_APPLICABLE" and line.reason == "the learning rate is 0: nothing moves"


@pytest.mark.parametrize("rate", [-0.01, math.nan])
def test_a_rate_that_means_nothing(rate: float) -> None:
    """Torch refuses it where an optimizer is made, and takes it from a schedule."""

    def change(step: int, optimizer: Any) -> None:
        optimizer.param_groups[0]["lr"] = rate if step == 5 else 0.01

    run = trained(lambda m: torch.optim.SGD(m.parameters(), lr=0.01), before=change)
    thresholds = [r.values["threshold"] for r in run.select("stability")]
    assert thresholds[:5] == [pytest.approx(200.0)] * 5 and thresholds[5] is None


@pytest.mark.parametrize("name", ["Adam", "SGD", "RMSprop"])
def test_rates_in_tensors(name: str) -> None:
    cls = getattr(torch.optim, name)
    plain = trained(lambda m: cls(m.parameters(), lr=0.01, foreach=False))
    tensor = trained(lambda m: cls(m.parameters(), lr=torch.tensor(0.01), foreach=False))
    for one, other in zip(plain.select("stability"), tensor.select("stability"), strict=True):
        assert other.values["threshold"] == pytest.approx(one.values["threshold"], rel=1e-6)
        assert other.lr == pytest.approx(one.lr)


@pytest.mark.parametrize("name", sorted(KNOWN))
def test_an_empty_group_beside_others(name: str) -> None:
    cls = getattr(torch.optim, name)
    plain = trained(lambda m: cls(m.parameters(), lr=0.01))
    beside = trained(lambda m: cls([{"params": m.parameters()}, {"params": []}], lr=0.01))
    assert [r.values["threshold"] for r in plain.select("stability")] == [
        r.values["threshold"] for r in beside.select("stability")
    ]


class RateFromElsewhere(Optimizer):
    """Keeps no number as its rate, as optimizers that find it themselves do."""

    def __init__(self, params: Any) -> None:
        super().__init__(params, {"lr": None})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for p in group["params"]:
                p.sub_(0.01 * p.grad)


def test_an_optimizer_without_a_number_for_a_rate() -> None:
    run = trained(lambda m: RateFromElsewhere(m.parameters()))
    assert {r.lr for r in run.select("stability")} == {None}
    assert "no stability rule for RateFromElsewhere" in run.audit()["sharpness"].reason


def test_driven_by_hand_something_that_is_no_optimizer() -> None:
    class Own:
        def __init__(self, model: nn.Module) -> None:
            self.param_groups = [{"params": list(model.parameters()), "lr": 0.01}]

    model, x, y = problem()
    own = Own(model)
    with watch(
        model, own, data=(x, y), criterion=F.mse_loss, probes=[Stability()], every=1, drive="manual", on_error="raise"
    ) as live:  # type: ignore[arg-type]
        live.step()
    assert "no stability rule for Own" in live.run.audit()["sharpness"].reason


def test_before_the_first_step_and_after_it() -> None:
    model, x, y = problem()
    optimizer = torch.optim.NAdam(model.parameters())
    with watch(model, optimizer, data=(x, y), criterion=F.mse_loss, probes=[Stability()], every=[99]) as live:
        assert live.measure_now()[0].values["threshold"] is None
        F.mse_loss(model(x), y).backward()
        optimizer.step()
        assert live.measure_now()[0].values["threshold"] == pytest.approx(stability_threshold(optimizer).value)
