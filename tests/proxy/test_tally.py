"""Totals per instance."""

from datetime import datetime, timedelta, timezone

import pytest
from haltwire.wire.names import AgentRef
from haltwire_proxy.reporting import REPORTED_FOR
from haltwire_proxy.tally import (
    INSTANCES_PER_TOKEN,
    KEPT_FOR,
    MISMATCHES,
    OTHERS,
    REMEMBERED_COMPLETIONS,
    SWEPT_BEYOND,
    Tallies,
)

AGENT = AgentRef(("acme", "prod", "mailer"))
NOW = datetime(2026, 11, 22, tzinfo=timezone.utc)


def test_a_change_is_told_once_and_as_a_total():
    tallies = Tallies()
    tally = tallies.seen("T1", AGENT, "i-1", NOW)
    tally.requests += 2
    (usage,) = tallies.take_changes()
    assert (usage.requests, usage.first_seen_at) == (2, NOW)
    assert tallies.take_changes() == ()
    tally.requests += 1
    tallies.touch(tally)
    tallies.touch(tally)
    (usage,) = tallies.take_changes()
    assert usage.requests == 3


def test_all_tells_everything_even_what_was_told():
    tallies = Tallies()
    tallies.seen("T1", AGENT, "i-1", NOW)
    tallies.seen("T1", AGENT, "i-2", NOW)
    tallies.take_changes()
    assert {usage.instance for usage in tallies.all()} == {"i-1", "i-2"}


def test_completions_are_remembered_up_to_a_bound_and_it_says_when_some_are_lost():
    tally = Tallies().seen("T1", AGENT, "i-1", NOW)
    for second in range(REMEMBERED_COMPLETIONS):
        tally.complete(NOW + timedelta(seconds=second))
    assert not tally.forgotten
    tally.complete(NOW)
    assert tally.forgotten
    assert len(tally.completed) == REMEMBERED_COMPLETIONS


def test_matching_leaves_out_what_was_seen_long_ago_unless_it_is_connected():
    tallies = Tallies()
    tallies.seen("T1", AGENT, "old", NOW)
    connected = tallies.seen("T1", AGENT, "connected", NOW)
    connected.connections = 1
    tallies.seen("T1", AGENT, "new", NOW + timedelta(hours=1))
    found = tallies.matching(lambda *_: True, NOW + timedelta(minutes=30))
    assert {tally.instance for tally in found} == {"connected", "new"}
    assert tallies.matching(lambda *_: False, NOW) == []


def test_mismatches_are_counted_by_source_and_kind_and_none_is_lost():
    tallies = Tallies()
    for source in range(2000):
        tallies.mismatch(
            f"192.0.{source // 256}.{source % 256}", "identity_mismatch", "agent://a/b"
        )
    tallies.mismatch("192.0.0.1", "identity_mismatch", "agent://a/b")
    counted = tallies.take_mismatches()
    assert len(counted) == MISMATCHES + 1
    assert {m.count for m in counted if m.source == "192.0.0.1"} == {2}
    assert {(m.agent, m.count) for m in counted if m.source == OTHERS} == {(None, 1000)}
    assert tallies.take_mismatches() == ()


def test_a_network_of_ipv6_is_one_source():
    tallies = Tallies()
    for number in range(100):
        tallies.mismatch(f"2001:db8::{number:x}", "proxy_credentials_invalid", None)
    (counted,) = tallies.take_mismatches()
    assert (counted.source, counted.count) == ("2001:db8::/64", 100)


LATER = NOW + KEPT_FOR + timedelta(seconds=1)


@pytest.fixture
def full():
    """T1 has shown as many instances as it may, the first of which is connected."""
    tallies = Tallies()
    for number in range(INSTANCES_PER_TOKEN):
        tallies.seen("T1", AGENT, f"i-{number}", NOW).connections = number == 0
    tallies.take_changes()
    return tallies


def test_a_token_may_show_a_bounded_number_of_instances(full):
    refusal = full.room("T1", AGENT, "another", NOW)
    assert (refusal.code, refusal.status) == ("too_many_instances", 429)
    assert full.room("T1", AGENT, "i-7", NOW) is None
    assert full.room("T1", AgentRef(("acme", "prod", "other")), "i-7", NOW) is not None


def test_what_a_refused_name_does_is_counted_for_nobody(full):
    full.refused("T1", AGENT, "another", NOW)
    assert len(full.all()) == INSTANCES_PER_TOKEN


def test_a_full_token_locks_out_no_other(full):
    """Whoever holds one token of an agent must not be able to stop the others."""
    assert full.room("T2", AGENT, "another", NOW) is None
    full.seen("T2", AGENT, "i-7", NOW)
    assert full.room("T1", AGENT, "i-7", NOW) is None


def test_quiet_instances_make_room_and_those_of_the_last_minutes_do_not(full):
    """A fleet whose instances are named at random goes on for ever; a receipt loses nothing of late."""
    full.seen("T1", AGENT, "i-1", NOW + timedelta(minutes=10))
    full.take_changes()
    assert full.room("T1", AGENT, "another", NOW + KEPT_FOR) is not None
    assert full.room("T1", AGENT, "another", LATER) is None
    assert {usage.instance for usage in full.all()} == {"i-0", "i-1"}


def test_what_is_still_to_be_told_is_not_forgotten(full):
    tally = full.seen("T1", AGENT, "i-5", NOW)
    assert tally.changed
    full.room("T1", AGENT, "another", LATER)
    assert [usage.instance for usage in full.take_changes()] == ["i-5"]


def test_tokens_that_come_and_go_leave_nothing_behind():
    """Each `haltwire run` has a token of its own."""
    tallies = Tallies()
    for number in range(3 * SWEPT_BEYOND):
        tallies.seen(f"T{number}", AGENT, f"i-{number}", NOW + number * timedelta(seconds=1))
        tallies.take_changes()
    assert len(tallies.all()) <= SWEPT_BEYOND + KEPT_FOR.seconds
    assert len(tallies._named) == len(tallies.all())


def test_a_receipt_looks_back_no_further_than_is_kept():
    assert KEPT_FOR >= REPORTED_FOR


def test_totals_are_told_when_they_have_changed_and_then_all_of_them():
    tallies = Tallies()
    assert tallies.take_totals() == {}
    tallies.count("requests")
    tallies.count("requests")
    tallies.count("limit.head_s")
    assert tallies.take_totals() == {"requests": 2, "limit.head_s": 1}
    assert tallies.take_totals() == {}
    tallies.count("requests")
    assert tallies.take_totals() == {"requests": 3, "limit.head_s": 1}
