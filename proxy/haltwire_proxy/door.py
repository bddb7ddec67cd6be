"""The front door: every client connection enters here with one request head.

Rule 1: who it is, then whether it may, then whereto; nothing is resolved or dialled before the first two.
Rule 2: a connection is registered in the same step in which it was let through.
Rule 3: after a refusal nothing of that connection is read as a request any more (but a challenge may be answered).
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from typing import cast

from haltwire.wire.refusals import Refusal

from haltwire_proxy import overload, sever
from haltwire_proxy.admission import Admitted, Turned, admit
from haltwire_proxy.agent_api import HOST as AGENT_API_HOST
from haltwire_proxy.clienthello import Greeting
from haltwire_proxy.connections import Connection
from haltwire_proxy.enforcer import HeldUpError, failed
from haltwire_proxy.faults import FailClosed
from haltwire_proxy.head import END_OF_HEAD, Head, end_of_head, first_byte_fits, parse_head
from haltwire_proxy.identity import Identity
from haltwire_proxy.refuse import response_bytes
from haltwire_proxy.services import Services
from haltwire_proxy.tls_door import upgrade
from haltwire_proxy.transport import close_gracefully, raw_socket
from haltwire_proxy.tunnel import TunnelEnd

LINGER_S = 2.0
"How long a refused client may go on sending before it is cut off: an early reset would eat our answer."
MAX_EARLY_BYTES = 64 * 1024
MAX_CHALLENGES = 3
ESTABLISHED = b"HTTP/1.1 200 Connection established\r\n\r\n"


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
        self._caller: Admitted | None = None
        "Whose call is read next, behind a CONNECT to the agent API."
        self._peer = ""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """A client has connected."""
        self._transport = cast("asyncio.Transport", transport)
        with FailClosed("a connection could not be begun", self._transport.abort):
            # A client that has reset the connection already has no name any more under uvloop.
            peer = transport.get_extra_info("peername")
            if self._services.closed or not peer:
                self._on_data = None
                self._transport.abort()
                return
            sever.arm(raw_socket(transport))
            self._peer = peer[0]
            self._services.doors.add(self)
            self._wait(self._services.enforcer.limits.head_s)
            if not self._services.overload.lobby.enter(self, self._peer, self.fileno()):
                self._refuse(self._services.overload.refuse("connections"))
                self._end()

    def data_received(self, data: bytes) -> None:
        """Bytes of a head, or early bytes behind one."""
        if self._on_data is None:
            return
        self._buffer += data
        with FailClosed("the door failed", self._fail):
            self._on_data()

    def eof_received(self) -> bool:
        """A client that stops sending before its request is served wants nothing more."""
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        """The client has gone."""
        self._transport = None
        self._services.doors.discard(self)
        if self._task is not None:
            self._task.cancel()
        if self._connection is not None:
            self._services.enforcer.connections.forget(self._connection)
        self._services.overload.lobby.leave(self, self._peer)
        self._stop_waiting()

    def make_way(self, limit: str) -> None:
        """Nothing is known of this client, and others need the room (see lobby.Guest)."""
        if self._on_data is not None:
            self._refuse(self._services.overload.refuse(limit))
        self._end()

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
            assert self._transport is not None
            tls = None if self._caller else self._services.listener_tls
            encrypted = upgrade(self._transport, self, tls, self._buffer)
            if encrypted is not None:
                self._transport = encrypted
                return self._buffer.clear()
            return self._refuse(
                Refusal(
                    "malformed_request", "This port speaks HTTP/1.1 as a proxy; that was not HTTP."
                )
            )
        limits = self._services.enforcer.limits
        try:
            end = end_of_head(self._buffer)
        except ValueError as error:
            return self._refuse(Refusal("malformed_request", f"{error}."))
        if end < 0 and len(self._buffer) <= limits.head_bytes:
            return None
        if end < 0 or end > limits.head_bytes:
            return self._refuse(self._services.overload.refuse("head_bytes"))
        raw = bytes(self._buffer[: end + len(END_OF_HEAD)])
        try:
            head = parse_head(raw)
        except ValueError as error:
            return self._refuse(Refusal("malformed_request", f"{error}."))
        del self._buffer[: len(raw)]
        self._stop_waiting()
        self._is_head = head.method == "HEAD"
        if len(head.headers) > limits.head_fields:
            return self._refuse(self._services.overload.refuse("head_fields"))
        if self._caller is not None:
            return self._take_call(raw, self._caller)
        return self._admit(head, raw)

    def _admit(self, head: Head, raw: bytes) -> None:
        services = self._services
        asked = admit(services, head, self._peer)
        if isinstance(asked, Turned):
            if asked.of_credentials:
                return self._reject(asked.refusal, head)
            return self._refuse(asked.refusal, asked.identity)
        if asked.agent_api:
            return self._serve_agent_api(raw, asked)
        services.overload.lobby.leave(self, self._peer)
        host, port = asked.host, asked.port
        connection = services.enforcer.connections.register(
            asked.identity, "inspected" if asked.connect else "plain", host, self
        )
        self._connection = connection
        if asked.inspect:
            return self._hand_over(connection, (host, port) if asked.connect else None, raw)
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
        cut = self._services.enforcer.connections.cut
        # Nobody knows then whose the transport is: it ends, and with it what was registered.
        with FailClosed("a connection could not be handed over", lambda: cut([connection])):
            self._services.inspector.adopt(transport, connection, destination, early)

    def _hold_early(self) -> None:
        # Nothing goes upstream before our 200; what the client sends ahead of it waits, bounded.
        if len(self._buffer) > MAX_EARLY_BYTES and self._transport is not None:
            self._transport.pause_reading()

    async def _open(self, connection: Connection, host: str, port: int) -> None:
        # What a hold interrupts is begun anew: nothing has gone to the upstream yet.
        with FailClosed("a tunnel could not be opened", self._fail):
            while self._connection is connection:
                refusal = await self._services.enforcer.admission(connection)
                if refusal is None:
                    with contextlib.suppress(HeldUpError):
                        refusal = await self._dial(connection, host, port)
                if refusal is not None:
                    self._refuse(refusal, connection.identity)

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
        decision = decision or overload.upstream(self._services.enforcer, up.fileno())
        if decision is not None:
            up.abort()
            if isinstance(decision, Refusal):
                self._refuse(decision, connection.identity)
            return
        connection.tally.requests += 1
        self._services.enforcer.tallies.count("requests")
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

    def _serve_agent_api(self, raw: bytes, asked: Admitted) -> None:
        if asked.port != 80:
            return self._refuse(
                Refusal("destination_denied", f"Use http://{AGENT_API_HOST}/, without TLS."),
                asked.identity,
            )
        if not asked.connect:
            return self._take_call(raw, asked)
        # What is inside has to be a head like any other, within the same bounds.
        self._caller = asked
        assert self._transport is not None
        self._transport.write(ESTABLISHED)
        self._wait(self._services.enforcer.limits.head_s)
        return self._read_head() if self._buffer else None

    def _take_call(self, raw: bytes, asked: Admitted) -> None:
        identity = asked.identity
        too_many = self._services.overload.call(identity)
        if too_many is not None:
            return self._refuse(too_many, identity)
        transport = self._transport
        assert transport is not None
        self._on_data = None
        self._services.doors.discard(self)
        self._services.overload.lobby.leave(self, self._peer)
        early = raw + bytes(self._buffer)
        self._buffer.clear()
        self._services.agent_api.adopt(transport, identity, early)
        return None

    def _reject(self, refusal: Refusal, head: Head) -> None:
        # A client that waits for the challenge (git, Java, Chromium) answers it on this connection.
        answerable = refusal.status == 407 and not self._buffer and not head.has_body
        self._challenges += 1
        is_last = not answerable or self._challenges > MAX_CHALLENGES
        if refusal.code == "proxy_credentials_required":
            return self._answer_rejected(refusal, is_last=is_last)
        services, loop = self._services, asyncio.get_running_loop()
        services.enforcer.tallies.mismatch(self._peer, refusal.code, refusal.agent_uri)
        delay_s = services.guesses.failed(self._peer, loop.time())
        if delay_s is None:
            return self.abort()
        if delay_s == 0.0:
            return self._answer_rejected(refusal, is_last=is_last)
        self._on_data = self._hold_early
        loop.call_later(delay_s, self._answer_late, refusal, is_last)
        return None

    def _answer_late(self, refusal: Refusal, is_last: bool) -> None:
        with FailClosed("a late answer failed", self._fail):
            self._services.guesses.answered(self._peer)
            self._on_data = self._read_head
            # What came meanwhile stands behind what was refused: it is never read as a request.
            self._answer_rejected(refusal, is_last=is_last or bool(self._buffer))

    def _answer_rejected(self, refusal: Refusal, *, is_last: bool) -> None:
        if is_last or self._transport is None:
            return self._refuse(refusal)
        enforcer = self._services.enforcer
        enforcer.tallies.count(f"refused.{refusal.code}")
        self._transport.write(response_bytes(refusal, close=False, head=self._is_head))
        return self._wait(enforcer.limits.head_s)

    def _refuse(self, refusal: Refusal, identity: Identity | None = None) -> None:
        """Answer, read nothing more as a request, and close."""
        if identity is not None:
            enforcer = self._services.enforcer
            enforcer.tallies.refused(
                identity.token_id, identity.agent, identity.instance, enforcer.now()
            )
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
        self._services.enforcer.tallies.count(f"refused.{refusal.code}")
        self._services.overload.lobby.wait(self, self._peer)
        transport.write(response_bytes(refusal, close=True, head=self._is_head))
        sever.disarm(raw_socket(transport))
        transport.resume_reading()
        with contextlib.suppress(OSError):  # the client has reset it
            transport.write_eof()
        self._stop_waiting()
        self._timer = asyncio.get_running_loop().call_later(LINGER_S, self._end)

    def _fail(self) -> None:
        with FailClosed("a fault could not be answered", self._drop):
            self._refuse(failed(), self._connection.identity if self._connection else None)

    def _drop(self) -> None:
        if self._connection is not None:
            self._services.enforcer.connections.cut([self._connection])
        self.abort()

    def _wait(self, seconds: float) -> None:
        self._stop_waiting()
        self._timer = asyncio.get_running_loop().call_later(seconds, self._give_up)

    def _give_up(self) -> None:
        too_slow = self._services.overload.refuse("head_s")
        if self._buffer:
            self._refuse(too_slow)
        else:
            self._end()  # nothing was asked

    def _stop_waiting(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _end(self) -> None:
        if self._transport is not None:
            close_gracefully(self._transport)
