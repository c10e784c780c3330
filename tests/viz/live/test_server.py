"""The server's sockets, by raw ones: what is asked for comes, all else is refused, and nothing ends the server."""

import contextlib
import socket
import threading
import time
from collections.abc import Iterator

import pytest

from losscope.landscape import SettingError
from losscope.viz.live import server as module
from losscope.viz.live.request import Refused, Request
from losscope.viz.live.server import MOST_CONNECTIONS, PORTS, Answer, LiveServer, listen


def answer(request: Request) -> Answer:
    if request.path == "/":
        return Answer(b"here", headers={"X-Own": "yes"})
    if request.path == "/broken":
        raise RuntimeError("a secret")
    raise Refused(404, "there is nothing else here")


@contextlib.contextmanager
def serving(server: LiveServer) -> Iterator[LiveServer]:
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()


@pytest.fixture
def server() -> Iterator[LiveServer]:
    with serving(listen(0, answer)) as server:
        yield server


def sent(server: LiveServer, data: bytes, *, close: bool = False) -> bytes:
    with socket.create_connection(("127.0.0.1", server.port), timeout=20) as connection:
        with contextlib.suppress(OSError):
            connection.sendall(data)
            if close:
                connection.shutdown(socket.SHUT_WR)
        received = b""
        with contextlib.suppress(ConnectionResetError):
            while part := connection.recv(65536):
                received += part
        return received


def get(server: LiveServer, target: bytes, *headers: bytes, method: bytes = b"GET") -> bytes:
    host = b"Host: 127.0.0.1:%d" % server.port
    return sent(server, b"\r\n".join([method + b" " + target + b" HTTP/1.1", host, *headers, b"", b""]))


def status(response: bytes) -> int:
    assert response.startswith(b"HTTP/1.1 "), response
    return int(response.split(b" ")[1])


def test_an_answer_and_its_headers(server: LiveServer) -> None:
    response = get(server, b"/")
    head, _, body = response.partition(b"\r\n\r\n")
    assert (status(response), body) == (200, b"here")
    for line in (
        b"Cache-Control: no-store", b"Cross-Origin-Resource-Policy: same-origin", b"Referrer-Policy: no-referrer",
        b"X-Content-Type-Options: nosniff", b"Content-Length: 4", b"Connection: close", b"X-Own: yes",
        b"Content-Security-Policy: default-src 'none'; frame-ancestors 'none'",
    ):  # fmt: skip
        assert line in head.split(b"\r\n")
    assert b"Server:" not in head
    assert get(server, b"/", method=b"HEAD") == head + b"\r\n\r\n"


def test_on_this_machine_only(server: LiveServer) -> None:
    assert server.server_address[0] == "127.0.0.1"
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # sends nothing; says which address the world sees
        except OSError:
            pytest.skip("no network, and no other address to try")
        outside = probe.getsockname()[0]
    if outside.startswith("127."):
        pytest.skip("no other address to try")
    with pytest.raises(OSError):
        socket.create_connection((outside, server.port), timeout=2).close()


def test_the_content_of_errors_says_nothing_of_the_request(
    server: LiveServer, capsys: pytest.CaptureFixture[str]
) -> None:
    response = get(server, b"/<script>alert(1)</script>")
    assert status(response) == 404 and b"script" not in response and b"text/plain" in response
    response = get(server, b"/broken")
    assert status(response) == 500 and b"secret" not in response
    shown = capsys.readouterr().err
    assert shown == "losscope: the page could not be made: RuntimeError: a secret\n"


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"GET / HTTP/1.1\n\n", 400), (b"\r\n\r\n", 400), (b"\x00" * 50_000, 414), (b"GET /" + b"a" * 100_000, 414),
        (b"GET / HTTP/1.1\r\nX: " + b"a" * 100_000, 431), (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", 403),
        (b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 300000\r\n\r\n" + b"a" * 300_000, 413),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", 400), (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505),
    ],
)  # fmt: skip
def test_malformed_requests(data: bytes, expected: int, server: LiveServer, capfd: pytest.CaptureFixture[str]) -> None:
    assert status(sent(server, data)) == expected
    assert status(get(server, b"/")) == 200
    assert capfd.readouterr().err == ""


def test_half_a_request(server: LiveServer) -> None:
    assert status(sent(server, b"GET / HT", close=True)) == 400
    assert sent(server, b"", close=True) == b""


def test_one_request_for_each_connection(server: LiveServer) -> None:
    one = b"GET / HTTP/1.1\r\nHost: localhost:%d\r\n\r\n" % server.port
    assert sent(server, one + one).count(b"HTTP/1.1 200") == 1


def test_slow_clients_are_sent_away(server: LiveServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that sends a byte now and then has the same time in all."""
    monkeypatch.setattr(module, "SECONDS_TO_ASK", 0.6)
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as connection:
        begun = time.monotonic()
        response = b""
        connection.settimeout(0.1)
        while not response and time.monotonic() < begun + 10:
            with contextlib.suppress(OSError):
                connection.sendall(b"G")
            with contextlib.suppress(TimeoutError):
                response = connection.recv(1000)
        assert status(response) == 408
        assert time.monotonic() - begun < 5
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as silent:
        assert silent.recv(1000) == b""


def test_clients_that_do_not_read(server: LiveServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SECONDS_TO_TAKE", 0.3)
    monkeypatch.setattr(server, "answer", lambda request: Answer(bytes(50_000_000)))
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as connection:
        connection.sendall(b"GET / HTTP/1.1\r\nHost: localhost:%d\r\n\r\n" % server.port)
        free = server._free
        deadline = time.monotonic() + 10
        while free._value < MOST_CONNECTIONS and time.monotonic() < deadline:  # type: ignore[attr-defined]
            time.sleep(0.05)
        assert free._value == MOST_CONNECTIONS  # type: ignore[attr-defined]


def test_requests_that_are_never_finished_keep_nobody_out(server: LiveServer) -> None:
    """The one that has taken longest makes room."""
    with contextlib.ExitStack() as stack:
        held = []
        for _ in range(5 * MOST_CONNECTIONS):
            held.append(stack.enter_context(socket.create_connection(("127.0.0.1", server.port), timeout=10)))
            held[-1].sendall(b"GET / HTTP/1.1\r\nHost: loc")
        for _ in range(5):
            assert status(get(server, b"/")) == 200
        assert threading.active_count() < MOST_CONNECTIONS + 30
        with contextlib.suppress(ConnectionResetError):
            assert held[0].recv(100) == b""
        held[-1].sendall(b"alhost:%d\r\n\r\n" % server.port)
        assert held[-1].recv(1000).startswith(b"HTTP/1.1 200")


def test_more_than_there_is_room_for_are_turned_away(server: LiveServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """While as many are being answered; when they are gone, there is room again."""
    going_on = threading.Event()
    monkeypatch.setattr(server, "answer", lambda request: Answer(b"late" if going_on.wait(30) else b""))
    request = b"GET / HTTP/1.1\r\nHost: localhost:%d\r\n\r\n" % server.port
    with contextlib.ExitStack() as stack:
        held = [stack.enter_context(socket.create_connection(("127.0.0.1", server.port), timeout=30))
                for _ in range(MOST_CONNECTIONS)]  # fmt: skip
        for connection in held:
            connection.sendall(request)
        while server._free._value or server._asking:  # type: ignore[attr-defined]
            time.sleep(0.01)
        assert status(sent(server, request)) == 503
        going_on.set()
        assert all(connection.recv(1000).startswith(b"HTTP/1.1 200") for connection in held)
    assert status(sent(server, request)) == 200


def test_clients_that_go_away_are_no_news(server: LiveServer, capfd: pytest.CaptureFixture[str]) -> None:
    for _ in range(20):
        connection = socket.create_connection(("127.0.0.1", server.port))
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")  # resets
        connection.sendall(b"GET / HTTP/1.1\r\nHost: localhost:%d\r\n\r\n" % server.port)
        connection.close()
    assert status(get(server, b"/")) == 200
    assert capfd.readouterr().err == ""


def test_ports() -> None:
    with listen(0, answer) as first:
        with pytest.raises(
            SettingError, match=rf"port {first.port} of 127.0.0.1 cannot be had: Address already in use"
        ):
            listen(first.port, answer)
        with pytest.raises(SettingError, match="port 70000"):
            listen(70000, answer)
    with listen(None, answer) as first, listen(None, answer) as second:
        assert first.port != second.port
        assert first.port in PORTS or first.port > 1024


def test_ctrl_c_while_a_thread_begins_ends_the_server(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """The thread may have begun, and has made room itself by then."""
    start = threading.Thread.start

    def interrupted(thread: threading.Thread) -> None:
        start(thread)
        thread.join()
        raise KeyboardInterrupt

    with listen(0, answer) as server, socket.create_connection(("127.0.0.1", server.port), timeout=10) as connection:
        connection.sendall(b"GET / HTTP/1.1\r\nHost: localhost:%d\r\n\r\n" % server.port)
        monkeypatch.setattr(threading.Thread, "start", interrupted)
        with pytest.raises(KeyboardInterrupt):
            server.handle_request()
        assert connection.recv(1000).startswith(b"HTTP/1.1 200")
    assert capfd.readouterr().err == ""
