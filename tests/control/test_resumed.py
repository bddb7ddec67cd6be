"""After a resume: running is only who has been seen since."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone

import pytest
from haltwire.wire.messages import CutInstance, Report
from haltwire.wire.names import AgentRef
from haltwire.wire.orders import Kill
from haltwire.wire.receipts import APPLIED, GONE, PENDING, ProxyState
from haltwire.wire.selectors import Selector
from haltwire_control.health import Signs
from haltwire_control.ledger import Instance
from haltwire_control.receipts import RESUME, Evidence, Release, Request
from haltwire_control.resumed import (
    Freed,
    let_go,
    released_state,
    resume_receipt_of,
    state_after,
    was_stopped,
)

NOW = datetime(2026, 11, 22, 9, 30, tzinfo=timezone.utc)
SINCE = NOW - timedelta(seconds=60)
MAILER = AgentRef.parse("agent://acme/prod/mailer")
KILL = Kill(
    "K1", Selector.of(MAILER), "cut", None, "key:ada", NOW - timedelta(hours=2), 1, excepted=()
)


def ago(seconds: float) -> datetime:
    return NOW - timedelta(seconds=seconds)


STATES = {
    "a heartbeat since": (Signs(ago(5)), {}, "running"),
    "a heartbeat of the second before": (Signs(ago(61)), {}, "waiting"),
    "traffic since": (Signs(traffic_at=ago(5)), {}, "running"),
    "traffic of the second before": (Signs(traffic_at=ago(61)), {}, "waiting"),
    "bytes since, of a stream that was held": (
        Signs(traffic_at=ago(999), connections=1),
        {"moved": True},
        "running",
    ),
    "a stream that was let go on and is silent": (
        Signs(traffic_at=ago(999), connections=1),
        {},
        "waiting",
    ),
    "three intervals missed": (Signs(ago(91)), {}, "gone"),
    "a heartbeat since, and three intervals missed": (Signs(ago(50), 10.0), {}, "gone"),
    "no heartbeats any more, but traffic": (Signs(ago(91), traffic_at=ago(5)), {}, "running"),
    "no sign for an hour": (Signs(traffic_at=ago(3601)), {}, "gone"),
    "said goodbye": (Signs(ago(5), finished_at=ago(5)), {}, "gone"),
    "a heartbeat, but another order stops it": (Signs(ago(5)), {"stopped": True}, "waiting"),
    "refused traffic": (Signs(traffic_at=ago(5)), {"stopped": True}, "waiting"),
    "never a sign": (Signs(), {}, "gone"),
}


@pytest.mark.parametrize(("signs", "more", "state"), STATES.values(), ids=STATES)
def test_how_an_instance_is_after_a_resume(signs, more, state):
    given = {"moved": False, "stopped": False} | more
    assert state_after(signs, SINCE, NOW, **given) == state


def instance(name: str = "i-1", **more) -> Instance:
    return Instance(MAILER, name, NOW - timedelta(hours=3), **more)


STOPPED = {
    "alive all the time": (instance(heartbeat_at=ago(5)), True),
    "alive when it was killed, silent since": (instance(heartbeat_at=ago(7300)), True),
    "gone long before the kill": (instance(heartbeat_at=ago(99_999)), False),
    "finished before the kill": (
        instance(heartbeat_at=ago(7300), finished_at=ago(7300)),
        False,
    ),
    "finished after it": (instance(heartbeat_at=ago(9), finished_at=ago(9)), True),
    "new since the resume": (Instance(MAILER, "i-9", ago(5), heartbeat_at=ago(5)), False),
}


@pytest.mark.parametrize(("one", "stopped"), STOPPED.values(), ids=STOPPED)
def test_whom_the_lifted_orders_had_stopped(one, stopped):
    assert was_stopped(Release(SINCE, (KILL,)), one, [KILL]) is stopped


def test_an_order_that_excepted_it_had_not_stopped_it():
    carved = Kill(
        "K1",
        Selector.parse("agent://**"),
        "cut",
        None,
        "key:ada",
        ago(100),
        1,
        excepted=(KILL.selector,),
    )
    assert not was_stopped(Release(SINCE, (carved,)), instance(heartbeat_at=ago(5)), [carved])


def request(**more) -> Request:
    return Request(None, KILL.selector, RESUME, "fixed", "key:ada", NOW, 7, True, **more)


def released(name: str, live: int, lost: int, kill_id: str = "K1") -> Report:
    one = CutInstance(MAILER, name, NOW, 0, NOW, connections_live=live, lost_while_held=lost)
    return Report(kill_id, NOW, (one,))


def test_a_receipt_says_who_lets_pass_and_how_the_agents_are():
    evidence = [
        Evidence(ProxyState("w-1", APPLIED, 5.0), NOW, released=(released("i-1", 2, 1),)),
        Evidence(ProxyState("w-2", APPLIED, 6.0), NOW, released=(released("i-1", 1, 0),)),
    ]
    freed = [
        Freed(instance(metadata={"sent": 5}, metadata_at=ago(99)), "running"),
        Freed(instance("i-2"), "gone"),
    ]
    receipt = resume_receipt_of(request(lifted=("K1",)), evidence, freed, frozenset())
    assert (receipt.ok, receipt.confirmed, receipt.lifted) == (True, True, ("K1",))
    assert (receipt.halted_at, receipt.matched.instances, receipt.matched.agents) == (None, 2, 1)
    first, second = receipt.instances
    assert (first.state, first.connections_live, first.lost_while_held) == ("running", 3, 1)
    assert (first.metadata, first.metadata_at) == ({"sent": 5}, ago(99))
    assert (second.state, second.connections_live, second.lost_while_held) == ("gone", None, None)
    assert receipt.totals.done == 5


UNCONFIRMED = {
    "no proxy": ([], "no_proxy"),
    "one has not applied it": (
        [Evidence(ProxyState("w-1", APPLIED, 5.0)), Evidence(ProxyState("w-2", PENDING))],
        "proxy_pending",
    ),
    "only ended ones": ([Evidence(ProxyState("w-1", GONE))], "no_proxy"),
    "all have": ([Evidence(ProxyState("w-1", APPLIED, 5.0))], None),
}


@pytest.mark.parametrize(("evidence", "because"), UNCONFIRMED.values(), ids=UNCONFIRMED)
def test_a_resume_needs_no_agent_to_be_confirmed(evidence, because):
    receipt = resume_receipt_of(request(), evidence, [], frozenset(), (str(MAILER),))
    assert (receipt.confirmed, receipt.unconfirmed_because) == (because is None, because)
    assert receipt.did_you_mean == (str(MAILER),)


def test_two_holds_on_one_instance_were_about_the_same_connections():
    reports = (released("i-1", 2, 1), released("i-1", 3, 0, "K2"))
    (one,) = let_go(reports).values()
    assert (one.connections_live, one.lost_while_held) == (3, 1)
    state = released_state("w-1", 5.0, reports)
    assert (state.connections_live, state.connections_held) == (3, 0)
    assert released_state("w-1", 5.0, ()).connections_live is None
