"""TLS to the proxy itself, on the port that takes it plain: what begins like TLS goes on behind a transport that speaks it.

Everything above takes that transport for the socket's own. asyncio's and uvloop's TLS transports would not do:
they cannot end one direction, and a tunnel's client may.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import ssl
from typing import Any

from haltwire_proxy import sever

log = logging.getLogger(__name__)
HANDSHAKE_S = 10.0
"How long a handshake may take."
MAX_ANSWERS = 64 * 1024
"Bytes that the protocol itself may make us answer: a flood of key updates would else fill our buffer."
_HANDSHAKE = 0x16
"The first byte of TLS (RFC 8446, 5.1); no request begins with it."
_READ = 64 * 1024
_NOBODY = asyncio.Protocol()
"Who hears of a connection after its end."


def upgrade(
    transport: asyncio.Transport,
    protocol: asyncio.Protocol,
    context: ssl.SSLContext | None,
    early: bytearray,
) -> TlsTransport | None:
    """The transport to go on with if `early` begins TLS; None if it does not, or nobody here speaks it.

    TLS within TLS is none that this port takes.
    """
    if context is None or early[0] != _HANDSHAKE or isinstance(transport, TlsTransport):
        return None
    return TlsTransport(transport, protocol, context, bytes(early))


class TlsTransport(asyncio.Transport, asyncio.Protocol):
    """The server's side of one TLS connection: a transport to those above, the protocol of the socket's transport.

    1. What has been read is always decrypted whole: nothing stays behind when reading is paused, and it waits in order.
    2. close_notify ends one direction, as a FIN does; a FIN without it counts as an end too, as it does without TLS.
    3. `abort` is the socket's own: nothing of TLS is sent any more.
    """

    def __init__(
        self,
        raw: asyncio.Transport,
        protocol: asyncio.BaseProtocol,
        context: ssl.SSLContext,
        early: bytes,
    ) -> None:
        super().__init__()
        self._raw = raw
        self._protocol: Any = protocol
        self._loop = asyncio.get_running_loop()
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_side=True)
        self._established = False
        self._answered = 0
        self._plain: list[bytes] = []
        "What has been read and could not be given on yet."
        self._unsent: list[bytes] = []
        "What was written before the handshake was over."
        self._paused = False
        self._eof = self._eof_told = False
        "Whether the client has ended its direction, and whether the protocol knows."
        self._ended = False
        "Whether we have ended ours."
        self._timer = self._loop.call_later(HANDSHAKE_S, self.abort)
        raw.set_protocol(self)
        self.data_received(early)

    # The socket's transport calls these.

    def data_received(self, data: bytes) -> None:
        """Bytes of TLS."""
        if self._eof:
            return None
        self._incoming.write(data)
        try:
            if not self._established:
                self._tls.do_handshake()
                self._begin()
            while piece := self._tls.read(_READ):
                self._plain.append(piece)
            self._eof = True
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLZeroReturnError:  # as an empty read, when our direction has ended before
            self._eof = True
        except ssl.SSLError:
            return self._fail()
        self._answered += self._flush()
        if self._answered > MAX_ANSWERS:
            return self.abort()
        return self._deliver()

    def eof_received(self) -> bool:
        """A FIN, with or without close_notify before it."""
        self._eof = True
        self._deliver()
        return self._established

    def connection_lost(self, exc: Exception | None) -> None:
        """The socket has ended."""
        self._timer.cancel()
        self._plain.clear()
        protocol, self._protocol = self._protocol, _NOBODY
        protocol.connection_lost(exc)

    def pause_writing(self) -> None:
        """The client is slow."""
        self._protocol.pause_writing()

    def resume_writing(self) -> None:
        """It has caught up."""
        self._protocol.resume_writing()

    # Those above call these.

    def write(self, data: Any) -> None:
        """Encrypt and send; after the end of our direction it is dropped."""
        if self._ended or self._raw.is_closing() or not data:
            return
        if not self._established:
            self._unsent.append(bytes(data))
            return
        rest = memoryview(data)
        try:
            while rest:
                rest = rest[self._tls.write(rest) :]
        except ssl.SSLError:
            self.abort()
            return
        self._flush()

    def can_write_eof(self) -> bool:
        """A direction can end alone."""
        return True

    def write_eof(self) -> None:
        """End our direction, behind what has been written: close_notify and FIN."""
        self._notify()
        self._raw.write_eof()

    def close(self) -> None:
        """Send what is queued, and close."""
        if not self._raw.is_closing():
            self._notify()
            self._raw.close()

    def abort(self) -> None:
        """Close now; what is queued is dropped."""
        self._raw.abort()

    def is_closing(self) -> bool:
        """Whether it has ended or is about to."""
        return self._raw.is_closing()

    def pause_reading(self) -> None:
        """Give nothing on. Idempotent, as is its opposite."""
        self._paused = True
        if not self._raw.is_closing():
            self._raw.pause_reading()

    def resume_reading(self) -> None:
        """Go on, but not within this call: the caller may have earlier bytes to give."""
        self._paused = False
        if self._plain or self._eof:
            self._loop.call_soon(self._go_on)
        elif not self._raw.is_closing():
            self._raw.resume_reading()

    def is_reading(self) -> bool:
        """Whether bytes are given on."""
        return not self._paused

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        """Who gets what comes from here on."""
        self._protocol = protocol

    def get_protocol(self) -> asyncio.BaseProtocol:
        """Who gets what comes."""
        protocol: asyncio.BaseProtocol = self._protocol
        return protocol

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        """The socket's: its descriptor is what a kill resets."""
        return self._raw.get_extra_info(name, default)

    def get_write_buffer_size(self) -> int:
        """Bytes that wait for the kernel, encrypted."""
        return self._raw.get_write_buffer_size()

    def get_write_buffer_limits(self) -> tuple[int, int]:
        """The socket's."""
        return self._raw.get_write_buffer_limits()

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        """The socket's."""
        self._raw.set_write_buffer_limits(high, low)

    def _begin(self) -> None:
        self._established = True
        self._timer.cancel()
        unsent, self._unsent = self._unsent, []
        for data in unsent:
            self.write(data)

    def _deliver(self) -> None:
        if self._plain and not self._paused:
            data = b"".join(self._plain)
            self._plain.clear()
            self._protocol.data_received(data)
        if self._eof and not (self._paused or self._plain or self._eof_told):
            self._eof_told = True
            if not self._protocol.eof_received():
                self.close()

    def _go_on(self) -> None:
        if self._raw.is_closing():
            return
        try:
            self._deliver()
        except Exception:
            # Within a socket's own callback the loop would end the connection; here nobody would.
            log.exception("what was read over TLS could not be given on")
            self.abort()
        if not (self._paused or self._raw.is_closing()):
            self._raw.resume_reading()

    def _flush(self) -> int:
        data = self._outgoing.read()
        if data and not self._raw.is_closing():
            self._raw.write(data)
        return len(data)

    def _notify(self) -> None:
        if not self._established or self._ended:
            return
        self._ended = True
        with contextlib.suppress(ssl.SSLError):  # theirs has not come yet: that is for `read`
            self._tls.unwrap()
        self._flush()

    def _fail(self) -> None:
        """No log line: what strangers send must not be able to fill a disk."""
        if self._established:
            self.abort()
            return
        self._flush()  # the alert that says why
        if not self._raw.is_closing():
            sever.disarm(self._raw.get_extra_info("socket"))
            self._raw.close()
