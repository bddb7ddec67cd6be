"""Kill and resume, from the order to its proof: decide and commit, push, wait for acks, answer, keep the receipt."""

from __future__ import annotations

import asyncio
import logging
import time
from dataclasses import replace
from datetime import datetime
from functools import partial

from haltwire.wire.names import AgentRef
from haltwire.wire.receipts import Receipt
from haltwire.wire.selectors import Selector

from haltwire_control import kills
from haltwire_control.auth import new_id
from haltwire_control.health import is_live
from haltwire_control.receipts import RESUME, Known, Request, is_escapable, receipt_of, similar
from haltwire_control.service import Service, now
from haltwire_control.state import SYSTEM, Actor, Change, NewEvent, State, StoredReceipt
from haltwire_control.store import StoreError
from haltwire_control.watch import Watch

log = logging.getLogger(__name__)
COMPLETE_EVERY_S = 0.1
RESUME_WATCHED_S = 300.0
"A proxy that is out of reach for longer is told all orders when it comes back; nobody waits for that."
LOOK_EVERY_S = 0.05
"How often the end of a disconnected proxy is looked for while somebody waits."


class Killing:
    """The use cases that stop agents and let them go on."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._late: dict[str, Watch] = {}
        "Kills whose receipts are not complete yet, although they were answered."
        self._confirmed: dict[str, int] = {}
        "The revision for which a kill's confirmation is in the audit log."

    async def start(self) -> None:
        """Learn which orders in force are known to be confirmed."""
        for stored in await self._service.store.kills(lifted=False, limit=-1):
            if stored.receipt is not None and stored.receipt.confirmed:
                self._confirmed[stored.order.kill.kill_id] = stored.order.changed_revision

    async def kill(
        self, selector: Selector, reason: str | None, actor: Actor, wait_s: float, arrived: float
    ) -> Receipt:
        """Stop all that the selector matches; the receipt says who has proven it."""
        service, requested_at = self._service, now()
        step = partial(
            kills.issue,
            command=kills.Issue(selector, actor, reason),
            now=requested_at,
            kill_id=new_id("K"),
        )
        committed = await service.store.commit(step, fallback=step, urgent=True)
        order, state = committed.outcome.order, committed.change.state
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
            escapable=is_escapable(selector, [t.selector for t in state.tokens.values()]),
        )
        peers = service.hub.peers_of(state.proxies.values())
        watch = Watch(request, peers, order.changed_revision, arrived)
        watch.told = self._confirmed.get(kill.kill_id, -1) >= order.changed_revision
        await self._wait(watch, time.monotonic() + wait_s)
        receipt = await self._record(watch)
        if not self._is_kept(watch):
            self._late[kill.kill_id] = watch
        return receipt

    async def resume(self, command: kills.Resume, wait_s: float, arrived: float) -> Receipt:
        """Lift what the command names; the receipt says which proxies let it pass again."""
        service, requested_at = self._service, now()
        committed = await service.store.commit(
            partial(kills.resume, command=command, now=requested_at),
            fallback=partial(_withdraw, command=command, now=requested_at),
            urgent=True,
        )
        resumed, state = committed.outcome, committed.change.state
        for kill in resumed.lifted:
            self._confirmed.pop(kill.kill_id, None)
        request = Request(
            command.kill_id,
            resumed.selector,
            RESUME,
            command.reason,
            command.actor.name,
            requested_at,
            state.revision,
            committed.durable,
            tuple(kill.kill_id for kill in resumed.still_killed_by),
            lifted=tuple(kill.kill_id for kill in resumed.lifted),
        )
        peers = service.hub.peers_of(state.proxies.values())
        watch = Watch(request, peers, state.revision, arrived)
        watch.told = committed.change.delta is None
        await self._wait(watch, time.monotonic() + wait_s)
        receipt = await self._record(watch)
        if not self._is_kept(watch):
            self._late[f"resume {state.revision}"] = watch
        return receipt

    async def follow(self) -> None:
        """Complete the receipts of answered kills as late acks come in, until cancelled."""
        progress = self._service.hub.progress
        while True:
            heard = progress.count
            for name, watch in list(self._late.items()):
                try:
                    await self._complete(name, watch)
                except Exception:
                    log.exception("the receipt of %s could not be completed", name)
            await asyncio.sleep(COMPLETE_EVERY_S)
            await progress.wait(1.0, heard)

    def latest(self, kill_id: str) -> Receipt | None:
        """The receipt of a kill that is not complete yet; the store has the others."""
        watch = self._late.get(kill_id)
        return None if watch is None else self._receipt(watch)

    def is_confirmed(self, kill_id: str) -> bool:
        """Whether an order in force has been proven to be enforced everywhere."""
        return kill_id in self._confirmed

    async def _complete(self, name: str, watch: Watch) -> None:
        watch.look(now, time.monotonic())
        if self._needs_record(watch):
            await self._record(watch)
        over = self._is_over(watch) or self._is_kept(watch)
        if over and self._late.get(name) is watch:
            del self._late[name]

    async def _wait(self, watch: Watch, deadline: float) -> None:
        """Until nothing more can come in, or the deadline; details alone are waited for briefly."""
        self._service.sweep()
        while True:
            moment = time.monotonic()
            watch.look(now, moment)
            until = deadline if watch.is_pending else min(deadline, watch.reports_until)
            if watch.is_complete or moment >= until or self._is_over(watch):
                return
            if not await self._service.hub.progress.wait(min(LOOK_EVERY_S, until - moment)):
                self._service.sweep()

    def _is_over(self, watch: Watch) -> bool:
        """Whether a kill has been lifted while it was watched, or a resume watched for long enough."""
        kill_id = watch.request.kill_id
        if watch.request.mode == RESUME:
            return time.monotonic() - watch.arrived > RESUME_WATCHED_S
        return kill_id not in self._service.in_force.by_id

    def _needs_record(self, watch: Watch) -> bool:
        self._update(watch)
        return watch.request.durable and watch.known != watch.recorded

    def _is_kept(self, watch: Watch) -> bool:
        """Whether the receipt is stored as it will always be."""
        return watch.is_complete and watch.recorded is not None and watch.known == watch.recorded

    def _update(self, watch: Watch) -> None:
        if watch.request.mode != RESUME:
            durable = watch.request.kill_id not in self._service.state.volatile
            watch.request = replace(watch.request, durable=durable)

    def _receipt(self, watch: Watch) -> Receipt:
        self._update(watch)
        return receipt_of(watch.request, watch.evidence(), self._known(watch.request.selector))

    async def _record(self, watch: Watch) -> Receipt:
        """Keep the receipt, and note its confirmation once; the order itself does not depend on that."""
        receipt, known = self._receipt(watch), watch.known
        if not receipt.durable and receipt.mode != RESUME:
            return receipt
        kill_id = None if receipt.mode == RESUME else receipt.kill_id
        told = watch.told or self._confirmed.get(kill_id or "", -1) >= watch.needed_revision
        tell = receipt.confirmed and not told
        put = () if kill_id is None else (StoredReceipt(receipt),)
        events = (_confirmation(receipt),) if tell else ()
        if not put and not events:
            watch.recorded = known
            return receipt
        if tell and kill_id is not None:
            self._confirmed[kill_id] = watch.needed_revision  # so that nobody else tells it, too
        try:
            await self._service.store.commit(
                lambda state: Change(state, None, put=put, events=events), urgent=True
            )
        except StoreError as error:
            log.error("a receipt is not stored: %s", error)
            if tell and kill_id is not None:
                self._confirmed.pop(kill_id, None)
            return receipt
        watch.recorded, watch.told = known, told or tell
        return receipt

    def _known(self, selector: Selector) -> Known:
        moment, service = now(), self._service
        live, agents = [], set()
        for agent in service.ledger.matching(selector):
            for instance in service.ledger.instances(agent):
                if selector.matches_instance(instance.instance):
                    agents.add(agent)
                    if is_live(instance.signs, moment):
                        live.append(instance)
        tokens = [token.selector for token in service.state.tokens.values()]
        agents.update(_named(tokens, selector))
        if agents:
            return Known(tuple(live), frozenset(agents))
        return Known((), frozenset(), similar(selector, known_agents(service)))


def known_agents(service: Service) -> tuple[AgentRef, ...]:
    """Agents that have been seen or that a live token names."""
    tokens = [token.selector.agent for token in service.state.tokens.values()]
    return tuple({*service.ledger.agents, *(agent for agent in tokens if agent)})


def _named(tokens: list[Selector], selector: Selector) -> set[AgentRef]:
    """The agents of tokens that the selector surely matches: those are spelt right, seen or not."""
    return {token.agent for token in tokens if token.agent and selector.covers(token)}


def _withdraw(state: State, command: kills.Resume, now: datetime) -> Change[kills.Resumed]:
    change = kills.withdraw(state, command, now)
    if not change.outcome.lifted:
        raise StoreError("the store could not take the resume: every order stays in force")
    return change


def _confirmation(receipt: Receipt) -> NewEvent:
    details: dict[str, object] = {"proxies": receipt.matched.proxies, "revision": receipt.revision}
    if receipt.mode == RESUME:
        details["lifted"] = list(receipt.lifted)
        kind = "resume.confirmed"
    else:
        details |= {
            "kill_id": receipt.kill_id,
            "agents": receipt.matched.agents,
            "instances": receipt.matched.instances,
            "halted_at": receipt.halted_at,
            "halted_in_ms": receipt.halted_in_ms,
        }
        kind = "kill.confirmed"
    return NewEvent(kind, now(), SYSTEM, receipt.selector, receipt.reason, details)
