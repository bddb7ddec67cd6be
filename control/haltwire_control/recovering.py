"""Finds out, at a proxy's hello and at the start, whether the store lacks what it once had, and has it completed."""

from __future__ import annotations

import logging
import os
import time
from collections import deque
from functools import partial

from haltwire.wire.messages import Hello

from haltwire_control import recovery
from haltwire_control.auth import new_id
from haltwire_control.service import Service, now
from haltwire_control.store import Lineage, StoreError

log = logging.getLogger(__name__)
RENEWALS, WITHIN_S = 5, 60.0
"New epochs in a while: each one severs everything, so that a proxy which lies must not begin them for ever."


class Recovering:
    """Compares what proxies have applied with what is stored."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._renewed: deque[float] = deque(maxlen=RENEWALS)

    async def look(self, hello: Hello) -> bool:
        """Whether the proxy may be followed; by then the store has all that it enforces."""
        service = self._service
        stored = await self._lineage(hello)
        is_other = stored is not None and recovery.is_ahead(service.state, hello, stored.head_hash)
        known = stored.known if stored is not None else frozenset[str]()
        ahead = is_other or recovery.is_ahead(service.state, hello, hello.head_hash)
        fresh = recovery.unknown_orders(service.state, hello, known)
        if not (ahead or fresh or recovery.may_add(service.state, hello)):
            return True
        if hello.epoch == service.state.epoch and self._is_too_often():
            log.error(
                "proxy %s is not let in: it is ahead of the store again and again", hello.proxy_id
            )
            return False
        names = os.urandom(8).hex(), new_id("R")
        step = partial(
            recovery.unite, said=hello, is_other=is_other, stored=known, names=names, now=now()
        )
        try:
            # Without a store, too: what a proxy enforces must not end because it has come back.
            committed = await service.store.commit(step, fallback=step, urgent=True)
        except (recovery.TooMuchError, StoreError) as error:
            log.error("proxy %s is not let in: %s", hello.proxy_id, error)
            return False
        found = committed.outcome
        if found is not None:
            log.error(
                "%s: proxy %s had applied revision %d, the store had %d; orders that the store lacked: %s; see `haltwire recover`",
                found.why,
                hello.proxy_id,
                hello.revision,
                found.store_revision,
                ", ".join(found.taken[: recovery.NAMED_MOST]) or "none",
            )
        if committed.change.state.epoch == names[0]:
            self._renewed.append(time.monotonic())
            service.hub.drop_links("a new epoch")
        return True

    async def _lineage(self, hello: Hello) -> Lineage | None:
        """What is stored of what the proxy says; None when that is known without asking, or cannot be read."""
        state = self._service.state
        unknown = recovery.unknown_orders(state, hello)
        same = hello.head_hash in (None, state.head_hash) and hello.revision == state.revision
        if not unknown and (hello.epoch != state.epoch or hello.head_hash is None or same):
            return None
        try:
            ids = tuple(kill.kill_id for kill in unknown)
            return await self._service.store.lineage(hello.revision, ids)
        except StoreError as error:
            log.error("what proxy %s has applied cannot be compared: %s", hello.proxy_id, error)
            return None

    def _is_too_often(self) -> bool:
        full = len(self._renewed) == RENEWALS
        return full and time.monotonic() - self._renewed[0] < WITHIN_S


async def note_cut_short(service: Service) -> None:
    """Have it known that the store was found without its log, if it was."""
    if not service.store.was_cut_short:
        return
    log.error("%s; see `haltwire recover`", recovery.CUT_SHORT)
    step = partial(recovery.note_cut_short, recovery_id=new_id("R"), now=now())
    await service.store.commit(step, fallback=step, urgent=True)
