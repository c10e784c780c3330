"""Neural collapse over training."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from losscope.landscape import Collapse, SettingError, neural_collapse_by_layer
from losscope.landscape.collapse import BALANCES
from losscope.landscape.features import PENULTIMATE, POOLINGS

from .probe import Measurement, Probe
from .snapshot import Snapshot

__all__ = ["NeuralCollapse"]


class NeuralCollapse(Probe):
    """How far features and classifier are from the simplex of neural collapse, ``value`` NC1 of the first layer.

    Measured in eval mode, whatever the mode of the other probes, on the data that is watched: every sample exactly, so
    there is no interval. It takes two forward passes over that data, and one more over its first batch. ``values`` has
    all numbers of `Collapse` by their names, those of further layers with the layer's name and a slash before it
    (``"conv1/nc1"``); a number that is undefined is missing there. ``arrays`` holds ``counts``, ``variances`` and
    ``duality`` of the classes.

    Args:
        layers: names of modules, whose outputs are measured; ``"penultimate"`` is the input of the last linear
            classifier, which is measured with it.
        pooling: how tokens and positions become rows: ``"mean"``, ``"flatten"``, ``"each"``, or a function; see
            `losscope.landscape.features`.
        classifier: its name, where the model's output is not that of an ``nn.Linear`` itself.
        classes: how many, or a list of labels to measure alone; by default as many as the classifier has rows.
        balance: what weighs the same, ``"classes"`` or ``"samples"``; see `losscope.landscape.neural_collapse`.
        ridge: take the squared loss apart too, with this weight decay.
        every: when; None follows `watch`.

    Raises:
        SettingError: if an argument means nothing.
    """

    name = "neural_collapse"

    def __init__(
        self, layers: Sequence[str] = (PENULTIMATE,), *, pooling: str | Callable[[Tensor], Tensor] = "mean",
        classifier: str | None = None, classes: int | Sequence[int] | None = None, balance: str = "classes",
        ridge: float | None = None, every: Any = None,
    ) -> None:  # fmt: skip
        super().__init__(every)
        self.layers = (layers,) if isinstance(layers, str) else tuple(layers)
        if not self.layers or len(set(self.layers)) < len(self.layers):
            raise SettingError(f"layers must be distinct names of modules, at least one; got {layers!r}")
        if not (callable(pooling) or pooling in POOLINGS):
            raise SettingError(f"pooling must be {', '.join(map(repr, POOLINGS))} or a function, got {pooling!r}")
        if balance not in BALANCES:
            raise SettingError(f"balance must be 'classes' or 'samples', got {balance!r}")
        self.options: dict[str, Any] = {
            "pooling": pooling, "classifier": classifier, "classes": classes, "balance": balance, "ridge": ridge,
        }  # fmt: skip

    def measure(self, snapshot: Snapshot) -> Measurement:
        """All numbers of every layer."""
        found = neural_collapse_by_layer(snapshot.objective, self.layers, **self.options)
        first = found[self.layers[0]]
        values: dict[str, float | None] = {
            "loss": snapshot.loss,
            "samples": float(first.samples),
            "imbalance": first.imbalance,
        }
        for layer, collapse in found.items():
            values |= _numbers(collapse, "" if collapse is first else f"{layer}/")
        arrays = {name: getattr(first, name).numpy() for name in ("counts", "variances", "duality")}
        value = first.nc1 if math.isfinite(first.nc1) else None
        return Measurement(value, unit="ratio", reason=first.reasons.get("nc1"), values=values, arrays=arrays)


def _numbers(collapse: Collapse, before: str) -> dict[str, float | None]:
    numbers: dict[str, float | None] = {
        before + name: value for name, value in collapse.numbers.items() if math.isfinite(value)
    }
    return numbers | {f"{before}rank": float(collapse.rank)}
