"""An HTTP/1.1 origin that remembers every byte and every end of every connection."""

from __future__ import annotations

import asyncio
import json
import ssl
from dataclasses import dataclass, field


@dataclass(eq=False)
class Seen:
    """One connection as the origin saw it."""

    raw: bytearray = field(default_factory=bytearray)
    requests: list[tuple[str, str, dict[str, str]]] = field(default_factory=list)
    ended: asyncio.Event = field(default_factory=asyncio.Event)
    reset: bool = False


class Origin:
    """Paths decide what it does: /echo answers, /hang never does, /events streams, /upload reads."""

    def __init__(self, context: ssl.SSLContext | None = None) -> None:
        self._context = context
        self.connections: list[Seen] = []
        self.arrived = asyncio.Event()
        self._writers: set[asyncio.StreamWriter] = set()

    @property
    def host(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def url(self) -> str:
        return f"{'https' if self._context else 'http'}://{self.host}"

    @property
    def requests(self) -> list[tuple[str, str, dict[str, str]]]:
        return [request for seen in self.connections for request in seen.requests]

    async def __aenter__(self) -> Origin:
        self._server = await asyncio.start_server(
            self._serve, "127.0.0.1", 0, ssl=self._context, backlog=1024
        )
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for writer in tuple(self._writers):
            writer.transport.abort()
        await asyncio.wait_for(self._server.wait_closed(), 5)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        seen = Seen()
        self.connections.append(seen)
        self._writers.add(writer)
        try:
            while head := await _read_head(reader, seen):
                method, target, headers = head
                seen.requests.append(head)
                self.arrived.set()
                await self._answer(method, target, headers, reader, writer, seen)
        except ConnectionError:
            seen.reset = True
        except (asyncio.IncompleteReadError, ssl.SSLError):
            pass
        finally:
            seen.ended.set()
            self._writers.discard(writer)
            writer.transport.abort()

    async def _answer(self, method, target, headers, reader, writer, seen) -> None:
        if target.endswith("/hang"):
            while chunk := await reader.read(65536):
                seen.raw += chunk
            return
        if target.endswith("/events"):
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n")
            while True:
                writer.write(b"data: tick\n\n")
                await writer.drain()
                await asyncio.sleep(0.01)
                if reader.at_eof():
                    return
        body = await _read_body(reader, headers, seen)
        answer = json.dumps(
            {"method": method, "target": target, "headers": headers, "length": len(body)}
        ).encode()
        writer.write(
            b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
            % len(answer)
            + (b"" if method == "HEAD" else answer)
        )
        await writer.drain()


async def _read_head(reader, seen):
    try:
        raw = await reader.readuntil(b"\r\n\r\n")
    except asyncio.IncompleteReadError as rest:
        seen.raw += rest.partial
        return None
    seen.raw += raw
    lines = raw.decode("latin-1").split("\r\n")
    method, target, _ = lines[0].split(" ", 2)
    headers = {}
    for line in lines[1:-2]:
        name, _, value = line.partition(":")
        headers[name.strip().lower()] = value.strip()
    return method, target, headers


async def _read_body(reader, headers, seen) -> bytes:
    if "chunked" in headers.get("transfer-encoding", ""):
        body = b""
        while size := int(await _line(reader, seen), 16):
            body += await _exactly(reader, seen, size)
            await _line(reader, seen)
        await _line(reader, seen)
        return body
    return await _exactly(reader, seen, int(headers.get("content-length", 0)))


async def _line(reader, seen) -> bytes:
    line = await reader.readuntil(b"\r\n")
    seen.raw += line
    return line[:-2]


async def _exactly(reader, seen, size: int) -> bytes:
    body = b""
    while len(body) < size:
        chunk = await reader.read(min(65536, size - len(body)))
        if not chunk:
            raise asyncio.IncompleteReadError(body, size)
        seen.raw += chunk
        body += chunk
    return body
