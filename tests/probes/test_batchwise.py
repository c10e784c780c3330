"""Losses of a batch that are not the mean of its samples' losses: seen, told apart from sums and noise, and judged."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from losscope.landscape import Objective
from losscope.probes import Audit, Stability, watch
from losscope.probes.batchwise import batch_facts

X = torch.randn(64, 6, generator=torch.Generator().manual_seed(1))
Y = torch.randn(64, 6, generator=torch.Generator().manual_seed(2))

Loss = Callable[[nn.Module, Any], Tensor]


def contrastive(model: nn.Module, batch: Any) -> Tensor:
    a, b = (F.normalize(model(part), dim=1) for part in (batch[0], batch[0] + 0.1 * batch[1]))
    return F.cross_entropy(a @ b.T / 0.2, torch.arange(len(a)))


def squared(model: nn.Module, batch: Any) -> Tensor:
    return (model(batch[0]) - batch[1][:, :4]).square().mean()


def penalised(model: nn.Module, batch: Any) -> Tensor:
    return squared(model, batch) + sum(p.square().sum() for p in model.parameters())


def heavy(model: nn.Module, batch: Any) -> Tensor:
    """One sample carries the loss, and no draw of a few mini-batches finds it."""
    return (1e4 ** (batch[0][:, 0] == X[7, 0]).float() * model(batch[0]).square().mean(1)).mean()


def denoising(model: nn.Module, batch: Any) -> Tensor:
    noise, t = torch.randn_like(batch[0]), torch.rand(len(batch[0]), 1)
    return (t.exp() * 3 * (model(batch[0] + t * noise) - noise[:, :4])).pow(4).mean()


def total(model: nn.Module, batch: Any) -> Tensor:
    return (model(batch[0]) - batch[1][:, :4]).square().sum()


def encoder(*more: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Linear(6, 12), *more, nn.Tanh(), nn.Linear(12, 4))


def objective(loss: Loss, model: nn.Module | None = None, size: int = 64, **options: Any) -> Objective:
    batches = list(zip(X.split(size), Y.split(size), strict=True))
    return Objective(
        encoder() if model is None else model, batches, loss_fn=loss, weight=lambda b: len(b[0]), **options
    )


@pytest.mark.parametrize("batch_size", [4, 16, 32])
def test_a_loss_that_compares_samples_is_seen(batch_size: int) -> None:
    found = batch_facts(objective(contrastive), batch_size)
    assert found["batchwise_of"] == min(64, 8 * batch_size) and found["batchwise"] < 1 / 1.1


@pytest.mark.parametrize("loss", [squared, penalised, heavy, denoising])
@pytest.mark.parametrize("batch_size", [1, 4, 16])
def test_means_over_samples_are_not(loss: Loss, batch_size: int) -> None:
    assert batch_facts(objective(loss), batch_size) == {}


def test_nor_are_statistics_of_batches_that_matter_little() -> None:
    assert batch_facts(objective(squared, encoder(nn.BatchNorm1d(12)), mode="train"), 16) == {}


def test_a_sum_that_nobody_said_to_be_one_is_a_sum() -> None:
    assert batch_facts(objective(total), 16) == {"summed": True}


@pytest.mark.parametrize("batch_size", [None, 16, 40, 64, 100])
def test_batches_as_large_as_those_of_training_are_what_is_trained_on(batch_size: int | None) -> None:
    assert batch_facts(objective(contrastive, size=16), batch_size) == {}


def trained(size: int) -> Audit:
    model = encoder()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    batches = list(zip(X.split(size), Y.split(size), strict=True))
    with watch(
        model, optimizer, data=batches, loss_fn=contrastive, weight=lambda b: len(b[0]), batch_size=8, every=1,
        probes=[Stability(rtol=0.5)],
    ) as run:  # fmt: skip
        for _ in range(12):
            some = torch.randperm(64)[:8]
            optimizer.zero_grad()
            contrastive(model, (X[some], Y[some])).backward()
            optimizer.step()
    return run.run.audit()


def test_no_verdict_rests_on_the_loss_of_all_samples_at_once() -> None:
    audit = trained(64)
    for name in ("sharpness", "s_mu", "aligned_trace", "frobenius", "interaction_aware", "noise_interaction"):
        assert audit[name].verdict == "INCONCLUSIVE"
        assert "in mini-batches of 8 it is" in audit[name].reason and "pass data= in batches" in audit[name].reason
    for name in ("batch_sharpness", "batch_sharpness_ratio"):
        assert "mini-batches of 8 it is" not in audit[name].reason
    [told] = [p for p in audit.preconditions if p.text.startswith("the loss of a batch is the mean")]
    assert told.holds is False


def test_in_batches_of_training_it_does() -> None:
    audit = trained(8)
    assert audit["s_mu"].verdict == "NOT_EXCLUDED" and audit["sharpness"].verdict == "NOT_EXCLUDED"
    assert not [p for p in audit.preconditions if p.text.startswith("the loss of a batch is the mean")]
