"""Fourth and fifth table: the largest eigenvalue, and the ten largest, with their vectors, to the same residual."""

import functools

import contest
import torch
from contenders import CURVLINOPS, OURS, PYHESSIAN
from contest import Comparison, Contest, Rules, Way
from problems import Problem, hessian_reference
from solvers import MANY, Meter, Pairs, arpack, eigenthings, losscope_pairs, power_iteration
from torch import Tensor

RESIDUAL = 1e-3
"""Of the eigenvalue: ``|H v - theta v| <= 1e-3 |theta|``, with ``H v`` in float64."""

SAME = 1e-3
"""Relative distance within which a value is taken to be one of the largest eigenvalues."""

TEN = ("mlp-128", "mlp-1797", "mlp-1797-by-128", "gpt-128")
"""Problems of the second of the two tables; others where ``--only`` names them, in minutes each."""

KEPT = 24  # runs whose vectors are kept: those that settings are found with

EIGENTHINGS = "hessian-eigenthings"


def ways(problem: Problem, k: int) -> list[Way]:
    """Ours first."""
    model = problem.fresh()

    def ours(kernel: str, tol: float, seed: int, meter: Meter, **options: int) -> Pairs:
        return losscope_pairs(problem, model, meter, k, kernel, tol=tol, seed=seed, **options)

    def power(tol: float, seed: int, meter: Meter) -> Pairs:
        torch.manual_seed(seed)
        return power_iteration(problem, model, meter, maxIter=MANY, tol=tol, top_n=k)

    def eigsh(tol: float, seed: int, meter: Meter) -> Pairs:
        return arpack(problem, model, meter, seed, k=k, which="LA", tol=tol)

    def steps(setting: float, seed: int, meter: Meter) -> Pairs:
        return eigenthings(problem, model, meter, k=k, max_iter=int(setting), seed=seed)

    tolerances, powers = (1e-3, 3e-4), (1e-3, 1e-5, 1e-6, 3e-7, 1e-7)
    counts = (4, 6, 8, 12, 16, 24, 32, 48) if k == 1 else (25, 35, 50, 70, 100, 140, 200)
    top = f", top_n={k}" if k > 1 else ""
    wide = Way(
        OURS, f"losscope: top_eigenpairs(tol={{:g}}, block={k})", tolerances, functools.partial(ours, "auto", block=k)
    )
    return [
        Way(OURS, "losscope: top_eigenpairs(tol={:g})", tolerances, functools.partial(ours, "auto")),
        *([wide] if k > 1 else []),
        Way(OURS, "losscope: top_eigenpairs(tol={:g}), retained", tolerances, functools.partial(ours, "retained")),
        Way(PYHESSIAN, f"PyHessian: eigenvalues(tol={{:g}}{top})", powers, power),
        Way(CURVLINOPS, "curvlinops: eigsh(tol={:g})", (1e-1, 1e-2, 1e-3, 3e-4), eigsh),
        Way(EIGENTHINGS, "hessian-eigenthings: lanczos(max_iter={:g})", counts, steps),
    ]


class Judge:
    """Residuals in float64; from all vectors it multiplied it knows the eigenvalues better than any one run."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        self.vectors: list[Tensor] = []
        self.products: list[Tensor] = []

    def __call__(self, pairs: Pairs) -> float:
        """The largest residual of the pairs, relative to its eigenvalue."""
        V = pairs.vectors.double()
        V = V / V.norm(dim=0)
        HV = hessian_reference(self.problem, V)
        values = pairs.values.to(V)
        if len(self.vectors) < KEPT:
            self.vectors.append(V)
            self.products.append(HV)
        return float(((HV - values * V).norm(dim=0) / values.abs()).max())

    def eigenvalues(self, k: int) -> Tensor:
        """The k largest Ritz values (Rayleigh-Ritz) on the span of all vectors: off by residuals squared."""
        V, HV = torch.cat(self.vectors, dim=1), torch.cat(self.products, dim=1)
        lengths, U = torch.linalg.eigh(V.T @ V)
        kept = lengths > 1e-6 * lengths.max()  # the same vector occurs many times
        W = U[:, kept] / lengths[kept].sqrt()
        T = W.T @ (V.T @ HV) @ W
        return torch.linalg.eigvalsh((T + T.T) / 2).flip(0)[:k].cpu()


def found(values: Tensor, right: Tensor) -> int:
    """How many of the right eigenvalues are among the values; both descend."""
    i = count = 0
    for value in right.tolist():
        while i < len(values) and float(values[i]) > value + SAME * abs(value):
            i += 1
        if i < len(values) and abs(float(values[i]) - value) <= SAME * abs(value):
            count, i = count + 1, i + 1
    return count


def measure(problem: Problem, k: int, rules: Rules) -> Comparison:
    """Everyone's way to the k largest eigenvalues."""
    judge = Judge(problem)
    held = Contest(problem, judge, RESIDUAL, rules)
    entries = held.hold(ways(problem, k))
    right = judge.eigenvalues(k)
    for entry in entries:
        if entry.answers:
            counts = sorted(found(pairs.values, right) for pairs in entry.answers)
            entry.row.note = f"{counts[len(counts) // 2]} of {k}"
            entry.row.reached &= counts[len(counts) // 2] == k
    shown = f"{float(right[0]):.5g}" + (f" to {float(right[-1]):.4g}" if k > 1 else "")
    return held.result(f"top {k}", entries, f"eigenvalue{'s' if k > 1 else ''} {shown}")


def table(comparison: Comparison) -> str:
    """In Markdown."""
    return contest.table(comparison, "residual / eigenvalue", "right values")
