r"""Directions scaled as the weights are, so that a slice means the same in networks that differ in scale only.

A ReLU network computes the same when one layer is multiplied by 10 and the next divided by it, and a step of length 1
is then large for one and nothing for the other. Scaled by its filters (Li et al. 2018, arXiv 1712.09913; their
``net_plotter.py``), a direction d has in every filter the norm that the weights w have there:

.. math:: d_f \leftarrow \frac{\|w_f\|}{\|d_f\| + 10^{-10}} \, d_f
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..complex_parts import as_real
from ..errors import NonFiniteError, ParameterError, SettingError
from ..objective import Objective
from .results import Axis

__all__ = ["KINDS", "normalised"]

KINDS = {"filter": "by filters", "layer": "by layers", "parameter": "by parameters"}
"""The kinds of normalisation, and what labels say of them."""

_TINY = 1e-10  # of the published code
_SHOWN = 3  # tensors that a note names


def normalised(objective: Objective, axis: Axis, how: str = "filter", *, biases: bool = False) -> Axis:
    r"""A direction scaled by the weights where the model is now.

    Tensors are taken one by one:

    - ``"filter"``: each slice along dimension 0 gets the norm of the weights' slice. That is a filter of a convolution,
      a row of a linear layer (one output), a gate's row of an LSTM, the vector of one token of an embedding. A
      transposed convolution keeps its inputs in dimension 0, so that there it is what one input channel is sent
      through: as in the published code, which knows tensors and not layers.
    - ``"layer"``: the tensor gets the norm of the weights' tensor.
    - ``"parameter"``: each entry is multiplied by the size of its weight.

    Tensors of fewer than two dimensions (biases, weights and biases of normalisation layers, single numbers) become
    zero, as published; with ``biases`` they are scaled once, as a whole, to their own norm (``"parameter"``: entry by
    entry). A tied parameter is one tensor and is scaled once. Where weights are zero, so is the direction: a bias that
    is zero, the padding row of an embedding, a filter that was pruned. The Axis' ``note`` says which.

    Args:
        objective: says which parameters, and where they are.
        axis: the direction.
        how: ``"filter"``, ``"layer"`` or ``"parameter"``.
        biases: whether tensors of fewer than two dimensions take part.

    Raises:
        SettingError: for another ``how``, or if nothing is left of the direction.
        ParameterError: if the direction has another size than the parameters.
        NonFiniteError: if a weight is NaN or infinite.

    Example:
        >>> import torch
        >>> from losscope.landscape import Objective
        >>> from losscope.landscape.surface import Axis, normalised
        >>> model = torch.nn.Linear(2, 2, bias=False)
        >>> _ = model.weight.data.copy_(torch.tensor([[3.0, 4.0], [0.0, 1.0]]))
        >>> objective = Objective(model, (torch.eye(2), torch.ones(2, 2)), criterion=torch.nn.MSELoss())
        >>> normalised(objective, Axis(torch.tensor([2.0, 0.0, 0.0, 2.0]), "mine")).vector
        tensor([5., 0., 0., 1.])
    """
    if how not in KINDS:
        raise SettingError(f"normalise must be one of {', '.join(map(repr, KINDS))} or None, got {how!r}")
    space = objective.space
    if axis.vector.shape != (space.size,):
        raise ParameterError(f"{axis.name} has shape {tuple(axis.vector.shape)}, the parameters ({space.size},)")
    scaled, notes = [], []
    pieces = axis.vector.detach().to(space.device, space.dtype).split(space.numels)
    for (name, parameter), piece in zip(objective.parameters.items(), pieces, strict=True):
        w, few = as_real(parameter.detach()).to(space.dtype), parameter.ndim < 2
        if not bool(torch.isfinite(w).all()):
            raise NonFiniteError(f"{name} holds NaN or infinite weights: a direction cannot be scaled by them")
        if few and not biases:
            scaled.append(torch.zeros_like(w))
            continue
        by = "layer" if few and how == "filter" else how
        scaled.append(_scaled(piece.view(w.shape), w, by))
        missing = _zero_filters(w) if by == "filter" else int(w.numel() > 0 and not bool(w.any()))
        if missing:
            whole = by != "filter" or missing == len(w)
            notes.append(f"{name}" if whole else f"{missing} of the {len(w)} filters of {name}")
    vector = torch.cat([s.reshape(-1) for s in scaled])
    _refuse_nothing(objective, axis, vector, biases)
    return Axis(vector, f"{axis.name}, {KINDS[how]}", _note(notes))


def _scaled(d: Tensor, w: Tensor, how: str) -> Tensor:
    """One tensor's part of the direction."""
    if how == "parameter":
        return d * w.abs()
    by_filter = how == "filter"
    return d * (_norms(w, by_filter) / (_norms(d, by_filter) + _TINY)).to(d.dtype)


def _norms(t: Tensor, by_filter: bool) -> Tensor:
    """Norm of each slice along dimension 0, or of the whole, to multiply the tensor with."""
    # In float64: in single precision the norm of an embedding's millions of entries is 1e-3 off on a CPU.
    if not by_filter:
        return torch.linalg.vector_norm(t, dtype=torch.float64)
    norms = torch.linalg.vector_norm(t.flatten(1), dim=1, dtype=torch.float64)
    return norms.view(-1, *[1] * (t.ndim - 1))


def _zero_filters(w: Tensor) -> int:
    return int((~w.flatten(1).any(dim=1)).sum())


def _refuse_nothing(objective: Objective, axis: Axis, vector: Tensor, biases: bool) -> None:
    if bool(vector.any()):
        return
    if not biases and all(p.ndim < 2 for p in objective.parameters.values()):
        raise SettingError(
            "every selected parameter has fewer than two dimensions, and normalisation leaves those out: pass "
            "biases=True, or normalise=None"
        )
    raise SettingError(f"nothing is left of {axis.name} once it is scaled: the weights are zero where it is not")


def _note(zero: list[str]) -> str:
    if not zero:
        return ""
    more = f" and {len(zero) - _SHOWN} more" if len(zero) > _SHOWN else ""
    return f"zero weights, so that the direction is zero there: {', '.join(zero[:_SHOWN])}{more}"
