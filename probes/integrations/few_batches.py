"""Batches to measure on where none were given: a few, from what the training trains on."""

from __future__ import annotations

from typing import Any

from torch.utils.data import DataLoader, IterableDataset, Subset

from losscope.landscape import SettingError

__all__ = ["few_batches"]


def few_batches(loader: Any, batches: int = 4, *, rank: int = 0, ranks: int = 1) -> DataLoader[Any]:
    """A loader of its own over samples at even distances in the data set that another loader draws from.

    The other loader is not iterated: neither its order nor its place in the epoch can change by that.

    Args:
        loader: the training's, of a data set with a length.
        batches: at most so many, as large as the training's.
        rank: of several processes that train together, this one, which takes its part of them.
        ranks: how many processes.

    Raises:
        SettingError: if the data set is a stream, or the loader does not show its own.
    """
    dataset: Any = getattr(loader, "dataset", None)
    countable = hasattr(dataset, "__getitem__") and hasattr(dataset, "__len__")
    if not countable or isinstance(dataset, IterableDataset) or len(dataset) == 0:
        kind = type(loader if dataset is None else dataset).__name__
        raise SettingError(
            f"there is nothing to measure on: samples of {kind} cannot be picked; pass data=, a list of batches or a "
            "DataLoader of its own"
        )
    size = loader.batch_size or getattr(getattr(loader, "batch_sampler", None), "batch_size", None) or 1
    count = min(max(size * batches, ranks), len(dataset))
    chosen = [i * len(dataset) // count for i in range(count)][rank::ranks]
    return DataLoader(Subset(dataset, chosen), batch_size=size, collate_fn=loader.collate_fn)
