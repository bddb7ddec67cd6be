"""The receipt of a kill: who, when, and what has been proven by whom.

It never says more than it knows: an unread fact is None, a silent proxy is `pending` until its lease
has certainly run out, and `fenced` from then on.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from haltwire.wire.selectors import Selector

APPLIED, PENDING, FENCED, GONE = "applied", "pending", "fenced", "gone"
NO_PROXY, NO_AGENT, OUTSIDE_PROXY, PROXY_PENDING, DRY_RUN = (
    "no_proxy",
    "no_agent",
    "outside_proxy",
    "proxy_pending",
    "dry_run",
)
RUNNING, WAITING, AWAY = "running", "waiting", "gone"
"How an instance is after a resume: seen since; seen lately; neither."
# The last word of batch_id, batchId or lastPage; "paid" ends in none of them.
_NO_SUM = re.compile(r"(?:^|[^A-Za-z]|(?<=[a-z0-9])(?=[A-Z]))(?i:id|index|batch|page)$")
_DONE_NAMES = ("sent", "processed", "completed")


@dataclass(frozen=True, slots=True)
class InFlight:
    """A request that a kill interrupted. Query strings and bodies are never kept."""

    method: str
    host: str
    path: str | None
    started_at: datetime
    bytes_up: int | None
    "Body bytes that the agent had sent through us."
    bytes_up_acked: int | None
    "Those that the upstream's kernel had acknowledged; acknowledged does not mean processed."
    bytes_down: int | None
    sent: str
    "whole, partly, none or unknown."


@dataclass(frozen=True, slots=True)
class ProxyState:
    """How one proxy stands to one kill."""

    proxy_id: str
    state: str
    latency_ms: float | None = None
    "From the request until its ack came or, of one that is fenced, until that was certain."
    connections_cut: int | None = None
    residual_bytes_max: int | None = None
    connections_live: int | None = None
    "Those that a drain still lets finish, or that a resume has let go on."
    connections_held: int | None = None


@dataclass(frozen=True, slots=True)
class SinceMetadata:
    """Requests since the last metadata reached the control server; None where they could not be read."""

    completed: int | None
    uncertain: int | None


@dataclass(frozen=True, slots=True)
class InstanceState:
    """What a kill did to one instance."""

    agent_uri: str
    instance: str
    seen_at_proxy: datetime | None = None
    stopped_by: str | None = None
    "`proxy`, or None when no proxy has ever seen it."
    connections_cut: int | None = None
    last_byte_at: datetime | None = None
    metadata: Mapping[str, Any] | None = None
    metadata_at: datetime | None = None
    since_metadata: SinceMetadata | None = None
    in_flight: tuple[InFlight, ...] = ()
    connections_live: int | None = None
    connections_held: int | None = None
    lost_while_held: int | None = None
    "Held connections and requests whose client or upstream gave up."
    state: str | None = None
    "After a resume: `running`, `waiting` or `gone`."


@dataclass(frozen=True, slots=True)
class Totals:
    """The instances' progress, added up."""

    done: float | None = None
    remaining: float | None = None
    unit: str | None = None
    sums: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Matched:
    """How much an order found."""

    agents: int
    instances: int
    proxies: int


@dataclass(frozen=True, slots=True)
class Receipt:
    """What a kill or resume returns and what is stored of it."""

    ok: bool
    kill_id: str | None
    selector: Selector
    mode: str
    reason: str | None
    actor: str
    requested_at: datetime
    revision: int
    durable: bool
    matched: Matched
    confirmed: bool
    unconfirmed_because: str | None
    halted_at: datetime | None
    halted_in_ms: float | None
    still_killed_by: tuple[str, ...]
    escapable: bool
    proxies: tuple[ProxyState, ...]
    instances: tuple[InstanceState, ...]
    totals: Totals
    lifted: tuple[str, ...] = ()
    "Ids of the orders that a resume lifted."
    did_you_mean: tuple[str, ...] = ()
    "Known agents with a similar name, when no known one matches."
    grace_s: float | None = None
    "Of a drain, in seconds."
    expires_at: datetime | None = None
    hold_until: datetime | None = None
    "When a hold becomes a cut."
    dry_run: bool = False
    "Nothing was ordered; this says who would be stopped."


def unconfirmed_because(
    proxies: Iterable[ProxyState], instances: Iterable[InstanceState], agents: int
) -> str | None:
    """Why an order is not proven to be enforced everywhere; None when it is."""
    states = [proxy.state for proxy in proxies]
    if PENDING in states:
        return PROXY_PENDING
    if not {APPLIED, FENCED}.intersection(states):
        return NO_PROXY
    if agents == 0:
        return NO_AGENT
    if any(instance.seen_at_proxy is None for instance in instances):
        return OUTSIDE_PROXY
    return None


def totals_of(metadata: Iterable[Mapping[str, Any] | None]) -> Totals:
    """Add up what instances said of their progress.

    `done` is the sum of `done`, else of the first of sent, processed, completed. `remaining` is the
    sum of `remaining`, else `agent_total` - done when all agree on it, else the sum of `total` - done.
    `sums` leaves out names that end in id, index, batch or page, since their sum means nothing.
    """
    said = [m for m in metadata if m]
    numbers = [{k: v for k, v in m.items() if _is_number(v)} for m in said]
    sums: dict[str, float] = {}
    for row in numbers:
        for name, value in row.items():
            if not _NO_SUM.search(name) and name != "agent_total":
                sums[name] = sums.get(name, 0) + value
    done = next((sums[n] for n in ("done", *_DONE_NAMES) if n in sums), None)
    units = {m["unit"] for m in said if isinstance(m.get("unit"), str)}
    agent_totals = {row["agent_total"] for row in numbers if "agent_total" in row}
    all_say = all("agent_total" in row for row in numbers)
    remaining: float | None = None
    if "remaining" in sums:
        remaining = sums["remaining"]
    elif done is not None and all_say and len(agent_totals) == 1:
        remaining = max(0, agent_totals.pop() - done)
    elif done is not None and numbers and all("total" in row for row in numbers):
        remaining = max(0, sums["total"] - done)
    return Totals(done, remaining, units.pop() if len(units) == 1 else None, sums)


def _is_number(value: object) -> bool:
    return (
        isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 1e300
    )  # a NaN compares false, so it is out too
