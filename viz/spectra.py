"""The spectra of a run over its steps, ready to draw: those that were measured, on one axis."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from losscope.landscape import RunError, SpectralDensity
from losscope.probes import Record, Run
from losscope.probes.density_arrays import ARRAYS, from_arrays

from . import series
from .smoothing import Axis, reach, smooth

__all__ = ["Spectra", "spectra"]

MOST = 400
"""Spectra that are read; of more, some at equal distances."""


@dataclass(frozen=True, eq=False)
class Spectra:
    """Spectral densities of a run.

    Attributes:
        records: those that the spectra are of, by step.
        densities: the spectra.
        missing: steps at which there is none.
        axis: on which all of them are shown.
        span: ends of that axis, on display.
    """

    records: list[Record]
    densities: list[SpectralDensity]
    missing: series.Unmeasured
    axis: Axis
    span: tuple[float, float]

    @property
    def steps(self) -> np.ndarray:
        """(t,) where they were measured."""
        return np.array([record.step for record in self.records], dtype=int)

    @property
    def ranked(self) -> list[tuple[int, int, float]]:
        """Step, rank and value of the largest eigenvalues, as far as the records have them one by one."""
        found = []
        for record in self.records:
            if record.value is not None:
                found.append((record.step, 1, record.value))
            rank = 2
            while (value := record.values.get(f"lambda_{rank}")) is not None:
                found.append((record.step, rank, value))
                rank += 1
        return found

    @property
    def threshold(self) -> np.ndarray:
        """(t,) the optimizer's stability threshold, NaN where none is known."""
        return series.column(self.records, "threshold")

    @property
    def shown_threshold(self) -> np.ndarray:
        """(t,) the optimizer's stability threshold, NaN where none is known or it is off the axis."""
        threshold = self.threshold
        low, high = self.axis.value(np.array(self.span))
        return np.where((low < threshold) & (threshold < high), threshold, np.nan)

    def image(self, bins: int) -> tuple[np.ndarray, np.ndarray]:
        """Edges of the bins, (bins + 1,) eigenvalues, and the densities over them, (bins, t).

        Per unit of the eigenvalues, or per decade on a logarithmic axis.
        """
        curves = [smooth(density, self.axis, span=self.span, bins=bins) for density in self.densities]
        return self.axis.value(curves[0].edges), np.array([curve.density for curve in curves]).T


def spectra(
    run: Run, player: str | None = None, *, logarithmic: bool | None = None, most: int = MOST
) -> Spectra | None:
    """All spectra of a run, or some of very many; None where there is none.

    Args:
        run: the run.
        player: which player; default: the first.
        logarithmic: whether eigenvalues are on a logarithmic axis; None decides by the spectra.
        most: how many are read; of more, some at equal distances.

    Raises:
        RunError: if the run has no such player.
    """
    records = run.select("spectrum", player)
    if len(records) > most:
        records = [records[i] for i in np.unique(np.linspace(0, len(records) - 1, most).round().astype(int))]
    kept, densities = [], []
    for record in records:
        try:
            densities.append(from_arrays(record, {name: run.array(record, name) for name in ARRAYS}))
            kept.append(record)
        except (RunError, KeyError, ValueError, TypeError, IndexError):  # its arrays are gone; the others still stand
            continue
    if not densities:
        return None
    axis = Axis.of(*densities, logarithmic=logarithmic)
    missing = series.unmeasured(run, "spectrum", player)
    return Spectra(kept, densities, missing, axis, reach(*densities, axis=axis))
