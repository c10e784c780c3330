r"""The curvature that mini-batch gradients see, in its several definitions, which are not equivalent.

With the gradient :math:`g_B` and the Hessian :math:`H_B` of a mini-batch's mean loss, and g and H of all samples':

* batch sharpness, the mean of ratios :math:`E[g_B^T H_B g_B / |g_B|^2]` (A. Andreyev and P. Beneventano, "Edge of
  stochastic stability", arXiv 2412.20553, Def. 3), which SGD's is said to hover about 2/lr;
* the ratio of means :math:`E[g_B^T H_B g_B] / E|g_B|^2`, elsewhere by the same name. At the critical rate of a linear
  problem with single samples the two were 1.41/lr and 2.56/lr;
* interaction-aware sharpness :math:`E[g_B^T H g_B] / E|g_B|^2` (S. Lee and C. Jang, ICLR 2023), never above the
  largest eigenvalue of H;
* gradient-noise interaction :math:`E[g_B^T H g_B] / |g|^2`, which is about 2/lr wherever the loss is stationary:
  it tells that there is oscillation, not that there is an edge.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .errors import SettingError
from .groups import lengths_of, part
from .hessian import Hessian
from .intervals import student_quantile
from .objective import Objective
from .operators import Observed, refuse_nonfinite
from .results import Estimate
from .space import generator_for

__all__ = ["MinibatchSharpness", "minibatch_sharpness"]


@dataclass(frozen=True, eq=False)
class MinibatchSharpness:
    """The curvature along mini-batch gradients.

    Attributes:
        mean_of_ratios: batch sharpness as its paper defines it, to be compared with 2/lr.
        ratio_of_means: of the same forms and squares.
        interaction_aware: with the Hessian of all samples.
        noise_interaction: that, in units of the full gradient's square; infinite where there is none.
        batch_size: B.
        samples: N.
        draws: mini-batches.
        matvecs: products with mini-batch Hessians, and with that of all samples.
        kernel: name of the engine that computed the latter.
        note: what is to be known of them; mostly empty.
    """

    mean_of_ratios: Estimate
    ratio_of_means: Estimate
    interaction_aware: Estimate
    noise_interaction: Estimate
    batch_size: int
    samples: int
    draws: int
    matvecs: int
    kernel: str = ""
    note: str = ""

    def __repr__(self) -> str:
        """All four, with their standard errors."""
        names = ("mean_of_ratios", "ratio_of_means", "interaction_aware", "noise_interaction")
        found = ((name, getattr(self, name)) for name in names)
        shown = ", ".join(f"{name.replace('_', ' ')} {e.value:.5g} +- {e.stderr:.1g}" for name, e in found)
        flag = "" if self.mean_of_ratios.converged else ", NOT converged"
        note = f"; {self.note}" if self.note else ""
        return (
            f"MinibatchSharpness(batches of {self.batch_size} of {self.samples}: {shown}; {self.draws} draws, "
            f"{self.matvecs} products{flag}{note})"
        )


def minibatch_sharpness(
    objective: Objective,
    batch_size: int,
    *,
    rtol: float = 0.1,
    min_draws: int = 20,
    max_draws: int = 500,
    full_draws: int = 10,
    confidence: float = 0.95,
    seed: int | torch.Generator | None = None,
) -> MinibatchSharpness:
    """The curvature along the gradients of random mini-batches, drawn without replacement.

    Each draw takes a gradient and a product of a mini-batch, and some of them a product of all samples as well.

    Args:
        objective: the loss on all samples; each batch of its data must show its samples in its first dimension.
        batch_size: the size B of training's mini-batches, up to N.
        rtol: stop when the half-width of the interval of the mean of ratios is below ``rtol * |value|``.
        min_draws: mini-batches before the first look.
        max_draws: most mini-batches.
        full_draws: how many of the first gradients are multiplied by the Hessian of all samples.
        confidence: nominal coverage of the intervals; Student's, of ratios by the delta method.
        seed: int, generator, or None for fresh entropy; the global stream is never used.

    Raises:
        SettingError: if an argument means nothing, or the objective's samples have weights.
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
        >>> minibatch_sharpness(objective, batch_size=1, seed=0).mean_of_ratios.value
        4.0
    """
    lengths = lengths_of(objective)
    _check(batch_size, sum(lengths), rtol, confidence, (min_draws, max_draws, full_draws))
    run = _Run(objective, batch_size, lengths, generator_for(seed, torch.device("cpu")))
    wanted = min(min_draws, max_draws)
    run.draw(wanted, full_draws)
    while True:
        found = run.mean_of_ratios(rtol, confidence)
        if found.converged or wanted >= max_draws:
            return run.result(found, rtol, confidence)
        wanted = min(max_draws, wanted + max(10, wanted // 2))
        run.draw(wanted, full_draws)


class _Run:
    """Forms ``g_B' H_B g_B``, squares ``|g_B|^2`` and full forms ``g_B' H g_B`` of the draws so far."""

    def __init__(self, objective: Objective, batch_size: int, lengths: list[int], generator: torch.Generator) -> None:
        self.objective, self.batch_size, self.lengths, self.generator = objective, batch_size, lengths, generator
        self.forms: list[float] = []
        self.squares: list[float] = []
        self.full: list[float] = []
        self.whole = Observed(Hessian(objective))
        self._kept: dict[Any, Any] = {}  # what is found out about kernels, for all mini-batches

    def draw(self, wanted: int, full: int) -> None:
        """Mini-batches until there are as many as wanted, and full forms of the first of them."""
        gradients: list[Tensor] = []
        while len(self.forms) < wanted:
            g, form, square = self._one()
            self.forms.append(form)
            self.squares.append(square)
            if len(self.full) + len(gradients) < full:
                gradients.append(g)
        if gradients:
            V = torch.stack(gradients, dim=1)
            with self.whole.held():
                self.whole.plan(full, V.shape[1])
                self.full += (V * (self.whole @ V)).sum(dim=0, dtype=torch.float64).tolist()

    def _one(self) -> tuple[Tensor, float, float]:
        samples = sum(self.lengths)
        chosen = torch.randperm(samples, generator=self.generator)[: self.batch_size].sort().values
        operator = Hessian(part(self.objective, chosen, self.lengths, self._kept))
        with operator.held():
            operator.plan(1, 1)
            _, g = operator.value_and_gradient()
            Hg = operator @ g
        both = torch.stack(((g * Hg).sum(dtype=torch.float64), (g * g).sum(dtype=torch.float64)))
        form, square = both.tolist()
        refuse_nonfinite(form + square)
        # The mean loss of a mini-batch is an estimate of that of all samples; a sum is one when scaled up to it.
        scale = samples / self.batch_size if self.objective.loss.summed else 1.0
        return scale * g, scale**3 * form, scale**2 * square

    def mean_of_ratios(self, rtol: float, confidence: float) -> Estimate:
        """Over the mini-batches that have a gradient."""
        ratios = [form / square for form, square in zip(self.forms, self.squares, strict=True) if square > 0]
        return _ratio(ratios, [1.0] * len(ratios), confidence, rtol)

    def result(self, mean_of_ratios: Estimate, rtol: float, confidence: float) -> MinibatchSharpness:
        """All of them, from the draws so far."""
        m, forms, squares = len(self.full), self.forms, self.squares
        whole = self.objective.gradient()
        square = float((whole * whole).sum(dtype=torch.float64))
        return MinibatchSharpness(
            mean_of_ratios, _ratio(forms, squares, confidence, rtol), _ratio(self.full, squares[:m], confidence, rtol),
            _ratio(self.full, [square] * m, confidence, rtol), self.batch_size, sum(self.lengths), len(forms),
            len(forms) + self.whole.matvecs, self.whole.kernel, self.whole.note,
        )  # fmt: skip


def _ratio(above: list[float], below: list[float], confidence: float, rtol: float) -> Estimate:
    """The ratio of two means, with its standard error by the delta method."""
    m, top, bottom = len(above), math.fsum(above), math.fsum(below)
    if m < 2 or bottom == 0:
        return Estimate(
            math.nan if top == 0 else math.inf, math.inf, -math.inf, math.inf, confidence, m, "draws", False
        )
    value = top / bottom
    residuals = math.fsum((x - value * y) ** 2 for x, y in zip(above, below, strict=True))
    stderr = math.sqrt(residuals / (m - 1) * m) / abs(bottom)
    half = stderr * student_quantile(m - 1, confidence)
    return Estimate(
        value, stderr, value - half, value + half, confidence, m, "draws", half <= rtol * abs(value), "minibatch"
    )


def _check(batch_size: int, samples: int, rtol: float, confidence: float, counts: tuple[int, int, int]) -> None:
    if isinstance(batch_size, bool) or not isinstance(batch_size, int) or not 1 <= batch_size <= samples:
        raise SettingError(f"batch_size must be an integer from 1 to the {samples} samples, got {batch_size!r}")
    if not rtol > 0 or not 0 < confidence < 1:
        raise SettingError(f"rtol must be > 0 and confidence in (0, 1), got {rtol!r} and {confidence!r}")
    for name, count in zip(("min_draws", "max_draws", "full_draws"), counts, strict=True):
        if isinstance(count, bool) or not isinstance(count, int) or count < 2:
            raise SettingError(f"{name} must be an integer of at least 2, got {count!r}")
