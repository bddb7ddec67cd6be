"""The audit chain: every event's hash covers the hash before it and all that the event says.

A row that was changed, removed or added by hand breaks the chain at its place; a chain that was cut
off at its end does not agree with the count and head kept beside it. Whoever can rewrite all of that
can forge it: a chain is `anchored` only when its head is kept elsewhere: `audit verify --against` an export.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from haltwire.wire.codec import encode, format_time

from haltwire_control.state import NewEvent

GENESIS = "0" * 64
"The hash before the first event."


@dataclass(frozen=True, slots=True)
class EventRow:
    """An event in its place. `created_at` and `details` are the stored texts: they are what was hashed."""

    seq: int
    event_id: str
    event_type: str
    agent_uri: str | None
    address: str | None
    actor: str
    actor_id: str | None
    reason: str | None
    details: str
    "A JSON object in canonical form."
    created_at: str
    hash: str

    def document(self) -> dict[str, Any]:
        """The event as the API shows it; one that was changed by hand is shown as far as it can be."""
        shown = {
            name: value if value is None or isinstance(value, (str, int)) else repr(value)
            for name, value in _fields(self).items()
        }
        try:
            details = json.loads(self.details)
        except (TypeError, ValueError):
            details = None
        return shown | {"details": details if isinstance(details, dict) else {}}


@dataclass(frozen=True, slots=True)
class Head:
    """Where the chain ends, as kept beside it."""

    events: int
    hash: str


@dataclass(frozen=True, slots=True)
class Verification:
    """What became of checking a chain."""

    ok: bool
    events: int
    head_hash: str
    first_bad_seq: int | None
    anchored: bool = False


def canonical(value: Any) -> str:
    """The one JSON text of a value: sorted keys, no spaces, plain characters."""
    return json.dumps(
        value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    )


def row_of(event: NewEvent, seq: int, event_id: str, previous: str) -> EventRow:
    """The event's row after the hash `previous`."""
    selector = event.selector
    agent = selector.agent if selector else None
    row = EventRow(
        seq,
        event_id,
        event.event_type,
        str(agent) if agent else None,
        str(selector) if selector else None,
        event.actor.name,
        event.actor.actor_id,
        event.reason,
        canonical(encode(event.details)),
        format_time(event.at),
        "",
    )
    return EventRow(**_fields(row) | {"hash": hash_of(row, previous)})


def hash_of(row: EventRow, previous: str) -> str:
    """SHA-256 over the previous hash and the row without its own hash; ValueError when it has no JSON form."""
    details = json.loads(row.details)
    if canonical(details) != row.details:
        raise ValueError("details are not in canonical form")
    text = f"{previous}\n{canonical({**_hashed(row), 'details': details})}"
    return hashlib.sha256(text.encode()).hexdigest()


class Verifier:
    """Checks rows as they come, in the order of seq, and at the end the head."""

    def __init__(self) -> None:
        self.events = 0
        self.head_hash = GENESIS
        self.first_bad_seq: int | None = None

    def add(self, rows: Iterable[EventRow]) -> None:
        """Check the next rows; after the first bad one the rest is not looked at."""
        for row in rows:
            if self.first_bad_seq is not None:
                return
            expected = self.events + 1
            if row.seq != expected or not _is_intact(row, self.head_hash):
                self.first_bad_seq = expected
                return
            self.events, self.head_hash = expected, row.hash

    def finish(self, head: Head) -> Verification:
        """The result, with the head that was kept beside the chain."""
        if self.first_bad_seq is None and (head.events, head.hash) != (self.events, self.head_hash):
            # Rows are missing or were added at the end, or all of it was written anew.
            same_length = head.events == self.events
            self.first_bad_seq = self.events if same_length else min(head.events, self.events) + 1
        return Verification(
            self.first_bad_seq is None, self.events, self.head_hash, self.first_bad_seq
        )


def _is_intact(row: EventRow, previous: str) -> bool:
    try:
        return row.hash == hash_of(row, previous)
    except (TypeError, ValueError):
        return False


def _hashed(row: EventRow) -> dict[str, Any]:
    return {name: value for name, value in _fields(row).items() if name != "hash"}


def _fields(row: EventRow) -> dict[str, Any]:
    return {name: getattr(row, name) for name in EventRow.__dataclass_fields__}
