r"""The Gauss-Newton matrix of cross-entropy taken apart by classes, as operators.

With p the prediction for sample i of class c, m its mass (1/n) and J the Jacobian of its logits,

.. math:: G = \sum_i \sum_{c'} m_i p_{ic'} \, \delta_{ic'} \delta_{ic'}^T, \qquad \delta_{ic'} = J_i^T (e_{c'} - p_i),

since diag(p) - pp' is the covariance of e_c' under p. The means of the samples of one class,

.. math:: \delta_{cc'} = \frac{1}{\pi_{cc'}} \sum_{i \in c} m_i p_{ic'} \delta_{ic'}, \qquad
   \pi_{cc'} = \sum_{i \in c} m_i p_{ic'},

make :math:`A = \sum_{cc'} \pi_{cc'} \delta_{cc'} \delta_{cc'}^T`, and what is left, G - A, is the variation within the
pairs of classes (Papyan 2019, "Measurements of three-level hierarchical structure in the outliers in the spectrum of
deepnet Hessians"; 2020, "Traces of class/cross-class structure pervade deep learning spectra"). A itself is the
between-class and the within-class variation of those means, with

.. math:: \delta_c = \frac{1}{s_c} \sum_{c' \ne c} \pi_{cc'} \delta_{cc'}, \qquad s_c = \sum_{c' \ne c} \pi_{cc'}.

The :math:`\delta_{ic'}` of one sample have mean zero under p. Hence :math:`\pi_{cc} \delta_{cc} = -s_c \delta_c`: the
means with c' = c, which are small where the fit is good and often left out, lie along :math:`\delta_c`, with its term.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from .batches import describe
from .errors import LosscopeError, SettingError, first_line
from .html_table import Shown
from .kernels.jacobian import Evaluated, OutputGraph, OutputGraphs, OutputMetric, own
from .kernels.once import second_order_errors
from .objective import Objective
from .operators import SymmetricOperator
from .output_curvature import SeenHessian, seen_hessian
from .predictive import CrossEntropy, Prediction
from .space import contiguous_rows

__all__ = ["ClassMeans", "ClassParts", "class_parts", "others", "parts_of", "reciprocal"]

_MOST = 8192  # classes, whose pairs take 512 MiB


@dataclass(frozen=True, eq=False)
class ClassParts(Shown):
    """The Gauss-Newton matrix of cross-entropy as a sum, ``class_part + cross_part + within_part``.

    Each is positive semi-definite, and follows the objective's parameters as `GaussNewton` does.

    Attributes:
        class_part: of rank C, ``sum_c (s_c + s_c^2 / pi_cc) delta_c delta_c'``.
        cross_part: of rank C (C - 2), the variation of the class-pair means about those of their class.
        within_part: the variation of the samples about the means of their pair of classes.
        pair_part: A, ``class_part + cross_part``.
    """

    class_part: SymmetricOperator
    cross_part: SymmetricOperator
    within_part: SymmetricOperator
    pair_part: SymmetricOperator


def class_parts(objective: Objective, *, memory: int | None = None) -> ClassParts:
    """The parts of the Gauss-Newton matrix that its classes make, as operators for any estimator.

    No mean is ever held: a product with a part takes about as long as one with `GaussNewton` (with
    ``within_part`` half as long again), and the memory of C^2 numbers. A sample is what the criterion's `cross_entropy`
    predicts: for a language model a token, for a segmentation a pixel.

    Args:
        objective: the objective, whose ``criterion`` is softmax cross-entropy on class indices, as a module, a
            function, or inside a lambda; with class weights, ``ignore_index`` and label smoothing as it likes.
        memory: bytes that the kept graphs of several batches may take.

    Raises:
        SettingError: if the criterion is not seen to be that, its targets are probabilities, a sample has a
            negative weight, or there are too many classes to have a number for each pair.
        LossError: if the objective has a ``loss_fn``, which hides the outputs.

    Example:
        >>> import torch
        >>> from losscope.landscape import Objective, class_parts, top_eigenpairs
        >>> data = (torch.eye(4), torch.tensor([0, 0, 1, 2]))
        >>> objective = Objective(torch.nn.Linear(4, 3), data, criterion=torch.nn.CrossEntropyLoss())
        >>> parts = class_parts(objective)
        >>> top_eigenpairs(parts.class_part, k=4, seed=0).values[3] < 1e-6  # there are three classes
        tensor(True)
    """
    means = ClassMeans(objective, memory)
    _ = means.masses  # so that bad input is refused here
    return parts_of(means)


def parts_of(means: ClassMeans) -> ClassParts:
    """The parts that share one set of graphs."""
    return ClassParts(_Part(means, _class), _Part(means, _cross), _Within(means, _pairs), _Part(means, _pairs))


# --------------------------------------------------------------------------- sums over class pairs


class ClassMeans:
    """The map ``v -> <S_cc', v>`` with the sums ``S_cc' = pi_cc' delta_cc'``, and its transpose.

    Neither holds a sum: the one is a product with the outputs' Jacobian, the other with its transpose. As
    ``sum_c' S_cc' = 0``, those with c' = c are made of the others, which spares the difference of p and 1.

    Args:
        objective: the objective.
        memory: bytes that the kept graphs of several batches may take.
    """

    def __init__(self, objective: Objective, memory: int | None = None) -> None:
        self.objective = objective
        self._graphs = OutputGraphs(objective, [_by_class], memory)

    @property
    def masses(self) -> Tensor:
        """``pi_cc'``, (C, C) in float64: the probability of class c' on the samples of class c."""
        space = self.objective.space
        return self.inner(torch.empty(0, space.size, dtype=space.dtype, device=space.device))[1]

    def inner(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """``<S_cc', v>`` for each row v, (k, n) -> (k, C, C) in float64 with zeros for c' = c, and the masses.

        Raises:
            SettingError: if batches differ in their number of classes.
        """
        total = None
        with self._passes() as batches:
            for graph, metric in batches:
                sums = [metric.by_class(metric.curved(self._pushed(graph, row))) for row in rows]
                total = _added(total, torch.stack([metric.masses, *sums]))
        assert total is not None
        return _off_diagonal(total[1:]), total[0]

    def combine(self, coefficients: Tensor) -> Tensor:
        """``sum_cc' b_cc' S_cc'`` for each of (k, C, C), with zeros for c' = c: -> (k, n)."""
        space = self.objective.space
        out = torch.zeros(len(coefficients), space.size, dtype=space.dtype, device=space.device)
        live = (coefficients != 0).any(dim=-1).cpu()
        with self._passes() as batches:
            for graph, metric in batches:
                for some, b, result in zip(live, coefficients, out, strict=True):
                    if (some & metric.present).any():
                        result += graph.pull(metric.pull(b))
        return out

    def remainder(self, rows: Tensor, coefficients: Tensor) -> Tensor:
        """``G v - sum_cc' b_cc' S_cc'`` for each row, subtracted in the outputs: -> (k, n)."""
        out = torch.zeros_like(rows)
        with self._passes() as batches:
            for graph, metric in batches:
                for row, b, result in zip(rows, coefficients, out, strict=True):
                    result += graph.pull(metric.pull(b, self._pushed(graph, row)))
        return out

    def _pushed(self, graph: OutputGraph, row: Tensor) -> list[Tensor]:
        return own(graph.push(self.objective.space.unflatten(row)), row)

    @contextlib.contextmanager
    def _passes(self) -> Iterator[Iterator[tuple[OutputGraph, _ByClass]]]:
        with self.objective.isolated(), second_order_errors(self.objective, differences=False):
            yield iter(self._graphs)


def _added(total: Tensor | None, more: Tensor) -> Tensor:
    if total is not None and total.shape != more.shape:
        raise SettingError(
            f"all predictions must be over the same classes, got {total.shape[-1]} and {more.shape[-1]} of them"
        )
    return more if total is None else total + more


class _ByClass(OutputMetric):
    """The Hessian of cross-entropy in the outputs of one batch, and its samples by class.

    Attributes:
        masses: (C, C) float64, this batch's part of ``pi``.
        present: (C,), on the host: the classes with a sample here.
    """

    def __init__(self, hessian: SeenHessian, calls: list[CrossEntropy]) -> None:
        self.hessian, self._calls = hessian, calls
        self.used, self.psd = hessian.used, hessian.psd
        self.masses = self.by_class([call.mass * call.p for call in calls])
        self.present = (self.masses.sum(dim=1) > 0).cpu()
        self.bytes = hessian.bytes + self.masses.nbytes

    def by_class(self, values: list[Tensor]) -> Tensor:
        """The sums over the samples of each class, (C, C) in float64, from one tensor for each call."""
        total = None
        for call, w in zip(self._calls, values, strict=True):
            total = _added(total, call.by_class(w))
        assert total is not None
        return total

    def curved(self, tangents: list[Tensor]) -> list[Tensor]:
        """``m (diag p - pp') w`` for each call."""
        return [call.multiply_(w.clone()) for call, w in zip(self._calls, self.hessian.push(tangents), strict=True)]

    def pull(self, values: Tensor, tangents: list[Tensor] | None = None) -> list[Tensor]:
        """``m (diag p - pp') b_c`` with the row of values (C, C) of each sample's class; of ``w - b_c`` given w."""
        along = [call.of_class(values) for call in self._calls]
        if tangents is not None:
            along = [w - b for w, b in zip(self.hessian.push(tangents), along, strict=True)]
        return self.hessian.pull(call.multiply_(w) for call, w in zip(self._calls, along, strict=True))


def _by_class(seen: Evaluated) -> _ByClass:
    hessian = seen_hessian(seen)
    if hessian is None:
        _refuse_failing(seen)
    calls = [] if hessian is None else [call for call in hessian.calls if isinstance(call, CrossEntropy)]
    if hessian is None or len(calls) < len(hessian.calls):
        raise SettingError(_why_no_classes([] if hessian is None else hessian.calls))
    if any(call.labels is None for call in calls):
        raise SettingError(
            "classes of the samples are needed, and the targets are probabilities; give class indices, for example "
            "targets=lambda batch: batch[1].argmax(1)"
        )
    classes = max(call.p.shape[call.dim] for call in calls)
    if classes > _MOST:
        raise SettingError(
            f"{classes} classes have {classes**2} pairs, which take {classes**2 * 8 / 2**30:.0f} GiB; at most {_MOST} "
            "classes are taken apart: merge some of them, or use GaussNewton"
        )
    if not hessian.psd:
        raise SettingError("samples with a negative weight have no class means; use GaussNewton, which takes any")
    return _ByClass(hessian, calls)


def _refuse_failing(seen: Evaluated) -> None:
    """Say what a criterion says of its targets, where it does not take them.

    Raises:
        SettingError: if it raises on this batch.
    """
    try:
        seen.value(seen.outputs)
    except LosscopeError:
        raise
    except Exception as error:
        given = f"{seen.targets.dtype} {describe(seen.targets)}" if isinstance(seen.targets, Tensor) else ""
        given = given or describe(seen.targets)
        expected = "one class index for each prediction, integers (torch.int64) from 0 to the number of classes less 1"
        if isinstance(seen.outputs, Tensor):
            shape = tuple(seen.outputs.shape)
            dim = min(1, len(shape) - 1)
            expected = (
                f"class indices for logits of shape {shape}: torch.int64 of shape {shape[:dim] + shape[dim + 1 :]}, "
                f"from 0 to {shape[dim] - 1} (or ignore_index)"
            )
        raise SettingError(
            f"the criterion does not take the targets: {first_line(error)}; given are {given}, and expected are "
            f"{expected}"
        ) from error


def _why_no_classes(calls: list[Prediction]) -> str:
    others = {c.function.__name__ for c in calls if not isinstance(c, CrossEntropy)}
    seen = f"it uses {', '.join(sorted(others))}" if others else "it is not seen to be made of that"
    return (
        "the decomposition by classes is that of softmax cross-entropy (nn.CrossEntropyLoss or F.cross_entropy, also "
        f"inside a lambda) on the model's logits, and of nothing besides; {seen}. A model that returns "
        "log-probabilities for NLLLoss can return its logits; for other criteria use GaussNewton"
    )


# --------------------------------------------------------------------------- operators


class _Part(SymmetricOperator):
    """``sum S_cc' b_cc'`` with coefficients b that are linear in the ``<S_cc', v>``."""

    psd, known_symmetric, kernel = True, True, "jacobian"

    def __init__(self, means: ClassMeans, coefficients: Callable[[Tensor, Tensor], Tensor]) -> None:
        self.means, self.coefficients = means, coefficients
        self.objective, self.space = means.objective, means.objective.space

    def product(self, V: Tensor) -> Tensor:
        """A V, (n, k) -> (n, k)."""
        with self.held():
            return self.means.combine(self.coefficients(*self.means.inner(contiguous_rows(V)))).T

    def held(self) -> contextlib.AbstractContextManager[None]:
        """One isolation for many products."""
        return self.objective.isolated()


class _Within(_Part):
    """The Gauss-Newton matrix less a part."""

    def product(self, V: Tensor) -> Tensor:
        """(G - A) V, (n, k) -> (n, k)."""
        with self.held():
            rows = contiguous_rows(V)
            return self.means.remainder(rows, self.coefficients(*self.means.inner(rows))).T


def _pairs(inner: Tensor, masses: Tensor) -> Tensor:
    """``a_cc' / pi_cc'``, and the term of c' = c, whose S and a are minus the sums of the others."""
    own = inner.sum(dim=-1) * reciprocal(masses.diagonal())
    return _off_diagonal(inner * reciprocal(masses) + own[..., None])


def _class(inner: Tensor, masses: Tensor) -> Tensor:
    """``(1 / s_c + 1 / pi_cc) a_c`` for all c' alike."""
    factors = reciprocal(others(masses)) + reciprocal(masses.diagonal())
    return _off_diagonal((inner.sum(dim=-1) * factors)[..., None].expand_as(inner))


def _cross(inner: Tensor, masses: Tensor) -> Tensor:
    """``a_cc' / pi_cc' - a_c / s_c``."""
    mean = inner.sum(dim=-1) * reciprocal(others(masses))
    return _off_diagonal(inner * reciprocal(masses) - mean[..., None])


def others(masses: Tensor) -> Tensor:
    """``s_c``, the mass of the wrong classes on the samples of each class, (C,)."""
    return _off_diagonal(masses).sum(dim=-1)


def reciprocal(masses: Tensor) -> Tensor:
    """1 / pi; 0 where there is none, and so no mean."""
    return torch.where(masses > 0, 1 / masses, 0.0)


def _off_diagonal(values: Tensor) -> Tensor:
    return values * (1 - torch.eye(values.shape[-1], dtype=values.dtype, device=values.device))
