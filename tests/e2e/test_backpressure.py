"""A reader that is slow, or stops, makes us read no more: what we hold for it is little."""

from __future__ import annotations

import asyncio
import contextlib
from contextlib import AsyncExitStack

from support.bulk import BulkOrigin
from support.operator import Operator
from support.procs import Peaks, unsent_to
from support.slow import SlowClient, SlowOrigin, SlowReader
from support.streams import Caller, Way

MUCH = 300_000_000
READ = 2_000_000
"What is read before nothing is read any more."
OURS = 512 * 1024
"The most that we may hold in our own memory for one reader."
ALLOWED = 40 * 1024 * 1024
WAYS = (
    Way("http", "tunnel"),
    Way("https", "tunnel"),
    Way("http", "intercept"),
    Way("https", "intercept"),
)


async def test_a_reader_that_is_slow_and_then_stops(system, authority):
    async with AsyncExitStack() as stack:
        operator = await stack.enter_async_context(Operator(system))
        workers = (await operator.call("GET", "/v1/proxies"))["proxies"]
        peaks = Peaks(worker["pid"] for worker in workers)
        readers: dict[tuple[str, str], SlowReader] = {}
        for way in WAYS:
            context = authority.server_context("localhost") if way.scheme == "https" else None
            trusted = system.ca_file if way.tls == "intercept" else authority.ca_file
            up = await stack.enter_async_context(SlowOrigin(context))
            url = await system.token(f"agent://acme/up/{way}", way.tls)
            caller = Caller(system.port, url, way, up.host, trusted)
            pouring = asyncio.get_running_loop().create_task(_pour(caller), name=f"up {way}")
            stack.callback(pouring.cancel)
            source = stack.enter_context(BulkOrigin(context))
            url = await system.token(f"agent://acme/down/{way}", way.tls)
            caller = Caller(system.port, url, way, source.host, trusted)
            down = SlowClient(caller, caller.head("GET", f"/{MUCH}"))
            readers["up", str(way)] = up
            readers["down", str(way)] = await stack.enter_async_context(down)
        for reader in readers.values():
            reader.piece, reader.every_s = 16 * 1024, 0.005
        for reader in readers.values():
            await reader.has_read(READ)
        for reader in readers.values():
            reader.paused = True
        await asyncio.gather(*(_is_stuck(reader) for reader in readers.values()))
        print(f"\nthe workers grew by {peaks.growth() / 1e6:.1f} MB")
        assert peaks.growth() < ALLOWED
        for (direction, way), reader in readers.items():
            given = _given(reader)
            receipt = await operator.kill(f"agent://acme/{direction}/{way}")
            (flight,) = [f for row in receipt.body["instances"] for f in row["in_flight"]]
            taken = flight[f"bytes_{direction}"]
            ours = taken - given
            print(f"{direction} {way}: taken {taken}, given to the kernel {given}, ours {ours}")
            assert taken < MUCH
            assert ours < OURS


async def _pour(caller: Caller) -> None:
    wire = await caller.connect()
    with contextlib.suppress(ConnectionError):
        await wire.send(caller.head("POST", "/upload", f"Content-Length: {MUCH}"))
        for _ in range(MUCH // 100_000):
            await wire.send(bytes(100_000))


async def _is_stuck(reader: SlowReader) -> None:
    """Return when nobody has given the kernel anything for this reader for half a second."""
    async with asyncio.timeout(120):
        before, still = 0, 0
        while still < 10:
            now = _given(reader)
            still = still + 1 if now == before else 0
            before = now
            await asyncio.sleep(0.05)


def _given(reader: SlowReader) -> int:
    """Bytes that the kernel has taken for this reader, wherever they are now."""
    return reader.arrived() + unsent_to(reader.port)
