"""The run on a terminal: every width, hostile words, Ctrl-C."""

import dataclasses
import io
import math
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path

import pytest
from rich.console import Console

from drawn_runs import diverging, dropping, hovering, minibatch, run_of, write
from losscope.landscape import RunError
from losscope.probes import Record, Run
from losscope.viz.live import terminal
from losscope.viz.live.lines import clean, heading
from losscope.viz.live.terminal import follow, screen


def shown(run: Run, width: int = 80, height: int | None = None, problem: str = "", **options: object) -> str:
    file = io.StringIO()
    console = Console(file=file, width=width, color_system=None, force_terminal=False, **options)  # type: ignore[arg-type]
    console.print(screen(run, problem, width=width, height=height, signs="ascii" not in str(console.encoding)))
    return file.getvalue()


RUNS = {"hovering": hovering, "minibatch": minibatch, "diverging": diverging, "dropping": dropping}


@pytest.mark.parametrize("name", RUNS)
@pytest.mark.parametrize(
    ("width", "height"), [(40, None), (60, 24), (60, 40), (80, 24), (80, None), (120, 30), (200, 60)]
)
def test_everything_is_there_and_fits(name: str, width: int, height: int | None) -> None:
    text = shown(run_of(RUNS[name]()), width, height)
    lines = text.splitlines()
    assert max(map(len, lines)) <= width
    assert height is None or len(lines) <= max(height, 24)
    for word in ("loss", "sharpness", "2/lr", "edge", "Measuring took"):
        assert word in text
    if (width, height) != (60, 24):
        assert "sharpness, threshold dashed" in text and " loss" in text.split("sharpness, threshold")[1]


def test_the_numbers_are_those_of_the_run() -> None:
    run = run_of(hovering())
    text = shown(run, 100)
    last = run.select("sharpness")[-1]
    assert last.value is not None
    assert f"{last.value:.4g}  at least {last.value:.4g}, {last.value / 20:.2f} times 2/lr = 20, step 2,990" in text
    assert re.search(r"trace +52\.95  48\.71 to 57\.18, step 2,950", text)
    assert run.audit()["sharpness"].ratio is not None
    assert f"◆ sharpness  {run.audit()['sharpness'].ratio:.4g}" in text
    assert "Measuring took 7.5 s of 30 s, 25 %: sharpness 3 s" in text


def test_failures_the_latest_first() -> None:
    text = shown(run_of(diverging()))
    found = [line for line in text.splitlines() if re.match(r"step \d", line)]
    assert found[0] == "step 490, 17 times: sharpness not finite: the loss is nan"
    assert found[2] == "step 100: sharpness error: RuntimeError: out of memory"


def test_how_old_the_last_record_is() -> None:
    run = run_of([Record(7, "model", "log", values={"loss": 1.0}, time=1000.0)])
    run.meta["status"] = "running"
    assert heading(run, now=1004.0)[0].plain == "run  running · step 7 · 1 record · last one 4 s ago"
    assert heading(run, now=5000.0)[0].plain.startswith("run  running, or killed · ")
    run.meta["status"], run.malformed = "failed", 3
    run.meta["reason"] = "KeyboardInterrupt"
    assert [line.plain for line in heading(run, "it is gone")][1:] == [
        "KeyboardInterrupt", "3 lines of records.jsonl cannot be read", "it is gone",
    ]  # fmt: skip


def hostile(records: Iterable[Record]) -> list[Record]:
    return [dataclasses.replace(r, player="p\x1b[2J\x9b31m[red]\u202e", probe=r.probe) for r in records]


def test_hostile_words_are_inert() -> None:
    """Escape sequences, rich's markup, marks of direction, line breaks: in names, reasons and facts."""
    bad = "\x1b]0;owned\x07\x1b[31m[bold]x[/bold][link=http://evil]\r\n\u202e\u2028\x00" + "long" * 60
    player = "p\x1b[2J\x9b31m[red]\u202e"
    records = [
        *hostile(hovering(300)), Record(5, player, bad, value=1.0), Record(9, player, bad, status=bad, reason=bad),
        Record(9, player, "stability", status="error", reason=bad),
    ]  # fmt: skip
    run = run_of(records, **{player: {"threshold_formula": bad, "model": bad}, "b" + bad: {}})
    run.meta |= {"status": bad, "reason": bad}
    for width in (60, 120):
        text = shown(run, width, problem=bad)
        assert all(each.isprintable() or each == "\n" for each in text)
        assert "[bold]x" in text and "p·[2J·31m[red]·" in text
        assert max(map(len, text.splitlines())) <= width
    assert clean(bad, 20) == "·]0;owned··[31m[bol…"


@pytest.mark.parametrize(
    "records",
    [[], [Record(0, "model", "log", values={"loss": 1.0})], [Record(0, "model", "sharpness", value=math.nan)],
     [Record(3, "model", "trace", value=1.0)], [Record(0, "model", "log", values={"accuracy": None})]],
)  # fmt: skip
def test_little_or_nothing(records: list[Record]) -> None:
    assert "run  finished" in shown(run_of(records), 60, 24)


def test_nothing_yet(tmp_path: Path) -> None:
    console = Console(file=io.StringIO(), width=60)
    follow(tmp_path, console)
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert "waiting for the run to begin" in text and "Nothing is recorded yet" in text
    with pytest.raises(RunError, match="no such folder"):
        follow(tmp_path / "none", console)


@pytest.mark.parametrize("kind", ["forced", "dumb"])
def test_once_where_there_is_no_terminal_to_draw_on(kind: str, tmp_path: Path) -> None:
    write(tmp_path / "run", hovering(100))
    file = io.StringIO()
    file.isatty = lambda: kind == "dumb"  # type: ignore[method-assign]
    environment = {"TERM": "dumb"} if kind == "dumb" else {"FORCE_COLOR": "1", "TERM": "xterm"}
    follow(tmp_path / "run", Console(file=file, width=80, _environ=environment))
    assert file.getvalue().count("Measuring took") == 1 and "1049" not in file.getvalue()


def test_several_players() -> None:
    records = [*hovering(300), *minibatch(300, player="D")]
    text = shown(run_of(records, model={}, D={"batch_size": 32}), 80)
    assert text.index("\nmodel\n") < text.index("\nD\n") and text.count("threshold dashed") == 2


def test_ascii_terminals() -> None:
    file = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    console = Console(file=file, width=80)
    for run in (run_of(diverging()), run_of(hovering(300, player="μ–模型"), **{"μ–模型": {}, "b": {}})):
        console.print(screen(run, width=80, signs=False))  # raises where something cannot be encoded
    file.flush()


def test_records_that_arrive_are_shown_and_what_cannot_be_shown_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "run", hovering(100))
    file = io.StringIO()
    file.isatty = lambda: True  # type: ignore[method-assign]
    console = Console(file=file, width=80, height=40, force_terminal=True, color_system=None, _environ={})
    waits: list[float] = []

    def sleep(seconds: float) -> None:
        waits.append(seconds)
        if len(waits) == 1:
            with (tmp_path / "run" / "records.jsonl").open("a") as records:
                records.write(Record(777, "model", "log", values={"loss": 1.0}, time=time.time()).to_json() + "\n")
        elif len(waits) == 2:
            monkeypatch.setattr(terminal, "screen", lambda *given, **named: 1 / 0)
        elif len(waits) == 3:
            monkeypatch.undo()
            raise KeyboardInterrupt

    follow(tmp_path / "run", console, sleep)
    text = file.getvalue()
    assert text.index("step 99") < text.index("step 777") < text.index("cannot be shown: ZeroDivisionError")
    assert text.index("\x1b[?1049h") < text.index("\x1b[?1049l") < text.rindex("Measuring took")
    assert min(waits) >= 0.5


def test_ctrl_c_on_a_terminal(tmp_path: Path) -> None:
    """Exit code 0, the screen and the cursor as before, the last picture left."""
    write(tmp_path / "run", hovering(200))
    main, other = pty.openpty()
    command = [sys.executable, "-m", "losscope.viz", "live", str(tmp_path / "run"), "--text"]
    environment = os.environ | {"TERM": "xterm-256color", "COLUMNS": "60", "LINES": "24", "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, stdout=other, stderr=other, stdin=other, env=environment)
    os.close(other)
    seen, interrupted, deadline = b"", False, time.monotonic() + 90
    while time.monotonic() < deadline:
        if select.select([main], [], [], 0.1)[0]:
            try:
                part = os.read(main, 65536)
            except OSError:  # the other end is closed
                break
            if not part:
                break
            seen += part
        if not interrupted and b"sharpness" in seen:
            interrupted = True
            process.send_signal(signal.SIGINT)
    os.close(main)
    assert process.wait(30) == 0
    assert b"Traceback" not in seen
    assert seen.index(b"\x1b[?1049h") < seen.index(b"\x1b[?1049l") < seen.rindex(b"sharpness")
    assert seen.rindex(b"\x1b[?25h") > seen.rindex(b"\x1b[?25l")
