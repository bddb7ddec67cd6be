"""The operators' routes: agents, orders, proxies, and bodies that make no sense."""

from __future__ import annotations

import pytest
from support.control import usage

MAILER, OTHER = "agent://acme/prod/mailer", "agent://acme/dev/other"


@pytest.fixture
async def busy(control, worker):
    """Two agents; one has two instances."""
    mailer, other = await control.token(MAILER), await control.token(OTHER)
    await control.beat(mailer, instance="i-1", metadata={"sent": 1}, metrics={"latency_ms": 2.5})
    await control.beat(mailer, instance="i-2", metadata={"sent": 2})
    await control.beat(other, instance="i-1", status="finished")
    await worker.use(usage(MAILER, "i-1", requests=3), usage(MAILER, "i-2", requests=4))
    return control


async def test_agents_are_listed_by_name(busy):
    document = (await busy.call("GET", "/v1/mesh/agents")).body
    assert [a["agent_uri"] for a in document["agents"]] == [OTHER, MAILER]
    mailer = document["agents"][1]
    assert (mailer["instances"], mailer["requests"], mailer["metadata"]) == (2, 7, {"sent": 2})
    assert mailer["address_id"] == "acme.prod.mailer"
    assert document["summary"]["total"] == 2
    assert (document["summary"]["active"], document["summary"]["finished"]) == (1, 1)


LISTS = {
    "a glob": ("selector=agent://acme/prod/*", [MAILER]),
    "one instance": (f"selector={MAILER}~i-1", [MAILER]),
    "nobody": ("selector=agent://x/**", []),
    "our word": ("health=finished", [OTHER]),
    "AXME's word": ("health=healthy", [OTHER, MAILER]),
    "another": ("health=killed", []),
    "one only": ("limit=1", [OTHER]),
}


@pytest.mark.parametrize(("query", "expected"), LISTS.values(), ids=LISTS)
async def test_which_agents(busy, query, expected):
    document = (await busy.call("GET", f"/v1/mesh/agents?{query}")).body
    assert [a["agent_uri"] for a in document["agents"]] == expected


async def test_an_agent_is_shown_with_its_instances_and_orders(busy):
    kill_id = (await busy.kill(f"{MAILER}~i-1")).body["kill_id"]
    agent = (await busy.call("GET", "/v1/mesh/agents/mailer")).body["agent"]
    assert (agent["status"], agent["instances_killed"]) == ("active", 1)
    assert [i["instance"] for i in agent["instances_detail"]] == ["i-1", "i-2"]
    assert [i["killed_by"] for i in agent["instances_detail"]] == [kill_id, None]
    assert agent["instances_detail"][0]["metrics"] == {"latency_ms": 2.5}
    assert [(k["kill_id"], k["confirmed"]) for k in agent["kills"]] == [(kill_id, True)]


async def test_an_agent_that_was_never_seen_is_not_found(control):
    reply = await control.call("GET", "/v1/mesh/agents/acme.prod.nobody")
    assert (reply.status, reply.body["error"]["code"]) == (404, "agent_not_found")


async def test_a_killed_agent_is_killed_in_the_list(busy):
    await busy.kill(MAILER)
    document = (await busy.call("GET", "/v1/mesh/agents?health=killed")).body
    assert [a["agent_uri"] for a in document["agents"]] == [MAILER]
    assert document["agents"][0]["instances_killed"] == 2


async def test_a_held_agent_is_held_in_the_list(busy):
    await busy.kill(f"{MAILER}", mode="hold")
    document = (await busy.call("GET", "/v1/mesh/agents?health=held")).body
    assert [a["agent_uri"] for a in document["agents"]] == [MAILER]
    assert (document["agents"][0]["instances_killed"], document["agents"][0]["instances_held"]) == (
        0,
        2,
    )
    assert (document["summary"]["held"], document["summary"]["killed"]) == (1, 0)


async def test_an_order_shows_its_mode_and_times(control):
    await control.kill(MAILER, wait_s=0, mode="drain", grace_s=5)
    await control.kill(OTHER, wait_s=0, mode="hold", hold_limit_s=60, ttl_s=600)
    held, drained = (await control.call("GET", "/v1/mesh/kills")).body["kills"]
    assert (drained["mode"], drained["grace_s"], drained["expires_at"]) == ("drain", 5.0, None)
    assert held["mode"] == "hold"
    assert held["created_at"] < held["hold_until"] < held["expires_at"]


async def test_a_rehearsal_needs_the_right_to_kill(control):
    viewer = await control.key("eve", "viewer")
    body = {"selector": MAILER, "dry_run": True}
    assert (await control.call("POST", "/v1/mesh/kill", body, key=viewer)).status == 403


async def test_a_note_is_kept_and_becomes_the_missing_reason(control, worker):
    bob = await control.key("bob", "operator")
    await control.token(MAILER)
    receipt = (await control.kill(MAILER)).body
    path = f"/v1/mesh/kills/{receipt['kill_id']}"
    first = await control.call("POST", f"{path}/notes", {"text": "a broken link"}, key=bob)
    assert (first.status, first.body["note"]["actor"]) == (200, "key:bob")
    await control.call("POST", f"{path}/notes", {"text": "in all mails since noon"})
    shown = (await control.call("GET", path)).body
    assert shown["kill"]["reason"] == shown["receipt"]["reason"] == "a broken link"
    assert [note["text"] for note in shown["notes"]] == ["a broken link", "in all mails since noon"]
    assert [event["event_type"] for event in shown["events"]] == [
        "kill.issued",
        "kill.confirmed",
        "kill.noted",
        "kill.noted",
    ]
    await worker.until(lambda: worker.orders[receipt["kill_id"]].reason == "a broken link")


async def test_an_unknown_order_cannot_be_noted(control):
    viewer = await control.key("eve", "viewer")
    path = "/v1/mesh/kills/K0000000000000/notes"
    reply = await control.call("POST", path, {"text": "x"})
    assert (reply.status, reply.body["error"]["code"]) == (404, "kill_not_found")
    assert (await control.call("POST", path, {"text": "x"}, key=viewer)).status == 403


async def test_an_order_tells_its_story_to_the_end(control):
    kill_id = (await control.kill(MAILER, wait_s=0)).body["kill_id"]
    await control.kill(OTHER, wait_s=0)
    await control.resume(MAILER, wait_s=0, reason="fixed")
    await control.call("POST", f"/v1/mesh/kills/{kill_id}/notes", {"text": "a broken link"})
    shown = (await control.call("GET", f"/v1/mesh/kills/{kill_id}")).body
    assert [e["event_type"] for e in shown["events"]] == [
        "kill.issued",
        "resume.issued",
        "kill.noted",
    ]
    assert (shown["kill"]["reason"], shown["kill"]["lifted_reason"]) == ("a broken link", "fixed")
    resume = shown["resume"]
    assert (resume["mode"], resume["lifted"], resume["reason"]) == ("resume", [kill_id], "fixed")
    logged = {e["seq"]: e["hash"] for e in await control.events()}
    assert all(logged[e["seq"]] == e["hash"] for e in shown["events"])


async def test_orders_are_listed_newest_first_and_lifted_ones_on_demand(control):
    one = (await control.kill(MAILER, wait_s=0, reason="why")).body["kill_id"]
    two = (await control.kill(OTHER, wait_s=0)).body["kill_id"]
    await control.resume(MAILER, wait_s=0, reason="fixed")
    kills = (await control.call("GET", "/v1/mesh/kills")).body["kills"]
    assert [k["kill_id"] for k in kills] == [two]
    kills = (await control.call("GET", "/v1/mesh/kills?all=1")).body["kills"]
    assert [k["kill_id"] for k in kills] == [two, one]
    lifted = kills[1]
    assert (lifted["in_force"], lifted["lifted_by"], lifted["lifted_reason"]) == (
        False,
        "key:admin",
        "fixed",
    )
    assert lifted["reason"] == "why"


async def test_an_unknown_order_is_not_found(control):
    reply = await control.call("GET", "/v1/mesh/kills/K0000000000000")
    assert (reply.status, reply.body["error"]["code"]) == (404, "kill_not_found")


async def test_a_kill_in_an_agents_path_takes_an_instance(control):
    path = "/v1/mesh/agents/acme.prod.mailer"
    receipt = (await control.call("POST", f"{path}/kill", {"instance": "i-1", "wait_s": 0})).body
    assert receipt["selector"] == f"{MAILER}~i-1"
    lifted = (await control.call("POST", f"{path}/resume", {"wait_s": 0})).body
    assert lifted["lifted"] == [receipt["kill_id"]]


REFUSED = {
    "neither selector nor id": ({}, "selector"),
    "both": ({"selector": MAILER, "kill_id": "K1"}, "selector"),
    "an instance of an order": ({"kill_id": "K1", "instance": "i-1"}, "instance"),
    "a carve-out by id": ({"kill_id": "K1", "carve_out": True}, "carve_out"),
    "two instances": ({"selector": f"{MAILER}~i-1", "instance": "i-2"}, "instance"),
    "an instance that is none": ({"selector": MAILER, "instance": "a b"}, "instance"),
    "a glob in the middle": ({"selector": "agent://a/**/b"}, "selector"),
}


@pytest.mark.parametrize(("body", "field"), REFUSED.values(), ids=REFUSED)
async def test_a_resume_that_makes_no_sense(control, body, field):
    reply = await control.call("POST", "/v1/mesh/resume", body)
    assert (reply.status, reply.body["error"]["code"]) == (422, "invalid_field")
    assert reply.body["error"]["message"].startswith(f"{field}:")
