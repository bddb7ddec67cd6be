"""Who is calling: from a request head and the token rules to an identity, or to a refusal.

Rule 1: the secret is the identity. Rule 2: what else the caller says of itself (label, X-Agent-URI,
X-Agent-Instance) may narrow what the secret allows and never contradict it. Nothing of it is echoed.

No secret is ever compared with another one byte by byte: it is hashed, and the hash is looked up. How
long a look-up takes can tell something about a stored hash, but whoever learns part of one has still to
find a secret that begins so, and cannot steer what his own hashes to. The caches are keyed by what the
caller sent; Python's hash of that is keyed anew in each process, so that a lucky prefix finds nothing,
and what they keep in memory are secrets that this process has anyway in `Identity.secret`.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

from haltwire.wire.messages import TokenRule
from haltwire.wire.names import (
    MAX_USERINFO_BYTES,
    AgentRef,
    Label,
    check_instance,
    peer_instance,
    split_userinfo,
)
from haltwire.wire.refusals import Refusal

Headers = Sequence[tuple[bytes, bytes]]
"Raw names and values in order, names in any case."

# The scheme, a blank, and Base64 of the longest LABEL:SECRET that is read.
_MAX_CREDENTIALS_BYTES = 64 + MAX_USERINFO_BYTES * 4 // 3


@dataclass(frozen=True, slots=True)
class Identity:
    """Who a client connection belongs to."""

    agent: AgentRef
    instance: str
    "Its name, or `ip:…` of the peer."
    token_id: str
    tls: str | None
    "The token's own wish: `tunnel`, `intercept`, or None for the proxy's default."
    named: bool
    "Whether the instance named itself, or its token did."
    secret: str = field(repr=False)
    "The agent's own secret, to relay its API calls as that agent. Never logged."


@dataclass(frozen=True, slots=True)
class _Claim:
    """What one head says; None where it is silent."""

    secret: str | None
    label: Label | None
    agent: AgentRef | None
    "X-Agent-URI."
    instance: str | None
    "X-Agent-Instance."

    @property
    def agents(self) -> set[AgentRef]:
        """Every agent that it names: more than one contradict each other."""
        return {a for a in (self.label.agent if self.label else None, self.agent) if a is not None}

    @property
    def instances(self) -> set[str]:
        """Every instance that it names."""
        return {
            i for i in (self.label.instance if self.label else None, self.instance) if i is not None
        }


def identify(
    headers: Headers, tokens: Mapping[str, TokenRule], peer_host: str
) -> Identity | Refusal:
    """The identity that the first head of a client connection proves. `tokens` is keyed by digest.

    Checked in this order: exactly one well-formed credential; a secret that we know; a label and
    headers that name one agent and one instance within that secret's selector.
    """
    claim = _claim(headers)
    if isinstance(claim, Refusal):
        return claim
    if claim.secret is None:
        return _REQUIRED
    rule = tokens.get(_digest(claim.secret))
    if rule is None:
        return _UNKNOWN
    selector = rule.selector
    own_uri = None if selector.agent is None else str(selector.agent)
    agents, instances = claim.agents, claim.instances
    if len(agents) > 1 or len(instances) > 1:
        return _mismatch("The label and the X-Agent headers contradict each other.", own_uri)
    agent = next(iter(agents), selector.agent)
    if agent is None:
        return Refusal(
            "agent_required",
            "This token serves several agents: name one in the label or in X-Agent-URI.",
        )
    if not selector.matches_agent(agent):
        return _mismatch("The secret does not belong to the agent that is named.", own_uri)
    bound = selector.bound_instance
    if bound is not None and bound.startswith("ip:"):
        bound = None  # a peer address is where a caller is, not a name that its secret gives it
    said = next(iter(instances), bound)
    instance = peer_instance(peer_host) if said is None else said
    if not selector.matches_instance(instance):
        if said is None and selector.bound_instance is None:
            return Refusal(
                "agent_required",
                "This token serves instances with certain names: name one in the label or in"
                " X-Agent-Instance.",
                str(agent),
            )
        return _mismatch("The secret is bound to another instance.", str(agent))
    return Identity(agent, instance, rule.token_id, rule.tls, said is not None, claim.secret)


def agrees(
    headers: Headers,
    identity: Identity,
    tokens: Mapping[str, TokenRule],
    peer_host: str,
    credentials_required: bool,
) -> Refusal | None:
    """Whether a later head on the same client connection is still the same caller; None when it is.

    A head may be silent about agent and instance, but what it says has to be the same.
    """
    claim = _claim(headers)
    if isinstance(claim, Refusal):
        return claim
    if claim.secret is None:
        if credentials_required:
            return _REQUIRED
    elif _digest(claim.secret) not in tokens:
        return _UNKNOWN
    elif not hmac.compare_digest(claim.secret, identity.secret):
        return _switched(identity)
    if not identity.named and identity.instance != peer_instance(peer_host):
        return _switched(identity)
    if not claim.agents <= {identity.agent} or not claim.instances <= {identity.instance}:
        return _switched(identity)
    return None


def _claim(headers: Headers) -> _Claim | Refusal:
    credentials: list[bytes] = []
    uris: list[bytes] = []
    instances: list[bytes] = []
    lists = {
        b"proxy-authorization": credentials,
        b"x-agent-uri": uris,
        b"x-agent-instance": instances,
    }
    for name, value in headers:
        values = lists.get(name.lower())
        if values is not None:
            values.append(value.strip(b" \t"))
    if len(credentials) > 1 or (credentials and b"," in credentials[0]):
        # Which of two would count is what a smuggler plays with.
        return Refusal("malformed_request", "There is more than one Proxy-Authorization.")
    if len(uris) > 1 or len(instances) > 1:
        return Refusal("malformed_request", "There is more than one X-Agent header of a kind.")
    try:
        agent = AgentRef.parse_label(uris[0].decode("ascii")) if uris else None
        instance = check_instance(instances[0].decode("ascii")) if instances else None
    except ValueError:
        return Refusal("malformed_request", "X-Agent-URI or X-Agent-Instance is no valid name.")
    try:
        label, secret = _credentials(credentials[0]) if credentials else (None, None)
    except ValueError:
        return _MALFORMED_CREDENTIALS
    return _Claim(secret, label, agent, instance)


@lru_cache(maxsize=4096)
def _credentials(value: bytes) -> tuple[Label | None, str]:
    scheme, _, payload = value.partition(b" ")
    payload = payload.strip(b" ")
    if not payload or len(value) > _MAX_CREDENTIALS_BYTES:
        raise ValueError("no or too long credentials")
    if scheme.lower() == b"bearer":
        return None, payload.decode("ascii")
    if scheme.lower() != b"basic":
        raise ValueError("a scheme that is neither Basic nor Bearer")
    plain = base64.b64decode(payload, validate=True)
    if base64.b64encode(plain) != payload:
        raise ValueError("Base64 with loose ends")
    label, secret = split_userinfo(plain.decode("ascii"))
    return Label.parse(label), secret


@lru_cache(maxsize=4096)
def _digest(secret: str) -> str:
    return hashlib.sha256(secret.encode("ascii")).hexdigest()


def _mismatch(message: str, agent_uri: str | None) -> Refusal:
    return Refusal("identity_mismatch", message, agent_uri)


def _switched(identity: Identity) -> Refusal:
    return Refusal(
        "identity_switched",
        "This connection belongs to another agent or instance: open a new one.",
        str(identity.agent),
        identity.instance,
    )


_REQUIRED = Refusal(
    "proxy_credentials_required",
    "This proxy needs to know which agent calls: set HTTPS_PROXY=http://LABEL:SECRET@HOST:PORT.",
)
_UNKNOWN = Refusal(
    "proxy_credentials_invalid", "The secret is not that of an agent token, or it was revoked."
)
_MALFORMED_CREDENTIALS = Refusal(
    "proxy_credentials_invalid",
    "Proxy-Authorization is not `Basic` with LABEL:SECRET nor `Bearer` with SECRET.",
)
