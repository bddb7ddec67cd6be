"""Tokens, keys and proxies in the state: pure steps that create, revoke and note them.

A token changes what proxies let through, so it has a revision; a key does not.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime
from itertools import chain, count

from haltwire.wire.messages import Delta

from haltwire_control.auth import ADMIN
from haltwire_control.state import (
    SYSTEM,
    Actor,
    Change,
    ConflictError,
    Key,
    LongestLease,
    NewEvent,
    NotThereError,
    ProxyRecord,
    State,
    Token,
    settled,
)


def create_token(state: State, token: Token, actor: Actor) -> Change[Token]:
    """Let the secret behind the token's digest speak for what its selector names."""
    settled(state)
    revision = state.revision + 1
    details = {"token_id": token.token_id, "tls": token.tls, "revision": revision}
    return Change(
        replace(state, revision=revision, tokens={**state.tokens, token.digest: token}),
        token,
        put=(token,),
        events=(
            NewEvent("token.created", token.created_at, actor, token.selector, details=details),
        ),
        delta=Delta(state.revision, revision, tokens=(token.rule,)),
    )


def revoke_token(state: State, token_id: str, actor: Actor, now: datetime) -> Change[Token]:
    """End a token; NotThereError when no live one has this id."""
    token = next((t for t in state.tokens.values() if t.token_id == token_id), None)
    if token is None:
        raise NotThereError(f"there is no live token {token_id}")
    revision = state.revision + 1
    ended = replace(token, revoked_at=now, revoked_by=actor.name)
    details = {"token_id": token_id, "revision": revision}
    return Change(
        replace(state, revision=revision, tokens=_without(state.tokens, token.digest)),
        ended,
        put=(ended,),
        events=(NewEvent("token.revoked", now, actor, token.selector, details=details),),
        delta=Delta(state.revision, revision, revoked=(token_id,)),
    )


def create_key(state: State, key: Key, actor: Actor) -> Change[Key]:
    """Let the secret behind the key's digest act; ConflictError when its name is taken."""
    if any(other.name == key.name for other in state.keys.values()):
        raise ConflictError(f"there is already a key named {key.name!r}; revoke it first")
    details = {"key_id": key.key_id, "name": key.name, "role": key.role}
    return Change(
        replace(state, keys={**state.keys, key.digest: key}),
        key,
        put=(key,),
        events=(NewEvent("key.created", key.created_at, actor, details=details),),
    )


def revoke_key(state: State, named: str, actor: Actor, now: datetime) -> Change[Key]:
    """End a key, named by id or name; the last admin's is refused, since nobody could make another."""
    key = next((k for k in state.keys.values() if named in (k.key_id, k.name)), None)
    if key is None:
        raise NotThereError(f"there is no live key {named}")
    if key.role == ADMIN and sum(k.role == ADMIN for k in state.keys.values()) == 1:
        raise ConflictError(f"{key.name!r} is the last admin key; create another one first")
    ended = replace(key, revoked_at=now, revoked_by=actor.name)
    details = {"key_id": key.key_id, "name": key.name, "role": key.role}
    return Change(
        replace(state, keys=_without(state.keys, key.digest)),
        ended,
        put=(ended,),
        events=(NewEvent("key.revoked", now, actor, details=details),),
    )


def note_proxy(
    state: State, proxy: ProxyRecord, now: datetime, actor: Actor
) -> Change[ProxyRecord]:
    """From now on the proxy may pass traffic, so every kill counts it until it is seen to end.

    A name that another process goes by, which may still live, gets this one's pid behind it, and a number
    if that is taken, too: in copies of one container even the pids are the same.
    """
    wanted = f"{proxy.proxy_id}.{proxy.pid}"
    names = chain((proxy.proxy_id, wanted), (f"{wanted}.{number}" for number in count(2)))
    free = next(name for name in names if _is_free(state, name, proxy))
    proxy = replace(proxy, proxy_id=free)
    details = {"proxy_id": proxy.proxy_id, "host": proxy.host, "pid": proxy.pid}
    return Change(
        replace(state, proxies={**state.proxies, proxy.proxy_id: proxy}),
        proxy,
        put=(proxy,),
        events=(
            NewEvent("proxy.connected", now, actor, details={**details, "version": proxy.version}),
        ),
    )


def end_proxy(state: State, proxy: ProxyRecord, now: datetime) -> Change[None]:
    """The proxy's process was seen to end: no kill waits for it any more."""
    standing = state.proxies.get(proxy.proxy_id)
    if standing is None or standing.process != proxy.process:
        return Change(state, None)
    return Change(
        replace(state, proxies=_without(state.proxies, proxy.proxy_id)),
        None,
        put=(replace(standing, gone_at=now),),
    )


def note_lease(state: State, lease_ms: int) -> Change[None]:
    """From now on leases as long as this may be granted: whoever comes after us has to wait for their end."""
    if lease_ms <= state.longest_lease_ms:
        return Change(state, None)
    return Change(replace(state, longest_lease_ms=lease_ms), None, put=(LongestLease(lease_ms),))


def lose_proxy(state: State, proxy_id: str, how: str, now: datetime) -> Change[None]:
    """The link to a proxy ended: only an event, since it may still be passing traffic."""
    details = {"proxy_id": proxy_id, "how": how}
    return Change(state, None, events=(NewEvent("proxy.lost", now, SYSTEM, details=details),))


def _is_free(state: State, name: str, proxy: ProxyRecord) -> bool:
    standing = state.proxies.get(name)
    return standing is None or standing.process == proxy.process


def _without[T](table: Mapping[str, T], name: str) -> dict[str, T]:
    return {key: value for key, value in table.items() if key != name}
