"""The end of a lease is noticed when it comes, by whatever a silent proxy is waited for."""

from __future__ import annotations

import asyncio
import contextlib
import re
import time
from contextlib import asynccontextmanager

import pytest
from haltwire.wire.messages import Renew
from haltwire_control import fencing
from haltwire_control.fencing import Fencing
from support.control import Worker, running_control, utc_now

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
async def following(hub, steady=time.monotonic):
    task = asyncio.get_running_loop().create_task(Fencing(hub, steady).follow())
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


async def test_who_stood_still_himself_says_so(monkeypatch, caplog):
    """Without it, the log told only of proxies that were silent, when it was the control server that had stopped."""
    monkeypatch.setattr(fencing, "LOOK_EVERY_S", 0.02)
    slept = [0.0]
    hub = Leases()
    async with following(hub, lambda: time.monotonic() + slept[0]):
        await until(lambda: len(hub.looked) >= 3)
        slept[0] = 7.0
        await until(lambda: caplog.text)
    (said,) = re.findall(
        r"this control server was stopped, starved or asleep for ([\d.]+) s", caplog.text
    )
    assert float(said) >= 7.0


ELSEWHERE = {"pid": 1, "pid_namespace": "pid:[elsewhere]"}


async def kept(control, kill_id: str, is_so) -> dict:
    """The stored receipt, once it is so."""
    async with asyncio.timeout(10):
        while True:
            stored = (await control.service.store.kill(kill_id)).receipt
            if stored is not None and is_so(stored):
                return stored
            await asyncio.sleep(0.01)


async def pair(control, **silent) -> tuple[Worker, Worker]:
    """A worker that answers, and one that only asks for leases."""
    loud = await Worker(control, "w-1").join()
    other = await Worker(control, "w-2", **ELSEWHERE, **silent).join()
    await control.token(MAILER)
    other.acknowledges = False
    return loud, other


@pytest.mark.parametrize("wait_s", [0, 10], ids=["nobody waits", "somebody waits"])
async def test_a_silent_proxy_is_fenced_when_its_lease_is_over_and_not_before(tmp_path, wait_s):
    """Without the loop both ways stayed pending; with half the lease counted it was fenced too early; with
    halted_at taken from the late ack it moved.
    """
    async with running_control(tmp_path, lease_ms=2000) as control:
        _, silent = await pair(control, agent_residual_max=4096)
        await silent.renew()
        granted = time.monotonic()
        receipt = (await control.kill(MAILER, wait_s=wait_s)).body
        kill_id = receipt["kill_id"]
        if not wait_s:
            assert receipt["unconfirmed_because"] == "proxy_pending"
        stored = await kept(control, kill_id, lambda one: one.confirmed)
        assert time.monotonic() - granted >= 2.0
        assert [p.state for p in stored.proxies] == ["applied", "fenced"]
        fenced = stored.proxies[1]
        assert (fenced.connections_cut, fenced.residual_bytes_max) == (None, 4096)
        assert stored.halted_in_ms == fenced.latency_ms
        if wait_s:
            assert receipt["confirmed"], "the answer ends with the fence"
        # Its late word tells what it cut, and takes nothing back.
        silent.connections_cut = 3
        await silent.acknowledge(kill_id)
        await silent.report(kill_id)
        later = await kept(control, kill_id, lambda one: one.proxies[1].state == "applied")
        assert (later.confirmed, later.proxies[1].connections_cut) == (True, 3)
        assert (later.halted_at, later.halted_in_ms) == (stored.halted_at, stored.halted_in_ms)
        assert (await control.event_types()).count("kill.confirmed") == 1


async def test_a_proxy_that_goes_on_beyond_its_lease_stays_pending(tmp_path):
    """With what it said of itself ignored, it was called fenced."""
    async with running_control(tmp_path, lease_ms=200) as control:
        await pair(control, on_stale="keep")
        receipt = (await control.kill(MAILER, wait_s=0.8)).body
        assert [p["state"] for p in receipt["proxies"]] == ["applied", "pending"]
        assert receipt["unconfirmed_because"] == "proxy_pending"


async def test_a_proxy_that_renews_and_does_not_apply_is_fenced(tmp_path):
    """When it was granted leases all the same, it was pending for the whole wait."""
    async with running_control(tmp_path, lease_ms=600) as control:
        _, silent = await pair(control)
        async with asyncio.TaskGroup() as tasks:
            killing = tasks.create_task(control.kill(MAILER, wait_s=30))
            while not killing.done():
                await silent.say(Renew(time.monotonic(), utc_now(), silent.epoch, 1))
                await asyncio.sleep(0.1)
        receipt = killing.result().body
        assert [p["state"] for p in receipt["proxies"]] == ["applied", "fenced"]
        assert receipt["confirmed"]


async def test_after_a_new_start_nothing_is_confirmed_before_the_longest_lease_is_over(tmp_path):
    """The worker may be frozen with a lease that the earlier control server had just granted.

    When the longest lease was not stored, or not loaded, or nothing was assumed of proxies from before the
    start, it was fenced earlier.
    """
    async with running_control(tmp_path, lease_ms=3000) as control:
        await Worker(control, **ELSEWHERE).join()
        await control.token(MAILER)
    began = time.monotonic()
    async with running_control(tmp_path, lease_ms=200) as control:
        early = (await control.kill(MAILER, wait_s=0)).body
        assert [p["state"] for p in early["proxies"]] == ["pending"]
        assert early["confirmed"] is False
        receipt = (await control.kill(MAILER, wait_s=10)).body
        assert time.monotonic() - began >= 3.0
        assert [p["state"] for p in receipt["proxies"]] == ["fenced"]
        assert receipt["confirmed"]
