"""A store with a listener that remembers, and stores that fail on demand."""

from __future__ import annotations

import sqlite3
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from typing import Any

from haltwire.wire.receipts import Matched, Receipt, Totals
from haltwire.wire.selectors import Selector
from haltwire_control import kills
from haltwire_control.sqlite import SqliteStore
from haltwire_control.state import SYSTEM

NOW = datetime(2026, 11, 22, 9, 30, tzinfo=timezone.utc)


class Heard:
    """A listener that remembers what it heard, in order."""

    def __init__(self) -> None:
        self.state: Any = None
        self.changes: list[tuple[Any, bool]] = []
        self.stored_ids: list[frozenset[str]] = []

    @property
    def revisions(self) -> list[tuple[int, int]]:
        deltas = [change.delta for change, _ in self.changes if change.delta]
        return [(delta.previous, delta.revision) for delta in deltas]

    def committed(self, change: Any, durable: bool) -> None:
        self.changes.append((change, durable))

    def stored(self, kill_ids: frozenset[str]) -> None:
        self.stored_ids.append(kill_ids)


@asynccontextmanager
async def opened(path: Path) -> AsyncIterator[tuple[SqliteStore, Heard]]:
    """A started store."""
    store, heard = SqliteStore(path), Heard()
    heard.state = store.start(heard)
    try:
        yield store, heard
    finally:
        await store.close()


@contextmanager
def failing(store: SqliteStore) -> Iterator[None]:
    """A disk that takes nothing while this lasts."""

    def refuse(_changes: Any) -> Any:
        raise sqlite3.OperationalError("database or disk is full")

    store._transaction = refuse
    try:
        yield
    finally:
        del store._transaction


def issue_step(selector: str, kill_id: str, reason: str | None = None, **more: Any) -> Any:
    command = kills.Issue(Selector.parse(selector), SYSTEM, reason, **more)
    return partial(kills.issue, command=command, now=NOW, kill_id=kill_id)


def resume_step(selector: str, step: Any = kills.resume) -> Any:
    return partial(step, command=kills.Resume(SYSTEM, Selector.parse(selector)), now=NOW)


def a_receipt(kill_id: str, selector: str) -> Receipt:
    return Receipt(
        True,
        kill_id,
        Selector.parse(selector),
        "cut",
        None,
        "key:ada",
        NOW,
        1,
        True,
        Matched(0, 0, 0),
        False,
        "no_proxy",
        None,
        None,
        (),
        False,
        (),
        (),
        Totals(),
    )
