"""A fast local origin, plain and TLS: a fixed small answer at /, N bytes at /bytes/N.

It reads only what a load generator sends: requests without a body, pipelined or not. Started as
a program it prints one JSON line with its ports and serves until it is terminated.
"""

from __future__ import annotations

import asyncio
import json
import ssl
import sys
from pathlib import Path

import uvloop
from haltwire_cli.demo_authority import make_authority

SMALL = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 128\r\n\r\n" + b"x" * 128
ADDRESSES = [f"127.0.0.{last}" for last in range(1, 17)]
"""Plain HTTP is served on all of them: closed connections keep their port number for a minute, and
between two addresses there are only 28,000."""
TLS_ADDRESSES = [f"127.0.1.{last}" for last in range(1, 251)]
"""HTTPS is served on 127.0.0.1 and on these: for a proxy that reads inside TLS each is another host,
and they are more than mitmproxy keeps certificates for (100)."""
_CHUNK = bytes(256 * 1024)
_END = b"\r\n\r\n"


class Origin(asyncio.Protocol):
    """One connection; answers heads in the order they come."""

    def __init__(self) -> None:
        self._buffer = b""
        self._left = 0
        self._paused = False

    def connection_made(self, transport) -> None:
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        if self._buffer:
            data = self._buffer + data
        *heads, self._buffer = data.split(_END)
        for head in heads:
            path = head.split(b" ", 2)[1]
            if path.startswith(b"/bytes/"):
                length = int(path[len(b"/bytes/") :])
                self._transport.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % length)
                self._left += length
                self._send()
            else:
                self._transport.write(SMALL)

    def pause_writing(self) -> None:
        self._paused = True

    def resume_writing(self) -> None:
        self._paused = False
        self._send()

    def connection_lost(self, _exc: Exception | None) -> None:
        self._left = 0

    def _send(self) -> None:
        while self._left and not self._paused:
            piece = _CHUNK if self._left >= len(_CHUNK) else _CHUNK[: self._left]
            self._left -= len(piece)
            self._transport.write(piece)


async def serve(folder: Path) -> None:
    """Listen on two free ports of the loopback addresses until terminated."""
    authority = make_authority(folder, [ADDRESSES[0], *TLS_ADDRESSES])
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(authority.certificate_file)
    loop = asyncio.get_running_loop()
    plain = await loop.create_server(Origin, ADDRESSES[0], 0, backlog=4096)
    port = plain.sockets[0].getsockname()[1]
    more = [await loop.create_server(Origin, a, port, backlog=4096) for a in ADDRESSES[1:]]
    secure = await loop.create_server(Origin, ADDRESSES[0], 0, ssl=tls, backlog=4096)
    secure_port = secure.sockets[0].getsockname()[1]
    more += [
        await loop.create_server(Origin, a, secure_port, ssl=tls, backlog=4096)
        for a in TLS_ADDRESSES
    ]
    ports = {
        "http": port,
        "https": secure_port,
        "ca_file": str(authority.ca_file),
    }
    print(json.dumps(ports), flush=True)
    await asyncio.gather(*(server.serve_forever() for server in (plain, secure, *more)))


if __name__ == "__main__":
    uvloop.run(serve(Path(sys.argv[1])))
