"""What messages do to the view, the lease and live connections, as scripts of messages and answers."""

from dataclasses import replace
from datetime import datetime, timezone

import pytest
from haltwire.wire.messages import Delta, Renewed, Settings, Snapshot, TokenRule
from haltwire.wire.names import AgentRef
from haltwire.wire.orders import Kill, deciding_kill
from haltwire.wire.selectors import Selector
from haltwire_proxy import replica as replica_module
from haltwire_proxy.replica import NO_CHANGE, Change, Replica
from hypothesis import given
from hypothesis import strategies as st

NOW_BOOT = 50.0
NOON = datetime(2026, 11, 22, 12, tzinfo=timezone.utc)


def kill(kill_id, selector="agent://acme/prod/mailer", revision=1, mode="cut", excepted=()):
    except_for = tuple(map(Selector.parse, excepted))
    return Kill(
        kill_id, Selector.parse(selector), mode, None, "key:ada", NOON, revision, None, except_for
    )


def token(token_id, selector="agent://acme/prod/mailer", digest=None):
    return TokenRule(token_id, digest or f"digest of {token_id}", Selector.parse(selector))


def snapshot(revision, orders=(), lifted_since=(), tokens=(), epoch="e1"):
    return Snapshot(epoch, revision, orders, lifted_since, tokens, Settings(1000))


def delta(previous, **changes):
    return Delta(previous, previous + 1, **changes)


A, B, C = kill("KA"), kill("KB", "agent://acme/**", 2), kill("KC", "agent://other/**", 3)
T1, T2 = token("T1"), token("T2", "agent://acme/prod/*")
HELD, DRAINED = replace(A, mode="hold"), replace(A, mode="drain", grace_s=10.0)
NARROWED = replace(A, excepted=(Selector.parse("agent://acme/prod/mailer~i-1"),))
SCRIPTS = {
    "the first snapshot severs nothing else, but acknowledges all": (
        [snapshot(4, (A, B), (C,), (T1,))],
        Change(touched=(A, B), missed=(C,), acknowledge=("KA", "KB")),
        (A, B),
    ),
    "a kill by delta": (
        [snapshot(1), delta(1, kills=(A,))],
        Change(touched=(A,), acknowledge=("KA",)),
        (A,),
    ),
    "a lift by delta": (
        [snapshot(1, (A, B)), delta(1, lifted=("KA",))],
        Change(touched=(A,), lifted=(A,)),
        (B,),
    ),
    "a lift of what is not in force": (
        [snapshot(1, (A,)), delta(1, lifted=("KX",))],
        Change(),
        (A,),
    ),
    "issued and lifted in one delta": (
        [snapshot(1), delta(1, kills=(A,), lifted=("KA",))],
        Change(touched=(A,), missed=(A,), acknowledge=("KA",)),
        (),
    ),
    "a hold issued and lifted in one delta severs nothing": (
        [snapshot(1), delta(1, kills=(HELD,), lifted=("KA",))],
        Change(touched=(HELD,), acknowledge=("KA",)),
        (),
    ),
    "an order with another mode": (
        [snapshot(1, (replace(A, mode="drain"),)), delta(1, kills=(A,))],
        Change(touched=(A,), acknowledge=("KA",)),
        (A,),
    ),
    "an exception taken back": (
        [snapshot(1, (NARROWED,)), delta(1, kills=(A,))],
        Change(touched=(A,), acknowledge=("KA",)),
        (A,),
    ),
    "a carve-out": (
        [snapshot(1, (A,)), delta(1, kills=(NARROWED,))],
        Change(touched=(NARROWED,), acknowledge=("KA",)),
        (NARROWED,),
    ),
    "the same order once more": (
        [snapshot(1, (A,)), delta(1, kills=(A,))],
        Change(touched=(A,), acknowledge=("KA",)),
        (A,),
    ),
    "a gap changes nothing": ([snapshot(1, (A,)), delta(2, kills=(B,))], NO_CHANGE, (A,)),
    "after a gap what follows on is still applied": (
        [snapshot(1), delta(2, kills=(B,)), delta(1, kills=(A,))],
        Change(touched=(A,), acknowledge=("KA",)),
        (A,),
    ),
    "a delta once more": ([snapshot(1, (A,)), delta(0, kills=(B,))], NO_CHANGE, (A,)),
    "a delta from long ago": ([snapshot(5, (A,)), delta(2, lifted=("KA",))], NO_CHANGE, (A,)),
    "a delta before any snapshot": ([delta(0, kills=(A,))], NO_CHANGE, None),
    "a lower revision in the same epoch": (
        [snapshot(5, (A,), tokens=(T1,)), snapshot(4)],
        NO_CHANGE,
        (A,),
    ),
    "the same revision again": ([snapshot(5, (A,)), snapshot(5, (A,))], Change(), (A,)),
    "a later snapshot names only what is new": (
        [snapshot(5, (A,)), snapshot(7, (A, B), (C,))],
        Change(touched=(B,), missed=(C,), acknowledge=("KB",)),
        (A, B),
    ),
    "a later snapshot lifts what it leaves out": (
        [snapshot(5, (A, B)), snapshot(7, (B,))],
        Change(touched=(A,), lifted=(A,)),
        (B,),
    ),
    "a hold that was missed and lifted severs nothing": (
        [snapshot(5), snapshot(7, (), (HELD,))],
        Change(),
        (),
    ),
    "an order that was enforced here and is lifted unseen severs nothing more": (
        [snapshot(5, (DRAINED,)), snapshot(7, (), (DRAINED,))],
        Change(touched=(DRAINED,), lifted=(DRAINED,)),
        (),
    ),
    "one that had become stronger meanwhile does": (
        [snapshot(5, (DRAINED,)), snapshot(7, (), (A,))],
        Change(touched=(DRAINED,), missed=(A,), lifted=(DRAINED,)),
        (),
    ),
    "another epoch severs everything, at any revision": (
        [snapshot(5, (A,), tokens=(T1,)), snapshot(2, (A, B), tokens=(T1,), epoch="e2")],
        Change(touched=(A, B), acknowledge=("KA", "KB"), everything=True),
        (A, B),
    ),
    "tokens that a snapshot lacks are revoked": (
        [snapshot(5, tokens=(T1, T2)), snapshot(6, tokens=(T2,))],
        Change(revoked=("T1",)),
        (),
    ),
    "a token that allows something else is severed": (
        [snapshot(5, tokens=(T1,)), snapshot(6, tokens=(token("T1", "agent://acme/dev/x"),))],
        Change(revoked=("T1",)),
        (),
    ),
    "a token revoked by delta": (
        [snapshot(5, tokens=(T1, T2)), delta(5, revoked=("T1",))],
        Change(revoked=("T1",)),
        (),
    ),
    "a token that we never had is revoked": (
        [snapshot(5), delta(5, revoked=("T9",))],
        Change(revoked=("T9",)),
        (),
    ),
    "a token created by delta": ([snapshot(5), delta(5, tokens=(T1,))], Change(), ()),
    "a token with a new secret": (
        [snapshot(5, tokens=(T1,)), delta(5, tokens=(token("T1", digest="new"),))],
        Change(revoked=("T1",)),
        (),
    ),
}


@pytest.mark.parametrize("name", SCRIPTS)
def test_messages(name):
    messages, change, orders = SCRIPTS[name]
    replica = Replica()
    for message in messages:
        last = replica.apply(message, NOW_BOOT)
    assert last == change
    assert (None if replica.view is None else replica.view.orders) == orders


def test_a_gap_asks_for_a_snapshot_and_a_snapshot_answers():
    replica = Replica()
    assert replica.needs_snapshot
    replica.apply(snapshot(1), NOW_BOOT)
    assert not replica.needs_snapshot
    replica.apply(delta(2), NOW_BOOT)
    assert replica.needs_snapshot
    assert replica.view.revision == 1
    replica.apply(snapshot(3), NOW_BOOT)
    assert not replica.needs_snapshot


def test_tokens_are_found_by_digest_and_id():
    replica = Replica()
    replica.apply(snapshot(1, tokens=(T1,)), NOW_BOOT)
    replica.apply(delta(1, tokens=(T2,)), NOW_BOOT)
    assert replica.view.tokens == {T1.digest: T1, T2.digest: T2}
    replica.apply(delta(2, revoked=("T1",)), NOW_BOOT)
    assert replica.view.tokens == {T2.digest: T2}
    assert replica.view.token_ids == {"T2"}


def test_a_reader_keeps_the_view_that_it_took():
    replica = Replica()
    replica.apply(snapshot(1), NOW_BOOT)
    taken = replica.view
    replica.apply(delta(1, kills=(A,)), NOW_BOOT)
    assert taken.orders == ()
    assert taken.deciding(AgentRef.parse("agent://acme/prod/mailer"), "i") is None


def renewal(sent_at=100.0, epoch="e1", revision=5, lease_ms=1000, view_age_ms=0):
    return Renewed(sent_at, epoch, revision, lease_ms, view_age_ms)


LEASES = {
    "none granted": ([], 0.0),
    "counts from when it was asked for": ([renewal()], 0.8),
    "the age of control's view counts too": ([renewal(view_age_ms=300)], 0.5),
    "an older revision is applied as well": ([renewal(revision=4)], 0.8),
    "a revision that is not applied": ([renewal(revision=6)], 0.0),
    "another epoch": ([renewal(epoch="e0")], 0.0),
    "sent long ago": ([renewal(sent_at=50.0)], 0.0),
    "the later one counts": ([renewal(), renewal(sent_at=100.1)], 0.9),
    "never shortened by one that comes late": ([renewal(sent_at=100.1), renewal()], 0.9),
    "never shortened by a shorter lease": ([renewal(), renewal(sent_at=100.1, lease_ms=100)], 0.8),
    "asked for in the future": ([renewal(sent_at=100.3)], 0.0),
    "asked for at no time": ([renewal(sent_at=float("nan"))], 0.0),
    "a view younger than now": ([renewal(view_age_ms=-5000)], 0.8),
}


@pytest.mark.parametrize("name", LEASES)
def test_lease_left_at_100_2(name):
    renewals, left = LEASES[name]
    replica = Replica()
    replica.apply(snapshot(5), NOW_BOOT)
    for message in renewals:
        replica.renewed(message, 100.2)
    assert replica.lease_left(100.2) == pytest.approx(left)


def test_a_lease_ends_and_stays_ended():
    replica = Replica()
    replica.apply(snapshot(5), NOW_BOOT)
    replica.renewed(renewal(), 100.0)
    assert replica.lease_left(100.999) > 0
    assert replica.lease_left(101.0) == 0.0
    assert replica.lease_left(5000.0) == 0.0


def test_no_lease_before_the_first_snapshot():
    replica = Replica()
    replica.renewed(renewal(), 100.0)
    replica.apply(snapshot(5), NOW_BOOT)
    assert replica.lease_left(100.0) == 0.0


def test_no_new_lease_while_a_delta_is_missing_and_the_old_one_goes_on():
    """Control counted on the old one when it was granted; a new one would hide what is missing."""
    replica = Replica()
    replica.apply(snapshot(5), NOW_BOOT)
    replica.renewed(renewal(), 100.0)
    replica.apply(delta(6), NOW_BOOT)
    replica.renewed(renewal(sent_at=100.5), 100.5)
    assert replica.lease_left(100.5) == pytest.approx(0.5)


def test_a_lease_outlives_a_delta_but_not_its_epoch():
    replica = Replica()
    replica.apply(snapshot(5), NOW_BOOT)
    replica.renewed(renewal(), 100.0)
    replica.apply(delta(5, kills=(A,)), NOW_BOOT)
    assert replica.lease_left(100.0) == pytest.approx(1.0)
    replica.apply(snapshot(9, epoch="e2"), NOW_BOOT)
    assert replica.lease_left(100.0) == 0.0


def drain(kill_id="KD", grace_s=10.0, **more):
    return replace(kill(kill_id, **more), mode="drain", grace_s=grace_s)


def test_a_drain_is_over_when_its_grace_is_counted_from_when_it_was_applied():
    replica = Replica()
    replica.apply(snapshot(1), 0.0)
    replica.apply(delta(1, kills=(drain(),)), 100.0)
    assert replica.next_drain_end(103.0) == pytest.approx(7.0)
    assert replica.drained(109.9) == frozenset()
    assert replica.drained(110.0) == {"KD"}
    assert replica.next_drain_end(110.0) is None


def test_a_drain_ordered_again_never_ends_later():
    replica = Replica()
    replica.apply(snapshot(1, (drain(),)), 100.0)
    replica.apply(delta(1, kills=(drain(grace_s=30.0),)), 105.0)
    assert replica.next_drain_end(105.0) == pytest.approx(5.0)
    replica.apply(delta(2, kills=(drain(grace_s=1.0),)), 106.0)
    assert replica.next_drain_end(106.0) == pytest.approx(1.0)


def test_a_drain_without_a_grace_is_over_at_once():
    replica = Replica()
    replica.apply(snapshot(1, (drain(grace_s=None),)), 100.0)
    assert replica.drained(100.0) == {"KD"}


@pytest.mark.parametrize(
    "message",
    [
        delta(1, lifted=("KD",)),
        delta(1, kills=(kill("KD"),)),
        snapshot(2),
        snapshot(1, epoch="e2"),
    ],
)
def test_a_drain_that_is_lifted_or_became_a_cut_is_no_drain_any_more(message):
    replica = Replica()
    replica.apply(snapshot(1, (drain(),)), 100.0)
    replica.apply(message, 101.0)
    assert replica.next_drain_end(101.0) is None
    assert replica.drained(1000.0) == frozenset()


MODES = {
    "nothing": ((), None),
    "a cut": ((A,), "cut"),
    "a hold": ((HELD,), "hold"),
    "a drain": ((DRAINED,), "drain"),
    "a drain that is over": ((drain("over"),), "cut"),
    "a drain and a hold": ((DRAINED, replace(B, mode="hold")), "hold"),
    "an ended drain and a hold": ((drain("over"), HELD), "cut"),
    "a cut and a hold": ((HELD, B), "cut"),
    "what is about others": ((C,), None),
    "a mode of the future": ((replace(A, mode="calm"),), "cut"),
}


@pytest.mark.parametrize("name", MODES)
def test_what_becomes_of_live_connections(name):
    orders, mode = MODES[name]
    replica = Replica()
    replica.apply(snapshot(1, orders), NOW_BOOT)
    mailer = AgentRef.parse("agent://acme/prod/mailer")
    assert replica.view.live_mode(mailer, "i-1", {"over"}) == mode


SELECTORS = st.sampled_from(
    ["agent://a/b", "agent://a/c", "agent://a/b~i", "agent://a/b~i*", "agent://a/*", "agent://**"]
)


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 4), SELECTORS), max_size=12))
def test_the_index_always_says_what_the_orders_say(steps):
    """Deltas touch only a part of it: any history must end where a rebuild would."""
    replica = Replica()
    replica.apply(snapshot(0), NOW_BOOT)
    for revision, (issues, number, selector) in enumerate(steps):
        kill_id = f"K{number}"
        order = kill(kill_id, selector, revision)
        replica.apply(
            delta(revision, **({"kills": (order,)} if issues else {"lifted": (kill_id,)})), NOW_BOOT
        )
        for agent in (AgentRef(("a", "b")), AgentRef(("a", "c"))):
            for instance in ("i", "i2", "j"):
                expected = deciding_kill(replica.view.orders, agent, instance)
                assert replica.view.deciding(agent, instance) == expected
                assert replica.view.deciding(agent, instance) == expected  # remembered
    fresh = Replica()
    fresh.apply(snapshot(len(steps), replica.view.orders), NOW_BOOT)
    assert {k: set(v) for k, v in replica.view.by_agent.items()} == {
        k: set(v) for k, v in fresh.view.by_agent.items()
    }
    assert set(replica.view.globs) == set(fresh.view.globs)


def test_decisions_are_remembered_up_to_a_bound(monkeypatch):
    """10,000 orders cost nothing per request, and a million made-up instances no memory."""
    asked = []

    def counting(orders, agent, instance):
        asked.append(instance)
        return deciding_kill(orders, agent, instance)

    monkeypatch.setattr(replica_module, "deciding_kill", counting)
    monkeypatch.setattr(replica_module, "_MAX_DECISIONS", 3)
    replica = Replica()
    replica.apply(
        snapshot(1, tuple(kill(f"K{n}", f"agent://x/n{n}") for n in range(1000))), NOW_BOOT
    )
    agent = AgentRef(("x", "n7"))
    for instance in ("a", "a", "b", "c", "a"):
        assert replica.view.deciding(agent, instance).kill_id == "K7"
    assert asked == ["a", "b", "c"]
    replica.view.deciding(agent, "d")
    assert asked == ["a", "b", "c", "d"]
    assert len(replica.view._decisions) == 1
