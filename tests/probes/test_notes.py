"""What curvature products are to be known for reaches the records, the audit and the facts of a run."""

import json
import re
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from custom_functions import DropsItsDerivative
from losscope.landscape import Hessian, Objective
from losscope.probes import Player, Run, Sharpness, Snapshot, Stability, Trace, watch
from losscope.probes.catalogue import CATALOGUE
from probe_cases import OnceSine

CURVATURE = ("sharpness", "trace", "stability")
MSE = nn.MSELoss()


def _bootstrapped(outputs: Tensor, targets: Tensor) -> Tensor:
    return (outputs - targets - 0.9 * outputs.detach().roll(1, 0)).square().mean()


def _rounded(outputs: Tensor, targets: Tensor) -> Tensor:
    return (outputs + (outputs.round() - outputs).detach() - targets).square().mean()


AMBIGUOUS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "stopped gradient": _bootstrapped,
    "straight through": _rounded,
    "custom backward": lambda outputs, targets: DropsItsDerivative.apply(outputs - targets).mean(),
}


class Sine(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.sin()


def network(activation: type[nn.Module] = Sine, inputs: int = 3) -> nn.Module:
    torch.manual_seed(2)
    return nn.Sequential(nn.Linear(inputs, 12), activation(), nn.Linear(12, 1))


def trained(
    model: nn.Module, criterion: Callable[[Tensor, Tensor], Tensor] = MSE, *, lr: float = 0.01, **options: Any
) -> Run:
    generator = torch.Generator().manual_seed(1)
    x, y = torch.randn(16, 3, generator=generator), 3 * torch.randn(16, 1, generator=generator)
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    options = {"data": (x, y), "every": 2, "on_error": "raise"} | options
    if "loss_fn" not in options:
        options["criterion"] = criterion
    with watch(model, optimizer, **options) as run:
        for _ in range(12):
            optimizer.zero_grad()
            criterion(model(x), y).backward()
            optimizer.step()
    return run.run


# --------------------------------------------------------------------------- an ambiguous Hessian


@pytest.mark.parametrize("name", AMBIGUOUS)
def test_an_ambiguous_hessian_is_recorded_with_both_values(name: str) -> None:
    run = trained(network(), AMBIGUOUS[name])
    for probe in CURVATURE:
        for record in run.select(probe, ok=False):
            assert (record.status, record.kernel) == ("ok", "retained")
            assert record.reason.startswith("ambiguous: ")
            assert len(re.findall(r"-?\d[\d.e+-]*", record.reason)) >= 2
            assert "stops a gradient" in record.reason
            assert "trial" not in record.reason  # how the kernel was chosen is not asked here
            assert record.value is not None
    assert {r.reason for r in run.select("stability")} == {run.select("trace")[0].reason}


@pytest.mark.parametrize("times", [0.3, 1.0, 1.5])
@pytest.mark.parametrize("name", AMBIGUOUS)
def test_no_verdict_rests_on_an_ambiguous_hessian(name: str, times: float) -> None:
    sharpness = trained(network(), AMBIGUOUS[name], lr=1e-6).select("sharpness")[0].value
    audit = trained(network(), AMBIGUOUS[name], lr=2 * times / sharpness).audit()
    line = audit["sharpness"]
    assert line.verdict == "INCONCLUSIVE"
    assert line.reason.startswith("the loss's Hessian is ambiguous: ")
    assert len(line.reason) < 200
    assert line.ratio is not None
    assert not audit.above_edge
    assert audit.note.startswith("ambiguous: ")


def test_training_through_an_ambiguous_loss_is_the_same_to_the_bit() -> None:
    weights = []
    for every in (1, [10**9]):
        model = network()
        trained(model, _bootstrapped, every=every)
        weights.append([p.detach().clone() for p in model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*weights, strict=True))


# --------------------------------------------------------------------------- without double backward


def test_a_model_without_double_backward_is_measured_by_finite_differences() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = trained(network(OnceSine), batch_size=8, every=4)
    expected = trained(network(Sine), batch_size=8, every=4)
    for probe in CURVATURE:
        assert len(found.select(probe)) == 3
        for ours, exact in zip(found.select(probe), expected.select(probe), strict=True):
            assert (ours.status, ours.kernel, exact.reason) == ("ok", "finite_difference", None)
            assert re.match(r"finite differences of the gradient, since .*OnceSine", ours.reason)
            assert ours.reason.endswith("of the largest")
            assert ours.value == pytest.approx(exact.value, rel=2e-3)
    assert found.audit()["sharpness"].verdict == expected.audit()["sharpness"].verdict == "BELOW_EDGE"
    assert found.audit().note.startswith("finite differences of the gradient, since ")
    assert expected.audit().note == ""


def test_a_forced_fused_kernel_is_measured_by_finite_differences() -> None:
    """Its loss has no second derivative either; torch finds out in the middle of the double backward."""

    def loss_fn(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.FLASH_ATTENTION):
            hidden = model(batch[0]).view(2, 1, 8, 1)
            return F.scaled_dot_product_attention(hidden, hidden, hidden).square().mean()

    run = trained(network(), loss_fn=loss_fn)
    assert [(r.status, r.kernel) for r in run.select("stability", ok=False)] == [("ok", "finite_difference")] * 6
    assert "cannot differentiate twice" in run.audit().note


def test_the_interval_holds_the_error_of_finite_differences() -> None:
    """What the note says of the products is in the record's interval, and the exact sharpness is as well."""
    model = network(OnceSine)
    twin = network(Sine).double()
    seen: list[tuple[float, float]] = []

    def exact(snapshot: Snapshot) -> dict[str, float]:
        twin.load_state_dict(snapshot.model.state_dict())
        batch = tuple(t.double() for t in snapshot.objective.batches[0].content)
        H = Hessian(Objective(twin, batch, criterion=MSE), "retained")
        spectrum = torch.linalg.eigvalsh(H @ torch.eye(H.shape[0], dtype=torch.float64))
        seen.append((float(spectrum[-1]), float(spectrum.abs().max())))
        return {"value": seen[-1][0]}

    run = trained(model, probes=[Sharpness(tol=1e-3, bound_every=1), Stability(tol=1e-3, bound_every=1), exact])
    for record, (largest, norm) in zip(run.select("sharpness"), seen, strict=True):
        error = float(re.search(r"products within ([\d.e-]+) of the largest", record.reason)[1])
        assert 1e-7 < error < 1e-3
        assert record.low <= largest <= record.high
        assert record.value - record.low >= 0.9 * error * norm  # the note rounds it
        assert record.high - record.value >= 0.9 * error * norm
    for record, (largest, _) in zip(run.select("stability"), seen, strict=True):
        assert record.values["sharpness_low"] <= largest <= record.values["sharpness_high"]
        assert record.low * record.values["threshold"] == pytest.approx(record.values["sharpness_low"])


# --------------------------------------------------------------------------- notes beside other reasons


def test_a_note_comes_before_what_else_went_wrong() -> None:
    """Batches that hide their samples: S_mu cannot be measured, and the note is still the first word."""

    def hidden(generator: torch.Generator) -> dict[str, Any]:
        return {"rows": [torch.randn(3, generator=generator) for _ in range(4)], "scale": 2.0}

    def loss_fn(model: nn.Module, batch: dict[str, Any]) -> Tensor:
        outputs = model(torch.stack(batch["rows"]))
        return _bootstrapped(outputs, batch["scale"] * torch.ones_like(outputs))

    data = [hidden(torch.Generator().manual_seed(seed)) for seed in (1, 2)]
    run = trained(network(), loss_fn=loss_fn, data=data, weight=lambda b: len(b["rows"]), batch_size=2)
    reason = run.select("stability")[-1].reason
    assert re.match(r"ambiguous: .*; mini-batches: not measured: \w+: ", reason)
    audit = run.audit()
    assert audit["sharpness"].verdict == "INCONCLUSIVE"
    assert "mini-batches" not in audit["sharpness"].reason
    assert "mini-batches: not measured" in audit.note
    assert audit.note.count("ambiguous: ") == 1  # though three probes say so at every step


# --------------------------------------------------------------------------- the kernel asked for


@pytest.mark.parametrize("kernel", ["auto", "retained", "batched", "finite_difference"])
def test_the_kernel_asked_for_computes_the_products_and_is_a_fact(kernel: str, tmp_path: Any) -> None:
    run = trained(network(), kernel=kernel, out=tmp_path / "run", probes=[Sharpness(), Trace(), Stability()])
    facts = json.loads((tmp_path / "run" / "meta.json").read_text())["players"]["model"]
    assert facts["kernel"] == kernel
    used = "retained" if kernel == "auto" else kernel
    assert {r.kernel for r in run.records if r.probe in CURVATURE} == {used}
    lines = {c.name: [a.text for a in c.assumptions if "kernel=" in a.text] for c in run.audit().criteria}
    unchecked = {name for name, texts in lines.items() if texts}
    gradients_only = {"aligned_trace", "s_mu", "mean_square"}
    assert unchecked == (set() if kernel == "auto" else set(CATALOGUE) - gradients_only)
    assert all(repr(kernel) in text for texts in lines.values() for text in texts)


def test_each_player_has_its_own_kernel() -> None:
    x, y = torch.randn(8, 3), torch.randn(8, 1)
    models = {"first": network(), "second": network()}
    players = [
        Player(name, model, torch.optim.SGD(model.parameters(), lr=0.01), (x, y), criterion=MSE, kernel=kernel)
        for (name, model), kernel in zip(models.items(), ("batched", "finite_difference"), strict=True)
    ]
    with watch(players, every=1, probes=[Sharpness()], on_error="raise") as run:
        for player in players:
            MSE(player.model(x), y).backward()
            player.optimizer.step()
    assert [run.run.select("sharpness", name)[0].kernel for name in models] == ["batched", "finite_difference"]
    values = [run.run.select("sharpness", name)[0].value for name in models]
    assert values[0] == pytest.approx(values[1], rel=1e-3)


def test_asking_for_a_kernel_decides_what_is_measured() -> None:
    """Of an ambiguous Hessian, the one that was asked for: there is nothing to compare, and the line says so."""
    runs = {k: trained(network(), AMBIGUOUS["custom backward"], kernel=k) for k in ("retained", "finite_difference")}
    double, difference = (run.select("sharpness")[0].value for run in runs.values())
    assert difference > 1.1 * double
    for run in runs.values():
        assert run.audit()["sharpness"].verdict == "BELOW_EDGE"
