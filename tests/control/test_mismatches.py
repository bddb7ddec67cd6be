"""Mismatches are told at once, then counted: a flood is one line a minute."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone

from haltwire_control.mismatches import KINDS_KEPT, OTHERS, Mismatches

NOW = datetime(2026, 11, 22, 9, 30, tzinfo=timezone.utc)
MINUTE = timedelta(minutes=1)


def test_the_first_is_told_at_once_and_the_rest_after_a_minute():
    counts = Mismatches()
    first = counts.add("192.0.2.7", "agent", "agent://acme/prod/mailer", 2, NOW)
    assert first.event_type == "identity.mismatch"
    assert first.details["count"] == 2
    assert str(first.selector) == "agent://acme/prod/mailer"
    assert counts.add("192.0.2.7", "agent", "agent://acme/prod/mailer", 40, NOW) is None
    assert counts.due(NOW + MINUTE / 2) == []
    (event,) = counts.due(NOW + MINUTE)
    assert event.details["count"] == 40
    assert event.details["source"] == "192.0.2.7"


def test_a_quiet_minute_forgets_and_the_next_is_a_first_again():
    counts = Mismatches()
    counts.add("192.0.2.7", "agent", None, 1, NOW)
    assert counts.due(NOW + MINUTE) == []
    assert counts.add("192.0.2.7", "agent", None, 1, NOW + MINUTE) is not None


def test_sources_kinds_and_claims_are_told_apart():
    counts = Mismatches()
    for key in (("a", "x", None), ("b", "x", None), ("a", "y", None), ("a", "x", "agent://a/b")):
        assert counts.add(*key, 1, NOW) is not None


def test_what_was_claimed_need_not_be_a_name():
    assert Mismatches().add("a", "x", "Robert'); DROP", 1, NOW).selector is None


def test_what_cannot_be_told_apart_any_more_is_counted_together():
    counts = Mismatches()
    told = [counts.add(f"192.0.2.{n}", "x", None, 1, NOW) for n in range(KINDS_KEPT + 50)]
    assert sum(event is not None for event in told) == KINDS_KEPT + 1
    assert told[KINDS_KEPT].details["source"] == OTHERS
    (rest,) = counts.due(NOW + MINUTE)
    assert (rest.details["source"], rest.details["count"]) == (OTHERS, 49)


def test_outsiders_crowd_out_nobody_who_has_a_secret():
    counts = Mismatches()
    for number in range(1000):
        counts.add(f"192.0.2.{number}", "proxy_credentials_invalid", None, 1, NOW)
    event = counts.add("192.0.2.7", "identity_mismatch", "agent://acme/prod/mailer", 1, NOW)
    assert event.details["claimed"] == "agent://acme/prod/mailer"


def test_a_day_of_attack_from_everywhere_is_a_bounded_number_of_rows():
    """Each failure from a network of its own, with and without a claim; a minute at a time."""
    counts, rows = Mismatches(), 0
    minutes = 60
    for minute in range(minutes):
        now = NOW + minute * MINUTE
        rows += len(counts.due(now))
        for number in range(500):
            source = f"2001:db8:{minute:x}:{number:x}::1"
            for claimed in (None, f"agent://acme/a{number}"):
                rows += counts.add(source, "x", claimed, 1, now) is not None
    assert rows <= minutes * (4 * KINDS_KEPT + 4)


def test_one_network_is_one_source():
    counts = Mismatches()
    told = [counts.add(f"2001:db8::{n:x}", "x", None, 1, NOW) for n in range(1000)]
    assert sum(event is not None for event in told) == 1
