r"""Means and within-class scatter of features, in one pass over any number of samples, in float64.

The samples of class c are counted from a shift s_c near their mean, the mean of the first of them that come:

.. math:: \mu_c = s_c + \frac{1}{n_c} \sum_{i \in c} (h_i - s_c), \qquad
   S = \sum_i (h_i - s_{y_i})(h_i - s_{y_i})^T - \sum_c n_c (\mu_c - s_c)(\mu_c - s_c)^T.

What the difference cancels is bounded: the m samples that made s_c contribute at least m |mu_c - s_c|^2 to S, so that
at most n_c / m times the rounding of float64 is lost, however large a common offset the features have.

S is a (d, d) matrix. Where the samples can be read again it is not needed: `SecondPass` adds up the variation along the
few directions that are asked for, from the means themselves.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from .errors import DataError, NonFiniteError, SettingError

__all__ = ["Classes", "FeatureMoments", "SecondPass"]

IGNORED = -100
"""The label that torch's criteria leave out by default."""
_CHUNK = 1 << 20  # entries that are cast to float64 at a time
_MEMORY = 1 << 30  # for the scatter, bytes
_COLUMNS = 128  # of the scatter, at a time
_NAMED = 8  # classes that an error names


class Classes:
    """Which labels are classes, and the row of each.

    Args:
        labels: their number C, for labels 0 to C - 1; or a list of labels, where samples of others are left out.

    Raises:
        SettingError: if they are fewer than two, or not distinct labels.
    """

    def __init__(self, labels: int | Sequence[int]) -> None:
        self.listed = not isinstance(labels, int)
        if not isinstance(labels, int | Sequence | range):
            raise SettingError(f"classes must be how many there are, or a list of labels; got {labels!r}")
        self.labels = list(range(labels)) if isinstance(labels, int) else [int(label) for label in labels]
        if len(self.labels) < 2:
            raise SettingError(
                f"neural collapse compares classes and needs at least two, got {len(self.labels)}; give samples of "
                "several classes, or the number of classes with classes="
            )
        if len(set(self.labels)) < len(self.labels) or min(self.labels) < 0:
            raise SettingError(f"classes must be distinct labels of at least 0, got {_few(self.labels)}")
        self._row = torch.full((max(self.labels) + 1,), -1)
        self._row[torch.tensor(self.labels)] = torch.arange(len(self.labels))

    def __len__(self) -> int:
        """Number of classes."""
        return len(self.labels)

    def rows(self, labels: Tensor) -> Tensor:
        """The row of each sample's class, (n,) on the labels' device; -1 for what is left out.

        Args:
            labels: (n,) class indices, or (n, C) rows with a single one, as for squared loss.

        Raises:
            DataError: if a label is no class.
        """
        labels = class_indices(labels)
        outside = (labels != IGNORED) & ((labels < 0) | (labels >= len(self._row)))
        if bool(outside.any()) and not self.listed:
            raise DataError(
                f"labels must be from 0 to {len(self._row) - 1}, got {_few(labels[outside].unique().tolist())}; "
                f"classes= says how many there are, or which of them to measure ({IGNORED} leaves a sample out)"
            )
        known = labels.masked_fill(outside | (labels == IGNORED), 0)
        return self._row.to(labels.device)[known].masked_fill(outside | (labels == IGNORED), -1)


def class_indices(labels: Tensor) -> Tensor:
    """Labels as integers (n,): as they are, whole numbers of any type, or where the one of each row is.

    Raises:
        DataError: if they are neither.
    """
    if not isinstance(labels, Tensor):
        raise DataError(f"labels must be a tensor (n,), got {type(labels).__name__}: torch.as_tensor makes one")
    if not labels.is_floating_point() and not labels.is_complex() and labels.dtype != torch.bool:
        return labels.reshape(-1).long()
    if labels.ndim < 2 or labels.shape[1:] == (1,):  # as binary cross-entropy takes them
        whole = labels.reshape(-1).long()
        if bool((whole == labels.reshape(-1)).all()):
            return whole
    elif labels.ndim == 2 and bool(((labels == 1).sum(dim=1) == 1).all() & ((labels != 0).sum(dim=1) == 1).all()):
        return labels.to(torch.float32).argmax(dim=1)
    raise DataError(
        f"labels must be class indices (n,) or one-hot rows (n, C), got {labels.dtype} of shape {tuple(labels.shape)}; "
        "probabilities have no class: pass their argmax"
    )


class FeatureMoments:
    """Counts, means and within-class scatter of the classes' features; `update` adds samples.

    It holds two matrices of (C, d) and, with scatter, one of (d, d), whatever the number of samples.

    Args:
        classes: which labels are classes.
        size: d, the features of a sample.
        device: where to add up: that of the features. Where there is no float64 (MPS) it is done on the host.
        scatter: whether to keep the within-class scatter too.

    Raises:
        SettingError: if that takes more than 1 GiB.

    Attributes:
        counts: (C,) float64, samples of each class.
        left_out: samples of no class.
    """

    def __init__(
        self, classes: Classes, size: int, device: torch.device | str = "cpu", *, scatter: bool = True
    ) -> None:
        if scatter and 8 * size * size > _MEMORY:
            raise SettingError(
                f"features of {size:,} entries have a scatter matrix of {8 * size**2 / 2**30:.1f} GiB, which an "
                "iterator and ridge= need; give batches that can be read again and no ridge, or pool the features"
            )
        self.classes, self.size = classes, size
        self.device = torch.device("cpu" if torch.device(device).type == "mps" else device)
        C = len(classes)
        self.counts, self._squares = self._zeros(C), self._zeros(C)
        self._shift, self._sums = self._zeros(C, size), self._zeros(C, size)
        self._products = self._zeros(size, size) if scatter else None
        self.left_out = 0
        self._rounding = 0.0

    def _zeros(self, *shape: int) -> Tensor:
        return torch.zeros(shape, dtype=torch.float64, device=self.device)

    def update(self, features: Tensor, labels: Tensor) -> None:
        """Add samples.

        Args:
            features: (n, d), of any floating-point type.
            labels: (n,), or one-hot (n, C).

        Raises:
            DataError: if their shapes do not go together, or a label is no class.
        """
        checked_features(features, self.size)
        rows = self.classes.rows(labels)
        if len(rows) != len(features):
            raise DataError(
                f"{len(features)} rows of features for {len(rows)} labels; each sample has one row: pool what has "
                'positions (pooling="mean"), or give a label for each position (pooling="each")'
            )
        self._rounding = max(self._rounding, torch.finfo(features.dtype).eps)
        for some, row in chunks(features, rows, self.device):
            self._add(some, row)

    def _add(self, X: Tensor, row: Tensor) -> None:
        kept = row >= 0
        if not bool(kept.all()):
            self.left_out += int((~kept).sum())
            X, row = X[kept], row[kept]
        counts = torch.bincount(row, minlength=len(self.counts)).to(self.counts)
        first = (self.counts == 0) & (counts > 0)
        if bool(first.any()):
            sums = torch.zeros_like(self._shift).index_add_(0, row, X)
            self._shift[first] = sums[first] / counts[first, None]
        D = X.sub_(self._shift.index_select(0, row))
        if self._products is not None:
            for start in range(0, self.size, _COLUMNS):  # the upper triangle only: half the work
                self._products[start : start + _COLUMNS, start:].addmm_(D[:, start : start + _COLUMNS].T, D[:, start:])
        self._sums.index_add_(0, row, D)
        self._squares.index_add_(0, row, torch.linalg.vector_norm(D, dim=1).square_())
        self.counts += counts

    def check(self) -> None:
        """Refuse what has no class means.

        Raises:
            DataError: if there is no sample, fewer than classes, or a class has none.
            NonFiniteError: if a feature is NaN or infinite.
        """
        n, C = int(self.counts.sum()), len(self.counts)
        empty = [self.classes.labels[i] for i in (self.counts == 0).nonzero()[:, 0].tolist()]
        present = [self.classes.labels[i] for i in self.counts.nonzero()[:, 0].tolist()]
        if n < C:
            raise DataError(
                f"{n} samples are fewer than the {C} classes, so some have no mean; give more samples, or the labels "
                f"to measure: classes={_few(present)}"
            )
        if empty:
            raise DataError(
                f"{len(empty)} of {C} classes have no sample ({_few(empty)}); give samples of each, or the labels to "
                f"measure: classes={_few(present)}"
            )
        broken = (~self._squares.isfinite()).nonzero()[:, 0].tolist()
        if broken:
            raise NonFiniteError(
                f"features of class {_few([self.classes.labels[i] for i in broken])} are NaN or infinite; has the "
                "training diverged? An earlier layer can still be measured by its name"
            )

    @property
    def samples(self) -> int:
        """Number of samples of the classes."""
        return int(self.counts.sum())

    @property
    def means(self) -> Tensor:
        """The classes' means, (C, d)."""
        return self._shift + self._sums / self.counts[:, None]

    @property
    def variances(self) -> Tensor:
        """Mean squared distance to the class mean, (C,): the trace of each class's covariance."""
        return (self._squares / self.counts - (self._sums / self.counts[:, None]).square().sum(dim=1)).clamp(min=0)

    @property
    def within(self) -> Tensor | None:
        """Within-class covariance of all samples, (d, d); None without scatter."""
        if self._products is None:
            return None
        rest = self._sums / self.counts.sqrt()[:, None]
        upper = self._products.triu()
        return (upper + upper.triu(1).T - rest.T @ rest) / self.counts.sum()

    @property
    def resolution(self) -> float:
        """What the features' floating-point type leaves open in the length of a mean, where rounding averages out."""
        exact = 4 * torch.finfo(torch.float64).eps
        relative = (self._rounding / self.counts.sqrt()).clamp(min=exact)
        return float((relative * torch.linalg.vector_norm(self.means, dim=1)).max())


class SecondPass:
    """What takes the class means: variation along directions, and how often the nearest mean is of another class.

    Args:
        moments: of the features, complete.
        weight: (C, d) rows of a classifier; None where there is none.
        bias: (C,).
        directions: (r, d) orthonormal rows.

    Raises:
        SettingError: if the classifier is one of other features.

    Attributes:
        other: samples whose nearest class mean is not the class of the classifier's largest output.
        wrong: samples whose nearest class mean is not their label's.
        samples: of the classes, so far.
    """

    def __init__(self, moments: FeatureMoments, weight: Tensor | None, bias: Tensor | None, directions: Tensor) -> None:
        if weight is not None and weight.shape[1] != moments.size:
            raise SettingError(f"weight has {weight.shape[1]} columns for features of {moments.size} entries")
        self.classes, self.device = moments.classes, moments.device
        means = moments.means
        self._origin = means.mean(dim=0)  # distances between features far from the origin would cancel
        self._means = means - self._origin
        self._half = self._means.square().sum(dim=1) / 2
        self._maps = [self._means, directions.to(means)]
        if weight is not None:
            weight = weight.to(means)
            self._bias = weight @ self._origin + (0 if bias is None else bias.to(means))
            self._maps.append(weight)
        self._sizes = [len(rows) for rows in self._maps]
        self._all = torch.cat(self._maps)
        self._own = self._means @ self._maps[1].T  # of each class, along the directions
        self._along = torch.zeros(len(directions), dtype=torch.float64, device=self.device)
        self.other, self.wrong, self.samples = 0, 0, 0

    def update(self, features: Tensor, labels: Tensor) -> None:
        """Count the samples of a batch."""
        rows = self.classes.rows(labels)
        for some, row in chunks(features, rows, self.device):
            kept = row >= 0
            products = (some.sub_(self._origin) @ self._all.T)[kept].split(self._sizes, dim=1)
            row = row[kept]
            nearest = (products[0] - self._half).argmax(dim=1)
            self._along += (products[1] - self._own[row]).square().sum(dim=0)
            self.wrong += int((nearest != row).sum())
            self.samples += len(row)
            if len(products) == 3:
                self.other += int((nearest != (products[2] + self._bias).argmax(dim=1)).sum())

    @property
    def variances(self) -> Tensor:
        """Within-class variance of all samples along each direction, (r,)."""
        return self._along / self.samples


def chunks(features: Tensor, rows: Tensor, device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
    """Features in float64, copied a part at a time, and the rows of their classes."""
    step = max(1, _CHUNK // max(1, features.shape[1]))
    for start in range(0, len(features), step):
        part = slice(start, start + step)
        # float64 on the host: MPS has none
        yield features[part].detach().to(device).to(torch.float64, copy=True), rows[part].to(device)


def checked_features(features: Tensor, size: int | None = None) -> None:
    """Refuse what is not (n, d) real numbers.

    Raises:
        DataError: if so.
    """
    if not isinstance(features, Tensor):
        raise DataError(f"features must be a tensor (n, d), got {type(features).__name__}: torch.as_tensor makes one")
    if features.ndim != 2 or not features.is_floating_point():
        raise DataError(
            f"features must be a real floating-point tensor (n, d), got {features.dtype} of shape "
            f"{tuple(features.shape)}; pool what has positions"
        )
    if size is not None and features.shape[1] != size:
        raise DataError(f"features must have {size} entries as in earlier batches, got {features.shape[1]}")


def _few(labels: Sequence[int]) -> str:
    shown = ", ".join(map(str, labels[:_NAMED]))
    return f"[{shown}{', ...' if len(labels) > _NAMED else ''}]"
