"""The service: state swapped and pushed in one call, and nothing spawned is lost or fatal."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest
from haltwire_control import service as module
from haltwire_control.service import Service
from haltwire_control.state import SYSTEM, NewEvent
from haltwire_control.store import StoreError
from support.control import Worker, running_control
from support.stores import failing

MAILER = "agent://acme/prod/mailer"


async def test_the_state_is_that_of_the_last_commit(control, worker):
    await control.kill(MAILER, wait_s=0)
    assert control.service.state.revision == 1
    assert [str(kill.selector) for kill in control.service.state.kills] == [MAILER]


async def test_work_that_fails_is_logged_and_ends_nothing(control, caplog):
    async def fail():
        raise KeyError("a bug")

    control.service.spawn(fail(), "something")
    with failing(control.service.store):
        control.service.note(NewEvent("x", module.now(), SYSTEM))
        async with asyncio.timeout(5):
            while "write events" not in caplog.text:
                await asyncio.sleep(0.01)
    assert "something failed" in caplog.text
    assert (await control.call("GET", "/healthz")).status == 200


async def test_a_revision_is_waited_for_at_connected_proxies_only(control, worker, monkeypatch):
    monkeypatch.setattr(module, "APPLY_WITHIN_S", 0.05)
    gone = await Worker(control, "w-2", pid=1, pid_namespace="pid:[elsewhere]").join()
    await gone.leave()
    async with asyncio.timeout(1):
        await control.service.applied(0)
        worker.acknowledges = False
        await control.service.applied(control.service.state.revision + 1)


async def test_the_end_of_a_proxy_is_noticed_without_anybody_asking(control, monkeypatch):
    worker = await Worker(control, pid=2**22 + 1).join()
    await worker.leave()
    async with asyncio.timeout(5):
        while control.service.hub.peers:
            await asyncio.sleep(0.01)
    assert not control.service.state.proxies


async def test_what_was_volatile_is_no_longer_when_it_is_stored(control):
    service = control.service
    service.state = replace(service.state, volatile=frozenset({"K1", "K2"}))
    service.stored(frozenset({"K1"}))
    assert service.state.volatile == {"K2"}


async def test_the_longest_lease_is_stored_before_one_is_granted(tmp_path):
    async with running_control(tmp_path, lease_ms=5000) as control:
        assert control.service.state.longest_lease_ms == 5000
    async with running_control(tmp_path, lease_ms=300) as control:
        assert control.service.state.longest_lease_ms == 5000
        worker = await Worker(control).join()
        assert worker.received[0].settings.lease_ms == 300
        assert (await worker.renew()).lease_ms == 300


async def test_a_store_that_takes_nothing_grants_no_longer_leases_than_before(tmp_path, caplog):
    async with running_control(tmp_path, lease_ms=300) as control:
        service = Service(control.service.store, control.service.ledger, 5000)
        service.state = control.service.state
        with failing(control.service.store):
            await service.begin_leases()
        assert service.hub.lease_ms == 300
        assert "leases stay at 300 ms instead of 5000" in caplog.text
        service.state = replace(service.state, longest_lease_ms=0)
        service.hub.lease_ms = 5000
        with failing(control.service.store), pytest.raises(StoreError):
            await service.begin_leases()
