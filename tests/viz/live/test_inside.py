"""Files of one folder, and of nowhere else."""

import os
import threading
from pathlib import Path

import pytest

from losscope.viz.live.inside import open_inside


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret" / "key.txt").write_text("secret")
    (tmp_path / "run" / "arrays").mkdir(parents=True)
    (tmp_path / "run" / "arrays" / "x.npy").write_text("array")
    return tmp_path / "run"


def test_what_is_inside(folder: Path, tmp_path: Path) -> None:
    with open_inside(folder, "arrays/x.npy") as file:
        assert file.read() == b"array"
    (tmp_path / "link").symlink_to(folder)  # what the user named may be a link
    with open_inside(tmp_path / "link", "arrays/x.npy") as file:
        assert file.read() == b"array"


@pytest.mark.parametrize(
    "name",
    [
        "../secret/key.txt", "arrays/../../secret/key.txt", "/etc/passwd", "", ".", "..", "arrays/", "arrays//x.npy",
        "./arrays/x.npy", "arrays\\x.npy", "C:/x", "arrays/x.npy\0", "arrays", "nothing",
    ],
)  # fmt: skip
def test_what_is_not(folder: Path, name: str) -> None:
    with pytest.raises(OSError):
        open_inside(folder, name)


def test_links_are_not_followed(folder: Path, tmp_path: Path) -> None:
    (folder / "file").symlink_to(tmp_path / "secret" / "key.txt")
    (folder / "place").symlink_to(tmp_path / "secret")
    (folder / "own").symlink_to("arrays/x.npy")
    for name in ("file", "place/key.txt", "own"):
        with pytest.raises(OSError, match="links are not followed"):
            open_inside(folder, name)


def test_a_link_put_there_meanwhile(folder: Path, tmp_path: Path) -> None:
    """Another process that swaps a folder for a link to one outside never gets what is outside."""
    (folder / "arrays" / "key.txt").write_text("inside")
    (folder / "other").symlink_to(tmp_path / "secret")
    done = threading.Event()

    def swap() -> None:
        while not done.is_set():
            for new in ("other", "mine"):
                os.replace(folder / "arrays", folder / ("mine" if new == "other" else "other"))  # noqa: PTH105
                os.replace(folder / new, folder / "arrays")  # noqa: PTH105

    thread = threading.Thread(target=swap)
    thread.start()
    seen = []
    for _ in range(3000):
        try:
            with open_inside(folder, "arrays/key.txt") as file:
                seen.append(file.read())
        except OSError:
            pass
    done.set()
    thread.join()
    assert seen and set(seen) == {b"inside"}


def test_a_pipe_makes_nobody_wait(folder: Path) -> None:
    os.mkfifo(folder / "pipe")
    with pytest.raises(OSError, match="not a plain file"):
        open_inside(folder, "pipe")
