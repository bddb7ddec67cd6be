"""How much of a worker anybody may take: every limit with its default, its unit and its reason.

Pure. Each limit is per worker. What one agent may take is always less than what there is, so that
whoever takes all he may takes nothing from another.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import Field, dataclass, field, fields, replace
from typing import Any

RESERVED_DESCRIPTORS = 256
"""Never given to clients: 64 threads that look up names, the control link and its successor while it
reconnects, the agent API's calls, certificate files. A kill needs none, but its acknowledgement needs the link."""
MOST_DESCRIPTORS = 1 << 20
"What is asked for where the system sets no bound: half a million tunnels need 2 GB before that."


def _limit(default: int, least: int, most: int, unit: str, says: str) -> Any:
    return field(
        default=default, metadata={"least": least, "most": most, "unit": unit, "says": says}
    )


@dataclass(frozen=True)
class Limits:
    """All limits. A field's metadata is its range, its unit and its sentence in `up --help`."""

    # squid takes 64 KB, nginx 32 KB, Node 16 KB, Apache 100 fields of 8 KB, Go 1 MB. Ours is what is kept
    # per connection before anybody is known.
    head_bytes: int = _limit(65536, 1024, 1 << 20, "bytes", "of a request or response head")
    # Apache and Tomcat take 100, Node 2,000; nginx, squid and Go count bytes alone. Browsers and SDKs send
    # 10 to 40; an answer with 60 cookies still fits. Each field is an object or two in mitmproxy.
    head_fields: int = _limit(200, 16, 10_000, "header fields", "in one head")
    # For all of it, not between two bytes: a byte every 29 s would never end. nginx waits 60 s, Apache 20
    # to 40, squid 5 minutes.
    head_s: int = _limit(30, 1, 3600, "seconds", "until a request head is whole")
    # Two flights. Go's transport waits 10 s, nginx as long as for a head.
    handshake_s: int = _limit(10, 1, 600, "seconds", "for a client's TLS handshake inside a tunnel")
    # Counted in requests, since HTTP/2 pings would keep a connection for ever. What mitmproxy grants
    # without any byte; servers end idle clients after 5 s (Node) to 75 s (nginx).
    idle_s: int = _limit(600, 1, 86_400, "seconds", "without a request inside a tunnel we read")
    # Of a few KB each. Beyond, the oldest make way (lobby.py): nobody who means it waits for a second.
    waiting: int = _limit(1024, 1, 1 << 20, "connections", "that have not said who they are")
    address_waiting: int = _limit(256, 1, 1 << 20, "connections", "of these from one address")
    connections: int = _limit(
        0, 0, 1 << 20, "connections", "in all; 0: as many as descriptors allow"
    )
    # The busiest agents of our load tests have a few hundred. Half of `connections` when that is less.
    agent_connections: int = _limit(2000, 1, 1 << 20, "connections", "of one agent")
    # Like a connection that is read inside, each takes about 70 KB.
    agent_requests: int = _limit(256, 1, 1 << 20, "requests", "of one agent under way, read inside")
    # The oldest beyond make way, as at the door: 4 MB of an agent that opens and then says nothing.
    agent_waiting: int = _limit(
        64, 1, 1 << 20, "connections", "of one agent, read inside, that have asked nothing yet"
    )
    # 3 ms of the loop each, so 6 % of it. A pool that fills at once is let through: see BURST_S.
    agent_handshakes: int = _limit(
        20, 1, 100_000, "a second", "new connections of one agent that are read inside"
    )
    # Each costs a handshake, too.
    agent_refusals: int = _limit(
        10, 1, 100_000, "a second", "refusals inside TLS, then CONNECT itself is refused"
    )
    # Each may hold a body of 1 MiB.
    agent_calls: int = _limit(100, 1, 100_000, "calls", "of one agent to haltwire.internal at once")


DEFAULTS = Limits()
NAMES = tuple(one.name for one in fields(Limits))
_FIELDS: Mapping[str, Field[Any]] = {one.name: one for one in fields(Limits)}


def parse(texts: Iterable[str]) -> Limits:
    """Limits from NAME=VALUE texts; the last of a name counts. ValueError says what is wrong and what exists."""
    values = {}
    for text in texts:
        name, separator, number = text.partition("=")
        if not separator or name not in _FIELDS:
            what = f"{name!r} is no limit" if separator else f"{text!r} is not NAME=VALUE"
            raise ValueError(f"{what}; the limits are {', '.join(NAMES)}")
        least, most = (_FIELDS[name].metadata[key] for key in ("least", "most"))
        # Not int(): that reads 1_000 and the digits of every script.
        if not (number.isascii() and number.isdigit() and least <= int(number[:12]) <= most):
            raise ValueError(f"{name} is a whole number from {least} to {most}, not {number!r}")
        values[name] = int(number)
    return replace(DEFAULTS, **values)


def described() -> str:
    """Every name with default, unit and what it bounds, for people."""
    return "; ".join(
        f"{name}={one.default} {one.metadata['unit']} {one.metadata['says']}"
        for name, one in _FIELDS.items()
    )


def fitted(limits: Limits, descriptors: int) -> Limits:
    """The limits as a process with this many descriptors can keep them.

    A tunnel needs two. One agent gets at most half, so that there is room for another.
    """
    most = max(2, (descriptors - RESERVED_DESCRIPTORS) // 2)
    connections = min(limits.connections or most, most)
    return replace(
        limits,
        connections=connections,
        agent_connections=min(limits.agent_connections, max(1, connections // 2)),
        waiting=min(limits.waiting, max(1, connections // 2)),
        address_waiting=min(limits.address_waiting, max(1, connections // 2)),
    )


BURST_S = 10
"A rate may be exceeded by this many seconds' worth at once: a client fills its pool when it starts."
_REMEMBERED = 1000


class Buckets:
    """Token buckets, one per key; a key that nobody has asked for lately costs no memory."""

    def __init__(self, per_second: int) -> None:
        self._per_second = per_second
        self._most = per_second * BURST_S
        self._left: dict[object, tuple[float, float]] = {}
        "By key: what is left, and as of when."

    def take(self, key: object, now: float) -> bool:
        """Take one; False when there is none."""
        left, at = self._left.get(key, (float(self._most), now))
        left = min(float(self._most), left + (now - at) * self._per_second)
        if left < 1:
            return False
        if len(self._left) >= _REMEMBERED and key not in self._left:
            self._left = {k: v for k, v in self._left.items() if now - v[1] < BURST_S}
        self._left[key] = (left - 1, now)
        return True
