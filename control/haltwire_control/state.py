"""What the control server must never lose, as one immutable value, and what a change of it looks like.

A store holds one State. A step is a pure function from it to a Change; the store makes the change
durable and only then is it true.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from haltwire.wire.messages import Delta, TokenRule
from haltwire.wire.orders import Kill
from haltwire.wire.receipts import Receipt
from haltwire.wire.selectors import Selector

from haltwire_control.ends import NO_ENDS, Ends

HOLDS, REFUSES = "hold", "refuse"
"What a proxy may do beyond its lease so that nothing passes there."

type Process = tuple[str, str, str, int, int]
"Host, boot, pid namespace, pid, start time."


class NotThereError(Exception):
    """A step did not find what it was told to change; the API answers 404."""


class ConflictError(Exception):
    """A step would break a rule that holds over the whole state; the API answers 409."""


class RecoveryNeededError(Exception):
    """A step would let something pass while orders may be missing; the API answers 503 recovery_needed."""

    def __init__(self) -> None:
        super().__init__(
            "this store may lack orders and revocations, so nothing is let go on until an admin has looked: `haltwire recover` says what was found, `haltwire recover --accept` ends this; kills and revocations work"
        )


@dataclass(frozen=True, slots=True)
class Lifting:
    """The end of an order."""

    revision: int
    at: datetime
    actor: str
    reason: str | None


@dataclass(frozen=True, slots=True)
class Order:
    """A kill with what only the control server has to know of it."""

    kill: Kill
    actor_id: str | None
    changed_revision: int
    "The revision that issued, strengthened or carved it last: proxies must have acknowledged that one."
    lifted: Lifting | None = None
    ends: Ends = NO_ENDS


@dataclass(frozen=True, slots=True)
class Token:
    """An agent's secret, known by its digest alone."""

    token_id: str
    digest: str
    selector: Selector
    tls: str | None
    created_at: datetime
    created_by: str
    revoked_at: datetime | None = None
    revoked_by: str | None = None

    @property
    def rule(self) -> TokenRule:
        """What proxies are told of it."""
        return TokenRule(self.token_id, self.digest, self.selector, self.tls)


@dataclass(frozen=True, slots=True)
class Key:
    """An operator's or a proxy's secret, known by its digest alone."""

    key_id: str
    digest: str
    name: str
    role: str
    created_at: datetime
    created_by: str
    revoked_at: datetime | None = None
    revoked_by: str | None = None


@dataclass(frozen=True, slots=True)
class ProxyRecord:
    """A proxy worker that may be passing traffic: it was, or is about to be, given a snapshot."""

    proxy_id: str
    host: str
    boot_id: str
    pid: int
    pid_namespace: str
    started_ticks: int
    version: str
    first_seen_at: datetime
    gone_at: datetime | None = None
    on_stale: str = HOLDS
    "What it does beyond its lease."
    agent_residual_max: int | None = None
    "Bytes of one agent that its kernel may still send when it stands still, at most; None when it did not say."
    key_id: str | None = None
    "The key that it came with; None when it was started together with this control server."

    @property
    def process(self) -> Process:
        """What tells this process from every other one."""
        return self.host, self.boot_id, self.pid_namespace, self.pid, self.started_ticks

    @property
    def stops_when_stale(self) -> bool:
        """Whether it certainly passes nothing beyond its lease; a word that we do not know promises nothing."""
        return self.on_stale in (HOLDS, REFUSES)


@dataclass(frozen=True, slots=True)
class LongestLease:
    """Longer than any lease that was ever granted, or as long: on disk before the first such grant."""

    lease_ms: int


@dataclass(frozen=True, slots=True)
class StoredReceipt:
    """The latest receipt of a kill."""

    receipt: Receipt


@dataclass(frozen=True, slots=True)
class StoredResume:
    """The latest receipt of what lifted orders, which are known by the revision that lifted them."""

    revision: int
    receipt: Receipt


@dataclass(frozen=True, slots=True)
class Note:
    """What a person wrote about a kill."""

    kill_id: str
    at: datetime
    actor: str
    text: str


@dataclass(frozen=True, slots=True)
class Attempt:
    """A write that came with an Idempotency-Key, and what it made."""

    digest: str
    "Of the caller and the key."
    request: str
    "The digest of what was asked for."
    at: datetime
    reference: str
    "The id of what was made, as the route that made it knows it."


@dataclass(frozen=True, slots=True)
class Recovery:
    """That the store was found to lack what it once had, until an admin accepts what became of it."""

    recovery_id: str
    began_at: datetime
    why: str
    store_revision: int
    "The store's head when it was found."
    version: int = 0
    "Rises with all that is found later: who accepts has seen this much."
    seen_revision: int | None = None
    "The highest that a proxy had applied; None when no proxy was ahead."
    proxies: tuple[str, ...] = ()
    "Ids of the proxies that knew more."
    taken: tuple[str, ...] = ()
    "Ids of orders that the store lacked, taken over from proxies."
    kept: tuple[str, ...] = ()
    "Ids of orders in force here that a proxy ahead no longer had: resumed since, or issued after a restore."
    withheld: tuple[str, ...] = ()
    "Ids of tokens that a proxy ahead did not have, perhaps because they were revoked: no proxy is told of them."
    accepted_at: datetime | None = None
    accepted_by: str | None = None


@dataclass(frozen=True, slots=True)
class Actor:
    """Who asks for a change."""

    name: str
    "`key:<name>`, `agent:<uri>` or `system:<part>`."
    actor_id: str | None = None


SYSTEM = Actor("system:control")
CONFIGURATION = Actor("system:config")
"Makes what a machine was set up with."
EXPIRY = Actor("system:expiry")
"Lifts orders whose time is over."
HOLD_LIMIT = Actor("system:hold-limit")
"Makes a hold that has lasted too long a cut."


@dataclass(frozen=True, slots=True)
class NewEvent:
    """Something that happened, before it has its place in the audit chain."""

    event_type: str
    at: datetime
    actor: Actor
    selector: Selector | None = None
    "Whom it is about."
    reason: str | None = None
    details: Mapping[str, Any] = field(default_factory=dict)
    kills: tuple[str, ...] = ()
    "Ids of the orders that it is about."


@dataclass(frozen=True, slots=True)
class State:
    """Orders, credentials and proxies as of one revision."""

    epoch: str
    revision: int = 0
    orders: tuple[Order, ...] = ()
    "In force, oldest first."
    lifted: tuple[Order, ...] = ()
    "The latest orders that are no longer in force, oldest first."
    tokens: Mapping[str, Token] = field(default_factory=dict)
    "Live tokens by digest."
    keys: Mapping[str, Key] = field(default_factory=dict)
    "Live keys by digest."
    proxies: Mapping[str, ProxyRecord] = field(default_factory=dict)
    "Proxies not seen to end, by id."
    longest_lease_ms: int = 0
    "The longest one that any control server of this store may have granted."
    volatile: frozenset[str] = frozenset()
    "Ids of orders in force that the store has not taken yet."
    attempts: Mapping[str, Attempt] = field(default_factory=dict)
    "The latest writes that came with an Idempotency-Key, oldest first, by digest."
    head_hash: str | None = None
    "The audit hash of what made this revision; None when the store has not taken that."
    recovery: Recovery | None = None
    "What an admin has yet to accept."

    @property
    def rules(self) -> tuple[TokenRule, ...]:
        """The tokens that proxies are told of."""
        withheld = self.recovery.withheld if self.recovery else ()
        return tuple(t.rule for t in self.tokens.values() if t.token_id not in withheld)

    @property
    def kills(self) -> tuple[Kill, ...]:
        """The orders in force as proxies know them."""
        return tuple(order.kill for order in self.orders)


def settled(state: State) -> None:
    """RecoveryNeededError while an admin has yet to accept what a recovery found."""
    if state.recovery is not None:
        raise RecoveryNeededError


Record = (
    Order
    | Token
    | Key
    | ProxyRecord
    | LongestLease
    | StoredReceipt
    | StoredResume
    | Note
    | Attempt
    | Recovery
)


@dataclass(frozen=True, slots=True)
class Change[T]:
    """What a step makes of a state: the new one, the rows to write, the events, the delta, its outcome."""

    state: State
    outcome: T
    put: tuple[Record, ...] = ()
    events: tuple[NewEvent, ...] = ()
    delta: Delta | None = None
    "None when the revision stays."
