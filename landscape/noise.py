"""The noise of an objective's gradients: of single samples, or of mini-batches as training draws them."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from .adaptive_batches import BatchSizeTest, batch_size_tests
from .errors import DataError, SettingError
from .gradient_norms import quantile, share_above
from .groups import lengths_of, part
from .html_table import Shown
from .intervals import student_quantile
from .noise_scale import NoiseScale, Reduced, check_confidence, check_count, covariance_square
from .objective import Objective
from .operators import SymmetricOperator, as_operator
from .results import Estimate
from .sample_gradients import SampleGradients, refuse_another_mean
from .space import generator_for

__all__ = ["NoiseStatistics", "gradient_noise", "minibatch_noise"]

_LEAST = 8  # draws, of which there are two at least in each of four groups
_FEW = 10.0  # draws: with fewer, means are skewed beyond what intervals correct


@dataclass(frozen=True, eq=False)
class NoiseStatistics(Shown):
    """The noise of gradients, each number with its interval.

    Attributes:
        simple: tr(Sigma) over the gradient's square, with Sigma the covariance of single samples' gradients.
        curvature_weighted: tr(H Sigma) over G'HG; None where no curvature was given.
        projected: G'Sigma G, the variance of single samples' gradients along G times its square.
        batch_size: samples in a draw; 1 for single samples.
        draws: how many gradients were taken.
        samples: N, in the data.
        norms: (K,) float64 lengths of these gradients, on the CPU.
        covariance: (3, 3) float64, of the estimates of tr(Sigma), ``|G|^2`` and G'Sigma G.
        groups: of draws, from which that covariance is known with one degree of freedom less.
        engine: ``"together"`` or ``"one by one"``: how the gradients were evaluated.
        matvecs: products with the curvature.
        note: what is to be known of them; mostly empty.
    """

    simple: NoiseScale
    curvature_weighted: NoiseScale | None
    projected: Estimate
    batch_size: int
    draws: int
    samples: int
    norms: Tensor
    covariance: Tensor
    groups: int
    engine: str
    matvecs: int = 0
    note: str = ""

    @property
    def covariance_trace(self) -> Estimate:
        """tr(Sigma)."""
        return self.simple.noise

    @property
    def gradient_square(self) -> Estimate:
        """``|G|^2``, without bias; may be negative."""
        return self.simple.signal

    def quantile(self, q: float) -> Estimate:
        """Of the gradients' lengths; see `losscope.landscape.gradient_norms.quantile`."""
        return quantile(self.norms, q, confidence=self.simple.confidence)

    def share_above(self, c: float) -> Estimate:
        """The share of gradients longer than c, which clipping them one by one at c would cut."""
        return share_above(self.norms, c, confidence=self.simple.confidence)

    def tests(self, batch_size: int) -> tuple[BatchSizeTest, BatchSizeTest, BatchSizeTest]:
        """The norm, inner-product and orthogonality test at a batch size; see `adaptive_batches`."""
        estimates = (self.covariance_trace.value, self.gradient_square.value, self.projected.value)
        confidence = self.simple.confidence
        return batch_size_tests(estimates, self.covariance, batch_size, self.groups - 1, confidence=confidence)

    def __repr__(self) -> str:
        """The noise scales, and from what they are."""
        weighted = "" if self.curvature_weighted is None else f", curvature-weighted {self.curvature_weighted!r}"
        note = f"; {self.note}" if self.note else ""
        drawn = f"{self.draws} draws of {self.batch_size} of {self.samples} samples, {self.engine}"
        return f"NoiseStatistics(simple {self.simple!r}{weighted}; {drawn}{note})"


def gradient_noise(
    objective: Objective,
    *,
    samples: int | None = None,
    curvature: SymmetricOperator | None = None,
    groups: int = 20,
    confidence: float = 0.95,
    memory: int | None = None,
    seed: int | torch.Generator | None = None,
) -> NoiseStatistics:
    r"""The noise of single samples' gradients, from those of all samples or a random part of them.

    The intervals are for the population that the samples were drawn from, as a data set is from its distribution. For
    the data as they are, with ``samples=None``, tr(Sigma) is the exact sum :math:`\frac{1}{N-1} \sum_i |g_i - g|^2`.
    It takes a gradient of the data and one per sample, and with ``curvature`` one product for each group.

    Args:
        objective: the loss on all samples, a mean or a sum of theirs.
        samples: how many of them, drawn without replacement; None for all.
        curvature: H of the curvature-weighted noise scale, e.g. `Hessian` or `GaussNewton` of the objective; its own
            dependence on the choice of samples is not in the interval.
        groups: into so many the draws are dealt; vectors of the parameters' size that are kept.
        confidence: nominal coverage of the intervals.
        memory: bytes that gradients may take; None for a quarter of a GPU's free memory, 256 MiB on a CPU.
        seed: int, generator, or None for fresh entropy; the global stream is never used.

    Raises:
        SettingError: if an argument means nothing, or samples have weights.
        DataError: if there are fewer than 8 samples, or batches cannot be cut into samples.
        LossError: if the samples' gradients do not average to the objective's, as with batch statistics.
        NonFiniteError: if a gradient is NaN or infinite.

    Example:
        >>> import torch
        >>> from losscope.landscape import Objective
        >>> from losscope.landscape.noise import gradient_noise
        >>> model = torch.nn.Linear(1, 1, bias=False)
        >>> _ = torch.nn.init.zeros_(model.weight)
        >>> data = (torch.ones(1000, 1), 1 + torch.randn(1000, 1, generator=torch.Generator().manual_seed(0)))
        >>> found = gradient_noise(Objective(model, data, criterion=torch.nn.MSELoss()), seed=0)  # g_i = -2 y_i
        >>> found.simple.conclusive, bool(found.simple.low < 1 < found.simple.high)
        (True, True)
    """
    lengths = lengths_of(objective)
    N = sum(lengths)
    K = N if samples is None else samples
    _check(K, N, groups, confidence)
    generator = generator_for(seed, torch.device("cpu"))
    chosen = torch.randperm(N, generator=generator)[:K]
    some = objective if K == N else part(objective, chosen.sort().values, lengths, {})
    with objective.isolated():
        mean = some.gradient() * (N / K if objective.loss.summed else 1.0)
        pass_ = _Pass(SampleGradients(objective, chosen[:, None], memory=memory), mean, groups)
        refuse_another_mean(pass_.mean_apart, float(pass_.norms.square().mean().sqrt()))
        return _found(pass_, curvature, N, confidence)


def minibatch_noise(
    objective: Objective,
    batch_size: int,
    *,
    draws: int = 100,
    curvature: SymmetricOperator | None = None,
    groups: int = 20,
    confidence: float = 0.95,
    memory: int | None = None,
    seed: int | torch.Generator | None = None,
) -> NoiseStatistics:
    r"""The noise of mini-batch gradients, drawn independently of one another and with replacement.

    The intervals are for the data as they are: of :math:`\Sigma = \frac1N \sum_i (g_i - G)(g_i - G)^T` and of G. As it
    takes no gradient of a single sample it goes also where there is none: with batch statistics, dropout, targets that
    are ignored, losses that compare samples. Sigma is then B times the covariance of a mini-batch's gradient, and G
    their mean. What is not kept in memory is computed twice.

    Args:
        objective: the loss on all samples; each batch of its data must show its samples in its first dimension.
        batch_size: B, samples in a mini-batch.
        draws: K, how many mini-batches.
        curvature: as in `gradient_noise`.
        groups: as in `gradient_noise`.
        confidence: nominal coverage of the intervals.
        memory: as in `gradient_noise`.
        seed: int, generator, or None for fresh entropy; the global stream is never used.

    Raises:
        SettingError: if an argument means nothing, or samples have weights.
        DataError: if batches cannot be cut into samples.
        NonFiniteError: if a gradient is NaN or infinite.

    Example:
        >>> import torch
        >>> from losscope.landscape import Objective
        >>> from losscope.landscape.noise import minibatch_noise
        >>> model = torch.nn.Linear(1, 1, bias=False)
        >>> _ = torch.nn.init.zeros_(model.weight)
        >>> data = (torch.ones(4, 1), torch.tensor([[-0.5], [0.5], [1.5], [2.5]]))
        >>> found = minibatch_noise(Objective(model, data, criterion=torch.nn.MSELoss()), 2, draws=400, seed=0)
        >>> bool(found.covariance_trace.low < 5 < found.covariance_trace.high)  # g_i = -2 y_i: 4 * 1.25
        True
    """
    lengths = lengths_of(objective)
    N = sum(lengths)
    check_count("batch_size", batch_size, 1)
    _check(draws, math.inf, groups, confidence)
    generator = generator_for(seed, torch.device("cpu"))
    chosen = torch.randint(N, (draws, batch_size), generator=generator).sort(dim=1).values
    gradients = SampleGradients(objective, chosen, memory=memory)
    with objective.isolated():
        space = objective.space
        mean = torch.zeros(space.size, dtype=space.dtype, device=space.device)
        for block in gradients:
            mean += block.sum(dim=0) / draws
        return _found(_Pass(gradients, mean, groups), curvature, N, confidence)


class _Pass:
    """What one pass over the gradients x_k finds of them, with their mean known.

    Attributes:
        gradients: x_k.
        mean: (n,).
        norms: (K,) float64 on the CPU, as all of these.
        apart: (K,) ``|x_k - mean|^2``.
        along: (K,) ``(x_k - mean)'mean``.
        groups: (M, n) means of equally many x_k less the mean, the last few left out, on the device.
        size: how many are in each.
        mean_apart: (n,) mean of the x_k less what they should have.
    """

    def __init__(self, gradients: SampleGradients, mean: Tensor, groups: int) -> None:
        self.gradients, self.mean = gradients, mean
        K = len(gradients)
        M = min(groups, K // 2)
        self.size = K // M
        self.groups = mean.new_zeros(M, len(mean))
        self.mean_apart, self._drift = torch.zeros_like(mean), torch.zeros_like(mean)
        columns: list[Tensor] = []
        first = 0
        for block in gradients:
            norms = block.square().sum(dim=1, dtype=torch.float64).sqrt()
            x = block - mean
            along = (x * mean).sum(dim=1, dtype=torch.float64)
            columns.append(torch.stack([norms, x.square().sum(dim=1, dtype=torch.float64), along]))
            self.mean_apart += x.sum(dim=0) / K
            self._drift += (along.to(x.dtype) @ x) / K
            group = torch.arange(first, first + len(x), device=x.device) // self.size
            inside = group < M
            self.groups.index_add_(0, group[inside], x[inside] / self.size)
            first += len(x)
        self.norms, self.apart, self.along = torch.cat(columns, dim=1).cpu()

    @functools.cached_property
    def products(self) -> Tensor:
        """(M, M) float64, of the groups' means less the mean."""
        rows = self.groups - self.groups.mean(dim=0)
        return _products(rows, rows)

    @property
    def square(self) -> float:
        """``|mean|^2``."""
        return float(self.mean.square().sum(dtype=torch.float64))

    @property
    def reduced(self) -> Reduced:
        """In the Euclidean inner product."""
        K = len(self.apart)
        # x_k' mean of the others: (K x_k'mean - |x_k|^2) / (K - 1), with x_k = mean + (what it is apart)
        along = self.square + ((K - 2) * self.along - self.apart) / (K - 1)
        spread = self.size**2 * max(0.0, covariance_square(self.products))
        return Reduced(self.apart * K / (K - 1), along, spread)

    def projected(self, reduced: Reduced) -> tuple[float, Tensor]:
        """mean' C mean, less what the mean's noise adds to it, and the groups' contributions to it, (M,)."""
        K, M = len(self.apart), len(self.groups)
        value = max(0.0, float(reduced.along.var()) - reduced.spread / K)
        # A sample moves it by what it adds to the variance, and by how far it turns the mean.
        squares = self.along[: M * self.size].square().unflatten(0, (M, self.size)).mean(dim=1)
        turned = _products(self.groups, self._drift[None])[:, 0]
        return value, squares + 2 * turned


def _found(pass_: _Pass, curvature: SymmetricOperator | None, samples: int, confidence: float) -> NoiseStatistics:
    B, K, M = pass_.gradients.chosen.shape[1], len(pass_.gradients), len(pass_.groups)
    reduced = pass_.reduced
    simple = reduced.scale(B, confidence)
    value, contributions = pass_.projected(reduced)
    grouped = (x[: M * pass_.size].unflatten(0, (M, pass_.size)).mean(dim=1) for x in (reduced.apart, reduced.along))
    apart, along = grouped
    covariance = torch.cov(torch.stack([B * apart, 2 * along, B * contributions])) / M
    covariance[1, 1] = max(float(covariance[1, 1]), simple.signal.stderr**2)  # which has what groups may not show
    error = math.sqrt(float(covariance[2, 2]))
    half = student_quantile(M - 1, confidence) * error
    projected = Estimate(B * value, error, max(0.0, B * value - half), B * value + half, confidence, K, "draws", True)
    weighted, matvecs, kernel_note = None, 0, ""
    if curvature is not None:
        weighted, matvecs, kernel_note = _weighted(pass_, as_operator(curvature), B * pass_.size, confidence)
    note = "; ".join(filter(None, (_few(pass_.apart), pass_.gradients.reason, kernel_note)))
    return NoiseStatistics(
        simple, weighted, projected, B, K, samples, pass_.norms, covariance, M, pass_.gradients.engine, matvecs, note
    )


def _weighted(pass_: _Pass, curvature: SymmetricOperator, size: int, confidence: float) -> tuple[NoiseScale, int, str]:
    """In the inner product x'Hy, of the groups' means."""
    if curvature.shape[0] != len(pass_.mean):
        raise SettingError(
            f"curvature must be of the objective's {len(pass_.mean)} parameters, got one of shape {curvature.shape}"
        )
    rows = pass_.groups + pass_.mean
    columns = curvature @ rows.T.contiguous()
    gram = _products(rows, columns.T)
    scale = Reduced.of_products((gram + gram.T) / 2).scale(size, confidence)
    return scale, len(rows), getattr(curvature, "note", "")


def _products(a: Tensor, b: Tensor) -> Tensor:
    """a b', (k, n) and (l, n) -> (k, l) float64 on the CPU, a row at a time so that no copy is made."""
    return torch.stack([(b * row).sum(dim=1, dtype=torch.float64) for row in a]).cpu()


def _few(squares: Tensor) -> str:
    """What to know where a few of the draws hold most of the noise; empty where they do not."""
    effective = float(squares.sum() ** 2 / squares.square().sum()) if bool(squares.any()) else math.inf
    if effective >= min(_FEW, len(squares) / 2):
        return ""
    return f"as much as {effective:.0f} draws hold most of the gradients' noise: intervals may be too narrow"


def _check(draws: object, most: float, groups: int, confidence: float) -> None:
    check_confidence(confidence)
    check_count("groups", groups, 4)
    if isinstance(draws, int) and most < _LEAST:
        raise DataError(
            f"the noise of gradients is their spread over samples: {most:.0f} in the data are too few, pass {_LEAST} "
            "at least"
        )
    check_count("the number of draws", draws, _LEAST)
    assert isinstance(draws, int)
    if draws > most:
        raise SettingError(f"samples must be at most the {most:.0f} of the data, got {draws}")
