"""Interactive figures in files."""

import json
import re
from pathlib import Path

import pytest

from drawn_spectra import evolving
from losscope.viz import interactive_density, save_html

pytest.importorskip("plotly")


def test_a_file_plays_nothing_by_itself_and_has_no_button_that_sends(tmp_path: Path) -> None:
    file = save_html(interactive_density(evolving(3)), tmp_path / "density.html")
    text = file.read_text(encoding="utf-8")
    drawn = text[text.rindex("Plotly.newPlot") :]
    assert "Plotly.addFrames" in drawn and "Plotly.animate" not in drawn
    config = json.loads(re.findall(r"\{[^{}]*showSendToCloud[^{}]*\}", drawn)[-1])
    assert config["showSendToCloud"] is False and config["displaylogo"] is False
    assert not re.search(r"<(script|link|img)[^>]*(src|href)=\"?https?:", text)
