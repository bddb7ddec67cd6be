"""Leases as we count them: never shorter than the proxy's own, and none for who applies nothing."""

from __future__ import annotations

import pytest
from haltwire_control.leases import Lease, over_after


@pytest.mark.parametrize(("lease_ms", "over"), [(200, 0.252), (1000, 1.06), (60_000, 60.65)])
def test_a_lease_is_certainly_over_a_little_after_its_end(lease_ms, over):
    assert over_after(lease_ms) == pytest.approx(over)


def test_who_was_granted_nothing_that_we_know_of_may_have_any_lease():
    assert Lease().left(10.0**9) == float("inf")


def test_a_shorter_lease_takes_nothing_back():
    """The proxy keeps the longer one, too: a control server was started again with a shorter --lease."""
    lease = Lease(0.0)
    lease.grant(100.0, 10_000)
    lease.grant(101.0, 1000)
    assert lease.end == pytest.approx(110.15)
    lease.grant(109.9, 1000)
    assert lease.end == pytest.approx(110.96)


def test_what_is_left_is_never_less_than_nothing():
    lease = Lease(100.0)
    assert (lease.left(99.25), lease.left(100.0), lease.left(101.0)) == (0.75, 0.0, 0.0)


BEHIND = {
    "nothing was sent": ([], 0, 200.0, False),
    "applied at once": ([(5, 100.0)], 5, 200.0, False),
    "a few milliseconds late": ([(5, 100.0)], 4, 100.02, False),
    "half a lease to the point": ([(5, 100.0)], 4, 100.5, False),
    "more than half a lease": ([(5, 100.0)], 4, 100.51, True),
    "always a little behind in a storm": ([(5, 100.0), (6, 100.3), (7, 100.6)], 6, 100.9, False),
    "the oldest decides": ([(5, 100.0), (6, 100.9)], 4, 100.9, True),
    "more than was asked for": ([(5, 100.0)], 9, 200.0, False),
}


@pytest.mark.parametrize(("sent", "applied", "clock", "behind"), BEHIND.values(), ids=BEHIND)
def test_who_has_not_applied_what_it_was_sent_within_half_a_lease_is_behind(
    sent, applied, clock, behind
):
    lease = Lease()
    for revision, at in sent:
        lease.sent(revision, at)
    lease.applied(applied)
    assert lease.is_behind(clock, 1000) is behind


def test_another_link_begins_anew():
    lease = Lease()
    lease.sent(5, 100.0)
    lease.link()
    assert not lease.is_behind(200.0, 1000)
