"""Fisher matrices: second moments of the gradients of single samples."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .batches import map_tensors
from .errors import LossError, SettingError
from .gauss_newton import has_negative_weights
from .kernels.jacobian import Evaluated, OutputMetric, ThroughOutputs
from .objective import Objective
from .operators import SymmetricOperator
from .output_curvature import SeenHessian, seen_hessian
from .per_sample import entry_weights, find_terms
from .predictive import Prediction
from .space import generator_for

__all__ = ["EmpiricalFisher", "MonteCarloFisher"]


class _Fisher(SymmetricOperator):
    """A matrix ``sum_b J_b' M_b J_b`` with M_b of one kind."""

    psd = True
    known_symmetric = True

    def __init__(
        self,
        objective: Objective,
        form: Callable[[Evaluated], OutputMetric],
        memory: int | None,
    ) -> None:
        self.objective = objective
        self.space = objective.space
        self._engine: ThroughOutputs[OutputMetric] = ThroughOutputs(objective, [form], memory)
        _ = objective.batches  # reading them is an exchange of its own between ranks
        objective.ranks.gather(lambda: bool(self._engine.first_metric()))  # so that bad input is refused here
        self.kernel = self._engine.name

    def product(self, V: Tensor) -> Tensor:
        """F V, (n, k) -> (n, k)."""
        return self._engine(V)

    def held(self) -> contextlib.AbstractContextManager[None]:
        """One isolation for many products."""
        return self.objective.isolated()


class EmpiricalFisher(_Fisher):
    r"""The second moment of the gradients of the samples' own losses, at the targets of the data.

    .. math:: F = \sum_i \omega_i \, g_i g_i^\top, \qquad \sum_i \omega_i g_i = \nabla L

    with :math:`\sum_i \omega_i = 1` for a mean loss: 1 / N each, or the share of the target's class weight, and 0
    where it is ignored. For a summed loss every :math:`\omega_i` is 1. Away from a perfect fit it is neither the
    Fisher information nor close to the Hessian (Kunstner et al. 2019, "Limitations of the empirical Fisher
    approximation").

    A sample is one entry of the outputs' first dimension as the criterion sees them: a ``forward`` that flattens
    tokens makes tokens the samples, one that returns (sequences, tokens, words) makes sequences the samples.

    Args:
        objective: the objective, with a ``criterion`` that adds over samples.
        weights: (N,), a factor for every sample's term, all batches in order; see `Objective.weighted`.
        memory: bytes that the kept graphs of several batches may take.

    Raises:
        LossError: if the objective has a ``loss_fn``, or its criterion does not add over samples.

    Example:
        >>> import torch
        >>> from losscope.landscape import EmpiricalFisher, Objective
        >>> model = torch.nn.Linear(2, 1, bias=False)
        >>> torch.nn.init.zeros_(model.weight)
        Parameter containing:
        tensor([[0., 0.]], requires_grad=True)
        >>> data = (torch.eye(2), torch.tensor([[1.0], [2.0]]))
        >>> objective = Objective(model, data, criterion=torch.nn.MSELoss())
        >>> EmpiricalFisher(objective) @ torch.eye(2)  # gradients -2 y_i x_i
        tensor([[2., 0.],
                [0., 8.]])
    """

    def __init__(self, objective: Objective, *, weights: Tensor | None = None, memory: int | None = None) -> None:
        objective = objective if weights is None else objective.weighted(weights)
        super().__init__(objective, _sample_moments, memory)
        self.psd = not has_negative_weights(objective)


class _SampleMoments(OutputMetric):
    """``sum_i c_i s_i s_i'`` over samples, with s_i the gradient of sample i's term in its outputs.

    Args:
        gradients: (n, ...) for each output.
        factors: (n,), c_i.
        used: which outputs.
    """

    def __init__(self, gradients: list[Tensor], factors: Tensor, used: list[int]) -> None:
        self._gradients, self._factors, self.used = gradients, factors, used
        self.psd = bool((factors >= 0).all())
        self.bytes = sum(g.untyped_storage().nbytes() for g in gradients)

    def __call__(self, tangents: list[Tensor], pieces: list[Tensor]) -> tuple[list[Tensor], list[Tensor] | None]:
        """``s_i c_i <s_i, w_i>``."""
        products = (_per_sample(w.mul_(g)) for g, w in zip(self._gradients, tangents, strict=True))
        along = self._factors * sum(products, start=torch.zeros_like(self._factors))
        return [g * along.to(g.dtype).reshape(-1, *[1] * (g.ndim - 1)) for g in self._gradients], None


def _sample_moments(seen: Evaluated) -> _SampleMoments:
    assert seen.loss.criterion is not None
    leaves = [t.detach().requires_grad_() for t in seen.tensors]
    outputs, targets = seen.outputs_with([leaf.clone() for leaf in leaves]), seen.targets
    n = seen.loss.samples_of(seen.batch)
    terms = seen.loss.terms or find_terms(seen.loss.criterion, outputs, targets, n)
    values = terms(outputs, targets)
    found = torch.autograd.grad(values.sum(), leaves, allow_unused=True)
    used = [i for i, g in enumerate(found) if g is not None]
    gradients = [g for g in found if g is not None]
    for gradient in gradients:
        if gradient.ndim == 0 or gradient.shape[0] != n:
            raise LossError(
                f"the criterion uses an output of shape {tuple(gradient.shape)}, which has no first dimension of "
                f"{n} samples, so that they have no gradients of their own; let forward= return one entry per sample"
            )
    with torch.no_grad():
        shares = _shares(seen, values.detach(), outputs, targets)
        factors = torch.where(shares > 0, seen.share / shares, 0.0).to(seen.objective.space.dtype)
        if seen.weights is not None:
            factors = factors * seen.weights
    return _SampleMoments(gradients, factors, used)


def _shares(seen: Evaluated, terms: Tensor, outputs: Any, targets: Any) -> Tensor:
    """The omega of each sample within its batch, (n,): what its term is its own loss times."""
    n = len(terms)
    if seen.loss.summed or _adds(seen, terms, outputs, targets):
        return torch.ones_like(terms)
    known = entry_weights(seen.loss.criterion, targets)
    if known is None:
        return torch.full_like(terms, 1 / n)
    known = known.to(terms.dtype)
    return _per_sample(known) / known.sum()


def _adds(seen: Evaluated, terms: Tensor, outputs: Any, targets: Any) -> bool:
    """Whether the loss of one batch is a sum that does not say so: a sample alone has the loss that is its term.

    Of several batches the objective has seen it itself.
    """
    n = len(terms)
    if len(seen.objective.batches) > 1 or n < 2 or seen.loss.weight is not None:
        return False
    i = int(terms.abs().argmax())

    def alone(tensor: Tensor) -> Tensor:
        return tensor[i : i + 1] if tensor.ndim and tensor.shape[0] == n else tensor

    assert seen.loss.criterion is not None
    value = float(seen.loss.criterion(map_tensors(outputs, alone), map_tensors(targets, alone)))
    return math.isclose(value, float(terms[i]), rel_tol=1e-4)


def _per_sample(tensor: Tensor) -> Tensor:
    """(n, ...) -> (n,), by summing."""
    return tensor.flatten(1).sum(1) if tensor.ndim > 1 else tensor


# --------------------------------------------------------------------------- drawn targets


class MonteCarloFisher(_Fisher):
    r"""The Fisher information with targets drawn from the model's own prediction.

    .. math:: F = \frac1S \sum_s \sum_i m_i \, J_i^\top r_{is} r_{is}^\top J_i, \qquad \mathbb{E}[F] = G

    with :math:`r_{is}` the gradient of a prediction's loss in its outputs at a drawn target, and G the matrix of
    `GaussNewton`: classes for cross-entropy, independent labels for binary cross-entropy on logits, Gaussian
    targets for squared error (Martens 2020, "New insights and perspectives on the natural gradient method").
    Its rank is at most S times the number of predictions.

    Targets are drawn once: the operator is one fixed matrix.

    Args:
        objective: the objective, with a ``criterion`` that is one of these, inside a lambda too.
        samples: S, the number of targets drawn for each prediction.
        seed: of the draws, which come from a generator of their own; None for fresh entropy.
        memory: bytes that the kept graphs of several batches may take.

    Raises:
        SettingError: if the criterion is not seen to be one of these, or gives a prediction a negative weight.
        LossError: if the objective has a ``loss_fn``, which hides the outputs.
    """

    def __init__(
        self,
        objective: Objective,
        *,
        samples: int = 1,
        seed: int | torch.Generator | None = None,
        memory: int | None = None,
    ) -> None:
        if isinstance(samples, bool) or not isinstance(samples, int) or samples < 1:
            raise SettingError(f"samples must be a whole number, at least 1, got {samples!r}")
        own = generator_for(seed, objective.space.device)
        base = int(torch.randint(2**62, (), generator=own, device=own.device))

        def form(seen: Evaluated) -> SeenHessian:
            found = seen_hessian(seen)
            if found is None or not found.psd:
                raise SettingError(_why_not_drawn(found))
            index = seen.objective.first_index + seen.index
            generator = torch.Generator(seen.objective.space.device).manual_seed((base + index) % 2**63)

            def draw(prediction: Prediction) -> Callable[[Tensor], Tensor]:
                return prediction.draw(samples, generator)

            return found.replaced(draw)

        super().__init__(objective, form, memory)
        self.samples = samples


def _why_not_drawn(found: SeenHessian | None) -> str:
    if found is not None:
        return (
            "targets cannot be drawn for predictions with a negative weight; use GaussNewton, which is the same in "
            "expectation"
        )
    return (
        "targets can be drawn from the model's prediction for F.cross_entropy, F.binary_cross_entropy_with_logits and "
        "F.mse_loss (also as modules, inside lambdas, and in sums); the criterion is not seen to be made of these. "
        "Use GaussNewton, which takes any criterion, or EmpiricalFisher"
    )
