"""The use cases that stop agents and let them go on: decide and commit, have it proven, answer."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime
from functools import partial
from typing import Any

from haltwire.wire.orders import DRAIN, HOLD
from haltwire.wire.receipts import GONE, PROXY_PENDING, Receipt
from haltwire.wire.selectors import Selector

from haltwire_control import kills, lifetimes, notes, roster
from haltwire_control.auth import new_id
from haltwire_control.completing import UNFINISHED
from haltwire_control.dry_run import rehearsal_of
from haltwire_control.idempotency import AlreadyDoneError, Once, Replayed, guarded
from haltwire_control.kills import Issue, Resume, Resumed
from haltwire_control.lifetimes import Due
from haltwire_control.proving import Proving, name_of_resume
from haltwire_control.receipts import RESUME, Release, Request, is_escapable
from haltwire_control.service import Service, now
from haltwire_control.state import EXPIRY, Actor, Attempt, Change, Note, Order, State
from haltwire_control.store import StoreError
from haltwire_control.watch import Watch


class Killing:
    """Kill, resume, and what time or a person adds to an order."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self.proving = Proving(service)

    async def start(self) -> None:
        """Take over what an earlier process left: what was confirmed, drains that had not ended, silent proxies."""
        for stored in await self._service.store.kills(lifted=False, limit=-1):
            self.proving.learn(stored)
            order, receipt = stored.order, stored.receipt
            if receipt is None or receipt.mode != order.kill.mode:
                continue
            if receipt.mode == DRAIN:
                self._take_over(order, receipt)
            elif any(proxy.state in UNFINISHED for proxy in receipt.proxies):
                self._complete(order, receipt)

    async def kill(
        self, command: Issue, wait_s: float, arrived: float, once: Once | None = None
    ) -> Receipt:
        """Stop all that the selector matches; the receipt says who has proven it."""
        moment = now()
        step = guarded(
            once,
            partial(
                kills.issue,
                command=command,
                now=moment,
                kill_id=new_id("K"),
                clock=self._service.clock,
            ),
            lambda change: change.outcome.order.kill.kill_id,
        )
        committed = await self._service.store.commit(step, fallback=step, urgent=True)
        if isinstance(committed.outcome, Replayed):
            return await self._killed_before(committed.outcome.attempt, wait_s, arrived)
        watch = self._stopping(committed.outcome.order, committed.change.state, moment, arrived)
        return await self.proving.answer(watch, wait_s)

    def rehearse(self, command: Issue) -> Receipt:
        """Say whom the command would stop; nobody is told and nothing changes."""
        service = self._service
        state, selector = service.state, command.selector
        return rehearsal_of(
            kills.demanded(command, now(), "", state.revision),
            roster.known(service, selector),
            revision=state.revision,
            proxies=sum(not peer.gone for peer in service.hub.peers),
            already=kills.still_stopping(state.orders, selector),
            escapable=is_escapable(selector, [t.selector for t in state.tokens.values()]),
        )

    async def resume(
        self, command: Resume, wait_s: float, arrived: float, once: Once | None = None
    ) -> Receipt:
        """Lift what the command names; the receipt says which proxies let it pass again, and who goes on."""
        moment = now()
        committed = await self._service.store.commit(
            guarded(once, partial(kills.resume, command=command, now=moment), _lifted_by),
            fallback=guarded(once, partial(_withdraw, command=command, now=moment), _lifted_by),
            urgent=True,
        )
        if isinstance(committed.outcome, Replayed):
            attempt = committed.outcome.attempt
            return await self._resumed_before(attempt, command, wait_s, arrived)
        revision = committed.change.state.revision
        request = _request_of(
            command, committed.outcome.selector, moment, revision, committed.durable
        )
        watch = self._lifting(request, committed.outcome, committed.change, arrived)
        return await self.proving.answer(watch, wait_s)

    async def expire(self, due: Due, arrived: float) -> bool:
        """Lift an order whose expiry is due; whether it was. StoreError when it could not be."""
        moment = now()
        committed = await self._service.store.commit(
            partial(lifetimes.expire, due=due, now=moment),
            fallback=partial(_expire_volatile, due=due, now=moment),
            urgent=True,
        )
        expired = committed.outcome
        if expired is None:
            return False
        request = Request(
            due.kill_id,
            expired.selector,
            RESUME,
            lifetimes.EXPIRED,
            EXPIRY.name,
            moment,
            committed.change.state.revision,
            committed.durable,
        )
        self.proving.begin(self._lifting(request, expired, committed.change, arrived))
        return True

    async def harden(self, due: Due, arrived: float) -> bool:
        """Make a cut of a hold whose limit is due; whether it was."""
        moment = now()
        step = partial(lifetimes.harden, due=due, now=moment)
        committed = await self._service.store.commit(step, fallback=step, urgent=True)
        order = committed.outcome
        if order is None:
            return False
        self.proving.begin(self._stopping(order, committed.change.state, moment, arrived))
        return True

    async def note(self, kill_id: str, text: str, actor: Actor, once: Once | None = None) -> Note:
        """Keep what somebody writes about a kill. NotThereError when there is none by that id."""
        service = self._service
        stored = await service.store.kill(kill_id)
        step = partial(
            notes.note,
            kill_id=kill_id,
            text=text,
            actor=actor,
            now=now(),
            remembered=stored.order if stored else None,
        )
        outcome = (await service.store.commit(guarded(once, step, lambda _: kill_id))).outcome
        if isinstance(outcome, Replayed):
            return Note(kill_id, outcome.attempt.at, actor.name, text)
        return outcome

    async def _killed_before(self, attempt: Attempt, wait_s: float, arrived: float) -> Receipt:
        """The receipt of a kill that was ordered before under the same key: as it stands now.

        AlreadyDoneError when it has been lifted: its receipt would say that what goes on again is stopped.
        """
        kill_id, service = attempt.reference, self._service
        stored = await service.store.kill(kill_id)
        receipt = self.proving.latest(kill_id) or (stored.receipt if stored else None)
        order = service.in_force.by_id.get(kill_id)
        if order is None:
            raise AlreadyDoneError(
                f"the kill {kill_id} was ordered by the first request under this Idempotency-Key and has been lifted since; nothing was stopped again"
            )
        if receipt is not None and receipt.unconfirmed_because != PROXY_PENDING:
            return receipt
        asked = receipt.requested_at if receipt else attempt.at
        arrived -= max(0.0, (now() - attempt.at).total_seconds())
        return await self.proving.answer(
            self._stopping(order, service.state, asked, arrived), wait_s
        )

    async def _resumed_before(
        self, attempt: Attempt, command: Resume, wait_s: float, arrived: float
    ) -> Receipt:
        """The receipt of a resume that was done before under the same key; nothing is lifted again."""
        revision, _, kill_id = attempt.reference.partition(" ")
        if kill_id:
            stored = await self._service.store.kill(kill_id)
            receipt = self.proving.latest_resume(int(revision))
            receipt = receipt or (stored.resume if stored else None)
            if receipt is not None:
                return receipt
        step = partial(kills.done_before, command=command, revision=int(revision))
        committed = await self._service.store.commit(step)
        request = _request_of(
            command, committed.outcome.selector, attempt.at, int(revision), committed.durable
        )
        watch = self._lifting(request, committed.outcome, committed.change, arrived)
        return await self.proving.answer(watch, wait_s)

    def _stopping(
        self, order: Order, state: State, requested_at: datetime, arrived: float | None
    ) -> Watch:
        kill = order.kill
        request = Request(
            kill.kill_id,
            kill.selector,
            kill.mode,
            kill.reason,
            kill.actor,
            requested_at,
            state.revision,
            kill.kill_id not in state.volatile,
            escapable=is_escapable(kill.selector, [t.selector for t in state.tokens.values()]),
            grace_s=kill.grace_s,
            expires_at=kill.expires_at,
            hold_until=kill.hold_until,
        )
        peers = self._service.hub.peers_of(state.proxies.values())
        return Watch(request, peers, order.changed_revision, arrived, kill.kill_id)

    def _take_over(self, order: Order, receipt: Receipt) -> None:
        """Complete the receipt of a drain that had not ended, unless a proxy's proof ended with it."""
        watch = self._stopping(order, self._service.state, receipt.requested_at, None)
        alive = {peer.record.proxy_id for peer in watch.peers}
        ended = {proxy.proxy_id: proxy.state for proxy in receipt.proxies} | dict.fromkeys(alive)
        watch.earlier = tuple(name for name, state in ended.items() if state == GONE)
        if receipt.halted_at is None and set(ended) == {*alive, *watch.earlier}:
            watch.request = replace(watch.request, revision=receipt.revision)
            self.proving.begin(watch)

    def _complete(self, order: Order, receipt: Receipt) -> None:
        """Follow the proxies that had not said that they enforce a cut or hold."""
        watch = self._stopping(order, self._service.state, receipt.requested_at, None)
        # A name passes to a later process only when the one before is seen to have ended.
        alive = {peer.record.proxy_id for peer in watch.peers}
        watch.earlier = tuple(p.proxy_id for p in receipt.proxies if p.proxy_id not in alive)
        watch.before = receipt
        self.proving.begin(watch)

    def _lifting(
        self, request: Request, resumed: Resumed, change: Change[Any], arrived: float
    ) -> Watch:
        lifted = resumed.lifted
        # Those that were carved as they were before: it is about whom they stopped then.
        carved = (
            replace(kill, excepted=tuple(e for e in kill.excepted if e != resumed.selector))
            for kill in resumed.carved
        )
        request = replace(
            request,
            still_killed_by=tuple(kill.kill_id for kill in resumed.still_killed_by),
            lifted=tuple(kill.kill_id for kill in lifted),
            release=Release(
                now(),
                (*lifted, *carved),
                frozenset(kill.kill_id for kill in lifted if kill.mode == HOLD),
            ),
        )
        peers = self._service.hub.peers_of(change.state.proxies.values())
        revision = change.state.revision
        if change.delta is None:
            # Nothing has changed that could be confirmed; the revision is that of another change.
            return Watch(request, peers, revision, arrived, told=True)
        return Watch(request, peers, revision, arrived, name_of_resume(revision))


def _request_of(
    command: Resume, selector: Selector, at: datetime, revision: int, durable: bool
) -> Request:
    return Request(
        command.kill_id,
        selector,
        RESUME,
        command.reason,
        command.actor.name,
        at,
        revision,
        durable,
    )


def _lifted_by(change: Change[Resumed]) -> str:
    """What a resume has made: the revision and, when it has lifted one, an order by which its receipt is found."""
    lifted = change.outcome.lifted
    return f"{change.state.revision} {lifted[0].kill_id if lifted else ''}"


def _withdraw(state: State, command: Resume, now: datetime) -> Change[Resumed]:
    change = kills.withdraw(state, command, now)
    if not change.outcome.lifted:
        raise StoreError("the store could not take the resume: every order stays in force")
    return change


def _expire_volatile(state: State, due: Due, now: datetime) -> Change[Resumed | None]:
    # Like a resume without a store: only what the store never had may end without it.
    if due.kill_id not in state.volatile:
        raise StoreError(f"the store could not take the expiry of {due.kill_id}: it stays in force")
    return lifetimes.expire(state, due, now)
