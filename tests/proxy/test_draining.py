"""A worker that is to stop: what is under way ends in its own time, and everything else at once."""

import asyncio
import time
from contextlib import asynccontextmanager

import pytest
from haltwire_proxy.draining import drain
from support.client import Wire, tls_tunnel, tunnel
from support.recorder import Recorder
from support.world import INTERCEPTED, SECRET, basic

AUTH = f"Proxy-Authorization: {basic('acme.prod.mailer', SECRET)}"


@pytest.fixture
async def recorder():
    async with Recorder() as recorder:
        yield recorder


@asynccontextmanager
async def draining(world, limit_s: float = 60.0):
    """The worker's drain, which must end within the block."""
    hurry = asyncio.Event()
    task = asyncio.get_running_loop().create_task(drain(world.services, limit_s, hurry))
    task.hurry = hurry
    await asyncio.sleep(0)
    try:
        yield task
        await asyncio.wait_for(task, 10)
    finally:
        task.cancel()


async def ask(world, recorder, path: str, *, read: bool = True):
    """A plain request on a connection of its own."""
    wire = await Wire.open(world.port)
    target = f"http://127.0.0.1:{recorder.port}{path}"
    host = f"Host: 127.0.0.1:{recorder.port}"
    answer = await wire.request("GET", target, host, AUTH, read=read)
    return wire, answer


async def test_nothing_under_way_is_no_reason_to_wait(world):
    async with draining(world):
        pass


async def test_a_request_under_way_is_answered_and_the_client_sent_elsewhere(world, recorder):
    wire, _ = await ask(world, recorder, "/waiting", read=False)
    await recorder.has(1, 1)
    async with draining(world) as task:
        await asyncio.sleep(0.3)
        assert not task.done()
        recorder.answer()
        answer = await wire.answer()
        assert (answer.status, answer.headers["connection"]) == (200, "close")
        assert await wire.ended() == b""


async def test_an_idle_connection_ends_at_once_and_in_order(world, recorder):
    wire, answer = await ask(world, recorder, "/idle")
    assert answer.status == 200
    assert "connection" not in answer.headers
    async with draining(world):
        assert await asyncio.wait_for(wire.reader.read(), 5) == b""  # an end, and no reset


async def test_an_idle_connection_of_a_held_agent_ends_too(world, recorder):
    wire, _ = await ask(world, recorder, "/idle")
    world.hold("agent://acme/prod/mailer")
    async with draining(world):
        await wire.ended(5)


async def test_a_tunnel_may_go_on_until_the_limit(world, recorder):
    wire = await tunnel(world.port, f"127.0.0.1:{recorder.port}", "acme.prod.mailer", SECRET)
    await wire.request("GET", "/events", "Host: x", read=False)
    await recorder.has(1, 1)
    began = time.monotonic()
    async with draining(world, limit_s=1.0):
        pass
    assert time.monotonic() - began >= 1.0
    assert len(recorder.live) == 1
    assert world.enforcer.connections.count == 1  # the worker cuts it now
    assert await wire.reader.read(5) == b"HTTP/"


async def test_a_kill_meanwhile_cuts_as_ever(world, recorder):
    wire = await tunnel(world.port, f"127.0.0.1:{recorder.port}", "acme.prod.mailer", SECRET)
    await wire.request("GET", "/events", "Host: x", read=False)
    await recorder.has(1, 1)
    async with draining(world):
        await asyncio.sleep(0.1)
        world.kill("agent://acme/prod/mailer")
        await recorder.all_ended()
    await wire.ended()


async def test_nobody_waits_once_told_to_hurry(world, recorder):
    wire, _ = await ask(world, recorder, "/waiting", read=False)
    await recorder.has(1, 1)
    async with draining(world) as task:
        await asyncio.sleep(0.1)
        assert not task.done()
        task.hurry.set()
    assert world.enforcer.connections.count == 1
    wire.close()


async def test_nobody_new_comes_in(world, recorder):
    wire, _ = await ask(world, recorder, "/waiting", read=False)
    await recorder.has(1, 1)
    async with draining(world) as task:
        late = await Wire.open(world.port)
        with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
            await late.request("GET", f"http://127.0.0.1:{recorder.port}/idle", "Host: x", AUTH)
        task.hurry.set()
    assert recorder.requests() == 1
    wire.close()


async def test_a_connection_that_has_just_been_opened_gets_its_request_through(world, tls_origin):
    """It is not idle yet: closed here, its client would be told of an error that is none."""
    wire = await tls_tunnel(
        world.port,
        f"localhost:{tls_origin.port}",
        "acme.prod.reader",
        INTERCEPTED,
        world.ca_file,
    )
    async with draining(world):
        await asyncio.sleep(0.2)
        answer = await wire.request("GET", "/echo", f"Host: localhost:{tls_origin.port}")
        assert (answer.status, answer.headers["connection"]) == (200, "close")
        await wire.ended()


async def test_one_that_was_opened_and_asks_nothing_is_idle_soon(world, tls_origin):
    wire = await tls_tunnel(
        world.port,
        f"localhost:{tls_origin.port}",
        "acme.prod.reader",
        INTERCEPTED,
        world.ca_file,
    )
    async with draining(world):
        await wire.ended(5)
