"""The denominator of a batch's mean, and the forms a loss may be given in."""

import functools
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from losscope.landscape import DataError, LossError, SettingError
from losscope.landscape.loss import Loss

X = torch.ones(4, 3)
TOKENS = torch.tensor([0, 1, 2, -100])
WEIGHTS = torch.tensor([1.0, 2.0, 4.0])


@pytest.mark.parametrize(
    ("criterion", "targets", "expected"),
    [
        (nn.CrossEntropyLoss(), TOKENS, 3),
        (nn.CrossEntropyLoss(ignore_index=0), TOKENS.clamp(min=0), 2),
        (nn.CrossEntropyLoss(weight=WEIGHTS), TOKENS, 7),
        (nn.NLLLoss(weight=WEIGHTS), torch.tensor([1, 1, 0, 0]), 6),
        (nn.CrossEntropyLoss(), torch.full((4, 5), 1), 20),
        (nn.CrossEntropyLoss(), torch.ones(4, 3), 4),
        (F.cross_entropy, TOKENS, 3),
        (functools.partial(F.cross_entropy, ignore_index=2), torch.tensor([0, 1, 2, 2]), 2),
        (functools.partial(F.nll_loss, weight=WEIGHTS), torch.tensor([2, 2, 0, 0]), 10),
        (nn.MSELoss(), torch.ones(4, 2), 4),
        (lambda out, y: (out - y).mean(), torch.ones(4, 2), 4),
        (nn.BCEWithLogitsLoss(), torch.ones(4, dtype=torch.bool), 4),
        (nn.MSELoss(reduction="sum"), torch.ones(4, 2), 1),
        (functools.partial(F.mse_loss, reduction="sum"), torch.ones(4, 2), 1),
        (nn.CrossEntropyLoss(reduction="sum"), TOKENS, 1),
    ],
)
def test_inferred_weight(criterion: Any, targets: Tensor, expected: float) -> None:
    assert Loss(criterion).weight_of((X, targets)) == expected


@pytest.mark.parametrize(
    "criterion",
    [
        nn.CrossEntropyLoss(),
        nn.CrossEntropyLoss(weight=WEIGHTS),
        nn.CrossEntropyLoss(weight=WEIGHTS, label_smoothing=0.2),
        nn.CrossEntropyLoss(ignore_index=1),
        functools.partial(F.cross_entropy, weight=WEIGHTS, ignore_index=2),
    ],
)
def test_inferred_weights_make_the_mean_over_batches_exact(criterion: Any) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(30, 3, generator=generator)
    y = torch.randint(3, (30,), generator=generator)
    loss = Loss(criterion)
    weights = [loss.weight_of(pair) for pair in zip(x.split(11), y.split(11), strict=True)]
    means = [criterion(*pair) for pair in zip(x.split(11), y.split(11), strict=True)]
    mean = sum(w * float(m) for w, m in zip(weights, means, strict=True)) / sum(weights)
    assert mean == pytest.approx(float(criterion(x, y)), rel=1e-6)


def test_a_weight_that_is_given_goes_before_what_would_be_inferred() -> None:
    assert Loss(nn.CrossEntropyLoss(reduction="sum"), weight=lambda b: torch.tensor(5)).weight_of((X, TOKENS)) == 5.0


def test_a_summed_loss_says_so() -> None:
    assert Loss(nn.MSELoss(reduction="sum")).summed
    assert Loss(functools.partial(F.mse_loss, reduction="sum")).summed
    assert not Loss(nn.MSELoss()).summed and not Loss(F.mse_loss).summed and not Loss(loss_fn=lambda m, b: b).summed


def test_forms_of_a_loss_agree() -> None:
    model = nn.Linear(3, 2)
    y = torch.randn(4, 2)
    forms = [
        (Loss(nn.MSELoss()), (X, y)),
        (Loss(nn.MSELoss(), forward=lambda m, b: m(b["x"]), targets=lambda b: b["y"]), {"x": X, "y": y}),
        (Loss(loss_fn=lambda m, b: F.mse_loss(m(b["x"]), b["y"])), {"x": X, "y": y}),
        (Loss(loss_fn=lambda m, b: F.mse_loss(m(b["x"]), b["y"]).reshape(1, 1)), {"x": X, "y": y}),
    ]
    values = {float(loss(model, batch).detach()) for loss, batch in forms}
    assert len(values) == 1
    assert all(loss(model, batch).shape == () and loss.weight_of(batch) == 4 for loss, batch in forms)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "got neither"),
        ({"criterion": F.mse_loss, "loss_fn": F.mse_loss}, "got both"),
        ({"loss_fn": F.mse_loss, "forward": F.mse_loss}, r"forward= and targets= go with criterion="),
        ({"loss_fn": F.mse_loss, "targets": F.mse_loss}, r"with loss_fn= they are not used"),
        ({"criterion": F.mse_loss, "forward": "model"}, r"forward must be callable, got str"),
    ],
)
def test_combinations_that_mean_nothing_are_refused(options: dict, message: str) -> None:
    with pytest.raises(SettingError, match=message):
        Loss(**options)


def test_outputs_and_targets_of_what_is_no_pair_are_refused() -> None:
    loss = Loss(F.mse_loss)
    for batch in ({"x": X}, [X], X, (X, X, X)):
        with pytest.raises(DataError, match=r"pair, got .*forward=.*targets="):
            loss.outputs(nn.Linear(3, 1), batch)
        with pytest.raises(DataError, match=r"pair, got .*forward=.*targets="):
            loss.targets_of(batch)
    with pytest.raises(LossError, match=r"pass criterion="):
        Loss(loss_fn=F.mse_loss).outputs(nn.Linear(3, 1), (X, X))
