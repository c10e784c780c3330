"""Probe GradientNoise: against landscape's numbers, its fallback to mini-batches, intervals, bad input."""

import math
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from losscope.landscape import Objective, SettingError, gradient_noise
from losscope.probes import Run, watch
from losscope.probes.gradient_noise import GradientNoise


def problem(
    *middle: nn.Module, n: int = 60
) -> tuple[nn.Module, torch.optim.Optimizer, tuple[torch.Tensor, torch.Tensor]]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 12), *middle, nn.Tanh(), nn.Linear(12, 3))
    return model, torch.optim.SGD(model.parameters(), lr=0.2), (torch.randn(n, 4), torch.randint(3, (n,)))


def trained(
    probe: GradientNoise,
    *middle: nn.Module,
    n: int = 60,
    steps: int = 9,
    criterion: Any = F.cross_entropy,
    **options: Any,
) -> Run:
    model, optimizer, (x, y) = problem(*middle, n=n)
    options = {"data": (x, y), "criterion": criterion, "every": 4, "probes": [probe], "batch_size": 8} | options
    with watch(model, optimizer, **options) as run:
        for step in range(steps):
            optimizer.zero_grad()
            some = slice(8 * (step % 4), 8 * (step % 4) + 8)
            criterion(model(x[some]), y[some]).backward()
            optimizer.step()
    return run.run


def test_all_samples_give_the_exact_trace() -> None:
    model, optimizer, (x, y) = problem()
    data = (x, torch.zeros_like(y))  # one class, so that the gradient is not in doubt
    with watch(model, optimizer, data=data, criterion=F.cross_entropy, probes=[GradientNoise()], batch_size=8) as run:
        (record,) = run.measure_now()
    found = gradient_noise(Objective(model, data, criterion=F.cross_entropy), seed=0)
    assert record.status == "ok"
    assert record.unit == "samples"
    assert record.values["covariance_trace"] == pytest.approx(found.covariance_trace.value, rel=1e-5)
    assert record.values["gradient_square"] == pytest.approx(found.gradient_square.value, rel=1e-4)
    assert record.value == pytest.approx(found.simple.value, rel=1e-4)
    assert record.values["norm_50"] == pytest.approx(found.quantile(0.5).value, rel=1e-5)
    assert record.values["norm_test"] == pytest.approx(math.sqrt(found.simple.value / 8), rel=1e-4)
    assert record.values["batch_size"] == 8


def test_every_number_has_an_interval_about_it() -> None:
    records = trained(GradientNoise(clip=0.5)).select("gradient_noise")
    assert [r.step for r in records] == [0, 4, 8]
    for record in records:
        known = {key.removesuffix("_low") for key in record.values if key.endswith("_low")}
        assert {
            "covariance_trace",
            "gradient_square",
            "projected",
            "curvature_weighted",
            "covariance_curvature",
        } <= known
        assert {"gradient_curvature", "norm_05", "norm_95", "share_above_clip", "orthogonality_test"} <= known
        for name in known:
            value, low, high = (record.values[f"{name}{end}"] for end in ("", "_low", "_high"))
            assert low is None or value is None or low <= value + 1e-12
            assert high is None or value is None or value <= high + 1e-12
        assert record.values["conclusive"] == float(record.high is not None)


def test_an_inconclusive_scale_has_no_upper_end() -> None:
    torch.manual_seed(0)
    model = nn.Linear(3, 1, bias=False)
    nn.init.zeros_(model.weight)
    x = torch.randn(40, 3)
    data = (torch.cat([x, x]), torch.cat([torch.ones(40, 1), -torch.ones(40, 1)]))  # gradients that cancel
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with watch(model, optimizer, data=data, criterion=F.mse_loss, probes=[GradientNoise()]) as run:
        (record,) = run.measure_now()
    assert record.status == "ok"
    assert record.values["conclusive"] == 0
    assert record.value is None
    assert record.high is None
    assert record.low is not None
    assert record.low > 0


def test_without_samples_of_their_own_mini_batches_serve() -> None:
    for options in ({"mode": "train"}, {}):
        middle = (nn.BatchNorm1d(12),) if options else ()
        criterion = F.cross_entropy if options else nn.CrossEntropyLoss(weight=torch.tensor([0.2, 1.0, 3.0]))
        run = trained(GradientNoise(draws=20), *middle, criterion=criterion, on_error="raise", **options)
        for record in run.select("gradient_noise"):
            assert "from mini-batches of 8" in (record.reason or "")
            assert record.values["draw_size"] == 8
            assert (record.values["covariance_trace"] or 0) > 0


def test_without_a_batch_size_that_is_an_error_with_the_way_out() -> None:
    with pytest.warns(RuntimeWarning, match="pass batch_size= of 2 at least"):
        run = trained(GradientNoise(), nn.BatchNorm1d(12), mode="train", batch_size=None)
    (record, *_) = run.select("gradient_noise", ok=False)
    assert record.status == "error"


def test_a_part_of_the_samples() -> None:
    for record in trained(GradientNoise(samples=16, batch_size=4)).select("gradient_noise"):
        assert record.values["draws"] == 16
        assert record.values["batch_size"] == 4


@pytest.mark.parametrize(
    "arguments", [{"batch_size": 0}, {"samples": 4}, {"draws": True}, {"groups": 3}, {"clip": 0.0}, {"clip": math.inf}]
)
def test_bad_input(arguments: dict[str, Any]) -> None:
    with pytest.raises(SettingError):
        GradientNoise(**arguments)
