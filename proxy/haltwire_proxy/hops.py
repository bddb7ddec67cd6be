"""Which header fields of a request go on to its origin: none of ours, and none of this hop.

RFC 9110, section 7.6.1: what `Connection` names is for this hop alone and is removed, with it itself. A
sender must not name end-to-end fields there; where an intermediary believes it, naming `Host` or
`Authorization` takes them from whoever judges by them (CVE-2025-48865). So those stay, whoever names them.
Who calls is settled before this, from the head as it came: naming our fields there hides none of them.
"""

from __future__ import annotations

from collections.abc import Sequence

Field = tuple[bytes, bytes]

_OURS = frozenset({b"proxy-authorization", b"proxy-connection"})
_OPTIONS = frozenset({b"close", b"keep-alive", b"upgrade", b"te"})
"What may still be said to the origin in a `Connection` of ours."
_NEVER_FORWARDED = frozenset({b"keep-alive"})
_ALWAYS_FORWARDED = frozenset(
    {
        *(
            b"host",
            b"content-length",
            b"transfer-encoding",
            b"trailer",
            b"expect",
            b"upgrade",
            b"te",
        ),
        *(b"authorization", b"cookie", b"origin", b"referer", b"date", b"digest", b"signature"),
        *(b"content-type", b"content-encoding", b"content-digest", b"content-range", b"range"),
        *(b"cache-control", b"pragma", b"vary", b"if-match", b"if-none-match", b"idempotency-key"),
        *(b"forwarded", b"via", b"max-forwards", b"signature-input", b"x-api-key", b"x-request-id"),
    }
)
_ALWAYS_PREFIXES = (b"x-forwarded-", b"x-real-", b"sec-", b"x-amz-", b"x-goog-")
"Families of fields by which origins, and what stands before them, judge a request."


def is_ours(name: bytes) -> bool:
    """Whether a header is between agent and proxy only, and so never reaches an upstream."""
    dashed = _dashed(name)
    return dashed in _OURS or dashed.startswith(b"x-agent-")


def forwarded(fields: Sequence[Field]) -> tuple[Field, ...]:
    """The fields of a request's head or trailers that go on, in their order."""
    named = {
        option
        for name, value in fields
        if name.lower() == b"connection"
        for option in _options(value)
    }
    kept = []
    for name, value in fields:
        dashed = _dashed(name)
        if dashed == b"connection":
            said = [each for each in value.split(b",") if each.strip(b" \t").lower() in _OPTIONS]
            if said:
                kept.append((name, b",".join(said).strip(b" \t")))
        elif not _stays_here(dashed, named):
            kept.append((name, value))
    return tuple(kept)


def _stays_here(dashed: bytes, named: set[bytes]) -> bool:
    if dashed in _OURS or dashed in _NEVER_FORWARDED or dashed.startswith(b"x-agent-"):
        return True
    if dashed not in named:
        return False
    return dashed not in _ALWAYS_FORWARDED and not dashed.startswith(_ALWAYS_PREFIXES)


def _options(value: bytes) -> list[bytes]:
    return [_dashed(option) for option in value.split(b",")]


def _dashed(name: bytes) -> bytes:
    # Many servers read X_Agent_URI as X-Agent-URI (CVE-2025-64484).
    return name.strip(b" \t").lower().replace(b"_", b"-")
