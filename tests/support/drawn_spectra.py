"""Made-up runs with spectra, for tests of what people look at."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch

from drawn_runs import meta
from losscope.landscape import SpectralDensity, spectral_density
from losscope.landscape.quadrature import Quadrature
from losscope.probes import Record, Run
from losscope.probes.density_arrays import to_arrays
from losscope.probes.folder import array_path


def atom(scale: float = 1.0, at: float = 1e5, starts: int = 4) -> SpectralDensity:
    """99 % of the eigenvalues in a bulk of width 1, 1 % at one place far away."""
    generator = torch.Generator().manual_seed(0)
    bulk = torch.rand(990, generator=generator, dtype=torch.float64) - 0.5
    values = scale * torch.cat([bulk, torch.full((10,), at, dtype=torch.float64)])
    return spectral_density(torch.diag(values), vectors=starts, steps=20, seed=0)


def scaled(density: SpectralDensity, factor: float) -> SpectralDensity:
    """The density of the operator times a number."""
    starts = []
    for q in density.starts:
        nodes, order = (factor * q.nodes).sort()
        starts.append(Quadrature(nodes, q.weights[order], abs(factor) * q.residuals[order]))
    continued = None
    if density.continued is not None:
        nodes, order = (factor * density.continued[0]).sort()
        continued = nodes, density.continued[1][order]
    deflated = (factor * density.deflated).sort().values
    return dataclasses.replace(density, starts=tuple(starts), deflated=deflated, continued=continued)


def spiked(outliers: Iterable[float], width: float = 1.0, size: int = 400, starts: int = 3) -> SpectralDensity:
    """A bulk about zero with some eigenvalues above it, which were found one by one."""
    bulk = width * torch.linspace(-0.5, 1.0, size - len(known := sorted(outliers)), dtype=torch.float64)
    rest = spectral_density(torch.diag(bulk), vectors=starts, steps=16, seed=0)
    values = torch.tensor(known, dtype=torch.float64)
    return SpectralDensity(
        rest.starts, values, size, rest.matvecs + 30, 0.01, 0.95, True, "retained", "", 1e-6 * values.abs()
    )


def recorded(
    step: int, density: SpectralDensity, *, player: str = "model", lr: float = 0.1
) -> tuple[Record, dict[str, np.ndarray]]:
    """What probe ``spectrum`` records of a density, with its arrays by their paths."""
    found = density.deflated.flip(0).tolist()
    values: dict[str, Any] = {
        "loss": 0.5, "threshold": 2 / lr, "threshold_largest": 2 / lr, "size": float(density.size),
        "wasserstein": density.wasserstein if math.isfinite(density.wasserstein) else None,
        "confidence": density.confidence, "converged": 1.0, "rounding": density.rounding,
        "density_matvecs": float(density.matvecs), "steps": float(density.steps), "outliers": float(len(found)),
        "outliers_low": float(max(len(found) - 1, 0)), "outliers_high": float(len(found)),
        "bulk_edge": 1.1, "bulk_edge_low": 1.0, "bulk_edge_high": 1.2,
    }  # fmt: skip
    values |= {f"lambda_{rank}": value for rank, value in enumerate(found, 1) if rank > 1}
    arrays = to_arrays(density)
    paths = {name: array_path(f"{player}-spectrum-{step}-{name}") for name in arrays}
    top = density.bounds[1]
    record = Record(
        step, player, "spectrum", lr=lr, value=top, low=top, high=1.02 * top, unit="curvature", kernel="retained",
        matvecs=100, seconds=0.1, values=values, arrays=paths,
    )  # fmt: skip
    return record, {paths[name]: array for name, array in arrays.items()}


def evolving(steps: int = 12, every: int = 50, player: str = "model", failed: tuple[int, ...] = (4,)) -> Run:
    """Three outliers that grow out of the bulk while it shrinks; some measurements failed."""
    records, arrays = [], {}
    for t in range(steps):
        if t in failed:
            records.append(Record(t * every, player, "spectrum", status="error", reason="RuntimeError: out of memory"))
            continue
        top = [2.0 + t, 1.5 + 0.7 * t, 1.2 + 0.2 * t]
        record, some = recorded(t * every, spiked(top, width=1 / (1 + 0.1 * t)), player=player)
        records.append(record)
        arrays |= some
    return Run.from_records(meta(**{player: {}}), records, arrays)
