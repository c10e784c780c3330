"""Probe TangentKernel: against kernels computed by hand at each step, fixed inputs, players, failing, resumed."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from losscope.landscape import Objective, SettingError, tangent_kernel
from losscope.landscape.tangent import effective_rank, kernel_distance, label_alignment, relative_change
from losscope.probes import Player, Run, TangentKernel, watch


def problem() -> tuple[nn.Module, torch.optim.Optimizer, tuple[torch.Tensor, torch.Tensor]]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 12), nn.Tanh(), nn.Linear(12, 3))
    x, y = torch.randn(60, 4), torch.randint(3, (60,))
    return model, torch.optim.SGD(model.parameters(), lr=0.5), (x, y)


def trained(probe: Any, steps: int = 9, every: int = 3, kernels: list | None = None, **options: Any) -> Run:
    """A run; the kernels of the first 128 samples as they are at each measurement go to a list."""
    model, optimizer, (x, y) = problem()
    options = {"data": [(x[:40], y[:40]), (x[40:], y[40:])], "criterion": F.cross_entropy} | options
    start = int(options.pop("skip", 0))
    for _ in range(start):
        step(model, optimizer, x, y)
    with watch(model, optimizer, every=every, probes=[probe], on_error="raise", **options) as run:
        for t in range(start, start + steps):
            if kernels is not None and t % every == 0:
                kernels.append(tangent_kernel(Objective(model, (x[:50], y[:50]), criterion=F.cross_entropy)))
            step(model, optimizer, x, y)
    return run.run


def step(model: nn.Module, optimizer: torch.optim.Optimizer, x: torch.Tensor, y: torch.Tensor) -> None:
    optimizer.zero_grad()
    F.cross_entropy(model(x), y).backward()
    optimizer.step()


def test_numbers_are_those_of_the_kernels_at_each_step() -> None:
    kernels: list = []
    run = trained(TangentKernel(samples=50, keep=True), kernels=kernels)
    records = run.select("tangent_kernel")
    labels = problem()[2][1][:50]
    assert [r.step for r in records] == [0, 3, 6]
    for i, (record, kernel) in enumerate(zip(records, kernels, strict=True)):
        np.testing.assert_allclose(run.array(record, "kernel"), kernel.matrix.numpy(), rtol=1e-4, atol=1e-5)
        assert record.value == pytest.approx(kernel_distance(kernels[0], kernel), rel=1e-3, abs=1e-11)
        values = record.values
        assert values["centred"] == pytest.approx(
            kernel_distance(kernels[0], kernel, centred=True), rel=1e-3, abs=1e-11
        )
        assert values["change"] == pytest.approx(relative_change(kernels[0], kernel), rel=1e-3, abs=1e-6)
        assert values["alignment"] == pytest.approx(label_alignment(kernel, labels), rel=1e-4)
        assert values["effective_rank"] == pytest.approx(effective_rank(kernel), rel=1e-3)
        assert values["trace"] == pytest.approx(float(kernel.matrix.trace()), rel=1e-5)
        assert (values["samples"], values["outputs"], record.kernel) == (50, 3, "contraction")
        if i:
            assert values["velocity"] == pytest.approx(kernel_distance(kernels[i - 1], kernel) / 3, rel=1e-3)
        else:
            assert values["velocity"] is None
    assert records[2].value > records[1].value > 0


def test_inputs_that_are_given_and_kernels_that_are_not_kept() -> None:
    x, y = torch.randn(10, 4), torch.randint(3, (10,))
    run = trained(TangentKernel((x, y), form="full"))
    first, second, _ = run.select("tangent_kernel")
    assert run.array(first, "kernel").shape == (30, 30)
    assert second.arrays == {} and second.values["samples"] == 10
    model, _, _ = problem()
    expected = tangent_kernel(Objective(model, (x, y), criterion=F.cross_entropy), form="full")
    np.testing.assert_allclose(run.array(first, "kernel"), expected.matrix.numpy(), rtol=1e-5, atol=1e-5)


def test_resuming_goes_on_from_the_first_kernel(tmp_path: Any) -> None:
    whole = trained(TangentKernel(keep=True), steps=18).select("tangent_kernel")
    trained(TangentKernel(keep=True), steps=9, out=tmp_path / "run")
    trained(TangentKernel(keep=True), steps=9, skip=9, out=tmp_path / "run", resume=True)
    resumed = Run(tmp_path / "run").select("tangent_kernel")
    assert [r.step for r in resumed] == [r.step for r in whole] == [0, 3, 6, 9, 12, 15]
    for one, other in zip(resumed, whole, strict=True):
        assert one.value == pytest.approx(other.value, rel=1e-12, abs=1e-30)
        assert one.values == pytest.approx(other.values, nan_ok=True)


def test_two_players_have_kernels_of_their_own() -> None:
    players, loops = [], []
    probe = TangentKernel()
    for i, rate in enumerate((0.0, 0.5)):
        model, optimizer, data = problem()
        optimizer.param_groups[0]["lr"] = rate
        players.append(Player(f"p{i}", model, optimizer, data, criterion=F.cross_entropy))
        loops.append((model, optimizer, *data))
    with watch(players, every=2, probes=[probe], on_error="raise") as run:
        for _ in range(4):
            for loop in loops:
                step(*loop)
    still, moving = (run.run.select("tangent_kernel", f"p{i}")[-1].value for i in range(2))
    assert still == 0 and moving > 1e-6


@pytest.mark.filterwarnings("ignore:losscope")
def test_what_has_no_kernel_is_recorded() -> None:
    model, optimizer, data = problem()
    loss_fn = lambda m, b: F.cross_entropy(m(b[0]), b[1])  # noqa: E731
    with watch(model, optimizer, data=data, loss_fn=loss_fn, probes=[TangentKernel()]) as run:
        (record,) = run.measure_now()
    assert record.status == "error" and "pass criterion=" in record.reason
    with watch(model, optimizer, data=data, criterion=F.cross_entropy, probes=[TangentKernel(memory=100)]) as run:
        (record,) = run.measure_now()
    assert record.status == "error" and "allow more" in record.reason


def test_targets_that_are_all_the_same_have_no_alignment() -> None:
    model, optimizer, (x, _) = problem()
    data = (x, torch.zeros(60, dtype=torch.long))
    with watch(model, optimizer, data=data, criterion=F.cross_entropy, probes=[TangentKernel()]) as run:
        (record,) = run.measure_now()
    assert record.status == "ok" and record.values["alignment"] is None


def test_classes_of_positions_are_no_rows_to_align_with() -> None:
    """A sequence's tokens are names and no numbers; rows with a one for each class are rows."""
    torch.manual_seed(0)
    x, tokens = torch.randint(5, (12, 4)), torch.randint(5, (12, 4))
    model = nn.Sequential(nn.Embedding(5, 3), nn.Linear(3, 5))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    options = {
        "forward": lambda m, b: m(b[0]).transpose(1, 2),
        "criterion": F.cross_entropy,
        "probes": [TangentKernel()],
    }
    with watch(model, optimizer, data=(x, tokens), **options) as run:
        (record,) = run.measure_now()
    assert record.status == "ok" and record.values["alignment"] is None


@pytest.mark.parametrize("options", [{"form": "half"}, {"samples": 0}, {"memory": 1.5}, {"inputs": 3}])
def test_bad_settings(options: dict[str, Any]) -> None:
    with pytest.raises(SettingError, match=next(iter(options))):
        TangentKernel(**options)
