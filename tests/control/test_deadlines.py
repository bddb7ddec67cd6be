"""Deadlines keep to the steady clock, whatever becomes of the wall's."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta, timezone

import pytest
from haltwire.wire.orders import Kill
from haltwire.wire.selectors import Selector
from haltwire_control.deadlines import EXPIRES, HARDENS, Deadlines
from haltwire_control.ends import Clock, Ends, ends_of
from haltwire_control.lifetimes import Due
from haltwire_control.state import Lifting, Order

NOW = datetime(2026, 11, 22, 9, 30, tzinfo=timezone.utc)
MAILER = Selector.parse("agent://acme/prod/mailer")


def after(seconds: float) -> datetime:
    return NOW + timedelta(seconds=seconds)


def at(seconds: float, boot_id: str = "boot") -> Clock:
    return Clock(boot_id, seconds)


def order(kill_id: str = "K1", expires: float | None = None, hardens: float | None = None) -> Order:
    kill = Kill(kill_id, MAILER, "hold", None, "key:ada", NOW, 1)
    return Order(
        replace(
            kill,
            expires_at=None if expires is None else after(expires),
            hold_until=None if hardens is None else after(hardens),
        ),
        None,
        1,
    )


@pytest.fixture
def deadlines():
    return Deadlines()


def test_nothing_is_due_where_nothing_ends(deadlines):
    assert not deadlines.note(order(), NOW, at(100.0))
    assert deadlines.left(100.0) is None
    assert deadlines.due(1e9) == {EXPIRES: [], HARDENS: []}


def test_each_end_is_due_in_its_time_and_stays_due(deadlines):
    assert deadlines.note(order(expires=60, hardens=10), NOW, at(100.0))
    assert deadlines.left(100.0) == 10.0
    assert deadlines.due(109.9) == {EXPIRES: [], HARDENS: []}
    for _ in range(2):
        assert deadlines.due(110.0) == {EXPIRES: [], HARDENS: [Due("K1", after(10))]}
    assert deadlines.left(110.0) == 0.0
    deadlines.note(order(expires=60), NOW, at(110.0))
    assert deadlines.left(110.0) == 50.0


@pytest.mark.parametrize("jump", [-timedelta(days=365), timedelta(days=365)])
def test_a_wall_clock_that_jumps_moves_no_deadline(deadlines, jump):
    deadlines.note(order(expires=60), NOW, at(100.0))
    deadlines.note(order(expires=60), NOW + jump, at(101.0))
    assert deadlines.left(101.0) == 59.0


def test_what_is_overdue_at_the_start_is_due_at_once(deadlines):
    deadlines.begin([order(expires=-5), order("K2", expires=5)], NOW, at(100.0))
    assert deadlines.due(100.0)[EXPIRES] == [Due("K1", after(-5))]


def left_behind(boot_id: str = "boot") -> Order:
    """Issued at 100.0 on the steady clock: it hardens at 160.0 and expires at 700.0."""
    one = order(expires=600, hardens=60)
    return replace(one, ends=ends_of(one.kill, NOW, at(100.0, boot_id)))


DAY = 86_400.0
STARTS = {
    "nobody has set the clock": ("boot", 110.0, 10.0, 50.0, 590.0, 0.0),
    "set forward: lifted no sooner, hardened at once": (
        "boot",
        110.0,
        DAY,
        10 - DAY,
        590.0,
        DAY - 10,
    ),
    "set back: lifted when both say so, hardened in time": (
        "boot",
        110.0,
        -DAY,
        50.0,
        DAY + 600,
        -DAY - 10,
    ),
    "the machine was started anew: the wall clock decides": ("other", 5.0, 10.0, 50.0, 590.0, 0.0),
    "the start is not known: the wall clock decides": ("", 110.0, 10.0, 50.0, 590.0, 0.0),
}


@pytest.mark.parametrize(
    ("boot_id", "clock", "later", "hardens", "expires", "set_by"), STARTS.values(), ids=STARTS
)
def test_a_start_trusts_no_clock_that_was_set(
    deadlines, boot_id, clock, later, hardens, expires, set_by
):
    """`later`: the wall clock, in seconds after the order; the rest is seconds from the start on.

    Removed, one by one: what is kept with the order, the wall clock beside it, max and min of the two, the
    comparison of the machine's start. Seen: another deadline in at least one of these cases, each time.
    """
    assert deadlines.begin([left_behind()], after(later), at(clock, boot_id)) == set_by
    assert deadlines.left(clock) == max(0.0, hardens)
    deadlines.note(replace(left_behind(), kill=order(expires=600).kill), NOW, at(clock, boot_id))
    assert deadlines.left(clock) == expires
    (due,) = deadlines.due(clock + expires)[EXPIRES]
    assert (due.at, due.steady) == (after(600), 700.0)


def test_ends_of_no_known_start_are_not_trusted(deadlines):
    """They are not compared with a clock that is of none either: that may be another machine."""
    one = replace(order(expires=600), ends=Ends("", 1e9))
    assert deadlines.begin([one], NOW, at(100.0, "")) == 0.0
    assert deadlines.left(100.0) == 600.0


def test_of_several_orders_the_one_that_is_off_most_is_told(deadlines):
    early, late = left_behind(), replace(left_behind(), ends=Ends("boot", 750.0, None))
    assert deadlines.begin([early, late, order("K2")], NOW, at(100.0)) == 50.0


def test_an_order_that_is_ordered_again_is_not_lifted_sooner(deadlines):
    """Even where only the wall clock, which was set forward, says when it ends."""
    deadlines.note(order(expires=36_000), NOW, at(100.0))
    deadlines.note(order(expires=2 * DAY), after(2 * DAY - 60), at(101.0))
    assert deadlines.left(101.0) == 35_999.0


def test_another_time_is_another_deadline(deadlines):
    deadlines.note(order(expires=60), NOW, at(100.0))
    assert deadlines.note(order(expires=600), after(30), at(130.0))
    assert deadlines.due(160.0)[EXPIRES] == []
    assert deadlines.left(160.0) == 540.0


def test_a_lifted_order_ends_no_more(deadlines):
    one = order(expires=60, hardens=10)
    deadlines.note(one, NOW, at(100.0))
    assert deadlines.note(replace(one, lifted=Lifting(2, NOW, "x", None)), NOW, at(100.0))
    assert deadlines.left(100.0) is None


def test_deadlines_that_moved_many_times_take_no_room(deadlines):
    for seconds in range(1, 5000):
        deadlines.note(order(expires=seconds), NOW, at(100.0))
    assert len(deadlines._soonest) < 1100
    assert deadlines.left(100.0) == 4999.0
