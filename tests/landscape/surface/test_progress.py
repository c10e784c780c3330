"""The progress bar: what it shows, where it goes, and that it stays silent when it is not asked for."""

import sys
from collections.abc import Iterator

import pytest
import torch
from torch import nn

from losscope.landscape import Objective
from losscope.landscape.surface import evaluate, evaluate_at
from losscope.landscape.surface.progress import Progress, progressing

Captured = pytest.CaptureFixture[str]


@pytest.fixture
def terminal(capsys: Captured, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stderr that lines can be written over on."""
    monkeypatch.setattr(type(sys.stderr), "isatty", lambda _: True)


def test_lines() -> None:
    bar = Progress(200)
    assert bar.line(0.0) == "  0% |........................| 0/200 points"
    bar.done = 50
    assert bar.line(3700.0) == " 25% |######..................| 50/200 points, 1:01:40, 3:05:00 left"
    bar.done = 199
    assert bar.line(1.0).startswith(" 99% |#######################.|")
    bar.done = 200
    assert bar.line(65.0) == "100% |########################| 200/200 points, 1:05"
    assert Progress(None, 3).line(0.0) == "3 points"


def test_time_left_is_of_the_points_that_are_left() -> None:
    """Those that a file held took no time."""
    bar = Progress(100, 90)
    bar.done = 95
    assert bar.line(10.0).endswith("95/100 points, 0:10, 0:10 left")


@pytest.mark.usefixtures("terminal")
def test_it_is_written_over_and_left_to_stand(capsys: Captured) -> None:
    with Progress(3, 1) as bar:
        bar.update(2)
    shown = capsys.readouterr()
    assert shown.out == "" and shown.err.startswith("\r 33%") and shown.err.endswith("\n")
    assert shown.err.split("\r")[-1].startswith("100%")


def test_where_it_was_left_is_shown(capsys: Captured) -> None:
    with pytest.raises(KeyboardInterrupt), Progress(4):
        raise KeyboardInterrupt
    assert "0/4" in capsys.readouterr().err


def test_a_log_file_gets_one_line_and_no_more(capsys: Captured) -> None:
    with Progress(500) as bar:
        for _ in range(500):
            bar.update(1)
    assert capsys.readouterr().err == "100% |########################| 500/500 points, 0:00\n"


def test_a_log_file_hears_of_long_work_now_and_then(capsys: Captured, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    with Progress(100) as bar:
        for _ in range(100):
            now[0] += 1.0
            bar.update(1)
    said = capsys.readouterr().err.splitlines()
    assert [line.split("| ")[1] for line in said[:-1]] == [
        "31/100 points, 0:31, 1:09 left", "62/100 points, 1:02, 0:38 left", "93/100 points, 1:33, 0:07 left"
    ]  # fmt: skip
    assert said[-1].startswith("100%")


def test_a_notebook_has_it_on_stdout(capsys: Captured, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(type(sys.stdout), "__module__", "ipykernel.iostream")
    with Progress(3) as bar:
        bar.update(3)
    shown = capsys.readouterr()
    assert shown.err == "" and shown.out.startswith("\r  0%") and shown.out.endswith("\n")


def test_not_asked_for_it_is_silent(capsys: Captured) -> None:
    with Progress(3, shown=False) as bar:
        bar.update(3)
    assert list(progressing([1, 2], shown=False)) == [1, 2]
    with Progress(0):
        pass
    assert capsys.readouterr() == ("", "")


def test_items_of_known_and_unknown_number(capsys: Captured) -> None:
    def three() -> Iterator[int]:
        yield from range(3)

    assert list(progressing([5, 6])) == [5, 6]
    assert "2/2 points" in capsys.readouterr().err
    assert list(progressing(three())) == [0, 1, 2]
    assert "3 points" in capsys.readouterr().err


@pytest.mark.usefixtures("terminal")
def test_of_an_evaluation(capsys: Captured) -> None:
    model = nn.Linear(2, 1)
    objective = Objective(model, (torch.eye(2), torch.ones(2, 1)), criterion=nn.MSELoss())
    evaluate(objective, None, [torch.ones(3)], torch.linspace(-1, 1, 30)[:, None], progress=True)
    shown = capsys.readouterr().err
    assert "0/30 points" in shown and "30/30 points" in shown
    evaluate_at(objective, [torch.ones(3)] * 4, progress=True)
    assert "4/4 points" in capsys.readouterr().err
    evaluate_at(objective, [torch.ones(3)] * 4)
    assert capsys.readouterr().err == ""
