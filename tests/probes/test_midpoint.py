"""The midpoint of three successive weights: where it is, and what is measured there."""

import contextlib
import functools
import itertools
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from losscope.landscape import NonFiniteError
from losscope.landscape.tracked_pair import TrackedPair
from losscope.probes import Measurement, Needs, Record, Watch, watch
from losscope.probes.midpoint import MidpointWatch
from losscope.viz.demo import digits, half_squared_error, network
from midpoint_cases import Asking
from probe_cases import CLASSES, Line


def copies(model: nn.Module) -> list[Tensor]:
    return [p.detach().clone() for p in model.parameters()]


# --------------------------------------------------------------------------- where it is


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_the_mean_of_three_with_the_middle_twice(dtype: torch.dtype) -> None:
    p = nn.Parameter(torch.zeros(50, dtype=dtype))
    path = [torch.randn(50, generator=torch.Generator().manual_seed(i)).to(dtype) for i in range(3)]
    found = MidpointWatch(4, {p: path[0]}, 0.0, Needs())
    before = path[0].clone()
    for step, weights in zip((5, 6), path[1:], strict=True):
        p.data.copy_(weights)
        assert not found.done and found.follow(step)
    exact = (path[0].double() + 2 * path[1].double() + path[2].double()) / 4
    torch.testing.assert_close(found.values[p].double(), exact, rtol=0, atol=4 * torch.finfo(dtype).eps)
    assert found.done and torch.equal(path[0], before)  # what it was given is not written on


def test_only_the_next_two_updates_count_and_each_once() -> None:
    p = nn.Parameter(torch.zeros(1))
    found = MidpointWatch(4, {p: torch.zeros(1)}, 0.0, Needs())
    taken = []
    for step, weight in ((4, 9.0), (5, 1.0), (5, 9.0), (6, 2.0), (6, 9.0), (7, 9.0)):
        p.data.fill_(weight)
        taken.append(found.follow(step))
    assert taken == [False, True, False, True, False, False]
    assert found.values[p].item() == pytest.approx((0 + 2 * 1 + 2) / 4)


def test_what_alternates_is_taken_out_and_a_straight_path_is_left() -> None:
    p = nn.Parameter(torch.zeros(2, dtype=torch.float64))

    def path(t: int) -> Tensor:
        return torch.tensor([3 + 0.5 * t, 1.0 + 7 * (-1) ** t], dtype=torch.float64)

    found = MidpointWatch(0, {p: path(0)}, 0.0, Needs())
    for step in (1, 2):
        p.data.copy_(path(step))
        found.follow(step)
    torch.testing.assert_close(found.values[p], torch.tensor([3.5, 1.0], dtype=torch.float64))


# --------------------------------------------------------------------------- what is measured


def weights_at(line: Line, path: list[list[Tensor]], step: int) -> nn.Module:
    """The model at the midpoint about update step + 1, of a path of weights before each update."""
    for p, a, b, c in zip(line.model.parameters(), *path[step : step + 3], strict=True):
        p.data.copy_((a + 2 * b + c) / 4)
    return line.model


@pytest.mark.parametrize("drive", ["hooks", "manual"])
@pytest.mark.parametrize("every", [1, 2, 3, [2]])
def test_it_is_of_the_weights_before_the_updates(drive: str, every: Any) -> None:
    """With a scheduler, momentum and weights that the loop itself moves between the updates."""
    line = Line()
    optimizer = torch.optim.SGD(line.model.parameters(), lr=0.2, momentum=0.5)
    scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)
    path, rates = [], []
    options = line.options(probes=[Asking()], every=every, drive=drive, on_error="raise")
    with watch(line.model, optimizer, **options) as run:
        for _ in range(9):
            optimizer.zero_grad()
            line.loss().backward()
            path.append(copies(line.model))
            rates.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            scheduler.step()
            with torch.no_grad():
                line.model[0].weight.clamp_(-0.5, 0.5)  # type: ignore[index, operator, union-attr]
            if drive == "manual":
                run.step()
    found = run.run.select("midpoint")
    starts = {1: [0, 2, 4, 6], 2: [0, 2, 4, 6], 3: [0, 3, 6]}.get(every, [2]) if not isinstance(every, list) else [2]
    assert [r.step for r in found] == [t + 1 for t in starts if t + 2 < 9]
    measured = {r.step: r for r in run.run.select("asking")}
    for record in found:
        t = record.step - 1
        weights_at(line, path, t)
        loss = line.loss()
        gradient = torch.autograd.grad(loss, list(line.model.parameters()))
        assert record.values["loss"] == pytest.approx(loss.item(), rel=1e-5)
        norm = math.sqrt(sum(float(g.double().square().sum()) for g in gradient))
        assert record.values["gradient_norm"] == pytest.approx(norm, rel=1e-3, abs=1e-6)
        assert record.values["loss_before"] == measured[t].values["loss"]
        assert record.values["sharpness"] == record.value == pytest.approx(top_of(line), rel=5e-3)
        assert record.low is not None and record.low <= top_of(line) * (1 + 1e-6)
        assert record.lr == rates[t + 1]
        assert record.values["threshold"] == pytest.approx(2 * 1.5 / record.lr)


def top_of(line: Line) -> float:
    names = [name for name, _ in line.model.named_parameters()]
    like = [p.detach() for p in line.model.parameters()]

    def loss(flat: Tensor) -> Tensor:
        pieces = flat.split([p.numel() for p in like])
        values = {n: f.view_as(p).float() for n, f, p in zip(names, pieces, like, strict=True)}
        return F.mse_loss(torch.func.functional_call(line.model, values, (line.x,)), line.y)

    H = torch.func.hessian(loss)(torch.cat([p.reshape(-1) for p in like]))
    return float(torch.linalg.eigvalsh(H)[-1])


@pytest.mark.parametrize("seed", range(3))
def test_at_the_edge_the_walls_are_above_the_floor(seed: int) -> None:
    """GD at the edge: the loss at the midpoint is clearly below that at the weights, the sharpness about the same."""
    x, y = digits(seed=seed, samples=300)
    model = network(seed=seed)
    optimizer = torch.optim.SGD(model.parameters(), lr=2 / 15)
    options: dict[str, Any] = {"criterion": half_squared_error, "every": lambda t: t >= 400 and t % 20 == 0}
    with watch(model, optimizer, data=(x, y), probes=[Asking(tol=1e-2)], on_error="raise", **options) as run:
        for _ in range(720):
            optimizer.zero_grad()
            half_squared_error(model(x), y).backward()
            optimizer.step()
    at, middle = run.run.select("asking"), run.run.select("midpoint")
    assert len(middle) == len(at) == 16
    losses = [m.values["loss"] / a.values["loss"] for a, m in zip(at, middle, strict=True)]  # type: ignore[operator]
    slopes = [m.values["gradient_norm"] / a.values["gradient_norm"] for a, m in zip(at, middle, strict=True)]  # type: ignore[operator]
    curvatures = [m.value / a.value for a, m in zip(at, middle, strict=True)]  # type: ignore[operator]
    assert sorted(losses)[8] < 0.97 and max(losses) < 1.0
    assert sorted(slopes)[8] < 0.3
    assert sum(0.97 < c < 1.03 for c in curvatures) >= 15  # one of the two may see a crossing first
    assert all(0.9 < c < 1.1 for c in curvatures)
    assert sum(m.matvecs for m in middle) <= 4 * len(middle), [m.matvecs for m in middle]


def test_with_a_preconditioner_the_sharpness_is_what_the_optimizer_sees() -> None:
    torch.manual_seed(0)
    line = Line()
    optimizer = torch.optim.Adam(line.model.parameters(), lr=1e-3)
    with watch(line.model, optimizer, **line.options(probes=[Asking()], every=[20], on_error="raise")) as run:
        for _ in range(30):
            optimizer.zero_grad()
            line.loss().backward()
            optimizer.step()
    (at,), (middle,) = run.run.select("asking"), run.run.select("midpoint")
    assert middle.value == pytest.approx(at.value, rel=0.2)  # three small steps apart
    assert middle.value > 2 * top_of(line)  # and nothing like the Hessian's
    threshold = (2 + 2 * 0.9) / 0.1 * (1 - 0.9**22) / 1e-3
    assert middle.values["threshold"] == pytest.approx(threshold, rel=1e-2)


def test_without_curvature_where_no_probe_wants_any() -> None:
    line = Line()
    run = trained(line, [Asking(curvature=False)], 4, every=[0])
    (record,) = run.run.select("midpoint")
    assert record.value is None and record.matvecs == 0
    assert set(record.values) == {"loss", "gradient_norm", "threshold", "loss_before"}


def trained(line: Line, probes: list[Any], steps: int, **options: Any) -> Watch:
    optimizer = torch.optim.SGD(line.model.parameters(), lr=0.1)
    with watch(line.model, optimizer, **line.options(probes=probes, **options)) as run:
        for _ in range(steps):
            optimizer.zero_grad()
            line.loss().backward()
            optimizer.step()
    return run


def test_nobody_asks_and_nothing_is_measured() -> None:
    assert trained(Line(), [lambda s: {"value": s.loss}], 5).run.select("midpoint") == []


def test_what_else_is_measured_does_not_depend_on_it() -> None:
    class Without(Asking):
        def needs(self) -> Needs:
            return Needs(1, 1e-3, seen=True)

    found = []
    for kind in (Asking, Without):
        torch.manual_seed(0)
        found.append(trained(Line(), [kind()], 12, every=3).run.select("asking"))
    assert [(r.step, r.value) for r in found[0]] == [(r.step, r.value) for r in found[1]]


def test_it_starts_from_the_last_eigenvector_and_not_from_where_the_next_measurement_would(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    known: list[TrackedPair] = []
    warm = TrackedPair.warm

    def seen(self: TrackedPair, *args: Any, **options: Any) -> Any:
        known.append(self)
        return warm(self, *args, **options)

    monkeypatch.setattr(TrackedPair, "warm", seen)
    torch.manual_seed(0)
    trained(Line(), [Asking()], 40, every=4)
    measured, middle = known[1::2], known[2::2]  # the first measurement is cold, and its midpoint warm
    assert len(middle) >= 8
    assert all(pair.before is None and pair.since == 0 for pair in known[::2])
    assert all(pair.before is not None for pair in measured[1:]) and any(pair.since > 0 for pair in measured)


def test_dropout_has_the_masks_of_the_measurement() -> None:
    """At rate zero the weights stay, and so does the loss, whatever the masks are made of."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 30), nn.Dropout(0.5), nn.Linear(30, CLASSES))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    x, y = torch.randn(12, 6), torch.randint(CLASSES, (12,))
    options: dict[str, Any] = {"criterion": F.cross_entropy, "mode": "train", "every": 4, "on_error": "raise"}
    with watch(model, optimizer, data=(x, y), probes=[Asking()], **options) as run:
        for _ in range(12):
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            optimizer.step()
    found = run.run.select("midpoint")
    assert len(found) == 3 and all(r.values["loss"] == pytest.approx(r.values["loss_before"], rel=1e-6) for r in found)
    assert len({r.values["loss"] for r in found}) == 3  # other masks at each measurement


# --------------------------------------------------------------------------- loops


def test_measuring_now_has_its_midpoint_too() -> None:
    line = Line()
    optimizer = torch.optim.SGD(line.model.parameters(), lr=0.3)
    path = []
    with watch(line.model, optimizer, **line.options(probes=[Asking()], every=[99], on_error="raise")) as run:
        for t in range(6):
            if t == 2:
                run.measure_now()
            optimizer.zero_grad()
            line.loss().backward()
            path.append(copies(line.model))
            optimizer.step()
    (record,) = run.run.select("midpoint")
    weights_at(line, path, 2)
    assert record.step == 3 and record.values["loss"] == pytest.approx(line.loss().item(), rel=1e-5)


def test_with_a_layer_frozen_in_between_there_is_none() -> None:
    line = Line()
    optimizer = torch.optim.SGD(line.model.parameters(), lr=0.3)
    with watch(line.model, optimizer, **line.options(probes=[Asking()], every=4, on_error="raise")) as run:
        for t in range(9):
            if t == 1:
                line.model[0].requires_grad_(False)  # type: ignore[index, operator]
            optimizer.zero_grad()
            line.loss().backward()
            optimizer.step()
    assert [r.step for r in run.run.select("midpoint")] == [5]


def test_what_breaks_off_leaves_none_and_comes_out_unchanged() -> None:
    line = Line()
    optimizer = torch.optim.SGD(line.model.parameters(), lr=0.3)
    run = watch(line.model, optimizer, **line.options(probes=[Asking()], every=[0], on_error="raise"))

    def loop() -> None:
        with run:
            line.loss().backward()
            optimizer.step()
            raise KeyError("data")

    with pytest.raises(KeyError, match="data"):
        loop()
    assert run.run.select("midpoint") == [] and run.run.status == "failed"


def test_an_exception_in_the_midst_of_an_update_that_the_loop_catches() -> None:
    """The update is opened, does not come about, and is opened again."""
    line = Line()
    optimizer = torch.optim.SGD(line.model.parameters(), lr=0.3)
    path = []

    def closure(fails: bool) -> Tensor:
        if fails:
            raise OSError("on purpose")
        optimizer.zero_grad()
        loss = line.loss()
        loss.backward()
        return loss

    with watch(line.model, optimizer, **line.options(probes=[Asking()], every=[0], on_error="raise")) as run:
        for t in range(7):
            fails = t in (1, 3)
            if not fails:
                path.append(copies(line.model))
            with contextlib.suppress(OSError):
                optimizer.step(functools.partial(closure, fails))  # type: ignore[arg-type]
    (record,) = run.run.select("midpoint")
    weights_at(line, path, 0)
    assert record.values["loss"] == pytest.approx(line.loss().item(), rel=1e-5)
    assert run.steps == 5


def test_a_failure_there_is_recorded_and_the_loop_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    for error, status in ((ArithmeticError("on purpose"), "error"), (NonFiniteError("on purpose"), "nonfinite")):

        def failing(*_: Any, error: Exception = error) -> Measurement:
            raise error

        monkeypatch.setattr("losscope.probes.midpoint.Midpoint.measure", failing)
        quiet = contextlib.nullcontext() if status == "nonfinite" else pytest.warns(RuntimeWarning, match="on purpose")
        with quiet:
            run = trained(Line(), [Asking()], 8, every=3)
        found = run.run.select("midpoint", ok=False)
        assert [(r.step, r.status) for r in found] == [(1, status), (4, status)]
        assert len(run.run.select("asking")) == 3 and run.steps == 8


def test_weights_that_cannot_be_followed_are_warned_about_once(monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(*_: Any) -> bool:
        raise ArithmeticError("on purpose")

    monkeypatch.setattr(MidpointWatch, "follow", failing)
    with pytest.warns(RuntimeWarning, match="midpoint of 'model' failed at step 1.*on purpose") as caught:
        run = trained(Line(), [Asking()], 8, every=3)
    assert len(caught) == 1 and run.steps == 8 and len(run.run.select("asking")) == 3
    assert run.run.select("midpoint", ok=False) == []


def test_its_time_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("losscope.probes.budget.time.perf_counter", lambda: now[0])
    measure = "losscope.probes.midpoint.Midpoint.measure"

    def slow(*_: Any) -> Measurement:
        now[0] += 1.0
        return Measurement()

    monkeypatch.setattr(measure, slow)
    run = trained(Line(), [Asking()], 9, every=3)
    assert run.run.meta["cost"]["seconds_measuring"] == len(run.run.select("midpoint")) == 3


def test_one_copy_of_the_parameters_is_held_and_let_go() -> None:
    line = Line()
    optimizer = torch.optim.SGD(line.model.parameters(), lr=0.1)
    held = []
    with watch(line.model, optimizer, **line.options(probes=[Asking(curvature=False)], every=[0])) as run:
        follower = run._follower(None)
        for _ in range(4):
            optimizer.zero_grad()
            line.loss().backward()
            optimizer.step()
            held.append(0 if follower._midpoint is None else len(follower._midpoint.values))
    parameters = len(list(line.model.parameters()))
    assert held == [parameters, parameters, 0, 0]


# --------------------------------------------------------------------------- training does not notice


def test_a_record_of_it_is_read_back(tmp_path: Any) -> None:
    trained(Line(), [Asking()], 8, every=3, out=tmp_path / "run")
    from losscope.probes import Run

    found: list[Record] = Run(tmp_path / "run").select("midpoint")
    assert [r.step for r in found] == [1, 4] and all(r.values["loss_before"] for r in found)


def test_steps_of_it_interleave_with_what_is_due_every_step() -> None:
    """One is under way at a time: with measurements at every step, there is a midpoint at every other one."""
    run = trained(Line(), [Asking(curvature=False)], 10, every=1)
    steps = [r.step for r in run.run.select("midpoint")]
    assert steps == [1, 3, 5, 7] and all(b - a == 2 for a, b in itertools.pairwise(steps))
