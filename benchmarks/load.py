"""The load generator: requests, new CONNECTs, new TLS and downloads, bounded in number and in time.

One uvloop process; every kind of load is a closed loop over a fixed number of connections, and
what is set up before the clock starts is not counted. Standalone:

    python benchmarks/load.py requests --proxy http://LABEL:SECRET@127.0.0.1:8080 \\
        --ca ca.pem https://127.0.0.1:9443/
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import contextlib
import json
import signal
import ssl
import sys
import time
from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass, replace
from itertools import cycle
from urllib.parse import unquote, urlsplit

import uvloop
from origin import ADDRESSES, TLS_ADDRESSES

KINDS = ("requests", "connects", "handshakes", "download")
CLOCK = "the clock starts or stops"
"What the program says on its standard error then."
_SETUP_S = 30.0
_DOWNLOAD_BYTES = 8_000_000
"Whole bodies are small enough for a proxy that collects them before it sends them on."


@dataclass(frozen=True, slots=True)
class Way:
    """How the origin is reached."""

    host: str
    port: int
    proxy: tuple[str, int] | None = None
    "None goes direct."
    authorization: str | None = None
    "The value of Proxy-Authorization."
    tls: ssl.SSLContext | None = None
    "TLS to the origin (inside the tunnel, when there is a proxy)."
    local: str | None = None
    "The address to come from."


@dataclass(frozen=True, slots=True)
class Sample:
    """What one measurement saw."""

    operations: float
    "Requests, CONNECTs, or megabytes."
    seconds: float
    cpu_s: float
    "Processor time of the measured processes in these seconds."
    p50_us: float
    p99_us: float
    errors: int

    @property
    def rate(self) -> float:
        """Operations per second."""
        return self.operations / self.seconds

    @property
    def cpu_us(self) -> float:
        """Microseconds of processor time per operation."""
        return self.cpu_s / self.operations * 1e6 if self.operations else float("nan")


@dataclass(frozen=True, slots=True)
class _Window:
    """The time that counts."""

    seconds: float
    cpu_s: Callable[[], float]
    stop: asyncio.Event
    "Ends it early."

    async def pass_by(self) -> None:
        """Until it is over."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self.stop.wait(), self.seconds)


class _Connection(asyncio.Protocol):
    """Hands what arrives to `on_data`; until that is set, to whoever awaits `head`."""

    def __init__(self) -> None:
        self.on_data: Callable[[bytes], None] | None = None
        self.on_lost: Callable[[], None] | None = None
        self.transport: asyncio.Transport = None
        self._buffer = b""
        self._waiter: asyncio.Future[bytes] | None = None

    def connection_made(self, transport) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        if self.on_data is not None:
            self.on_data(data)
            return
        self._buffer += data
        if self._waiter is not None and not self._waiter.done() and b"\r\n\r\n" in self._buffer:
            self._waiter.set_result(self._buffer)
            self._buffer = b""

    def connection_lost(self, exc: Exception | None) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_exception(exc or ConnectionResetError("closed early"))
        if self.on_lost is not None:
            self.on_lost()

    async def head(self) -> bytes:
        """The bytes of the next answer, at least its whole head."""
        self._waiter = asyncio.get_running_loop().create_future()
        return await self._waiter


async def connect(way: Way) -> _Connection:
    """A connection on which requests for the origin can be written."""
    loop = asyncio.get_running_loop()
    host, port = way.proxy or (way.host, way.port)
    _, connection = await loop.create_connection(
        _Connection, host, port, local_addr=(way.local, 0) if way.local else None
    )
    if way.proxy:
        lines = [f"CONNECT {way.host}:{way.port} HTTP/1.1", f"Host: {way.host}:{way.port}"]
        if way.authorization:
            lines.append(f"Proxy-Authorization: {way.authorization}")
        connection.transport.write("\r\n".join([*lines, "", ""]).encode())
        head = await connection.head()
        if not head.startswith(b"HTTP/1.1 200"):
            connection.transport.abort()
            raise ConnectionRefusedError(head.split(b"\r\n", 1)[0].decode("latin-1"))
    if way.tls:
        connection.transport = await loop.start_tls(
            connection.transport, connection, way.tls, server_hostname=way.host
        )
    return connection


async def measure(
    kind: str,
    way: Way,
    connections: int,
    seconds: float,
    cpu_s: Callable[[], float] = lambda: 0.0,
    stop: asyncio.Event | None = None,
) -> Sample:
    """Load `way` for `seconds`, or until `stop`, over `connections`.

    `cpu_s` is read as the clock starts and stops.
    """
    if kind not in KINDS:
        raise ValueError(f"{kind!r} is none of {KINDS}")
    loop = {
        "requests": _requests,
        "connects": _connects,
        "handshakes": _handshakes,
        "download": _downloads,
    }[kind]
    return await loop(way, connections, _Window(seconds, cpu_s, stop or asyncio.Event()))


async def _requests(way: Way, connections: int, window: _Window) -> Sample:
    clients = [
        _Requester(connection, _get(way, "/")) for connection in await _connected(way, connections)
    ]
    await asyncio.gather(*(_bounded(client.learn()) for client in clients))
    return await _run(clients, window, 1)


async def _downloads(way: Way, connections: int, window: _Window) -> Sample:
    request = _get(way, f"/bytes/{_DOWNLOAD_BYTES}")
    clients = [_Downloader(one, request) for one in await _connected(way, connections)]
    return await _run(clients, window, 1e-6)


async def _run(clients: list, window: _Window, scale: float) -> Sample:
    for client in clients:
        client.begin()
    await asyncio.sleep(0.2)  # the first answers are slower; they are not what is measured
    before = sum(client.count for client in clients)
    for client in clients:
        client.times_us.clear()
    cpu, start = window.cpu_s(), time.perf_counter()
    await window.pass_by()
    count = sum(client.count for client in clients) - before
    elapsed, cpu = time.perf_counter() - start, window.cpu_s() - cpu
    errors = sum(client.ended for client in clients)
    times = [t for client in clients for t in client.times_us]
    for client in clients:
        client.end()
    await asyncio.sleep(0.1)
    return _sample(count * scale, elapsed, cpu, times, errors)


async def _connects(way: Way, connections: int, window: _Window) -> Sample:
    if way.proxy is None:
        raise ValueError("a CONNECT needs a proxy")
    # Each pair of addresses has 28,000 ports, and closed connections keep theirs for a minute.
    bare = replace(way, tls=None)
    hosts = ADDRESSES if way.tls is None else [way.host]
    ways = cycle(
        replace(bare, host=host, local=local) for host in hosts for local in reversed(ADDRESSES)
    )
    (await _bounded(connect(bare))).transport.close()

    async def one() -> None:
        (await _bounded(connect(next(ways)))).transport.close()

    return await _again_and_again(one, connections, window)


async def _handshakes(way: Way, connections: int, window: _Window) -> Sample:
    if way.tls is None:
        raise ValueError("a TLS handshake needs an https URL")
    ways = cycle(replace(way, host=host) for host in TLS_ADDRESSES)

    async def one() -> None:
        through = next(ways)
        connection = await _bounded(connect(through))
        connection.transport.write(_get(through, "/"))
        answer = await _bounded(connection.head())
        connection.transport.close()
        if not answer.startswith(b"HTTP/1.1 200"):
            raise ConnectionRefusedError(answer.split(b"\r\n", 1)[0].decode("latin-1"))

    await one()
    return await _again_and_again(one, connections, window)


async def _again_and_again(
    one: Callable[[], Awaitable[None]], connections: int, window: _Window
) -> Sample:
    times: list[float] = []
    errors = 0
    deadline = time.perf_counter() + window.seconds

    async def one_after_another() -> None:
        nonlocal errors
        while (start := time.perf_counter()) < deadline and not window.stop.is_set():
            try:
                await one()
            except OSError:
                errors += 1
                continue
            times.append((time.perf_counter() - start) * 1e6)

    cpu, start = window.cpu_s(), time.perf_counter()
    async with asyncio.TaskGroup() as group:
        for _ in range(connections):
            group.create_task(one_after_another())
    elapsed, cpu = time.perf_counter() - start, window.cpu_s() - cpu
    await asyncio.sleep(0.1)
    return _sample(len(times), elapsed, cpu, times, errors)


class _Requester:
    """Sends the next request when the answer to the last one is there."""

    def __init__(self, connection: _Connection, request: bytes) -> None:
        self._connection = connection
        self._request = request
        self._size = self._missing = 0
        self._sent_at = 0.0
        self.count = 0
        self.ended = False
        self.times_us: list[float] = []

    async def learn(self) -> None:
        """One request: its answer's size is every answer's size."""
        self._connection.transport.write(self._request)
        answer = await self._connection.head()
        head, _, _ = answer.partition(b"\r\n\r\n")
        status, *fields = head.decode("latin-1").split("\r\n")
        if " 200 " not in status:
            raise ConnectionRefusedError(status)
        lengths = [f.split(":", 1)[1] for f in fields if f.lower().startswith("content-length:")]
        self._size = len(head) + 4 + int(lengths[0])
        missing = self._size - len(answer)
        if missing:
            done = asyncio.get_running_loop().create_future()
            received = bytearray()

            def collect(data: bytes) -> None:
                received.extend(data)
                if len(received) >= missing and not done.done():
                    done.set_result(None)

            self._connection.on_data = collect
            await done

    def begin(self) -> None:
        self._connection.on_data = self._received
        self._connection.on_lost = self._lost
        self._next()

    def end(self) -> None:
        self._connection.on_lost = None
        self._connection.transport.abort()

    def _next(self) -> None:
        self._missing = self._size
        self._sent_at = time.perf_counter()
        self._connection.transport.write(self._request)

    def _received(self, data: bytes) -> None:
        self._missing -= len(data)
        if self._missing <= 0:
            self.count += 1
            self.times_us.append((time.perf_counter() - self._sent_at) * 1e6)
            self._next()

    def _lost(self) -> None:
        self.ended = True


class _Downloader(_Requester):
    """Counts bytes; asks again when a body is whole."""

    def begin(self) -> None:
        self._size = _DOWNLOAD_BYTES
        super().begin()

    def _received(self, data: bytes) -> None:
        self.count += len(data)
        self._missing -= len(data)
        if self._missing <= 0:
            self._next()


async def _connected(way: Way, connections: int) -> list[_Connection]:
    return await asyncio.gather(*(_bounded(connect(way)) for _ in range(connections)))


def _get(way: Way, path: str) -> bytes:
    return f"GET {path} HTTP/1.1\r\nHost: {way.host}:{way.port}\r\n\r\n".encode()


async def _bounded(awaitable):
    return await asyncio.wait_for(awaitable, _SETUP_S)


def _sample(
    operations: float, seconds: float, cpu: float, times: list[float], errors: int
) -> Sample:
    times.sort()
    p50, p99 = (
        (times[len(times) // 2], times[len(times) * 99 // 100]) if times else (float("nan"),) * 2
    )
    return Sample(operations, seconds, cpu, p50, p99, errors)


def way_from(url: str, proxy: str | None = None, ca_file: str | None = None) -> Way:
    """Read a Way from an origin's URL and a proxy URL with credentials."""
    origin, through = urlsplit(url), urlsplit(proxy or "")
    tls = ssl.create_default_context(cafile=ca_file) if origin.scheme == "https" else None
    authorization = None
    if through.username is not None:
        plain = f"{unquote(through.username)}:{unquote(through.password or '')}"
        authorization = "Basic " + base64.b64encode(plain.encode()).decode()
    return Way(
        origin.hostname or "127.0.0.1",
        origin.port or (443 if tls else 80),
        (through.hostname, through.port) if through.hostname and through.port else None,
        authorization,
        tls,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("kind", choices=KINDS)
    parser.add_argument("url", help="the origin, http or https")
    parser.add_argument("--proxy", help="http://USER:PASSWORD@HOST:PORT; none: direct")
    parser.add_argument(
        "--ca", help="PEM file that the origin's (or intercepted) TLS is checked by"
    )
    parser.add_argument("--connections", type=int, default=32)
    parser.add_argument("--seconds", type=float, default=2.0)
    arguments = parser.parse_args()
    way = way_from(arguments.url, arguments.proxy, arguments.ca)
    sample = uvloop.run(_measure_until_terminated(way, arguments))
    print(json.dumps({**asdict(sample), "rate": sample.rate}))


async def _measure_until_terminated(way: Way, arguments: argparse.Namespace) -> Sample:
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    connections, seconds = arguments.connections, arguments.seconds
    return await measure(arguments.kind, way, connections, seconds, _announced, stop)


def _announced() -> float:
    # Read as the clock starts and stops: who started us wants to know when.
    print(CLOCK, file=sys.stderr, flush=True)
    return 0.0


if __name__ == "__main__":
    main()
