"""Why a write failed, in words for callers: SQLite's codes told apart, its texts never shown."""

from __future__ import annotations

import sqlite3
from errno import EDQUOT, EIO, ENOSPC

import pytest
from haltwire_control.problems import is_no_room, problem_of
from haltwire_control.store import StoreError


def sqlite_error(code: int) -> sqlite3.OperationalError:
    error = sqlite3.OperationalError("/srv/secret.db says something")
    error.sqlite_errorcode = code
    return error


CASES = {
    "full": (sqlite_error(sqlite3.SQLITE_FULL), "the disk is full", True),
    "an I/O error": (
        sqlite_error(sqlite3.SQLITE_IOERR_WRITE),
        "the disk gives an I/O error",
        True,
    ),
    "no room for the index": (
        sqlite_error(sqlite3.SQLITE_IOERR_SHMSIZE),
        "the disk gives an I/O error",
        True,
    ),
    "locked": (sqlite_error(sqlite3.SQLITE_BUSY), "another program holds the database", False),
    "read-only": (
        sqlite_error(sqlite3.SQLITE_READONLY_DBMOVED),
        "the database is read-only",
        False,
    ),
    "damaged": (sqlite_error(sqlite3.SQLITE_CORRUPT), "the database is damaged", False),
    "unknown": (sqlite3.OperationalError("what"), "the database takes no write", False),
    "ENOSPC": (OSError(ENOSPC, "x"), "the disk is full", True),
    "a quota": (OSError(EDQUOT, "x"), "the disk is full", True),
    "EIO": (OSError(EIO, "/srv/x"), "the database takes no write", False),
    "our own": (StoreError("haltwire.db was deleted"), "haltwire.db was deleted", False),
}


@pytest.mark.parametrize(("error", "problem", "no_room"), CASES.values(), ids=CASES)
def test_problem(error, problem, no_room):
    assert (problem_of(error), is_no_room(error)) == (problem, no_room)
