"""Who asks, for where, and whether it may: one head, judged in one step before anything is registered or dialled.

Checked in this order: there are orders to judge by; the credentials; the destination and its one authority;
the token's room for instances; lease, token and orders; CONNECT's port; the agent's limits.
"""

from __future__ import annotations

from dataclasses import dataclass

from haltwire.wire.refusals import Refusal

from haltwire_proxy.agent_api import HOST as AGENT_API_HOST
from haltwire_proxy.destinations import parse_authority
from haltwire_proxy.enforcer import NO_WORD
from haltwire_proxy.head import Head
from haltwire_proxy.identity import Identity, identify
from haltwire_proxy.one_authority import ANOTHER_HOST, names_another
from haltwire_proxy.services import Services


@dataclass(frozen=True, slots=True)
class Admitted:
    """A head that goes on. Held ones do too: they wait where they are dialled, or read inside."""

    identity: Identity
    host: str
    port: int
    connect: bool
    inspect: bool
    "Whether mitmproxy reads it; a killed agent is, too, to be told so inside TLS."

    @property
    def agent_api(self) -> bool:
        """Whether it is for us: answered to agents that are killed, held or stale."""
        return self.host == AGENT_API_HOST


class Early:
    """A head that came before it is known here who may pass. It is judged when that is known."""


@dataclass(frozen=True, slots=True)
class Turned:
    """A head that is refused."""

    refusal: Refusal
    identity: Identity | None = None
    of_credentials: bool = False
    "Whether it is they that did not fit: such a client may be let try again, and may be guessing."


def admit(services: Services, head: Head, peer: str) -> Admitted | Turned | Early:
    """Judge the first head of a client connection; `peer` is the client's address."""
    enforcer = services.enforcer
    tokens = enforcer.tokens
    if tokens is None:
        enforcer.lease.look()
        return Early() if enforcer.lease.waits else Turned(NO_WORD)
    identity = identify(head.headers, tokens, peer)
    if isinstance(identity, Refusal):
        return Turned(identity, of_credentials=True)
    connect = head.method == "CONNECT"
    try:
        host, port = _destination(head.target, connect=connect)
    except ValueError as error:
        return Turned(Refusal("malformed_request", f"{error}."), identity)
    if connect and names_another(head.headers, host, port):
        enforcer.tallies.mismatch(peer, ANOTHER_HOST.code, str(identity.agent))
        return Turned(ANOTHER_HOST, identity)
    inspect = not connect or services.intercepts(identity, host)
    admitted = Admitted(identity, host, port, connect, inspect)
    refusal = None if admitted.agent_api else _refusal(services, admitted)
    return admitted if refusal is None else Turned(refusal, identity)


def _refusal(services: Services, asked: Admitted) -> Refusal | None:
    enforcer, identity = services.enforcer, asked.identity
    handshake = asked.connect and asked.inspect
    decision, room = enforcer.decide(identity), enforcer.room(identity)
    killed = decision if isinstance(decision, Refusal) else None
    if killed is not None:
        inside = handshake and killed.kill is not None and room is None
        if not inside or services.overload.refusal_inside(identity.agent):
            return killed
    elif room is not None:
        return room
    elif handshake:
        # Before our 200: behind it, a protocol that is not HTTP could only be cut off.
        denied = services.dialer.rules.check_name(asked.host, asked.port, connect=True)
        if denied is not None:
            return denied
    too_many = services.overload.connection(identity, handshake=handshake)
    return None if too_many is None else killed or too_many


def _destination(target: bytes, *, connect: bool) -> tuple[str, int]:
    if connect:
        return parse_authority(target, None)
    scheme, separator, rest = target.partition(b"://")
    if not separator:
        raise ValueError("a proxy needs the whole URL in the request line")
    if scheme.lower() != b"http":
        raise ValueError("only http:// URLs are requested in the open; use CONNECT for https://")
    authority = rest
    for end in (b"/", b"?", b"#"):
        authority = authority.partition(end)[0]
    return parse_authority(authority, 80)
