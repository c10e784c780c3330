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
from .lines import standing
from .request import Refused, Request
from .server import Answer
from .still import every, still

__all__ = ["Paced", "Site"]

T = TypeVar("T")

LEAST_PAUSE = 0.5
UPDATES, FIGURES = 1 / 3, 1 / 10  # of one core at most: for what is new, and for drawing pictures
TOKEN = re.compile(r"after=[0-9a-f]{0,40}")
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

    def get(self, key: int, make: Callable[[], T], *, now: bool = False) -> T:
        """What was made, or what is made now.

        Args:
            key: counts up with what it depends on.
            make: makes it.
            now: whether one that was made of another key will not do.
        """
        with self._lock:
            begun = time.monotonic()
            if self._made is None or (key > self._made[0] and (now or begun >= self._not_before)):
                self._made = key, make()
                spent = time.monotonic() - begun
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
        self._pages: Paced[Answer] = Paced(FIGURES)
        self._figures: Paced[Answer] = Paced(FIGURES)
        self._updates: Paced[tuple[str, str]] = Paced(UPDATES)
        self._players: tuple[str, ...] = ()
        self._paths: dict[str, Callable[[str], Answer]] = {
            "/": self._page,
            "/live.js": self._script,
            "/data.json": self._data,
            "/figures.json": self._still,
            "/favicon.ico": lambda query: Answer(
                b"", "image/x-icon"
            ),  # asked for by browsers, and a complaint if refused
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

    def _look(self) -> tuple[Run, int, dict[str, Any]]:
        """The run as it stands, which state of it that is, and what is said of it in a line."""
        with self._lock:
            self._feed.look()
            return self._feed.run, self._feed.changes, self._state()

    def _state(self) -> dict[str, Any]:
        run, latest = self._feed.run, self._feed.latest
        age = max(time.time() - latest, 0.0) if latest else None
        return {
            "standing": standing(run, age), "begun": bool(run.players), "problem": self._feed.problem,
            "records": len(run.records), "step": self._feed.step, "age": age,
        }  # fmt: skip

    def _page(self, query: str) -> Answer:
        run, changes, _ = self._look()
        players = tuple(run.players)
        other, self._players = players != self._players, players
        return self._pages.get(changes, lambda: _html(page([run], live=True)), now=other)

    def _script(self, query: str) -> Answer:
        content = (resources.files("losscope.viz.live") / "live.js").read_bytes()
        return Answer(content, "text/javascript; charset=utf-8")

    def _data(self, after: str) -> Answer:
        run, changes, state = self._look()
        try:
            version, update = self._updates.get(changes, lambda: (self._version(changes), _update(run)))
        except Exception as error:  # what cannot be drawn now may be with the next record
            state["problem"] = f"the page cannot be brought up to date: {type(error).__name__}: {first_line(error)}"
            print(f"losscope: {state['problem']}", file=sys.stderr)
            version, update = after, ""
        known = "" if after == version else update
        content = json.dumps({"version": version, "state": state}, allow_nan=False)
        return Answer(f"{content[:-1]}{known}}}".encode(), "application/json")

    def _still(self, query: str) -> Answer:
        run, changes, _ = self._look()
        return self._figures.get(changes, lambda: _json(version=self._version(changes), figures=still(run)))

    def _version(self, changes: int) -> str:
        return f"{self._server}{changes:x}"


def _update(run: Run) -> str:
    """What is new, as members of a JSON object; ``figures`` names all that the run has by now."""
    said = {"fragment": fragment(run), "figures": every(run)}
    return f', "data": {data([run])}, {json.dumps(said)[1:-1]}'


def _json(**content: Any) -> Answer:
    return Answer(json.dumps(content, allow_nan=False).encode(), "application/json")


def _html(text: str) -> Answer:
    """A page, whose own policy is the answer's too, and forbids to be framed, which a page cannot say of itself."""
    found = POLICY.search(text)
    policy = html.unescape(found[1]) if found else "default-src 'none'"
    headers = {"Content-Security-Policy": f"{policy}; frame-ancestors 'none'"}
    return Answer(text.encode(), "text/html; charset=utf-8", headers=headers)


def _squeezed(answer: Answer) -> Answer:
    if len(answer.content) < SMALL:
        return answer
    headers = {**answer.headers, "Content-Encoding": "gzip"}
    return Answer(gzip.compress(answer.content, 1), answer.kind, answer.status, headers)
