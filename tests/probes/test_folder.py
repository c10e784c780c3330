"""The run folder as it is written: whole at any moment, never another run's."""

import json
import os
from pathlib import Path

import pytest

from losscope.landscape import RunError
from losscope.probes import Record, Run
from losscope.probes.folder import RunFolder

IDENTITY = {"model": {"model": "Linear", "parameters": 3, "digest": "abc"}}
META = {"identity": IDENTITY, "players": {"model": {}}, "status": "running"}


def opened(path, *, resume=False, identity=IDENTITY) -> RunFolder:
    folder = RunFolder(path, identity, resume=resume)
    folder.write_meta(META | {"identity": identity})
    return folder


def record(step: int, **fields) -> Record:
    return Record(step, "model", "sharpness", value=float(step), **fields)


def steps(path) -> list[int]:
    return [r.step for r in Run(path).records]


@pytest.fixture
def writes(monkeypatch):
    """What was handed to os.write."""
    made, real = [], os.write

    def write(fd, data):
        made.append(bytes(data))
        return real(fd, data)

    monkeypatch.setattr(os, "write", write)
    return made


def test_a_folder_is_made_with_its_parents_and_readable_at_once(tmp_path):
    folder = opened(tmp_path / "deep" / "er" / "run")
    assert steps(tmp_path / "deep" / "er" / "run") == []
    folder.append(record(0))
    assert steps(tmp_path / "deep" / "er" / "run") == [0]
    folder.close()
    folder.close()


def test_each_record_is_one_write_of_one_line(tmp_path, writes):
    folder = opened(tmp_path)
    for step in range(5):
        folder.append(record(step, values={"text": 1.0}))
    folder.close()
    assert len(writes) == 5
    assert all(data.endswith(b"\n") and data.count(b"\n") == 1 for data in writes)
    assert b"".join(writes) == (tmp_path / "records.jsonl").read_bytes()


def test_meta_is_replaced_in_one_step(tmp_path, monkeypatch):
    folder = opened(tmp_path)
    before = (tmp_path / "meta.json").read_text()
    with pytest.raises(TypeError):
        folder.write_meta(META | {(1, 2): "no JSON key"})
    assert (tmp_path / "meta.json").read_text() == before
    folder.write_meta(META | {"lr": float("nan"), "rates": [float("inf")]})  # strict JSON all the same
    assert json.loads((tmp_path / "meta.json").read_text(), parse_constant=pytest.fail)["lr"] == "nan"
    folder.write_meta(META)

    seen = []
    real = Path.replace

    def replace(self, target):
        seen.append((json.loads(self.read_text()), json.loads(Path(target).read_text())))
        return real(self, target)

    monkeypatch.setattr(Path, "replace", replace)
    folder.write_meta(META | {"status": "finished"})
    (new, old), = seen  # fmt: skip
    assert (new["status"], old["status"]) == ("finished", "running")  # both whole when the one becomes the other
    assert Run(tmp_path).status == "finished"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["meta.json", "records.jsonl"]
    folder.close()


# --------------------------------------------------------------------------- torn and malformed lines


def test_a_torn_last_line_is_ignored(tmp_path):
    folder = opened(tmp_path)
    for step in range(3):
        folder.append(record(step))
    folder.close()
    whole = (tmp_path / "records.jsonl").read_bytes()
    last = whole.rindex(b"\n", 0, -1) + 1
    for cut in range(last, len(whole)):
        (tmp_path / "records.jsonl").write_bytes(whole[:cut])
        run = Run(tmp_path)
        assert ([r.step for r in run.records], run.malformed) == ([0, 1], 0)


def test_malformed_lines_are_counted_and_left_out(tmp_path):
    folder = opened(tmp_path)
    folder.append(record(0))
    for rubbish in (b"rubbish\n", b"\n", b"[1]\n", b"\xff\xfe\n", b'{"v":1,"step":0,"player":[],"probe":"x"}\n'):
        os.write(folder._fd, rubbish)
    folder.append(record(1))
    folder.close()
    run = Run(tmp_path)
    assert [r.step for r in run.records] == [0, 1]
    assert run.malformed == 4  # the empty line is none


def test_resuming_appends_after_a_torn_line(tmp_path):
    folder = opened(tmp_path)
    folder.append(record(0))
    folder.append(record(1))
    folder.close()
    path = tmp_path / "records.jsonl"
    torn = path.read_bytes()[:-20]
    path.write_bytes(torn)
    again = opened(tmp_path, resume=True)
    assert again.resumed
    assert Run(tmp_path).malformed == 0  # nothing is added before there is something to add
    again.append(record(2))
    again.append(record(3))
    again.close()
    assert path.read_bytes().startswith(torn + b"\n")  # what was there stays as it was
    run = Run(tmp_path)
    assert ([r.step for r in run.records], run.malformed) == ([0, 2, 3], 1)


def test_a_run_whose_first_record_was_torn_can_be_resumed_again_and_again(tmp_path):
    opened(tmp_path).close()
    (tmp_path / "records.jsonl").write_bytes(record(0).to_json().encode()[:30])
    for _ in range(2):
        opened(tmp_path, resume=True).close()
        assert steps(tmp_path) == []
    folder = opened(tmp_path, resume=True)
    folder.append(record(1))
    folder.close()
    assert steps(tmp_path) == [1]


def test_a_record_that_was_written_in_part_does_not_spoil_the_next(tmp_path, monkeypatch):
    folder = opened(tmp_path)
    folder.append(record(0))
    real = os.write
    monkeypatch.setattr(os, "write", lambda fd, data: real(fd, data[:10]))
    with pytest.raises(OSError, match="only 10 of"):
        folder.append(record(1))
    monkeypatch.setattr(os, "write", real)
    folder.append(record(2))
    folder.append(record(3))
    folder.close()
    run = Run(tmp_path)
    assert ([r.step for r in run.records], run.malformed) == ([0, 2, 3], 1)


def test_a_run_that_was_killed_before_it_had_begun_is_no_obstacle(tmp_path):
    (tmp_path / "records.jsonl").touch()
    (tmp_path / "meta.json.tmp").write_text('{"v":')
    folder = opened(tmp_path)
    assert not folder.resumed
    folder.append(record(0))
    folder.close()
    assert steps(tmp_path) == [0]


# --------------------------------------------------------------------------- whose folder it is


def test_an_existing_run_is_not_written_to_unasked(tmp_path):
    opened(tmp_path).close()
    with pytest.raises(RunError, match="resume=True"):
        RunFolder(tmp_path, IDENTITY, resume=False)


def test_another_run_is_not_appended_to(tmp_path):
    opened(tmp_path).close()
    other = {"model": IDENTITY["model"] | {"digest": "xyz"}}
    with pytest.raises(RunError, match=r"another run.*model"):
        RunFolder(tmp_path, other, resume=True)
    with pytest.raises(RunError, match="another run"):
        RunFolder(tmp_path, IDENTITY | {"critic": {}}, resume=True)
    with pytest.raises(RunError, match="another run"):
        RunFolder(tmp_path, {}, resume=True)


@pytest.mark.parametrize("resume", [False, True])
def test_foreign_folders_and_files_are_refused_and_left_alone(tmp_path, resume):
    (tmp_path / "thesis.tex").write_text("precious")
    with pytest.raises(RunError, match="not a losscope run"):
        RunFolder(tmp_path, IDENTITY, resume=resume)
    with pytest.raises(RunError, match="is a file"):
        RunFolder(tmp_path / "thesis.tex", IDENTITY, resume=resume)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]
    (tmp_path / "records.jsonl").write_text("somebody's\n")
    (tmp_path / "thesis.tex").unlink()
    with pytest.raises(RunError, match="not a losscope run"):
        RunFolder(tmp_path, IDENTITY, resume=resume)
    assert (tmp_path / "records.jsonl").read_text() == "somebody's\n"


@pytest.mark.parametrize("text", ["", "{", "[]", "3", '{"players":{}}'])
def test_a_description_that_cannot_be_read_cannot_be_resumed(tmp_path, text):
    (tmp_path / "meta.json").write_text(text)
    with pytest.raises(RunError, match="cannot resume"):
        RunFolder(tmp_path, IDENTITY, resume=True)


def test_an_empty_folder_is_as_good_as_none(tmp_path):
    folder = RunFolder(tmp_path, IDENTITY, resume=True)
    assert not folder.resumed
    folder.close()
