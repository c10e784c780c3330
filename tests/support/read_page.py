"""Reading a page as a browser's parser would: its elements, ids, references, texts and data."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(2)>\"'& $x^{ $"
VOID = {"meta", "br", "img", "link", "input", "hr"}


class Page(HTMLParser):
    """The elements, ids, references and texts of a page; fails on tags that do not match."""

    def __init__(self, page: Path | str) -> None:
        super().__init__(convert_charrefs=True)
        self.source = page.read_text(encoding="utf-8") if isinstance(page, Path) else page
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text: dict[str, list[str]] = {}
        self.scripts: list[str] = []
        self.open: list[str] = []
        self.feed(self.source)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag == "script":
            self.scripts.append("")
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "script":
            self.scripts[-1] += data
        else:
            self.text.setdefault(self.open[-1] if self.open else "", []).append(data)

    def attribute(self, name: str) -> list[str]:
        return [attrs[name] or "" for _, attrs in self.elements if name in attrs]

    def tags(self, tag: str) -> list[dict[str, str | None]]:
        return [attrs for each, attrs in self.elements if each == tag]

    @property
    def figures(self) -> list[dict[str, str | None]]:
        """The static ones, wide and narrow."""
        return [attrs for attrs in self.tags("svg") if attrs.get("role") == "img"]

    @property
    def words(self) -> str:
        return " ".join(t for tag, texts in self.text.items() if tag != "style" for t in texts)

    @property
    def markup(self) -> str:
        """All but what is inside scripts: plotly's own code names addresses."""
        return re.sub(r"(<script[^>]*>).*?</script>", r"\1</script>", self.source, flags=re.DOTALL)

    @property
    def data(self) -> dict[str, Any]:
        places = [attrs.get("id") for attrs in self.tags("script")]
        return json.loads(self.scripts[places.index("data")], parse_constant=lambda name: pytest.fail(f"bare {name}"))
