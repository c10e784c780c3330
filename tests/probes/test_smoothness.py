"""The (L0, L1) fit: exact where the line is exact, robust, covering, and honest where there is nothing."""

import math

import pytest
import torch
from torch import Tensor

from losscope.probes import Record, Run
from losscope.probes.smoothness import Smoothness, _line, fit_smoothness, smoothness_of


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def wandering(n: int, memory: float, seed: int) -> Tensor:
    """An autoregressive series of variance one, whose correlation falls by e in so many steps; 0 for white noise."""
    e = torch.randn(n, generator=generator(seed), dtype=torch.float64)
    rho = math.exp(-1 / memory) if memory else 0.0
    for i in range(1, n):
        e[i] = rho * e[i - 1] + math.sqrt(1 - rho**2) * e[i]
    return e


def fitted(x: Tensor, y: Tensor) -> Smoothness:
    found = smoothness_of(x.tolist(), y.tolist())
    assert found is not None
    return found


# --------------------------------------------------------------------------- exact


def test_an_exact_line() -> None:
    x = wandering(60, 3, 0).exp()
    found = fitted(x, 5 + 0.7 * x)
    assert pytest.approx([5, 0.7], rel=1e-9) == [found.L0, found.L1]
    assert found.correlation == pytest.approx(1) and found.explained == pytest.approx(1) and found.explains
    assert found.L1_high - found.L1_low < 1e-6 and found.measurements == 60


def test_units_of_curvature_and_of_the_gradient() -> None:
    x, y = wandering(80, 2, 1).exp(), wandering(80, 2, 2).exp() + 2
    y = y + 3 * x
    base, scaled = fitted(x, y), fitted(10 * x, 7 * y)
    assert pytest.approx([7 * base.L0, 0.7 * base.L1]) == [scaled.L0, scaled.L1]
    assert scaled.L1_high == pytest.approx(0.7 * base.L1_high) and scaled.correlation == base.correlation


@pytest.mark.parametrize("seed", range(5))
def test_it_is_least_squares_where_no_point_is_far_off_and_both_are_positive(seed: int) -> None:
    """Against the oracle: minimise Huber's loss over the quadrant by brute force."""
    x = wandering(40, 0, seed).exp()
    y = (seed - 1) + (2 - seed) * x + wandering(40, 0, seed + 50)
    L0, L1 = (float(v) for v in _line(x[None], y[None])[:, 0])
    scale = 1.4826 * float((y - L0 - L1 * x).abs().median())

    def cost(a: Tensor, b: Tensor) -> Tensor:
        return torch.nn.functional.huber_loss(
            (y - a[:, None] - b[:, None] * x) / scale, torch.zeros(len(a), 40, dtype=x.dtype), delta=1.345,
            reduction="none",
        ).sum(1)  # fmt: skip

    here = cost(torch.tensor([L0], dtype=x.dtype), torch.tensor([L1], dtype=x.dtype))
    a, b = torch.meshgrid(
        torch.linspace(0, max(2 * L0, 3), 200, dtype=x.dtype), torch.linspace(0, max(2 * L1, 3), 200, dtype=x.dtype),
        indexing="ij",
    )  # fmt: skip
    assert L0 >= 0 and L1 >= 0
    assert float(here) <= float(cost(a.flatten(), b.flatten()).min()) * (1 + 5e-3)


def test_spikes_do_not_decide() -> None:
    x = wandering(100, 0, 3).exp()
    y = 2 + 3 * x + 0.1 * wandering(100, 0, 4)
    y[::17] += 500
    found = fitted(x, y)
    assert pytest.approx([2, 3], abs=0.3) == [found.L0, found.L1]


def test_ranks_with_ties_as_scipy_has_them() -> None:
    from scipy.stats import spearmanr

    x = wandering(50, 0, 5).mul(2).round().exp()
    y = (wandering(50, 0, 6) + x.log()).mul(2).round()
    assert fitted(x, y).correlation == pytest.approx(spearmanr(x.numpy(), y.numpy()).statistic, abs=1e-12)


# --------------------------------------------------------------------------- error bars


@pytest.mark.parametrize(("n", "memory"), [(40, 0), (100, 2), (300, 8)])
def test_intervals_cover(n: int, memory: float) -> None:
    """95 % nominal; over 100 seeds, whatever the memory of the series."""
    hits = [0, 0]
    for seed in range(100):
        x = (0.4 * wandering(n, memory, seed)).exp()
        y = 3 + 2 * x + 0.5 * wandering(n, memory, seed + 10_000)
        found = fitted(x, y)
        hits[0] += found.L0_low <= 3 <= found.L0_high
        hits[1] += found.L1_low <= 2 <= found.L1_high
    assert min(hits) >= 88, hits


@pytest.mark.parametrize(("n", "memory"), [(40, 0), (100, 5), (300, 15)])
def test_series_that_have_nothing_to_do_with_each_other_explain_nothing(n: int, memory: float) -> None:
    said = 0
    for seed in range(100):
        x = (0.4 * wandering(n, memory, seed)).exp()
        y = 3 + 0.5 * wandering(n, memory, seed + 10_000)
        said += fitted(x, y).explains
    assert said <= 5


def test_what_goes_the_other_way_has_no_slope() -> None:
    """Progressive sharpening: the gradient falls and the sharpness rises."""
    t = torch.arange(100, dtype=torch.float64) / 100
    found = fitted(torch.exp(-3 * t), 10 * t + 1)
    assert found.L1 == 0 and found.L1_low == 0 and found.correlation == pytest.approx(-1)
    assert not found.explains and "explains nothing" in found.words


def test_what_is_said_is_true_of_the_correlation() -> None:
    t = torch.arange(26, dtype=torch.float64)
    slow = fitted(1 + t / 26, 10 + (t / 26) ** 4)  # both rise all the time, which is worth few measurements
    assert slow.correlation == pytest.approx(1) and not slow.explains
    assert "does not show (rank correlation 1.00" in slow.words and "worth 6 independent" in slow.words
    found = [fitted((0.4 * wandering(400, 0, s)).exp(), 3 + wandering(400, 0, s + 900).exp()) for s in range(20)]
    for each in found:
        assert each.correlation > 0 or "does not grow with |gradient|" in each.words
    x = (0.4 * wandering(2000, 0, 7)).exp()
    weak = fitted(x, 3 + 0.15 * x + 0.5 * wandering(2000, 0, 8))
    assert weak.L1_low > 0 and not weak.explains and "the sharpness grows with |gradient|" in weak.words


# --------------------------------------------------------------------------- from runs


def run_of(records: list[Record], **facts: object) -> Run:
    return Run.from_records({"players": {"model": facts}}, records)


def records(probe: str, offset: int = 0) -> list[Record]:
    x = wandering(50, 0, 7).exp().tolist()
    return [
        Record(
            10 * i + offset, "model", probe, value=4 + norm,
            values={"gradient_norm": norm, "sharpness": 4 + norm} if probe == "stability" else {"gradient_norm": norm},
        )
        for i, norm in enumerate(x)
    ]  # fmt: skip


def test_both_probes_count_each_step_once() -> None:
    for given, count in (
        (records("sharpness"), 50),
        (records("stability"), 50),
        (records("sharpness") + records("stability"), 50),
        (records("sharpness") + records("stability", 5), 100),
    ):
        found = fit_smoothness(run_of(given))
        assert found is not None and found.measurements == count
        assert pytest.approx([4, 1]) == [found.L0, found.L1]


def test_the_sharpness_behind_a_preconditioner_is_not_that_of_the_loss() -> None:
    assert fit_smoothness(run_of(records("stability"), preconditioned=True)) is None
    found = fit_smoothness(run_of(records("stability") + records("sharpness"), preconditioned=True))
    assert found is not None and found.measurements == 50


def test_too_little_to_say_anything() -> None:
    assert fit_smoothness(run_of([])) is None
    assert fit_smoothness(run_of(records("sharpness")[:19])) is None
    assert smoothness_of([1.0] * 30, [float(i) for i in range(30)]) is None
    broken = [Record(i, "model", "sharpness", value=math.inf, values={"gradient_norm": 1.0 + i}) for i in range(30)]
    assert fit_smoothness(run_of(broken)) is None


def test_long_runs_are_thinned_out() -> None:
    found = smoothness_of(*[torch.rand(2000, generator=generator(i)).tolist() for i in range(2)])
    assert found is not None and found.measurements == 2000
    many = [
        Record(i, "model", "sharpness", value=1.0 + i % 7, values={"gradient_norm": 1.0 + i % 7}) for i in range(9000)
    ]
    thin = fit_smoothness(run_of(many))
    assert thin is not None and 1500 <= thin.measurements <= 2000


def test_the_same_seed_gives_the_same_numbers() -> None:
    x, y = wandering(60, 2, 8).exp(), wandering(60, 2, 9)
    state = torch.get_rng_state()
    assert fitted(x, y) == fitted(x, y)
    assert torch.equal(torch.get_rng_state(), state)
