"""Eigensolvers and trace estimators of the libraries that are compared, each metered and behind one signature."""

import contextlib
import math
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any
from unittest import mock

import numpy as np
import torch
from contenders import NotAvailable, curvlinops_operator, objective, pyhessian_object
from problems import CRITERION, Problem
from torch import Tensor, nn

from losscope.landscape import Hessian, top_eigenpairs, trace

MANY = 5000  # iterations that no run needs: tolerances and deadlines end it


class TooLong(Exception):
    """A run went on past its deadline."""


@dataclass
class Meter:
    """Counts products, and ends a run at its deadline, a reading of ``time.perf_counter``."""

    deadline: float = math.inf
    products: int = 0

    def metered(self, product: Callable[..., Any]) -> Callable[..., Any]:
        """The same function, counted."""

        def one(*arguments: Any) -> Any:
            self.products += 1
            if time.perf_counter() > self.deadline:
                raise TooLong
            return product(*arguments)

        return one


@dataclass(frozen=True)
class Pairs:
    """Eigenvalues (k,) in float64, largest first, and their vectors (n, k)."""

    values: Tensor
    vectors: Tensor


@dataclass(frozen=True)
class Number:
    """A number, with an interval where the library states one."""

    value: float
    interval: tuple[float, float] | None = None


# --------------------------------------------------------------------------- eigenpairs


def losscope_pairs(problem: Problem, model: nn.Module, meter: Meter, k: int, kernel: str, **options: Any) -> Pairs:
    """`top_eigenpairs`, with an objective and an operator of its own."""
    found = top_eigenpairs(Hessian(objective(problem, model), kernel=kernel), k=k, **options)
    meter.products += found.matvecs
    return Pairs(found.values, found.vectors)


def power_iteration(problem: Problem, model: nn.Module, meter: Meter, **options: Any) -> Pairs:
    """PyHessian's ``eigenvalues()``: the largest in magnitude, one after the other."""
    with _metered_pyhessian(problem, model, meter) as made:
        values, vectors = made.eigenvalues(**options)
    flat = [torch.cat([piece.detach().flatten() for piece in vector]) for vector in vectors]
    return _sorted(torch.tensor(values, dtype=torch.float64), torch.stack(flat, dim=1))


def arpack(problem: Problem, model: nn.Module, meter: Meter, seed: int | None = None, **options: Any) -> Pairs:
    """curvlinops as its documentation computes eigenvalues: SciPy's ``eigsh``."""
    from scipy.sparse.linalg import LinearOperator, eigsh

    operator = curvlinops_operator(problem, model).to_scipy()
    counted = LinearOperator(operator.shape, matvec=meter.metered(operator.__matmul__), dtype=operator.dtype)
    if seed is not None:
        options["v0"] = np.random.default_rng(seed).standard_normal(operator.shape[0]).astype(operator.dtype)
    values, vectors = eigsh(counted, **options)
    return _sorted(torch.from_numpy(values).double(), torch.from_numpy(vectors))


def eigenthings(problem: Problem, model: nn.Module, meter: Meter, **options: Any) -> Pairs:
    """hessian-eigenthings' Lanczos; it takes the number of steps, and reorthogonalises where told."""
    try:
        from hessian_eigenthings.algorithms import lanczos
        from hessian_eigenthings.loss_fns import supervised_loss
        from hessian_eigenthings.operators import HessianOperator
    except ImportError as error:
        raise NotAvailable("hessian-eigenthings 1.0 is not installed") from error
    operator = HessianOperator(model, problem.batches, supervised_loss(CRITERION))
    operator.matvec = meter.metered(operator.matvec)
    found = lanczos(operator, which="LA", reorthogonalize=True, **options)
    return _sorted(found.eigenvalues.double().cpu(), found.eigenvectors.T)


def _sorted(values: Tensor, vectors: Tensor) -> Pairs:
    order = values.argsort(descending=True)
    return Pairs(values[order], vectors[:, order.to(vectors.device)])


@contextlib.contextmanager
def _metered_pyhessian(problem: Problem, model: nn.Module, meter: Meter) -> Iterator[Any]:
    """PyHessian's object with its products counted; no graph is left behind."""
    try:
        made = pyhessian_object(problem, model)
        module = sys.modules[type(made).__module__]
        made.dataloader_hv_product = meter.metered(made.dataloader_hv_product)
        counted = meter.metered(module.hessian_vector_product)
        with mock.patch.object(module, "hessian_vector_product", counted):
            yield made
    finally:
        model.zero_grad()  # it leaves one in .grad, a cycle that Python cannot collect


# --------------------------------------------------------------------------- traces


def losscope_trace(problem: Problem, model: nn.Module, meter: Meter, **options: Any) -> Number:
    """`trace`, with an objective and an operator of its own."""
    found = trace(Hessian(objective(problem, model)), **options)
    meter.products += found.matvecs
    return Number(found.value, (found.low, found.high))


def pyhessian_trace(problem: Problem, model: nn.Module, meter: Meter, **options: Any) -> Number:
    """PyHessian's ``trace()``, whose samples its README averages."""
    with _metered_pyhessian(problem, model, meter) as made:
        return Number(float(np.mean(made.trace(**options))))


def curvlinops_trace(problem: Problem, model: nn.Module, meter: Meter, estimator: str, products: int) -> Number:
    """One of curvlinops' estimators, by its name."""
    operator = curvlinops_operator(problem, model)
    import curvlinops

    value = getattr(curvlinops, estimator)(operator, products)
    meter.products += products
    return Number(float(value))
