"""Heartbeats: who beats, what is kept, and what a killed agent is told."""

from __future__ import annotations

import pytest
from haltwire_control import ledger

MAILER, PEER = "agent://acme/prod/mailer", "ip:127.0.0.1"


async def test_a_heartbeat_says_how_the_agent_stands(control):
    agent = await control.token(MAILER)
    answer = (await control.beat(agent, instance="i-1", metadata={"sent": 1})).body
    assert answer == {
        "ok": True,
        "killed": False,
        "held": False,
        "health_status": "healthy",
        "agent_uri": MAILER,
        "instance": "i-1",
        "kill": None,
        "checkpoint": None,
        "revision": 1,
    }


async def test_a_killed_agent_is_answered_and_told_by_whom(control):
    agent = await control.token(MAILER)
    receipt = (await control.kill("agent://acme/**", reason="broken link", wait_s=0)).body
    reply = await control.beat(agent)
    assert (reply.status, reply.body["killed"], reply.body["health_status"]) == (
        200,
        True,
        "killed",
    )
    kill = reply.body["kill"]
    assert (kill["kill_id"], kill["reason"], kill["actor"]) == (
        receipt["kill_id"],
        "broken link",
        "key:admin",
    )
    await control.resume("agent://**", wait_s=0)
    assert (await control.beat(agent)).body["killed"] is False


async def test_a_held_agent_is_held_and_not_killed(control):
    agent = await control.token(MAILER)
    receipt = (await control.kill("agent://acme/**", mode="hold", wait_s=0)).body
    held = (await control.beat(agent)).body
    assert (held["killed"], held["held"], held["health_status"]) == (False, True, "held")
    assert (held["kill"]["kill_id"], held["kill"]["mode"]) == (receipt["kill_id"], "hold")
    await control.kill(MAILER, mode="drain", wait_s=0)
    drained = (await control.beat(agent)).body
    assert (drained["killed"], drained["held"], drained["health_status"]) == (True, False, "killed")
    assert drained["kill"]["mode"] == "drain"


async def test_only_the_killed_instance_is_killed(control):
    agent = await control.token(MAILER)
    await control.kill(f"{MAILER}~i-1", wait_s=0)
    assert (await control.beat(agent, instance="i-1")).body["killed"] is True
    assert (await control.beat(agent, instance="i-2")).body["killed"] is False


AGENT_URI, INSTANCE = {"X_Agent_URI": MAILER}, {"X_Agent_Instance": "i-1"}
OTHER = "agent://acme/prod/other"
WHO = {
    "the token alone": (MAILER, {}, {}, (MAILER, PEER)),
    "an instance in the body": (MAILER, {}, {"instance": "i-2"}, (MAILER, "i-2")),
    "an instance in the header": (MAILER, INSTANCE, {}, (MAILER, "i-1")),
    "both agree": (MAILER, INSTANCE, {"instance": "i-1"}, (MAILER, "i-1")),
    "a bound instance": (f"{MAILER}~i-1", {}, {}, (MAILER, "i-1")),
    "a bound instance, through a proxy": (f"{MAILER}~i-1", INSTANCE, {}, (MAILER, "i-1")),
    "unnamed, through a proxy": (
        MAILER,
        {"X_Agent_Instance": "ip:192.0.2.7"},
        {},
        (MAILER, "ip:192.0.2.7"),
    ),
    "unnamed at the proxy, named in the body": (
        MAILER,
        {"X_Agent_Instance": "ip:192.0.2.7"},
        {"instance": "i-1"},
        (MAILER, "ip:192.0.2.7"),
    ),
    "a glob token, by header": ("agent://acme/**", AGENT_URI, {}, (MAILER, PEER)),
    "a glob token, by body": ("agent://acme/**", {}, {"agent_uri": MAILER}, (MAILER, PEER)),
    "a glob of instances": (f"{MAILER}~i-*", {}, {"instance": "i-5"}, (MAILER, "i-5")),
}


@pytest.mark.parametrize(("selector", "headers", "body", "who"), WHO.values(), ids=WHO)
async def test_who_beats(control, selector, headers, body, who):
    agent = await control.token(selector)
    reply = await control.call("POST", "/v1/mesh/heartbeat", body, key=agent, **headers)
    assert (reply.body["agent_uri"], reply.body["instance"]) == who


REFUSED = {
    "another agent, by header": (MAILER, {"X_Agent_URI": OTHER}, {}, 403, "identity_mismatch"),
    "another agent, by body": (MAILER, {}, {"agent_uri": OTHER}, 403, "identity_mismatch"),
    "header and body disagree": (
        "agent://acme/**",
        AGENT_URI,
        {"agent_uri": OTHER},
        403,
        "identity_mismatch",
    ),
    "outside the glob": (
        "agent://acme/**",
        {},
        {"agent_uri": "agent://x/y"},
        403,
        "identity_mismatch",
    ),
    "another instance": (f"{MAILER}~i-9", INSTANCE, {}, 403, "identity_mismatch"),
    "another instance, in the body": (
        f"{MAILER}~i-9",
        {},
        {"instance": "i-1"},
        403,
        "identity_mismatch",
    ),
    "two instances": (MAILER, INSTANCE, {"instance": "i-2"}, 403, "identity_mismatch"),
    "outside the instance glob": (
        f"{MAILER}~i-*",
        {},
        {"instance": "j-1"},
        403,
        "identity_mismatch",
    ),
    "a glob token that names nobody": ("agent://acme/**", {}, {}, 422, "agent_required"),
    "a name that is none": (MAILER, {}, {"agent_uri": "mailer"}, 422, "invalid_field"),
    "an instance that is none": (MAILER, {"X_Agent_Instance": "a b"}, {}, 422, "invalid_field"),
}


@pytest.mark.parametrize(
    ("selector", "headers", "body", "status", "code"), REFUSED.values(), ids=REFUSED
)
async def test_who_is_refused(control, selector, headers, body, status, code):
    agent = await control.token(selector)
    reply = await control.call("POST", "/v1/mesh/heartbeat", body, key=agent, **headers)
    assert (reply.status, reply.body["error"]["code"]) == (status, code)
    assert control.service.ledger.agents == ()


async def test_a_mismatch_is_audited(control):
    agent = await control.token(MAILER)
    await control.beat(agent, agent_uri=OTHER)
    await control.beat(agent, agent_uri=OTHER)
    await control.service.store.probe()
    (event,) = await control.events("event_type=identity.mismatch")
    assert event["agent_uri"] == OTHER
    assert event["details"]["source"] == "127.0.0.1"


async def test_an_operators_key_must_name_the_agent(control):
    path = "/v1/mesh/heartbeat"
    reply = await control.call("POST", path, {})
    assert (reply.status, reply.body["error"]["code"]) == (422, "agent_uri_required")
    reply = await control.call("POST", path, {"agent_uri": MAILER, "instance": "i-1"})
    assert (reply.body["agent_uri"], reply.body["instance"]) == (MAILER, "i-1")


async def test_first_sight_and_goodbye_are_audited_once(control):
    agent = await control.token(MAILER)
    for status in ("active", "active", "finished", "finished"):
        await control.beat(agent, instance="i-1", status=status)
    await control.service.store.probe()
    events = (await control.events())[2:]
    assert [e["event_type"] for e in events] == ["instance.seen", "instance.finished"]
    assert events[0]["address"] == f"{MAILER}~i-1"
    assert events[1]["actor"] == f"agent:{MAILER}"


async def test_invented_names_are_bounded(control, monkeypatch):
    monkeypatch.setattr(ledger, "INSTANCES_PER_TOKEN", 2)
    agent = await control.token(MAILER)
    statuses = [(await control.beat(agent, instance=f"i-{n}")).status for n in range(3)]
    assert statuses == [200, 200, 429]
