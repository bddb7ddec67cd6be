"""The kill state machine: named cases, and random sequences against a model that only knows who is stopped."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta, timezone

import pytest
from haltwire.wire.names import AgentRef
from haltwire.wire.selectors import Selector
from haltwire_control.ends import NO_ENDS, Clock, Ends
from haltwire_control.kills import Issue, Resume, issue, resume, withdraw
from haltwire_control.state import Actor, NotThereError, State
from hypothesis import given, settings
from hypothesis import strategies as st

NOW = datetime(2026, 11, 22, 9, 30, tzinfo=timezone.utc)
ADA, BOB = Actor("key:ada", "Y1"), Actor("key:bob", "Y2")
MAILER, PROD, ACME, ALL = (
    Selector.parse(text)
    for text in (
        "agent://acme/prod/mailer",
        "agent://acme/prod/*",
        "agent://acme/**",
        "agent://**",
    )
)


def killed(*selectors: Selector, state: State | None = None) -> State:
    state = state or State("e")
    for number, selector in enumerate(selectors, start=len(state.orders) + 1):
        state = issue(state, Issue(selector, ADA, "why"), NOW, f"K{number}").state
    return state


def ids(kills) -> list[str]:
    return [kill.kill_id for kill in kills]


def test_a_kill_is_an_order_a_revision_an_event_and_a_delta():
    change = issue(State("e", 7), Issue(MAILER, ADA, "broken link"), NOW, "K1")
    (order,) = change.state.orders
    assert (order.kill.kill_id, order.kill.actor, order.kill.reason) == (
        "K1",
        "key:ada",
        "broken link",
    )
    assert change.state.revision == order.kill.revision == order.changed_revision == 8
    assert (change.delta.previous, change.delta.revision, change.delta.kills) == (
        7,
        8,
        (order.kill,),
    )
    assert [e.event_type for e in change.events] == ["kill.issued"]
    assert change.put == (order,)


def test_a_second_kill_keeps_id_actor_and_time_and_changes_no_revision():
    before = killed(MAILER)
    change = issue(before, Issue(MAILER, BOB, "me too"), NOW + timedelta(hours=1), "K2")
    assert change.state == before
    assert change.delta is None
    assert change.outcome.repeated
    (event,) = change.events
    assert (event.actor, event.reason) == (BOB, "me too")
    assert event.details["repeated"] is True
    assert event.details["strengthened"] is False
    assert event.details["kill_id"] == "K1"


def test_a_second_kill_takes_back_what_was_carved_out():
    before = resume(killed(ACME), Resume(ADA, MAILER, carve_out=True), NOW).state
    change = issue(before, Issue(ACME, BOB), NOW, "K2")
    (order,) = change.state.orders
    assert order.kill.excepted == ()
    assert (order.kill.kill_id, order.kill.actor) == ("K1", "key:ada")
    assert order.changed_revision == change.delta.revision == before.revision + 1
    assert change.events[0].details["strengthened"] is True


BOOT = Clock("boot", 100.0)
TTL = Issue(MAILER, ADA, mode="hold", ttl_s=3600.0, hold_limit_s=60.0)


def test_an_order_keeps_its_ends_on_the_steady_clock():
    change = issue(State("e"), TTL, NOW, "K1", BOOT)
    assert change.put[0].ends == change.state.orders[0].ends == Ends("boot", 3700.0, 160.0)
    lasting = issue(State("e"), Issue(MAILER, ADA), NOW, "K1", BOOT)
    assert lasting.put[0].ends == NO_ENDS


def test_a_second_kill_under_a_clock_that_was_set_back_lasts_as_long_as_it_says():
    """By the wall clock it ends long before the first; it still is to last an hour from now.

    Removed: that a change of the ends alone is put. Seen: nothing was put for the third kill.
    """
    before = issue(State("e"), TTL, NOW, "K1", BOOT).state
    again = issue(before, TTL, NOW - timedelta(days=1), "K2", Clock("boot", 120.0))
    (order,) = again.put
    assert order.ends == Ends("boot", 3720.0, 160.0)
    assert again.state.orders == (order,)
    # Its limit comes sooner by that wall clock, and that much is told.
    assert order.kill.hold_until == NOW - timedelta(days=1) + timedelta(seconds=60)
    last = issue(again.state, TTL, NOW - timedelta(days=1), "K3", Clock("boot", 130.0))
    assert last.put == last.state.orders
    assert last.put[0].ends == Ends("boot", 3730.0, 160.0)
    assert (last.delta, last.state.revision) == (None, again.state.revision)
    assert last.events[0].details["strengthened"] is False


def test_a_second_kill_under_a_clock_that_was_set_forward_shortens_nothing():
    before = issue(State("e"), TTL, NOW, "K1", BOOT).state
    later, shorter = NOW + timedelta(days=1), replace(TTL, ttl_s=600.0)
    (order,) = issue(before, shorter, later, "K2", Clock("boot", 120.0)).put
    assert order.kill.expires_at == later + timedelta(seconds=600)
    assert order.ends.expires == 3700.0


def test_after_a_start_of_the_machine_the_wall_clock_says_how_long_an_order_still_lasts():
    before = issue(State("e"), TTL, NOW, "K1", BOOT).state
    shorter, boot = replace(TTL, ttl_s=600.0), Clock("next", 5.0)
    change = issue(before, shorter, NOW + timedelta(seconds=10), "K2", boot)
    assert change.put[0].ends == Ends("next", 3595.0, 55.0)
    assert change.delta is None


SECOND, HOUR, DAY = 1.0, 3600.0, 86_400.0


def at(seconds: float | None) -> datetime | None:
    return None if seconds is None else NOW + timedelta(seconds=seconds)


FIRSTS = {
    "a cut stays": ({}, ("cut", None, None, None)),
    "a drain has half a minute": ({"mode": "drain"}, ("drain", None, 30.0, None)),
    "a drain with its own grace": (
        {"mode": "drain", "grace_s": 0.0},
        ("drain", None, 0.0, None),
    ),
    "a hold has no limit": ({"mode": "hold"}, ("hold", None, None, None)),
    "a hold with a limit and an end": (
        {"mode": "hold", "ttl_s": HOUR, "hold_limit_s": SECOND},
        ("hold", at(HOUR), None, at(SECOND)),
    ),
    "what belongs to other modes is nothing": (
        {"grace_s": 5.0, "hold_limit_s": 5.0},
        ("cut", None, None, None),
    ),
}


def shape(kill) -> tuple:
    return kill.mode, kill.expires_at, kill.grace_s, kill.hold_until


@pytest.mark.parametrize(("said", "expected"), FIRSTS.values(), ids=FIRSTS)
def test_a_first_kill_is_as_it_was_asked_for(said, expected):
    change = issue(State("e"), Issue(MAILER, ADA, **said), NOW, "K1")
    assert shape(change.outcome.order.kill) == expected
    details = change.events[0].details
    names = ("mode", "expires_at", "grace_s", "hold_until")
    assert tuple(details[name] for name in names) == expected
    assert "repeated" not in details
    assert change.events[0].kills == ("K1",)


HOLD, DRAIN, CUT = {"mode": "hold"}, {"mode": "drain"}, {"mode": "cut"}
SECONDS = {
    "hold, then drain": (
        HOLD | {"hold_limit_s": HOUR},
        DRAIN,
        ("drain", None, 30.0, None),
        ["mode", "grace_s", "hold_until"],
    ),
    "hold, then cut": (HOLD, CUT, ("cut", None, None, None), ["mode"]),
    "drain, then cut": (DRAIN, CUT, ("cut", None, None, None), ["mode", "grace_s"]),
    "cut, then hold": (CUT, HOLD | {"hold_limit_s": 1.0}, ("cut", None, None, None), []),
    "cut, then drain": (CUT, DRAIN, ("cut", None, None, None), []),
    "drain, then hold": (DRAIN, HOLD, ("drain", None, 30.0, None), []),
    "a shorter grace": (
        DRAIN,
        DRAIN | {"grace_s": 5.0},
        ("drain", None, 5.0, None),
        ["grace_s"],
    ),
    "a longer grace": (DRAIN, DRAIN | {"grace_s": 99.0}, ("drain", None, 30.0, None), []),
    "an unspoken grace is the usual one": (
        DRAIN | {"grace_s": 99.0},
        DRAIN,
        ("drain", None, 30.0, None),
        ["grace_s"],
    ),
    "a later expiry": (
        CUT | {"ttl_s": HOUR},
        CUT | {"ttl_s": DAY},
        ("cut", at(DAY), None, None),
        ["expires_at"],
    ),
    "an earlier expiry": (
        CUT | {"ttl_s": DAY},
        CUT | {"ttl_s": HOUR},
        ("cut", at(DAY), None, None),
        [],
    ),
    "no expiry beats any": (
        CUT | {"ttl_s": DAY},
        CUT,
        ("cut", None, None, None),
        ["expires_at"],
    ),
    "no expiry is not shortened": (CUT, CUT | {"ttl_s": HOUR}, ("cut", None, None, None), []),
    "an earlier limit": (
        HOLD | {"hold_limit_s": DAY},
        HOLD | {"hold_limit_s": HOUR},
        ("hold", None, None, at(HOUR)),
        ["hold_until"],
    ),
    "a limit at last": (
        HOLD,
        HOLD | {"hold_limit_s": HOUR},
        ("hold", None, None, at(HOUR)),
        ["hold_until"],
    ),
    "an unspoken limit leaves the one that stands": (
        HOLD | {"hold_limit_s": HOUR},
        HOLD,
        ("hold", None, None, at(HOUR)),
        [],
    ),
    "mode and expiry are strengthened apart": (
        HOLD,
        CUT | {"ttl_s": HOUR},
        ("cut", None, None, None),
        ["mode"],
    ),
}


@pytest.mark.parametrize(("first", "second", "expected", "changed"), SECONDS.values(), ids=SECONDS)
def test_a_second_kill_only_strengthens(first, second, expected, changed):
    before = issue(State("e"), Issue(MAILER, ADA, "why", **first), NOW, "K1").state
    change = issue(before, Issue(MAILER, BOB, "me too", **second), NOW, "K2")
    (order,) = change.state.orders
    assert shape(order.kill) == expected
    assert (order.kill.kill_id, order.kill.actor, order.kill.revision) == ("K1", "key:ada", 1)
    details = change.events[0].details
    assert (details["repeated"], details["strengthened"]) == (True, bool(changed))
    assert details["changed"] == changed
    assert change.state.revision == order.changed_revision == 1 + bool(changed)
    assert (change.delta is None) is (not changed)


def test_a_mode_of_a_later_day_is_as_strong_as_a_cut():
    before = issue(State("e"), Issue(MAILER, ADA, mode="of-next-year"), NOW, "K1").state
    assert issue(before, Issue(MAILER, BOB, mode="drain"), NOW, "K2").state == before


RESUMES = {
    "the same selector": (MAILER, ["K1"], ["K2", "K3"]),
    "a wider one lifts all inside it": (ALL, ["K1", "K2", "K3"], []),
    "a narrower one lifts what is inside": (PROD, ["K1", "K2"], ["K3"]),
    "an instance of it lifts nothing": (Selector(MAILER.segments, "i-1"), [], ["K1", "K2", "K3"]),
    "somebody else": (Selector.parse("agent://other/prod/mailer"), [], []),
}


@pytest.mark.parametrize(("selector", "lifted", "still"), RESUMES.values(), ids=RESUMES)
def test_a_resume_lifts_what_is_equal_or_inside(selector, lifted, still):
    before = killed(MAILER, PROD, ACME)
    change = resume(before, Resume(ADA, selector, reason="fixed"), NOW)
    assert ids(change.outcome.lifted) == lifted
    assert ids(change.outcome.still_killed_by) == still
    assert (change.delta is None) is (not lifted)
    assert change.state.revision == before.revision + bool(lifted)
    assert [e.event_type for e in change.events] == ["resume.issued"]
    assert list(change.events[0].kills) == lifted
    for order in change.put:
        assert order.lifted.actor == "key:ada"
        assert order.lifted.reason == "fixed"


def test_a_resume_by_id_lifts_that_order_alone():
    change = resume(killed(MAILER, PROD, ACME), Resume(ADA, kill_id="K2"), NOW)
    assert ids(change.outcome.lifted) == ["K2"]
    assert ids(change.outcome.still_killed_by) == ["K1", "K3"]


def test_a_resume_of_a_lifted_id_lifts_nothing():
    before = resume(killed(MAILER), Resume(ADA, kill_id="K1"), NOW).state
    change = resume(before, Resume(ADA, kill_id="K1"), NOW)
    assert change.outcome.lifted == ()
    assert change.state == before


def test_a_resume_of_an_unknown_id_is_refused():
    with pytest.raises(NotThereError, match="K9"):
        resume(killed(MAILER), Resume(ADA, kill_id="K9"), NOW)


def test_a_carve_out_excepts_the_selector_from_wider_orders():
    change = resume(killed(MAILER, PROD, ACME), Resume(ADA, MAILER, carve_out=True), NOW)
    assert ids(change.outcome.lifted) == ["K1"]
    assert ids(change.outcome.carved) == ["K2", "K3"]
    assert change.outcome.still_killed_by == ()
    assert all(order.kill.excepted == (MAILER,) for order in change.state.orders)
    assert ids(change.delta.kills) == ["K2", "K3"]
    assert change.events[0].details["carved_out_of"] == ["K2", "K3"]


def test_a_carve_out_does_not_touch_orders_that_only_cross():
    crossing = Selector.parse("agent://*/prod/mailer")
    change = resume(killed(crossing), Resume(ADA, ACME, carve_out=True), NOW)
    assert change.outcome.carved == ()
    assert ids(change.outcome.still_killed_by) == ["K1"]


def test_a_wider_carve_out_swallows_a_narrower_one():
    state = resume(killed(ACME), Resume(ADA, MAILER, carve_out=True), NOW).state
    state = resume(state, Resume(ADA, PROD, carve_out=True), NOW).state
    assert state.orders[0].kill.excepted == (PROD,)
    assert resume(state, Resume(ADA, MAILER, carve_out=True), NOW).delta is None


def test_only_volatile_orders_can_be_withdrawn_without_a_store():
    state = replace(killed(MAILER, PROD), volatile=frozenset({"K2"}))
    change = withdraw(state, Resume(ADA, PROD), NOW)
    assert ids(change.outcome.lifted) == ["K2"]
    assert ids(change.outcome.still_killed_by) == ["K1"]
    assert change.state.volatile == frozenset()


SEGMENTS = st.sampled_from(["a", "b", "*"])
SELECTORS = st.one_of(
    st.builds(
        lambda x, y, i: Selector((x, y), i),
        SEGMENTS,
        SEGMENTS,
        st.sampled_from([None, None, "i-1", "i-*"]),
    ),
    st.sampled_from([ALL, Selector(("a", "**"))]),
)
WHO = [(AgentRef((x, y)), i) for x in "ab" for y in "ab" for i in ("i-1", "i-2", "z")]
COMMANDS = st.lists(st.tuples(st.sampled_from(["kill", "resume", "carve"]), SELECTORS), max_size=12)


class Model:
    """Orders as plain sets of who they stop."""

    def __init__(self):
        self.orders = {}

    def stopped(self):
        return set().union(*self.orders.values()) if self.orders else set()

    def do(self, verb, selector):
        named = {who for who in WHO if selector.matches(*who)}
        if verb == "kill":
            self.orders[selector] = named
            return
        for other in list(self.orders):
            if selector.covers(other):
                del self.orders[other]
            elif verb == "carve" and other.covers(selector):
                self.orders[other] = self.orders[other] - named


@settings(deadline=None)
@given(COMMANDS)
def test_who_is_stopped_agrees_with_the_model(commands):
    state, model = State("e"), Model()
    for number, (verb, selector) in enumerate(commands):
        before = state
        if verb == "kill":
            change = issue(state, Issue(selector, ADA), NOW, f"K{number}")
        else:
            change = resume(state, Resume(ADA, selector, carve_out=verb == "carve"), NOW)
        state = change.state
        model.do(verb, selector)
        assert {w for w in WHO if any(k.matches(*w) for k in state.kills)} == model.stopped()
        assert len({o.kill.selector for o in state.orders}) == len(state.orders)
        assert len(change.events) == 1
        if change.delta is None:
            assert state == before
        else:
            assert (change.delta.previous, change.delta.revision) == (
                before.revision,
                state.revision,
            )
            assert state.revision == before.revision + 1
            assert applied(before, change.delta) == set(state.kills)


def applied(before: State, delta) -> set:
    """What a proxy has in force that applies the delta."""
    orders = {kill.kill_id: kill for kill in before.kills}
    orders |= {kill.kill_id: kill for kill in delta.kills}
    return {kill for kill_id, kill in orders.items() if kill_id not in delta.lifted}
