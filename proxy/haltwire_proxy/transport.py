"""The sockets under mitmproxy: every forwarding write asks for the lease and is counted, and any can freeze.

Frozen, a socket is read no more and gives nothing of what has been read; what is to be written waits in order.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from collections.abc import Callable
from typing import Any, cast

from haltwire_proxy import sever
from haltwire_proxy.connections import Connection
from haltwire_proxy.enforcer import Enforcer
from haltwire_proxy.outlet import Outlet

HIGH_WATER = 64 * 1024
"Bytes that we buffer for a slow reader before we stop reading for it."


def raw_socket(transport: asyncio.BaseTransport) -> socket.socket:
    """The transport's socket, for options and its descriptor; never for reading or writing."""
    return cast("socket.socket", transport.get_extra_info("socket"))


def close_gracefully(transport: asyncio.Transport) -> None:
    """Close, but let what is queued arrive."""
    if not transport.is_closing():
        sever.disarm(raw_socket(transport))
        transport.close()


class _Reading(asyncio.ReadTransport):
    """A transport's reading: it stops for each who wants it stopped and goes on when nobody does.

    A StreamReader that has been full goes on reading by itself, frozen or not.
    """

    def __init__(self, transport: asyncio.ReadTransport) -> None:
        super().__init__()
        self._transport = transport
        self._full = self._frozen = False

    def pause_reading(self) -> None:
        """The stream reader is full."""
        self._set(full=True, frozen=self._frozen)

    def resume_reading(self) -> None:
        """The stream reader has room again."""
        self._set(full=False, frozen=self._frozen)

    def freeze(self, frozen: bool) -> None:
        """The connection stands still, or goes on."""
        self._set(full=self._full, frozen=frozen)

    def _set(self, *, full: bool, frozen: bool) -> None:
        self._full, self._frozen = full, frozen
        if self._transport.is_closing():
            return
        if full or frozen:
            self._transport.pause_reading()
        else:
            self._transport.resume_reading()


class GatedReader(asyncio.StreamReader):
    """A stream reader that gives nothing while it is frozen: neither what it has read nor an end."""

    _reading: _Reading | None = None
    _thawed: asyncio.Event | None = None
    "Set when the freeze ends; None when there is none."

    def set_transport(self, transport: asyncio.BaseTransport) -> None:
        """Theirs, behind what can hold it back."""
        self._reading = _Reading(cast("asyncio.ReadTransport", transport))
        super().set_transport(self._reading)

    def freeze(self) -> None:
        """Idempotent, as is `thaw`."""
        if self._thawed is None:
            self._thawed = asyncio.Event()
            if self._reading is not None:
                self._reading.freeze(True)

    def thaw(self) -> None:
        """Go on where it stood."""
        if self._thawed is not None:
            self._thawed.set()
            self._thawed = None
            if self._reading is not None:
                self._reading.freeze(False)

    async def until_thawed(self) -> None:
        """Return when it is not frozen."""
        while self._thawed is not None:
            await self._thawed.wait()

    async def read(self, n: int = -1) -> bytes:
        """Their method, once it is not frozen."""
        failure = None
        try:
            data = await super().read(n)
        except OSError as error:
            data, failure = b"", error
        await self.until_thawed()
        if failure is not None:
            raise failure
        return data


def _nothing() -> None:
    """What is called when nobody wants to hear of it."""


class StreamProtocol(asyncio.StreamReaderProtocol):
    """A stream protocol that knows whether its descriptor is still its own."""

    lost = False
    broken = False
    "Lost by a reset or another error."
    on_lost: Callable[[], None] = staticmethod(_nothing)
    outlet: Outlet | None = None
    "Of an upstream's socket."
    on_drained: Callable[[], None] = staticmethod(_nothing)
    "Called when nothing waits in the outlet any more."

    def pause_writing(self) -> None:
        """There is no room; idempotent, since an outlet may find that out anew before it has resumed."""
        if not self._paused:  # type: ignore[attr-defined]
            super().pause_writing()

    def resume_writing(self) -> None:
        """There is room, for what waits in the outlet first."""
        if self.outlet is not None:
            self.outlet.go_on()
            if self.outlet.size:
                return
            self.on_drained()
        if self._paused:  # type: ignore[attr-defined]
            super().resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        """The descriptor is about to be closed and may then name another socket."""
        self.lost = True
        self.broken = self.broken or exc is not None
        self.outlet, self.on_drained = None, _nothing
        super().connection_lost(exc)
        self.on_lost()


class GatedWriter(asyncio.StreamWriter):
    """A stream writer for mitmproxy that asks for the lease before each write and counts.

    One side of a connection (see connections.Side): it freezes with its reader.
    """

    def __init__(
        self,
        transport: asyncio.Transport,
        protocol: StreamProtocol,
        reader: GatedReader,
        enforcer: Enforcer,
        connection: Connection,
        *,
        upward: bool,
    ) -> None:
        super().__init__(transport, protocol, reader, asyncio.get_running_loop())
        self.written = 0
        self._enforcer = enforcer
        self._connection = connection
        self._upward = upward
        self._socket = raw_socket(transport)
        self._stream = protocol
        self._source = reader
        self._frozen = False
        self._kept: list[bytes] = []
        "What was written while frozen."
        self._ends = self._closes = False
        "Whether an end of our direction, or of all, is to follow what is kept."
        self._outlet: Outlet | None = None
        if upward:
            self._outlet = Outlet(transport, self._socket.fileno(), enforcer.may_pass)
            protocol.outlet, protocol.on_drained = self._outlet, self._end_drained
        else:
            transport.set_write_buffer_limits(high=HIGH_WATER)

    def write(self, data: Any) -> None:
        """Pass it on, if the connection lives; keep it while frozen, as it is beyond the lease."""
        stands = self._stands()
        if self._connection.severed:
            return
        self.written += len(data)
        if stands:
            self._kept.append(bytes(data))
        else:
            self._pass(data)

    def write_eof(self) -> None:
        """End our direction, behind what is kept."""
        if self._stands() or (self._outlet is not None and self._outlet.size):
            self._ends = True
        else:
            super().write_eof()

    async def drain(self) -> None:
        """Their method, once it is not frozen."""
        await self._source.until_thawed()
        await super().drain()

    def freeze(self) -> None:
        """Read nothing more, and keep what is to be written. Idempotent."""
        self._frozen = True
        self._source.freeze()

    def thaw(self) -> None:
        """Write what was kept, in its order, and read again. Idempotent."""
        self._frozen = False
        if self._outlet is not None and self._outlet.size:
            self._stream.resume_writing()
        kept, self._kept = self._kept, []
        for number, data in enumerate(kept):
            if self._stands():
                self._kept = kept[number:]
                return
            if self.transport.is_closing() or self._connection.severed:
                break
            self._pass(data)
        if self._outlet is None or not self._outlet.size:
            self._end_drained()
        if self._closes:
            self.close()
        self._source.thaw()

    def _end_drained(self) -> None:
        if self._ends and not self._kept and not self.transport.is_closing():
            self._ends = False
            with contextlib.suppress(OSError):  # the peer has reset it, as it will tell our reader
                super().write_eof()

    def when_lost(self, call: Callable[[], None]) -> None:
        """Have this called as soon as the socket has ended, whoever ended it."""
        self._stream.on_lost = call

    async def settled(self) -> None:
        """Return when nothing is kept that is to go out yet before a close."""
        while self._kept and not self._stream.lost:
            await self._source.until_thawed()

    def is_closing(self) -> bool:
        """Whether nothing more can be written."""
        return self._closes or super().is_closing()

    def close(self) -> None:
        """Close. A client still gets what is queued; an upstream whose request was not taken whole is reset."""
        if self._connection.severed or (self._upward and self._holds_bytes()):
            self.abort()
        elif self._kept:
            self._closes = True
        elif not self.transport.is_closing():
            sever.disarm(self._socket)
            super().close()

    @property
    def broken(self) -> bool:
        """Whether the socket ended with an error, or by our own doing."""
        return self._stream.broken

    def fileno(self) -> int:
        """The descriptor, -1 when closed."""
        return -1 if self._stream.lost else self._socket.fileno()

    def unwritten(self) -> int:
        """Bytes in our own buffers: the transport's, and what is kept."""
        transport = cast("asyncio.Transport", self.transport)
        waiting = 0 if self._outlet is None else self._outlet.size
        return waiting + transport.get_write_buffer_size() + sum(map(len, self._kept))

    def abort(self) -> None:
        """Close now; what is buffered is dropped."""
        self._kept.clear()
        if self._outlet is not None:
            self._outlet.clear()
        self._stream.broken = True
        self.transport.abort()

    def _stands(self) -> bool:
        """Whether nothing may leave here now. Asks for the lease, whose end freezes or cuts what lives.

        Of a client of which nothing is under way the lease's end stops only what is being written when it is
        found out. What else is written to such a one is our own: TLS, refusals, the agent API's answers.
        """
        if self._frozen or self._connection.severed:
            return self._frozen
        stood = self._connection.frozen
        if self._enforcer.may_pass() or self._connection.severed:
            return False
        if self._upward or (self._connection.frozen and not stood):
            self.freeze()
        return self._frozen

    def _pass(self, data: Any) -> None:
        size = len(data)
        tally = self._connection.tally
        if self._upward:
            self._connection.bytes_up += size
            tally.bytes_up += size
        else:
            self._connection.bytes_down += size
            tally.bytes_down += size
        tally.last_byte_at = time.time()
        if not tally.changed:
            self._enforcer.tallies.touch(tally)
        if self._outlet is None:
            super().write(data)
        else:
            self._outlet.write(data)

    def _holds_bytes(self) -> bool:
        return self.unwritten() > 0 or sever.holds_bytes(self.fileno())


def adopt_stream(
    transport: asyncio.Transport,
    enforcer: Enforcer,
    connection: Connection,
    early: bytes,
) -> tuple[GatedReader, GatedWriter]:
    """Turn a live client transport into a stream pair; `early` is what has been read of it."""
    loop = asyncio.get_running_loop()
    reader = GatedReader(limit=HIGH_WATER, loop=loop)
    protocol = StreamProtocol(reader, loop=loop)
    transport.set_protocol(protocol)
    protocol.connection_made(transport)
    if early:
        reader.feed_data(early)
    return reader, GatedWriter(transport, protocol, reader, enforcer, connection, upward=False)
