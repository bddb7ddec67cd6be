"""What no honest proxy sends, though its form is right: it would break a receipt, or fill the audit log.

A proxy's key is not the operator's: its holder may say what it enforces, and must not be able to make a
kill's answer fail for everybody.
"""

from __future__ import annotations

import math
from dataclasses import fields, is_dataclass
from datetime import datetime
from functools import cache
from typing import Any

from haltwire.wire.messages import Message
from haltwire.wire.names import AgentRef

LONGEST = 8192
"A request's path is the longest text that a report holds; heads are limited to less than this a line."
FIRST_YEAR, LAST_YEAR = 2000, 2199
"Times are moved by a clock's offset: the sum has to stay a time."
MOST = 2**62
"What SQLite holds, with room to add up."


def screen(message: Message) -> None:
    """ValueError when a message holds a text, a number or a time beyond all reason."""
    _screen(message)


def _screen(value: object) -> None:
    if value is None or isinstance(value, AgentRef):
        return
    if isinstance(value, str):
        if len(value) > LONGEST:
            raise ValueError(f"a text of {len(value)} characters")
        if not value.isascii():
            value.encode()  # half a surrogate pair could be neither stored nor sent on
    elif isinstance(value, float):
        if not math.isfinite(value):
            raise ValueError(f"the number {value}")
    elif isinstance(value, int):
        if not -MOST <= value <= MOST:
            raise ValueError("a number of more than 62 bits")
    elif isinstance(value, datetime):
        if not FIRST_YEAR <= value.year <= LAST_YEAR:
            raise ValueError(f"the year {value.year}")
    elif isinstance(value, tuple):
        for one in value:
            _screen(one)
    elif is_dataclass(value) and not isinstance(value, type):
        for name in _names(type(value)):
            _screen(getattr(value, name))


@cache
def _names(cls: type[Any]) -> tuple[str, ...]:
    return tuple(field.name for field in fields(cls))
