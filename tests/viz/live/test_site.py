"""What the live page's server answers, over real connections."""

import contextlib
import gzip
import html
import json
import os
import re
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from drawn_runs import hovering, meta, write
from losscope.probes import Record
from losscope.viz.live import Feed
from losscope.viz.live import site as module
from losscope.viz.live.server import LiveServer, listen
from losscope.viz.live.site import Site


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write(tmp_path / "run", hovering(300), meta(model={}) | {"status": "running"})
    return tmp_path / "run"


@contextlib.contextmanager
def serving(folder: Path) -> Iterator[LiveServer]:
    with listen(0, Site(Feed(folder))) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        try:
            yield server
        finally:
            server.shutdown()


@pytest.fixture
def server(folder: Path) -> Iterator[LiveServer]:
    with serving(folder) as server:
        yield server


def fetch(server: LiveServer, target: str, *headers: str, method: str = "GET") -> tuple[int, str, bytes]:
    lines = [f"{method} {target} HTTP/1.1", f"Host: 127.0.0.1:{server.port}", *headers, "", ""]
    with socket.create_connection(("127.0.0.1", server.port), timeout=60) as connection:
        connection.sendall("\r\n".join(lines).encode("utf-8", "surrogateescape"))
        received = b""
        while part := connection.recv(1 << 16):
            received += part
    head, _, body = received.partition(b"\r\n\r\n")
    return int(head.split(b" ")[1]), head.decode("latin-1"), body


def whole(server: LiveServer, after: str = "") -> dict:
    return asked(server, f"/data.json?after={after}")


def news(server: LiveServer, after: str = "") -> dict:
    return asked(server, f"/news.json?after={after}")


def asked(server: LiveServer, target: str) -> dict:
    status, head, body = fetch(server, target)
    assert status == 200 and "Content-Type: application/json" in head
    return json.loads(body, parse_constant=lambda name: pytest.fail(f"bare {name}"))


def append(folder: Path, *records: Record) -> None:
    with (folder / "records.jsonl").open("a") as file:
        file.writelines(record.to_json() + "\n" for record in records)


def test_the_page_and_its_policy(server: LiveServer) -> None:
    status, head, body = fetch(server, "/")
    text = body.decode()
    assert status == 200 and text.startswith("<!doctype html>") and text.rstrip().endswith("</html>")
    assert '<script src="live.js" defer></script>' in text
    policy = re.search(r"Content-Security-Policy: (.*)", head)
    meta_policy = re.search(r'<meta http-equiv="Content-Security-Policy" content="([^"]*)">', text)
    assert policy and meta_policy
    assert policy[1].strip() == html.unescape(meta_policy[1]) + "; frame-ancestors 'none'"
    for rule in ("default-src 'none'", "connect-src 'self'", "base-uri 'none'", "form-action 'none'"):
        assert rule in policy[1]
    scripts = re.search(r"script-src ([^;]*)", policy[1])
    assert scripts and "unsafe" not in scripts[1] and "'self'" in scripts[1]
    status, head, body = fetch(server, "/live.js")
    assert status == 200 and b"news.json?after=" in body and "Content-Type: text/javascript" in head


def test_every_part_of_the_text_has_its_place_on_the_page(server: LiveServer) -> None:
    """Also on the page of a run that had no record as it was loaded."""
    place, part = re.compile(r'data-fragment="([^"]*)"'), whole(server)["fragment"]
    assert set(place.findall(part)) <= set(place.findall(fetch(server, "/")[2].decode())) != set()


def test_what_is_new_is_sent_once(server: LiveServer) -> None:
    first = whole(server)
    assert first["data"]["runs"][0]["name"] == "run" and "data-fragment" in first["fragment"]
    assert whole(server, first["version"]) == {"version": first["version"]}
    said = news(server, first["version"])
    assert (said["state"]["standing"], said["state"]["step"], said["state"]["problem"]) == ("running", 299, "")
    assert not said["stale"] and said["later"] == []


def test_new_points_come_at_once_and_all_of_it_now_and_then(server: LiveServer, folder: Path) -> None:
    first = whole(server)
    now = time.time()
    append(folder, Record(310, "model", "sharpness", value=20.0, low=20.0, lr=0.1, time=now - 5))
    more = news(server, first["version"])
    assert more["state"]["step"] == 310 and more["state"]["age"] == pytest.approx(5, abs=4)
    drawn = next(figure for figure in more["later"] if figure["id"] == "0-0-sharpness")
    sharpness = next(trace for trace in drawn["traces"] if trace["name"] == "sharpness")
    assert (sharpness["x"], sharpness["y"][1:]) == ([290, 310], [20.0])  # from the last one on, which the page has
    while not news(server, first["version"])["stale"]:
        assert time.time() < now + 3
    second = whole(server, first["version"])
    drawn = next(figure for figure in second["data"]["runs"][0]["figures"] if figure["id"] == "0-0-sharpness")
    assert next(trace for trace in drawn["traces"] if trace["name"] == "sharpness")["x"][-1] == 310
    assert not news(server, second["version"])["stale"]
    append(folder, Record(320, "model", "sharpness", value=21.0, low=21.0, lr=0.1))
    before, after = (news(server, each["version"]) for each in (first, second))  # for those that have not yet asked
    assert before["stale"] and [t["x"] for t in before["later"][0]["traces"] if t["name"] == "sharpness"] == [
        [290, 310, 320]
    ]
    assert [t["x"] for t in after["later"][0]["traces"] if t["name"] == "sharpness"] == [[310, 320]]


def test_records_that_were_begun_anew_do_not_go_on(server: LiveServer, folder: Path) -> None:
    first = whole(server)
    (folder / "records.jsonl").write_text(Record(0, "model", "sharpness", value=1.0).to_json() + "\n")
    said = news(server, first["version"])
    assert said["later"] == [] and said["stale"] and said["state"]["generation"] == 1
    assert whole(server, first["version"])["version"] != first["version"]  # at once


TRAVERSALS = [
    "/../meta.json", "/..%2fmeta.json", "/%2e%2e/meta.json", "/%2e%2e%2fmeta.json", "/..%252fmeta.json",
    "/..%5cmeta.json", "/%c0%ae%c0%ae/meta.json", "/.../meta.json", "//etc/passwd", "/etc/passwd", "/./meta.json",
    "/meta.json", "/records.jsonl", "/arrays/x.npy", "/live.js/../../feed.py", "/live.js%00.py", "/live.js/",
    "/LIVE.JS", "/..\\meta.json",
    "/feed.py", "/site.py", "/data.json/../meta.json", "/;/meta.json", "/~root/x", "/index.html", "/%2F", "/%",
    "/..;/meta.json", "/%u002e%u002e/meta.json", "/\udcff",
]  # fmt: skip


@pytest.mark.parametrize("target", TRAVERSALS)
def test_nothing_else_is_there(target: str, server: LiveServer) -> None:
    status, _, body = fetch(server, target)
    assert status in (400, 404)
    assert b"identity" not in body and b"root:" not in body and b"import" not in body


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        ("/?x=1", 400), ("/data.json?after=../../x", 400), ("/data.json?after=1&after=2", 400),
        ("/data.json?path=x", 400), ("/news.json?after=../../x", 400), ("/news.json?after=0-1", 200),
        ("/live.js?x", 400), ("/data.json?", 200), ("/data.json?after=", 200), ("/data.json?after=" + "a" * 61, 400),
        ("/favicon.ico", 200),
    ],
)  # fmt: skip
def test_queries(target: str, expected: int, server: LiveServer) -> None:
    assert fetch(server, target)[0] == expected


def test_nothing_is_written_and_nothing_outside_is_read(folder: Path, tmp_path: Path) -> None:
    """With links to what is outside, in names of files and in the records."""
    np.save(tmp_path / "secret.npy", np.full(64, 735106.25))
    (folder / "arrays").mkdir()
    (folder / "arrays" / "linked.npy").symlink_to(tmp_path / "secret.npy")
    (folder / "live.js").symlink_to(tmp_path / "secret.npy")
    for step, path in enumerate(("arrays/linked.npy", "../secret.npy", str(tmp_path / "secret.npy"))):
        named = dict.fromkeys(("nodes", "weights", "alphas", "betas", "eigenvalues", "residuals"), path)
        append(folder, Record(step, "model", "spectrum", value=1.0, arrays=named))
    os.chmod(folder, 0o555)  # noqa: PTH101
    before = {path: (path.lstat().st_mtime_ns, path.lstat().st_size) for path in [folder, *folder.rglob("*")]}
    with serving(folder) as server:
        answers = [
            fetch(server, target)[2] for target in ("/", "/data.json", "/live.js", "/figures.json", "/news.json")
        ]
    assert not any(b"735106" in answer or b"735,106" in answer for answer in answers)
    assert {path: (path.lstat().st_mtime_ns, path.lstat().st_size) for path in [folder, *folder.rglob("*")]} == before
    os.chmod(folder, 0o755)  # noqa: PTH101


def test_compressed_for_those_who_work_from_afar(server: LiveServer) -> None:
    plain = fetch(server, "/live.js")[2]
    status, head, body = fetch(server, "/live.js", "Accept-Encoding: gzip, deflate")
    assert status == 200 and "Content-Encoding: gzip" in head and f"Content-Length: {len(body)}" in head
    assert gzip.decompress(body) == plain and len(body) < len(plain)


def test_a_run_that_has_not_begun(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    with serving(tmp_path / "run") as server:
        assert fetch(server, "/")[0] == 200
        first = news(server)
        assert (first["state"]["begun"], first["state"]["records"], first["state"]["age"]) == (False, 0, None)
        (tmp_path / "run" / "meta.json").write_text(json.dumps(meta(model={})))
        assert b"What was trained" in fetch(server, "/")[2]  # at once: the page's parts are other ones


def test_pictures_where_the_script_draws_none(server: LiveServer, monkeypatch: pytest.MonkeyPatch) -> None:
    named = whole(server)["figures"]
    assert named[:2] == ["0-0-sharpness", "0-0-stability"]
    monkeypatch.setattr("losscope.viz.live.still.find_spec", lambda name: None)  # without plotly
    found = json.loads(fetch(server, "/figures.json")[2])["figures"]
    assert [figure["id"] for figure in found] == named
    for figure in found:
        assert figure["place"] == "0-0" and figure["wide"].startswith("<svg") and figure["narrow"].startswith("<svg")
        used = set(re.findall(r'(?:href="#|url\(#)([^")]+)', figure["wide"]))
        assert used <= set(re.findall(r'id="([^"]+)"', figure["wide"]))  # nothing of another picture


def test_a_picture_that_cannot_be_drawn_does_not_take_the_others_with_it(server: LiveServer, folder: Path) -> None:
    lost = dict.fromkeys(("nodes", "weights", "alphas", "betas", "eigenvalues", "residuals"), "arrays/gone.npy")
    append(folder, Record(310, "model", "spectrum", value=1.0, arrays=lost))
    found = {figure["id"]: figure for figure in json.loads(fetch(server, "/figures.json")[2])["figures"]}
    assert "arrays/gone.npy" in found["0-0-spectrum"]["missing"]
    assert found["0-0-spectrum_over_time"].keys() >= {"id", "place", "caption"}


def test_words_that_are_no_text(folder: Path) -> None:
    """Halves of surrogate pairs, as JSON may hold them."""
    described = meta(**{"a\ud800<b>": {"model": "\udfff"}})
    (folder / "meta.json").write_text(json.dumps(described))
    append(folder, Record(9, "a\ud800<b>", "sharpness", status="error", reason="\udcff\x00\x1b[31m"))
    with serving(folder) as server:
        assert fetch(server, "/")[0] == 200
        found, said = whole(server), news(server)
    assert said["state"]["problem"] == "" and "a·&lt;b&gt;" in found["fragment"]


def test_a_page_that_cannot_be_drawn_is_said(
    server: LiveServer, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(runs: object) -> str:
        raise ZeroDivisionError("in a figure")

    monkeypatch.setattr(module, "data", broken)
    for _ in range(3):
        assert whole(server) == {"version": ""}
        assert "ZeroDivisionError: in a figure" in news(server)["state"]["problem"]
    assert capsys.readouterr().err.count("in a figure") == 1
    monkeypatch.undo()
    append(folder, Record(310, "model", "sharpness", value=20.0))
    while "data" not in whole(server):
        time.sleep(0.05)
    assert news(server)["state"]["problem"] == ""


def test_several_readers_at_once(server: LiveServer, folder: Path) -> None:
    found: list[dict] = []

    def read() -> None:
        found.extend(news(server, whole(server)["version"]) for _ in range(3))

    readers = [threading.Thread(target=read) for _ in range(8)]
    for reader in readers:
        reader.start()
    for step in range(300, 330):
        append(
            folder, Record(step, "model", "log", values={"loss": 1.0}), Record(step, "model", "log", values={"b": 2.0})
        )
        time.sleep(0.01)
    for reader in readers:
        reader.join()
    assert len(found) == 24 and not any(each["state"]["problem"] for each in found)
