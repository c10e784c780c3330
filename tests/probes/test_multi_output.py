"""Several outputs per sample: tr(H) may exceed 2/lr twofold in stable training, and S_mu carries the verdict."""

import pytest
import torch
from sklearn.datasets import load_digits
from torch import nn

from losscope.probes import Stability, watch

LR, STEPS = 0.02, 15_000


def half_summed_squares(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return ((outputs - targets) ** 2).sum(1).mean() / 2


def digits(samples: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The first samples of a permutation, scaled to [-1, 1], with one-hot targets."""
    pixels, labels = load_digits(return_X_y=True)
    chosen = torch.randperm(len(pixels), generator=torch.Generator().manual_seed(0))[:samples]
    inputs = torch.tensor(pixels / 8 - 1, dtype=torch.float32)[chosen]
    return inputs, nn.functional.one_hot(torch.tensor(labels)[chosen], 10).float()


@pytest.mark.slow
def test_trace_exceeds_two_over_lr_while_training_is_stable():
    inputs, targets = digits(500)
    model = nn.Sequential(nn.Linear(64, 50), nn.Tanh(), nn.Linear(50, 50), nn.Tanh(), nn.Linear(50, 10))
    optimizer = torch.optim.SGD(model.parameters(), lr=LR)
    due = range(STEPS - 4000, STEPS, 1000)
    losses = []
    with watch(
        model, optimizer, data=(inputs, targets), criterion=half_summed_squares, batch_size=1, every=due,
        probes=[Stability()],
    ) as run:  # fmt: skip
        for _ in range(STEPS):
            i = int(torch.randint(len(inputs), ()))
            optimizer.zero_grad()
            loss = half_summed_squares(model(inputs[i : i + 1]), targets[i : i + 1])
            loss.backward()
            optimizer.step()
            losses.append(loss.detach())

    measured = run.run.select("stability")
    assert len(measured) == len(due)
    full = [r.values["loss"] for r in measured]
    loss = torch.stack(losses)
    assert loss.isfinite().all()
    assert full[-1] < full[0] < 0.15 * float(loss[:100].mean())  # stable: the loss is small and falls on
    for record in measured:
        assert record.values["trace"] >= 1.5 * 2 / LR  # 1.77 to 2.02 over seeds 0 to 3
        assert record.values["s_mu_high"] < 0.5 * 2 / LR  # S_mu is 18 to 24 of 100
        assert 0.08 < record.values["mu"] < 0.16  # about 1 / outputs

    audit = run.run.audit()
    trace, index = audit["trace"], audit["s_mu"]
    assert trace.verdict == "NOT_APPLICABLE"
    assert "10" in trace.reason
    assert "s_mu" in trace.reason
    assert trace.threshold == pytest.approx(2 / LR)
    assert trace.ratio_low > 1.5  # its numbers are shown all the same
    assert trace.low < trace.measured < trace.high
    assert index.verdict == "NOT_EXCLUDED"
    assert index.ratio_high < 0.5
    assert not audit.above_edge
    assert audit["sharpness"].verdict != "ABOVE_EDGE"
