"""The errors losscope raises on bad input.

Each names what was given, what was expected and what to do about it. All derive from
`LosscopeError`, and from the built-in a caller would expect to catch.
"""


class LosscopeError(Exception):
    """Base class of every error that losscope raises on purpose."""


class ParameterError(LosscopeError, ValueError):
    """The selected parameters cannot be measured (none, several devices, integers)."""


class DataError(LosscopeError, ValueError):
    """The data cannot be used (empty, exhausted, a batch of unknown weight)."""


class LossError(LosscopeError, ValueError):
    """The loss is not a finite-dimensional scalar function of the selected parameters."""


class SettingError(LosscopeError, ValueError):
    """An option (mode, schedule, tolerance ...) that means nothing."""


class DoubleBackwardError(LosscopeError, RuntimeError):
    """Something in the model or the loss cannot be differentiated twice."""


class KernelError(LosscopeError, RuntimeError):
    """A Hessian-vector kernel that cannot run this model, loss or data."""


class NonFiniteError(LosscopeError, ArithmeticError):
    """The loss, its gradient or a product with the curvature is NaN or infinite."""


class RankError(LosscopeError, RuntimeError):
    """Data-parallel processes that cannot measure together: one failed, is gone, or does something else."""


class RunError(LosscopeError):
    """A run folder that cannot be read, or that belongs to another run."""


def first_line(error: BaseException) -> str:
    """What an error of another library says, in one line; its kind where it says nothing."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
