"""The ledger's file and its own writer thread, apart from the orders' file: volume never delays a kill.

A crash loses at most the last quarter second of heartbeats and counts, never an order.
"""

from __future__ import annotations

import asyncio
import json
import logging
import sqlite3
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from haltwire.wire.codec import encode, format_time, parse_time
from haltwire.wire.names import AgentRef
from sqlite_utils import Database, Migrations

from haltwire_control.ledger import KEPT_FOR, Instance, Ledger, Traffic
from haltwire_control.reserve import ROOM, has_room

log = logging.getLogger(__name__)
FLUSH_S = 0.25
FORGET_S = 3600.0
KEPT_FREE = 2 * ROOM
"What is left to orders, and what SQLite has in its log (1,000 pages) and will yet copy to its place."
_TIMES = ("first_seen_at", "heartbeat_at", "finished_at", "metadata_at", "seen_at_proxy")
_DOCUMENTS = ("metadata", "metrics", "past", "traffic")
_COLUMNS = (
    "agent_uri",
    "instance",
    *_TIMES,
    "interval_s",
    "declared_status",
    *_DOCUMENTS,
    "written_at",
)
_INSERT = f"INSERT OR REPLACE INTO instances ({', '.join(_COLUMNS)}) VALUES ({', '.join('?' for _ in _COLUMNS)})"  # noqa: S608 - our names

migrations = Migrations("haltwire-ledger")


@migrations()
def m001_first(db: Database) -> None:
    """One row per instance, with its latest facts."""
    columns: dict[str, Any] = dict.fromkeys(_COLUMNS, str) | {"interval_s": float}
    db.table("instances").create(columns, pk=("agent_uri", "instance"))
    db.table("instances").create_index(["written_at"])


class LedgerFile:
    """Loads a ledger, and writes behind it."""

    def __init__(self, path: Path) -> None:
        self._folder = path.parent
        self._waits = self._fails = False
        self._connection = sqlite3.connect(
            path, check_same_thread=False, isolation_level=None, timeout=5
        )
        try:
            self._connection.execute("PRAGMA journal_mode=WAL")
            self._connection.execute("PRAGMA synchronous=NORMAL")
            self._connection.execute(f"PRAGMA journal_size_limit={ROOM}")
            migrations.apply(Database(self._connection, execute_plugins=False))
            self.ledger = Ledger(self._load())
        except BaseException:
            self._connection.close()
            raise
        self._thread = ThreadPoolExecutor(1, "ledger-writer")

    async def follow(self) -> None:
        """Write what changes until cancelled."""
        written = asyncio.get_running_loop().time()
        while True:
            await asyncio.sleep(FLUSH_S)
            try:
                await self.flush()
            except Exception:
                log.exception("the ledger could not be written")
            if asyncio.get_running_loop().time() - written > FORGET_S:
                written = asyncio.get_running_loop().time()
                self.ledger.forget(datetime.now(timezone.utc))
                with suppress(sqlite3.Error):  # an hour later is soon enough
                    await asyncio.get_running_loop().run_in_executor(self._thread, self._forget_old)

    async def flush(self) -> None:
        """Write what has changed; keep it for the next time when the file does not take it."""
        if not self._may_write():
            return
        changed, dropped = self.ledger.take_changed(), self.ledger.take_dropped()
        if not changed and not dropped:
            return
        try:
            await asyncio.get_running_loop().run_in_executor(
                self._thread, self._write, changed, dropped
            )
        except sqlite3.Error as error:
            if not self._fails:
                log.error("the ledger takes no change: %s", error)
            self._fails = True
            self.ledger.put_back(changed, dropped)
        else:
            self._fails = False

    def _may_write(self) -> bool:
        """Whether the disk has more room than what is left to orders; what has changed waits until it has."""
        waits = not has_room(self._folder, KEPT_FREE)
        if waits != self._waits:
            self._waits = waits
            log.error(
                "the disk is nearly full: heartbeats and counts are kept in memory alone"
                if waits
                else "there is room on the disk again: heartbeats and counts are stored"
            )
        return not waits

    async def close(self) -> None:
        """Write the rest and let go of the file."""
        await self.flush()
        self._thread.shutdown()
        self._connection.close()

    def _load(self) -> list[Instance]:
        with suppress(sqlite3.OperationalError):  # a full disk; they are few, and go the next time
            self._forget_old()
        cursor = self._connection.execute(f"SELECT {', '.join(_COLUMNS)} FROM instances")  # noqa: S608 - our names
        return [_instance_of(dict(zip(_COLUMNS, row, strict=True))) for row in cursor]

    def _forget_old(self) -> None:
        before = format_time(datetime.now(timezone.utc) - KEPT_FOR)
        self._connection.execute("DELETE FROM instances WHERE written_at < ?", (before,))

    def _write(
        self, instances: Iterable[Instance], dropped: Iterable[tuple[AgentRef, str]]
    ) -> None:
        now = format_time(datetime.now(timezone.utc))
        rows = [_values_of(instance, now) for instance in instances]
        # In the log and in its place, in whole pages; a rollback would leave the log as long as it has become.
        size = 2 * sum(len(value) for row in rows for value in row if isinstance(value, str))
        if not has_room(self._folder, KEPT_FREE + size):
            raise sqlite3.OperationalError("what has changed is larger than the room on the disk")
        connection = self._connection
        connection.execute("BEGIN IMMEDIATE")
        try:
            connection.executemany(_INSERT, rows)
            connection.executemany(
                "DELETE FROM instances WHERE agent_uri = ? AND instance = ?",
                ((str(agent), instance) for agent, instance in dropped),
            )
            connection.execute("COMMIT")
        except BaseException:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            raise


def _values_of(instance: Instance, now: str) -> tuple[Any, ...]:
    return (
        str(instance.agent),
        instance.instance,
        *(encode(getattr(instance, name)) for name in _TIMES),
        instance.interval_s,
        instance.declared_status,
        *(_text_of(getattr(instance, name)) for name in _DOCUMENTS),
        now,
    )


def _text_of(value: object) -> str | None:
    return None if value is None else json.dumps(encode(value), separators=(",", ":"))


def _instance_of(row: dict[str, Any]) -> Instance:
    values: dict[str, Any] = dict(row)
    del values["agent_uri"], values["written_at"]
    values |= {name: parse_time(row[name]) if row[name] else None for name in _TIMES}
    values |= {name: json.loads(row[name]) if row[name] else None for name in _DOCUMENTS}
    values["past"] = Traffic(**values["past"])
    values["traffic"] = {name: Traffic(**totals) for name, totals in values["traffic"].items()}
    return Instance(agent=AgentRef.parse(row["agent_uri"]), **values)
