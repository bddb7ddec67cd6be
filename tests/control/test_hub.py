"""The hub: who is connected, what is pushed, and what counts as proof."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta, timezone

import pytest
from haltwire.wire import messages
from haltwire.wire.messages import Ack, Delta, Hello, Renew, Renewed, Report, Snapshot
from haltwire.wire.orders import Kill
from haltwire.wire.selectors import Selector
from haltwire_control import hub as module
from haltwire_control.hub import Hub, Moment
from haltwire_control.presence import this_machine
from haltwire_control.state import Lifting, Order, ProxyRecord, State, Token
from support.control import my_ticks

NOW = datetime(2026, 11, 22, 9, 30, tzinfo=timezone.utc)
HERE = this_machine()
MAILER = Selector.parse("agent://acme/prod/mailer")


class Outlet:
    def __init__(self):
        self.sent = []
        self.closed = None

    def send(self, text):
        self.sent.append(messages.loads(text))

    def close(self, why):
        self.closed = why


def kill(kill_id: str = "K1", revision: int = 5, mode: str = "cut") -> Kill:
    return Kill(kill_id, MAILER, mode, None, "key:ada", NOW, revision)


def issued(hub, *kills: Kill, revision: int = 6, changed: int | None = None) -> Delta:
    """What a commit that puts these orders in force comes to."""
    delta = Delta(revision - 1, revision, kills=kills)
    hub.publish(delta, [Order(one, None, changed or revision) for one in kills])
    return delta


def lifted(hub, kill_id: str = "K1", revision: int = 6) -> None:
    ending = Lifting(revision, NOW, "key:ada", None)
    hub.publish(
        Delta(revision - 1, revision, lifted=(kill_id,)),
        [Order(kill(kill_id), None, 5, ending)],
    )


def hello(**more) -> Hello:
    values = {
        "proxy_id": "w-1",
        "host": HERE.host,
        "boot_id": HERE.boot_id,
        "pid": 2**22 + 1,
        "pid_namespace": HERE.pid_namespace,
        "started_ticks": 1,
        "version": "1",
        "epoch": "e",
        "revision": 4,
    }
    return Hello(**values | more)


def record(said: Hello) -> ProxyRecord:
    return ProxyRecord(
        said.proxy_id,
        said.host,
        said.boot_id,
        said.pid,
        said.pid_namespace,
        said.started_ticks,
        said.version,
        NOW,
    )


STATE = State("e", 5, (Order(kill(), None, 5),))


class Clock:
    def __init__(self):
        self.now = NOW
        self.monotonic = 100.0
        self.steady = 500.0

    def go(self, seconds: float) -> None:
        self.now += timedelta(seconds=seconds)
        self.monotonic += seconds
        self.steady += seconds


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def hub(clock):
    return Hub(HERE, 1000, lambda: clock.now, lambda: clock.monotonic, lambda: clock.steady)


def joined(hub, said=None, state=STATE):
    said = said or hello()
    hub.begin(state)
    hub.note(record(said))
    peer, outlet = hub.find(said), Outlet()
    hub.attach(peer, said, outlet, state)
    return peer, outlet


def test_a_stored_proxy_is_known_from_the_start(hub):
    hub.begin(State("e", proxies={"w-1": record(hello())}))
    assert hub.find(hello()).outlet is None


def test_an_order_can_be_proven_from_its_delta_on(hub):
    peer, _ = joined(hub)
    issued(hub, kill("K2", 6))
    hub.acknowledge(peer, Ack("e", 6, ("K2",)), STATE)
    assert peer.enforced["K2"].revision == 6


def test_a_proxy_is_known_from_its_commit_on(hub):
    assert hub.find(hello()) is None
    hub.note(record(hello()))
    assert hub.find(hello()).outlet is None


def test_who_joins_gets_everything_in_force(hub):
    token = Token("T1", "d", MAILER, None, NOW, "key:ada")
    _, outlet = joined(hub, state=replace(STATE, tokens={"d": token}))
    (snapshot,) = outlet.sent
    assert isinstance(snapshot, Snapshot)
    assert (snapshot.epoch, snapshot.revision) == ("e", 5)
    assert snapshot.orders == (kill(),)
    assert snapshot.tokens == (token.rule,)
    assert snapshot.settings.lease_ms == 1000


MISSED = {
    "issued and lifted meanwhile": ("e", 4, ["K2"]),
    "issued before, lifted meanwhile": ("e", 6, []),
    "another lineage, which severs all anyway": ("other", 4, []),
    "never had anything": (None, 0, []),
}


@pytest.mark.parametrize(("epoch", "revision", "missed"), MISSED.values(), ids=MISSED)
def test_who_comes_back_hears_what_it_missed(hub, epoch, revision, missed):
    lifted = Order(kill("K2", 6), None, 6, Lifting(7, NOW, "key:ada", None))
    state = State("e", 7, lifted=(lifted,))
    _, outlet = joined(hub, hello(epoch=epoch, revision=revision), state)
    assert [order.kill_id for order in outlet.sent[0].lifted_since] == missed


def test_what_it_missed_says_how_it_stopped(hub):
    """So that a worker severs what a missed cut covered, and lets be what a missed hold did."""
    missed = [
        Order(kill(f"K{n}", 6, mode), None, 6, Lifting(7, NOW, "key:ada", None))
        for n, mode in enumerate(("cut", "drain", "hold"))
    ]
    _, outlet = joined(hub, hello(revision=4), State("e", 7, lifted=tuple(missed)))
    assert [order.mode for order in outlet.sent[0].lifted_since] == ["cut", "drain", "hold"]


def test_a_delta_goes_to_every_link(hub):
    _, one = joined(hub)
    _, other = joined(hub, hello(pid=2**22 + 2))
    delta = issued(hub, kill("K2", 6))
    assert one.sent[-1] == other.sent[-1] == delta


def test_a_second_link_of_one_process_ends_the_first(hub):
    peer, first = joined(hub)
    second = Outlet()
    hub.attach(peer, hello(), second, STATE)
    assert first.closed
    assert hub.detach(peer, first) is False
    assert peer.outlet is second
    assert hub.detach(peer, second) is True


def test_only_an_ack_that_names_the_kill_is_proof(hub, clock):
    peer, _ = joined(hub)
    hub.acknowledge(peer, Ack("e", 5), STATE)
    assert "K1" not in peer.enforced
    clock.monotonic = 100.5
    hub.acknowledge(peer, Ack("e", 5, ("K1",), 3), STATE)
    proof = peer.enforced["K1"]
    assert (proof.revision, proof.at_monotonic, proof.connections_cut) == (5, 100.5, 3)


NO_PROOF = {
    "another epoch": Ack("other", 5, ("K1",)),
    "an order that is not in force": Ack("e", 5, ("K9",)),
}


@pytest.mark.parametrize("ack", NO_PROOF.values(), ids=NO_PROOF)
def test_what_is_no_proof(hub, ack):
    peer, _ = joined(hub)
    hub.acknowledge(peer, ack, STATE)
    assert peer.enforced == {}


def test_a_hello_proves_orders_of_this_epoch(hub):
    peer, _ = joined(hub, hello(revision=5, kill_ids=("K1", "K9")))
    assert peer.enforced["K1"].revision == 5
    assert peer.enforced["K1"].connections_cut is None
    assert "K9" not in peer.enforced
    hub.attach(peer, hello(epoch="other", kill_ids=("K1",)), Outlet(), STATE)
    assert peer.enforced == {}


def test_details_come_with_the_report(hub):
    peer, _ = joined(hub)
    report = Report("K1", NOW)
    hub.report(peer, report)
    assert peer.enforced == {}
    hub.acknowledge(peer, Ack("e", 5, ("K1",)), STATE)
    hub.report(peer, report)
    assert peer.enforced["K1"].report is report


def test_a_lifted_order_is_no_longer_enforced(hub):
    peer, _ = joined(hub)
    hub.acknowledge(peer, Ack("e", 5, ("K1",)), STATE)
    lifted(hub)
    assert peer.enforced == {}


def test_an_ack_of_what_stops_no_more_than_before_is_no_new_proof(hub, clock):
    """A note gives an order its reason; proxies acknowledge that, too, and report that they cut nothing."""
    peer, _ = joined(hub)
    first = Report("K1", NOW)
    hub.acknowledge(peer, Ack("e", 5, ("K1",), 3), STATE)
    hub.report(peer, first)
    issued(hub, replace(kill(), reason="a broken link"), changed=5)
    clock.monotonic = 107.0
    hub.acknowledge(peer, Ack("e", 6, ("K1",), 0), STATE)
    hub.report(peer, Report("K1", NOW))
    proof = peer.enforced["K1"]
    assert (proof.revision, proof.at_monotonic, proof.connections_cut) == (5, 100.0, 3)
    assert proof.report is first


def test_an_order_that_stops_more_is_proven_anew(hub, clock):
    peer, _ = joined(hub, state=State("e", 5, (Order(kill(mode="hold"), None, 5),)))
    hub.acknowledge(peer, Ack("e", 5, ("K1",)), STATE)
    hub.report(peer, Report("K1", NOW))
    clock.monotonic = 107.0
    issued(hub, kill())
    hub.report(peer, Report("K1", NOW, residual_bytes_max=7))  # of the hold, still on its way
    hub.acknowledge(peer, Ack("e", 6, ("K1",), 4), STATE)
    proof = peer.enforced["K1"]
    assert (proof.revision, proof.at_monotonic, proof.connections_cut) == (6, 107.0, 4)
    assert proof.report is None


def test_what_changed_while_a_proxy_was_away_is_proven_by_its_snapshots_ack_alone(hub):
    peer, _ = joined(hub, state=State("e", 5, (Order(kill(mode="hold"), None, 5),)))
    hub.acknowledge(peer, Ack("e", 5, ("K1",)), STATE)
    hub.report(peer, Report("K1", NOW, residual_bytes_max=7))
    issued(hub, kill())
    hub.attach(peer, hello(revision=5, kill_ids=("K1",)), Outlet(), replace(STATE, revision=6))
    assert peer.enforced["K1"].revision == 5
    hub.acknowledge(peer, Ack("e", 6, ("K1",), 4), STATE)
    assert (peer.enforced["K1"].revision, peer.enforced["K1"].report) == (6, None)


def test_a_drain_has_ended_when_a_report_first_says_so(hub, clock):
    peer, _ = joined(hub, state=State("e", 5, (Order(kill(mode="drain"), None, 5),)))
    hub.acknowledge(peer, Ack("e", 5, ("K1",)), STATE)
    hub.report(peer, Report("K1", NOW, live=2))
    assert peer.enforced["K1"].ended is None
    for monotonic in (103.0, 104.0):
        clock.monotonic = monotonic
        report = Report("K1", NOW, live=0)
        hub.report(peer, report)
        assert peer.enforced["K1"].ended == Moment(NOW, 103.0)
        assert peer.enforced["K1"].report is report
    hub.report(peer, Report("K1", NOW, live=1))
    assert peer.enforced["K1"].ended is None


def test_the_last_report_of_a_lifted_hold_is_kept_once_its_lifting_is_acknowledged(hub):
    peer, _ = joined(hub, state=State("e", 5, (Order(kill(mode="hold"), None, 5),)))
    hub.acknowledge(peer, Ack("e", 5, ("K1",)), STATE)
    hub.take_news()
    lifted(hub)
    hub.report(peer, Report("K1", NOW, residual_bytes_max=7))  # of the hold, still on its way
    assert peer.released == {}
    hub.acknowledge(peer, Ack("e", 6), STATE)
    report = Report("K1", NOW)
    hub.report(peer, report)
    assert peer.released == {6: {"K1": report}}
    assert hub.take_news() == {"K1"}
    assert hub.take_news() == set()


def test_nothing_is_kept_of_a_lifted_cut(hub):
    peer, _ = joined(hub)
    lifted(hub)
    hub.acknowledge(peer, Ack("e", 6), STATE)
    hub.report(peer, Report("K1", NOW))
    assert peer.released == {}


def test_last_reports_are_not_kept_for_ever(hub, monkeypatch):
    monkeypatch.setattr(module, "RELEASES_KEPT", 2)
    peer, _ = joined(hub)
    for revision in range(6, 20, 2):
        held = kill(f"K{revision}", revision, "hold")
        issued(hub, held, revision=revision)
        lifted(hub, held.kill_id, revision + 1)
        hub.acknowledge(peer, Ack("e", revision + 1), STATE)
        hub.report(peer, Report(held.kill_id, NOW))
    assert list(peer.released) == [17, 19]


def asked(revision: int = 5, epoch: str = "e") -> Renew:
    return Renew(1.5, NOW, epoch, revision)


def leases(outlet: Outlet) -> int:
    return sum(isinstance(message, Renewed) for message in outlet.sent)


def test_a_lease_is_counted_before_the_proxy_hears_of_it(hub, clock):
    peer, outlet = joined(hub)
    clock.go(0.25)
    told = []
    outlet.send = lambda text: told.append(peer.lease.end)
    hub.renew(peer, asked(), STATE)
    assert told == [pytest.approx(500.25 + 1.06)]


def test_a_silent_proxy_has_lapsed_when_its_last_lease_is_certainly_over(hub, clock):
    peer, _ = joined(hub)
    hub.renew(peer, asked(), STATE)
    clock.go(1.0)
    rung = hub.progress.count
    assert hub.lapse() == pytest.approx(0.06)
    assert (peer.lapsed, hub.progress.count) == (None, rung)
    clock.go(0.06)
    hub.lapse()
    assert peer.lapsed == Moment(clock.now, clock.monotonic)
    assert hub.progress.count == rung + 1
    clock.go(1.0)
    hub.lapse()
    assert peer.lapsed == Moment(clock.now - timedelta(seconds=1), clock.monotonic - 1)


def test_a_lease_again_is_no_lapse_any_more(hub, clock):
    peer, _ = joined(hub)
    clock.go(2.0)
    hub.lapse()
    assert peer.lapsed is not None
    hub.renew(peer, asked(), STATE)
    hub.lapse()
    assert peer.lapsed is None


def test_the_next_look_is_at_the_first_end(hub, clock):
    assert hub.lapse() == pytest.approx(1.06)  # whoever joins now has at least that
    joined(hub)
    clock.go(0.2)
    hub.note(record(hello(proxy_id="w-2", pid=2**22 + 2)))
    assert hub.lapse() == pytest.approx(0.86)


def test_a_proxy_that_goes_on_beyond_its_lease_never_lapses(hub, clock):
    """A word that we do not know promises nothing, either."""
    for pid, word in enumerate(("keep", "else", "refuse"), start=2**22 + 10):
        hub.note(replace(record(hello(proxy_id=word, pid=pid)), on_stale=word))
    clock.go(1000.0)
    hub.lapse()
    assert {p.record.on_stale: p.lapsed is not None for p in hub.peers} == {
        "keep": False,
        "else": False,
        "refuse": True,
    }


def test_after_a_start_the_longest_lease_ever_granted_counts(hub, clock):
    """An earlier control server may have granted it a moment ago, whatever this one grants."""
    hub.begin(State("e", proxies={"w-1": record(hello())}, longest_lease_ms=10_000))
    (peer,) = hub.peers
    hub.attach(peer, hello(), Outlet(), STATE)
    hub.renew(peer, asked(), STATE)  # for a second only
    clock.go(10.14)
    hub.lapse()
    assert peer.lapsed is None
    clock.go(0.02)
    hub.lapse()
    assert peer.lapsed is not None


def test_a_proxy_that_applies_nothing_gets_no_lease(hub, clock):
    peer, outlet = joined(hub)
    hub.acknowledge(peer, Ack("e", 5), STATE)
    issued(hub, kill("K2", 6))
    state = replace(STATE, revision=6)
    clock.go(0.4)
    hub.renew(peer, asked(), state)
    assert leases(outlet) == 1, "a little late is not too late"
    end = peer.lease.end
    for _ in range(8):
        clock.go(0.25)
        hub.renew(peer, asked(), state)
    hub.lapse()
    assert (leases(outlet), peer.lease.end) == (1, end)
    assert peer.lapsed is not None
    hub.renew(peer, asked(6), state)
    assert leases(outlet) == 2
    assert peer.lease.end > end


def test_a_proxy_that_has_the_head_gets_its_lease_however_long_ago_that_changed(hub, clock):
    peer, outlet = joined(hub)
    hub.acknowledge(peer, Ack("e", 5), STATE)
    for _ in range(8):
        clock.go(0.25)
        hub.renew(peer, asked(), STATE)
    assert leases(outlet) == 8


def test_a_snapshot_that_is_not_applied_costs_the_lease_also_in_another_epoch(hub, clock):
    peer, outlet = joined(hub, hello(epoch="before", revision=9))
    clock.go(0.6)
    hub.renew(peer, asked(9, "before"), STATE)
    assert leases(outlet) == 0
    hub.acknowledge(peer, Ack("e", 5), STATE)
    hub.renew(peer, asked(), STATE)
    assert leases(outlet) == 1


def test_what_an_earlier_link_owed_does_not_count_on_the_next(hub, clock):
    peer, outlet = joined(hub)
    issued(hub, kill("K2", 6))
    hub.detach(peer, outlet)
    clock.go(5.0)
    again = Outlet()
    hub.attach(peer, hello(), again, replace(STATE, revision=6))
    hub.renew(peer, asked(), replace(STATE, revision=6))
    assert leases(again) == 1


def test_a_renewal_names_the_head(hub):
    peer, outlet = joined(hub)
    hub.renew(peer, Renew(7.5, NOW, "e", 4), STATE)
    assert outlet.sent[-1] == Renewed(7.5, "e", 5, 1000, 0)
    assert peer.applied_revision == 4


@pytest.mark.parametrize(("boot_id", "seconds"), [("elsewhere", 3), (HERE.boot_id, 0)])
def test_the_fastest_message_tells_the_clock_unless_it_is_our_own(hub, clock, boot_id, seconds):
    peer, _ = joined(hub, hello(boot_id=boot_id))
    for behind in (5, 3, 9):
        hub.renew(peer, Renew(1.0, clock.now - timedelta(seconds=behind), "e", 5), STATE)
    assert peer.clock_offset == timedelta(seconds=seconds)


def test_a_connected_proxy_has_not_ended(hub):
    peer, outlet = joined(hub)
    assert hub.ended() == ()
    hub.detach(peer, outlet)
    assert hub.ended() == (peer,)
    assert peer.gone


def test_a_living_process_has_not_ended(hub):
    import os

    said = hello(pid=os.getpid(), started_ticks=my_ticks())
    peer, outlet = joined(hub, said)
    hub.detach(peer, outlet)
    assert hub.ended() == ()
    hub.end(peer)
    assert hub.ended() == (peer,)


def test_who_has_ended_is_a_peer_that_is_gone(hub):
    peer, _ = joined(hub)
    hub.note(replace(peer.record, gone_at=NOW))
    assert peer.gone
    assert hub.peers == ()
    (ghost,) = hub.peers_of([peer.record])
    assert ghost.gone


def test_a_new_process_of_the_same_name_proves_nothing_for_the_old_one(hub):
    old, _ = joined(hub)
    new, _ = joined(hub, hello(pid=2**22 + 2))
    hub.acknowledge(new, Ack("e", 5, ("K1",)), STATE)
    assert hub.peers_of([old.record, new.record]) == (old, new)
    assert old.enforced == {}


def test_links_can_all_be_dropped(hub):
    _, outlet = joined(hub)
    hub.drop_links("over")
    assert outlet.closed == "over"
