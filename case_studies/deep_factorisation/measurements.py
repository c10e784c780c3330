"""What is measured under one seed: minimisers of every kind, escapes from them, descents from lopsided weights."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.utils import parameters_to_vector
from torch.optim import SGD

from deep_factorisation import minimisers as fac
from losscope.probes import Run, Sharpness, watch

__all__ = ["Descent", "Escape", "Found", "Plan", "Point", "study", "watched"]

SMALL = 0.002
"""Rate of the descent that stands for gradient flow."""
SETTLED, CONVERGED = 1e-18, 1e-10
"""Losses that count as zero to rounding, and as those of a descent that converges."""


@dataclass(frozen=True)
class Plan:
    """How much is tried.

    Attributes:
        shapes: rows and columns of M, width of the hidden layers.
        depths: numbers of layers.
        draws: random minimisers of each shape and depth.
        descent: steps from one of them to the flattest.
        escapes: depths of the escape test.
        trials: minimisers of each depth that the escape test starts from.
        near: rates of the escape test, in units of 2/lambda.
        lopsided: depths of the descent from lopsided weights.
        times: its rates, in units of 2/lambda of where gradient flow ends.
    """

    shapes: tuple[tuple[int, int, int], ...]
    depths: tuple[int, ...]
    draws: int
    descent: int
    escapes: tuple[int, ...]
    trials: int
    near: tuple[float, ...]
    lopsided: tuple[int, ...]
    times: tuple[float, ...]


@dataclass(frozen=True)
class Point:
    """A minimiser: sharpness as measured and exact, over the least there is; the upper bound; how unbalanced."""

    depth: int
    shape: tuple[int, int, int]
    kind: str
    measured: float
    exact: float
    least: float
    bound: float
    imbalance: float
    frobenius: float


@dataclass(frozen=True)
class Escape:
    """Descent from beside a minimiser.

    Attributes:
        depth: number of layers.
        ratio: rate times lambda / 2 at the minimiser.
        farthest: largest distance from it, over the first.
        growth: factor of the distance in a step, while it grows from 100 to 10000 times the first.
        end: rate times lambda / 2 where it ends after an escape; NaN where it does not converge.
        losses: by step.
    """

    depth: int
    ratio: float
    farthest: float
    growth: float
    end: float
    losses: tuple[float, ...]


@dataclass(frozen=True)
class Descent:
    """Descent from lopsided weights: its rate in units of 2/lambda of the flow's end, and where it ended."""

    depth: int
    times: float
    rate: float
    converged: bool
    sharpness: float
    least: float
    imbalance: float


@dataclass(frozen=True)
class Found:
    """All that one seed measured; ``away`` has the formula's relative error by distance from the minimiser."""

    points: list[Point] = field(default_factory=list)
    escapes: list[Escape] = field(default_factory=list)
    descents: list[Descent] = field(default_factory=list)
    away: dict[float, float] = field(default_factory=dict)

    def of(self, *kinds: str) -> list[Point]:
        """The minimisers of some kinds."""
        return [point for point in self.points if point.kind in kinds]


def study(seed: int, plan: Plan) -> Found:
    """All measurements under one seed."""
    found = Found()
    for shape in plan.shapes:
        m = fac.target(*shape[:2], seed)
        for depth in plan.depths:
            found.points.extend(minimisers(m, depth, shape, seed, plan.draws, plan.descent))
    for depth in plan.escapes:
        for trial in range(plan.trials):
            for ratio in plan.near:
                found.escapes.append(escape(depth, ratio, 1000 * seed + trial))
    for depth in plan.lopsided:
        found.descents.extend(descents(depth, seed, plan.times))
    found.away.update(off_minimiser(seed))
    return found


def minimisers(m: Tensor, depth: int, shape: tuple[int, int, int], seed: int, draws: int, descent: int) -> list[Point]:
    """Balanced, drawn at random, the flattest found from one of those, and the special ones of a matrix with a gap."""

    def point(kind: str, factors: Sequence[Tensor], of: Tensor = m) -> Point:
        measured = fac.measured_sharpness(fac.network(factors), of) if kind != "drawn, not measured" else math.nan
        return Point(
            depth, shape, kind, measured, float(fac.exact_sharpness(factors)), fac.least_sharpness(of, depth),
            fac.bound(factors), fac.imbalance(factors), fac.frobenius_imbalance(factors),
        )  # fmt: skip

    even = fac.balanced(m, depth, shape[2], seed)
    drawn = [fac.mixed(even, 0.6 * (i + 1) / draws, 1000 * seed + i) for i in range(draws)]
    found = [point("balanced", even), *(point("drawn", each) for each in drawn[-2:])]
    found += [point("drawn, not measured", each) for each in drawn[:-2]]
    found.append(point("flattened", fac.flattened(drawn[-1], descent)))
    if min(m.shape) == 1:
        return found
    gap, rest = with_gap(m), 4 ** (1 / depth)  # times it, the other directions of a factor are as large as the first
    found.append(point("flat, not Frobenius balanced", fac.reweighted(gap, depth, shape[2], seed, 1, rest), gap))
    if depth > 2:
        found.append(point("flat, not balanced", fac.reweighted(gap, depth, shape[2], seed, 1, 1.15 * rest), gap))
    else:
        found.append(point("Frobenius balanced", frobenius_balanced(m, shape[2], seed)))
        found.append(point("equal norms", fac.reweighted(gap, 2, shape[2], seed, 3, 1 / 6), gap))
    return found


def with_gap(m: Tensor) -> Tensor:
    """M with all singular values but the first at a quarter of it."""
    u, s, vh = torch.linalg.svd(m, full_matrices=False)
    scales = torch.full_like(s, float(s[0]) / 4)
    scales[0] = s[0]
    return u * scales @ vh


def frobenius_balanced(m: Tensor, width: int, seed: int, first: float = 1.5) -> list[Tensor]:
    """Two factors of one Frobenius norm whose spectral norms differ.

    With c = ``first``, S the sum of all singular values but s_1 and x the square of what the other directions are
    scaled by, the norms agree where S x^2 + s_1 (c^2 - 1/c^2) x - S = 0.
    """
    s = torch.linalg.svdvals(m)
    rest, b = float(s[1:].sum()), float(s[0]) * (first**2 - first**-2)
    x = (math.sqrt(b**2 + 4 * rest**2) - b) / (2 * rest)
    return fac.reweighted(m, 2, width, seed, first, math.sqrt(x))


def descend(model: nn.Module, m: Tensor, rate: float, steps: int) -> Iterator[float]:
    """Gradient descent by torch's optimizer: the loss before each update, until it is beyond all bounds."""
    optimizer = SGD(model.parameters(), lr=rate)
    x = torch.eye(m.shape[1], dtype=m.dtype)
    for _ in range(steps):
        optimizer.zero_grad()
        loss = fac.squared_error(model(x), m.T)
        loss.backward()
        optimizer.step()
        yield loss.item()
        if not loss.item() < 1e8:
            return


def settle(model: nn.Module, m: Tensor, rate: float, steps: int) -> list[float]:
    """Descend until the loss is zero to rounding, or the steps are over."""
    losses = []
    for loss in descend(model, m, rate, steps):
        losses.append(loss)
        if loss < SETTLED:
            break
    return losses


def weights(model: nn.Module) -> list[Tensor]:
    """The factors, from the first layer to the last."""
    return [p.detach().clone() for p in model.parameters()]


def escape(depth: int, ratio: float, seed: int, steps: int = 1500) -> Escape:
    """Descend from 1e-6 beside a random minimiser, at ``ratio`` times 2/lambda, until it is away or the steps are over.

    What grows is measured between distances of 100 and 10000 times the first, where the loss is still quadratic. After
    an escape the descent goes on to where it ends, and its sharpness there is taken.
    """
    m = fac.target(5, 5, seed)
    at = fac.mixed(fac.balanced(m, depth, 8, seed), 0.4, seed)
    rate = ratio * 2 / float(fac.exact_sharpness(at))
    generator = torch.Generator().manual_seed(seed)
    noise = [torch.randn(w.shape, generator=generator, dtype=w.dtype) for w in at]
    size = 1e-6 / math.sqrt(sum(float(n.square().sum()) for n in noise))
    model = fac.network([w + size * n for w, n in zip(at, noise, strict=True)])
    start, distances, losses = parameters_to_vector(at), [1e-6], []
    for loss in descend(model, m, rate, steps):
        losses.append(loss)
        distances.append(float((parameters_to_vector(model.parameters()).detach() - start).norm()))
        if loss < SETTLED or distances[-1] > 0.1:
            break
    between = [d for d in distances if 1e-4 < d < 1e-2]
    growth = (between[-1] / between[0]) ** (1 / (len(between) - 1)) if len(between) > 1 else math.nan
    away = distances[-1] > 1e-3
    if away:
        losses += settle(model, m, rate, 6000)
    end = float(fac.exact_sharpness(weights(model))) * rate / 2 if away and losses[-1] < CONVERGED else math.nan
    return Escape(depth, ratio, max(distances) / 1e-6, growth, end, tuple(losses))


def lopsided(depth: int, seed: int) -> tuple[Tensor, list[Tensor]]:
    """A target and random weights to start from, the first layer three times as large as the others."""
    generator = torch.Generator().manual_seed(100 + seed)
    sizes = [5, *[10] * (depth - 1), 5]
    scales = [2.0] + [0.7] * (depth - 1)
    start = [
        scale * torch.randn(n, k, generator=generator, dtype=torch.float64) / math.sqrt(k)
        for scale, k, n in zip(scales, sizes, sizes[1:], strict=False)
    ]
    return fac.target(5, 5, seed), start


def descents(depth: int, seed: int, times: Sequence[float]) -> list[Descent]:
    """From lopsided weights: at a small rate, which stands for gradient flow (times = 0), then at larger ones."""
    m, start = lopsided(depth, seed)
    least, found = fac.least_sharpness(m, depth), []
    for each in (0.0, *times):
        rate = each * 2 / found[0].sharpness if found else SMALL
        model = fac.network(start)
        converged = settle(model, m, rate, 20000)[-1] < CONVERGED
        end = weights(model)
        sharpness = float(fac.exact_sharpness(end)) if converged else math.nan
        found.append(
            Descent(depth, each, rate, converged, sharpness, least, fac.imbalance(end) if converged else math.nan)
        )
    return found


def off_minimiser(seed: int, depth: int = 3) -> dict[float, float]:
    """The formula's relative error at a relative distance from a minimiser, where it has no right to hold."""
    m = fac.target(5, 5, seed)
    at = fac.mixed(fac.balanced(m, depth, 8, seed), 0.4, seed)
    generator = torch.Generator().manual_seed(seed)
    noise = [torch.randn(w.shape, generator=generator, dtype=w.dtype) for w in at]
    found = {}
    for distance in (1e-4, 1e-3, 1e-2, 1e-1):
        moved = [w + distance * n * w.norm() / n.norm() for w, n in zip(at, noise, strict=True)]
        exact = float(fac.exact_sharpness(moved))
        found[distance] = abs(fac.measured_sharpness(fac.network(moved), m) / exact - 1)
    return found


def watched(depth: int, seed: int, rate: float, steps: int, out: Path | None) -> Run:
    """The same descent under watch, for its sharpness by step."""
    m, start = lopsided(depth, seed)
    model = fac.network(start)
    optimizer = SGD(model.parameters(), lr=rate)
    x = torch.eye(m.shape[1], dtype=m.dtype)
    with watch(
        model, optimizer, data=(x, m.T), criterion=fac.squared_error, probes=[Sharpness()], every=2, out=out,
        batch_size=len(x), seed=seed,
    ) as run:  # fmt: skip
        for _ in range(steps):
            optimizer.zero_grad()
            loss = fac.squared_error(model(x), m.T)
            loss.backward()
            optimizer.step()
            run.log(loss=loss)
    return run.run
