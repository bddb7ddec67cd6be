"""Until when a proxy may pass traffic, as far as we have granted it, and whether it is to be granted more. Pure.

`clock` is always seconds on our own CLOCK_BOOTTIME. A proxy counts a lease from when it asked for it,
which was before we answered: by the end that we count, its own has come.
"""

from __future__ import annotations

import math
from collections import deque

MARGIN_S = 0.05
"From the end of a lease by our clock until it is certain: a look at a clock and the next line of code are two moments."
DRIFT = 0.01
"By how much a proxy's clock may go more slowly than ours; quartz is off by a hundredth of that."
APPLIED_WITHIN = 0.5
"The part of a lease within which a proxy has to have applied what it was sent, or else it gets no other lease."


def over_after(lease_ms: int) -> float:
    """Seconds from the grant of a lease until it is certainly over at the proxy."""
    return lease_ms / 1000 * (1 + DRIFT) + MARGIN_S


class Lease:
    """What one proxy was granted, and what of the things sent to it on its link it has not applied yet."""

    def __init__(self, end: float = math.inf) -> None:
        self.end = end
        "When the last of all leases that it may have is certainly over."
        self._sent: deque[tuple[int, float]] = deque()
        "Revisions not applied yet, oldest first, and when they were sent."

    def grant(self, clock: float, lease_ms: int) -> None:
        """Count one more lease, before the proxy hears of it. A shorter one takes nothing back."""
        self.end = max(self.end, clock + over_after(lease_ms))

    def left(self, clock: float) -> float:
        """Seconds for which it may still pass traffic, at most."""
        return max(0.0, self.end - clock)

    def link(self) -> None:
        """Another link, or none: what was sent on an earlier one does not count."""
        self._sent.clear()

    def sent(self, revision: int, clock: float) -> None:
        """This revision is on its way to the proxy."""
        self._sent.append((revision, clock))

    def applied(self, revision: int) -> None:
        """The proxy has said that it enforces this revision."""
        while self._sent and self._sent[0][0] <= revision:
            self._sent.popleft()

    def is_behind(self, clock: float, lease_ms: int) -> bool:
        """Whether it has left something unapplied for so long that it gets no lease."""
        allowed_s = lease_ms / 1000 * APPLIED_WITHIN
        return bool(self._sent) and clock - self._sent[0][1] > allowed_s
