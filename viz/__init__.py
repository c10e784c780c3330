"""What people look at: figures, the report page and the command line."""

from .class_structure import plot_class_structure
from .collapse import plot_collapse
from .dashboard import plot_dashboard
from .figure import figure
from .gradient_noise import plot_gradient_noise
from .interactive import interactive_spectrum
from .interactive_density import interactive_density
from .interactive_layers import interactive_layers
from .interactive_stability import interactive_sharpness, interactive_stability
from .interactive_surface import interactive_surface
from .layers import plot_layers
from .line import plot_line
from .multiples import plot_multiples
from .neighbourhood import plot_neighbourhood
from .notebook import register as _register
from .outliers import plot_outliers
from .overlay import plot_overlay
from .path import plot_path
from .report import report
from .save_html import save_html
from .sharpness import plot_sharpness
from .spectrum import plot_spectrum
from .spectrum_over_time import plot_spectrum_over_time
from .stability import plot_stability
from .surface import plot_surface
from .tangent import plot_tangent_kernel
from .trajectory import plot_trajectory

__all__ = [
    "figure",
    "interactive_density",
    "interactive_layers",
    "interactive_sharpness",
    "interactive_spectrum",
    "interactive_stability",
    "interactive_surface",
    "plot_class_structure",
    "plot_collapse",
    "plot_dashboard",
    "plot_gradient_noise",
    "plot_layers",
    "plot_line",
    "plot_multiples",
    "plot_neighbourhood",
    "plot_outliers",
    "plot_overlay",
    "plot_path",
    "plot_sharpness",
    "plot_spectrum",
    "plot_spectrum_over_time",
    "plot_stability",
    "plot_surface",
    "plot_tangent_kernel",
    "plot_trajectory",
    "report",
    "save_html",
]

_register()  # in a notebook, runs are shown with a picture
