"""How large a change of each weight counts as: in itself, or relative to the weight, its filter, its layer, the model.

A neighbourhood of the weights w is what lies within some length of ``T^-1 e``, with T a diagonal of positive scales:
the loss there depends on the scales that a network happens to have unless T goes along with them.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..complex_parts import as_real
from ..errors import SettingError
from ..objective import Objective
from ..operators import SymmetricOperator, as_operator

__all__ = ["SCALES", "Scaled", "scale_of"]

SCALES = ("absolute", "model", "layer", "filter", "adaptive")


def scale_of(objective: Objective, scale: str) -> Tensor:
    r"""The diagonal of T, (n,), in the space's dtype.

    Args:
        objective: says which parameters.
        scale: ``"absolute"``: 1. ``"model"``: :math:`\|w\|` of all parameters together. ``"layer"``: that of the tensor
            an entry is in. ``"filter"``: that of its filter, the part of a tensor of two or more dimensions that makes
            one output (a row of a linear layer); entries of other tensors have their own magnitude. ``"adaptive"``: the
            magnitude of the entry itself. The last two are those of Kwon et al. 2021, "ASAM", arXiv 2102.11600, there
            with convolutions as the only tensors that have filters, and in its code with 0.01 added to every magnitude.

    Raises:
        SettingError: if there is no such scale.

    Example:
        >>> import torch
        >>> from losscope.landscape import Objective
        >>> from losscope.landscape.surface.weight_scales import scale_of
        >>> model = torch.nn.Linear(2, 1)
        >>> model.load_state_dict({"weight": torch.tensor([[3.0, -4.0]]), "bias": torch.tensor([-2.0])})
        <All keys matched successfully>
        >>> objective = Objective(model, (torch.eye(2), torch.ones(2, 1)), criterion=torch.nn.MSELoss())
        >>> scale_of(objective, "filter"), scale_of(objective, "adaptive")
        (tensor([5., 5., 2.]), tensor([3., 4., 2.]))
    """
    if scale not in SCALES:
        raise SettingError(f"scale must be one of {', '.join(map(repr, SCALES))}; got {scale!r}")
    space = objective.space
    parameters = objective.parameters.values()
    pieces = [as_real(p.detach()).to(space.dtype) for p in parameters]
    if scale == "absolute":
        return torch.ones(space.size, dtype=space.dtype, device=space.device)
    if scale == "model":
        whole = torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(p.double()) for p in pieces]))
        return whole.to(space.dtype).expand(space.size).clone()
    if scale == "layer":
        scaled = [torch.linalg.vector_norm(p.double()).to(p.dtype).expand_as(p) for p in pieces]
    elif scale == "filter":
        scaled = [_by_filter(w) if p.ndim > 1 else w.abs() for w, p in zip(pieces, parameters, strict=True)]
    else:
        scaled = [p.abs() for p in pieces]
    return torch.cat([t.reshape(-1) for t in scaled])


def _by_filter(p: Tensor) -> Tensor:
    norms = torch.linalg.vector_norm(p.flatten(1), dim=1)
    return norms.view(-1, *[1] * (p.ndim - 1)).expand_as(p)


class Scaled(SymmetricOperator):
    """T A T: the curvature in units of the scales, whose entries may be zero (unlike `Preconditioned`'s).

    Args:
        A: a symmetric operator, or what `top_eigenpairs` takes as one.
        scales: (n,) the diagonal of T.

    Example:
        >>> import torch
        >>> from losscope.landscape.surface.weight_scales import Scaled
        >>> Scaled(torch.ones(2, 2), torch.tensor([0.0, 3.0])) @ torch.eye(2)
        tensor([[0., 0.],
                [0., 9.]])
    """

    def __init__(self, A: Any, scales: Tensor) -> None:
        self.operator = as_operator(A)
        self.parts = (self.operator,)
        self.psd, self.space = self.operator.psd, self.operator.space
        self._scales = scales[:, None]

    @property
    def kernel(self) -> str:  # type: ignore[override]
        """The engine of the operator inside."""
        return self.operator.kernel

    def product(self, V: Tensor) -> Tensor:
        """T A T V, (n, k) -> (n, k)."""
        return self._scales * self.operator.product(self._scales * V)
