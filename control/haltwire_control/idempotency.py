"""A write that is asked for twice under one Idempotency-Key is done once. Pure.

The key is kept in the same transaction as the change, so it is known exactly when the change holds: a
caller who lost the answer, whatever died meanwhile, asks again with the same key. What is kept is a
digest of caller and key, a digest of the request, and the id of what was made; never a secret.

The header is that of the IETF draft "The Idempotency-Key HTTP Header Field"; its quotes may be left out.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any

from haltwire_control.state import Actor, Attempt, Change, State
from haltwire_control.store import Step

KEPT = timedelta(hours=24)
"How long a key is remembered; after that it begins anew."
KEPT_MOST = 10_000
"Keys that are remembered; beyond, the oldest is forgotten first."
LONGEST = 255


class KeyReusedError(Exception):
    """The key was used for another request; the API answers 422."""

    def __init__(self) -> None:
        super().__init__(
            "this Idempotency-Key was used for another request: take a new one for each thing that you want done"
        )


class AlreadyDoneError(Exception):
    """What was asked for was done before, and its answer cannot be given again; the API answers 409."""


@dataclass(frozen=True, slots=True)
class Replayed:
    """The outcome of a step that was done before."""

    attempt: Attempt


@dataclass(frozen=True, slots=True)
class Once:
    """One request under its key."""

    digest: str
    request: str
    at: datetime

    def guard[T](
        self, step: Step[T], reference: Callable[[Change[Any]], str]
    ) -> Step[T | Replayed]:
        """The step, done only the first time. `reference` names what it made."""

        def guarded(state: State) -> Change[T | Replayed]:
            known = state.attempts.get(self.digest)
            if known is not None and self.at - known.at <= KEPT:
                if known.request != self.request:
                    raise KeyReusedError
                return Change(state, Replayed(known))
            change = step(state)
            attempt = Attempt(self.digest, self.request, self.at, reference(change))
            attempts = _with(change.state.attempts, attempt)
            return Change(
                replace(change.state, attempts=attempts),
                change.outcome,
                (*change.put, attempt),
                change.events,
                change.delta,
            )

        return guarded


def guarded[T](
    once: Once | None, step: Step[T], reference: Callable[[Change[Any]], str]
) -> Step[T | Replayed]:
    """The step as `once` wants it; without a key it is done each time."""
    return step if once is None else once.guard(step, reference)


def once_of(key: str, actor: Actor, method: str, path: str, body: Any, now: datetime) -> Once:
    """The request under its key. ValueError when the key is none."""
    name = key[1:-1] if len(key) > 1 and key[0] == key[-1] == '"' else key
    if not 0 < len(name) <= LONGEST or not (name.isascii() and name.isprintable()):
        raise ValueError(f"an Idempotency-Key is 1 to {LONGEST} printable ASCII characters")
    return Once(
        _digest(actor.name, actor.actor_id, name),
        _digest(method, path, body),
        now,
    )


def _with(attempts: Mapping[str, Attempt], attempt: Attempt) -> dict[str, Attempt]:
    kept = {**attempts, attempt.digest: attempt}
    if len(kept) > KEPT_MOST:
        del kept[next(iter(kept))]
    return kept


def _digest(*parts: Any) -> str:
    text = json.dumps(parts, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()
