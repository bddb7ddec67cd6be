"""The front door: every client connection enters here with one request head.

Rule 1: who it is, then whether it may, then whereto; nothing is resolved or dialled before the first two.
Rule 2: a connection is registered in the same step in which it was let through.
Rule 3: after a refusal nothing of that connection is read as a request any more (but a challenge may be answered).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import cast

from haltwire.wire.refusals import Refusal

from haltwire_proxy import sever
from haltwire_proxy.agent_api import HOST as AGENT_API_HOST
from haltwire_proxy.agent_api import AgentApi
from haltwire_proxy.clienthello import Greeting
from haltwire_proxy.connections import Connection
from haltwire_proxy.destinations import Dialer, parse_authority
from haltwire_proxy.enforcer import Enforcer, HeldUpError, failed
from haltwire_proxy.head import END_OF_HEAD, MAX_HEAD_BYTES, Head, first_byte_fits, parse_head
from haltwire_proxy.identity import Identity, identify
from haltwire_proxy.inspector import Inspector
from haltwire_proxy.refuse import RefusalRate, response_bytes
from haltwire_proxy.transport import close_gracefully, raw_socket
from haltwire_proxy.tunnel import TunnelEnd

log = logging.getLogger(__name__)
HEAD_TIMEOUT_S = 30.0
LINGER_S = 2.0
"How long a refused client may go on sending before it is cut off: an early reset would eat our answer."
MAX_EARLY_BYTES = 64 * 1024
MAX_CHALLENGES = 3
ESTABLISHED = b"HTTP/1.1 200 Connection established\r\n\r\n"


@dataclass(slots=True)
class Services:
    """What every door needs; made once per worker."""

    enforcer: Enforcer
    dialer: Dialer
    inspector: Inspector
    agent_api: AgentApi
    tls: str
    tunnel_hosts: tuple[str, ...]
    rate: RefusalRate = field(default_factory=RefusalRate)
    doors: set[Door] = field(default_factory=set)
    closed: bool = False
    "Whether this worker stops: what was accepted a moment ago is not served any more."

    def intercepts(self, identity: Identity, host: str) -> bool:
        """Whether this agent's traffic to this host is read inside TLS."""
        if any(fnmatchcase(host, pattern) for pattern in self.tunnel_hosts):
            return False
        return (identity.tls or self.tls) == "intercept"


class Door(asyncio.Protocol):
    """One client connection until it is spliced, handed over or refused."""

    written = 0

    def __init__(self, services: Services) -> None:
        self._services = services
        self._transport: asyncio.Transport | None = None
        self._buffer = bytearray()
        self._on_data: Callable[[], None] | None = self._read_head
        self._is_head = False
        self._challenges = 0
        self._timer: asyncio.TimerHandle | None = None
        self._task: asyncio.Task[None] | None = None
        self._connection: Connection | None = None
        self._peer = ""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """A client has connected."""
        self._transport = cast("asyncio.Transport", transport)
        # A client that has reset the connection already has no name any more under uvloop.
        peer = transport.get_extra_info("peername")
        if self._services.closed or not peer:
            self._on_data = None
            self._transport.abort()
            return
        sever.arm(raw_socket(transport))
        self._peer = peer[0]
        self._services.doors.add(self)
        self._wait(HEAD_TIMEOUT_S)

    def data_received(self, data: bytes) -> None:
        """Bytes of a head, or early bytes behind one."""
        if self._on_data is None:
            return
        self._buffer += data
        try:
            self._on_data()
        except Exception:
            log.exception("the door failed")
            self._refuse(failed())

    def eof_received(self) -> bool:
        """A client that stops sending before its request is served wants nothing more."""
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        """The client has gone."""
        self._transport = None
        self._stop_waiting()
        self._services.doors.discard(self)
        if self._task is not None:
            self._task.cancel()
        if self._connection is not None:
            self._services.enforcer.connections.forget(self._connection)

    # One side of a registered connection, until a tunnel end takes over (see connections.Side).

    def fileno(self) -> int:
        """The descriptor, -1 when closed."""
        return -1 if self._transport is None else raw_socket(self._transport).fileno()

    def unwritten(self) -> int:
        """Bytes in our own buffer."""
        return 0 if self._transport is None else self._transport.get_write_buffer_size()

    def abort(self) -> None:
        """Close now."""
        if self._transport is not None:
            self._transport.abort()

    def freeze(self) -> None:
        """Nothing: what waits here has no upstream, and its client may give up."""

    thaw = freeze

    def _read_head(self) -> None:
        if not first_byte_fits(self._buffer):
            return self._refuse(
                Refusal(
                    "malformed_request", "This port speaks HTTP/1.1 as a proxy; that was not HTTP."
                )
            )
        end = self._buffer.find(END_OF_HEAD)
        if end < 0 and len(self._buffer) <= MAX_HEAD_BYTES:
            return None
        if end < 0 or end > MAX_HEAD_BYTES:
            return self._refuse(
                Refusal("headers_too_large", "The request head is larger than 64 KiB.")
            )
        raw = bytes(self._buffer[: end + len(END_OF_HEAD)])
        try:
            head = parse_head(raw)
        except ValueError as error:
            return self._refuse(Refusal("malformed_request", f"{error}."))
        del self._buffer[: len(raw)]
        self._stop_waiting()
        return self._admit(head, raw)

    def _admit(self, head: Head, raw: bytes) -> None:
        services = self._services
        self._is_head = head.method == "HEAD"
        tokens = services.enforcer.tokens
        if tokens is None:
            return self._refuse(
                Refusal("enforcement_unknown", "The proxy has no word yet on who may pass.")
            )
        identity = identify(head.headers, tokens, self._peer)
        if isinstance(identity, Refusal):
            return self._reject(identity, head)
        connect = head.method == "CONNECT"
        try:
            host, port = _destination(head.target, connect=connect)
        except ValueError as error:
            return self._refuse(Refusal("malformed_request", f"{error}."), identity)
        if host == AGENT_API_HOST:
            return self._serve_agent_api(raw, identity, port, connect=connect)
        decision = services.enforcer.decide(identity)
        inspect = not connect or services.intercepts(identity, host)
        if isinstance(decision, Refusal):
            inside = connect and inspect and decision.kill is not None
            if not inside or services.rate.exceeded(identity.agent):
                return self._refuse(decision, identity)
        elif connect and inspect:
            # Before our 200: behind it, a protocol that is not HTTP could only be cut off.
            denied = services.dialer.rules.check_name(host, port, connect=True)
            if denied is not None:
                return self._refuse(denied, identity)
        connection = services.enforcer.connections.register(
            identity, "inspected" if connect else "plain", host, self
        )
        self._connection = connection
        if inspect:
            return self._hand_over(connection, (host, port) if connect else None, raw)
        connection.kind = "tunnel"
        self._on_data = self._hold_early
        self._hold_early()
        loop = asyncio.get_running_loop()
        self._task = loop.create_task(self._open(connection, host, port), name=f"dial {host}")
        connection.tasks.append(self._task)
        return None

    def _hand_over(
        self, connection: Connection, destination: tuple[str, int] | None, raw: bytes
    ) -> None:
        transport = self._transport
        assert transport is not None
        self._on_data = None
        self._services.doors.discard(self)
        early = bytes(self._buffer) if destination else raw + bytes(self._buffer)
        self._buffer.clear()
        self._connection = None
        if destination:
            transport.write(ESTABLISHED)
        try:
            self._services.inspector.adopt(transport, connection, destination, early)
        except Exception:
            # Nobody knows whose the transport is now: it ends, and with it what was registered.
            log.exception("a connection could not be handed over")
            self._services.enforcer.connections.cut([connection])

    def _hold_early(self) -> None:
        # Nothing goes upstream before our 200; what the client sends ahead of it waits, bounded.
        if len(self._buffer) > MAX_EARLY_BYTES and self._transport is not None:
            self._transport.pause_reading()

    async def _open(self, connection: Connection, host: str, port: int) -> None:
        # What a hold interrupts is begun anew: nothing has gone to the upstream yet.
        try:
            while self._connection is connection:
                refusal = await self._services.enforcer.admission(connection)
                if refusal is None:
                    with contextlib.suppress(HeldUpError):
                        refusal = await self._dial(connection, host, port)
                if refusal is not None:
                    self._refuse(refusal, connection.identity)
        except Exception:
            log.exception("a tunnel could not be opened")
            self._refuse(failed(), connection.identity)

    async def _dial(self, connection: Connection, host: str, port: int) -> Refusal | None:
        services = self._services
        enforcer = services.enforcer

        def ended() -> None:
            enforcer.connections.forget(connection)

        def opened() -> None:
            self._join(connection, up, down)

        greeting = Greeting(host)
        up = TunnelEnd(
            enforcer, connection, upward=False, greeting=greeting, ended=ended, opened=opened
        )
        down = TunnelEnd(enforcer, connection, upward=True, greeting=greeting, ended=ended)
        up.peer, down.peer = down, up
        dialling = services.dialer.dial(host, port, connection.identity.agent, up)
        dialled = await enforcer.undisturbed(connection, dialling)
        return dialled if isinstance(dialled, Refusal) else None

    def _join(self, connection: Connection, up: TunnelEnd, down: TunnelEnd) -> None:
        # Within the upstream's connection_made: nothing is read from it or sent to it before this.
        transport = self._transport
        if transport is None or transport.is_closing():
            up.abort()
            return
        decision = self._services.enforcer.decide(connection.identity)
        if decision is not None:
            up.abort()
            if isinstance(decision, Refusal):
                self._refuse(decision, connection.identity)
            return
        connection.tally.requests += 1
        connection.tally.tunnelled = True
        connection.upstreams.append(up)
        connection.tasks.clear()
        connection.dials.clear()
        self._transport = self._task = self._connection = None
        self._on_data = None
        self._services.doors.discard(self)
        transport.set_protocol(down)
        down.connection_made(transport)
        connection.client = down
        transport.write(ESTABLISHED)
        if self._buffer:
            early = bytes(self._buffer)
            self._buffer.clear()
            transport.resume_reading()  # first: a slow upstream may pause it with these very bytes
            down.data_received(early)

    def _serve_agent_api(self, raw: bytes, identity: Identity, port: int, *, connect: bool) -> None:
        if port != 80:
            return self._refuse(
                Refusal("destination_denied", f"Use http://{AGENT_API_HOST}/, without TLS."),
                identity,
            )
        transport = self._transport
        assert transport is not None
        self._on_data = None
        self._services.doors.discard(self)
        early = bytes(self._buffer) if connect else raw + bytes(self._buffer)
        self._buffer.clear()
        if connect:
            transport.write(ESTABLISHED)
        self._services.agent_api.adopt(transport, identity, early)
        return None

    def _reject(self, refusal: Refusal, head: Head) -> None:
        services = self._services
        if refusal.code != "proxy_credentials_required":
            services.enforcer.tallies.mismatch(self._peer, refusal.code, refusal.agent_uri)
        # A client that waits for the challenge (git, Java, Chromium) answers it on this connection.
        answerable = refusal.status == 407 and not self._buffer and not head.has_body
        self._challenges += 1
        if not answerable or self._challenges > MAX_CHALLENGES or self._transport is None:
            return self._refuse(refusal)
        self._transport.write(response_bytes(refusal, close=False, head=self._is_head))
        return self._wait(HEAD_TIMEOUT_S)

    def _refuse(self, refusal: Refusal, identity: Identity | None = None) -> None:
        """Answer, read nothing more as a request, and close."""
        if identity is not None:
            tally = self._services.enforcer.tallies.seen(
                identity.agent, identity.instance, self._services.enforcer.now()
            )
            tally.refused += 1
        if self._connection is not None:
            connections = self._services.enforcer.connections
            connections.thaw([self._connection])  # it has been held, but not given up
            connections.forget(self._connection)
            self._connection = None
        self._on_data = None
        self._buffer.clear()
        transport = self._transport
        if transport is None or transport.is_closing():
            return
        transport.write(response_bytes(refusal, close=True, head=self._is_head))
        sever.disarm(raw_socket(transport))
        transport.resume_reading()
        with contextlib.suppress(OSError):  # the client has reset it
            transport.write_eof()
        self._stop_waiting()
        self._timer = asyncio.get_running_loop().call_later(LINGER_S, self._end)

    def _wait(self, seconds: float) -> None:
        self._stop_waiting()
        self._timer = asyncio.get_running_loop().call_later(seconds, self._end)

    def _stop_waiting(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _end(self) -> None:
        if self._transport is not None:
            close_gracefully(self._transport)


def _destination(target: bytes, *, connect: bool) -> tuple[str, int]:
    if connect:
        return parse_authority(target, None)
    scheme, separator, rest = target.partition(b"://")
    if not separator:
        raise ValueError("a proxy needs the whole URL in the request line")
    if scheme.lower() != b"http":
        raise ValueError("only http:// URLs are requested in the open; use CONNECT for https://")
    authority = rest
    for end in (b"/", b"?", b"#"):
        authority = authority.partition(end)[0]
    return parse_authority(authority, 80)
