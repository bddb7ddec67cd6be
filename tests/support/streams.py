"""Every kind of live traffic that an agent can have, as a client sees it."""

from __future__ import annotations

import asyncio
import ssl
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from support.client import Wire, tls_tunnel, tunnel
from support.world import basic

SECRET_QUERY = "?key=not-for-receipts"
_FRAME = b"\x81\x84\0\0\0\0more"  # a masked text message


@dataclass(frozen=True)
class Kind:
    """A request, what is sent behind it again and again, and how a receipt names it."""

    name: str
    sent: str | None
    "The receipt's word where we read; None when nothing is in flight."
    method: str = "GET"
    headers: tuple[str, ...] = ()
    piece: bytes = b""


KINDS = (
    Kind("waiting", "whole"),
    Kind("events", "whole"),
    Kind("download", "whole"),
    Kind("upload", "partly", "POST", ("Transfer-Encoding: chunked",), b"4\r\nmore\r\n"),
    Kind(
        "socket",
        "unknown",
        headers=(
            *("Upgrade: websocket", "Connection: Upgrade", "Sec-WebSocket-Version: 13"),
            "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
        ),
        piece=_FRAME,
    ),
    Kind("idle", None),
    Kind("silent", None, method=""),
)


@dataclass(frozen=True)
class Way:
    """How a client's bytes go."""

    scheme: str
    tls: str | None
    "`tunnel` or `intercept` inside a CONNECT; None: a plain proxied request."

    def __str__(self) -> str:
        return f"{self.scheme}-{self.tls or 'plain'}"


WAYS = (
    Way("http", None),
    Way("http", "tunnel"),
    Way("http", "intercept"),
    Way("https", "tunnel"),
    Way("https", "intercept"),
)


@dataclass(frozen=True)
class Caller:
    """An agent's instance and how it reaches an origin."""

    port: int
    "The proxy's."
    proxy_url: str
    way: Way
    host: str
    "The origin's, with its port."
    trusted: Path
    instance: str | None = None

    @property
    def label(self) -> str:
        name = self._user_info[0]
        return f"{name}~{self.instance}" if self.instance else name

    @property
    def secret(self) -> str:
        return self._user_info[1]

    @property
    def _user_info(self) -> tuple[str, str]:
        name, _, secret = self.proxy_url.removeprefix("http://").partition("@")[0].rpartition(":")
        return name, secret

    async def connect(self) -> Wire:
        """A connection on which a request can be sent."""
        if self.way.tls is None:
            return await Wire.open(self.port)
        if self.way.scheme == "http":
            return await tunnel(self.port, self.host, self.label, self.secret)
        return await tls_tunnel(self.port, self.host, self.label, self.secret, self.trusted)

    def head(self, method: str, path: str, *headers: str) -> bytes:
        """A request head."""
        target = f"http://{self.host}{path}" if self.way.tls is None else path
        lines = [f"{method} {target} HTTP/1.1", f"Host: {self.host}", *headers]
        if self.way.tls is None:
            lines.append(f"Proxy-Authorization: {basic(self.label, self.secret)}")
        return ("\r\n".join(lines) + "\r\n\r\n").encode()


class Stream:
    """One live stream of one kind. It notes what it gets and when it ends."""

    def __init__(self, caller: Caller, kind: Kind, wire: Wire) -> None:
        self.caller, self.kind, self.wire = caller, kind, wire
        self.received = bytearray()
        self.ended_at: float | None = None
        self.ended = asyncio.Event()
        self._moved = asyncio.Event()

    @classmethod
    async def open(cls, caller: Caller, kind: Kind) -> Stream:
        """Begin it."""
        stream = cls(caller, kind, await caller.connect())
        if kind.method:
            path = f"/{kind.name}{SECRET_QUERY}"
            await stream.wire.send(caller.head(kind.method, path, *kind.headers))
        stream._reading = asyncio.get_running_loop().create_task(stream._read())
        if kind.name in ("events", "download", "socket", "idle"):
            await stream.moved()
        await stream.push()
        return stream

    async def push(self) -> None:
        """Send the next piece, if its kind has one and it lives."""
        if self.kind.piece and not self.ended.is_set():
            self.wire.writer.write(self.kind.piece)

    async def moved(self, timeout: float = 20) -> None:
        """Return when something has come since the last call."""
        await asyncio.wait_for(self._moved.wait(), timeout)
        self._moved.clear()

    async def goes_on(self) -> None:
        """Prove that it lives: what its kind can still do is done. The origin answers what waits."""
        assert not self.ended.is_set(), f"a {self.kind.name} stream has ended"
        self._moved.clear()
        if self.kind.name == "upload":
            await self.wire.send(b"0\r\n\r\n")
        elif self.kind.name in ("idle", "silent"):
            await self.wire.send(self.caller.head("GET", "/idle"))
        await self.push()
        await self.moved()

    async def _read(self) -> None:
        try:
            while data := await self.wire.reader.read(65536):
                self.received += data
                self._moved.set()
        except (ConnectionError, ssl.SSLError):
            pass
        self.ended_at = time.monotonic()
        self.ended.set()
        self.wire.close()


def in_flight_expected(streams: Iterable[Stream]) -> Counter[tuple[str, str, str | None, str]]:
    """What a receipt should name of these: method, host, path without query, how much was sent."""
    expected: Counter[tuple[str, str, str | None, str]] = Counter()
    for stream in streams:
        if stream.caller.way.tls == "tunnel":
            expected["CONNECT", "localhost", None, "unknown"] += 1
        elif stream.kind.sent is not None:
            kind = stream.kind
            expected[kind.method, "localhost", f"/{kind.name}", kind.sent] += 1
    return expected


def in_flight_of(receipt: dict) -> Counter[tuple[str, str, str | None, str]]:
    """What a receipt names."""
    return Counter(
        (flight["method"], flight["host"], flight["path"], flight["sent"])
        for row in receipt["instances"]
        for flight in row["in_flight"]
    )
