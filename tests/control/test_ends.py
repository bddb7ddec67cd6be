"""The ends of orders on the steady clock: fixed once, and of two the ones that let nothing go too early."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta, timezone

import pytest
from haltwire.wire.orders import Kill
from haltwire.wire.selectors import Selector
from haltwire_control.ends import NO_ENDS, UNKNOWN, Clock, Ends, ends_of, united

NOW = datetime(2026, 11, 22, 9, 30, tzinfo=timezone.utc)
CLOCK = Clock("boot", 100.0)
LASTING = Kill("K1", Selector.parse("agent://acme/prod/mailer"), "hold", None, "key:ada", NOW, 1)
TIMED = replace(
    LASTING, expires_at=NOW + timedelta(hours=1), hold_until=NOW + timedelta(seconds=10)
)


def test_ends_are_as_far_ahead_as_on_the_wall_clock():
    assert ends_of(TIMED, NOW, CLOCK) == Ends("boot", 3700.0, 110.0)
    assert ends_of(replace(TIMED, hold_until=None), NOW, CLOCK) == Ends("boot", 3700.0)


@pytest.mark.parametrize(
    ("kill", "clock"),
    [(LASTING, CLOCK), (TIMED, UNKNOWN)],
    ids=["nothing ends", "a clock of no known start"],
)
def test_nothing_is_known_where_nothing_can_be(kill, clock):
    assert ends_of(kill, NOW, clock) == NO_ENDS


@pytest.mark.parametrize(
    ("ours", "theirs", "shared"),
    [("a", "a", True), ("a", "b", False), ("", "", False), ("a", "", False)],
)
def test_a_clock_is_shared_by_one_start_of_the_machine(ours, theirs, shared):
    assert Clock(ours, 1.0).shares(theirs) is shared


UNITED = {
    "the later expiry and the sooner limit": (Ends("b", 9, 5), Ends("b", 8, 4), TIMED, (9, 4)),
    "the other way round": (Ends("b", 8, 4), Ends("b", 9, 5), TIMED, (9, 4)),
    "only one has a limit": (Ends("b", 8), Ends("b", 9, 5), TIMED, (9, 5)),
    "it lasts": (Ends("b", 8), NO_ENDS, LASTING, (None, None)),
    "a limit before there was any end": (NO_ENDS, Ends("b", None, 5), TIMED, (None, 5)),
}


@pytest.mark.parametrize(("standing", "wanted", "kill", "found"), UNITED.values(), ids=UNITED)
def test_two_make_one_that_is_as_hard_as_either(standing, wanted, kill, found):
    ends = united(standing, wanted, kill)
    assert (ends.expires, ends.hardens) == found
    assert ends.boot_id == ("" if found == (None, None) else "b")
