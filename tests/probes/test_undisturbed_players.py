"""Two players that use each other train to the same bit when both are watched."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from losscope.probes import Player, watch
from probe_cases import Outcome, meddling_probes, outcome, seed_everything

pytestmark = pytest.mark.filterwarnings("ignore:losscope. .* is measured in mode=")  # dropout in eval mode


def generator() -> nn.Module:
    return nn.Sequential(nn.Linear(2, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 3))


def discriminator() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 6), nn.BatchNorm1d(6), nn.LeakyReLU(0.2), nn.Dropout(0.2), nn.Linear(6, 1))


def play(make: Callable[[Any], torch.optim.Optimizer], *, watched: bool, mode: str = "train") -> Outcome:
    """Two players; each one's loss closes over the other, whose BatchNorm moves at every evaluation."""
    seed_everything(4)
    g, d = generator(), discriminator()
    opt_g, opt_d = make(g.parameters()), make(d.parameters())

    def loss_d(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        real, noise = model(batch[0]), model(g(batch[1]).detach())
        return F.softplus(-real).mean() + F.softplus(noise).mean()

    def loss_g(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        return F.softplus(-d(model(batch[1]))).mean()

    fixed = [(torch.randn(6, 3), torch.randn(6, 2))]
    players = [
        Player("g", g, opt_g, fixed, 4, loss_fn=loss_g, mode=mode),
        Player("d", d, opt_d, fixed, 4, loss_fn=loss_d, mode=mode),
    ]
    run = watch(players, every=2, probes=meddling_probes(), on_error="raise") if watched else None
    losses = []
    if run is not None:
        run.__enter__()
    for _ in range(5):
        for opt, model, loss_fn in ((opt_d, d, loss_d), (opt_g, g, loss_g)):
            batch = (torch.randn(8, 3) + 1, torch.randn(8, 2))
            opt.zero_grad()
            loss = loss_fn(model, batch)
            loss.backward()
            opt.step()
            losses.append(loss.item())
    if run is not None:
        run.__exit__(None, None, None)
        for player in ("g", "d"):
            assert [r.step for r in run.run.select("stability", player)] == [0, 2, 4]
    return outcome([g, d], [opt_g, opt_d], losses)


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (torch.optim.Adam, {}),
        (torch.optim.Adam, {"fused": True}),
        (torch.optim.SGD, {"momentum": 0.9, "foreach": True}),
    ],
    ids=["adam", "adam fused", "sgd foreach"],
)
def test_two_players_are_the_same_to_the_bit(kind: Any, options: dict[str, Any]) -> None:
    def make(parameters: Any) -> torch.optim.Optimizer:
        return kind(parameters, lr=0.01, **options)

    assert play(make, watched=True).differences(play(make, watched=False)) == []


def test_two_players_measured_in_another_mode_are_the_same_to_the_bit() -> None:
    def make(parameters: Any) -> torch.optim.Optimizer:
        return torch.optim.SGD(parameters, lr=0.05)

    assert play(make, watched=True, mode="eval").differences(play(make, watched=False)) == []
