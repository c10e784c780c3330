"""Stability: optimizers' thresholds (see `thresholds`), the mini-batch criterion S_mu, what a ratio lets one say."""

from __future__ import annotations

import dataclasses
import functools
import math

import torch
from torch import Tensor, nn

from .critical_sharpness import critical_sharpness
from .errors import SettingError
from .linearised import linearised_rows
from .mean_estimates import Accuracy, Mean
from .mean_square import mean_square_threshold
from .minibatch_draws import MinibatchDraws
from .minibatch_sharpness import MinibatchSharpness, minibatch_sharpness
from .objective import Objective
from .optimizer_rules import Rule, register_rule
from .results import Estimate
from .space import generator_for
from .step_metric import step_decay, step_preconditioner
from .thresholds import Threshold, stability_threshold

__all__ = [
    "MinibatchSharpness",
    "Rule",
    "Threshold",
    "critical_sharpness",
    "judge",
    "linearised_rows",
    "loss_family",
    "mean_square_threshold",
    "minibatch_index",
    "minibatch_sharpness",
    "outputs_per_sample",
    "register_rule",
    "stability_threshold",
    "step_decay",
    "step_preconditioner",
]


# --------------------------------------------------------------------------- the mini-batch criterion


def minibatch_index(
    objective: Objective,
    batch_size: int,
    *,
    loss: float | None = None,
    rtol: float = 0.1,
    min_draws: int = 20,
    max_draws: int = 200,
    confidence: float = 0.95,
    seed: int | torch.Generator | None = None,
) -> Estimate:
    r"""The mini-batch stability index :math:`S_\mu = E\|g_B\|^2 / (2L)`, to be compared with 2/lr.

    In the linear model with squared loss and interpolation, :math:`E\|\theta-\theta^*\|^2` of SGD
    decreases if and only if :math:`\eta\,E\|g_B\|^2 \le 4L`. At batch size 1 this is the alignment
    :math:`\mu` times :math:`\mathrm{tr} H`, so it is the form of Wu and Su's :math:`\mathrm{tr} H \le 2/\eta`
    that holds for any number of outputs. `minibatch_sharpness` gives it from the same draws as all the rest.

    Args:
        objective: the objective; mini-batches are drawn from its data without replacement, those of a summed loss
            scaled up to all samples.
        batch_size: the size B of training's mini-batches.
        loss: the objective's value, if it is known already.
        rtol: stop when the half-width of the interval is below ``rtol * value``.
        min_draws: mini-batch gradients before the first look.
        max_draws: most mini-batch gradients.
        confidence: nominal coverage of the interval: Student's, corrected for skewness.
        seed: int, generator, or None.

    Returns:
        S_mu in units of curvature, with its interval; ``matvecs`` counts mini-batch gradients.

    Raises:
        SettingError: if ``batch_size`` is not below the number of samples.
        DataError: if the batches cannot be cut into samples.
    """
    draws = MinibatchDraws(objective, batch_size, generator_for(seed, torch.device("cpu")), products=False)
    if isinstance(batch_size, bool) or not isinstance(batch_size, int) or not 1 <= batch_size < draws.samples:
        raise SettingError(
            f"S_mu needs mini-batches smaller than the data ({draws.samples} samples), got {batch_size!r}"
        )
    loss = objective.value() if loss is None else loss
    accuracy, wanted = Accuracy(rtol, confidence), min_draws
    while True:
        draws.draw(wanted)
        squares = Mean(draws.forms.square)
        if accuracy.shortage(squares) <= 1 or wanted >= max_draws:
            found = accuracy.of(squares * (1 / (2 * loss) if loss > 0 else math.nan))
            converged = accuracy.shortage(squares) <= 1
            return dataclasses.replace(found, method="minibatch gradients", converged=converged, kernel="gradient")
        wanted = min(max_draws, wanted + max(10, wanted // 2))


# --------------------------------------------------------------------------- what the theory assumes


def outputs_per_sample(objective: Objective) -> int | None:
    """Number of scalar outputs per sample of the first batch; None if the outputs are hidden."""
    if objective.loss.criterion is None:
        return None
    with objective.isolated(), torch.no_grad():
        outputs = objective.outputs(0)
    if not isinstance(outputs, Tensor) or outputs.ndim == 0 or outputs.shape[0] == 0:
        return None
    return outputs.numel() // outputs.shape[0]


_CROSS_ENTROPY_MODULES = (nn.CrossEntropyLoss, nn.NLLLoss, nn.BCEWithLogitsLoss, nn.BCELoss)
_CROSS_ENTROPY_FUNCTIONS = (
    nn.functional.cross_entropy, nn.functional.nll_loss, nn.functional.binary_cross_entropy,
    nn.functional.binary_cross_entropy_with_logits,
)  # fmt: skip


def loss_family(objective: Objective) -> str:
    """``"squared"``, ``"cross-entropy"``, ``"other"`` or ``"unknown"`` (outputs hidden, or not a tensor).

    A criterion that torch does not name is tried: the squared loss, in whatever scaling, is the one whose
    third difference along a line in output space vanishes while its second does not.
    """
    criterion = objective.loss.criterion
    if criterion is None:
        return "unknown"
    named = criterion.func if isinstance(criterion, functools.partial) else criterion
    if isinstance(named, _CROSS_ENTROPY_MODULES) or named in _CROSS_ENTROPY_FUNCTIONS:
        return "cross-entropy"
    with objective.isolated(), torch.no_grad():
        outputs = objective.outputs(0)
        if not isinstance(outputs, Tensor) or not outputs.is_floating_point():
            return "unknown"
        targets = objective.loss.targets_of(objective.batches[0].content)
        if isinstance(targets, Tensor) and targets.is_floating_point():
            targets = targets.double()
        base = outputs.double()
        noise = torch.randn(base.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        step = noise.to(base.device) * (1 + base.abs().mean())
        try:
            at = [float(criterion(base + t * step, targets)) for t in range(4)]
        except Exception:
            return "unknown"  # a criterion that insists on its own dtype
    scale = max(map(abs, at))
    third = at[3] - 3 * at[2] + 3 * at[1] - at[0]
    second = at[2] - 2 * at[1] + at[0]
    return "squared" if abs(third) <= 1e-9 * scale and second > 1e-6 * scale else "other"


# --------------------------------------------------------------------------- verdicts


def judge(
    ratio: float | None, low: float | None, high: float | None, *, necessary: bool, oscillates: bool | None
) -> str:
    """What a ratio measured/threshold with its interval lets one say; never that a run is "safe".

    Args:
        ratio: the measured ratio.
        low: its lower bound; None where there is none.
        high: its upper bound; None where there is none.
        necessary: whether the criterion is only necessary: then to hold excludes nothing.
        oscillates: whether oscillation was observed; None where nobody looked.

    Returns:
        ``BELOW_EDGE`` (``NOT_EXCLUDED`` for a necessary criterion) when the whole interval is below
        0.9, ``ABOVE_EDGE`` when it is above 1.1, ``AT_EDGE`` when the ratio is between them and
        oscillation was seen, ``NEAR_EDGE_NO_OSCILLATION`` when not, else ``INCONCLUSIVE``.
    """
    if ratio is None or not math.isfinite(ratio):
        return "INCONCLUSIVE"
    low = -math.inf if low is None else low
    high = math.inf if high is None else high
    if low > 1.1:
        return "ABOVE_EDGE"
    if high < 0.9:
        return "NOT_EXCLUDED" if necessary else "BELOW_EDGE"
    if 0.9 <= ratio <= 1.1 and low >= 0.8 and high <= 1.2:
        return "AT_EDGE" if oscillates else "NEAR_EDGE_NO_OSCILLATION"
    return "INCONCLUSIVE"
