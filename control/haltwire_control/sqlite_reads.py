"""Questions to the SQLite store, answered in threads of their own, so that no reader delays a write.

Each question has its own connection and sees one state of the file, however long it takes.
"""

from __future__ import annotations

import asyncio
import json
import sqlite3
from collections.abc import Callable, Collection, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

from haltwire.wire.receipts import Receipt

from haltwire_control import schema
from haltwire_control.audit import EventRow, Head, Verification, Verifier
from haltwire_control.store import KillStory, StoredKill, StoreError

_VERIFY_PAGE = 1000
_STORY_MOST = 1000
"Notes, and events, that are told of one order: anybody who may kill can add to both for ever."


class SqliteReader:
    """The reading half of haltwire_control.store.Store."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._threads = ThreadPoolExecutor(3, "store-reader")

    async def events_after(self, seq: int, limit: int) -> list[EventRow]:
        """Events with a higher seq, oldest first."""
        return await self._events("WHERE seq > ? ORDER BY seq LIMIT ?", (seq, limit))

    async def events_before(self, seq: int | None, limit: int) -> list[EventRow]:
        """The latest events, or those with a lower seq; newest first."""
        if seq is None:
            return await self._events("ORDER BY seq DESC LIMIT ?", (limit,))
        return await self._events("WHERE seq < ? ORDER BY seq DESC LIMIT ?", (seq, limit))

    async def verify(self) -> Verification:
        """Recompute the audit chain over the stored rows."""
        return await self._read(_verify)

    async def kill(self, kill_id: str) -> KillStory | None:
        """One order, in force or lifted; of very many notes or events the first and the latest."""
        return await self._read(lambda connection: _story(connection, kill_id))

    async def kills(self, lifted: bool, limit: int) -> list[StoredKill]:
        """Orders in force, or all of them, newest first."""
        where = "" if lifted else "WHERE lifted_at IS NULL"
        return await self._kills(f"{where} ORDER BY revision DESC LIMIT ?", (limit,))

    async def revoked(self, digests: Collection[str]) -> frozenset[str]:
        """Those of these digests whose token or key was revoked."""
        wanted = json.dumps(sorted(digests))
        return await self._read(
            lambda c: frozenset(row[0] for row in c.execute(_REVOKED, (wanted, wanted)))
        )

    def close_readers(self) -> None:
        """End the threads."""
        self._threads.shutdown()

    async def _read[T](self, query: Callable[[sqlite3.Connection], T]) -> T:
        def run() -> T:
            with closing(connect(self._path)) as connection:
                connection.execute("PRAGMA query_only=1")
                return query(connection)

        try:
            return await asyncio.get_running_loop().run_in_executor(self._threads, run)
        except sqlite3.Error as error:
            raise StoreError(f"the store cannot be read: {error}") from error

    async def _events(self, tail: str, values: tuple[Any, ...]) -> list[EventRow]:
        query = f"SELECT {schema.EVENT_COLUMNS} FROM events {tail}"  # noqa: S608 - our text
        return await self._read(lambda c: _event_rows(c.execute(query, values)))

    async def _kills(self, tail: str, values: tuple[Any, ...]) -> list[StoredKill]:
        query = f"SELECT orders.*, receipt FROM orders LEFT JOIN receipts USING (kill_id) {tail}"  # noqa: S608 - our text
        rows = await self._read(lambda c: c.execute(query, values).fetchall())
        return [StoredKill(schema.order_of(r), schema.receipt_of(r["receipt"])) for r in rows]


def connect(path: Path, *, create: bool = False) -> sqlite3.Connection:
    """A connection whose transactions are ours to begin and end.

    Only the first one may make the file: a reader must not put an empty one in the place of one that
    was deleted, which the next start would take for the store.
    """
    # Only a foreign program can hold the file's lock; a kill does not wait for one, it goes volatile.
    connection = sqlite3.connect(
        f"{path.absolute().as_uri()}?mode={'rwc' if create else 'rw'}",
        uri=True,
        check_same_thread=False,
        isolation_level=None,
        timeout=0.5,
    )
    connection.row_factory = sqlite3.Row
    return connection


def _event_rows(rows: Iterable[sqlite3.Row]) -> list[EventRow]:
    return [EventRow(*row) for row in rows]


def _story(connection: sqlite3.Connection, kill_id: str) -> KillStory | None:
    connection.execute("BEGIN")  # one view of all tables, whatever is written meanwhile
    order = connection.execute("SELECT * FROM orders WHERE kill_id = ?", (kill_id,)).fetchone()
    if order is None:
        return None
    lifted = order["lifted_revision"]
    events = f"SELECT {schema.EVENT_COLUMNS} FROM events WHERE seq IN ({_FIRST_AND_LATEST.format(number='seq', table='kill_events')}) ORDER BY seq"  # noqa: S608 - our text
    notes = f"SELECT kill_id, at, actor, text FROM notes WHERE rowid IN ({_FIRST_AND_LATEST.format(number='rowid', table='notes')}) ORDER BY rowid"  # noqa: S608 - our text
    values = {"kill_id": kill_id, "most": _STORY_MOST}
    return KillStory(
        schema.order_of(order),
        _receipt(connection, "receipts WHERE kill_id = ?", kill_id),
        None if lifted is None else _receipt(connection, "resumes WHERE revision = ?", lifted),
        tuple(map(schema.note_of, connection.execute(notes, values))),
        tuple(_event_rows(connection.execute(events, values))),
    )


_FIRST_AND_LATEST = (
    "SELECT min({number}) FROM {table} WHERE kill_id = :kill_id UNION SELECT * FROM "
    "(SELECT {number} FROM {table} WHERE kill_id = :kill_id ORDER BY {number} DESC LIMIT :most)"
)


_REVOKED = " UNION ".join(
    f"SELECT digest FROM {table} WHERE revoked_at IS NOT NULL AND digest IN (SELECT value FROM json_each(?))"  # noqa: S608 - our names
    for table in ("tokens", "keys")
)


def _receipt(connection: sqlite3.Connection, where: str, key: object) -> Receipt | None:
    row = connection.execute(f"SELECT receipt FROM {where}", (key,)).fetchone()  # noqa: S608 - our text
    return None if row is None else schema.receipt_of(row["receipt"])


def _verify(connection: sqlite3.Connection) -> Verification:
    connection.execute("BEGIN")  # one view of rows and head, whatever is written meanwhile
    verifier, last = Verifier(), -1
    query = f"SELECT {schema.EVENT_COLUMNS} FROM events WHERE seq > ? ORDER BY seq LIMIT ?"  # noqa: S608 - our text
    while rows := _event_rows(connection.execute(query, (last, _VERIFY_PAGE))):
        verifier.add(rows)
        last = rows[-1].seq
    meta = dict(connection.execute("SELECT name, value FROM meta").fetchall())
    return verifier.finish(Head(int(meta["events"]), meta["head_hash"]))
