"""What time does to orders: named cases, and random sequences against a model of who is stopped, and how."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta, timezone

import pytest
from haltwire.wire.names import AgentRef
from haltwire.wire.orders import deciding_kill
from haltwire.wire.selectors import EVERYTHING, Selector
from haltwire_control.ends import Clock
from haltwire_control.kills import Issue, Resume, issue, resume
from haltwire_control.lifetimes import Due, expire, harden
from haltwire_control.state import Actor, State
from hypothesis import given, settings
from hypothesis import strategies as st

NOW = datetime(2026, 11, 22, 9, 30, tzinfo=timezone.utc)
ADA = Actor("key:ada", "Y1")
MAILER = Selector.parse("agent://acme/prod/mailer")
WIDE = Selector.parse("agent://acme/**")


def after(seconds: float) -> datetime:
    return NOW + timedelta(seconds=seconds)


def ordered(state: State, kill_id: str, selector: Selector = MAILER, **more) -> State:
    return issue(state, Issue(selector, ADA, "why", **more), NOW, kill_id).state


def test_an_expiry_lifts_and_is_told_by_the_clock():
    before = ordered(ordered(State("e"), "K1", ttl_s=60.0), "K2", WIDE)
    change = expire(before, Due("K1", after(60)), after(61))
    assert [order.kill.kill_id for order in change.state.orders] == ["K2"]
    (lifted,) = change.put
    assert (lifted.lifted.actor, lifted.lifted.at, lifted.lifted.revision) == (
        "system:expiry",
        after(61),
        3,
    )
    assert (change.delta.previous, change.delta.revision, change.delta.lifted) == (2, 3, ("K1",))
    assert [kill.kill_id for kill in change.outcome.still_killed_by] == ["K2"]
    (event,) = change.events
    assert (event.event_type, event.actor.name, event.kills) == (
        "kill.expired",
        "system:expiry",
        ("K1",),
    )
    assert event.details["still_killed_by"] == ["K2"]
    assert change.state.lifted == (lifted,)


def test_the_limit_of_a_hold_makes_it_a_cut_of_the_same_id_actor_and_time():
    before = ordered(State("e"), "K1", mode="hold", hold_limit_s=60.0, ttl_s=600.0)
    change = harden(before, Due("K1", after(60)), after(61))
    (order,) = change.state.orders
    kill = order.kill
    assert (kill.kill_id, kill.actor, kill.created_at, kill.reason) == ("K1", "key:ada", NOW, "why")
    assert (kill.mode, kill.hold_until, kill.expires_at) == ("cut", None, after(600))
    assert (kill.revision, order.changed_revision) == (1, 2)
    assert change.delta.kills == (kill,)
    (event,) = change.events
    assert (event.event_type, event.actor.name) == ("kill.issued", "system:hold-limit")
    assert event.details["strengthened"] is True
    assert event.details["changed"] == ["mode", "hold_until"]


NOTHING = {
    "an order that is not there": (expire, Due("K9", after(60))),
    "an expiry that was put off since": (expire, Due("K1", after(30))),
    "an order that is no hold any more": (harden, Due("K2", after(60))),
    "a limit that was moved since": (harden, Due("K1", after(59))),
}


@pytest.mark.parametrize(("step", "due"), NOTHING.values(), ids=NOTHING)
def test_what_was_due_and_has_changed_since_is_left_alone(step, due):
    before = ordered(State("e"), "K1", mode="hold", hold_limit_s=60.0, ttl_s=60.0)
    before = ordered(before, "K2", WIDE)
    change = step(before, due, after(61))
    assert (change.state, change.outcome, change.events) == (before, None, ())


@pytest.mark.parametrize("step", [expire, harden])
def test_what_was_put_off_on_the_steady_clock_alone_is_left_alone(step):
    """A kill under a wall clock that was set meanwhile leaves the times as they are shown.

    Removed: the comparison of the steady time in `expire`. Seen: it was lifted by the time that was put off.
    """
    command = Issue(MAILER, ADA, mode="hold", hold_limit_s=60.0, ttl_s=60.0)
    before = issue(State("e"), command, NOW, "K1", Clock("boot", 100.0)).state
    assert step(before, Due("K1", after(60), 159.0), after(61)).outcome is None
    assert step(before, Due("K1", after(60)), after(61)).outcome is None
    assert step(before, Due("K1", after(60), 160.0), after(61)).outcome is not None


SEGMENTS = st.sampled_from(["a", "b", "*"])
SELECTORS = st.one_of(
    st.builds(
        lambda x, y, i: Selector((x, y), i), SEGMENTS, SEGMENTS, st.sampled_from([None, "i-1"])
    ),
    st.just(EVERYTHING),
)
TIMES = st.none() | st.integers(1, 4).map(float)
COMMANDS = st.lists(
    st.one_of(
        st.tuples(
            st.just("kill"), SELECTORS, st.sampled_from(["cut", "drain", "hold"]), TIMES, TIMES
        ),
        st.tuples(st.sampled_from(["resume", "carve"]), SELECTORS),
        st.tuples(st.sampled_from(["tick", "expire", "harden"])),
    ),
    max_size=14,
)
WHO = [(AgentRef((x, y)), i) for x in "ab" for y in "ab" for i in ("i-1", "z")]
RANK = {"hold": 0, "drain": 1, "cut": 2}
FOR_EVER = float("inf")


@dataclass
class Stop:
    """An order as plainly as can be: whom it stops, how, and until when, in seconds."""

    who: set
    rank: int
    ends: float
    limit: float


class Model:
    def __init__(self):
        self.orders: dict[Selector, Stop] = {}
        self.clock = 0.0

    def kill(self, selector, mode, ttl, limit):
        ends = FOR_EVER if ttl is None else self.clock + ttl
        hardens = FOR_EVER if limit is None or mode != "hold" else self.clock + limit
        who = {one for one in WHO if selector.matches(*one)}
        new, old = Stop(who, RANK[mode], ends, hardens), self.orders.get(selector)
        if old is not None:
            new = Stop(
                who,
                max(old.rank, new.rank),
                max(old.ends, new.ends),
                min(old.limit, new.limit),
            )
        self.orders[selector] = new

    def resume(self, selector, carve):
        for other in list(self.orders):
            if selector.covers(other):
                del self.orders[other]
            elif carve and other.covers(selector):
                self.orders[other].who -= {one for one in WHO if selector.matches(*one)}

    def expire(self):
        self.orders = {s: o for s, o in self.orders.items() if o.ends > self.clock}

    def harden(self):
        for order in self.orders.values():
            if order.rank == 0 and order.limit <= self.clock:
                order.rank = 2

    def how(self, one):
        ranks = [order.rank for order in self.orders.values() if one in order.who]
        return None if not ranks else "held" if max(ranks) == 0 else "refused"


def how(state: State, one) -> str | None:
    decides = deciding_kill(state.kills, *one)
    return None if decides is None else "held" if decides.mode == "hold" else "refused"


def steps_of(state: State, model: Model, number: int, command: tuple):
    """The steps that a command comes to, each on the state after the one before."""
    verb, *rest = command
    now = after(model.clock)
    if verb == "kill":
        selector, mode, ttl, limit = rest
        model.kill(*rest)
        asked = Issue(selector, ADA, mode=mode, ttl_s=ttl, hold_limit_s=limit)
        yield lambda state: issue(state, asked, now, f"K{number}")
    elif verb in ("resume", "carve"):
        model.resume(rest[0], verb == "carve")
        yield lambda state: resume(state, Resume(ADA, rest[0], carve_out=verb == "carve"), now)
    elif verb == "tick":
        model.clock += 1
    else:
        getattr(model, verb)()
        step, name = (expire, "expires_at") if verb == "expire" else (harden, "hold_until")
        for kill in state.kills:
            at = getattr(kill, name)
            if at is not None and at <= now:
                due = Due(kill.kill_id, at)
                yield lambda state, due=due: step(state, due, now)


@settings(deadline=None)
@given(COMMANDS)
def test_only_a_resume_or_an_expiry_lets_anybody_pass(commands):
    state, model = State("e"), Model()
    for number, command in enumerate(commands):
        before = state
        for step in steps_of(state, model, number, command):
            change = step(state)
            assert change.state.revision == state.revision + (change.delta is not None)
            assert sum(e.event_type == "kill.expired" for e in change.events) == (
                command[0] == "expire"
            )
            if change.delta is not None:
                assert (change.delta.previous, change.delta.revision) == (
                    state.revision,
                    change.state.revision,
                )
                assert proxy_after(state, change.delta) == set(change.state.kills)
            state = change.state
        if command[0] not in ("resume", "carve", "expire"):
            for kill in before.kills:
                assert_not_weaker(kill, state)
        assert {one: how(state, one) for one in WHO} == {one: model.how(one) for one in WHO}


def proxy_after(before: State, delta) -> set:
    orders = {kill.kill_id: kill for kill in (*before.kills, *delta.kills)}
    return {kill for kill_id, kill in orders.items() if kill_id not in delta.lifted}


def assert_not_weaker(old, state: State) -> None:
    (new,) = (kill for kill in state.kills if kill.kill_id == old.kill_id)
    assert (new.selector, new.actor, new.created_at, new.revision) == (
        old.selector,
        old.actor,
        old.created_at,
        old.revision,
    )
    assert RANK[new.mode] >= RANK[old.mode]
    assert new.expires_at is None or (old.expires_at and new.expires_at >= old.expires_at)
    assert set(new.excepted) <= set(old.excepted)
    if new.mode == old.mode:
        assert old.grace_s is None or new.grace_s <= old.grace_s
        assert old.hold_until is None or new.hold_until <= old.hold_until
