"""What a build of the documentation would not notice: links between files, figures without an example, lost pages."""

import re
from fnmatch import fnmatch
from pathlib import Path

import pytest

from losscope import viz

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
PAGES += sorted((ROOT / "docs" / "migration").glob("*.md"))
MADE = ("figures/",)  # by the build


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_to_files(page: Path) -> None:
    targets = re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8"))
    local = [target for target in targets if "://" not in target and not target.startswith(MADE)]
    assert [target for target in local if not (page.parent / target).exists()] == []


def test_every_figure_has_an_example() -> None:
    text = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "docs" / "gallery").glob("plot_*.py"))
    figures = [name for name in viz.__all__ if name.startswith(("plot_", "interactive_"))]
    assert len(figures) > 15
    assert [name for name in figures if not re.search(rf"\b{name}\(", text)] == []


def test_every_page_has_a_place_in_the_index() -> None:
    index = (ROOT / "docs" / "index.md").read_text(encoding="utf-8")
    named = re.findall(r"^[\w/*\[\]-]+$", index, re.MULTILINE)
    docs = ROOT / "docs"
    found = {str(page.relative_to(docs).with_suffix("")) for page in (*docs.glob("*.md"), *docs.glob("migration/*.md"))}
    pages = {name for name in found if not name.startswith("_")}
    assert {name for name in pages if not any(fnmatch(name, entry) for entry in named)} == {"index"}
