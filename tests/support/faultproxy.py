"""A small TCP proxy that is as bad as a network can be, between a worker and its control server.

Every fault can be set and lifted while it runs, by its attributes and calls. Bytes are never lost or
changed, as TCP would have it; but WebSocket messages of the control server can come twice, in another
order, or again long after, which only a fault of a program (or somebody in between) would do.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import socket
import struct
from collections import deque
from collections.abc import Callable

UP, DOWN = "up", "down"
REMEMBERED = 500
_END_OF_HEAD = b"\r\n\r\n"
_TEXT = 0x81
"A whole text message: FIN and the opcode."


class FaultProxy:
    """Listens on `port` and leads to `target()`, which is asked at each connection."""

    def __init__(self, target: Callable[[], tuple[str, int]], chance: random.Random) -> None:
        self._target = target
        self._chance = chance
        self._pairs: set[_Pair] = set()
        self._open: dict[str, asyncio.Event] = {UP: asyncio.Event(), DOWN: asyncio.Event()}
        self.messages: deque[bytes] = deque(maxlen=REMEMBERED)
        "The control server's text messages, framed as they came, of every connection so far."
        self.accepted = 0
        self.heal()

    def heal(self) -> None:
        """No fault any more. What a black hole held back goes on; what is broken stays broken."""
        self.latency_s = self.jitter_s = 0.0
        self.bytes_per_s: float | None = None
        self.duplicates = self.reorders = self.replays = 0.0
        "How likely each is for a message of the control server."
        for opened in self._open.values():
            opened.set()

    def hole(self, *directions: str) -> None:
        """A black hole: in these directions nothing comes through, and nobody is told."""
        for direction in directions:
            self._open[direction].clear()

    def reset(self) -> None:
        """RST to both sides of every connection."""
        for pair in tuple(self._pairs):
            pair.reset(pair.client)
            pair.reset(pair.server)

    def half_open(self, living: str) -> None:
        """One side has gone without a word to the other: `living` (UP: the control server's) hears nothing more."""
        for pair in tuple(self._pairs):
            if pair.living in ("", living):
                pair.living = living
                pair.reset(pair.client if living == UP else pair.server)
            else:  # now the other one has gone, too
                pair.reset(pair.server if living == DOWN else pair.client)

    def half_close(self, direction: str) -> None:
        """FIN in one direction only; the other goes on."""
        for pair in tuple(self._pairs):
            writer = pair.server if direction == UP else pair.client
            pair.finished.add(direction)
            with contextlib.suppress(OSError, RuntimeError):
                writer.write_eof()

    def inject(self, frame: bytes) -> None:
        """Say this to every worker that is linked, as if the control server did."""
        for pair in tuple(self._pairs):
            if pair.is_link and not pair.client.is_closing():
                pair.client.write(frame)

    def said(self, kind: str) -> list[bytes]:
        """The remembered messages of a type, oldest first."""
        return [frame for frame in self.messages if json.loads(_payload(frame))["type"] == kind]

    @property
    def links(self) -> int:
        """WebSockets that are open here."""
        return sum(pair.is_link for pair in self._pairs)

    async def __aenter__(self) -> FaultProxy:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0, backlog=256)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        self.heal()
        self._server.close()
        self.reset()
        async with asyncio.timeout(10):
            while self._pairs:
                self.reset()
                await asyncio.sleep(0.01)
            await self._server.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.accepted += 1
        try:
            there, server = await asyncio.open_connection(*self._target())
        except OSError:
            writer.transport.abort()
            return
        pair = _Pair(writer, server)
        self._pairs.add(pair)
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._pump(pair, UP, reader, server))
                tasks.create_task(self._pump(pair, DOWN, there, writer))
        except* (OSError, RuntimeError, asyncio.IncompleteReadError):
            pass  # one side has ended, and so does the other
        finally:
            self._pairs.discard(pair)
            pair.reset(writer)
            pair.reset(server)

    async def _pump(
        self, pair: _Pair, direction: str, source: asyncio.StreamReader, sink: asyncio.StreamWriter
    ) -> None:
        """Read on without regard to the sink, and pass on when the faults of the moment allow it."""
        waiting: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue()
        async with asyncio.TaskGroup() as tasks:
            passing = tasks.create_task(self._pass(pair, direction, waiting, sink))
            units = self._frames(pair, source) if direction == DOWN else _pieces(source)
            due, loop = 0.0, asyncio.get_running_loop()
            async for unit in units:
                late = self.latency_s + self._chance.uniform(0, self.jitter_s)
                due = max(due, loop.time() + late)  # jitter never reorders bytes
                waiting.put_nowait((due, unit))
            if pair.living == direction:
                await asyncio.Event().wait()  # until the other side has had enough
            waiting.put_nowait((due, b""))
            await passing
            raise ConnectionResetError  # an end that is none of our faults is one both ways

    async def _pass(
        self,
        pair: _Pair,
        direction: str,
        waiting: asyncio.Queue[tuple[float, bytes]],
        sink: asyncio.StreamWriter,
    ) -> None:
        loop = asyncio.get_running_loop()
        while True:
            due, unit = await waiting.get()
            await asyncio.sleep(max(0.0, due - loop.time()))
            await self._open[direction].wait()
            if not unit:
                return
            if pair.living or direction in pair.finished:
                continue
            if self.bytes_per_s:
                await asyncio.sleep(len(unit) / self.bytes_per_s)
            sink.write(unit)
            await sink.drain()

    async def _frames(self, pair: _Pair, source: asyncio.StreamReader):
        """A server's bytes, in whole messages once it has agreed to a WebSocket."""
        try:
            head = await source.readuntil(_END_OF_HEAD)
        except asyncio.IncompleteReadError as error:
            if error.partial:
                yield error.partial
            return
        yield head
        if not head.startswith(b"HTTP/1.1 101"):
            async for piece in _pieces(source):
                yield piece
            return
        pair.is_link = True
        held: bytes | None = None
        while (frame := await _frame(source)) is not None:
            if frame[0] != _TEXT:
                yield frame
                continue
            self.messages.append(frame)
            if held is None and self._chance.random() < self.reorders:
                held = frame
                continue
            yield frame
            if held is not None:
                yield held
                held = None
            if self._chance.random() < self.duplicates:
                yield frame
            if self._chance.random() < self.replays:
                yield self._chance.choice(self.messages)


class _Pair:
    """One connection and its continuation."""

    def __init__(self, client: asyncio.StreamWriter, server: asyncio.StreamWriter) -> None:
        self.client, self.server = client, server
        self.living = ""
        "The direction towards the side that lives, when the other has gone without a word."
        self.is_link = False
        self.finished: set[str] = set()

    @staticmethod
    def reset(writer: asyncio.StreamWriter) -> None:
        """RST, if it is still open."""
        if writer.transport.is_closing():
            return
        with contextlib.suppress(OSError):
            writer.get_extra_info("socket").setsockopt(
                socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0)
            )
        writer.transport.abort()


async def _pieces(source: asyncio.StreamReader):
    with contextlib.suppress(ConnectionError):
        while piece := await source.read(65_536):
            yield piece


async def _frame(source: asyncio.StreamReader) -> bytes | None:
    """One frame of a server, which never masks; None at the end."""
    try:
        head = await source.readexactly(2)
        length = head[1] & 0x7F
        if length > 125:
            more = await source.readexactly(2 if length == 126 else 8)
            head += more
            length = int.from_bytes(more)
        return head + await source.readexactly(length)
    except (asyncio.IncompleteReadError, ConnectionError):
        return None


def _payload(frame: bytes) -> bytes:
    length = frame[1] & 0x7F
    return frame[2 if length < 126 else 4 if length == 126 else 10 :]
