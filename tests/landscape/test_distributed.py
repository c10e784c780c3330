"""Data-parallel objectives: the same numbers as one process with all the data, and no rank that waits for ever."""

import pytest
import torch
from torch import nn

from losscope.landscape import Objective
from rank_cases import measured, measured_together
from ranks import net, on_ranks, samples

# --------------------------------------------------------------------------- the same numbers


def test_ranks_measure_what_one_process_does() -> None:
    size = 3
    everyones = on_ranks(measured_together, size, size)
    for (name, kernel), found in everyones[0].items():
        dtype = torch.float32 if "32" in name else torch.float64
        x, y = samples(dtype)
        batches = list(zip(x.split(8), y.split(8), strict=True))
        expected = measured(Objective(net(dtype), batches, criterion=nn.CrossEntropyLoss()), kernel)
        close = 1e-5 if dtype == torch.float32 else 1e-10 if kernel == "auto" else 1e-8
        for what, values in expected.items():
            largest = max(map(abs, values))
            assert found[what] == pytest.approx(values, rel=close, abs=close * largest), (name, kernel, what)
    assert all(found == everyones[0] for found in everyones)  # to the last bit
