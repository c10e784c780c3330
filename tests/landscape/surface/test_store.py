"""Resumed evaluations: killed in the middle and taken up again, torn files, and files of something else."""

import copy
import itertools
import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from losscope.landscape import DataError, Objective, SettingError
from losscope.landscape.surface import Axis, Evaluator, PointStore, asked_of, line, plane

ASKED = {"data": {"said": "4 samples", "mark": "ab12"}, "loss at the origin": {"said": "2", "mark": [2.0]}}
GRID = torch.linspace(-1, 1, 60, dtype=torch.float64)[:, None]


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 3))


def interrupted(at: int, error: type[BaseException]) -> Any:
    """Cross-entropy that fails at one of its calls."""
    calls = itertools.count(1)  # not an attribute: those are put back after each evaluation

    def criterion(outputs: Tensor, targets: Tensor) -> Tensor:
        if next(calls) == at:
            raise error
        return F.cross_entropy(outputs, targets)

    return criterion


def objective_of(criterion: Any = F.cross_entropy, **options: Any) -> Objective:
    model = net()
    torch.manual_seed(1)
    batches = [(torch.randn(n, 4), torch.randint(3, (n,))) for n in (7, 5)]
    return Objective(model, batches, criterion=criterion, weight=lambda batch: len(batch[1]), **options)


def axis_of(objective: Objective, seed: int = 2) -> Axis:
    torch.manual_seed(seed)
    return Axis(torch.randn(objective.space.size), "a line")


def evaluator_of(objective: Objective, path: Path | None, **options: Any) -> Evaluator:
    return Evaluator(objective, None, [axis_of(objective)], engine="one by one", store=path, **options)


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_interrupted_and_resumed_is_as_uninterrupted(tmp_path: Path, error: type[BaseException]) -> None:
    path = tmp_path / "folder" / "points.jsonl"
    whole = evaluator_of(objective_of(), None)
    wanted = whole(GRID)
    objective = objective_of(interrupted(100, error))
    before = copy.deepcopy(objective.model.state_dict())
    first = evaluator_of(objective, path)
    with pytest.raises(error):
        first(GRID)
    assert all(torch.equal(value, before[name]) for name, value in objective.model.state_dict().items())
    kept = len(path.read_text().splitlines()) - 1
    assert 0 < kept < len(GRID) and first.evaluations == kept
    second = evaluator_of(objective_of(), path)
    found = second(GRID)
    assert torch.equal(found["loss"], wanted["loss"])
    assert first.evaluations + second.evaluations == whole.evaluations == len(GRID)
    third = evaluator_of(objective_of(), path)
    assert torch.equal(third(GRID)["loss"], wanted["loss"]) and third.evaluations == 0


@pytest.mark.parametrize("statistics", ["kept", "recomputed"])
def test_a_refined_plane_that_is_interrupted_again_and_again(tmp_path: Path, statistics: str) -> None:
    options: dict[str, Any] = {
        "points": 7, "refine": 20, "span": (-4, 4), "statistics": statistics, "engine": "one by one", "model": False,
    }  # fmt: skip
    whole = plane(objective_of(), **options)
    assert whole.refined is not None and whole.evaluations == 49 + len(whole.refined.x)
    path, passes = tmp_path / "points", 0
    for _ in range(40):
        try:
            resumed = plane(objective_of(interrupted(100, KeyboardInterrupt)), resume=path, **options)
            break
        except KeyboardInterrupt:
            passes += 1
    assert 1 < passes < 40 and resumed.refined is not None
    assert torch.equal(resumed.loss, whole.loss) and resumed.center == whole.center
    assert torch.equal(resumed.refined.x, whole.refined.x) and torch.equal(resumed.refined.y, whole.refined.y)
    assert torch.equal(resumed.refined.values["loss"], whole.refined.values["loss"])
    assert len(path.read_text().splitlines()) == 1 + whole.evaluations
    assert plane(objective_of(), resume=path, **options).evaluations == 0


def test_a_line_along_another_direction_does_not_resume(tmp_path: Path) -> None:
    line(objective_of(), seed=0, points=5, resume=tmp_path / "points")
    with pytest.raises(SettingError, match=r"axis 1 \(random, by filters.* there, .* here\)"):
        line(objective_of(), seed=1, points=5, resume=tmp_path / "points")
    with pytest.raises(SettingError, match="the values"):
        line(objective_of(), seed=0, points=5, metrics="accuracy", resume=tmp_path / "points")
    assert line(objective_of(), seed=0, points=[-1, 0.25, 1], resume=tmp_path / "points").evaluations == 1


SCRIPT = """
import sys, time, torch
sys.path[:0] = [{support!r}, {here!r}]
import test_store
from torch.nn import functional as F

def slowly(outputs, targets):
    time.sleep(0.005)
    return F.cross_entropy(outputs, targets)

test_store.evaluator_of(test_store.objective_of(slowly), {path!r})(test_store.GRID)
print("finished")
"""


def test_killed_and_resumed_is_as_uninterrupted(tmp_path: Path) -> None:
    path, here = tmp_path / "points.jsonl", Path(__file__).parent
    script = SCRIPT.format(support=str(here.parents[1] / "support"), here=str(here), path=str(path))
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    until = time.monotonic() + 60
    while not (path.exists() and path.read_bytes().count(b"\n") > 1):
        assert process.poll() is None and time.monotonic() < until
        time.sleep(0.005)
    os.kill(process.pid, signal.SIGKILL)
    output, _ = process.communicate()
    assert process.returncode == -signal.SIGKILL and output == ""
    kept = path.read_bytes().count(b"\n") - 1
    resumed = evaluator_of(objective_of(), path)
    found = resumed(GRID)
    assert torch.equal(found["loss"], evaluator_of(objective_of(), None)(GRID)["loss"])
    assert resumed.evaluations == len(GRID) - kept < len(GRID)


def test_progress_counts_what_the_file_held(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(type(sys.stderr), "isatty", lambda _: True)
    evaluator_of(objective_of(), tmp_path / "points")(GRID[:45])
    evaluator_of(objective_of(), tmp_path / "points", progress=True)(GRID)
    shown = capsys.readouterr().err
    assert "75%" in shown and "45/60" in shown and "100%" in shown and "60/60" in shown


def test_a_finer_grid_uses_the_points_of_a_coarser_one(tmp_path: Path) -> None:
    coarse = evaluator_of(objective_of(), tmp_path / "points")
    coarse(GRID[::2])
    fine = evaluator_of(objective_of(), tmp_path / "points")
    assert torch.equal(fine(GRID)["loss"], evaluator_of(objective_of(), None)(GRID)["loss"])
    assert fine.evaluations == 30


def test_the_centre_is_the_plain_forward_also_when_resumed(tmp_path: Path) -> None:
    """A file from another machine holds other last bits."""
    objective, path = objective_of(), tmp_path / "points"
    evaluator_of(objective, path)
    store = PointStore(path, json.loads(path.read_text())["asked"], ["loss"])
    store.write(torch.zeros(1, 1), {"loss": torch.tensor([objective.value() * (1 + 1e-7)], dtype=torch.float64)})
    evaluator = evaluator_of(objective, path)
    assert evaluator(torch.zeros(1, 1))["loss"].item() == objective.value()
    assert evaluator.evaluations == 0


@pytest.mark.parametrize("cut", range(0, 12, 3))
def test_a_torn_last_entry_is_not_read(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "points"
    store = PointStore(path, ASKED, ["loss"])
    coordinates = torch.tensor([[0.125], [0.3], [1 / 3]], dtype=torch.float64)
    values = torch.tensor([1.0, 2.0, math.pi], dtype=torch.float64)
    store.write(coordinates, {"loss": values})
    content = path.read_bytes()
    path.write_bytes(content[: len(content) - 1 - cut])
    for _ in range(2):
        again = PointStore(path, ASKED, ["loss"])
        known, found = again.read(coordinates)
        assert known.tolist() == [True, True, cut == 0] or not cut
        assert torch.equal(found["loss"][:2], values[:2])
    again.write(coordinates[2:], {"loss": values[2:]})
    known, found = PointStore(path, ASKED, ["loss"]).read(coordinates)
    assert known.all() and torch.equal(found["loss"], values)


def test_killed_before_the_first_line_was_whole(tmp_path: Path) -> None:
    path = tmp_path / "points"
    PointStore(path, ASKED, ["loss"])
    header = path.read_bytes()
    for length in (0, 5, 30, len(header) - 1):
        path.write_bytes(header[:length])
        assert len(PointStore(path, ASKED, ["loss"])) == 0
        assert path.read_bytes() == header


def test_values_of_any_kind_come_back_as_they_were(tmp_path: Path) -> None:
    values = torch.tensor([math.nan, math.inf, -math.inf, 0.1, 1e-320, -0.0], dtype=torch.float64)
    coordinates = torch.stack([values.nan_to_num(1.0, 2.0, 3.0), torch.arange(6).double() / 7], dim=1)
    store = PointStore(tmp_path / "points", ASKED, ["loss", "accuracy"])
    store.write(coordinates, {"accuracy": values.flip(0), "loss": values})
    for written in (tmp_path / "points").read_text().splitlines():
        json.loads(written, parse_constant=pytest.fail)  # strict: no NaN, no Infinity
    for each in (store, PointStore(tmp_path / "points", ASKED, ["loss", "accuracy"])):
        known, found = each.read(coordinates)
        assert known.all() and len(each) == 6
        assert found["loss"].numpy().tobytes() == values.numpy().tobytes()
        assert found["accuracy"].numpy().tobytes() == values.flip(0).numpy().tobytes()


def asked(objective: Objective, *, seed: int = 2, statistics: str = "kept", more: tuple[Axis, ...] = ()) -> dict:
    center = {"loss": objective.value()}
    return asked_of(objective, None, [axis_of(objective, seed), *more], statistics=statistics, center=center)


def differing(tmp_path: Path, other: dict, names: tuple[str, ...] = ("loss",)) -> str:
    path = tmp_path / "points"
    path.unlink(missing_ok=True)
    PointStore(path, asked(objective_of()), ["loss"])
    before = path.read_bytes()
    with pytest.raises(SettingError) as caught:
        PointStore(path, other, names)
    assert path.read_bytes() == before
    return str(caught.value)


def test_a_file_of_something_else_is_refused_and_what_differs_is_named(tmp_path: Path) -> None:
    moved = objective_of()
    moved.model[0].weight.data[0, 0] += 1e-6
    told = differing(tmp_path, asked(moved))
    assert "parameters (83 parameters there, 83 parameters of another content here)" in told and "axis" not in told

    assert "axis 1 (a line, of length" in differing(tmp_path, asked(objective_of(), seed=3))
    more = asked(objective_of(), more=(Axis(torch.ones(83), "ones"),))
    assert "axis 2 (none there, ones, of length 9.11043 here)" in differing(tmp_path, more)
    assert "statistics ('kept' there, 'frozen' here)" in differing(tmp_path, asked(objective_of(), statistics="frozen"))
    assert "mode ('eval' there, 'train' here)" in differing(tmp_path, asked(objective_of(mode="train")))

    gathered = objective_of()
    gathered.model[1].running_mean.add_(0.5)
    assert "buffers (3 buffers there, 3 buffers of another content here)" in differing(tmp_path, asked(gathered))

    other = objective_of()
    other.data[0][1][0] = (other.data[0][1][0] + 1) % 3
    assert "data (2 batches of weight 12 there" in differing(tmp_path, asked(other))

    doubled = objective_of(lambda outputs, targets: 2 * F.cross_entropy(outputs, targets))
    told = differing(tmp_path, asked(doubled))
    assert "loss at the origin (" in told and "data" not in told

    told = differing(tmp_path, asked(objective_of()), ("loss", "accuracy"))
    assert "the values (loss there, loss, accuracy here)" in told and "points of something else" in told


def test_rounding_is_no_difference(tmp_path: Path) -> None:
    """Axes and losses are computed again when an evaluation is resumed, maybe with other threads."""
    objective = objective_of()
    axis = axis_of(objective)
    first = asked_of(objective, None, [axis], statistics="kept", center={"loss": 2.0, "nan": math.nan})
    near = Axis(axis.vector * (1 + 1e-6 * torch.randn(83)), axis.name)
    PointStore(tmp_path / "points", first, ["loss", "nan"])
    second = asked_of(objective, None, [near], statistics="kept", center={"loss": 2.00001, "nan": math.nan})
    PointStore(tmp_path / "points", second, ["loss", "nan"])


@pytest.mark.parametrize("content", ["my notes\n", "my notes", '{"a": 1}\n', "[1]\n", "\n"])
def test_a_file_that_is_none_of_ours_is_left_alone(tmp_path: Path, content: str) -> None:
    path = tmp_path / "notes"
    path.write_text(content)
    with pytest.raises(DataError, match="is not a file of points"):
        PointStore(path, ASKED, ["loss"])
    assert path.read_text() == content


def test_a_file_of_a_later_version_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "points"
    PointStore(path, ASKED, ["loss"])
    path.write_text(path.read_text().replace('"version": 1', '"version": 2'))
    with pytest.raises(DataError, match="version 2"):
        PointStore(path, ASKED, ["loss"])
