"""Readers see one state of the file and can write nothing."""

from __future__ import annotations

import sqlite3
from functools import partial

import pytest
from haltwire_control import sqlite_reads
from haltwire_control.notes import note
from haltwire_control.sqlite_reads import SqliteReader, connect
from haltwire_control.state import SYSTEM, Change, StoredResume
from haltwire_control.store import StoreError
from support.stores import NOW, a_receipt, issue_step, opened, resume_step


async def test_questions_are_answered_while_changes_go_on(tmp_path):
    async with opened(tmp_path / "haltwire.db") as (store, _):
        for number in range(3):
            await store.commit(issue_step(f"agent://acme/prod/m{number}", f"K{number}"))
            assert (await store.verify()).events == number + 1
            assert len(await store.kills(lifted=True, limit=10)) == number + 1


async def test_a_long_story_is_told_by_its_beginning_and_its_end(tmp_path, monkeypatch):
    monkeypatch.setattr(sqlite_reads, "_STORY_MOST", 3)
    async with opened(tmp_path / "haltwire.db") as (store, _):
        await store.commit(issue_step("agent://acme/prod/other", "K0"))
        await store.commit(issue_step("agent://acme/prod/m", "K1", "why"))
        for number in range(9):
            step = partial(note, kill_id="K1", text=str(number), actor=SYSTEM, now=NOW)
            await store.commit(step)
        story = await store.kill("K1")
        assert [n.text for n in story.notes] == ["0", "6", "7", "8"]
        assert [row.seq for row in story.events] == [2, 9, 10, 11]
        assert story.events[0].event_type == "kill.issued"
        assert await store.kill("K9") is None


async def test_an_order_comes_with_the_receipt_of_what_lifted_it(tmp_path):
    async with opened(tmp_path / "haltwire.db") as (store, _):
        for kill_id in ("K1", "K2"):
            await store.commit(issue_step(f"agent://acme/prod/{kill_id.lower()}", kill_id))
        receipt = a_receipt("K1", "agent://acme/**")
        await store.commit(lambda s: Change(s, None, put=(StoredResume(3, receipt),)))
        assert (await store.kill("K1")).resume is None
        await store.commit(resume_step("agent://acme/**"))
        for kill_id in ("K1", "K2"):
            assert (await store.kill(kill_id)).resume == receipt


async def test_a_reader_cannot_write(tmp_path):
    async with opened(tmp_path / "haltwire.db") as (store, _):
        with pytest.raises(StoreError):
            await store._read(lambda connection: connection.execute("DELETE FROM events"))


async def test_a_missing_table_is_a_store_error(tmp_path):
    reader = SqliteReader(tmp_path / "empty.db")
    with pytest.raises(StoreError, match="cannot be read"):
        await reader.events_after(0, 1)
    reader.close_readers()


def test_transactions_are_ours_to_begin(tmp_path):
    connection = connect(tmp_path / "x.db", create=True)
    connection.execute("CREATE TABLE t (a)")
    connection.execute("INSERT INTO t VALUES (1)")
    assert not connection.in_transaction
    assert isinstance(connection.execute("SELECT a FROM t").fetchone(), sqlite3.Row)
    connection.close()
