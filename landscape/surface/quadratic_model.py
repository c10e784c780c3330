r"""The loss to second order where the model is, along the axes of a slice: the check that is drawn into it.

A plane is a picture of two directions out of millions, and its contours alone do not say whether the curvature that is
seen is that of the Hessian. Three independent answers are put side by side: Hessian-vector products, second differences
of the loss, and how far from the centre the loss follows the parabola.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ..errors import NonFiniteError
from ..hessian import Hessian
from ..objective import Objective
from ..operators import SymmetricOperator
from ..space import generator_for
from .axes import checked_axes
from .batch_statistics import resolved_statistics, statistics_at
from .checks import check_positive
from .displaced import Displaced
from .model_radius import model_radius
from .results import Axis, QuadraticModel
from .second_differences import SecondDifference, second_difference
from .smoothness_radius import gradient_normalised_smoothness

__all__ = ["quadratic_model"]

_BEYOND = 5.0  # times its error estimate: what a second difference is off by no more than, from truncation and rounding
_WORTH_SAYING = 1e-3  # relative accuracy
_MOVING = (
    "statistics are recomputed at each point, which products with the Hessian do not see: slopes and curvatures are "
    "differences of the loss"
)


def quadratic_model(
    objective: Objective,
    axes: Sequence[Axis],
    *,
    error: float = 0.1,
    seed: int | torch.Generator | None = 0,
    hessian: SymmetricOperator | None = None,
    statistics: str = "kept",
) -> QuadraticModel:
    r"""The loss to second order along axes, checked against the loss itself, with the radius it holds to.

    The radius is the largest r such that on every sampled displacement h within the slice, of Euclidean length up to r,

    .. math:: |L(\theta + h) - q(h)| \le \varepsilon \, \big( |g'h| + \tfrac12 \, h' |C| h \big)

    with the share :math:`\varepsilon` = ``error`` and :math:`|C|` the curvature within the slice with its eigenvalues'
    absolute values. The right side is the size of the model's own terms, so that the radius means the same on a slope
    and in a minimum, where the gradient vanishes, and does not shrink to nothing where terms cancel (at the far side of
    a downhill parabola, on a saddle). It is looked for from the centre outwards: further out the loss of a ReLU network
    may meet a parabola again that it left at its first kinks. Sampled are both ways of each axis and of two random
    directions within the slice, at radii a factor of 2 to 16 apart, bisected to 5 %. What rounding explains is no
    error. All of it takes the time of 100 to 200 evaluations of the loss for two axes, and about half of that for one.

    ``smoothness`` is the gradient-normalised smoothness along the axes, at the same share
    (`gradient_normalised_smoothness`).

    Where normalisation layers recompute their statistics at each point, the loss that is drawn is not the one that is
    differentiated, whose statistics stay those of the centre. Slopes and curvatures are then differences of the loss,
    there is nothing to check them with, and ``smoothness`` is NaN; the note says so.

    Args:
        objective: the loss.
        axes: one or more.
        error: the share.
        seed: of the random directions.
        hessian: the Hessian, where there is one already.
        statistics: how normalisation layers take their statistics at each point (`statistics_at`).

    Raises:
        NonFiniteError: if the loss, its gradient or a product with the Hessian is NaN or infinite at the centre.
        SettingError: if ``error`` is not positive, or axes are zero or parallel.
        ParameterError: if an axis has another size than the parameters.

    Example:
        >>> import torch
        >>> from losscope.landscape import Objective
        >>> from losscope.landscape.surface import Axis, quadratic_model
        >>> model = torch.nn.Linear(2, 1, bias=False).double()
        >>> data = (torch.diag(torch.tensor([1.0, 3.0])).double(), torch.zeros(2, 1).double())
        >>> objective = Objective(model, data, criterion=torch.nn.MSELoss())
        >>> found = quadratic_model(objective, [Axis(torch.tensor([0.0, 1.0]), "second weight")])
        >>> found.curvatures, found.radius
        (tensor([[9.]], dtype=torch.float64), inf)
    """
    check_positive("error", error, "share")
    axes = checked_axes(objective, axes)
    generator = generator_for(seed, torch.device("cpu"))
    A = Hessian(objective) if hessian is None else hessian
    statistics = resolved_statistics(objective, statistics)[0]
    moving = statistics == "recomputed"
    with objective.isolated(), statistics_at(objective, statistics), A.held():
        slopes, curvatures, products = _derivatives(objective, A, axes)
        around = Displaced(objective, statistics)
        rounding = around.rounding(axes[0].vector)
        sizes = zip(axes, curvatures.diagonal().tolist(), products.tolist(), strict=True)
        differences = [_difference(around, axis, bend, product, rounding) for axis, bend, product in sizes]
        if moving:
            slopes, curvatures = _from_losses(around, axes, differences)
        start = min(d.step * axis.norm for d, axis in zip(differences, axes, strict=True))
        radius, note = model_radius(
            around, axes, slopes, curvatures, error=error, rounding=rounding, start=start, generator=generator
        )
        notes = [A.note, *_disagreements(A, axes, curvatures, products, differences), note]
        matvecs, smoothness = len(axes), math.nan
        if moving:
            notes.append(_MOVING)
        else:
            first = radius if 0 < radius < math.inf else None
            smooth = gradient_normalised_smoothness(objective, axes, curvature=A, error=error, start=first)
            matvecs, smoothness = matvecs + smooth.matvecs, smooth.radius
            notes.append(smooth.note)
    return QuadraticModel(
        around.center, slopes, curvatures,
        torch.tensor([d.value for d in differences], dtype=torch.float64),
        torch.tensor([d.step for d in differences], dtype=torch.float64),
        radius, float(error), matvecs, "; ".join(dict.fromkeys(note for note in notes if note)),
        torch.tensor([d.error for d in differences], dtype=torch.float64), smoothness,
    )  # fmt: skip


def _derivatives(objective: Objective, A: SymmetricOperator, axes: Sequence[Axis]) -> tuple[Tensor, Tensor, Tensor]:
    """Slopes (k,), curvatures (k, k), and what products with the axes are long, (k,)."""
    A.plan(2 * len(axes), len(axes))
    V = torch.stack([axis.vector for axis in axes]).T
    gradient, products = objective.gradient(), A @ V
    for what, found in (("gradient", gradient), ("Hessian's product with an axis", products)):
        if not bool(torch.isfinite(found).all()):
            raise NonFiniteError(f"the {what} is NaN or infinite where the parameters are: there is no quadratic model")
    D, HD = V.T.double(), products.double()
    C = (D @ HD).cpu()
    return (D @ gradient.double()).cpu(), (C + C.T) / 2, torch.linalg.vector_norm(HD, dim=0).cpu()


def _from_losses(
    around: Displaced, axes: Sequence[Axis], differences: Sequence[SecondDifference]
) -> tuple[Tensor, Tensor]:
    """Slopes (k,) and curvatures (k, k) from differences of the loss, at the steps of the second differences."""
    C = torch.diag(torch.tensor([d.value for d in differences], dtype=torch.float64))
    moves = [d.step * axis.vector for d, axis in zip(differences, axes, strict=True)]
    for i, j in itertools.combinations(range(len(axes)), 2):
        u, v = moves[i], moves[j]
        corners = around.loss(u + v) - around.loss(u - v) - around.loss(v - u) + around.loss(-u - v)
        C[i, j] = C[j, i] = corners / (4 * differences[i].step * differences[j].step)
    slopes = torch.tensor([d.slope for d in differences], dtype=torch.float64)
    if not bool(torch.isfinite(C).all() & torch.isfinite(slopes).all()):
        raise NonFiniteError("the loss is not finite around the parameters: there is no quadratic model")
    return slopes, C


def _difference(around: Displaced, axis: Axis, bend: float, product: float, rounding: float) -> SecondDifference:
    """From where rounding still counts outwards: far out, two differences may agree that have left the curvature."""
    scale = max(abs(bend), 1e-3 * axis.norm * product) or abs(around.center) * (axis.norm / around.length) ** 2 or 1.0
    share = rounding / abs(around.center) if around.center else 0.0
    # Half-way, in orders of magnitude, between nothing but rounding and what a smooth loss allows, sqrt(share).
    noise = min(max(share, torch.finfo(torch.float64).eps), 1.0) ** 0.25
    first = math.sqrt(3 * (rounding or 1e-16 * scale) / (noise * scale))
    return second_difference(lambda h: around.loss(h * axis.vector), around.center, rounding, first)


def _disagreements(
    A: SymmetricOperator,
    axes: Sequence[Axis],
    curvatures: Tensor,
    products: Tensor,
    differences: Sequence[SecondDifference],
) -> list[str]:
    """Where differences disagree with products, and how well they can agree."""
    notes = []
    checks = zip(_labels(axes), axes, curvatures.diagonal().tolist(), products.tolist(), differences, strict=True)
    for label, axis, bend, product, found in checks:
        explained = _BEYOND * found.error + A.space.rounding * axis.norm * product
        if math.isnan(found.error):
            notes.append(f"along {label} the loss is not finite in any step")
        elif abs(found.value - bend) > explained:
            notes.append(
                f"differences and products differ along {label}: the loss bends by {found.value:.4g} over a step of "
                f"{found.step:.2g}, the Hessian by {bend:.4g}, and rounding explains {explained:.1g}, as where the "
                "gradient has kinks (ReLU, max pooling), whose curvature products do not see"
            )
        elif found.error > _WORTH_SAYING * abs(bend):
            share = f"{found.error / abs(bend):.1g} of themselves" if bend else f"{found.error:.1g}"
            notes.append(f"rounding leaves second differences along {label} good to {share}")
    return notes


def _labels(axes: Sequence[Axis]) -> list[str]:
    """Names, numbered where they are the same."""
    names = [axis.name for axis in axes]
    return [f"{name} (axis {i})" if names.count(name) > 1 else name for i, name in enumerate(names, start=1)]
