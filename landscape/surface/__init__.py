"""The landscape beyond one point: slices, planes, paths, trajectories and neighbourhoods."""

from .alignment import Alignment, align
from .archive import load, save
from .average_sharpness import AverageSharpness, average_sharpness
from .axes import checked_axes, orthogonalised
from .batch_statistics import STATISTICS, normalisation_layers, resolved_statistics, statistics_at
from .bezier import bezier_path
from .directions import between, eigenvector_directions, gradient_direction, random_direction, update_direction
from .evaluation import Evaluator, evaluate, evaluate_at
from .line import line, line_between
from .merging import Merged, merge
from .metrics import accuracy
from .neighbourhood import Neighbourhood, ScaledCurvature, neighbourhood, relative_flatness, scaled_curvature
from .normalisation import normalised
from .paths import barrier, barrier_matrix, linear_path
from .permutations import HiddenUnits, UnitGroup, hidden_units
from .plane import plane, plane_through
from .points import Point, buffers_at, parameters_at
from .quadratic_model import quadratic_model
from .recovered_axes import trajectory_axes_from
from .refinement import next_on_line, next_on_plane, refine_line, refine_plane
from .results import Axis, Line, LossPath, Plane, QuadraticModel, Refined
from .sam_sharpness import SamSharpness, sam_sharpness
from .smoothness_radius import Smoothness, gradient_normalised_smoothness
from .store import PointStore, asked_of
from .task_vectors import Conflict, Interference, TaskConflict, task_conflict
from .trajectory import WeightTrajectory, weight_trajectory
from .trajectory_pca import TrajectoryAxes, trajectory_axes
from .weight_sketch import WeightSketch

__all__ = [
    "STATISTICS",
    "Alignment",
    "AverageSharpness",
    "Axis",
    "Conflict",
    "Evaluator",
    "HiddenUnits",
    "Interference",
    "Line",
    "LossPath",
    "Merged",
    "Neighbourhood",
    "Plane",
    "Point",
    "PointStore",
    "QuadraticModel",
    "Refined",
    "SamSharpness",
    "ScaledCurvature",
    "Smoothness",
    "TaskConflict",
    "TrajectoryAxes",
    "UnitGroup",
    "WeightSketch",
    "WeightTrajectory",
    "accuracy",
    "align",
    "asked_of",
    "average_sharpness",
    "barrier",
    "barrier_matrix",
    "between",
    "bezier_path",
    "buffers_at",
    "checked_axes",
    "eigenvector_directions",
    "evaluate",
    "evaluate_at",
    "gradient_direction",
    "gradient_normalised_smoothness",
    "hidden_units",
    "line",
    "line_between",
    "linear_path",
    "load",
    "merge",
    "neighbourhood",
    "next_on_line",
    "next_on_plane",
    "normalisation_layers",
    "normalised",
    "orthogonalised",
    "parameters_at",
    "plane",
    "plane_through",
    "quadratic_model",
    "random_direction",
    "refine_line",
    "refine_plane",
    "relative_flatness",
    "resolved_statistics",
    "sam_sharpness",
    "save",
    "scaled_curvature",
    "statistics_at",
    "task_conflict",
    "trajectory_axes",
    "trajectory_axes_from",
    "update_direction",
    "weight_trajectory",
]
