"""The operators' side of the API: agents and kills."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

from aiohttp import web
from haltwire.wire.codec import encode
from haltwire.wire.receipts import Receipt
from haltwire.wire.selectors import EVERYTHING, Selector

from haltwire_control.audit import EventRow
from haltwire_control.calls import Call
from haltwire_control.directory import agent_document, instance_document, summary_of
from haltwire_control.errors import ApiError, invalid_field
from haltwire_control.killing import Killing
from haltwire_control.kills import Issue, Resume
from haltwire_control.models import (
    AgentsQuery,
    KillBody,
    KillSelectorBody,
    KillsQuery,
    NoteBody,
    ResumeBody,
    ResumeSelectorBody,
)
from haltwire_control.proving import stands
from haltwire_control.selecting import agent_selector, selector_of, with_instance
from haltwire_control.service import Service, now
from haltwire_control.state import Note, NotThereError, Order

AGENTS_AT_ONCE = 50
KILLS_MOST = 1000
"Lifted orders in a list; those in force are all shown."


class Api:
    """Handlers; each is one route."""

    def __init__(self, service: Service, killing: Killing) -> None:
        self._service = service
        self._killing = killing

    async def list_agents(self, call: Call) -> web.Response:
        """Agents that have been seen, by name."""
        query: AgentsQuery = call.query
        service, moment = self._service, now()
        selector = selector_of(query.selector, service) if query.selector else EVERYTHING
        agents = []
        for number, agent in enumerate(service.ledger.matching(selector), start=1):
            if number % AGENTS_AT_ONCE == 0:
                await asyncio.sleep(0)  # a kill gets in between
            instances = [
                i for i in service.ledger.instances(agent) if selector.matches_instance(i.instance)
            ]
            if instances:
                kills = service.in_force.about(agent)
                agents.append(agent_document(agent, instances, kills, moment))
        if query.health:
            agents = [a for a in agents if query.health in (a["status"], a["health_status"])]
        return web.json_response(
            {"ok": True, "agents": agents[: query.limit], "summary": summary_of(agents)}
        )

    async def show_agent(self, call: Call) -> web.Response:
        """One agent with its instances and the orders about it."""
        service, moment = self._service, now()
        selector = agent_selector(call.request.match_info["agent"], service)
        agent = selector.agent
        instances = service.ledger.instances(agent) if agent else ()
        if agent is None or not instances:
            raise ApiError(404, "agent_not_found", f"{selector} has not been seen")
        kills = service.in_force.about(agent)
        document = agent_document(agent, instances, kills, moment)
        document["instances_detail"] = [instance_document(i, kills, moment) for i in instances]
        document["kills"] = [
            self._kill_document(
                service.in_force.by_id[kill.kill_id],
                self._killing.proving.is_confirmed(kill.kill_id),
            )
            for kill in sorted(kills, key=lambda kill: kill.revision)
        ]
        return web.json_response({"ok": True, "agent": document})

    async def kill_agent(self, call: Call) -> web.Response:
        """Stop one agent, or instances of it."""
        body: KillBody = call.body
        selector = agent_selector(call.request.match_info["agent"], self._service)
        return await self._kill(call, with_instance(selector, body.instance), body)

    async def kill_selector(self, call: Call) -> web.Response:
        """Stop all that a selector matches."""
        body: KillSelectorBody = call.body
        selector = selector_of(body.selector, self._service)
        return await self._kill(call, with_instance(selector, body.instance), body)

    async def resume_agent(self, call: Call) -> web.Response:
        """Let one agent go on, or instances of it."""
        body: ResumeBody = call.body
        selector = agent_selector(call.request.match_info["agent"], self._service)
        return await self._resume(call, with_instance(selector, body.instance), None, body)

    async def resume_selector(self, call: Call) -> web.Response:
        """Lift the orders inside a selector, or one order."""
        body: ResumeSelectorBody = call.body
        if (body.selector is None) == (body.kill_id is None):
            raise invalid_field("selector", "give either selector or kill_id")
        if body.kill_id is not None:
            for field, value in (("instance", body.instance), ("carve_out", body.carve_out)):
                if value:
                    raise invalid_field(field, "does not go with kill_id")
            return await self._resume(call, None, body.kill_id, body)
        selector = selector_of(body.selector or "", self._service)
        return await self._resume(call, with_instance(selector, body.instance), None, body)

    async def list_kills(self, call: Call) -> web.Response:
        """Orders in force, or all, newest first."""
        query: KillsQuery = call.query
        service = self._service
        stored = await service.store.kills(query.all, KILLS_MOST if query.all else -1)
        kills = [self._kill_document(s.order, _confirmed(s.order, s.receipt)) for s in stored]
        # What the store has not taken is newer than all that it has.
        volatile = [o for o in service.state.orders if o.kill.kill_id in service.state.volatile]
        fresh = [self._kill_document(order, False) for order in reversed(volatile)]
        return web.json_response({"ok": True, "kills": [*fresh, *kills]})

    async def show_kill(self, call: Call) -> web.Response:
        """One order with its latest receipt, what ended it, what was written about it, and its audit rows."""
        kill_id = call.request.match_info["kill_id"]
        proving = self._killing.proving
        receipt, order = proving.latest(kill_id), self._service.in_force.by_id.get(kill_id)
        stored = await self._service.store.kill(kill_id)
        story: dict[str, Any] = {"resume": None, "notes": (), "events": ()}
        if stored is not None:
            order, receipt = stored.order, receipt or stored.receipt
            resume = proving.latest_resume(order.lifted.revision) if order.lifted else None
            story = {
                "resume": resume or stored.resume,
                "notes": [_note_document(note) for note in stored.notes],
                "events": [_row_document(row) for row in stored.events],
            }
        if order is None:
            raise _no_kill(kill_id)
        if receipt is not None and receipt.reason is None:
            receipt = replace(receipt, reason=order.kill.reason)  # a note may have brought it
        document = self._kill_document(order, _confirmed(order, receipt))
        return web.json_response(
            {"ok": True, "kill": document, "receipt": encode(receipt), **encode(story)}
        )

    async def note_kill(self, call: Call) -> web.Response:
        """Keep what somebody writes about a kill."""
        body: NoteBody = call.body
        kill_id = call.request.match_info["kill_id"]
        try:
            note = await self._killing.note(kill_id, body.text, call.caller.actor, call.once)
        except NotThereError as error:
            raise _no_kill(kill_id) from error
        return web.json_response({"ok": True, "kill_id": kill_id, "note": _note_document(note)})

    async def _kill(self, call: Call, selector: Selector, body: KillBody) -> web.Response:
        command = Issue(
            selector,
            call.caller.actor,
            body.reason,
            body.mode,
            body.grace_s,
            body.ttl_s,
            body.hold_limit_s,
        )
        if body.dry_run:
            return web.json_response(encode(self._killing.rehearse(command)))
        receipt = await self._killing.kill(command, body.wait_s, call.arrived, call.once)
        if not receipt.durable:
            raise ApiError(
                503,
                "kill_not_durable",
                f"the order is in force at the proxies that applied it, but it is not stored yet{_because(self._service.store.problem)}; it is tried again until it is stored or resumed",
                retryable=True,
                beside=encode(receipt),
            )
        return web.json_response(encode(receipt))

    async def _resume(
        self, call: Call, selector: Selector | None, kill_id: str | None, body: ResumeBody
    ) -> web.Response:
        command = Resume(call.caller.actor, selector, kill_id, body.carve_out, body.reason)
        receipt = await self._killing.resume(command, body.wait_s, call.arrived, call.once)
        return web.json_response(encode(receipt))

    def _kill_document(self, order: Order, confirmed: bool) -> dict[str, Any]:
        kill, lifted = order.kill, order.lifted
        return {
            **encode(kill),
            "in_force": lifted is None,
            "durable": kill.kill_id not in self._service.state.volatile,
            "confirmed": confirmed,
            "lifted_at": encode(lifted.at) if lifted else None,
            "lifted_by": lifted.actor if lifted else None,
            "lifted_reason": lifted.reason if lifted else None,
        }


def _because(problem: str) -> str:
    return f" because {problem}" if problem else ""


def _confirmed(order: Order, receipt: Receipt | None) -> bool:
    return receipt is not None and receipt.confirmed and stands(order, receipt.revision)


def _no_kill(kill_id: str) -> ApiError:
    return ApiError(404, "kill_not_found", f"there is no kill {kill_id}")


def _note_document(note: Note) -> dict[str, Any]:
    return {"at": encode(note.at), "actor": note.actor, "text": note.text}


def _row_document(row: EventRow) -> dict[str, Any]:
    return {
        "seq": row.seq,
        "event_type": row.event_type,
        "at": row.created_at,
        "actor": row.actor,
        "hash": row.hash,
    }
