"""What is particular to the SQLite store: its settings, and rows changed by hand."""

from __future__ import annotations

import asyncio
import shutil
import sqlite3
import time
from contextlib import closing

import pytest
from haltwire_control.sqlite import SqliteStore
from support.stores import failing, issue_step, opened

PATHS = ("agent://acme/prod/a", "agent://acme/prod/b", "agent://acme/prod/c")


@pytest.fixture
async def filled(tmp_path):
    """A store with three events, and its path."""
    path = tmp_path / "haltwire.db"
    async with opened(path) as (store, _):
        for number, selector in enumerate(PATHS):
            await store.commit(issue_step(selector, f"K{number}", "why"))
        yield store, path


def by_hand(path, statement: str, *values: object) -> None:
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute(statement, values)


async def test_commits_reach_the_disk(filled):
    store, _ = filled
    assert store._connection.execute("PRAGMA journal_mode").fetchone()[0] == "wal"
    assert store._connection.execute("PRAGMA synchronous").fetchone()[0] == 2


COLUMNS = (
    "event_id",
    "event_type",
    "agent_uri",
    "address",
    "actor",
    "actor_id",
    "reason",
    "details",
    "created_at",
    "hash",
)


@pytest.mark.parametrize("column", COLUMNS)
async def test_a_column_changed_by_hand_is_found(filled, column):
    store, path = filled
    by_hand(path, f"UPDATE events SET {column} = 'other' WHERE seq = 2")
    found = await store.verify()
    assert (found.ok, found.first_bad_seq) == (False, 2)


DAMAGE = {
    "a deleted row": ("DELETE FROM events WHERE seq = 2", 2),
    "the last row cut off": ("DELETE FROM events WHERE seq = 3", 3),
    "all rows gone": ("DELETE FROM events", 1),
    "a row moved": ("UPDATE events SET seq = 7 WHERE seq = 2", 2),
    "the head changed": ("UPDATE meta SET value = 'x' WHERE name = 'head_hash'", 3),
    "the count changed": ("UPDATE meta SET value = '2' WHERE name = 'events'", 3),
}


@pytest.mark.parametrize(("statement", "seq"), DAMAGE.values(), ids=DAMAGE)
async def test_damage_is_named(filled, statement, seq):
    store, path = filled
    by_hand(path, statement)
    assert (await store.verify()).first_bad_seq == seq


async def test_an_event_written_by_hand_in_our_place_does_not_hinder_a_kill(filled):
    """A kill that the chain cannot take is volatile and pushed; it never fails for that."""
    store, path = filled
    by_hand(path, "INSERT INTO events (seq, event_id, hash) VALUES (4, 'forged', 'x')")
    step = issue_step("agent://acme/**", "K9")
    committed = await store.commit(step, fallback=step, urgent=True)
    assert not committed.durable
    by_hand(path, "DELETE FROM events WHERE seq = 4")
    await store.probe()
    assert (await store.verify()).ok


async def test_a_file_that_another_program_holds_makes_a_kill_volatile(filled):
    store, path = filled
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        step = issue_step("agent://acme/**", "K9")
        assert not (await store.commit(step, fallback=step, urgent=True)).durable
        began = time.monotonic()
        for number in range(5):
            step = issue_step(f"agent://acme/dev/m{number}", f"L{number}")
            assert not (await store.commit(step, fallback=step, urgent=True)).durable
        assert time.monotonic() - began < 0.4, "every kill waits for the same lock again"
        other.execute("ROLLBACK")


def test_a_file_that_is_no_database_is_refused(tmp_path):
    path = tmp_path / "haltwire.db"
    path.write_text("no database at all, but long enough to look like one" * 20)
    with pytest.raises(OSError, match=r"cannot be used \(file is not a database\): restore it"):
        SqliteStore(path)


async def left_in_use(path) -> None:
    """A store whose process has died: with its log, and nothing of it in the file."""
    live = path.with_name("live.db")
    live.unlink(missing_ok=True)
    async with opened(live) as (store, _):
        await store.commit(issue_step("agent://acme/prod/mailer", "K1"))
        for end in ("", "-wal"):
            shutil.copy(f"{live}{end}", f"{path}{end}")


async def test_a_file_without_its_log_says_so(tmp_path):
    """Its last orders were in the log: SQLite opens the rest, and all looks well.

    With `_opened` never saying so, this failed: the store was taken for a whole one.
    """
    path = tmp_path / "haltwire.db"
    await left_in_use(path)
    async with opened(path) as (store, heard):
        assert not store.was_cut_short
        assert [kill.kill_id for kill in heard.state.kills] == ["K1"]
    async with opened(path) as (store, heard):
        assert not store.was_cut_short, "a clean end has put the log into the file"
        assert len(heard.state.kills) == 1
    await left_in_use(path)
    path.with_name("haltwire.db-wal").unlink()
    async with opened(path) as (store, heard):
        assert store.was_cut_short
        assert heard.state.kills == ()


async def test_a_start_after_a_death_writes_nothing(tmp_path):
    """The disk may be full."""
    path = tmp_path / "haltwire.db"
    await left_in_use(path)
    before = path.read_bytes(), path.with_name("haltwire.db-wal").read_bytes()
    store = SqliteStore(path)
    assert (path.read_bytes(), path.with_name("haltwire.db-wal").read_bytes()) == before
    await store.close()


async def test_a_damaged_page_is_found_at_the_start(tmp_path):
    """Each page in turn, overwritten: refused with a sentence, or every order is there."""
    path = tmp_path / "haltwire.db"
    async with opened(path) as (store, _):
        for number in range(40):
            await store.commit(issue_step(f"agent://acme/prod/m{number}", f"K{number}", "x" * 400))
    whole = path.read_bytes()
    refused = 0
    for page in range(len(whole) // 4096):
        damaged = bytearray(whole)
        damaged[page * 4096 : page * 4096 + 4096] = bytes([0x5A]) * 4096
        path.write_bytes(damaged)
        for other in ("-wal", "-shm"):
            path.with_name(f"{path.name}{other}").unlink(missing_ok=True)
        try:
            store = SqliteStore(path)
        except OSError:
            refused += 1
            continue
        assert len(store._writing.state.orders) == 40, page
        await store.close()
    assert refused > 5


CUT_OFF = {"half of it": 0.5, "all but the last page": -4096, "the first page alone": 4096}


@pytest.mark.parametrize("left", CUT_OFF.values(), ids=CUT_OFF)
async def test_a_file_that_was_cut_off_is_refused(tmp_path, left):
    path = tmp_path / "haltwire.db"
    async with opened(path) as (store, _):
        for number in range(40):
            await store.commit(issue_step(f"agent://acme/prod/m{number}", f"K{number}", "x" * 400))
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * left) if isinstance(left, float) else left])
    with pytest.raises(OSError, match="cannot be used"):
        SqliteStore(path)


UNREADABLE = {
    "an order's selector": "UPDATE orders SET selector = 'nobody'",
    "an order's exceptions": "UPDATE orders SET excepted = '{'",
    "the revision": "UPDATE meta SET value = 'x' WHERE name = 'revision'",
    "no revision": "DELETE FROM meta WHERE name = 'revision'",
    "the epoch gone, and orders there": "DELETE FROM meta",
}


@pytest.mark.parametrize("statement", UNREADABLE.values(), ids=UNREADABLE)
async def test_rows_that_cannot_be_read_are_no_empty_store(filled, tmp_path, statement):
    store, path = filled
    await store.close()
    by_hand(path, statement)
    with pytest.raises(OSError, match=r"cannot be used .*restore it from a backup"):
        SqliteStore(path)


async def test_a_revision_has_the_hash_of_what_made_it(tmp_path):
    path = tmp_path / "haltwire.db"
    async with opened(path) as (store, heard):
        first = await store.commit(issue_step("agent://acme/prod/a", "K1"))
        # The same order again is an event and no revision.
        again = await store.commit(issue_step("agent://acme/prod/a", "K2"))
        together = await asyncio.gather(
            *(store.commit(issue_step(f"agent://acme/prod/{n}", f"L{n}")) for n in range(5))
        )
        rows = {row.seq: row.hash for row in await store.events_after(0, 100)}
        assert first.change.state.head_hash == first.change.delta.head_hash == rows[1]
        assert again.change.state.head_hash == rows[1]
        by_revision = {1: rows[1]}
        for committed in together:
            delta = committed.change.delta
            by_revision[delta.revision] = delta.head_hash
            assert committed.change.state.head_hash == delta.head_hash
        assert by_revision == {1: rows[1]} | {n: rows[n + 1] for n in range(2, 7)}
        found = await store.lineage(3, ("K1", "K2", "L0"))
        assert (found.head_hash, found.known) == (rows[4], {"K1", "L0"})
        assert (await store.lineage(99, ())).head_hash is None
        step = issue_step("agent://acme/dev/x", "M1")
        with failing(store):
            volatile = await store.commit(step, fallback=step, urgent=True)
            assert (volatile.change.state.head_hash, volatile.change.delta.head_hash) == (
                None,
                None,
            )
        await store.probe()
        assert (await store.lineage(7, ("M1",))).known == {"M1"}
        stored = await store.commit(issue_step("agent://acme/dev/y", "M2"))
        assert stored.change.delta.head_hash == (await store.lineage(8, ())).head_hash
    async with opened(path) as (_, heard):
        assert heard.state.head_hash == stored.change.delta.head_hash
