"""What a run shows of the criteria's assumptions, on real trainings first and on drawn records."""

import math
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from losscope.probes import Record, Run, Sharpness, Stability, watch
from losscope.probes.criterion import Assumption
from losscope.probes.preconditions import preconditions
from losscope.viz.demo import half_squared_error
from observed_runs import Observing, assumed, facts_and_window, observed_run

CLIPPED = "gradients are not clipped"
DATA, FULL = "data= in mini-batches of batch_size= is what is trained on", "data= is what is trained on"
LOSS, NEAR, CURVED = "the loss is squared", "near interpolation", "no negative curvature to speak of"
MODE = "BatchNorm, Dropout and the like, if any, compute what they do in training"


# --------------------------------------------------------------------------- real trainings


def test_a_full_batch_run() -> None:
    found = assumed(observed_run())
    assert {name: a.holds for name, a in found.items()} == {
        NEAR: None, CLIPPED: True, MODE: True, FULL: True, CURVED: True
    }  # fmt: skip
    assert "cosine of its gradient with the step's 1.0000" in found[FULL].text
    assert "at step 100)" in found[CURVED].text  # where the upper bound was renewed last


@pytest.mark.parametrize("seed", range(3))
def test_mini_batches_of_the_data(seed: int) -> None:
    found = assumed(observed_run(size=8, seed=seed))
    assert found[LOSS].holds is True and found[CLIPPED].holds is not False and found[DATA].holds is not False


@pytest.mark.parametrize("size", [1, 32])
def test_mini_batches_of_one_and_of_many(size: int) -> None:
    found = assumed(observed_run(size=size, lr=0.01, steps=300))
    assert found[DATA].holds is not False, found[DATA]


@pytest.mark.parametrize(
    ("change", "times"),
    [
        ({"data": lambda x, y: (3 * x, y)}, "0."),
        ({"batch_size": 64}, "4."),
        ({"factor": 3.0, "lr": 0.01}, "9."),
    ],
    ids=["other data", "another batch size", "a loss that is scaled"],
)
def test_what_is_trained_on_is_something_else(change: dict[str, Any], times: str) -> None:
    found = assumed(observed_run(size=8, **change))[DATA]
    assert found.holds is False and f"squared gradients are {times[0]}" in found.text


def test_a_loss_that_is_scaled_is_not_called_clipped() -> None:
    found = assumed(observed_run(factor=0.5))
    (name,) = (n for n in found if n.startswith("the loop's loss"))
    assert found[name].holds is False and "0.5 times as long" in found[name].text and CLIPPED not in found


def test_clipping_is_not_called_a_loss_that_is_scaled() -> None:
    def clip(model: nn.Module, _: int) -> None:
        torch.nn.utils.clip_grad_norm_(model.parameters(), 0.05)

    found = assumed(observed_run(change=clip))[CLIPPED]
    assert found.holds is False and "100% of" in found.text and "to a norm of 0.05" in found.text


def test_clipped_mini_batches_say_nothing_of_the_data() -> None:
    def clip(model: nn.Module, _: int) -> None:
        torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5)

    found = assumed(observed_run(size=8, change=clip))
    assert found[CLIPPED].holds is False and found[DATA].holds is None and "clipped" in found[DATA].text


def test_narrow_weights() -> None:
    found = assumed(observed_run(prepare=lambda model: model.to(torch.bfloat16)))
    assert found["updates are not rounded away"] == Assumption(
        "updates are not rounded away (the weights are bfloat16)", False
    )
    wide = assumed(observed_run(steps=60, prepare=lambda model: model.double()))
    assert not any("computed in" in a.text or "rounded" in a.text for a in wide.values())


def cross_entropy(outputs: Tensor, targets: Tensor) -> Tensor:
    return nn.functional.cross_entropy(outputs, targets.argmax(1))


def test_another_loss() -> None:
    found = assumed(observed_run(size=8, loss=cross_entropy))[LOSS]
    assert found == Assumption("the loss is squared (it is another)", False)


def test_weight_decay_and_two_rates() -> None:
    def make(parameters: Any, kind: Any = torch.optim.SGD) -> torch.optim.Optimizer:
        first, *others = parameters
        return kind([{"params": [first], "lr": 0.02}, {"params": others}], lr=0.05, weight_decay=1e-3)

    without_rule = assumed(observed_run(size=8, make=lambda parameters: make(parameters, torch.optim.ASGD)))
    assert without_rule["one learning rate"].holds is False
    found = assumed(observed_run(size=8, make=make))
    assert found["parameter groups differ in their rates, which P has in it"].holds is True
    assert found["no weight decay"].holds is None and "0.001" in found["no weight decay"].text


def test_dropout_that_is_measured_without() -> None:
    def prepare(model: nn.Module) -> nn.Module:
        return nn.Sequential(model, nn.Dropout(0.5)).train()

    with pytest.warns(RuntimeWarning, match="mode='eval'"):
        found = assumed(observed_run(size=8, prepare=prepare))
    assert found[MODE].holds is False and found[DATA].holds is None
    assert assumed(observed_run(size=8, prepare=prepare, mode="train"))[MODE].holds is True


@pytest.mark.parametrize("infinite", [0, 1, 20])
def test_updates_that_a_scaler_skips(infinite: int) -> None:
    torch.manual_seed(0)
    model, (x, y) = nn.Linear(4, 1), (torch.randn(20, 4), torch.randn(20, 1))
    optimizer, scaler = torch.optim.SGD(model.parameters(), lr=0.01), torch.amp.GradScaler("cpu", init_scale=8.0)
    options: dict[str, Any] = {"criterion": half_squared_error, "probes": [Observing()], "every": 20, "batch_size": 20}
    with watch(model, optimizer, data=(x, y), scaler=scaler, on_error="raise", **options) as run:
        for step in range(200):
            optimizer.zero_grad()
            factor = math.inf if step < infinite else 1.0
            scaler.scale(half_squared_error(model(x), y) * factor).backward()
            scaler.step(optimizer)
            scaler.update()
    found = assumed(run.run)
    assert found["updates are made"].text == f"updates are made ({infinite} of 200 were skipped by the GradScaler)"
    assert found["updates are made"].holds is (infinite < 3)
    assert found["computed in float32"].holds is None


def test_a_saddle() -> None:
    """Two layers at zero: the Hessian there has eigenvalues of both signs, of equal size."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False))
    for p in model.parameters():
        nn.init.constant_(p, 1e-3)
    x = torch.ones(10, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    options: dict[str, Any] = {"criterion": half_squared_error, "probes": [Observing()], "every": 2, "batch_size": 10}
    with watch(model, optimizer, data=(x, x), on_error="raise", **options) as run:
        for _ in range(10):
            optimizer.zero_grad()
            half_squared_error(model(x), x).backward()
            optimizer.step()
    found = assumed(run.run)[CURVED]
    assert found.holds is False and "found was -1, the largest 1, at step 0" in found.text


# --------------------------------------------------------------------------- drawn records


def drawn(count: int, *, facts: dict[str, Any] | None = None, **values: Any) -> dict[str, Assumption]:
    """The preconditions of a run whose records have these values; those that are lists change from one to the next."""
    records = []
    for i in range(count):
        at = {name: value[i] if isinstance(value, list) else value for name, value in values.items()}
        records.append(Record(10 * i, "model", "stability", lr=0.1, values={"threshold": 20.0, "sharpness": 10.0} | at))
    run = Run.from_records({"players": {"model": facts or {}}, "status": "finished"}, records)
    observed, window = facts_and_window(run)
    return {a.text.split(" (")[0]: a for a in preconditions(run, "model", window, observed)}


@pytest.mark.parametrize(("last", "holds"), [(0.005, True), (0.1, None), (0.8, False)])
def test_interpolation_is_told_from_the_loss_at_the_start(last: float, holds: bool | None) -> None:
    found = drawn(8, loss=[2.0, *[2 * last] * 7], gradient_norm=0.3)[NEAR]
    assert found.holds is holds
    assert f"the loss is {2 * last:.3g}, {last:.2g} times that at the start, its gradient 0.3" in found.text


@pytest.mark.parametrize(("lowest", "holds"), [(-0.1, True), (2.0, True), (-2.0, None), (-9.0, False)])
def test_negative_curvature(lowest: float, holds: bool | None) -> None:
    assert drawn(6, lowest=[None] * 4 + [lowest, None])[CURVED].holds is holds
    assert drawn(60, lowest=[lowest] + [None] * 59)[CURVED].holds is None  # too long ago to say anything of now
    assert CURVED not in drawn(6)


def test_nothing_measured() -> None:
    run = Run.from_records({"players": {"model": {}}}, [])
    assert preconditions(run, "model", [], {"full_batch": None}) == ()


@pytest.mark.parametrize("factor", [1.0, 4.0, 0.05])
@pytest.mark.parametrize("spread", [0.3, 1.0, 1.5])
def test_the_data_are_seldom_taken_for_other_data(factor: float, spread: float) -> None:
    """Over 100 runs of 40 measurements with log-normal squares: what is the same is called other in 3 at most."""
    called = {True: 0, False: 0, None: 0}
    for seed in range(100):
        generator = torch.Generator().manual_seed(seed)

        def square(*shape: int, generator: torch.Generator = generator) -> Tensor:
            e = torch.randn(*shape, generator=generator, dtype=torch.float64)
            return torch.exp(spread * e - spread**2 / 2)

        own, used = square(40, 50), factor * square(40)
        mean, half = own.mean(1), 2.01 * own.std(1) / math.sqrt(50)
        found = drawn(
            40, facts={"batch_size": 4, "samples": 100}, training_gradient_norm=used.sqrt().tolist(),
            batch_gradient_square=mean.tolist(), s_mu=mean.tolist(), s_mu_low=(mean - half).tolist(),
            s_mu_high=(mean + half).tolist(), minibatch_draws=50.0,
        )  # fmt: skip
        called[found[DATA].holds] += 1
    if factor == 1:
        assert called[False] <= 3
    else:
        assert called[True] == 0 and called[False] >= (95 if spread < 1 else 80 if spread == 1 else 40)


def test_squares_from_s_mu_where_they_are_not_recorded() -> None:
    norms = [2 + 0.01 * (i - 4.5) for i in range(10)]
    found = drawn(10, facts={"batch_size": 4, "samples": 100}, training_gradient_norm=norms, s_mu=1.0, loss=2.0)[DATA]
    assert "squared gradients are 1 times" in found.text and found.holds is True


def test_texts_are_short_and_distinct() -> None:
    found = assumed(observed_run(size=8, steps=100))
    assert all(len(a.text) < 160 for a in found.values()) and len(found) >= 5


@pytest.mark.parametrize("judged", [True, False])
def test_another_mode_than_training_is_warned_of_where_stability_is_judged(judged: bool) -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    x, y = torch.randn(8, 3), torch.randn(8, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    probes = [Stability(level="sharpness")] if judged else [Sharpness()]
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        with watch(model, optimizer, data=(x, y), criterion=nn.MSELoss(), probes=probes) as watched:
            optimizer.zero_grad()
            nn.MSELoss()(model(x), y).backward()
            optimizer.step()
    assert len(said) == judged and all("is measured in mode='eval'" in str(each.message) for each in said)
    assert watched.run.meta["players"]["model"]["mode_matters"] is True
