"""Receipts say what has been proven, and no more."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta, timezone

import pytest
from haltwire.wire.messages import CutInstance, Report
from haltwire.wire.names import AgentRef
from haltwire.wire.receipts import (
    APPLIED,
    FENCED,
    GONE,
    PENDING,
    InFlight,
    ProxyState,
    SinceMetadata,
)
from haltwire.wire.selectors import Selector
from haltwire_control.ledger import Instance
from haltwire_control.receipts import (
    Evidence,
    Known,
    Request,
    applied_state,
    is_escapable,
    receipt_of,
    similar,
)

NOW = datetime(2026, 11, 22, 9, 30, tzinfo=timezone.utc)
SECOND = timedelta(seconds=1)
MAILER = AgentRef.parse("agent://acme/prod/mailer")
SELECTOR = Selector.of(MAILER)


def request(mode: str = "cut", **more) -> Request:
    return Request(
        "K1", SELECTOR, mode, "why", "key:ada", NOW, 41, more.pop("durable", True), **more
    )


def proxy(
    name: str = "w-1", state: str = APPLIED, ms: float = 5.0, *instances: CutInstance, **more
):
    report = Report("K1", NOW, instances)
    applied = state == APPLIED
    shown = ProxyState(name, state, ms if applied else None, 1 if applied else None)
    at = NOW + ms / 1000 * SECOND
    halted = {"halted_at": at, "halted_in_ms": ms} if applied else {}
    return Evidence(shown, at if applied else None, report if applied else None, **halted | more)


def fenced(name: str = "w-2", ms: float = 1060.0, most: int | None = 4096) -> Evidence:
    at = NOW + ms / 1000 * SECOND
    return Evidence(
        ProxyState(name, FENCED, ms), halted_at=at, halted_in_ms=ms, agent_residual_max=most
    )


def instance(name: str = "i-1", **more) -> Instance:
    return Instance(MAILER, name, NOW, **{"seen_at_proxy": NOW, **more})


def known(*instances: Instance) -> Known:
    return Known(instances, frozenset({MAILER} if instances else ()))


def cut(name: str = "i-1", **more) -> CutInstance:
    return CutInstance(
        MAILER, name, **{"seen_at": NOW, "connections_cut": 2, "last_byte_at": NOW, **more}
    )


def flight(sent: str) -> InFlight:
    return InFlight("POST", "api.mail.test", "/send", NOW, 5, 4, 0, sent)


CONFIRMED = {
    "by all": ([proxy(), proxy("w-2")], known(instance()), None),
    "one is pending": ([proxy(), proxy("w-2", PENDING)], known(instance()), "proxy_pending"),
    "one has ended": ([proxy(), proxy("w-2", GONE)], known(instance()), None),
    "one is fenced": ([proxy(), fenced()], known(instance()), None),
    "all are fenced": ([fenced()], known(instance()), None),
    "fenced and ended": ([fenced(), proxy("w-3", GONE)], known(instance()), None),
    "fenced and pending": ([fenced(), proxy("w-1", PENDING)], known(instance()), "proxy_pending"),
    "fenced, and nobody known": ([fenced()], known(), "no_agent"),
    "no proxy": ([], known(instance()), "no_proxy"),
    "only ended ones": ([proxy("w-2", GONE)], known(instance()), "no_proxy"),
    "nobody known": ([proxy()], known(), "no_agent"),
    "an instance beside the proxy": (
        [proxy()],
        known(instance(seen_at_proxy=None)),
        "outside_proxy",
    ),
    "known to a report alone": ([proxy("w-1", APPLIED, 5.0, cut())], known(), None),
}


@pytest.mark.parametrize(("evidence", "who", "because"), CONFIRMED.values(), ids=CONFIRMED)
def test_a_kill_is_confirmed_when_every_proxy_enforces_it(evidence, who, because):
    receipt = receipt_of(request(), evidence, who)
    assert (receipt.confirmed, receipt.unconfirmed_because) == (because is None, because)


def test_it_is_halted_with_the_last_ack():
    receipt = receipt_of(request(), [proxy(ms=5.0), proxy("w-2", ms=9.0)], known(instance()))
    assert receipt.halted_in_ms == 9.0
    assert receipt.halted_at == NOW + SECOND * 0.009


@pytest.mark.parametrize("evidence", [[], [proxy(), proxy("w-2", PENDING)], [proxy("w-2", GONE)]])
def test_without_proof_nothing_is_halted(evidence):
    receipt = receipt_of(request(), evidence, known(instance()))
    assert (receipt.halted_at, receipt.halted_in_ms) == (None, None)


def test_it_is_halted_with_the_last_fence_when_that_is_later():
    receipt = receipt_of(request(), [proxy(), fenced()], known(instance()))
    assert (receipt.halted_in_ms, receipt.halted_at) == (1060.0, NOW + SECOND * 1.06)


def test_who_ended_without_a_word_counts_until_its_end():
    gone = proxy("w-2", GONE, halted_at=NOW + SECOND, halted_in_ms=1000.0)
    receipt = receipt_of(request(), [proxy(), gone], known(instance()))
    assert (receipt.halted_in_ms, receipt.halted_at) == (1000.0, NOW + SECOND)


def test_a_drain_is_confirmed_with_a_fenced_proxy_but_not_over():
    silent = replace(fenced(), halted_at=None, halted_in_ms=None)
    receipt = receipt_of(request("drain"), [proxy(), silent], known(instance()))
    assert (receipt.confirmed, receipt.halted_at) == (True, None)
    assert receipt.instances[0].stopped_by is None


def test_what_a_fenced_proxy_did_is_not_known_and_never_0():
    evidence = [proxy("w-1", APPLIED, 5.0, cut(connections_cut=0)), fenced()]
    receipt = receipt_of(request(), evidence, known(instance()))
    (state,) = receipt.proxies[1:]
    assert (state.connections_cut, state.connections_live, state.connections_held) == (None,) * 3
    (shown,) = receipt.instances
    assert (shown.connections_cut, shown.last_byte_at) == (None, None)
    assert shown.since_metadata == SinceMetadata(None, None)
    assert shown.stopped_by == "proxy"


@pytest.mark.parametrize(
    ("most", "agents", "residual"), [(4096, 3, 12_288), (None, 3, None), (4096, 0, None)]
)
def test_what_a_fenced_proxy_may_still_send_grows_with_the_agents(most, agents, residual):
    names = frozenset(AgentRef.parse(f"agent://acme/prod/a{i}") for i in range(agents))
    receipt = receipt_of(request(), [fenced(most=most)], Known((), names))
    assert receipt.proxies[0].residual_bytes_max == residual


def test_nobody_is_stopped_while_a_proxy_is_pending():
    receipt = receipt_of(request(), [proxy(), proxy("w-2", PENDING)], known(instance()))
    assert receipt.instances[0].stopped_by is None
    assert receipt_of(request(), [proxy()], known(instance())).instances[0].stopped_by == "proxy"


def test_an_instance_adds_up_over_proxies_and_clocks():
    one = cut(completed_at=(NOW - SECOND, NOW + SECOND), in_flight=(flight("partly"),))
    other = cut(
        connections_cut=1,
        last_byte_at=NOW + SECOND,
        completed_at=(NOW,),
        in_flight=(flight("none"), flight("whole")),
    )
    evidence = [
        proxy("w-1", APPLIED, 5.0, one),
        proxy("w-2", APPLIED, 5.0, other, clock_offset=5 * SECOND),
    ]
    who = known(instance(metadata={"sent": 7}, metadata_at=NOW))
    (shown,) = receipt_of(request(), evidence, who).instances
    assert shown.connections_cut == 3
    assert shown.last_byte_at == NOW + 6 * SECOND
    assert shown.since_metadata == SinceMetadata(completed=2, uncertain=2)
    assert [f.started_at for f in shown.in_flight] == [NOW, NOW + 5 * SECOND, NOW + 5 * SECOND]


SINCE = {
    "no metadata: all that are known": (cut(completed_at=(NOW,) * 3), None, SinceMetadata(3, 0)),
    "nothing since": (cut(completed_at=(NOW - SECOND,)), NOW, SinceMetadata(0, 0)),
    "a tunnel": (cut(completed_known=False), NOW, SinceMetadata(None, None)),
}


@pytest.mark.parametrize(("report", "metadata_at", "since"), SINCE.values(), ids=SINCE)
def test_requests_since_the_last_metadata(report, metadata_at, since):
    who = known(instance(metadata={} if metadata_at else None, metadata_at=metadata_at))
    (shown,) = receipt_of(request(), [proxy("w-1", APPLIED, 5.0, report)], who).instances
    assert shown.since_metadata == since


def test_without_the_report_nothing_is_counted():
    evidence = Evidence(ProxyState("w-1", APPLIED, 5.0, 1), NOW)
    (shown,) = receipt_of(request(), [evidence], known(instance())).instances
    assert (shown.connections_cut, shown.since_metadata) == (None, SinceMetadata(None, None))


def test_a_drain_is_halted_when_the_last_proxy_has_nothing_alive():
    going = proxy("w-2", APPLIED, 9.0, cut(connections_live=2), halted_at=None)
    receipt = receipt_of(request("drain", grace_s=30.0), [proxy(), going], known(instance()))
    assert (receipt.confirmed, receipt.halted_at, receipt.halted_in_ms) == (True, None, None)
    assert (receipt.instances[0].connections_live, receipt.instances[0].stopped_by) == (2, None)
    assert receipt.grace_s == 30.0
    ended = proxy("w-2", APPLIED, 9.0, cut(connections_cut=1))
    receipt = receipt_of(request("drain"), [proxy(), ended], known(instance()))
    assert receipt.halted_in_ms == 9.0
    (shown,) = receipt.instances
    assert (shown.connections_live, shown.connections_cut, shown.stopped_by) == (0, 1, "proxy")


def test_nobody_is_said_to_be_stopped_by_a_drain_whose_details_are_not_in():
    evidence = Evidence(ProxyState("w-1", APPLIED, 5.0), NOW)
    (shown,) = receipt_of(request("drain"), [evidence], known(instance())).instances
    assert (shown.stopped_by, shown.connections_live) == (None, None)


def test_a_hold_counts_what_is_frozen_and_what_gave_up():
    one, other = cut(connections_held=3, lost_while_held=1), cut(connections_held=1)
    evidence = [proxy("w-1", APPLIED, 5.0, one), proxy("w-2", APPLIED, 7.0, other)]
    receipt = receipt_of(request("hold", hold_until=NOW), evidence, known(instance()))
    assert (receipt.halted_in_ms, receipt.hold_until) == (7.0, NOW)
    (shown,) = receipt.instances
    assert (shown.connections_held, shown.lost_while_held) == (4, 1)
    assert (shown.connections_live, shown.stopped_by) == (None, "proxy")


def test_a_cut_says_nothing_of_live_ones_and_of_lost_ones_only_after_a_hold():
    (shown,) = receipt_of(
        request(), [proxy("w-1", APPLIED, 5.0, cut())], known(instance())
    ).instances
    counts = (shown.connections_live, shown.connections_held, shown.lost_while_held)
    assert counts == (None, None, None)
    evidence = [proxy("w-1", APPLIED, 5.0, cut(lost_while_held=2))]
    assert receipt_of(request(), evidence, known()).instances[0].lost_while_held == 2


LIVE = Report("K1", NOW, (cut(connections_cut=1, connections_live=2),), live=2)
HELD = Report("K1", NOW, (cut(connections_cut=0, connections_held=2),), residual_bytes_max=9)
STATES = {
    "a cut": (("cut", 3, LIVE, True), (3, None, None, 0)),
    "a cut that a hello told of": (("cut", None, None, False), (None, None, None, 0)),
    "a mode of a later day": (("melt", 3, None, False), (3, None, None, 0)),
    "a drain that is not told yet": (("drain", 0, None, False), (None, None, None, None)),
    "a drain under way": (("drain", 0, LIVE, False), (1, 2, None, None)),
    "an ended drain": (("drain", 0, replace(LIVE, live=0), True), (1, 0, None, 0)),
    "a hold that is not told yet": (("hold", 0, None, False), (None, None, None, None)),
    "a hold": (("hold", 0, HELD, True), (0, None, 2, 9)),
}


@pytest.mark.parametrize(("given", "expected"), STATES.values(), ids=STATES)
def test_what_a_proxy_has_done_by_mode(given, expected):
    mode, connections_cut, report, ended = given
    state = applied_state(mode, "w-1", 5.0, connections_cut, report, ended)
    assert (state.state, state.latency_ms) == (APPLIED, 5.0)
    assert expected == (
        state.connections_cut,
        state.connections_live,
        state.connections_held,
        state.residual_bytes_max,
    )


def test_an_order_that_is_not_stored_is_not_ok():
    receipt = receipt_of(request(durable=False), [proxy()], known(instance()))
    assert (receipt.ok, receipt.durable, receipt.confirmed) == (False, False, True)


def test_totals_are_of_the_instances():
    who = known(instance("i-1", metadata={"sent": 3}), instance("i-2", metadata={"sent": 4}))
    assert receipt_of(request(), [proxy()], who).totals.done == 7


ESCAPES = {
    "the agent, its own token": ("agent://a/b", ["agent://a/b"], False),
    "an instance, the agent's token": ("agent://a/b~i-1", ["agent://a/b"], True),
    "an instance, its own token": ("agent://a/b~i-1", ["agent://a/b~i-1"], False),
    "an instance, another's token": ("agent://a/b~i-1", ["agent://a/b~i-2"], False),
    "a glob of instances": ("agent://a/b~i-*", ["agent://a/b"], True),
    "an instance, a glob token": ("agent://a/b~i-1", ["agent://a/*"], True),
    "the agent, a glob token": ("agent://a/b", ["agent://a/*"], True),
    "the glob, its token": ("agent://a/*", ["agent://a/*"], False),
    "nobody has a token": ("agent://a/b~i-1", [], False),
}


@pytest.mark.parametrize(("selector", "tokens", "escapable"), ESCAPES.values(), ids=ESCAPES)
def test_who_can_rename_itself_can_escape(selector, tokens, escapable):
    parsed = [Selector.parse(token) for token in tokens]
    assert is_escapable(Selector.parse(selector), parsed) is escapable


def test_a_slip_of_the_pen_finds_its_agent():
    other = AgentRef.parse("agent://acme/prod/billing")
    typo = Selector.parse("agent://acme/prod/mialer")
    assert similar(typo, [MAILER, other])[0] == str(MAILER)
    assert similar(Selector.parse("agent://x/y"), [MAILER]) == ()
