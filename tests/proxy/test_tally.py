"""Totals per instance."""

from datetime import datetime, timedelta, timezone

from haltwire.wire.names import AgentRef
from haltwire_proxy.tally import REMEMBERED_COMPLETIONS, Tallies

AGENT = AgentRef(("acme", "prod", "mailer"))
NOW = datetime(2026, 11, 22, tzinfo=timezone.utc)


def test_a_change_is_told_once_and_as_a_total():
    tallies = Tallies()
    tally = tallies.seen(AGENT, "i-1", NOW)
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
    tallies.seen(AGENT, "i-1", NOW)
    tallies.seen(AGENT, "i-2", NOW)
    tallies.take_changes()
    assert {usage.instance for usage in tallies.all()} == {"i-1", "i-2"}


def test_completions_are_remembered_up_to_a_bound_and_it_says_when_some_are_lost():
    tally = Tallies().seen(AGENT, "i-1", NOW)
    for second in range(REMEMBERED_COMPLETIONS):
        tally.complete(NOW + timedelta(seconds=second))
    assert not tally.forgotten
    tally.complete(NOW)
    assert tally.forgotten
    assert len(tally.completed) == REMEMBERED_COMPLETIONS


def test_matching_leaves_out_what_was_seen_long_ago_unless_it_is_connected():
    tallies = Tallies()
    tallies.seen(AGENT, "old", NOW)
    connected = tallies.seen(AGENT, "connected", NOW)
    connected.connections = 1
    tallies.seen(AGENT, "new", NOW + timedelta(hours=1))
    found = tallies.matching(lambda *_: True, NOW + timedelta(minutes=30))
    assert {tally.instance for tally in found} == {"connected", "new"}
    assert tallies.matching(lambda *_: False, NOW) == []


def test_mismatches_are_counted_by_source_and_kind_and_bounded():
    tallies = Tallies()
    for source in range(2000):
        tallies.mismatch(f"192.0.2.{source}", "identity_mismatch", None)
    tallies.mismatch("192.0.2.1", "identity_mismatch", None)
    counted = tallies.take_mismatches()
    assert len(counted) == 1000
    assert {m.count for m in counted if m.source == "192.0.2.1"} == {2}
    assert tallies.take_mismatches() == ()


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
