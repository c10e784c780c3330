"""Coming from PyHessian: its class, with its arguments and what it returns, on this package's operators.

``from losscope.landscape.pyhessian import hessian`` in place of ``from pyhessian import hessian``; the rest of a script
stays, PyHessian's ``get_esd_plot`` included. Z. Yao, A. Gholami, K. Keutzer and M. W. Mahoney, "PyHessian: Neural
networks through the lens of the Hessian", IEEE Big Data 2020.
"""

from __future__ import annotations

from collections.abc import Callable, Sized
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .columns import parts
from .errors import DataError, SettingError
from .hessian import Hessian
from .intervals import Moments
from .kernels.choice import check_count
from .krylov import top_eigenpairs
from .objective import Objective
from .operators import Observed
from .quadrature import quadratures
from .space import generator_for

__all__ = ["hessian"]

_FIRST = 30  # samples of the trace before the first look at their interval


class hessian:
    """The Hessian of a model's loss at its parameters' present values, with the interface of PyHessian.

    What is better told apart by an error bar (`top_eigenpairs`, `trace`, `spectral_density`) can be asked of
    ``operator``. What differs from PyHessian:

    - Nothing is left behind: no ``.grad`` and no graph in it, so that constructing it twice does not double the
      result; the model is measured in eval mode, as PyHessian does, and is then back in its own; the global random
      stream stays where it is, so that ``torch.manual_seed`` has no say and ``seed`` has.
    - Parameters that are frozen or unused are no error: the first are no variables, the second have a curvature of 0.
      ``data`` is measured where the parameters are now, not where they were in the constructor.
    - Batches count by their samples, or by those targets that the criterion does not ignore; with
      ``reduction="sum"`` the loss is the sum over all batches, where PyHessian takes a weighted mean of sums.

    Args:
        model: the module; its parameters that require gradients are the variables.
        criterion: ``criterion(outputs, targets) -> scalar``.
        data: one batch, (inputs, targets); or
        dataloader: an iterable of such batches, which is read once.
        cuda: without effect: batches go to the device that the model is on.
        seed: int, generator, or None for fresh entropy; new here.

    Attributes:
        params: the variables, in the order of ``model.parameters()``.
        objective: model, data and criterion as one function.
        operator: its Hessian.

    Raises:
        SettingError: unless one of ``data`` and ``dataloader`` is given.
        DataError: if ``dataloader`` is empty.

    Example:
        >>> import torch
        >>> from losscope.landscape.pyhessian import hessian
        >>> model = torch.nn.Linear(3, 1, bias=False)
        >>> data = (torch.diag(torch.tensor([1.0, 2.0, 3.0])), torch.zeros(3, 1))
        >>> hessian_comp = hessian(model, torch.nn.MSELoss(reduction="sum"), data=data, cuda=False)
        >>> top_eigenvalues, top_eigenvectors = hessian_comp.eigenvalues()
        >>> top_eigenvalues  # of 2 x'x
        [18.0]
    """

    def __init__(
        self,
        model: nn.Module,
        criterion: Callable[..., Tensor],
        data: Any = None,
        dataloader: Any = None,
        cuda: bool = True,
        *,
        seed: int | torch.Generator | None = None,
    ) -> None:
        if (data is None) == (dataloader is None):
            given = "neither" if data is None else "both"
            raise SettingError(f"one of data and dataloader must be given, got {given}")
        if isinstance(dataloader, Sized) and len(dataloader) == 0:
            raise DataError("dataloader has no batches; give batches of (inputs, targets), or one as data=")
        batches = [tuple(data)] if dataloader is None else dataloader
        self.objective = Objective(model, batches, criterion=criterion)
        self.operator = Hessian(self.objective)
        self.params = list(self.objective.parameters.values())
        self._generator = generator_for(seed, self.objective.space.device)

    @property
    def gradsH(self) -> list[Tensor]:
        """The gradient, one tensor per parameter, also with a ``dataloader``; it has no graph, see ``operator``."""
        return self.objective.space.unflatten(self.objective.gradient())

    def eigenvalues(
        self, maxIter: int = 100, tol: float = 1e-3, top_n: int = 1
    ) -> tuple[list[float], list[list[Tensor]]]:
        """The ``top_n`` eigenvalues of largest magnitude, as they descend in it, and their unit eigenvectors.

        By Lanczos, which takes fewer products than power iteration. It stops when ``|H v - theta v| <= tol |theta|``
        for all of them; PyHessian does when two successive values agree to ``tol``, which now and then they do far
        from an eigenvalue (12 % off in one of 100 seeds).

        Args:
            maxIter: products to spend, for each of the eigenvalues.
            tol: relative residual; what the dtype cannot reach is not asked for.
            top_n: how many.

        Returns:
            Values, and per value a list with one tensor per parameter.

        Raises:
            SettingError: if an argument means nothing.
            NonFiniteError: if a product is NaN or infinite.
        """
        check_count("maxIter", maxIter)
        check_count("top_n", top_n)
        least = self.operator.space.rounding
        found = top_eigenpairs(
            self.operator, top_n, which="LM", tol=min(max(tol, least), 0.5), max_matvecs=maxIter * top_n,
            seed=self._generator,
        )  # fmt: skip
        vectors = [self.objective.space.unflatten(v) for v in found.vectors.T.contiguous()]
        return found.values.tolist(), vectors

    def trace(self, maxIter: int = 100, tol: float = 1e-3) -> list[float]:
        """Samples ``z'Hz`` of the trace (Hutchinson), z of random signs; their mean is the estimate.

        It stops when the 95 % interval of the mean is ``tol`` of it to either side, mostly at ``maxIter``; PyHessian
        does when one sample moves the mean by less than ``tol``, by luck, so that it often spends less and errs by
        up to a quarter. `losscope.landscape.trace` has the same accuracy for a fraction of the products.

        Args:
            maxIter: most samples, of one product each.
            tol: half-width of the interval, relative.

        Raises:
            SettingError: if ``maxIter`` is no positive integer.
            NonFiniteError: if a product is NaN or infinite.
        """
        check_count("maxIter", maxIter)
        operator, samples, moments = Observed(self.operator), list[float](), Moments()
        with operator.held():
            operator.plan(maxIter, min(_FIRST, maxIter))
            while len(samples) < maxIter:
                block = min(max(4, len(samples) // 4) if samples else _FIRST, maxIter - len(samples))
                for some in parts(block, operator.space):
                    Z = operator.space.random(some.stop - some.start, self._generator, "rademacher")
                    samples += (Z * (operator @ Z)).sum(dim=0, dtype=torch.float64).tolist()
                moments.add(torch.tensor([samples[-block:]], dtype=torch.float64))
                low, high = moments.interval(0.95, skewed=True)
                if float(high - low) / 2 <= tol * abs(float(moments.mean)):
                    break
        return samples

    def density(self, iter: int = 100, n_v: int = 1) -> tuple[list[list[np.float32]], list[list[np.float32]]]:
        """Nodes and weights of the spectral density, for ``n_v`` random vectors by ``iter`` Lanczos steps each.

        Weights are real and sum to 1 in each run; PyHessian has complex ones. Nodes ascend, and PyHessian's have no
        order. Where the spectrum has fewer than ``iter`` eigenvalues to find, the rest of a run are nodes of weight
        0. Start vectors are Gaussian, not of random signs: their weights have a known law.

        Args:
            iter: steps.
            n_v: runs; how far they are apart is all that tells how far off they are, so that one tells nothing.

        Returns:
            Nodes and weights, each ``n_v`` lists of ``iter`` numbers.

        Raises:
            SettingError: if an argument means nothing.
            NonFiniteError: if a product is NaN or infinite.
        """
        check_count("iter", iter)
        check_count("n_v", n_v)
        nodes, weights = [], []
        for start in quadratures(Observed(self.operator), n_v, iter, self._generator):
            missing = iter - len(start.nodes)
            nodes.append(list(np.pad(start.nodes.numpy(), (0, missing), mode="edge").astype(np.float32)))
            weights.append(list(np.pad(start.weights.numpy(), (0, missing)).astype(np.float32)))
        return nodes, weights
