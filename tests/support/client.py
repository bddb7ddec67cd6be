"""Clients that show every byte: raw heads, tunnels, TLS inside tunnels."""

from __future__ import annotations

import asyncio
import json
import ssl
from dataclasses import dataclass
from typing import ClassVar

import h2.config
import h2.connection

from support.world import basic


@dataclass
class Answer:
    """A response, read to its end."""

    status: int
    headers: dict[str, str]
    body: bytes

    def json(self):
        return json.loads(self.body)


class Wire:
    """A connection to the proxy, or through it. Closed after the test, if not before."""

    opened: ClassVar[list[Wire]] = []

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer
        self.opened.append(self)

    @classmethod
    async def open(cls, port: int) -> Wire:
        return cls(*await asyncio.open_connection("127.0.0.1", port))

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def request(
        self, method: str, target: str, *headers: str, body: bytes = b"", read: bool = True
    ) -> Answer | None:
        lines = [f"{method} {target} HTTP/1.1", *headers]
        if body:
            lines.append(f"Content-Length: {len(body)}")
        await self.send(("\r\n".join(lines) + "\r\n\r\n").encode("latin-1") + body)
        return await self.answer(head=method in ("CONNECT", "HEAD")) if read else None

    async def answer(self, *, head: bool = False) -> Answer:
        raw = await asyncio.wait_for(self.reader.readuntil(b"\r\n\r\n"), 5)
        lines = raw.decode("latin-1").split("\r\n")
        headers = {}
        for line in lines[1:-2]:
            name, _, value = line.partition(":")
            headers[name.lower()] = value.strip()
        status = int(lines[0].split(" ")[1])
        length = int(headers.get("content-length", 0))
        body = b""
        if length and not (head and status == 200):
            body = await asyncio.wait_for(self.reader.readexactly(length), 5)
        return Answer(status, headers, body)

    async def ended(self, timeout: float = 2) -> bytes:
        """What still comes until the connection ends; TimeoutError when it lives on."""
        rest = b""
        try:
            async with asyncio.timeout(timeout):
                while chunk := await self.reader.read(65536):
                    rest += chunk
        except (ConnectionError, ssl.SSLError):
            pass
        self.close()
        return rest

    async def start_tls(self, context: ssl.SSLContext, host: str) -> None:
        await asyncio.wait_for(self.writer.start_tls(context, server_hostname=host), 5)

    def close(self) -> None:
        self.writer.transport.abort()


async def tunnel(port: int, target: str, label: str, secret: str) -> Wire:
    """An open CONNECT tunnel."""
    wire = await Wire.open(port)
    credentials = f"Proxy-Authorization: {basic(label, secret)}"
    answer = await wire.request("CONNECT", target, f"Host: {target}", credentials)
    assert answer is not None
    assert answer.status == 200, answer
    return wire


async def tls_tunnel(
    port: int, target: str, label: str, secret: str, ca_file, alpn: tuple[str, ...] = ()
) -> Wire:
    """TLS inside a CONNECT tunnel, trusting one authority."""
    wire = await tunnel(port, target, label, secret)
    context = ssl.create_default_context(cafile=str(ca_file))
    if alpn:
        context.set_alpn_protocols(list(alpn))
    await wire.start_tls(context, target.rpartition(":")[0])
    return wire


async def serving(handler, context=None, **options):
    """A server on a port of its own that runs the handler, and the port."""
    server = await asyncio.start_server(handler, "127.0.0.1", 0, ssl=context, **options)
    return server, server.sockets[0].getsockname()[1]


class Http2:
    """An HTTP/2 client that shows its windows."""

    def __init__(self, wire, target):
        self._wire, self._target = wire, target
        self.connection = h2.connection.H2Connection(h2.config.H2Configuration())
        self.connection.initiate_connection()

    async def begin(self, method, *, end_stream, number=1):
        head = {":method": method, ":scheme": "https", ":authority": self._target, ":path": "/x"}
        self.connection.send_headers(number, list(head.items()), end_stream=end_stream)
        await self.flush()

    async def flush(self):
        await self._wire.send(self.connection.data_to_send())

    async def events(self):
        data = await asyncio.wait_for(self._wire.reader.read(65536), 2)
        return self.connection.receive_data(data)
