"""More answers of the API: the audit log, credentials, proxies, health."""

from __future__ import annotations

from typing import Any, Literal

from haltwire_control.answers import Answer


class EventDocument(Answer):
    """One line of the audit log."""

    event_id: str
    seq: int
    event_type: str
    agent_uri: str | None
    address: str | None
    actor: str
    actor_id: str | None
    reason: str | None
    details: dict[str, Any]
    created_at: str
    hash: str


class EventsAnswer(Answer):
    """Events, oldest first. `next_after` is what to ask for next."""

    ok: bool
    events: list[EventDocument]
    next_after: int


class VerifyAnswer(Answer):
    """Whether the audit chain is whole."""

    ok: bool
    events: int
    head_hash: str
    first_bad_seq: int | None
    anchored: bool


class TokenDocument(Answer):
    """A live agent token, without its secret."""

    token_id: str
    selector: str
    tls: str | None
    created_at: str
    created_by: str
    expires_at: None


class TokenMade(Answer):
    """A new agent token: the only time that its secret is shown."""

    token_id: str
    selector: str
    secret: str
    tls: str | None
    expires_at: None
    proxy_url: str | None


class TokensAnswer(Answer):
    """Live tokens, oldest first."""

    ok: bool
    tokens: list[TokenDocument]


class KeyDocument(Answer):
    """A live key, without its secret."""

    key_id: str
    name: str
    role: str
    created_at: str
    created_by: str


class KeyMade(Answer):
    """A new key: the only time that its secret is shown."""

    key_id: str
    name: str
    role: str
    secret: str


class KeysAnswer(Answer):
    """Live keys, oldest first."""

    ok: bool
    keys: list[KeyDocument]


class RevokedAnswer(Answer):
    """What was revoked."""

    ok: bool
    revoked: str


class ProxyDocument(Answer):
    """A proxy that may be passing traffic, or will when it has a lease again.

    `fenced`: its last lease has certainly run out. `lease_left_ms`: until then, at most; null when it does
    not stop beyond its lease.
    """

    proxy_id: str
    host: str
    pid: int
    version: str
    state: Literal["connected", "out_of_reach", "fenced"]
    current: bool
    revision: int | None
    lease_left_ms: float | None
    on_stale: str
    connections: int
    first_seen_at: str
    connected_at: str | None
    heard_at: str | None


class ProxiesAnswer(Answer):
    """Every proxy that was given a snapshot and has not been seen to end."""

    ok: bool
    revision: int
    proxies: list[ProxyDocument]


class OkAnswer(Answer):
    """Yes."""

    ok: bool


class HealthAnswer(Answer):
    """Yes, and which version says so."""

    ok: bool
    version: str
