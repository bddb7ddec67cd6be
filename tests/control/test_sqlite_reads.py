"""Readers see one state of the file and can write nothing."""

from __future__ import annotations

import sqlite3

import pytest
from haltwire_control.sqlite_reads import SqliteReader, connect
from haltwire_control.store import StoreError
from support.stores import issue_step, opened


async def test_questions_are_answered_while_changes_go_on(tmp_path):
    async with opened(tmp_path / "haltwire.db") as (store, _):
        for number in range(3):
            await store.commit(issue_step(f"agent://acme/prod/m{number}", f"K{number}"))
            assert (await store.verify()).events == number + 1
            assert len(await store.kills(lifted=True, limit=10)) == number + 1


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
    connection = connect(tmp_path / "x.db")
    connection.execute("CREATE TABLE t (a)")
    connection.execute("INSERT INTO t VALUES (1)")
    assert not connection.in_transaction
    assert isinstance(connection.execute("SELECT a FROM t").fetchone(), sqlite3.Row)
    connection.close()
