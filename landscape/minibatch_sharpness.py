r"""The curvature that mini-batch gradients see, in its several definitions, which are not equivalent.

With the gradient :math:`g_B`, the Hessian :math:`H_B` and the mean loss of a mini-batch, and g, H and L those of all n
samples:

* batch sharpness, the mean of ratios :math:`E[g_B^T H_B g_B / |g_B|^2]` (A. Andreyev and P. Beneventano, "Edge of
  stochastic stability", arXiv 2412.20553, Def. 3), which SGD's is said to hover about 2/lr;
* the ratio of means :math:`E[g_B^T H_B g_B] / E|g_B|^2`, elsewhere by the same name. At the critical rate of a linear
  problem with single samples the two were 1.41/lr and 2.56/lr;
* interaction-aware sharpness :math:`E[g_B^T H g_B] / E|g_B|^2` (S. Lee and C. Jang, ICLR 2023), never above the
  largest eigenvalue of H;
* gradient-noise interaction :math:`E[g_B^T H g_B] / |g|^2`, which is about 2/lr wherever the loss is stationary:
  it tells that there is oscillation, not that there is an edge;
* the mini-batch index :math:`S_\mu = E|g_B|^2 / (2L)` (`losscope.landscape.stability.minibatch_index`).

The same numbers hold the covariance :math:`\Sigma` of single samples' gradients,

.. math:: E[g_B^T A g_B] - g^T A g = \frac{n - B}{B (n - 1)} \operatorname{tr}(\Sigma A),

and with it two bounds that are necessary for a linearly stable minimum, each in units of curvature, so that the norm
of H cancels and no alignment is assumed: with the measured :math:`\mu_1 = \operatorname{tr}\Sigma / (2L
\operatorname{tr}H)`, :math:`\operatorname{tr}H \le 2B/(\mu_1\,\mathrm{lr})` (L. Wu and W. J. Su, arXiv 2305.17490) is
:math:`\operatorname{tr}\Sigma/(2LB) \le 2/\mathrm{lr}`; with :math:`\mu = \operatorname{tr}(\Sigma H)/(2L\|H\|_F^2)`,
:math:`\|H\|_F \le \sqrt{B/\mu}/\mathrm{lr}` (L. Wu, M. Wang and W. J. Su, arXiv 2207.02628) is
:math:`\sqrt{\operatorname{tr}(\Sigma H)/(2LB)} \le 1/\mathrm{lr}`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .compositions import Preconditioned
from .errors import SettingError
from .hessian import Hessian
from .html_table import Shown
from .mean_estimates import Accuracy, Mean, Ratio
from .minibatch_draws import MinibatchDraws
from .objective import Objective
from .operators import Observed, SymmetricOperator
from .results import Estimate
from .space import generator_for

__all__ = ["MinibatchSharpness", "minibatch_sharpness"]

_FEW = 10.0  # draws: with fewer, means are skewed beyond what intervals correct
_GROWTH = 4.0  # most draws after a look, relative to those before it


@dataclass(frozen=True, eq=False)
class MinibatchSharpness(Shown):
    """The curvature along mini-batch gradients, and what the same draws tell of the gradients' noise.

    With a preconditioner there are only the first two, of ``u = P^-1 g_B``: ``u'H_B u / g_B'u``, and the gradients'
    square.

    Attributes:
        mean_of_ratios: batch sharpness as its paper defines it, to be compared with 2/lr.
        ratio_of_means: of the same forms and squares.
        batch_size: B.
        samples: n.
        draws: mini-batches.
        matvecs: products with mini-batch Hessians, and with that of all samples.
        engine: ``"together"`` or ``"one by one"``: how the mini-batches were evaluated.
        kernel: name of the engine that computed the products with the Hessian of all samples.
        note: what is to be known of them; mostly empty.
        index: S_mu, to be compared with 2/lr; NaN where the loss is zero.
        interaction_aware: with the Hessian of all samples.
        noise_interaction: that, in units of the full gradient's square; infinite where there is none.
        covariance_trace: tr(Sigma), the variance of single samples' gradients; None where B = n shows none.
        covariance_curvature: tr(Sigma H); may be negative where H is not positive semi-definite.
        aligned_trace: tr(Sigma) / 2LB, to be compared with 2/lr; the trace bound with measured alignment.
        frobenius: (tr(Sigma H) / 2LB)^1/2, to be compared with 1/lr; the bound of the Frobenius norm with measured
            alignment. Zero where tr(Sigma H) is estimated below.
        gradient_square: ``E|g_B|^2``.
    """

    mean_of_ratios: Estimate
    ratio_of_means: Estimate
    batch_size: int
    samples: int
    draws: int
    matvecs: int
    engine: str
    kernel: str = ""
    note: str = ""
    index: Estimate | None = None
    interaction_aware: Estimate | None = None
    noise_interaction: Estimate | None = None
    covariance_trace: Estimate | None = None
    covariance_curvature: Estimate | None = None
    aligned_trace: Estimate | None = None
    frobenius: Estimate | None = None
    gradient_square: Estimate | None = None

    def __repr__(self) -> str:
        """All that there are, with their standard errors."""
        names = (
            "mean_of_ratios", "ratio_of_means", "index", "interaction_aware", "noise_interaction",
            "covariance_trace", "covariance_curvature", "aligned_trace", "frobenius",
        )  # fmt: skip
        found = ((name, getattr(self, name)) for name in names)
        shown = ", ".join(f"{name.replace('_', ' ')} {e.value:.5g} +- {e.stderr:.1g}" for name, e in found if e)
        flag = "" if self.mean_of_ratios.converged else ", NOT converged"
        note = f"; {self.note}" if self.note else ""
        return (
            f"MinibatchSharpness(batches of {self.batch_size} of {self.samples}: {shown}; {self.draws} draws "
            f"{self.engine}, {self.matvecs} products{flag}{note})"
        )


def minibatch_sharpness(
    objective: Objective,
    batch_size: int,
    *,
    rtol: float = 0.1,
    stderr_rtol: float | None = None,
    min_draws: int = 50,
    max_draws: int = 500,
    preconditioner: Tensor | Mapping[str, Tensor] | Sequence[Tensor] | None = None,
    hessian: Hessian | Observed | None = None,
    confidence: float = 0.95,
    memory: int | None = None,
    seed: int | torch.Generator | None = None,
) -> MinibatchSharpness:
    """The curvature along the gradients of random mini-batches, drawn without replacement.

    Each draw takes a gradient and two products of a mini-batch, many draws at a time where that is faster. Dropout
    masks are drawn anew for each mini-batch, as in training. Where the Hessian of all samples is wanted along a
    mini-batch's gradient, that of another mini-batch stands for it, drawn independently: for a loss that is a mean
    over samples its expectation is the same, and it costs a mini-batch's product and not one of all samples.

    Args:
        objective: the loss on all samples; each batch of its data must show its samples in its first dimension.
        batch_size: the size B of training's mini-batches, up to n.
        rtol: stop when the half-width of the interval of the mean of ratios is below ``rtol * |value|``.
        stderr_rtol: and when the standard errors of batch sharpness, in both definitions, are below
            ``stderr_rtol * |value|``. For that alone, pass ``rtol=math.inf``.
        min_draws: mini-batches before the first look.
        max_draws: most mini-batches; they come in pairs.
        preconditioner: diagonal of the P that the optimizer divides its gradient by, as `Preconditioned` takes it
            (`step_preconditioner`).
        hessian: that of the objective, where there is one already, whose kept graph then serves.
        confidence: nominal coverage of the intervals: Student's, corrected for skewness by Hall's transformation;
            that of ratios of means is Fieller's.
        memory: bytes that mini-batches evaluated together may take; None for a quarter of a GPU's free memory,
            256 MiB on a CPU.
        seed: int, generator, or None for fresh entropy; the global stream is never used.

    Raises:
        SettingError: if an argument means nothing.
        DataError: if batches cannot be cut into samples.
        NonFiniteError: if a gradient or a product is NaN or infinite.

    Example:
        Single samples of one output: the mean of the squared lengths of the rows.

        >>> import torch
        >>> from losscope.landscape import Objective
        >>> from losscope.landscape.stability import minibatch_sharpness
        >>> model = torch.nn.Linear(2, 1, bias=False)
        >>> data = (torch.tensor([[2.0, 0.0], [0.0, 2.0], [2.0, 0.0]]), torch.ones(3, 1))
        >>> objective = Objective(model, data, criterion=lambda o, t: (o - t).square().mean() / 2)
        >>> round(minibatch_sharpness(objective, batch_size=1, seed=0).mean_of_ratios.value, 4)
        4.0
    """
    accuracy = Accuracy(rtol, confidence, stderr_rtol)
    whole = Observed(Hessian(objective) if hessian is None else hessian)
    inverse = None if preconditioner is None else Preconditioned(whole, preconditioner).diagonal.reciprocal()
    draws = MinibatchDraws(
        objective, batch_size, generator_for(seed, torch.device("cpu")), inverse=inverse, crossed=inverse is None,
        memory=memory,
    )  # fmt: skip
    _check(batch_size, draws.samples, (min_draws, max_draws))
    with objective.isolated():
        ratios, of_means = _draw_enough(draws, min_draws, max_draws, accuracy)
        rest = _rest(draws, whole, accuracy) if inverse is None else {}
    return MinibatchSharpness(
        ratios, of_means, batch_size, draws.samples, draws.count, draws.matvecs + whole.matvecs, draws.engine,
        kernel=whole.kernel if whole.matvecs else "", note="; ".join(filter(None, (_few(draws), whole.note))),
        gradient_square=accuracy.of(Mean(draws.forms.square)), **rest,
    )  # fmt: skip


def _draw_enough(
    draws: MinibatchDraws, min_draws: int, max_draws: int, accuracy: Accuracy
) -> tuple[Estimate, Estimate]:
    """Batch sharpness in both definitions, accurate as was asked for or as the draws allow."""
    max_draws -= max_draws % 2
    wanted = min(min_draws, max_draws)
    while True:
        draws.draw(wanted)
        found = draws.forms
        has_gradient = found.along > 0
        ratios = Mean((found.form / found.along)[has_gradient])
        of_means = Ratio(found.form, found.along)
        short = max(accuracy.shortage(ratios), accuracy.shortage(of_means, width=False))
        if short <= 1 or wanted >= max_draws:
            return accuracy.of(ratios), accuracy.of(of_means)
        growth = min(1.2 * short**2, _GROWTH)
        wanted = min(max_draws, max(wanted + 10, math.ceil(wanted * growth)))


def _rest(draws: MinibatchDraws, whole: Observed, accuracy: Accuracy) -> dict[str, Estimate | None]:
    """What needs the loss, the gradient or the Hessian of all samples, by name."""
    n, B, found = draws.samples, draws.batch_size, draws.forms
    spread = B * (n - 1) / (n - B) if n > B else math.nan
    loss, g = _innermost(whole).value_and_gradient()  # type: ignore[attr-defined]
    per_loss = 1 / (2 * loss) if loss > 0 else math.nan
    square, form = (float((g * x).sum(dtype=torch.float64)) for x in (g, whole @ g))
    squares = Mean(found.square)
    # The Hessian of a mini-batch that was drawn independently of the gradient has the mean of all samples'.
    forms = Mean(_of_pairs(found.cross))
    trace, curvature = (squares - square) * spread, (forms - form) * spread
    means: dict[str, Mean | Ratio] = {
        "index": squares * per_loss,
        "interaction_aware": Ratio(_of_pairs(found.cross), _of_pairs(found.square)),
        "noise_interaction": forms * (1 / square if square > 0 else math.inf),
        "covariance_trace": trace,
        "covariance_curvature": curvature,
        "aligned_trace": trace * (per_loss / B),
    }
    shown = {name: accuracy.of(each) for name, each in means.items()}
    shown["frobenius"] = accuracy.of_root(curvature * (per_loss / B))
    spreads = ("covariance_trace", "covariance_curvature", "aligned_trace", "frobenius")
    return {name: None if n == B and name in spreads else each for name, each in shown.items()}


def _few(draws: MinibatchDraws) -> str:
    """What to know where a few of the draws hold most of what is averaged; empty where they do not.

    Then those that would change the mean most may not have been drawn, and no interval can know of them.
    """
    found = draws.forms
    numbers = (found.square, found.form, *([_of_pairs(found.cross)] if draws.crossed else []))
    effective = min(float(x.abs().sum() ** 2 / x.square().sum()) if bool(x.any()) else math.inf for x in numbers)
    if effective >= min(_FEW, draws.count / 2):
        return ""
    return f"as much as {effective:.0f} draws hold most of the gradients' squares or forms: intervals may be too narrow"


def _of_pairs(values: Tensor) -> Tensor:
    """The means of both mini-batches of each pair, (m,) -> (m / 2,)."""
    return values.unflatten(0, (-1, 2)).mean(dim=1)


def _innermost(operator: SymmetricOperator) -> SymmetricOperator:
    return _innermost(operator.operator) if isinstance(operator, Observed) else operator


def _check(batch_size: int, samples: int, counts: tuple[int, int]) -> None:
    if isinstance(batch_size, bool) or not isinstance(batch_size, int) or not 1 <= batch_size <= samples:
        raise SettingError(f"batch_size must be an integer from 1 to the {samples} samples, got {batch_size!r}")
    for name, count in zip(("min_draws", "max_draws"), counts, strict=True):
        if isinstance(count, bool) or not isinstance(count, int) or count < 4:
            raise SettingError(f"{name} must be an integer of at least 4, got {count!r}")
