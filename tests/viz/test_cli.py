"""The command line: what it prints, and its exit codes."""

import importlib.metadata
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from drawn_runs import diverging, hovering, meta, minibatch, write
from losscope.probes import Record, Run
from losscope.viz.cli import app


def losscope(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, [str(a) for a in arguments], prog_name="losscope")


@pytest.fixture
def run(tmp_path: Path) -> Path:
    write(tmp_path / "a", hovering())
    return tmp_path / "a"


def test_audit_says_verdicts_and_exits_with_0(run: Path) -> None:
    result = losscope("audit", run)
    assert result.exit_code == 0, result.output
    assert "At the edge: The sharpness is 1.0" in result.stdout
    assert "sharpness: AT_EDGE (necessary and sufficient)" in result.stdout
    assert "Does not apply\n  trace: " in result.stdout
    assert "Phases: progressive sharpening (steps " in result.stdout
    assert "\x1b" not in result.stdout
    assert max(map(len, result.stdout.splitlines())) <= 80


def test_audit_exits_with_1_above_the_edge(tmp_path: Path) -> None:
    write(tmp_path / "a", diverging())
    result = losscope("audit", tmp_path / "a")
    assert result.exit_code == 1
    assert "ABOVE_EDGE" in result.stdout


def test_audit_as_json(tmp_path: Path) -> None:
    records = [*hovering(), *minibatch(player="D"), Record(2980, "D", "stability", value=math.nan)]
    run = write(tmp_path / "a", records, meta(model={}, D={"batch_size": 32}))
    result = losscope("audit", tmp_path / "a", "--json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout, parse_constant=lambda name: pytest.fail(f"bare {name}"))
    assert (found["v"], found["run"], found["status"], list(found["players"])) == (1, "a", "finished", ["model", "D"])
    line = found["players"]["model"]["criteria"]["sharpness"]
    assert line["ratio"] == run.audit("model")["sharpness"].ratio  # unrounded
    one = json.loads(losscope("audit", tmp_path / "a", "--json", "--player", "D").stdout)
    assert one["players"] == {"D": found["players"]["D"]}


def test_audit_explained(run: Path) -> None:
    result = losscope("audit", run, "--explain")
    assert result.exit_code == 0 and "source: Wu and Su 2023, arXiv 2305.17490" in result.stdout


@pytest.mark.parametrize(
    ("fail_on", "code"),
    [
        ("above_edge", 0), ("at_edge", 1), ("AT-EDGE, inconclusive", 1), ("inconclusive", 0), ("never", 0),
        ("not_applicable", 0), ("nonsense", 2), ("", 2), ("never,at_edge", 2), ("empirical", 2),
    ],
)  # fmt: skip
def test_what_fails(fail_on: str, code: int, run: Path) -> None:
    result = losscope("audit", run, "--fail-on", fail_on)
    assert result.exit_code == code, result.output
    assert (result.stderr.startswith("losscope: --fail-on")) == (code == 2)
    assert losscope("audit", run, "--json", "--fail-on", fail_on).exit_code == code


def test_audit_of_all_players_or_of_one(tmp_path: Path) -> None:
    records = [*diverging(), *minibatch(player="D")]
    write(tmp_path / "a", records, meta(model={}, D={"batch_size": 32}))
    both = losscope("audit", tmp_path / "a")
    assert both.exit_code == 1
    assert "a: model" in both.stdout and "a: D" in both.stdout
    one = losscope("audit", tmp_path / "a", "--player", "D")
    assert one.exit_code == 0
    assert "a: model" not in one.stdout


def test_report_prints_where_the_page_is(run: Path, tmp_path: Path) -> None:
    result = losscope("report", run)
    assert result.exit_code == 0, result.output
    assert result.stdout.strip() == str(run / "report.html")
    assert (run / "report.html").read_text().startswith("<!doctype html>")
    assert losscope("report", run, "--out", tmp_path / "b.html").exit_code == 0
    assert (tmp_path / "b.html").is_file()


def corrupt(folder: Path, kind: str) -> None:
    folder.mkdir()
    description, line = meta(model={}), Record(0, "model", "sharpness", value=1.0).to_json()
    if kind == "no meta":
        (folder / "notes.txt").write_text("hello")
        return
    if kind == "not json":
        (folder / "meta.json").write_text("{")
    elif kind == "not text":
        (folder / "meta.json").write_bytes(b"\xff\xfe\x00\x81")
    elif kind == "foreign":
        (folder / "meta.json").write_text('{"name": "another tool"}')
    elif kind == "strange players":
        (folder / "meta.json").write_text(json.dumps(description | {"players": {"model": 3}}))
    elif kind == "no players":
        (folder / "meta.json").write_text(json.dumps(description | {"players": {}}))
    else:
        (folder / "meta.json").write_text(json.dumps(description))
    bad = {
        "no record": "not a record\n",
        "newer": line.replace('"v":1', '"v":99') + "\n",
        "text for a number": line.replace('"values":{}', '"values":{"threshold":"high"}') + "\n",
        "list for a number": line.replace('"value":1.0', '"value":[1]') + "\n",
    }
    (folder / "records.jsonl").write_text(bad.get(kind, line + "\n"))


KINDS = [
    "no meta", "not json", "not text", "foreign", "strange players", "no players", "no record", "newer",
    "text for a number", "list for a number",
]  # fmt: skip


@pytest.mark.parametrize("command", ["audit", "report"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_run_that_cannot_be_read_is_one_line_and_exit_2(command: str, kind: str, tmp_path: Path) -> None:
    corrupt(tmp_path / "a", kind)
    result = losscope(command, tmp_path / "a")
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    assert result.stderr.startswith("losscope: ") and result.stderr.count("\n") == 1
    assert str(tmp_path / "a") in result.stderr or "schema" in result.stderr


@pytest.mark.parametrize(
    "line", ["audit", "audit nowhere", "report nowhere", "nonsense", "demo --steps 0", "audit x y"]
)
def test_bad_usage_is_exit_2(line: str) -> None:
    result = losscope(*line.split())
    assert result.exit_code == 2
    assert result.stderr and "Traceback" not in result.output


@pytest.mark.parametrize("command", ["report", "audit", "live", "doctor", "surface", "export"])
def test_usage_names_each_argument_once(command: str) -> None:
    usage = losscope(command, "--help").stdout.partition("\n")[0]
    assert usage.count("...") <= (command in ("report", "surface")) and "[[" not in usage
    assert usage.split()[-1].strip("[]{}.") == ("FILE" if command == "surface" else "RUN")


def test_no_such_player(run: Path) -> None:
    result = losscope("audit", run, "--player", "E")
    assert result.exit_code == 2
    assert result.stderr == "losscope: the run has no player 'E'; it has model\n"


@pytest.mark.parametrize("command", ["demo", "report", "audit"])
def test_help_has_an_example(command: str) -> None:
    result = losscope(command, "--help")
    assert result.exit_code == 0
    assert f"losscope {command} " in result.stdout.split("Example:")[1]


def test_as_a_module_in_a_plain_shell(run: Path, tmp_path: Path) -> None:
    """Also where standard output takes ASCII only."""
    command = [sys.executable, "-m", "losscope.viz", "audit", str(run)]
    environment = {"PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"}
    done = subprocess.run(
        command, cwd=tmp_path, capture_output=True, text=True, timeout=120, env=os.environ | environment
    )
    assert done.returncode == 0, done.stderr
    assert "AT_EDGE" in done.stdout and done.stdout.isascii()


def test_version() -> None:
    try:
        expected = importlib.metadata.version("losscope")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("losscope is not installed, only on the path")
    result = losscope("--version")
    assert result.exit_code == 0
    assert result.stdout == f"losscope {expected}\n"


def test_export_writes_what_tensorboard_reads(run: Path, tmp_path: Path) -> None:
    accumulators = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    result = losscope("export", run, "--tensorboard", tmp_path / "logs")
    records = Run(run).select("sharpness")
    assert result.exit_code == 0, result.output
    assert f"{len(Run(run).records):,} records are in" in result.stdout
    events = accumulators.EventAccumulator(str(tmp_path / "logs")).Reload()
    scalars = events.Scalars("losscope/model/sharpness/value")
    assert [(e.step, e.value) for e in scalars] == [(r.step, pytest.approx(r.value, rel=1e-6)) for r in records]


def test_export_of_what_is_no_run(tmp_path: Path) -> None:
    result = losscope("export", tmp_path / "none", "--tensorboard", tmp_path / "logs")
    assert result.exit_code == 2 and "no such folder" in result.output
    assert losscope("export", tmp_path).exit_code == 2 and not (tmp_path / "logs").exists()
