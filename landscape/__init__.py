"""The loss surface at one point: objectives, curvature operators, Krylov methods and estimators."""

from .batch_effect import BatchEffect, batch_effect
from .block_density import block_densities
from .blockwise import block_eigenpairs, block_traces
from .class_means import ClassParts, class_parts
from .class_structure import ClassStructure, class_structure
from .collapse import Collapse, neural_collapse, neural_collapse_of_batches
from .compositions import BlockDiagonal, Preconditioned, Restricted
from .density import spectral_density
from .distributed import Ranks
from .errors import (
    DataError,
    DoubleBackwardError,
    KernelError,
    LosscopeError,
    LossError,
    NonFiniteError,
    ParameterError,
    RankError,
    RunError,
    SettingError,
)
from .estimate_diagonal import diagonal
from .estimate_norm import frobenius_norm
from .estimate_trace import trace
from .fisher import EmpiricalFisher, MonteCarloFisher
from .gauss_newton import GaussNewton
from .hessian import Hessian
from .inverse_fisher import InverseFisher
from .jacobian import Jacobian
from .krylov import top_eigenpairs
from .layer_collapse import neural_collapse_by_layer, neural_collapse_of
from .layer_traces import layer_traces
from .noise import NoiseStatistics, gradient_noise, minibatch_noise
from .noise_scale import NoiseScale, noise_scale, two_batch_noise
from .objective import Objective
from .operators import SymmetricOperator
from .outliers import Outliers, outliers
from .quadrature import trace_function
from .random_matrix import MarchenkoPastur, Semicircle
from .results import DiagonalEstimate, Eigenpairs, Estimate, NegativeCurvature, Solution
from .sample_gradients import per_sample_gradients
from .sampling import SamplingError, sampling_error
from .shuffled import shuffled_labels
from .signal_to_noise import ParameterSignal, parameter_signal, tensor_signal
from .solve import solve
from .spectral_measure import SpectralDensity
from .subspace import GradientShare, SubspaceOverlap, gradient_share, subspace_overlap
from .surface import align, average_sharpness, bezier_path, line, linear_path, merge, plane, sam_sharpness
from .tangent_kernel import EmpiricalKernel, tangent_kernel
from .tracked_pair import TrackedPair
from .tracked_trace import TrackedTrace

__all__ = [
    "BatchEffect",
    "BlockDiagonal",
    "ClassParts",
    "ClassStructure",
    "Collapse",
    "DataError",
    "DiagonalEstimate",
    "DoubleBackwardError",
    "Eigenpairs",
    "EmpiricalFisher",
    "EmpiricalKernel",
    "Estimate",
    "GaussNewton",
    "GradientShare",
    "Hessian",
    "InverseFisher",
    "Jacobian",
    "KernelError",
    "LossError",
    "LosscopeError",
    "MarchenkoPastur",
    "MonteCarloFisher",
    "NegativeCurvature",
    "NoiseScale",
    "NoiseStatistics",
    "NonFiniteError",
    "Objective",
    "Outliers",
    "ParameterError",
    "ParameterSignal",
    "Preconditioned",
    "RankError",
    "Ranks",
    "Restricted",
    "RunError",
    "SamplingError",
    "Semicircle",
    "SettingError",
    "Solution",
    "SpectralDensity",
    "SubspaceOverlap",
    "SymmetricOperator",
    "TrackedPair",
    "TrackedTrace",
    "align",
    "average_sharpness",
    "batch_effect",
    "bezier_path",
    "block_densities",
    "block_eigenpairs",
    "block_traces",
    "class_parts",
    "class_structure",
    "diagonal",
    "frobenius_norm",
    "gradient_noise",
    "gradient_share",
    "layer_traces",
    "line",
    "linear_path",
    "merge",
    "minibatch_noise",
    "neural_collapse",
    "neural_collapse_by_layer",
    "neural_collapse_of",
    "neural_collapse_of_batches",
    "noise_scale",
    "outliers",
    "parameter_signal",
    "per_sample_gradients",
    "plane",
    "sam_sharpness",
    "sampling_error",
    "shuffled_labels",
    "solve",
    "spectral_density",
    "subspace_overlap",
    "tangent_kernel",
    "tensor_signal",
    "top_eigenpairs",
    "trace",
    "trace_function",
    "two_batch_noise",
]
