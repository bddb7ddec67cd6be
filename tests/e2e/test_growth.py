"""Whatever the control server remembers, it remembers to a bound: kills without end leave nothing behind."""

from __future__ import annotations

import asyncio
import gc
import sys

import pytest
from haltwire_control import hub, idempotency, kills, lifetimes, proving
from support.control import Control, Worker, cut, running_control, usage

AGENT = "agent://acme/prod/mailer"
ROUNDS = 60
CHURNS = 7
BOUND = 10
"Of everything that has one; ROUNDS is enough to fill it."


@pytest.fixture
def small_bounds(monkeypatch) -> None:
    for module in (kills, lifetimes):
        monkeypatch.setattr(module, "LIFTED_REMEMBERED", BOUND)
    for name in ("LIFTED_HOLDS_KEPT", "RELEASES_KEPT", "OFFSETS_KEPT"):
        monkeypatch.setattr(hub, name, BOUND)
    monkeypatch.setattr(idempotency, "KEPT_MOST", BOUND)
    monkeypatch.setattr(proving, "RESUME_WATCHED_S", 0.2)


async def _churn(control: Control, secret: str, first: int) -> None:
    """Kills and resumes, a fifth of them holds, each under a key of its own, by a worker that comes anew."""
    worker = await Worker(control, epoch=control.service.state.epoch).join()
    for number in range(first, first + ROUNDS):
        worker.instances = worker.released = (cut(AGENT, "i-1"),)
        await worker.use(usage(AGENT, "i-1", requests=number, bytes_up=10 * number))
        mode = "cut" if number % 5 else "hold"
        body = {"selector": AGENT, "mode": mode}
        key = {"Idempotency_Key": f"kill-{number}"}
        killed = await control.call("POST", "/v1/mesh/kill", body, **key)
        assert killed.body["confirmed"]
        assert (await control.resume(AGENT)).status == 200
        await control.beat(secret, instance="i-1", metadata={"sent": number})
        await control.events("limit=5&selector=" + AGENT)
    control.workers.remove(worker)
    await worker.leave()


async def _blocks(control: Control) -> int:
    """Python's memory blocks in use when nothing is under way; the least of a few looks."""
    looks = []
    for _ in range(5):
        await asyncio.sleep(0.3)  # receipts are completed, files are written
        gc.collect()
        looks.append(sys.getallocatedblocks())
    return min(looks)


async def test_kills_and_resumes_without_end_leave_nothing_behind(tmp_path, small_bounds):
    async with running_control(tmp_path, lease_ms=60_000) as control:
        secret = await control.token(AGENT)
        await _churn(control, secret, 0)
        grown, before = [], await _blocks(control)
        for churn in range(1, CHURNS):
            await _churn(control, secret, churn * ROUNDS)
            blocks = await _blocks(control)
            grown.append(blocks - before)
            before = blocks
            # Caches of libraries fill in the first ones; a leak is there in each.
            if grown[-1] < ROUNDS:
                return
        raise AssertionError(f"{ROUNDS} kills and resumes leave this many blocks: {grown}")
