"""Calls that are counted, and answered 429 after too many: wrong keys by where they come from, agents' by their token.

Only the answer to a wrong key depends on an address. A right one is not even looked up there: whoever
shares an address with an attacker, or is behind the same proxy, is neither delayed nor refused.
An operator's calls are never counted: they are the ones that stop what floods us.
"""

from __future__ import annotations

import ipaddress
import math
from collections import OrderedDict
from dataclasses import dataclass

BURST = 100
"Wrong keys in a row that are answered plainly: a fleet whose token was revoked should hear just that."
PER_S = 1.0
AGENT_BURST = 1000
"An agent token's calls in a row: as many as it may have instances, which may all start at once."
AGENT_PER_S = 100.0
"As many instances, each every 10 s. 600 a second, as one flooding agent sent, took a kill a second."
SOURCES_KEPT = 4096
"Beyond this the one that was quiet for longest is forgotten: some memory, whatever is sent."


@dataclass(slots=True)
class _Bucket:
    left: float
    at: float


class Buckets:
    """A token bucket for every source: `burst` calls at once, and `per_s` a second after that."""

    def __init__(self, burst: float, per_s: float) -> None:
        self._burst = burst
        self._per_s = per_s
        self._buckets: OrderedDict[str, _Bucket] = OrderedDict()

    def count(self, source: str, now: float) -> int | None:
        """Count one; how many seconds to wait if there were too many."""
        bucket = self._buckets.pop(source, None) or _Bucket(self._burst, now)
        self._buckets[source] = bucket
        if len(self._buckets) > SOURCES_KEPT:
            self._buckets.popitem(last=False)
        bucket.left = min(self._burst, bucket.left + max(0.0, now - bucket.at) * self._per_s)
        bucket.at = now
        if bucket.left < 1:
            return math.ceil((1 - bucket.left) / self._per_s)
        bucket.left -= 1
        return None


class FailedAttempts:
    """A bucket of plain answers for every address."""

    def __init__(self) -> None:
        self._buckets = Buckets(BURST, PER_S)

    def failed(self, address: str, now: float) -> int | None:
        """Count one; how many seconds to wait if there were too many."""
        return self._buckets.count(source_of(address), now)


def source_of(address: str) -> str:
    """The network that one customer is given: an address of IPv4, 64 bits of IPv6."""
    try:
        parsed = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return "unknown"
    if isinstance(parsed, ipaddress.IPv6Address):
        if parsed.ipv4_mapped:
            return str(parsed.ipv4_mapped)
        return str(ipaddress.ip_network((parsed, 64), strict=False))
    return str(parsed)
