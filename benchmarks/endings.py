"""An origin that sees when connections end, and clients of agents that are in the middle of an answer.

One clock, that of the program in which this runs, sees a kill's call and the ends of thousands of
sockets: one thread waits for all of them with epoll, and notes the time before it does anything else.
"""

from __future__ import annotations

import contextlib
import resource
import select
import socket
import ssl
import threading
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import load

OPENED_AT_ONCE = 16
_ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 1000000000\r\n\r\nsome of it"
_END_OF_HEAD = b"\r\n\r\n"
_PATIENCE_S = 30.0
_GONE = select.EPOLLRDHUP | select.EPOLLHUP | select.EPOLLERR


@dataclass(frozen=True, slots=True)
class Ending:
    """The end of one connection (EOF or reset), and the name that its request had."""

    name: str
    at: float
    "By time.perf_counter."


class Origin:
    """Answers `GET /NAME` with the first bytes of a long answer; `tick` sends a few more on all."""

    def __init__(self, tls: ssl.SSLContext | None = None) -> None:
        self._tls = tls
        self._live: dict[int, tuple[str, socket.socket]] = {}
        self._ended: list[Ending] = []
        self._expected = 0
        self._complete = threading.Event()
        self._epoll = select.epoll()
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=4096)
        self.port = self._listener.getsockname()[1]
        self._serving = ThreadPoolExecutor(OPENED_AT_ONCE)
        threading.Thread(target=self._accept, daemon=True).start()
        threading.Thread(target=self._watch, daemon=True).start()

    def close(self) -> None:
        """No new connections; those that live end with this program."""
        self._listener.close()
        self._serving.shutdown(wait=False, cancel_futures=True)

    @property
    def live(self) -> int:
        """How many connections have not ended."""
        return len(self._live)

    def expect(self, count: int) -> None:
        """Forget the ends so far; `endings` waits for this many."""
        self._complete.clear()
        self._ended, self._expected = [], count

    def endings(self, patience_s: float) -> list[Ending]:
        """The ends since `expect`, as soon as there are as many as expected."""
        if not self._complete.wait(patience_s):
            raise TimeoutError(f"{len(self._ended)} of {self._expected} connections ended")
        return list(self._ended)

    def tick(self) -> None:
        """A few more bytes on every live connection whose buffers take them."""
        for _, connection in list(self._live.values()):
            with contextlib.suppress(OSError, ValueError):
                connection.send(b"more of it")

    def _accept(self) -> None:
        with contextlib.suppress(OSError, RuntimeError):  # closed
            while True:
                connection, _ = self._listener.accept()
                self._serving.submit(self._serve, connection)

    def _serve(self, connection: socket.socket) -> None:
        connection.settimeout(_PATIENCE_S)
        try:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if self._tls:
                connection = self._tls.wrap_socket(connection, server_side=True)
            name = _head_of(connection).split(b" ", 2)[1].decode().lstrip("/")
            connection.sendall(_ANSWER)
            connection.setblocking(False)
        except (OSError, IndexError):
            connection.close()
            return
        self._live[connection.fileno()] = name, connection
        self._epoll.register(connection.fileno(), _GONE | select.EPOLLET)

    def _watch(self) -> None:
        while True:
            events = self._epoll.poll(maxevents=1024)
            now = time.perf_counter()
            for fd, _ in events:
                name, connection = self._live.pop(fd)
                self._ended.append(Ending(name, now))
                connection.close()
            if len(self._ended) >= self._expected:
                self._complete.set()


def opened(ways: Iterable[tuple[str, load.Way]]) -> list[socket.socket]:
    """A live connection by each way, halfway through the answer to `GET /NAME`."""
    with ThreadPoolExecutor(OPENED_AT_ONCE) as pool:
        return list(pool.map(lambda pair: _open(*pair), ways))


@contextlib.contextmanager
def closing(connections: list[socket.socket]) -> Iterator[list[socket.socket]]:
    """All are closed at the end."""
    try:
        yield connections
    finally:
        for connection in connections:
            connection.close()


def _open(name: str, way: load.Way) -> socket.socket:
    connection = socket.create_connection(way.proxy or (way.host, way.port), _PATIENCE_S)
    try:
        place = f"{way.host}:{way.port}"
        head = f"CONNECT {place} HTTP/1.1\r\nHost: {place}\r\n"
        connection.sendall(f"{head}Proxy-Authorization: {way.authorization}\r\n\r\n".encode())
        answer = _head_of(connection)
        if not answer.startswith(b"HTTP/1.1 200"):
            raise ConnectionRefusedError(answer.split(b"\r\n")[0].decode("latin-1"))
        if way.tls:
            connection = way.tls.wrap_socket(connection, server_hostname=way.host)
        connection.sendall(f"GET /{name} HTTP/1.1\r\nHost: {place}\r\n\r\n".encode())
        answer = _head_of(connection)
        if not answer.startswith(b"HTTP/1.1 200"):
            raise ConnectionRefusedError(answer.decode("latin-1"))
    except BaseException:
        connection.close()
        raise
    return connection


def _head_of(connection: socket.socket) -> bytes:
    data = b""
    while _END_OF_HEAD not in data:
        piece = connection.recv(65536)
        if not piece:
            raise ConnectionResetError("closed before it had answered")
        data += piece
    return data


def raise_descriptor_limit(wanted: int) -> str | None:
    """Have this program, and what it starts, open `wanted` files; a sentence when the system forbids it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft >= wanted:
        return None
    for limits in ((wanted, max(wanted, hard)), (min(wanted, hard), hard)):
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)
            break
    got = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if got >= wanted:
        return None
    return f"only {got:,} open files are allowed here, {wanted:,} are needed: raise it (ulimit -n)"
