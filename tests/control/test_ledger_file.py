"""The ledger survives a new start, and a failing file loses nothing that is in memory."""

from __future__ import annotations

import sqlite3
from datetime import datetime, timedelta, timezone

import pytest
from haltwire.wire.names import AgentRef
from haltwire_control.ledger import KEPT_FOR, Beat
from haltwire_control.ledger_file import LedgerFile
from support.control import usage

NOW = datetime.now(timezone.utc)
MAILER = AgentRef.parse("agent://acme/prod/mailer")


async def test_what_was_seen_is_there_after_a_new_start(tmp_path):
    file = LedgerFile(tmp_path / "ledger.db")
    file.ledger.beat(MAILER, "i-1", Beat("active", {"sent": 1}, {"latency": 0.5}, 5.0), NOW)
    file.ledger.use(
        "w/1", [usage(str(MAILER), "i-1"), usage(str(MAILER), "ip:::1")], timedelta(), NOW
    )
    before = file.ledger.instances(MAILER)
    await file.close()
    again = LedgerFile(tmp_path / "ledger.db")
    assert again.ledger.instances(MAILER) == before
    assert again.ledger.take_changed() == []
    await again.close()


async def test_what_could_not_be_written_is_written_later(tmp_path, monkeypatch, caplog):
    file = LedgerFile(tmp_path / "ledger.db")
    file.ledger.beat(MAILER, "i-1", Beat(), NOW)

    def refuse(*_):
        raise sqlite3.OperationalError("disk full")

    with monkeypatch.context() as broken:
        broken.setattr(file, "_write", refuse)
        await file.flush()
    assert "disk full" in caplog.text
    await file.close()
    again = LedgerFile(tmp_path / "ledger.db")
    assert again.ledger.agents == (MAILER,)
    await again.close()


async def test_rows_without_a_sign_for_a_week_are_dropped(tmp_path):
    file = LedgerFile(tmp_path / "ledger.db")
    file.ledger.beat(MAILER, "i-1", Beat(), NOW)
    await file.flush()
    file._connection.execute("UPDATE instances SET written_at = '2020-01-01T00:00:00.000000Z'")
    await file.close()
    again = LedgerFile(tmp_path / "ledger.db")
    assert again.ledger.agents == ()
    await again.close()


def test_a_file_that_is_no_database_is_refused(tmp_path):
    (tmp_path / "ledger.db").write_text("no database at all, " * 50)
    with pytest.raises(sqlite3.DatabaseError):
        LedgerFile(tmp_path / "ledger.db")


async def test_what_the_ledger_has_dropped_is_dropped_from_the_file(tmp_path):
    file = LedgerFile(tmp_path / "ledger.db")
    for name in ("i-1", "i-2"):
        file.ledger.beat(MAILER, name, Beat(), NOW)
    await file.flush()
    file.ledger.forget(NOW + KEPT_FOR * 2)
    file.ledger.beat(MAILER, "i-2", Beat(), NOW)
    await file.close()
    again = LedgerFile(tmp_path / "ledger.db")
    assert [one.instance for one in again.ledger.instances(MAILER)] == ["i-2"]
    await again.close()
