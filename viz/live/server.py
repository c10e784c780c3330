"""The server's sockets: on this machine only, with bounds on everything a client can take."""

from __future__ import annotations

import contextlib
import re
import socket
import socketserver
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from http import HTTPStatus

from losscope.landscape import SettingError
from losscope.landscape.errors import first_line

from .request import LONGEST_HEAD, Refused, Request, check, parse

__all__ = ["ADDRESS", "PORTS", "Answer", "LiveServer", "listen"]

ADDRESS = "127.0.0.1"
PORTS = range(8642, 8652)
"""Tried in turn where no port is asked for; then any free one."""

MOST_CONNECTIONS = 32
SECONDS_TO_ASK, SECONDS_TO_TAKE = 10.0, 60.0

HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Connection": "close",
}
"""Of every answer; a page has a content-security policy of its own."""


@dataclass(frozen=True)
class Answer:
    """What a request is answered with.

    Attributes:
        content: the body.
        kind: its media type.
        status: the status code.
        headers: further headers.
    """

    content: bytes
    kind: str = "text/plain; charset=utf-8"
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)

    def encode(self, *, body: bool = True) -> bytes:
        """As it goes over the wire; without the body for HEAD."""
        named = HEADERS | {"Content-Type": self.kind, "Content-Length": str(len(self.content))} | dict(self.headers)
        head = [f"HTTP/1.1 {self.status} {HTTPStatus(self.status).phrase}", *(f"{k}: {v}" for k, v in named.items())]
        return ("\r\n".join(head) + "\r\n\r\n").encode("latin-1") + (self.content if body else b"")


class LiveServer(socketserver.ThreadingMixIn, socketserver.TCPServer):
    """Answers GET and HEAD on 127.0.0.1, one request per connection.

    Where there are too many connections, the one that has taken longest over its request makes room, so that
    requests that are never finished do not keep others out.

    Args:
        port: where; 0 takes any free one.
        answer: gives the answer to a request that was checked; raises `Refused` where there is none.

    Raises:
        OSError: if the port is taken.
    """

    daemon_threads = True
    block_on_close = False
    allow_reuse_address = sys.platform != "win32"  # there it would let two servers share a port
    request_queue_size = 64

    def __init__(self, port: int, answer: Callable[[Request], Answer]) -> None:
        self.answer = answer
        self._free = threading.BoundedSemaphore(MOST_CONNECTIONS)
        self._asking: dict[socket.socket, None] = {}
        self._lock = threading.Lock()
        super().__init__((ADDRESS, port), _Connection)

    @property
    def port(self) -> int:
        """On which it listens."""
        return int(self.server_address[1])

    @property
    def url(self) -> str:
        """The page's address."""
        return f"http://{ADDRESS}:{self.port}/"

    def process_request(self, request: socket.socket | tuple[bytes, socket.socket], client_address: object) -> None:
        """Begin a thread for a connection, unless there are too many."""
        assert isinstance(request, socket.socket)
        if not self._free.acquire(blocking=False) and not self._made_room():
            with contextlib.suppress(OSError):
                request.settimeout(0.1)
                request.sendall(_refusal(503, "too many connections").encode())
            self.shutdown_request(request)
            return
        try:
            super().process_request(request, client_address)
        except Exception:  # no thread could be had
            self._free.release()
            raise  # A Ctrl-C meanwhile ends the server; the thread may have begun, and makes room itself.

    @contextlib.contextmanager
    def asking(self, connection: socket.socket) -> Iterator[None]:
        """While the request of a connection is read."""
        with self._lock:
            self._asking[connection] = None
        try:
            yield
        finally:
            with self._lock:
                self._asking.pop(connection, None)

    def _made_room(self) -> bool:
        """Break off the connection that has taken longest over its request; whether its place is free."""
        with self._lock, contextlib.suppress(OSError, StopIteration):
            connection = next(iter(self._asking))
            del self._asking[connection]
            connection.shutdown(socket.SHUT_RDWR)
        return self._free.acquire(timeout=0.5)

    def process_request_thread(self, request: object, client_address: object) -> None:
        """Serve one connection, and make room for another."""
        try:
            super().process_request_thread(request, client_address)  # type: ignore[arg-type]
        finally:
            self._free.release()

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that went away is no news."""


class _Connection(socketserver.BaseRequestHandler):
    """One request and its answer."""

    request: socket.socket
    server: LiveServer

    def handle(self) -> None:
        """Read a request, answer it, and close."""
        body = True
        try:
            with self.server.asking(self.request):
                head = _receive(self.request)
            if not head:
                return
            asked = parse(head)
            body = asked.method != "HEAD"
            check(asked, self.server.port)
            answer = self.server.answer(asked)
        except Refused as refused:
            answer = _refusal(refused.status, refused.why)
        except TimeoutError:
            answer = _refusal(408, "the request took too long")
        except OSError:
            return
        except Exception as error:  # one request must not end the others
            print(f"losscope: the page could not be made: {type(error).__name__}: {first_line(error)}", file=sys.stderr)
            answer = _refusal(500, "the page could not be made")
        self.request.settimeout(SECONDS_TO_TAKE)
        self.request.sendall(answer.encode(body=body))
        if answer.status >= 400:
            _drain(self.request)


def listen(port: int | None, answer: Callable[[Request], Answer]) -> LiveServer:
    """A server on a port, or on a free one near the usual.

    Args:
        port: which; None tries `PORTS` in turn, then any; 0 takes any.
        answer: see `LiveServer`.

    Raises:
        SettingError: if the port is taken, or cannot be had.
    """
    if port is not None:
        try:
            return LiveServer(port, answer)
        except (OSError, OverflowError) as error:
            why = error.strerror if isinstance(error, OSError) and error.strerror else error
            raise SettingError(
                f"port {port} of {ADDRESS} cannot be had: {why}; take another one, or leave --port out for a free one"
            ) from error
    for each in PORTS:
        with contextlib.suppress(OSError):
            return LiveServer(each, answer)
    return LiveServer(0, answer)


def _receive(connection: socket.socket) -> bytes:
    """The head of a request; empty if nothing came.

    Raises:
        Refused: 400 for bare line feeds and for what ends early, 431 if it is too long.
        TimeoutError: if it takes too long in all.
    """
    deadline = time.monotonic() + SECONDS_TO_ASK
    head = b""
    while b"\r\n\r\n" not in head:
        left = deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError
        connection.settimeout(left)
        try:
            received = connection.recv(8192)
        except TimeoutError:
            if head:
                raise
            return b""  # browsers open connections that they may never use
        if not received:
            if head:
                raise Refused(400, "the request ends early")
            return b""
        head += received
        if b"\r\n\r\n" in head:
            break
        if re.search(rb"(?<!\r)\n", head):
            raise Refused(400, "lines end with CR LF")
        if len(head) > LONGEST_HEAD:
            raise Refused(414 if b"\r\n" not in head else 431, "the request is too long")
    return head[: head.index(b"\r\n\r\n") + 4]


def _refusal(status: int, why: str) -> Answer:
    allowed = {"Allow": "GET, HEAD"} if status == 405 else {}
    return Answer(f"{status}: {why}\n".encode(), status=status, headers=allowed)


def _drain(connection: socket.socket) -> None:
    """Take some of what the client still sends: to close before would throw our answer away (RFC 9112, 9.6)."""
    connection.shutdown(socket.SHUT_WR)
    connection.settimeout(0.5)
    deadline = time.monotonic() + 1.0
    with contextlib.suppress(OSError):
        while connection.recv(65536) and time.monotonic() < deadline:
            pass
