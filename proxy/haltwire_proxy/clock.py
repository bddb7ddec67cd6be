"""The two clocks of a proxy: one that goes on through suspend, for leases, and the wall's."""

from __future__ import annotations

import time
from datetime import datetime, timezone

_BOOT = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


def boottime() -> float:
    """Seconds since boot, time asleep included (CLOCK_BOOTTIME; monotonic where there is none)."""
    return time.clock_gettime(_BOOT)


def utc_now() -> datetime:
    """The wall clock, aware, in UTC."""
    return datetime.now(timezone.utc)
