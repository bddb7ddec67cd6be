"""The real ends of the lines of `support.model`: what a client has got, and what an origin has, to the byte."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import struct
import time
from collections.abc import Callable

from haltwire_proxy.connections import Connection

from support.client import Answer
from support.model import Line
from support.recorder import Arrival, readable
from support.streams import Caller

SETTLE_S = 10.0
_PIECE = 8
NUMBERS = b"".join(b"%07d\n" % number for number in range(400_000))
"What streams carry, either way: a byte that is lost, doubled or misplaced shows."
STREAM_HEAD = b"HTTP/1.1 200 OK\r\nContent-Length: 1000000000\r\n\r\n"


async def soon(condition: Callable[[], bool], why: Callable[[], object] = lambda: "") -> None:
    """Return as soon as it holds."""
    end = time.monotonic() + SETTLE_S
    while not condition():
        assert time.monotonic() < end, f"not soon: {why()}"
        await asyncio.sleep(0.001)


class End(asyncio.Protocol):
    """A client's connection to the proxy."""

    def __init__(self) -> None:
        self.received = bytearray()
        self.read = 0
        "How much of it has been looked at."
        self.ended = False

    @classmethod
    async def open(cls, port: int) -> End:
        loop = asyncio.get_running_loop()
        _, end = await loop.create_connection(cls, "127.0.0.1", port)
        return end

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport
        self.port = transport.get_extra_info("sockname")[1]

    def data_received(self, data: bytes) -> None:
        self.received += data

    def connection_lost(self, exc: Exception | None) -> None:
        self.ended = True

    def got(self) -> int:
        """Bytes that have reached the client's host, read or not."""
        if self.transport.is_closing():
            return len(self.received)
        return len(self.received) + readable(self.transport.get_extra_info("socket").fileno())

    def unread(self) -> bytes:
        return bytes(self.received[self.read :])

    def whole(self, *, head: bool = False) -> tuple[Answer, int] | None:
        """The next answer and its length, if it has come whole."""
        text, found, rest = self.unread().partition(b"\r\n\r\n")
        if not found:
            return None
        lines = text.decode("latin-1").split("\r\n")
        headers = {
            name.lower(): value.strip()
            for name, _, value in (line.partition(":") for line in lines[1:])
        }
        status = int(lines[0].split(" ")[1])
        size = 0 if head and status == 200 else int(headers.get("content-length", 0))
        if len(rest) < size:
            return None
        return Answer(status, headers, rest[:size]), len(text) + 4 + size

    async def answer(self, *, head: bool = False) -> Answer:
        await soon(lambda: self.whole(head=head) is not None or self.ended, self.unread)
        found = self.whole(head=head)
        assert found is not None, f"ended with {self.unread()!r} instead of an answer"
        self.read += found[1]
        return found[0]

    async def is_ended(self) -> bytes:
        """What still has come when the connection has ended."""
        await soon(lambda: self.ended, self.unread)
        return self.unread()

    def close(self, *, reset: bool = False) -> None:
        if not self.transport.is_closing():
            sock = self.transport.get_extra_info("socket")
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", reset, 0))
        self.transport.abort()


class Client:
    """A line's real end, and what its origin is to answer."""

    def __init__(self, line: Line, caller: Caller, end: End) -> None:
        self.line, self.caller, self.end = line, caller, end
        self.limit: int | None = None
        "While it is held: all that may ever have reached its host."
        self.connecting = False
        "Whether its CONNECT has not been answered."
        self.path = ""
        "Of the latest request."
        self.answered = False
        "Whether the origin has answered it."
        self.stands = False
        "Whether a hold has interrupted the dial of a request that had been let through."
        self.up = self.down = 0
        "Of a stream: what each side has been given to send."

    @property
    def kind(self) -> str:
        return self.path.split("/")[1] if self.path else ""

    @property
    def is_stream(self) -> bool:
        return self.line.asks and self.kind == "stream"

    def push(self, size: int) -> None:
        """Send more of the stream's body."""
        self.end.transport.write(NUMBERS[self.up : self.up + size])
        self.up += size

    def push_down(self, arrival: Arrival, size: int) -> None:
        """Have the origin send more of the stream's body."""
        if not self.answered:
            self.answered = True
            arrival.send(STREAM_HEAD)
        arrival.send(NUMBERS[self.down : self.down + size])
        self.down += size

    def came_up(self, arrival: Arrival) -> bytes:
        """What the origin has of the stream's body."""
        return bytes(arrival.plain.rpartition(self.path.encode())[2].partition(b"\r\n\r\n")[2])

    def came_down(self) -> bytes:
        """What the client has of it."""
        return self.end.unread().partition(b"\r\n\r\n")[2]


def ports(fd: int) -> tuple[int, int]:
    """Our port and the peer's of a socket; zeros when it has none any more."""
    with contextlib.suppress(OSError), socket.socket(fileno=os.dup(fd)) as copy:
        return copy.getsockname()[1], copy.getpeername()[1]
    return 0, 0


def client_port(connection: Connection) -> int:
    """By which a client and the proxy's book on it find each other."""
    return ports(connection.client.fileno())[1]
