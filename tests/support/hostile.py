"""The ways in which an agent can put bytes of its own making before an upstream, through one `haltwire up`."""

from __future__ import annotations

import asyncio
import json
import ssl
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from urllib.parse import urlsplit

import h2.config
import h2.connection
import h2.events

from support.client import Wire, tls_tunnel, tunnel
from support.strict import StrictOrigin
from support.system import System
from support.world import basic

WAYS = ("first", "later", "clear", "inside")
"""Where a request stands: the first one at the door, a later one on that connection, and inside an
intercepted tunnel without and with TLS."""


@dataclass(frozen=True)
class Agent:
    """One agent's credentials."""

    system: System
    label: str
    secret: str

    @classmethod
    async def made(cls, system: System, name: str, tls: str = "intercept") -> Agent:
        url = urlsplit(await system.token(f"agent://acme/hostile/{name}", tls))
        return cls(system, url.username, url.password)

    @property
    def header(self) -> str:
        return f"Proxy-Authorization: {basic(self.label, self.secret)}"

    async def counted(self, name: str, expected: int, timeout: float = 5) -> None:
        """Return when the control server has been told that many `requests` or `refused`."""
        uri = "agent%3A%2F%2F" + self.label.replace(".", "%2F")
        async with asyncio.timeout(timeout):
            while True:
                _, found = await self.system.api("GET", f"/v1/mesh/agents/{uri}")
                instances = found.get("agent", {}).get("instances_detail", ())
                if sum(one[name] for one in instances) == expected:
                    return
                await asyncio.sleep(0.05)


class Stage:
    """An agent, an origin with TLS and one without, and a wire to either for each way."""

    def __init__(self, agent: Agent, plain: StrictOrigin, tls: StrictOrigin) -> None:
        self.agent, self.plain, self.tls = agent, plain, tls

    def origin(self, way: str) -> StrictOrigin:
        return self.tls if way in ("inside", "h2") else self.plain

    async def wire(self, way: str) -> Wire:
        """A connection on which the next bytes are the request's."""
        agent, host = self.agent, self.origin(way).host
        port = agent.system.port
        if way == "inside":
            return await tls_tunnel(port, host, agent.label, agent.secret, agent.system.ca_file)
        if way == "clear":
            return await tunnel(port, host, agent.label, agent.secret)
        wire = await Wire.open(port)
        if way == "later":
            first = await wire.request("GET", f"http://{host}/first", f"Host: {host}", agent.header)
            assert first.status == 200
        return wire

    def filled(self, way: str, raw: bytes) -> bytes:
        """The request for this way: {T} stands before the path; {S} the scheme, {H} the host, {A} the credentials."""
        host = self.origin(way).host
        outside = way in ("first", "later")
        target = f"http://{host}" if outside else ""
        credentials = f"{self.agent.header}\r\n" if outside else ""
        return (
            raw.replace(b"{T}", target.encode())
            .replace(b"{S}", b"https" if way == "inside" else b"http")
            .replace(b"{H}", host.encode())
            .replace(b"{A}", credentials.encode())
        )

    def arrived(self, way: str) -> list:
        """What the origin has read as requests, but for the one that opened the way."""
        return [one for one in self.origin(way).requests if one.target != "/first"]


@asynccontextmanager
async def staged(system: System, authority, name: str):
    """A stage for one test, with an agent of its own."""
    context = authority.server_context("localhost")
    async with StrictOrigin() as plain, StrictOrigin(context) as tls:
        yield Stage(await Agent.made(system, name), plain, tls)


@dataclass
class Said:
    """What a client was told, to the end of its connection."""

    raw: bytes

    @property
    def statuses(self) -> list[int]:
        heads = self.raw.split(b"HTTP/1.1 ")[1:]
        return [int(head[:3]) for head in heads if head[:4].endswith(b" ")]

    @property
    def codes(self) -> list[str]:
        """The codes of all refusals in it."""
        found = []
        for line in self.raw.split(b"\n"):
            with suppress(ValueError):
                document = json.loads(line)
                found.append(document["error"])
        return found


async def hear(wire: Wire, timeout: float = 8) -> Said:
    """All that comes until the proxy ends the connection; TimeoutError when it does not."""
    return Said(await wire.ended(timeout))


class RawHttp2:
    """An HTTP/2 client that sends any header list, inside an intercepted tunnel."""

    def __init__(self, wire: Wire) -> None:
        self.wire = wire
        self.connection = h2.connection.H2Connection(
            h2.config.H2Configuration(
                validate_outbound_headers=False,
                normalize_outbound_headers=False,
                validate_inbound_headers=False,
                header_encoding=False,
            )
        )
        self.connection.initiate_connection()
        self.statuses: dict[int, int] = {}
        self.bodies: dict[int, bytes] = {}
        self.resets: dict[int, int] = {}
        self.trailers: dict[int, list] = {}
        self.done: set[int] = set()
        self.goaway: int | None = None
        self.ended = False

    @classmethod
    async def open(cls, stage: Stage) -> RawHttp2:
        agent = stage.agent
        wire = await tls_tunnel(
            agent.system.port,
            stage.tls.host,
            agent.label,
            agent.secret,
            agent.system.ca_file,
            alpn=("h2",),
        )
        return cls(wire)

    async def send(
        self, headers: list[tuple[bytes, bytes]], body: bytes | None = None, number: int = 1
    ) -> None:
        self.connection.send_headers(number, headers, end_stream=body is None)
        if body is not None:
            self.connection.send_data(number, body, end_stream=True)
        await self.flush()

    async def flush(self) -> None:
        await self.wire.send(self.connection.data_to_send())

    async def settled(self, *numbers: int, timeout: float = 5) -> None:
        """Return when these streams have ended, one way or another."""
        async with asyncio.timeout(timeout):
            while not (self.ended or self.goaway is not None or set(numbers) <= self.done):
                try:
                    data = await self.wire.reader.read(65536)
                except (ConnectionError, ssl.SSLError):
                    data = b""
                if not data:
                    self.ended = True
                    return
                for event in self.connection.receive_data(data):
                    self._note(event)
                with suppress(ConnectionError, ssl.SSLError):
                    await self.flush()

    def codes(self, number: int = 1) -> list[str]:
        return Said(self.bodies.get(number, b"")).codes

    def _note(self, event: h2.events.Event) -> None:
        if isinstance(event, h2.events.ResponseReceived):
            self.statuses[event.stream_id] = int(dict(event.headers)[b":status"])
        elif isinstance(event, h2.events.DataReceived):
            kept = self.bodies.get(event.stream_id, b"")
            self.bodies[event.stream_id] = kept + event.data
        elif isinstance(event, h2.events.TrailersReceived):
            self.trailers[event.stream_id] = event.headers
        elif isinstance(event, h2.events.StreamReset):
            self.resets[event.stream_id] = event.error_code
            self.done.add(event.stream_id)
        elif isinstance(event, h2.events.StreamEnded):
            self.done.add(event.stream_id)
        elif isinstance(event, h2.events.ConnectionTerminated):
            self.goaway = event.error_code
