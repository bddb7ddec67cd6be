"""What the API answers, field by field. Tests hold every answer against these; OpenAPI is made from them."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict


class Answer(BaseModel):
    """A JSON answer with exactly these fields."""

    model_config = ConfigDict(extra="forbid")


class ErrorBody(Answer):
    """What went wrong, and whether the same call can succeed later."""

    code: str
    message: str
    retryable: bool


class ErrorAnswer(BaseModel):
    """Every answer that is not the one asked for. `kill_not_durable` has the receipt's fields beside it."""

    model_config = ConfigDict(extra="allow")
    error: ErrorBody


class KillDocument(Answer):
    """An order."""

    kill_id: str
    selector: str
    mode: str
    reason: str | None
    actor: str
    created_at: str
    revision: int
    expires_at: str | None
    excepted: list[str]
    grace_s: float | None
    hold_until: str | None
    in_force: bool
    durable: bool
    confirmed: bool
    lifted_at: str | None
    lifted_by: str | None
    lifted_reason: str | None


class HeartbeatKill(Answer):
    """The order that stops or holds whoever beats."""

    kill_id: str
    selector: str
    mode: str
    reason: str | None
    actor: str
    created_at: str


class HeartbeatAnswer(Answer):
    """How the agent stands."""

    ok: bool
    killed: bool
    held: bool
    health_status: str
    agent_uri: str
    instance: str
    kill: HeartbeatKill | None
    checkpoint: None
    revision: int


class ProxyStateDocument(Answer):
    """How one proxy stands to a kill."""

    proxy_id: str
    state: Literal["applied", "fenced", "pending", "gone"]
    latency_ms: float | None
    connections_cut: int | None
    residual_bytes_max: int | None
    connections_live: int | None
    connections_held: int | None


class SinceMetadataDocument(Answer):
    """Requests since the last metadata."""

    completed: int | None
    uncertain: int | None


class InFlightDocument(Answer):
    """A request that the kill interrupted."""

    method: str
    host: str
    path: str | None
    started_at: str
    bytes_up: int | None
    bytes_up_acked: int | None
    bytes_down: int | None
    sent: str


class ReceiptInstance(Answer):
    """What a kill did to one instance."""

    agent_uri: str
    instance: str
    seen_at_proxy: str | None
    stopped_by: str | None
    connections_cut: int | None
    last_byte_at: str | None
    metadata: dict[str, Any] | None
    metadata_at: str | None
    since_metadata: SinceMetadataDocument | None
    in_flight: list[InFlightDocument]
    connections_live: int | None
    connections_held: int | None
    lost_while_held: int | None
    state: Literal["running", "waiting", "gone"] | None


class MatchedDocument(Answer):
    """How much an order found."""

    agents: int
    instances: int
    proxies: int


class TotalsDocument(Answer):
    """The instances' progress, added up."""

    done: float | None
    remaining: float | None
    unit: str | None
    sums: dict[str, float]


class ReceiptAnswer(Answer):
    """Who was stopped or let go on, when, and proven by whom."""

    ok: bool
    kill_id: str | None
    selector: str
    mode: str
    reason: str | None
    actor: str
    requested_at: str
    revision: int
    durable: bool
    matched: MatchedDocument
    confirmed: bool
    unconfirmed_because: str | None
    halted_at: str | None
    halted_in_ms: float | None
    still_killed_by: list[str]
    escapable: bool
    proxies: list[ProxyStateDocument]
    instances: list[ReceiptInstance]
    totals: TotalsDocument
    lifted: list[str]
    did_you_mean: list[str]
    grace_s: float | None
    expires_at: str | None
    hold_until: str | None
    dry_run: bool


class KillsAnswer(Answer):
    """Orders, newest first."""

    ok: bool
    kills: list[KillDocument]


class NoteDocument(Answer):
    """What somebody wrote about an order."""

    at: str
    actor: str
    text: str


class NoteAnswer(Answer):
    """The note as it is kept."""

    ok: bool
    kill_id: str
    note: NoteDocument


class KillEventDocument(Answer):
    """An audit row about an order; the audit log has the rest of it."""

    seq: int
    event_type: str
    at: str
    actor: str
    hash: str


class KillAnswer(Answer):
    """One order: its latest receipt, that of what lifted it, notes and audit rows, oldest first."""

    ok: bool
    kill: KillDocument
    receipt: ReceiptAnswer | None
    resume: ReceiptAnswer | None
    notes: list[NoteDocument]
    events: list[KillEventDocument]


class AgentDocument(Answer):
    """One agent in a list."""

    agent_uri: str
    address_id: str
    status: str
    health_status: str
    instances: int
    instances_killed: int
    instances_held: int
    last_seen_at: str | None
    metadata: dict[str, Any] | None
    requests: int


class AgentsAnswer(Answer):
    """Agents by name, and how many are how."""

    ok: bool
    agents: list[AgentDocument]
    summary: dict[str, int]


class InstanceDocument(Answer):
    """One instance of an agent."""

    instance: str
    status: str
    health_status: str
    live: bool
    killed_by: str | None
    held_by: str | None
    declared_status: str | None
    first_seen_at: str
    last_seen_at: str | None
    last_heartbeat_at: str | None
    interval_s: float
    seen_at_proxy: str | None
    finished_at: str | None
    metadata: dict[str, Any] | None
    metadata_at: str | None
    metrics: dict[str, float] | None
    connections: int
    requests: int
    refused: int
    bytes_up: int
    bytes_down: int


class AgentDetail(AgentDocument):
    """One agent with all that is known of it."""

    instances_detail: list[InstanceDocument]
    kills: list[KillDocument]


class AgentAnswer(Answer):
    """One agent."""

    ok: bool
    agent: AgentDetail
