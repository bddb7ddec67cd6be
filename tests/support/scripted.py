"""An origin whose connections a test plays by hand: what has arrived, what is sent, and nothing by itself."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import struct

from support.client import serving

QUIET_S = 0.3
"How long nothing has to come."


async def until(condition, timeout: float = 10) -> None:
    """Return as soon as it holds."""
    async with asyncio.timeout(timeout):
        while not condition():
            await asyncio.sleep(0.01)


async def stood_still(*measures) -> None:
    """Nothing that is measured changes any more, once what was on its way has arrived."""
    before = None
    async with asyncio.timeout(20):
        while before != (before := [measure() for measure in measures]):
            await asyncio.sleep(QUIET_S)
    await asyncio.sleep(QUIET_S)
    assert before == [measure() for measure in measures]


def decoded(coded: bytes) -> bytes:
    """A body in chunked coding, read."""
    body = bytearray()
    while size := int(coded.partition(b"\r\n")[0], 16):
        coded = coded.partition(b"\r\n")[2]
        body += coded[:size]
        coded = coded[size + 2 :]
    return bytes(body)


def leave(wire, how: str) -> None:
    """Close the client's socket with an `end` or a `reset`."""
    sock = wire.writer.get_extra_info("socket")
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", how == "reset", 0))
    wire.close()


class Listener:
    """A client that keeps what it gets, unless it is told to wait."""

    def __init__(self, wire) -> None:
        self.wire, self.got, self.ended = wire, bytearray(), False
        self.reading = asyncio.Event()
        self.reading.set()
        self._task = asyncio.get_running_loop().create_task(self._read())

    async def _read(self) -> None:
        try:
            while chunk := await self.wire.reader.read(65536):
                self.got += chunk
                await self.reading.wait()
        except (ConnectionError, ssl.SSLError):
            pass
        self.ended = True

    @property
    def body(self) -> bytes:
        """What has come behind the head."""
        return bytes(self.got.partition(b"\r\n\r\n")[2])


class Played:
    """One connection at the origin. It reads all the time, unless told to wait."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer
        self.received = bytearray()
        self.reading = asyncio.Event()
        self.reading.set()
        self.end: str | None = None
        "`orderly` or `reset`."

    async def read(self) -> None:
        try:
            while True:
                await self.reading.wait()
                chunk = await self.reader.read(65536)
                if not chunk:
                    break
                self.received += chunk
            self.end = "orderly"
        except (ConnectionError, ssl.SSLError):
            self.end = "reset"

    @property
    def body(self) -> bytes:
        """What has arrived behind the first head."""
        return bytes(self.received.partition(b"\r\n\r\n")[2])

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def head(self, headers: str = "", status: str = "200 OK") -> None:
        await self.send(f"HTTP/1.1 {status}\r\n{headers}\r\n".encode())

    async def answer(self, body: bytes = b"ok") -> None:
        await self.head(f"Content-Length: {len(body)}\r\n")
        await self.send(body)

    async def has(self, marker: bytes) -> None:
        await until(lambda: marker in self.received)


class Stage:
    """The origin. Within TLS it knows a connection from when the handshake is done."""

    def __init__(self, context: ssl.SSLContext | None = None) -> None:
        self._context = context
        self.played: list[Played] = []

    async def __aenter__(self) -> Stage:
        self._server, self.port = await serving(self._serve, self._context)
        self.host = f"localhost:{self.port}"
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for played in self.played:
            played.reading.set()
            played.writer.transport.abort()
        await asyncio.wait_for(self._server.wait_closed(), 5)

    async def connection(self, number: int = 1) -> Played:
        """The connection of that number, when it has been made."""
        await until(lambda: len(self.played) >= number)
        return self.played[number - 1]

    async def asked(self, number: int = 1) -> Played:
        """The connection of that number, when it has brought a request head."""
        played = await self.connection(number)
        await played.has(b"\r\n\r\n")
        return played

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        played = Played(reader, writer)
        self.played.append(played)
        try:
            await played.read()
            with contextlib.suppress(ConnectionError, ssl.SSLError):
                await writer.wait_closed()
        finally:
            writer.transport.abort()
