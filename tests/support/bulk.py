"""Much data, in threads with blocking sockets: an origin that drains or pours, and a client."""

from __future__ import annotations

import contextlib
import re
import socket
import ssl
import threading

from support.streams import Caller
from support.world import basic

PIECE = bytes(256 * 1024)
TIMEOUT_S = 60.0


class BulkOrigin:
    """POST and whatever is upgraded is drained; GET /N pours N bytes. Each connection has a thread."""

    def __init__(self, context: ssl.SSLContext | None = None) -> None:
        self._context = context
        self.sockets: list[socket.socket] = []

    def __enter__(self) -> BulkOrigin:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for sock in self.sockets:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join()
        for sock in self.sockets:
            sock.close()

    @property
    def host(self) -> str:
        return f"localhost:{self.port}"

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                sock, _ = self._listener.accept()
                sock.settimeout(TIMEOUT_S)
                thread = threading.Thread(target=self._serve, args=(sock,))
                self._threads.append(thread)
                thread.start()

    def _serve(self, sock: socket.socket) -> None:
        try:
            if self._context is not None:
                sock = self._context.wrap_socket(sock, server_side=True)
            self.sockets.append(sock)
            head, rest = read_head(sock)
            while head:
                self._answer(sock, head, len(rest))
                head, rest = read_head(sock)
        except OSError:
            pass  # cut

    def _answer(self, sock: socket.socket, head: bytes, early: int) -> None:
        if head.startswith(b"GET") and b"Upgrade:" not in head:
            size = int(head.split(b" ")[1].rpartition(b"/")[2])
            sock.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size)
            pour(sock, size)
            return
        if b"Upgrade:" in head:
            sock.sendall(
                b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: bytes\r\n\r\n"
            )
            size = int(re.search(rb"X-Size: (\d+)", head)[1])
        else:
            size = int(re.search(rb"(?i)content-length: (\d+)", head)[1])
        drain(sock, size - early)
        sock.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")


def read_head(sock: socket.socket) -> tuple[bytes, bytes]:
    """A head, and what came with it; two empty ones at the end."""
    data = b""
    while b"\r\n\r\n" not in data:
        more = sock.recv(65536)
        if not more:
            return b"", b""
        data += more
    head, _, rest = data.partition(b"\r\n\r\n")
    return head, rest


def pour(sock: socket.socket, size: int) -> None:
    """Send so many bytes."""
    view = memoryview(PIECE)
    while size:
        size -= sock.send(view[: min(size, len(view))])


def drain(sock: socket.socket, size: int) -> None:
    """Read so many bytes."""
    buffer = bytearray(len(PIECE))
    while size:
        read = sock.recv_into(buffer, min(size, len(buffer)))
        if not read:
            raise ConnectionResetError(f"{size} bytes are missing")
        size -= read


def connect(caller: Caller) -> socket.socket:
    """A blocking connection on which a request can be sent."""
    sock = socket.create_connection(("127.0.0.1", caller.port), TIMEOUT_S)
    if caller.way.tls is None:
        return sock
    auth = basic(caller.label, caller.secret)
    sock.sendall(f"CONNECT {caller.host} HTTP/1.1\r\nProxy-Authorization: {auth}\r\n\r\n".encode())
    head, _ = read_head(sock)
    assert b" 200 " in head, head
    if caller.way.scheme == "http":
        return sock
    context = ssl.create_default_context(cafile=str(caller.trusted))
    return context.wrap_socket(sock, server_hostname=caller.host.partition(":")[0])


def upload(caller: Caller, size: int) -> None:
    """A whole upload, to its answer."""
    with connect(caller) as sock:
        sock.sendall(caller.head("POST", "/", f"Content-Length: {size}"))
        pour(sock, size)
        assert read_head(sock)[0].startswith(b"HTTP/1.1 200")


def download(caller: Caller, size: int) -> None:
    """A whole download."""
    with connect(caller) as sock:
        sock.sendall(caller.head("GET", f"/{size}"))
        head, rest = read_head(sock)
        assert head.startswith(b"HTTP/1.1 200")
        drain(sock, size - len(rest))


def upgraded(caller: Caller, size: int) -> None:
    """An upload behind an upgrade to something that nobody reads."""
    with connect(caller) as sock:
        wishes = ("Connection: Upgrade", "Upgrade: bytes", f"X-Size: {size}")
        sock.sendall(caller.head("GET", "/", *wishes))
        assert read_head(sock)[0].startswith(b"HTTP/1.1 101")
        pour(sock, size)
        assert read_head(sock)[0].startswith(b"HTTP/1.1 200")
