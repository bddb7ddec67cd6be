"""Notices when a silent proxy's last lease is certainly over, at that moment, for as long as the server runs."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from haltwire_control.hub import Hub

log = logging.getLogger(__name__)
LOOK_EVERY_S = 1.0
"A timer of the event loop stands still while the machine sleeps; the clock of leases does not."
LATE_S = 1.0
"Who wakes this much later than he wanted stood still himself: a proxy's lease that is over now says nothing of the proxy."
LEAST_S = 0.001
"Event loops count in milliseconds, and may wake us a little before the time."


class Fencing:
    """The loop that has the hub look at its leases."""

    def __init__(self, hub: Hub, steady: Callable[[], float]) -> None:
        self._hub = hub
        self._steady = steady

    async def follow(self) -> None:
        """Look whenever a lease ends, until cancelled."""
        while True:
            left = LOOK_EVERY_S
            try:
                left = self._hub.lapse()
            except Exception:
                log.exception("the leases could not be looked at")
            left = min(LOOK_EVERY_S, max(LEAST_S, left))
            due = self._steady() + left
            await asyncio.sleep(left)
            late_s = self._steady() - due
            if late_s > LATE_S:
                log.warning(
                    "this control server was stopped, starved or asleep for %.1f s, and gave no lease meanwhile",
                    late_s,
                )
