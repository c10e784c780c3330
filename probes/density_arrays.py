"""A spectral density as the arrays and numbers of a record, and back."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import torch

from losscope.landscape import SpectralDensity
from losscope.landscape.quadrature import Quadrature

from .records import Record

__all__ = ["ARRAYS", "from_arrays", "to_arrays"]

PER_START = ("nodes", "weights", "residuals")
ARRAYS = (*PER_START, "deflated", "errors", "continued")


def to_arrays(density: SpectralDensity) -> dict[str, np.ndarray]:
    """The arrays of a record, float64.

    Returns:
        ``nodes``, ``weights`` and ``residuals`` (v, m), a row for each start, NaN after its end; ``deflated`` and
        ``errors`` (d,), the eigenvalues that were taken out and how far each may be off; ``continued`` (2, k), nodes
        and weights of what stands for the starts, with k = 0 for their quadratures.
    """
    longest = max((len(start.nodes) for start in density.starts), default=0)
    arrays = {name: np.full((len(density.starts), longest), np.nan) for name in PER_START}
    for row, start in enumerate(density.starts):
        for name, array in arrays.items():
            array[row, : len(start.nodes)] = getattr(start, name).numpy()
    continued = np.zeros((2, 0)) if density.continued is None else torch.stack(density.continued).numpy()
    return arrays | {"deflated": density.deflated.numpy(), "errors": density.errors.numpy(), "continued": continued}


def from_arrays(record: Record, arrays: Mapping[str, np.ndarray]) -> SpectralDensity:
    """The density that a record of probe ``spectrum`` and its arrays hold."""
    nodes, weights, residuals = (torch.from_numpy(arrays[name]) for name in PER_START)
    lengths = (~nodes.isnan()).sum(dim=1).tolist()
    starts = [Quadrature(nodes[row, :m], weights[row, :m], residuals[row, :m]) for row, m in enumerate(lengths)]
    values = {name: math.nan if value is None else value for name, value in record.values.items()}
    wasserstein = record.values["wasserstein"]
    places, masses = torch.from_numpy(arrays["continued"])
    return SpectralDensity(
        tuple(starts),
        torch.from_numpy(arrays["deflated"]),
        int(values["size"]),
        int(values["density_matvecs"]),
        math.inf if wasserstein is None else wasserstein,
        values["confidence"],
        bool(values["converged"]),
        record.kernel,
        record.reason or "",
        torch.from_numpy(arrays["errors"]),
        values["rounding"],
        int(values["steps"]),
        (places, masses) if len(places) else None,
    )
