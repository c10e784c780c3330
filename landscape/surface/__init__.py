"""The landscape beyond one point: slices, planes, paths, trajectories and neighbourhoods."""

from .points import Point, buffers_at, parameters_at
from .results import Axis, Line, LossPath, Plane, QuadraticModel, Refined

__all__ = ["Axis", "Line", "LossPath", "Plane", "Point", "QuadraticModel", "Refined", "buffers_at", "parameters_at"]
