"""Keys and tokens that nobody has, counted by where they come from: after a few the answer is 429.

Only the answer to a wrong key ever changes. A right one is not even looked up here: whoever shares an
address with an attacker, or is behind the same proxy, is neither delayed nor refused.
"""

from __future__ import annotations

import ipaddress
import math
from collections import OrderedDict
from dataclasses import dataclass

BURST = 100
"Wrong keys in a row that are answered plainly: a fleet whose token was revoked should hear just that."
PER_S = 1.0
SOURCES_KEPT = 4096
"Beyond this the one that was quiet for longest is forgotten: some memory, whatever is sent."


@dataclass(slots=True)
class _Bucket:
    left: float
    at: float


class FailedAttempts:
    """A bucket of plain answers for every source."""

    def __init__(self) -> None:
        self._buckets: OrderedDict[str, _Bucket] = OrderedDict()

    def failed(self, address: str, now: float) -> int | None:
        """Count one; how many seconds to wait if there were too many."""
        source = source_of(address)
        bucket = self._buckets.pop(source, None) or _Bucket(BURST, now)
        self._buckets[source] = bucket
        if len(self._buckets) > SOURCES_KEPT:
            self._buckets.popitem(last=False)
        bucket.left = min(BURST, bucket.left + max(0.0, now - bucket.at) * PER_S)
        bucket.at = now
        if bucket.left < 1:
            return math.ceil((1 - bucket.left) / PER_S)
        bucket.left -= 1
        return None


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
