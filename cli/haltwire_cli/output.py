"""What people read: rows as a table, times as "3 s ago", numbers with their nouns. Pure: `now` is an argument.

Whatever agents or other people wrote passes through `escape` on its way to a terminal.
"""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime

from haltwire.wire.codec import parse_time

_HIDDEN = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})
"Categories that move the cursor, reorder the line or cannot be seen."
WIDEST_FACTS = 60


def escape(text: object) -> str:
    """The text, with everything that could steer a terminal spelled out."""
    plain = str(text)
    if plain.isascii() and plain.isprintable():
        return plain
    return "".join(
        c if unicodedata.category(c) not in _HIDDEN else c.encode("unicode_escape").decode()
        for c in plain
    )


def table(headers: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Aligned columns, two spaces apart."""
    cells = [list(headers), *([escape(cell) for cell in row] for row in rows)]
    widths = [max(_width(row[i]) for row in cells) for i in range(len(headers))]
    return "\n".join(
        "  ".join(
            cell + " " * (width - _width(cell)) for cell, width in zip(row, widths, strict=True)
        ).rstrip()
        for row in cells
    )


def ago(moment: str | None, now: datetime) -> str:
    """How long ago a time was."""
    if not moment:
        return "never"
    seconds = (now - parse_time(moment)).total_seconds()
    return "just now" if seconds < 1 else f"{span(seconds)} ago"


def span(seconds: float) -> str:
    """A time span in its largest fitting unit."""
    for unit, length in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= 2 * length or (unit == "d" and seconds >= length):
            return f"{int(seconds // length)} {unit}"
    return f"{int(seconds)} s"


def clock(moment: str | None) -> str:
    """A time as it is written in incident reports."""
    return parse_time(moment).strftime("%Y-%m-%d %H:%M:%SZ") if moment else "unknown"


def stamp(moment: str | None) -> str:
    """A time to the millisecond, for what is compared with other machines' logs."""
    return f"{parse_time(moment):%Y-%m-%d %H:%M:%S.%f}"[:-3] + "Z" if moment else "not known"


def due(moment: str, now: datetime) -> str:
    """When something will be, as a clock shows it and from now: `09:30:30Z, in 29 s`."""
    at = parse_time(moment)
    shown = f"{at:%H:%M:%SZ}" if at.date() == now.date() else f"{at:%Y-%m-%d %H:%M:%SZ}"
    return shown if at <= now else f"{shown}, {ahead(moment, now)}"


def ahead(moment: str, now: datetime) -> str:
    """How long until a time."""
    seconds = (parse_time(moment) - now).total_seconds()
    return f"in {span(round(seconds))}" if seconds > 0 else "now"


def facts(metadata: object, widest: int = WIDEST_FACTS) -> str:
    """What an agent said of itself, on one line."""
    if not isinstance(metadata, Mapping) or not metadata:
        return ""
    line = " ".join(f"{key}={_fact(value)}" for key, value in metadata.items())
    return line if len(line) <= widest else f"{line[: widest - 1]}…"


def listed(words: Sequence[str]) -> str:
    """Words as a sentence lists them: `a, b and c`."""
    return " and ".join(filter(None, (", ".join(words[:-1]), *words[-1:])))


def count(number: int, noun: str) -> str:
    """A number of things."""
    return f"{number:,} {noun}" + ("" if number == 1 else "s")


def quantity(value: float) -> str:
    """A sum of what agents said, without decimals that mean nothing."""
    return f"{value:,.0f}" if float(value).is_integer() else f"{value:,.2f}"


def milliseconds(value: float | None) -> str:
    """How long something took."""
    if value is None:
        return "an unknown time"
    return f"{value:.1f} ms" if value < 100 else f"{value / 1000:.2f} s"


def _fact(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, default=str)


def _width(text: str) -> int:
    return sum(
        0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in "WF" else 1
        for c in text
    )
