"""/metrics says what happens, in Prometheus' text format, and names nobody."""

from __future__ import annotations

import asyncio
from datetime import datetime, timezone

import pytest
from haltwire.wire.messages import Usage
from haltwire_control import public_api
from haltwire_control.metrics import CONTENT_TYPE, Metrics
from haltwire_control.state import SYSTEM, NewEvent, State
from prometheus_client.parser import text_string_to_metric_families
from support.control import Worker, usage
from support.stores import failing

NAMES = {
    "haltwire_build",
    "haltwire_connections",
    "haltwire_heartbeats",
    "haltwire_kill_halted_seconds",
    "haltwire_kills_confirmed",
    "haltwire_kills_issued",
    "haltwire_leases_lost",
    "haltwire_leases_overrun",
    "haltwire_stale_seconds",
    "haltwire_limits_hit",
    "haltwire_orders_in_force",
    "haltwire_orders_volatile",
    "haltwire_proxies",
    "haltwire_proxies_lost",
    "haltwire_refusals",
    "haltwire_requests",
    "haltwire_resumes_issued",
    "haltwire_revision",
    "haltwire_store_errors",
}


def families(text: str):
    return {family.name: family for family in text_string_to_metric_families(text)}


def samples(text: str):
    return {
        (sample.name, *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if not sample.name.endswith("_created")
    }


@pytest.fixture
def scrape(control, monkeypatch):
    monkeypatch.setattr(public_api, "MEASURED_FOR_S", -1.0)

    async def ask():
        reply = await control.call("GET", "/metrics", key=None)
        assert reply.status == 200
        return reply.body.decode()

    return ask


async def test_anybody_gets_prometheus_text(control, scrape):
    reply = await control.call("GET", "/metrics", key=None)
    assert reply.headers["Content-Type"] == CONTENT_TYPE
    assert set(families(reply.body.decode().replace("haltwire_build_info", "haltwire_build"))) == (
        NAMES
    )


async def test_a_kill_is_counted_with_its_proof_and_its_time(control, worker, scrape):
    await worker.use(usage("agent://acme/prod/mailer", "i-1"))
    assert (await control.kill("acme/prod/mailer")).body["confirmed"]
    said = samples(await scrape())
    assert said["haltwire_kills_issued_total",] == 1
    assert said["haltwire_kills_confirmed_total",] == 1
    assert said["haltwire_orders_in_force", "cut"] == 1
    assert said["haltwire_orders_in_force", "hold"] == 0
    assert said["haltwire_revision",] == 1
    assert said["haltwire_kill_halted_seconds_count",] == 1
    await control.resume("acme/prod/mailer")
    said = samples(await scrape())
    assert said["haltwire_resumes_issued_total",] == 1
    assert said["haltwire_orders_in_force", "cut"] == 0


async def test_heartbeats_are_counted(control, scrape):
    secret = await control.token("acme/prod/mailer")
    await control.beat(secret, status="active")
    await control.beat(secret, status="active")
    assert samples(await scrape())["haltwire_heartbeats_total",] == 2


async def test_a_store_that_fails_is_seen(control, scrape):
    with failing(control.service.store):
        await control.kill("acme/prod/mailer", wait_s=0)
        said = samples(await scrape())
        assert said["haltwire_orders_volatile",] == 1
        assert said["haltwire_store_errors_total",] >= 1
        assert said["haltwire_kills_issued_total",] == 1


async def test_what_a_proxy_says_is_added_up(control, worker, scrape):
    await worker.say(
        Usage(
            1,
            connections=7,
            totals={
                "requests": 12,
                "refused.agent_killed": 2,
                "refused.no_such_code": 2,
                "limit.agent_requests": 5,
                "leases_lost": 1,
                "stale_ms": 2500,
                "from_next_year": 3,
            },
        )
    )
    await worker.renew()  # answered after the usage was taken in
    text = await scrape()
    said = samples(text)
    assert said["haltwire_requests_total",] == 12
    assert said["haltwire_refusals_total", "agent_killed"] == 2
    assert said["haltwire_limits_hit_total", "agent_requests"] == 5
    assert said["haltwire_leases_lost_total",] == 1
    assert said["haltwire_stale_seconds_total",] == 2.5
    assert said["haltwire_connections",] == 7
    assert [said["haltwire_proxies", s] for s in ("connected", "disconnected", "fenced")] == [
        1,
        0,
        0,
    ]
    assert "no_such_code" not in text
    assert "from_next_year" not in text


async def test_every_proxy_is_counted_once_by_how_it_stands(control, worker, scrape):
    elsewhere = {"pid": 1, "pid_namespace": "pid:[elsewhere]"}
    away = await Worker(control, "w-2", **elsewhere).join()
    await away.leave()
    await Worker(control, "w-3", **elsewhere, started_ticks=7).join()
    peers = {peer.record.proxy_id: peer for peer in control.service.hub.peers}
    peers["w-3"].lease.end = 0.0
    control.service.hub.lapse()
    async with asyncio.timeout(5):
        while peers["w-2"].outlet is not None:
            await asyncio.sleep(0.01)
    said = samples(await scrape())
    assert said["haltwire_proxies", "connected"] == 1
    assert said["haltwire_proxies", "disconnected"] == 1
    assert said["haltwire_proxies", "fenced"] == 1


async def test_it_names_nobody(control, worker, scrape):
    """Everybody may ask."""
    secret = await control.token("acme/prod/mailer")
    await control.beat(secret, status="active", instance="i-secret-name")
    await control.kill("acme/prod/mailer", reason="because of ada")
    text = await scrape()
    for word in (
        "acme",
        "mailer",
        "i-secret",
        "ada",
        secret,
        control.admin_key,
        "w-1",
        "127.0.0.1",
    ):
        assert word not in text
    labels = {name for f in families(text).values() for s in f.samples for name in s.labels}
    assert labels <= {"version", "mode", "state", "code", "limit", "le"}


async def test_an_answer_is_good_for_a_moment(control, monkeypatch):
    """Anybody may ask as often as he likes: that must not keep a kill waiting."""
    monkeypatch.setattr(public_api, "MEASURED_FOR_S", 3600.0)
    asked = []
    text = control.service.metrics.text
    monkeypatch.setattr(control.service.metrics, "text", lambda: asked.append(1) or text())
    for _ in range(5):
        await control.call("GET", "/metrics", key=None)
    assert asked == [1]


class Facts:
    state = State("e")
    peers = ()
    store_failures = 0


def test_a_kill_that_was_never_halted_has_no_time():
    """Such as one over a proxy that is silent: its receipt says null, not 0."""
    metrics = Metrics(Facts())
    now = datetime.now(timezone.utc)
    metrics.note([NewEvent("kill.confirmed", now, SYSTEM, details={"halted_in_ms": None})])
    metrics.note([NewEvent("kill.confirmed", now, SYSTEM, details={"halted_in_ms": 14.2})])
    said = samples(metrics.text().decode())
    assert said["haltwire_kills_confirmed_total",] == 2
    assert said["haltwire_kill_halted_seconds_count",] == 1
    assert said["haltwire_kill_halted_seconds_bucket", "0.025"] == 1
    assert said["haltwire_kill_halted_seconds_bucket", "0.01"] == 0
