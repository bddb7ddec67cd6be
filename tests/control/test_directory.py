"""Agents as they are listed: pure, from instances and orders."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone

import pytest
from haltwire.wire.names import AgentRef
from haltwire.wire.orders import Kill
from haltwire.wire.selectors import Selector
from haltwire_control.directory import agent_document, instance_document, summary_of
from haltwire_control.ledger import Instance, Traffic

NOW = datetime(2026, 11, 22, 9, 30, tzinfo=timezone.utc)
MAILER = AgentRef.parse("agent://acme/prod/mailer")


def instance(name: str, beat_s: float | None = 1, **more) -> Instance:
    beat = None if beat_s is None else NOW - timedelta(seconds=beat_s)
    return Instance(MAILER, name, NOW - timedelta(hours=2), heartbeat_at=beat, **more)


def kill(selector: str, mode: str = "cut") -> Kill:
    return Kill("K1", Selector.parse(selector), mode, None, "key:ada", NOW, 1)


WHOLE, ONE = kill("agent://acme/prod/mailer"), kill("agent://acme/prod/mailer~i-1")
HOLD, HOLD_ONE = (
    kill("agent://acme/prod/mailer", "hold"),
    kill("agent://acme/prod/mailer~i-1", "hold"),
)
DRAIN_ONE = kill("agent://acme/prod/mailer~i-1", "drain")
CASES = {
    "both well": ([instance("i-1"), instance("i-2")], [], ("active", "healthy", 2, 0, 0)),
    "one stale": ([instance("i-1", 100), instance("i-2")], [], ("stale", "degraded", 2, 0, 0)),
    "one crashed": (
        [instance("i-1", 400), instance("i-2")],
        [],
        ("crashed", "unreachable", 2, 0, 0),
    ),
    "one crashed long ago": (
        [instance("i-1", 4000), instance("i-2")],
        [],
        ("active", "healthy", 1, 0, 0),
    ),
    "all crashed long ago": ([instance("i-1", 4000)], [], ("crashed", "unreachable", 0, 0, 0)),
    "all killed": ([instance("i-1"), instance("i-2")], [WHOLE], ("killed", "killed", 2, 2, 0)),
    "one killed": ([instance("i-1"), instance("i-2")], [ONE], ("active", "healthy", 2, 1, 0)),
    "all held": ([instance("i-1"), instance("i-2")], [HOLD], ("held", "held", 2, 0, 2)),
    "one held": ([instance("i-1"), instance("i-2")], [HOLD_ONE], ("active", "healthy", 2, 0, 1)),
    "one drained of those that are held": (
        [instance("i-1"), instance("i-2")],
        [HOLD, DRAIN_ONE],
        ("held", "held", 2, 1, 1),
    ),
    "killed and held is killed": (
        [instance("i-1"), instance("i-2")],
        [HOLD, WHOLE],
        ("killed", "killed", 2, 2, 0),
    ),
    "finished": ([instance("i-1", finished_at=NOW)], [], ("finished", "healthy", 0, 0, 0)),
    "traffic alone": (
        [instance("i-1", None, seen_at_proxy=NOW - timedelta(minutes=5))],
        [],
        ("idle", "healthy", 1, 0, 0),
    ),
}


@pytest.mark.parametrize(("instances", "kills", "expected"), CASES.values(), ids=CASES)
def test_an_agent_in_a_list(instances, kills, expected):
    document = agent_document(MAILER, instances, kills, NOW)
    assert expected == tuple(
        document[name]
        for name in ("status", "health_status", "instances", "instances_killed", "instances_held")
    )


def test_an_agent_shows_its_latest_word_and_all_its_requests():
    instances = [
        instance("i-1", metadata={"n": 1}, metadata_at=NOW, past=Traffic(2)),
        instance(
            "i-2", metadata={"n": 2}, metadata_at=NOW - timedelta(1), traffic={"w": Traffic(3)}
        ),
    ]
    document = agent_document(MAILER, instances, [], NOW)
    assert (document["metadata"], document["requests"]) == ({"n": 1}, 5)
    assert document["address_id"] == "acme.prod.mailer"
    assert document["last_seen_at"] == "2026-11-22T09:29:59.000000Z"


def test_an_instance_names_the_order_that_stops_it():
    shown = instance_document(instance("i-1"), [ONE], NOW)
    assert (shown["status"], shown["killed_by"], shown["held_by"]) == ("killed", "K1", None)
    assert instance_document(instance("i-2"), [ONE], NOW)["killed_by"] is None
    shown = instance_document(instance("i-1"), [HOLD], NOW)
    assert (shown["status"], shown["killed_by"], shown["held_by"]) == ("held", None, "K1")
    assert shown["health_status"] == "held"


def test_a_summary_counts_in_both_vocabularies():
    agents = [
        agent_document(MAILER, instances, kills, NOW) for instances, kills, _ in CASES.values()
    ]
    summary = summary_of(agents)
    assert summary == {
        "total": 13,
        "active": 4,
        "idle": 1,
        "finished": 1,
        "stale": 1,
        "crashed": 2,
        "killed": 2,
        "held": 2,
        "healthy": 6,
        "degraded": 1,
        "unreachable": 2,
    }
