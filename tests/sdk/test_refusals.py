"""Refusals: every code has what programs and people need, and nothing of what the agent sent."""

import json
import re
from dataclasses import replace
from datetime import datetime, timezone

import pytest
from haltwire.wire.orders import Kill
from haltwire.wire.refusals import CHALLENGE, CODES, Refusal, killed
from haltwire.wire.selectors import Selector

NOON = datetime(2026, 11, 22, 12, tzinfo=timezone.utc)
KILL = Kill(
    "K1", Selector.parse("agent://acme/**"), "cut", 'broken "link" — ü\r\nX: y', "key:ada", NOON, 3
)
FIELDS = [
    "error",
    "message",
    "agent_uri",
    "instance",
    "kill_id",
    "reason",
    "killed_at",
    "actor",
]
# RFC 9209, section 2.3, those that a refusal may name.
PROXY_ERRORS = {
    "connection_limit_reached",
    "connection_timeout",
    "destination_ip_prohibited",
    "destination_unavailable",
    "http_protocol_error",
    "http_request_denied",
    "http_request_error",
    "proxy_internal_error",
}
STATUSES = {
    "malformed_request": 400,
    "agent_killed": 403,
    "destination_denied": 403,
    "proxy_credentials_required": 407,
    "proxy_credentials_invalid": 407,
    "identity_mismatch": 407,
    "agent_required": 407,
    "authority_mismatch": 421,
    "identity_switched": 421,
    "too_many_instances": 429,
    "headers_too_large": 431,
    "request_timeout": 408,
    "rate_exceeded": 429,
    "proxy_full": 503,
    "upstream_unreachable": 502,
    "upstream_timeout": 504,
    "enforcement_unknown": 503,
    "enforcement_failed": 503,
}


def refusal(code):
    return (
        killed(KILL, "agent://acme/prod/mailer", "i-1")
        if code == "agent_killed"
        else Refusal(code, "Words.")
    )


def parse_proxy_status(text):
    """A structured-field list of one token with parameters (RFC 8941), nothing else."""
    proxy, *parameters = text.split("; ")
    assert re.fullmatch(r"[a-zA-Z*][a-zA-Z0-9!#$%&'*+.^_`|~:/-]*", proxy)
    values = {}
    for parameter in parameters:
        name, _, value = parameter.partition("=")
        assert re.fullmatch(r"[a-z*][a-z0-9_.*-]*", name)
        if value.startswith('"'):
            assert re.fullmatch(r'"[ !#-\[\]-~]*"', value)
        else:
            assert re.fullmatch(r"[a-zA-Z*][a-zA-Z0-9!#$%&'*+.^_`|~:/-]*", value)
        values[name] = value.strip('"')
    return proxy, values


@pytest.mark.parametrize("code", CODES)
def test_every_code_has_all_that_is_promised(code):
    given = refusal(code)
    assert 400 <= given.status <= 599
    assert given.reason_phrase
    assert given.reason_phrase.isascii()
    body = json.loads(given.body())
    assert list(body) == FIELDS
    assert body["error"] == code
    assert body["message"]
    fields = dict(given.headers())
    assert fields["Content-Type"] == "application/json"
    assert fields["Cache-Control"] == "no-store"
    proxy, values = parse_proxy_status(fields["Proxy-Status"])
    assert proxy == "haltwire"
    assert values["error"] in PROXY_ERRORS
    assert values["details"] == code


@pytest.mark.parametrize("code", CODES)
def test_headers_are_safe_to_write(code):
    for name, value in refusal(code).headers():
        assert re.fullmatch(r"[A-Za-z-]+", name)
        assert value.isascii()
        assert value.isprintable()


@pytest.mark.parametrize("code", STATUSES)
def test_the_contracts_status(code):
    assert refusal(code).status == STATUSES[code]


@pytest.mark.parametrize("code", CODES)
def test_only_407_challenges_and_only_what_passes_can_be_retried(code):
    given = refusal(code)
    fields = dict(given.headers())
    assert (CHALLENGE in given.headers()) is (given.status == 407)
    assert ("Retry-After" in fields) is (given.status in (429, 503))
    assert (fields.get("x-should-retry") == "false") is (code == "agent_killed")


def test_a_kill_says_who_when_and_why():
    given = killed(KILL, "agent://acme/prod/mailer", "i-1")
    body = json.loads(given.body())
    assert body["agent_uri"] == "agent://acme/prod/mailer"
    assert body["instance"] == "i-1"
    assert body["kill_id"] == "K1"
    assert body["reason"] == KILL.reason
    assert body["killed_at"] == "2026-11-22T12:00:00.000000Z"
    assert body["actor"] == "key:ada"
    assert "key:ada" in body["message"]


def test_a_kill_without_a_reason_reads_well():
    given = killed(replace(KILL, reason=None), "agent://acme/prod/mailer", "i-1")
    assert given.message.startswith("agent://acme/prod/mailer was stopped by key:ada. ")
    assert json.loads(given.body())["reason"] is None


def test_an_unknown_code_is_a_fault_of_ours():
    with pytest.raises(KeyError):
        _ = Refusal("made_up", "Words.").status
