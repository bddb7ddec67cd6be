"""A worker that is to stop: nothing new comes in, what is idle ends, and what is under way may go on for a while.

Orders are obeyed all the while: the link stays up until nothing is left, and a kill cuts as ever.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress

from haltwire_proxy.connections import Connection
from haltwire_proxy.services import Services
from haltwire_proxy.transport import GatedWriter

LOOK_S = 0.02
"How often it is looked whether something is under way; the first time after heads on their way have been read."
FRESH_S = 1.0
"A connection on which nothing has been sent yet is not idle at this age: its first request is on its way."


async def drain(services: Services, limit_s: float, hurry: asyncio.Event) -> None:
    """Return when nothing is under way any more, after the limit, or as soon as `hurry` is set."""
    services.closed = True
    services.inspector.addon.leaving = True
    with suppress(TimeoutError):
        async with asyncio.timeout(limit_s):
            while not hurry.is_set():
                with suppress(TimeoutError):
                    await asyncio.wait_for(hurry.wait(), LOOK_S)
                _end_idle(services)
                if not (services.enforcer.connections.count or services.agent_api.sessions):
                    return


def _end_idle(services: Services) -> None:
    now = services.enforcer.now()
    for one in services.enforcer.connections.everything():
        age_s = (now - one.opened_at).total_seconds()
        if _is_idle(one) and (one.bytes_up or age_s > FRESH_S):
            if one.held:
                services.enforcer.connections.cut([one])
            elif isinstance(one.client, GatedWriter):
                one.client.close()


def _is_idle(one: Connection) -> bool:
    # Of a tunnel nobody knows: what looks idle may be a request that is being worked on.
    return not (one.is_busy or one.waiters)
