"""What an earlier process left is completed, and nothing that it had proven is lost."""

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
    InstanceState,
    Matched,
    ProxyState,
    SinceMetadata,
)
from haltwire_control.completing import completed
from haltwire_control.receipts import Evidence
from support.stores import a_receipt

NOW = datetime(2026, 11, 22, 9, 30, tzinfo=timezone.utc)
LATER = NOW + timedelta(seconds=40)
MAILER = AgentRef.parse("agent://acme/prod/mailer")
FLIGHT = InFlight("POST", "api.mail.test", "/send", NOW, 5, 4, 0, "partly")
ROW = InstanceState(
    str(MAILER), "i-1", NOW, None, 2, NOW, since_metadata=SinceMetadata(3, 1), in_flight=(FLIGHT,)
)
PROVEN = ProxyState("w-1", APPLIED, 6.0, 2, 0)


def left(state: str = PENDING, **more):
    """A receipt of two proxies, of which one had not answered."""
    silent = ProxyState("w-2", state, 1060.0 if state == FENCED else None)
    values = {
        "proxies": (PROVEN, silent),
        "instances": (ROW,),
        "matched": Matched(1, 1, 2),
        "unconfirmed_because": "proxy_pending" if state == PENDING else None,
        "confirmed": state != PENDING,
        "halted_at": None if state == PENDING else NOW,
        **more,
    }
    return replace(a_receipt("K1", str(MAILER)), **values)


def said(state: str, *instances: CutInstance, at: datetime | None = LATER, **more) -> Evidence:
    report = Report("K1", LATER, instances) if instances else None
    shown = ProxyState("w-2", state, None, 1 if instances else None)
    return Evidence(shown, at, report, halted_at=at, **more)


def cut(name: str = "i-1", **more) -> CutInstance:
    values = {"seen_at": NOW, "connections_cut": 1, "last_byte_at": LATER}
    return CutInstance(MAILER, name, **values | more)


FROM_PENDING = {
    "still silent": (Evidence(ProxyState("w-2", PENDING)), PENDING, "proxy_pending", None),
    "its lease is over": (said(FENCED), FENCED, None, LATER),
    "it has answered": (said(APPLIED, cut()), APPLIED, None, LATER),
    "it has ended": (said(GONE), GONE, None, LATER),
    "another one speaks": (replace(said(APPLIED), state=PROVEN), PENDING, "proxy_pending", None),
}


@pytest.mark.parametrize(
    ("item", "state", "because", "halted_at"), FROM_PENDING.values(), ids=FROM_PENDING
)
def test_a_proxy_that_had_not_answered(item, state, because, halted_at):
    after = completed(left(), [item])
    assert after.proxies == (PROVEN, replace(after.proxies[1], state=state))
    assert (after.unconfirmed_because, after.confirmed) == (because, because is None)
    assert (after.halted_at, after.halted_in_ms) == (halted_at, None)
    assert after.instances[0].stopped_by == (None if because else "proxy")


@pytest.mark.parametrize(("state", "expected"), [(PENDING, FENCED), (FENCED, FENCED)])
def test_what_was_fenced_is_not_less_for_a_new_start(state, expected):
    after = completed(left(FENCED), [Evidence(ProxyState("w-2", state), halted_at=LATER)])
    assert after.proxies == left(FENCED).proxies
    assert (after.confirmed, after.halted_at) == (True, NOW)


@pytest.mark.parametrize("state", [APPLIED, GONE])
def test_the_late_word_of_a_fenced_proxy_moves_no_time(state):
    after = completed(left(FENCED), [said(state)])
    assert after.proxies[1].state == state
    assert (after.confirmed, after.halted_at) == (True, NOW)


def test_what_was_proven_before_stays_whoever_is_not_back_yet():
    after = completed(left(), [Evidence(replace(PROVEN, state=PENDING, connections_cut=None))])
    assert after == left()


def test_a_late_report_adds_to_what_the_others_said():
    offset = timedelta(seconds=5)
    late = (cut(in_flight=(FLIGHT,)), cut("i-2", connections_cut=4))
    after = completed(left(), [said(APPLIED, *late, clock_offset=offset)])
    one, other = after.instances
    assert (one.connections_cut, other.connections_cut) == (3, 4)
    assert one.last_byte_at == LATER + offset
    assert [f.started_at for f in one.in_flight] == [NOW, NOW + offset]
    assert one.since_metadata == SinceMetadata(None, None)
    assert other.seen_at_proxy == NOW + offset
    assert after.matched == Matched(1, 2, 2)


def test_without_a_report_what_is_known_is_not_all():
    (row,) = completed(left(), [said(FENCED)]).instances
    assert (row.last_byte_at, row.since_metadata) == (None, SinceMetadata(None, None))
    assert row.in_flight == (FLIGHT,)


def test_what_a_fenced_proxy_may_still_send_grows_with_the_agents():
    before = left(matched=Matched(3, 1, 2))
    after = completed(before, [said(FENCED, agent_residual_max=10)])
    assert after.proxies[1].residual_bytes_max == 30


def test_of_a_hold_what_is_frozen_is_added_up():
    row = replace(ROW, connections_cut=0, connections_held=1)
    late = cut(connections_cut=0, connections_held=2)
    after = completed(left(mode="hold", instances=(row,)), [said(APPLIED, late)])
    assert (after.instances[0].connections_held, after.instances[0].connections_cut) == (3, 0)
