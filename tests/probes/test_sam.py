"""Watching SAM: both loop styles, undisturbed, with the threshold at the gradient of the very step."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import SGD, Adam, Optimizer

from losscope.landscape.stability import stability_threshold
from losscope.probes import Run, Sharpness, Stability, watch
from losscope.probes.steps import deciding, steps_off, unwrapped
from probe_cases import checksum_of, outcome
from sam import SAM, LookSAM

LR, RHO = 0.2, 0.1


def problem() -> tuple[nn.Module, Tensor, Tensor]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(3, 6), nn.Tanh(), nn.Linear(6, 2)).double()
        return model, torch.randn(20, 3, dtype=torch.float64), torch.randn(20, 2, dtype=torch.float64)


def with_closure(optimizer: Any, model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    def closure() -> Tensor:
        loss = F.mse_loss(model(x), y)
        loss.backward()
        return loss

    optimizer.zero_grad()
    loss = closure()
    optimizer.step(closure)
    return loss


def in_two_steps(optimizer: Any, model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    loss = F.mse_loss(model(x), y)
    loss.backward()
    optimizer.first_step(zero_grad=True)
    F.mse_loss(model(x), y).backward()
    optimizer.second_step(zero_grad=True)
    return loss


LOOPS = {"closure": with_closure, "two steps": in_two_steps}


def sam(model: nn.Module, base: type[Optimizer] = SGD, **options: Any) -> SAM:
    return SAM(model.parameters(), base, rho=RHO, lr=LR, **options)


def watched(loop: Callable[..., Tensor], steps: int = 6, optimizer: Any = None, **options: Any) -> tuple[Run, list]:
    """A run, and what its own loop knew: weights, gradient's norm and full Hessian before each update."""
    model, x, y = problem()
    optimizer = (optimizer or sam)(model)
    noted = []
    settings: dict[str, Any] = {"probes": [Stability(tol=1e-6), checksum], "every": 1, "batch_size": len(x)} | options
    with watch(model, optimizer, data=(x, y), criterion=F.mse_loss, seed=0, **settings) as live:
        for _ in range(steps):
            gradient = torch.autograd.grad(F.mse_loss(model(x), y), list(model.parameters()))
            noted.append((checksum_of(model), float(torch.cat([g.flatten() for g in gradient]).norm())))
            live.log(loss=loop(optimizer, model, x, y))
    return live.run, noted


def checksum(snapshot: Any) -> dict[str, float]:
    return {"value": checksum_of(snapshot.model)}


@pytest.mark.parametrize("loop", LOOPS)
def test_each_record_has_the_weights_before_the_update_and_the_threshold_at_their_gradient(loop: str) -> None:
    run, noted = watched(LOOPS[loop])
    assert [(r.step, r.value) for r in run.select("checksum")] == [(t, w) for t, (w, _) in enumerate(noted)]
    for record, (_, norm) in zip(run.select("stability"), noted, strict=True):
        value = record.values["threshold"]
        assert record.lr == LR and record.values["gradient_norm"] == pytest.approx(norm, rel=1e-9)
        assert LR * value * (1 + RHO * value / norm) == pytest.approx(2, rel=1e-9)
        assert record.value == pytest.approx(record.values["sharpness"] / value)
        assert "gradient_cosine" not in record.values and "gradient_scale" not in record.values
    (facts,) = run.meta["players"].values()
    assert facts["optimizer"] == "SAM(SGD)" and facts["perturbed"] and facts["threshold_reason"] == ""
    line = run.audit()["sharpness"]
    assert line.formula == "s where s(1+rho s/|g|) = 2/lr" and line.kind == "necessary and sufficient"
    assert line.verdict != "NOT_APPLICABLE"
    assert any("norm" in assumption.text for assumption in line.assumptions)


@pytest.mark.parametrize("loop", LOOPS)
def test_the_sharpness_probe_has_the_same_threshold(loop: str) -> None:
    run, _ = watched(LOOPS[loop], probes=[Sharpness(), Stability()])
    for one, other in zip(run.select("sharpness"), run.select("stability"), strict=True):
        assert one.values["threshold"] == other.values["threshold"] is not None


@pytest.mark.parametrize("base", [{}, {"momentum": 0.9}, {"base": Adam}, {"adaptive": True}])
@pytest.mark.parametrize("loop", LOOPS)
def test_training_is_the_same_to_the_bit(loop: str, base: dict[str, Any]) -> None:
    def trained(watching: bool) -> Any:
        torch.manual_seed(0)
        model, x, y = problem()
        optimizer, losses = sam(model, **base), []
        data = {"data": (x, y), "criterion": F.mse_loss, "probes": [Stability(), Sharpness()], "every": 2}
        with watch(model, optimizer, **data) if watching else torch.enable_grad():
            for _ in range(8):
                noise = torch.randn_like(x) / 10
                losses.append(LOOPS[loop](optimizer, model, x + noise, y).item())
        return outcome([model], [optimizer, optimizer.base_optimizer], losses)

    assert trained(True).differences(trained(False)) == []


@pytest.mark.parametrize(
    ("optimizer", "words"),
    [
        (lambda m: sam(m, Adam), "SAM wraps Adam"),
        (lambda m: sam(m, adaptive=True), "SAM is adaptive"),
        (lambda m: LookSAM(m.parameters(), SGD, lr=LR), "plain SAM has not: k"),
    ],
)
def test_what_has_no_threshold_says_why(optimizer: Callable[[nn.Module], Optimizer], words: str) -> None:
    run, noted = watched(in_two_steps, optimizer=optimizer)
    assert [r.value for r in run.select("checksum")] == [w for w, _ in noted]
    assert all(r.status == "ok" and r.values["threshold"] is None for r in run.select("stability"))
    for line in run.audit().criteria:
        assert line.verdict == "NOT_APPLICABLE"
    assert words in run.audit()["sharpness"].reason


def test_mini_batches_and_batches_of_unknown_size() -> None:
    """SAM steps off along its own batch's gradient, whose norm is another one."""
    run, _ = watched(in_two_steps, batch_size=5)
    assert all(r.values["threshold"] is None for r in run.select("stability"))
    assert {line.verdict for line in run.audit().criteria} == {"NOT_APPLICABLE"}
    assert "full batches" in run.audit()["sharpness"].reason
    run, _ = watched(in_two_steps, batch_size=None)
    assert all(r.values["threshold"] > 0 for r in run.select("stability"))
    line = run.audit()["sharpness"]
    assert line.verdict == "INCONCLUSIVE" and "pass batch_size=" in line.reason


def test_part_of_the_parameters_does_not_have_the_gradient() -> None:
    run, _ = watched(in_two_steps, params="0.*")
    assert all(r.values["threshold"] is None for r in run.select("stability"))
    assert "leave out params=" in run.audit()["sharpness"].reason


def test_a_perturbation_of_nothing_is_the_base() -> None:
    run, _ = watched(in_two_steps, optimizer=lambda m: SAM(m.parameters(), SGD, rho=0.0, lr=LR))
    assert {r.values["threshold"] for r in run.select("stability")} == {2 / LR}


class Lookahead(Optimizer):
    """Goes back half the way after every fifth step of the optimizer it holds."""

    def __init__(self, optimizer: Optimizer) -> None:
        self.optimizer, self.made = optimizer, 0
        super().__init__([p for group in optimizer.param_groups for p in group["params"]], {})
        self.param_groups = optimizer.param_groups

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        before = [p.detach().clone() for group in self.param_groups for p in group["params"]]
        self.optimizer.step()
        self.made += 1
        if self.made % 5 == 0:
            with torch.no_grad():
                for p, old in zip((p for g in self.param_groups for p in g["params"]), before, strict=True):
                    p.lerp_(old, 0.5)


class Delegating:
    """As accelerate's is: hands everything on."""

    def __init__(self, optimizer: Optimizer) -> None:
        self.optimizer = optimizer


def test_wrappers_that_hand_steps_on_and_those_that_do_not() -> None:
    model, _, _ = problem()
    plain, wrapper = SGD(model.parameters(), lr=LR), sam(model)
    for given in (plain, Delegating(plain)):
        assert unwrapped(given) is deciding(given) is plain and not steps_off(given)
    for given in (wrapper, Delegating(wrapper)):
        assert unwrapped(given) is wrapper.base_optimizer and deciding(given) is wrapper and steps_off(given)
    ahead = Lookahead(plain)
    assert unwrapped(ahead) is plain and deciding(ahead) is ahead and not steps_off(ahead)
    assert "no stability rule for Lookahead" in stability_threshold(deciding(ahead)).reason
    accelerated = type("AcceleratedOptimizer", (Lookahead,), {"__module__": "accelerate.optimizer"})(plain)
    assert deciding(accelerated) is plain


def test_an_optimizer_that_holds_another_has_no_threshold_of_it() -> None:
    def loop(optimizer: Any, model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        optimizer.zero_grad()
        loss = F.mse_loss(model(x), y)
        loss.backward()
        optimizer.step()
        return loss

    run, noted = watched(loop, optimizer=lambda m: Lookahead(SGD(m.parameters(), lr=LR)))
    assert [r.value for r in run.select("checksum")] == [w for w, _ in noted]
    assert "no stability rule for Lookahead" in run.audit()["sharpness"].reason
