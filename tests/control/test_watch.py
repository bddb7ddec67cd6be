"""A watch knows what it waits for, and keeps what it has seen."""

from __future__ import annotations

from datetime import datetime, timezone

from haltwire.wire.messages import Report
from haltwire.wire.selectors import Selector
from haltwire_control.hub import Enforcement, Peer
from haltwire_control.receipts import RESUME, Request
from haltwire_control.state import ProxyRecord
from haltwire_control.watch import REPORTS_WITHIN_S, Watch

NOW = datetime(2026, 11, 22, 9, 30, tzinfo=timezone.utc)
REPORT = Report("K1", NOW)


def peer(name: str = "w-1") -> Peer:
    return Peer(ProxyRecord(name, "box", "boot", 7, "pid:[1]", 100, "1", NOW))


def watch(*peers: Peer, mode: str = "cut", needed: int = 5) -> Watch:
    selector = Selector.parse("agent://acme/prod/mailer")
    return Watch(Request("K1", selector, mode, None, "key:ada", NOW, 5, True), peers, needed, 100.0)


def look(one: Watch, monotonic: float = 101.0) -> None:
    one.look(lambda: NOW, monotonic)


def states(one: Watch) -> list[str]:
    return [item.state.state for item in one.evidence()]


def test_no_proxies_leave_nothing_to_wait_for():
    assert watch().is_complete


def test_it_waits_for_ack_and_report():
    one = peer()
    seen = watch(one)
    look(seen)
    assert (seen.is_pending, states(seen)) == (True, ["pending"])
    one.enforced["K1"] = Enforcement(5, NOW, 100.02, 3)
    look(seen)
    assert (seen.is_pending, seen.is_complete, states(seen)) == (False, False, ["applied"])
    assert seen.reports_until == 100.02 + REPORTS_WITHIN_S
    one.enforced["K1"].report = REPORT
    assert seen.is_complete
    (item,) = seen.evidence()
    assert (item.state.latency_ms, item.state.connections_cut) == (20.0, 3)


def test_an_ack_of_an_earlier_form_of_the_order_is_no_proof():
    one = peer()
    one.enforced["K1"] = Enforcement(4, NOW, 99.0, 3, REPORT)
    seen = watch(one)
    look(seen)
    assert seen.is_pending


def test_what_was_enforced_before_the_request_took_no_time():
    one = peer()
    one.enforced["K1"] = Enforcement(5, NOW, 50.0, 3, REPORT)
    seen = watch(one)
    look(seen)
    assert seen.evidence()[0].state.latency_ms == 0.0
    assert seen.reports_until == 100.0 + REPORTS_WITHIN_S


def test_what_a_hello_said_has_no_details_to_wait_for():
    one = peer()
    one.enforced["K1"] = Enforcement(5, NOW, 50.0, None)
    seen = watch(one)
    look(seen)
    assert seen.is_complete


def test_an_ended_proxy_is_not_waited_for_and_proof_outlives_it():
    one, other = peer("w-1"), peer("w-2")
    one.enforced["K1"] = Enforcement(5, NOW, 100.5, 1, REPORT)
    seen = watch(one, other)
    look(seen)
    one.gone = other.gone = True
    assert not seen.is_pending
    assert states(seen) == ["applied", "gone"]


def test_proof_outlives_the_order():
    one = peer()
    one.enforced["K1"] = Enforcement(5, NOW, 100.5, 1, REPORT)
    seen = watch(one)
    look(seen)
    one.enforced.clear()
    look(seen)
    assert states(seen) == ["applied"]


def test_a_resume_waits_for_the_revision():
    one = peer()
    seen = watch(one, mode=RESUME)
    one.applied_revision = 4
    look(seen)
    assert seen.is_pending
    one.applied_revision = 5
    look(seen, 100.25)
    look(seen, 105.0)
    assert seen.is_complete
    assert seen.evidence()[0].state.latency_ms == 250.0


def test_known_changes_with_what_is_proven():
    one = peer()
    seen = watch(one)
    before = seen.known
    one.gone = True
    assert seen.known != before
