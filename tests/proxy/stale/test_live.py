"""Beyond the lease, what lives: it stands still from the first byte on, and goes on where it stood or is cut."""

import asyncio
import os

import pytest
from haltwire_proxy.staleness import Rule
from support.client import Http2, tunnel
from support.held import asked, opened, same
from support.scripted import QUIET_S, leave, stood_still, until
from support.world import SECRET, World

MAILER = "agent://acme/prod/mailer"
FOUND_OUT = pytest.mark.parametrize("noticed", [True, False], ids=["by the timer", "by a byte"])


async def opened_tunnel(world, stage):
    wire = await tunnel(world.port, stage.host, "acme.prod.mailer", SECRET)
    return wire, await stage.connection()


@FOUND_OUT
async def test_a_tunnel_stands_still_both_ways_and_no_byte_is_lost(world, plain_stage, noticed):
    """A process that wakes may read before any timer fires: the byte itself finds out.

    Without the lease asked for in `TunnelEnd._stands` this failed where a byte has to find out.
    """
    up, down = os.urandom(2_000_000), os.urandom(2_000_000)
    wire, played = await opened_tunnel(world, plain_stage)
    await wire.send(b"before")
    await played.has(b"before")
    world.go_stale(noticed=noticed)
    wire.writer.write(up)
    played.writer.write(down)
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(wire.reader.read(1), QUIET_S)
    assert bytes(played.received) == b"before"
    world.renew()
    assert same(await asyncio.wait_for(wire.reader.readexactly(len(down)), 20), down)
    await until(lambda: len(played.received) == len(b"before") + len(up))
    assert same(bytes(played.received), b"before" + up)


@pytest.mark.parametrize("way", ["tunnel", "inspected"])
async def test_what_a_slow_upstream_has_not_taken_does_not_leave(world, stage, plain_stage, way):
    """It was read before the lease ended, and would else be sent as soon as there is room: also by one that wakes.

    What the kernel had may arrive, and one byte with it: that is what `residual_bytes_max` bounds.
    """
    sent = os.urandom(6_000_000)
    if way == "tunnel":
        wire, played = await opened_tunnel(world, plain_stage)
    else:
        wire, _, played = await asked(world, stage, "POST", f"Content-Length: {len(sent)}")
    played.reading.clear()
    (connection,) = world.enforcer.connections.everything()
    (upstream,) = connection.upstreams
    wire.writer.write(sent)
    await until(upstream.unwritten)
    await stood_still(upstream.unwritten)
    world.go_stale(noticed=False)
    kept = upstream.unwritten()
    assert kept > 1
    arrives = upstream.written - kept
    played.reading.set()
    await stood_still(upstream.unwritten, lambda: len(played.received))
    assert upstream.unwritten() == kept - 1
    if way == "tunnel":
        assert len(played.received) == arrives + 1
    assert len(played.body if way == "inspected" else played.received) <= arrives + 1
    world.renew()
    body = (lambda: played.body) if way == "inspected" else (lambda: bytes(played.received))
    await until(lambda: len(body()) == len(sent))
    assert same(body(), sent)


@FOUND_OUT
async def test_the_end_of_a_direction_stands_still_too(world, plain_stage, noticed):
    """It may be what completes a request. Without `_stands` in `eof_received` this failed where the end finds out."""
    wire, played = await opened_tunnel(world, plain_stage)
    world.go_stale(noticed=noticed)
    wire.writer.write_eof()
    await asyncio.sleep(QUIET_S)
    assert played.end is None
    world.renew()
    await until(lambda: played.end == "orderly")


async def test_a_tunnel_is_cut_when_the_hold_is_over(world, plain_stage):
    wire, played = await opened_tunnel(world, plain_stage)
    world.go_stale()
    world.slept += 9.0
    assert not world.enforcer.may_pass()
    assert played.end is None
    world.slept += 1.1
    await wire.send(b"late")
    world.enforcer.lease.watch()
    assert await wire.ended() == b""
    await until(lambda: played.end == "reset")
    assert bytes(played.received) == b""
    assert world.enforcer.connections.count == 0


async def test_whoever_slept_through_the_hold_wakes_cutting(world, plain_stage):
    """As after a suspend, or SIGCONT after a long SIGSTOP: the first thing that happens is a byte."""
    wire, played = await opened_tunnel(world, plain_stage)
    world.renew(lease_ms=1000)
    world.slept += 3_600.0
    world.go_stale(noticed=False)
    world.enforcer.replica._lease_end_boot -= 3_599.0
    await wire.send(b"late")
    assert await wire.ended() == b""
    await until(lambda: played.end == "reset")
    assert bytes(played.received) == b""


@FOUND_OUT
async def test_a_request_that_is_read_inside_stands_still_both_ways(world, stage, noticed):
    """Without the lease asked for in `GatedWriter._stands` this failed where a byte has to find out."""
    up, down = os.urandom(1_000_000), os.urandom(1_000_000)
    wire, client, played = await asked(world, stage, "POST", f"Content-Length: {len(up) + 6}")
    await wire.send(b"before")
    await played.has(b"before")
    await played.head(f"Content-Length: {len(down) + 6}\r\n")
    await played.send(b"before")
    await until(lambda: client.body == b"before")
    world.go_stale(noticed=noticed)
    wire.writer.write(up)
    played.writer.write(down)
    await asyncio.sleep(QUIET_S)
    assert (client.body, played.body) == (b"before", b"before")
    world.renew()
    await until(lambda: len(client.body) == len(down) + 6 and len(played.body) == len(up) + 6)
    assert same(client.body, b"before" + down)
    assert same(played.body, b"before" + up)


@FOUND_OUT
async def test_a_websocket_stands_still_both_ways(world, stage, noticed):
    upgrade = ("Upgrade: websocket", "Connection: Upgrade", "Sec-WebSocket-Version: 13")
    key = "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ=="
    wire, client, played = await asked(world, stage, "GET", *upgrade, key)
    accept = "Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n"
    await played.head(
        f"Upgrade: websocket\r\nConnection: Upgrade\r\n{accept}", "101 Switching Protocols"
    )
    await until(lambda: b"\r\n\r\n" in client.got)
    world.go_stale(noticed=noticed)
    before = len(played.received)
    await wire.send(b"\x81\x84\0\0\0\0more")
    await played.send(b"\x81\x04tick")
    await asyncio.sleep(QUIET_S)
    assert (client.body, len(played.received)) == (b"", before)
    world.renew()
    await until(lambda: client.body == b"\x81\x04tick")
    await until(lambda: b"more" in _unmasked(played.received[before:]))


def _unmasked(frame):
    mask, text = frame[2:6], frame[6:]
    return bytes(byte ^ mask[at % 4] for at, byte in enumerate(text))


@FOUND_OUT
async def test_http2_streams_stand_still(world, authority, stage, noticed):
    wire = await opened(world, stage, alpn=("h2",))
    client = Http2(wire, stage.host)
    await client.begin("POST", end_stream=False)
    played = await stage.asked()
    client.connection.send_data(1, b"before")
    await client.flush()
    await played.has(b"before")
    world.go_stale(noticed=noticed)
    before = len(played.received)
    client.connection.send_data(1, b"beyond", end_stream=True)
    await client.flush()
    await asyncio.sleep(QUIET_S)
    assert len(played.received) == before
    world.renew()
    await played.has(b"beyond")


async def test_a_kill_that_comes_meanwhile_cuts_and_says_so(world, plain_stage):
    wire, played = await opened_tunnel(world, plain_stage)
    world.go_stale()
    enforced = world.kill(MAILER)
    assert enforced.ack.connections_cut == 1
    (instance,) = enforced.reports()[0].instances
    assert (instance.connections_cut, instance.connections_held) == (1, 0)
    world.renew()
    assert await wire.ended() == b""
    await until(lambda: played.end == "reset")


async def test_a_hold_that_comes_meanwhile_holds_on(world, plain_stage):
    """Without the guard in `Connections._go_on` the end of the freeze was the end of the hold: this failed."""
    wire, played = await opened_tunnel(world, plain_stage)
    world.go_stale()
    hold = world.hold(MAILER)
    assert hold.reports()[0].instances[0].connections_held == 1
    await wire.send(b"held")
    world.renew()
    await asyncio.sleep(QUIET_S)
    assert bytes(played.received) == b""
    world.resume(hold.ack.kills[0])
    await played.has(b"held")


async def test_a_hold_that_is_lifted_meanwhile_waits_for_the_lease(world, plain_stage):
    wire, played = await opened_tunnel(world, plain_stage)
    hold = world.hold(MAILER)
    world.go_stale()
    await wire.send(b"held")
    world.resume(hold.ack.kills[0])
    await asyncio.sleep(QUIET_S)
    assert bytes(played.received) == b""
    world.renew()
    await played.has(b"held")


@pytest.mark.parametrize("how", ["end", "reset"])
async def test_a_client_that_gives_up_meanwhile_is_forgotten(world, stage, how):
    wire, _, played = await asked(world, stage)
    world.go_stale()
    leave(wire, how)
    world.enforcer.lease.watch()
    await until(lambda: world.enforcer.connections.count == 0)
    await until(lambda: played.end)


async def test_the_clocks_of_what_is_read_inside_stand_still(world, stage):
    await asked(world, stage)
    (connection,) = world.enforcer.connections.everything()
    world.go_stale()
    assert connection.frozen
    assert not connection.held
    world.renew()
    assert not connection.frozen


async def test_an_idle_connection_is_answered_when_the_hold_is_over(world, stage):
    """Nothing of it is at any upstream, and its client is owed a reason."""
    wire = await opened(world, stage)
    world.go_stale()
    world.slept += 11.0
    world.enforcer.lease.watch()
    answer = await wire.request("GET", "/x", f"Host: {stage.host}")
    assert (answer.status, answer.json()["error"]) == (503, "enforcement_unknown")
    assert stage.played == []


async def test_the_lease_may_end_in_the_midst_of_letting_go_on(world, stage):
    """Then the rest of what was kept stays kept, in its order."""
    await asked(world, stage, "POST", "Content-Length: 1000000")
    (connection,) = world.enforcer.connections.everything()
    (upstream,) = connection.upstreams
    world.go_stale()
    sent = [b"%05d" % number for number in range(100)]
    for piece in sent:
        upstream.write(piece)
    passed, passing = [], upstream._pass

    def ends_soon(data):
        passed.append(data)
        if len(passed) == 10:
            world.go_stale(noticed=False)

    upstream._pass = ends_soon
    world.renew()
    assert passed == sent[:10]
    assert connection.stale
    assert upstream.unwritten() == sum(map(len, sent[10:]))
    upstream._pass = passed.append
    world.renew()
    assert passed == sent
    assert not connection.frozen
    upstream._pass = passing


async def test_what_is_being_written_to_an_idle_client_when_the_lease_ends_is_kept(world, stage):
    """The last bytes of a response may follow the end of its request; our own refusals come later and pass."""
    wire = await opened(world, stage)
    (connection,) = world.enforcer.connections.everything()
    world.go_stale(noticed=False)
    connection.client.write(b"tail")
    assert connection.client.unwritten() == len(b"tail")
    wire.close()


async def test_a_proxy_that_keeps_passes_on(data_dir, authority, plain_stage):
    async with World(data_dir, authority.ca_file, "http://127.0.0.1:1", rule=Rule("keep")) as world:
        wire, played = await opened_tunnel(world, plain_stage)
        world.go_stale()
        await wire.send(b"beyond")
        await played.has(b"beyond")
        assert world.enforcer.tallies.totals["leases_overrun"] == 1
        world.kill(MAILER)
        assert await wire.ended() == b""
