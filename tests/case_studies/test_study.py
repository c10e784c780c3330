"""The scripts' shared command line, and seeds in parallel."""

from functools import partial
from pathlib import Path

import pytest
import torch
from matplotlib.figure import Figure

from losscope.viz.demo import network
from study import command_line, in_parallel, save_figure


def options(tmp_path: Path, *arguments: str):
    return command_line("doc", "some", arguments=["--out", str(tmp_path / "new"), *arguments])


def test_defaults_and_what_overrides_them(tmp_path: Path) -> None:
    found = options(tmp_path)
    assert (found.quick, found.seeds, found.jobs) == (False, (5, 6, 7, 8, 9), 1) and found.out.is_dir()
    assert options(tmp_path, "--quick").seeds == (0, 1)
    assert options(tmp_path, "--quick", "--seeds", "3").seeds == (0, 1, 2)
    assert options(tmp_path, "--seeds", "2", "--first", "0").seeds == (0, 1)


def test_without_a_folder_a_fresh_one(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    folders = [command_line("doc", "some", arguments=[]).out for _ in range(2)]
    assert folders == [Path("runs/some"), Path("runs/some-2")]


def test_arguments_of_the_script_itself(tmp_path: Path) -> None:
    out = ["--out", str(tmp_path / "new")]
    more = command_line("d", "s", more=lambda p: p.add_argument("--cifar"), arguments=[*out, "--cifar", "x"]).more
    assert more.cifar == "x"


@pytest.mark.parametrize("wrong", [["--seeds", "0"], ["--jobs", "x"], ["--first", "-1"], ["--out", "."]])
def test_what_is_wrong_ends_the_script(wrong: list[str], tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "kept").touch()
    with pytest.raises(SystemExit):
        command_line("doc", "some", arguments=wrong)
    assert "whole number" in capsys.readouterr().err or wrong[0] == "--out"


def test_folders_that_cannot_be_made_or_written_to(tmp_path: Path, monkeypatch, capsys) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(SystemExit):
        command_line("doc", "some", arguments=["--out", str(tmp_path / "file" / "below")])
    assert "cannot be made: Not a directory" in capsys.readouterr().err
    monkeypatch.setattr("study.os.access", lambda path, mode: False)  # a test may run as root, who may do all
    with pytest.raises(SystemExit):
        options(tmp_path)
    assert "cannot be written to" in capsys.readouterr().err


def root(number: float) -> float:
    if number < 0:
        raise ValueError("negative")
    return number**0.5


def test_one_thread_and_the_order_of_the_cases() -> None:
    before = torch.get_num_threads()
    assert in_parallel(lambda _: torch.get_num_threads(), [0]) == [1] and torch.get_num_threads() == before
    assert in_parallel(root, [4, 9, 1]) == [2, 3, 1]
    with pytest.raises(ValueError, match="negative") as caught:
        in_parallel(root, [4, -1])
    assert caught.value.__notes__ == ["in case -1"]


def test_processes_return_the_same_bits() -> None:
    weights = partial(network)  # importable by name in a spawned process
    here, there = (in_parallel(weights, [0, 1, 2], jobs) for jobs in (1, 2))
    for one, other in zip(here, there, strict=True):
        assert all(map(torch.equal, one.state_dict().values(), other.state_dict().values()))


def test_figures(tmp_path: Path) -> None:
    figure = Figure()
    figure.subplots().plot([0, 1])
    assert save_figure(figure, tmp_path / "new", "line").stat().st_size > 0
    assert {path.name for path in (tmp_path / "new").iterdir()} == {"line.png", "line.pdf"}
