"""Stability: curvature, and the noise of mini-batches, beside the optimizer's thresholds."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from losscope.landscape import NonFiniteError, SettingError, top_eigenpairs
from losscope.landscape.stability import linearised_rows, mean_square_threshold

from .minibatches import NAMES, minibatch_values
from .probe import Measurement, Needs, Probe
from .sharpness import upper_bound
from .snapshot import Snapshot
from .unlike import unlike_values

__all__ = ["Stability"]

Values = dict[str, float | None]
_LEVELS = ("sharpness", "full")


class Stability(Probe):
    """What the audit needs: each criterion's quantity with its interval, beside the thresholds.

    ``value`` is the ratio of sharpness to threshold, ``low`` and ``high`` its bounds. For optimizers that divide the
    gradient by something (Adam and its like) the sharpness is the largest eigenvalue of the preconditioned Hessian,
    with the preconditioner of the very step. In the steps after each measurement the motion along the top
    eigenvector is followed for sign flips (probe ``oscillation``).

    Args:
        level: ``"sharpness"`` measures that much and costs some 3 curvature products and a gradient; ``"full"`` adds
            the trace, all that is taken from mini-batches where training has any, the sharpness at larger epsilon
            where the optimizer has one, and the critical sharpness along the update.
        tol: relative residual of the top eigenpair.
        rtol: relative half-width of the intervals of trace and batch sharpness.
        every: when; None follows `watch`.
        bound_every: renew the upper bound of the sharpness when it is this many steps old.
        mean_square: at the full level of mini-batch training with squared loss, also the exact mean-square threshold
            of the model linearised at the weights. For small problems: it takes the Jacobians of all samples' outputs,
            2000 at most, and products of their number times the square of their rank.

    Raises:
        SettingError: if an argument means nothing.
    """

    name = "stability"
    data_parallel = True

    def __init__(
        self, *, level: str = "full", tol: float = 1e-2, rtol: float = 0.1, every: Any = None, bound_every: int = 200,
        mean_square: bool = False,
    ) -> None:  # fmt: skip
        super().__init__(every)
        if level not in _LEVELS:
            raise SettingError(f"level must be one of {_LEVELS}, got {level!r}")
        if not 0 < tol < 1 or not rtol > 0 or bound_every < 1:
            raise SettingError(
                f"need 0 < tol < 1, rtol > 0 and bound_every >= 1; got {tol!r}, {rtol!r}, {bound_every!r}"
            )
        if mean_square and level != "full":
            raise SettingError('mean_square=True needs level="full"')
        self.level, self.tol, self.rtol, self.bound_every = level, tol, rtol, bound_every
        self.mean_square = mean_square

    def needs(self) -> Needs:
        """Top eigenpair, and the trace at the full level."""
        full = self.level == "full"
        rtol = self.rtol if full else None
        return Needs(1, self.tol, self.bound_every, rtol, training_gradient=True, seen=True, midpoint=full)

    def measure(self, snapshot: Snapshot) -> Measurement:
        """All criteria of the level at this step."""
        trace = snapshot.trace(self.rtol) if self.level == "full" else None  # first: the sharpness starts from it
        values, kernel = self._sharpness(snapshot)
        reasons = [snapshot.hessian.note]
        if trace is not None:
            values |= {"trace": trace.value, "trace_low": trace.low, "trace_high": trace.high}
            parts: tuple[tuple[str, Callable[[Snapshot], Values], tuple[str, ...]], ...] = (
                ("mini-batches", self._noise, NAMES),
                ("mean_square", self._mean_square, ("mean_square",) if self.mean_square else ()),
                ("larger epsilon", self._larger_epsilon, ()),
                ("critical sharpness", _along_the_update, ()),
                ("smallest eigenvalue", _lowest, ()),
            )
            for what, part, names in parts:
                try:
                    values |= part(snapshot)
                except NonFiniteError:
                    raise
                except Exception as error:  # e.g. batches of a kind that cannot be cut; the rest still stands
                    reasons.append(f"{what}: not measured: {type(error).__name__}: {error}")
                    values |= dict.fromkeys(names)
        sharpness, low, high = (values[f"sharpness{end}"] for end in ("", "_low", "_high"))
        threshold, largest = values["threshold"], values["threshold_largest"]
        return Measurement(
            _over(sharpness, threshold), _over(low, largest), _over(high, threshold), "threshold", kernel,
            "; ".join(filter(None, reasons)) or None, values,
        )  # fmt: skip

    def _sharpness(self, snapshot: Snapshot) -> tuple[Values, str]:
        """The largest eigenvalue of what the optimizer sees, the thresholds, and what the snapshot knows anyway."""
        seen = snapshot.seen_pair(self.tol)
        pairs = snapshot.eigenpairs(1, self.tol) if seen is None else seen[1]
        limits = snapshot.threshold if snapshot.seen is None else snapshot.seen.threshold
        values: Values = {
            "sharpness": float(pairs.values[0]),
            "sharpness_low": float(pairs.low[0]),
            "sharpness_high": upper_bound(pairs.high),
            "threshold": limits.value,
            "threshold_largest": limits.largest,
            "threshold_small_batch": limits.small_batch,
            "loss": snapshot.loss,
            "gradient_norm": snapshot.gradient_norm,
        }
        if snapshot.seen is not None and seen is not None:
            values["dead_share"] = snapshot.seen.dead_share(seen[0], pairs.vectors[:, 0])
            values |= snapshot.preconditioner
        if snapshot.lr is not None and snapshot.lr > 0:
            values |= {"one_over_lr": 1 / snapshot.lr, "two_over_lr": 2 / snapshot.lr}
        if (match := snapshot.gradient_match()) is not None:
            values["gradient_cosine"], values["gradient_scale"] = match
            values |= unlike_values(snapshot, match)
        if (norm := snapshot.training_gradient_norm) is not None:
            values |= {
                "training_gradient_norm": norm,
                "training_gradient_largest": snapshot.training_gradient_largest,
            }
        return values, pairs.kernel

    def _noise(self, snapshot: Snapshot) -> Values:
        batch = snapshot.batch_size
        if batch is None or batch >= snapshot.objective.samples:
            return {}
        values = minibatch_values(snapshot, self.rtol)
        trace, aligned = snapshot.trace(self.rtol).value, values.get("aligned_trace")
        if trace > 0 and aligned is not None:
            values["mu"] = aligned * batch / trace  # tr(Sigma) / (2L tr H)
        return values

    def _mean_square(self, snapshot: Snapshot) -> Values:
        batch = snapshot.batch_size
        if not self.mean_square or batch is None or batch >= snapshot.objective.samples:
            return {}
        rows = linearised_rows(snapshot.objective)
        found = mean_square_threshold(rows, batch, replacement=False, tol=1e-3, seed=snapshot._seed_of("mean square"))
        return {"mean_square": 2 / found.value, "mean_square_low": 2 / found.high, "mean_square_high": 2 / found.low}

    def _larger_epsilon(self, snapshot: Snapshot) -> Values:
        """The sharpness with a hundred times epsilon, and with ten if that changes it.

        Coordinates that only epsilon moves are dead. The sharpness falls as epsilon grows, so that what a hundred
        times it leaves, ten times it does.
        """
        if snapshot.seen is None or not snapshot.seen.has_epsilon or (pair := snapshot.seen_pair(self.tol)) is None:
            return {}
        values: Values = {}
        direction = pair[0].to_parameters(pair[1].vectors)
        for factor in (100, 10):
            operator = snapshot.seen.with_epsilon(factor).of(snapshot.hessian)
            found = top_eigenpairs(
                operator, tol=max(self.tol, operator.space.rounding), start=operator.from_parameters(direction),
                max_matvecs=20, seed=snapshot._seed_of(f"epsilon {factor}"),
            )  # fmt: skip
            values[f"sharpness_epsilon_{factor}"] = float(found.values[0])
            if float(found.values[0]) > 0.9 * float(pair[1].values[0]):
                break
        return values


def _along_the_update(snapshot: Snapshot) -> Values:
    """The critical sharpness, by forward passes alone, or that there is none because the update leads uphill."""
    found = snapshot.critical_sharpness()
    if found is None:
        moves = snapshot.update is not None and bool(snapshot.update.any()) and bool(snapshot.lr)
        return {"critical_sharpness": None} if moves else {}
    return {
        "critical_sharpness": found.value,
        "critical_sharpness_low": found.low,
        "critical_sharpness_high": found.high,
    }


def _lowest(snapshot: Snapshot) -> Values:
    """The smallest eigenvalue, where an upper bound of the largest is renewed too."""
    found = snapshot.lowest()
    return {} if found is None else {"lowest": float(found.values[0])}


def _over(value: float | None, threshold: float | None) -> float | None:
    return value / threshold if value is not None and threshold else None
