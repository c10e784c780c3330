"""Cross-entropy in many ways, and the parts that classes make of its Gauss-Newton matrix, one sample at a time.

Logits, masses and classes of the predictions are written by hand; nothing is shared with the package.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from landscape_cases import IGNORED, LanguageModel, labelled, mlp, padded, selected
from losscope.landscape import Objective
from output_cases import dense_jacobian

F64 = torch.float64


@dataclass
class Case:
    """A model and its predictions: logits (N, C) in order, the mass and the class of each, all written by hand."""

    model: nn.Module
    data: Any
    options: dict[str, Any]
    logits: Callable[[nn.Module], Tensor]
    masses: Tensor
    labels: Tensor

    def objective(self) -> Objective:
        return Objective(self.model, self.data, **self.options)


def batches(sizes: list[int], classes: int = 3) -> list[tuple[Tensor, Tensor]]:
    torch.manual_seed(sum(sizes))
    return [(x.double(), y) for x, y in labelled(sizes, classes=classes)]


def plain(sizes: list[int], criterion: Any, mass: Callable[[Tensor], Tensor], scale: float = 1.0) -> Case:
    data = batches(sizes)
    torch.manual_seed(1)
    labels = torch.cat([y for _, y in data])
    return Case(
        mlp(4, 6, 3).double(), data, {"criterion": criterion},
        lambda model: scale * torch.cat([model(x) for x, _ in data]), mass(labels), labels,
    )  # fmt: skip


def mean(labels: Tensor) -> Tensor:
    return torch.full((len(labels),), 1 / len(labels), dtype=F64)


def uneven() -> Case:
    return plain([7, 5, 1], nn.CrossEntropyLoss(), mean)


def summed() -> Case:
    return plain([6, 2], nn.CrossEntropyLoss(reduction="sum"), lambda y: torch.ones(len(y), dtype=F64))


def weighted_and_smoothed() -> Case:
    """The mass of a sample is the sum of its target distribution, over the sum of the targets' weights."""
    weight = torch.tensor([1.0, 4.0, 0.25], dtype=F64)

    def mass(y: Tensor) -> Tensor:
        return (0.8 * weight[y] + 0.2 * weight.mean()) / weight[y].sum()

    return plain([9], nn.CrossEntropyLoss(weight=weight, label_smoothing=0.2), mass)


def in_a_lambda() -> Case:
    return plain([9], lambda z, y: 3 * F.cross_entropy(z / 2, y) + 1, lambda y: 3 * mean(y), scale=0.5)


def absent_class() -> Case:
    case = plain([5, 4], nn.CrossEntropyLoss(), mean)
    case.labels[case.labels == 1] = 2
    case.data = [(case.data[0][0], case.labels[:5]), (case.data[1][0], case.labels[5:])]
    return case


def tokens() -> Case:
    """A language model with ignored targets: tokens are the samples."""
    torch.manual_seed(3)
    model, data = LanguageModel().double(), [padded([4, 2]), padded([3])]
    labels = torch.cat([b["labels"].flatten() for b in data])
    kept = labels != IGNORED
    options = {
        "forward": lambda m, b: m(b["input_ids"]).transpose(1, 2),
        "targets": lambda b: b["labels"],
        "criterion": nn.CrossEntropyLoss(ignore_index=IGNORED),
    }

    def logits(m: nn.Module) -> Tensor:
        return torch.cat([m(b["input_ids"]).reshape(-1, 7) for b in data])[kept]

    return Case(model, data, options, logits, mean(labels[kept]), labels[kept])


def pixels_with_padding_as_class_zero() -> Case:
    torch.manual_seed(4)
    model, x, y = nn.Conv2d(1, 3, 3, padding=1).double(), torch.randn(2, 1, 4, 5).double(), torch.randint(3, (2, 4, 5))
    kept = y.flatten() != 0

    def logits(m: nn.Module) -> Tensor:
        return m(x).permute(0, 2, 3, 1).reshape(-1, 3)[kept]

    options = {"criterion": nn.CrossEntropyLoss(ignore_index=0)}
    return Case(model, (x, y), options, logits, mean(y.flatten()[kept]), y.flatten()[kept])


class TwoHeads(nn.Module):
    """A head, and an auxiliary one earlier, as deep classifiers have in training."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.early, self.late = nn.Linear(4, 5), nn.Linear(5, 3), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        h = self.body(x).tanh()
        return self.early(h), self.late(h.square())


def two_heads() -> Case:
    (x, y), model = batches([8])[0], TwoHeads().double()

    def criterion(z: tuple[Tensor, Tensor], y: Tensor) -> Tensor:
        return 0.3 * F.cross_entropy(z[0], y) + F.cross_entropy(z[1], y)

    return Case(
        model, (x, y), {"criterion": criterion}, lambda m: torch.cat(m(x)), torch.cat([0.3 * mean(y), mean(y)]),
        torch.cat([y, y]),
    )  # fmt: skip


CASES = [
    *(uneven, summed, weighted_and_smoothed, in_a_lambda, absent_class),
    *(tokens, pixels_with_padding_as_class_zero, two_heads),
]


@dataclass
class ByDefinition:
    """The parts by their formulas, one vector at a time."""

    G: Tensor
    pairs: Tensor
    of_class: Tensor
    cross: Tensor
    pi: Tensor
    means: dict[tuple[int, int], Tensor]
    class_means: dict[int, Tensor]


def by_definition(case: Case) -> ByDefinition:
    z = case.logits(case.model)
    N, C = z.shape
    J = dense_jacobian(z.flatten(), selected(case.model)).view(N, C, -1)
    p = z.detach().softmax(1)
    n = J.shape[2]
    G, pairs, of_class, cross = (torch.zeros(n, n, dtype=F64) for _ in range(4))
    pi, means, class_means = torch.zeros(C, C, dtype=F64), {}, {}
    for i in range(N):
        G += case.masses[i] * J[i].T @ (torch.diag(p[i]) - torch.outer(p[i], p[i])) @ J[i]
    for c in set(case.labels.tolist()):
        inside = (case.labels == c).nonzero().flatten().tolist()
        for other in range(C):
            e = torch.eye(C, dtype=F64)[other]
            pi[c, other] = sum(case.masses[i] * p[i, other] for i in inside)
            means[c, other] = sum(case.masses[i] * p[i, other] * J[i].T @ (e - p[i]) for i in inside) / pi[c, other]
            pairs += pi[c, other] * torch.outer(means[c, other], means[c, other])
        wrong = [other for other in range(C) if other != c]
        s = sum(pi[c, other] for other in wrong)
        class_means[c] = sum(pi[c, other] * means[c, other] for other in wrong) / s
        of_class += s * torch.outer(class_means[c], class_means[c]) + pi[c, c] * torch.outer(means[c, c], means[c, c])
        for other in wrong:
            away = means[c, other] - class_means[c]
            cross += pi[c, other] * torch.outer(away, away)
    return ByDefinition(G, pairs, of_class, cross, pi, means, class_means)


def matrix(operator: Any) -> Tensor:
    return operator @ torch.eye(operator.shape[0], dtype=operator.space.dtype)


def distance(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm())
