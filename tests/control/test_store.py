"""The contract of every store: one order of changes, all or nothing, volatile rather than lost."""

from __future__ import annotations

import asyncio
from functools import partial

import pytest
from haltwire.wire.selectors import Selector
from haltwire_control import access, kills
from haltwire_control.audit import Verification
from haltwire_control.state import SYSTEM, Change, NewEvent, StoredReceipt, Token
from haltwire_control.store import StoreError, StoreLockedError
from support.stores import NOW, a_receipt, failing, issue_step, opened, resume_step


@pytest.fixture
async def fresh(tmp_path):
    async with opened(tmp_path / "haltwire.db") as both:
        yield both


async def kill(store, selector, kill_id, **more):
    step = issue_step(selector, kill_id)
    return await store.commit(step, fallback=step, urgent=True, **more)


def test_a_locked_store_is_an_os_error_so_that_it_is_told_in_one_sentence():
    assert issubclass(StoreLockedError, OSError)


async def test_what_was_committed_is_there_after_a_new_start(tmp_path):
    path = tmp_path / "haltwire.db"
    token = Token("T1", "d1", Selector.parse("agent://acme/prod/mailer"), "tunnel", NOW, "key:ada")
    async with opened(path) as (store, _):
        await kill(store, "agent://acme/**", "K1")
        await kill(store, "agent://acme/prod/mailer", "K2")
        await store.commit(partial(access.create_token, token=token, actor=SYSTEM))
        done = await store.commit(resume_step("agent://acme/prod/*"))
    async with opened(path) as (store, heard):
        again = heard.state
        assert again == done.change.state
        assert again.revision == 4
        assert again.tokens == {"d1": token}
        assert [o.kill.kill_id for o in again.lifted] == ["K2"]
        assert heard.changes == []


async def test_the_listener_hears_every_revision_once_in_order(fresh):
    store, heard = fresh
    async with asyncio.TaskGroup() as tasks:
        for number in range(50):
            tasks.create_task(kill(store, f"agent://acme/prod/m{number}", f"K{number}"))
            step = issue_step(f"agent://acme/dev/m{number}", f"L{number}")
            tasks.create_task(store.commit(step))
    assert heard.revisions == [(n, n + 1) for n in range(100)]


async def test_the_listener_hears_before_the_caller(fresh):
    store, heard = fresh
    committed = await kill(store, "agent://acme/prod/mailer", "K1")
    assert [change for change, _ in heard.changes] == [committed.change]


async def test_a_refused_step_changes_nothing_and_is_raised(fresh):
    store, heard = fresh

    def refuse(_state):
        raise LookupError("no")

    async with asyncio.TaskGroup() as tasks:
        bad = tasks.create_task(_error_of(store.commit(refuse)))
        good = tasks.create_task(kill(store, "agent://acme/prod/mailer", "K1"))
    assert isinstance(bad.result(), LookupError)
    assert good.result().durable
    assert heard.revisions == [(0, 1)]


async def _error_of(awaitable):
    try:
        await awaitable
    except Exception as error:
        return error
    return None


async def test_without_a_fallback_a_failing_store_changes_nothing(fresh):
    store, heard = fresh
    with failing(store), pytest.raises(StoreError):
        await store.commit(issue_step("agent://acme/prod/mailer", "K1"))
    assert heard.changes == []
    assert (await kill(store, "agent://acme/prod/mailer", "K2")).change.state.revision == 1


async def test_a_kill_that_cannot_be_stored_holds_and_is_stored_later(fresh):
    store, heard = fresh
    with failing(store):
        volatile = await kill(store, "agent://acme/prod/mailer", "K1")
        assert not volatile.durable
        assert volatile.change.state.volatile == {"K1"}
        assert volatile.change.delta.revision == 1
    async with asyncio.timeout(5):
        while not heard.stored_ids:
            await asyncio.sleep(0.01)
    assert heard.stored_ids == [frozenset({"K1"})]
    stored = await store.kill("K1")
    assert stored.order.kill.revision == 1
    assert [row.event_type for row in await store.events_after(0, 10)] == ["kill.issued"]


async def test_later_commits_take_a_volatile_order_along(fresh):
    """Its revision is taken: the next change comes after it, on disk as on the wire."""
    store, heard = fresh
    with failing(store):
        await kill(store, "agent://acme/prod/mailer", "K1")
        await kill(store, "agent://acme/prod/other", "K2")
    third = await kill(store, "agent://acme/prod/third", "K3")
    assert third.durable
    assert third.change.state.volatile == frozenset()
    assert heard.revisions == [(0, 1), (1, 2), (2, 3)]
    assert [s.order.kill.kill_id for s in await store.kills(False, 10)] == ["K3", "K2", "K1"]
    assert (await store.verify()).ok


async def test_a_volatile_order_can_be_withdrawn_while_the_store_fails(fresh):
    store, _ = fresh
    with failing(store):
        await kill(store, "agent://acme/prod/mailer", "K1")
        committed = await store.commit(
            resume_step("agent://acme/**"), fallback=resume_step("agent://acme/**", kills.withdraw)
        )
        assert not committed.durable
        assert committed.change.state.orders == ()
    await store.probe()
    assert (await store.kill("K1")).order.lifted is not None
    types = [row.event_type for row in await store.events_after(0, 10)]
    assert types == ["kill.issued", "resume.issued"]


async def test_one_job_that_cannot_be_written_takes_no_other_with_it(fresh):
    store, _ = fresh

    def poison(state):
        return Change(
            state, None, events=(NewEvent("x", NOW, SYSTEM, details={"n": float("nan")}),)
        )

    def note(state):
        return Change(state, "noted", events=(NewEvent("x", NOW, SYSTEM),))

    async with asyncio.TaskGroup() as tasks:
        results = [tasks.create_task(_error_of(store.commit(s))) for s in (note, poison, note)]
    assert [type(r.result()) for r in results] == [type(None), ValueError, type(None)]
    assert len(await store.events_after(0, 10)) == 2


async def test_urgent_steps_go_before_all_that_waits(fresh):
    store, _ = fresh
    order = []

    def noting(name):
        def step(state):
            order.append(name)
            return Change(state, None)

        return step

    async with asyncio.TaskGroup() as tasks:
        for number in range(500):
            tasks.create_task(store.commit(noting(number)))
        tasks.create_task(store.commit(noting("kill"), urgent=True))
    assert order.index("kill") <= 200  # what was begun, and the group behind it at most


async def test_a_big_change_is_not_joined_by_more(fresh):
    """A kill waits for one transaction at most, so none may grow with what happens to be queued."""
    store, _ = fresh
    sizes = []
    whole = store._transaction

    def counting(changes):
        sizes.append(sum(len(change.events) for change in changes))
        return whole(changes)

    def noting(state):
        return Change(state, None, events=(NewEvent("x", NOW, SYSTEM),) * 40)

    store._transaction = counting
    async with asyncio.TaskGroup() as tasks:
        for _ in range(20):
            tasks.create_task(store.commit(noting))
    assert sum(sizes) == 800
    assert max(sizes) <= 120


async def test_what_is_volatile_at_the_end_gets_a_last_chance(tmp_path):
    async with opened(tmp_path / "haltwire.db") as (store, _):
        with failing(store):
            assert not (await kill(store, "agent://acme/prod/mailer", "K1")).durable
    async with opened(tmp_path / "haltwire.db") as (_, heard):
        assert [o.kill.kill_id for o in heard.state.orders] == ["K1"]


async def test_events_are_read_both_ways(fresh):
    store, _ = fresh
    for number in range(5):
        await kill(store, f"agent://acme/prod/m{number}", f"K{number}")
    assert [r.seq for r in await store.events_after(2, 2)] == [3, 4]
    assert [r.seq for r in await store.events_before(None, 2)] == [5, 4]
    assert [r.seq for r in await store.events_before(4, 2)] == [3, 2]


async def test_a_receipt_is_kept_with_its_kill(fresh):
    store, _ = fresh
    await kill(store, "agent://acme/prod/mailer", "K1")
    receipt = a_receipt("K1", "agent://acme/prod/mailer")
    await store.commit(lambda state: Change(state, None, put=(StoredReceipt(receipt),)))
    assert (await store.kill("K1")).receipt == receipt
    assert await store.kill("K9") is None


async def test_an_empty_store_is_whole(fresh):
    store, _ = fresh
    assert await store.verify() == Verification(True, 0, "0" * 64, None)


async def test_a_closed_store_takes_nothing(tmp_path):
    async with opened(tmp_path / "haltwire.db") as (store, _):
        pass
    with pytest.raises(StoreError):
        await store.probe()
    await store.close()


async def test_what_was_revoked_is_known_for_ever(tmp_path):
    path = tmp_path / "haltwire.db"
    tokens = [
        Token(f"T{n}", f"d{n}", Selector.parse("agent://acme/prod/mailer"), None, NOW, "key:ada")
        for n in (1, 2)
    ]
    async with opened(path) as (store, _):
        for token in tokens:
            await store.commit(partial(access.create_token, token=token, actor=SYSTEM))
        step = partial(access.revoke_token, token_id="T1", actor=SYSTEM, now=NOW)
        await store.commit(step)
    async with opened(path) as (store, _):
        assert await store.revoked(["d1", "d2", "d3"]) == {"d1"}
        assert await store.revoked([]) == frozenset()
