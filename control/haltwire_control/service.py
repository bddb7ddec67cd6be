"""The control server at work: the state in force, and the way from a commit to everybody who must hear of it.

It is the store's listener: in commit order, state is swapped and the delta pushed to every proxy in
one call, before whoever asked for the change hears that it is done.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Coroutine
from dataclasses import replace
from datetime import datetime, timezone
from functools import partial
from itertools import batched
from typing import Any

from haltwire_control import access
from haltwire_control.bell import Bell
from haltwire_control.deadlines import Deadlines
from haltwire_control.ends import Clock
from haltwire_control.hub import Hub, Peer
from haltwire_control.in_force import InForce
from haltwire_control.ledger import Ledger
from haltwire_control.metrics import Metrics
from haltwire_control.mismatches import Mismatches
from haltwire_control.presence import this_machine
from haltwire_control.state import Change, NewEvent, Order, ProxyRecord, State
from haltwire_control.store import Store, StoreError

log = logging.getLogger(__name__)
HOUSEKEEPING_S = 1.0
EVENTS_TOGETHER = 50
"In one step: a worker may report thousands of new instances at once, and a kill must get between them."
CLOCK_SET_S = 1.0
"Clocks that are further apart than they were have not merely drifted."
APPLY_WITHIN_S = 2.0
"How long the creation of a token waits for connected proxies to know it."

_STEADY = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


def now() -> datetime:
    """The wall clock."""
    return datetime.now(timezone.utc)


def steady() -> float:
    """Seconds on a clock that nobody sets and that goes on through suspend, where there is one."""
    return time.clock_gettime(_STEADY)


class Service:
    """What the use cases share."""

    def __init__(self, store: Store, ledger: Ledger, lease_ms: int) -> None:
        self.store = store
        self.ledger = ledger
        here = this_machine()
        self._boot_id = here.boot_id
        self.hub = Hub(here, lease_ms, now, time.monotonic, steady)
        self.metrics = Metrics(self)
        self.mismatches = Mismatches()
        self.events = Bell()
        "Rings when there is a new event."
        self.deadlines = Deadlines()
        self.timed = Bell()
        "Rings when a deadline is new or void."
        self.state = State("")
        self._in_force: InForce | None = None
        self._tasks = asyncio.TaskGroup()
        self._ending: set[Peer] = set()

    @property
    def clock(self) -> Clock:
        """The steady clock, as it is kept with orders."""
        return Clock(self._boot_id, steady())

    @property
    def in_force(self) -> InForce:
        """The orders of the state, indexed when first asked for."""
        if self._in_force is None:
            self._in_force = InForce(self.state.orders)
        return self._in_force

    @property
    def peers(self) -> tuple[Peer, ...]:
        """The proxies that have not been seen to end."""
        return self.hub.peers

    @property
    def store_failures(self) -> int:
        """Changes that the store did not take."""
        return self.store.failures

    async def run(self) -> None:
        """Do what nobody waits for, until cancelled. Everything spawned ends with it."""
        async with self._tasks:
            while True:
                try:
                    self.sweep()
                    self.note(*self.mismatches.due(now()))
                except Exception:
                    log.exception("housekeeping failed")
                await asyncio.sleep(HOUSEKEEPING_S)

    def start(self) -> None:
        """Take over the state as it was left."""
        self.state = self.store.start(self)
        self.hub.begin(self.state)
        set_by = self.deadlines.begin(self.state.orders, now(), self.clock)
        if abs(set_by) > CLOCK_SET_S:
            log.warning(
                "the wall clock was set %s by %.0f s since orders were issued: none of them expires before both clocks say so, and a hold is cut as soon as either does",
                "forward" if set_by > 0 else "back",
                abs(set_by),
            )
        self.ledger.end_proxies(peer.usage_key for peer in self.hub.peers)

    async def begin_leases(self) -> None:
        """Have it stored how long a lease may be, before one is granted.

        With a store that takes nothing, none is longer than those before; StoreError when there were none.
        """
        wanted, longest = self.hub.lease_ms, self.state.longest_lease_ms
        if wanted <= longest:
            return
        try:
            await self.store.commit(partial(access.note_lease, lease_ms=wanted), urgent=True)
        except StoreError as error:
            if not longest:
                raise
            log.error("leases stay at %d ms instead of %d: %s", longest, wanted, error)
            self.hub.lease_ms = longest

    def committed(self, change: Change[Any], durable: bool) -> None:
        """A change holds: swap, push, tell."""
        if change.state.orders is not self.state.orders:
            self._in_force = None
        self.state = change.state
        orders = [record for record in change.put if isinstance(record, Order)]
        if change.delta is not None:
            self.hub.publish(change.delta, orders)
            if not durable:
                log.error("revision %d holds, but is not stored", change.delta.revision)
        for record in change.put:
            if isinstance(record, ProxyRecord):
                self.hub.note(record)
        moment, clock = now(), self.clock
        # Not `any`: each of them is to be noted.
        if sum(self.deadlines.note(order, moment, clock) for order in orders):
            self.timed.ring()
        if change.events:
            self.metrics.note(change.events)
            self.events.ring()

    def stored(self, kill_ids: frozenset[str]) -> None:
        """Volatile orders are on disk now."""
        self.state = replace(self.state, volatile=self.state.volatile - kill_ids)
        self.hub.progress.ring()

    def spawn(self, work: Coroutine[Any, Any, object], name: str) -> None:
        """Have something done that nobody waits for; it is logged when it fails."""
        self._tasks.create_task(_logged(work, name), name=name)

    def note(self, *events: NewEvent) -> None:
        """Have events written that change nothing."""
        for few in batched(events, EVENTS_TOGETHER):
            self.spawn(self.store.commit(partial(_noted, events=few)), "write events")

    def sweep(self) -> None:
        """Look which disconnected proxies have ended, and have that stored."""
        for peer in self.hub.ended():
            if peer not in self._ending:
                self._ending.add(peer)
                self.spawn(self.end(peer), "note the end of a proxy")

    async def applied(self, revision: int) -> None:
        """Wait, within reason, until every connected proxy has applied the revision."""
        deadline = time.monotonic() + APPLY_WITHIN_S
        while any(p.outlet and p.applied_revision < revision for p in self.hub.peers):
            left = deadline - time.monotonic()
            if left <= 0 or not await self.hub.progress.wait(left):
                return

    async def end(self, peer: Peer) -> None:
        """Have the seen end of a proxy stored."""
        try:
            await self.store.commit(partial(access.end_proxy, proxy=peer.record, now=now()))
            alive = [p.usage_key for p in self.hub.peers]
            self.ledger.end_proxies(alive)
            self.metrics.totals.end(alive)
        finally:
            self._ending.discard(peer)


def _noted(state: State, events: tuple[NewEvent, ...]) -> Change[None]:
    return Change(state, None, events=events)


async def _logged(work: Coroutine[Any, Any, object], name: str) -> None:
    try:
        await work
    except StoreError as error:
        log.error("%s: %s", name, error)
    except Exception:
        log.exception("%s failed", name)
