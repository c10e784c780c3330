"""A run as it grows: appended, torn, killed and resumed, replaced, gone."""

import dataclasses
import json
import os
from pathlib import Path

import numpy as np
import pytest

from drawn_runs import hovering, meta
from losscope.landscape import RunError
from losscope.probes import Record, Run
from losscope.viz.live import Feed
from losscope.viz.live import feed as module


def record(step: int, **fields: object) -> Record:
    return dataclasses.replace(Record(step, "model", "trace", value=float(step), time=1e9 + step), **fields)


def lines(*records: Record) -> str:
    return "".join(each.to_json() + "\n" for each in records)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A run with three records."""
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "meta.json").write_text(json.dumps(meta(model={}) | {"status": "running"}))
    (folder / "records.jsonl").write_text(lines(*map(record, range(3))))
    return folder


def append(folder: Path, text: str) -> None:
    with (folder / "records.jsonl").open("a") as file:
        file.write(text)


def steps(feed: Feed) -> list[int]:
    assert [each.to_json() for each in feed.run.records] == [each.to_json() for each in Run(feed.path).records]
    return [each.step for each in feed.run.records]


def test_new_records_come_and_old_ones_are_not_read_again(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    feed = Feed(folder)
    assert (steps(feed), feed.changes, feed.step, feed.latest) == ([0, 1, 2], 1, 2, 1e9 + 2)
    assert not feed.look() and feed.changes == 1
    append(folder, lines(record(3)))
    read: list[bytes] = []
    with monkeypatch.context() as patched:
        patched.setattr(Record, "from_json", lambda line: read.append(line) or record(3))
        assert feed.look() and read == [lines(record(3)).encode().strip()]
    assert steps(feed) == [0, 1, 2, 3] and feed.generation == 0


def test_a_torn_line_waits(folder: Path) -> None:
    feed, line = Feed(folder), lines(record(3), record(4))
    for cut in range(0, len(line), 7):
        append(folder, line[cut : cut + 7])
        feed.look()
        whole = line[: cut + 7].count("\n")
        assert steps(feed) == list(range(3 + whole))
    assert (feed.malformed, feed.problem) == (0, "")


def test_chunks_of_any_size(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    append(folder, "\n\n" + lines(*map(record, range(3, 40))) + "{torn")
    for size in (1, 7, 1000):
        monkeypatch.setattr(module, "CHUNK", size)
        assert steps(Feed(folder)) == list(range(40))


def test_killed_and_resumed(folder: Path) -> None:
    """The line that the kill tore is closed by the next record, and steps that are done again count anew."""
    feed = Feed(folder)
    append(folder, '{"v":1,"step":3')
    feed.look()
    append(folder, "\n" + lines(record(2, value=7.0), record(3)))
    (folder / "meta.json.tmp").write_text(json.dumps(meta(model={}) | {"resumed": 1}))
    (folder / "meta.json.tmp").replace(folder / "meta.json")
    assert feed.look()
    assert steps(feed) == [0, 1, 2, 3] and feed.run.select("trace")[2].value == 7.0
    assert (feed.malformed, feed.run.malformed, feed.generation) == (1, 1, 0)
    assert feed.run.meta["resumed"] == 1 and feed.run.status == "finished"


@pytest.mark.parametrize("how", ["replaced", "cut short", "cut short and grown", "written over"])
def test_records_that_are_others(folder: Path, how: str) -> None:
    feed, others = Feed(folder), lines(*(record(step, value=-1.0) for step in range(10, 16)))
    path = folder / "records.jsonl"
    if how == "replaced":
        (folder / "new").write_text(lines(*map(record, range(3))) + others)
        (folder / "new").replace(path)
    elif how == "cut short":
        os.truncate(path, len(lines(record(0))))
    else:
        path.write_text(others if how == "cut short and grown" else others[: path.stat().st_size])
    assert feed.look() and feed.generation == 1
    expected = {"replaced": [0, 1, 2, *range(10, 16)], "cut short": [0], "cut short and grown": [*range(10, 16)]}
    assert steps(feed) == expected.get(how, [10, 11])
    append(folder, "\n" + lines(record(99)))
    assert feed.look() and steps(feed)[-1] == 99


def test_logged_values_of_one_step_are_merged(folder: Path) -> None:
    feed = Feed(folder)
    append(folder, lines(Record(3, "model", "log", values={"loss": 1.0})))
    feed.look()
    before = feed.run.records[-1]
    append(folder, lines(Record(3, "model", "log", values={"accuracy": 0.5})))
    feed.look()
    assert feed.run.records[-1].values == {"loss": 1.0, "accuracy": 0.5}
    assert before.values == {"loss": 1.0}  # whoever draws the run as it was is not disturbed
    assert steps(feed)[-1] == 3


def test_a_run_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"there is no run at .*: no such folder"):
        Feed(tmp_path / "none")
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(RunError, match=r"is not a losscope run: it has no meta\.json"):
        Feed(tmp_path)
    with pytest.raises(RunError, match="no such folder"):
        Feed(tmp_path / "notes.txt")


def test_a_run_that_has_not_begun(tmp_path: Path) -> None:
    feed = Feed(tmp_path)
    assert not feed.look()
    assert (feed.meta, feed.run.players, feed.run.records, feed.problem) == (None, [], [], "")
    (tmp_path / "records.jsonl").touch()
    assert not feed.look()
    (tmp_path / "meta.json").write_text(json.dumps(meta(model={})))
    assert feed.look() and feed.run.players == ["model"]
    append(tmp_path, lines(record(0)))
    assert feed.look() and steps(feed) == [0]


@pytest.mark.parametrize(
    "content", ["{", "[]", "{}", '{"identity": {}, "players": {}}', '{"identity": {}, "players": {"m": 1}}']
)
def test_what_is_no_description(content: str, folder: Path) -> None:
    feed = Feed(folder)
    (folder / "meta.json").write_text(content)
    with pytest.raises(RunError):
        Feed(folder)
    assert feed.look() and feed.problem and len(feed.run.records) == 3  # what is known stays on the page
    assert not feed.look()
    (folder / "meta.json").write_text(json.dumps(meta(model={})))
    assert feed.look() and feed.problem == ""


def test_a_newer_version(folder: Path) -> None:
    append(folder, lines(record(3)).replace('"v":1', '"v":99') + lines(record(4)))
    with pytest.raises(RunError, match="record schema 99"):
        Feed(folder)


def test_a_newer_version_comes_while_it_is_followed(folder: Path) -> None:
    feed = Feed(folder)
    append(folder, lines(record(3)).replace('"v":1', '"v":99'))
    for _ in range(3):
        feed.look()
        assert "record schema 99" in feed.problem


def test_only_lines_that_are_no_records(folder: Path) -> None:
    (folder / "records.jsonl").write_text("nonsense\n" * 3)
    with pytest.raises(RunError, match="holds no readable record"):
        Feed(folder)


def test_a_run_that_goes_and_comes_back(folder: Path, tmp_path: Path) -> None:
    feed = Feed(folder)
    folder.rename(tmp_path / "away")
    assert feed.look() and feed.problem.endswith("is gone") and len(feed.run.records) == 3
    (tmp_path / "away").rename(folder)
    assert feed.look() and feed.problem == "" and steps(feed) == [0, 1, 2]


def test_lines_without_end_take_no_memory(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CHUNK", 100)
    monkeypatch.setattr(module, "LONGEST_LINE", 1000)
    feed = Feed(folder)
    append(folder, "x" * 5000)
    feed.look()
    assert feed._place.offset > (folder / "records.jsonl").stat().st_size - 1200
    append(folder, "\n" + lines(record(3)))
    assert feed.look() and steps(feed) == [0, 1, 2, 3] and feed.malformed == 1


def test_links_out_of_the_folder_are_not_followed(folder: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "secret.npy", np.array([42.0]))
    feed = Feed(folder)
    (folder / "arrays").mkdir()
    np.save(folder / "arrays" / "own.npy", np.array([1.0]))
    (folder / "arrays" / "linked.npy").symlink_to(tmp_path / "secret.npy")
    (folder / "elsewhere").symlink_to(tmp_path)
    names = {"linked": "arrays/linked.npy", "up": "../secret.npy", "whole": str(tmp_path / "secret.npy")}
    names |= {"way": "elsewhere/secret.npy", "own": "arrays/own.npy", "gone": "arrays/gone.npy"}
    append(folder, lines(record(3, arrays=names)))
    feed.look()
    found = feed.run.select("trace")[-1]
    assert feed.run.array(found, "own").tolist() == [1.0]
    for name in ("linked", "up", "whole", "way", "gone", "none"):
        with pytest.raises(RunError):
            feed.run.array(found, name)


def test_arrays_that_are_none(folder: Path) -> None:
    (folder / "arrays").mkdir()
    objects = folder / "arrays" / "objects.npy"
    np.save(objects, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    (folder / "arrays" / "text.npy").write_text("hello")
    header = "{'descr': '<f8', 'fortran_order': False, 'shape': (1000000000000000,), }".ljust(117) + "\n"
    (folder / "arrays" / "vast.npy").write_bytes(b"\x93NUMPY\x01\x00" + (118).to_bytes(2, "little") + header.encode())
    names = {name: f"arrays/{name}.npy" for name in ("objects", "text", "vast")}
    append(folder, lines(record(3, arrays=names)))
    run = Feed(folder).run
    for name in names:
        with pytest.raises(RunError, match="cannot read"):
            run.array(run.records[-1], name)


@pytest.mark.parametrize("name", ["records.jsonl", "meta.json"])
def test_linked_files_of_a_run_are_refused(name: str, folder: Path, tmp_path: Path) -> None:
    feed = Feed(folder)
    (folder / name).rename(tmp_path / name)
    (folder / name).symlink_to(tmp_path / name)
    feed.look()
    assert "links are not followed" in feed.problem
    with pytest.raises(OSError, match="links are not followed"):
        Feed(folder)


def test_as_run_reads_it(tmp_path: Path) -> None:
    """Selections and audits are those of Run."""
    (tmp_path / "meta.json").write_text(json.dumps(meta(model={}, other={})))
    (tmp_path / "records.jsonl").write_text(lines(*hovering(400), *hovering(200, player="other")))
    feed, run = Feed(tmp_path), Run(tmp_path)
    for player in (None, "model", "other", None):
        for probe in ("sharpness", "log", "none"):
            assert feed.run.select(probe, player) == run.select(probe, player)
            assert feed.run.select(probe, player, ok=False) == run.select(probe, player, ok=False)
        assert feed.run.audit(player) == run.audit(player)
        assert feed.run.phases(player) == run.phases(player)
        for seen, expected in zip(feed.run.logged("loss", player), run.logged("loss", player), strict=True):
            assert np.array_equal(seen, expected)
            seen *= 2  # is the caller's
            feed.run.select("log", player).clear()
    assert feed.run.cost() == run.cost()
    assert (feed.run.name, feed.run.status, feed.run.probes) == (run.name, run.status, run.probes)
    with pytest.raises(RunError, match="no player"):
        feed.run.audit("nobody")
