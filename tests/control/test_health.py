"""Statuses from signs of life, in both vocabularies."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta, timezone

import pytest
from haltwire.wire.names import AgentRef
from haltwire.wire.orders import Kill
from haltwire.wire.selectors import Selector
from haltwire_control.health import (
    HEALTH_OF,
    STATUSES,
    Signs,
    covers_agent,
    is_live,
    status_of,
    status_under,
    worst,
)

NOW = datetime(2026, 11, 22, 9, 30, tzinfo=timezone.utc)
MAILER = AgentRef.parse("agent://acme/prod/mailer")


def ago(seconds: float) -> datetime:
    return NOW - timedelta(seconds=seconds)


CASES = {
    "a fresh heartbeat": (Signs(ago(1)), "active", True),
    "three intervals are not missed yet": (Signs(ago(90)), "active", True),
    "more than three are": (Signs(ago(91)), "stale", True),
    "ten": (Signs(ago(300)), "stale", True),
    "more than ten": (Signs(ago(301)), "crashed", True),
    "its own interval counts": (Signs(ago(4), 1.0), "stale", True),
    "crashed long ago": (Signs(ago(3601)), "crashed", False),
    "a promise of one beat an hour": (Signs(ago(7200), 3600.0), "active", True),
    "said goodbye": (Signs(ago(1), finished_at=ago(1)), "finished", False),
    "traffic only, now": (Signs(traffic_at=ago(5)), "active", True),
    "traffic only, a while ago": (Signs(traffic_at=ago(31)), "idle", True),
    "an open connection is life": (Signs(traffic_at=ago(9999), connections=1), "active", True),
    "traffic only, long ago": (Signs(traffic_at=ago(3601)), "idle", False),
    "silent for long, with an open connection": (Signs(ago(9999), connections=1), "crashed", True),
    "never a sign": (Signs(), "idle", False),
}


@pytest.mark.parametrize(("signs", "status", "live"), CASES.values(), ids=CASES)
def test_status_of_an_instance(signs, status, live):
    assert (status_of(signs, NOW), is_live(signs, NOW)) == (status, live)


WORST = {
    "nobody": ((), "finished"),
    "one is stale": (("active", "stale", "idle"), "stale"),
    "one crashed": (("active", "stale", "crashed"), "crashed"),
    "one still works": (("idle", "active", "finished"), "active"),
}


@pytest.mark.parametrize(("statuses", "expected"), WORST.values(), ids=WORST)
def test_an_agent_is_as_its_worst_instance(statuses, expected):
    assert worst(statuses) == expected


def test_every_status_has_a_word_of_axme():
    assert set(HEALTH_OF) == set(STATUSES)


def kill(selector: str, *excepted: str) -> Kill:
    return Kill(
        "K1",
        Selector.parse(selector),
        "cut",
        None,
        "key:ada",
        NOW,
        1,
        excepted=tuple(map(Selector.parse, excepted)),
    )


COVERS = {
    "the agent": (kill("agent://acme/prod/mailer"), True),
    "a glob": (kill("agent://acme/**"), True),
    "one instance": (kill("agent://acme/prod/mailer~i-1"), False),
    "every instance, as a glob": (kill("agent://acme/prod/mailer~*"), True),
    "another agent": (kill("agent://acme/prod/other"), False),
    "with the agent carved out": (kill("agent://**", "agent://acme/prod/mailer"), False),
    "with one instance carved out": (kill("agent://**", "agent://acme/prod/mailer~i-1"), False),
    "with somebody else carved out": (kill("agent://**", "agent://acme/prod/other"), True),
}


STATUS_UNDER = {"nobody's": None, "cut": "killed", "drain": "killed", "hold": "held"}


@pytest.mark.parametrize("mode", STATUS_UNDER)
def test_who_is_drained_is_killed_and_who_is_held_is_not(mode):
    order = None if mode == "nobody's" else replace(kill("agent://acme/**"), mode=mode)
    assert status_under(order) == STATUS_UNDER[mode]


def test_a_hold_decides_only_where_nothing_else_does():
    held = replace(kill("agent://**"), mode="hold")
    later = replace(kill("agent://acme/**"), kill_id="K2", mode="drain", revision=2)
    assert covers_agent([held], MAILER) is held
    assert covers_agent([held, later], MAILER) is later


@pytest.mark.parametrize(("order", "whole"), COVERS.values(), ids=COVERS)
def test_killed_means_the_whole_agent(order, whole):
    assert (covers_agent([order], MAILER) is order) is whole
