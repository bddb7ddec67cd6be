"""The tables of haltwire.db, and state as rows of them and back.

A migration that has been released is never changed; a new one is added below it.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable
from dataclasses import fields
from typing import Any

from haltwire.wire.codec import decode, encode, format_time, parse_time
from haltwire.wire.orders import Kill
from haltwire.wire.receipts import Receipt
from sqlite_utils import Database, Migrations

from haltwire_control.audit import EventRow
from haltwire_control.ends import Ends
from haltwire_control.idempotency import KEPT_MOST
from haltwire_control.state import (
    Attempt,
    Key,
    Lifting,
    LongestLease,
    Note,
    Order,
    ProxyRecord,
    Record,
    Recovery,
    State,
    StoredReceipt,
    StoredResume,
    Token,
)

migrations = Migrations("haltwire")


@migrations()
def m001_first(db: Database) -> None:
    """Orders, credentials, proxies, receipts and the audit log."""
    db.table("meta").create({"name": str, "value": str}, pk="name")
    db.table("orders").create(
        {
            "kill_id": str,
            "selector": str,
            "mode": str,
            "reason": str,
            "actor": str,
            "actor_id": str,
            "created_at": str,
            "revision": int,
            "changed_revision": int,
            "expires_at": str,
            "excepted": str,
            "lifted_at": str,
            "lifted_by": str,
            "lifted_revision": int,
            "lifted_reason": str,
        },
        pk="kill_id",
    )
    db.table("orders").create_index(["revision"])
    db.table("receipts").create({"kill_id": str, "receipt": str}, pk="kill_id")
    credential = {
        "digest": str,
        "created_at": str,
        "created_by": str,
        "revoked_at": str,
        "revoked_by": str,
    }
    db.table("tokens").create(
        {"token_id": str, "selector": str, "tls": str, **credential}, pk="token_id"
    )
    db.table("keys").create({"key_id": str, "name": str, "role": str, **credential}, pk="key_id")
    for table in ("tokens", "keys"):
        db.table(table).create_index(["digest"], unique=True)
    db.table("proxies").create(
        {
            "proxy_id": str,
            "host": str,
            "boot_id": str,
            "pid": int,
            "pid_namespace": str,
            "started_ticks": int,
            "version": str,
            "first_seen_at": str,
            "gone_at": str,
        },
        pk="proxy_id",
    )
    db.table("events").create(
        {
            "seq": int,
            "event_id": str,
            "event_type": str,
            "agent_uri": str,
            "address": str,
            "actor": str,
            "actor_id": str,
            "reason": str,
            "details": str,
            "created_at": str,
            "hash": str,
        },
        pk="seq",
    )
    db.table("events").create_index(["event_id"], unique=True)


@migrations()
def m002_modes(db: Database) -> None:
    """Drain and hold, the receipts of resumes, notes, and which events are about which order."""
    orders = db.table("orders")
    orders.add_column("grace_s", float)
    orders.add_column("hold_until", str)
    db.table("resumes").create({"revision": int, "receipt": str}, pk="revision")
    db.table("notes").create({"kill_id": str, "at": str, "actor": str, "text": str})
    db.table("notes").create_index(["kill_id"])
    db.table("kill_events").create({"kill_id": str, "seq": int}, pk=("kill_id", "seq"))
    for name in ("kill_id", "lifted", "carved_out_of"):
        # Rows that were changed by hand are for `audit verify` to name, not for a start to fail on.
        db.execute(
            f"INSERT OR IGNORE INTO kill_events SELECT value, seq FROM events, json_each(details, '$.{name}') "  # noqa: S608 - our names
            "WHERE json_valid(details) AND (event_type LIKE 'kill.%' OR event_type LIKE 'resume.%')"
        )


@migrations()
def m003_leases(db: Database) -> None:
    """What a proxy does beyond its lease, and how much its kernel may still send then."""
    proxies = db.table("proxies")
    proxies.add_column("on_stale", str, not_null_default="hold")
    proxies.add_column("agent_residual_max", int)


@migrations()
def m004_attempts(db: Database) -> None:
    """Writes that came with an Idempotency-Key."""
    columns = {"digest": str, "request": str, "at": str, "reference": str}
    db.table("attempts").create(columns, pk="digest")


@migrations()
def m005_keys_of_proxies(db: Database) -> None:
    """Which proxies were started by themselves, so perhaps on another machine with this one's name."""
    db.table("proxies").add_column("key_id", str)


@migrations()
def m006_recovery(db: Database) -> None:
    """The audit hash of each revision, which proxies give back, and what a store was found to lack."""
    db.table("heads").create({"revision": int, "hash": str}, pk="revision")
    db.table("recoveries").create(
        {"recovery_id": str, "began_at": str, "accepted_at": str, "found": str}, pk="recovery_id"
    )


@migrations()
def m007_ends(db: Database) -> None:
    """When orders end on the clock that nobody sets, and of which start of the machine that clock is."""
    orders = db.table("orders")
    orders.add_column("boot_id", str)
    orders.add_column("expires_boot_s", float)
    orders.add_column("hold_boot_s", float)


INSERT_HEAD = "INSERT OR IGNORE INTO heads (revision, hash) VALUES (?, ?)"
EVENT_COLUMNS = ", ".join(field.name for field in fields(EventRow))
INSERT_EVENT = (
    f"INSERT INTO events ({EVENT_COLUMNS}) VALUES ({', '.join('?' for _ in fields(EventRow))})"  # noqa: S608 - our names
)
INSERT_KILL_EVENT = "INSERT OR IGNORE INTO kill_events (kill_id, seq) VALUES (?, ?)"
_TABLES: dict[type[Record], str] = {
    Token: "tokens",
    Key: "keys",
    ProxyRecord: "proxies",
    Note: "notes",
    Attempt: "attempts",
}
_LONGEST_LEASE = "longest_lease_ms"
_LIVE_ONLY = {"tokens": "revoked_at", "keys": "revoked_at", "proxies": "gone_at"}


def write(connection: sqlite3.Connection, record: Record) -> None:
    """Put the record in its table in place of what was known of it."""
    row: dict[str, Any]
    if isinstance(record, StoredReceipt):
        table = "receipts"
        row = {"kill_id": record.receipt.kill_id, "receipt": _text_of(record.receipt)}
    elif isinstance(record, StoredResume):
        table = "resumes"
        row = {"revision": record.revision, "receipt": _text_of(record.receipt)}
    elif isinstance(record, LongestLease):
        table, row = "meta", {"name": _LONGEST_LEASE, "value": str(record.lease_ms)}
    elif isinstance(record, Recovery):
        table = "recoveries"
        found = encode(record)
        row = {name: found[name] for name in ("recovery_id", "began_at", "accepted_at")}
        row["found"] = json.dumps(found, separators=(",", ":"))
    elif isinstance(record, Order):
        table, row = "orders", _row_of_order(record)
    else:
        table, row = _TABLES[type(record)], encode(record)
    columns, places = ", ".join(row), ", ".join("?" for _ in row)
    connection.execute(
        f"INSERT OR REPLACE INTO {table} ({columns}) VALUES ({places})",  # noqa: S608 - our names
        tuple(row.values()),
    )
    if isinstance(record, Attempt):
        connection.execute(
            "DELETE FROM attempts WHERE rowid <= (SELECT max(rowid) FROM attempts) - ?",
            (KEPT_MOST,),
        )


def event_values(row: EventRow) -> tuple[Any, ...]:
    """The row as the values of EVENT_COLUMNS."""
    return tuple(getattr(row, field.name) for field in fields(EventRow))


def order_of(row: sqlite3.Row) -> Order:
    """The order that a row of `orders` holds."""
    document = dict(row) | {"excepted": json.loads(row["excepted"])}
    lifted = None
    if row["lifted_at"] is not None:
        lifted = Lifting(
            row["lifted_revision"],
            parse_time(row["lifted_at"]),
            row["lifted_by"],
            row["lifted_reason"],
        )
    ends = decode(
        Ends,
        {
            "boot_id": row["boot_id"] or "",
            "expires": row["expires_boot_s"],
            "hardens": row["hold_boot_s"],
        },
    )
    return Order(decode(Kill, document), row["actor_id"], row["changed_revision"], lifted, ends)


def receipt_of(text: str | None) -> Receipt | None:
    """The receipt that a row of `receipts` or `resumes` holds."""
    return None if text is None else decode(Receipt, json.loads(text))


def note_of(row: sqlite3.Row) -> Note:
    """The note that a row of `notes` holds."""
    return decode(Note, dict(row))


def load_state(connection: sqlite3.Connection, lifted_remembered: int) -> State:
    """The state as it was left."""
    meta = dict(connection.execute("SELECT name, value FROM meta").fetchall())
    in_force = connection.execute("SELECT * FROM orders WHERE lifted_at IS NULL ORDER BY revision")
    lifted = connection.execute(
        "SELECT * FROM orders WHERE lifted_at IS NOT NULL ORDER BY lifted_revision DESC LIMIT ?",
        (lifted_remembered,),
    )
    revision = int(meta["revision"])
    head = connection.execute("SELECT hash FROM heads WHERE revision = ?", (revision,)).fetchone()
    found = connection.execute(
        "SELECT found FROM recoveries WHERE accepted_at IS NULL ORDER BY rowid DESC LIMIT 1"
    ).fetchone()
    return State(
        meta["epoch"],
        revision,
        tuple(map(order_of, in_force)),
        tuple(map(order_of, lifted))[::-1],
        {token.digest: token for token in _live(connection, Token)},
        {key.digest: key for key in _live(connection, Key)},
        {proxy.proxy_id: proxy for proxy in _live(connection, ProxyRecord)},
        longest_lease_ms=int(meta.get(_LONGEST_LEASE, 0)),
        attempts={
            row["digest"]: decode(Attempt, dict(row))
            for row in connection.execute("SELECT * FROM attempts ORDER BY rowid")
        },
        head_hash=head[0] if head else None,
        recovery=decode(Recovery, json.loads(found[0])) if found else None,
    )


def _live(connection: sqlite3.Connection, cls: type[Any]) -> Iterable[Any]:
    table = _TABLES[cls]
    rows = connection.execute(f"SELECT * FROM {table} WHERE {_LIVE_ONLY[table]} IS NULL")  # noqa: S608 - our names
    return [decode(cls, dict(row)) for row in rows]


def _text_of(receipt: Receipt) -> str:
    return json.dumps(encode(receipt), separators=(",", ":"))


def _row_of_order(order: Order) -> dict[str, Any]:
    row: dict[str, Any] = encode(order.kill)
    row["excepted"] = json.dumps(row["excepted"])
    lifted = order.lifted
    return row | {
        "actor_id": order.actor_id,
        "changed_revision": order.changed_revision,
        "lifted_at": format_time(lifted.at) if lifted else None,
        "lifted_by": lifted.actor if lifted else None,
        "lifted_revision": lifted.revision if lifted else None,
        "lifted_reason": lifted.reason if lifted else None,
        "boot_id": order.ends.boot_id or None,
        "expires_boot_s": order.ends.expires,
        "hold_boot_s": order.ends.hardens,
    }
