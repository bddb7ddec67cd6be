"""The operators' side of the API: agents, kills, tokens, keys, proxies."""

from __future__ import annotations

from typing import Any

from aiohttp import web
from haltwire.wire.codec import encode
from haltwire.wire.receipts import Receipt
from haltwire.wire.selectors import EVERYTHING, Selector

from haltwire_control.calls import Call
from haltwire_control.credentials import Credentials, proxy_url_of
from haltwire_control.directory import agent_document, instance_document, summary_of
from haltwire_control.errors import ApiError, invalid_field
from haltwire_control.hub import Peer
from haltwire_control.killing import Killing
from haltwire_control.kills import Resume
from haltwire_control.models import (
    AgentsQuery,
    KeyBody,
    KillBody,
    KillSelectorBody,
    KillsQuery,
    ResumeBody,
    ResumeSelectorBody,
    TokenBody,
)
from haltwire_control.selecting import agent_selector, selector_of, with_instance
from haltwire_control.service import Service, now
from haltwire_control.state import Order

KILLS_MOST = 1000


class Api:
    """Handlers; each is one route."""

    def __init__(
        self, service: Service, killing: Killing, credentials: Credentials, proxy_url: str
    ) -> None:
        self._service = service
        self._killing = killing
        self._credentials = credentials
        self._proxy_url = proxy_url

    async def list_agents(self, call: Call) -> web.Response:
        """Agents that have been seen, by name."""
        query: AgentsQuery = call.query
        service, moment = self._service, now()
        selector = selector_of(query.selector, service) if query.selector else EVERYTHING
        agents = []
        for agent in filter(selector.matches_agent, service.ledger.agents):
            instances = [
                i for i in service.ledger.instances(agent) if selector.matches_instance(i.instance)
            ]
            if instances:
                agents.append(agent_document(agent, instances, service.state.kills, moment))
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
        kills = [kill for kill in service.state.kills if kill.selector.matches_agent(agent)]
        document = agent_document(agent, instances, kills, moment)
        document["instances_detail"] = [instance_document(i, kills, moment) for i in instances]
        document["kills"] = [
            self._kill_document(order, None)
            for order in service.state.orders
            if order.kill.selector.matches_agent(agent)
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
        stored = await service.store.kills(query.all, KILLS_MOST)
        kills = [self._kill_document(s.order, s.receipt) for s in stored]
        # What the store has not taken is newer than all that it has.
        volatile = [o for o in service.state.orders if o.kill.kill_id in service.state.volatile]
        fresh = [self._kill_document(order, None) for order in reversed(volatile)]
        return web.json_response({"ok": True, "kills": [*fresh, *kills][:KILLS_MOST]})

    async def show_kill(self, call: Call) -> web.Response:
        """One order with its latest receipt."""
        kill_id = call.request.match_info["kill_id"]
        receipt = self._killing.latest(kill_id)
        order = next((o for o in self._service.state.orders if o.kill.kill_id == kill_id), None)
        stored = await self._service.store.kill(kill_id)
        if stored is not None:
            order, receipt = stored.order, receipt or stored.receipt
        if order is None:
            raise ApiError(404, "kill_not_found", f"there is no kill {kill_id}")
        document = self._kill_document(order, receipt)
        return web.json_response({"ok": True, "kill": document, "receipt": encode(receipt)})

    async def create_token(self, call: Call) -> web.Response:
        """A new agent token; its secret is shown this once."""
        body: TokenBody = call.body
        selector = selector_of(body.selector, self._service)
        made = await self._credentials.create_token(selector, body.tls, call.actor.actor)
        token = made.record
        document = {
            "token_id": token.token_id,
            "selector": str(token.selector),
            "secret": made.secret,
            "tls": token.tls,
            "expires_at": None,
            "proxy_url": proxy_url_of(self._proxy_url, token.selector, made.secret),
        }
        return web.json_response(document, status=201)

    async def list_tokens(self, _call: Call) -> web.Response:
        """Live tokens, oldest first."""
        tokens = sorted(self._service.state.tokens.values(), key=lambda t: t.created_at)
        documents = [
            {
                "token_id": token.token_id,
                "selector": str(token.selector),
                "tls": token.tls,
                "created_at": encode(token.created_at),
                "created_by": token.created_by,
                "expires_at": None,
            }
            for token in tokens
        ]
        return web.json_response({"ok": True, "tokens": documents})

    async def revoke_token(self, call: Call) -> web.Response:
        """End a token; live connections that use it are cut."""
        token_id = call.request.match_info["token_id"]
        token = await self._credentials.revoke_token(token_id, call.actor.actor)
        return web.json_response({"ok": True, "revoked": token.token_id})

    async def create_key(self, call: Call) -> web.Response:
        """A new operator's or proxy's key; its secret is shown this once."""
        body: KeyBody = call.body
        made = await self._credentials.create_key(body.name, body.role, call.actor.actor)
        key = made.record
        document = {"key_id": key.key_id, "name": key.name, "role": key.role}
        return web.json_response({**document, "secret": made.secret}, status=201)

    async def list_keys(self, _call: Call) -> web.Response:
        """Live keys, oldest first."""
        keys = sorted(self._service.state.keys.values(), key=lambda key: key.created_at)
        documents = [
            {
                "key_id": key.key_id,
                "name": key.name,
                "role": key.role,
                "created_at": encode(key.created_at),
                "created_by": key.created_by,
            }
            for key in keys
        ]
        return web.json_response({"ok": True, "keys": documents})

    async def revoke_key(self, call: Call) -> web.Response:
        """End a key."""
        named = call.request.match_info["key"]
        key = await self._credentials.revoke_key(named, call.actor.actor)
        return web.json_response({"ok": True, "revoked": key.key_id})

    async def list_proxies(self, _call: Call) -> web.Response:
        """Every proxy that may be passing traffic."""
        service = self._service
        service.sweep()
        head = service.state.revision
        peers = sorted(service.hub.peers, key=lambda peer: peer.record.proxy_id)
        proxies = [_proxy_document(peer, head) for peer in peers if not peer.gone]
        return web.json_response({"ok": True, "revision": head, "proxies": proxies})

    async def _kill(self, call: Call, selector: Selector, body: KillBody) -> web.Response:
        receipt = await self._killing.kill(
            selector, body.reason, call.actor.actor, body.wait_s, call.arrived
        )
        if not receipt.durable:
            raise ApiError(
                503,
                "kill_not_durable",
                "the order is in force at the proxies that applied it, but it is not stored yet; it is tried again until it is stored or resumed",
                retryable=True,
                beside=encode(receipt),
            )
        return web.json_response(encode(receipt))

    async def _resume(
        self, call: Call, selector: Selector | None, kill_id: str | None, body: ResumeBody
    ) -> web.Response:
        command = Resume(call.actor.actor, selector, kill_id, body.carve_out, body.reason)
        receipt = await self._killing.resume(command, body.wait_s, call.arrived)
        return web.json_response(encode(receipt))

    def _kill_document(self, order: Order, receipt: Receipt | None) -> dict[str, Any]:
        kill, lifted = order.kill, order.lifted
        return {
            **encode(kill),
            "in_force": lifted is None,
            "durable": kill.kill_id not in self._service.state.volatile,
            "confirmed": receipt.confirmed if receipt else None,
            "lifted_at": encode(lifted.at) if lifted else None,
            "lifted_by": lifted.actor if lifted else None,
            "lifted_reason": lifted.reason if lifted else None,
        }


def _proxy_document(peer: Peer, head: int) -> dict[str, Any]:
    record = peer.record
    connected = peer.outlet is not None
    return {
        "proxy_id": record.proxy_id,
        "host": record.host,
        "pid": record.pid,
        "version": record.version,
        "state": "connected" if connected else "out_of_reach",
        "current": connected and peer.applied_revision >= head,
        "revision": peer.applied_revision if peer.applied_revision >= 0 else None,
        "connections": peer.connections,
        "first_seen_at": encode(record.first_seen_at),
        "connected_at": encode(peer.connected_at),
        "heard_at": encode(peer.heard_at),
    }
