"""Eighth table: the spectral density from the same steps by everyone, and its distance to the true one."""

import contextlib
import functools
import math
import statistics
from collections.abc import Callable
from dataclasses import dataclass

import torch
from contenders import CRITERION, CURVLINOPS, OURS, PYHESSIAN, curvlinops_operator, objective, pyhessian_object
from contest import Comparison, Contest, Rules, Way
from problems import Problem, hessian_reference
from solvers import Meter
from torch import Tensor

from losscope.landscape import Hessian, LosscopeError, spectral_density
from losscope.landscape import pyhessian as coming_from_pyhessian

STEPS = 40
FEW, MANY = 2, 8
PROBLEMS = ("mlp-128", "mlp-1797", "resnet-128")
EXACT = 10_000  # parameters up to which all eigenvalues are computed

ONE, EIGHT = "losscope: spectral_density, 1 x 40", "losscope: spectral_density, 8 x 40, compiled before"
PEER = "PyHessian: density, 1 x 40"


@dataclass(frozen=True)
class Measure:
    """A density as nodes and weights of sum 1, (m,) float64, with the bound that is stated for its error."""

    nodes: Tensor
    weights: Tensor
    bound: float | None = None


def spectrum(problem: Problem) -> Tensor:
    """All eigenvalues, (n,) float64, from products of plain PyTorch in float64."""
    units = torch.eye(problem.size, device=problem.device).split(256)
    H = torch.cat([hessian_reference(problem, E.T) for E in units], dim=1)
    return torch.linalg.eigvalsh((H + H.T) / 2).cpu()


def distance(found: Measure, eigenvalues: Tensor) -> float:
    """The Wasserstein-1 distance, the area between the distribution functions, over the largest magnitude."""
    places, order = torch.cat([found.nodes, eigenvalues]).sort()
    masses = torch.cat([found.weights, torch.full_like(eigenvalues, -1 / len(eigenvalues))])[order]
    area = float(masses.cumsum(dim=0)[:-1].abs() @ places.diff())
    return area / float(eigenvalues.abs().max())


# --------------------------------------------------------------------------- the ways


def ours(problem: Problem, kernel: str, vectors: int) -> Callable[[float, int, Meter], Measure]:
    """With an objective and an operator of its own each time."""
    model = problem.fresh()

    def solve(steps: float, seed: int, meter: Meter) -> Measure:
        return _ours(Hessian(objective(problem, model), kernel=kernel), vectors, steps, seed, meter)

    return solve


def ours_kept(problem: Problem) -> Callable[[float, int, Meter], Measure]:
    """On snapshots of one objective, as a watched run takes them: compiled code is there already."""
    first = objective(problem, problem.fresh())
    with contextlib.suppress(LosscopeError):  # which the run says as well
        Hessian(first, kernel="compiled") @ first.space.random(MANY, torch.Generator(problem.device))

    def solve(steps: float, seed: int, meter: Meter) -> Measure:
        return _ours(Hessian(first.snapshot(0), kernel="compiled"), MANY, steps, seed, meter)

    return solve


def _ours(operator: Hessian, vectors: int, steps: float, seed: int, meter: Meter) -> Measure:
    found = spectral_density(operator, vectors=vectors, steps=int(steps), seed=seed)
    meter.products += found.matvecs
    return Measure(found.nodes, found.weights, found.wasserstein)


def runs(problem: Problem, vectors: int, real: bool) -> Callable[[float, int, Meter], Measure]:
    """PyHessian's ``density()``, or that of the class which stands in for it."""
    model = problem.fresh()

    def solve(steps: float, seed: int, meter: Meter) -> Measure:
        torch.manual_seed(seed)
        try:
            if real:
                made = pyhessian_object(problem, model)
            else:
                made = coming_from_pyhessian.hessian(model, CRITERION, dataloader=problem.batches, seed=seed)
            nodes, weights = made.density(iter=int(steps), n_v=vectors)
        finally:
            model.zero_grad()  # PyHessian leaves a graph in .grad
        meter.products += int(steps) * vectors
        w = torch.tensor([[complex(x).real for x in run] for run in weights], dtype=torch.float64).flatten()
        return Measure(torch.tensor(nodes, dtype=torch.float64).flatten(), w / w.sum())

    return solve


def grid(problem: Problem, vectors: int) -> Callable[[float, int, Meter], Measure]:
    """curvlinops' density on a grid, smoothed with its own width; its search for the ends is part of it."""
    from curvlinops.papyan2020traces.spectrum import lanczos_approximate_spectrum

    model = problem.fresh()

    def solve(steps: float, seed: int, meter: Meter) -> Measure:
        torch.manual_seed(seed)
        operator = curvlinops_operator(problem, model)
        operator._matmat = meter.metered(operator._matmat)
        places, density = lanczos_approximate_spectrum(operator, int(steps), num_repeats=vectors)
        return Measure(places.double(), density.double() / float(density.double().sum()))

    return solve


def ways(problem: Problem, compiled: bool) -> list[Way]:
    """Ours first; by one vector, by two with the same products, then by eight."""
    found = []
    for vectors in (1, MANY):
        shown = f"{vectors} x {{:g}}"
        found += [
            Way(OURS, f"losscope: spectral_density, {shown}", (STEPS,), ours(problem, "auto", vectors)),
            Way(OURS, f"losscope: spectral_density, {shown}, retained", (STEPS,), ours(problem, "retained", vectors)),
            Way(OURS, f"losscope: pyhessian.hessian.density, {shown}", (STEPS,), runs(problem, vectors, real=False)),
            Way(PYHESSIAN, f"PyHessian: density, {shown}", (STEPS,), runs(problem, vectors, real=True)),
            Way(
                CURVLINOPS, f"curvlinops: lanczos_approximate_spectrum, {shown}", (STEPS,),
                functools.partial(_opened, grid, problem, vectors),
            ),
        ]  # fmt: skip
    name = f"losscope: spectral_density, {FEW} x {{:g}}"
    found.insert(1, Way(OURS, name, (STEPS // FEW,), ours(problem, "auto", FEW)))
    if compiled and problem.key == "mlp-128":
        found.append(
            Way(OURS, f"losscope: spectral_density, {MANY} x {{:g}}, compiled before", (STEPS,), ours_kept(problem))
        )
    return found


def _opened(make: Callable, problem: Problem, vectors: int, steps: float, seed: int, meter: Meter) -> Measure:
    """Opened when it is run, so that a library that is missing is its row's failure."""
    return make(problem, vectors)(steps, seed, meter)


def measure(problem: Problem, eigenvalues: Tensor | None, rules: Rules, compiled: bool) -> Comparison:
    """Everyone's density; without eigenvalues nothing is judged."""

    def judge(found: Measure) -> float:
        return math.nan if eigenvalues is None else distance(found, eigenvalues)

    held = Contest(problem, judge, 1.0, rules)
    entries = held.hold(ways(problem, compiled))
    for entry in entries:
        bounds = [found.bound for found in entry.answers if found.bound is not None]
        if bounds and eigenvalues is not None:
            norm = float(eigenvalues.abs().max())
            right = sum(error <= bound / norm for error, bound in zip(entry.row.errors, bounds, strict=True))
            entry.row.note = f"{statistics.median(bounds) / norm:.1e}: holds in {right} of {len(bounds)}"
        entry.row.reached = not entry.row.failure
    remark = "not judged" if eigenvalues is None else f"eigenvalues {eigenvalues.min():.4g} to {eigenvalues.max():.4g}"
    return held.result("density", entries, remark)


# --------------------------------------------------------------------------- the table


def table(found: Comparison) -> str:
    """In Markdown."""
    peers = [row.median for row in found.rows if row.name == PEER and row.seconds]
    lines = [
        f"**{found.title}**: {found.remark}; one gradient {1e3 * found.gradient:.2f} ms\n",
        "| run | products | ms | ms per product | in PyHessian's time for 1 x 40 | W1 / norm: median | worst | "
        "stated bound | repeats |",
        "|---|---:|---:|---:|---:|---:|---:|---|---:|",
    ]
    for row in found.rows:
        if row.failure or not row.seconds:
            lines.append(f"| {row.name} | **{row.failure}** | | | | | | | |")
            continue
        products = statistics.median(row.products)
        ratio = f"{row.median / peers[0]:.2f}" if peers else ""
        errors = [f"{error:.1e}" for error in (statistics.median(row.errors), max(row.errors)) if not math.isnan(error)]
        middle, worst = errors or ("", "")
        lines.append(
            f"| {row.name} | {products:g} | {1e3 * row.median:.4g} | {1e3 * row.median / products:.3g} | {ratio} "
            f"| {middle} | {worst} | {row.note} | {len(row.seconds)} |"
        )
    return "\n".join(lines) + "\n"
