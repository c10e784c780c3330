"""Watching training over time: hooks, schedules, measurements, the run folder and its verdicts."""

from .audit import Assumption, Audit, Criterion
from .collapse import NeuralCollapse
from .cost import Cost, ProbeCost
from .estimate import estimate
from .gradient_noise import GradientNoise
from .layers import LayerTraces
from .player import Player
from .probe import Measurement, Needs, Probe
from .records import SCHEMA_VERSION, Record
from .run import Run
from .schedule import logarithmic
from .sharpness import Sharpness
from .sinks import TensorBoard, WandB, export
from .snapshot import Snapshot
from .spectrum import Spectrum
from .stability import Stability
from .tangent import TangentKernel
from .trace import Trace
from .trajectory import Trajectory
from .trajectory_arrays import Checkpoints, checkpoints_of, trajectory_of
from .verdicts import Verdict
from .watch import Watch, watch

__all__ = [
    "SCHEMA_VERSION",
    "Assumption",
    "Audit",
    "Checkpoints",
    "Cost",
    "Criterion",
    "GradientNoise",
    "LayerTraces",
    "Measurement",
    "Needs",
    "NeuralCollapse",
    "Player",
    "Probe",
    "ProbeCost",
    "Record",
    "Run",
    "Sharpness",
    "Snapshot",
    "Spectrum",
    "Stability",
    "TangentKernel",
    "TensorBoard",
    "Trace",
    "Trajectory",
    "Verdict",
    "WandB",
    "Watch",
    "checkpoints_of",
    "estimate",
    "export",
    "logarithmic",
    "trajectory_of",
    "watch",
]
