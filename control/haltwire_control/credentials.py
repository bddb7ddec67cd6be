"""Tokens and keys: made with their secret shown once, listed without, revoked with effect on live connections."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import partial
from urllib.parse import urlsplit

from haltwire.wire.names import Label
from haltwire.wire.selectors import Selector

from haltwire_control import access
from haltwire_control.auth import (
    ADMIN,
    AGENT_PREFIX,
    KEY_PREFIX,
    digest_of,
    is_secret,
    new_id,
    new_secret,
)
from haltwire_control.datadir import DataDirectory
from haltwire_control.idempotency import AlreadyDoneError, Once, Replayed, guarded
from haltwire_control.service import Service, now
from haltwire_control.state import SYSTEM, Actor, Key, Token

FIRST_KEY = "admin"


@dataclass(frozen=True, slots=True)
class Made[T]:
    """A fresh credential with its secret, which exists nowhere else."""

    record: T
    secret: str


class Credentials:
    """The use cases of an administrator."""

    def __init__(self, service: Service) -> None:
        self._service = service

    async def create_token(
        self, selector: Selector, tls: str | None, actor: Actor, once: Once | None = None
    ) -> Made[Token]:
        """A token that connected proxies already know. AlreadyDoneError when it was made before."""
        secret = new_secret(AGENT_PREFIX)
        token = Token(new_id("T"), digest_of(secret), selector, tls, now(), actor.name)
        step = partial(access.create_token, token=token, actor=actor)
        committed = await self._service.store.commit(
            guarded(once, step, lambda change: change.outcome.token_id)
        )
        _refuse_again(committed.outcome, "token")
        await self._service.applied(committed.change.state.revision)
        return Made(token, secret)

    async def revoke_token(self, token_id: str, actor: Actor, once: Once | None = None) -> str:
        """End a token; connected proxies have severed what used it. Its id."""
        step = partial(access.revoke_token, token_id=token_id, actor=actor, now=now())
        committed = await self._service.store.commit(
            guarded(once, step, lambda change: change.outcome.token_id), urgent=True
        )
        await self._service.applied(committed.change.state.revision)
        return token_id

    async def create_key(
        self, name: str, role: str, actor: Actor, once: Once | None = None
    ) -> Made[Key]:
        """A key under a free name. AlreadyDoneError when it was made before."""
        secret = new_secret(KEY_PREFIX)
        return Made(await self._create_key(name, role, secret, actor, once), secret)

    async def revoke_key(self, named: str, actor: Actor, once: Once | None = None) -> str:
        """End a key, by id or name. Its id."""
        step = partial(access.revoke_key, named=named, actor=actor, now=now())
        outcome = (
            await self._service.store.commit(
                guarded(once, step, lambda change: change.outcome.key_id), urgent=True
            )
        ).outcome
        return outcome.attempt.reference if isinstance(outcome, Replayed) else outcome.key_id

    async def ensure_admin(self, directory: DataDirectory) -> None:
        """See to it that somebody can act: without any live admin key, make one and leave it in the data directory."""
        if any(key.role == ADMIN for key in self._service.state.keys.values()):
            return
        # A start that ended between file and commit left a secret that nobody else has seen.
        left = directory.read_admin_key() or ""
        secret = left if is_secret(left) and left.startswith(KEY_PREFIX) else new_secret(KEY_PREFIX)
        directory.write_admin_key(secret)
        await self._create_key(FIRST_KEY, ADMIN, secret, SYSTEM)

    async def _create_key(
        self, name: str, role: str, secret: str, actor: Actor, once: Once | None = None
    ) -> Key:
        key = Key(new_id("Y"), digest_of(secret), name, role, now(), actor.name)
        step = partial(access.create_key, key=key, actor=actor)
        committed = await self._service.store.commit(
            guarded(once, step, lambda change: change.outcome.key_id)
        )
        _refuse_again(committed.outcome, "key")
        return key


def _refuse_again(outcome: object, what: str) -> None:
    # The secret is kept nowhere, so nobody can say it twice.
    if isinstance(outcome, Replayed):
        made = outcome.attempt.reference
        raise AlreadyDoneError(
            f"the {what} {made} was made by the first request under this Idempotency-Key, and its secret was in that answer alone: revoke {made} if the answer was lost, and make another"
        )


def proxy_url_of(base: str, selector: Selector, secret: str) -> str | None:
    """What to put into HTTPS_PROXY; None when the selector names no one agent, or the proxy is not known."""
    agent = selector.agent
    if agent is None or not base:
        return None
    parts = urlsplit(base)
    return f"{parts.scheme}://{Label(agent, selector.bound_instance)}:{secret}@{parts.netloc}"


def called_by(base: str, host: str) -> str:
    """The URL of a proxy that listens everywhere, with the host by which its caller has reached us; `host` is a header."""
    match = _HOST.fullmatch(host)
    port = urlsplit(base).port
    return f"{urlsplit(base).scheme}://{match['host']}:{port}" if match and port else base


_HOST = re.compile(r"(?P<host>[A-Za-z0-9.-]{1,253}|\[[0-9A-Fa-f:.]{2,45}\])(?::[0-9]{1,5})?")
