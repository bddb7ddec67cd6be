"""Silence is a stop: frozen, killed and restarted processes, and receipts that say no more than is certain."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import time
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest
from haltwire.wire.codec import parse_time
from support.client import Wire, tunnel
from support.system import System
from support.world import basic

MAILER = "agent://acme/prod/mailer"
LABEL = "acme.prod.mailer~i-1"
LEASE_S = 4.0
"A worker that is frozen for two of these may be ended by whoever watches it."
LATE_S = 2.5
"How much later than it can be a loaded machine may find out."
WAKING = 200
"Attempts that wait at the workers' door when the frozen one wakes."


@pytest.fixture
async def system(tmp_path: Path):
    options = ("--workers", "2", "--lease", f"{LEASE_S:g}s")
    async with System(tmp_path / "data", *options) as running:
        yield running


async def workers(system: System) -> list[dict]:
    return (await system.api("GET", "/v1/proxies"))[1]["proxies"]


async def until(is_so, timeout: float = 15) -> None:
    async with asyncio.timeout(timeout):
        while not await is_so():
            await asyncio.sleep(0.02)


async def both_carry(system: System, origin, secret: str) -> list[Wire]:
    """Tunnels through both workers; the kernel chooses which."""
    wires: list[Wire] = []

    async def carried() -> bool:
        return all(worker["connections"] for worker in await workers(system))

    async with asyncio.timeout(20):
        while not await carried():
            wires.append(await tunnel(system.port, origin.host, LABEL, secret))
            await asyncio.sleep(0.3)  # workers count every quarter second
    return wires


async def last_lease(system: System, proxy_id: str) -> float:
    """When the lease of a frozen worker is certainly over, on the monotonic clock."""
    end, before = 0.0, -1.0
    while abs(end - before) > 0.05:  # what it had asked for before is answered
        await asyncio.sleep(0.2)
        asked = time.monotonic()
        (one,) = [w for w in await workers(system) if w["proxy_id"] == proxy_id]
        before, end = end, asked + one["lease_left_ms"] / 1000
    return end


async def stored(system: System, kill_id: str) -> dict:
    return (await system.api("GET", f"/v1/mesh/kills/{kill_id}"))[1]["receipt"]


def states(receipt: dict) -> dict[str, str]:
    return {proxy["proxy_id"]: proxy["state"] for proxy in receipt["proxies"]}


async def test_a_frozen_worker_is_fenced_after_its_lease_and_what_it_says_later_completes_the_receipt(
    system, origin
):
    """With half of the lease counted, and with grants not counted at all, the woken worker still had its
    lease when the receipt called it fenced: in both cases /late arrived at the origin.
    """
    secret = await system.token(MAILER)
    secret = secret.partition("@")[0].rpartition(":")[2]
    wires = await both_carry(system, origin, secret)
    frozen, other = await workers(system)
    os.kill(frozen["pid"], signal.SIGSTOP)
    try:
        lease_over = await last_lease(system, frozen["proxy_id"])
        first = await system.cli("kill", "mailer", "--wait", "300ms", "--json")
        assert time.monotonic() < lease_over, "this machine is too slow for a lease of 4 s"
        assert (first.code, first.json()["unconfirmed_because"]) == (5, "proxy_pending")
        assert states(first.json()) == {
            frozen["proxy_id"]: "pending",
            other["proxy_id"]: "applied",
        }
        kill_id = first.json()["kill_id"]

        # The first answer's receipt is completed without anybody asking; `--wait` waits for that.
        asked = time.monotonic()
        again = await system.cli("kill", "mailer", "--wait", "20s")
        answered = time.monotonic()
        assert again.code == 0, again
        assert "silent: its lease had expired" in again.out
        assert lease_over - 0.1 <= answered <= max(asked, lease_over) + LATE_S
        receipt = await stored(system, kill_id)
        assert (receipt["confirmed"], receipt["unconfirmed_because"]) == (True, None)
        assert states(receipt) == {frozen["proxy_id"]: "fenced", other["proxy_id"]: "applied"}
        (fence,) = [p for p in receipt["proxies"] if p["state"] == "fenced"]
        for count in ("connections_cut", "connections_live", "connections_held"):
            assert fence[count] is None
        since = time.monotonic() - (
            datetime.now(timezone.utc) - parse_time(receipt["halted_at"])
        ) / timedelta(seconds=1)
        assert lease_over - 0.1 <= since <= max(asked, lease_over) + LATE_S
        assert (await system.api("GET", "/v1/mesh/kills"))[1]["kills"][0]["confirmed"] is True

        # What waits for the frozen worker to wake gets nowhere.
        for wire in wires:
            with contextlib.suppress(ConnectionError):
                await wire.send(b"GET /late HTTP/1.1\r\nHost: late\r\n\r\n")
        auth = f"Proxy-Authorization: {basic(LABEL, secret)}"
        waiting = [await Wire.open(system.port) for _ in range(WAKING)]
        for wire in waiting:
            with contextlib.suppress(ConnectionError):
                await wire.send(
                    f"CONNECT {origin.host} HTTP/1.1\r\nHost: {origin.host}\r\n{auth}\r\n\r\n".encode()
                )
        connections = len(origin.connections)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(frozen["pid"], signal.SIGCONT)
    answers = [await refused(wire) for wire in waiting]
    assert set(answers) <= {403, 503, None}
    assert answers.count(None) < WAKING, "somebody was told"
    for wire in wires:
        await wire.ended(timeout=10)
    assert len(origin.connections) == connections
    assert not [target for _, target, _ in origin.requests if "late" in target]

    async def has_answered() -> bool:
        return states(await stored(system, kill_id))[frozen["proxy_id"]] != "fenced"

    await until(has_answered)
    later = await stored(system, kill_id)
    assert set(states(later).values()) == {"applied"}
    assert (later["confirmed"], later["halted_at"]) == (True, receipt["halted_at"])
    _, log = await system.api("GET", "/v1/mesh/events?event_type=kill.confirmed&limit=100")
    assert [e["details"]["fenced"] for e in log["events"]] == [[frozen["proxy_id"]]]


async def refused(wire: Wire) -> int | None:
    """The status that it gets; None when its connection just ends."""
    try:
        return (await asyncio.wait_for(wire.answer(), 15)).status
    except (ConnectionError, asyncio.IncompleteReadError):
        return None


async def test_a_killed_worker_is_gone_and_not_waited_for(system, origin):
    await system.token(MAILER)
    dead, other = await workers(system)
    os.kill(dead["pid"], signal.SIGSTOP)
    _, pending = await system.api("POST", "/v1/mesh/kill", {"selector": MAILER, "wait_s": 0})
    assert states(pending)[dead["proxy_id"]] == "pending"

    async def has_confirmed() -> bool:
        return states(await stored(system, pending["kill_id"]))[other["proxy_id"]] == "applied"

    await until(has_confirmed)
    dies = datetime.now(timezone.utc)
    os.kill(dead["pid"], signal.SIGKILL)

    async def is_gone() -> bool:
        return states(await stored(system, pending["kill_id"]))[dead["proxy_id"]] == "gone"

    await until(is_gone)
    receipt = await stored(system, pending["kill_id"])
    assert states(receipt) == {dead["proxy_id"]: "gone", other["proxy_id"]: "applied"}
    assert receipt["confirmed"] is True
    # It may have passed something until it ended.
    assert parse_time(receipt["halted_at"]) >= dies


async def control_pid(system: System) -> int:
    known = {worker["pid"] for worker in await workers(system)}
    children = Path(f"/proc/{system.process.pid}/task/{system.process.pid}/children").read_text()
    (pid,) = {int(child) for child in children.split()} - known
    return pid


async def test_a_control_server_that_was_restarted_confirms_nothing_too_early(system, origin):
    """The frozen worker may have been granted a lease a moment before the old one died.

    With nothing assumed of proxies from before the start, the first answer was confirmed.
    """
    await system.token(MAILER)
    frozen, other = await workers(system)
    control = await control_pid(system)
    os.kill(frozen["pid"], signal.SIGSTOP)
    try:
        died = time.monotonic()
        os.kill(control, signal.SIGKILL)
        receipt = await killed_at_last(system)
        assert receipt["confirmed"] is False, "over an empty set, or too early"
        assert states(receipt)[frozen["proxy_id"]] == "pending"

        async def is_confirmed() -> bool:
            nonlocal receipt
            receipt = await stored(system, receipt["kill_id"])
            if not receipt["confirmed"]:
                assert states(receipt)[frozen["proxy_id"]] == "pending"
            return receipt["confirmed"]

        await until(is_confirmed, 30)
        assert time.monotonic() - died > LEASE_S
        assert states(receipt)[other["proxy_id"]] == "applied"
        # Ended by whoever watches it, when this machine is slow.
        assert states(receipt)[frozen["proxy_id"]] in ("fenced", "gone")
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(frozen["pid"], signal.SIGCONT)


async def killed_at_last(system: System) -> dict:
    """The first receipt that the new control server answers."""
    async with asyncio.timeout(20):
        while True:
            try:
                _, answer = await system.api(
                    "POST", "/v1/mesh/kill", {"selector": MAILER, "wait_s": 0}
                )
                return answer
            except OSError:
                await asyncio.sleep(0.05)
