"""Secrets and what they allow. A secret is 32 random bytes, shown once and kept as its SHA-256 alone.

Such a secret needs no slow hash: nobody can guess it, and every call checks one.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from dataclasses import dataclass

from haltwire_control.state import Actor, Key, State, Token

AGENT_PREFIX, KEY_PREFIX = "hwa_", "hwk_"
VIEWER, OPERATOR, ADMIN, PROXY = "viewer", "operator", "admin", "proxy"
ROLES = (VIEWER, OPERATOR, ADMIN, PROXY)

READ, HEARTBEAT, KILL, ADMINISTER, CONNECT = "read", "heartbeat", "kill", "administer", "connect"
AGENT = "agent"
"The role of whoever shows an agent's token."

_ALLOWED = {
    VIEWER: frozenset({READ}),
    OPERATOR: frozenset({READ, HEARTBEAT, KILL}),
    ADMIN: frozenset({READ, HEARTBEAT, KILL, ADMINISTER}),
    PROXY: frozenset({CONNECT}),
    AGENT: frozenset({HEARTBEAT}),
}
_SECRET = re.compile(r"hw[ak]_[A-Za-z0-9_-]{43}")
_SECRET_BYTES = re.compile(_SECRET.pattern.encode())
_CROCKFORD = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"


@dataclass(frozen=True, slots=True)
class Caller:
    """Who calls, proven by a secret."""

    role: str
    actor: Actor
    token: Token | None = None
    "The agent's token, when it is an agent."


def new_secret(prefix: str) -> str:
    """A fresh secret."""
    return prefix + secrets.token_urlsafe(32)


def new_id(letter: str) -> str:
    """A fresh id: the letter and 12 upper-case characters, so it never looks like an agent's name."""
    return letter + "".join(secrets.choice(_CROCKFORD) for _ in range(12))


def digest_of(secret: str) -> str:
    """What is stored of a secret."""
    return hashlib.sha256(secret.encode()).hexdigest()


def is_secret(text: str) -> bool:
    """Whether the text has the form of a secret of ours."""
    return _SECRET.fullmatch(text) is not None


def holds_secret(text: str | bytes) -> bool:
    """Whether something that looks like a secret of ours is anywhere in it."""
    if isinstance(text, bytes):
        return _SECRET_BYTES.search(text) is not None
    return _SECRET.search(text) is not None


def without_secrets(text: str) -> str:
    """The text as it may be logged."""
    return _SECRET.sub("***", text)


def may(role: str, action: str) -> bool:
    """Whether the role allows the action."""
    return action in _ALLOWED.get(role, frozenset())


def caller_of(secret: str, state: State, local_proxy_digest: str) -> Caller | None:
    """Whose secret it is; None when it is nobody's, or was revoked."""
    if not is_secret(secret):
        return None
    # Looking up a digest reveals nothing that helps to guess the secret behind it.
    digest = digest_of(secret)
    if local_proxy_digest and hmac.compare_digest(digest, local_proxy_digest):
        return Caller(PROXY, Actor("system:proxy"))
    key = state.keys.get(digest)
    if key is not None:
        return _caller_of_key(key)
    token = state.tokens.get(digest)
    if token is not None:
        agent = token.selector.agent
        name = f"agent:{agent or token.selector}"
        return Caller(AGENT, Actor(name, token.token_id), token)
    return None


def _caller_of_key(key: Key) -> Caller:
    return Caller(key.role, Actor(f"key:{key.name}", key.key_id))
