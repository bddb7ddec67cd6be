"""What an order has done, told again when there is something new to say, and no more often."""

from datetime import datetime, timedelta, timezone

import pytest
from haltwire.wire.names import AgentRef
from haltwire_proxy import reporting as reporting_module
from haltwire_proxy.connections import Connections
from haltwire_proxy.identity import Identity
from haltwire_proxy.reporting import Reporting
from haltwire_proxy.tally import Tallies
from support.world import kill

NOON = datetime(2026, 11, 22, 12, tzinfo=timezone.utc)
MAILER = AgentRef(("acme", "prod", "mailer"))
SELECTOR = str(MAILER)


class Side:
    written = 0

    def fileno(self):
        return -1

    def unwritten(self):
        return 0

    def abort(self):
        pass

    freeze = thaw = abort


class Books:
    def __init__(self):
        self.now = NOON
        self.tallies = Tallies()
        self.connections = Connections(self.tallies, lambda: self.now)
        self.reporting = Reporting(self.tallies, self.connections, lambda: self.now)

    def live(self, instance="i-1", agent=MAILER):
        who = Identity(agent, instance, "T1", None, True, "hwa_secret")
        return self.connections.register(who, "tunnel", "a.test", Side())


@pytest.fixture
def books():
    return Books()


def test_a_cut_counts_only_what_is_each_instances_own(books):
    order = kill(SELECTOR)
    books.live("i-1"), books.live("i-1"), books.live("i-2")
    books.live("i-1", AgentRef(("acme", "prod", "other")))
    books.reporting.begin(order, books.connections.cut(books.connections.everything()))
    report = books.reporting.take(order)
    assert {one.instance: one.connections_cut for one in report.instances} == {"i-1": 2, "i-2": 1}
    assert (report.live, report.residual_bytes_max) == (0, None)
    assert books.reporting.take_changed([order]) == []


def test_an_instance_without_a_connection_is_told_for_a_while(books):
    books.connections.forget(books.live())
    order = kill(SELECTOR)
    books.reporting.begin(order, [])
    assert len(books.reporting.take(order).instances) == 1
    books.now += reporting_module.REPORTED_FOR + timedelta(seconds=1)
    books.reporting.begin(order, [])
    assert books.reporting.take(order).instances == ()


def test_a_drain_counts_what_lived_when_it_came_and_not_who_knocks_later(books):
    order = kill(SELECTOR, mode="drain", grace_s=30.0)
    before = books.live()
    before.draining = True
    books.reporting.begin(order, [])
    assert books.reporting.take(order).live == 1
    books.live("i-2")
    assert books.reporting.take_changed([order]) == []
    books.connections.forget(before)
    (report,) = books.reporting.take_changed([order])
    assert report.live == 0


def test_what_a_drain_had_cut_is_told_by_the_cut_that_it_becomes(books):
    drain = kill(SELECTOR, mode="drain", grace_s=30.0)
    books.live().draining = True
    books.reporting.begin(drain, [])
    books.reporting.note_cuts(drain, books.connections.cut(books.connections.everything()))
    later = books.live()
    books.reporting.begin(kill(SELECTOR), books.connections.cut([later]))
    assert books.reporting.take(kill(SELECTOR)).instances[0].connections_cut == 2


def test_a_hold_tells_who_is_held_what_had_left_and_who_gives_up(books):
    order = kill(SELECTOR, mode="hold")
    held = [books.live(), books.live()]
    books.connections.on_lost = lambda one: books.reporting.note_lost([order], one)
    books.connections.freeze(held)
    held[0].residual = 700
    books.reporting.begin(order, [])
    report = books.reporting.take(order)
    assert (report.instances[0].connections_held, report.residual_bytes_max) == (2, 700)
    assert [flight.sent for flight in report.instances[0].in_flight] == ["none", "none"]
    books.connections.forget(held[0])
    (report,) = books.reporting.take_changed([order])
    (instance,) = report.instances
    assert (instance.connections_held, instance.lost_while_held) == (1, 1)
    books.connections.thaw(held)
    (instance,) = books.reporting.take_final(order).instances
    assert (instance.connections_live, instance.connections_held) == (1, 0)
    assert instance.lost_while_held == 1


def test_a_loss_counts_for_every_hold_that_covers_it(books):
    orders = [kill(SELECTOR, 2, mode="hold"), kill("agent://**", 3, mode="hold")]
    elsewhere = kill("agent://other/**", 4, mode="hold")
    connection = books.live()
    for order in (*orders, elsewhere):
        books.reporting.begin(order, [])
    books.reporting.note_lost((*orders, elsewhere), connection)
    lost = [books.reporting.take(order).instances for order in (*orders, elsewhere)]
    assert [one.lost_while_held for instances in lost for one in instances] == [1, 1]


def test_many_are_not_told_more_than_once_a_second_but_the_end_is(books, monkeypatch):
    monkeypatch.setattr(reporting_module, "MANY", 3)
    order = kill(SELECTOR, mode="drain", grace_s=30.0)
    live = [books.live() for _ in range(5)]
    for one in live:
        one.draining = True
    books.reporting.begin(order, [])
    books.reporting.take(order)
    books.connections.forget(live[0])
    assert books.reporting.take_changed([order]) == []
    books.now += timedelta(seconds=1)
    (report,) = books.reporting.take_changed([order])
    assert report.live == 4
    for one in live:
        books.connections.forget(one)
    (report,) = books.reporting.take_changed([order])
    assert report.live == 0


def test_a_lifted_order_is_told_no_more(books):
    order = kill(SELECTOR, mode="drain", grace_s=30.0)
    books.live().draining = True
    books.reporting.begin(order, [])
    books.reporting.forget(order)
    assert books.reporting.take_changed([order]) == []
