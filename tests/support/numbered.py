"""Agents whose every request says who sent it, which one it is and when its first byte was sent; and
the origin that notes when each arrives.

Everything is on one machine, so that CLOCK_MONOTONIC is one clock for all.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import random
import re
import ssl
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass

from support.world import basic

MARK = re.compile(rb"~([a-z0-9]+)\.([a-z]+)\.(\d+)\.(\d+\.\d{6})\.([qusce])~")
"Agent, way, number, when it was sent, and what it is: a request, an upload, a stream's piece, chunk, end."
PATIENCE_S = 4.0
"How long an agent waits for anything before it begins anew."
TROUBLE = (OSError, EOFError, TimeoutError, ValueError, RuntimeError)
_OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


@dataclass(frozen=True, slots=True)
class Arrival:
    """A mark that an origin has read."""

    agent: str
    way: str
    number: int
    sent: float
    at: float


def mark(agent: str, way: str, number: int, kind: str) -> str:
    """A mark of this moment: to be asked for right before its first byte is sent."""
    return f"~{agent}.{way}.{number}.{time.monotonic():.6f}.{kind}~"


class Origin:
    """Answers every request and reads every stream; tells of each mark as soon as it is read."""

    def __init__(
        self, arrived: Callable[[Arrival], None], context: ssl.SSLContext | None = None
    ) -> None:
        self._arrived = arrived
        self._context = context
        self._open: set[asyncio.Transport] = set()

    async def __aenter__(self) -> Origin:
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(
            lambda: _Connection(self._arrived, self._open),
            "127.0.0.1",
            0,
            ssl=self._context,
            backlog=1024,
        )
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for transport in tuple(self._open):
            transport.abort()
        self._server.abort_clients()  # those that are still in their handshake
        await asyncio.wait_for(self._server.wait_closed(), 10)

    @property
    def host(self) -> str:
        return f"localhost:{self.port}" if self._context else f"127.0.0.1:{self.port}"


class _Connection(asyncio.Protocol):
    def __init__(self, arrived: Callable[[Arrival], None], opened: set[asyncio.Transport]) -> None:
        self._arrived, self._opened = arrived, opened
        self._unread = b""
        self._until = b""
        "What ends the request that is being read."

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport
        self._opened.add(transport)

    def connection_lost(self, exc: Exception | None) -> None:
        self._opened.discard(self._transport)

    def data_received(self, data: bytes) -> None:
        now = time.monotonic()
        self._unread += data
        end = 0
        for found in MARK.finditer(self._unread):
            agent, way, number, sent, kind = (group.decode() for group in found.groups())
            self._arrived(Arrival(agent, way, int(number), float(sent), now))
            self._until = {"q": b"\r\n\r\n", "e": b"\r\n0\r\n\r\n"}.get(kind, b"")
            end = found.end()
        self._unread = self._unread[end:]
        if self._until and self._until in self._unread:
            self._until = self._unread = b""
            self._transport.write(_OK)
        elif len(self._unread) > 4096:
            self._unread = self._unread[-256:]  # a head's other lines


@dataclass(frozen=True)
class Place:
    """Where an agent sends to, and through what."""

    proxy_port: int | None
    "None: past the proxy, which no agent that is stopped may be able to."
    plain: Origin
    tls: Origin
    our_ca: str
    "Trusted inside what the proxy reads."
    origin_ca: str


class Agent:
    """A careless agent: it sends by every way at once, and begins anew whatever it is told."""

    def __init__(self, name: str, group: str, tunnel: str, intercept: str, place: Place) -> None:
        self.name, self.group = name, group
        self.uri = f"agent://acme/{group}/{name}"
        label = f"acme.{group}.{name}"
        self._auth = f"Proxy-Authorization: {basic(label, tunnel)}"
        self._read_auth = f"Proxy-Authorization: {basic(label, intercept)}"
        self._place = place
        self._inside = _trusting(place.our_ca)
        self._outside = _trusting(place.origin_ca)
        self._numbers = itertools.count()
        self.sent: Counter[str] = Counter()
        self.refused: Counter[str] = Counter()
        self.ways: dict[str, Callable[[str, random.Random], Awaitable[None]]] = {
            "plain": self._plain,
            "fresh": self._fresh,
            "tunnel": self._tunnel,
            "tls": self._tls,
            "read": self._read,
            "upload": self._upload,
            "readup": self._read_upload,
            "raw": self._raw,
        }
        if place.proxy_port is None:
            self.ways = {"direct": self._direct}

    async def send(self, way: str, chance: random.Random) -> None:
        """Send by one way without end."""
        walk = self.ways[way]
        while True:
            try:
                await walk(way, chance)
            except TROUBLE as error:
                self.refused[str(error) if isinstance(error, PermissionError) else "closed"] += 1
                await asyncio.sleep(chance.uniform(0.01, 0.08))

    async def _plain(self, way: str, chance: random.Random) -> None:
        async with _wire(self._place.proxy_port) as wire:
            for _ in range(chance.randint(1, 60)):
                await self._ask(wire, way, f"http://{self._place.plain.host}", self._auth)
                await asyncio.sleep(chance.uniform(0, 0.08))

    async def _fresh(self, way: str, chance: random.Random) -> None:
        async with _wire(self._place.proxy_port) as wire:
            await self._ask(wire, way, f"http://{self._place.plain.host}", self._auth)
        await asyncio.sleep(chance.uniform(0, 0.1))

    async def _tunnel(self, way: str, chance: random.Random) -> None:
        async with _wire(self._place.proxy_port) as wire:
            await self._connect(wire, self._place.plain.host, self._auth)
            for _ in range(chance.randint(1, 200)):
                await self._ask(wire, way, "", f"Host: {self._place.plain.host}")
                await asyncio.sleep(chance.uniform(0, 0.05))

    async def _tls(self, way: str, chance: random.Random) -> None:
        await self._over_tls(way, chance, self._auth, self._outside)

    async def _read(self, way: str, chance: random.Random) -> None:
        await self._over_tls(way, chance, self._read_auth, self._inside)

    async def _over_tls(self, way, chance, auth, context) -> None:
        host = self._place.tls.host
        async with _wire(self._place.proxy_port) as wire:
            await self._connect(wire, host, auth)
            await asyncio.wait_for(
                wire[1].start_tls(context, server_hostname="localhost"), PATIENCE_S
            )
            for _ in range(chance.randint(1, 100)):
                await self._ask(wire, way, "", f"Host: {host}")
                await asyncio.sleep(chance.uniform(0, 0.08))

    async def _upload(self, way: str, chance: random.Random) -> None:
        async with _wire(self._place.proxy_port) as wire:
            await self._connect(wire, self._place.plain.host, self._auth)
            await self._chunks(wire, way, chance, f"Host: {self._place.plain.host}")

    async def _read_upload(self, way: str, chance: random.Random) -> None:
        host = self._place.tls.host
        async with _wire(self._place.proxy_port) as wire:
            await self._connect(wire, host, self._read_auth)
            await asyncio.wait_for(
                wire[1].start_tls(self._inside, server_hostname="localhost"), PATIENCE_S
            )
            await self._chunks(wire, way, chance, f"Host: {host}")

    async def _raw(self, way: str, chance: random.Random) -> None:
        async with _wire(self._place.proxy_port) as (reader, writer):
            await self._connect((reader, writer), self._place.plain.host, self._auth)
            for _ in range(chance.randint(1, 200)):
                writer.write(self._mark(way, "s").encode() + b"\n")
                await asyncio.wait_for(writer.drain(), PATIENCE_S)
                if reader.at_eof():
                    raise EOFError
                await asyncio.sleep(chance.uniform(0, 0.05))

    async def _direct(self, way: str, chance: random.Random) -> None:
        async with _wire(self._place.plain.port) as wire:
            for _ in range(20):
                await self._ask(wire, way, "", "Host: x")
                await asyncio.sleep(0.05)

    async def _connect(self, wire, host: str, auth: str) -> None:
        reader, writer = wire
        writer.write(f"CONNECT {host} HTTP/1.1\r\nHost: {host}\r\n{auth}\r\n\r\n".encode())
        await _answer(reader, writer, connect=True)

    async def _ask(self, wire, way: str, base: str, header: str) -> None:
        reader, writer = wire
        where = f"{base}/{self._mark(way, 'q')}"
        host = f"Host: {base.removeprefix('http://')}\r\n" if base else ""
        writer.write(f"GET {where} HTTP/1.1\r\n{host}{header}\r\n\r\n".encode())
        await _answer(reader, writer)

    async def _chunks(self, wire, way: str, chance: random.Random, header: str) -> None:
        reader, writer = wire
        head = f"POST /{self._mark(way, 'u')} HTTP/1.1\r\n{header}\r\nTransfer-Encoding: chunked\r\n\r\n"
        writer.write(head.encode())
        for left in range(chance.randint(1, 100), -1, -1):
            piece = self._mark(way, "c" if left else "e").encode()
            writer.write(b"%x\r\n%b\r\n" % (len(piece), piece))
            await asyncio.wait_for(writer.drain(), PATIENCE_S)
            if reader.at_eof():
                raise EOFError
            await asyncio.sleep(chance.uniform(0, 0.05))
        writer.write(b"0\r\n\r\n")
        await _answer(reader, writer)

    def _mark(self, way: str, kind: str) -> str:
        self.sent[way] += 1
        return mark(self.name, way, next(self._numbers), kind)


@contextlib.asynccontextmanager
async def _wire(port: int | None) -> Iterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    async with asyncio.timeout(PATIENCE_S):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        yield reader, writer
    finally:
        writer.transport.abort()


async def _answer(reader, writer, *, connect: bool = False) -> None:
    """Wait for a 200; PermissionError with the code of a refusal."""
    async with asyncio.timeout(PATIENCE_S):
        await writer.drain()
        head = await reader.readuntil(b"\r\n\r\n")
        status = head.split(b" ", 2)[1].decode()
        length = re.search(rb"(?i)content-length: *(\d+)", head)
        body = b""
        if length and not (connect and status == "200"):
            body = await reader.readexactly(int(length[1]))
    if status != "200":
        code = re.search(rb'"error": ?"(\w+)"', body)
        raise PermissionError(f"{status} {code[1].decode() if code else ''}".strip())


def _trusting(ca_file: str) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=ca_file)
