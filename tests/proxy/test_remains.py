"""An inspected connection that has ended leaves nothing that only the garbage collector could remove."""

import asyncio
import gc

import pytest
from support.client import tls_tunnel, tunnel
from support.world import INTERCEPTED, SECRET

READER = ("acme.prod.reader~i-1", INTERCEPTED)
MAILER = ("acme.prod.mailer~i-1", SECRET)
OURS = ("haltwire_proxy", "mitmproxy")
KEPT = {
    "_Handler",
    "_Stream",
    "Http",
    "Client",
    "Server",
    "GatedReader",
    "GatedWriter",
    "Connection",
}
"What is much, and what the rest hangs on."


@pytest.fixture
def uncollected():
    """Ours and mitmproxy's objects that came since; nothing is collected meanwhile, unless asked for."""
    gc.collect()
    gc.disable()
    kept = gc.get_objects()  # so that nobody else gets their ids
    before = set(map(id, kept))

    def found():
        gc.collect(0)
        return {
            type(one).__qualname__
            for one in gc.get_objects()
            if id(one) not in before and type(one).__module__.startswith(OURS)
        }

    yield found
    gc.enable()


async def alive(uncollected, *names):
    """What lives, once what was needed to begin with is gone; it counts as old from here on."""
    found = uncollected()
    gc.collect()
    assert set(names) <= found
    return found


async def gone(uncollected, names):
    """Wait until nothing of these names is left."""
    async with asyncio.timeout(10):
        while uncollected() & names:
            await asyncio.sleep(0.05)


@pytest.mark.parametrize("path", ["/echo", "/hang"])
@pytest.mark.parametrize("ending", ["closed by its client", "cut"])
async def test_an_inspected_connection_leaves_no_circles(
    world, tls_origin, uncollected, ending, path
):
    target = f"localhost:{tls_origin.port}"
    wire = await tls_tunnel(world.port, target, *READER, world.ca_file)
    await wire.request("GET", path, f"Host: {target}", read=path == "/echo")
    await asyncio.wait_for(tls_origin.arrived.wait(), 5)
    names = await alive(uncollected, "_Handler", "Http", "ClientTLSLayer", "GatedWriter")
    if ending == "cut":
        world.kill("agent://acme/prod/reader")
    wire.close()
    await gone(uncollected, {name for name in names if name.endswith("Layer")} | KEPT)


@pytest.mark.parametrize("ending", ["closed by its client", "cut"])
async def test_a_tunnel_leaves_no_circles(world, origin, uncollected, ending):
    wire = await tunnel(world.port, origin.host, *MAILER)
    await wire.request("GET", "/echo", f"Host: {origin.host}")
    await alive(uncollected, "TunnelEnd", "Connection")
    if ending == "cut":
        world.kill("agent://acme/prod/mailer")
    wire.close()
    await gone(uncollected, {"TunnelEnd", "Connection"})


async def test_a_client_that_reads_slowly_may_end_after_all_else(world, tls_origin):
    """Its transport still has bytes for it when the layers are gone."""
    failures = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: failures.append(context))
    target = f"localhost:{tls_origin.port}"
    for _ in range(5):
        wire = await tls_tunnel(world.port, target, *READER, world.ca_file)
        await wire.request("GET", "/echo", f"Host: {target}", "Connection: close")
        wire.close()
    async with asyncio.timeout(5):
        while world.enforcer.connections.count:
            await asyncio.sleep(0.02)
    assert not failures
