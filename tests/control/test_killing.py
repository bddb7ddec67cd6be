"""Kill and resume over real sockets: who is waited for, what is said when it is not proven."""

from __future__ import annotations

import asyncio
import os
import time
from dataclasses import replace
from datetime import timedelta
from urllib.parse import quote

import pytest
from haltwire.wire.messages import Renewed
from support.control import Worker, cut, running_control, set_wall_clock, usage, utc_now
from support.stores import failing

MAILER = "agent://acme/prod/mailer"
EVERYBODY = "agent://acme/**"
NO_PROCESS = {"pid": 2**22 + 1}


async def seen(control, worker, instance: str = "i-1") -> str:
    """An agent that has beaten and has been seen at the proxy."""
    agent = await control.token(MAILER)
    await control.beat(agent, instance=instance, metadata={"sent": 5})
    await worker.use(usage(MAILER, instance))
    return agent


def proxies(receipt: dict) -> dict[str, str]:
    return {proxy["proxy_id"]: proxy["state"] for proxy in receipt["proxies"]}


async def told(control, prefix: str) -> list[str]:
    return [name for name in await control.event_types() if name.startswith(prefix)]


async def until(is_so, timeout: float = 5) -> None:
    async with asyncio.timeout(timeout):
        while not await is_so():
            await asyncio.sleep(0.01)


async def test_a_kill_is_confirmed_by_every_worker(control, worker):
    other = await Worker(control, "w-2", pid=1, pid_namespace="pid:[elsewhere]").join()
    await seen(control, worker)
    worker.instances = (cut(MAILER, "i-1"),)
    worker.connections_cut = 1
    reply = await control.kill("mailer", reason="broken link")
    receipt = reply.body
    assert reply.status == 200
    assert (receipt["ok"], receipt["confirmed"], receipt["durable"]) == (True, True, True)
    assert proxies(receipt) == {"w-1": "applied", "w-2": "applied"}
    assert receipt["matched"] == {"agents": 1, "instances": 1, "proxies": 2}
    assert 0 < receipt["halted_in_ms"] < 1000
    assert receipt["proxies"][0]["connections_cut"] == 1
    (instance,) = receipt["instances"]
    assert (instance["stopped_by"], instance["connections_cut"]) == ("proxy", 1)
    assert instance["metadata"] == {"sent": 5}
    assert receipt["totals"]["done"] == 5
    assert list(worker.orders) == list(other.orders) == [receipt["kill_id"]]
    assert await told(control, "kill.") == ["kill.issued", "kill.confirmed"]
    shown = (await control.call("GET", f"/v1/mesh/kills/{receipt['kill_id']}")).body
    assert shown["receipt"] == receipt
    assert shown["kill"]["confirmed"] is True


async def test_over_no_proxy_nothing_is_confirmed(control):
    await control.beat(await control.token(MAILER))
    receipt = (await control.kill(MAILER)).body
    assert (receipt["confirmed"], receipt["unconfirmed_because"]) == (False, "no_proxy")
    assert "kill.confirmed" not in await control.event_types()


async def test_a_slip_of_the_pen_stays_in_force_and_is_pointed_out(control, worker):
    await seen(control, worker)
    receipt = (await control.kill("agent://acme/prod/mialer")).body
    assert (receipt["confirmed"], receipt["unconfirmed_because"]) == (False, "no_agent")
    assert receipt["did_you_mean"] == [MAILER]
    assert list(worker.orders) == [receipt["kill_id"]]


async def test_an_agent_that_has_only_a_token_is_spelt_right(control, worker):
    await control.token(MAILER)
    receipt = (await control.kill(MAILER)).body
    assert (receipt["confirmed"], receipt["matched"]["agents"]) == (True, 1)


async def test_an_instance_beside_the_proxy_is_not_confirmed(control, worker):
    agent = await seen(control, worker, "i-1")
    await control.beat(agent, instance="i-2")
    receipt = (await control.kill(MAILER)).body
    assert (receipt["confirmed"], receipt["unconfirmed_because"]) == (False, "outside_proxy")
    by_name = {i["instance"]: i["stopped_by"] for i in receipt["instances"]}
    assert by_name == {"i-1": "proxy", "i-2": None}


async def test_a_silent_worker_is_pending_and_its_late_ack_completes_the_receipt(control, worker):
    await seen(control, worker)
    worker.acknowledges = False
    receipt = (await control.kill(MAILER, wait_s=0.05)).body
    assert (receipt["confirmed"], receipt["unconfirmed_because"]) == (False, "proxy_pending")
    assert proxies(receipt) == {"w-1": "pending"}
    assert receipt["halted_at"] is None
    kill_id = receipt["kill_id"]
    await worker.acknowledge(kill_id)
    await worker.report(kill_id)

    async def is_confirmed():
        shown = (await control.call("GET", f"/v1/mesh/kills/{kill_id}")).body
        return shown["kill"]["confirmed"]

    await until(is_confirmed)
    await until(lambda: _has(control, "kill.confirmed"))
    assert (await control.event_types()).count("kill.confirmed") == 1


async def test_an_order_that_stops_more_than_was_proven_is_not_confirmed(control, worker):
    """Before, what is shown of an agent said that it was, while a silent worker still let through what was new."""
    await seen(control, worker)

    async def confirmed() -> set[bool]:
        listed = (await control.call("GET", "/v1/mesh/kills")).body["kills"]
        shown = (await control.call("GET", f"/v1/mesh/agents/{quote(MAILER, safe='')}")).body
        return {kill["confirmed"] for kill in (*listed, *shown["agent"]["kills"])}

    async def is_confirmed() -> bool:
        return await confirmed() == {True}

    kill_id = (await control.kill("agent://acme/**")).body["kill_id"]
    await control.resume("agent://acme/prod/other", carve_out=True)
    assert await is_confirmed(), "what was carved out took nothing back of what is proven"
    worker.acknowledges = False
    again = (await control.kill("agent://acme/**", wait_s=0.05)).body
    assert (again["kill_id"], again["unconfirmed_because"]) == (kill_id, "proxy_pending")
    assert await confirmed() == {False}
    await worker.acknowledge(kill_id)
    await worker.report(kill_id)
    await until(is_confirmed)


async def _has(control, event_type: str) -> bool:
    return event_type in await control.event_types()


async def test_a_worker_out_of_reach_is_pending_and_listed(control):
    """It lost its link, but its process may live: nothing says that it stopped anything."""
    worker = await Worker(control, pid=os.getppid(), pid_namespace="pid:[elsewhere]").join()
    await seen(control, worker)
    await worker.leave()
    receipt = (await control.kill(MAILER, wait_s=0.1)).body
    assert (proxies(receipt), receipt["confirmed"]) == ({"w-1": "pending"}, False)
    listed = (await control.call("GET", "/v1/proxies")).body["proxies"]
    assert [(p["proxy_id"], p["state"]) for p in listed] == [("w-1", "out_of_reach")]


async def test_a_worker_whose_process_has_ended_is_gone(control, worker):
    await seen(control, worker)
    ghost = await Worker(control, "w-2", **NO_PROCESS).join()
    await ghost.leave()
    receipt = (await control.kill(MAILER)).body
    assert receipt["confirmed"]
    assert proxies(receipt) in ({"w-1": "applied", "w-2": "gone"}, {"w-1": "applied"})
    only_ghost = [p["proxy_id"] for p in (await control.call("GET", "/v1/proxies")).body["proxies"]]
    assert only_ghost == ["w-1"]


async def test_a_worker_that_ends_while_it_is_waited_for_is_gone(control, worker):
    await seen(control, worker)
    ghost = await Worker(control, "w-2", **NO_PROCESS).join()
    ghost.acknowledges = False
    async with asyncio.TaskGroup() as tasks:
        killing = tasks.create_task(control.kill(MAILER, wait_s=10))
        await ghost.until(lambda: ghost.orders)
        await ghost.leave()
    receipt = killing.result().body
    assert proxies(receipt) == {"w-1": "applied", "w-2": "gone"}
    assert receipt["confirmed"]


async def test_a_worker_that_said_goodbye_is_gone(control, worker):
    other = await Worker(control, "w-2", pid=1, pid_namespace="pid:[elsewhere]").join()
    await seen(control, worker)
    await other.bye()
    await until(lambda: _has(control, "proxy.lost"))
    receipt = (await control.kill(MAILER)).body
    assert receipt["confirmed"]
    assert proxies(receipt)["w-1"] == "applied"


async def test_a_second_kill_keeps_the_first_and_judges_the_proxies_of_now(control, worker):
    await seen(control, worker)
    bob = await control.key("bob", "operator")
    first = (await control.kill(MAILER, reason="one")).body
    body = {"selector": MAILER, "reason": "two"}
    again = (await control.call("POST", "/v1/mesh/kill", body, key=bob)).body
    assert [again[n] for n in ("kill_id", "actor", "reason", "revision")] == [
        first[n] for n in ("kill_id", "actor", "reason", "revision")
    ]
    assert again["confirmed"]
    assert again["proxies"][0]["latency_ms"] == 0.0
    issued = await control.events("event_type=kill.issued")
    assert [e["details"].get("repeated") for e in issued] == [None, True]
    assert issued[1]["actor"] == "key:bob"
    assert (await control.event_types()).count("kill.confirmed") == 1
    late = await Worker(control, "w-2", pid=1, pid_namespace="pid:[elsewhere]").join()
    third = (await control.kill(MAILER)).body
    assert proxies(third) == {"w-1": "applied", "w-2": "applied"}
    assert list(late.orders) == [first["kill_id"]]


async def test_a_second_kill_takes_back_a_carve_out_and_waits_for_it(control, worker):
    await seen(control, worker)
    wide = (await control.kill("agent://acme/**")).body
    await control.resume(MAILER, carve_out=True)
    assert [str(s) for s in worker.orders[wide["kill_id"]].excepted] == [MAILER]
    again = (await control.kill("agent://acme/**")).body
    assert (again["kill_id"], again["confirmed"]) == (wide["kill_id"], True)
    assert worker.orders[wide["kill_id"]].excepted == ()
    assert again["proxies"][0]["latency_ms"] > 0


async def test_a_resume_lifts_and_names_what_still_stops(control, worker):
    agent = await seen(control, worker)
    one = (await control.kill(MAILER)).body["kill_id"]
    wide = (await control.kill("agent://acme/**")).body["kill_id"]
    receipt = (await control.resume(MAILER)).body
    assert (receipt["ok"], receipt["lifted"], receipt["still_killed_by"]) == (True, [one], [wide])
    assert (receipt["mode"], receipt["confirmed"]) == ("resume", True)
    assert list(worker.orders) == [wide]
    assert (await control.beat(agent, instance="i-1")).body["killed"] is True
    receipt = (await control.resume(MAILER, carve_out=True)).body
    assert (receipt["lifted"], receipt["still_killed_by"]) == ([], [])
    assert (await control.beat(agent, instance="i-1")).body["killed"] is False
    assert await told(control, "resume.") == ["resume.issued", "resume.confirmed"] * 2


async def test_a_resume_by_id(control, worker):
    kill_id = (await control.kill(MAILER, wait_s=0)).body["kill_id"]
    path = "/v1/mesh/resume"
    assert (await control.call("POST", path, {"kill_id": kill_id})).body["lifted"] == [kill_id]
    assert (await control.call("POST", path, {"kill_id": kill_id})).body["lifted"] == []
    unknown = await control.call("POST", path, {"kill_id": "K0000000000000"})
    assert unknown.status == 404


async def test_a_resume_of_nothing_is_fine(control, worker):
    receipt = (await control.resume(MAILER)).body
    assert (receipt["ok"], receipt["lifted"], receipt["still_killed_by"]) == (True, [], [])


async def test_an_order_covers_agents_first_seen_later(control, worker):
    await control.kill("agent://acme/**", wait_s=0)
    agent = await control.token("agent://acme/new/one")
    assert (await control.beat(agent)).body["killed"] is True


ESCAPES = {
    "the whole agent": (MAILER, MAILER, False),
    "an instance, with the agent's token": (f"{MAILER}~i-1", MAILER, True),
    "an instance, with its own token": (f"{MAILER}~i-1", f"{MAILER}~i-1", False),
}


@pytest.mark.parametrize(("order", "token", "escapable"), ESCAPES.values(), ids=ESCAPES)
async def test_a_kill_that_can_be_escaped_says_so(control, order, token, escapable):
    await control.token(token)
    assert (await control.kill(order, wait_s=0)).body["escapable"] is escapable


async def test_a_receipt_counts_requests_since_the_last_word(control, worker):
    await seen(control, worker)
    soon = utc_now() + timedelta(seconds=1)
    worker.instances = (cut(MAILER, "i-1", completed_at=(soon, soon)),)
    (instance,) = (await control.kill(MAILER)).body["instances"]
    assert instance["since_metadata"] == {"completed": 2, "uncertain": 0}


async def test_kills_at_once_are_each_pushed_in_order(control, worker):
    await seen(control, worker)
    async with asyncio.TaskGroup() as tasks:
        kills = [
            tasks.create_task(control.kill(f"agent://acme/prod/m{n}", wait_s=5)) for n in range(20)
        ]
    revisions = sorted(kill.result().body["revision"] for kill in kills)
    assert revisions == list(range(revisions[0], revisions[0] + 20))
    assert len(worker.orders) == 20
    assert all(proxies(kill.result().body) == {"w-1": "applied"} for kill in kills)


async def test_two_kills_at_once_are_confirmed_once(control, worker):
    await seen(control, worker)
    async with asyncio.TaskGroup() as tasks:
        both = [tasks.create_task(control.kill(MAILER)) for _ in range(2)]
    assert len({task.result().body["kill_id"] for task in both}) == 1
    assert all(task.result().body["confirmed"] for task in both)
    assert (await control.event_types()).count("kill.confirmed") == 1


async def test_orders_are_in_force_after_a_new_start(tmp_path):
    async with running_control(tmp_path) as control:
        worker = await Worker(control, **NO_PROCESS).join()
        agent = await seen(control, worker)
        receipt = (await control.kill(MAILER)).body
        assert receipt["confirmed"]
    async with running_control(tmp_path) as control:
        assert (await control.beat(agent)).body["killed"] is True
        shown = (await control.call("GET", f"/v1/mesh/kills/{receipt['kill_id']}")).body
        assert shown["receipt"]["confirmed"] is True
        again = (await control.kill(MAILER, wait_s=0.1)).body
        assert again["kill_id"] == receipt["kill_id"]
        assert again["unconfirmed_because"] == "no_proxy"
        assert "pending" not in proxies(again).values()
        worker = await Worker(control, pid=os.getpid()).join()
        assert list(worker.orders) == [receipt["kill_id"]]
        again = (await control.kill(MAILER)).body
        assert proxies(again)["w-1"] == "applied"


async def test_a_frozen_worker_of_an_earlier_start_is_still_pending(tmp_path):
    async with running_control(tmp_path, lease_ms=60_000) as control:
        worker = await Worker(control, pid=os.getpid()).join()
        agent = await seen(control, worker)
    async with running_control(tmp_path) as control:  # the longest lease ever granted counts
        receipt = (await control.kill(MAILER, wait_s=0.1)).body
        assert (proxies(receipt), receipt["confirmed"]) == ({"w-1": "pending"}, False)
        # A successor of the same name cannot speak for it.
        other = await Worker(control, pid=1, pid_namespace="pid:[elsewhere]").join()
        assert list(other.orders) == [receipt["kill_id"]]
        again = (await control.kill(MAILER, wait_s=0.1)).body
        assert proxies(again) == {"w-1": "pending", "w-1.1": "applied"}
        assert (await control.beat(agent)).body["killed"] is True


async def test_a_worker_that_comes_back_proves_with_its_hello(tmp_path):
    async with running_control(tmp_path) as control:
        worker = await Worker(control, pid=os.getpid()).join()
        await seen(control, worker)
        await control.kill(MAILER)
    async with running_control(tmp_path) as control:
        back = Worker(
            control,
            pid=os.getpid(),
            epoch=worker.epoch,
            revision=worker.revision,
            orders=tuple(worker.orders.values()),
        )
        back.orders = worker.orders
        await back.join()
        receipt = (await control.kill(MAILER)).body
        assert receipt["confirmed"]
        assert receipt["proxies"][0]["connections_cut"] is None
        assert (await control.event_types()).count("kill.confirmed") == 1


async def left_by_an_earlier_process(tmp_path, **silent) -> tuple[dict, Worker]:
    """A stored receipt that one worker had confirmed and another not, and that other worker."""
    async with running_control(tmp_path, lease_ms=3000) as control:
        worker = await Worker(control, "w-1", pid=os.getpid()).join()
        await seen(control, worker)
        other = await Worker(control, "w-2", **silent).join()
        other.acknowledges = False
        worker.instances, worker.connections_cut = (cut(MAILER, "i-1"),), 1
        receipt = (await control.kill(MAILER, wait_s=0.1)).body
        assert proxies(receipt) == {"w-1": "applied", "w-2": "pending"}
    return receipt, other


def completed_at_last(control, kill_id: str, **states: str):
    """Whether the stored receipt says so of its proxies."""

    async def is_so():
        kept = (await control.service.store.kill(kill_id)).receipt
        return {p.proxy_id: p.state for p in kept.proxies} == states

    return is_so


ELSEWHERE = {"pid": 1, "pid_namespace": "pid:[elsewhere]"}


async def test_a_receipt_that_an_earlier_process_left_is_completed_by_the_late_ack(tmp_path):
    before, other = await left_by_an_earlier_process(tmp_path, **ELSEWHERE)
    kill_id = before["kill_id"]
    async with running_control(tmp_path, lease_ms=60_000) as control:
        shown = (await control.call("GET", f"/v1/mesh/kills/{kill_id}")).body["receipt"]
        assert shown == before
        back = Worker(control, "w-2", **ELSEWHERE, epoch=other.epoch, revision=1)
        back.connections_cut = 3
        await back.join()
        await until(completed_at_last(control, kill_id, **{"w-1": "applied", "w-2": "applied"}))
        after = (await control.call("GET", f"/v1/mesh/kills/{kill_id}")).body["receipt"]
        assert (after["confirmed"], after["halted_at"] is not None) == (True, True)
        assert [p["connections_cut"] for p in after["proxies"]] == [1, 3]
        assert after["proxies"][0] == before["proxies"][0]
        await until(lambda: _has(control, "kill.confirmed"))


async def test_a_receipt_that_an_earlier_process_left_is_completed_by_silence(tmp_path):
    before, _ = await left_by_an_earlier_process(tmp_path, **ELSEWHERE)
    began = time.monotonic()
    async with running_control(tmp_path, lease_ms=1000) as control:
        is_fenced = completed_at_last(
            control, before["kill_id"], **{"w-1": "applied", "w-2": "fenced"}
        )
        await until(is_fenced, timeout=15)
        assert time.monotonic() - began >= 3.0
        await until(lambda: _has(control, "kill.confirmed"))


async def test_a_receipt_that_an_earlier_process_left_is_completed_by_the_end(tmp_path):
    before, _ = await left_by_an_earlier_process(tmp_path, **NO_PROCESS)
    async with running_control(tmp_path, lease_ms=60_000) as control:
        await until(
            completed_at_last(control, before["kill_id"], **{"w-1": "applied", "w-2": "gone"})
        )


async def test_a_kill_that_cannot_be_stored_is_pushed_all_the_same(control, worker):
    await seen(control, worker)
    with failing(control.service.store):
        reply = await control.kill(MAILER, reason="disk full")
        receipt = reply.body
        assert (reply.status, receipt["error"]["code"]) == (503, "kill_not_durable")
        assert receipt["error"]["retryable"] is True
        assert (receipt["ok"], receipt["durable"]) == (False, False)
        assert proxies(receipt) == {"w-1": "applied"}
        assert list(worker.orders) == [receipt["kill_id"]]
        late = await Worker(control, "w-1", revision=worker.revision, epoch=worker.epoch).join()
        assert list(late.orders) == [receipt["kill_id"]]
        assert (await control.call("GET", "/readyz")).status == 503
        listed = (await control.call("GET", "/v1/mesh/kills")).body["kills"]
        assert [(k["kill_id"], k["durable"]) for k in listed] == [(receipt["kill_id"], False)]
        shown = (await control.call("GET", f"/v1/mesh/kills/{receipt['kill_id']}")).body
        assert shown["receipt"]["durable"] is False
        again = await control.kill(MAILER)
        assert (again.status, again.body["kill_id"]) == (503, receipt["kill_id"])

    async def is_stored():
        shown = (await control.call("GET", f"/v1/mesh/kills/{receipt['kill_id']}")).body
        return shown["receipt"] and shown["receipt"]["durable"] and shown["kill"]["durable"]

    await until(is_stored)
    # Its revision was taken: what comes after it fits without a gap.
    following = (await control.kill("agent://acme/prod/other")).body
    assert following["revision"] == receipt["revision"] + 1
    assert (await control.call("GET", "/v1/mesh/audit/verify")).body["ok"] is True


async def test_a_volatile_kill_can_be_withdrawn_and_a_stored_one_cannot(control, worker):
    await seen(control, worker)
    stored = (await control.kill("agent://acme/dev/x", wait_s=0)).body["kill_id"]
    with failing(control.service.store):
        await control.kill(MAILER)
        lifted = await control.resume(MAILER)
        assert lifted.status == 200
        assert (len(lifted.body["lifted"]), lifted.body["durable"]) == (1, False)
        assert list(worker.orders) == [stored]
        refused = await control.resume("agent://acme/**")
        assert (refused.status, refused.body["error"]["code"]) == (503, "store_unavailable")
        assert list(worker.orders) == [stored]
    assert (await control.resume("agent://acme/**")).body["lifted"] == [stored]


async def test_a_worker_without_the_head_gets_no_lease_for_it(control, worker):
    await control.token(MAILER)
    renewed = await worker.renew()
    assert isinstance(renewed, Renewed)
    assert (renewed.revision, renewed.lease_ms, renewed.view_age_ms) == (1, 60_000, 0)


async def test_an_order_lifted_while_it_is_waited_for_ends_the_wait(control, worker):
    worker.acknowledges = False
    async with asyncio.TaskGroup() as tasks:
        killing = tasks.create_task(control.kill(MAILER, wait_s=30))
        await worker.until(lambda: worker.orders)
        await control.resume(MAILER, wait_s=0)
    assert killing.result().body["confirmed"] is False


async def test_a_carve_out_and_a_second_kill_that_a_worker_missed_are_proven_when_it_is_back(
    control, worker
):
    """Nothing of the order has changed for that worker, so its ack of the snapshot does not name it."""
    await seen(control, worker)
    first = (await control.kill(EVERYBODY)).body
    await worker.leave()
    await control.resume(MAILER, carve_out=True, wait_s=0)
    again = (await control.kill(EVERYBODY, wait_s=0)).body
    assert (again["kill_id"], again["confirmed"]) == (first["kill_id"], False)
    worker.hello = replace(
        worker.hello,
        epoch=worker.epoch,
        revision=worker.revision,
        orders=tuple(worker.orders.values()),
    )
    await worker.join()
    receipt = (await control.kill(EVERYBODY)).body
    assert (receipt["confirmed"], proxies(receipt)) == (True, {"w-1": "applied"})


@pytest.mark.parametrize("by", [timedelta(days=-30), timedelta(days=30)])
async def test_a_wall_clock_that_is_set_breaks_and_reorders_nothing(tmp_path, monkeypatch, by):
    """While a kill waits to be proven, and while nobody runs: seq is the order, durations are steady."""
    async with running_control(tmp_path) as control:
        worker = await Worker(control).join()
        agent = await seen(control, worker)
        worker.acknowledges = False
        async with asyncio.TaskGroup() as tasks:
            asked = tasks.create_task(control.kill(MAILER, wait_s=30))
            await worker.until(lambda: worker.orders)
            set_wall_clock(monkeypatch, by)
            await worker.acknowledge(*worker.orders)
            await worker.report(*worker.orders)
        first = asked.result().body
        assert first["confirmed"] is True
        assert 0 <= first["halted_in_ms"] < 30_000
        assert (first["halted_at"] < first["requested_at"]) is (by < timedelta())
        assert (await control.resume(MAILER, wait_s=0)).status == 200
        assert (await control.beat(agent, instance="i-1")).status == 200
    monkeypatch.undo()
    async with running_control(tmp_path) as control:
        worker = await Worker(control).join()
        second = (await control.kill(MAILER, wait_s=30)).body
        assert second["confirmed"] is True
        assert 0 <= second["halted_in_ms"] < 30_000
        assert (await control.call("GET", "/v1/mesh/agents")).status == 200
        kills = (await control.call("GET", "/v1/mesh/kills?all=1")).body["kills"]
        assert second["kill_id"] in [kill["kill_id"] for kill in kills]
        events = await control.events()
        numbers = [event["seq"] for event in events]
        assert numbers == list(range(1, len(events) + 1))
        times = [event["created_at"] for event in events]
        assert times != sorted(times)
        assert (await control.call("GET", "/v1/mesh/audit/verify")).body["ok"] is True
