"""What has been seen of instances: totals per proxy process, the latest word, bounded names."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone

import pytest
from haltwire.wire.names import AgentRef
from haltwire.wire.selectors import Selector
from haltwire_control import ledger as module
from haltwire_control.ledger import KEPT_FOR, Beat, Ledger, TooManyInstancesError
from support.control import usage

NOW = datetime(2026, 11, 22, 9, 30, tzinfo=timezone.utc)
LATER = NOW + timedelta(seconds=10)
NONE = timedelta()
MAILER = AgentRef.parse("agent://acme/prod/mailer")
URI = str(MAILER)


@pytest.fixture
def ledger():
    return Ledger()


def only(ledger):
    (found,) = ledger.instances(MAILER)
    return found


def test_a_heartbeat_makes_an_instance_known_once(ledger):
    found, is_new = ledger.beat(MAILER, "i-1", Beat("active", {"sent": 1}), NOW)
    assert is_new
    assert (found.first_seen_at, found.metadata_at) == (NOW, NOW)
    assert ledger.beat(MAILER, "i-1", Beat(), LATER)[1] is False
    assert ledger.agents == (MAILER,)


def test_a_heartbeat_that_says_nothing_keeps_what_was_said(ledger):
    ledger.beat(MAILER, "i-1", Beat("active", {"sent": 1}, {"latency": 2.0}, 5.0), NOW)
    ledger.beat(MAILER, "i-1", Beat(), LATER)
    found = only(ledger)
    assert (found.metadata, found.metadata_at, found.metrics, found.interval_s) == (
        {"sent": 1},
        NOW,
        {"latency": 2.0},
        5.0,
    )
    assert found.heartbeat_at == LATER


def test_goodbye_ends_an_instance_until_it_beats_again(ledger):
    ledger.beat(MAILER, "i-1", Beat("finished"), NOW)
    assert only(ledger).finished_at == NOW
    ledger.beat(MAILER, "i-1", Beat("active"), LATER)
    assert only(ledger).finished_at is None


def test_traffic_after_goodbye_is_life(ledger):
    ledger.beat(MAILER, "i-1", Beat("finished"), NOW)
    late = usage(URI, "i-1", first_seen_at=NOW, last_seen_at=LATER)
    ledger.use("w/1", [late], NONE, LATER)
    assert only(ledger).finished_at is None


def test_a_heartbeat_is_not_seen_at_a_proxy(ledger):
    """A proxy relays heartbeats of killed agents too; only traffic proves that it can stop one."""
    ledger.beat(MAILER, "i-1", Beat(), NOW)
    assert only(ledger).seen_at_proxy is None
    ledger.use("w/1", [usage(URI, "i-1", last_seen_at=NOW)], NONE, NOW)
    assert only(ledger).seen_at_proxy == NOW


def test_totals_replace_one_another_and_add_up_over_proxies(ledger):
    for requests in (1, 5):
        ledger.use("w-1/1", [usage(URI, "i-1", requests=requests, connections=2)], NONE, NOW)
    ledger.use("w-2/2", [usage(URI, "i-1", requests=10, connections=1)], NONE, NOW)
    assert (only(ledger).total.requests, only(ledger).total.connections) == (15, 3)


def test_totals_of_an_ended_proxy_stay_and_its_connections_do_not(ledger):
    ledger.use("w-1/1", [usage(URI, "i-1", requests=5, connections=2)], NONE, NOW)
    ledger.use("w-2/2", [usage(URI, "i-1", requests=10, connections=1)], NONE, NOW)
    ledger.end_proxies(["w-2/2"])
    ledger.use("w-1/9", [usage(URI, "i-1", requests=1, connections=1)], NONE, NOW)
    assert (only(ledger).total.requests, only(ledger).total.connections) == (16, 2)


def test_a_proxys_clock_is_converted_and_never_ahead(ledger):
    behind = usage(URI, "i-1", first_seen_at=NOW, last_seen_at=NOW)
    ledger.use("w/1", [behind], timedelta(seconds=3), LATER)
    assert only(ledger).seen_at_proxy == NOW + timedelta(seconds=3)
    ledger.use("w/1", [behind], timedelta(hours=3), LATER)
    assert only(ledger).seen_at_proxy == LATER


def test_fresh_instances_are_told(ledger):
    ledger.beat(MAILER, "i-1", Beat(), NOW)
    fresh = ledger.use("w/1", [usage(URI, "i-1"), usage(URI, "i-2")], NONE, NOW)
    assert [i.instance for i in fresh] == ["i-2"]


def test_names_that_a_tokens_heartbeats_invent_are_bounded(ledger, monkeypatch):
    """By token: whoever fills one up must not lock out the other tokens of the same agent."""
    monkeypatch.setattr(module, "INSTANCES_PER_TOKEN", 3)
    for number in range(3):
        ledger.beat(MAILER, f"i-{number}", Beat(), NOW, "T1")
    with pytest.raises(TooManyInstancesError, match="3 live"):
        ledger.beat(MAILER, "i-9", Beat(), NOW, "T1")
    ledger.beat(MAILER, "i-1", Beat(), NOW, "T1")
    ledger.beat(MAILER, "i-8", Beat(), NOW, "T2")
    ledger.beat(MAILER, "i-1", Beat("finished"), NOW, "T1")
    ledger.beat(MAILER, "i-9", Beat(), NOW, "T1")
    ledger.beat(MAILER, "i-10", Beat(), NOW + timedelta(days=1), "T1")


def test_a_token_of_many_agents_can_invent_no_more_of_them(ledger, monkeypatch):
    monkeypatch.setattr(module, "INSTANCES_PER_TOKEN", 2)
    for name in ("a", "b"):
        ledger.beat(AgentRef(("acme", name)), "i-1", Beat(), NOW, "T1")
    with pytest.raises(TooManyInstancesError):
        ledger.beat(AgentRef(("acme", "c")), "i-1", Beat(), NOW, "T1")


def test_an_agents_ended_instances_are_dropped_beyond_a_bound_oldest_first(ledger, monkeypatch):
    """Else one that says goodbye under a new name each time fills memory and disk for a week."""
    monkeypatch.setattr(module, "INSTANCES_PER_AGENT", 3)
    for number in range(3):
        moment = NOW + timedelta(seconds=number)
        ledger.beat(MAILER, f"i-{number}", Beat("finished" if number else "active"), moment, "T1")
    ledger.take_changed()
    ledger.beat(MAILER, "i-3", Beat(), LATER, "T1")
    assert [one.instance for one in ledger.instances(MAILER)] == ["i-0", "i-2", "i-3"]
    assert ledger.take_dropped() == {(MAILER, "i-1")}
    assert ledger.take_dropped() == set()


def test_agents_are_bounded_too(ledger, monkeypatch):
    monkeypatch.setattr(module, "INSTANCES_KEPT", 3)
    for number in range(5):
        moment = NOW + timedelta(seconds=number)
        ledger.beat(AgentRef(("acme", f"a{number}")), "i-1", Beat("finished"), moment, "T1")
    assert [agent.name for agent in ledger.agents] == ["a2", "a3", "a4"]


def test_what_could_not_be_dropped_is_dropped_later_unless_it_is_back(ledger):
    ledger.beat(MAILER, "back", Beat(), NOW)
    ledger.put_back([], {(MAILER, "gone"), (MAILER, "back")})
    assert ledger.take_dropped() == {(MAILER, "gone")}


def test_a_proxy_that_counts_anew_takes_nothing_from_the_total(ledger):
    """It forgets an instance that was quiet for long, and may then see it again."""
    ledger.use("p1", [usage(URI, "i-1", requests=40, connections=1)], NONE, NOW)
    ledger.use("p1", [usage(URI, "i-1", requests=2, connections=1)], NONE, LATER)
    ledger.use("p1", [usage(URI, "i-1", requests=3, connections=1)], NONE, LATER)
    assert (only(ledger).total.requests, only(ledger).total.connections) == (43, 1)


def test_agents_are_matched_by_name(ledger):
    for text in ("agent://acme/prod/b", "agent://acme/prod/a", "agent://x/y"):
        ledger.beat(AgentRef.parse(text), "i-1", Beat(), NOW)

    def matching(text):
        return [str(agent) for agent in ledger.matching(Selector.parse(text))]

    assert matching("agent://acme/**") == ["agent://acme/prod/a", "agent://acme/prod/b"]
    assert matching("agent://x/y~i-1") == ["agent://x/y"]
    assert matching("agent://x/z") == []


def test_what_changed_is_taken_once(ledger):
    ledger.beat(MAILER, "i-1", Beat(), NOW)
    (copy,) = ledger.take_changed()
    assert ledger.take_changed() == []
    ledger.beat(MAILER, "i-1", Beat("finished"), LATER)
    assert copy.finished_at is None


def test_what_was_not_written_is_taken_again_as_it_is_now(ledger):
    ledger.beat(MAILER, "i-1", Beat(), NOW)
    taken = ledger.take_changed()
    ledger.beat(MAILER, "i-1", Beat("finished"), LATER)
    ledger.take_changed()
    ledger.put_back(taken)
    assert ledger.take_changed()[0].finished_at == LATER


def test_what_is_silent_for_long_is_forgotten(ledger):
    ledger.beat(MAILER, "i-1", Beat(), NOW)
    ledger.use("w/1", [usage(URI, "i-2", last_seen_at=NOW, connections=1)], NONE, NOW)
    ledger.forget(NOW + KEPT_FOR + timedelta(seconds=1))
    assert [i.instance for i in ledger.instances(MAILER)] == ["i-2"]
    ledger.end_proxies([])
    ledger.forget(NOW + KEPT_FOR + timedelta(seconds=1))
    assert ledger.agents == ()
