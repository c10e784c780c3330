"""Probe Trajectory: against the weights of every step, whole and sketched; resumed, killed, frozen, several players."""

import itertools
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from losscope.landscape import Hessian, Objective, RunError, SettingError
from losscope.landscape.surface import WeightSketch, trajectory_axes, trajectory_axes_from, weight_trajectory
from losscope.probes import Player, Run, Trajectory, checkpoints_of, trajectory_of, watch

SKETCHED = {"dimension": 60, "exact": False}


def problem(hidden: int = 40) -> tuple[nn.Module, torch.optim.Optimizer, tuple[Tensor, Tensor]]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, hidden), nn.Tanh(), nn.Linear(hidden, 3))
    x, y = torch.randn(60, 4), torch.randint(3, (60,))
    return model, torch.optim.SGD(model.parameters(), lr=0.5, momentum=0.9), (x, y)


def step(model: nn.Module, optimizer: torch.optim.Optimizer, data: tuple[Tensor, Tensor]) -> None:
    optimizer.zero_grad()
    F.cross_entropy(model(data[0]), data[1]).backward()
    optimizer.step()


def vector(model: nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()]).double()


def trained(
    probe: Any, steps: int = 12, every: Any = 2, skip: int = 0, seen: list[Tensor] | None = None, **options: Any
) -> Run:
    """A run of the steps from ``skip`` on; the weights before each of them go to a list."""
    model, optimizer, data = problem()
    for _ in range(skip):
        step(model, optimizer, data)
    options = {"data": data, "criterion": F.cross_entropy, "on_error": "raise"} | options
    with watch(model, optimizer, every=every, probes=[probe], **options) as run:
        for _ in range(skip, steps):
            if seen is not None:
                seen.append(vector(model))
            step(model, optimizer, data)
    return run.run


# --------------------------------------------------------------------------- numbers


def test_numbers_are_those_of_the_weights_at_each_step() -> None:
    seen: list[Tensor] = []
    run = trained(Trajectory(), seen=seen)
    records = run.select("trajectory")
    assert [r.step for r in records] == list(range(0, 12, 2))
    points = seen[::2]
    moves = [b - a for a, b in itertools.pairwise(points)]
    for i, record in enumerate(records):
        values = record.values
        np.testing.assert_array_equal(run.array(record, "weights"), points[i].float().numpy())
        assert record.value == record.low == record.high == pytest.approx(float((points[i] - points[0]).norm()))
        assert values["norm"] == pytest.approx(float(points[i].norm()))
        assert values["path_length"] == pytest.approx(float(sum(m.norm() for m in moves[:i])))
        assert (values["start"], values["since"]) == (0, 2 * i - 2 if i else None)
        assert (values["size"], values["dimension"]) == (323, 323)
        assert values["update"] == pytest.approx(
            float((seen[2 * i + 1] - points[i]).norm()) if i < 5 else values["update"]
        )
        if i:
            assert values["displacement"] == pytest.approx(float(moves[i - 1].norm()))
        if i > 1:
            assert values["cosine"] == pytest.approx(float(F.cosine_similarity(moves[i - 2], moves[i - 1], dim=0)))
            assert values["cosine_low"] == values["cosine"] == values["cosine_high"]
    found, exact = trajectory_of(run), weight_trajectory(points, steps=range(0, 12, 2))
    assert found.exact
    assert torch.allclose(found.coordinates, exact.coordinates) and torch.equal(found.steps, exact.steps)
    stored = checkpoints_of(run)
    assert stored.steps == found.steps.tolist() and torch.equal(torch.stack(list(stored)), torch.stack(points).float())
    assert stored[1:3].steps == [2, 4] and len(stored[1:3]) == 2


def test_sketches_with_two_copies_of_the_weights() -> None:
    """Distances are exact, the rest is within its interval, and what is stored is the sketch."""
    seen: list[Tensor] = []
    run = trained(Trajectory(**SKETCHED), steps=60, seen=seen)
    points = seen[::2]
    exact = weight_trajectory(points)
    sketch = WeightSketch(323, 60)
    covered = []
    for i, record in enumerate(run.select("trajectory")):
        assert list(record.arrays) == ["sketch"]
        np.testing.assert_array_equal(run.array(record, "sketch"), sketch(points[i]).numpy())
        assert record.low == record.value == record.high == pytest.approx(float(exact.distances[i]), rel=1e-12)
        values = record.values
        assert values["path_length_low"] == values["path_length"] == pytest.approx(float(exact.lengths[i]), rel=1e-12)
        if i > 2:  # the distances between three points tell their angle
            assert values["cosine_low"] < values["cosine_high"] <= 1
            covered.append(values["cosine_low"] <= exact.cosines[i - 2] <= values["cosine_high"])
    assert np.mean(covered) > 0.8
    found = trajectory_of(run)
    assert not found.exact and found.dimension == 60
    assert ((found.explained - exact.explained).abs() < 4 * found.explained_errors).all()
    assert torch.allclose(found.lengths, exact.lengths) and not found.length_errors.any()


def test_sketches_alone_have_intervals() -> None:
    seen: list[Tensor] = []
    run = trained(Trajectory(**SKETCHED, copies=False), steps=40, seen=seen)
    exact = weight_trajectory(seen[::2])
    inside = []
    for i, record in enumerate(run.select("trajectory")[1:], 1):
        assert 0 <= record.low < record.value < record.high
        inside.append(record.low <= exact.distances[i] <= record.high)
        values = record.values
        assert values["path_length_low"] <= exact.lengths[i] <= values["path_length_high"]
    assert np.mean(inside) > 0.7  # one sketch: its errors are much the same at all steps
    assert trajectory_of(run).distance_errors[1:].min() > 0


def test_it_chooses_by_the_number_of_parameters() -> None:
    assert trained(Trajectory(dimension=323)).records[-1].arrays.keys() == {"weights"}
    assert trained(Trajectory(dimension=322)).records[-1].arrays.keys() == {"sketch"}
    both = trained(Trajectory(dimension=322, checkpoints=True))
    assert both.records[-1].arrays.keys() == {"sketch", "weights"}
    assert len(checkpoints_of(both)) == 6
    with pytest.raises(RunError, match="checkpoints=True"):
        checkpoints_of(trained(Trajectory(dimension=322)))
    with pytest.raises(RunError, match=r"add probe Trajectory\(\)"):
        trajectory_of(Run.from_records({"players": {"model": {}}}, []))


def test_neither_a_gradient_nor_a_product(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Hessian) -> Any:
        raise AssertionError("a gradient was taken")

    monkeypatch.setattr(Hessian, "value_and_gradient", refuse)
    run = trained(Trajectory(**SKETCHED))
    assert len(run.select("trajectory")) == 6 and {r.matvecs for r in run.records} == {0}


def test_weights_are_recorded_where_the_loss_is_not_finite_and_not_where_they_are_not() -> None:
    model, optimizer, (x, y) = problem()
    with watch(model, optimizer, data=(x * math.nan, y), criterion=F.cross_entropy, probes=[Trajectory()]) as run:
        (fine,) = run.measure_now()
        with torch.no_grad():
            model[0].weight[0, 0] = math.inf
        (broken,) = run.measure_now()
    assert (fine.status, broken.status) == ("ok", "nonfinite")
    assert broken.reason == "a weight is NaN or infinite"


def test_half_precision_and_one_parameter() -> None:
    model = nn.Linear(40, 1, bias=False).bfloat16()
    optimizer, data = torch.optim.SGD(model.parameters(), lr=0.1), (torch.randn(8, 40).bfloat16(), torch.ones(8, 1))
    loss = lambda out, y: (out.float() - y).square().mean()  # noqa: E731
    seen = []
    for probe in (Trajectory(), Trajectory(dimension=8, checkpoints=True)):
        with watch(model, optimizer, data=data, criterion=loss, every=1, probes=[probe], on_error="raise") as run:
            for _ in range(3):
                seen.append(vector(model))
                optimizer.zero_grad()
                loss(model(data[0]), data[1]).backward()
                optimizer.step()
        points = torch.stack(seen[-3:])
        assert torch.equal(torch.stack(list(checkpoints_of(run.run))).double(), points)
        assert run.run.records[-1].value == pytest.approx(float((points[-1] - points[0]).norm()), rel=1e-12)


def test_the_plane_of_a_run() -> None:
    """From the sketches' components in a second pass, and from the weights themselves: nearly the same."""
    model, optimizer, data = problem()
    objective = Objective(model, data, criterion=F.cross_entropy)
    probe = Trajectory(dimension=100, exact=False, checkpoints=True)
    with watch(model, optimizer, data=data, criterion=F.cross_entropy, every=1, probes=[probe]) as run:
        for _ in range(30):
            step(model, optimizer, data)
    stored, found = checkpoints_of(run.run), trajectory_of(run.run)
    exact = trajectory_axes(objective, stored, about="mean")
    recovered = trajectory_axes_from(objective, stored, found.combination)
    assert abs(float(recovered.axes[0].vector @ exact.axes[0].vector)) > 0.98
    assert torch.allclose(recovered.explained, exact.explained, atol=0.02)


# --------------------------------------------------------------------------- the path over a run


@pytest.mark.parametrize("options", [{}, {**SKETCHED, "checkpoints": True}, SKETCHED])
def test_resuming_goes_on_with_the_path(options: dict[str, Any], tmp_path: Path) -> None:
    whole = trained(Trajectory(**options), steps=24).select("trajectory")
    trained(Trajectory(**options), steps=10, out=tmp_path / "run")
    with (tmp_path / "run" / "records.jsonl").open("a") as file:
        file.write('{"v":1,"step":10,"player":"mo')  # cut short by a kill
    trained(Trajectory(**options), steps=24, skip=10, out=tmp_path / "run", resume=True)
    run = Run(tmp_path / "run")
    resumed = run.select("trajectory")
    assert [r.step for r in resumed] == [r.step for r in whole]
    for one, other in zip(resumed, whole, strict=True):
        known = options != SKETCHED or one.step < 10  # without its weights, the start is known by its sketch only
        assert one.values.keys() == other.values.keys()
        assert one.values["since"] == other.values["since"] and one.values["start"] == 0
        if known:
            assert one.value == pytest.approx(other.value, rel=1e-9)
            assert one.values["path_length"] == pytest.approx(other.values["path_length"], rel=1e-9)
        else:
            assert one.low < other.value < one.high
            assert one.values["path_length_low"] < other.values["path_length"] < one.values["path_length_high"]
    assert len(trajectory_of(run).steps) == 12


def test_a_run_that_goes_on_from_before_its_last_record(tmp_path: Path) -> None:
    """A loop that was killed goes on from its last checkpoint: what came after that is not of this path."""
    trained(Trajectory(), steps=15, every=3, out=tmp_path / "run")
    trained(Trajectory(), steps=22, every=2, skip=8, out=tmp_path / "run", resume=True, first_step=8)
    run = Run(tmp_path / "run")
    assert [r.step for r in run.select("trajectory")] == [0, 3, 6, 8, 9, 10, 12, 14, 16, 18, 20]
    assert trajectory_of(run).steps.tolist() == [0, 3, 6, 8, 10, 12, 14, 16, 18, 20]
    seen: list[Tensor] = []
    trained(Trajectory(), steps=22, every=2, seen=seen)
    assert run.select("trajectory")[-1].value == pytest.approx(float((seen[20] - seen[0]).norm()))


def test_it_begins_anew_where_it_cannot_go_on(tmp_path: Path) -> None:
    trained(Trajectory(), steps=10, out=tmp_path / "run")
    trained(Trajectory(**SKETCHED), steps=20, skip=10, out=tmp_path / "run", resume=True)
    assert trajectory_of(Run(tmp_path / "run")).steps.tolist() == [10, 12, 14, 16, 18]
    for file in (tmp_path / "run" / "arrays").iterdir():
        file.unlink()
    trained(Trajectory(**SKETCHED), steps=26, skip=20, out=tmp_path / "run", resume=True)
    assert trajectory_of(Run(tmp_path / "run")).steps.tolist() == [20, 22, 24]


def test_frozen_parameters_begin_a_path_of_their_own() -> None:
    model, optimizer, data = problem()
    with watch(
        model, optimizer, data=data, criterion=F.cross_entropy, every=1, probes=[Trajectory()], on_error="raise"
    ) as run:
        for t in range(8):
            if t == 4:
                model[0].requires_grad_(False)
            step(model, optimizer, data)
    records = run.run.select("trajectory")
    assert [r.values["size"] for r in records] == [323.0] * 4 + [123.0] * 4
    assert [r.values["start"] for r in records] == [0.0] * 4 + [4.0] * 4
    assert trajectory_of(run.run).steps.tolist() == [4, 5, 6, 7]


def test_two_players_have_paths_of_their_own() -> None:
    players, loops = [], []
    for i, rate in enumerate((0.0, 0.5)):
        model, optimizer, data = problem()
        optimizer.param_groups[0]["lr"] = rate
        players.append(Player(f"p{i}", model, optimizer, data, criterion=F.cross_entropy))
        loops.append((model, optimizer, data))
    with watch(players, every=1, probes=[Trajectory(**SKETCHED)], on_error="raise") as run:
        for _ in range(5):
            for loop in loops:
                step(*loop)
    still, moving = (trajectory_of(run.run, f"p{i}") for i in range(2))
    assert still.lengths.tolist() == [0.0] * 5 and still.explained.isnan().all()
    assert moving.distances[-1] > 0.1
    assert run.run.select("trajectory", "p0")[-1].values["cosine"] is None


@pytest.mark.parametrize("options", [{}, SKETCHED])
def test_a_point_that_is_measured_again_replaces_the_first(options: dict[str, Any]) -> None:
    model, optimizer, data = problem()
    with watch(model, optimizer, data=data, criterion=F.cross_entropy, every=1, probes=[Trajectory(**options)]) as run:
        step(model, optimizer, data)
        step(model, optimizer, data)
        (first,) = run.measure_now()
        (again,) = run.measure_now()
        step(model, optimizer, data)
    assert again.value == pytest.approx(first.value) and again.values["since"] == first.values["since"] == 1
    assert again.values["path_length_low"] <= first.values["path_length"] <= again.values["path_length_high"]
    assert trajectory_of(run.run).steps.tolist() == [0, 1, 2]


def test_long_runs_are_thinned() -> None:
    run = trained(Trajectory(**SKETCHED), steps=50, every=1)
    found = trajectory_of(run, most=10)
    assert len(found.steps) == 10 and found.steps[[0, -1]].tolist() == [0, 49]
    last = run.select("trajectory")[-1]
    assert found.distances[-1] == last.value and found.lengths[-1] < last.values["path_length"]
    with pytest.raises(SettingError, match="most"):
        trajectory_of(run, most=1)


@pytest.mark.parametrize("options", [{"dimension": 4}, {"exact": 1}, {"copies": None}, {"checkpoints": "yes"}])
def test_bad_settings(options: dict[str, Any]) -> None:
    with pytest.raises(SettingError, match=next(iter(options))):
        Trajectory(**options)
