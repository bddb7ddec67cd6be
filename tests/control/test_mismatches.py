"""Mismatches are told at once, then counted: a flood is one line a minute."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone

from haltwire_control.mismatches import KINDS_KEPT, Mismatches

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


def test_memory_is_bounded():
    counts = Mismatches()
    told = [counts.add(str(n), "x", None, 1, NOW) for n in range(KINDS_KEPT + 50)]
    assert sum(event is not None for event in told) == KINDS_KEPT + 1
