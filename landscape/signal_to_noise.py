r"""Two signal-to-noise ratios of gradients, which share a name in the literature and are unrelated.

* Of a parameter, over samples (GSNR; J. Liu, G. Jiang, Y. Bai, T. Chen and H. Wang, "Understanding why neural networks
  generalize well through GSNR of parameters", arXiv 2001.07384): :math:`r_j = (E_i\, g_{ij})^2 / \mathrm{Var}_i\,
  g_{ij}`. It says how well samples agree.
* Of a tensor, over its entries (g-SNR of SGD-SaI; M. Xu et al., "No more Adam: learning rate scaling at
  initialization is all you need", arXiv 2412.11768): :math:`\|g\|_2 / (\mathrm{std}(g) + 10^{-8})` of the mean
  gradient alone. For entries of mean zero it is about the root of their number, whatever samples say.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from scipy.special import ndtri
from torch import Tensor

from .errors import DataError
from .html_table import Shown
from .intervals import Moments
from .noise_scale import check_confidence
from .objective import Objective
from .sample_gradients import per_sample_gradients, refuse_another_mean

__all__ = ["ParameterSignal", "parameter_signal", "tensor_signal"]

_EPS = 1e-8  # of SGD-SaI


@dataclass(frozen=True, eq=False)
class ParameterSignal(Shown):
    """The gradient signal-to-noise ratio of each parameter, over samples.

    Attributes:
        values: (n,) squared mean over variance of the samples' gradients; NaN where both are zero.
        low: (n,) lower ends of the intervals.
        high: (n,) upper ends.
        confidence: nominal coverage of each by itself.
        means: mean of the finite values, by the name of the parameter.
        samples: how many.
    """

    values: Tensor
    low: Tensor
    high: Tensor
    confidence: float
    means: Mapping[str, float]
    samples: int

    def __repr__(self) -> str:
        """The means by parameter."""
        means = ", ".join(f"{name} {mean:.3g}" for name, mean in self.means.items())
        return f"ParameterSignal({means}; {self.samples} samples)"


def parameter_signal(objective: Objective, *, confidence: float = 0.95, memory: int | None = None) -> ParameterSignal:
    r"""GSNR: squared mean over variance of each parameter's gradient, over the samples of the data.

    The interval is that of the population's ratio, by the normal approximation to :math:`t_j = \sqrt{K} \bar g_j /
    s_j`: from :math:`(\max(0, |t| - z))^2 / K` to :math:`(|t| + z)^2 / K`. The value itself is, where the mean
    is zero, 1 / K on average and not 0.

    Args:
        objective: the loss on all samples.
        confidence: nominal coverage.
        memory: bytes that gradients may take.

    Raises:
        SettingError: if an argument means nothing, or samples have weights.
        DataError: if there are fewer than 2 samples, or batches cannot be cut into samples.
        LossError: if the samples' gradients do not average to the objective's, as with weighted classes.
        NonFiniteError: if a gradient is NaN or infinite.

    Example:
        >>> import torch
        >>> from losscope.landscape import Objective
        >>> from losscope.landscape.signal_to_noise import parameter_signal
        >>> model = torch.nn.Linear(1, 1, bias=False)
        >>> _ = torch.nn.init.zeros_(model.weight)
        >>> data = (torch.ones(3, 1), torch.tensor([[1.0], [2.0], [3.0]]))
        >>> parameter_signal(Objective(model, data, criterion=torch.nn.MSELoss())).values  # g = -2, -4, -6: 16 / 4
        tensor([4.])
    """
    check_confidence(confidence)
    gradients = per_sample_gradients(objective, memory=memory)
    K = len(gradients)
    if K < 2:
        raise DataError("the noise of gradients is their spread over samples: 1 in the data shows none, pass more")
    moments = Moments()
    for block in gradients:
        moments.add(block.T)
    mean, spread = moments.mean, moments.spread
    length = math.sqrt(float((mean.square() + spread.square()).sum(dtype=torch.float64)))
    refuse_another_mean(mean - objective.gradient(), length)
    t = math.sqrt(K) * mean.abs() / spread
    z = float(ndtri((1 + confidence) / 2))
    values = t.square() / K
    low, high = ((t - z).clamp(min=0).square() / K, (t + z).square() / K)
    pieces = zip(objective.space.names, values.split(objective.space.numels), strict=True)
    means = {name: float(piece[piece.isfinite()].double().mean()) for name, piece in pieces}
    return ParameterSignal(values, low, high, confidence, means, K)


def tensor_signal(gradients: Mapping[str, Tensor]) -> dict[str, float]:
    r"""g-SNR of SGD-SaI: the length of each tensor over the standard deviation of its entries.

    SGD-SaI takes it once, of the first gradient, divides by the largest and multiplies the tensor's rate by it. It is
    a number of the gradient given, without error; a tensor of one entry has no standard deviation, which counts as 0
    there and here.

    Args:
        gradients: tensors by name, such as ``{name: p.grad}``.

    Example:
        >>> import torch
        >>> from losscope.landscape.signal_to_noise import tensor_signal
        >>> found = tensor_signal({"weight": torch.tensor([3.0, 4.0, 0.0])})
        >>> round(found["weight"], 3)  # 5 / std = 5 / 2.0817
        2.402
    """
    found = {}
    for name, gradient in gradients.items():
        g = gradient.detach().double()
        spread = float(g.std()) if g.numel() > 1 else 0.0
        found[name] = float(g.norm()) / (spread + _EPS)
    return found
