r"""Sharpness along the update, from forward passes alone.

With u the direction of an update at rate 1, the critical rate :math:`\eta_c` is the smallest at which the update does
not lower the loss, and the critical sharpness is :math:`\lambda_c = 2 / \eta_c` (arXiv 2601.16979). On a quadratic with
u = -g it is :math:`g^T H g / |g|^2` exactly. It takes no second derivatives, so it works with any attention kernel and
at any size.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .elsewhere import elsewhere
from .errors import SettingError
from .objective import Objective
from .results import Estimate

__all__ = ["critical_sharpness"]

_FARTHEST = 60  # doublings or halvings of the first rate
_ASIDE = 0.8  # of the accuracy: rates that far to either side of where the loss is that of the start bracket it
_LEAP = 16.0  # most that a parabola may go beyond one rate: rounding may have bent it


def critical_sharpness(
    objective: Objective, direction: Tensor, *, rate: float, rtol: float = 0.05, max_evaluations: int = 40,
    start: float | None = None, slope: float | None = None,
) -> Estimate:  # fmt: skip
    r"""Two over the smallest rate at which a step along the direction does not lower the loss.

    The rate is doubled or halved until it is bracketed, and the bracket cut close to where a parabola through the start
    and its ends has the loss of the start, or in the middle. With the slope at the start a parabola is known from the
    first rate on, and mostly three evaluations do, not six.

    Args:
        objective: the loss.
        direction: (n,) the update at rate 1: -g for gradient descent, ``(w_next - w) / rate`` for any optimizer.
        rate: where to begin, best the present learning rate.
        rtol: stop when the bracket's half-width is below this share of the value.
        max_evaluations: most evaluations of the loss, the one at the start among them.
        start: the loss where the parameters are, as `Objective.value` has it, where that is known.
        slope: the derivative of the loss along the direction there, where that is known.

    Returns:
        The critical sharpness, in units of curvature, between the ends of the bracket; they are proved as far as
        the loss rises once only along the direction. ``matvecs`` counts evaluations of the loss. It is infinite where
        no step lowers the loss, as far as rounding shows it, or the slope says so, and 0 where the longest step does.

    Raises:
        SettingError: if an argument means nothing, or the loss is not finite where the parameters are.

    Example:
        >>> import torch
        >>> from losscope.landscape import Objective
        >>> from losscope.landscape.stability import critical_sharpness
        >>> model = torch.nn.Linear(2, 1, bias=False)
        >>> objective = Objective(model, (torch.eye(2), torch.ones(2, 1)), criterion=torch.nn.MSELoss())
        >>> found = critical_sharpness(objective, -objective.gradient(), rate=0.1)
        >>> found.low <= 1.0 <= found.high
        True
    """
    _check(objective, direction, rate, rtol, max_evaluations)
    start = objective.value() if start is None else start
    search = _Search(objective, direction, max_evaluations, start, slope, _ASIDE * rtol)
    search.bracket(rate)
    while not search.spent and search.width() > rtol:
        search.cut()
    low, high = 2 / search.above if search.above > 0 else math.inf, 2 / search.below if search.below > 0 else math.inf
    value = low if math.isinf(high) else (low + high) / 2
    value = math.inf if search.below == 0 and search.exhausted else value
    return Estimate(
        value, math.nan, low, high, 1.0, search.evaluations, "forward passes", search.width() <= rtol, "forward"
    )


class _Search:
    """A rate that lowers the loss, ``below``, and a larger one that does not, ``above``.

    Args:
        objective: the loss.
        direction: (n,).
        most: evaluations.
        start: the loss where the parameters are.
        slope: its derivative there; None where it is not known.
        aside: how far from where the loss is expected to be that of the start to evaluate it, relative.
    """

    def __init__(
        self, objective: Objective, direction: Tensor, most: int, start: float, slope: float | None, aside: float
    ) -> None:
        self.objective, self.most, self.evaluations = objective, most, 1
        space = objective.space
        self._direction = space.unflatten(direction.detach().to(space.device, space.dtype))
        self._theta = [p.detach() for p in objective.parameters.values()]
        self.below, self.above = 0.0, math.inf
        self.rise_below = self.rise_above = 0.0
        self.exhausted = False
        self.start, self._slope = start, slope
        self._aside = self._least_aside = aside
        self._aimed = False
        if not math.isfinite(self.start):
            raise SettingError(f"the loss is {self.start} where the parameters are: there is nothing to compare with")

    @property
    def spent(self) -> bool:
        """Whether no evaluation is left."""
        return self.evaluations >= self.most

    def rise(self, rate: float) -> float:
        """How far a step raises the loss; infinite where the loss is no number."""
        self.evaluations += 1
        values = [t + rate * d for t, d in zip(self._theta, self._direction, strict=True)]
        with elsewhere(self.objective, values):
            value = self.objective.value()
        return value - self.start if math.isfinite(value) else math.inf

    def bracket(self, rate: float) -> None:
        """Doubling and halving, or to where a parabola leads."""
        if self._slope is not None and self._slope >= 0:
            self.above = 0.0
            return
        for _ in range(_FARTHEST):
            if self.spent:
                return
            rise = self._take(rate)
            if self.below > 0 and self.above < math.inf:
                return
            rate = self._next(rate, rise)
        self.exhausted = True

    def _take(self, rate: float) -> float:
        """Evaluate the loss there, and move the end that it is; how far it rises."""
        rise = self.rise(rate)
        if rise >= 0:
            self.above, self.rise_above = rate, rise
        else:
            self.below, self.rise_below = rate, rise
        return rise

    def _next(self, rate: float, rise: float) -> float:
        """After a rate that brackets nothing yet: beyond where the parabola crosses, else twice or half as far."""
        if self._aimed:  # in vain
            self._widen()
        bend = math.nan if self._slope is None else rise - self._slope * rate
        if not 0 < bend < math.inf:
            return rate / 2 if rise >= 0 else rate * 2
        times = -self._slope * rate / bend * (1 - self._aside if rise >= 0 else 1 + self._aside)  # type: ignore[operator]
        self._aimed = 1 / _LEAP < times < _LEAP
        return rate * min(max(times, 1 / _LEAP), _LEAP)

    def _widen(self) -> None:
        """What was expected is not known that well."""
        self._aside = min(2 * self._aside, 0.5)

    def width(self) -> float:
        """Half-width of the bracket in terms of the sharpness, relative to its middle."""
        if self.below == 0 or self.above == math.inf:
            return 0.0 if self.exhausted or self.above == 0 else math.inf
        return (self.above - self.below) / (self.above + self.below)

    def cut(self) -> None:
        """Cut on the near side of where the loss is expected to cross, as seen from the farther end."""
        a, b = self.below, self.above
        rate, lowers = (a + b) / 2, None
        if math.isfinite(self.rise_above):
            crossing = self._crossing(a, b)
            lowers = crossing - a > b - crossing
            rate = crossing * (1 - self._aside if lowers else 1 + self._aside)
            rate = min(max(rate, a + 0.05 * (b - a)), b - 0.05 * (b - a))
        rise = self._take(rate)
        if lowers == (rise < 0):
            self._aside = self._least_aside
        else:
            self._widen()

    def _crossing(self, a: float, b: float) -> float:
        """Where ``rise / rate`` vanishes between both; it is taken to be linear, or square where the slope is known."""
        over_a, over_b = self.rise_below / a, self.rise_above / b
        x = (over_b * a - over_a * b) / (over_b - over_a) if over_b != over_a else (a + b) / 2
        if self._slope is None:
            return x
        bend_a, bend_b = (over_a - self._slope) / a, (over_b - self._slope) / b
        curve = (bend_b - bend_a) / (b - a)
        line = bend_a - curve * a  # rise / rate = slope + line rate + curve rate^2
        root = line * line - 4 * curve * self._slope
        below = line + math.copysign(math.sqrt(max(root, 0.0)), line)
        found = [-2 * self._slope / below] if below != 0 else []
        found += [-below / (2 * curve)] if curve != 0 else []
        return next((r for r in found if a <= r <= b), x)


def _check(objective: Objective, direction: Tensor, rate: float, rtol: float, most: int) -> None:
    n = objective.space.size
    if not isinstance(direction, Tensor) or direction.shape != (n,):
        shape = tuple(direction.shape) if isinstance(direction, Tensor) else type(direction).__name__
        raise SettingError(f"direction must be a tensor of shape ({n},), got {shape}")
    if not bool(torch.isfinite(direction).all()) or not bool(direction.any()):
        raise SettingError("direction must be finite and not zero: there is no update to follow")
    if not 0 < rate < math.inf or not 0 < rtol < 1:
        raise SettingError(f"rate must be positive and rtol in (0, 1), got {rate!r} and {rtol!r}")
    if isinstance(most, bool) or not isinstance(most, int) or most < 3:
        raise SettingError(f"max_evaluations must be an integer of at least 3, got {most!r}")
