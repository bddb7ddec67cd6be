"""Asks, for each connection and request, whether it is one too many, and counts what was.

Only what a limit names is refused; nothing here waits, and a kill asks none of it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace

from haltwire.wire.names import AgentRef
from haltwire.wire.refusals import Refusal

from haltwire_proxy.agent_api import AgentApi
from haltwire_proxy.connections import Connection
from haltwire_proxy.enforcer import Enforcer
from haltwire_proxy.identity import Identity
from haltwire_proxy.limits import RESERVED_DESCRIPTORS, Buckets, Limits
from haltwire_proxy.lobby import Lobby
from haltwire_proxy.refuse import RefusalRate
from haltwire_proxy.tally import Tallies

_ONE_TOO_MANY = {
    "head_bytes": Refusal("headers_too_large", "The request head is too large."),
    "head_fields": Refusal("headers_too_large", "The request head has too many header fields."),
    "head_s": Refusal("request_timeout", "The request head did not come in time."),
    "connections": Refusal("proxy_full", "The proxy has as many connections as it may have."),
    "agent_connections": Refusal("rate_exceeded", "This agent has too many connections here."),
    "agent_requests": Refusal("rate_exceeded", "This agent has too many requests under way here."),
    "agent_handshakes": Refusal(
        "rate_exceeded",
        "This agent opens new connections too fast: let it keep them and reuse them.",
    ),
    "agent_calls": Refusal("rate_exceeded", "This agent has too many calls under way here."),
}
_WAITING = Refusal(
    "rate_exceeded", "Too many connections wait here that have not sent a request head."
)


def exceeded(limit: str, tallies: Tallies, who: Identity | None = None) -> Refusal:
    """The refusal of whoever came up against this limit, which is counted."""
    tallies.count(f"limit.{limit}")
    refusal = _ONE_TOO_MANY.get(limit, _WAITING)
    return (
        refusal
        if who is None
        else replace(refusal, agent_uri=str(who.agent), instance=who.instance)
    )


def head(limits: Limits, fields: Sequence[tuple[bytes, bytes]], target: bytes = b"") -> str | None:
    """The limit that a head inside TLS is beyond, or None. A whole one is seen only once it is parsed."""
    if len(fields) > limits.head_fields:
        return "head_fields"
    size = len(target) + sum(len(name) + len(value) + 4 for name, value in fields)
    return "head_bytes" if size > limits.head_bytes else None


def upstream(enforcer: Enforcer, descriptor: int) -> Refusal | None:
    """Why this descriptor of an upstream is one too many, or None: some are reserved."""
    if descriptor < enforcer.descriptors - RESERVED_DESCRIPTORS // 2:
        return None
    return exceeded("connections", enforcer.tallies)


def request(enforcer: Enforcer, connection: Connection) -> Refusal | None:
    """Why this connection's agent gets no further request that is read inside, or None."""
    if connection.load.requests < enforcer.limits.agent_requests:
        return None
    return exceeded("agent_requests", enforcer.tallies, connection.identity)


def call(enforcer: Enforcer, agent_api: AgentApi, who: Identity) -> Refusal | None:
    """Why this agent gets no further call of haltwire.internal, or None."""
    limit, sessions, agent = enforcer.limits.agent_calls, agent_api.sessions, who.agent
    kept = enforcer.connections.load_of(agent).calls
    # Sessions are counted only when there can be too many.
    if kept + len(sessions) < limit or kept + sum(one.agent == agent for one in sessions) < limit:
        return None
    return exceeded("agent_calls", enforcer.tallies, who)


class Overload:
    """One per worker."""

    def __init__(
        self,
        enforcer: Enforcer,
        agent_api: AgentApi,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._enforcer = enforcer
        self._agent_api = agent_api
        self._clock = clock
        self._refusals = RefusalRate(enforcer.limits.agent_refusals)
        self._handshakes = Buckets(enforcer.limits.agent_handshakes)
        self.lobby = Lobby(
            enforcer.limits,
            lambda: enforcer.connections.count + len(agent_api.sessions),
            enforcer.descriptors - RESERVED_DESCRIPTORS,
        )

    def refuse(self, limit: str, who: Identity | None = None) -> Refusal:
        """The refusal of whoever came up against this limit, which is counted."""
        return exceeded(limit, self._enforcer.tallies, who)

    def connection(self, identity: Identity, *, handshake: bool) -> Refusal | None:
        """Why this agent gets no further connection, or None; `handshake`: one that is read inside TLS."""
        load = self._enforcer.connections.load_of(identity.agent)
        if load.connections >= self._enforcer.limits.agent_connections:
            return self.refuse("agent_connections", identity)
        if handshake and not self._handshakes.take(identity.agent, self._clock()):
            return self.refuse("agent_handshakes", identity)
        return None

    def refusal_inside(self, agent: AgentRef) -> bool:
        """Whether this agent is refused at CONNECT from now on: inside TLS it has been refused often enough."""
        if not self._refusals.exceeded(agent):
            return False
        self.refuse("agent_refusals")
        return True

    def call(self, identity: Identity) -> Refusal | None:
        """Why this agent gets no further call of haltwire.internal, or None."""
        return call(self._enforcer, self._agent_api, identity)
