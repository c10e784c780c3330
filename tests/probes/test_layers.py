"""The probe of every layer's curvature: what it records, what a checkpoint keeps of it; and it disturbs nothing."""

from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from losscope.landscape import BlockDiagonal, Hessian, Objective, SettingError, layer_traces
from losscope.probes import LayerTraces, Watch, watch
from probe_cases import train


def trained(probe: LayerTraces, steps: int = 4, **options: Any) -> Watch:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))
    x, y = torch.randn(20, 6), torch.randint(3, (20,))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with watch(model, optimizer, data=(x, y), criterion=F.cross_entropy, every=2, probes=[probe], **options) as run:
        for _ in range(steps):
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            optimizer.step()
    return run


def test_records_hold_every_layer_in_the_models_order() -> None:
    run = trained(LayerTraces(vectors=8, rank=2), on_error="raise")
    first, second = run.run.select("layer_traces")
    names = [key.removesuffix("/trace") for key in first.values if key.endswith("/trace")]
    assert names == ["0", "2"]
    assert [first.values[f"{name}/size"] for name in names] == [56.0, 27.0]
    for name in names:
        low, value, high = (first.values[f"{name}/trace{end}"] for end in ("_low", "", "_high"))
        assert low < value < high
    assert sum(first.values[f"{name}/trace"] for name in names) == pytest.approx(first.value, rel=1e-4)
    assert (first.matvecs, second.matvecs) == (12, 10) and first.unit == "curvature"


def test_values_are_those_of_the_weights_before_the_step() -> None:
    run = trained(LayerTraces(vectors=200), on_error="raise")  # exact
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))
    data = (torch.randn(20, 6), torch.randint(3, (20,)))
    found = layer_traces(BlockDiagonal(Hessian(Objective(model, data, criterion=F.cross_entropy))), vectors=200)
    record = run.run.select("layer_traces")[0]
    assert record.values["0/trace"] == pytest.approx(found["0"].value, rel=1e-5)


def test_groups_by_name() -> None:
    record = trained(LayerTraces({"all": "*"}, vectors=8), on_error="raise").run.select("layer_traces")[0]
    assert record.values["all/trace"] == pytest.approx(record.value) and record.values["all/size"] == 83.0


@pytest.mark.filterwarnings("ignore:losscope")
def test_a_group_that_selects_nothing_fails_the_measurement_alone() -> None:
    (record, *_) = trained(LayerTraces({"none": "nowhere.*"})).run.select("layer_traces", ok=False)
    assert record.status == "error" and "nowhere" in (record.reason or "")


def test_a_checkpoint_keeps_the_directions() -> None:
    run = trained(LayerTraces(vectors=8, rank=2))
    state = run.state_dict()
    assert "basis" in str(state["players"]["model"])


@pytest.mark.parametrize("name", ["cnn", "fused"])
def test_training_is_the_same_to_the_bit(name: str) -> None:
    runs = []

    def watching(model: nn.Module, optimizer: torch.optim.Optimizer, data: Any) -> Any:
        options: dict[str, Any] = {"criterion": F.cross_entropy, "every": 3, "mode": "train", "on_error": "raise"}
        runs.append(watch(model, optimizer, data=data, probes=[LayerTraces(vectors=4, rank=2)], **options))
        return runs[0]

    assert train(name, "momentum", watching).differences(train(name, "momentum")) == []
    assert [r.step for r in runs[0].run.select("layer_traces")] == [0, 3, 6]


def test_bad_input() -> None:
    with pytest.raises(SettingError, match="vectors"):
        LayerTraces(vectors=1)
    with pytest.raises(SettingError, match="rank"):
        LayerTraces(rank=-1)
