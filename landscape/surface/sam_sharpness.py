r"""Sharpness in the worst direction: how far the loss rises within a ball around the weights.

.. math:: S(\rho) = \max_{\|T^{-1} e\|_p \le \rho} L(w + e) - L(w)

Sharpness-aware minimisation (Foret et al., ICLR 2021, arXiv 2010.01412) takes T = I, p = 2 and one step along the
gradient g, and ASAM (Kwon et al., ICML 2021, arXiv 2102.11600) T = ``diag(|w|)``: with e = T v, the rise to first order
is largest at

.. math:: v = \rho\, T g / \|T g\|_2 \quad (p = 2), \qquad v = \rho \operatorname{sign}(T g) \quad (p = \infty)

so that :math:`e = \rho\, T^2 g / \|T g\|_2`. To second order the loss rises there by :math:`g^T e + e^T H e / 2`, which
for T = I and p = 2 is :math:`\rho \|g\| + \rho^2 g^T H g / (2 \|g\|^2)`; what is left is of the order of
:math:`\rho^3`. Whatever ascent finds is a **lower bound** of the maximum, since a ball may have many.

It depends on the parametrisation, as the loss's curvature does, and by itself predicts no generalisation (see
`neighbourhood`). What SAM does to stability is in `losscope.landscape.sam`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ..elsewhere import elsewhere
from ..errors import LosscopeError, NonFiniteError, SettingError, first_line
from ..groups import lengths_of, part
from ..hessian import Hessian
from ..html_table import Shown
from ..interrupts import interrupts_held
from ..krylov import top_eigenpairs
from ..mean_estimates import Mean
from ..noise_scale import check_confidence, check_count
from ..objective import Objective
from ..space import generator_for
from .balls import NORMS, Ball
from .checks import check_positive
from .points import parameters_at
from .weight_scales import Scaled, scale_of

__all__ = ["SamSharpness", "sam_sharpness"]

_ROUNDINGS = 4.0
"""Units in the last place of the loss, up to which a rise is no more than rounding."""


@dataclass(frozen=True, eq=False)
class SamSharpness(Shown):
    """How far the loss rises within a ball, as far as ascent has found.

    Attributes:
        radius: rho, in units of the scale.
        value: the largest rise found, a lower bound of the maximum, at least 0; of mini-batches, the mean of theirs.
        one_step: the rise at the first step along the gradient, as SAM takes it; below 0 where that overshoots.
        second_order: what the gradient and the Hessian say of `one_step`; NaN where there is no Hessian.
        slope: what the loss rises by to first order per unit of the radius, ``||Tg||`` in the dual norm.
        loss: L(w).
        norm: ``"l2"`` or ``"linf"``.
        scale: T, see `weight_scales`.
        steps: of ascent, from each start.
        starts: random ones, besides the weights.
        perturbation: (n,) where the largest rise was found; None for mini-batches.
        batch_size: samples of a mini-batch; None for all data.
        draws: how many mini-batches; 1 for all data.
        stderr: standard error of `value` over mini-batches; 0 for all data.
        low: lower end of the interval of the mean of what ascent finds; for all data `value`.
        high: its upper end; for all data `value`. No bound of the maximum.
        confidence: of that interval.
        evaluations: passes over the data, or over a mini-batch each.
        note: what is to be known of them; mostly empty.
    """

    radius: float
    value: float
    one_step: float
    second_order: float
    slope: float
    loss: float
    norm: str
    scale: str
    steps: int
    starts: int
    perturbation: Tensor | None
    batch_size: int | None
    draws: int
    stderr: float
    low: float
    high: float
    confidence: float
    evaluations: int
    note: str = ""

    def __repr__(self) -> str:
        """One line: the rise, at which radius, what theory says of the first step."""
        batches = (
            f" +- {self.stderr:.2g} over {self.draws} mini-batches of {self.batch_size}" if self.batch_size else ""
        )
        note = f"; {self.note}" if self.note else ""
        return (
            f"SamSharpness(rises by at least {self.value:.5g}{batches} within {self.radius:.4g} ({self.norm}, "
            f"{self.scale}); one step {self.one_step:.5g}, to second order {self.second_order:.5g}{note})"
        )


def sam_sharpness(
    objective: Objective,
    rho: float,
    *,
    steps: int = 1,
    starts: int = 0,
    norm: str = "l2",
    scale: str = "absolute",
    minibatch: int | None = None,
    draws: int = 32,
    confidence: float = 0.95,
    seed: int | torch.Generator | None = 0,
) -> SamSharpness:
    """How far the loss rises within a radius, found by projected gradient ascent.

    Each step goes the radius along the gradient at hand and back into the ball; a step that does not raise the loss is
    not taken, and the following ones are half as long. So one step from the weights is SAM's, and more of them never
    find less. Where the gradient at the weights is zero, the first step goes along the eigenvector of the largest
    eigenvalue, to both sides.

    Args:
        objective: the loss.
        rho: the radius, in units of the scale.
        steps: of ascent from the weights and from each random start; each takes one gradient.
        starts: random points on the ball's surface to start from, besides the weights.
        norm: of the ball: ``"l2"`` or ``"linf"``.
        scale: what the radius is in units of, for each weight; ``"adaptive"`` and ``"filter"`` are ASAM's. See
            `weight_scales.scale_of`.
        minibatch: None for all data; or m: the mean over random mini-batches of m samples, of the rise of each one's
            own loss in its own worst direction (m-sharpness), which is larger the smaller m.
        draws: how many mini-batches, each drawn without replacement and independently of the others.
        confidence: nominal coverage of the interval over mini-batches.
        seed: int, generator, or None for fresh entropy; the global stream is never used.

    Returns:
        What was found. Points where the loss is NaN are passed over, and said in ``note``; where it is infinite, so is
        the rise.

    Raises:
        SettingError: if an argument means nothing, or all entries that may move have a scale of zero.
        NonFiniteError: if the loss or its gradient at the weights is NaN or infinite.
        DataError: if mini-batches are asked for and batches cannot be cut into samples.

    Example:
        >>> import torch
        >>> from losscope.landscape import Objective, sam_sharpness
        >>> model = torch.nn.Linear(2, 1, bias=False)
        >>> _ = torch.nn.init.zeros_(model.weight)
        >>> data = (torch.diag(torch.tensor([1.0, 2.0])), torch.tensor([[0.0], [1.0]]))
        >>> objective = Objective(model, data, criterion=torch.nn.MSELoss())  # (w_1^2 + (2 w_2 - 1)^2) / 2
        >>> found = sam_sharpness(objective, 0.1)  # g = (0, -2), H = diag(1, 4)
        >>> round(found.value, 4), round(found.second_order, 4)
        (0.22, 0.22)
    """
    _check(rho, steps, starts, norm, minibatch, draws, confidence)
    generator = generator_for(seed, objective.space.device)
    parts = iter([objective]) if minibatch is None else _minibatches(objective, minibatch, draws, generator)
    with torch.inference_mode(False):
        ball = Ball(float(rho), norm, scale_of(objective, scale))
        each = [_Search(some, ball, generator).run(steps, starts) for some in parts]
    c = sum(lengths_of(objective)) / minibatch if minibatch and objective.loss.summed else 1.0  # a sum is scaled up
    columns = torch.tensor([[f.value, f.one_step, f.second_order, f.slope, f.loss] for f in each], dtype=torch.float64)
    value, one_step, second_order, slope, loss = (c * columns.mean(dim=0)).tolist()
    stderr, low, high = 0.0, value, value
    if minibatch is not None:
        mean = Mean(c * columns[:, 0])
        stderr, (low, high) = mean.stderr, mean.interval(confidence)
    return SamSharpness(
        radius=float(rho), value=value, one_step=one_step, second_order=second_order, slope=slope, loss=loss, norm=norm,
        scale=scale, steps=steps, starts=starts,
        perturbation=ball.to_weights(each[0].v) if minibatch is None else None,
        batch_size=minibatch, draws=len(each), stderr=stderr, low=low, high=high, confidence=confidence,
        evaluations=sum(f.evaluations for f in each), note="; ".join(dict.fromkeys(f.note for f in each if f.note)),
    )  # fmt: skip


def _minibatches(objective: Objective, size: int, draws: int, generator: torch.Generator) -> Iterator[Objective]:
    lengths = lengths_of(objective)
    samples = sum(lengths)
    if size > samples:
        raise SettingError(f"minibatch must be at most the {samples} samples there are, got {size}")
    kept: dict[object, object] = {}  # what is found out about kernels, for all of them
    for _ in range(draws):
        chosen = torch.randperm(samples, generator=generator, device=generator.device)[:size].cpu()
        yield part(objective, chosen.sort().values, lengths, kept)


class _Search:
    """The highest point that ascent finds in a ball, and what it finds on the way.

    Attributes:
        v: where the loss rises most, in units of the scales.
        value: by how much.
    """

    def __init__(self, objective: Objective, ball: Ball, generator: torch.Generator) -> None:
        self.objective, self.ball = objective, ball
        self.evaluations, self.note = 1, ""
        self._generator = generator
        self._theta = parameters_at(objective, None)
        self._undefined = 0
        with interrupts_held():
            self.loss, g = objective.value_and_gradient()
        if not math.isfinite(self.loss) or not bool(torch.isfinite(g).all()):
            raise NonFiniteError(f"the loss is {self.loss} at the weights, or its gradient is no number: nothing rises")
        self._gradient = ball.to_weights(g)  # in v
        self.slope = ball.dual(self._gradient)
        self.v, self.value = torch.zeros_like(g), 0.0
        self.one_step = self.second_order = math.nan

    def run(self, steps: int, starts: int) -> _Search:
        """From the weights and from random starts."""
        first = self._first_step()
        self.one_step = self._rise(first)
        self._keep(first, self.one_step)
        self.second_order = self._by_derivatives(first)
        if steps > 1:
            self._climb(*self._after_first(first), steps - 1)
        for _ in range(starts):
            v = self.ball.random(self._generator)
            rise, g = self._rise_and_gradient(v)
            self._keep(v, rise)
            self._climb(v, rise, g, 1.0, steps)
        if self._undefined:
            self._say(f"the loss is NaN at {self._undefined} of the points tried")
        elif abs(self.value) <= _ROUNDINGS * torch.finfo(self._theta.dtype).eps * abs(self.loss):
            self._say("a rise within the rounding of the loss")
        return self

    def _first_step(self) -> Tensor:
        if self.slope > 0:
            return self.ball.steepest(self._gradient)
        try:
            pairs = top_eigenpairs(Scaled(Hessian(self.objective), self.ball.scales), seed=self._generator)
        except LosscopeError as error:
            self.note = f"the gradient is zero, and there is no Hessian ({first_line(error)}): a random first step"
            return self.ball.random(self._generator)
        self.note = f"the gradient is zero: the first step is along the eigenvalue {float(pairs.values[0]):.4g}"
        v = self.ball.steepest(pairs.vectors[:, 0])
        return max(v, -v, key=self._rise)

    def _after_first(self, first: Tensor) -> tuple[Tensor, float, Tensor, float]:
        """Where ascent goes on: from the first step, or with half of it from where it started."""
        if self.one_step > 0:
            return first, *self._rise_and_gradient(first), 1.0
        return torch.zeros_like(first), 0.0, self._gradient, 0.5

    def _climb(self, v: Tensor, rise: float, g: Tensor, stride: float, steps: int) -> None:
        for _ in range(steps):
            if not self.ball.dual(g) > 0:  # a zero, or no number
                return
            trial = self.ball.project(v + stride * self.ball.steepest(g))
            found, g_found = self._rise_and_gradient(trial)
            self._keep(trial, found)
            if found > rise:
                v, rise, g = trial, found, g_found
            else:
                stride /= 2

    def _keep(self, v: Tensor, rise: float) -> None:
        self._undefined += math.isnan(rise)
        if rise > self.value:
            self.v, self.value = v, rise

    def _rise(self, v: Tensor) -> float:
        self.evaluations += 1
        with interrupts_held(), elsewhere(self.objective, self._at(v)):
            return self.objective.value() - self.loss

    def _rise_and_gradient(self, v: Tensor) -> tuple[float, Tensor]:
        self.evaluations += 1
        with interrupts_held(), elsewhere(self.objective, self._at(v)):
            value, g = self.objective.value_and_gradient()
        return value - self.loss, self.ball.to_weights(g)

    def _at(self, v: Tensor) -> list[Tensor]:
        return self.objective.space.unflatten(self._theta + self.ball.to_weights(v))

    def _by_derivatives(self, v: Tensor) -> float:
        e = self.ball.to_weights(v)
        try:
            with interrupts_held():
                product = Hessian(self.objective) @ e
        except LosscopeError as error:
            self._say(f"no Hessian: {first_line(error)}")
            return math.nan
        return float(v.double() @ self._gradient.double() + e.double() @ product.double() / 2)

    def _say(self, note: str) -> None:
        self.note = "; ".join(filter(None, [self.note, note]))


def _check(
    rho: float, steps: int, starts: int, norm: str, minibatch: int | None, draws: int, confidence: float
) -> None:
    check_positive("rho", rho)
    if norm not in NORMS:
        raise SettingError(f"norm must be one of {', '.join(map(repr, NORMS))}; got {norm!r}")
    check_count("steps", steps, 1)
    check_count("starts", starts, 0)
    if minibatch is not None:
        check_count("minibatch", minibatch, 1)
        check_count("draws", draws, 2)
    check_confidence(confidence)
