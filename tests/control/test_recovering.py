"""A store that lacks what a proxy has applied, found at its hello: with a whole control server and its store.

Protections removed, one at a time, and what was seen then:
- Recovering.look answers True at once: the restored backup is answered in the proxy's own epoch, and the
  order that was never stored is gone at the proxy that enforced it.
- is_ahead compares no hashes: another change under the same number is answered in the proxy's own epoch.
"""

from __future__ import annotations

import asyncio
import shutil
import sqlite3
from contextlib import closing

import pytest
from haltwire.wire.orders import Kill
from haltwire.wire.selectors import Selector
from haltwire_control import recovering, recovery
from support.control import Worker, running_control, utc_now
from support.stores import failing

MAILER, OTHER = "agent://acme/prod/mailer", "agent://acme/prod/other"
ELSEWHERE = {"pid": 1, "pid_namespace": "pid:[elsewhere]"}


def known_to(worker: Worker) -> dict:
    """What that worker's process would say in its next hello."""
    snapshots = [m for m in worker.received if hasattr(m, "head_hash")]
    return {
        "epoch": worker.epoch,
        "revision": worker.revision,
        "head_hash": snapshots[-1].head_hash,
        "orders": tuple(worker.orders.values()),
        "token_ids": tuple(worker.tokens),
    }


def backup(folder, *, clean: bool = False) -> None:
    """As an operator makes one, of a store in use; or one that was stopped first."""
    with (
        closing(sqlite3.connect(folder / "haltwire.db")) as source,
        closing(sqlite3.connect(folder / "backup.db")) as copy,
    ):
        source.backup(copy)
        if clean:
            copy.execute("UPDATE meta SET value = 'closed' WHERE name = 'use'")
            copy.commit()


def restore(folder) -> None:
    for path in folder.glob("haltwire.db*"):
        path.unlink()
    shutil.copy(folder / "backup.db", folder / "haltwire.db")


async def ready(control) -> tuple[int, str]:
    reply = await control.call("GET", "/readyz", key=None)
    return reply.status, reply.body.get("error", {}).get("message", "")


async def accept(control, **wrong):
    found = (await control.call("GET", "/v1/recovery")).body["recovery"]
    named = {"recovery_id": found["recovery_id"], "version": found["version"]} | wrong
    return await control.call("POST", "/v1/recovery/accept", named)


async def test_a_restored_backup_gets_back_what_its_proxies_enforce(tmp_path):
    async with running_control(tmp_path) as control:
        worker = await Worker(control, **ELSEWHERE).join()
        kept = (await control.kill(MAILER, wait_s=0)).body["kill_id"]
        revoked = (await control.call("POST", "/v1/tokens", {"selector": OTHER})).body["token_id"]
        backup(tmp_path)
        await control.call("DELETE", f"/v1/tokens/{revoked}")
        lost = (await control.kill(OTHER, reason="broken link", wait_s=0)).body["kill_id"]
        await worker.until(lambda: lost in worker.orders)
        said = known_to(worker)
    restore(tmp_path)
    async with running_control(tmp_path) as control:
        back = await Worker(control, **ELSEWHERE, **said).join()
        assert back.epoch != said["epoch"]
        assert set(back.orders) == {kept, lost}
        assert revoked not in back.tokens
        status, why = await ready(control)
        assert (status, "haltwire recover" in why) == (503, True)
        shown = (await control.call("GET", f"/v1/mesh/kills/{lost}")).body
        assert (shown["kill"]["actor"], shown["kill"]["reason"]) == ("key:admin", "broken link")
        assert shown["notes"][0]["actor"] == "system:recovery"
        assert [e["event_type"] for e in shown["events"]] == ["system.recovery"]
        found = (await control.call("GET", "/v1/recovery")).body
        assert found["needed"] is True
        assert [o["kill_id"] for o in found["recovery"]["orders_taken"]] == [lost]
        assert [t["token_id"] for t in found["recovery"]["tokens_withheld"]] == [revoked]

        # Kills go on, nothing else is let go on.
        receipt = (await control.kill("agent://acme/dev/x")).body
        assert receipt["durable"] is True
        assert [p["state"] for p in receipt["proxies"]] == ["applied"]
        for path, body in (
            ("/v1/mesh/resume", {"selector": OTHER}),
            ("/v1/mesh/resume", {"kill_id": kept}),
            ("/v1/tokens", {"selector": MAILER}),
        ):
            reply = await control.call("POST", path, body)
            assert (reply.status, reply.body["error"]["code"]) == (503, "recovery_needed")
        assert (await accept(control, version=99)).status == 409
        said = known_to(back)
        await back.leave()
    # It waits across a start, too.
    async with running_control(tmp_path) as control:
        back = await Worker(control, **ELSEWHERE, **said).join()
        assert back.epoch == said["epoch"]
        assert (await ready(control))[0] == 503
        accepted = (await accept(control)).body
        assert (accepted["needed"], accepted["recovery"]["accepted_by"]) == (False, "key:admin")
        assert (await ready(control))[0] == 200
        await back.until(lambda: revoked in back.tokens)
        assert (await control.resume(OTHER)).body["lifted"] == [lost]
        assert (await control.call("GET", "/v1/mesh/audit/verify")).body["ok"] is True
        assert (await control.call("GET", "/v1/recovery")).body["recovery"] is None


async def test_another_change_under_the_same_number_is_found_by_its_hash(tmp_path):
    async with running_control(tmp_path) as control:
        worker = await Worker(control, **ELSEWHERE).join()
        backup(tmp_path, clean=True)
        await control.resume(MAILER, wait_s=0)  # so that the number alone tells nothing
        made = (await control.call("POST", "/v1/tokens", {"selector": OTHER})).body["token_id"]
        await worker.until(lambda: made in worker.tokens)
        said = known_to(worker)
    restore(tmp_path)
    async with running_control(tmp_path) as control:
        await control.call("POST", "/v1/tokens", {"selector": MAILER})
        assert control.service.state.revision == said["revision"]
        back = await Worker(control, **ELSEWHERE, **said).join()
        assert back.epoch != said["epoch"]
        assert (await ready(control))[0] == 503
        assert made not in back.tokens


async def test_an_order_that_was_never_stored_outlives_its_control_server(tmp_path):
    """Volatile, and the process dies: whoever enforces it brings it back, also under a number taken since."""
    async with running_control(tmp_path) as control:
        worker = await Worker(control, **ELSEWHERE).join()
        backup(tmp_path, clean=True)  # what a process that dies now leaves
        with failing(control.service.store):
            reply = await control.kill(MAILER)
            assert reply.body["error"]["code"] == "kill_not_durable"
            said = known_to(worker)
            assert said["head_hash"] is None
    restore(tmp_path)
    async with running_control(tmp_path) as control:
        await control.kill(OTHER, wait_s=0)
        assert control.service.state.revision == said["revision"]
        back = await Worker(control, **ELSEWHERE, **said).join()
        assert {str(o.selector) for o in back.orders.values()} == {MAILER, OTHER}
        assert (await control.call("GET", "/v1/recovery")).body["needed"] is True


async def test_every_other_proxy_is_told_at_once_and_begins_anew(control, worker):
    epoch = worker.epoch
    lost = {"K0LOST": _order("K0LOST")}
    ahead = Worker(
        control,
        "w-2",
        pid=2,
        pid_namespace="pid:[e]",
        epoch=epoch,
        revision=99,
        orders=tuple(lost.values()),
    )
    await ahead.join()
    assert ahead.epoch != epoch
    await worker.until(lambda: worker.socket.closed)
    assert "K0LOST" in worker.orders, "told in the old epoch before its link was closed"
    back = await Worker(control, epoch=epoch, revision=worker.revision).join()
    assert (back.epoch, set(back.orders)) == (ahead.epoch, {"K0LOST"})


async def test_a_proxy_that_has_missed_something_is_no_recovery(control, worker):
    said = known_to(worker)
    await worker.leave()
    kill_id = (await control.kill(MAILER, wait_s=0)).body["kill_id"]
    back = await Worker(control, **said).join()
    assert (back.epoch, set(back.orders)) == (said["epoch"], {kill_id})
    said = known_to(back)
    await back.leave()
    await control.resume(MAILER, wait_s=0)
    again = await Worker(control, **said).join()
    assert (again.epoch, again.orders) == (said["epoch"], {})
    assert (await ready(control))[0] == 200


async def test_an_order_lifted_beyond_memory_is_known_to_the_file(control, worker, monkeypatch):
    monkeypatch.setattr("haltwire_control.kills.LIFTED_REMEMBERED", 1)
    await control.kill(MAILER, wait_s=0)
    said = known_to(worker)
    await worker.leave()
    await control.resume(MAILER, wait_s=0)
    await control.kill(OTHER, wait_s=0)
    await control.resume(OTHER, wait_s=0)
    assert len(control.service.state.lifted) == 1
    back = await Worker(control, **said).join()
    assert (back.epoch, back.orders) == (said["epoch"], {})


async def test_without_a_store_an_unknown_order_is_in_force_and_said_not_to_be_stored(
    control, worker
):
    await worker.leave()
    with failing(control.service.store):
        back = await Worker(
            control, epoch=worker.epoch, revision=9, orders=(_order("K0LOST"),)
        ).join()
        assert set(back.orders) == {"K0LOST"}
        assert control.service.state.volatile == {"K0LOST"}
        assert (await ready(control))[0] == 503
    async with asyncio.timeout(5):
        while control.service.state.volatile:
            await asyncio.sleep(0.01)


async def test_a_proxy_that_says_too_much_is_not_let_in(control, monkeypatch, caplog):
    monkeypatch.setattr(recovery, "TAKEN_MOST", 2)
    epoch = control.service.state.epoch
    many = tuple(_order(f"K{number}") for number in range(3))
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.5):
            await Worker(control, epoch=epoch, revision=9, orders=many).join()
    assert "is not let in" in caplog.text
    assert control.service.state.orders == ()


async def test_a_proxy_that_is_ahead_for_ever_does_not_sever_the_others_for_ever(
    control, monkeypatch, caplog
):
    monkeypatch.setattr(recovering, "WITHIN_S", 1000.0)
    for number in range(recovering.RENEWALS):
        before = control.service.state.epoch
        worker = await Worker(
            control, pid=number, pid_namespace="pid:[e]", epoch=before, revision=99
        ).join()
        assert worker.epoch != before
    last = control.service.state.epoch
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.5):
            await Worker(control, pid=77, pid_namespace="pid:[e]", epoch=last, revision=99).join()
    assert control.service.state.epoch == last
    assert "again and again" in caplog.text


def _order(kill_id: str) -> Kill:
    return Kill(kill_id, Selector.parse("agent://acme/**"), "cut", "why", "key:bob", utc_now(), 3)
