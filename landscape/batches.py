"""Data for one snapshot: read once, moved to the device, weighted, and cut into mini-batches."""

from __future__ import annotations

import collections.abc
import contextlib
import copy
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset

from .errors import DataError
from .reach import generators_within, objects_within, preserved_generators, preserved_objects

__all__ = [
    "Batch",
    "Weighted",
    "batch_length",
    "concatenated",
    "copied",
    "fix_batches",
    "map_tensors",
    "take",
    "tensors_of",
    "without_weights",
]


_FEW = 64


@dataclass(frozen=True, eq=False)
class Batch:
    """One batch, on the parameters' device.

    Attributes:
        content: what the user's data yielded; `Weighted` in an objective with weights per sample.
        weight: the denominator of this batch's mean loss (1 for a summed loss).
    """

    content: Any
    weight: float

    @property
    def sample_weights(self) -> Tensor | None:
        """The factor of each sample's term in the loss, (n,); None if they are not weighted."""
        return self.content.weights if isinstance(self.content, Weighted) else None


class Weighted(NamedTuple):
    """The content of a batch with a factor for each sample's term in the loss.

    Together, so that whoever copies, casts or cuts the content does the same to the weights.

    Attributes:
        content: what the user's data yielded.
        weights: (n,), one per sample.
    """

    content: Any
    weights: Tensor


def without_weights(content: Any) -> Any:
    """The content of a batch as the user's data yielded it."""
    return content.content if isinstance(content, Weighted) else content


def fix_batches(
    data: Any, weight: Callable[[Any], float], device: torch.device, *, limit: int | None = None
) -> tuple[Batch, ...]:
    """Read ``data`` once and hold its batches, so that an augmenting loader is one fixed sample.

    Args:
        data: an iterable of batches (a DataLoader, a list ...), or one batch: a tuple or mapping of
            tensors.
        weight: denominator of a batch's mean loss.
        device: where the parameters live.
        limit: read at most this many batches.

    Returns:
        The batches, at least one.

    Raises:
        DataError: if there is none, or the data is not batched.
    """
    batches = []
    with _untouched_loader(data), contextlib.closing(_read(data)) as contents:
        for content in contents:
            moved = to_device(content, device)
            if not isinstance(data, list | tuple | Mapping):
                moved = copied(moved)  # a loader may fill the same tensors again
            batches.append(Batch(moved, _checked_weight(weight(moved))))
            if limit is not None and len(batches) >= limit:
                break
    if not batches:
        hint = "it is a one-shot iterator that is used up; pass a list or a DataLoader" if is_one_shot(data) else ""
        raise DataError(f"the data yielded no batch ({type(data).__name__}{': ' + hint if hint else ''})")
    return tuple(batches)


def is_one_shot(data: Any) -> bool:
    """Whether ``data`` is an iterator, which can be read once only."""
    return isinstance(data, collections.abc.Iterator)


def _read(data: Any) -> Generator[Any, None, None]:
    if _is_one_batch(data):
        yield data
        return
    if isinstance(data, Tensor):
        raise DataError(
            f"data must be an iterable of batches or one (inputs, targets) batch, got a tensor of shape "
            f"{tuple(data.shape)}; write data=[(inputs, targets)], or data=[batch] with a loss_fn"
        )
    if isinstance(data, Dataset) and not isinstance(data, IterableDataset):
        raise DataError(
            f"data is a {type(data).__name__}, which yields single samples; wrap it: DataLoader(data, batch_size=...)"
        )
    if isinstance(data, list | tuple) and data and all(type(item).__module__ == "numpy" for item in data):
        raise DataError("data holds NumPy arrays, not tensors: make them with torch.from_numpy, of the model's dtype")
    if not isinstance(data, Iterable):
        raise DataError(f"data must be an iterable of batches, got {type(data).__name__}")
    yield from data


def _is_one_batch(data: Any) -> bool:
    if isinstance(data, Mapping):
        return bool(data)
    return isinstance(data, tuple) and len(data) > 0 and isinstance(data[0], Tensor)


def _holds_tensors_only(data: Any) -> bool:
    """Whether there is nothing but tensors, and numbers and words, in plain tuples, lists and dicts of not too many."""
    if type(data) in (tuple, list, dict):
        return len(data) <= _FEW and all(map(_holds_tensors_only, data.values() if type(data) is dict else data))
    return data is None or type(data) in (Tensor, int, float, bool, str)


def _checked_weight(weight: Any) -> float:
    value = float(weight)
    if not value >= 0 or value == float("inf"):
        raise DataError(f"the weight of a batch must be a finite number >= 0, got {value}")
    return value


# --------------------------------------------------------------------------- reading without a trace


@contextlib.contextmanager
def _untouched_loader(data: Any) -> Iterator[None]:
    """Put back a loader's random generators, its live worker iterator, and what its objects count.

    The training loop may be iterating the very same loader: its order, its augmentations and its
    persistent workers must not notice. Nor may a sampler or a data set that counts its epochs or its
    items; an iterator, which can be read once only, does move on.
    """
    if _holds_tensors_only(data):  # which reading leaves as they are
        yield
        return
    objects = [] if is_one_shot(data) else objects_within([data], data=True)
    with preserved_objects(objects, data=True), preserved_generators(generators_within([data], data=True)):
        for loader in objects:
            if isinstance(loader, DataLoader):  # else persistent workers would restart the loop's own epoch
                loader.__dict__["_iterator"] = None
        yield


# --------------------------------------------------------------------------- structure of a batch


def map_tensors(content: Any, function: Callable[[Tensor], Tensor]) -> Any:
    """Apply ``function`` to every tensor of a batch, keeping its structure; the batch is not changed."""
    if isinstance(content, Tensor):
        return function(content)
    if isinstance(content, collections.abc.MutableMapping):  # a dict of any kind, a BatchEncoding
        mapped = copy.copy(content)
        for key, value in content.items():
            mapped[key] = map_tensors(value, function)
        return mapped
    if isinstance(content, tuple) and hasattr(content, "_fields"):
        return type(content)(*(map_tensors(v, function) for v in content))
    if isinstance(content, list | tuple):
        return type(content)(map_tensors(v, function) for v in content)
    return content


def to_device(content: Any, device: torch.device) -> Any:
    """A batch with every tensor on ``device``; objects with a ``.to`` of their own use it on a copy."""
    known = Tensor | collections.abc.MutableMapping | list | tuple
    if not isinstance(content, known) and hasattr(content, "to"):
        return copy.copy(content).to(device)
    return map_tensors(content, lambda t: t.to(device, non_blocking=True))


def copied(content: Any) -> Any:
    """A batch with every tensor copied, for a model that may write on its input."""
    return map_tensors(content, torch.clone)


def tensors_of(content: Any) -> list[Tensor]:
    """All tensors of a batch, in order."""
    found: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        found.append(tensor)
        return tensor

    map_tensors(content, keep)
    return found


def batch_length(content: Any) -> int:
    """Number of samples in a batch: the first dimension its tensors share.

    Raises:
        DataError: if the batch has no such dimension.
    """
    lengths = {t.shape[0] if t.ndim else None for t in tensors_of(content)}
    if len(lengths) == 1 and None not in lengths:
        return int(next(iter(lengths)))  # type: ignore[arg-type]
    described = describe(content)
    raise DataError(
        f"cannot tell how many samples a batch holds ({described}); pass weight=, a function batch -> the "
        "denominator of its mean loss (samples, or tokens that are not ignored)"
    )


def concatenated(contents: list[Any]) -> Any:
    """Parts of batches as one batch; None where their shapes do not go together (padding of other lengths)."""
    columns = list(zip(*(tensors_of(content) for content in contents), strict=False))
    same_count = len({len(tensors_of(content)) for content in contents}) == 1
    if not same_count or any(t.ndim == 0 or t.shape[1:] != column[0].shape[1:] for column in columns for t in column):
        return None
    joined = iter([torch.cat(column) for column in columns])
    return map_tensors(contents[0], lambda _: next(joined))


def take(content: Any, index: Tensor) -> Any:
    """The samples ``index`` of a batch, in every tensor with the batch's first dimension."""
    length = batch_length(content)
    return map_tensors(content, lambda t: t[index.to(t.device)] if t.ndim and t.shape[0] == length else t)


def describe(content: Any) -> str:
    """A batch in words, for error messages."""
    if isinstance(content, Tensor):
        return f"tensor {tuple(content.shape)}"
    if isinstance(content, Mapping):
        return "{" + ", ".join(f"{k}: {describe(v)}" for k, v in content.items()) + "}"
    if isinstance(content, list | tuple):
        inner = ", ".join(describe(v) for v in content[:4])
        return f"{type(content).__name__}({inner}{', ...' if len(content) > 4 else ''})"
    return type(content).__name__
