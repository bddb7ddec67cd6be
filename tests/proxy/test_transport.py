"""The sockets under mitmproxy: gated, counted, and frozen so that nothing moves and nothing is lost."""

import asyncio
import os
import socket

import pytest
import uvloop
from haltwire.wire.names import AgentRef
from haltwire_proxy import sever
from haltwire_proxy.identity import Identity
from haltwire_proxy.transport import (
    GatedReader,
    GatedWriter,
    StreamProtocol,
    adopt_stream,
    raw_socket,
)
from support.scripted import QUIET_S, Stage, stood_still, until

READER = Identity(AgentRef(("acme", "prod", "reader")), "i-1", "TIIII", None, True, "hwa_secret")


class Pair:
    """A gated stream to an origin that a test plays."""

    def __init__(self, world, stage, *, upward=True):
        self._world, self._stage, self._upward = world, stage, upward

    async def __aenter__(self):
        loop = asyncio.get_running_loop()
        self.reader = GatedReader(limit=65536, loop=loop)
        self.protocol = StreamProtocol(self.reader, loop=loop)
        transport, _ = await loop.create_connection(
            lambda: self.protocol, "127.0.0.1", self._stage.port
        )
        sever.arm(raw_socket(transport))
        enforcer = self._world.enforcer
        self.owned = enforcer.connections.register(READER, "inspected", "a.test", None)
        self.writer = GatedWriter(
            transport, self.protocol, self.reader, enforcer, self.owned, upward=self._upward
        )
        self.owned.client = self.writer
        self.peer = await self._stage.connection()
        return self

    async def __aexit__(self, *_):
        self.writer.abort()


@pytest.fixture
async def stage():
    async with Stage() as running:
        yield running


@pytest.fixture
async def pair(world, stage):
    async with Pair(world, stage) as running:
        yield running


@pytest.fixture
async def client(world, stage):
    async with Pair(world, stage, upward=False) as running:
        yield running


async def test_what_is_written_while_frozen_waits_in_order(pair):
    writer = pair.writer
    writer.write(b"one ")
    await pair.peer.has(b"one ")
    writer.freeze()
    writer.freeze()
    for word in (b"two ", b"three ", b"four"):
        writer.write(word)
    draining = asyncio.ensure_future(writer.drain())
    await stood_still(lambda: len(pair.peer.received))
    assert bytes(pair.peer.received) == b"one "
    assert not draining.done()
    assert (writer.written, writer.unwritten(), pair.owned.bytes_up) == (18, 14, 4)
    assert pair.owned.tally.bytes_up == 4
    writer.thaw()
    writer.thaw()
    writer.write(b" five")
    await draining
    await pair.peer.has(b"five")
    assert bytes(pair.peer.received) == b"one two three four five"
    assert (writer.unwritten(), pair.owned.bytes_up, writer.written) == (0, 23, 23)


async def test_nothing_is_read_while_frozen_though_the_reader_has_room(pair):
    """A StreamReader that was full goes on reading by itself as soon as somebody takes from it."""
    sent = os.urandom(3_000_000)
    pair.peer.writer.write(sent)
    await until(lambda: pair.reader._paused)
    pair.writer.freeze()
    taking = asyncio.ensure_future(pair.reader.read(1000))
    reading = lambda: pair.writer.transport.is_reading()  # noqa: E731
    await stood_still(lambda: len(pair.reader._buffer), reading)
    assert not reading()
    assert not taking.done()
    pair.writer.thaw()
    got = bytearray(await taking)
    while len(got) < len(sent):
        got += await asyncio.wait_for(pair.reader.read(65536), 5)
    assert got == sent


async def test_what_was_read_before_the_freeze_is_given_after_it(pair):
    pair.peer.writer.write(b"early")
    await until(lambda: pair.reader._buffer)
    pair.writer.freeze()
    taking = asyncio.ensure_future(pair.reader.read(100))
    await asyncio.sleep(0.05)
    assert not taking.done()
    pair.writer.thaw()
    pair.writer.freeze()  # before whoever reads has had his turn
    await asyncio.sleep(0.05)
    assert not taking.done()
    pair.writer.thaw()
    assert await taking == b"early"


@pytest.mark.parametrize("how", ["end", "reset"])
async def test_an_end_that_came_before_the_freeze_is_told_after_it(pair, how):
    if how == "end":
        pair.peer.writer.close()
    else:
        sever.arm(raw_socket(pair.peer.writer.transport))
        pair.peer.writer.transport.abort()
    await until(lambda: pair.reader._eof or pair.reader.exception())
    pair.writer.freeze()
    taking = asyncio.ensure_future(pair.reader.read(100))
    await asyncio.sleep(0.05)
    assert not taking.done()
    pair.writer.thaw()
    if how == "end":
        assert await taking == b""
    else:
        with pytest.raises(ConnectionError):
            await taking


async def test_a_reader_that_is_cancelled_does_not_wait_for_the_thaw(pair):
    pair.writer.freeze()
    taking = asyncio.ensure_future(pair.reader.read(100))
    await asyncio.sleep(0.01)
    taking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(taking, 1)


async def test_an_end_of_our_direction_follows_what_is_kept(pair):
    pair.writer.freeze()
    pair.writer.write(b"last")
    pair.writer.write_eof()
    await stood_still(lambda: pair.peer.end)
    assert pair.peer.end is None
    pair.writer.thaw()
    await until(lambda: pair.peer.end)
    assert (bytes(pair.peer.received), pair.peer.end) == (b"last", "orderly")


async def test_a_clients_close_follows_what_is_kept(client):
    client.writer.freeze()
    client.writer.write(b"answer")
    client.writer.close()
    assert client.writer.is_closing()
    settling = asyncio.ensure_future(client.writer.settled())
    await stood_still(lambda: client.peer.end)
    assert (client.peer.end, settling.done()) == (None, False)
    client.writer.thaw()
    await until(lambda: client.peer.end)
    assert (bytes(client.peer.received), client.peer.end) == (b"answer", "orderly")
    await settling


async def test_a_frozen_client_of_which_nothing_is_kept_is_closed_at_once(client):
    client.writer.freeze()
    client.writer.close()
    await client.writer.settled()
    await until(lambda: client.peer.end)


async def test_an_upstream_that_is_closed_with_something_kept_is_reset(pair):
    pair.writer.freeze()
    pair.writer.write(b"half of a request")
    pair.writer.close()
    await until(lambda: pair.peer.end)
    assert (bytes(pair.peer.received), pair.peer.end) == (b"", "reset")
    assert pair.writer.broken


async def test_an_abort_drops_what_is_kept_and_tells_who_asked(pair):
    told = []
    pair.writer.when_lost(lambda: told.append(pair.writer.fileno()))
    pair.writer.freeze()
    pair.writer.write(b"never")
    pair.writer.abort()
    assert pair.writer.unwritten() == 0
    await until(lambda: told)
    assert told == [-1]
    pair.writer.thaw()
    await until(lambda: pair.peer.end)
    assert bytes(pair.peer.received) == b""


@pytest.mark.parametrize("how", ["cut", "lease"])
async def test_a_kill_during_the_freeze_lets_nothing_out(world, pair, how):
    pair.owned.upstreams.append(pair.writer)
    pair.writer.freeze()
    pair.writer.write(b"kept")
    if how == "cut":
        world.enforcer.connections.cut([pair.owned])
    else:
        world.lose_lease()
    pair.writer.thaw()
    await until(lambda: pair.peer.end)
    assert (bytes(pair.peer.received), pair.peer.end) == (b"", "reset")
    assert pair.owned.bytes_up == 0


async def test_a_freeze_over_a_full_buffer_keeps_the_order(pair):
    """The peer does not read: the transport holds some, we hold the rest."""
    pair.peer.reading.clear()
    sent = [os.urandom(100_000) for _ in range(60)]
    for piece in sent[:50]:
        pair.writer.write(piece)
    await until(lambda: pair.writer.unwritten())
    pair.writer.freeze()
    for piece in sent[50:]:
        pair.writer.write(piece)
    pair.peer.reading.set()
    await until(lambda: len(pair.peer.received) == 5_000_000)
    await asyncio.sleep(QUIET_S)
    assert len(pair.peer.received) == 5_000_000
    pair.writer.thaw()
    await until(lambda: len(pair.peer.received) == 6_000_000)
    assert bytes(pair.peer.received) == b"".join(sent)


def test_freezing_and_thawing_a_socket_that_has_ended_is_nothing_under_uvloop():
    """There a transport that is closed raises when it is asked to read."""

    async def scenario():
        server = await asyncio.start_server(lambda _, writer: writer.close(), "127.0.0.1", 0)
        loop = asyncio.get_running_loop()
        reader = GatedReader(loop=loop)
        protocol = StreamProtocol(reader, loop=loop)
        address = server.sockets[0].getsockname()
        transport, _ = await loop.create_connection(lambda: protocol, *address)
        transport.abort()
        while not protocol.lost:
            await asyncio.sleep(0)
        reader.freeze()
        reader.thaw()
        server.close()

    uvloop.run(scenario())


async def test_an_adopted_client_keeps_what_was_read_of_it(world):
    ours, theirs = socket.socketpair()
    with theirs:
        loop = asyncio.get_running_loop()
        transport, _ = await loop.create_connection(asyncio.Protocol, sock=ours)
        owned = world.enforcer.connections.register(READER, "plain", "a.test", None)
        theirs.send(b" and late")
        reader, writer = adopt_stream(transport, world.enforcer, owned, b"early")
        assert await reader.read(5) == b"early"
        assert await reader.read(100) == b" and late"
        writer.write(b"down")
        assert theirs.recv(100) == b"down"
        assert (owned.bytes_up, owned.bytes_down) == (0, 4)
        writer.abort()
        world.enforcer.connections.forget(owned)
