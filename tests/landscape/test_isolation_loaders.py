"""Measuring on a loader does not change what the training loop gets from it."""

import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import BatchSampler, DataLoader, Dataset, Sampler, Subset, TensorDataset, WeightedRandomSampler

from isolation_cases import batches
from losscope.landscape import Objective


class EpochSampler(Sampler):
    """Shuffles by its own count of epochs, and keeps a list of what it gave."""

    def __init__(self) -> None:
        self.epoch, self.given = 0, []

    def __iter__(self) -> Iterator[int]:
        self.epoch += 1
        for index in np.random.default_rng(self.epoch).permutation(12).tolist():
            self.given.append(index)
            yield index

    def __len__(self) -> int:
        return 12


class CountingSet(Dataset):
    def __init__(self) -> None:
        self.seen, self.cache = 0, {}

    def __len__(self) -> int:
        return 12

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        self.seen += 1
        self.cache[index] = self.seen
        return torch.full((4,), float(index + 100 * self.seen)), index % 3


class CountingBatches:
    def __init__(self) -> None:
        self.epoch, self.loader = 0, DataLoader(CountingSet(), batch_size=4, sampler=EpochSampler())

    def __iter__(self) -> Iterator[Any]:
        self.epoch += 1
        for x, y in self.loader:
            yield x + self.epoch, y


class Augmented(Dataset):
    """Items with noise from a NumPy generator of the data set's own, from Python's and from torch's stream."""

    def __init__(self) -> None:
        self.rng = np.random.default_rng(0)

    def __len__(self) -> int:
        return 12

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        noise = self.rng.normal() + random.random() + float(torch.rand(()))
        return torch.full((4,), float(index)) + noise, index % 3


def _loader(kind: str) -> DataLoader:
    plain = TensorDataset(torch.arange(48.0).view(12, 4), torch.arange(12) % 3)
    weights = torch.arange(1.0, 13)
    return {
        "global shuffle": lambda: DataLoader(plain, batch_size=4, shuffle=True),
        "own generator": lambda: DataLoader(
            plain, batch_size=4, shuffle=True, generator=torch.Generator().manual_seed(5)
        ),
        "augmented": lambda: DataLoader(Augmented(), batch_size=4, shuffle=True),
        "weighted sampler": lambda: DataLoader(plain, batch_size=4, sampler=WeightedRandomSampler(weights, 12)),
        "weighted sampler with its own generator": lambda: DataLoader(
            plain,
            batch_size=4,
            sampler=WeightedRandomSampler(weights, 12, generator=torch.Generator().manual_seed(3)),
        ),
        "counting sampler": lambda: DataLoader(plain, batch_size=4, sampler=EpochSampler()),
        "counting batch sampler": lambda: DataLoader(plain, batch_sampler=BatchSampler(EpochSampler(), 4, False)),
        "counting data set": lambda: DataLoader(Subset(CountingSet(), range(12)), batch_size=4),
        "counting batches": CountingBatches,
        "two workers": lambda: DataLoader(Augmented(), batch_size=4, shuffle=True, num_workers=2),
        "persistent worker": lambda: DataLoader(
            Augmented(), batch_size=4, shuffle=True, num_workers=1, persistent_workers=True
        ),
    }[kind]()


@pytest.mark.parametrize(
    "kind",
    [
        "global shuffle", "own generator", "augmented", "weighted sampler", "weighted sampler with its own generator",
        "two workers", "persistent worker", "counting sampler", "counting batch sampler", "counting data set",
        "counting batches",
    ],
)  # fmt: skip
def test_the_loop_sees_the_same_data_while_its_loader_is_measured_on(kind: str) -> None:
    """Measured before the loop, in the middle of an epoch, and between epochs."""
    seen: list[list[Tensor]] = []
    model = nn.Linear(4, 3)
    for watched in (False, True):
        torch.manual_seed(0), random.seed(0), np.random.seed(0)  # noqa: NPY002
        loader, order = _loader(kind), []

        def look(loader: DataLoader = loader, watched: bool = watched) -> None:
            if watched:
                Objective(model, loader, criterion=nn.CrossEntropyLoss()).value()

        look()
        for _ in range(2):
            for step, (x, _) in enumerate(loader):
                order += [x, torch.rand(1), torch.tensor(random.random())]
                if step == 1:
                    look()
            look()
        seen.append(order)
    assert len(seen[0]) == len(seen[1]) == 18
    assert all(map(torch.equal, *seen))


@pytest.mark.parametrize("kind", ["global shuffle", "augmented", "weighted sampler"])
def test_snapshots_over_time_see_the_same_data(kind: str) -> None:
    loader, model = _loader(kind), nn.Linear(4, 3)
    first = [b.content[0] for b in Objective(model, loader, criterion=nn.CrossEntropyLoss()).batches]
    torch.rand(5)
    second = [b.content[0] for b in Objective(model, loader, criterion=nn.CrossEntropyLoss()).batches]
    assert all(map(torch.equal, first, second))


def test_the_users_batches_are_not_written() -> None:
    """Also by a model that works in place on its input."""
    x, y = batches()[0]
    kept = x.clone()
    model = nn.Sequential(nn.ReLU(inplace=True), nn.Linear(4, 3))
    objective = Objective(model, (x, y), criterion=nn.CrossEntropyLoss())
    values = [objective.value(), objective.value()]
    assert torch.equal(x, kept)
    assert values[0] == values[1]
