r"""The empirical tangent kernel: inner products of the derivatives of the model's outputs.

.. math:: \Theta(x, x') = J(x) J(x')^\top \in R^{C \times C}, \qquad J(x) = \partial f(x) / \partial \theta

(Jacot et al. 2018, "Neural tangent kernel"). Three ways to compute it: from Jacobians of single samples that are made,
contracted and thrown away a group of parameters at a time (Novak et al. 2022, "Fast finite width neural tangent
kernel"); by products with J' and J, which hold no Jacobian and take any model; and from random projections of the
Jacobians, which cost no backward pass for each output and have an error.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from .errors import LossError, NonFiniteError, SettingError
from .html_table import Shown
from .jacobian import Jacobian
from .kernels.once import second_order_errors
from .objective import Objective
from .space import generator_for
from .tangent_contraction import contracted, fewest_passes
from .tangent_jacobians import MixedSamples, PositionsChanged, SampleJacobians, sample_outputs

__all__ = ["FORMS", "METHODS", "EmpiricalKernel", "tangent_kernel"]

FORMS = ("full", "trace", "logits")
METHODS = ("auto", "contraction", "products", "projection")

_MEMORY = 3 << 29
_BLOCK = 64 << 20  # bytes of parameter vectors at once in products


@dataclass(frozen=True, eq=False)
class EmpiricalKernel(Shown):
    """A tangent kernel on n samples with C outputs each.

    Attributes:
        matrix: float64 on the host, exactly symmetric: (n, n), or (n C, n C) with the outputs of a sample together.
        form: ``"full"``; ``"trace"``, the mean over outputs ``tr Theta(x, x') / C``; ``"logits"``, that of the sum of
            the outputs, ``1' Theta(x, x') 1 / C``.
        samples: n.
        outputs: C.
        method: how it was computed: ``"contraction"``, ``"products"`` or ``"projection"``.
        error: root mean square of the relative error in Frobenius norm; 0 but for rounding where nothing is random.
        memory: bytes that it was planned to take at most.
        note: what a reader should know; empty where nothing.
    """

    matrix: Tensor
    form: str
    samples: int
    outputs: int
    method: str
    error: float
    memory: int
    note: str = ""

    @property
    def eigenvalues(self) -> Tensor:
        """All eigenvalues, ascending; those below zero are rounding, or the error of a projection."""
        return torch.linalg.eigvalsh(self.matrix)

    @property
    def smallest(self) -> float:
        """The smallest eigenvalue."""
        return float(self.eigenvalues[0])

    def __repr__(self) -> str:
        """One line: form, size, method."""
        error = f", error {self.error:.2g}" if self.error else ""
        return f"EmpiricalKernel({self.form}, {self.samples} samples, {self.outputs} outputs, {self.method}{error})"


def tangent_kernel(
    objective: Objective,
    *,
    form: str = "trace",
    method: str = "auto",
    projections: int = 512,
    memory: int | None = None,
    seed: int | torch.Generator | None = None,
) -> EmpiricalKernel:
    r"""The tangent kernel of the objective's model on all samples of its data.

    Targets and the criterion are not looked at. A sample is an entry of the first dimension of the inputs, and C is
    the number of its outputs, of all positions together for a sequence.

    Method ``"auto"`` contracts Jacobians of single samples where samples have outputs of their own and the Jacobians
    fit into memory in no more passes over the data than there are samples; otherwise it takes products (batch
    statistics and dropout in train mode mix samples). Random projections are taken only when asked for.

    Args:
        objective: the objective, with a ``criterion``; its ``params=`` say which derivatives, its mode which function.
        form: ``"full"``, ``"trace"`` or ``"logits"`` (see `EmpiricalKernel`).
        method: ``"auto"``, ``"contraction"``, ``"products"`` or ``"projection"``.
        projections: random directions of ``"projection"``, with entries +-1.
        memory: bytes to stay within, besides the model and the graph of one batch; by default 1.5 GiB.
        seed: of the projections: int, generator, or None for fresh entropy.

    Raises:
        SettingError: if an option means nothing, or the kernel does not fit into memory.
        LossError: if the objective has a ``loss_fn``, the outputs are not one tensor with an equal part for each
            sample, or samples mix where ``method="contraction"``.
        NonFiniteError: if outputs or derivatives are NaN or infinite.

    Example:
        >>> import torch
        >>> from losscope.landscape import Objective, tangent_kernel
        >>> model = torch.nn.Linear(2, 1)
        >>> data = (torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.zeros(2, 1))
        >>> objective = Objective(model, data, criterion=torch.nn.MSELoss())
        >>> tangent_kernel(objective).matrix  # inner products of inputs, and 1 for the bias
        tensor([[ 6., 12.],
                [12., 26.]], dtype=torch.float64)
    """
    allowed = _checked(form, method, projections, memory)
    with objective.isolated():
        samples, outputs = _counts(objective)
        rows = _rows(form, outputs, objective)
        kernel_bytes = _refuse_too_large(form, samples, outputs, allowed)
        note = ""
        if method in ("auto", "contraction"):
            try:
                jacobians = SampleJacobians(objective, rows)
            except MixedSamples as error:
                note = str(error)
                if method == "contraction":
                    raise LossError(
                        f'{error}, as with batch statistics or dropout in train mode; pass method="products", or '
                        'evaluate the objective in mode="eval"'
                    ) from error
            else:
                passes = fewest_passes(jacobians, form, samples, allowed - kernel_bytes)
                if method == "contraction" or len(passes) <= samples:
                    try:
                        matrix = contracted(jacobians, form, samples, passes, allowed - kernel_bytes)
                    except PositionsChanged:  # sequences of several lengths
                        jacobians.shapes.clear()
                        passes = fewest_passes(jacobians, form, samples, allowed - kernel_bytes)
                        matrix = contracted(jacobians, form, samples, passes, allowed - kernel_bytes)
                    return _made(matrix, form, samples, outputs, "contraction", allowed)
                note = f"Jacobians would take {len(passes)} passes over the data in {allowed} bytes"
        with second_order_errors(objective, differences=False):
            jacobian = Jacobian(objective)
            if method == "projection":
                matrix, error_of = _projected(jacobian, form, samples, outputs, projections, seed)
                return _made(matrix, form, samples, outputs, "projection", allowed, error=error_of)
            return _made(_products(jacobian, form, samples, rows), form, samples, outputs, "products", allowed, note)


def _checked(form: str, method: str, projections: int, memory: int | None) -> int:
    if form not in FORMS:
        raise SettingError(f"form must be one of {', '.join(map(repr, FORMS))}, got {form!r}")
    if method not in METHODS:
        raise SettingError(f"method must be one of {', '.join(map(repr, METHODS))}, got {method!r}")
    if isinstance(projections, bool) or not isinstance(projections, int) or projections < 2:
        raise SettingError(f"projections must be a whole number, at least 2, got {projections!r}")
    if memory is not None and (isinstance(memory, bool) or not isinstance(memory, int) or memory < 1):
        raise SettingError(f"memory must be a number of bytes, got {memory!r}")
    return _MEMORY if memory is None else memory


def _counts(objective: Objective) -> tuple[int, int]:
    """n and C.

    Raises:
        SettingError: if batches differ in their number of outputs.
    """
    seen = []
    for index, batch in enumerate(objective.batches):
        outputs, samples = sample_outputs(objective, batch.content, index)
        if not bool(torch.isfinite(outputs).all()):
            raise NonFiniteError("the model's outputs are NaN or infinite, so that they have no tangent kernel")
        seen.append((samples, outputs.shape[1]))
    counts = {outputs for _, outputs in seen}
    if len(counts) > 1:
        raise SettingError(f"samples must have equally many outputs, got batches with {sorted(counts)}; pad them alike")
    return sum(samples for samples, _ in seen), counts.pop()


def _rows(form: str, outputs: int, objective: Objective) -> Tensor:
    """E: which combinations of a sample's outputs are differentiated, (k, C)."""
    E = torch.full((1, outputs), outputs**-0.5, dtype=torch.float64) if form == "logits" else torch.eye(outputs)
    return E.to(objective.space.device, objective.space.dtype)


def _refuse_too_large(form: str, samples: int, outputs: int, allowed: int) -> int:
    """Bytes of the kernel and what it is made in."""
    side = samples * outputs if form == "full" else samples
    needed = 2 * 8 * side**2
    if needed >= allowed:
        ways = "fewer samples" + (', or form="trace"' if form == "full" else "")
        raise SettingError(
            f"the {form} kernel of {samples} samples with {outputs} outputs is {side} x {side} and takes {needed} "
            f"bytes, and memory={allowed}; take {ways}, or allow more than that"
        )
    return needed


def _made(
    matrix: Tensor, form: str, samples: int, outputs: int, method: str, memory: int, note: str = "", error: float = 0.0
) -> EmpiricalKernel:
    if not bool(torch.isfinite(matrix).all()):
        raise NonFiniteError("derivatives of the model's outputs are NaN or infinite, and so is their tangent kernel")
    return EmpiricalKernel(matrix, form, samples, outputs, method, error, memory, note)


# --------------------------------------------------------------------------- without Jacobians


def _products(jacobian: Jacobian, form: str, samples: int, rows: Tensor) -> Tensor:
    """Column by column: ``J (J' e)``, one backward and one forward-like pass each."""
    k, outputs = rows.shape
    side = samples if form == "trace" else samples * k
    kernel = torch.zeros(side, side, dtype=torch.float64)
    at_once = max(1, _BLOCK // (jacobian.space.size * rows.element_size()))
    for first in range(0, samples * k, at_once):
        columns = torch.arange(first, min(first + at_once, samples * k), device=rows.device)
        starts = rows.new_zeros(samples, outputs, len(columns))
        starts[columns // k, :, torch.arange(len(columns), device=rows.device)] = rows[columns % k]
        found = (jacobian @ (jacobian.T @ starts.flatten(0, 1))).view(samples, outputs, -1)
        mapped = torch.einsum("kc,ncj->nkj", rows, found)  # (n, k, columns)
        if form == "trace":
            same = mapped[:, columns % k, torch.arange(len(columns), device=rows.device)]
            kernel.index_add_(1, (columns // k).cpu(), same.double().cpu() / outputs)
        else:
            kernel[:, columns.cpu()] = mapped.flatten(0, 1).double().cpu()
    return (kernel + kernel.T) / 2


def _projected(
    jacobian: Jacobian, form: str, samples: int, outputs: int, projections: int, seed: int | torch.Generator | None
) -> tuple[Tensor, float]:
    r"""The mean of ``z z'`` over ``z = J r`` with random signs r, and the error that its spread tells.

    The terms are independent with mean K, so that :math:`E\|\hat K - K\|_F^2` is their variance over their number.
    """
    space = jacobian.space
    generator = generator_for(seed, space.device)
    side = samples * outputs if form == "full" else samples
    kernel = torch.zeros(side, side, dtype=torch.float64)
    squares = 0.0
    at_once = max(1, _BLOCK // (space.size * torch.finfo(space.dtype).bits // 8))
    for first in range(0, projections, at_once):
        count = min(at_once, projections - first)
        found = jacobian @ space.random(count, generator, kind="rademacher")
        z = found.double().cpu().view(samples, outputs, count).permute(2, 0, 1)  # (count, n, C)
        if form == "full":
            z = z.flatten(1)[:, :, None]
        else:
            z = z.sum(dim=2, keepdim=True) if form == "logits" else z
            z = z / math.sqrt(outputs)
        kernel += torch.einsum("rni,rmi->nm", z, z)
        squares += float(torch.linalg.matrix_norm(z.transpose(1, 2) @ z).square().sum())
    kernel /= projections
    norm = float(kernel.square().sum())
    variance = max(0.0, (squares / projections - norm) / (projections - 1))
    return (kernel + kernel.T) / 2, math.sqrt(variance / norm) if norm else 0.0
