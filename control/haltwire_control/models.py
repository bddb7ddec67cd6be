"""What the API takes: bodies and queries, closed vocabularies with limits. Unknown fields are refused."""

from __future__ import annotations

import json
import re
from typing import Annotated, Any, Literal

from haltwire.wire.orders import DRAIN, HOLD
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationInfo,
    field_validator,
)

from haltwire_control.kills import DEFAULT_GRACE_S

METADATA_BYTES = 16 * 1024
METADATA_DEPTH = 16
WAIT_DEFAULT_S, WAIT_MOST_S = 2.0, 30.0
FOLLOW_MOST_S = 25.0
GRACE_MOST_S = 86_400.0
LIFETIME_MOST_S = 366 * 86_400.0
NOTE_LENGTH = 4000

Reason = Annotated[str, StringConstraints(max_length=1000)]
Name = Annotated[str, StringConstraints(min_length=1, max_length=640)]
"An agent's URI of eight segments is at most 520 characters; an instance adds 129."
AgentName = Annotated[Name, Field(examples=["agent://acme/prod/mailer"])]
SelectorText = Annotated[Name, Field(examples=["agent://acme/prod/mailer", "agent://acme/prod/*"])]
InstanceName = Annotated[Name, Field(examples=["i-7f3a"])]
Metric = Annotated[float, Field(ge=0, allow_inf_nan=False)]
MetricName = Annotated[str, StringConstraints(min_length=1, max_length=64)]
Wait = Annotated[float, Field(ge=0, le=WAIT_MOST_S, allow_inf_nan=False)]
Lifetime = Annotated[float, Field(gt=0, le=LIFETIME_MOST_S, allow_inf_nan=False)]
_KEY_ID = re.compile(r"Y[0-9A-Z]{12}")


class Body(BaseModel):
    """A JSON body: types are taken as they are written."""

    model_config = ConfigDict(extra="forbid", strict=True)


class Query(BaseModel):
    """A query string."""

    model_config = ConfigDict(extra="forbid")


class HeartbeatBody(Body):
    """What an agent says of itself."""

    agent_uri: AgentName | None = None
    instance: InstanceName | None = None
    status: Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_-]{0,31}$")] | None = Field(
        default=None, description="`finished` says goodbye; any other word is kept as it is."
    )
    metadata: dict[str, Any] | None = Field(
        default=None, description="Progress: at most 16 KiB of JSON, 16 levels deep."
    )
    metrics: Annotated[dict[MetricName, Metric], Field(max_length=64)] | None = None
    interval_s: Annotated[float, Field(gt=0, le=86_400, allow_inf_nan=False)] | None = Field(
        default=None, description="How often it will beat; 30 when never said."
    )

    @field_validator("metadata")
    @classmethod
    def _bounded(cls, value: dict[str, Any] | None) -> dict[str, Any] | None:
        if value is not None and _depth(value) > METADATA_DEPTH:
            raise ValueError(f"at most {METADATA_DEPTH} levels deep")
        text = json.dumps(value, separators=(",", ":"), ensure_ascii=False)
        if len(text.encode()) > METADATA_BYTES:
            raise ValueError(f"at most {METADATA_BYTES} bytes of JSON")
        return value


class KillBody(Body):
    """How to stop an agent."""

    reason: Reason | None = None
    mode: Literal["cut", "drain", "hold"] = Field(
        default="cut",
        description="`cut`: refuse new requests, sever live connections. `drain`: live ones may finish within "
        "grace_s, then they are severed. `hold`: new requests wait and live streams stop moving until it is lifted.",
    )
    grace_s: Annotated[float, Field(ge=0, le=GRACE_MOST_S, allow_inf_nan=False)] | None = Field(
        default=None, description=f"Only with drain; {DEFAULT_GRACE_S:g} when not said."
    )
    ttl_s: Lifetime | None = Field(
        default=None, description="Lifts itself after this; when not said it stays until resumed."
    )
    hold_limit_s: Lifetime | None = Field(
        default=None,
        description="Only with hold: it becomes a cut after this; when not said it never does.",
    )
    dry_run: bool = Field(
        default=False,
        description="Order nothing and tell nobody: answer who would be stopped, with kill_id null.",
    )
    instance: InstanceName | None = Field(
        default=None, description="Only this instance, or glob of them."
    )
    wait_s: Wait = Field(
        default=WAIT_DEFAULT_S, description="How long the answer waits for proxies to prove it."
    )

    @field_validator("grace_s", "hold_limit_s")
    @classmethod
    def _of_its_mode(cls, value: float | None, info: ValidationInfo) -> float | None:
        needed = DRAIN if info.field_name == "grace_s" else HOLD
        if value is not None and info.data.get("mode", needed) != needed:
            raise ValueError(f"goes only with mode {needed}")
        return value


class KillSelectorBody(KillBody):
    """How to stop all that a selector matches."""

    selector: SelectorText


class ResumeBody(Body):
    """How to let an agent go on."""

    reason: Reason | None = None
    instance: InstanceName | None = None
    carve_out: bool = Field(default=False, description="Also except it from wider orders.")
    wait_s: Wait = WAIT_DEFAULT_S


class ResumeSelectorBody(ResumeBody):
    """How to lift the orders inside a selector, or one order: `selector` or `kill_id`."""

    selector: SelectorText | None = None
    kill_id: Name | None = None


class NoteBody(Body):
    """What somebody has to say about a kill."""

    text: Annotated[str, StringConstraints(min_length=1, max_length=NOTE_LENGTH)] = Field(
        description="The first 1000 characters become the reason of a kill that has none."
    )


class AcceptBody(Body):
    """Which recovery is accepted, as far as it was seen: `recovery_id` and `version` of `GET /v1/recovery`."""

    recovery_id: Name
    version: int = Field(ge=1)


class TokenBody(Body):
    """Whom a new agent token speaks for."""

    selector: SelectorText
    tls: Literal["tunnel", "intercept"] | None = Field(
        default=None, description="Whether proxies read inside its HTTPS; their default when null."
    )


class KeyBody(Body):
    """A new operator's or proxy's key."""

    name: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._@-]{0,63}$")]
    role: Literal["viewer", "operator", "admin", "proxy"]

    @field_validator("name")
    @classmethod
    def _no_id(cls, value: str) -> str:
        if _KEY_ID.fullmatch(value):
            raise ValueError("looks like the id of a key")
        return value


class AgentsQuery(Query):
    """Which agents to list."""

    selector: SelectorText | None = None
    health: (
        Literal[
            "active",
            "idle",
            "finished",
            "stale",
            "crashed",
            "killed",
            "held",
            "healthy",
            "degraded",
            "unreachable",
        ]
        | None
    ) = None
    limit: Annotated[int, Field(ge=1, le=10_000)] = 1000


class KillsQuery(Query):
    """Which orders to list."""

    all: bool = Field(default=False, description="Also those that are no longer in force.")


class EventsQuery(Query):
    """Which events to list: the latest, or those after a seq, oldest first."""

    selector: SelectorText | None = None
    event_type: Annotated[str, StringConstraints(max_length=64)] | None = None
    after: Annotated[int, Field(ge=0, le=2**62)] | None = None
    limit: Annotated[int, Field(ge=1, le=1000)] = 100
    follow_s: Annotated[float, Field(ge=0, le=FOLLOW_MOST_S, allow_inf_nan=False)] = Field(
        default=0.0, description="Wait this long for a first one when there is none."
    )


def _depth(value: object) -> int:
    """How many containers lie inside one another; bounded work for any input."""
    level, deepest = [value], 0
    while level and deepest <= METADATA_DEPTH:
        containers = [item for item in level if isinstance(item, (dict, list))]
        if not containers:
            break
        deepest += 1
        level = [
            inner
            for item in containers
            for inner in (item.values() if isinstance(item, dict) else item)
        ]
    return deepest
