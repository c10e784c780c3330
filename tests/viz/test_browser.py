"""The page in a browser: no complaint, no request, readable in both schemes and on a narrow screen."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from matplotlib.image import imread

from drawn_runs import AMBIGUOUS_NOTE, LONG_NOTE, hovering, meta, noting, write
from losscope.viz import report

CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or "/usr/bin/chromium"
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(not Path(CHROMIUM).exists(), reason="NO CHROMIUM: the page was not opened in a browser"),
]


def chromium(tmp_path: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [
        CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
        "--disable-sync", "--disable-component-update", f"--user-data-dir={tmp_path / 'profile'}", "--hide-scrollbars",
        "--enable-logging=stderr", "--v=0", *arguments,
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=180)
    assert done.returncode == 0, done.stderr
    complaints = [line for line in done.stderr.splitlines() if re.search(r"CONSOLE|Content Security|Refused", line)]
    assert complaints == []
    return done


@pytest.fixture
def page(tmp_path: Path) -> Path:
    records = hovering()
    write(tmp_path / "run", records, meta(model={}))
    return report(tmp_path / "run")


def test_the_browser_sees_the_whole_page(page: Path, tmp_path: Path) -> None:
    dom = chromium(tmp_path, "--dump-dom", page.as_uri()).stdout
    assert dom.count('<svg id="fig-') == 4
    assert dom.count("<path") > 100
    assert re.search(r'<script type="application/json" id="data">\{"runs"', dom)
    assert dom.rstrip().endswith("</html>")
    assert "At the edge" in dom


def picture(page: Path, tmp_path: Path, size: str, *options: str) -> np.ndarray:
    target = tmp_path / f"{size}{len(options)}.png"
    chromium(tmp_path, f"--screenshot={target}", f"--window-size={size}", *options, page.as_uri())
    return imread(target)[..., :3]


def test_light_and_dark(page: Path, tmp_path: Path) -> None:
    light = picture(page, tmp_path, "900,1200")
    dark = picture(page, tmp_path, "900,1200", "--blink-settings=preferredColorScheme=0")
    assert light.mean() > 0.85
    assert dark.mean() < 0.2
    for shot in (light, dark):  # ink on paper, also inside the figure
        assert np.ptp(shot[250:700, :860].mean(axis=2)) > 0.6


@pytest.mark.parametrize("note", ["", AMBIGUOUS_NOTE, LONG_NOTE], ids=["plain", "ambiguous", "long note"])
def test_narrow_screen_needs_no_sideways_scrolling(note: str, tmp_path: Path) -> None:
    """In a frame of 400 px (chromium's own window is no narrower than 500), nothing reaches past its edge."""
    write(tmp_path / "run", noting(hovering(), note or None), meta(model={}))
    page = report(tmp_path / "run")
    frame = tmp_path / "frame.html"
    frame.write_text(
        '<body style="margin:0;background:#f0f"><iframe width="1200" height="3000" style="border:0;width:400px" '
        f'src="{page.as_uri()}"></iframe></body>'
    )
    shot = picture(frame, tmp_path, "600,3000")
    assert shot.shape[1] == 600
    inside, margin = shot[:, :400], shot[:, 392:400]
    assert (inside.min(axis=2) < 0.5).any(axis=1).mean() > 0.3
    assert margin[800:].min() > 0.8  # the page's own padding is blank: nothing is cut off at the edge


def test_it_prints(page: Path, tmp_path: Path) -> None:
    target = tmp_path / "page.pdf"
    chromium(tmp_path, f"--print-to-pdf={target}", "--no-pdf-header-footer", page.as_uri())
    pages = len(re.findall(rb"/Type\s*/Page\b", target.read_bytes()))
    assert 1 <= pages <= 4
