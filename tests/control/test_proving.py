"""From an order to its proof over real sockets: drains that end, holds that lose, resumes that are taken up."""

from __future__ import annotations

import asyncio
import os

import pytest
from haltwire_control import hub, proving
from haltwire_control.store import StoreError
from support.control import Worker, cut, running_control, usage
from support.stores import failing

MAILER, OTHER = "agent://acme/prod/mailer", "agent://acme/prod/other"
ELSEWHERE = {"pid": 1, "pid_namespace": "pid:[elsewhere]"}


@pytest.fixture
async def agent(control, worker) -> str:
    """An agent that has been seen at the proxy and has said how far it is."""
    secret = await control.token(MAILER)
    await control.beat(secret, instance="i-1", metadata={"sent": 5})
    await worker.use(usage(MAILER, "i-1", connections=2))
    return secret


async def until(is_so, timeout: float = 10) -> None:
    async with asyncio.timeout(timeout):
        while not await is_so():
            await asyncio.sleep(0.01)


async def shown(control, kill_id: str) -> dict:
    return (await control.call("GET", f"/v1/mesh/kills/{kill_id}")).body


def stored_as(control, kill_id: str, is_so, part: str = "receipt"):
    """Whether what is on disk, not what is in memory, is so."""

    async def is_stored():
        kept = getattr(await control.service.store.kill(kill_id), part)
        return kept is not None and is_so(kept)

    return is_stored


def live(number: int, **more):
    return cut(MAILER, "i-1", connections_cut=0, connections_live=number, **more)


async def test_a_drain_is_answered_when_its_last_connection_has_ended(control, worker, agent):
    worker.instances, worker.live = (live(2),), 2
    async with asyncio.TaskGroup() as tasks:
        draining = tasks.create_task(control.kill(MAILER, mode="drain", wait_s=10))
        await worker.until(lambda: worker.orders)
        (kill_id,) = worker.orders
        assert worker.orders[kill_id].grace_s == 30.0
        await worker.report(kill_id, live(1, in_flight=()), live=1)
        await worker.report(kill_id, live(0), live=0)
    receipt = draining.result().body
    assert (receipt["mode"], receipt["grace_s"], receipt["confirmed"]) == ("drain", 30.0, True)
    assert receipt["halted_in_ms"] > receipt["proxies"][0]["latency_ms"]
    proxy = receipt["proxies"][0]
    assert (proxy["connections_cut"], proxy["connections_live"], proxy["residual_bytes_max"]) == (
        0,
        0,
        0,
    )
    (instance,) = receipt["instances"]
    assert (instance["stopped_by"], instance["connections_live"]) == ("proxy", 0)
    assert (await shown(control, kill_id))["receipt"] == receipt


async def test_a_drain_is_answered_after_the_wait_and_completed_as_it_ends(control, worker, agent):
    worker.instances, worker.live = (live(2),), 2
    receipt = (await control.kill(MAILER, mode="drain", wait_s=0.1)).body
    assert (receipt["confirmed"], receipt["halted_at"]) == (True, None)
    assert receipt["proxies"][0]["connections_live"] == 2
    assert receipt["proxies"][0]["residual_bytes_max"] is None
    assert receipt["instances"][0]["stopped_by"] is None
    kill_id = receipt["kill_id"]
    await worker.report(kill_id, live(1), live=1)
    await until(stored_as(control, kill_id, lambda kept: kept.proxies[0].connections_live == 1))
    await worker.report(kill_id, cut(MAILER, "i-1"), live=0)
    await until(stored_as(control, kill_id, lambda kept: kept.halted_at is not None))
    receipt = (await shown(control, kill_id))["receipt"]
    assert (receipt["proxies"][0]["connections_cut"], receipt["confirmed"]) == (1, True)
    assert receipt["instances"][0]["stopped_by"] == "proxy"
    assert (await control.event_types()).count("kill.confirmed") == 1


async def test_a_drain_that_becomes_a_cut_has_the_receipt_of_a_cut(control, worker, agent):
    worker.instances, worker.live = (live(2),), 2
    first = (await control.kill(MAILER, mode="drain", wait_s=0)).body
    worker.instances, worker.live, worker.connections_cut = (cut(MAILER, "i-1"),), 0, 2
    second = (await control.kill(MAILER)).body
    assert (second["kill_id"], second["mode"]) == (first["kill_id"], "cut")
    assert (second["grace_s"], second["proxies"][0]["connections_cut"]) == (None, 2)
    assert second["halted_at"] is not None
    assert second["proxies"][0]["residual_bytes_max"] == 0
    stored = await control.service.store.kill(first["kill_id"])
    assert stored.receipt.mode == "cut"


async def test_a_drain_under_way_is_completed_after_a_new_start(tmp_path):
    async with running_control(tmp_path) as control:
        worker = await Worker(control, pid=os.getpid()).join()
        await control.token(MAILER)
        worker.instances, worker.live = (live(2),), 2
        kill_id = (await control.kill(MAILER, mode="drain", wait_s=0.2)).body["kill_id"]
        epoch, revision, orders = worker.epoch, worker.revision, worker.orders
    async with running_control(tmp_path) as control:
        # Before the worker is back, what an earlier process proved is not unlearned.
        receipt = (await shown(control, kill_id))["receipt"]
        assert (receipt["confirmed"], receipt["halted_at"]) == (True, None)
        back = Worker(
            control,
            pid=os.getpid(),
            epoch=epoch,
            revision=revision,
            orders=tuple(orders.values()),
        )
        back.orders = orders
        await back.join()
        await back.report(kill_id, live(0), live=0)
        await until(stored_as(control, kill_id, lambda kept: kept.halted_at is not None))
        receipt = (await shown(control, kill_id))["receipt"]
        # Its times are not on this process's clock.
        assert (receipt["proxies"][0]["latency_ms"], receipt["halted_in_ms"]) == (None, None)


async def test_what_an_ended_proxy_had_proven_is_not_lost_with_a_new_start(tmp_path, monkeypatch):
    monkeypatch.setattr(hub, "has_ended", lambda *_: False)  # it ends with the first server
    async with running_control(tmp_path) as control:
        worker = await Worker(control, pid=2**22 + 1).join()
        await control.token(MAILER)
        worker.instances, worker.live = (live(2),), 2
        kill_id = (await control.kill(MAILER, mode="drain", wait_s=0.2)).body["kill_id"]
        before = (await shown(control, kill_id))["receipt"]
    monkeypatch.undo()
    async with running_control(tmp_path) as control:

        async def is_gone():
            return not control.service.state.proxies

        await until(is_gone)
        assert (await shown(control, kill_id))["receipt"] == before


def held(number: int, lost: int = 0, **more):
    more = {"connections_cut": 0, "connections_held": number, "lost_while_held": lost} | more
    return cut(MAILER, "i-1", **more)


async def test_the_receipt_of_a_hold_follows_what_gives_up(control, worker, agent):
    worker.instances, worker.residual = (held(3),), 9
    receipt = (await control.kill(MAILER, mode="hold")).body
    kill_id = receipt["kill_id"]
    assert (receipt["confirmed"], receipt["halted_at"] is None) == (True, False)
    proxy = receipt["proxies"][0]
    assert (proxy["connections_held"], proxy["residual_bytes_max"]) == (3, 9)
    assert (proxy["connections_cut"], proxy["connections_live"]) == (0, None)
    for held_now in (2, 1):
        await worker.report(kill_id, held(held_now, 3 - held_now))
        await until(
            stored_as(
                control,
                kill_id,
                lambda kept, n=held_now: kept.instances[0].lost_while_held == 3 - n,
            )
        )
    assert (await shown(control, kill_id))["receipt"]["instances"][0]["connections_held"] == 1


async def test_a_resume_of_a_hold_says_what_goes_on_and_what_was_lost(control, worker, agent):
    worker.instances = (held(3),)
    kill_id = (await control.kill(MAILER, mode="hold")).body["kill_id"]
    worker.released = (held(0, 1, connections_live=2),)
    receipt = (await control.resume(MAILER)).body
    (instance,) = receipt["instances"]
    assert (instance["connections_live"], instance["connections_held"]) == (2, 0)
    assert (instance["lost_while_held"], instance["metadata"]) == (1, {"sent": 5})
    assert receipt["proxies"][0]["connections_live"] == 2
    story = await shown(control, kill_id)
    assert story["resume"] == receipt
    assert story["receipt"]["instances"][0]["lost_while_held"] == 0


async def test_an_instance_is_running_only_when_it_was_seen_since(control, worker, agent):
    await control.beat(agent, instance="i-2")
    kill_id = (await control.kill(MAILER)).body["kill_id"]
    await control.beat(agent, instance="i-3", status="finished")
    receipt = (await control.resume(MAILER)).body
    states = {i["instance"]: i["state"] for i in receipt["instances"]}
    assert states == {"i-1": "waiting", "i-2": "waiting", "i-3": "gone"}
    await control.beat(agent, instance="i-2")
    await until(
        stored_as(
            control,
            kill_id,
            lambda kept: [i.state for i in kept.instances] == ["waiting", "running", "gone"],
            "resume",
        )
    )
    await worker.use(usage(MAILER, "i-1"))
    shown_now = (await shown(control, kill_id))["resume"]["instances"]
    assert [i["state"] for i in shown_now] == ["running", "running", "gone"]


async def test_bytes_of_a_stream_that_was_held_are_a_sign_of_going_on(control, worker, agent):
    early = usage(MAILER, "i-1", bytes_down=20)
    await worker.use(early)
    await control.kill(MAILER, mode="hold")
    kill_id = (await control.resume(MAILER)).body["lifted"][0]

    async def has_baseline():
        return _resume_watch(control).baseline is not None

    assert (await shown(control, kill_id))["resume"]["instances"][0]["state"] == "waiting"
    await until(has_baseline)
    late = usage(MAILER, "i-1", bytes_down=21, last_seen_at=early.last_seen_at)
    await worker.use(late)
    assert (await shown(control, kill_id))["resume"]["instances"][0]["state"] == "running"


def _resume_watch(control):
    (watch,) = [
        watch
        for watch in control.killing.proving._watches.values()
        if watch.request.mode == "resume"
    ]
    return watch


async def test_whoever_another_order_stops_is_waiting(control, worker, agent):
    await control.kill(MAILER)
    await control.kill("agent://acme/**")
    await control.resume(MAILER, wait_s=0)
    receipt = (await control.resume(MAILER)).body
    assert receipt["instances"] == []
    kills = (await control.call("GET", "/v1/mesh/kills?all=1")).body["kills"]
    lifted = next(kill["kill_id"] for kill in kills if not kill["in_force"])
    await control.beat(agent, instance="i-1")
    resume = (await shown(control, lifted))["resume"]
    assert resume["still_killed_by"] == [kills[0]["kill_id"]]
    assert [i["state"] for i in resume["instances"]] == ["waiting"]


async def test_a_kill_after_the_resume_unsays_nothing(control, worker, agent):
    kill_id = (await control.kill(MAILER)).body["kill_id"]
    await control.resume(MAILER)
    await control.beat(agent, instance="i-1")
    assert (await shown(control, kill_id))["resume"]["instances"][0]["state"] == "running"
    await control.kill(MAILER)
    assert (await shown(control, kill_id))["resume"]["instances"][0]["state"] == "running"


async def test_a_carve_out_says_who_was_let_out(control, worker, agent):
    await control.beat(await control.token(OTHER), instance="o-1")
    await control.kill("agent://acme/**")
    receipt = (await control.resume(MAILER, carve_out=True)).body
    assert (receipt["lifted"], [i["instance"] for i in receipt["instances"]]) == ([], ["i-1"])


async def test_a_resume_of_much_tells_of_those_alone_that_were_stopped(control, worker, agent):
    await control.beat(await control.token(OTHER), instance="o-1")
    await control.kill(MAILER)
    receipt = (await control.resume("agent://**")).body
    assert [i["instance"] for i in receipt["instances"]] == ["i-1"]


async def test_a_resume_that_the_store_takes_late_keeps_its_receipt(control, worker, agent):
    with failing(control.service.store):
        kill_id = (await control.kill(MAILER)).body["kill_id"]
        receipt = (await control.resume(MAILER)).body
        assert receipt["durable"] is False

    async def is_stored():
        stored = await control.service.store.kill(kill_id)
        return stored is not None and stored.resume is not None and stored.resume.durable

    await until(is_stored)


async def test_a_receipt_is_not_written_for_every_report(control, worker, agent, monkeypatch):
    worker.instances, worker.live = (live(99),), 99
    kill_id = (await control.kill(MAILER, mode="drain", wait_s=0.2)).body["kill_id"]
    writes = []
    commit = control.service.store.commit

    def counting(*step, **more):
        writes.append(step)
        return commit(*step, **more)

    monkeypatch.setattr(control.service.store, "commit", counting)
    monkeypatch.setattr(proving, "COMPLETE_EVERY_S", 0.001)
    for number in range(60, 0, -1):
        await worker.report(kill_id, live(number), live=number)
        await worker.renew()
    await worker.report(kill_id, live(0), live=0)
    await until(stored_as(control, kill_id, lambda kept: kept.halted_at is not None))
    assert len(writes) < 10


async def test_a_receipt_that_cannot_be_stored_is_stored_later(control, worker, agent, caplog):
    worker.instances, worker.live = (live(1),), 1
    kill_id = (await control.kill(MAILER, mode="drain", wait_s=0.2)).body["kill_id"]
    with failing(control.service.store):
        await worker.report(kill_id, live(0), live=0)

        async def was_tried():
            return "a receipt is not stored" in caplog.text

        await until(was_tried)
        with pytest.raises(StoreError):
            await control.service.store.probe()
    await until(stored_as(control, kill_id, lambda kept: kept.halted_at is not None))


async def test_what_says_nothing_more_is_let_go_of(control, worker, agent):
    watches = control.killing.proving._watches
    await control.kill(MAILER)
    assert watches == {}
    held_id = (await control.kill(OTHER, mode="hold")).body["kill_id"]
    assert list(watches) == [held_id]  # its peers may give up for as long as it is in force
    await control.resume(OTHER)

    async def is_gone():
        return not watches

    await until(is_gone)


async def test_only_so_many_resumes_are_followed_at_once(control, worker, agent, monkeypatch):
    """Without `_let_go_of_the_oldest` all five were still followed."""
    monkeypatch.setattr(proving, "RESUMES_WATCHED", 2)
    revisions, kills = [], []
    for _ in range(5):
        kills.append((await control.kill(MAILER)).body["kill_id"])
        receipt = (await control.resume(MAILER)).body
        assert receipt["instances"][0]["state"] == "waiting"  # so it is followed
        revisions.append(receipt["revision"])
    latest = [control.killing.proving.latest_resume(revision) for revision in revisions]
    assert [one is not None for one in latest] == [False, False, False, True, True]
    for kill_id in kills:  # and none has lost its receipt
        assert (await shown(control, kill_id))["resume"]["lifted"] == [kill_id]
