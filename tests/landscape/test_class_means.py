"""The parts of the Gauss-Newton matrix that classes make, against their definition with one loop per sample."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from class_cases import CASES, Case, batches, by_definition, distance, matrix, tokens, uneven
from landscape_cases import mlp, selected
from losscope.landscape import (
    ClassParts,
    GaussNewton,
    LossError,
    Objective,
    SettingError,
    class_parts,
    class_structure,
    top_eigenpairs,
    trace,
)
from output_cases import build

F64 = torch.float64


@pytest.mark.parametrize("make", CASES)
def test_parts_match_their_definition(make: Callable[[], Case]) -> None:
    case = make()
    expected, parts = by_definition(case), class_parts(case.objective())
    G = expected.G.norm()
    assert float((expected.of_class + expected.cross - expected.pairs).norm()) <= 1e-13 * float(G)
    for found, exact in (
        (parts.class_part, expected.of_class),
        (parts.cross_part, expected.cross),
        (parts.pair_part, expected.pairs),
        (parts.within_part, expected.G - expected.pairs),
    ):
        assert exact.norm() >= 1e-3 * G
        assert float((matrix(found) - exact).norm()) <= 1e-13 * float(G)


@pytest.mark.parametrize("dtype", [F64, torch.float32], ids=["double", "single"])
@pytest.mark.parametrize(
    "name",
    [
        "uneven_batches", "class_weights", "functional_label_smoothing", "token_weights_criterion", "batchnorm_train",
        "multihead_attention", "frozen_parameters", "unused_parameters", "shifted_language_model", "convolution",
        "smoothing_weights_and_ignored", "cross_entropy_reduced_by_hand",
    ],
)  # fmt: skip
def test_parts_add_up_to_the_gauss_newton_matrix(name: str, dtype: torch.dtype) -> None:
    objective = build(name, dtype).objective()
    parts = class_parts(objective)
    of_class, cross, within = (matrix(p).double() for p in (parts.class_part, parts.cross_part, parts.within_part))
    G = matrix(GaussNewton(objective)).double()
    assert distance(of_class + cross + within, G) <= (1e-13 if dtype == F64 else 1e-6)
    for part in (of_class, cross, within):
        torch.testing.assert_close(part, part.T, rtol=0, atol=(1e-14 if dtype == F64 else 1e-6) * float(G.norm()))
        assert torch.linalg.eigvalsh(part)[0] >= -(1e-14 if dtype == F64 else 1e-6) * G.norm()


@pytest.mark.parametrize("make", [uneven, tokens])
def test_ranks(make: Callable[[], Case]) -> None:
    """One direction for each class, and C - 2 more for the pairs of each."""
    parts = class_parts(make().objective())
    C, n = (3, parts.class_part.shape[0]) if make is uneven else (7, parts.class_part.shape[0])

    def rank(A: Tensor) -> int:
        return int((torch.linalg.eigvalsh(A) > 1e-12 * A.norm()).sum())

    classes = len(set(make().labels.tolist()))
    assert rank(matrix(parts.class_part)) == classes
    assert rank(matrix(parts.cross_part)) <= classes * (C - 2) < n
    assert rank(matrix(parts.pair_part)) <= classes * (C - 1)


def test_parts_follow_the_parameters_and_the_weights_of_samples() -> None:
    case = uneven()
    objective = case.objective()
    parts = class_parts(objective)
    before = matrix(parts.pair_part)
    with torch.no_grad():
        for p in case.model.parameters():
            p.mul_(1.3)
    assert distance(matrix(parts.pair_part), by_definition(case).pairs) <= 1e-12
    assert distance(before, by_definition(case).pairs) >= 1e-2
    weights = torch.arange(13.0) % 3
    case.masses = case.masses * weights
    found = class_parts(objective.weighted(weights.double()))
    assert distance(matrix(found.class_part), by_definition(case).of_class) <= 1e-12
    assert distance(matrix(found.within_part), (d := by_definition(case)).G - d.pairs) <= 1e-12


def test_estimators_take_the_parts() -> None:
    case = tokens()
    parts, exact = class_parts(case.objective()), by_definition(case)
    found = trace(parts.within_part, seed=0)
    assert found.low <= float((exact.G - exact.pairs).trace()) <= found.high
    pairs = top_eigenpairs(parts.class_part, k=3, tol=1e-6, seed=0)
    torch.testing.assert_close(pairs.values, torch.linalg.eigvalsh(exact.of_class).flip(0)[:3], rtol=1e-8, atol=0)
    names = [name for name, p in case.model.named_parameters() if p.ndim == 1]
    rows = torch.cat([torch.full((p.numel(),), p.ndim == 1) for p in selected(case.model)])
    block = parts.cross_part.restricted(lambda name, _: name in names)
    assert distance(matrix(block), exact.cross[rows][:, rows]) <= 1e-12


def test_single_precision_where_the_fit_is_perfect() -> None:
    """Right classes have probabilities of nearly 1, whose distance to 1 single precision does not hold."""
    case = uneven()
    with torch.no_grad():
        for p in case.model[-1].parameters():
            p.mul_(300)
        case.labels.copy_(case.logits(case.model).argmax(1))
    case.data = list(zip([x for x, _ in case.data], case.labels.split([7, 5, 1]), strict=True))
    exact = by_definition(case)
    assert float(exact.pi.diagonal().sum()) > 1 - 1e-3 and float(exact.pi[exact.pi > 0].min()) < 1e-7
    case.model.float()
    case.data = [(x.float(), y) for x, y in case.data]
    parts = class_parts(case.objective())
    assert distance(matrix(parts.class_part).double(), exact.of_class) <= 1e-4
    assert distance(matrix(parts.cross_part).double(), exact.cross) <= 1e-4
    assert distance(matrix(parts.within_part).double(), exact.G - exact.pairs) <= 1e-4


# --------------------------------------------------------------------------- bad input


def refused(criterion: Any, data: Any = None, model: nn.Module | None = None) -> ClassParts:
    data = batches([6]) if data is None else data
    return class_parts(Objective(mlp(4, 3).double() if model is None else model, data, criterion=criterion))


def test_a_loss_fn_hides_the_outputs() -> None:
    objective = Objective(mlp(4, 3).double(), batches([6]), loss_fn=lambda m, b: F.cross_entropy(m(b[0]), b[1]))
    with pytest.raises(LossError, match="loss_fn"):
        class_parts(objective)


@pytest.mark.parametrize(
    ("criterion", "message"),
    [
        (lambda z, y: F.mse_loss(z, F.one_hot(y, 3).double()), "it uses mse_loss"),
        (lambda z, y: F.cross_entropy(z, y) + z.square().mean(), "not seen to be made of that"),
        (lambda z, y: F.cross_entropy(z, y) + F.mse_loss(z, z.detach()), "it uses mse_loss"),
        (lambda z, y: F.nll_loss(z.log_softmax(1), y), "can return its logits"),
        (lambda z, y: F.cross_entropy(z, y).square(), "softmax cross-entropy .* on the model's logits"),
    ],
)
def test_criteria_without_classes(criterion: Any, message: str) -> None:
    with pytest.raises(SettingError, match=message):
        refused(criterion)


def test_targets_that_are_no_classes() -> None:
    data = [(batches([6])[0][0], torch.rand(6, 3).double().softmax(1))]
    with pytest.raises(SettingError, match=r"the targets are probabilities; give class indices, .*argmax"):
        refused(nn.CrossEntropyLoss(), data)
    found = class_parts(
        Objective(
            mlp(4, 3).double(), data, criterion=nn.CrossEntropyLoss(), targets=lambda b: b[1].argmax(1),
            forward=lambda m, b: m(b[0]),
        )
    )  # fmt: skip
    assert matrix(found.class_part).norm() > 0  # what the message advises


@pytest.mark.parametrize(
    ("targets", "says", "given"),
    [
        (None, "must be Tensor, not NoneType", "NoneType"),
        (torch.tensor([0, 1, 5]), "Target 5 is out of bounds", r"torch.int64 tensor \(3,\)"),
        (torch.tensor([0, -1, 2]), "Target -1 is out of bounds", r"torch.int64 tensor \(3,\)"),
        (torch.tensor([0.0, 1.0, 2.0]), "got Float", r"torch.float32 tensor \(3,\)"),
        (torch.tensor([[0], [1], [2]]), "multi-target not supported", r"torch.int64 tensor \(3, 1\)"),
    ],
)
@pytest.mark.parametrize("measure", [class_parts, class_structure])
def test_targets_that_the_criterion_does_not_take(measure: Any, targets: Any, says: str, given: str) -> None:
    objective = Objective(nn.Linear(2, 3), [(torch.ones(3, 2), targets)], criterion=nn.CrossEntropyLoss())
    expected = r"logits of shape \(3, 3\): torch.int64 of shape \(3,\), from 0 to 2"
    with pytest.raises(SettingError, match=f"does not take the targets: .*{says}.*; given are {given}, .*{expected}"):
        measure(objective)


def test_negative_weights() -> None:
    objective = Objective(mlp(4, 3).double(), batches([6]), criterion=nn.CrossEntropyLoss())
    with pytest.raises(SettingError, match="negative weight"):
        class_parts(objective.weighted(-torch.ones(6).double()))


def test_a_vocabulary_is_too_large() -> None:
    data = [(torch.randn(2, 4).double(), torch.tensor([0, 8999]))]
    with pytest.raises(SettingError, match=r"9000 classes have 81000000 pairs, .*at most 8192"):
        refused(nn.CrossEntropyLoss(), data, nn.Linear(4, 9000).double())


class Shrinking(nn.Module):
    """A head over as many classes as a batch has samples."""

    def __init__(self) -> None:
        super().__init__()
        self.rows = nn.Linear(4, 3, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.rows(x)[:, : len(x) // 2]


def test_batches_over_different_classes() -> None:
    data = [(x, y.clamp(max=1)) for x, y in batches([6, 4])]
    with pytest.raises(SettingError, match="must be over the same classes, got 3 and 2"):
        refused(nn.CrossEntropyLoss(), data, Shrinking().double())
