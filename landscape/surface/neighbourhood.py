r"""Sharpness that does not depend on how the weights happen to be scaled, each measure labelled as what it is.

Networks have rescalings that leave the function alone and change the Hessian: where w = D w' with D diagonal and
positive is the same function, H(w') = D H(w) D, so that every measure of H alone can be made as large as one likes
(Dinh et al. 2017, "Sharp minima can generalize for deep nets", arXiv 1703.04933). Measured in units of the weights'
scales T, as :math:`THT`, it is unchanged by those rescalings that T goes along with:

- *model*: all selected weights times one number. Where every layer is normalised and none has a gain.
- *layer*: each tensor times a number of its own. ReLU layers times a, the next ones divided by it (biases along with
  what they are added to); a layer in front of a BatchNorm.
- *filter*: each filter of a tensor (row of a linear layer) times its own, and each bias. In front of a BatchNorm.
- *entry*: each weight times its own. ReLU units, whose incoming weights are rows and whose outgoing ones are columns.

===================  ==================================================  ====================================
measure              what it is                                          is unchanged by rescalings of
===================  ==================================================  ====================================
``"absolute"``       largest eigenvalue and trace of H                   nothing
``"model"``          those of H, times ``|w|^2``                         model
``"layer"``          those of THT, T the norm of each tensor; the trace  model, layer
                     is the sum over tensors of ``|w_l|^2 tr(H_l)``
``"filter"``         those of THT, T the norm of each filter             model, layer, filter
``"adaptive"``       those of THT, T = ``diag(|w|)``; the trace is       model, layer, filter, entry
                     ``sum_i w_i^2 H_ii``
`relative_flatness`  ``sum_{s,t} <w_s, w_t> tr(H_st)`` of one layer      model, layer, filter (without biases)
===================  ==================================================  ====================================

`sam_sharpness` and `average_sharpness` take the same scales, and at any radius are unchanged by the same rescalings. At
small radii the largest rise within ``|T^-1 e| <= rho`` of a stationary point is ``rho^2 / 2`` times the largest
eigenvalue of THT, and the average over ``N(0, s^2 T^2)`` is ``s^2 / 2`` times its trace.

A BatchNorm makes its layer's scale irrelevant only where it normalises by the batch: ``mode="train"``, and up to its
eps. Weight decay in the loss depends on the scale of the weights, whatever the measure.

**None of these predicts generalisation by itself.** Invariance takes one reason for that away, no more: in large
comparisons sharpness, adaptive or not, correlates with the test error in some settings, not at all in others, and
negatively in some (Andriushchenko et al. 2023, "A modern look at the relationship between sharpness and
generalization", arXiv 2302.07011).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..complex_parts import as_real
from ..compositions import Restricted
from ..errors import SettingError
from ..estimate_trace import trace
from ..hessian import Hessian
from ..html_table import Shown
from ..krylov import top_eigenpairs
from ..objective import Objective
from ..operators import SymmetricOperator
from ..results import Eigenpairs, Estimate
from ..space import VectorSpace, named
from .average_sharpness import AverageSharpness, average_sharpness, checked_radii
from .sam_sharpness import SamSharpness, sam_sharpness
from .weight_scales import Scaled, scale_of

__all__ = ["Neighbourhood", "ScaledCurvature", "neighbourhood", "relative_flatness", "scaled_curvature"]

_INVARIANT: dict[str, tuple[str, ...]] = {
    "absolute": (),
    "model": ("model",),
    "layer": ("model", "layer"),
    "filter": ("model", "layer", "filter"),
    "adaptive": ("model", "layer", "filter", "entry"),
}


@dataclass(frozen=True, eq=False)
class ScaledCurvature(Shown):
    """Curvature in units of the weights' scales.

    Attributes:
        scale: T, see `weight_scales`.
        largest: the largest eigenvalue of THT: twice the largest rise over the square of a small radius.
        trace: of THT: twice the average rise over the variance of small noise.
        invariant_to: rescalings that leave it as it is; see the table of this module.
    """

    scale: str
    largest: Eigenpairs
    trace: Estimate
    invariant_to: tuple[str, ...]

    def __repr__(self) -> str:
        """Both, and what they do not depend on."""
        to = ", ".join(self.invariant_to) or "nothing"
        return (
            f"ScaledCurvature({self.scale}: largest {float(self.largest.values[0]):.5g}, trace {self.trace.value:.5g} "
            f"in [{self.trace.low:.5g}, {self.trace.high:.5g}]; invariant to rescalings of {to})"
        )


def scaled_curvature(
    objective: Objective,
    scale: str = "adaptive",
    *,
    tol: float = 1e-2,
    rtol: float = 0.05,
    seed: int | torch.Generator | None = 0,
) -> ScaledCurvature:
    """The largest eigenvalue and the trace of the Hessian in units of the weights' scales.

    Args:
        objective: the loss.
        scale: which; see the table of this module.
        tol: of the eigenvalue, see `top_eigenpairs`.
        rtol: of the trace, see `trace`.
        seed: int, generator, or None for fresh entropy; the global stream is never used.

    Raises:
        SettingError: if an argument means nothing.
        NonFiniteError: if a product is NaN or infinite.

    Example:
        >>> import torch
        >>> from losscope.landscape import Objective
        >>> from losscope.landscape.surface import scaled_curvature
        >>> model = torch.nn.Linear(2, 1, bias=False)
        >>> model.load_state_dict({"weight": torch.tensor([[3.0, 4.0]])})
        <All keys matched successfully>
        >>> objective = Objective(model, (torch.eye(2), torch.zeros(2, 1)), criterion=torch.nn.MSELoss())  # H = I
        >>> found = scaled_curvature(objective)
        >>> round(float(found.largest.values[0]), 3), round(found.trace.value, 3)
        (16.0, 25.0)
    """
    A = Scaled(Hessian(objective), scale_of(objective, scale))
    with A.held():
        largest = top_eigenpairs(A, tol=tol, seed=seed)
        found = trace(A, rtol=rtol, seed=seed)
    return ScaledCurvature(scale, largest, found, _INVARIANT[scale])


def relative_flatness(
    objective: Objective,
    layer: Any,
    *,
    rtol: float = 0.05,
    seed: int | torch.Generator | None = 0,
) -> Estimate:
    r"""The relative flatness of one layer, from the trace of its curvature between filters.

    .. math:: \kappa = \sum_{s, t} \langle w_s, w_t \rangle \operatorname{tr}(H_{st})
        = \operatorname{tr}((W W^T \otimes I)\, H)

    with w_s the rows of its weight W (d, m) and H_st the block (m, m) of the Hessian between two of them. Petzka, Kamp,
    Adilova, Sminchisescu and Boley, "Relative flatness and generalization", NeurIPS 2021 (arXiv 2001.00939), for a
    linear layer, there the one that the features come from, which are normalised first; for a convolution, this takes
    each filter as a row. It is estimated as the trace of R'HR with ``R R' = W W' x I``, without H.

    Args:
        objective: the loss.
        layer: the name of the layer's weight, or the parameter; of two dimensions or more.
        rtol: half-width of the interval, relative to the value.
        seed: int, generator, or None for fresh entropy; the global stream is never used.

    Raises:
        SettingError: if it is not one parameter of two or more dimensions.
        ParameterError: if it is not among the objective's.

    Example:
        >>> import torch
        >>> from losscope.landscape import Objective
        >>> from losscope.landscape.surface import relative_flatness
        >>> model = torch.nn.Linear(2, 1, bias=False)
        >>> model.load_state_dict({"weight": torch.tensor([[3.0, 4.0]])})
        <All keys matched successfully>
        >>> objective = Objective(model, (torch.eye(2), torch.zeros(2, 1)), criterion=torch.nn.MSELoss())  # H = I
        >>> round(relative_flatness(objective, "weight").value, 3)
        50.0
    """
    block = Restricted(Hessian(objective), layer)
    shapes = named(block.space).shapes
    if len(shapes) != 1 or len(shapes[0]) < 2:
        raise SettingError(
            "relative flatness is of one parameter of two or more dimensions; got "
            f"{', '.join(f'{n} {s}' for n, s in zip(named(block.space).names, shapes, strict=True))}"
        )
    W = as_real(objective.parameters[named(block.space).names[0]].detach()).flatten(1).to(block.space.dtype)
    return trace(_BetweenRows(block, W), rtol=rtol, seed=seed)


class _BetweenRows(SymmetricOperator):
    """R'HR with R = L x I, where L L' = W W': (r m, r m), r the lesser of W's dimensions."""

    known_symmetric = True

    def __init__(self, block: SymmetricOperator, W: Tensor) -> None:
        self.operator, self.parts = block, (block,)
        self._L = torch.linalg.qr(W.double().T).R.T.to(W.dtype)  # (d, r)
        self._columns = W.shape[1]
        self.space = VectorSpace(self._L.shape[1] * self._columns, W.dtype, W.device)

    @property
    def kernel(self) -> str:  # type: ignore[override]
        """The engine of the Hessian."""
        return self.operator.kernel

    def product(self, V: Tensor) -> Tensor:
        """R'HR V, (r m, k) -> (r m, k)."""
        rows = self._L @ V.reshape(self._L.shape[1], -1)  # (d, m k)
        products = self.operator.product(rows.reshape(-1, V.shape[1]))
        return (self._L.T @ products.reshape(self._L.shape[0], -1)).reshape(V.shape)


# --------------------------------------------------------------------------- all together


@dataclass(frozen=True, eq=False)
class Neighbourhood(Shown):
    """What the loss does around the weights, in one scale.

    Attributes:
        average: under Gaussian noise, over radii.
        worst: the largest rises found within as many balls, whose radii are the lengths of that noise.
        curvature: the largest eigenvalue and the trace that both come from at small radii.
    """

    average: AverageSharpness
    worst: tuple[SamSharpness, ...]
    curvature: ScaledCurvature

    def __repr__(self) -> str:
        """All three."""
        return f"Neighbourhood({self.average!r}, {len(self.worst)} balls, {self.curvature!r})"


def neighbourhood(
    objective: Objective,
    lengths: float | Sequence[float] | Tensor,
    *,
    scale: str = "absolute",
    steps: int = 1,
    rtol: float = 0.1,
    max_pairs: int = 256,
    seed: int = 0,
) -> Neighbourhood:
    """Average and worst rises of the loss over the same lengths of perturbation, and the curvature behind them.

    Args:
        objective: the loss.
        lengths: of perturbations, in units of the scale: the radius of a ball, and ``s sqrt(n)`` of noise.
        scale: see the table of this module.
        steps: of ascent, see `sam_sharpness`.
        rtol: of the average and of the trace.
        max_pairs: see `average_sharpness`.
        seed: of all random numbers.

    Raises:
        SettingError: if an argument means nothing.
        NonFiniteError: if the loss at the weights is NaN or infinite.

    Example:
        >>> import torch
        >>> from losscope.landscape import Objective
        >>> from losscope.landscape.surface import neighbourhood
        >>> model = torch.nn.Linear(4, 1, bias=False).double()
        >>> data = (torch.eye(4).double(), torch.zeros(4, 1).double())
        >>> found = neighbourhood(Objective(model, data, criterion=torch.nn.MSELoss()), [0.01, 0.1])  # H = I / 2
        >>> [round(ball.value / ball.second_order, 6) for ball in found.worst]
        [1.0, 1.0]
    """
    lengths = checked_radii(lengths, "lengths")
    moving = int((scale_of(objective, scale) > 0).sum())
    average = average_sharpness(
        objective, lengths / max(moving, 1) ** 0.5, scale=scale, rtol=rtol, max_pairs=max_pairs, seed=seed
    )
    worst = tuple(sam_sharpness(objective, rho, steps=steps, scale=scale, seed=seed) for rho in lengths.tolist())
    return Neighbourhood(average, worst, scaled_curvature(objective, scale, rtol=rtol, seed=seed))
