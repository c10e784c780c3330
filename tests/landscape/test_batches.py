"""Batches: their structure, their length, their parts; private generators of loaders."""

import collections
import random
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset

from losscope.landscape import DataError
from losscope.landscape.batches import batch_length, copied, fix_batches, take, tensors_of, to_device

CPU = torch.device("cpu")


class Pair(NamedTuple):
    x: torch.Tensor
    y: torch.Tensor


class Encoding(collections.UserDict):
    """As tokenizers give: a mapping that is no dict."""


class Graph:
    """An object with a ``.to`` of its own, that changes itself."""

    def __init__(self) -> None:
        self.device: Any = "unset"

    def to(self, device: Any) -> "Graph":
        self.device = device
        return self


def rows(n: int = 3) -> torch.Tensor:
    return torch.arange(2.0 * n).view(n, 2)


STRUCTURES = {
    "tensor": rows,
    "pair": lambda: (rows(), torch.arange(3)),
    "list": lambda: [rows(), torch.arange(3)],
    "named": lambda: Pair(rows(), torch.arange(3)),
    "dict": lambda: {"x": rows(), "y": {"z": torch.arange(3)}},
    "ordered": lambda: collections.OrderedDict(x=rows(), y=torch.arange(3)),
    "default": lambda: collections.defaultdict(list, x=rows(), y=torch.arange(3)),
    "encoding": lambda: Encoding(x=rows(), y=torch.arange(3)),
    "with words": lambda: {"x": rows(), "names": ["a", "b", "c"], "count": 3},
}


@pytest.mark.parametrize("name", STRUCTURES)
def test_structure_survives_and_the_batch_is_not_changed(name: str) -> None:
    batch = STRUCTURES[name]()
    originals = tensors_of(batch)
    for moved in (to_device(batch, CPU), copied(batch)):
        assert type(moved) is type(batch)
        assert all(map(torch.equal, tensors_of(moved), originals))
        assert len(tensors_of(moved)) == len(originals) >= 1
    assert all(a is b for a, b in zip(tensors_of(batch), originals, strict=True))
    assert not any(a is b for a, b in zip(tensors_of(copied(batch)), originals, strict=True))
    if name == "with words":
        assert moved["names"] == ["a", "b", "c"] and moved["count"] == 3


@pytest.mark.parametrize("name", STRUCTURES)
def test_length_and_parts(name: str) -> None:
    batch = STRUCTURES[name]()
    assert batch_length(batch) == 3
    part = take(batch, torch.tensor([2, 0]))
    assert type(part) is type(batch)
    for original, taken in zip(tensors_of(batch), tensors_of(part), strict=True):
        assert torch.equal(taken, original[[2, 0]])


def test_objects_that_move_themselves_are_copied_first() -> None:
    graph = Graph()
    moved = to_device(graph, CPU)
    assert moved.device == CPU and moved is not graph and graph.device == "unset"


@pytest.mark.parametrize(
    "batch", [(rows(3), rows(2)), (rows(3), torch.tensor(1.0)), ("words",), {}, torch.tensor(1.0), Graph()]
)
def test_a_length_that_cannot_be_told_is_refused(batch: Any) -> None:
    with pytest.raises(DataError, match=r"cannot tell how many samples.*pass weight="):
        batch_length(batch)


def test_weights_and_limit() -> None:
    data = [(rows(n), torch.arange(n)) for n in (3, 2, 1)]
    fixed = fix_batches(data, batch_length, CPU)
    assert [b.weight for b in fixed] == [3.0, 2.0, 1.0]
    assert [b.weight for b in fix_batches(data, batch_length, CPU, limit=2)] == [3.0, 2.0]


class Counting(IterableDataset):
    def __iter__(self) -> Any:
        yield from (torch.full((2,), float(i)) for i in range(5))


def test_iterable_data_sets_are_read_as_they_are() -> None:
    assert [b.weight for b in fix_batches(DataLoader(Counting(), batch_size=2), batch_length, CPU)] == [2, 2, 1]
    assert len(fix_batches(Counting(), lambda b: 1.0, CPU)) == 5


class Private(Dataset):
    """A data set that draws from generators of its own, of every kind, some of them well hidden."""

    def __init__(self) -> None:
        self.modern = np.random.default_rng(0)
        self.old = np.random.RandomState(0)
        self.python = random.Random(0)
        self.nested = {"transforms": [torch.Generator().manual_seed(0)]}

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> torch.Tensor:
        hidden = self.nested["transforms"][0]
        draws = [self.modern.random(), self.old.rand(), self.python.random(), float(torch.rand((), generator=hidden))]
        return torch.tensor(draws)


@pytest.mark.parametrize("fails", [False, True])
def test_private_generators_are_put_back(fails: bool) -> None:
    def weight(batch: torch.Tensor) -> float:
        if fails:
            raise ZeroDivisionError
        return len(batch)

    data_set = Private()
    loader = DataLoader(data_set, batch_size=2, shuffle=True, generator=torch.Generator().manual_seed(9))
    order = loader.generator.get_state()
    try:
        first = fix_batches(loader, weight, CPU)
    except ZeroDivisionError:
        first = ()
    assert fails == (first == ())
    assert torch.equal(loader.generator.get_state(), order)
    fresh = Private()
    for index in range(4):
        assert torch.equal(data_set[index], fresh[index])
