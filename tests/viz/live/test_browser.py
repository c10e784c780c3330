"""The live page in Debian's chromium while a real training writes its run, is killed and resumed."""

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from drawn_runs import hovering, meta, write
from losscope.probes import Run
from losscope.viz.live import Feed
from losscope.viz.live.server import LiveServer, listen
from losscope.viz.live.site import Site
from losscope.viz.page_figures import drawn

CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or "/usr/bin/chromium"
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(not Path(CHROMIUM).exists(), reason="NO CHROMIUM: the live page was not opened in a browser"),
]
sync_api = pytest.importorskip("playwright.sync_api", reason="NO PLAYWRIGHT: the live page was not opened in a browser")

SOON = 3.0
TRAINING = """
import sys, time, torch
from torch import nn
from losscope.probes import Sharpness, Spectrum, Stability, watch
torch.manual_seed(0)
x = torch.randn(64, 8)
y = torch.sin(2 * x[:, :1])
model = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 1))
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
probes = [Sharpness(every=5), Stability(every=10), Spectrum(every=100, vectors=2, steps=8)]
with watch(model, optimizer, data=(x, y), criterion=nn.MSELoss(), out=sys.argv[1], batch_size=64, probes=probes,
           resume=True) as run:
    for _ in range(5000):
        optimizer.zero_grad()
        loss = nn.functional.mse_loss(model(x), y)
        loss.backward()
        optimizer.step()
        run.log(loss=loss)
        time.sleep(0.02)
"""
LAST = """
() => {
  for (const plot of document.querySelectorAll(".plot"))
    for (const trace of plot.data || []) if (trace.name === "sharpness") return trace.x.at(-1);
  return -1;
}
"""
CURVES = "(plot) => document.querySelector(plot).data.map(({ x, y }) => [x, y])"


def within(seconds: float, true: Callable[[], Any]) -> Any:
    deadline = time.monotonic() + seconds
    while not (found := true()):
        assert time.monotonic() < deadline, "it took too long"
        time.sleep(0.05)
    return found


@contextlib.contextmanager
def training(script: Path, folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A training in a process of its own, killed in the end."""
    started = subprocess.Popen([sys.executable, str(script), str(folder)], env=os.environ | {"OMP_NUM_THREADS": "1"})
    try:
        yield started
    finally:
        started.kill()
        started.wait()


@contextlib.contextmanager
def serving(folder: Path, port: int = 0) -> Iterator[LiveServer]:
    with listen(port, Site(Feed(folder))) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        try:
            yield server
        finally:
            server.shutdown()


@pytest.fixture
def page(tmp_path: Path) -> Iterator[Any]:
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page(viewport={"width": 1000, "height": 1200})
        page.said = []
        page.on("console", lambda message: page.said.append((message.type, message.text)))
        page.on("pageerror", lambda error: page.said.append(("error", str(error))))
        page.on(
            "request",
            lambda request: page.said.append(("foreign", request.url)) if "127.0.0.1" not in request.url else 0,
        )
        yield page
        browser.close()


def on_page(page: Any) -> int:
    """Step of the last sharpness that is on the page; -1 where it is being loaded."""
    try:
        return int(page.evaluate(LAST))
    except sync_api.Error:
        return -1


def latest(folder: Path) -> int:
    """Step of the last sharpness that was written."""
    steps = re.findall(r'"step":(\d+),[^\n]*"probe":"sharpness"', (folder / "records.jsonl").read_text())
    return int(steps[-1]) if steps else -1


def keeps_up(page: Any, folder: Path, times: int = 2) -> None:
    """What was written is on the page within seconds, several times in a row."""
    for _ in range(times):
        written = latest(folder)
        assert written >= 0
        within(SOON, lambda step=written: on_page(page) >= step)
        within(10, lambda step=written: latest(folder) > step)


def test_a_training_from_its_first_step_through_a_kill(page: Any, tmp_path: Path) -> None:
    folder, script = tmp_path / "run", tmp_path / "train.py"
    folder.mkdir()
    script.write_text(TRAINING)
    with serving(folder) as server:
        page.goto(server.url)
        within(20, lambda: "waiting for the run to begin" in page.inner_text("#live"))
        assert "Nothing is recorded yet" in page.inner_text("body")
        with training(script, folder) as process:
            within(60, lambda: on_page(page) > 0)  # it has loaded itself anew: there are players now
            page.locator("#figure-0-0-sharpness").scroll_into_view_if_needed()
            keeps_up(page, folder)
            said = page.inner_text("#live")
            assert re.search(r"● Live running · step [\d,]+ · [\d,]+ records · last record \d s ago", said), said
            within(20, lambda: page.evaluate("!!document.querySelector('#figure-0-0-spectrum svg')"))
            process.send_signal(signal.SIGKILL)
            process.wait()
        killed = latest(folder)
        within(SOON, lambda: on_page(page) >= killed)
        with training(script, folder):
            within(60, lambda: latest(folder) > killed)
            keeps_up(page, folder)
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        within(5, lambda: page.locator("figure.drawn > .static").count() == 0)  # out of date in print
        assert page.said == []  # once the server is gone the page's next question fails
    assert {path.name for path in folder.iterdir()} <= {"meta.json", "meta.json.tmp", "records.jsonl", "arrays"}


def test_the_connection_is_lost_and_found(page: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a run whose words are hostile, and which goes on while the server draws the whole no more."""
    folder, hostile = tmp_path / "run", "<img src=x onerror=alert(1)>"
    write(
        folder,
        hovering(200, player=hostile),
        meta(**{hostile: {"model": "</script><script>alert(2)</script>"}, "b": {}}),
    )
    with serving(folder) as server:
        page.goto(server.url)
        within(20, lambda: "● Live" in page.inner_text("#live"))
    within(10, lambda: "○ Connection lost" in page.inner_text("#live"))
    with serving(folder, server.port):
        within(20, lambda: "● Live" in page.inner_text("#live"))
        within(10, lambda: on_page(page) == 190)
        within(10, lambda: page.evaluate("document.querySelector('#figure-0-0-stability.drawn') !== null"))
        monkeypatch.setattr(server.answer._whole, "due", lambda key: False)
        with (folder / "records.jsonl").open("a") as file:
            file.writelines(r.to_json() + "\n" for r in hovering(300, player=hostile) if r.step >= 150)
        page.locator("#figure-0-0-sharpness").scroll_into_view_if_needed()
        within(SOON, lambda: on_page(page) == 290)
        page.locator("#figure-0-0-stability").scroll_into_view_if_needed()
        for kind in ("sharpness", "stability"):
            expected = drawn(Run(folder), kind, hostile)
            assert expected is not None
            curves = [[trace["x"], trace["y"]] for trace in expected[0]]
            within(10, lambda kind=kind, curves=curves: page.evaluate(CURVES, f"#figure-0-0-{kind} .plot") == curves)
        assert hostile in page.inner_text("body") and "alert(2)" in page.text_content("body")
        assert page.locator("img").count() == 0
    assert [text for _, text in page.said if "Failed to load resource: net::ERR_" not in text] == []
