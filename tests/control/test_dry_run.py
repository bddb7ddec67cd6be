"""A rehearsal says who would be stopped, claims nothing, and changes nothing."""

from __future__ import annotations

import pytest
from haltwire.wire.messages import Delta
from support.control import Worker, usage

MAILER, OTHER = "agent://acme/prod/mailer", "agent://acme/prod/other"


@pytest.fixture
async def busy(control, worker):
    """Two instances of one agent at two proxies, one of which has two connections to one of them."""
    agent = await control.token(MAILER)
    await control.beat(agent, instance="i-1", metadata={"sent": 5})
    await control.beat(agent, instance="i-2", status="finished")
    other = await Worker(control, "w-2", pid=1, pid_namespace="pid:[elsewhere]").join()
    await worker.use(usage(MAILER, "i-1", connections=2))
    await other.use(usage(MAILER, "i-1", connections=1))
    return control


async def test_it_counts_who_would_be_stopped_and_changes_nothing(busy, worker):
    before, events = busy.service.state, await busy.event_types()
    receipt = (await busy.kill(MAILER, dry_run=True, reason="why")).body
    assert (receipt["ok"], receipt["dry_run"], receipt["kill_id"]) == (True, True, None)
    assert (receipt["confirmed"], receipt["unconfirmed_because"]) == (False, "dry_run")
    assert (receipt["halted_at"], receipt["durable"], receipt["proxies"]) == (None, False, [])
    assert receipt["matched"] == {"agents": 1, "instances": 1, "proxies": 2}
    (instance,) = receipt["instances"]
    assert (instance["instance"], instance["connections_live"]) == ("i-1", 3)
    assert (instance["stopped_by"], instance["metadata"]) == (None, {"sent": 5})
    assert receipt["totals"]["done"] == 5
    assert busy.service.state is before
    assert await busy.event_types() == events
    assert not [m for m in worker.received if isinstance(m, Delta) and m.kills]


async def test_it_shows_the_order_as_it_would_be(control):
    body = {"mode": "drain", "ttl_s": 60, "dry_run": True}
    receipt = (await control.kill(MAILER, **body)).body
    assert (receipt["mode"], receipt["grace_s"]) == ("drain", 30.0)
    assert receipt["expires_at"] > receipt["requested_at"]
    held = (await control.kill(MAILER, mode="hold", hold_limit_s=60, dry_run=True)).body
    assert held["hold_until"] > held["requested_at"]


async def test_it_names_what_stops_some_of_it_already(control):
    one = (await control.kill(f"{MAILER}~i-1", wait_s=0)).body["kill_id"]
    wide = (await control.kill("agent://acme/**", mode="hold", wait_s=0)).body["kill_id"]
    await control.kill(OTHER, wait_s=0)
    receipt = (await control.kill(MAILER, dry_run=True)).body
    assert receipt["still_killed_by"] == [one, wide]


async def test_it_points_out_a_slip_of_the_pen_and_a_way_out(busy):
    receipt = (await busy.kill("agent://acme/prod/mialer", dry_run=True)).body
    assert (receipt["matched"]["agents"], receipt["did_you_mean"]) == (0, [MAILER])
    receipt = (await busy.kill(f"{MAILER}~i-1", dry_run=True)).body
    assert (receipt["escapable"], receipt["did_you_mean"]) == (True, [])
