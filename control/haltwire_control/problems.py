"""What keeps a database from taking a write, in words that a caller may read: no path, no text of SQLite's."""

from __future__ import annotations

import sqlite3
from errno import EDQUOT, ENOSPC

from haltwire_control.store import StoreError

_KINDS = {
    sqlite3.SQLITE_FULL: "the disk is full",
    sqlite3.SQLITE_IOERR: "the disk gives an I/O error",
    sqlite3.SQLITE_BUSY: "another program holds the database",
    sqlite3.SQLITE_LOCKED: "another program holds the database",
    sqlite3.SQLITE_READONLY: "the database is read-only",
    sqlite3.SQLITE_CANTOPEN: "the database or its log cannot be opened",
    sqlite3.SQLITE_CORRUPT: "the database is damaged",
    sqlite3.SQLITE_NOTADB: "the database is damaged",
    sqlite3.SQLITE_CONSTRAINT: "the database holds rows that are not ours",
}


def problem_of(error: Exception) -> str:
    """The problem behind a failed write."""
    if isinstance(error, sqlite3.Error):
        return _KINDS.get(_code(error), "the database takes no write")
    if is_no_room(error):
        return "the disk is full"
    return str(error) if isinstance(error, StoreError) else "the database takes no write"


def is_no_room(error: BaseException) -> bool:
    """Whether a write failed as it does for want of room.

    SQLite says so for ENOSPC when it writes; a quota, and the index beside the log, are I/O errors to it.
    """
    if isinstance(error, sqlite3.Error):
        return _code(error) in (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR)
    return isinstance(error, OSError) and error.errno in (ENOSPC, EDQUOT)


def _code(error: sqlite3.Error) -> int:
    # The low byte; what is above it tells kinds of I/O errors apart.
    return getattr(error, "sqlite_errorcode", 0) & 0xFF
