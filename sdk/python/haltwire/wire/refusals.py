"""Refusals: what an agent is told when its request is not let through.

The body is JSON for programs, `Proxy-Status` (RFC 9209) is for people who read headers. Nothing
that the agent sent is ever echoed.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from types import MappingProxyType

from haltwire.wire.codec import format_time
from haltwire.wire.orders import Kill


@dataclass(frozen=True, slots=True)
class _Code:
    status: int
    reason: str
    proxy_error: str
    "The error type of RFC 9209, section 2.3."
    retry_after_s: int | None = None


CODES = MappingProxyType(
    {
        "malformed_request": _Code(400, "Bad Request", "http_protocol_error"),
        "agent_killed": _Code(403, "Forbidden", "http_request_denied"),
        "destination_denied": _Code(403, "Forbidden", "destination_ip_prohibited"),
        "not_allowed": _Code(403, "Forbidden", "http_request_denied"),
        "not_found": _Code(404, "Not Found", "http_request_error"),
        "proxy_credentials_required": _Code(
            407, "Proxy Authentication Required", "http_request_denied"
        ),
        "proxy_credentials_invalid": _Code(
            407, "Proxy Authentication Required", "http_request_denied"
        ),
        "identity_mismatch": _Code(407, "Proxy Authentication Required", "http_request_denied"),
        "agent_required": _Code(407, "Proxy Authentication Required", "http_request_denied"),
        "request_timeout": _Code(408, "Request Timeout", "http_request_error"),
        "request_too_large": _Code(413, "Content Too Large", "http_request_error"),
        "authority_mismatch": _Code(421, "Misdirected Request", "http_request_denied"),
        "identity_switched": _Code(421, "Misdirected Request", "http_request_denied"),
        "too_many_instances": _Code(429, "Too Many Requests", "http_request_denied", 60),
        "headers_too_large": _Code(431, "Request Header Fields Too Large", "http_request_error"),
        "rate_exceeded": _Code(429, "Too Many Requests", "http_request_denied", 1),
        "upstream_unreachable": _Code(502, "Bad Gateway", "destination_unavailable"),
        "upstream_timeout": _Code(504, "Gateway Timeout", "connection_timeout"),
        "enforcement_unknown": _Code(503, "Service Unavailable", "proxy_internal_error", 1),
        "enforcement_failed": _Code(503, "Service Unavailable", "proxy_internal_error", 1),
        "proxy_full": _Code(503, "Service Unavailable", "connection_limit_reached", 1),
        "control_unreachable": _Code(503, "Service Unavailable", "proxy_internal_error", 1),
    }
)
"Every refusal that a proxy can give, by its code."

CHALLENGE = ("Proxy-Authenticate", 'Basic realm="haltwire"')


@dataclass(frozen=True, slots=True)
class Refusal:
    """A decision not to let a request through, with its reason."""

    code: str
    message: str
    agent_uri: str | None = None
    instance: str | None = None
    kill: Kill | None = None

    @property
    def status(self) -> int:
        """The HTTP status code."""
        return CODES[self.code].status

    @property
    def reason_phrase(self) -> str:
        """The words beside the status code."""
        return CODES[self.code].reason

    def body(self) -> bytes:
        """The JSON body."""
        kill = self.kill
        document = {
            "error": self.code,
            "message": self.message,
            "agent_uri": self.agent_uri,
            "instance": self.instance,
            "kill_id": kill.kill_id if kill else None,
            "reason": kill.reason if kill else None,
            "killed_at": format_time(kill.created_at) if kill else None,
            "actor": kill.actor if kill else None,
        }
        return json.dumps(document, separators=(",", ":")).encode() + b"\n"

    def headers(self) -> list[tuple[str, str]]:
        """The header fields but Content-Length and Connection, which the sender of the body owns."""
        code = CODES[self.code]
        fields = [
            ("Content-Type", "application/json"),
            ("Cache-Control", "no-store"),
            ("Proxy-Status", f'haltwire; error={code.proxy_error}; details="{self.code}"'),
        ]
        if code.status == 407:
            fields.append(CHALLENGE)
        if self.kill:
            fields.append(("x-should-retry", "false"))
        if code.retry_after_s is not None:
            fields.append(("Retry-After", str(code.retry_after_s)))
        return fields


def killed(kill: Kill, agent_uri: str, instance: str) -> Refusal:
    """The refusal of an agent that an order stops."""
    because = f": {kill.reason}" if kill.reason else ""
    return Refusal(
        "agent_killed",
        f"{agent_uri} was stopped by {kill.actor}{because}. Do not retry; an operator has to resume it.",
        agent_uri,
        instance,
        kill,
    )
