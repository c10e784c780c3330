"""Reading what lies in one folder, and nothing else."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path
from typing import BinaryIO

__all__ = ["all_of", "open_inside"]

# O_NONBLOCK: a pipe in place of a file must not make the reader wait for a writer. Windows has none of the three.
_FILE = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0)
_FOLDER = _FILE | getattr(os, "O_DIRECTORY", 0)
_RELATIVE = os.open in os.supports_dir_fd


def open_inside(folder: Path, name: str) -> BinaryIO:
    """Open a plain file of a folder for reading.

    Every step of the way is opened from the one before it and must be no link, so that nothing that changes
    meanwhile leads elsewhere. The folder itself may be a link: that is what the user named.

    Args:
        folder: the folder.
        name: path in it, with ``/``.

    Raises:
        OSError: if it is not there, is a link or no plain file, or the name leads out of the folder.

    Example:
        >>> import pathlib, tempfile
        >>> from losscope.viz.live.inside import open_inside
        >>> with tempfile.TemporaryDirectory() as there:
        ...     _ = (pathlib.Path(there) / "a.txt").write_text("here")
        ...     (pathlib.Path(there) / "b.txt").symlink_to("/etc/passwd")
        ...     with open_inside(pathlib.Path(there), "a.txt") as file:
        ...         print(file.read())
        ...     try:
        ...         open_inside(pathlib.Path(there), "b.txt")
        ...     except OSError as error:
        ...         print(type(error).__name__)
        b'here'
        OSError
    """
    steps = name.split("/")
    if any(step in ("", ".", "..") or "\\" in step or ":" in step or "\0" in step for step in steps):
        raise FileNotFoundError(f"{name!r} is not the name of a file in {folder}")
    try:
        descriptor = _descend(folder, steps) if _RELATIVE else _walk(folder, steps)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.EMLINK, errno.ENOTDIR):  # systems differ in what they call it
            raise OSError(f"{name} in {folder} is a link, or leads through one, and links are not followed") from error
        raise
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(f"{name} in {folder} is not a plain file")
    return os.fdopen(descriptor, "rb")


def _descend(folder: Path, steps: list[str]) -> int:
    place = os.open(folder, (_FOLDER & ~getattr(os, "O_NOFOLLOW", 0)))
    try:
        for step in steps[:-1]:
            below = os.open(step, _FOLDER, dir_fd=place)
            os.close(place)
            place = below
        return os.open(steps[-1], _FILE, dir_fd=place)
    finally:
        os.close(place)


def _walk(folder: Path, steps: list[str]) -> int:
    """Where a file cannot be opened relative to an open folder."""
    path = folder
    for step in steps:
        path = path / step
        if path.is_symlink():
            raise OSError(errno.ELOOP, "a link", str(path))
    return os.open(path, _FILE | getattr(os, "O_BINARY", 0))


def all_of(file: BinaryIO, most: int) -> bytes:
    """The content of a file.

    Args:
        file: opened for reading.
        most: bytes that it may have.

    Raises:
        OSError: if it has more.
    """
    content = file.read(most + 1)
    if len(content) > most:
        raise OSError(f"it has more than {most:,} bytes")
    return content
