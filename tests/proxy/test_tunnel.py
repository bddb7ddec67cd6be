"""Tunnels: every byte, both directions, both ends, and nothing after the lease or the kill."""

import asyncio
import contextlib
import hashlib
import os
import socket

import pytest
from haltwire_proxy import tunnel as tunnel_module
from support.client import Wire, serving, tunnel
from support.hello import real_hello
from support.world import BYSTANDER, SECRET, basic


class Echo:
    """A TCP server that sends back what it reads and half-closes when its client does."""

    async def __aenter__(self):
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.target = f"127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(self, *_):
        self._server.close()

    async def _serve(self, reader, writer):
        while chunk := await reader.read(65536):
            writer.write(chunk)
            await writer.drain()
        writer.write(b"<end>")
        writer.close()


async def test_bytes_are_the_same_at_both_ends_and_the_end_is_passed_on(world):
    sent = os.urandom(5 * 1024 * 1024)
    async with Echo() as echo:
        wire = await tunnel(world.port, echo.target, "acme.prod.mailer", SECRET)

        async def feed():
            await wire.send(sent)
            wire.writer.write_eof()

        _, received = await asyncio.gather(feed(), asyncio.wait_for(wire.reader.read(), 10))
        wire.close()
    assert hashlib.sha256(received).digest() == hashlib.sha256(sent + b"<end>").digest()
    (usage,) = world.enforcer.tallies.all()
    assert (usage.bytes_up, usage.bytes_down) == (len(sent), len(received))
    assert (usage.requests, usage.connections) == (1, 0)


async def test_a_slow_reader_makes_us_buffer_little(world):
    listener = socket.create_server(("127.0.0.1", 0))
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8192)
    listener.setblocking(False)
    target = f"127.0.0.1:{listener.getsockname()[1]}"
    wire = await tunnel(world.port, target, "acme.prod.mailer", SECRET)
    accepted, _ = await asyncio.get_running_loop().sock_accept(listener)
    try:
        wire.writer.transport.set_write_buffer_limits(high=0)
        try:
            async with asyncio.timeout(0.5):
                while True:
                    await wire.send(b"x" * 65536)
        except TimeoutError:
            pass
        (connection,) = world.enforcer.connections.everything()
        (upstream,) = connection.upstreams
        assert upstream.unwritten() < 512 * 1024
    finally:
        accepted.close()
        listener.close()
        wire.close()


async def test_a_kill_lets_nothing_that_is_queued_leave(world):
    """An upstream that reads slowly gets no more than its own kernel had already accepted."""
    listener = socket.create_server(("127.0.0.1", 0))
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
    listener.setblocking(False)
    target = f"127.0.0.1:{listener.getsockname()[1]}"
    loop = asyncio.get_running_loop()
    wire = await tunnel(world.port, target, "acme.prod.mailer", SECRET)
    accepted, _ = await loop.sock_accept(listener)
    wire.writer.write(b"x" * 6_000_000)
    (connection,) = world.enforcer.connections.everything()
    while not connection.upstreams[0].unwritten():
        await asyncio.sleep(0.01)
    written = connection.upstreams[0].written
    world.kill("agent://acme/prod/mailer")
    received = 0
    try:
        while chunk := await asyncio.wait_for(loop.sock_recv(accepted, 65536), 2):
            received += len(chunk)
        ended = "orderly"
    except ConnectionResetError:
        ended = "reset"
    assert ended == "reset"
    assert received < written
    assert received <= 400_000, "more than the receiver's own buffer can hold"
    accepted.close()
    listener.close()
    wire.close()


async def test_a_bystander_is_untouched(world):
    async with Echo() as echo:
        victim = await tunnel(world.port, echo.target, "acme.prod.mailer", SECRET)
        bystander = await tunnel(world.port, echo.target, "acme.prod.bystander", BYSTANDER)
        enforced = world.kill("agent://acme/prod/mailer")
        assert enforced.ack.connections_cut == 1
        assert await victim.ended() == b""
        await bystander.send(b"still here")
        assert await asyncio.wait_for(bystander.reader.readexactly(10), 2) == b"still here"
        bystander.close()


async def test_an_instance_kill_leaves_the_other_instances_alone(world):
    async with Echo() as echo:
        one = await tunnel(world.port, echo.target, "acme.prod.mailer~i-1", SECRET)
        two = await tunnel(world.port, echo.target, "acme.prod.mailer~i-2", SECRET)
        world.kill("agent://acme/prod/mailer~i-1")
        assert await one.ended() == b""
        await two.send(b"ok")
        assert await asyncio.wait_for(two.reader.readexactly(2), 2) == b"ok"
        two.close()


async def test_an_upstream_that_resets_takes_its_client_along(world):
    listener = socket.create_server(("127.0.0.1", 0))
    listener.setblocking(False)
    wire = await tunnel(
        world.port, f"127.0.0.1:{listener.getsockname()[1]}", "acme.prod.mailer", SECRET
    )
    accepted, _ = await asyncio.get_running_loop().sock_accept(listener)
    accepted.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    accepted.close()
    assert await wire.ended() == b""
    listener.close()
    assert world.enforcer.connections.count == 0


class Slow:
    """An upstream that reads only when it is told to, from a small buffer."""

    async def __aenter__(self):
        self._listener = socket.socket()
        self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        self._listener.bind(("127.0.0.1", 0))
        self._listener.listen()
        self._listener.setblocking(False)
        self.target = f"127.0.0.1:{self._listener.getsockname()[1]}"
        return self

    async def __aexit__(self, *_):
        self._listener.close()
        self.socket.close()

    async def accept(self):
        self.socket, _ = await asyncio.get_running_loop().sock_accept(self._listener)

    async def rest(self):
        """All that still comes, and how it ended."""
        loop, received = asyncio.get_running_loop(), 0
        try:
            while chunk := await asyncio.wait_for(loop.sock_recv(self.socket, 65536), 2):
                received += len(chunk)
        except ConnectionResetError:
            return received, "reset"
        return received, "orderly"


async def _ended_on_both_sides(world, slow):
    """The upstream has ended early, the client has sent 200 kB and ended too."""
    wire = await tunnel(world.port, slow.target, "acme.prod.mailer", SECRET)
    await slow.accept()
    slow.socket.shutdown(socket.SHUT_WR)
    await asyncio.wait_for(wire.reader.read(), 2)
    wire.writer.write(b"x" * 200_000)
    wire.writer.write_eof()
    (connection,) = world.enforcer.connections.everything()
    async with asyncio.timeout(2):
        while connection.bytes_up != 200_000:
            await asyncio.sleep(0.01)
    await asyncio.sleep(0.1)


async def test_what_an_ended_tunnel_has_queued_is_still_in_a_kills_reach(world):
    """A closed descriptor can no longer be reset, and the kernel goes on sending what it holds."""
    async with Slow() as slow:
        await _ended_on_both_sides(world, slow)
        enforced = world.kill("agent://acme/prod/mailer")
        assert enforced.ack.connections_cut == 1
        received, end = await slow.rest()
        assert end == "reset"
        assert received < 200_000


async def test_what_an_ended_tunnel_has_queued_arrives(world):
    async with Slow() as slow:
        await _ended_on_both_sides(world, slow)
        assert await slow.rest() == (200_000, "orderly")
        async with asyncio.timeout(2):
            while world.enforcer.connections.count:
                await asyncio.sleep(0.01)


@pytest.mark.parametrize("ended", ["client", "both"])
async def test_a_half_closed_tunnel_that_is_still_is_ended(world, monkeypatch, ended):
    """Whether the client has gone or waits cannot be seen: idle, it is not kept for ever."""
    monkeypatch.setattr(tunnel_module, "HALF_CLOSED_S", 0.1)
    async with Slow() as slow:
        if ended == "both":
            await _ended_on_both_sides(world, slow)
        else:
            wire = await tunnel(world.port, slow.target, "acme.prod.mailer", SECRET)
            await slow.accept()
            wire.writer.write_eof()
        async with asyncio.timeout(2):
            while world.enforcer.connections.count:
                await asyncio.sleep(0.01)


async def test_a_half_closed_tunnel_that_moves_is_kept(world, monkeypatch):
    monkeypatch.setattr(tunnel_module, "HALF_CLOSED_S", 0.05)
    async with Slow() as slow:
        wire = await tunnel(world.port, slow.target, "acme.prod.mailer", SECRET)
        await slow.accept()
        wire.writer.write_eof()
        for _ in range(10):
            await asyncio.sleep(0.02)
            slow.socket.send(b".")
        assert await asyncio.wait_for(wire.reader.readexactly(10), 2) == b"." * 10
        wire.close()


class Heard:
    """An upstream that notes what it reads, and says what it is told to first."""

    def __init__(self, first=b""):
        self._first, self.received, self.ended = first, bytearray(), asyncio.Event()

    async def __aenter__(self):
        self._server, port = await serving(self._serve)
        self.target = f"localhost:{port}"
        return self

    async def __aexit__(self, *_):
        self._server.close()
        self._server.abort_clients()

    async def _serve(self, reader, writer):
        writer.write(self._first)
        with contextlib.suppress(ConnectionError):
            while chunk := await reader.read(65536):
                self.received += chunk
        self.ended.set()


UNRECOGNIZED_NAME, DECODE_ERROR = bytes.fromhex("15030100020270"), bytes.fromhex("15030100020232")
ENDS = {
    "another name": (real_hello("b.test"), UNRECOGNIZED_NAME, 1),
    "malformed": (b"\x16\3\1\0\0\0", DECODE_ERROR, 0),
    "a warning first": (bytes((21, 3, 1, 0, 2, 1, 0)), DECODE_ERROR, 0),
    "a CONNECT": (b"CONNECT a.test:443 HTTP/1.1\r\n\r\n", b"HTTP/1.1 400 Bad Request", 0),
}


@pytest.mark.parametrize("name", ENDS)
async def test_a_greeting_that_is_refused_ends_both_sides(world, name):
    """Nothing of it goes up, the client is told in its own protocol, and it is counted as refused."""
    greeting, answer, mismatches = ENDS[name]
    async with Heard() as upstream:
        wire = await tunnel(world.port, upstream.target, "acme.prod.mailer", SECRET)
        await wire.send(greeting)
        assert (await wire.ended()).startswith(answer)
        await asyncio.wait_for(upstream.ended.wait(), 2)
        assert upstream.received == b""
    assert world.enforcer.connections.count == 0
    (usage,) = world.enforcer.tallies.all()
    assert (usage.refused, usage.bytes_up, usage.bytes_down) == (1, 0, 0)
    noted = world.enforcer.tallies.take_mismatches()
    assert len(noted) == mismatches
    for one in noted:
        assert (one.source, one.kind, one.agent, one.count) == (
            "127.0.0.1",
            "authority_mismatch",
            "agent://acme/prod/mailer",
            1,
        )


async def _begun(world, upstream, hello):
    """A tunnel whose client has sent all of its hello but the last byte, which is held back."""
    wire = await tunnel(world.port, upstream.target, "acme.prod.mailer", SECRET)
    await wire.send(hello[:-1])
    (connection,) = world.enforcer.connections.everything()
    async with asyncio.timeout(2):
        while not connection.client._greeting.held:
            await asyncio.sleep(0.01)
    return wire, connection


HELLO = real_hello("localhost")


async def test_a_hello_goes_up_when_it_is_whole(world):
    async with Heard() as upstream:
        wire, connection = await _begun(world, upstream, HELLO)
        assert (connection.bytes_up, upstream.received) == (0, b"")
        await wire.send(HELLO[-1:])
        async with asyncio.timeout(2):
            while upstream.received != HELLO:
                await asyncio.sleep(0.01)
        assert connection.bytes_up == len(HELLO)
        wire.close()


async def test_a_kill_during_a_hello_says_that_nothing_has_gone_up(world):
    async with Heard() as upstream:
        wire, _ = await _begun(world, upstream, HELLO)
        (report,) = world.kill("agent://acme/prod/mailer").reports()
        (fact,) = report.instances[0].in_flight
        assert (fact.bytes_up, fact.bytes_up_acked) == (0, 0)
        assert await wire.ended() == b""
        await asyncio.wait_for(upstream.ended.wait(), 2)
        assert upstream.received == b""


async def test_a_lease_that_ends_during_a_hello_lets_nothing_up(world):
    async with Heard() as upstream:
        wire, _ = await _begun(world, upstream, HELLO)
        world.lose_lease()
        await wire.send(HELLO[-1:])
        assert await wire.ended() == b""
        await asyncio.wait_for(upstream.ended.wait(), 2)
        assert upstream.received == b""


async def test_a_hold_stops_the_clock_of_a_hello(world, monkeypatch):
    monkeypatch.setattr(tunnel_module, "HELLO_S", 0.2)
    async with Heard() as upstream:
        wire, connection = await _begun(world, upstream, HELLO)
        enforced = world.hold("agent://acme/prod/mailer")
        await wire.send(HELLO[-1:])
        await asyncio.sleep(0.5)
        assert (connection.bytes_up, upstream.received) == (0, b"")
        world.resume(enforced.ack.kills[0])
        async with asyncio.timeout(2):
            while upstream.received != HELLO:
                await asyncio.sleep(0.01)
        wire.close()


@pytest.mark.parametrize("end", ["late", "ended"])
async def test_a_hello_that_never_becomes_whole_is_refused(world, monkeypatch, end):
    monkeypatch.setattr(tunnel_module, "HELLO_S", 0.2 if end == "late" else 60)
    async with Heard() as upstream:
        wire, _ = await _begun(world, upstream, HELLO)
        if end == "ended":
            wire.writer.write_eof()
        assert await wire.ended() == DECODE_ERROR
        await asyncio.wait_for(upstream.ended.wait(), 2)
        assert upstream.received == b""
    (usage,) = world.enforcer.tallies.all()
    assert usage.refused == 1
    assert world.enforcer.connections.count == 0


async def test_a_client_that_says_nothing_may_stay(world, monkeypatch):
    """A server that speaks first is heard, and what its client answers is not taken for TLS."""
    monkeypatch.setattr(tunnel_module, "HELLO_S", 0.05)
    async with Heard(b"\x4a\0\0\0\n8.0 MySQL") as upstream:
        wire = await tunnel(world.port, upstream.target, "acme.prod.mailer", SECRET)
        assert await asyncio.wait_for(wire.reader.read(100), 2) == b"\x4a\0\0\0\n8.0 MySQL"
        await asyncio.sleep(0.2)
        await wire.send(b"\x16\3\0\1login")
        async with asyncio.timeout(2):
            while upstream.received != b"\x16\3\0\1login":
                await asyncio.sleep(0.01)
        wire.close()


async def test_a_hello_that_comes_before_our_200_is_judged_too(world):
    """Bytes pipelined behind the CONNECT."""
    async with Heard() as upstream:
        wire = await Wire.open(world.port)
        head = f"CONNECT {upstream.target} HTTP/1.1\r\nProxy-Authorization: {basic('acme.prod.mailer', SECRET)}\r\n\r\n"
        await wire.send(head.encode() + real_hello("b.test"))
        answer = await wire.ended()
        assert answer.startswith(b"HTTP/1.1 200 ")
        assert answer.endswith(UNRECOGNIZED_NAME)
        await asyncio.wait_for(upstream.ended.wait(), 2)
        assert upstream.received == b""
