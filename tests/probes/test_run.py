"""Watched runs, written and read back."""

import dataclasses
import json
import math
import os
import shutil

import numpy as np
import pytest
import torch
from torch import nn

from losscope.landscape import RunError, SettingError
from losscope.probes import Record, Run, Sharpness, Watch, watch

X, Y = torch.randn(8, 3, generator=torch.Generator().manual_seed(1)), torch.zeros(8, 1)
MSE = nn.MSELoss()


def build(seed: int = 0, inputs: int = 3) -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(seed)
    model = nn.Linear(inputs, 1)
    return model, torch.optim.SGD(model.parameters(), lr=0.01)


def spectrum(snapshot):
    """A user's probe that returns arrays."""
    return {
        "value": snapshot.loss,
        "gradient": snapshot.gradient,
        "shape": np.arange(3),
        "norm": snapshot.gradient_norm,
    }


def train(out=None, *, steps=6, seed=0, after=None, made=None, **options) -> Watch:
    model, optimizer = made or build(seed)
    options = {"data": (X, Y), "criterion": MSE, "every": 2, "probes": [Sharpness(), spectrum]} | options
    with watch(model, optimizer, out=out, **options) as run:
        for _ in range(steps):
            optimizer.zero_grad()
            loss = MSE(model(X), Y)
            loss.backward()
            optimizer.step()
            run.log(loss=loss)
        if after:
            after(run)
    return run


def steps_of(run: Run, probe: str = "sharpness") -> list[int]:
    return [r.step for r in run.select(probe)]


def without_clock(records: list[Record]) -> list[Record]:
    return [dataclasses.replace(r, time=0.0, seconds=0.0, arrays={}) for r in records]


# --------------------------------------------------------------------------- what a run is


def test_a_run_in_memory_says_what_a_run_in_a_folder_says(tmp_path):
    kept, written = train().run, train(tmp_path / "run").run
    assert kept.path is None
    assert written.path == tmp_path / "run"
    assert repr(without_clock(kept.records)) == repr(without_clock(written.records))
    assert kept.audit().criteria == written.audit().criteria
    volatile = {"created", "finished", "cost"}
    assert {k: v for k, v in kept.meta.items() if k not in volatile} == {
        k: v for k, v in written.meta.items() if k not in volatile
    }


def test_what_is_found_in_it(tmp_path):
    train(tmp_path / "run")
    run = Run(tmp_path / "run")
    assert (run.name, run.status, run.players, run.malformed) == ("run", "finished", ["model"], 0)
    assert run.probes == ["sharpness", "spectrum"]
    assert steps_of(run) == [0, 2, 4]
    steps, losses = run.logged("loss")
    assert steps.tolist() == [0, 1, 2, 3, 4, 5]
    assert (np.diff(losses) < 0).all()
    assert losses[0] == pytest.approx(run.select("sharpness")[0].values["loss"], rel=1e-6)
    assert "Run(" in repr(run)
    assert "finished" in repr(run)
    with pytest.raises(RunError, match="no player 'critic'; it has model"):
        run.select("sharpness", "critic")
    meta = json.loads((tmp_path / "run" / "meta.json").read_text())
    assert meta["versions"]["torch"] == torch.__version__
    assert meta["players"]["model"]["parameters"] == 4
    assert meta["steps"] == {"model": 6}
    assert meta["cost"]["seconds_measuring"] < meta["cost"]["seconds_total"]


def test_it_is_readable_while_it_is_written(tmp_path):
    seen = []
    train(tmp_path / "run", after=lambda _: seen.append(Run(tmp_path / "run")))
    (during,) = seen
    assert during.status == "running"
    assert steps_of(during) == [0, 2, 4]


def test_an_exception_in_the_loop_closes_the_run_as_failed(tmp_path):
    class Stop(Exception):
        pass

    def stop(_):
        raise Stop("enough")

    with pytest.raises(Stop, match="enough"):
        train(tmp_path / "run", after=stop)
    run = Run(tmp_path / "run")
    assert (run.status, run.meta["reason"]) == ("failed", "Stop: enough")
    assert steps_of(run) == [0, 2, 4]


def test_every_line_is_strict_json_in_one_write_also_when_the_loss_is_not_finite(tmp_path):
    def refuse(constant):
        raise AssertionError(constant)

    train(tmp_path / "run", after=lambda run: run.log(loss=math.nan, peak=torch.tensor(math.inf)))
    for line in (tmp_path / "run" / "records.jsonl").read_text().splitlines():
        json.loads(line, parse_constant=refuse)
    losses = Run(tmp_path / "run").logged("loss")[1]
    assert math.isnan(losses[-1])
    assert Run(tmp_path / "run").logged("peak")[1].tolist() == [math.inf]


# --------------------------------------------------------------------------- arrays


def test_arrays_are_stored_and_loaded(tmp_path):
    train(tmp_path / "run")
    run = Run(tmp_path / "run")
    first = run.select("spectrum")[0]
    assert first.arrays == {
        "gradient": "arrays/model-spectrum-0-gradient.npy", "shape": "arrays/model-spectrum-0-shape.npy",
    }  # fmt: skip
    gradient = run.array(first, "gradient")
    assert gradient.shape == (4,)
    assert np.linalg.norm(gradient) == pytest.approx(first.values["norm"], rel=1e-6)
    assert run.array(first, "shape").tolist() == [0, 1, 2]
    with pytest.raises(RunError, match=r"no array 'kernel'; it has \['gradient', 'shape'\]"):
        run.array(first, "kernel")
    (tmp_path / "run" / first.arrays["shape"]).unlink()
    with pytest.raises(RunError, match="cannot read"):
        run.array(first, "shape")


def test_eigenvectors_are_not_stored(tmp_path):
    train(tmp_path / "run", probes=None, batch_size=8)
    assert sorted(p.name for p in (tmp_path / "run").iterdir()) == ["meta.json", "records.jsonl"]
    assert all(not r.arrays for r in Run(tmp_path / "run").records)


def test_names_of_arrays_cannot_leave_the_folder(tmp_path):
    def evil(snapshot):
        return {"../../up": np.ones(2), "a b/c:d": np.ones(3), "\u00fc": np.ones(1)}

    train(tmp_path / "in" / "run", probes=[evil], steps=1)
    run = Run(tmp_path / "in" / "run")
    record = run.select("evil")[0]
    for name, size in (("../../up", 2), ("a b/c:d", 3), ("\u00fc", 1)):
        assert run.array(record, name).shape == (size,)
        assert (tmp_path / "in" / "run" / record.arrays[name]).parent == tmp_path / "in" / "run" / "arrays"
    assert [p.name for p in tmp_path.iterdir()] == ["in"]
    assert [p.name for p in (tmp_path / "in").iterdir()] == ["run"]


# --------------------------------------------------------------------------- resuming


def test_records_cannot_name_arrays_outside_the_folder(tmp_path):
    np.save(tmp_path / "elsewhere.npy", np.ones(3))
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "meta.json").write_text('{"identity": {}, "players": {"model": {}}}')
    for path in ("../elsewhere.npy", str(tmp_path / "elsewhere.npy"), "arrays/../../elsewhere.npy"):
        record = Record(0, "model", "own", value=1.0, arrays={"found": path})
        (tmp_path / "run" / "records.jsonl").write_text(record.to_json() + "\n")
        run = Run(tmp_path / "run")
        with pytest.raises(RunError, match="outside the run folder"):
            run.array(run.records[0], "found")


def test_what_is_watched_says_so(tmp_path):
    model, optimizer = build()
    run = watch(model, optimizer, data=(X, Y), criterion=MSE)
    assert repr(run) == "Watch of Run(in memory: running, 0 records, probes none)"


def test_resuming_appends_and_goes_on_counting(tmp_path):
    model, optimizer = build()
    train(tmp_path / "run", made=(model, optimizer), steps=5)
    before = (tmp_path / "run" / "records.jsonl").read_bytes()
    train(tmp_path / "run", made=(model, optimizer), steps=4, resume=True)
    assert (tmp_path / "run" / "records.jsonl").read_bytes().startswith(before)
    run = Run(tmp_path / "run")
    assert steps_of(run) == [0, 2, 4, 6, 8]
    assert run.logged("loss")[0].tolist() == list(range(9))
    assert (np.diff(run.logged("loss")[1]) < 0).all()
    assert run.status == "finished"


def test_resuming_a_run_that_is_not_there_starts_one(tmp_path):
    assert steps_of(train(tmp_path / "run", resume=True).run) == [0, 2, 4]


def test_of_two_records_of_a_step_the_later_counts(tmp_path):
    train(tmp_path / "run", steps=5)
    train(tmp_path / "run", steps=3, seed=1, resume=True, first_step=2)  # from a checkpoint of step 2
    run = Run(tmp_path / "run")
    assert steps_of(run) == [0, 2, 4]
    model, _ = build(1)
    again = float(MSE(model(X), Y).detach())
    assert run.select("sharpness")[1].values["loss"] == pytest.approx(again, rel=1e-6)
    assert run.logged("loss")[0].tolist() == [0, 1, 2, 3, 4]
    assert run.logged("loss")[1][2] == pytest.approx(again, rel=1e-6)


def test_values_logged_apart_are_merged_by_step(tmp_path):
    def after(run):
        run.log(accuracy=0.5)
        run.log(accuracy=0.75, step=2)

    run = train(tmp_path / "run", after=after).run
    assert run.logged("accuracy")[0].tolist() == [2, 5]
    assert run.logged("loss")[0].tolist() == list(range(6))


def test_an_existing_run_or_another_model_is_refused(tmp_path):
    train(tmp_path / "run", steps=1)
    before = (tmp_path / "run" / "records.jsonl").read_bytes()
    with pytest.raises(RunError, match=r"holds a run already.*resume=True"):
        train(tmp_path / "run")
    with pytest.raises(RunError, match="another run"):
        train(tmp_path / "run", resume=True, params="weight")
    model, optimizer = build(inputs=2)
    with pytest.raises(RunError, match="another run"):
        train(tmp_path / "run", resume=True, made=(model, optimizer), data=(X[:, :2], Y))
    assert (tmp_path / "run" / "records.jsonl").read_bytes() == before


# --------------------------------------------------------------------------- other tools


def test_pandas(tmp_path):
    pandas = pytest.importorskip("pandas")
    run = train(tmp_path / "run").run
    frame = run.to_pandas()
    assert len(frame) == len(run.records)
    assert frame[frame.probe == "sharpness"].step.tolist() == [0, 2, 4]
    assert frame[frame.probe == "log"]["values.loss"].notna().all()
    assert frame["arrays.gradient"].notna().sum() == 3
    raw = pandas.read_json(tmp_path / "run" / "records.jsonl", lines=True)
    measured = frame["value"][frame.probe == "sharpness"].tolist()
    assert raw["value"][raw.probe == "sharpness"].tolist() == pytest.approx(measured, rel=1e-12)


# --------------------------------------------------------------------------- a full disk


def test_a_full_disk_does_not_end_the_training(tmp_path, monkeypatch):
    def full(fd, data):
        raise OSError(28, "No space left on device")

    model, optimizer = build()
    with monkeypatch.context() as patched:
        patched.setattr(os, "write", full)
        with pytest.warns(RuntimeWarning, match=r"No space left.*kept in memory") as caught:
            run = train(tmp_path / "run", made=(model, optimizer))
    assert len([w for w in caught if "cannot write" in str(w.message)]) == 1
    assert steps_of(run.run) == [0, 2, 4]
    reference, _ = build()
    same = train(made=(reference, torch.optim.SGD(reference.parameters(), lr=0.01)))
    assert torch.equal(model.weight, reference.weight)
    assert repr(without_clock(run.run.records)) == repr(without_clock(same.run.records))


def test_a_disk_that_fills_up_keeps_what_was_written_readable(tmp_path, monkeypatch):
    real, left = os.write, [3]

    def write(fd, data):
        left[0] -= 1
        if left[0] < 0:
            raise OSError(28, "No space left on device")
        return real(fd, data)

    monkeypatch.setattr(os, "write", write)
    with pytest.warns(RuntimeWarning, match="No space left"):
        run = train(tmp_path / "run")
    assert len(Run(tmp_path / "run").records) == 3
    everything = train()
    assert repr(without_clock(run.run.records)) == repr(without_clock(everything.run.records))


def test_a_folder_removed_under_way_does_not_end_the_training(tmp_path):
    with pytest.warns(RuntimeWarning, match="cannot write"):
        train(tmp_path / "run", after=lambda _: shutil.rmtree(tmp_path / "run"))


# --------------------------------------------------------------------------- the live object


def test_a_watch_is_entered_once_and_used_inside(tmp_path):
    model, optimizer = build()
    run = watch(model, optimizer, data=(X, Y), criterion=MSE, out=tmp_path / "run", probes=[Sharpness()])
    assert not (tmp_path / "run").exists()
    for call in (lambda: run.log(loss=1.0), run.measure_now, run.step):
        with pytest.raises(SettingError, match="inside `with watch"):
            call()
    with run:
        assert [r.step for r in run.measure_now()] == [0]
        with pytest.raises(SettingError, match="once"):
            run.__enter__()
        with pytest.raises(SettingError, match='drive="manual"'):
            run.step()
        for wrong in ("high", [1.0], torch.ones(2)):
            with pytest.raises(SettingError, match=r"log\(loss=\.\.\.\) takes a number"):
                run.log(loss=wrong)
        with pytest.raises(SettingError, match="no player 'critic'; there are model"):
            run.log(loss=1.0, player="critic")
    with pytest.raises(SettingError, match="closed"):
        run.log(loss=1.0)
    with pytest.raises(SettingError, match="once"), run:
        pass
    assert Run(tmp_path / "run").status == "finished"
