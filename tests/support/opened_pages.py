"""Pages opened in Debian's chromium, with all that a browser complains of or asks for written down."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or "/usr/bin/chromium"


@contextmanager
def chromium() -> Iterator[Any]:
    """A browser, or a skipped test that says what is missing."""
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        pytest.skip('NO PLAYWRIGHT: pages were not opened in a browser (pip install "losscope[test]")')
    if not Path(CHROMIUM).exists():
        pytest.skip("NO CHROMIUM: pages were not opened in a browser (apt-get install chromium)")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@dataclass
class Opened:
    """A page in a window, with what it said and asked for."""

    window: Any
    complaints: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.window, name)

    def count(self, selector: str) -> int:
        return int(self.window.locator(selector).count())

    @property
    def sideways(self) -> int:
        """Pixels by which the document is wider than its window."""
        return int(self.window.evaluate("document.documentElement.scrollWidth - innerWidth"))


@contextmanager
def opened(browser: Any, page: Path, *, width: int = 1000, script: bool = True, dark: bool = False) -> Iterator[Opened]:
    """Open a file; with a script, wait until its figures are drawn."""
    context = browser.new_context(
        viewport={"width": width, "height": 900}, java_script_enabled=script, color_scheme="dark" if dark else "light"
    )
    window = context.new_page()
    found = Opened(window)
    window.on("console", lambda said: found.complaints.append(said.text))
    window.on("pageerror", lambda error: found.complaints.append(str(error)))
    window.on("dialog", lambda dialog: (found.complaints.append(f"dialog {dialog.message}"), dialog.dismiss()))
    window.on("request", lambda asked: found.requests.append(asked.url))
    window.goto(page.as_uri())
    if script and window.locator("#data").count():
        window.wait_for_selector("html[data-ready]", state="attached", timeout=60_000)
    yield found
    context.close()
