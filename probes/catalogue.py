"""The criteria that the audit knows: what each compares, what it says, what it presumes, and where it is from."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["CATALOGUE", "Entry", "tex_of"]


@dataclass(frozen=True)
class Entry:
    """What is known of a criterion before anything is measured.

    Attributes:
        name: of the line, and of the number in the records of probe ``stability`` (with ``_low`` and ``_high``).
        symbol: what is compared, in plain text.
        tex: the same for a figure.
        threshold: name of the number in the records that it is compared with.
        formula: the threshold's formula; that of the sharpness is the optimizer's own.
        kind: ``"necessary"``, ``"necessary and sufficient"`` or ``"empirical"``.
        says: what it means to be above it, or below.
        derived: under which assumptions.
        source: who derived or observed it.
    """

    name: str
    symbol: str
    tex: str
    threshold: str
    formula: str
    kind: str
    says: str
    derived: str
    source: str


_ENTRIES = (
    Entry(
        "sharpness", "lambda_max(H)", r"$\lambda_{\max}(H)$", "threshold", "2/lr", "necessary and sufficient",
        "Above it the linearised full-batch step grows along the top eigenvector; at it, training hovers (edge of "
        "stability). For an optimizer with a preconditioner P, the eigenvalue is that of P^-1 H; rates "
        "that differ between parameter groups are in P, so that there is one threshold.",
        "the quadratic model around the weights; full-batch steps (necessary only, in the mean, under gradient "
        "noise); settings and preconditioner change slowly",
        "Cohen et al. 2021, arXiv 2103.00065; Cohen et al. 2022, arXiv 2207.14484",
    ),
    Entry(
        "trace", "tr(H)", r"$\mathrm{tr}(H)$", "two_over_lr", "2/lr", "necessary",
        "Above it SGD with single samples is not stable in mean square about an interpolating minimum.",
        "squared loss, one output per sample, batch size 1, no momentum, interpolation",
        "Wu and Su 2023, arXiv 2305.17490",
    ),
    Entry(
        "aligned_trace", "mu tr(H)/B", r"$\mu\,\mathrm{tr}(H)/B$", "two_over_lr", "2/lr", "necessary",
        "tr(H) <= 2B/(mu lr) with the alignment mu = tr(Sigma)/(2L tr H) of the gradient noise measured: above it the "
        "noise alone drives SGD away.",
        "squared loss, no momentum, near interpolation; any number of outputs, any batch size",
        "Wu and Su 2023, arXiv 2305.17490, with measured alignment",
    ),
    Entry(
        "frobenius", "sqrt(mu/B) ||H||_F", r"$\sqrt{\mu/B}\,\|H\|_F$", "one_over_lr", "1/lr", "necessary",
        "||H||_F <= sqrt(B/mu)/lr with the alignment mu = tr(Sigma H)/(2L ||H||_F^2) measured: above it the noise "
        "alone raises the expected loss.",
        "squared loss, no momentum, near interpolation; any number of outputs, any batch size",
        "Wu, Wang and Su 2022, arXiv 2207.02628",
    ),
    Entry(
        "s_mu", "S_mu = E|g_B|^2/2L", r"$S_\mu$", "two_over_lr", "2/lr", "necessary",
        "Above it the distance from the minimum grows in mean square under SGD's own mini-batches.",
        "squared loss, no momentum, near interpolation, mini-batches of the training data; any number of outputs",
        "the descent of E|d|^2 in the linear model: lr E|g_B|^2 <= 4L",
    ),
    Entry(
        "mean_square", "2/eta*", r"$2/\eta^*$", "two_over_lr", "2/lr", "necessary and sufficient",
        "eta* is the largest rate at which SGD on the model linearised here is stable in mean square, exactly.",
        "squared loss, no momentum, interpolation, the linear model around the weights; small problems only",
        "Mulayoff and Michaeli 2024, arXiv 2306.07850",
    ),
    Entry(
        "batch_sharpness", "E[g_B' H_B g_B/|g_B|^2]", r"$E[g_B^\top H_B g_B/|g_B|^2]$", "threshold", "2/lr",
        "empirical",
        "Batch sharpness, the mean of ratios: SGD is seen to hover where it is 2/lr (edge of stochastic stability).",
        "mini-batches of the training data; with momentum the edge lies between that of small and of large batches",
        "Andreyev and Beneventano 2024, arXiv 2412.20553, Def. 3",
    ),
    Entry(
        "batch_sharpness_ratio", "E[g_B' H_B g_B]/E|g_B|^2", r"$E[g_B^\top H_B g_B]/E|g_B|^2$", "threshold", "2/lr",
        "empirical",
        "Batch sharpness, the ratio of means: mini-batches with large gradients weigh more.",
        "as batch_sharpness",
        "the other definition in use; see arXiv 2412.20553",
    ),
    Entry(
        "interaction_aware", "E[g_B' H g_B]/E|g_B|^2", r"$E[g_B^\top H g_B]/E|g_B|^2$", "threshold", "2/lr",
        "empirical",
        "Interaction-aware sharpness, with the Hessian of all samples: never above lambda_max(H).",
        "mini-batches of the training data",
        "Lee and Jang 2023, ICLR: A new characterization of the edge of stability",
    ),
    Entry(
        "noise_interaction", "E[g_B' H g_B]/|g|^2", r"$E[g_B^\top H g_B]/|g|^2$", "two_over_lr", "2/lr", "empirical",
        "Gradient-noise interaction: above 2/lr the next step raises the loss of all samples in expectation, to "
        "second order; about 2/lr whenever that loss is stationary.",
        "plain SGD; the quadratic model over one step",
        "E dL = -lr |g|^2 + (lr^2/2) E[g_B' H g_B]; see arXiv 2412.20553",
    ),
)  # fmt: skip

CATALOGUE = {entry.name: entry for entry in _ENTRIES}
"""The criteria by name, in the order of the audit."""

_SEEN = {
    "sharpness": r"$\lambda_{\max}(P^{-1}H)$",
    "batch_sharpness": r"$E[u^\top H_B u/g_B^\top u]$",
    "batch_sharpness_ratio": r"$E[u^\top H_B u]/E[g_B^\top u]$",
}
"""What is compared where the optimizer divides by P, for a figure, with :math:`u = P^{-1} g_B`."""


def tex_of(name: str, *, preconditioned: bool) -> str:
    """What a criterion compares, for a figure.

    Args:
        name: of the criterion.
        preconditioned: whether the optimizer divides the gradient by something.
    """
    return _SEEN.get(name, CATALOGUE[name].tex) if preconditioned else CATALOGUE[name].tex
