"""What an agent may call, with its token: the heartbeat. Killed agents are answered like all others.

Who it is follows from the secret; headers and body can only choose within what that secret may be.
"""

from __future__ import annotations

from typing import Any

from aiohttp import web
from haltwire.wire.codec import encode
from haltwire.wire.names import AgentRef, check_seen_instance, peer_instance
from haltwire.wire.orders import deciding_kill
from haltwire.wire.selectors import Selector

from haltwire_control.calls import Call
from haltwire_control.errors import ApiError, invalid_field
from haltwire_control.following import seen_event
from haltwire_control.health import HEALTH_OF, HELD, KILLED, status_of, status_under
from haltwire_control.ledger import Beat
from haltwire_control.models import HeartbeatBody
from haltwire_control.service import Service, now
from haltwire_control.state import NewEvent, Token

AGENT_HEADER, INSTANCE_HEADER = "X-Agent-URI", "X-Agent-Instance"


class AgentsApi:
    """The agents' side of the API."""

    def __init__(self, service: Service) -> None:
        self._service = service

    async def heartbeat(self, call: Call) -> web.Response:
        """Take a sign of life and progress; answer whether the agent is killed or held."""
        body: HeartbeatBody = call.body
        agent, instance = self._identify(call, body)
        service, moment = self._service, now()
        beat = Beat(body.status, body.metadata, body.metrics, body.interval_s)
        was_finished = any(
            i.instance == instance and i.finished_at for i in service.ledger.instances(agent)
        )
        token = call.caller.token
        known, is_new = service.ledger.beat(
            agent, instance, beat, moment, token.token_id if token else None
        )
        service.metrics.heartbeats.inc()
        events = [seen_event(known)] if is_new else []
        if known.finished_at is not None and not was_finished:
            selector = Selector.of(agent, instance)
            details = {"instance": instance}
            events.append(
                NewEvent("instance.finished", moment, call.caller.actor, selector, details=details)
            )
        service.note(*events)
        kill = deciding_kill(service.in_force.about(agent), agent, instance)
        under = status_under(kill)
        answer: dict[str, Any] = {
            "ok": True,
            "killed": under == KILLED,
            "held": under == HELD,
            "health_status": HEALTH_OF[under or status_of(known.signs, moment)],
            "agent_uri": str(agent),
            "instance": instance,
            "kill": None
            if kill is None
            else {
                "kill_id": kill.kill_id,
                "selector": str(kill.selector),
                "mode": kill.mode,
                "reason": kill.reason,
                "actor": kill.actor,
                "created_at": encode(kill.created_at),
            },
            "checkpoint": None,
            "revision": service.state.revision,
        }
        return web.json_response(answer)

    def _identify(self, call: Call, body: HeartbeatBody) -> tuple[AgentRef, str]:
        """Who beats: within the token, or whoever an operator's key names."""
        token = call.caller.token
        if token is None:
            if body.agent_uri is None:
                raise ApiError(
                    422, "agent_uri_required", "agent_uri: a key is nobody's; name the agent"
                )
            agent = _agent(body.agent_uri, "agent_uri")
            instance = body.instance or peer_instance(call.request.remote or "::")
            return agent, _instance(instance, "instance")
        agent = self._agent_within(call, body, token)
        return agent, self._instance_within(call, body, token, agent)

    def _agent_within(self, call: Call, body: HeartbeatBody, token: Token) -> AgentRef:
        said = [
            _agent(text, field)
            for field, text in (
                (AGENT_HEADER, call.request.headers.get(AGENT_HEADER)),
                ("agent_uri", body.agent_uri),
            )
            if text
        ]
        agent = said[0] if said else token.selector.agent
        if agent is None:
            raise ApiError(
                422,
                "agent_required",
                f"this token is for {token.selector}; name one agent of them in agent_uri or {AGENT_HEADER}",
            )
        if any(other != agent for other in said) or not token.selector.matches_agent(agent):
            raise self._mismatch(call, "agent", agent)
        return agent

    def _instance_within(
        self, call: Call, body: HeartbeatBody, token: Token, agent: AgentRef
    ) -> str:
        header = call.request.headers.get(INSTANCE_HEADER)
        bound = token.selector.bound_instance
        if header:
            # What a proxy saw. One that it had to name by address may still call itself something
            # else, but its traffic does not go by that name, so its heartbeats must not either.
            instance = _instance(header, INSTANCE_HEADER)
            contradicted = body.instance not in (None, instance) and not header.startswith("ip:")
        else:
            instance = bound or body.instance or peer_instance(call.request.remote or "::")
            instance = _instance(instance, "instance")
            contradicted = body.instance not in (None, instance)
        if bound and header and header.startswith("ip:"):
            instance = bound
        if contradicted or not token.selector.matches_instance(instance):
            raise self._mismatch(call, "instance", agent)
        return instance

    def _mismatch(self, call: Call, kind: str, agent: AgentRef) -> ApiError:
        service = self._service
        source = call.request.remote or "unknown"
        event = service.mismatches.add(source, kind, str(agent), 1, now())
        if event is not None:
            service.note(event)
        return ApiError(403, "identity_mismatch", f"this token may not speak for that {kind}")


def _agent(text: str, field: str) -> AgentRef:
    try:
        return AgentRef.parse(text)
    except ValueError as error:
        raise invalid_field(field, str(error)) from error


def _instance(text: str, field: str) -> str:
    try:
        return check_seen_instance(text)
    except ValueError as error:
        raise invalid_field(field, str(error)) from error
