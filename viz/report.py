"""The report: a page on one run, or on several, in a file."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from losscope.landscape import RunError, SettingError
from losscope.probes import Run

from .facts import read_run
from .page import page

__all__ = ["report"]


def report(
    runs: Run | str | Path | Sequence[Run | str | Path], out: str | Path | None = None, *, static: bool = False
) -> Path:
    """Write one self-contained HTML page on a run, or on several side by side.

    The run's story in sentences, its figures, the audit and the recorded errors of every player, facts and cost. It
    loads nothing, follows the reader's light or dark scheme, fits narrow screens, and prints. Figures are inline SVG;
    where JavaScript runs, and plotly was installed when the page was written, they can be hovered over and zoomed.

    Args:
        runs: the run or its folder, or several of them.
        out: the file to write; default: ``report.html`` in the first run's folder.
        static: write no script at all: a page below a megabyte.

    Returns:
        Where it was written; replaced in one step if it was there.

    Raises:
        RunError: if a run cannot be read, or is in memory and ``out`` is not given, or ``out`` cannot be written.
        SettingError: if there is no run.

    Example:
        >>> from losscope.probes import Run
        >>> from losscope.viz import report
        >>> run = Run.from_records({"players": {"model": {}}}, [])
        >>> path = report(run, out=getfixture("tmp_path") / "page.html", static=True)
        >>> path.name
        'page.html'
    """
    given = [runs] if isinstance(runs, Run | str | Path) else list(runs)
    if not given:
        raise SettingError("a report is on one run or more; got none")
    read = [run if isinstance(run, Run) else read_run(run) for run in given]
    if out is None:
        if read[0].path is None:
            raise RunError("this run is in memory: say where the report goes, report(run, out=...)")
        out = read[0].path / "report.html"
    out = Path(out)
    if out.is_dir():
        raise RunError(f"{str(out)!r} is a folder; name a file, e.g. {str(out / 'report.html')!r}")
    _write(out, page(read, interactive=not static))
    return out


def _write(out: Path, text: str) -> None:
    """Replace a file in one step."""
    temporary = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    try:
        temporary.write_bytes(text.encode("utf-8", "replace"))  # names may hold halves of surrogate pairs
        temporary.replace(out)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise RunError(f"the report cannot be written to {str(out)!r}: {error.strerror or error}") from error
