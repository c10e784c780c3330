"""What the page says under each figure, how large it is, and which probe it needs."""

from __future__ import annotations

from collections.abc import Sequence

from losscope.probes import Run

__all__ = ["CAPTIONS", "DASHED", "DRAWN", "NARROW", "WIDE", "kinds"]

WIDE = {
    "sharpness": (8.6, 5.2), "stability": (8.6, 5.0), "spectrum": (8.6, 4.4), "spectrum_over_time": (8.6, 4.8),
    "outliers": (8.6, 5.2), "collapse": (8.6, 6.0), "tangent_kernel": (8.6, 5.0),
    "gradient_noise": (8.6, 6.0), "trajectory": (8.6, 7.4),
    "layers": (8.6, 4.4),
}  # fmt: skip
NARROW = {
    "sharpness": (3.9, 4.8), "stability": (3.9, 5.4), "spectrum": (3.9, 3.9), "spectrum_over_time": (3.9, 3.9),
    "outliers": (3.9, 4.8), "collapse": (3.9, 6.0), "tangent_kernel": (3.9, 5.0),
    "gradient_noise": (3.9, 6.4), "trajectory": (3.9, 6.8),
    "layers": (3.9, 4.4),
}  # fmt: skip
CAPTIONS = {
    "sharpness": (
        "Sharpness, the largest eigenvalue of the Hessian, at the weights before each step. Below: the loss."
    ),
    "stability": (
        "Each criterion as a ratio to its threshold. At 1 the threshold is met; from 0.9 to 1.1 the audit speaks of "
        "the edge. Shaded: the phases the run went through. Grey and dotted: does not apply to this run."
    ),
    "spectrum": (
        "Spectral density of the Hessian at the last measurement: the share of its eigenvalues at each place, on a "
        "logarithmic scale. The band is the pointwise interval over the random starts. Ticks: eigenvalues that were "
        "found one by one."
    ),
    "spectrum_over_time": (
        "The spectral density at each measurement: the more a place stands out from the background, the denser it is. "
        "Dots: the largest eigenvalues."
    ),
    "outliers": (
        "The largest eigenvalues, in colour where they stand apart from the bulk, and below how many do. A bar spans "
        "what the different ways of counting them say."
    ),
    "collapse": (
        "Neural collapse: the features' variation within classes against that between them (NC1), how unequal lengths "
        "and angles of the class means are (NC2) and how far the classifier is from them (NC3), and the share of "
        "samples whose nearest class mean is not the class that the classifier takes (NC4). All are 0 at collapse."
    ),
    "tangent_kernel": (
        "How far the tangent kernel on fixed samples is from the first one measured, as one minus the cosine, plain "
        "and without the constant mode (centred), and its alignment with the labels. Below: the distance between "
        "neighbouring measurements, per step. A kernel that stays is that of lazy training."
    ),
    "gradient_noise": (
        "The noise of gradients relative to the gradient, in samples: batches up to about that size make nearly "
        "proportionally larger progress per step. Hollow: the gradient may be zero, so that no upper end is known. "
        "Then the noise and the gradient's square by themselves, and how long the gradients of single draws are."
    ),
    "trajectory": (
        "Where the weights went: the first two principal components of the recorded points, to scale, with the share "
        "of the variance that each explains. A random walk in many dimensions draws a parabola too, with 61 and 15 %. "
        "Below: distance from the start and length of the polyline through the points, and the cosine between "
        "successive displacements."
    ),
    "layers": (
        "The trace of each layer's own block of the Hessian, from the input down. A dot marks an interval that holds "
        "zero; pale grey: zero or below, on a scale that has none; what is empty was not measured."
    ),
}
DRAWN = {
    "stability": (
        "Each criterion that applies to this run as a ratio to its threshold. At 1 the threshold is met; from 0.9 to "
        "1.1 the audit speaks of the edge. Shaded: the phases the run went through."
    ),
    "gradient_noise": CAPTIONS["gradient_noise"].replace(
        "Hollow: the gradient may be zero, so that no upper end is known. ",
        "Where the gradient may be zero no noise scale is known, and none is drawn. ",
    ),
    "trajectory": CAPTIONS["trajectory"].partition(" Below:")[0],
}
"""Of the figures that the page's script draws, where less is on them."""
DASHED = "Dashed: the threshold above which the optimizer's linearised step grows."
"""Under the sharpness where the threshold concerns it: that of a preconditioned optimizer is compared elsewhere."""
OF_PROBE = {
    "spectrum": "spectrum", "spectrum_over_time": "spectrum", "outliers": "spectrum", "collapse": "neural_collapse",
    "tangent_kernel": "tangent_kernel", "gradient_noise": "gradient_noise", "trajectory": "trajectory",
    "layers": "layer_traces",
}  # fmt: skip
"""Figures that are on the page only where a probe has left records."""


def kinds(run: Run, player: str) -> Sequence[str]:
    """The figures that a player has: those that everyone has, and those of the probes that left records."""
    recorded = {record.probe for record in run.records if record.player == player}
    return [kind for kind in CAPTIONS if kind not in OF_PROBE or OF_PROBE[kind] in recorded]
