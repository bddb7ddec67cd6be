"""Deadlines keep to the steady clock, whatever becomes of the wall's."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta, timezone

import pytest
from haltwire.wire.orders import Kill
from haltwire.wire.selectors import Selector
from haltwire_control.deadlines import EXPIRES, HARDENS, Deadlines
from haltwire_control.lifetimes import Due
from haltwire_control.state import Lifting, Order

NOW = datetime(2026, 11, 22, 9, 30, tzinfo=timezone.utc)
MAILER = Selector.parse("agent://acme/prod/mailer")


def after(seconds: float) -> datetime:
    return NOW + timedelta(seconds=seconds)


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
    assert not deadlines.note(order(), NOW, 100.0)
    assert deadlines.left(100.0) is None
    assert deadlines.due(1e9) == {EXPIRES: [], HARDENS: []}


def test_each_end_is_due_in_its_time_and_stays_due(deadlines):
    assert deadlines.note(order(expires=60, hardens=10), NOW, 100.0)
    assert deadlines.left(100.0) == 10.0
    assert deadlines.due(109.9) == {EXPIRES: [], HARDENS: []}
    for _ in range(2):
        assert deadlines.due(110.0) == {EXPIRES: [], HARDENS: [Due("K1", after(10))]}
    assert deadlines.left(110.0) == 0.0
    deadlines.note(order(expires=60), NOW, 110.0)
    assert deadlines.left(110.0) == 50.0


@pytest.mark.parametrize("jump", [-timedelta(days=365), timedelta(days=365)])
def test_a_wall_clock_that_jumps_moves_no_deadline(deadlines, jump):
    deadlines.note(order(expires=60), NOW, 100.0)
    deadlines.note(order(expires=60), NOW + jump, 101.0)
    assert deadlines.left(101.0) == 59.0


def test_what_is_overdue_at_the_start_is_due_at_once(deadlines):
    deadlines.begin([order(expires=-5), order("K2", expires=5)], NOW, 100.0)
    assert deadlines.due(100.0)[EXPIRES] == [Due("K1", after(-5))]


def test_another_time_is_another_deadline(deadlines):
    deadlines.note(order(expires=60), NOW, 100.0)
    assert deadlines.note(order(expires=600), after(30), 130.0)
    assert deadlines.due(160.0)[EXPIRES] == []
    assert deadlines.left(160.0) == 540.0


def test_a_lifted_order_ends_no_more(deadlines):
    one = order(expires=60, hardens=10)
    deadlines.note(one, NOW, 100.0)
    assert deadlines.note(replace(one, lifted=Lifting(2, NOW, "x", None)), NOW, 100.0)
    assert deadlines.left(100.0) is None


def test_deadlines_that_moved_many_times_take_no_room(deadlines):
    for seconds in range(1, 5000):
        deadlines.note(order(expires=seconds), NOW, 100.0)
    assert len(deadlines._soonest) < 1100
    assert deadlines.left(100.0) == 4999.0
