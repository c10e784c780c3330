r"""Neural collapse: how far features and classifier are from the simplex that training drives them to.

With features h of n samples in C classes, their means mu_c, the global mean mu_G, M_c = mu_c - mu_G and a classifier
W h + b on them, all of these numbers tend to 0 (Papyan, Han and Donoho 2020, PNAS 117, 24652):

.. math:: NC1 = \tfrac1C tr(\Sigma_W \Sigma_B^+), \quad \Sigma_W = \tfrac1n \sum_i (h_i - \mu_{y_i})(\cdot)^T, \quad
   \Sigma_B = \tfrac1C \sum_c M_c M_c^T

(variation within classes), the spread of lengths and of angles of the M_c (NC2), the distance of W from M when both
have length 1 (NC3), and how often the nearest class mean is not the class that the classifier takes (NC4).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from . import collapse_geometry as geometry
from .collapse_loss import SquaredLossParts, squared_loss_parts
from .errors import DataError, NonFiniteError, SettingError
from .feature_moments import Classes, FeatureMoments, SecondPass, checked_features, class_indices
from .html_table import Shown

__all__ = ["BALANCES", "Collapse", "neural_collapse", "neural_collapse_of_batches"]

BALANCES = ("classes", "samples")
"""What weighs the same in the global mean and in Sigma_B; see `neural_collapse`."""


_NO_CLASSIFIER = "there is no classifier on these features"
_TOO_MANY = "more classes than d + 1 cannot have these angles; gnc2_variance is what becomes 0"


@dataclass(frozen=True, eq=False)
class Collapse(Shown):
    r"""How collapsed features are. Every number is 0 at full collapse unless it says otherwise; NaN where undefined.

    Attributes:
        nc1: :math:`tr(\Sigma_W \Sigma_B^+)/C`, the pseudo-inverse cut at rank C - 1.
        nc1_quotient: :math:`tr \Sigma_W / tr \Sigma_B` (Tirer et al. 2023).
        cdnv: class-distance normalised variance (Galanti et al. 2022).
        equinorm: standard deviation over mean of the lengths of the M_c.
        equinorm_classifier: the same of the classifier's rows.
        equiangularity: mean of :math:`|cos(M_c, M_{c'}) + 1/(C-1)|` over the pairs.
        equiangularity_classifier: the same of the classifier's rows.
        cosine_spread: standard deviation of the cosines, 0 for equal angles of any size.
        cosine_spread_classifier: the same of the classifier's rows.
        etf_error: :math:`\|MM'/\|MM'\|_F - (I - 11'/C)/\sqrt{C-1}\|_F`.
        gnc2: mean of :math:`\log(1/|m_c - m_{c'}|)` over the pairs of normalised M_c (Liu et al. 2023): hyperspherical
            uniformity, for more classes than d + 1. Small, not 0, where they are spread out.
        gnc2_variance: its variance over the pairs, 0 for equal distances.
        nc3: :math:`\|W/\|W\|_F - M/\|M\|_F\|_F^2`.
        nc3_etf: :math:`\|WM'/\|WM'\|_F - (I - 11'/C)/\sqrt{C-1}\|_F`.
        duality: (C,) cosine of each w_c with its M_c, 1 at collapse.
        duality_variance: variance of those over the classes (uniform duality, Wu and Papyan 2024).
        nc4: share of samples whose nearest class mean is not the class of the largest output ``W h + b``.
        nearest_mean_error: share of samples whose nearest class mean is not their label's.
        bias_collapse: :math:`\|W \mu_G + b\|`.
        squared_loss: its parts, where a ``ridge`` was given.
        labels: of the C classes.
        counts: (C,) samples of each.
        means: (C, d) class means, float64 on the host.
        variances: (C,) mean squared distance to the class mean.
        mean_of_classes: (d,) every class weighing the same.
        mean_of_samples: (d,) every sample weighing the same.
        balance: which of the two is mu_G.
        rank: directions that the M_c span, as far as their floating-point type resolves.
        left_out: samples of no class.
        reasons: why a number is NaN, or what it does not tell; by its name.
    """

    nc1: float
    nc1_quotient: float
    cdnv: float
    equinorm: float
    equinorm_classifier: float
    equiangularity: float
    equiangularity_classifier: float
    cosine_spread: float
    cosine_spread_classifier: float
    etf_error: float
    gnc2: float
    gnc2_variance: float
    nc3: float
    nc3_etf: float
    duality_variance: float
    nc4: float
    nearest_mean_error: float
    bias_collapse: float
    squared_loss: SquaredLossParts | None
    duality: Tensor
    labels: tuple[int, ...]
    counts: Tensor
    means: Tensor
    variances: Tensor
    mean_of_classes: Tensor
    mean_of_samples: Tensor
    balance: str
    rank: int
    left_out: int
    reasons: dict[str, str]

    @property
    def numbers(self) -> dict[str, float]:
        """All of them by name, those of the squared loss as ``squared_loss_nc1`` and so on."""
        found = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.type == "float"}
        if self.squared_loss is not None:
            found |= {f"squared_loss_{name}": value for name, value in vars(self.squared_loss).items()}
        return found

    @property
    def samples(self) -> int:
        """Number of samples of the classes."""
        return int(self.counts.sum())

    @property
    def imbalance(self) -> float:
        """Samples of the largest class over those of the smallest."""
        return float(self.counts.max() / self.counts.min())

    def nc5(self, outside: Tensor) -> float:
        r"""Mean of :math:`|cos(\mu_c, \mu_G^{out})|`, of features (n, d) from outside the classes (Ammar et al. 2024).

        Raises:
            DataError: if they are not (n, d).
        """
        checked_features(outside, self.means.shape[1])
        mean = outside.detach().to("cpu", torch.float64).mean(dim=0)
        return float(torch.cosine_similarity(self.means, mean[None]).abs().mean())

    def __repr__(self) -> str:
        """One line: the four of the paper."""
        four = {"NC1": self.nc1, "NC2": self.equiangularity, "NC3": self.nc3, "NC4": self.nc4}
        said = ", ".join(f"{name} {value:.3g}" for name, value in four.items() if not math.isnan(value))
        return f"Collapse({said or 'undefined'}; {len(self.labels)} classes, {self.samples} samples)"


def neural_collapse(
    features: Tensor,
    labels: Tensor,
    *,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    classes: int | Sequence[int] | None = None,
    balance: str = "classes",
    ridge: float | None = None,
) -> Collapse:
    """How collapsed features are, and the linear classifier on them with them.

    Made in float64, a part of the samples at a time: besides the features it takes some matrices of (C, d).

    Args:
        features: (n, d).
        labels: (n,) class indices, or one-hot rows (n, C); -100 leaves a sample out.
        weight: (C, d) rows of the classifier; None leaves out what is said of it.
        bias: (C,) of the classifier; None is 0.
        classes: how many; or a list of labels to measure alone. Default: as many as the classifier has rows, or as the
            labels show.
        balance: what weighs the same in mu_G and Sigma_B: ``"classes"`` as in the formulas, or ``"samples"``, so that
            mu_G is the mean of all and Sigma_W + Sigma_B their covariance. The same where classes are balanced. In
            Sigma_W samples always weigh the same; ``variances`` tells the classes apart.
        ridge: take the squared loss apart too, with this weight decay; see `collapse_loss`.

    Raises:
        SettingError: if an argument means nothing, or there are fewer than two classes.
        DataError: if shapes do not go together, a label is out of range, or a class has no sample.
        NonFiniteError: if features or classifier are NaN or infinite.

    Example:
        >>> import torch
        >>> from losscope.landscape import neural_collapse
        >>> features = torch.cat((0.9 * torch.eye(3), 1.1 * torch.eye(3)))  # about the corners of a simplex
        >>> found = neural_collapse(features, torch.tensor([0, 1, 2, 0, 1, 2]), weight=torch.eye(3))
        >>> round(found.nc1, 6), round(found.nc1_quotient, 6), found.nc4  # tr(Sigma_W Sigma_B^+) = 0.01 * 2
        (0.006667, 0.015, 0.0)
    """
    checked_features(features)
    if classes is None:
        classes = len(weight) if weight is not None else _counted(class_indices(labels))
    return neural_collapse_of_batches(
        [(features, labels)], classes=classes, weight=weight, bias=bias, balance=balance, ridge=ridge
    )


def neural_collapse_of_batches(
    batches: Iterable[tuple[Tensor, Tensor]],
    *,
    classes: int | Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    balance: str = "classes",
    ridge: float | None = None,
) -> Collapse:
    """`neural_collapse` of features that come in batches, as many as there are.

    Batches that can be read again are, and some matrices of (C, d) are held. An iterator is read once: then a (d, d)
    matrix is held too, and nearest class means, which need the means, are left out.

    Args:
        batches: of (features (b, d), labels (b,)); a list, a loader that gives the same again, or an iterator, which
            leaves ``nc4`` and ``nearest_mean_error`` undefined.
        classes: how many, or a list of labels to measure alone.
        weight: see `neural_collapse`.
        bias: the same.
        balance: the same.
        ridge: the same.

    Raises:
        SettingError: as `neural_collapse`.
        DataError: the same; and if there is no batch.
        NonFiniteError: the same.

    Example:
        >>> import torch
        >>> from losscope.landscape import neural_collapse_of_batches
        >>> x, y = torch.randn(100, 8), torch.arange(100) % 4
        >>> neural_collapse_of_batches(zip(x.split(10), y.split(10)), classes=4).samples
        100
    """
    known = Classes(classes)
    W, b = checked_classifier(known, weight, bias)
    _check_options(balance, ridge, W)
    once = isinstance(batches, Iterator)
    moments = None
    for features, labels in batches:
        if moments is None:
            checked_features(features)
            moments = FeatureMoments(known, features.shape[1], features.device, scatter=once or ridge is not None)
        moments.update(features, labels)
    if moments is None:
        raise DataError("there is no batch of features; an iterator that is used up has none")
    moments.check()
    between = Between.of(moments, balance)
    second = None
    if not once:
        second = SecondPass(moments, W, b, between.directions)
        for features, labels in batches:
            second.update(features, labels)
    return collapse_of_moments(moments, between, second, W, b, ridge=ridge)


def _counted(labels: Tensor) -> int:
    return int(labels.max()) + 1 if labels.numel() else 0


def checked_classifier(
    classes: Classes, weight: Tensor | None, bias: Tensor | None
) -> tuple[Tensor | None, Tensor | None]:
    """The rows of the classes, (C, d), and their biases (C,), in float64.

    Raises:
        SettingError: if their shapes are others.
        NonFiniteError: if they are NaN or infinite.
    """
    if weight is None:
        if bias is not None:
            raise SettingError("bias= is that of a classifier; pass its weight= (C, d) too")
        return None, None
    most = max(classes.labels)
    if weight.ndim != 2 or len(weight) <= most or (not classes.listed and len(weight) != len(classes)):
        raise SettingError(
            f"weight must have a row for each of the classes 0 to {most}, got shape {tuple(weight.shape)}; a list "
            "classes=[...] picks the labels to measure"
        )
    if bias is not None and bias.shape != weight.shape[:1]:
        raise SettingError(f"bias must be ({len(weight)},) as weight has rows, got shape {tuple(bias.shape)}")
    made = [None if t is None else t.detach()[classes.labels].to("cpu", torch.float64) for t in (weight, bias)]
    if any(t is not None and not bool(t.isfinite().all()) for t in made):
        raise NonFiniteError("the classifier's weights are NaN or infinite; has the training diverged?")
    return made[0], made[1]


def _check_options(balance: str, ridge: float | None, weight: Tensor | None) -> None:
    if balance not in BALANCES:
        raise SettingError(f"balance must be 'classes' or 'samples', got {balance!r}")
    if ridge is not None and weight is None:
        raise SettingError("ridge= takes the squared loss of a classifier apart; pass its weight= (C, d)")


@dataclass(frozen=True, eq=False)
class Between:
    """The class means about their centre; small, in float64 on the host.

    Attributes:
        balance: what weighs the same.
        centre: (d,) mu_G.
        M: (C, d) centred means.
        directions: (r, d) orthonormal eigenvectors of Sigma_B, as far as it is resolved and at most C - 1.
        values: (r,) its eigenvalues, descending.
        trace: of Sigma_B.
        resolution: what the features' floating-point type leaves open in the length of a mean.
    """

    balance: str
    centre: Tensor
    M: Tensor
    directions: Tensor
    values: Tensor
    trace: float
    resolution: float

    @classmethod
    def of(cls, moments: FeatureMoments, balance: str) -> Between:
        """From moments that are complete."""
        means, counts, resolution = moments.means.cpu(), moments.counts.cpu(), moments.resolution
        share = counts / counts.sum() if balance == "samples" else torch.full_like(counts, 1 / len(counts))
        centre = share @ means
        M = means - centre
        _, s, directions = torch.linalg.svd(share.sqrt()[:, None] * M, full_matrices=False)  # Sigma_B = V s^2 V'
        cut = max(resolution, torch.finfo(s.dtype).eps * max(M.shape) * float(s[0]))
        rank = int((s[: min(len(M) - 1, M.shape[1])] > cut).sum())
        values = s.square()
        return cls(balance, centre, M, directions[:rank], values[:rank], float(values.sum()), resolution)


def collapse_of_moments(
    moments: FeatureMoments,
    between: Between,
    second: SecondPass | None,
    weight: Tensor | None,
    bias: Tensor | None,
    *,
    ridge: float | None = None,
) -> Collapse:
    """All numbers from passes that are complete; without a second one, moments must have the scatter.

    Raises:
        SettingError: if ``ridge`` means nothing.
    """
    means, counts, v, said = moments.means.cpu(), moments.counts.cpu(), moments.variances.cpu(), _Said()
    within = None if moments.within is None else moments.within.cpu()
    if second is not None:
        along = second.variances.cpu()
    else:
        assert within is not None
        along = ((between.directions @ within) * between.directions).sum(dim=1)
    found = _within_classes(between, along, counts, v, said)
    found |= _geometry(between.M, "", between.resolution, said) | _of_means(between.M, between.resolution, said)
    found |= _of_classifier(between.M, between.centre, weight, bias, between.resolution, said)
    found |= _decisions(second, weight, said)
    parts = None
    if ridge is not None and weight is not None and within is not None:
        parts = squared_loss_parts(means, within, counts, weight, bias, ridge=ridge)
    return Collapse(
        **found, squared_loss=parts, labels=tuple(moments.classes.labels), counts=counts, means=means, variances=v,
        mean_of_classes=means.mean(dim=0), mean_of_samples=(counts / counts.sum()) @ means, balance=between.balance,
        left_out=moments.left_out, reasons=dict(said),
    )  # fmt: skip


class _Said(dict[str, str]):
    """Why numbers are undefined."""

    def undefined(self, reason: str, *names: str) -> dict[str, Any]:
        """NaN for each of them."""
        self.update(dict.fromkeys(names, reason))
        return dict.fromkeys(names, math.nan)


def _within_classes(between: Between, along: Tensor, counts: Tensor, v: Tensor, said: _Said) -> dict[str, Any]:
    """NC1 in its three forms: variation within classes, ``along`` the eigenvectors of Sigma_B, against that between."""
    C, d = between.M.shape
    rank, most = len(between.values), min(C - 1, d)
    found: dict[str, Any] = {"rank": rank}
    if rank == 0:
        return found | said.undefined("the class means coincide", "nc1", "nc1_quotient", "cdnv")
    found["nc1"] = float((along / between.values).sum()) / C
    if rank < most:
        said["nc1"] = f"the class means span {rank} of {most} directions; variation along the others is not counted"
    found["nc1_quotient"] = float(counts @ v / counts.sum()) / between.trace
    if geometry.closest(between.M) <= between.resolution:
        return found | said.undefined("the means of two classes coincide", "cdnv")
    return found | {"cdnv": geometry.cdnv(between.M, v)}


def _geometry(rows: Tensor, of: str, resolution: float, said: _Said) -> dict[str, Any]:
    """NC2: lengths and angles of the rows."""
    names = [f"{name}{of}" for name in ("equinorm", "equiangularity", "cosine_spread")]
    lengths = torch.linalg.vector_norm(rows, dim=1)
    what = "rows of the classifier" if of else "centred class means"
    if not float(lengths.max()) > resolution:
        return said.undefined(f"all {what} are zero", *names)
    found: dict[str, Any] = {names[0]: geometry.equinorm(rows)}
    if not float(lengths.min()) > resolution:
        return found | said.undefined(f"some of the {what} are zero and have no direction", *names[1:])
    if len(rows) > rows.shape[1] + 1:
        said[names[1]] = _TOO_MANY
    return found | dict(zip(names[1:], geometry.equiangularity(rows), strict=True))


def _of_means(M: Tensor, resolution: float, said: _Said) -> dict[str, Any]:
    """NC2 of the centred means as one number, and its generalisation to more classes than dimensions allow."""
    lengths = torch.linalg.vector_norm(M, dim=1)
    if not float(lengths.max()) > resolution:
        return said.undefined("the class means coincide", "etf_error", "gnc2", "gnc2_variance")
    found: dict[str, Any] = {"etf_error": geometry.etf_error(M, M)}
    if len(M) > M.shape[1] + 1:
        said["etf_error"] = _TOO_MANY
    shortest = float(lengths.min())
    if not shortest > resolution or geometry.closest(M / lengths[:, None]) <= resolution / shortest:
        why = "two centred class means have no direction, or the same one"
        return found | said.undefined(why, "gnc2", "gnc2_variance")
    return found | dict(zip(("gnc2", "gnc2_variance"), geometry.uniformity(M), strict=True))


def _of_classifier(
    M: Tensor, centre: Tensor, W: Tensor | None, b: Tensor | None, resolution: float, said: _Said
) -> dict[str, Any]:
    """NC2 of the classifier, NC3 in its three forms, and what the bias leaves at the centre."""
    own = "_classifier"
    names = [f"{name}{own}" for name in ("equinorm", "equiangularity", "cosine_spread")]
    duals, undirected = ("nc3", "nc3_etf", "duality_variance"), torch.full((len(M),), math.nan, dtype=M.dtype)
    if W is None:
        return {"duality": undirected} | said.undefined(_NO_CLASSIFIER, *names, *duals, "bias_collapse")
    if W.shape[1] != M.shape[1]:
        raise SettingError(f"weight has {W.shape[1]} columns for features of {M.shape[1]} entries")
    found: dict[str, Any] = _geometry(W, own, 0.0, said)
    found["bias_collapse"] = float(torch.linalg.vector_norm(W @ centre + (0 if b is None else b)))
    if not (float(W.abs().max()) > 0 and float(torch.linalg.vector_norm(M, dim=1).max()) > resolution):
        return found | {"duality": undirected} | said.undefined("classifier or centred means are zero", *duals)
    found["nc3"] = float((W / torch.linalg.matrix_norm(W) - M / torch.linalg.matrix_norm(M)).square().sum())
    found["nc3_etf"] = geometry.etf_error(W, M)
    lengths = torch.linalg.vector_norm(W, dim=1) * torch.linalg.vector_norm(M, dim=1)
    found["duality"] = torch.where(lengths > 0, (W * M).sum(dim=1) / lengths, math.nan)
    if bool(found["duality"].isnan().any()):
        return found | said.undefined("a row or a centred mean is zero and has no direction", "duality_variance")
    return found | {"duality_variance": float(found["duality"].var(correction=0))}


def _decisions(second: SecondPass | None, weight: Tensor | None, said: _Said) -> dict[str, Any]:
    """NC4 and the nearest-mean error."""
    if second is None:
        why = "nearest means take a second pass, and an iterator has one; pass a list or a loader"
        return said.undefined(why, "nc4", "nearest_mean_error")
    found: dict[str, Any] = {"nearest_mean_error": second.wrong / second.samples}
    if weight is None:
        return found | said.undefined(_NO_CLASSIFIER, "nc4")
    return found | {"nc4": second.other / second.samples}
