"""The audit log held against an earlier export of it, which is kept where its writer cannot reach.

Hashes chain every event to those before it, so the log's own check finds whatever was changed in part; a
log that was written anew as a whole is only found by somebody who remembers what it was.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO

import click

Row = Mapping[str, Any]
_HINT = "'--against'"


@dataclass(frozen=True, slots=True)
class Anchor:
    """How far a log is the one that was exported."""

    last_same: int
    "The seq up to which every exported event is in the log as it was; 0 for none."
    first_different: int | None = None
    how: str = ""
    "`changed` or `removed`."

    @property
    def is_same(self) -> bool:
        """Whether everything that was exported is still there."""
        return self.first_different is None


def read_export(file: BinaryIO) -> list[Row]:
    """The events of an export; a usage error when it is none."""
    rows: list[Row] = []
    for number, line in enumerate(file, start=1):
        row = _row(line)
        if row is None or (rows and row["seq"] <= rows[-1]["seq"]):
            raise click.BadParameter(
                f"line {number} is not the next event of an export: give what `haltwire audit export` wrote, whole.",
                param_hint=_HINT,
            )
        rows.append(row)
    if not rows:
        raise click.BadParameter("the file holds no event.", param_hint=_HINT)
    return rows


def compare(kept: Sequence[Row], log: Iterable[bytes]) -> Anchor:
    """Find each kept event in the log, which comes line by line, oldest first."""
    last_same = 0
    lines = iter(log)
    current: Row | None = None
    for row in kept:
        while current is None or current["seq"] < row["seq"]:
            current = _row(next(lines, b""))
            if current is None:
                return Anchor(last_same, row["seq"], "removed")
        if current["seq"] != row["seq"]:
            return Anchor(last_same, row["seq"], "removed")
        if current != row:
            return Anchor(last_same, row["seq"], "changed")
        last_same = row["seq"]
    return Anchor(last_same)


def lines_of(pieces: Iterable[bytes]) -> Iterator[bytes]:
    """Whole lines of what comes in pieces."""
    left = b""
    for piece in pieces:
        *lines, left = (left + piece).split(b"\n")
        yield from lines
    if left:
        yield left


def _row(line: bytes) -> Row | None:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    good = (
        isinstance(row, dict) and type(row.get("seq")) is int and isinstance(row.get("hash"), str)
    )
    return row if good else None
