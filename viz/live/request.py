"""What a request must be before anything answers it: a plain GET or HEAD from a page of this server or a person."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass

__all__ = ["Refused", "Request", "check", "parse"]

LONGEST_LINE = 2048
LONGEST_HEAD = 32 * 1024  # other pages of localhost leave their cookies, which know no ports
MOST_HEADERS = 100
METHODS = ("GET", "HEAD")

_TOKEN = rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
_LINE = re.compile(rb"(" + _TOKEN + rb") ([\x21-\x7e]+) HTTP/(\d)\.(\d)")
_HEADER = re.compile(rb"(" + _TOKEN + rb"):[ \t]*([\t\x20-\x7e\x80-\xff]*)")
_ONCE = ("host", "origin", "content-length", "transfer-encoding", "sec-fetch-site")


class Refused(Exception):
    """A request that is not answered.

    Attributes:
        status: the status code.
        why: in words, without anything of the request.
    """

    def __init__(self, status: int, why: str) -> None:
        super().__init__(f"{status}: {why}")
        self.status, self.why = status, why


@dataclass(frozen=True)
class Request:
    """A request as it came.

    Attributes:
        method: e.g. ``"GET"``.
        path: of the target, as it was sent: nothing is decoded.
        query: of the target, without the question mark.
        headers: by their names in lower case.
    """

    method: str
    path: str
    query: str
    headers: dict[str, str]


def parse(head: bytes) -> Request:
    r"""Read the head of a request: request line and headers up to and with the empty line.

    Lenient readings of HTTP are what attacks are made of, so that there are none: no bare line feeds, no folded
    headers, no header twice that must stand once (RFC 9112, sections 2.2, 3.2 and 5).

    Raises:
        Refused: 400, 413, 414, 431 or 505, if it is no proper request, has a body, or is too long.

    Example:
        >>> from losscope.viz.live.request import parse
        >>> parse(b"GET /data.json?after=1.20 HTTP/1.1\r\nHost: localhost:8642\r\n\r\n").path
        '/data.json'
    """
    line, *lines = head.removesuffix(b"\r\n\r\n").split(b"\r\n")
    if len(line) > LONGEST_LINE:
        raise Refused(414, "the request line is too long")
    if len(head) > LONGEST_HEAD or len(lines) > MOST_HEADERS:
        raise Refused(431, "there are too many headers")
    found = _LINE.fullmatch(line)
    if found is None:
        raise Refused(400, "this is not a request line of HTTP")
    if found[3] != b"1":
        raise Refused(505, "this server speaks HTTP/1.1")
    headers = _headers(lines)
    if "transfer-encoding" in headers or headers.get("content-length", "0") != "0":
        raise Refused(413, "a request here has no body")
    target = found[2].decode("ascii")
    path, _, query = target.partition("?")
    return Request(found[1].decode("ascii"), path, query, headers)


def _headers(lines: list[bytes]) -> dict[str, str]:
    pairs = [_HEADER.fullmatch(line) for line in lines]
    if any(pair is None for pair in pairs):
        raise Refused(400, "a header is malformed")
    named = [(pair[1].decode("ascii").lower(), pair[2].decode("latin-1").strip()) for pair in pairs if pair]
    if any(count > 1 for name, count in Counter(name for name, _ in named).items() if name in _ONCE):
        raise Refused(400, "a header stands twice")
    return dict(named)


def check(request: Request, port: int) -> None:
    """Refuse what does not come from this machine's own pages, and what would change something.

    A page of another site can make a browser ask here. By a name of its own that it lets point to 127.0.0.1 (DNS
    rebinding) it could read the answer: such a request carries that name as ``Host``. Others carry ``Origin`` or
    ``Sec-Fetch-Site``.

    Args:
        request: the request.
        port: on which this server listens.

    Raises:
        Refused: 400 without a host, 403 for a foreign host, origin or site, 405 for a method other than GET and HEAD.

    Example:
        >>> from losscope.viz.live.request import Request, check
        >>> check(Request("GET", "/", "", {"host": "evil.example:8642"}), port=8642)
        Traceback (most recent call last):
        losscope.viz.live.request.Refused: 403: this page is for http://127.0.0.1:8642/ only
    """
    own = {f"{name}:{port}" for name in ("127.0.0.1", "localhost", "[::1]")}
    if port == 80:  # the port that browsers leave out
        own |= {name.removesuffix(":80") for name in own}
    host, origin = request.headers.get("host"), request.headers.get("origin")
    if host is None:
        raise Refused(400, "a request names its host")
    foreign = Refused(403, f"this page is for http://127.0.0.1:{port}/ only")
    if host.lower() not in own:
        raise foreign
    if origin is not None and origin.lower() not in {f"http://{name}" for name in own}:
        raise foreign
    if request.headers.get("sec-fetch-site", "none").lower() not in ("none", "same-origin"):
        raise foreign
    if request.method not in METHODS:
        raise Refused(405, "this page is read-only: GET and HEAD")
    if not request.path.startswith("/"):
        raise Refused(400, "the target is not a path")
