"""Following a proxy: stored before its snapshot, believed in what it reports, told apart from its namesakes."""

from __future__ import annotations

import asyncio
import os

import aiohttp
import pytest
from haltwire.wire import messages
from haltwire.wire.messages import Delta, Mismatch, Snapshot
from support.control import Worker, running_control, usage
from support.stores import failing

MAILER = "agent://acme/prod/mailer"
ELSEWHERE = {"pid": 1, "pid_namespace": "pid:[elsewhere]"}


async def until(is_so) -> None:
    async with asyncio.timeout(5):
        while not await is_so():
            await asyncio.sleep(0.01)


async def test_a_proxy_is_stored_before_it_gets_a_snapshot(control):
    worker = Worker(control)
    with failing(control.service.store):
        try:
            async with asyncio.timeout(0.3):
                await worker.join()
        except TimeoutError:
            pass
        assert not any(isinstance(m, Snapshot) for m in worker.received)
    assert (await control.call("GET", "/v1/proxies")).body["proxies"] == []
    await worker.leave()


async def test_a_known_proxy_comes_back_although_the_store_fails(control, worker):
    """Its traffic must not suffer for our disk: it has been counted since it joined."""
    await worker.leave()
    with failing(control.service.store):
        again = await Worker(control).join()
        assert isinstance(again.received[0], Snapshot)
    assert len(control.service.hub.peers) == 1


async def test_connections_are_audited(control, worker):
    await worker.leave()

    async def is_lost():
        return "proxy.lost" in await control.event_types()

    await until(is_lost)
    events = [e for e in await control.events() if e["event_type"].startswith("proxy.")]
    assert [(e["event_type"], e["details"].get("how")) for e in events] == [
        ("proxy.connected", None),
        ("proxy.lost", "link lost"),
    ]
    assert events[0]["details"]["proxy_id"] == "w-1"


async def test_usage_is_seen_at_the_proxy(control, worker):
    await worker.use(usage(MAILER, "ip:192.0.2.7", requests=3))
    await worker.use(usage(MAILER, "ip:192.0.2.7", requests=4))
    (agent,) = (await control.call("GET", "/v1/mesh/agents")).body["agents"]
    assert (agent["agent_uri"], agent["requests"], agent["status"]) == (MAILER, 4, "active")
    await control.service.store.probe()
    (event,) = await control.events("event_type=instance.seen")
    assert event["details"] == {"by": "proxy", "instance": "ip:192.0.2.7"}


async def test_mismatches_are_audited(control, worker):
    wrong = Mismatch("192.0.2.7", "label", MAILER, 3)
    await worker.use(mismatches=(wrong,))
    await worker.use(mismatches=(wrong,))
    await control.service.store.probe()
    (event,) = await control.events("event_type=identity.mismatch")
    assert event["details"]["count"] == 3


async def test_connections_of_an_ended_proxy_are_no_more(control):
    worker = await Worker(control, pid=2**22 + 1).join()
    await worker.use(usage(MAILER, "i-1", requests=3, connections=2))
    await worker.leave()

    async def has_ended():
        shown = (await control.call("GET", "/v1/mesh/agents/acme.prod.mailer")).body["agent"]
        return shown["instances_detail"][0]["connections"] == 0 and shown["requests"] == 3

    await until(has_ended)


async def test_a_worker_misses_nothing_between_snapshot_and_deltas(control):
    """Kills go on while workers join: each worker has every order, and no gap (its own assertion)."""

    async def kill(number):
        await control.kill(f"agent://acme/prod/m{number}", wait_s=0)

    async with asyncio.TaskGroup() as tasks:
        kills = [tasks.create_task(kill(n)) for n in range(30)]
        workers = [
            tasks.create_task(Worker(control, f"w-{n}", pid=n, pid_namespace="pid:[e]").join())
            for n in range(5)
        ]
    assert all(task.done() for task in kills)
    for task in workers:
        worker = task.result()
        await worker.until(lambda w=worker: len(w.orders) == 30)
        assert any(isinstance(m, (Delta, Snapshot)) for m in worker.received)


async def test_a_worker_that_comes_back_hears_of_orders_that_came_and_went(control, worker):
    epoch, revision = worker.epoch, worker.revision
    await worker.leave()
    kill_id = (await control.kill(MAILER, wait_s=0)).body["kill_id"]
    await control.resume(MAILER, wait_s=0)
    back = await Worker(control, epoch=epoch, revision=revision).join()
    assert back.orders == {}
    assert [k.kill_id for k in back.received[0].lifted_since] == [kill_id]


async def test_what_the_store_has_lost_begins_a_new_epoch(control, worker, caplog):
    """A worker that applied what the store lacks must not take our next revisions for the lost ones."""
    epoch = worker.epoch
    ahead = Worker(control, "w-2", epoch=epoch, revision=99, kill_ids=("KLOST",), **ELSEWHERE)
    await ahead.join()
    assert ahead.epoch != epoch
    assert "KLOST" in caplog.text
    await worker.until(lambda: worker.socket.closed)
    receipt = (await control.kill(MAILER, wait_s=0.2)).body
    assert {p["proxy_id"]: p["state"] for p in receipt["proxies"]} == {
        "w-1": "pending",
        "w-2": "applied",
    }
    back = await Worker(control, epoch=epoch, revision=worker.revision).join()
    assert back.epoch == ahead.epoch
    assert (await control.kill(MAILER)).body["proxies"][0]["state"] == "applied"


async def test_an_epoch_outlives_a_start(tmp_path):
    async with running_control(tmp_path) as control:
        first = (await Worker(control).join()).epoch
    async with running_control(tmp_path) as control:
        assert (await Worker(control, pid=os.getpid()).join()).epoch == first


async def test_nobody_elses_key_speaks_for_a_proxy(control, worker):
    """Whoever has another proxy's key could acknowledge this one's kills, and close its link."""
    key = await control.key("liar", "proxy")
    socket = await control.session.ws_connect(
        control.url + "/v1/proxies/connect", headers={"Authorization": f"Bearer {key}"}
    )
    await socket.send_str(messages.dumps(worker.hello))
    async with asyncio.timeout(5):
        assert (await socket.receive()).type is aiohttp.WSMsgType.CLOSE
    await socket.close()
    assert (await worker.renew()).revision == worker.revision
    await worker.leave()
    assert isinstance((await Worker(control).join()).received[0], Snapshot), "with its own it may"


async def test_a_key_that_is_revoked_while_its_proxy_is_being_stored_gets_no_snapshot(control):
    """It was good at the door. Without the second look it was sent a snapshot."""
    secret = await control.key("edge", "proxy")
    service = control.service
    original = service.store.commit

    async def revoking(step, **options):
        if "note_proxy" in repr(step):
            service.store.commit = original
            await control.call("DELETE", "/v1/keys/edge")
        return await original(step, **options)

    service.store.commit = revoking
    worker = Worker(control, "w-2", key=secret, **ELSEWHERE)
    worker.socket = await control.session.ws_connect(
        control.url + "/v1/proxies/connect", headers={"Authorization": f"Bearer {secret}"}
    )
    await worker.say(worker.hello)
    async with asyncio.timeout(5):
        message = await worker.socket.receive()
    assert message.type is not aiohttp.WSMsgType.TEXT
    await worker.socket.close()


async def test_a_silent_proxy_on_another_machine_with_our_name_is_not_taken_for_ended(control):
    """It was, for another boot of ours: two machines made from one image, a cut cable, and the receipt named no proxy at all."""
    key = await control.key("edge", "proxy")
    there = await Worker(control, "debian-1", key=key, boot_id="another").join()
    await there.leave()
    receipt = (await control.kill(MAILER, wait_s=0.1)).body
    assert [(p["proxy_id"], p["state"]) for p in receipt["proxies"]] == [("debian-1", "pending")]
    assert receipt["confirmed"] is False


async def test_after_a_restart_nobody_elses_key_speaks_for_a_proxy(tmp_path):
    """Whose it was used to be forgotten: another proxy's key could acknowledge kills in its name."""
    async with running_control(tmp_path) as control:
        key, other = [await control.key(name, "proxy") for name in ("edge", "other")]
        await Worker(control, "w-2", key=key, **ELSEWHERE).join()
    async with running_control(tmp_path) as control:
        impostor = Worker(control, "w-2", key=other, **ELSEWHERE)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.5):
                await impostor.join()
        assert impostor.received == []
        await impostor.leave()
        owner = await Worker(control, "w-2", key=key, **ELSEWHERE).join()
        assert isinstance(owner.received[0], Snapshot)
