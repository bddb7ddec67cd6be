"""Hold, where nothing is read: live tunnels freeze and go on, new ones wait without any upstream contact."""

import asyncio
import contextlib
import hashlib
import os
import socket

import pytest
from haltwire.wire.refusals import Refusal
from haltwire_proxy.door import Door
from support.client import Wire, serving, tunnel
from support.world import BYSTANDER, SECRET, basic

MAILER = "agent://acme/prod/mailer"
CREDENTIALS = f"Proxy-Authorization: {basic('acme.prod.mailer', SECRET)}"
QUIET_S = 0.3
"How long nothing has to come."


class Peer:
    """A server that counts what it reads and sends what it is told to."""

    async def __aenter__(self):
        self.received = bytearray()
        self.more = asyncio.Condition()
        self.opened = asyncio.Event()
        self.accepted = 0
        self.ended = asyncio.Event()
        self._server, port = await serving(self._serve)
        self.target = f"127.0.0.1:{port}"
        return self

    async def __aexit__(self, *_):
        self._server.close()
        self._server.abort_clients()

    async def _serve(self, reader, writer):
        self.writer = writer
        self.accepted += 1
        self.opened.set()
        try:
            while chunk := await reader.read(65536):
                async with self.more:
                    self.received += chunk
                    self.more.notify_all()
        except ConnectionError:
            pass
        self.ended.set()
        writer.close()

    async def has(self, count, timeout=10):
        async with asyncio.timeout(timeout), self.more:
            await self.more.wait_for(lambda: len(self.received) >= count)


async def quiet(reader):
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(reader.read(1), QUIET_S)


@pytest.fixture
async def peer():
    async with Peer() as running:
        yield running


async def until(condition):
    async with asyncio.timeout(5):
        while not condition():
            await asyncio.sleep(0.01)


async def test_nothing_moves_in_either_direction_and_every_byte_goes_on_in_its_order(world, peer):
    up, down = os.urandom(3_000_000), os.urandom(3_000_000)
    wire = await tunnel(world.port, peer.target, "acme.prod.mailer", SECRET)
    await asyncio.wait_for(peer.opened.wait(), 5)
    wire.writer.write(up)
    peer.writer.write(down)
    await peer.has(1)
    (connection,) = world.enforcer.connections.everything()
    enforced = world.hold(MAILER)
    taken = connection.bytes_up
    (report,) = enforced.reports()
    assert report.instances[0].connections_held == 1
    assert len(peer.received) <= taken
    await peer.has(taken)
    await asyncio.sleep(QUIET_S)
    assert len(peer.received) == taken
    assert connection.bytes_up == taken
    assert taken < len(up)
    world.resume(enforced.ack.kills[0])
    got = await asyncio.wait_for(wire.reader.readexactly(len(down)), 10)
    await peer.has(len(up))
    assert hashlib.sha256(got).digest() == hashlib.sha256(down).digest()
    assert hashlib.sha256(peer.received).digest() == hashlib.sha256(up).digest()
    wire.close()


async def test_the_residue_is_what_the_peer_had_not_read(world):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8192)
        listener.setblocking(False)
        target = f"127.0.0.1:{listener.getsockname()[1]}"
        wire = await tunnel(world.port, target, "acme.prod.mailer", SECRET)
        loop = asyncio.get_running_loop()
        accepted, _ = await loop.sock_accept(listener)
        wire.writer.write(b"x" * 2_000_000)
        (connection,) = world.enforcer.connections.everything()
        await until(lambda: connection.upstreams[0].unwritten())
        (report,) = world.hold(MAILER).reports()
        assert report.residual_bytes_max > 0
        received, taken = 0, connection.bytes_up
        while received < taken:
            received += len(await asyncio.wait_for(loop.sock_recv(accepted, 1_000_000), 5))
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(loop.sock_recv(accepted, 1), QUIET_S)
        assert report.residual_bytes_max <= received == taken
        accepted.close()
        wire.close()


async def test_a_new_tunnel_waits_without_any_contact_and_is_opened_on_resume(world, peer):
    hold = world.hold(MAILER).ack.kills[0]
    wire = await Wire.open(world.port)
    await wire.send(f"CONNECT {peer.target} HTTP/1.1\r\n{CREDENTIALS}\r\n\r\nearly".encode())
    await quiet(wire.reader)
    assert peer.accepted == 0
    world.resume(hold)
    assert (await wire.answer()).status == 200
    await peer.has(len(b"early"))
    wire.close()


async def test_a_held_tunnel_that_becomes_killed_is_cut_and_never_opened(world, peer):
    hold = world.hold(MAILER)
    wire = await Wire.open(world.port)
    await wire.request("CONNECT", peer.target, CREDENTIALS, read=False)
    await until(lambda: world.enforcer.connections.held)
    enforced = world.kill(MAILER)
    assert await wire.ended() == b""
    (flight,) = enforced.reports()[0].instances[0].in_flight
    assert flight.sent == "none"
    world.resume(hold.ack.kills[0])
    assert peer.accepted == 0


async def test_a_client_that_gives_up_waiting_is_forgotten_and_counted(world, peer):
    hold = world.hold(MAILER)
    hold.reports()
    wire = await Wire.open(world.port)
    await wire.request("CONNECT", peer.target, CREDENTIALS, read=False)
    await until(lambda: world.enforcer.connections.held)
    wire.close()
    await until(lambda: not world.enforcer.connections.count)
    (report,) = world.enforcer.changed_reports()
    assert report.instances[0].lost_while_held == 1
    (final,) = world.resume(hold.ack.kills[0]).reports()
    assert final.instances[0].lost_while_held == 1
    assert peer.accepted == 0


async def test_a_waiting_tunnel_that_a_drain_refuses_has_not_given_up(world, peer):
    hold = world.hold(MAILER)
    wire = await Wire.open(world.port)
    await wire.request("CONNECT", peer.target, CREDENTIALS, read=False)
    await until(lambda: world.enforcer.connections.held)
    world.drain(MAILER)
    assert (await wire.answer()).status == 403
    assert not world.enforcer.connections.count
    (final,) = world.resume(hold.ack.kills[0]).reports()
    assert final.instances[0].lost_while_held == 0
    assert peer.accepted == 0
    wire.close()


async def test_what_a_waiting_client_sends_ahead_is_bounded(world, peer):
    world.hold(MAILER)
    wire = await Wire.open(world.port)
    await wire.request("CONNECT", peer.target, CREDENTIALS, read=False)
    wire.writer.transport.set_write_buffer_limits(high=0)
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(QUIET_S):
            while True:
                await wire.send(b"x" * 65536)
    assert wire.writer.transport.get_write_buffer_size()
    (door,) = world.services.doors
    assert len(door._buffer) <= 512 * 1024
    wire.close()


async def test_an_unfinished_dial_is_dropped_and_redone(world, peer, monkeypatch):
    dial, dials, cancelled = world.dialer.dial, [], asyncio.Event()

    async def first_hangs(*to):
        dials.append(to[0])
        if len(dials) == 1:
            try:
                await asyncio.Event().wait()
            finally:
                cancelled.set()
        return await dial(*to)

    monkeypatch.setattr(world.dialer, "dial", first_hangs)
    wire = await Wire.open(world.port)
    await wire.request("CONNECT", peer.target, CREDENTIALS, read=False)
    await until(lambda: dials)
    hold = world.hold(MAILER).ack.kills[0]
    await asyncio.wait_for(cancelled.wait(), 5)
    await quiet(wire.reader)
    assert len(dials) == 1
    world.resume(hold)
    assert (await wire.answer()).status == 200
    assert len(dials) == 2
    wire.close()


async def test_a_hold_that_comes_with_the_last_step_of_a_dial_is_kept(world, peer, monkeypatch):
    dial, held = world.dialer.dial, []

    async def hold_in_between(*to):
        if not held:
            held.append(world.hold(MAILER))
        return await dial(*to)

    monkeypatch.setattr(world.dialer, "dial", hold_in_between)
    wire = await Wire.open(world.port)
    await wire.request("CONNECT", peer.target, CREDENTIALS, read=False)
    await quiet(wire.reader)
    world.resume(held[0].ack.kills[0])
    assert (await wire.answer()).status == 200
    wire.close()


async def test_one_whose_upstream_came_with_the_hold_is_found_by_a_kill(world, peer, monkeypatch):
    """The end of that upstream, which is not used, took the connection out of the register: it hung for ever."""
    join, holds = Door._join, []

    def held_within(*about):
        if not holds:
            holds.append(world.hold(MAILER))
        join(*about)

    monkeypatch.setattr(Door, "_join", held_within)
    wire = await Wire.open(world.port)
    await wire.request("CONNECT", peer.target, CREDENTIALS, read=False)
    await quiet(wire.reader)
    world.resume(holds[0].ack.kills[0])
    assert (await wire.answer()).status == 200
    assert world.kill(MAILER).ack.connections_cut == 1
    assert await wire.ended() == b""


async def test_an_upstream_that_refuses_after_the_hold_is_named(world, peer, monkeypatch):
    hold = world.hold(MAILER).ack.kills[0]

    async def refused(*_):
        return Refusal("upstream_unreachable", "nobody there")

    monkeypatch.setattr(world.dialer, "dial", refused)
    wire = await Wire.open(world.port)
    await wire.request("CONNECT", peer.target, CREDENTIALS, read=False)
    await until(lambda: world.enforcer.connections.held)
    world.resume(hold)
    assert (await wire.answer()).status == 502
    wire.close()


async def test_an_end_that_comes_during_the_hold_is_passed_on_after_it(world, peer):
    wire = await tunnel(world.port, peer.target, "acme.prod.mailer", SECRET)
    await asyncio.wait_for(peer.opened.wait(), 5)
    hold = world.hold(MAILER).ack.kills[0]
    await wire.send(b"last words")
    wire.writer.write_eof()
    await asyncio.sleep(QUIET_S)
    assert not peer.received
    assert not peer.ended.is_set()
    world.resume(hold)
    await asyncio.wait_for(peer.ended.wait(), 5)
    assert bytes(peer.received) == b"last words"
    assert await wire.ended() == b""


async def test_hold_resume_hold_resume_loses_nothing(world, peer):
    sent = os.urandom(2_000_000)
    wire = await tunnel(world.port, peer.target, "acme.prod.mailer", SECRET)
    wire.writer.write(sent)
    for _ in range(50):
        hold = world.hold(MAILER).ack.kills[0]
        await asyncio.sleep(0)
        world.resume(hold)
        await asyncio.sleep(0)
    await peer.has(len(sent))
    assert bytes(peer.received) == sent
    wire.close()


async def test_bystanders_and_other_instances_move_on(world, peer):
    async with Peer() as other:
        victim = await tunnel(world.port, peer.target, "acme.prod.mailer~i-1", SECRET)
        others = [
            await tunnel(world.port, other.target, "acme.prod.mailer~i-2", SECRET),
            await tunnel(world.port, other.target, "acme.prod.bystander", BYSTANDER),
        ]
        world.hold(MAILER + "~i-1")
        await victim.send(b"held")
        for wire in others:
            await wire.send(b"moves")
        await other.has(len(b"moves") * 2)
        assert not peer.received
        for wire in (victim, *others):
            wire.close()


async def test_a_drain_lets_a_tunnel_finish_and_cuts_it_at_the_end_of_its_grace(world, peer):
    wire = await tunnel(world.port, peer.target, "acme.prod.mailer", SECRET)
    world.drain(MAILER, grace_s=0.5)
    await wire.send(b"still going")
    await peer.has(len(b"still going"))
    probe = await Wire.open(world.port)
    assert (await probe.request("CONNECT", peer.target, CREDENTIALS)).status == 403
    assert await wire.ended() == b""
    assert not world.enforcer.connections.count
    probe.close()
