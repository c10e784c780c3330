"""Directions to draw a slice along: random, of the gradient, of curvature, of an update, or to another point."""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import NonFiniteError, SettingError
from ..hessian import Hessian
from ..krylov import top_eigenpairs
from ..objective import Objective
from ..results import Eigenpairs
from ..space import generator_for
from .axes import unit
from .normalisation import normalised
from .points import Point, parameters_at
from .results import Axis

__all__ = ["between", "eigenvector_directions", "gradient_direction", "random_direction", "update_direction"]


def random_direction(
    objective: Objective,
    normalise: str | None = "filter",
    *,
    biases: bool | None = None,
    seed: int | torch.Generator | None = 0,
) -> Axis:
    """A Gaussian direction, scaled as the weights are.

    Args:
        objective: says which parameters, and where they are.
        normalise: ``"filter"`` (Li et al. 2018), ``"layer"`` or ``"parameter"``, see `normalised`: one unit of the
            coordinate is then as long as the scaled weights. None: uniformly random and of length 1.
        biases: whether tensors of fewer than two dimensions take part; None for only where nothing is normalised.
        seed: the same seed, the same direction. For two axes take two seeds, or one generator for both.

    Raises:
        SettingError: for another ``normalise``, or if nothing is left of the direction.
        NonFiniteError: if a weight is NaN or infinite.

    Example:
        >>> import torch
        >>> from losscope.landscape import Objective
        >>> from losscope.landscape.surface import random_direction
        >>> model = torch.nn.Linear(2, 2)
        >>> _ = model.weight.data.copy_(torch.tensor([[3.0, 4.0], [0.0, 1.0]]))
        >>> objective = Objective(model, (torch.eye(2), torch.ones(2, 2)), criterion=torch.nn.MSELoss())
        >>> axis = random_direction(objective, seed=0)
        >>> axis.name, axis.vector[:4].view(2, 2).norm(dim=1), axis.vector[4:]
        ('random, by filters', tensor([5., 1.]), tensor([0., 0.]))
    """
    space = objective.space
    vector = space.random(1, generator_for(seed, space.device))[:, 0]
    if normalise is not None:
        return normalised(objective, Axis(vector, "random"), normalise, biases=bool(biases))
    if biases is False:
        pieces = zip(vector.split(space.numels), objective.parameters.values(), strict=True)
        vector = torch.cat([piece if p.ndim > 1 else torch.zeros_like(piece) for piece, p in pieces])
        if not bool(vector.any()):
            raise SettingError(
                "every selected parameter has fewer than two dimensions, and biases=False leaves them out"
            )
    return Axis(unit(vector), "random")


def gradient_direction(objective: Objective) -> Axis:
    """The direction of steepest ascent, of length 1: the coordinate is a Euclidean distance.

    Args:
        objective: the loss.

    Raises:
        NonFiniteError: if the gradient is NaN or infinite.
        SettingError: if it is zero.

    Example:
        >>> import torch
        >>> from losscope.landscape import Objective
        >>> from losscope.landscape.surface import gradient_direction
        >>> model = torch.nn.Linear(2, 1, bias=False)
        >>> _ = model.weight.data.copy_(torch.tensor([[3.0, 4.0]]))
        >>> objective = Objective(model, (torch.eye(2), torch.zeros(2, 1)), criterion=torch.nn.MSELoss())
        >>> gradient_direction(objective)
        Axis('gradient', 2 parameters, norm 1)
    """
    gradient = objective.gradient()
    if not bool(torch.isfinite(gradient).all()):
        first = next(n for n, g in _named(objective, gradient) if not bool(torch.isfinite(g).all()))
        raise NonFiniteError(f"the gradient is NaN or infinite, first in {first}: it gives no direction")
    if not bool(gradient.any()):
        raise SettingError("the gradient is zero here: it gives no direction")
    return Axis(unit(gradient), "gradient")


def eigenvector_directions(
    source: Objective | Eigenpairs, k: int = 2, *, tol: float = 1e-2, seed: int | torch.Generator | None = 0
) -> tuple[Axis, ...]:
    """The Hessian's top eigenvectors, of length 1, at right angles to each other.

    An eigenvector's sign is anyone's: the largest entry is made positive, so that the same one is drawn the same way.

    Args:
        source: the objective, or eigenpairs that were computed already (of any operator).
        k: how many, largest eigenvalue first.
        tol: relative residual to stop at (`top_eigenpairs`).
        seed: of the start vectors.

    Raises:
        SettingError: if ``source`` is neither, or has fewer than k pairs.

    Example:
        >>> import torch
        >>> from losscope.landscape import Objective
        >>> from losscope.landscape.surface import eigenvector_directions
        >>> model = torch.nn.Linear(2, 1, bias=False)
        >>> data = (torch.diag(torch.tensor([1.0, 3.0])), torch.zeros(2, 1))
        >>> objective = Objective(model, data, criterion=torch.nn.MSELoss())
        >>> [axis.name for axis in eigenvector_directions(objective)]
        ['eigenvector 1', 'eigenvector 2']
    """
    if isinstance(source, Objective):
        source = top_eigenpairs(Hessian(source), k, tol=tol, seed=seed)
    if not isinstance(source, Eigenpairs):
        raise SettingError(f"eigenvectors come from an Objective or from Eigenpairs, got {type(source).__name__}")
    if not 1 <= k <= source.vectors.shape[1]:
        raise SettingError(f"k must be between 1 and the {source.vectors.shape[1]} eigenpairs there are, got {k!r}")
    columns = source.vectors[:, :k].detach().unbind(dim=1)
    note = "" if source.converged else "these eigenvectors have not converged"
    return tuple(Axis(_signed(unit(v)), f"eigenvector {i}", note) for i, v in enumerate(columns, start=1))


def update_direction(objective: Objective, before: Point) -> Axis:
    """From a previous point to where the model is now: -1 is the previous one, and 1 the same step once more.

    Args:
        objective: says which parameters, and where they are now.
        before: the previous point (`Point`).

    Raises:
        ParameterError: if it is of another architecture; says which tensor differs.
        SettingError: if the model has not moved since.

    Example:
        >>> import torch
        >>> from losscope.landscape import Objective
        >>> from losscope.landscape.surface import parameters_at, update_direction
        >>> model = torch.nn.Linear(2, 1, bias=False)
        >>> objective = Objective(model, (torch.eye(2), torch.ones(2, 1)), criterion=torch.nn.MSELoss())
        >>> before = parameters_at(objective, None)
        >>> _ = model.weight.data.add_(torch.tensor([[3.0, 4.0]]))
        >>> update_direction(objective, before)
        Axis('update', 2 parameters, norm 5)
    """
    return between(objective, before, None, name="update")


def between(
    objective: Objective, first: Point, second: Point = None, *, name: str = "from the first to the second"
) -> Axis:
    """From one point to another: one unit of the coordinate is the whole way.

    Args:
        objective: says which parameters, their order, dtype and device.
        first: where 0 is (`Point`: a model, a state dict, a vector, None for the live model).
        second: where 1 is.
        name: for labels.

    Raises:
        ParameterError: if a point is of another architecture; says which tensor differs.
        SettingError: if the points are one.
        NonFiniteError: if a point is NaN or infinite somewhere.

    Example:
        >>> import torch
        >>> from losscope.landscape import Objective
        >>> from losscope.landscape.surface import between
        >>> model = torch.nn.Linear(2, 1, bias=False)
        >>> objective = Objective(model, (torch.eye(2), torch.ones(2, 1)), criterion=torch.nn.MSELoss())
        >>> between(objective, torch.zeros(2), torch.tensor([3.0, 4.0])).vector
        tensor([3., 4.])
    """
    vector = parameters_at(objective, second, "the second point") - parameters_at(objective, first, "the first point")
    if not bool(torch.isfinite(vector).all()):
        where = next(n for n, d in _named(objective, vector) if not bool(torch.isfinite(d).all()))
        raise NonFiniteError(f"{name}: a point is NaN or infinite, first in {where}: there is no way to it")
    if not bool(vector.any()):
        raise SettingError(f"{name}: both points are the same in every selected parameter: there is no direction")
    return Axis(vector, name)


def _signed(vector: Tensor) -> Tensor:
    return vector * vector[vector.abs().argmax()].sign()


def _named(objective: Objective, vector: Tensor) -> list[tuple[str, Tensor]]:
    return list(zip(objective.space.names, vector.split(objective.space.numels), strict=True))
