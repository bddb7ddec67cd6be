"""How long an inspected connection may be idle: what stands still does not count."""

import asyncio
from types import SimpleNamespace

import pytest
from haltwire_proxy.watchdog import Watchdog


@pytest.fixture
async def watched():
    owned, fired = SimpleNamespace(frozen=False), asyncio.Event()

    async def fire():
        fired.set()

    dog = Watchdog(0.25, fire, owned)
    dog.owned, dog.fired = owned, fired
    dog.watching = asyncio.ensure_future(dog.watch())
    yield dog
    dog.end()
    await asyncio.gather(dog.watching, return_exceptions=True)


async def test_an_idle_connection_is_ended_once(watched):
    await asyncio.wait_for(watched.fired.wait(), 5)
    await asyncio.wait_for(watched.watching, 5)


async def test_one_that_moves_is_not(watched):
    for _ in range(30):
        watched.register_activity()
        await asyncio.sleep(0.02)
    assert not watched.fired.is_set()
    await asyncio.wait_for(watched.fired.wait(), 5)


async def test_one_that_is_frozen_is_not_until_it_goes_on(watched):
    watched.owned.frozen = True
    await asyncio.sleep(0.8)
    assert not watched.fired.is_set()
    watched.owned.frozen = False
    await asyncio.wait_for(watched.fired.wait(), 5)


async def test_it_ends_with_its_connection_also_before_it_has_begun(watched):
    watched.end()
    await asyncio.gather(watched.watching, return_exceptions=True)
    early = Watchdog(0.25, watched.callback, watched.owned)
    early.end()
    await asyncio.wait_for(early.watch(), 1)
    assert not watched.fired.is_set()
