"""From an order that holds to its proof: wait for acks, answer, keep the receipt, complete it as more comes in."""

from __future__ import annotations

import asyncio
import logging
import time
from dataclasses import replace

from haltwire.wire.orders import HOLD
from haltwire.wire.receipts import FENCED, RUNNING, Receipt

from haltwire_control import roster
from haltwire_control.completing import completed
from haltwire_control.receipts import RESUME, receipt_of
from haltwire_control.resumed import resume_receipt_of
from haltwire_control.service import Service, now
from haltwire_control.state import (
    SYSTEM,
    Change,
    NewEvent,
    Order,
    Record,
    StoredReceipt,
    StoredResume,
)
from haltwire_control.store import StoredKill, StoreError
from haltwire_control.watch import Watch

log = logging.getLogger(__name__)
COMPLETE_EVERY_S = 0.1
RECORD_EVERY_S = 1.0
"How often a receipt is stored again while only its counts change."
INSTANCES_PER_S = 1000
"A receipt of more instances than this is stored more rarely: it is put together in the event loop."
RESUME_WATCHED_S = 300.0
"A proxy that is out of reach for longer is told all orders when it comes back; nobody waits for that."
RESUMES_WATCHED = 1000
"Resumes followed at once; beyond, the oldest whose receipt is stored is let go of as it is."
LOOK_EVERY_S = 0.05
"How often the end of a disconnected proxy is looked for while somebody waits."
WATCHED_AT_ONCE = 50


class Proving:
    """Every watch, from the commit that it begins with until nothing more can come in."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._watches: dict[str, Watch] = {}
        "The latest of each kill, and of each revision that lifted something, by name."
        self._settled: set[str] = set()
        "Holds whose receipts are stored as they are, until a proxy reports about them or they end."
        self._confirmed: dict[str, int] = {}
        "The revision for which a kill's confirmation is in the audit log."

    def learn(self, stored: StoredKill) -> None:
        """Take over from an earlier process that an order in force is confirmed."""
        if stored.receipt is not None and stored.receipt.confirmed:
            self._confirmed[stored.order.kill.kill_id] = stored.receipt.revision

    def begin(self, watch: Watch) -> None:
        """Follow a watch from now on, in place of an earlier one of the same order."""
        for kill_id in watch.request.lifted:
            self._confirmed.pop(kill_id, None)
        if watch.request.mode != RESUME:
            told = self._confirmed.get(watch.request.kill_id or "", -1)
            watch.told = told >= watch.needed_revision
        if watch.name:
            self._watches[watch.name] = watch
            self._settled.discard(watch.name)
        if watch.request.mode == RESUME:
            self._let_go_of_the_oldest()

    async def answer(self, watch: Watch, wait_s: float) -> Receipt:
        """Follow a watch, and its receipt once it is complete, or after the wait."""
        watch.answering = True
        self.begin(watch)
        try:
            await self._wait(watch, time.monotonic() + wait_s)
            if self._watches.get(watch.name) is not watch:
                return self._receipt(watch)  # a later request's is kept, or none
            return await self._record(watch)
        finally:
            watch.answering = False
            self._settle(watch)

    async def follow(self) -> None:
        """Complete the receipts of answered kills as late acks and reports come in, until cancelled."""
        hub = self._service.hub
        while True:
            heard = hub.progress.count
            self._settled -= hub.take_news()
            for number, (name, watch) in enumerate(list(self._watches.items()), start=1):
                if number % WATCHED_AT_ONCE == 0:
                    await asyncio.sleep(0)  # a kill gets in between
                if name in self._settled:
                    continue
                try:
                    await self._complete(watch)
                except Exception:
                    log.exception("the receipt of %s could not be completed", name)
            await asyncio.sleep(COMPLETE_EVERY_S)
            await hub.progress.wait(1.0, heard)

    def latest(self, kill_id: str) -> Receipt | None:
        """The receipt of a kill that may still change; the store has the others."""
        watch = self._watches.get(kill_id)
        return None if watch is None or watch.is_behind else self._receipt(watch)

    def latest_resume(self, revision: int) -> Receipt | None:
        """The same, of what lifted orders with this revision."""
        return self.latest(name_of_resume(revision))

    def is_confirmed(self, kill_id: str) -> bool:
        """Whether an order in force, as it stands now, has been proven to be enforced everywhere."""
        order, proven = self._service.in_force.by_id.get(kill_id), self._confirmed.get(kill_id)
        return order is not None and proven is not None and stands(order, proven)

    async def _wait(self, watch: Watch, deadline: float) -> None:
        """Until nothing more can come in, or the deadline; details alone are waited for briefly."""
        self._service.sweep()
        while True:
            moment = time.monotonic()
            watch.look(now, moment)
            patient = watch.is_pending or watch.waits_for_ends
            until = deadline if patient else min(deadline, watch.reports_until)
            if watch.is_complete or moment >= until or self._is_over(watch):
                return
            if not await self._service.hub.progress.wait(min(LOOK_EVERY_S, until - moment)):
                self._service.sweep()

    async def _complete(self, watch: Watch) -> None:
        if watch.answering or self._watches.get(watch.name) is not watch:
            return
        moment = time.monotonic()
        watch.look(now, moment)
        self._update(watch)
        over = self._is_over(watch)
        due = over or moment >= watch.record_after or watch.stage != watch.recorded_stage
        news = watch.request.mode == RESUME or (
            watch.request.durable and watch.known != watch.recorded
        )
        if due and news and not watch.is_behind:
            await self._record(watch)
        if over:
            self._forget(watch)
        else:
            self._settle(watch)

    def _settle(self, watch: Watch) -> None:
        """Let go of a watch whose receipt is stored as it will always be."""
        name, mode = watch.name, watch.request.mode
        if self._watches.get(name) is not watch or not watch.is_complete or watch.recorded is None:
            return
        if mode == RESUME:
            if _all_run(watch.recorded):
                self._forget(watch)
        elif watch.recorded == watch.known:
            if mode == HOLD:
                self._settled.add(name)  # its peers may give up at any time
            else:
                self._forget(watch)

    def _forget(self, watch: Watch) -> None:
        if self._watches.get(watch.name) is watch:
            del self._watches[watch.name]
            self._settled.discard(watch.name)

    def _let_go_of_the_oldest(self) -> None:
        resumes = [w for w in self._watches.values() if w.request.mode == RESUME]
        for watch in resumes[:-RESUMES_WATCHED]:
            # One that is not stored yet is the only place where its receipt is.
            if watch.recorded is not None and not watch.answering:
                self._forget(watch)

    def _is_over(self, watch: Watch) -> bool:
        """Whether a kill has been lifted while it was watched, or a resume watched for long enough."""
        if watch.request.mode == RESUME:
            return time.monotonic() - (watch.arrived or 0.0) > RESUME_WATCHED_S
        return watch.request.kill_id not in self._service.in_force.by_id

    def _update(self, watch: Watch) -> None:
        if watch.request.mode != RESUME:
            durable = watch.request.kill_id not in self._service.state.volatile
            watch.request = replace(watch.request, durable=durable)

    def _receipt(self, watch: Watch) -> Receipt:
        self._update(watch)
        request, evidence = watch.request, watch.evidence()
        if watch.before is not None:
            return completed(watch.before, evidence)
        if request.mode != RESUME:
            return receipt_of(request, evidence, roster.known(self._service, request.selector))
        named = roster.named(self._service, request.selector)
        freed = roster.freed(self._service, watch)
        return resume_receipt_of(request, evidence, freed, named.agents, named.did_you_mean)

    async def _record(self, watch: Watch) -> Receipt:
        """Keep the receipt, and note its confirmation once; the order itself does not depend on that."""
        receipt = self._receipt(watch)
        is_resume = receipt.mode == RESUME
        # How its instances are is what is new about a resume, and only the receipt says that.
        known: object = receipt if is_resume else watch.known
        if known == watch.recorded or not (receipt.durable or is_resume):
            return receipt
        told = self._is_told(watch)
        tell = receipt.confirmed and not told
        put, events = _to_keep(watch, receipt), (_confirmation(receipt),) if tell else ()
        rarely = max(1.0, len(receipt.instances) / INSTANCES_PER_S)
        watch.recorded_stage = watch.stage
        watch.record_after = time.monotonic() + RECORD_EVERY_S * rarely
        confirmed = None if is_resume or not tell else receipt.kill_id
        if confirmed is not None:
            self._confirmed[confirmed] = watch.needed_revision  # so that nobody else tells it, too
        if put or events:
            try:
                await self._service.store.commit(
                    lambda state: Change(state, None, put=put, events=events), urgent=True
                )
            except StoreError as error:
                log.error("a receipt is not stored: %s", error)
                if confirmed is not None:
                    self._confirmed.pop(confirmed, None)
                return receipt
            # What a resume changed in memory alone was stored before this.
            watch.request = replace(watch.request, durable=True)
        watch.recorded, watch.told = known, told or tell
        return receipt

    def _is_told(self, watch: Watch) -> bool:
        if watch.request.mode == RESUME:
            return watch.told
        told = self._confirmed.get(watch.request.kill_id or "", -1)
        return watch.told or told >= watch.needed_revision


def stands(order: Order, proven: int) -> bool:
    """Whether the proof of an order as of a revision is one of what it has become.

    What was carved out of it since took nothing back; whatever else changed made it stop more.
    """
    return proven >= order.changed_revision or bool(order.kill.excepted)


def name_of_resume(revision: int) -> str:
    """The name of a watch over what this revision has lifted."""
    return f"resume {revision}"


def _to_keep(watch: Watch, receipt: Receipt) -> tuple[Record, ...]:
    if receipt.mode != RESUME:
        return (StoredReceipt(receipt),)
    # What lifted nothing is the end of no order: nobody could find its receipt.
    return (StoredResume(watch.needed_revision, receipt),) if receipt.lifted else ()


def _all_run(recorded: object) -> bool:
    """Whether the receipt of a resume has nothing more to say: what lifted nothing has not."""
    return isinstance(recorded, Receipt) and (
        not recorded.lifted or all(i.state == RUNNING for i in recorded.instances)
    )


def _confirmation(receipt: Receipt) -> NewEvent:
    details: dict[str, object] = {"proxies": receipt.matched.proxies, "revision": receipt.revision}
    if receipt.mode == RESUME:
        about = receipt.lifted
        details["lifted"] = list(receipt.lifted)
        kind = "resume.confirmed"
    else:
        about = (receipt.kill_id,) if receipt.kill_id else ()
        details |= {
            "kill_id": receipt.kill_id,
            "mode": receipt.mode,
            "agents": receipt.matched.agents,
            "instances": receipt.matched.instances,
            "halted_at": receipt.halted_at,
            "halted_in_ms": receipt.halted_in_ms,
            "fenced": [p.proxy_id for p in receipt.proxies if p.state == FENCED],
        }
        kind = "kill.confirmed"
    return NewEvent(kind, now(), SYSTEM, receipt.selector, receipt.reason, details, about)
