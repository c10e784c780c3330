"""Seventh table: the largest eigenvalue at every tenth step of gradient descent."""

import copy
import functools
import random
import statistics
from collections.abc import Callable
from dataclasses import dataclass, replace

import contest
import numpy as np
import torch
from contenders import OURS, PLAIN, PYHESSIAN, Contender, failure_in, objective, plain_retained
from contest import Comparison, Row
from measuring import Slot, interleave, timed
from problems import CRITERION, Problem
from products import seconds_of_gradient
from solvers import Meter, power_iteration
from torch import nn

from losscope.landscape import Hessian, TrackedPair, top_eigenpairs
from losscope.probes import Sharpness, watch

EVERY = 10
WATCH = "losscope: watch, Sharpness()"
WARM = "losscope: top_eigenpairs, warm start"
PAIR = "losscope: TrackedPair"
EQUAL = "losscope: TrackedPair, tol=0.03"
PEER = "PyHessian: eigenvalues()"

WORST = 1e-1
"""A value that is off by more, at any step, is no value of the largest eigenvalue."""


@dataclass(frozen=True)
class Course:
    """Steps of full-batch gradient descent at a rate."""

    steps: int
    lr: float


PROBLEMS = ("mlp-1797", "resnet-128")
COURSES = {"MLP": Course(300, 0.5), "ResNet-20": Course(300, 0.002), "GPT": Course(40, 0.05)}
"""Thirty measurements: over a few only, what is paid once, for the first, would be most of it."""

Track = tuple[list[float], float, int]
"""A value per measured step; seconds of measuring; products."""


def descend(problem: Problem, course: Course) -> list[nn.Module]:
    """The models before every tenth update, as `watch` takes them."""
    model, models = problem.fresh(), []
    optimizer = torch.optim.SGD(model.parameters(), lr=course.lr)
    for step in range(course.steps):
        if step % EVERY == 0:
            models.append(copy.deepcopy(model))
        _update(problem, model, optimizer)
    return models


def _update(problem: Problem, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    optimizer.zero_grad()
    for x, y in problem.batches:
        (CRITERION(model(x), y) * (len(y) / sum(len(b) for _, b in problem.batches))).backward()
    optimizer.step()


def _load(model: nn.Module, source: nn.Module) -> None:
    with torch.no_grad():
        for p, q in zip(model.parameters(), source.parameters(), strict=True):
            p.copy_(q)


def largest(problem: Problem, model: nn.Module, near: np.ndarray | None) -> tuple[float, np.ndarray]:
    """The largest eigenvalue by SciPy's ``eigsh`` on products of plain PyTorch, to 1e-5, and its vector."""
    from scipy.sparse.linalg import LinearOperator, eigsh

    bare = Contender(PLAIN, "retained", plain_retained, math=problem.family.attention)
    with bare.engine(replace(problem, model=model)) as engine, bare.around():

        def product(x: np.ndarray) -> np.ndarray:
            v = torch.as_tensor(x, dtype=torch.float32, device=problem.device).reshape(-1, 1)
            return engine.flat(engine.product(engine.native(v)))[:, 0].double().cpu().numpy()

        operator = LinearOperator((problem.size, problem.size), matvec=product, dtype=np.float64)
        values, vectors = eigsh(operator, k=1, which="LA", tol=1e-5, v0=near)
    return float(values[0]), vectors[:, 0]


# --------------------------------------------------------------------------- the ways


def warm(problem: Problem, models: list[nn.Module], course: Course, seed: int) -> Track:
    """Every measurement starts where the last one ended."""
    model, whole, start = problem.fresh(), None, None
    values, seconds, products = [], 0.0, 0

    def measure() -> None:
        nonlocal whole, start, products
        whole = whole or objective(problem, model)
        found = top_eigenpairs(Hessian(whole.snapshot(len(values))), start=start, seed=1000 * seed + len(values))
        start, products = found.vectors, products + found.matvecs
        values.append(float(found.values[0]))

    for source in models:
        _load(model, source)
        seconds += timed(measure, problem.device)
    return values, seconds, products


def followed(problem: Problem, models: list[nn.Module], course: Course, seed: int, *, tol: float = 1e-2) -> Track:
    """What `watch` follows the eigenvector with, by itself: started from what the last measurements have learnt."""
    model, whole, known = problem.fresh(), None, None
    values, seconds, products = [], 0.0, 0

    def measure() -> None:
        nonlocal whole, known, products
        whole = whole or objective(problem, model)
        operator = Hessian(whole.snapshot(len(values)))
        find = functools.partial(TrackedPair.cold, seed=seed) if known is None else known.warm
        found, known = find(operator, tol=tol)
        products += found.matvecs
        values.append(float(found.values[0]))

    for source in models:
        _load(model, source)
        seconds += timed(measure, problem.device)
    return values, seconds, products


def watched(problem: Problem, models: list[nn.Module], course: Course, seed: int) -> Track:
    """The training loop again, under `watch`, which counts its own seconds."""
    model = problem.fresh()
    optimizer = torch.optim.SGD(model.parameters(), lr=course.lr)
    data = problem.batches[0] if len(problem.batches) == 1 else problem.batches
    with watch(
        model, optimizer, data=data, criterion=CRITERION, probes=[Sharpness()], every=EVERY, seed=seed
    ) as live:  # fmt: skip
        for _ in range(course.steps):
            _update(problem, model, optimizer)
    records = live.run.select("sharpness")
    products = sum(record.matvecs for record in records)
    return [record.value for record in records], live.run.meta["cost"]["seconds_measuring"], products


def defaults(problem: Problem, models: list[nn.Module], course: Course, seed: int) -> Track:
    """PyHessian as its README says, at every point afresh."""
    model, meter = problem.fresh(), Meter()
    values, seconds = [], 0.0

    def measure() -> None:
        values.append(float(power_iteration(problem, model, meter).values[0]))

    torch.manual_seed(seed)
    for source in models:
        _load(model, source)
        seconds += timed(measure, problem.device)
    return values, seconds, meter.products


WAYS: dict[str, tuple[str, Callable[[Problem, list[nn.Module], Course, int], Track]]] = {
    WARM: (OURS, warm),
    PAIR: (OURS, followed),
    EQUAL: (OURS, functools.partial(followed, tol=3e-2)),
    WATCH: (OURS, watched),
    PEER: (PYHESSIAN, defaults),
}


def measure(problem: Problem, repeats: int, steps: int | None = None) -> Comparison:
    """Everyone along the same course."""
    course = COURSES[problem.family.name]
    course = replace(course, steps=steps or course.steps)
    models = descend(problem, course)
    right, near = [], None
    for model in models:
        value, near = largest(problem, model, near)
        right.append(value)
    rows = [Row(package, name) for name, (package, _) in WAYS.items()]
    order = random.Random(0)
    for seed in range(repeats):
        for row in order.sample(rows, len(rows)):
            if not row.failure:
                with failure_in(row):
                    _note(row, WAYS[row.name][1](problem, models, course, seed), right)
    gradient = Slot(seconds_of_gradient(problem))
    gradient.run(2)
    interleave([gradient], repeats, problem.device, least=0.04, budget=2.0)
    remark = f"{len(models)} measurements along {course.steps} steps at rate {course.lr:g}, {min(right):.4g} to "
    return Comparison(
        "tracking", problem.key, problem.title, len(problem.batches), gradient.median, WORST,
        f"{remark}{max(right):.4g}", rows,
    )  # fmt: skip


def _note(row: Row, track: Track, right: list[float]) -> None:
    values, seconds, products = track
    errors = [abs(value / true - 1) for value, true in zip(values, right, strict=True)]
    row.seconds.append(seconds)
    row.products.append(products)
    row.errors += errors
    row.reached = max(row.errors) <= WORST
    row.note = f"{1e3 * statistics.median(row.seconds) / len(right):.3g} ms each"


def table(comparison: Comparison) -> str:
    """In Markdown."""
    return contest.table(comparison, "relative error of the value", "per measurement")
