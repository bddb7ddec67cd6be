"""The store in one SQLite file, written by one thread.

The guarantees, in this order: a step sees the latest state; its rows, its events and the revision are
one transaction (BEGIN IMMEDIATE, WAL, synchronous=FULL); the listener hears of it after the commit and
in commit order. Urgent steps have their own transaction and go first; others share one (group commit).
"""

from __future__ import annotations

import asyncio
import logging
import os
import sqlite3
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from sqlite_utils import Database

from haltwire_control import schema
from haltwire_control.audit import GENESIS, Head, row_of
from haltwire_control.auth import new_id
from haltwire_control.jobs import Job, Jobs
from haltwire_control.kills import LIFTED_REMEMBERED
from haltwire_control.place import Place
from haltwire_control.problems import problem_of
from haltwire_control.reserve import RESERVE, Reserve
from haltwire_control.sqlite_reads import SqliteReader, connect
from haltwire_control.state import Change, Order, State
from haltwire_control.store import Committed, Listener, Step, StoreError, StoreFullError

log = logging.getLogger(__name__)

GROUP = 100
"Rows in one transaction, about: it then stays below the 10 ms that a kill may have to wait for it."
RETRY_S = 0.25
"How often orders that could not be stored are tried again."
SLOW_FAILURE_S = 0.1
"A failure that took longer was a wait for a lock: until the next try, no kill waits for it again."
_UNREADABLE = (ValueError, KeyError, TypeError)
"What rows raise that are not as we wrote them."


@dataclass(slots=True)
class _Writing:
    """What only the writer thread touches."""

    state: State
    head: Head
    unwritten: list[Change[Any]] = field(default_factory=list)
    "Changes that hold in memory and that the file has not taken yet, oldest first."


class SqliteStore(SqliteReader):
    """Implements haltwire_control.store.Store."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.reserve = Reserve(path.with_name(RESERVE))
        try:
            opened = self.reserve.opened(partial(_opened, path))
            self._connection, self._writing, self.was_cut_short = opened
            self._place = Place(path)
        except BaseException as error:
            self.reserve.close()
            self.close_readers()
            if isinstance(error, (sqlite3.Error, *_UNREADABLE)):
                # An OSError ends the process with this sentence instead of a traceback.
                raise OSError(
                    f"{path} cannot be used ({error}): restore it from a backup, or choose another --data-dir"
                ) from error
            raise
        self.failures = 0
        self._heads: dict[int, str] = {}
        "The audit hashes of the revisions that the last transaction made."
        self._jobs = Jobs()
        self._thread = threading.Thread(target=self._run, name="store-writer", daemon=True)
        self._blocked_until = 0.0
        self._blocked_by = ""
        self.problem = ""
        self._loop: asyncio.AbstractEventLoop | None = None
        self._listener: Listener | None = None

    @property
    def is_full(self) -> bool:
        """Whether the disk has room for nothing but orders."""
        return self.reserve.is_full

    def start(self, listener: Listener) -> State:
        """Begin to take changes; the state as it was left."""
        self._loop = asyncio.get_running_loop()
        self._listener = listener
        self._thread.start()
        return self._writing.state

    async def commit[T](
        self, step: Step[T], *, fallback: Step[T] | None = None, urgent: bool = False
    ) -> Committed[T]:
        """Decide and store; see Store.commit."""
        future: asyncio.Future[Committed[T]] = asyncio.get_running_loop().create_future()
        self._jobs.put(Job(step, fallback, urgent, future))
        return await future

    async def probe(self) -> None:
        """Try a write that changes nothing."""
        await self.commit(lambda state: Change(state, None))

    async def close(self) -> None:
        """Finish what is queued and let go of the file."""
        self._jobs.close()
        if self._thread.ident is not None:
            await asyncio.to_thread(self._thread.join)
        self.close_readers()
        _mark(self._connection, "closed")
        self._connection.close()
        self.reserve.close()

    # What follows runs in the writer thread.

    def _run(self) -> None:
        while True:
            # Without a timeout while nothing waits to be written again.
            waits = self._writing.unwritten or self.reserve.is_full
            jobs = self._jobs.take(GROUP, RETRY_S if waits else None)
            if jobs is None:
                self._work([])  # what is unwritten gets its last chance
                return
            try:
                self._work(jobs)
            except Exception as error:
                # Without this thread nothing could ever be stored again.
                log.exception("the store's writer failed")
                for job in jobs:
                    job.committed, job.error = None, job.error or error
            self._deliver([job for job in jobs if job.is_done])
            self._jobs.put_back(job for job in jobs if not job.is_done)

    def _work(self, jobs: list[Job]) -> None:
        """Decide and write the jobs together, as many as fit; each alone when together fails."""
        self.reserve.look()
        state, rows = self._writing.state, 0
        for job in jobs:
            if rows >= GROUP:
                break
            if self.reserve.is_full and not job.urgent:
                job.error = StoreFullError()
                continue
            try:
                change = job.step(state)
            except Exception as error:
                # The step's own refusal, or its bug: it belongs to whoever asked.
                job.error = error
                continue
            state, job.committed = change.state, Committed(change, True)
            rows += len(change.events) + len(change.put)
        deciding = [job for job in jobs if job.committed]
        changes = [job.committed.change for job in deciding if job.committed]
        began = time.monotonic()
        try:
            if began < self._blocked_until:
                raise StoreError(self._blocked_by)
            head = self._stored(
                [*self._writing.unwritten, *changes], urgent=all(job.urgent for job in deciding)
            )
        except Exception as error:
            if time.monotonic() - began > SLOW_FAILURE_S:
                self._blocked_until = time.monotonic() + RETRY_S
                self._blocked_by = problem_of(error)
            for job in deciding:
                job.committed = None
            if len(deciding) > 1:
                for job in deciding:
                    self._work([job])
            elif deciding:
                self._fall_back(deciding[0], error)
            return
        self.problem = ""
        before = self._writing.state
        stored = before.volatile
        self._writing = _Writing(self._as_stored(state, before), head)
        for job in deciding:
            if job.committed:
                change = job.committed.change
                delta = change.delta
                if delta is not None:
                    delta = replace(delta, head_hash=self._heads.get(delta.revision))
                after = self._as_stored(change.state, before)
                job.committed = Committed(replace(change, state=after, delta=delta), True)
        if stored:
            log.warning("stored at last: %s", ", ".join(sorted(stored)))
            self._tell_loop(partial(self._hear_stored, stored))

    def _fall_back(self, job: Job, error: Exception) -> None:
        if not isinstance(error, (sqlite3.Error, OSError, StoreError)):
            job.error = error
            return
        if self.reserve.is_full and not job.urgent:
            job.error = StoreFullError()
            return
        self.failures += 1
        self.problem = problem_of(error)
        log.error("the store takes no change: %s (%s)", self.problem, error)
        if job.fallback is None:
            job.error = StoreError(f"{self.problem}: nothing was changed")
            return
        try:
            change = job.fallback(self._writing.state)
        except Exception as refused:
            job.error = refused
            return
        issued = {record.kill.kill_id for record in change.put if isinstance(record, Order)}
        in_force = {order.kill.kill_id for order in change.state.orders}
        before = self._writing.state
        state = replace(
            change.state,
            volatile=change.state.volatile | (issued & in_force),
            head_hash=before.head_hash if change.state.revision == before.revision else None,
        )
        change = replace(change, state=state)
        job.committed = Committed(change, False)
        self._writing.state = state
        self._writing.unwritten.append(change)

    def _stored(self, changes: list[Change[Any]], *, urgent: bool) -> Head:
        """Write the changes, with the reserve's room if they are urgent and need it."""
        try:
            return self._transaction(changes)
        except Exception as error:
            if not self.reserve.gave_way(error, urgent=urgent):
                raise
        return self._transaction(changes)

    def _transaction(self, changes: list[Change[Any]]) -> Head:
        """Write the changes; the new head of the audit chain."""
        self._place.check()
        connection = self._connection
        head, heads = self._writing.head, dict[int, str]()
        if connection.in_transaction:
            connection.execute("ROLLBACK")  # an earlier one that could not even be undone
        connection.execute("BEGIN IMMEDIATE")
        try:
            for change in changes:
                for record in change.put:
                    schema.write(connection, record)
                for event in change.events:
                    row = row_of(event, head.events + 1, new_id("E"), head.hash)
                    connection.execute(schema.INSERT_EVENT, schema.event_values(row))
                    connection.executemany(
                        schema.INSERT_KILL_EVENT, [(kill_id, row.seq) for kill_id in event.kills]
                    )
                    head = Head(row.seq, row.hash)
                # The first event of a revision is part of what made it; later ones come without another.
                revision = change.state.revision
                made = (revision, head.hash)
                if change.events and connection.execute(schema.INSERT_HEAD, made).rowcount == 1:
                    heads[revision] = head.hash
            if changes:
                state = changes[-1].state
                _write_meta(
                    connection,
                    epoch=state.epoch,
                    revision=state.revision,
                    events=head.events,
                    head_hash=head.hash,
                )
            connection.execute("COMMIT")
        except BaseException:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            raise
        self._heads = heads
        return head

    def _as_stored(self, state: State, before: State) -> State:
        """A state of which nothing is volatile any more, with the hash of what made its revision."""
        same = before.head_hash if state.revision == before.revision else None
        head_hash = self._heads.get(state.revision, same)
        if not state.volatile and head_hash == state.head_hash:
            return state
        return replace(state, volatile=frozenset(), head_hash=head_hash)

    def _deliver(self, jobs: list[Job]) -> None:
        def deliver() -> None:
            for job in jobs:
                if job.committed:
                    self._hear(job.committed)
                if job.future.done():
                    continue
                if job.committed:
                    job.future.set_result(job.committed)
                else:
                    job.future.set_exception(job.error or StoreError("the store is closed"))

        if jobs:
            self._tell_loop(deliver)

    def _hear(self, committed: Committed[Any]) -> None:
        try:
            if self._listener is not None:
                self._listener.committed(committed.change, committed.durable)
        except Exception:
            log.exception("a committed change could not be announced")

    def _hear_stored(self, kill_ids: frozenset[str]) -> None:
        if self._listener is not None:
            self._listener.stored(kill_ids)

    def _tell_loop(self, callback: Callable[[], object]) -> None:
        if self._loop is not None:
            with suppress(RuntimeError):  # the loop has ended, and with it whoever would hear
                self._loop.call_soon_threadsafe(callback)


def _opened(path: Path) -> tuple[sqlite3.Connection, _Writing, bool]:
    """The connection, what was left, and whether the log that must lie beside the file is gone."""
    log_is_there = path.with_name(f"{path.name}-wal").exists()
    connection = connect(path, create=True)
    try:
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=FULL")
        schema.migrations.apply(Database(connection, execute_plugins=False))
        _check(connection)
        writing = _load(connection)
        was_open = connection.execute("SELECT value FROM meta WHERE name = 'use'").fetchone()
        is_open = was_open is not None and was_open[0] == "open"
        if not is_open:
            _mark(connection, "open")
        return connection, writing, is_open and not log_is_there
    except BaseException:
        connection.close()
        raise


def _check(connection: sqlite3.Connection) -> None:
    """sqlite3.DatabaseError when a table of what must not be lost is damaged, which reading alone may not find."""
    for table in ("meta", "orders", "tokens", "keys", "proxies", "recoveries"):
        (found,) = connection.execute(f"PRAGMA integrity_check({table})").fetchone()
        if found != "ok":
            raise sqlite3.DatabaseError(f"{table} is damaged: {found}")


def _mark(connection: sqlite3.Connection, use: str) -> None:
    """Note in the file itself whether it is in use.

    While it is, its latest changes are in the log beside it, which only a clean end puts into the file: a
    file that says `open` and has no log is a copy without it, or has lost it.
    """
    with suppress(sqlite3.Error):  # a full disk must not keep us from orders
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        connection.execute("BEGIN IMMEDIATE")
        _write_meta(connection, use=use)
        connection.execute("COMMIT")
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")


def _load(connection: sqlite3.Connection) -> _Writing:
    meta = dict(connection.execute("SELECT name, value FROM meta").fetchall())
    if "epoch" not in meta:
        if connection.execute("SELECT count(*) FROM orders").fetchone()[0]:
            raise sqlite3.DatabaseError("it holds orders, and does not say of when")
        connection.execute("BEGIN IMMEDIATE")
        _write_meta(connection, epoch=os.urandom(8).hex(), revision=0, events=0, head_hash=GENESIS)
        connection.execute("COMMIT")
        return _load(connection)
    state = schema.load_state(connection, LIFTED_REMEMBERED)
    return _Writing(state, Head(int(meta["events"]), meta["head_hash"]))


def _write_meta(connection: sqlite3.Connection, **values: object) -> None:
    connection.executemany(
        "INSERT OR REPLACE INTO meta (name, value) VALUES (?, ?)",
        [(name, str(value)) for name, value in values.items()],
    )
