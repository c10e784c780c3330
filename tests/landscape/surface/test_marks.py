"""What a forward pass changes of modules is seen in their marks."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from isolation_cases import busy_with_gradients
from losscope.landscape.surface.marks import marks


class Noting(nn.Module):
    """Calls ``note(self)`` in its forward pass."""

    def __init__(self, note: Callable[[nn.Module], None]) -> None:
        super().__init__()
        self.note = note
        self.register_buffer("average", torch.zeros(2))
        self.count, self.history, self.table, self.seen = 0, [1.0], {"inner": [torch.zeros(2)]}, {1}

    def forward(self, x: Tensor) -> Tensor:
        self.note(self)
        return x


NOTES: dict[str, Callable[[nn.Module], None]] = {
    "buffer written": lambda m: m.average.add_(1),
    "buffer replaced": lambda m: setattr(m, "average", m.average + 1),
    "counter": lambda m: setattr(m, "count", m.count + 1),
    "list": lambda m: m.history.append(2.0),
    "entry of a list": lambda m: m.history.__setitem__(0, 2.0),
    "tensor in a list in a dict": lambda m: m.table["inner"][0].add_(1),
    "set": lambda m: m.seen.add(2),
    "flag": lambda m: setattr(m, "training", not m.training),
    "new attribute": lambda m: setattr(m, "last", None),
}


@pytest.mark.parametrize("name", sorted(NOTES))
def test_a_change_is_seen(name: str) -> None:
    model = Noting(NOTES[name])
    before = marks([model])
    model(torch.ones(2))
    assert marks([model]) != before


def test_no_change_is_seen_where_there_is_none() -> None:
    for model in (nn.BatchNorm1d(3).eval(), nn.LSTM(3, 3), nn.Linear(3, 3), Noting(lambda m: None)):
        before = marks([model])
        model(torch.ones(2, 3))
        assert marks([model]) == before


def test_a_layer_in_train_mode_and_a_busy_model() -> None:
    for model in (nn.BatchNorm1d(4), busy_with_gradients()):
        modules = list(model.modules())
        before = marks(modules)
        model(torch.randn(5, 4))
        assert marks(modules) != before
