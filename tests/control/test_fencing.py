"""The end of a lease is noticed when it comes, by whatever a silent proxy is waited for."""

from __future__ import annotations

import asyncio
import contextlib
import time
from contextlib import asynccontextmanager

import pytest
from haltwire_control import fencing
from haltwire_control.fencing import Fencing
from support.control import Worker, running_control

MAILER = "agent://acme/prod/mailer"


class Leases:
    """A hub of which only the leases are asked."""

    def __init__(self, *left: float | Exception) -> None:
        self.left = list(left)
        self.looked: list[float] = []

    def lapse(self) -> float:
        self.looked.append(time.monotonic())
        left = self.left.pop(0) if self.left else 1000.0
        if isinstance(left, Exception):
            raise left
        return left


@asynccontextmanager
async def following(hub):
    task = asyncio.get_running_loop().create_task(Fencing(hub).follow())
    try:
        yield
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def until(is_so) -> None:
    async with asyncio.timeout(10):
        while not is_so():
            await asyncio.sleep(0.005)


async def test_it_looks_again_when_the_next_lease_ends():
    hub = Leases(0.2, 0.0)
    async with following(hub):
        await until(lambda: len(hub.looked) >= 3)
    assert hub.looked[1] - hub.looked[0] >= 0.19


async def test_it_looks_now_and_then_because_timers_stand_still_while_the_machine_sleeps(
    monkeypatch,
):
    monkeypatch.setattr(fencing, "LOOK_EVERY_S", 0.02)
    hub = Leases()
    async with following(hub):
        await until(lambda: len(hub.looked) >= 5)


async def test_a_fault_does_not_end_it(monkeypatch, caplog):
    monkeypatch.setattr(fencing, "LOOK_EVERY_S", 0.02)
    hub = Leases(RuntimeError("a fault"))
    async with following(hub):
        await until(lambda: len(hub.looked) >= 2)
    assert "the leases could not be looked at" in caplog.text


@pytest.mark.parametrize("wait_s", [0, 10], ids=["nobody waits", "somebody waits"])
async def test_a_silent_proxy_is_fenced_when_its_lease_is_over_and_not_before(tmp_path, wait_s):
    async with running_control(tmp_path, lease_ms=600) as control:
        loud = await Worker(control, "w-1").join()
        silent = await Worker(control, "w-2", pid=1, pid_namespace="pid:[elsewhere]").join()
        await control.token(MAILER)
        silent.acknowledges = False
        await silent.renew()
        granted = time.monotonic()
        answer = (await control.kill(MAILER, wait_s=wait_s)).body
        if not wait_s:
            assert answer["unconfirmed_because"] == "proxy_pending"
        async with asyncio.timeout(10):
            while not (kept := await control.service.store.kill(answer["kill_id"])).receipt:
                await asyncio.sleep(0.01)
            while not kept.receipt.confirmed:
                await asyncio.sleep(0.01)
                kept = await control.service.store.kill(answer["kill_id"])
        assert time.monotonic() - granted >= 0.6
        assert [p.state for p in kept.receipt.proxies] == ["applied", "fenced"]
        assert kept.receipt.proxies[1].connections_cut is None
        if wait_s:
            assert answer["confirmed"]
            assert 500 < answer["halted_in_ms"] < 5000
        assert loud.orders
