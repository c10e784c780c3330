"""The curvature of every layer over the steps, as a table that figures draw."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from losscope.probes import Run

from . import series

__all__ = ["LayerGrid", "layer_grid"]

MOST = 400
"""Measurements that are drawn; of more, some at equal distances."""


@dataclass(frozen=True, eq=False)
class LayerGrid:
    """Traces of L layers at t steps; NaN where a layer was not measured.

    Attributes:
        steps: (t,) where they were measured.
        names: of the layers, in the model's order.
        value: (L, t) traces.
        low: (L, t) lower ends of their intervals.
        high: (L, t) upper ends.
        missing: steps at which there is nothing.
    """

    steps: np.ndarray
    names: list[str]
    value: np.ndarray
    low: np.ndarray
    high: np.ndarray
    missing: series.Unmeasured

    @property
    def uncertain(self) -> np.ndarray:
        """(L, t) where the interval does not tell the sign."""
        return np.isfinite(self.value) & ~((self.low > 0) | (self.high < 0))

    @property
    def negative(self) -> bool:
        """Whether some trace is below zero by two half-widths of its interval; by one, some of many are by chance."""
        return bool((2 * self.high - self.value < 0).any())

    @property
    def span(self) -> tuple[float, float]:
        """Least and largest size worth telling apart: the noise's, or a millionth of the largest, and that."""
        sizes = np.abs(self.value[np.isfinite(self.value) & (self.value != 0)])
        if not len(sizes):
            return 0.5, 1.0
        top = float(sizes.max())
        clear = np.abs(self.value[np.isfinite(self.value) & ~self.uncertain])
        clear = clear[clear > 0]
        least = max(float(clear.min()) if len(clear) else top / 10, top * 1e-6)
        return (least, top) if least < 0.9 * top else (top / 10, top)


def layer_grid(run: Run, player: str | None = None) -> LayerGrid:
    """The records of probe ``layer_traces``; of no layers where there is none.

    Raises:
        RunError: if the run has no such player.
    """
    records = run.select("layer_traces", player)
    if len(records) > MOST:
        records = [records[i] for i in np.unique(np.linspace(0, len(records) - 1, MOST).round().astype(int))]
    ends = ("trace", "trace_low", "trace_high")
    names = list(
        dict.fromkeys(key.removesuffix("/trace") for r in records for key in r.values if key.endswith("/trace"))
    )
    value, low, high = (_table([[r.values.get(f"{name}/{end}") for r in records] for name in names]) for end in ends)
    steps = np.array([r.step for r in records], dtype=int)
    return LayerGrid(steps, names, value, low, high, series.unmeasured(run, "layer_traces", player))


def _table(rows: list[list[float | None]]) -> np.ndarray:
    return np.array([series.numbers(row) for row in rows], dtype=float)
