"""How much of the Gauss-Newton matrix of cross-entropy its classes make: eigenvalues, traces, and a map of the means.

See `class_means` for the decomposition. Everything here follows from the Gram matrix of the class-pair means, of
C (C - 1) rows: whatever the number of parameters it is exact, made of inner products in parameter space.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from .class_means import ClassMeans, ClassParts, others, parts_of, reciprocal
from .errors import SettingError
from .estimate_trace import trace
from .html_table import Shown
from .intervals import check_accuracy
from .objective import Objective
from .operators import refuse_nonfinite
from .results import Estimate

__all__ = ["ClassStructure", "class_structure"]

_MEMORY = 2 << 30  # for the means, bytes
_GRAM = 2 << 30  # for their Gram matrix
_COEFFICIENTS = 64 << 20  # for what picks a block of means
_CHUNK = 1 << 16  # parameters that are cast to float64 at a time


@dataclass(frozen=True, eq=False)
class ClassStructure(ClassParts, Shown):
    r"""What the classes make of the Gauss-Newton matrix of cross-entropy, and its parts as operators (`ClassParts`).

    Attributes:
        masses: (C, C) float64 on the host, :math:`\pi_{cc'}`: the probability of class c' on the samples of class c,
            weighted with the samples' shares. Rows of classes without a sample are zero.
        pair_values: float64 eigenvalues of ``pair_part`` on the host, descending, at most C (C - 1); others are 0.
        class_values: those of ``class_part``, at most C.
        cross_values: those of ``cross_part``, at most C (C - 1).
        pair_means: (C, C, d) float64 coordinates of :math:`\delta_{cc'}` along the first d <= C eigenvectors of
            ``pair_part``: on the first two of them most of it is seen. NaN where there is no mass.
        class_means: (C, d) those of :math:`\delta_c`.
        traces: by ``"class"``, ``"cross"`` and ``"within"``; of the first two exact.
    """

    masses: Tensor
    pair_values: Tensor
    class_values: Tensor
    cross_values: Tensor
    pair_means: Tensor
    class_means: Tensor
    traces: dict[str, Estimate]

    @property
    def trace(self) -> Estimate:
        """The trace of the whole matrix."""
        means = self._trace_of_means
        return _mapped(self.traces["within"], lambda within: means + within, 1.0)

    @property
    def shares(self) -> dict[str, Estimate]:
        """The parts' shares of the trace, which add up to 1; their error is that of the trace of ``within_part``."""
        means, within, total = self._trace_of_means, self.traces["within"], self.trace.value

        def share(known: float) -> Estimate:
            return _mapped(within, lambda w: _ratio(known, means + w), -_ratio(known, total**2))

        known = {name: share(self.traces[name].value) for name in ("class", "cross")}
        return known | {"within": _mapped(within, lambda w: _ratio(w, means + w), _ratio(means, total**2))}

    @property
    def _trace_of_means(self) -> float:
        return self.traces["class"].value + self.traces["cross"].value

    def __repr__(self) -> str:
        """One line: the shares of the trace, and the largest eigenvalues that the means have."""
        shares = ", ".join(f"{name} {share.value:.1%}" for name, share in self.shares.items())
        shown = ", ".join(f"{v:.4g}" for v in self.pair_values[:5].tolist())
        more = ", ..." if len(self.pair_values) > 5 else ""
        flag = "" if self.traces["within"].converged else ", NOT converged"
        return f"ClassStructure({len(self.masses)} classes: {shares} of {self.trace.value:.4g}; [{shown}{more}]{flag})"


def class_structure(
    objective: Objective,
    *,
    rtol: float = 0.05,
    max_matvecs: int = 1000,
    confidence: float = 0.95,
    memory: int | None = None,
    seed: int | torch.Generator | None = None,
) -> ClassStructure:
    r"""The eigenvalues and traces of the parts that classes make of the Gauss-Newton matrix of cross-entropy.

    The outliers of a trained network's Hessian are mostly those of the means of its class pairs (Papyan 2019, 2020);
    see `class_parts` for the parts. Means, eigenvalues and traces of ``class_part`` and ``cross_part`` are exact; the
    trace of ``within_part`` is estimated by `trace`.

    It takes C (C - 1) products with the transposed Jacobian, and for each batch only those of the classes that
    it holds: batches sorted by class are up to C times cheaper. Means that are more than memory holds are made a block
    at a time, at another product with the Jacobian each. The eigenvalues are those of matrices of as many rows: for 100
    classes that takes minutes.

    Args:
        objective: the objective; see `class_parts` for what criteria have classes.
        rtol: relative half-width to stop at for the trace of ``within_part``.
        max_matvecs: most products to spend on that.
        confidence: nominal coverage of its interval.
        memory: bytes that the means may take; by default 2 GiB.
        seed: of that trace: int, generator, or None for fresh entropy.

    Raises:
        SettingError: if an argument means nothing, the criterion is not seen to be softmax cross-entropy on class
            indices, or there are more classes than C^2 x C^2 entries have room.
        LossError: if the objective has a ``loss_fn``, which hides the outputs.
        NonFiniteError: if a mean is NaN or infinite.

    Example:
        >>> import torch
        >>> from losscope.landscape import Objective, class_structure
        >>> data = (torch.eye(4), torch.tensor([0, 0, 1, 2]))
        >>> model = torch.nn.Linear(4, 3, bias=False)
        >>> _ = torch.nn.init.zeros_(model.weight)
        >>> found = class_structure(Objective(model, data, criterion=torch.nn.CrossEntropyLoss()), seed=0)
        >>> found.masses  # every class has a third of each sample's probability
        tensor([[0.1667, 0.1667, 0.1667],
                [0.0833, 0.0833, 0.0833],
                [0.0833, 0.0833, 0.0833]], dtype=torch.float64)
        >>> {name: round(share.value, 3) for name, share in found.shares.items()}
        {'class': 0.375, 'cross': 0.375, 'within': 0.25}
    """
    check_accuracy(rtol, confidence, 2, max_matvecs)
    means = ClassMeans(objective)
    with objective.isolated():
        masses = means.masses.cpu()
        pairs = _Pairs(masses)
        gram = _gram(means, pairs, _MEMORY if memory is None else memory)
        values, coordinates = pairs.between(gram)
        parts = parts_of(means)
        class_values, cross_values = pairs.of_classes(gram), pairs.across(gram)
        within = trace(parts.within_part, rtol=rtol, max_matvecs=max_matvecs, confidence=confidence, seed=seed)
    exact = {"class": float(class_values.sum()), "cross": float(cross_values.sum())}
    traces = {name: _exactly(value, pairs.count, within, objective) for name, value in exact.items()}
    return ClassStructure(
        **vars(parts), masses=masses, pair_values=values, class_values=class_values, cross_values=cross_values,
        pair_means=coordinates, class_means=pairs.class_means(coordinates), traces=traces | {"within": within},
    )  # fmt: skip


def _mapped(estimate: Estimate, f: Callable[[float], float], slope: float) -> Estimate:
    """A monotone function of a number that is not negative; ``slope`` is its derivative there."""
    low, high = sorted((f(max(0.0, estimate.low)), f(max(0.0, estimate.high))))
    value, stderr = f(estimate.value), abs(slope) * estimate.stderr
    return dataclasses.replace(estimate, value=value, stderr=stderr, low=min(low, value), high=max(high, value))


def _ratio(a: float, b: float) -> float:
    return a / b if b else math.nan


def _exactly(value: float, products: int, like: Estimate, objective: Objective) -> Estimate:
    half = objective.space.rounding * value
    return dataclasses.replace(
        like, value=value, stderr=0.0, low=value - half, high=value + half, matvecs=products, method="exact",
        converged=True,
    )  # fmt: skip


# --------------------------------------------------------------------------- the Gram matrix


class _Pairs:
    r"""Pairs of classes c' != c with mass, and what follows from the Gram matrix K of ``sqrt(pi_cc') delta_cc'``.

    With q the vector of ``sqrt(pi_cc')`` for the pairs of one class, every part is ``X B_c^2 X'`` for the matrix X of
    those means and ``B_c = I + f_c q q'`` on the pairs of c: its eigenvalues are those of B K B.

    Args:
        masses: (C, C) float64.
    """

    def __init__(self, masses: Tensor) -> None:
        self.masses, self.classes = masses, len(masses)
        off_diagonal = ~torch.eye(self.classes, dtype=torch.bool)
        self.first, self.second = ((masses > 0) & off_diagonal).nonzero(as_tuple=True)
        self.count = len(self.first)
        self.roots = masses[self.first, self.second].sqrt()
        self._wrong = others(masses)  # s_c
        self._right = reciprocal(masses.diagonal())  # 1 / pi_cc

    def between(self, gram: Tensor) -> tuple[Tensor, Tensor]:
        """Eigenvalues of A, and the coordinates (C, C, d) of the means along its first eigenvectors.

        The means with c' = c add ``q q' / pi_cc``: B_c is the root of ``I + q q' / pi_cc``.
        """
        values, vectors = torch.linalg.eigh(self._both(gram, self._root(1.0)))
        values, vectors = values.flip(0).clamp(min=0), vectors.flip(1)[:, : self.classes]
        # X'V with V = X B U values^-1/2, whose columns are the orthonormal eigenvectors of A.
        along = self._times(vectors, self._root(-1.0)) * values[: vectors.shape[1]].sqrt()
        found = torch.full((self.classes, self.classes, along.shape[1]), math.nan, dtype=torch.float64)
        found[self.first, self.second] = along / self.roots[:, None]
        own = torch.arange(self.classes)
        found[own, own] = -(self._wrong * self._right)[:, None] * self.class_means(found)
        return values, found

    def class_means(self, pair_means: Tensor) -> Tensor:
        """``delta_c``, (C, d), from the coordinates of the pairs; NaN where there is no mass."""
        weighted = (self.masses[self.first, self.second] * reciprocal(self._wrong)[self.first])[:, None]
        sums = torch.zeros(self.classes, pair_means.shape[-1], dtype=torch.float64)
        sums.index_add_(0, self.first, weighted * pair_means[self.first, self.second])
        return sums.where((self._wrong > 0)[:, None], math.nan)

    def of_classes(self, gram: Tensor) -> Tensor:
        """Eigenvalues of the class part: those of the C vectors ``(s_c + s_c^2 / pi_cc)^1/2 delta_c``."""
        factors = (reciprocal(self._wrong) + self._right).sqrt()
        Z = torch.zeros(self.count, self.classes, dtype=torch.float64)
        Z[torch.arange(self.count), self.first] = self.roots * factors[self.first]
        return torch.linalg.eigvalsh(Z.T @ gram @ Z).flip(0).clamp(min=0)

    def across(self, gram: Tensor) -> Tensor:
        """Eigenvalues of the cross-class part: B_c is the projection away from q."""
        return torch.linalg.eigvalsh(self._both(gram, -reciprocal(self._wrong))).flip(0).clamp(min=0)

    def _root(self, power: float) -> Tensor:
        """f of ``(I + q q' / pi_cc)^(power / 2)`` for each class, without the difference of nearly equal roots."""
        root = (1 + self._wrong * self._right).sqrt()
        f = self._right / (1 + root)
        return f if power > 0 else -f / root

    def _both(self, gram: Tensor, f: Tensor) -> Tensor:
        return self._times(self._times(gram, f).T, f)

    def _times(self, matrix: Tensor, f: Tensor) -> Tensor:
        """B M."""
        sums = torch.zeros(self.classes, matrix.shape[1], dtype=torch.float64)
        sums.index_add_(0, self.first, self.roots[:, None] * matrix)
        return matrix + self.roots[:, None] * (f[:, None] * sums)[self.first]


def _gram(means: ClassMeans, pairs: _Pairs, memory: int) -> Tensor:
    """``K``, (r, r) float64 on the host, from means that are all held, or else a block of them at a time.

    Raises:
        SettingError: if it is too large.
        NonFiniteError: if a mean is NaN or infinite.
    """
    space, r = means.objective.space, pairs.count
    if 8 * r * r > _GRAM:
        raise SettingError(
            f"{pairs.classes} classes have {r} pairs, too many for a matrix of their inner products "
            f"({8 * r * r / 2**30:.0f} GiB); class_parts gives the parts as operators, for top_eigenpairs and trace"
        )
    room = max(1, memory // (space.size * torch.finfo(space.dtype).bits // 8))
    if room >= r:
        rows = torch.cat([*_vectors(means, pairs, range(r)), torch.zeros(0, space.size).to(space.device, space.dtype)])
        chunks = (some.to(torch.float64) for some in rows.split(_CHUNK, dim=1))
        gram = sum((some @ some.T for some in chunks), torch.zeros(r, r, dtype=torch.float64, device=rows.device)).cpu()
    else:
        columns = []
        for start in range(0, r, room):
            for rows in _vectors(means, pairs, range(start, min(r, start + room))):
                columns.append(means.inner(rows)[0].cpu()[:, pairs.first, pairs.second] / pairs.roots)
        gram = torch.cat(columns)
        gram = (gram + gram.T) / 2
    refuse_nonfinite(float(gram.sum()))
    return gram


def _vectors(means: ClassMeans, pairs: _Pairs, some: range) -> Iterator[Tensor]:
    """The rows ``sqrt(pi_cc') delta_cc'`` of some pairs."""
    step = max(1, _COEFFICIENTS // (8 * pairs.classes**2))
    for start in range(some.start, some.stop, step):
        chosen = slice(start, min(some.stop, start + step))
        first, second, roots = pairs.first[chosen], pairs.second[chosen], pairs.roots[chosen]
        picked = torch.zeros(len(roots), pairs.classes, pairs.classes, dtype=torch.float64)
        picked[torch.arange(len(roots)), first, second] = 1 / roots
        yield means.combine(picked.to(means.objective.space.device))
