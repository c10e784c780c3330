"""Following the weights along a direction."""

import math

import pytest
import torch
from torch import nn

from losscope.probes import oscillation
from losscope.probes.oscillation import OscillationWatch


def positions(parameters: list[nn.Parameter], direction: torch.Tensor) -> list[float]:
    """Where they are along the direction, in three steps."""
    generator = torch.Generator().manual_seed(0)
    start = {p: p.detach().clone() for p in parameters}
    watch = OscillationWatch(0, direction, start)
    for _ in range(3):
        with torch.no_grad():
            for p in parameters:
                p.add_(1e-3 * torch.randn(p.shape, generator=generator))
        watch.follow()
    with torch.no_grad():
        for p, at in start.items():
            p.copy_(at)
    return torch.stack(watch.positions()).tolist()


@pytest.mark.parametrize("shapes", [[(3, 4), (4,)], [(12,)]], ids=["two", "one"])
def test_small_models_are_followed_in_one_go_and_to_the_same_places(
    shapes: list[tuple[int, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    parameters = [nn.Parameter(torch.randn(shape)) for shape in shapes]
    direction = torch.randn(sum(p.numel() for p in parameters))
    together = positions(parameters, direction)
    monkeypatch.setattr(oscillation, "_SMALL", 0)
    apart = positions(parameters, direction)
    assert together == pytest.approx(apart, rel=1e-6, abs=1e-9) and any(together)


def test_following_leaves_the_weights_alone() -> None:
    only = nn.Parameter(torch.randn(5))
    watch = OscillationWatch(0, torch.randn(5), {only: only.detach().clone()})
    with torch.no_grad():
        only.mul_(2)
    before = only.detach().clone()
    watch.follow()
    assert torch.equal(only, before)


def test_parameters_of_another_precision_are_followed_too() -> None:
    half, full = nn.Parameter(torch.zeros(2, dtype=torch.bfloat16)), nn.Parameter(torch.zeros(2))
    watch = OscillationWatch(0, torch.ones(4), {p: p.detach().clone() for p in (half, full)})
    with torch.no_grad():
        half.add_(1), full.add_(2)
    watch.follow()
    assert float(watch.positions()[0]) == 6.0


def counted(places: list[float]) -> dict[str, float | None]:
    """What is counted where the weights go through these places along the direction."""
    only = nn.Parameter(torch.zeros(1, dtype=torch.float64))
    watch = OscillationWatch(0, torch.ones(1, dtype=torch.float64), {only: only.detach().clone()}, len(places))
    for place in places:
        with torch.no_grad():
            only.fill_(place)
        watch.follow()
    return watch.result()


def test_oscillation_is_counted_about_its_midpoint_too() -> None:
    """A drift that is longer than the oscillation hides it from the steps' signs."""
    drift = [1.0 * t for t in range(8)]
    about = [x + 0.1 * (-1) ** t for t, x in enumerate(drift)]
    assert counted(about) == {"flips": 0.0, "pairs": 6.0, "swings": 5.0, "swing_pairs": 5.0}
    assert counted([0.5 * (-1) ** t for t in range(8)]) == {"flips": 6, "pairs": 6, "swings": 5, "swing_pairs": 5}
    smooth = [math.exp(0.1 * t) for t in range(8)]
    assert counted(smooth) == {"flips": 0, "pairs": 6, "swings": 0, "swing_pairs": 5}
    assert counted([0.0] * 8) == {"flips": 0, "pairs": 0, "swings": 0, "swing_pairs": 0}
