"""The way of a kill, with real processes: proven, lasting, honest about what it does not know."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sqlite3
import time
from pathlib import Path

import pytest
from support.client import Wire, tunnel
from support.system import System
from support.world import basic

MAILER = "agent://acme/prod/mailer"
PATH = "/v1/mesh/agents/acme.prod.mailer"


def secret_of(proxy_url: str) -> str:
    return proxy_url.partition("@")[0].rpartition(":")[2]


async def _open_streams(system, origin, label: str, secret: str, count: int) -> list[Wire]:
    wires = []
    for _ in range(count):
        wire = await tunnel(system.port, origin.host, label, secret)
        await wire.request("GET", "/events", f"Host: {origin.host}", read=False)
        wires.append(wire)
    agent, _, instance = label.partition("~")
    async with asyncio.timeout(5):
        while len(origin.requests) < count or not await _is_seen(system, agent, instance):
            await asyncio.sleep(0.01)
    return wires


async def _is_seen(system, agent: str, instance: str) -> bool:
    status, shown = await system.api("GET", f"/v1/mesh/agents/{agent}")
    return status == 200 and (not instance or instance in json.dumps(shown))


async def _workers(system) -> list[dict]:
    _, answer = await system.api("GET", "/v1/proxies")
    return answer["proxies"]


async def test_one_kill_stops_every_replica_and_the_receipt_lists_both_workers(system, origin):
    secret = secret_of(await system.token(MAILER))
    wires = []
    for instance in ("i-1", "i-2", "i-3"):
        wires += await _open_streams(system, origin, f"acme.prod.mailer~{instance}", secret, 1)
    status, receipt = await system.api("POST", f"{PATH}/kill", {"reason": "broken link"})
    assert status == 200
    assert receipt["confirmed"] is True
    assert receipt["unconfirmed_because"] is None
    assert receipt["durable"] is True
    assert [proxy["state"] for proxy in receipt["proxies"]] == ["applied", "applied"]
    assert sum(proxy["connections_cut"] for proxy in receipt["proxies"]) == 3
    assert sorted(row["instance"] for row in receipt["instances"]) == ["i-1", "i-2", "i-3"]
    assert receipt["matched"] == {"agents": 1, "instances": 3, "proxies": 2}
    for row in receipt["instances"]:
        assert row["seen_at_proxy"] is not None
        assert row["connections_cut"] == 1
        assert row["in_flight"][0]["path"] is None, "a tunnel is not read"
    for wire in wires:
        await wire.ended()
    for seen in origin.connections:
        await asyncio.wait_for(seen.ended.wait(), 1)
    assert receipt["halted_in_ms"] < 1000


async def test_everything_tells_the_same_story(system, origin):
    secret = secret_of(await system.token(MAILER))
    await _open_streams(system, origin, "acme.prod.mailer~i-1", secret, 1)
    killed = await system.cli("kill", "mailer", "--reason", "broken link", "--json")
    assert killed.code == 0, killed
    kill_id = killed.json()["kill_id"]
    listed = (await system.cli("list", "--json")).json()
    assert [(a["agent_uri"], a["status"]) for a in listed["agents"]] == [(MAILER, "killed")]
    assert listed["summary"]["killed"] == 1
    shown = (await system.cli("kills", "--json")).json()
    assert [kill["kill_id"] for kill in shown["kills"]] == [kill_id]
    events = (await system.cli("events", "--json")).json()["events"]
    (issued,) = [e for e in events if e["event_type"] == "kill.issued"]
    assert (issued["actor"], issued["reason"]) == ("key:admin", "broken link")
    assert "kill.confirmed" in {e["event_type"] for e in events}
    resumed = await system.cli("resume", "mailer", "--json")
    assert (resumed.code, resumed.json()["lifted"]) == (0, [kill_id])
    verified = await system.cli("audit", "verify")
    assert verified.code == 0, verified
    assert "unanchored" in verified.out + verified.err


async def test_a_kill_survives_kill_minus_nine_of_everything(system, origin):
    proxy_url = await system.token(MAILER)
    secret = secret_of(proxy_url)
    await _open_streams(system, origin, "acme.prod.mailer~i-1", secret, 1)
    _, first = await system.api("POST", f"{PATH}/kill", {})
    pids = [worker["pid"] for worker in await _workers(system)]
    for pid in (system.process.pid, *pids):
        os.kill(pid, signal.SIGKILL)
    await system.process.wait()
    (system.data_dir / "endpoints.json").unlink(missing_ok=True)
    await system.start()
    probe = await Wire.open(system.port)
    auth = f"Proxy-Authorization: {basic('acme.prod.mailer~i-1', secret)}"
    answer = await probe.request("CONNECT", origin.host, auth)
    probe.close()
    assert (answer.status, answer.json()["kill_id"]) == (403, first["kill_id"])
    _, again = await system.api("POST", f"{PATH}/kill", {"reason": "later"})
    assert (again["kill_id"], again["confirmed"]) == (first["kill_id"], True)
    assert again["reason"] == first["reason"]


async def test_without_its_control_server_a_worker_refuses_and_cuts(system, origin):
    secret = secret_of(await system.token(MAILER))
    (wire,) = await _open_streams(system, origin, "acme.prod.mailer~i-1", secret, 1)
    control = await _control_pid(system)
    os.kill(control, signal.SIGSTOP)
    frozen_at = time.monotonic()
    try:
        await wire.ended(timeout=4)
        await asyncio.wait_for(origin.connections[0].ended.wait(), 2)
        # The other worker's lease began up to a quarter later: the promise is for all after 1.3 s.
        await asyncio.sleep(max(0.0, frozen_at + 1.3 - time.monotonic()))
        auth = f"Proxy-Authorization: {basic('acme.prod.mailer~i-1', secret)}"
        for _ in range(8):
            probe = await Wire.open(system.port)
            answer = await probe.request("CONNECT", origin.host, auth)
            probe.close()
            assert (answer.status, answer.json()["error"]) == (503, "enforcement_unknown")
    finally:
        os.kill(control, signal.SIGCONT)
    async with asyncio.timeout(10):
        while True:
            probe = await Wire.open(system.port)
            answer = await probe.request("CONNECT", origin.host, auth)
            probe.close()
            if answer.status == 200:
                break
            await asyncio.sleep(0.05)


async def _control_pid(system) -> int:
    workers = {worker["pid"] for worker in await _workers(system)}
    children = Path(f"/proc/{system.process.pid}/task/{system.process.pid}/children").read_text()
    (control,) = {int(pid) for pid in children.split()} - workers
    return control


async def test_a_mistyped_agent_is_never_confirmed(system, origin):
    secret = secret_of(await system.token(MAILER))
    await _open_streams(system, origin, "acme.prod.mailer~i-1", secret, 1)
    done = await system.cli("kill", "acme/prod/mailre")
    assert done.code == 3
    assert "no agent by that name has been seen" in done.out + done.err
    assert MAILER in done.out + done.err
    receipt = (await system.cli("kill", "acme/prod/mailre", "--json")).json()
    assert (receipt["confirmed"], receipt["unconfirmed_because"]) == (False, "no_agent")
    kills = (await system.cli("kills", "--json")).json()["kills"]
    assert [kill["selector"] for kill in kills] == ["agent://acme/prod/mailre"]


async def test_an_instance_that_no_proxy_has_seen_is_never_confirmed(system):
    secret = secret_of(await system.token(MAILER))
    status, beat = await system.api(
        "POST", "/v1/mesh/heartbeat", {"instance": "i-1", "metadata": {"sent": 7}}, key=secret
    )
    assert (status, beat["ok"]) == (200, True)
    _, receipt = await system.api("POST", f"{PATH}/kill", {})
    assert (receipt["confirmed"], receipt["unconfirmed_because"]) == (False, "outside_proxy")
    (row,) = receipt["instances"]
    assert (row["instance"], row["seen_at_proxy"], row["metadata"]) == ("i-1", None, {"sent": 7})
    assert receipt["totals"]["done"] == 7


async def test_a_kill_covers_agents_that_are_first_seen_later(system, origin):
    assert (await system.cli("kill", "acme/**")).code == 3
    secret = secret_of(await system.token("agent://acme/prod/newcomer"))
    probe = await Wire.open(system.port)
    auth = f"Proxy-Authorization: {basic('acme.prod.newcomer', secret)}"
    answer = await probe.request("CONNECT", origin.host, auth)
    probe.close()
    assert (answer.status, answer.json()["error"]) == (403, "agent_killed")


async def test_resume_names_the_wider_order_and_carve_out_excepts(system, origin):
    secret = secret_of(await system.token(MAILER))
    await _open_streams(system, origin, "acme.prod.mailer", secret, 1)
    wide = (await system.cli("kill", "acme/prod/*", "--json")).json()["kill_id"]
    refused = await system.cli("resume", MAILER, "--json")
    assert refused.code == 6
    assert refused.json()["still_killed_by"] == [wide]
    carved = await system.cli("resume", MAILER, "--carve-out", "--json")
    assert carved.code == 0, carved
    again = await tunnel(system.port, origin.host, "acme.prod.mailer", secret)
    again.close()


@pytest.mark.parametrize("role", ["viewer", "agent"])
async def test_who_may_not_kill_cannot(system, role):
    if role == "agent":
        key = secret_of(await system.token(MAILER))
    else:
        _, made = await system.api("POST", "/v1/keys", {"name": "eve", "role": role})
        key = made["secret"]
    for action in ("kill", "resume"):
        status, answer = await system.api("POST", f"{PATH}/{action}", {}, key=key)
        assert status in (401, 403), answer
    status, _ = await system.api("POST", "/v1/tokens", {"selector": MAILER}, key=key)
    assert status in (401, 403)
    _, kills = await system.api("GET", "/v1/mesh/kills")
    assert kills["kills"] == []


async def test_the_agent_cannot_resume_itself_through_the_proxy(system):
    secret = secret_of(await system.token(MAILER))
    await system.api("POST", f"{PATH}/kill", {})
    auth = f"Proxy-Authorization: {basic('acme.prod.mailer', secret)}"
    control = system.control_url.removeprefix("http://")
    for target in (
        "http://haltwire.internal/v1/mesh/agents/acme.prod.mailer/resume",
        f"{system.control_url}/v1/mesh/agents/acme.prod.mailer/resume",
    ):
        probe = await Wire.open(system.port)
        answer = await probe.request("POST", target, "Host: x", auth, body=b"{}")
        probe.close()
        assert answer.status in (403, 404), (target, answer)
    probe = await Wire.open(system.port)
    assert (await probe.request("CONNECT", control, auth)).status == 403
    probe.close()
    _, kills = await system.api("GET", "/v1/mesh/kills")
    assert len(kills["kills"]) == 1


async def test_a_row_changed_by_hand_is_found_and_named(system):
    await system.token(MAILER)
    await system.api("POST", f"{PATH}/kill", {"reason": "broken link"})
    assert await system.stop() == 0
    with sqlite3.connect(system.data_dir / "haltwire.db") as database:
        seq = database.execute("select seq from events where event_type = 'kill.issued'").fetchone()
        database.execute("update events set reason = 'all fine' where seq = ?", seq)
    database.close()
    (system.data_dir / "endpoints.json").unlink(missing_ok=True)
    await system.start()
    verified = await system.cli("audit", "verify")
    assert verified.code == 1
    assert str(seq[0]) in verified.out + verified.err


async def test_no_secret_is_left_anywhere(system, origin):
    """Logs, events, the database, command lines: only hashes."""
    proxy_url = await system.token(MAILER)
    secret = secret_of(proxy_url)
    await _open_streams(system, origin, "acme.prod.mailer~i-1", secret, 1)
    await system.api("POST", f"{PATH}/kill", {})
    probe = await Wire.open(system.port)
    await probe.request(
        "CONNECT", "x:1", f"Proxy-Authorization: {basic('acme.prod.other', secret)}"
    )
    probe.close()
    events = json.dumps((await system.cli("events", "--json")).json())
    exported = (await system.cli("audit", "export")).out
    pids = [system.process.pid, *(worker["pid"] for worker in await _workers(system))]
    command_lines = b"".join(Path(f"/proc/{pid}/cmdline").read_bytes() for pid in pids)
    await system.stop()
    files = b"".join(
        path.read_bytes()
        for path in system.data_dir.rglob("*")
        if path.is_file() and path.name != "admin.key"
    )
    for hidden in (secret, system.key):
        for place in (events, exported, system.output):
            assert hidden not in place
        assert hidden.encode() not in command_lines
        assert hidden.encode() not in files


async def test_ctrl_c_ends_everything(tmp_path, authority):
    async with System(tmp_path / "data", "--workers", "2") as system:
        pids = [worker["pid"] for worker in await _workers(system)] + [await _control_pid(system)]
        assert await system.stop(signal.SIGINT) in (0, 130)
    for pid in pids:
        assert not Path(f"/proc/{pid}").exists()
    assert not (tmp_path / "data" / "endpoints.json").exists()
