"""Figures by name, and what drawing leaves behind: nothing."""

import subprocess
import sys
from pathlib import Path

import matplotlib
import pytest
from matplotlib.figure import Figure

from drawn_runs import hovering, run_of
from drawn_spectra import evolving
from losscope.landscape import SettingError
from losscope.viz import figure, report
from losscope.viz.figure import FIGURES


@pytest.mark.parametrize("name", FIGURES)
def test_by_name(name: str, tmp_path: Path) -> None:
    run = evolving(5) if name in ("spectrum", "spectrum_over_time", "outliers") else run_of(hovering(100))
    size = (9.0, 8.0) if name == "dashboard" else (5.0, 4.0)
    made = figure(run, name, size=size)
    assert isinstance(made, Figure)
    assert tuple(made.get_size_inches()) == size
    for kind in ("png", "pdf", "svg"):
        made.savefig(tmp_path / f"f.{kind}")
        assert (tmp_path / f"f.{kind}").stat().st_size > 1000


def test_an_unknown_name_lists_the_known() -> None:
    with pytest.raises(SettingError, match="'sharpness', 'stability'"):
        figure(run_of([]), "nothing")


def test_no_global_setting_is_touched(tmp_path: Path) -> None:
    before = dict(matplotlib.rcParams)
    run = run_of(hovering(100))
    figure(run, "sharpness").savefig(tmp_path / "a.svg")
    figure(run, "stability")
    report(run, tmp_path / "a.html")
    for name in FIGURES:
        figure(evolving(3), name).savefig(tmp_path / "b.png")
    assert dict(matplotlib.rcParams) == before


def test_neither_pyplot_nor_plotly_is_imported_unasked(tmp_path: Path) -> None:
    """In one interpreter: pyplot never, plotly for what it draws only, with the way out where it is not installed."""
    code = (
        "import sys; from losscope.probes import Run; from losscope.viz import figure, report, interactive_spectrum\n"
        "run = Run.from_records({'players': {'model': {}}}, []); figure(run, 'sharpness').savefig('a.png')\n"
        "assert 'plotly' not in sys.modules; sys.modules['plotly'] = None\n"
        "try: interactive_spectrum(run)\n"
        "except ImportError as error: assert 'pip install' in str(error)\n"
        "else: raise AssertionError\n"
        "del sys.modules['plotly']; report(run, 'a.html'); assert 'matplotlib.pyplot' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True, timeout=120)
