"""What the live page's server answers: the page, its script, and what is new."""

from __future__ import annotations

import gzip
import html
import json
import re
import secrets
import sys
import threading
import time
from collections.abc import Callable
from importlib import resources
from typing import Any, Generic, TypeVar

from losscope.landscape.errors import first_line
from losscope.probes import Run

from ..page import data, fragment, page
from .feed import Feed
from .followed import FollowedRun
from .lines import standing
from .request import Refused, Request
from .server import Answer
from .still import every, still

__all__ = ["Paced", "Site"]

T = TypeVar("T")

LEAST_PAUSE = 0.5
CURVES, TEXT, PICTURES = 1 / 3, 1 / 10, 1 / 10
"""Of one core at most, which the training may need: what the script draws, what the words say, what is drawn here."""
TOKEN = re.compile(r"after=[0-9a-f-]{0,60}")
POLICY = re.compile(r'<meta http-equiv="Content-Security-Policy" content="([^"]*)">')
SMALL = 1024


class Paced(Generic[T]):
    """Something costly, made anew when it has changed, but for no more than a share of the time.

    Args:
        share: of the time that may be spent on making it.
    """

    def __init__(self, share: float) -> None:
        self._share = share
        self._made: tuple[int, T] | None = None
        self._not_before = 0.0
        self._lock = threading.Lock()

    def get(self, key: int, make: Callable[[], T]) -> T:
        """What was made, or what is made now.

        Args:
            key: counts up with what it depends on.
            make: makes it.
        """
        with self._lock:
            if self._made is None or (key > self._made[0] and time.monotonic() >= self._not_before):
                begun = time.thread_time()  # of the processor: on a busy machine the page is slow enough
                self._made = key, make()
                spent = time.thread_time() - begun
                self._not_before = time.monotonic() + max(LEAST_PAUSE, spent * (1 / self._share - 1))
            return self._made[1]


class Site:
    """Answers the requests of a live page.

    Args:
        feed: of the run.
    """

    def __init__(self, feed: Feed) -> None:
        self._feed = feed
        self._lock = threading.Lock()
        self._server = secrets.token_hex(8)  # a page that outlives this server takes the next one's word anew
        self._drawing = threading.Lock()  # matplotlib is for one thread at a time
        self._bare: tuple[list[str], Answer] | None = None
        self._complaint = ""
        self._curves: Paced[tuple[int, str]] = Paced(CURVES)
        self._text: Paced[tuple[int, str]] = Paced(TEXT)
        self._pictures: Paced[Answer] = Paced(PICTURES)
        self._paths: dict[str, Callable[[str], Answer]] = {
            "/": self._page,
            "/live.js": self._script,
            "/data.json": self._data,
            "/figures.json": self._still,
            "/favicon.ico": lambda query: Answer(b"", "image/x-icon"),  # browsers ask, and complain where it is refused
        }

    def __call__(self, request: Request) -> Answer:
        """The answer to a request.

        Raises:
            Refused: 404 for any other path, 400 for a query that is none.
        """
        found = self._paths.get(request.path)
        if found is None:
            raise Refused(404, "there is nothing else here")
        if request.query and not (request.path == "/data.json" and TOKEN.fullmatch(request.query)):
            raise Refused(400, "the query means nothing here")
        answer = found(request.query.removeprefix("after="))
        return _squeezed(answer) if "gzip" in request.headers.get("accept-encoding", "") else answer

    def _look(self) -> int:
        """Read what has come; which state of the run that is."""
        with self._lock:
            self._feed.look()
            return self._feed.changes

    def _run(self) -> Run:
        with self._lock:
            return self._feed.run

    def _state(self) -> dict[str, Any]:
        """How the run stands, in a line."""
        feed = self._feed
        age = max(time.time() - feed.latest, 0.0) if feed.latest else None
        return {
            "standing": standing(feed.status, age), "begun": bool(feed.players), "problem": feed.problem,
            "records": len(feed), "step": feed.step, "age": age,
        }  # fmt: skip

    def _page(self, query: str) -> Answer:
        """The page of the run before its first record: its script asks at once for what there is since.

        To draw all that a long run has takes seconds, for pictures that the script's own figures replace.
        """
        self._look()
        run = self._run()
        with self._drawing:
            if self._bare is None or self._bare[0] != run.players:
                bare = FollowedRun(self._feed.path, run.meta, [], 0)
                self._bare = run.players, _html(page([bare], live=True))
            return self._bare[1]

    def _script(self, query: str) -> Answer:
        content = (resources.files("losscope.viz.live") / "live.js").read_bytes()
        return Answer(content, "text/javascript; charset=utf-8")

    def _data(self, after: str) -> Answer:
        changes, state = self._look(), self._state()
        version, update = after, ""
        try:
            drawn, curves = self._curves.get(changes, lambda: (changes, data([self._run()])))
            written, text = self._text.get(changes, lambda: (changes, _words(self._run())))
            version = f"{self._server}-{drawn:x}-{written:x}"
            update = f', "data": {curves}, {text}'
        except Exception as error:  # what cannot be drawn now may be with the next record
            state["problem"] = f"the page cannot be brought up to date: {type(error).__name__}: {first_line(error)}"
            self._complain(state["problem"])
        said = json.dumps({"version": version, "state": state}, allow_nan=False)
        return Answer(f"{said[:-1]}{'' if after == version else update}}}".encode(), "application/json")

    def _still(self, query: str) -> Answer:
        changes = self._look()
        with self._drawing:
            return self._pictures.get(changes, lambda: _json(version=f"{changes:x}", figures=still(self._run())))

    def _complain(self, problem: str) -> None:
        """Say it where the server was started, too, once."""
        if problem != self._complaint:
            self._complaint = problem
            print(f"losscope: {problem}", file=sys.stderr)


def _words(run: Run) -> str:
    """What the run comes to, as members of a JSON object; ``figures`` names all that there are by now."""
    return json.dumps({"fragment": fragment(run), "figures": every(run)})[1:-1]


def _json(**content: Any) -> Answer:
    return Answer(json.dumps(content, allow_nan=False).encode(), "application/json")


def _html(text: str) -> Answer:
    """A page, whose own policy is the answer's too, and forbids to be framed, which a page cannot say of itself."""
    found = POLICY.search(text)
    policy = html.unescape(found[1]) if found else "default-src 'none'"
    headers = {"Content-Security-Policy": f"{policy}; frame-ancestors 'none'"}
    return Answer(text.encode("utf-8", "replace"), "text/html; charset=utf-8", headers=headers)


def _squeezed(answer: Answer) -> Answer:
    if len(answer.content) < SMALL:
        return answer
    headers = {**answer.headers, "Content-Encoding": "gzip"}
    return Answer(gzip.compress(answer.content, 1), answer.kind, answer.status, headers)
