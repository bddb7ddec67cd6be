"""Refusals on the wire."""

import json

from haltwire.wire.names import AgentRef
from haltwire.wire.refusals import Refusal
from haltwire_proxy.refuse import RefusalRate, response_bytes

AGENT = AgentRef(("acme", "prod", "mailer"))


def test_a_refusal_is_a_whole_response_that_closes():
    raw = response_bytes(Refusal("upstream_unreachable", "no such host"), close=True)
    head, _, body = raw.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 502 Bad Gateway\r\n")
    assert b"Connection: close" in head
    assert f"Content-Length: {len(body)}".encode() in head
    assert json.loads(body)["error"] == "upstream_unreachable"


def test_a_head_request_gets_the_length_without_the_body():
    raw = response_bytes(Refusal("upstream_timeout", "slow"), close=False, head=True)
    assert raw.endswith(b"\r\n\r\n")
    assert b"Connection: close" not in raw


def test_the_friendly_refusals_of_a_second_are_counted_per_agent():
    now = 7.2
    rate = RefusalRate(3, lambda: now)
    assert [rate.exceeded(AGENT) for _ in range(4)] == [False, False, False, True]
    assert not rate.exceeded(AgentRef(("acme", "prod", "other")))
    now = 8.0
    assert not rate.exceeded(AGENT)
