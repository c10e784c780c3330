"""``losscope live`` on the command line: what it prints, and its exit codes."""

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from drawn_runs import hovering, write
from losscope.probes import Record
from losscope.viz.cli import app
from losscope.viz.live import command as module


def losscope(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, [str(a) for a in arguments], prog_name="losscope")


@pytest.fixture
def run(tmp_path: Path) -> Path:
    write(tmp_path / "a", hovering(200))
    return tmp_path / "a"


def test_a_port_in_use(run: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        result = losscope("live", run, "--port", str(port))
    assert result.exit_code == 2 and result.stdout == ""
    assert result.stderr == (
        f"losscope: port {port} of 127.0.0.1 cannot be had: Address already in use; take another one, or leave --port "
        "out for a free one\n"
    )


@pytest.mark.parametrize("text", [[], ["--text"]])
@pytest.mark.parametrize("kind", ["missing", "a file", "another folder", "newer", "no record", "no description"])
def test_what_is_no_run_is_one_line_and_exit_2(kind: str, text: list[str], tmp_path: Path) -> None:
    path = tmp_path / "a"
    if kind == "a file":
        path.touch()
    elif kind == "another folder":
        path.mkdir()
        (path / "notes.txt").touch()
    elif kind != "missing":
        write(path, [Record(0, "model", "trace", value=1.0)])
        line = (path / "records.jsonl").read_text()
        (path / "records.jsonl").write_text(line.replace('"v":1', '"v":99') if kind == "newer" else "nonsense\n")
        if kind == "no description":
            (path / "meta.json").write_text("[]")
    result = losscope("live", path, *text)
    assert result.exit_code == 2, result.output
    assert result.stdout == "" and result.stderr.startswith("losscope: ") and result.stderr.count("\n") == 1


@pytest.mark.parametrize(
    "options", [["--text", "--port", "80"], ["--text", "--open"], ["--port", "70000"], ["--port", "x"]]
)
def test_bad_usage(options: list[str], run: Path) -> None:
    result = losscope("live", run, *options)
    assert result.exit_code == 2 and "Traceback" not in result.output


def test_text_where_standard_output_is_no_terminal(run: Path) -> None:
    result = losscope("live", run, "--text")
    assert result.exit_code == 0, result.output
    assert "a  finished · step 199" in result.stdout and "\x1b" not in result.stdout
    assert max(map(len, result.stdout.splitlines())) <= 80


def test_help_has_an_example() -> None:
    result = losscope("live", "--help")
    assert result.exit_code == 0 and "losscope live runs/a" in result.stdout.split("Example:")[1]


def test_a_browser_is_opened_where_it_is_asked_for(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []
    monkeypatch.setattr(module.webbrowser, "open", opened.append)

    def interrupted(self: object, poll_interval: float) -> None:
        time.sleep(0.2)
        raise KeyboardInterrupt

    monkeypatch.setattr("losscope.viz.live.server.LiveServer.serve_forever", interrupted)
    assert losscope("live", run).exit_code == 0 and opened == []
    result = losscope("live", run, "--open")
    assert result.exit_code == 0 and opened[0] in result.stdout and opened[0].startswith("http://127.0.0.1:")


def test_the_page_is_served_until_ctrl_c(run: Path) -> None:
    command = [sys.executable, "-m", "losscope.viz", "live", str(run)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
    assert process.stdout is not None
    said = process.stdout.readline()
    try:
        address = said.split(" is live at ")[1].split(" ")[0]
        with urllib.request.urlopen(f"{address}live.js", timeout=30) as answer:
            assert answer.status == 200
    finally:
        process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    assert (process.returncode, errors) == (0, "")
