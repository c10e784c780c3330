"""Whether mini-batches are of the data that is watched: along its gradient, by their squares, by the loss."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import nn

from audited_runs import SMALL, audit_of, stability
from losscope.probes import Audit, Record, Stability, watch
from losscope.probes.same_data import along, squares, trains_on_more
from observed_runs import Observing, observed_run

DATA = "data="


def adam(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.Adam(parameters, lr=1e-3)


def data_of(audit: Audit) -> tuple[bool | None, str]:
    (found,) = (a for a in audit.preconditions if a.text.startswith(DATA))
    return found.holds, found.text


def noise(x: torch.Tensor, y: torch.Tensor) -> Any:
    generator = torch.Generator().manual_seed(5)
    return 3 * torch.randn(x.shape, generator=generator), torch.eye(10)[
        torch.randint(10, (len(x),), generator=generator)
    ]


# --------------------------------------------------------------------------- real trainings


@pytest.mark.parametrize("level", ["sharpness", "full"])
@pytest.mark.parametrize("make", [None, adam], ids=["SGD", "Adam"])
def test_noise_for_data_is_told_under_any_optimizer(level: str, make: Any) -> None:
    audit = observed_run(size=8, data=noise, make=make, steps=300, probes=[Stability(level=level)]).audit()
    holds, text = data_of(audit)
    assert holds is False and "along its gradient" in text, text
    assert audit["sharpness"].verdict == "INCONCLUSIVE" and "of other data" in audit["sharpness"].reason
    assert not audit.above_edge


@pytest.mark.parametrize("said", [1, 64])
def test_a_wrong_batch_size_is_told_under_adam(said: int) -> None:
    audit = observed_run(size=8, batch_size=said, make=adam, steps=300, probes=[Stability()]).audit()
    holds, text = data_of(audit)
    assert holds is False and "squared gradients are" in text
    assert audit["sharpness"].verdict == "NOT_EXCLUDED"  # which does not depend on it


@pytest.mark.parametrize("level", ["sharpness", "full"])
@pytest.mark.parametrize("seed", range(2))
def test_mini_batches_of_the_data_under_adam(level: str, seed: int) -> None:
    run = observed_run(size=8, make=adam, steps=300, seed=seed, probes=[Stability(level=level)])
    holds, text = data_of(run.audit())
    assert holds is not False and "along its gradient" in text and len(text) < 165
    record = run.select("stability")[0].values
    assert ("batch_gradient_square" in record) == (level == "full")


def test_a_loss_that_is_scaled_is_told() -> None:
    audit = observed_run(size=8, make=adam, factor=4.0, steps=300, probes=[Stability(level="sharpness")]).audit()
    assert data_of(audit)[0] is False and "scaled" in audit["sharpness"].reason
    assert audit["sharpness"].verdict == "INCONCLUSIVE"


def test_clipped_gradients_are_not_compared() -> None:
    def clip(model: nn.Module, _: int) -> None:
        nn.utils.clip_grad_norm_(model.parameters(), 0.05)

    audit = observed_run(size=8, make=adam, change=clip, probes=[Stability(level="sharpness")]).audit()
    assert data_of(audit)[0] is None and "clipped" in data_of(audit)[1]
    assert "clipped" in audit["sharpness"].reason


def test_the_squares_that_are_recorded_are_those_of_draws() -> None:
    both = [observed_run(size=8, steps=1, make=make, probes=[Stability()]) for make in (None, adam)]
    drawn = observed_run(size=8, steps=1, probes=[Observing(400)]).select("stability")[0].values
    for run in both:
        values = run.select("stability")[0].values
        low, high = (values[f"batch_gradient_square_{end}"] for end in ("low", "high"))
        assert low < values["batch_gradient_square"] < high
        assert values["batch_gradient_square"] == pytest.approx(drawn["batch_gradient_square"], rel=0.1)
    sgd = both[0].select("stability")[0].values
    assert sgd["batch_gradient_square"] == pytest.approx(2 * sgd["loss"] * sgd["s_mu"])


# --------------------------------------------------------------------------- along the gradient


def steps(
    count: int, *, size: int = 200, noise: float = 2.0, seed: int = 0, part: float = 1.0, other: bool = False,
    **values: float,
) -> list[Record]:  # fmt: skip
    """Steps of g + e with |e| about ``noise`` |g| in directions that are mostly few; g decays a hundredfold.

    Args:
        count: measurements.
        size: of the gradient.
        noise: of a step's gradient.
        seed: of all.
        part: of g that the mean of the steps' gradients has along it.
        other: whether they have nothing to do with g.
        **values: of all records.
    """
    generator = torch.Generator().manual_seed(seed)
    scales = torch.arange(1, size + 1, dtype=torch.float64) ** -0.5
    records = []
    for i in range(count):
        g = torch.randn(size, generator=generator, dtype=torch.float64) * scales
        g *= math.exp(-4.6 * i / count) / g.norm()
        e = torch.randn(size, generator=generator, dtype=torch.float64) * scales
        e *= noise * float(g.norm()) / float(scales.norm())
        used = e * 3 if other else part * g + e
        a, b = float(used.norm()), float(g.norm())
        found = {"gradient_cosine": float(used @ g) / (a * b), "gradient_scale": a / b, "gradient_norm": b}
        records.append(Record(10 * i, "model", "stability", values=found | {"training_gradient_norm": a} | values))
    return records


@pytest.mark.parametrize("count", [10, 40])
@pytest.mark.parametrize("noise", [0.3, 2.0, 8.0])
def test_the_interval_holds_what_is_true_and_the_verdict_is_seldom_wrong(count: int, noise: float) -> None:
    held = 0
    for seed in range(200):
        found = along(steps(count, noise=noise, seed=seed), 8, 10_000)
        assert found is not None and not found.unlike
        held += found.low <= 1 <= found.high
    assert held >= 180  # of 190 that its confidence has


def test_other_data_are_told_and_weak_agreement_is_not() -> None:
    told = dict.fromkeys((0.05, 0.5, 2.0, 3.0), 0)
    for seed in range(40):
        for part in told:
            found = along(steps(40, seed=seed, part=part), 8, 10_000)
            told[part] += found is not None and found.unlike
    assert told[0.05] >= 36 and told[0.5] == 0 and told[2.0] <= 2 and told[3.0] >= 36
    assert sum(along(steps(40, seed=s, other=True), 8, 10_000).unlike for s in range(40)) <= 40  # type: ignore[union-attr]


def test_data_that_are_few_of_many_agree_less() -> None:
    """With g of n samples alone, its own noise takes a part of it that no step has."""
    few = along(steps(40, noise=8.0, part=0.1), 8, 100)
    assert few is not None and few.least == 0 and not few.unlike
    many = along(steps(40, noise=2.0, part=0.1), 8, 100_000)
    assert many is not None and many.least > 0.9


def test_the_noise_of_the_data_is_that_of_draws_where_there_are_any() -> None:
    found = along(steps(40, noise=1.0, batch_gradient_square=1e-12), 8, 100)
    assert found is not None and found.least == 1
    unknown = along(steps(40), None, None)
    assert unknown is not None and unknown.least == 0 and not unknown.unlike


def test_too_few_measurements_say_nothing() -> None:
    assert along(steps(7), 8, 100) is None and along([], 8, 100) is None
    still = steps(12)
    for record in still:
        record.values["gradient_norm"] = 0.0
    assert along(still, 8, 100) is None


def test_gradients_that_were_clipped_early_are_not_compared_later() -> None:
    records = [stability(50 * i, 0.5) for i in range(40)]
    for record, step in zip(records, steps(40, noise=0.3), strict=True):
        factor = min(1.0, 0.05 / step.values["training_gradient_norm"])
        for name in ("training_gradient_norm", "gradient_scale"):
            step.values[name] *= factor
        record.values.update(step.values)
    audit = audit_of(records, **SMALL | {"samples": 100_000})
    assert "gradients are not clipped (in none of" in next(a.text for a in audit.preconditions if "clipped" in a.text)
    assert data_of(audit)[0] is None and "cannot be compared: clipped" in data_of(audit)[1]
    assert audit["sharpness"].verdict == "NOT_EXCLUDED"


def test_no_verdict_on_the_gradients_of_other_data() -> None:
    records = [stability(50 * i, 3.0) for i in range(20)]
    for record, other in zip(records, steps(20, part=0.02, noise=0.5), strict=True):
        record.values.update(other.values)
    audit = audit_of(records, **SMALL | {"samples": 100_000})
    assert audit["sharpness"].verdict == "INCONCLUSIVE" and "of other data" in audit["sharpness"].reason
    assert not audit.above_edge


# --------------------------------------------------------------------------- squares and losses


def test_a_last_mini_batch_of_one_sample_is_none_of_another_size() -> None:
    """Mini-batches of 100 of 1001 samples: one of eleven has a single one, and a hundred times the noise."""
    generator = torch.Generator().manual_seed(0)
    records = []
    for i in range(44):
        noise = 100.0 if i % 11 == 10 else 1.0
        square = 1 + noise * float(torch.rand(1, generator=generator) + 0.5)
        values = {"training_gradient_norm": math.sqrt(square), "batch_gradient_square": 2.0, "gradient_norm": 1.0}
        values |= {"gradient_cosine": 1 / math.sqrt(square), "gradient_scale": math.sqrt(square)}
        records.append(Record(10 * i, "model", "stability", values=values))
    found = squares(records, 100, 1001)
    assert found is not None and found.low > 1.5 and found.remainder == pytest.approx(5.5, rel=0.1)
    assert not found.larger and not found.smaller
    even = squares(records, 100, 1000)
    assert even is not None and even.larger


@pytest.mark.parametrize(("factor", "more"), [(1.0, False), (1.1, False), (0.5, False), (2.0, True)])
def test_a_loss_that_is_higher_than_that_of_the_data(factor: float, more: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    records = [Record(i, "model", "stability", values={"loss": math.exp(-i / 10)}) for i in range(40)]
    logged = {i: factor * math.exp(-i / 10 + 0.2 * float(torch.randn(1, generator=generator))) for i in range(40)}
    assert trains_on_more(records, logged) is more
    assert not trains_on_more(records, {}) and not trains_on_more(records[:5], logged)


@pytest.mark.parametrize(("factor", "holds"), [(1.0, False), (3.0, None)])
def test_larger_gradients_of_a_larger_loss_are_those_of_augmented_data(factor: float, holds: bool | None) -> None:
    records = []
    for i in range(20):
        values = {"training_gradient_norm": 2.0 + 0.01 * i, "batch_gradient_square": 1.0, "loss": 0.1}
        records.append(Record(10 * i, "model", "stability", values={"threshold": 20.0, "sharpness": 10.0} | values))
    logs = [Record(10 * i, "model", "log", values={"loss": factor * 0.1 * (1 + 0.1 * (i % 2))}) for i in range(20)]
    assert data_of(audit_of(records + logs, **SMALL | {"samples": 960}))[0] is holds


def test_one_parameter_has_no_direction_to_compare() -> None:
    """Every gradient of one parameter has a cosine of 1 or -1 with any other: mini-batches passed for full batches."""
    torch.manual_seed(0)
    model, loss = nn.Linear(1, 1, bias=False), nn.MSELoss()
    x = torch.randn(40, 1)
    y = 3 * x + 0.1 * torch.randn(40, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.3)
    with watch(model, optimizer, data=(x, y), criterion=loss, probes=[Stability()], every=1, batch_size=4) as run:
        for _ in range(25):
            some = torch.randint(40, (4,))
            optimizer.zero_grad()
            loss(model(x[some]), y[some]).backward()
            optimizer.step()
    audit = run.run.audit()
    assert audit["s_mu"].verdict != "NOT_APPLICABLE" and "full-batch" not in str(audit)
    assert audit["sharpness"].verdict == "NOT_EXCLUDED" and "clipped" not in audit["sharpness"].reason
