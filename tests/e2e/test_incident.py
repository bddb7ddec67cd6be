"""An incident on the command line, with real processes: look first, hold or drain, note, resume, report."""

from __future__ import annotations

import asyncio
import json

import pytest
from support.client import Wire
from support.world import basic

MAILER = "agent://acme/prod/mailer"


@pytest.fixture
async def stream(system, origin) -> Wire:
    """An event stream of i-1, which has also said how far it is."""
    proxy_url = await system.token(f"{MAILER}~i-1", tls="intercept")
    secret = proxy_url.partition("@")[0].rpartition(":")[2]
    credentials = f"Proxy-Authorization: {basic('acme.prod.mailer~i-1', secret)}"
    beat = await Wire.open(system.port)
    said = json.dumps({"metadata": {"batch": 22, "sent": 2147}}).encode()
    url = "http://haltwire.internal/v1/mesh/heartbeat"
    answer = await beat.request(
        "POST",
        url,
        "Host: haltwire.internal",
        credentials,
        "Content-Type: application/json",
        body=said,
    )
    assert answer.status == 200
    wire = await Wire.open(system.port)
    await wire.request(
        "GET", f"http://{origin.host}/events", f"Host: {origin.host}", credentials, read=False
    )
    await asyncio.wait_for(wire.reader.readuntil(b"data: tick"), 5)
    async with asyncio.timeout(5):
        while "1 live connection" not in (await system.cli("kill", "mailer", "--dry-run")).out:
            await asyncio.sleep(0.05)
    return wire


async def test_a_hold_from_the_first_look_to_the_report(system, stream):
    looked = await system.cli("kills")
    assert looked.out == "No orders are in force.\n"
    killed = await system.cli("kill", "mailer", "--mode", "hold", "--hold-limit", "1h")
    assert killed.code == 0, killed
    assert killed.out.startswith(f"Held {MAILER} in ")
    assert "instance i-1: 1 connection held" in killed.out
    assert "It becomes a cut at " in killed.out
    assert "held    1 (1 held)" in (await system.cli("list")).out
    kill_id = (await system.cli("kills", "--json")).json()["kills"][0]["kill_id"]

    assert (await system.cli("note", kill_id, "wrong", "discount", "code")).code == 0
    assert (await system.cli("resume", kill_id, "--reason", "corrected")).code == 0
    await asyncio.wait_for(stream.reader.readuntil(b"data: tick"), 5)
    async with asyncio.timeout(10):
        checkpoint = "instance i-1: running, resumed from checkpoint batch=22 sent=2147"
        while checkpoint not in (await system.cli("show", kill_id)).out:
            await asyncio.sleep(0.1)

    page = (await system.cli("report", kill_id)).out
    events = await system.cli("events", "--json", "--limit", "50")
    hashes = {e["event_type"]: e["hash"] for e in events.json()["events"]}
    for kind in ("kill.issued", "kill.confirmed", "kill.noted", "resume.issued"):
        assert hashes[kind] in page
    assert "- **Why**: `wrong discount code`" in page
    assert "| `GET` | `127.0.0.1` | `/events` |" in page
    assert "running, resumed from checkpoint `batch=22 sent=2147`" in page


async def test_a_drain_is_followed_to_its_deadline(system, stream):
    at_once = await system.cli("kill", "mailer", "--mode", "drain", "--grace", "2s", "--wait", "0")
    assert at_once.code == 5
    assert "Stopped" not in at_once.out
    followed = await system.cli("kill", "mailer", "--mode", "drain", "--grace", "2s")
    assert followed.code == 0, followed
    assert "cut 1 connection" in followed.out
    assert f"Stopped {MAILER} in " in followed.out
    await stream.ended()


async def test_what_expires_lifts_itself(system, stream):
    killed = await system.cli("kill", "mailer", "--mode", "hold", "--expires", "1s")
    assert "It is lifted by itself at " in killed.out
    kill_id = (await system.cli("kills", "--all", "--json")).json()["kills"][0]["kill_id"]
    async with asyncio.timeout(10):
        while "by system:expiry" not in (await system.cli("show", kill_id)).out:
            await asyncio.sleep(0.1)
    assert (await system.cli("kills")).out == "No orders are in force.\n"


async def test_a_kill_that_is_not_there_is_not_found(system):
    for command in (("show",), ("report",), ("note", "a word")):
        name, *words = command
        answered = await system.cli(name, "K0123456789AB", *words)
        assert answered.code == 3, answered
        assert "there is no kill K0123456789AB" in answered.err
