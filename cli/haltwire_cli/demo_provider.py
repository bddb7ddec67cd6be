"""The demo's mail provider: the one thing in it that is not real, and the one that keeps the books.

An HTTPS server on loopback. It accepts each message once, however often its Idempotency-Key comes;
it counts every byte that it reads; and it stops in the middle of a large message until it is told
to read on, so that a kill finds a half-sent one.
"""

from __future__ import annotations

import contextlib
import io
import json
import select
import socket
import socketserver
import ssl
import threading
import time
from collections import Counter
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

from haltwire_cli.demo_checks import Books, HalfRead

LARGE_BYTES = 1_000_000
"Messages from here on are read half at first."
_RECEIVE_BUFFER = 65_536
"So little fits into our own kernel that half of a large message stays on the sender's side."
_PIECE = 16_384
_LOOK_MS = 20
_HANDSHAKE_S = 10.0
_ENDED = select.POLLERR | select.POLLHUP | getattr(select, "POLLRDHUP", 0)


class MailProvider:
    """Runs from `start` to `close`, on threads of its own."""

    def __init__(self, certificate_file: Path) -> None:
        self._tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._tls.load_cert_chain(certificate_file)
        self._changed = threading.Condition()  # over an RLock: the books are read inside it
        self._answers: dict[str, str] = {}
        self._accepted: Counter[str] = Counter()
        self._deliveries: Counter[str] = Counter()
        self._half_read: dict[str, HalfRead] = {}
        self._bytes_read = 0
        self._connections = 0
        self._reads_on = threading.Event()
        self._server = _Server(self)

    @property
    def url(self) -> str:
        """Where messages are posted to."""
        return f"https://localhost:{self._server.server_address[1]}/send"

    def start(self) -> None:
        """Accept connections from now on."""
        self._server.start()

    def close(self) -> None:
        """End every connection and stop listening."""
        self._server.stop()

    def books(self) -> Books:
        """What it has seen until now."""
        with self._changed:
            return Books(
                dict(self._accepted),
                dict(self._deliveries),
                self._bytes_read,
                self._connections,
                tuple(sorted(self._half_read.values(), key=lambda half: half.instance)),
            )

    def wait_for(self, condition: Callable[[Books], bool], timeout_s: float) -> bool:
        """Whether the condition came true in time; it is asked again whenever something changes."""
        with self._changed:
            return self._changed.wait_for(lambda: condition(self.books()), timeout_s)

    def read_on(self) -> None:
        """Read large messages to their end from now on, those that wait included."""
        self._reads_on.set()

    # What follows is called by the connections' own threads.

    def tls_for(self, connection: socket.socket) -> CountedTls:
        """The server's side of TLS on a connection that has just come."""
        with self._changed:
            self._connections += 1
            self._changed.notify_all()
        return CountedTls(connection, self._tls, self._count)

    def may_read_on(self, connection: socket.socket, half: HalfRead) -> bool:
        """Wait until told to read on; False when the connection has ended meanwhile.

        It is only looked at, not read: what our kernel had received before its end stays unread.
        """
        with self._changed:
            self._half_read[half.key] = half
            self._changed.notify_all()
        look = select.poll()
        look.register(connection, _ENDED)
        ended = bool(look.poll(0))
        while not ended and not self._reads_on.is_set():
            ended = bool(look.poll(_LOOK_MS))
        with self._changed:
            del self._half_read[half.key]
            self._changed.notify_all()
        return not ended

    def accept(self, key: str, message: str) -> str:
        """The answer to a whole message: the first one again, when the key is known."""
        with self._changed:
            if key not in self._answers:
                self._answers[key] = json.dumps({"accepted": message})
                self._accepted[instance_of(message)] += 1
                self._deliveries[message] += 1
                self._changed.notify_all()
            return self._answers[key]

    def _count(self, read: int) -> None:
        with self._changed:
            self._bytes_read += read


def instance_of(name: str) -> str:
    """The sender of `INSTANCE/NUMBER` (a message) or `INSTANCE-NUMBER` (its key)."""
    return name.rpartition("/")[0] or name.rpartition("-")[0]


class CountedTls(io.RawIOBase):
    """The server's side of TLS; every byte that is taken from the socket is counted before it is used."""

    def __init__(
        self, connection: socket.socket, context: ssl.SSLContext, count: Callable[[int], None]
    ) -> None:
        super().__init__()
        self._connection = connection
        self._count = count
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_side=True)

    def handshake(self) -> None:
        """Finish the handshake; OSError when the other side does not."""
        while True:
            try:
                self._tls.do_handshake()
            except ssl.SSLWantReadError:
                self._send()
                self._receive()
            else:
                self._send()
                return

    def readable(self) -> bool:
        """It is."""
        return True

    def writable(self) -> bool:
        """It is."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Read some plain bytes; 0 at the end."""
        while True:
            try:
                return self._tls.read(len(buffer), buffer)  # type: ignore[return-value]  # typeshed: with a buffer it is a number
            except ssl.SSLWantReadError:
                self._receive()
            except (ssl.SSLZeroReturnError, ssl.SSLEOFError):
                return 0

    def write(self, data: Any) -> int:
        """Write all of it."""
        self._tls.write(data)
        self._send()
        return len(data)

    def _receive(self) -> None:
        data = self._connection.recv(_PIECE)
        self._count(len(data))
        if data:
            self._incoming.write(data)
        else:
            self._incoming.write_eof()

    def _send(self) -> None:
        if self._outgoing.pending:
            self._connection.sendall(self._outgoing.read())


class _Server(socketserver.ThreadingTCPServer):
    # Not HTTPServer, which asks the resolver for this host's name.
    daemon_threads = True
    block_on_close = False
    request_queue_size = 128

    def __init__(self, provider: MailProvider) -> None:
        self.provider = provider
        self._live: set[socket.socket] = set()
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True)
        super().__init__(("127.0.0.1", 0), _Handler)

    def server_bind(self) -> None:
        # Accepted connections take the listener's buffer.
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _RECEIVE_BUFFER)
        super().server_bind()

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        if self._thread.is_alive():
            self.shutdown()
            self._thread.join()
        self.server_close()
        with self._lock:
            for connection in self._live:
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)
        deadline = time.monotonic() + 2.0
        while self._live and time.monotonic() < deadline:
            time.sleep(0.01)

    def process_request(self, request: Any, client_address: Any) -> None:
        with self._lock:
            self._live.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        super().shutdown_request(request)
        with self._lock:
            self._live.discard(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Connections that are cut are what this is about; nothing of it belongs on the screen."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def setup(self) -> None:
        self.connection = self.request
        self.connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        tls = self.server.provider.tls_for(self.connection)
        self.connection.settimeout(_HANDSHAKE_S)
        tls.handshake()
        self.connection.settimeout(None)
        self.rfile = io.BufferedReader(tls, _PIECE)
        self.wfile = tls  # type: ignore[assignment]  # it writes all or raises

    def finish(self) -> None:
        self.rfile.close()

    def do_POST(self) -> None:  # the name that http.server looks for
        key = self.headers.get("Idempotency-Key", "")
        length = int(self.headers.get("Content-Length", "0"))
        if self.path != "/send" or not key or not length:
            self.send_error(400)
            return
        half = length // 2 if length >= LARGE_BYTES else length
        body = self.rfile.read(half)
        if len(body) < half:
            raise ConnectionError("the message ended early")
        if half < length:
            known = HalfRead(instance_of(key), key, half, length)
            if not self.server.provider.may_read_on(self.connection, known):
                raise ConnectionError("the message ended early")
            body += self.rfile.read(length - half)
        if len(body) < length:
            raise ConnectionError("the message ended early")
        message = str(json.loads(body)["message"])
        answer = self.server.provider.accept(key, message).encode()
        self.send_response(202)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002  # its name in http.server
        """Nothing: the books say it all."""
