"""A tunnel: two protocols that write to each other. Every forwarding write asks for the lease and is counted."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import cast

from haltwire.wire.refusals import Refusal

from haltwire_proxy import sever
from haltwire_proxy.clienthello import (
    DECODE_ERROR,
    NESTED_CONNECT,
    UNRECOGNIZED_NAME,
    Greeting,
)
from haltwire_proxy.connections import Connection
from haltwire_proxy.enforcer import Enforcer
from haltwire_proxy.outlet import Outlet
from haltwire_proxy.refuse import response_bytes
from haltwire_proxy.transport import HIGH_WATER, close_gracefully, raw_socket

HALF_CLOSED_S = 120.0
"How long, to a hundredth, a tunnel with one direction ended may be still: who has gone and who waits look alike."
DRAINED_S = 0.05
"How often an ended upstream is asked whether its peer has everything."
HELLO_S = 10.0
"How long a ClientHello that has begun may take; a frozen tunnel's may take longer."


class TunnelEnd(asyncio.Protocol):
    """One end of a tunnel; what it reads, its peer writes."""

    peer: TunnelEnd

    def __init__(
        self,
        enforcer: Enforcer,
        connection: Connection,
        *,
        upward: bool,
        greeting: Greeting,
        ended: Callable[[], None],
        opened: Callable[[], None] | None = None,
    ) -> None:
        self.written = 0
        self._enforcer = enforcer
        self._connection = connection
        self._upward = upward
        "Whether what is read here goes to the upstream."
        self._greeting: Greeting | None = greeting
        "Shared with our peer; None when there is nothing to judge any more."
        self._opened = opened
        "Called as soon as there is a transport, before it can read a byte."
        self._ended = ended
        "Called when both ends are lost: until then a kill must find them."
        self._transport: asyncio.Transport | None = None
        self._outlet: Outlet | None = None
        "Of the upstream's end: nothing of ours leaves for it without the lease."
        self._fd = -1
        self._eof = False
        self._ends = False
        "Whether an end of our direction is to follow what waits in the outlet."
        self._lost = False
        self._frozen = False
        self._outrun = False
        "Whether our peer's buffer is full."
        self._early = bytearray()
        "What a loop still delivered of a frozen socket."
        self._early_end = False
        "Whether it also delivered its end."
        self._stillness: asyncio.TimerHandle | None = None
        self._draining: asyncio.TimerHandle | None = None
        self._awaited: asyncio.TimerHandle | None = None
        "The end of our patience with a ClientHello."

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The upstream is connected, or the client's transport is taken over."""
        self._transport = cast("asyncio.Transport", transport)
        self._fd = raw_socket(transport).fileno()
        if self._upward:
            self._transport.set_write_buffer_limits(high=HIGH_WATER)
        else:
            self._outlet = Outlet(self._transport, self._fd, self._enforcer.may_pass)
        if self._connection.severed:
            self._transport.abort()
        elif self._opened is not None:
            opened, self._opened = self._opened, None
            opened()

    def data_received(self, data: bytes) -> None:
        """Pass it on, if the connection lives and the lease still holds."""
        if self._stands():
            self._early += data
            return
        if self._connection.severed:
            return
        if self._greeting is not None:
            data = self._judge(self._greeting, data)
            if not data:
                return
        self._pass(data)

    def _stands(self) -> bool:
        """Whether nothing may be passed on now. Asks for the lease, whose end freezes or cuts what lives."""
        if not self._frozen and not self._connection.severed and not self._enforcer.may_pass():
            self.freeze()
        return self._frozen and not self._connection.severed

    def _pass(self, data: bytes) -> None:
        size = len(data)
        connection, tally = self._connection, self._connection.tally
        if self._upward:
            connection.bytes_up += size
            tally.bytes_up += size
        else:
            connection.bytes_down += size
            tally.bytes_down += size
        tally.last_byte_at = time.time()
        if not tally.changed:
            self._enforcer.tallies.touch(tally)
        self.peer.write(data)

    def write(self, data: bytes) -> None:
        """Hand bytes to the kernel; what it does not take waits."""
        if self._transport is not None and not self._transport.is_closing():
            self.written += len(data)
            (self._outlet or self._transport).write(data)

    def eof_received(self) -> bool:
        """Pass the end on; close both when both have ended."""
        if self._stands():
            self._early_end = True
            return True
        self._eof = True
        if self._upward and self._greeting is not None and self._greeting.held:
            self._refuse(_UNFINISHED)
        elif self.peer._eof:
            self.close()
            self.peer.close()
        else:
            self.peer._write_eof()
            # Asking the kernel costs as much as a read, and most tunnels end within a second of this.
            loop = asyncio.get_running_loop()
            self._stillness = loop.call_later(HALF_CLOSED_S / 100, self._watch_stillness)
        return True

    def connection_lost(self, exc: Exception | None) -> None:
        """The other end goes too: with what is queued after an orderly end, at once otherwise."""
        self._fd = -1
        self._lost = True
        for timer in (self._stillness, self._draining, self._awaited):
            if timer is not None:
                timer.cancel()
        if exc is None and self._eof:
            self.peer.close()
        else:
            self.peer.abort()
        if self.peer._lost or self.peer._transport is None:
            self._ended()
        if self.peer._lost:
            # In circles, thousands of tunnels that end together would stop the collector for long.
            self._connection.upstreams.clear()
            del self._connection.client, self.peer.peer, self.peer

    def _judge(self, greeting: Greeting, data: bytes) -> bytes:
        """What of it may be passed on now."""
        if self._upward:
            judged = greeting.take(data)
            if isinstance(judged, Refusal):
                self._refuse(judged)
                return b""
            self._await_hello(greeting)
            data = judged
        else:
            greeting.answer(data)
            if greeting.done and greeting.held:
                self.peer.data_received(b"")
        if greeting.done:
            self._greeting = self.peer._greeting = None
        return data

    def _await_hello(self, greeting: Greeting) -> None:
        if not greeting.held:
            if self._awaited is not None:
                self._awaited.cancel()
                self._awaited = None
        elif self._awaited is None:
            loop = asyncio.get_running_loop()
            self._awaited = loop.call_later(HELLO_S, self._stop_awaiting, greeting)

    def _stop_awaiting(self, greeting: Greeting) -> None:
        self._awaited = None
        if self._connection.frozen:
            self._await_hello(greeting)
        elif greeting.held:
            self._refuse(_LATE)

    def _refuse(self, refusal: Refusal) -> None:
        """End the tunnel of which the client's greeting was not passed on, and say why in its own protocol."""
        connection, tallies = self._connection, self._enforcer.tallies
        connection.tally.refused += 1
        tallies.touch(connection.tally)
        transport = self._transport
        if transport is not None and not transport.is_closing():
            if refusal.code == "authority_mismatch":
                source = transport.get_extra_info("peername")
                agent = str(connection.identity.agent)
                tallies.mismatch(source[0] if source else "gone", refusal.code, agent)
            if not connection.bytes_down:
                transport.write(_answer(refusal))
            close_gracefully(transport)
        self.peer.abort()

    def pause_writing(self) -> None:
        """Our reader is slow: do not read for it."""
        self.peer._outrun = True
        self.peer._set_reading()

    def resume_writing(self) -> None:
        """Our reader has caught up."""
        if self._outlet is not None:
            self._outlet.go_on()
            if self._outlet.size:
                return
            if self._ends:
                self._write_eof()
        self.peer._outrun = False
        self.peer._set_reading()

    def freeze(self) -> None:
        """Read nothing more, so that nothing more is written."""
        self._frozen = True
        self._set_reading()

    def thaw(self) -> None:
        """Go on."""
        if not self._frozen:
            return
        self._frozen = False
        if self._outlet is not None and self._outlet.size:
            self.resume_writing()
        early = bytes(self._early)
        self._early.clear()
        if early or (self._greeting is not None and self._greeting.done):
            self.data_received(early)
        if self._early_end and not self._frozen:
            self._early_end = False
            self.eof_received()
        self._set_reading()

    def _set_reading(self) -> None:
        transport = self._transport
        if transport is None or transport.is_closing():
            return
        if self._frozen or self._outrun:
            transport.pause_reading()
        else:
            transport.resume_reading()

    def fileno(self) -> int:
        """The descriptor, -1 when closed."""
        return self._fd

    def unwritten(self) -> int:
        """Bytes in our own buffers."""
        waiting = self._outlet.size if self._outlet is not None else 0
        return waiting + (0 if self._transport is None else self._transport.get_write_buffer_size())

    def abort(self) -> None:
        """Close now; what is buffered is dropped."""
        if self._outlet is not None:
            self._outlet.clear()
        if self._transport is not None:
            self._transport.abort()

    def close(self) -> None:
        """Close when what is buffered has left; an upstream, when its peer has acknowledged it.

        A closed descriptor can no longer be reset, and the kernel would go on sending what it holds.
        """
        if self._transport is None or self._transport.is_closing() or self._draining is not None:
            return
        if self._upward or not self._holds_bytes():
            close_gracefully(self._transport)
            return
        self._write_eof()
        loop = asyncio.get_running_loop()
        self._draining = loop.call_later(DRAINED_S, self._close_drained)
        if self._stillness is None:
            self._watch_stillness()

    def _close_drained(self) -> None:
        self._draining = None
        self.close()

    def _holds_bytes(self) -> bool:
        return self.unwritten() > 0 or (self.written > 0 and sever.holds_bytes(self._fd))

    def _watch_stillness(self) -> None:
        loop = asyncio.get_running_loop()
        self._stillness = loop.call_later(HALF_CLOSED_S, self._abort_still, self._progress())

    def _abort_still(self, before: tuple[object, ...]) -> None:
        if self._connection.frozen or self._progress() != before:
            self._watch_stillness()
            return
        self.abort()
        self.peer.abort()

    def _progress(self) -> tuple[object, ...]:
        connection, ends = self._connection, (self, self.peer)
        queued = [(end.unwritten(), sever.queued(end._fd)) for end in ends]
        return (connection.bytes_up, connection.bytes_down, *queued)

    def _write_eof(self) -> None:
        if self._transport is None or self._transport.is_closing():
            return
        if self._outlet is not None and self._outlet.size:
            self._ends = True
            return
        try:
            self._transport.write_eof()
        except OSError:
            self._transport.abort()


def _answer(refusal: Refusal) -> bytes:
    if refusal is NESTED_CONNECT:
        return response_bytes(refusal, close=True)
    return UNRECOGNIZED_NAME if refusal.code == "authority_mismatch" else DECODE_ERROR


_UNFINISHED = Refusal("malformed_request", "The connection ended within the TLS handshake.")
_LATE = Refusal("malformed_request", "The ClientHello was not complete in time.")
