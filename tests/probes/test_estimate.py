"""What measuring will cost, tried beforehand: figures as of real measurements, and nothing is left behind."""

import copy

import pytest
import torch
from torch import nn

from losscope.landscape import SettingError
from losscope.probes import Sharpness, Snapshot, Spectrum, Trace, estimate, watch
from losscope.probes.estimate import TensorPeak
from probe_cases import Line


def broken(snapshot: Snapshot) -> dict[str, float]:
    raise ArithmeticError("on purpose")


def test_nothing_is_left_behind() -> None:
    """BatchNorm, dropout, an order from the global stream: weights, buffers, gradients and streams stay."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 2))
    data = torch.utils.data.TensorDataset(torch.randn(12, 3), torch.randint(2, (12,)))
    loader = torch.utils.data.DataLoader(data, 4, shuffle=True)
    optimizer = torch.optim.Adam(model.parameters())
    nn.functional.cross_entropy(model(data.tensors[0]), data.tensors[1]).backward()
    before = copy.deepcopy((model.state_dict(), [p.grad for p in model.parameters()], optimizer.state_dict()))
    stream = torch.get_rng_state()
    found = estimate(model, optimizer, data=loader, criterion=nn.CrossEntropyLoss(), batch_size=4)
    assert {each.probe for each in found.probes} == {"sharpness", "trace", "stability"}
    assert all(each.measurements == 2 and not each.failures for each in found.probes), found
    after = (model.state_dict(), [p.grad for p in model.parameters()], optimizer.state_dict())
    assert torch.equal(torch.get_rng_state(), stream) and model.training
    assert repr(after) == repr(before)
    for one, other in zip(after[0].values(), before[0].values(), strict=True):
        assert torch.equal(one, other)


def test_products_are_those_of_a_run() -> None:
    """Of a later measurement: with warm starts, as the second one of a run at the same weights."""
    line = Line()
    optimizer = torch.optim.SGD(line.model.parameters(), lr=0.0)
    options = {name: value for name, value in line.options().items() if name in ("data", "criterion", "loss_fn")}
    for probe in (Sharpness, Trace, Spectrum):
        (found,) = estimate(line.model, optimizer, probes=[probe()], **options).probes
        with watch(line.model, optimizer, probes=[probe()], every=1, **options) as run:
            for _ in range(2):
                optimizer.step()
        assert found.products == 2 * run.run.records[1].matvecs, probe
        assert found.each > 0 and found.memory is not None and found.gradients is not None


def test_what_fails_is_said_and_what_means_nothing_refused() -> None:
    line = Line()
    optimizer = torch.optim.SGD(line.model.parameters(), lr=0.1)
    options = {name: value for name, value in line.options().items() if name in ("data", "criterion", "loss_fn")}
    found = estimate(line.model, optimizer, probes=[broken, Sharpness()], **options)
    assert found["broken"].failures == ("ArithmeticError: on purpose",) and found["sharpness"].measurements == 2
    assert "nan" not in repr(found)
    with pytest.raises(SettingError, match="estimate has no option every"):
        estimate(line.model, optimizer, every=3, **options)


def test_tensors_that_live_at_once() -> None:
    """By hand: views and what is changed in place take nothing; what is freed is given back."""
    with TensorPeak() as peak:
        a = torch.ones(1000)
        a.view(10, 100).add_(1)
        b = a * 2
        del a
        c = b + 1
    assert peak.highest == 8000 and float(c[0] + b[0]) == 9
    x = torch.randn(100, 50, requires_grad=True)
    with TensorPeak() as peak:
        x.tanh().tanh().sum().backward()
    assert 60_000 <= peak.highest <= 60_016  # both outputs, which are kept, and one gradient; two sums
