"""What people look at: figures, the report page and the command line."""

from .figure import figure
from .report import report
from .sharpness import plot_sharpness
from .stability import plot_stability

__all__ = ["figure", "plot_sharpness", "plot_stability", "report"]
