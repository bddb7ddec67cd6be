"""An origin that reads requests with a parser of its own (h11, never the proxy's llhttp) and keeps every byte."""

from __future__ import annotations

import asyncio
import ssl
from dataclasses import dataclass, field

import h11

ANSWER = b"strictly"


@dataclass(eq=False)
class Parsed:
    """One request as the origin understood it."""

    method: str
    target: str
    headers: list[tuple[str, str]]
    length: int | None = None
    "Of its body; None while that has not ended."

    def values(self, name: str) -> list[str]:
        return [value for key, value in self.headers if key == name]

    @property
    def host(self) -> str:
        (host,) = self.values("host")
        return host


@dataclass(eq=False)
class Heard:
    """One connection."""

    raw: bytearray = field(default_factory=bytearray)
    requests: list[Parsed] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    length: int = 0
    "Of the body that is being read."
    ended: asyncio.Event = field(default_factory=asyncio.Event)


class StrictOrigin:
    """Answers every request with 200 as soon as it is whole."""

    def __init__(self, context: ssl.SSLContext | None = None) -> None:
        self._context = context
        self.heard: list[Heard] = []
        self._writers: set[asyncio.StreamWriter] = set()

    async def __aenter__(self) -> StrictOrigin:
        self._server = await asyncio.start_server(
            self._serve, "127.0.0.1", 0, ssl=self._context, backlog=256
        )
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for writer in tuple(self._writers):
            writer.transport.abort()
        await asyncio.wait_for(self._server.wait_closed(), 5)

    @property
    def host(self) -> str:
        return f"localhost:{self.port}"

    @property
    def requests(self) -> list[Parsed]:
        return [request for heard in self.heard for request in heard.requests]

    @property
    def errors(self) -> list[str]:
        return [error for heard in self.heard for error in heard.errors]

    @property
    def raw(self) -> bytes:
        return b"".join(bytes(heard.raw) for heard in self.heard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heard = Heard()
        self.heard.append(heard)
        self._writers.add(writer)
        connection = h11.Connection(h11.SERVER, max_incomplete_event_size=128 * 1024)
        try:
            while chunk := await reader.read(65536):
                heard.raw += chunk
                connection.receive_data(chunk)
                if not self._read(connection, heard, writer):
                    break
                await writer.drain()
        except h11.RemoteProtocolError as error:
            heard.errors.append(str(error))
        except (ConnectionError, ssl.SSLError):
            pass
        finally:
            heard.ended.set()
            self._writers.discard(writer)
            writer.transport.abort()

    def _read(self, connection: h11.Connection, heard: Heard, writer) -> bool:
        """Whether more requests may come."""
        while True:
            event = connection.next_event()
            if event is h11.NEED_DATA:
                return True
            if event is h11.PAUSED:
                return False
            if isinstance(event, h11.Request):
                headers = [(n.decode("latin-1"), v.decode("latin-1")) for n, v in event.headers]
                method, target = event.method.decode(), event.target.decode("latin-1")
                heard.requests.append(Parsed(method, target, headers))
                heard.length = 0
            elif isinstance(event, h11.Data):
                heard.length += len(event.data)
            elif isinstance(event, h11.EndOfMessage):
                if event.headers:
                    heard.errors.append("trailers")
                heard.requests[-1].length = heard.length
                self._answer(connection, heard.requests[-1], writer)
                if connection.our_state is h11.MUST_CLOSE:
                    return False
                connection.start_next_cycle()

    def _answer(self, connection: h11.Connection, request: Parsed, writer) -> None:
        head = h11.Response(status_code=200, headers=[("Content-Length", str(len(ANSWER)))])
        writer.write(connection.send(head))
        writer.write(connection.send(h11.Data(data=b"" if request.method == "HEAD" else ANSWER)))
        writer.write(connection.send(h11.EndOfMessage()))
