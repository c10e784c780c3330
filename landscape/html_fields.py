"""A result as a table of its fields, for those that have no table of their own."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from numbers import Number

import numpy as np
import torch
from torch import Tensor

from .html_table import Shown, between, html_table, number
from .results import Estimate

__all__ = ["fields_html"]

FEW = 6
"""Numbers that are shown one by one; of more the range is."""
LONG = 160
"""Characters of what is shown as its ``repr``."""


def fields_html(result: object) -> str:
    """A row for each field of a dataclass that says something: numbers, intervals, shapes and ranges of tensors.

    Args:
        result: a dataclass instance; its ``note`` goes below the table.

    Example:
        >>> from losscope.landscape.html_fields import fields_html
        >>> from losscope.landscape.lazy import LazySummary
        >>> ">0.25</td>" in fields_html(LazySummary(0.25, 0.1, 0.1, 0.1, 0.1))
        True
    """
    names = [field.name for field in dataclasses.fields(result) if field.repr]  # type: ignore[arg-type]
    rows = [row for name in names if name != "note" for row in _rows(name.replace("_", " "), getattr(result, name))]
    converged = getattr(result, "converged", True)
    title = type(result).__name__ + ("" if converged else ", NOT converged")
    return html_table(title, ("", "value", "interval or range"), rows, str(getattr(result, "note", "") or ""))


def _rows(name: str, value: object) -> Iterator[list[str]]:
    """None for what is empty, several for a sequence of results."""
    if isinstance(value, tuple | list) and value and all(isinstance(each, Shown) for each in value):
        for i, each in enumerate(value[:FEW], 1):
            yield from _rows(f"{name} {i}", each)
        value = f"{len(value) - FEW} more" if len(value) > FEW else None
    if isinstance(value, Mapping) and value and all(isinstance(each, Number | Estimate) for each in value.values()):
        for key, each in value.items():
            yield from _rows(f"{name}: {key}", each)
        return
    shown, ends = _shown(value)
    if shown or ends:
        yield [name, shown, ends]


def _shown(value: object) -> tuple[str, str]:
    """A value, and its interval or range."""
    if isinstance(value, Estimate):
        return number(value.value), between(value.low, value.high, value.confidence)
    if isinstance(value, bool):
        return "yes" if value else "no", ""
    if isinstance(value, int):
        return f"{value:,}", ""
    if isinstance(value, float):
        return number(value), ""
    if isinstance(value, np.ndarray) and value.dtype.kind in "biufc":
        value = torch.from_numpy(value)
    if isinstance(value, Tensor):
        return _tensor(value)
    if value is None or isinstance(value, str):
        return value or "", ""
    if isinstance(value, Mapping):
        return _cut(", ".join(map(str, value))), ""
    if isinstance(value, Sequence):
        return _cut(", ".join(_shown(each)[0] for each in value)), ""
    plain = type(value).__repr__ is object.__repr__  # an address says nothing
    return _cut(type(value).__name__ if plain else repr(value)), ""


def _tensor(value: Tensor) -> tuple[str, str]:
    """Its numbers where they are few, else its shape, with the range of those that are finite."""
    if value.numel() <= FEW and value.dim() <= 1:
        return ", ".join(number(each) for each in torch.atleast_1d(value.detach()).tolist()), ""
    shape = " x ".join(f"{size:,}" for size in value.shape)
    finite = value.detach()[torch.isfinite(value)]
    if not len(finite):
        return f"{shape} numbers", ""
    low, high = float(finite.min()), float(finite.max())
    return f"{shape} numbers", f"{number(low)} to {number(high)}"


def _cut(text: str) -> str:
    return text if len(text) <= LONG else f"{text[: LONG - 3]}..."
