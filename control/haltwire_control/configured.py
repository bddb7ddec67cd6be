"""Tokens and the admin's key that a machine was set up with: they exist from the start, and once revoked stay so.

The configuration adds; it takes nothing away but the key that it gave before.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable
from dataclasses import replace
from datetime import datetime
from functools import partial

from haltwire.wire.selectors import Selector

from haltwire_control import access
from haltwire_control.auth import ADMIN, digest_of, new_id
from haltwire_control.datadir import DataDirectory
from haltwire_control.service import Service, now
from haltwire_control.state import CONFIGURATION, Change, Key, State, Token
from haltwire_control.store import StoreError

log = logging.getLogger(__name__)
FILE_KEY = "admin-file"
"The name of the configured key, so that the audit log tells it from the one in admin.key."


class ConfigurationError(OSError):
    """What is configured contradicts what is stored; the process ends with this sentence."""


class Configured:
    """Brings the store where the configuration wants it."""

    def __init__(self, service: Service) -> None:
        self._service = service

    async def settle(
        self,
        directory: DataDirectory,
        tokens: Iterable[tuple[str, str | None, str]],
        admin_secret: str,
    ) -> None:
        """Make what is missing. Without room on the disk that is logged: orders must be taken all the same."""
        made = [
            Token(new_id("T"), digest, Selector.parse(selector), tls, now(), CONFIGURATION.name)
            for selector, tls, digest in tokens
        ]
        wanted: list[tuple[str, Callable[[State], Change[object]]]] = [
            (token.digest, partial(with_token, token=token)) for token in made
        ]
        if admin_secret:
            key = Key(
                new_id("Y"), digest_of(admin_secret), FILE_KEY, ADMIN, now(), CONFIGURATION.name
            )
            wanted.append((key.digest, partial(with_admin, key=key, now=now())))
        if not wanted:
            return
        try:
            revoked = await self._service.store.revoked([digest for digest, _ in wanted])
            for digest in revoked:
                log.warning("%s was revoked and stays so", _name_of(digest, made))
            steps = [step for digest, step in wanted if digest not in revoked]
            await asyncio.gather(*(self._commit(step) for step in steps))
        except StoreError as error:
            log.error("what is configured could not be stored: %s", error)
        keys = self._service.state.keys
        left = directory.read_admin_key()
        if digest_of(admin_secret) in keys and (left is None or digest_of(left) not in keys):
            # For commands on this machine, and the sign that this directory is in use.
            directory.write_admin_key(admin_secret)

    async def _commit(self, step: Callable[[State], Change[object]]) -> None:
        # Most starts find everything in place, and need no write for that.
        if step(self._service.state).put:
            await self._service.store.commit(step)


def with_token(state: State, token: Token) -> Change[object]:
    """The token exists. ConfigurationError when its secret is already somebody else's."""
    standing = state.tokens.get(token.digest)
    if standing is None:
        return access.create_token(state, token, CONFIGURATION)
    if (standing.selector, standing.tls) != (token.selector, token.tls):
        raise ConfigurationError(
            f"the configuration gives {_said(token)} a secret that is the token {standing.token_id} of {_said(standing)}: give it a new one"
        )
    return Change(state, None)


def with_admin(state: State, key: Key, now: datetime) -> Change[object]:
    """The key exists, instead of the one that was configured before."""
    standing = state.keys.get(key.digest)
    if standing is not None:
        if standing.role != ADMIN:
            raise ConfigurationError(
                f"the configured admin's key is the key {standing.name!r}, whose role is {standing.role}: give it a new secret"
            )
        return Change(state, None)
    before = next((one for one in state.keys.values() if one.name == key.name), None)
    if before is None:
        return access.create_key(state, key, CONFIGURATION)
    both = replace(state, keys={**state.keys, key.digest: key})
    ended = access.revoke_key(both, before.key_id, CONFIGURATION, now)
    others = {digest: one for digest, one in state.keys.items() if one is not before}
    created = access.create_key(replace(state, keys=others), key, CONFIGURATION)
    events = (*ended.events, *created.events)
    return Change(ended.state, None, put=(*ended.put, *created.put), events=events)


def _said(token: Token) -> str:
    return f"{token.selector} (tls: {token.tls or 'as the proxy'})"


def _name_of(digest: str, tokens: Iterable[Token]) -> str:
    token = next((one for one in tokens if one.digest == digest), None)
    return f"the configured token of {token.selector}" if token else "the configured admin's key"
