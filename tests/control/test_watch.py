"""A watch knows what it waits for, and keeps what it has seen."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta, timezone

from haltwire.wire.messages import CutInstance, Report
from haltwire.wire.names import AgentRef
from haltwire.wire.selectors import Selector
from haltwire_control.hub import Enforcement, Moment, Peer
from haltwire_control.receipts import RESUME, Release, Request
from haltwire_control.state import ProxyRecord
from haltwire_control.watch import REPORTS_WITHIN_S, Watch

NOW = datetime(2026, 11, 22, 9, 30, tzinfo=timezone.utc)
SECOND = timedelta(seconds=1)
REPORT = Report("K1", NOW)
MAILER = AgentRef.parse("agent://acme/prod/mailer")


def peer(name: str = "w-1") -> Peer:
    return Peer(ProxyRecord(name, "box", "boot", 7, "pid:[1]", 100, "1", NOW))


def watch(*peers: Peer, mode: str = "cut", needed: int = 5, holds=(), arrived=100.0) -> Watch:
    selector = Selector.parse("agent://acme/prod/mailer")
    release = Release(NOW, (), frozenset(holds)) if mode == RESUME else None
    request = Request("K1", selector, mode, None, "key:ada", NOW, 5, True, release=release)
    return Watch(request, peers, needed, arrived)


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
    look(seen)
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


def test_a_drain_is_complete_when_all_have_ended():
    one, other = peer("w-1"), peer("w-2")
    for each in (one, other):
        each.enforced["K1"] = Enforcement(5, NOW, 100.02, 0, replace(REPORT, live=1))
    one.enforced["K1"].ended = Moment(NOW, 101.5)
    seen = watch(one, other, mode="drain")
    look(seen)
    assert (seen.is_pending, seen.is_complete, seen.waits_for_ends) == (False, False, True)
    assert [item.halted_in_ms for item in seen.evidence()] == [1500.0, None]
    other.enforced["K1"].ended = Moment(NOW, 102.5)
    assert (seen.is_complete, seen.waits_for_ends) == (True, False)
    assert [item.halted_in_ms for item in seen.evidence()] == [1500.0, 2500.0]
    assert [item.state.residual_bytes_max for item in seen.evidence()] == [0, 0]


def test_a_proxy_that_ends_while_it_drains_has_nothing_alive_any_more():
    one = peer()
    live = CutInstance(MAILER, "i-1", NOW, 0, None, connections_live=3)
    one.enforced["K1"] = Enforcement(5, NOW, 100.02, 0, Report("K1", NOW, (live,), live=3))
    seen = watch(one, mode="drain")
    look(seen)
    assert seen.evidence()[0].state.connections_live == 3
    one.gone = True
    look(seen, 103.0)
    look(seen, 110.0)
    assert seen.is_complete
    (item,) = seen.evidence()
    assert (item.state.connections_live, item.halted_in_ms) == (0, 3000.0)
    assert item.state.residual_bytes_max is None
    assert item.report.instances[0].connections_live == 0


def test_a_hold_waits_for_its_first_report_and_is_halted_with_its_ack():
    one = peer()
    one.enforced["K1"] = Enforcement(5, NOW, 100.02, 0)
    seen = watch(one, mode="hold")
    look(seen)
    assert (seen.is_complete, seen.waits_for_ends) == (False, False)
    assert seen.evidence()[0].halted_in_ms == 20.0
    one.enforced["K1"].report = replace(REPORT, residual_bytes_max=7)
    assert seen.is_complete
    assert seen.evidence()[0].state.residual_bytes_max == 7


def test_a_resume_of_holds_waits_for_what_has_become_of_them():
    one = peer()
    one.applied_revision = 5
    seen = watch(one, mode=RESUME, holds={"K1", "K2"})
    look(seen)
    assert (seen.is_pending, seen.is_complete) == (False, False)
    let_go = CutInstance(MAILER, "i-1", NOW, 0, None, connections_live=2, lost_while_held=1)
    one.released[5] = {"K1": Report("K1", NOW, (let_go,))}
    look(seen)
    assert not seen.is_complete
    one.released[5]["K2"] = Report("K2", NOW, (let_go,))
    one.released.clear()  # others have lifted many since
    assert seen.is_complete
    assert seen.evidence()[0].state.connections_live == 2


def test_what_an_earlier_process_asked_for_has_no_times_on_our_clock():
    one = peer()
    seen = watch(one, mode="drain", arrived=None)
    seen.earlier = ("w-0",)
    look(seen)
    assert seen.is_behind
    one.enforced["K1"] = Enforcement(5, NOW, 100.02, None)
    look(seen)
    assert seen.is_behind
    one.enforced["K1"].report = REPORT
    one.enforced["K1"].ended = Moment(NOW, 101.5)
    assert (seen.is_behind, seen.is_complete) == (False, True)
    assert states(seen) == ["gone", "applied"]
    item = seen.evidence()[1]
    assert (item.state.latency_ms, item.halted_in_ms, item.halted_at) == (None, None, NOW)


def test_known_changes_with_what_is_proven():
    one = peer()
    seen = watch(one)
    before = seen.known
    one.gone = True
    look(seen)
    assert seen.known != before


def test_a_silent_proxy_without_a_lease_is_fenced_from_when_that_was_certain():
    one, other = peer("w-1"), peer("w-2")
    one.record = replace(one.record, agent_residual_max=4096)
    one.lapsed = Moment(NOW + SECOND, 101.06)
    seen = watch(one, other)
    look(seen, 100.0)
    look(seen, 103.0)
    assert (seen.is_pending, states(seen)) == (True, ["fenced", "pending"])
    (item, _) = seen.evidence()
    assert (item.state.latency_ms, item.halted_in_ms) == (1060.0, 1060.0)
    assert (item.halted_at, item.agent_residual_max) == (NOW + SECOND, 4096)
    assert (item.state.connections_cut, item.state.residual_bytes_max) == (None, None)
    other.lapsed = Moment(NOW + SECOND, 103.06)
    look(seen, 103.06)
    assert (seen.is_pending, seen.is_complete) == (False, False), "it may still come back"
    assert seen.reports_until < 103.0, "nobody waits for that"


def test_who_had_no_lease_before_the_order_is_fenced_with_its_commit():
    """Before, nothing was ordered: its silence then proves nothing of the order."""
    one = peer()
    one.lapsed = Moment(NOW - 3600 * SECOND, 20.0)
    seen = watch(one)
    look(seen, 100.25)
    (item,) = seen.evidence()
    assert (item.state.state, item.halted_in_ms, item.halted_at) == ("fenced", 250.0, NOW)


def test_a_lease_that_was_granted_since_unsays_no_fence():
    """It was granted with the order in it: whoever has not applied that has no lease by it."""
    one = peer()
    one.lapsed = Moment(NOW, 101.06)
    seen = watch(one)
    look(seen, 101.06)
    one.lapsed = None
    look(seen, 102.0)
    assert states(seen) == ["fenced"]


def test_the_ack_of_a_fenced_proxy_tells_what_it_cut_and_changes_no_time():
    one = peer()
    one.lapsed = Moment(NOW, 101.06)
    seen = watch(one)
    look(seen, 101.06)
    one.enforced["K1"] = Enforcement(5, NOW + 9 * SECOND, 110.0, 3, REPORT)
    look(seen, 110.0)
    (item,) = seen.evidence()
    assert (item.state.state, item.state.connections_cut, item.state.latency_ms) == (
        "applied",
        3,
        10_000.0,
    )
    assert (item.halted_in_ms, item.halted_at) == (1060.0, NOW)
    assert seen.is_complete


def test_a_drain_has_not_ended_at_a_fenced_proxy():
    """When it is back it lets what is open there finish, so bytes may still move.

    With the fence taken for the end, as for a cut, the drain was called over.
    """
    one = peer()
    one.lapsed = Moment(NOW, 101.06)
    seen = watch(one, mode="drain")
    look(seen, 101.06)
    assert (seen.is_pending, seen.waits_for_ends, states(seen)) == (False, True, ["fenced"])
    assert seen.evidence()[0].halted_at is None
    one.gone = True
    look(seen, 105.0)
    (item,) = seen.evidence()
    assert (item.state.state, item.halted_in_ms) == ("gone", 5000.0)


def test_a_hold_is_halted_at_a_fenced_proxy():
    one = peer()
    one.lapsed = Moment(NOW, 101.06)
    seen = watch(one, mode="hold")
    look(seen, 101.06)
    assert (states(seen), seen.evidence()[0].halted_in_ms) == (["fenced"], 1060.0)


def test_for_a_resume_a_silent_proxy_stays_pending():
    one = peer()
    one.lapsed = Moment(NOW, 101.06)
    seen = watch(one, mode=RESUME)
    look(seen, 105.0)
    assert (seen.is_pending, states(seen)) == (True, ["pending"])


def test_who_ended_without_a_word_may_have_passed_something_until_then():
    one, other = peer("w-1"), peer("w-2")
    other.lapsed = Moment(NOW, 101.06)
    seen = watch(one, other)
    look(seen, 101.06)
    one.gone = other.gone = True
    look(seen, 104.0)
    assert states(seen) == ["gone", "gone"]
    assert [item.halted_in_ms for item in seen.evidence()] == [4000.0, 1060.0]
