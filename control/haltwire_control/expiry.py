"""Ends orders when their time has come, for as long as the control server runs.

What the store does not take is tried again until it does; until then the order stays in force.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable

from haltwire_control.deadlines import EXPIRES, HARDENS
from haltwire_control.killing import Killing
from haltwire_control.service import Service, steady
from haltwire_control.store import StoreError

log = logging.getLogger(__name__)
LOOK_EVERY_S = 1.0
"A timer of the event loop stands still while the machine sleeps; the deadlines' clock does not."
RETRY_S = 0.25


class Expiry:
    """The loop that lifts expired orders, and makes holds beyond their limit cuts."""

    def __init__(self, service: Service, killing: Killing) -> None:
        self._service = service
        self._killing = killing

    async def follow(self) -> None:
        """End what is due until cancelled."""
        deadlines, changed = self._service.deadlines, self._service.timed
        while True:
            heard = changed.count
            left = deadlines.left(steady())
            if left is None or left > 0:
                await changed.wait(min(LOOK_EVERY_S, left or LOOK_EVERY_S), heard)
            elif not await self._end_due():
                await asyncio.sleep(RETRY_S)

    async def _end_due(self) -> bool:
        """End all that is due, together; whether all of it has ended. One that cannot end holds up no other."""
        arrived, due = time.monotonic(), self._service.deadlines.due(steady())
        # An order that is due for both is lifted.
        lifted = {one.kill_id for one in due[EXPIRES]}
        ended = await asyncio.gather(
            *(_tried(self._killing.expire(one, arrived)) for one in due[EXPIRES]),
            *(
                _tried(self._killing.harden(one, arrived))
                for one in due[HARDENS]
                if one.kill_id not in lifted
            ),
        )
        return all(ended)


async def _tried(ending: Awaitable[bool]) -> bool:
    try:
        return await ending
    except StoreError as error:
        log.error("an order could not be ended, and is tried again: %s", error)
    except Exception:
        log.exception("an order could not be ended")
    return False
