"""A TLS client that shows what asyncio's hides: ends of one direction, and what lies under the records."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from pathlib import Path

from support.client import Wire


def trusting(ca_file: Path | str, *alpn: str) -> ssl.SSLContext:
    """A client's context that takes one authority and no other."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(cafile=str(ca_file))
    if alpn:
        context.set_alpn_protocols(list(alpn))
    return context


class TlsWriter:
    """The writing half; as much of a StreamWriter as a Wire needs."""

    def __init__(self, raw: asyncio.StreamWriter, tls: ssl.SSLObject, out: ssl.MemoryBIO) -> None:
        self._raw, self._tls, self._out = raw, tls, out
        self.transport = raw.transport

    def write(self, data: bytes) -> None:
        rest = memoryview(data)
        while rest:
            rest = rest[self._tls.write(rest) :]
        self._raw.write(self._out.read())

    async def drain(self) -> None:
        await self._raw.drain()

    def write_eof(self) -> None:
        """close_notify, and no FIN."""
        with contextlib.suppress(ssl.SSLError):
            self._tls.unwrap()
        self._raw.write(self._out.read())

    def fin(self) -> None:
        """A FIN, and no close_notify."""
        self._raw.write_eof()


class TlsWire(Wire):
    """A Wire through TLS; its reader ends with the server's close_notify."""

    pump: asyncio.Task | None = None
    notified = False
    "Whether a close_notify has come."
    finished = reset = False
    "Whether a FIN or a reset has come; whether it was a reset."

    @classmethod
    async def open_tls(cls, port: int, context: ssl.SSLContext, *, piece: int = 1 << 20) -> TlsWire:
        """Shake hands, sending at most `piece` bytes at a time."""
        reader, raw = await asyncio.open_connection("127.0.0.1", port)
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        tls = context.wrap_bio(incoming, outgoing, server_hostname="127.0.0.1")
        wire = cls(asyncio.StreamReader(), TlsWriter(raw, tls, outgoing))
        wire.tls, wire.encrypted = tls, reader
        done = False
        async with asyncio.timeout(5):
            while not done:
                try:
                    tls.do_handshake()
                    done = True
                except ssl.SSLWantReadError:
                    pass
                hello = outgoing.read()
                for start in range(0, len(hello), piece):
                    raw.write(hello[start : start + piece])
                    await raw.drain()
                    await asyncio.sleep(0)
                if not done:
                    data = await reader.read(65536)
                    if not data:
                        raise ConnectionError("the handshake was ended")
                    incoming.write(data)
        wire.pump = asyncio.get_running_loop().create_task(wire._pump(reader, incoming))
        return wire

    async def _pump(self, encrypted: asyncio.StreamReader, incoming: ssl.MemoryBIO) -> None:
        try:
            self._decrypt()
            while data := await encrypted.read(65536):
                if not self.notified:
                    incoming.write(data)
                    self._decrypt()
            if not self.notified:
                self.reader.feed_eof()
        except (ConnectionError, ssl.SSLError) as error:
            self.reset = True
            if not self.notified:
                self.reader.set_exception(error)
        finally:
            self.finished = True

    def _decrypt(self) -> None:
        try:
            while plain := self.tls.read(65536):
                self.reader.feed_data(plain)
        except ssl.SSLWantReadError:
            return
        except ssl.SSLZeroReturnError:
            pass
        self.notified = True
        self.reader.feed_eof()

    def close(self) -> None:
        if self.pump is not None:
            self.pump.cancel()
        super().close()
