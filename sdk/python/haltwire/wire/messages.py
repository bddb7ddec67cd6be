"""The messages between the control server and a proxy worker, as frozen values.

Each travels as one JSON object whose `type` is the class's name in lower case. Times named
`…_boot` are seconds on the proxy's own CLOCK_BOOTTIME and mean nothing elsewhere.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from types import MappingProxyType
from typing import Any

from haltwire.wire.codec import decode, encode
from haltwire.wire.names import AgentRef
from haltwire.wire.orders import Kill
from haltwire.wire.receipts import InFlight
from haltwire.wire.selectors import Selector


@dataclass(frozen=True, slots=True)
class TokenRule:
    """What a proxy must know of an agent token: never the secret."""

    token_id: str
    digest: str
    "SHA-256 of the secret, hexadecimal."
    selector: Selector
    tls: str | None = None
    "`tunnel`, `intercept`, or None for the proxy's default."


@dataclass(frozen=True, slots=True)
class Settings:
    """What the control server owns and every proxy follows."""

    lease_ms: int
    control_addresses: tuple[str, ...] = ()
    "Where other machines reach the control server, so that no proxy is a way there."
    control_port: int | None = None


@dataclass(frozen=True, slots=True)
class Snapshot:
    """All that a proxy enforces, as of one revision. Down."""

    epoch: str
    revision: int
    orders: tuple[Kill, ...]
    lifted_since: tuple[Kill, ...]
    "Orders issued and lifted since the revision that the proxy said hello with: what it missed."
    tokens: tuple[TokenRule, ...]
    settings: Settings


@dataclass(frozen=True, slots=True)
class Delta:
    """The change from revision `previous` to `revision`. Never merged with another. Down."""

    previous: int
    revision: int
    kills: tuple[Kill, ...] = ()
    "Orders issued or strengthened."
    lifted: tuple[str, ...] = ()
    "Ids of orders lifted."
    tokens: tuple[TokenRule, ...] = ()
    revoked: tuple[str, ...] = ()
    "Ids of tokens revoked: live connections that used one are severed."


@dataclass(frozen=True, slots=True)
class Renewed:
    """A lease: the proxy may pass traffic until sent_at_boot + lease_ms - view_age_ms. Down."""

    sent_at_boot: float
    epoch: str
    revision: int
    "The lease holds only if the proxy has applied this revision."
    lease_ms: int
    view_age_ms: int = 0


@dataclass(frozen=True, slots=True)
class Hello:
    """The first message of a proxy. Up."""

    proxy_id: str
    host: str
    boot_id: str
    "With pid, pid_namespace and started_ticks: enough to see on the same machine that it has ended."
    pid: int
    pid_namespace: str
    started_ticks: int
    version: str
    epoch: str | None
    revision: int
    kill_ids: tuple[str, ...] = ()
    "The orders that it enforces."
    on_stale: str = "hold"
    "What it does beyond its lease: `hold`, `refuse`, or `keep`, which lets traffic pass and so never counts as fenced."
    agent_residual_max: int | None = None
    "Bytes that the kernel may hold queued towards upstreams for one agent, at most, when this process stands still."
    authority: str | None = None
    "The CA that signs what it reads inside TLS, in PEM form: what its agents must trust."


@dataclass(frozen=True, slots=True)
class Renew:
    """Asks for a lease; says which revision is applied. Up, every quarter lease."""

    sent_at_boot: float
    now: datetime
    epoch: str | None
    revision: int


@dataclass(frozen=True, slots=True)
class Ack:
    """A revision is in force here: its kills have cut all that they match. Up, before anything is reported."""

    epoch: str
    revision: int
    kills: tuple[str, ...] = ()
    connections_cut: int = 0


@dataclass(frozen=True, slots=True)
class CutInstance:
    """What one kill did to one instance at one proxy."""

    agent: AgentRef
    instance: str
    seen_at: datetime
    connections_cut: int
    last_byte_at: datetime | None
    completed_at: tuple[datetime, ...] = ()
    "When the latest requests were answered in full, oldest first, on the proxy's clock; at most the last 1,000."
    completed_known: bool = True
    "False when requests could not be read (tunnels) or were more than are remembered."
    in_flight: tuple[InFlight, ...] = ()
    connections_live: int = 0
    "Those that may still finish (drain), or that a resume has let go on."
    connections_held: int = 0
    "Frozen connections, and requests that wait."
    lost_while_held: int = 0
    "Held ones whose client or upstream gave up meanwhile."


@dataclass(frozen=True, slots=True)
class Report:
    """The details of one applied kill. Up, right after its ack; a later one replaces it.

    For a drain again as connections end, for a hold as peers give up, and once more when it is lifted.
    """

    kill_id: str
    now: datetime
    "The proxy's clock when it was sent."
    instances: tuple[CutInstance, ...] = ()
    live: int = 0
    "Matching connections that still exist under a drain; once it is 0, nothing of what the order matches moves."
    residual_bytes_max: int | None = None
    "Of a hold: what had been taken from agents before the freeze and may still reach upstreams."


@dataclass(frozen=True, slots=True)
class InstanceUsage:
    """Traffic of one instance through one proxy since that proxy started: totals, so a lost message loses nothing."""

    agent: AgentRef
    instance: str
    first_seen_at: datetime
    last_seen_at: datetime
    connections: int
    "Live now."
    requests: int
    "Requests let through; a tunnel counts as one."
    refused: int
    bytes_up: int
    bytes_down: int


@dataclass(frozen=True, slots=True)
class Mismatch:
    """Credentials that did not fit, counted: the source, what was wrong, how often."""

    source: str
    kind: str
    agent: str | None
    count: int


@dataclass(frozen=True, slots=True)
class Usage:
    """What has changed since the last one. Up, every quarter second at most."""

    sequence: int
    instances: tuple[InstanceUsage, ...] = ()
    mismatches: tuple[Mismatch, ...] = ()
    connections: int = 0
    totals: Mapping[str, int] = MappingProxyType({})
    "Of this process since its start, none of which ever falls; empty when none has changed."


@dataclass(frozen=True, slots=True)
class Bye:
    """This proxy has closed everything and passes nothing any more. Up, the last message."""

    proxy_id: str


Message = Snapshot | Delta | Renewed | Hello | Renew | Ack | Report | Usage | Bye
_CLASSES: dict[str, type[Any]] = {
    cls.__name__.lower(): cls
    for cls in (Snapshot, Delta, Renewed, Hello, Renew, Ack, Report, Usage, Bye)
}


def dumps(message: Message) -> str:
    """The JSON text of a message."""
    document = {"type": type(message).__name__.lower(), **encode(message)}
    return json.dumps(document, separators=(",", ":"))


def loads(text: str) -> Message:
    """Read a message; ValueError when it is not one."""
    try:
        document = json.loads(text)
    except RecursionError as error:
        raise ValueError("a message is not nested that deep") from error
    if not isinstance(document, dict):
        raise ValueError("a message is a JSON object")
    cls = _CLASSES.get(str(document.get("type")))
    if cls is None:
        raise ValueError(f"unknown message type {document.get('type')!r}")
    message: Message = decode(cls, document)
    return message
