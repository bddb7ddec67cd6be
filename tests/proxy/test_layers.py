"""Which layer reads what, and upstream handshakes that a hold interrupts: unseen by the client, begun anew."""

import asyncio
import itertools
import socket
import ssl

import h2.events
from support.client import Http2, serving, tls_tunnel, tunnel
from support.hello import real_hello
from support.scripted import QUIET_S, until
from support.world import INTERCEPTED

READER = ("acme.prod.reader~i-1", INTERCEPTED)
AGENT = "agent://acme/prod/reader"


class Slow:
    """A TLS server that leaves its first clients without an answer to their handshake."""

    def __init__(self, context, silent):
        self._context, self._silent = context, silent
        self.hellos, self.ends, self.received = [], [], bytearray()
        self._writers = []

    async def __aenter__(self):
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._listener.setblocking(False)
        self.host = f"localhost:{self._listener.getsockname()[1]}"
        self._tasks = asyncio.TaskGroup()
        await self._tasks.__aenter__()
        self._accepting = self._tasks.create_task(self._accept())
        return self

    async def __aexit__(self, *_):
        self._accepting.cancel()
        self._listener.close()
        for writer in self._writers:
            writer.transport.abort()
        await self._tasks.__aexit__(None, None, None)

    async def _accept(self):
        loop = asyncio.get_running_loop()
        for number in itertools.count():
            sock, _ = await loop.sock_accept(self._listener)
            silent = number < self._silent
            self._tasks.create_task(self._serve(sock, silent))

    async def _serve(self, sock, silent):
        loop = asyncio.get_running_loop()
        reader = asyncio.StreamReader(loop=loop)
        try:
            transport, protocol = await loop.connect_accepted_socket(
                lambda: asyncio.StreamReaderProtocol(reader, loop=loop),
                sock,
                ssl=None if silent else self._context,
            )
            writer = asyncio.StreamWriter(transport, protocol, reader, loop)
            self._writers.append(writer)
            await (self._be_silent(reader) if silent else self._answer(reader, writer))
            transport.abort()
        except (ConnectionError, ssl.SSLError):
            pass

    async def _be_silent(self, reader):
        self.hellos.append(await reader.read(65536))
        try:
            self.ends.append(f"orderly after {len(await reader.read())}")
        except ConnectionResetError:
            self.ends.append("reset")

    async def _answer(self, reader, writer):
        self.hellos.append(b"")
        while chunk := await reader.read(65536):
            self.received += chunk
            if self.received.endswith(b"\r\n\r\n"):
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
            elif b"HTTP" not in self.received:
                writer.write(chunk)


async def held_in_handshake(world, slow):
    for turn in (1, 2):
        await until(lambda turn=turn: len(slow.hellos) == turn)
        hold = world.hold(AGENT)
        await until(lambda turn=turn: len(slow.ends) == turn)
        await asyncio.sleep(QUIET_S)
        assert len(slow.hellos) == turn
        world.resume(hold.ack.kills[0])
    assert slow.ends == ["reset", "reset"]
    assert all(hello[0] == 0x16 for hello in slow.hellos[:2])


async def test_streams_do_not_see_that_the_handshake_they_share_was_dropped(world, authority):
    async with Slow(authority.server_context("localhost"), silent=2) as slow:
        wire = await tls_tunnel(world.port, slow.host, *READER, world.ca_file, alpn=("h2",))
        client = Http2(wire, slow.host)
        for number in (1, 3, 5):
            await client.begin("GET", end_stream=True, number=number)
        await held_in_handshake(world, slow)
        answered = set()
        while answered != {1, 3, 5}:
            for event in await client.events():
                if isinstance(event, h2.events.StreamEnded):
                    answered.add(event.stream_id)
        assert len(slow.hellos) == 2 + 3, "HTTP/1.1 upstreams take one at a time"


async def test_a_request_does_not_see_that_its_handshake_was_dropped(world, authority):
    async with Slow(authority.server_context("localhost"), silent=2) as slow:
        wire = await tls_tunnel(world.port, slow.host, *READER, world.ca_file)
        await wire.request("POST", "/x", f"Host: {slow.host}", "Content-Length: 4", read=False)
        await held_in_handshake(world, slow)
        await wire.send(b"\r\n\r\n")
        assert (await wire.answer()).body == b"ok"
        assert slow.received.endswith(b"\r\n\r\n\r\n\r\n")
        (usage,) = world.enforcer.tallies.all()
        assert usage.requests == 1


async def test_unread_bytes_do_not_see_that_their_handshake_was_dropped(world, authority):
    async with Slow(authority.server_context("localhost"), silent=2) as slow:
        wire = await tls_tunnel(world.port, slow.host, *READER, world.ca_file)
        await wire.send(b"\0one")
        await held_in_handshake(world, slow)
        await wire.send(b"\0two")
        assert await asyncio.wait_for(wire.reader.readexactly(8), 5) == b"\0one\0two"
        (connection,) = world.enforcer.connections.everything()
        assert (connection.kind, connection.tally.tunnelled) == ("tunnel", True)


async def test_a_handshake_that_fails_by_itself_is_not_redone(world, tmp_path):
    from support.authority import TestAuthority

    stranger = TestAuthority(tmp_path)
    async with Slow(stranger.server_context("localhost"), silent=0) as slow:
        wire = await tls_tunnel(world.port, slow.host, *READER, world.ca_file)
        answer = await wire.request("GET", "/x", f"Host: {slow.host}")
        assert (answer.status, answer.json()["error"]) == (502, "upstream_unreachable")


async def test_bytes_are_a_tunnel_from_when_their_upstream_is_open(world):
    hold = world.hold(AGENT)

    async def echo(reader, writer):
        writer.write(await reader.read(100))
        writer.close()

    server, port = await serving(echo)
    wire = await tunnel(world.port, f"127.0.0.1:{port}", *READER)
    await wire.send(b"\0\1")
    (connection,) = world.enforcer.connections.everything()
    await until(lambda: connection.waiters)
    assert (connection.kind, connection.tally.requests) == ("inspected", 0)
    world.resume(hold.ack.kills[0])
    assert await asyncio.wait_for(wire.reader.readexactly(2), 5) == b"\0\1"
    assert (connection.kind, connection.tally.requests) == ("tunnel", 1)
    server.close()


async def test_tls_behind_a_warning_is_not_passed_on_unread(world):
    """Go's servers skip warnings before a ClientHello: all of an intercepted connection would go unread."""
    seen = []

    async def note(reader, writer):
        seen.append(await reader.read(100))
        writer.close()

    server, port = await serving(note)
    warning = bytes((21, 3, 1, 0, 2, 1, 0))
    wire = await tunnel(world.port, f"127.0.0.1:{port}", *READER)
    await wire.send(warning[:1])
    await wire.send(warning[1:] + real_hello("localhost"))
    assert await wire.ended() == b""
    server.close()
    assert seen == []
    assert world.enforcer.connections.count == 0
