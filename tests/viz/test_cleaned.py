"""Nothing in a run folder reaches the terminal as more than words."""

import json
from pathlib import Path

import pytest
from rich.console import Console
from rich.table import Table
from rich.text import Text
from typer.testing import CliRunner

from losscope.probes import Record
from losscope.viz.cleaned import Cleaned
from losscope.viz.cli import app

HOSTILE = "a\x1b[2J\x1b]0;title\x07\u202e[/bold][red]\r\x00"


@pytest.fixture
def hostile(tmp_path: Path) -> Path:
    facts = {
        "v": 1,
        "status": "failed",
        "reason": HOSTILE,
        "identity": {},
        "players": {HOSTILE: {"optimizer": HOSTILE}},
    }
    (tmp_path / "meta.json").write_text(json.dumps(facts))
    failed = [Record(step, HOSTILE, probe, status="error", reason=HOSTILE, kernel=HOSTILE)
              for step in range(3) for probe in ("stability", HOSTILE)]  # fmt: skip
    (tmp_path / "records.jsonl").write_text("".join(record.to_json() + "\n" for record in failed))
    return tmp_path


@pytest.mark.parametrize("command", [["audit"], ["audit", "--explain"], ["doctor"], ["live", "--text"]])
def test_commands_print_words(command: list[str], hostile: Path) -> None:
    done = CliRunner().invoke(app, [*command, str(hostile)])
    assert done.exit_code in (0, 3), done.output
    assert "·[2J" in done.output
    assert [letter for letter in done.output if not (letter.isprintable() or letter == "\n")] == []


def test_errors_too(tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["audit", str(tmp_path / "a\x1b[2J")])
    assert done.exit_code not in (0, 1) and "\x1b" not in done.output


def test_styles_and_lines_stay() -> None:
    table = Table("name", box=None)
    table.add_row(Text("a\x1b[31mb", style="bold"))
    console = Console(width=40, force_terminal=True, color_system="standard", record=True)
    with console.capture() as printed:
        console.print(Cleaned(table))
    assert "\x1b[1ma·[31mb\x1b[0m" in printed.get() and len(printed.get().splitlines()) == 2
