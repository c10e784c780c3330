"""What the live page's server answers: the page, its script, the ends of its curves, and now and then the whole."""

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
from dataclasses import dataclass
from importlib import resources
from typing import Any

from losscope.landscape.errors import first_line
from losscope.probes import Run

from ..page import data, fragment, page
from .feed import Feed
from .followed import FollowedRun
from .later import later
from .lines import standing
from .paced import Paced
from .request import Refused, Request
from .server import Answer
from .still import every, still

__all__ = ["Site", "Whole"]

WHOLE, PICTURES = 1 / 10, 1 / 10
"""Of one core at most, which the training may need: all that the script draws and the words say; what is drawn here."""
ASKING = ("/news.json", "/data.json")
TOKEN = re.compile(r"after=[0-9a-f-]{0,60}")
POLICY = re.compile(r'<meta http-equiv="Content-Security-Policy" content="([^"]*)">')
SMALL = 1024


@dataclass(frozen=True, eq=False)
class Whole:
    """A run as it was drawn at one moment.

    Attributes:
        version: by which a page says that it has it.
        run: the run then.
        generation: of the feed then.
        came: how many records had come.
        content: the page's data and words, as members of a JSON object.
    """

    version: str
    run: FollowedRun
    generation: int
    came: int
    content: str


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
        self._problem = ""
        self._whole: Paced[Whole] = Paced(WHOLE)
        self._drawn: tuple[Whole, ...] = ()  # the last two: while one is sent, pages have the one before
        self._pictures: Paced[Answer] = Paced(PICTURES)
        self._paths: dict[str, Callable[[str], Answer]] = {
            "/": self._page,
            "/live.js": self._script,
            "/news.json": self._news,
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
        if request.query and not (request.path in ASKING and TOKEN.fullmatch(request.query)):
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
            "standing": standing(feed.status, age), "begun": bool(feed.players), "records": len(feed),
            "step": feed.step, "age": age, "generation": feed.generation,
            "problem": feed.problem or self._problem,
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

    def _news(self, after: str) -> Answer:
        """How the run stands, and the ends of the curves since what the page has: quick, however long the run is."""
        changes = self._look()
        with self._lock:
            state, feed = self._state(), self._feed
            has = next((each for each in self._drawn if each.version == after), None)
            goes_on = has is not None and has.generation == feed.generation
            fresh = feed.came[has.came :] if has is not None and goes_on else []
        if has is not None and not goes_on:
            self._whole.hurry()
        stale = has is None or has is not self._drawn[-1] or self._whole.due(changes)
        return _json(state=state, stale=stale, later=later(has.run, fresh) if has is not None else [])

    def _data(self, after: str) -> Answer:
        """All that the script draws and the words say, unless the page has it."""
        changes = self._look()
        try:
            whole = self._whole.get(changes, self._draw)
        except Exception as error:  # what cannot be drawn now may be with the next record
            self._complain(f"the page cannot be brought up to date: {type(error).__name__}: {first_line(error)}")
            return _json(version=after)
        self._problem = ""
        content = "" if whole.version == after else f", {whole.content}"
        return Answer(f'{{"version": {json.dumps(whole.version)}{content}}}'.encode(), "application/json")

    def _draw(self) -> Whole:
        with self._lock:
            feed = self._feed
            run, generation, came = feed.run, feed.generation, len(feed.came)
            version = f"{self._server}-{feed.changes:x}"
        whole = Whole(version, run, generation, came, f'"data": {data([run])}, {_words(run)}')
        self._drawn = (*self._drawn[-1:], whole)
        return whole

    def _still(self, query: str) -> Answer:
        changes = self._look()
        with self._drawing:
            return self._pictures.get(changes, lambda: _json(version=f"{changes:x}", figures=still(self._run())))

    def _complain(self, problem: str) -> None:
        """Say it on the page, and where the server was started once."""
        if problem != self._problem:
            self._problem = problem
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
