"""What is particular to the SQLite store: its settings, and rows changed by hand."""

from __future__ import annotations

import sqlite3
import time
from contextlib import closing

import pytest
from haltwire_control.sqlite import SqliteStore
from support.stores import issue_step, opened

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
