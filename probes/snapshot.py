"""The model at one step: what all due probes measure, computed once and shared."""

from __future__ import annotations

import contextlib
import functools
import math
import random
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from losscope.landscape import (
    Eigenpairs,
    Estimate,
    Hessian,
    KernelError,
    Objective,
    Preconditioned,
    SpectralDensity,
    spectral_density,
    top_eigenpairs,
    trace,
)
from losscope.landscape.kernels.choice import Choice
from losscope.landscape.operators import Observed, SymmetricOperator
from losscope.landscape.stability import Threshold
from losscope.landscape.tracked_pair import TrackedPair

from .memory import Memory
from .probe import Needs
from .seen import SeenCurvature
from .settled import how_it_moves, is_being_made, is_made
from .update import Update, sharpness_along

__all__ = ["Memory", "Snapshot"]

_TRACKED = 0.05
"""Relative half-width from which the trace is tracked; a narrower one takes a sketch of its own."""


class Snapshot:
    """The model at one step, with what is known about it.

    A user's probe receives one. Everything here is evaluated in isolation: nothing of it reaches the
    training. Quantities that several probes need are computed once.

    Args:
        step: t; the weights are those before update t.
        objective: the loss as a function of the chosen parameters, its batches fixed for this snapshot.
        lr: the rate update t used, None where parameter groups differ.
        threshold: the optimizer's stability threshold at that rate; SAM's is resolved here, at the gradient.
        batch_size: training's batch size, if it was given.
        needs: the merged needs of the probes that are due.
        memory: what earlier snapshots left.
        seen: the curvature as the optimizer's preconditioner shows it; None where it has none, or nobody asks.
        training_gradient: (n,) gradient that update t stepped with, where it was kept.
        made: update t, where it has been made already.
        skipped_updates: updates that a GradScaler has skipped so far; None where that is not known.
        kernel: how curvature products are computed; see `losscope.landscape.Hessian`.
        seed: seeds every estimator of this snapshot.
        on_product: called with the number of vectors after each block of curvature products.

    Attributes:
        gradient_seconds: what the loss and its gradient took; None where no probe has asked for them.
        preconditioner: how P moves, as `losscope.probes.settled` reads it; empty before `seen_pair`, and without P.
    """

    def __init__(
        self,
        step: int,
        objective: Objective,
        *,
        lr: float | None = None,
        threshold: Threshold | None = None,
        batch_size: int | None = None,
        needs: Needs | None = None,
        memory: Memory | None = None,
        seen: SeenCurvature | None = None,
        training_gradient: Tensor | None = None,
        made: Update | None = None,
        skipped_updates: int | None = None,
        kernel: str = "auto",
        seed: int = 0,
        on_product: Callable[[int], object] | None = None,
    ) -> None:
        self.step = step
        self.training_gradient = training_gradient
        self.skipped_updates = skipped_updates
        self._made = made
        self.objective = objective
        self.lr = lr
        self._threshold = threshold or Threshold((), "", "no optimizer")
        self.batch_size = batch_size
        self.needs = needs or Needs()
        self.memory = memory or Memory()
        self.seen = seen
        self.seed = seed
        self._hessian = Hessian(objective, kernel)
        self.hessian = Observed(self._hessian, on_product)
        self.gradient_seconds: float | None = None
        self._eigenpairs: Eigenpairs | None = None
        self._seen_pair: tuple[Preconditioned, Eigenpairs] | None = None
        self.preconditioner: dict[str, float] = {}
        self._trace: Estimate | None = None
        self._trace_asked = (math.inf, 0)
        self._leading: Tensor | None = None
        self._density: SpectralDensity | None = None
        self._density_asked = (0, 0)

    @property
    def model(self) -> nn.Module:
        """The model; inside a probe its parameters hold this snapshot's values."""
        return self.objective.model

    @property
    def matvecs(self) -> int:
        """Curvature-vector products so far."""
        return self.hessian.matvecs

    @property
    def choice(self) -> Choice | None:
        """The kernel that was chosen and why; None where it was asked for, or no product was computed."""
        return self._hessian.choice

    @functools.cached_property
    def _value_and_gradient(self) -> tuple[float, Tensor]:
        started = time.perf_counter()
        found = self._hessian.value_and_gradient()
        self.gradient_seconds = time.perf_counter() - started
        return found

    @property
    def loss(self) -> float:
        """The objective's value, NaN or infinite where it is."""
        return self._value_and_gradient[0]

    @property
    def gradient(self) -> Tensor:
        """The objective's gradient, (n,)."""
        return self._value_and_gradient[1]

    @functools.cached_property
    def gradient_norm(self) -> float:
        """Euclidean norm of the gradient."""
        return float(torch.linalg.vector_norm(self.gradient, dtype=torch.float64))

    @functools.cached_property
    def threshold(self) -> Threshold:
        """The optimizer's stability threshold; SAM's depends on the gradient, and is one of full-batch steps."""
        if self._threshold.perturbed and self.batch_size is not None and self.batch_size < self.objective.samples:
            why = "SAM's threshold is one of full batches: mini-batches perturb along gradients of their own norm"
            return replace(self._threshold, perturbed=(), reason=why)
        return self._threshold.at(self.gradient_norm) if self._threshold.perturbed else self._threshold

    @functools.cached_property
    def training_gradient_norm(self) -> float | None:
        """Euclidean norm of the gradient that was stepped with, in the objective's parameters."""
        used = self.training_gradient
        return None if used is None else float(torch.linalg.vector_norm(used, dtype=torch.float64))

    @functools.cached_property
    def training_gradient_largest(self) -> float | None:
        """Its largest entry, in absolute value."""
        return None if self.training_gradient is None else float(self.training_gradient.abs().max())

    @functools.cached_property
    def update(self) -> Tensor | None:
        """The update that was made, ``w_{t+1} - w_t``, (n,); None where hooks do not drive, and after the probes."""
        return None if self._made is None else self._made.vector()

    @functools.cached_property
    def _critical_sharpness(self) -> Estimate | None:
        whole = len(self.objective.batches) == 1 and self.objective.ranks.size == 1  # else it rounds in another order
        begin, start = self.memory.critical_rate, self.loss if whole else None
        found = sharpness_along(self.objective, self.update, self.lr, begin, start, self.gradient)
        self.memory.critical_rate = 2 / found.value if found is not None and found.low > 0 else None
        return found

    def critical_sharpness(self) -> Estimate | None:
        """The curvature that forward passes see along the update from w_t.

        None without one update at one rate, and where the update leads up from the start, as a mini-batch's may.

        Above 2/lr the update raises the loss. See `losscope.landscape.stability.critical_sharpness`.
        """
        return self._critical_sharpness

    def gradient_match(self) -> tuple[float, float] | None:
        """Cosine of the gradient that was stepped with and the objective's, and ratio of their norms.

        Full-batch training on this data has (1, 1); clipping lowers the ratio, mini-batches the cosine. None of one
        parameter alone, whose gradients all have the same direction, or the opposite one.
        """
        if self.training_gradient is None or self.training_gradient_norm is None or self.objective.space.size == 1:
            return None
        norms = self.training_gradient_norm, self.gradient_norm
        if not all(0 < norm < math.inf for norm in norms):
            return None
        inner = float(torch.sum(self.training_gradient * self.gradient, dtype=torch.float64))
        return inner / (norms[0] * norms[1]), norms[0] / norms[1]

    def eigenpairs(self, k: int = 1, tol: float = 1e-2) -> Eigenpairs:
        """At least the top k eigenpairs of the Hessian, to at least this relative residual.

        Started from what the last snapshots have learnt (`losscope.landscape.tracked_pair`), and afresh when the last
        upper bound is older than the probes allow: only a random start bounds the sharpness from above, and finds for
        sure an eigenvector that has crossed the one that was followed.
        """
        k = min(max(k, self.needs.eigenpairs), self.objective.space.size)
        tol = min(tol, self.needs.eigenpair_tol)
        if self._eigenpairs is None or len(self._eigenpairs.values) < k or self._eigenpairs.tol > tol:
            cold = self.memory.pairs is None or self._bound_is_due(self.memory.bound_step)
            most = max(100, 20 * (k + self.needs.guards))
            find = self._one_pair if k == 1 and not self.needs.guards else self._several_pairs
            self._eigenpairs = find(k, tol, most, cold=cold)
            if cold:
                self.memory.bound_step = self.step
        return self._eigenpairs

    def _one_pair(self, k: int, tol: float, most: int, *, cold: bool) -> Eigenpairs:
        found, self.memory.pairs = _followed(
            self.hessian,
            self.memory.pairs,
            tol,
            most,
            lambda: self._seed_of("eigenpairs"),
            cold=cold,
            start=self._leading,
        )
        return found

    def _several_pairs(self, k: int, tol: float, most: int, *, cold: bool) -> Eigenpairs:
        def found(start: Tensor | None) -> Eigenpairs:
            return top_eigenpairs(
                self.hessian, k, tol=tol, start=start, guards=self.needs.guards, max_matvecs=most,
                seed=self._seed_of("eigenpairs"),
            )  # fmt: skip

        start = self._start(k + self.needs.guards)
        pairs = _renewed(self.hessian, found, start) if cold else found(start)
        self.memory.pairs = TrackedPair.of(pairs)
        return pairs

    def _start(self, most: int) -> Tensor | None:
        """The last eigenvectors; in place of the first, what the trace of this very step has found, if it was taken."""
        if self.memory.pairs is None:
            return None
        start, leading = self.memory.pairs.vectors[:, :most], self._leading
        if leading is None:
            return start
        return torch.cat((leading[:1].T.to(start), start[:, 1:]), dim=1)

    def seen_pair(self, tol: float = 1e-2) -> tuple[Preconditioned, Eigenpairs] | None:
        """The preconditioned Hessian and its largest eigenpair; None where the optimizer has no preconditioner.

        Started like `eigenpairs`, from the last one's direction in the parameters, since P changes.

        Raises:
            KernelError: if products are so inaccurate in its coordinates that they tell nothing.
        """
        if self.seen is None or self._seen_pair is not None:
            return self._seen_pair
        operator = self.seen.of(self.hessian)
        tol = max(tol, operator.space.rounding)  # where P is small, differences of gradients resolve little
        if not tol < 1:
            raise KernelError(f"{operator.kernel} resolves nothing of P^-1 H: its error is {tol:.2g} times the largest")
        # An eigenvector of a P that was being made tells where gradients happened to be small, and not where to start.
        settles = self.memory.seen_step is None and is_made(self.seen)
        cold = self.memory.seen is None or settles or self._bound_is_due(self.memory.seen_bound_step)
        before = self.memory.seen, self.memory.seen_step
        found = _followed(operator, self.memory.seen, tol, 100, lambda: self._seed_of("seen"), cold=cold)
        pair, self.memory.seen = found
        self.preconditioner = how_it_moves(self.seen, operator, pair.vectors[:, 0], self.step, *before)
        self.memory.seen_step = None if is_being_made(self.preconditioner) else self.step
        if cold:
            self.memory.seen_bound_step = self.step
        self._seen_pair = operator, pair
        return self._seen_pair

    @functools.cached_property
    def _lowest(self) -> Eigenpairs:
        operator = self.hessian if self.seen is None else self.seen.of(self.hessian)
        tol = max(0.1, operator.space.rounding)
        return top_eigenpairs(operator, which="SA", tol=tol, max_matvecs=20, seed=self._seed_of("lowest"))

    def lowest(self) -> Eigenpairs | None:
        """The smallest eigenvalue, by at most 20 products; None where no upper bound was renewed either.

        Of the Hessian, or of P^-1 H as `seen_pair`. It is negative at a saddle, at whatever rate. The Ritz value is an
        upper bound of it.
        """
        return self._lowest if self.step in (self.memory.bound_step, self.memory.seen_bound_step) else None

    def direction(self) -> Tensor | None:
        """What to project the motion of the weights on, (n,), to follow it along the top eigenvector.

        That of P^-1 H with a preconditioner, whose coordinate of w is v'P^1/2 w.
        """
        if self._seen_pair is not None:
            operator, pair = self._seen_pair
            return operator.from_parameters(pair.vectors[:, 0])
        return None if self._eigenpairs is None else self._eigenpairs.vectors[:, 0]

    def trace(self, rtol: float = 0.1, max_matvecs: int = 100) -> Estimate:
        """The Hessian's trace, its interval's half-width at most ``rtol`` of it if ``max_matvecs`` allow.

        That of the spectral density, where a probe of this step needs one and it is as accurate.
        """
        rtol = rtol if self.needs.trace_rtol is None else min(rtol, self.needs.trace_rtol)
        allowed = max(max_matvecs, self.needs.trace_matvecs)
        if self.needs.density_vectors:
            with contextlib.suppress(Exception):  # the probe of the density will say what failed
                self.density()
        if self._density is not None and _is_within(self._density.trace, rtol):
            return self._density.trace
        if self._trace is None or (rtol, -allowed) < self._trace_asked:
            measure = self._tracked_trace if rtol >= _TRACKED else trace
            self._trace = measure(self.hessian, rtol=rtol, max_matvecs=allowed, seed=self._seed_of("trace"))
            self._trace_asked = (rtol, -allowed)
        return self._trace

    def _tracked_trace(self, operator: SymmetricOperator, **options: Any) -> Estimate:
        """From the last one's basis; what it finds of the first eigenvector, and its product, is of this step only."""
        known = self.memory.trace
        found = known.measure(operator, **options)
        if known.leading is not None and known.product is not None:
            self._leading, known.product = torch.stack((known.leading, known.product)), None
        return found

    def density(self, vectors: int | None = None, steps: int | None = None) -> SpectralDensity:
        """The Hessian's spectral density, from at least as many random starts and steps as any probe needs.

        The eigenpairs that any probe of this step needs are taken out first.

        Args:
            vectors: random starts; None takes what probes need, 4 where none does.
            steps: Lanczos steps of each; None takes what probes need, 32 where none does.
        """
        vectors = max(vectors or 0, self.needs.density_vectors) or 4
        steps = max(steps or 0, self.needs.density_steps) or 32
        if self._density is None or vectors > self._density_asked[0] or steps > self._density_asked[1]:
            pairs = self.eigenpairs() if self.needs.eigenpairs else None
            seed = self._seed_of("density")
            self._density = spectral_density(self.hessian, vectors=vectors, steps=steps, deflate=pairs, seed=seed)
            self._density_asked = (vectors, steps)
        return self._density

    def _bound_is_due(self, last: int | None) -> bool:
        """Whether a multiple of the period, or a half or a quarter of it, was passed since the last bound.

        On a grid of steps, so that probes with other schedules meet it; early on more often, because
        the loss surface changes fast then.
        """
        period = self.needs.bound_every
        if period is None or last is None:
            return False
        early = any(last < period // part <= self.step for part in (2, 4))
        return early or self.step // period > last // period or self.step < last

    def _seed_of(self, purpose: str) -> int:
        """An independent seed for each purpose and step."""
        return random.Random(f"{self.seed} {self.step} {purpose}").getrandbits(62)


def _followed(
    operator: SymmetricOperator, known: TrackedPair | None, tol: float, most: int, seed: Callable[[], int], *,
    cold: bool, start: Tensor | None = None,
) -> tuple[Eigenpairs, TrackedPair]:  # fmt: skip
    """The largest eigenpair from what is known, or afresh; and what is known then.

    Args:
        operator: of the eigenpair.
        known: from the last measurements.
        tol: relative residual.
        most: products.
        seed: gives that of a cold start.
        cold: whether to start afresh.
        start: (2, n) a vector to start from that is better than those known, and its product.
    """
    if known is None:
        return TrackedPair.cold(operator, tol=tol, max_matvecs=most, seed=seed())
    if cold:
        return known.renewed(operator, tol=tol, max_matvecs=most, seed=seed())
    return known.warm(operator, tol=tol, max_matvecs=most, start=start)


def _renewed(
    operator: SymmetricOperator, found: Callable[[Tensor | None], Eigenpairs], start: Tensor | None
) -> Eigenpairs:
    """Upper bounds from a random start; the pairs from it, or from the last ones where these lead further up.

    To a loose tolerance a random start may converge to the second of two eigenvalues that are close. One product with
    the last eigenvector tells.
    """
    fresh = found(None)
    if start is None:
        return fresh
    u = start[:, :1] / torch.linalg.vector_norm(start[:, :1])
    if not float((u * (operator @ u)).sum(dtype=torch.float64)) > float(fresh.values[0]):
        return fresh
    followed = found(start)
    return replace(followed, high=torch.maximum(fresh.high, followed.values), rest=fresh.rest, bound=fresh.bound)


def _is_within(estimate: Estimate, rtol: float) -> bool:
    return (estimate.high - estimate.low) / 2 <= rtol * abs(estimate.value)
