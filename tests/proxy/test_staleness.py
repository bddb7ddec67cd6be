"""Phases and what their changes ask for: a table, on a clock that is moved."""

import pytest
from haltwire_proxy.staleness import HOLD, KEEP, REFUSE, Deed, Phase, Rule, Staleness

END = 100.0
NAN = float("nan")

PHASES = {
    "well before the end": (99.0, Phase.FRESH),
    "a hair before the end": (99.999_999, Phase.FRESH),
    "at the end": (100.0, Phase.HOLDING),
    "a hair before the hold is over": (109.999_999, Phase.HOLDING),
    "when the hold is over": (110.0, Phase.REFUSING),
    "a day later, as after a suspend": (86_500.0, Phase.REFUSING),
    "when the clock cannot be read": (NAN, Phase.REFUSING),
}


@pytest.mark.parametrize("name", PHASES)
def test_phase(name):
    now, phase = PHASES[name]
    assert Rule().phase(END, now) is phase


def test_without_a_hold_time_the_end_refuses_at_once():
    assert Rule(hold_for_s=0.0).phase(END, END) is Phase.REFUSING


def test_a_lease_whose_end_is_no_number_is_none():
    assert Rule().phase(NAN, 1.0) is Phase.REFUSING


def test_time_alone_ends_the_lease_and_then_the_hold_and_brings_nothing_back():
    rule = Rule(hold_for_s=10.0)
    assert rule.until_change(END, 99.25) == pytest.approx(0.75)
    assert rule.until_change(END, 103.0) == pytest.approx(7.0)
    assert rule.until_change(END, 110.0) is None


STORIES = {
    "nothing happens": ([(END, 99.0)], [()]),
    "control is back in time": (
        [(END, 101.0), (END, 102.0), (110.0, 103.0)],
        [(Deed.FREEZE,), (), (Deed.THAW,)],
    ),
    "control comes back too late": (
        [(END, 101.0), (END, 111.0), (END, 200.0), (202.0, 201.0)],
        [(Deed.FREEZE,), (Deed.CUT,), (), (Deed.THAW,)],
    ),
    "the process slept through the hold": ([(END, 500.0)], [(Deed.FREEZE, Deed.CUT)]),
    "a lease that ended and came back between two looks": ([(103.0, 102.0)], [()]),
}


@pytest.mark.parametrize("name", STORIES)
def test_each_change_is_told_once(name):
    looks, deeds = STORIES[name]
    staleness = Staleness(Rule(), END, 98.0)
    assert [staleness.look(*look) for look in looks] == deeds


def test_who_starts_without_a_lease_is_stale_from_the_start():
    staleness = Staleness(Rule(), 50.0, 50.0)
    assert staleness.phase is Phase.HOLDING
    assert staleness.look(50.0, 51.0) == ()
    assert staleness.look(50.0, 60.0) == (Deed.CUT,)


@pytest.mark.parametrize(
    ("on_stale", "now", "waits"),
    [
        (HOLD, 99.0, False),
        (HOLD, 101.0, True),
        (HOLD, 111.0, False),
        (REFUSE, 101.0, False),
        (KEEP, 101.0, True),  # only asked while nobody is known at all
    ],
)
def test_who_waits(on_stale, now, waits):
    assert Staleness(Rule(on_stale), END, now).waits is waits


@pytest.mark.parametrize("wrong", [{"on_stale": "open"}, {"hold_for_s": -1.0}, {"hold_for_s": NAN}])
def test_a_rule_that_makes_no_sense_is_refused(wrong):
    with pytest.raises(ValueError, match=r"one of hold, refuse, keep|time in seconds"):
        Rule(**wrong)
