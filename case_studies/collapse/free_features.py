"""Three models whose features are free, or nearly so: what the theory of neural collapse is proved for.

- `unconstrained`: features and classifier minimised together (Zhu et al. 2021, arXiv 2105.02375): collapse is exact.
- `peeled`: the same with classes of different sizes (Fang et al. 2021, arXiv 2101.12699): minorities share a direction.
- `tethered`: features that are held near given ones H_0 (Tirer, Huang & Niles-Weed 2023, arXiv 2210.16658), as a deep
  layer holds the next one: collapse is as close as the tether is loose.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.optim import LBFGS

from losscope.landscape import Collapse, neural_collapse

__all__ = ["Tether", "mean_cosine", "minimiser", "path", "peeled", "unconstrained"]

CLASSES, SIZE, EACH, DECAY = 4, 16, 20, 5e-3
"""Classes, dimensions of the features, samples of each class, weight decay of the classifier."""
F64 = torch.float64


def unconstrained(seed: int) -> Collapse:
    """Features and classifier minimised together, from random ones."""
    generator = torch.Generator().manual_seed(seed)
    features, weight, bias = (
        torch.randn(*shape, generator=generator, dtype=F64).requires_grad_()
        for shape in ((CLASSES * EACH, SIZE), (CLASSES, SIZE), (CLASSES,))
    )

    def loss() -> Tensor:
        ridge = DECAY / 2 * (weight.square().sum() + features.square().sum() / EACH)
        return F.cross_entropy(features @ weight.T + bias, _labels()) + ridge

    _minimise(loss, [features, weight, bias])
    return neural_collapse(features, _labels(), weight=weight, bias=bias)


def _minimise(loss: Callable[[], Tensor], parameters: list[Tensor]) -> None:
    """By L-BFGS, to round-off."""
    optimizer = LBFGS(
        parameters, max_iter=3000, tolerance_grad=1e-12, tolerance_change=1e-18, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        value = loss()
        value.backward()
        return value

    optimizer.step(closure)


def _labels() -> Tensor:
    return torch.arange(CLASSES).repeat_interleave(EACH)


# --------------------------------------------------------------------------- classes of different sizes


def peeled(ratio: float, seed: int, classes: int = 10, decay: float = DECAY) -> float:
    """Mean cosine between the classifier's rows of the smaller half of the classes; -1/(C-1) where all are alike.

    The larger half has ``ratio`` times as many samples. One feature stands for a class: the loss is convex in them, so
    that those of a class coincide at the minimum (their Lemma 1).
    """
    generator = torch.Generator().manual_seed(seed)
    features, weight = (torch.randn(classes, SIZE, generator=generator, dtype=F64).requires_grad_() for _ in range(2))
    counts = torch.ones(classes, dtype=F64)
    counts[: classes // 2] = ratio
    share, labels = counts / counts.sum(), torch.arange(classes)

    def loss() -> Tensor:
        fit = (share * F.cross_entropy(features @ weight.T, labels, reduction="none")).sum()
        return fit + decay / 2 * (weight.square().sum() + features.square().sum()) / classes

    _minimise(loss, [features, weight])
    return mean_cosine(weight.detach()[classes // 2 :])


def mean_cosine(rows: Tensor) -> float:
    """Over all pairs of rows."""
    unit = F.normalize(rows, dim=1)
    return float((unit @ unit.T).triu(1).sum() / (len(rows) * (len(rows) - 1) / 2))


# --------------------------------------------------------------------------- features held near given ones


@dataclass(frozen=True)
class Tether:
    r"""Squared loss with decay and a tether, over features H (n, d) and a classifier W (C, d).

    .. math:: \frac1{2n} \left(|HW^T - Y|^2 + \beta |H - H_0|^2 + \lambda_H |H|^2\right) + \frac{\lambda_W}2 |W|^2

    Attributes:
        beta: the tether's strength.
        decay: of the classifier.
        feature_decay: of the features.
        spread: standard deviation of the given features within a class, their class means having length 1.
    """

    beta: float = 0.1
    decay: float = DECAY
    feature_decay: float = DECAY
    spread: float = 0.2

    def given(self, seed: int) -> Tensor:
        """The features H_0 (n, d) that the tether holds on to: class means drawn anew, and noise about them."""
        generator = torch.Generator().manual_seed(seed)
        means = F.normalize(torch.randn(CLASSES, SIZE, generator=generator, dtype=F64), dim=1)
        noise = torch.randn(CLASSES * EACH, SIZE, generator=generator, dtype=F64) * self.spread
        return means[_labels()] + noise

    def classifier(self, features: Tensor) -> Tensor:
        """The best one for these features, by ridge regression."""
        n = len(features)
        gram = features.T @ features / n + self.decay * torch.eye(SIZE, dtype=F64)
        return torch.linalg.solve(gram, features.T @ _targets() / n).T

    def features(self, weight: Tensor, given: Tensor) -> Tensor:
        """The best ones for this classifier."""
        matrix = weight.T @ weight + (self.beta + self.feature_decay) * torch.eye(SIZE, dtype=F64)
        return torch.linalg.solve(matrix, (_targets() @ weight + self.beta * given).T).T


def _targets() -> Tensor:
    return F.one_hot(_labels(), CLASSES).to(F64)


def quotient(features: Tensor) -> float:
    """tr Sigma_W / tr Sigma_B."""
    return neural_collapse(features, _labels()).nc1_quotient


def path(tether: Tether, seed: int, steps: int = 300, rate: float = 0.1, every: int = 10) -> list[float]:
    """The quotient along gradient descent of the features from the given ones, the classifier the best at each step."""
    given = tether.given(seed)
    H, found = given.clone(), [quotient(given)]
    for step in range(steps):
        W = tether.classifier(H)
        gradient = (H @ W.T - _targets()) @ W + tether.beta * (H - given) + tether.feature_decay * H
        H -= rate * gradient
        if (step + 1) % every == 0:
            found.append(quotient(H))
    return found


def minimiser(tether: Tether, seed: int, rounds: int = 5000) -> tuple[float, float, float]:
    r"""The quotient of the given features, that at the minimum, and the theory's for it.

    At the minimum a feature's distance from its class mean is that of the given one times
    :math:`\beta (W^TW + (\beta + \lambda_H) I)^{-1}`: what is within classes shrinks, most along the classifier.
    """
    given = tether.given(seed)
    H = given.clone()
    for _ in range(rounds):
        W, before = tether.classifier(H), H
        H = tether.features(W, given)
        if (H - before).norm() < 1e-12 * H.norm():
            break
    shrink = tether.beta * torch.linalg.inv(W.T @ W + (tether.beta + tether.feature_decay) * torch.eye(SIZE, dtype=F64))
    means = torch.stack([H[_labels() == c].mean(dim=0) for c in range(CLASSES)])
    within = given - torch.stack([given[_labels() == c].mean(dim=0) for c in range(CLASSES)])[_labels()]
    theory = float((within @ shrink).square().sum() / len(H) / (means - means.mean(dim=0)).square().sum() * CLASSES)
    return quotient(given), quotient(H), theory
