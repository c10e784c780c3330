"""The loss surface at one point: objectives, curvature operators, Krylov methods and estimators."""

from .compositions import BlockDiagonal, Preconditioned, Restricted
from .errors import (
    DataError,
    DoubleBackwardError,
    KernelError,
    LosscopeError,
    LossError,
    NonFiniteError,
    ParameterError,
    RunError,
    SettingError,
)
from .estimate_trace import trace
from .hessian import Hessian
from .krylov import top_eigenpairs
from .objective import Objective
from .operators import SymmetricOperator
from .results import Eigenpairs, Estimate

__all__ = [
    "BlockDiagonal",
    "DataError",
    "DoubleBackwardError",
    "Eigenpairs",
    "Estimate",
    "Hessian",
    "KernelError",
    "LossError",
    "LosscopeError",
    "NonFiniteError",
    "Objective",
    "ParameterError",
    "Preconditioned",
    "Restricted",
    "RunError",
    "SettingError",
    "SymmetricOperator",
    "top_eigenpairs",
    "trace",
]
