"""Orders: which one decides, what a resume lifts, and when two selectors meet."""

from dataclasses import replace
from datetime import datetime, timezone
from itertools import product

import pytest
from haltwire.wire.names import AgentRef
from haltwire.wire.orders import (
    CUT,
    DRAIN,
    HOLD,
    MODES,
    Kill,
    deciding_kill,
    lift,
    live_mode,
    overlap,
)
from haltwire.wire.selectors import EVERYTHING, Selector
from hypothesis import given
from hypothesis import strategies as st

NOON = datetime(2026, 11, 22, 12, tzinfo=timezone.utc)
GLOBS = st.text("ab*", min_size=1, max_size=3).filter(lambda glob: "**" not in glob)
WORDS = ["".join(letters) for size in (1, 2, 3, 4) for letters in product("ab", repeat=size)]
MAILER = AgentRef(("acme", "prod", "mailer"))


@st.composite
def selectors(draw):
    path = draw(st.lists(GLOBS, min_size=0, max_size=2))
    if len(path) < 2 or draw(st.booleans()):
        path.append("**")
    return Selector(tuple(path), draw(st.none() | GLOBS))


def kill(kill_id, selector, revision=1, excepted=()):
    parsed = tuple(map(Selector.parse, excepted))
    return Kill(
        kill_id, Selector.parse(selector), "cut", None, "key:ada", NOON, revision, None, parsed
    )


@given(st.lists(st.tuples(GLOBS, GLOBS), min_size=1, max_size=3))
def test_globs_meet_exactly_when_a_word_fits_both(pairs):
    """Sound and complete, against all words of four letters: long enough for two short globs."""
    for one, other in pairs:
        left, right = Selector(("x", one)), Selector(("x", other))
        meet = any(
            left.matches_agent(agent) and right.matches_agent(agent)
            for agent in (AgentRef(("x", word)) for word in WORDS)
        )
        assert overlap(left, right) is meet
        assert overlap(right, left) is meet


AGENTS = [
    AgentRef(path)
    for size in (2, 3, 4)
    for path in product(["a", "b", "aa", "ab", "ba", "bb"], repeat=size)
]


@given(selectors(), selectors())
def test_what_both_match_overlaps(one, other):
    """Complete: else a resume would keep silent about an order that goes on stopping."""
    meet = any(one.matches_agent(agent) and other.matches_agent(agent) for agent in AGENTS)
    words_meet = any(one.matches_instance(word) and other.matches_instance(word) for word in WORDS)
    if meet and words_meet:
        assert overlap(one, other)
        assert overlap(other, one)


@given(selectors(), selectors())
def test_what_covers_overlaps(one, other):
    if one.covers(other):
        assert overlap(one, other)


OVERLAPS = {
    ("agent://**", "agent://acme/prod/mailer"): True,
    ("agent://acme/**", "agent://acme/prod/mailer~i-1"): True,
    ("agent://acme/**", "agent://other/**"): False,
    ("agent://acme/prod/**", "agent://acme/*"): False,
    ("agent://acme/*/mailer", "agent://acme/prod/*"): True,
    ("agent://acme/a*", "agent://acme/*b"): True,
    ("agent://acme/a*", "agent://acme/b*"): False,
    ("agent://acme/mailer~i-1", "agent://acme/mailer~i-2"): False,
    ("agent://acme/mailer~i-*", "agent://acme/mailer~*-1"): True,
    ("agent://acme/mailer~i-1", "agent://acme/mailer"): True,
    ("agent://acme/mailer", "agent://acme/mailer/x"): False,
    ("agent://acme/**", "agent://acme/prod/**"): True,
}


@pytest.mark.parametrize(("one", "other"), OVERLAPS)
def test_overlap(one, other):
    for left, right in ((one, other), (other, one)):
        assert overlap(Selector.parse(left), Selector.parse(right)) is OVERLAPS[one, other]


ALL = kill("K1", "agent://**", 1)
ORG = kill("K2", "agent://acme/**", 2)
ONE = kill("K3", "agent://acme/prod/mailer", 3)
COPY = kill("K4", "agent://acme/prod/mailer~i-1", 4)
OTHER = kill("K5", "agent://other/**", 5)
CARVED = replace(ORG, excepted=(ONE.selector,))
HELD, DRAINED = replace(ORG, mode=HOLD), replace(ONE, mode=DRAIN, grace_s=30.0)
DECISIONS = {
    "nobody stops it": ((OTHER,), "i-1", None),
    "the oldest that matches": ((COPY, ONE, OTHER), "i-1", ONE),
    "an order for another instance": ((COPY,), "i-2", None),
    "an exception": ((CARVED,), "i-1", None),
    "an exception of one order is none of the next": ((CARVED, COPY), "i-1", COPY),
    "of one revision the first by id": (
        (replace(COPY, revision=3), ONE),
        "i-1",
        ONE,
    ),
    "a cut before an older hold": ((HELD, ONE), "i-1", ONE),
    "a drain before an older hold": ((HELD, DRAINED), "i-1", DRAINED),
    "a hold where nothing else matches": ((HELD, COPY), "i-2", HELD),
    "the oldest of two holds": ((replace(COPY, mode=HOLD), HELD), "i-1", HELD),
}


@pytest.mark.parametrize("name", DECISIONS)
def test_the_deciding_kill(name):
    orders, instance, expected = DECISIONS[name]
    assert deciding_kill(orders, MAILER, instance) == expected


LIVE = {
    "no order": ((), (), None),
    "a cut": ((HELD, DRAINED, COPY), (), CUT),
    "a hold": ((HELD, DRAINED), (), HOLD),
    "a hold, asked the other way round": ((DRAINED, HELD), (), HOLD),
    "a hold and an ended drain": ((HELD, DRAINED), ("K3",), CUT),
    "a drain": ((DRAINED,), ("K9",), DRAIN),
    "a mode that we do not know": ((DRAINED, replace(ALL, mode="of-next-year")), (), CUT),
}


@pytest.mark.parametrize(("orders", "drained", "mode"), LIVE.values(), ids=LIVE)
def test_what_becomes_of_a_live_connection(orders, drained, mode):
    assert live_mode(orders, drained) == mode


MATCHING = st.lists(
    st.tuples(st.sampled_from((*MODES, "of-next-year")), st.integers(1, 3), st.booleans()),
    max_size=5,
)


@given(MATCHING)
def test_no_order_is_outvoted_by_a_weaker_one(given_orders):
    """Requests: refused by any but holds. Live connections: the strongest demand is met."""
    orders = [
        replace(ALL, kill_id=f"K{number}", mode=mode, revision=revision)
        for number, (mode, revision, _) in enumerate(given_orders)
    ]
    drained = {f"K{number}" for number, (_, _, over) in enumerate(given_orders) if over}
    decides = deciding_kill(orders, MAILER, "i-1")
    refusing = [order for order in orders if order.mode != HOLD]
    if refusing:
        assert decides in refusing
        assert decides.revision == min(order.revision for order in refusing)
    else:
        assert decides == min(orders, key=lambda o: (o.revision, o.kill_id), default=None)
    cutting = [o for o in refusing if o.mode != DRAIN or o.kill_id in drained]
    expected = None
    if cutting:
        expected = CUT
    elif any(order.mode == HOLD for order in orders):
        expected = HOLD
    elif refusing:
        expected = DRAIN
    assert live_mode(orders, drained) == live_mode(reversed(orders), drained) == expected


ORDERS = (OTHER, COPY, ONE, ORG, ALL)
LIFTS = {
    "the order itself": ("agent://acme/prod/mailer~i-1", (COPY,), (ALL, ORG, ONE)),
    "an agent, and its instances": ("agent://acme/prod/mailer", (ONE, COPY), (ALL, ORG)),
    "an organisation": ("agent://acme/**", (ORG, ONE, COPY), (ALL,)),
    "everything": ("agent://**", (ALL, ORG, ONE, COPY, OTHER), ()),
    "a glob that crosses": ("agent://acme/prod/*", (ONE, COPY), (ALL, ORG)),
    "somebody else": ("agent://else/x", (), (ALL,)),
}


@pytest.mark.parametrize("name", LIFTS)
def test_a_resume_lifts_what_is_inside_and_names_what_is_not(name):
    selector, lifted, still = LIFTS[name]
    result = lift(ORDERS, Selector.parse(selector))
    assert result.lifted == lifted
    assert result.still_killed_by == still


def test_a_resume_by_id_lifts_that_order_alone():
    result = lift(ORDERS, ORG.selector, kill_id="K2")
    assert result.lifted == (ORG,)
    assert result.still_killed_by == (ALL, ONE, COPY)


def test_an_order_that_excepts_all_of_it_is_not_named():
    result = lift((CARVED,), ONE.selector)
    assert result.lifted == ()
    assert result.still_killed_by == ()


@given(
    st.lists(selectors(), max_size=5), selectors(), st.sampled_from(AGENTS), st.sampled_from(WORDS)
)
def test_after_a_resume_whoever_is_still_stopped_has_been_named(named, resumed, agent, instance):
    orders = [
        replace(ALL, kill_id=f"K{n}", selector=selector, revision=n)
        for n, selector in enumerate(named)
    ]
    result = lift(orders, resumed)
    left = [order for order in orders if order not in result.lifted]
    decides = deciding_kill(left, agent, instance)
    if decides is not None and resumed.matches(agent, instance):
        assert decides in result.still_killed_by


def test_a_mode_that_we_do_not_know_stops_as_well():
    order = replace(ALL, mode="something-of-next-year")
    assert deciding_kill([order], MAILER, "i") == order
    assert order.selector == EVERYTHING
