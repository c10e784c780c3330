"""What a request must be before anything answers it."""

import pytest

from losscope.viz.live.request import LONGEST_HEAD, Refused, Request, check, parse

PORT = 8642


def asked(line: bytes = b"GET / HTTP/1.1", *headers: bytes) -> Request:
    request = parse(b"\r\n".join([line, *(headers or [b"Host: 127.0.0.1:8642"]), b"", b""]))
    check(request, PORT)
    return request


def status(*parts: bytes) -> int:
    with pytest.raises(Refused) as refused:
        asked(*parts)
    return refused.value.status


@pytest.mark.parametrize("host", [b"127.0.0.1:8642", b"localhost:8642", b"LOCALHOST:8642", b"[::1]:8642"])
def test_own_hosts(host: bytes) -> None:
    assert asked(b"GET /data.json?after=12 HTTP/1.1", b"host:  " + host + b" ").query == "after=12"
    assert asked(b"HEAD / HTTP/1.0", b"Host: " + host, b"Origin: http://" + host, b"Sec-Fetch-Site: none").path == "/"


@pytest.mark.parametrize(
    "host",
    [
        b"evil.example:8642", b"127.0.0.1", b"127.0.0.1:8643", b"localhost", b"127.0.0.1:8642.evil.example", b"",
        b"evil.example", b"localhost.evil.example:8642", b"0.0.0.0:8642", b"127.1:8642", b"2130706433:8642",
        b"127.0.0.1:8642, evil.example", b"evil@127.0.0.1:8642", b"127.0.0.1:08642", b"[::ffff:127.0.0.1]:8642",
    ],
)  # fmt: skip
def test_foreign_hosts(host: bytes) -> None:
    """A name that DNS rebinding points to this machine is still that name."""
    assert status(b"GET / HTTP/1.1", b"Host: " + host) == 403


@pytest.mark.parametrize(
    "header",
    [
        b"Origin: http://evil.example", b"Origin: null", b"Origin: https://127.0.0.1:8642", b"Origin: ",
        b"Origin: http://localhost:8888", b"Origin: http://127.0.0.1:8642.evil.example", b"Origin: file://",
        b"Sec-Fetch-Site: cross-site", b"Sec-Fetch-Site: same-site", b"Sec-Fetch-Site: nonsense",
    ],
)  # fmt: skip
def test_foreign_pages(header: bytes) -> None:
    assert status(b"GET / HTTP/1.1", b"Host: 127.0.0.1:8642", header) == 403


def test_the_port_that_browsers_leave_out() -> None:
    check(Request("GET", "/", "", {"host": "127.0.0.1"}), 80)
    with pytest.raises(Refused):
        check(Request("GET", "/", "", {"host": "127.0.0.1"}), 8642)


@pytest.mark.parametrize(
    "method", [b"POST", b"PUT", b"DELETE", b"PATCH", b"OPTIONS", b"TRACE", b"CONNECT", b"get", b"X"]
)
def test_other_methods(method: bytes) -> None:
    assert status(method + b" / HTTP/1.1") == 405


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (b"GET /", 400), (b"", 400), (b"GET  / HTTP/1.1", 400), (b" GET / HTTP/1.1", 400), (b"GET / HTTP/1.1 ", 400),
        (b"GET / HTTP/2.0", 505), (b"PRI * HTTP/2.0", 505), (b"GET / HTTP/11", 400), (b"GET / http/1.1", 400),
        (b"GET /\x00 HTTP/1.1", 400), (b"GET /\xff HTTP/1.1", 400), (b"GET http://127.0.0.1:8642/ HTTP/1.1", 400),
        (b"GET * HTTP/1.1", 400), (b"G(T / HTTP/1.1", 400), (b"GET /" + b"a" * 3000 + b" HTTP/1.1", 414),
        (b"\x16\x03\x01\x02\x00\x01", 400),
    ],
)  # fmt: skip
def test_request_lines(line: bytes, expected: int) -> None:
    assert status(line) == expected


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ([b"X: 1"], 400), ([b"Host: 127.0.0.1:8642", b"Host: evil.example"], 400), ([b"Host : 127.0.0.1:8642"], 400),
        ([b"Host: 127.0.0.1:8642", b" folded"], 400), ([b"Host: 127.0.0.1:8642", b"no colon"], 400),
        ([b"Host: 127.0.0.1:8642", b": empty"], 400), ([b"Host: 127.0.0.1:8642", b"X: a\x00b"], 400),
        ([b"Host: 127.0.0.1:8642", b"X: a\rb"], 400), ([b"Host: 127.0.0.1:8642", b"Content-Length: 5"], 413),
        ([b"Host: 127.0.0.1:8642", b"Content-Length: -1"], 413), ([b"Host: 127.0.0.1:8642", b"Content-Length: x"], 413),
        ([b"Host: 127.0.0.1:8642", b"Content-Length: 0", b"Content-Length: 5"], 400),
        ([b"Host: 127.0.0.1:8642", b"Transfer-Encoding: chunked"], 413),
        ([b"Host: 127.0.0.1:8642", *(b"X-%d: 1" % i for i in range(200))], 431),
        ([b"Host: 127.0.0.1:8642", b"Cookie: " + b"a" * LONGEST_HEAD], 431),
    ],
)  # fmt: skip
def test_headers(headers: list[bytes], expected: int) -> None:
    assert status(b"GET / HTTP/1.1", *headers) == expected


def test_cookies_of_other_pages_do_no_harm() -> None:
    assert (
        asked(b"GET / HTTP/1.1", b"Host: localhost:8642", b"Cookie: " + b"a" * 8000, b"Content-Length: 0").path == "/"
    )
