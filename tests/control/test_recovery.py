"""What a proxy knows and the store does not: taken over, never used to let anything go on."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta, timezone

import pytest
from haltwire.wire.messages import Hello
from haltwire.wire.names import AgentRef
from haltwire.wire.orders import Kill, deciding_kill
from haltwire.wire.selectors import Selector
from haltwire_control import kills, recovery
from haltwire_control.recovery import TooMuchError, accept, is_ahead, note_cut_short, unite
from haltwire_control.state import (
    Actor,
    ConflictError,
    Lifting,
    NotThereError,
    Order,
    RecoveryNeededError,
    State,
    Token,
)
from hypothesis import given
from hypothesis import strategies as st

NOW = datetime(2026, 11, 22, 9, 30, tzinfo=timezone.utc)
ADA = Actor("key:ada", "Y1")
MAILER = Selector.parse("agent://acme/prod/mailer")
WIDE = Selector.parse("agent://acme/**")
NAMES = ("f", "R1")


def kill(kill_id: str = "K1", selector: Selector = MAILER, **more) -> Kill:
    return Kill(
        kill_id,
        selector,
        **{"mode": "cut", "reason": "why", "actor": "key:bob", "created_at": NOW, "revision": 3}
        | more,
    )


def order(*args, **more) -> Order:
    return Order(kill(*args, **more), "Y9", 3)


def token(number: int) -> Token:
    return Token(f"T{number}", f"d{number}", MAILER, None, NOW, "key:ada")


def said(epoch: str | None = "e", revision: int = 9, *orders: Kill, **more) -> Hello:
    return Hello(
        "w-1", "box", "boot", 7, "pid:[1]", 1, "1", epoch, revision, **{"orders": orders} | more
    )


def united(state: State, hello: Hello, *, other: bool = False, stored=frozenset(), names=NAMES):
    return unite(state, hello, other, frozenset(stored), names, NOW)


AHEAD = {
    "the same": (said("e", 5, head_hash="aa"), False),
    "behind, with the same history": (said("e", 4, head_hash="aa"), False),
    "it does not say": (said("e", 5), False),
    "beyond": (said("e", 6, head_hash="bb"), True),
    "beyond, without a hash": (said("e", 6), True),
    "another change under the same number": (said("e", 5, head_hash="bb"), True),
    "another epoch": (said("x", 9, head_hash="bb"), False),
    "new": (said(None, 0), False),
}


@pytest.mark.parametrize(("hello", "ahead"), AHEAD.values(), ids=AHEAD)
def test_who_is_ahead(hello, ahead):
    assert is_ahead(State("e", 5), hello, "aa") is ahead


def test_a_proxy_that_knows_no_more_changes_nothing():
    state = State("e", 5, (order(),))
    for hello in (said("e", 5, kill()), said("e", 4), said("x", 9, kill()), said(None, 0)):
        change = united(state, hello)
        assert (change.state, change.put, change.events) == (state, (), ())


def test_an_order_that_the_store_lacks_is_in_force_again_with_its_actor_and_is_marked():
    lost = kill("K2", WIDE, actor="key:carl")
    change = united(State("e", 5, (order(),)), said("e", 9, kill(), lost))
    state, found = change.state, change.outcome
    assert (state.epoch, state.revision) == ("f", 6)
    assert state.kills == (kill(), lost)
    assert state.orders[1].changed_revision == 6
    assert (change.delta.previous, change.delta.revision, change.delta.kills) == (5, 6, (lost,))
    assert state.recovery == found
    assert (found.taken, found.kept, found.proxies) == (("K2",), (), ("w-1",))
    assert (found.store_revision, found.seen_revision, found.version) == (5, 9, 1)
    (event,) = change.events
    assert (event.event_type, event.actor.name) == ("system.recovery", "system:recovery")
    assert event.kills == ("K2",)
    assert event.details["orders_taken"] == ["K2"]
    (note,) = [one for one in change.put if getattr(one, "text", None)]
    assert (note.kill_id, note.actor) == ("K2", "system:recovery")
    assert "taken over from proxy w-1" in note.text


def test_what_is_in_force_here_stays_so_although_a_proxy_ahead_has_lifted_it():
    change = united(State("e", 5, (order(), order("K2", WIDE))), said("e", 9, kill()))
    assert len(change.state.orders) == 2
    assert change.outcome.kept == ("K2",)


def test_an_order_that_was_lifted_here_is_not_taken_from_a_proxy_that_still_has_it():
    """Somebody let it go on after the backup was made: that is known here, and later."""
    ending = Lifting(5, NOW, "key:ada", None)
    remembered = State("e", 5, lifted=(replace(order("K2"), lifted=ending),))
    assert united(remembered, said("e", 9, kill("K2"))).state.orders == ()
    assert united(State("e", 5), said("e", 9, kill("K2")), stored={"K2"}).state.orders == ()


LATER = NOW + timedelta(hours=1)
EITHER = {
    "a cut beats a hold": ({"mode": "hold"}, {}, {"mode": "cut"}),
    "also when it is ours": ({}, {"mode": "hold"}, {"mode": "cut"}),
    "no expiry beats any": ({"expires_at": LATER}, {}, {"expires_at": None}),
    "what only one leaves out is stopped": ({"excepted": (WIDE,)}, {}, {"excepted": ()}),
    "what both leave out is not": (
        {"excepted": (WIDE,)},
        {"excepted": (WIDE,)},
        {"excepted": (WIDE,)},
    ),
    "a mode of a later day is a cut": ({"mode": "hold"}, {"mode": "vaporise"}, {"mode": "cut"}),
}


@pytest.mark.parametrize(("ours", "theirs", "expected"), EITHER.values(), ids=EITHER)
def test_an_order_that_both_have_stops_what_either_stopped(ours, theirs, expected):
    change = united(State("e", 5, (order(**ours),)), said("e", 9, kill(**theirs)))
    (found,) = change.state.kills
    assert {name: getattr(found, name) for name in expected} == expected
    assert found.actor == "key:bob"


def test_a_proxy_of_an_old_epoch_undoes_no_carving_of_today():
    """It knows the order as it was: only while a recovery waits, when nothing can be carved, does that count."""
    state = State("f", 7, (order(excepted=(MAILER,)),))
    assert united(state, said("e", 9, kill())).state == state
    waiting = united(
        State("e", 5, (order("K1", mode="hold"),)), said("e", 9, kill("K1", mode="hold"))
    ).state
    harder = united(waiting, said("e", 11, kill("K1")))
    assert harder.state.orders[0].kill.mode == "cut"
    assert harder.state.epoch == "f", "one new epoch is enough"


def test_more_proxies_add_to_what_waits_and_whoever_accepts_has_seen_it():
    first = united(State("e", 5), said("e", 9, kill("K1"))).state
    hello = replace(said("e", 8, kill("K2", WIDE)), proxy_id="w-2")
    second = united(first, hello, names=("g", "R2"))
    found = second.outcome
    assert (second.state.epoch, found.recovery_id, found.version) == ("f", "R1", 2)
    assert (found.taken, found.proxies) == (("K1", "K2"), ("w-1", "w-2"))
    with pytest.raises(ConflictError, match="more was found"):
        accept(second.state, "R1", 1, ADA, NOW)
    with pytest.raises(NotThereError):
        accept(second.state, "R9", 2, ADA, NOW)
    done = accept(second.state, "R1", 2, ADA, NOW)
    assert done.state.recovery is None
    assert (done.outcome.accepted_by, done.events[0].actor) == ("key:ada", ADA)
    assert len(done.state.orders) == 2
    with pytest.raises(NotThereError):
        accept(done.state, "R1", 2, ADA, NOW)


def test_tokens_that_a_proxy_ahead_no_longer_had_are_withheld_until_it_is_accepted():
    """One that was revoked after the backup must not let its holder in again before a person has looked."""
    state = State("e", 5, tokens={t.digest: t for t in (token(1), token(2))})
    change = united(state, said("e", 9, token_ids=("T1",)))
    assert change.outcome.withheld == change.delta.revoked == ("T2",)
    assert [rule.token_id for rule in change.state.rules] == ["T1"]
    done = accept(change.state, "R1", 1, ADA, NOW)
    assert [rule.token_id for rule in done.delta.tokens] == ["T2"]
    assert len(done.state.rules) == 2


SAYS_NOTHING_OF_TOKENS = {
    "an older proxy": said("e", 9),
    "one that is not beyond": said("e", 5, token_ids=()),
    "one of another epoch": said("x", 9, kill("K7"), token_ids=()),
}


@pytest.mark.parametrize("hello", SAYS_NOTHING_OF_TOKENS.values(), ids=SAYS_NOTHING_OF_TOKENS)
def test_tokens_that_cannot_have_been_revoked_are_not_withheld(hello):
    state = State("e", 5, tokens={"d1": token(1)})
    found = united(state, hello, other=True).outcome
    assert found.withheld == ()


def test_while_it_waits_kills_work_and_nothing_is_let_go_on():
    waiting = united(State("e", 5), said("e", 9, kill())).state
    issue = kills.issue(waiting, kills.Issue(WIDE, ADA), NOW, "K5")
    assert len(issue.state.orders) == 2
    for step in (kills.resume, kills.withdraw):
        with pytest.raises(RecoveryNeededError, match="haltwire recover --accept"):
            step(waiting, kills.Resume(ADA, MAILER), NOW)


def test_a_store_without_its_log_waits_too():
    change = note_cut_short(State("e", 5), "R1", NOW)
    assert change.state.recovery.why == recovery.CUT_SHORT
    assert change.delta is None
    more = united(change.state, said("e", 9, kill()))
    assert (more.outcome.recovery_id, more.outcome.version) == ("R1", 2)
    assert more.outcome.why == recovery.CUT_SHORT


def test_a_proxy_cannot_fill_the_store(monkeypatch):
    monkeypatch.setattr(recovery, "TAKEN_MOST", 3)
    many = [kill(f"K{number}") for number in range(4)]
    with pytest.raises(TooMuchError, match="more than 3 orders"):
        united(State("e", 5), said("e", 9, *many))
    state = united(State("e", 5), said("e", 9, *many[:3])).state
    with pytest.raises(TooMuchError):
        united(state, said("f", 9, many[3]))


@pytest.mark.parametrize("kill_id", ["", "../x", "k1", "K" * 40, "K1\n", "T1"])
def test_what_is_no_id_of_ours_is_not_taken(kill_id):
    with pytest.raises(TooMuchError):
        united(State("e", 5), said("e", 9, kill(kill_id)))


def test_no_revision_that_a_proxy_claims_becomes_ours():
    """Our numbers could run out of what messages may hold, and no proxy be understood any more."""
    assert united(State("e", 5), said("e", 2**62, kill())).state.revision == 6


SELECTORS = st.sampled_from(
    [MAILER, WIDE, Selector.parse("agent://acme/prod/*"), Selector.parse("agent://acme/dev/x")]
)
KILLS = st.builds(
    kill,
    st.sampled_from(["K1", "K2", "K3", "K4"]),
    SELECTORS,
    mode=st.sampled_from(["cut", "drain", "hold"]),
    excepted=st.lists(st.just(MAILER), max_size=1).map(tuple),
    expires_at=st.none() | st.just(LATER),
)
SETS = st.lists(KILLS, max_size=4, unique_by=lambda k: k.kill_id)
AGENTS = [AgentRef.parse(f"agent://acme/{name}") for name in ("prod/mailer", "prod/y", "dev/x")]


@given(SETS, SETS, st.booleans())
def test_nobody_whom_either_stopped_goes_on(ours, theirs, beyond):
    """For every agent: the united orders stop at least as hard as those of the store, or of the proxy."""
    same = {k.kill_id: k.selector for k in ours}
    theirs = [replace(k, selector=same.get(k.kill_id, k.selector)) for k in theirs]
    state = State("e", 5, tuple(Order(k, None, 3) for k in ours))
    after = united(state, said("e", 9 if beyond else 5, *theirs), other=True).state
    for agent in AGENTS:
        before = [
            found.mode for found in (deciding_kill(s, agent, "i") for s in (ours, theirs)) if found
        ]
        now = deciding_kill(after.kills, agent, "i")
        assert now is not None or not before
        if any(mode != "hold" for mode in before):
            assert now.mode != "hold"
