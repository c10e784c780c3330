"""Sinks get the run's own records, read back by the tools' own readers; what fails in one stays there."""

import json
import math
import struct
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from losscope.landscape import SettingError
from losscope.probes import Player, Record, Run, Sharpness, Snapshot, TensorBoard, Trace, WandB, export, watch
from losscope.probes.sinks import numbers
from probe_cases import Line, checksum, streams

Tagged = dict[str, list[tuple[int, float]]]


def failing(snapshot: Snapshot) -> dict[str, float]:
    raise ArithmeticError("on purpose")


def train(line: Line, steps: int = 6, **options: Any) -> Any:
    """A run of three probes, one of which fails, and the loss."""
    optimizer = torch.optim.SGD(line.model.parameters(), lr=0.1)
    options = {"every": 2, "probes": [Sharpness(k=2), Trace(rtol=0.9), failing]} | options
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*on purpose.*training goes on, the failure is recorded")
        with watch(line.model, optimizer, **line.options(**options)) as run:
            for _ in range(steps):
                optimizer.zero_grad()
                loss = line.loss()
                loss.backward()
                optimizer.step()
                run.log(loss=loss)
    return run


def expected(run: Run) -> Tagged:
    """Every number of every record by tag, in order of step."""
    found: Tagged = {}
    for record in sorted(run.records, key=lambda r: r.step):
        for name, number in numbers(record).items():
            found.setdefault(f"losscope/{record.player}/{record.probe}/{name}", []).append((record.step, number))
    return found


def same(found: Tagged, wanted: Tagged, to: Callable[[float], float] = float) -> bool:
    """Whether all numbers are there and equal, NaN included."""
    assert found.keys() == wanted.keys()
    for tag, pairs in wanted.items():
        assert [step for step, _ in found[tag]] == [step for step, _ in pairs], tag
        for (_, value), (_, number) in zip(found[tag], pairs, strict=True):
            assert value == to(number) or (math.isnan(value) and math.isnan(number)), (tag, value, number)
    return True


def test_every_number_of_a_record_has_a_name() -> None:
    record = Record(
        3, "a", "b", lr=0.1, value=1.0, low=0.5, high=math.inf, matvecs=7, seconds=0.25,
        values={"low": 9.0, "x/y": 2.0, "none": None},
    )  # fmt: skip
    assert numbers(record) == {
        "value": 1.0, "low": 0.5, "high": math.inf, "lr": 0.1, "matvecs": 7.0, "seconds": 0.25, "values.low": 9.0,
        "x/y": 2.0,
    }  # fmt: skip
    assert numbers(Record(0, "a", "log", values={"loss": 1.0})) == {"loss": 1.0}


# --------------------------------------------------------------------------- TensorBoard


def read_tensorboard(folder: Path) -> tuple[Tagged, dict[str, list[tuple[int, str]]]]:
    accumulators = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    events = accumulators.EventAccumulator(str(folder), size_guidance={"scalars": 0, "tensors": 0}).Reload()
    scalars = {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}
    texts = {
        tag: [(e.step, e.tensor_proto.string_val[0].decode()) for e in events.Tensors(tag)]
        for tag in events.Tags()["tensors"]
    }
    return {tag: sorted(pairs) for tag, pairs in scalars.items()}, texts


def single(number: float) -> float:
    with np.errstate(over="ignore"):
        return float(np.float32(number))


def test_tensorboard_reads_what_was_recorded(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    run = train(Line(), sinks=[TensorBoard(tmp_path / "logs")], out=tmp_path / "run").run
    scalars, texts = read_tensorboard(tmp_path / "logs")
    wanted = expected(run)
    assert same(scalars, wanted, single)
    assert [step for step, _ in wanted["losscope/model/sharpness/high"]] == [0, 2, 4]
    assert {"value", "low", "high", "lr", "matvecs", "seconds"} <= {t.split("/")[-1] for t in wanted if "sharp" in t}
    assert len(wanted["losscope/model/log/loss"]) == 6
    assert texts == {
        "losscope/model/failing/status/text_summary": [(t, "error: ArithmeticError: on purpose") for t in (0, 2, 4)]
    }
    assert not any(thread.is_alive() and "EventLogger" in type(thread).__name__ for thread in _threads())


def _threads() -> list[Any]:
    import threading

    return threading.enumerate()


def test_tensorboard_keeps_what_is_not_finite(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    sink = TensorBoard(str(tmp_path))
    record = Record(1, "model", "p", value=math.nan, low=-math.inf, high=1e300, status="nonfinite", reason="NaN")
    sink(record)
    sink.close()
    scalars, texts = read_tensorboard(tmp_path)
    assert math.isnan(scalars["losscope/model/p/value"][0][1])
    assert scalars["losscope/model/p/low"] == [(1, -math.inf)] and scalars["losscope/model/p/high"] == [(1, math.inf)]
    assert texts["losscope/model/p/status/text_summary"] == [(1, "nonfinite: NaN")]


def test_a_writer_of_the_users_stays_open(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from torch.utils.tensorboard import SummaryWriter

    writer = SummaryWriter(str(tmp_path))
    run = train(Line(), sinks=[TensorBoard(writer)]).run
    writer.add_scalar("mine", 1.0, 9)
    writer.close()
    scalars, _ = read_tensorboard(tmp_path)
    assert scalars.pop("mine") == [(9, 1.0)] and same(scalars, expected(run), single)
    with pytest.raises(SettingError, match="a SummaryWriter without further options; got SummaryWriter with purge"):
        TensorBoard(writer, purge_step=3)
    with pytest.raises(SettingError, match=r"takes a folder, or a SummaryWriter .* got int"):
        TensorBoard(3)


def test_measurements_are_in_the_file_after_a_kill(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    script = tmp_path / "script.py"
    script.write_text(
        """
import os, signal, torch
from losscope.probes import Sharpness, TensorBoard, watch
model = torch.nn.Linear(2, 1)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
data = torch.eye(2), torch.ones(2, 1)
sinks = [TensorBoard("logs")]
with watch(model, optimizer, data=data, criterion=torch.nn.MSELoss(), every=1, probes=[Sharpness()], sinks=sinks):
    for step in range(4):
        torch.nn.functional.mse_loss(model(data[0]), data[1]).backward()
        optimizer.step()
        if step == 2:
            os.kill(os.getpid(), signal.SIGKILL)
"""
    )
    done = subprocess.run([sys.executable, str(script)], cwd=tmp_path, capture_output=True, timeout=300)
    assert done.returncode == -9, done.stderr
    scalars, _ = read_tensorboard(tmp_path / "logs")
    assert [step for step, _ in scalars["losscope/model/sharpness/value"]] == [0, 1, 2]


# --------------------------------------------------------------------------- Weights & Biases


@pytest.fixture
def wandb_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    run = wandb.init(
        project="losscope", dir=str(tmp_path), settings=wandb.Settings(console="off", x_disable_stats=True)
    )
    yield run
    run.finish()


def rows_of(run: Any) -> list[dict[str, Any]]:
    """The history of a finished offline run: its messages parsed by W&B's own classes.

    The file is a LevelDB log (blocks of 32 KiB, whose records have a header of checksum, length and kind) behind a
    header of seven bytes.
    """
    from wandb.proto import wandb_internal_pb2

    (path,) = Path(run.dir).parent.glob("*.wandb")
    rows, ended, since = [], False, time.monotonic()
    while not ended and time.monotonic() < since + 60:  # W&B's own process may still be writing
        rows = []
        for message in _frames(path.read_bytes()):
            record = wandb_internal_pb2.Record()
            record.ParseFromString(message)
            ended = ended or record.WhichOneof("record_type") == "exit"
            if record.WhichOneof("record_type") == "history":
                items = {"/".join(i.nested_key) or i.key: json.loads(i.value_json) for i in record.history.item}
                rows.append(items | {"_step": record.history.step.num})
        time.sleep(0.01)
    assert ended
    return rows


def _frames(data: bytes) -> Iterator[bytes]:
    assert data[:4] in (b"", b":W&B")
    place, parts = 7, b""
    while place + 7 <= len(data):
        if (left := 32768 - place % 32768) < 7:
            place += left
            continue
        _, length, kind = struct.unpack("<IHB", data[place : place + 7])
        if kind == 0:
            place += left
            continue
        parts += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):
            yield parts
            parts = b""


def tagged(rows: list[dict[str, Any]]) -> tuple[Tagged, dict[str, list[tuple[int, str]]]]:
    """Numbers and texts over each probe's own step."""
    found: Tagged = {}
    texts: dict[str, list[tuple[int, str]]] = {}
    for row in rows:
        for tag, value in row.items():
            if not tag.startswith("losscope/") or tag.endswith("/step"):
                continue
            step = row[tag.rpartition("/")[0] + "/step"]
            if isinstance(value, str) and value not in ("NaN", "Infinity", "-Infinity"):
                texts.setdefault(tag, []).append((step, value))
            else:
                found.setdefault(tag, []).append((step, float(value)))
    return {tag: sorted(pairs) for tag, pairs in found.items()}, texts


def test_wandb_has_what_was_recorded(wandb_run: Any, tmp_path: Path) -> None:
    run = train(Line(), sinks=[WandB(wandb_run)], out=tmp_path / "run").run
    assert not wandb_run._is_finished
    wandb_run.finish()
    found, texts = tagged(rows_of(wandb_run))
    assert same(found, expected(run))
    assert texts == {"losscope/model/failing/status": [(t, "error: ArithmeticError: on purpose") for t in (0, 2, 4)]}


@pytest.mark.parametrize("by_step", [True, False], ids=["with step=", "without"])
def test_wandb_keeps_what_the_loop_logs(by_step: bool, wandb_run: Any) -> None:
    line = Line()
    optimizer = torch.optim.SGD(line.model.parameters(), lr=0.1)
    with watch(line.model, optimizer, **line.options(every=2, probes=[Sharpness(), checksum], sinks=[WandB()])) as run:
        for step in range(8):
            line.loss().backward()
            optimizer.step()
            if by_step:
                wandb_run.log({"mine": step}, step=step)
            else:  # and more often than there are updates
                wandb_run.log({"mine": step})
                wandb_run.log({"mine": step + 0.5})
    wandb_run.finish()
    rows = rows_of(wandb_run)
    mine = [(row["_step"], row["mine"]) for row in rows if "mine" in row]
    assert [value for _, value in mine] == ([*range(8)] if by_step else [i / 2 for i in range(16)])
    if by_step:
        assert [step for step, _ in mine] == list(range(8))
    assert same(tagged(rows)[0], expected(run.run))


def test_wandb_without_a_run(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb")
    with pytest.raises(SettingError, match=r"there is no active W&B run: call wandb.init\(\) first"):
        WandB()
    with pytest.raises(SettingError, match="got str"):
        WandB("name")


def test_records_of_one_probe_do_not_share_a_row() -> None:
    class Behind:
        """A run whose counter stands far ahead, and whose loop logs nothing."""

        def __init__(self) -> None:
            self.step, self.rows = 500, {}

        def define_metric(self, name: str, step_metric: str) -> None: ...

        def log(self, content: dict[str, Any], step: int) -> None:
            assert step >= self.step
            self.step = step
            self.rows.setdefault(step, {}).update(content)

    run = Behind()
    sink = WandB(run)
    for step in (0, 50, 100):
        for probe in ("a", "b"):
            sink(Record(step, "model", probe, value=float(step)))
    found, _ = tagged(list(run.rows.values()))
    assert found == {f"losscope/model/{p}/value": [(0, 0.0), (50, 50.0), (100, 100.0)] for p in "ab"}


# --------------------------------------------------------------------------- what sinks leave alone


def test_sinks_draw_from_no_random_stream(wandb_run: Any, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    before = streams()
    sinks = [TensorBoard(tmp_path / "logs"), WandB(wandb_run)]
    record = Record(3, "model", "p", value=1.0, status="error", reason="on purpose")
    for sink in sinks:
        sink(record)
    sinks[0].close()
    assert streams() == before


# --------------------------------------------------------------------------- sinks that fail


class Dead:
    """Fails from the given call on, and as it is closed."""

    def __init__(self, good: int = 0) -> None:
        self.calls, self.good = 0, good

    def __call__(self, record: Record) -> None:
        self.calls += 1
        if self.calls > self.good:
            raise ConnectionError("gone")

    def close(self) -> None:
        raise TimeoutError("gone for good")


@pytest.mark.parametrize("on_error", ["warn", "raise"])
def test_a_dead_sink_is_warned_about_once_and_counted(on_error: str, tmp_path: Path) -> None:
    healthy: list[tuple[str, int]] = []
    dead = Dead(good=3)
    sinks = [dead, lambda record: healthy.append((record.probe, record.step))]
    options: dict[str, Any] = {"probes": [Sharpness(), checksum], "on_error": on_error}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.manual_seed(1)
        line = Line()
        run = train(line, sinks=sinks, out=tmp_path / "run", **options).run
    torch.manual_seed(1)
    other = Line()
    train(other, **options)
    assert all(torch.equal(a, b) for a, b in zip(line.model.parameters(), other.model.parameters(), strict=True))
    (warning,) = [str(w.message) for w in caught if "sink" in str(w.message)]
    assert "sink Dead failed: ConnectionError: gone; training goes on" in warning
    assert run.status == "finished" and run.meta["sink_failures"] == {"Dead": dead.calls - 3 + 1}
    assert dead.calls == len(healthy) == len(run.records) == 2 * 3 + 6 + len(run.select("oscillation"))
    assert sorted(healthy) == sorted((r.probe, r.step) for r in run.records)


def test_warnings_that_are_errors_do_not_let_a_sink_through() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run = train(Line(), sinks=[Dead()], probes=[checksum])
    assert run.run.status == "finished" and len(run.run.select("checksum")) == 3


def test_an_interrupt_comes_out_of_a_sink(tmp_path: Path) -> None:
    def interrupted(record: Record) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(Line(), sinks=[interrupted], out=tmp_path / "run", probes=[checksum])
    assert Run(tmp_path / "run").status == "failed"


def test_a_file_that_is_in_tensorboards_way(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    (tmp_path / "logs").write_text("a file")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        run = train(Line(), sinks=[TensorBoard(tmp_path / "logs")], probes=[checksum]).run
    assert len(run.select("checksum")) == 3 and run.meta["sink_failures"]["TensorBoard"] >= 9
    assert sum("sink TensorBoard failed" in str(w.message) for w in caught) == 1


def test_what_is_no_sink_is_refused() -> None:
    for given, word in (("logs", "'logs'"), (TensorBoard, "class"), (3, "int")):
        with pytest.raises(SettingError, match=f"a sink is a function of a Record.*{word}"):
            train(Line(), sinks=[given])


def test_several_players_have_their_own_tags() -> None:
    lines = [Line(), Line()]
    optimizers = [torch.optim.SGD(line.model.parameters(), lr=0.1) for line in lines]
    players = [
        Player(name, line.model, optimizer, line.data, criterion=F.mse_loss)
        for name, line, optimizer in zip("ab", lines, optimizers, strict=True)
    ]
    seen: list[str] = []
    with watch(players, every=1, probes=[checksum], sinks=[lambda record: seen.append(record.player)]):
        for line, optimizer in zip(lines, optimizers, strict=True):
            line.loss().backward()
            optimizer.step()
    assert seen == ["a", "b"]


# --------------------------------------------------------------------------- finished runs


def test_a_finished_run_is_exported(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    run = train(Line(), out=tmp_path / "run").run
    assert export(tmp_path / "run", TensorBoard(tmp_path / "logs")) == len(run.records)
    assert same(read_tensorboard(tmp_path / "logs")[0], expected(run), single)


def test_export_says_what_fails() -> None:
    run = train(Line(), probes=[checksum]).run
    with pytest.raises(ConnectionError, match="gone"):
        export(run, Dead())
