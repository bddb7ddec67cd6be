"""An origin that plays any kind of traffic and counts what its sockets have got, to the byte.

TLS is ended in memory, so that `arrived()` is the wire's count: what was read plus what the kernel
has ready, with no buffer of a library in between.
"""

from __future__ import annotations

import asyncio
import base64
import fcntl
import hashlib
import ssl
import struct
import termios
import time
from collections.abc import Iterable

TICK_S = 0.2
"Between two pieces of a stream: many streams at once must not be a load test."
_WS_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
_OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


def readable(fd: int) -> int:
    """Bytes that the kernel has for this socket and that nobody has read."""
    answer = fcntl.ioctl(fd, termios.FIONREAD, b"\0\0\0\0")
    return struct.unpack("i", answer)[0]


class Arrival(asyncio.Protocol):
    """One connection at the origin. The first word of a request's path says what is played."""

    def __init__(self, recorder: Recorder) -> None:
        self.raw = 0
        "Bytes read from the socket, TLS and all."
        self.plain = bytearray()
        "The request heads and bodies that were read."
        self.paths: list[str] = []
        self.ended = asyncio.Event()
        self.ended_at: float | None = None
        self.piece = b""
        "What is sent at every tick."
        self.waiting = False
        self._unread = bytearray()
        self._recorder = recorder
        self._tls: ssl.SSLObject | None = None
        self._handshaken = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Somebody has connected."""
        self.transport = transport
        peer = transport.get_extra_info("peername")
        self.port = peer[1] if peer else 0
        self._recorder.arrivals.append(self)
        if self._recorder.context is not None:
            self._in, self._out = ssl.MemoryBIO(), ssl.MemoryBIO()
            self._tls = self._recorder.context.wrap_bio(self._in, self._out, server_side=True)

    def data_received(self, data: bytes) -> None:
        """Count it; play what it asks for."""
        self.raw += len(data)
        fresh = self._decrypted(data)
        self.plain += fresh
        self._unread += fresh
        while self.piece == b"" and b"\r\n\r\n" in self._unread and not self.waiting:
            head, _, rest = bytes(self._unread).partition(b"\r\n\r\n")
            self._unread[:] = rest
            self._play(head)

    def connection_lost(self, exc: Exception | None) -> None:
        """It has ended."""
        self.ended_at = time.monotonic()
        self.piece = b""
        self.ended.set()

    def eof_received(self) -> bool:
        """Nobody half-closes here: an end is an end."""
        return False

    def arrived(self) -> int:
        """Bytes that have reached this host for it, read or not."""
        if self.transport.is_closing():
            return self.raw
        return self.raw + readable(self.transport.get_extra_info("socket").fileno())

    def send(self, data: bytes) -> None:
        """Send, if it lives."""
        if self.transport.is_closing():
            return
        if self._tls is None:
            self.transport.write(data)
        else:
            self._tls.write(data)
            self.transport.write(self._out.read())

    def answer(self) -> None:
        """End what waits for an answer."""
        self.waiting = False
        self.send(_OK)

    def _play(self, head: bytes) -> None:
        path = head.split(b" ")[1].decode()
        self.paths.append(path)
        kind = path.split("/")[1].partition("?")[0]
        if kind == "events":
            self.send(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n")
            self.piece = b"data: tick\n\n"
        elif kind == "download":
            self.send(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000000\r\n\r\n")
            self.piece = bytes(1000)
        elif kind == "socket":
            key = next(
                line.split(b": ")[1]
                for line in head.split(b"\r\n")
                if line.lower().startswith(b"sec-websocket-key")
            )
            accept = base64.b64encode(hashlib.sha1(key + _WS_GUID).digest())
            self.send(
                b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                b"Sec-WebSocket-Accept: " + accept + b"\r\n\r\n"
            )
            self.piece = b"\x81\x04tick"
        elif kind == "idle":
            self.send(_OK)
        else:  # waiting, upload
            self.waiting = True

    def _decrypted(self, data: bytes) -> bytes:
        if self._tls is None:
            return data
        self._in.write(data)
        plain = b""
        try:
            if not self._handshaken:
                self._tls.do_handshake()
                self._handshaken = True
            while chunk := self._tls.read(65536):
                plain += chunk
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLError:
            self.transport.abort()
        self.transport.write(self._out.read())
        return plain


class Recorder:
    """The origin. One per agent: then its port says whose a connection is."""

    def __init__(self, context: ssl.SSLContext | None = None) -> None:
        self.context = context
        self.arrivals: list[Arrival] = []

    async def __aenter__(self) -> Recorder:
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(lambda: Arrival(self), "127.0.0.1", 0, backlog=1024)
        self.port = self._server.sockets[0].getsockname()[1]
        self._ticks = loop.create_task(self._tick())
        return self

    async def __aexit__(self, *_: object) -> None:
        self._ticks.cancel()
        self._server.close()
        for arrival in self.live:
            arrival.transport.abort()
        await asyncio.wait_for(self._server.wait_closed(), 5)

    @property
    def host(self) -> str:
        return f"localhost:{self.port}"

    @property
    def live(self) -> list[Arrival]:
        return [arrival for arrival in self.arrivals if not arrival.ended.is_set()]

    def arrived(self) -> int:
        """Bytes that have reached this host for all of them, read or not."""
        return sum(arrival.arrived() for arrival in self.arrivals)

    def answer(self) -> None:
        """Answer all that wait."""
        for arrival in self.live:
            if arrival.waiting:
                arrival.answer()

    async def has(self, connections: int, requests: int, timeout: float = 20) -> None:
        """Return when so many connections are open and so many requests have been read."""
        async with asyncio.timeout(timeout):
            while len(self.live) < connections or self.requests() < requests:
                await asyncio.sleep(0.01)

    def requests(self) -> int:
        """Request heads read so far."""
        return sum(len(arrival.paths) for arrival in self.arrivals)

    async def all_ended(self, timeout: float = 5) -> None:
        """Return when no connection is left."""
        await _each(self.live, timeout)

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(TICK_S)
            for arrival in self.live:
                if arrival.piece:
                    arrival.send(arrival.piece)


async def _each(arrivals: Iterable[Arrival], timeout: float) -> None:
    async with asyncio.timeout(timeout):
        for arrival in arrivals:
            await arrival.ended.wait()
