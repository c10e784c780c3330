"""The landscape beyond one point: slices, planes, paths, trajectories and neighbourhoods."""

from .archive import load, save
from .batch_statistics import STATISTICS, normalisation_layers, resolved_statistics, statistics_at
from .points import Point, buffers_at, parameters_at
from .results import Axis, Line, LossPath, Plane, QuadraticModel, Refined

__all__ = [
    "STATISTICS",
    "Axis",
    "Line",
    "LossPath",
    "Plane",
    "Point",
    "QuadraticModel",
    "Refined",
    "buffers_at",
    "load",
    "normalisation_layers",
    "parameters_at",
    "resolved_statistics",
    "save",
    "statistics_at",
]
