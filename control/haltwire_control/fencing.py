"""Notices when a silent proxy's last lease is certainly over, at that moment, for as long as the server runs."""

from __future__ import annotations

import asyncio
import logging

from haltwire_control.hub import Hub

log = logging.getLogger(__name__)
LOOK_EVERY_S = 1.0
"A timer of the event loop stands still while the machine sleeps; the clock of leases does not."
LEAST_S = 0.001
"Event loops count in milliseconds, and may wake us a little before the time."


class Fencing:
    """The loop that has the hub look at its leases."""

    def __init__(self, hub: Hub) -> None:
        self._hub = hub

    async def follow(self) -> None:
        """Look whenever a lease ends, until cancelled."""
        while True:
            left = LOOK_EVERY_S
            try:
                left = self._hub.lapse()
            except Exception:
                log.exception("the leases could not be looked at")
            await asyncio.sleep(min(LOOK_EVERY_S, max(LEAST_S, left)))
