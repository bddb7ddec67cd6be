"""Who an order is about: seen or named by a token; and after a resume, whom it had stopped."""

from __future__ import annotations

import pytest
from haltwire.wire.names import AgentRef
from haltwire.wire.selectors import Selector
from haltwire_control import roster
from support.control import usage

MAILER, OTHER = "agent://acme/prod/mailer", "agent://acme/prod/other"


def agents(*texts: str) -> frozenset[AgentRef]:
    return frozenset(map(AgentRef.parse, texts))


@pytest.fixture
async def service(control, worker):
    """The mailer has two instances, one of which is finished; the other agent has only a token."""
    mailer = await control.token(MAILER)
    await control.token(OTHER)
    await control.token("agent://acme/dev/*")
    await control.beat(mailer, instance="i-1")
    await control.beat(mailer, instance="i-2", status="finished")
    await worker.use(usage("agent://acme/prod/unnamed", "ip:192.0.2.7"))
    return control.service


KNOWN = {
    "an agent": (MAILER, ["i-1"], (MAILER,)),
    "a finished instance of it": (f"{MAILER}~i-2", [], (MAILER,)),
    "an instance that nobody has seen": (f"{MAILER}~i-9", [], ()),
    "one that has only a token": (OTHER, [], (OTHER,)),
    "a glob": (
        "agent://acme/prod/*",
        ["i-1", "ip:192.0.2.7"],
        (MAILER, OTHER, "agent://acme/prod/unnamed"),
    ),
    "nobody": ("agent://x/**", [], ()),
}


@pytest.mark.parametrize(("selector", "live", "who"), KNOWN.values(), ids=KNOWN)
async def test_who_is_there_to_be_stopped(service, selector, live, who):
    found = roster.known(service, Selector.parse(selector))
    assert [one.instance for one in found.instances] == live
    assert found.agents == agents(*who)


@pytest.mark.parametrize(("selector", "live", "who"), KNOWN.values(), ids=KNOWN)
async def test_a_resume_of_them_means_the_same_agents(service, selector, live, who):
    assert roster.named(service, Selector.parse(selector)).agents == agents(*who)


async def test_a_slip_of_the_pen_has_similar_names(service):
    found = roster.named(service, Selector.parse("agent://acme/prod/mialer"))
    assert found.did_you_mean[0] == MAILER
    assert roster.named(service, Selector.parse(MAILER)).did_you_mean == ()


async def test_agents_are_known_by_traffic_and_by_tokens_that_name_one(service):
    known = roster.known_agents(service)
    assert set(known) == agents(MAILER, OTHER, "agent://acme/prod/unnamed")


async def test_a_resume_is_about_whom_it_had_stopped(service, control):
    await control.kill(f"{MAILER}~i-1", wait_s=0)
    receipt = (await control.resume("agent://**", wait_s=0)).body
    assert [one["instance"] for one in receipt["instances"]] == ["i-1"]
    nothing = (await control.resume("agent://**", wait_s=0)).body
    assert (nothing["instances"], nothing["lifted"]) == ([], [])
