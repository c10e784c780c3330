"""Probe NeuralCollapse: the numbers of the model at each step, by layer, stored, failing."""

import copy
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from losscope.landscape import Objective, SettingError, neural_collapse_of
from losscope.probes import NeuralCollapse, Run, Sharpness, watch

Data = tuple[torch.Tensor, torch.Tensor]


def problem() -> tuple[nn.Module, torch.optim.Optimizer, Data]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 12), nn.BatchNorm1d(12), nn.ReLU(), nn.Dropout(0.2), nn.Linear(12, 3))
    return model, torch.optim.SGD(model.parameters(), lr=0.2), (torch.randn(60, 4), torch.arange(60) % 3)


def trained(*probes: Any, steps: int = 9, every: int = 4, **options: Any) -> tuple[Run, list[nn.Module]]:
    """The run, and copies of the model before each measured step."""
    model, optimizer, (x, y) = problem()
    options = {"data": (x, y), "criterion": F.cross_entropy, "every": every, "probes": probes} | options
    copies = []
    with watch(model, optimizer, **options) as run:
        for step in range(steps):
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            if step % every == 0:
                copies.append(copy.deepcopy(model))
            optimizer.step()
    return run.run, copies


@pytest.mark.filterwarnings("ignore:losscope. .* is measured in mode=")
@pytest.mark.parametrize("mode", ["eval", "train"])
def test_the_numbers_are_those_of_the_model_in_eval_mode(mode: str) -> None:
    run, copies = trained(NeuralCollapse(["penultimate", "0"], ridge=0.01), mode=mode, on_error="raise")
    records = run.select("neural_collapse")
    assert [r.step for r in records] == [0, 4, 8]
    _, _, data = problem()
    for record, model in zip(records, copies, strict=True):
        objective = Objective(model, data, criterion=F.cross_entropy)
        expected = neural_collapse_of(objective, ridge=0.01)
        assert record.value == pytest.approx(expected.nc1, rel=1e-5)
        assert {name: record.values[name] for name in expected.numbers} == pytest.approx(expected.numbers, rel=1e-4)
        assert record.values["0/nc1"] == pytest.approx(neural_collapse_of(objective, "0").nc1, rel=1e-5)
        assert "0/nc3" not in record.values  # a hidden layer has no classifier
        assert record.values["samples"] == 60
        assert run.array(record, "duality") == pytest.approx(expected.duality.numpy(), rel=1e-4)
        assert run.array(record, "counts").tolist() == [20, 20, 20]
    assert records[-1].values["nc1"] < records[0].values["nc1"]


def test_beside_other_probes_and_read_back(tmp_path: Path) -> None:
    trained(Sharpness(), NeuralCollapse("penultimate", every=2), out=tmp_path / "run", on_error="raise")
    run = Run(tmp_path / "run")
    assert [r.step for r in run.select("neural_collapse")] == [0, 2, 4, 6, 8]
    assert run.array(run.select("neural_collapse")[-1], "variances").shape == (3,)
    assert {r.status for r in run.records} == {"ok"}


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"layers": "head"}, "the model has no layer 'head'"),
        ({"classes": 5}, "a row for each of the classes 0 to 4"),
        ({"classifier": "1"}, "is a BatchNorm1d"),
    ],
)
def test_a_failure_is_recorded_and_ends_nothing(options: dict[str, Any], says: str) -> None:
    with pytest.warns(RuntimeWarning, match=says):
        run, copies = trained(NeuralCollapse(**options))
    assert len(copies) == 3
    records = run.select("neural_collapse", ok=False)
    assert [r.status for r in records] == ["error"] * 3
    assert says in (records[0].reason or "")


def test_a_classifier_of_zeros_leaves_out_what_is_undefined() -> None:
    model, optimizer, data = problem()
    nn.init.zeros_(model[-1].weight)
    with watch(model, optimizer, data=data, criterion=F.cross_entropy, probes=[NeuralCollapse()]) as run:
        (record,) = run.measure_now()
    assert record.status == "ok"
    assert "nc3" not in record.values
    assert math.isfinite(record.values["nc1"] or math.nan)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"layers": []}, "at least one"),
        ({"layers": ["0", "0"]}, "distinct"),
        ({"pooling": "max"}, "pooling must be"),
        ({"balance": "equal"}, "'classes' or 'samples'"),
    ],
)
def test_settings_that_mean_nothing(options: dict[str, Any], says: str) -> None:
    with pytest.raises(SettingError, match=says):
        NeuralCollapse(**options)
