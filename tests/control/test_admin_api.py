"""Tokens, keys and proxies as documents; what they do is tested with their use cases."""

from __future__ import annotations

import pytest
from support.control import Worker

MAILER = "agent://acme/prod/mailer"


async def test_proxies_are_listed_with_what_they_have_applied(control, worker):
    await control.kill(MAILER)
    document = (await control.call("GET", "/v1/proxies")).body
    (proxy,) = document["proxies"]
    assert document["revision"] == proxy["revision"] == 1
    assert (proxy["proxy_id"], proxy["state"], proxy["current"]) == ("w-1", "connected", True)


async def test_a_proxy_out_of_reach_is_not_current(control, worker):
    await control.token("agent://acme/prod/mailer")
    await worker.leave()
    (proxy,) = (await control.call("GET", "/v1/proxies")).body["proxies"]
    assert (proxy["state"], proxy["current"], proxy["revision"]) == ("out_of_reach", False, 1)


async def test_a_proxy_says_what_is_left_of_its_lease(control, worker):
    await worker.renew()
    keeper = await Worker(
        control, "w-2", pid=1, pid_namespace="pid:[elsewhere]", on_stale="keep"
    ).join()
    one, other = (await control.call("GET", "/v1/proxies")).body["proxies"]
    assert 0 < one["lease_left_ms"] <= 60_650
    assert (one["on_stale"], one["state"]) == ("hold", "connected")
    assert (other["on_stale"], other["lease_left_ms"]) == ("keep", None)
    assert keeper.tokens == {}
    for peer in control.service.hub.peers:
        peer.lease.end = 0.0
    control.service.hub.lapse()
    one, other = (await control.call("GET", "/v1/proxies")).body["proxies"]
    assert (one["state"], one["lease_left_ms"]) == ("fenced", 0.0)
    assert other["state"] == "connected"


async def test_tokens_and_keys_are_listed_oldest_first_and_without_digests(control):
    for name in "ab":
        await control.token(f"agent://acme/prod/{name}", tls="tunnel")
        await control.key(name, "viewer")
    tokens = (await control.call("GET", "/v1/tokens")).body["tokens"]
    keys = (await control.call("GET", "/v1/keys")).body["keys"]
    assert [t["selector"] for t in tokens] == ["agent://acme/prod/a", "agent://acme/prod/b"]
    assert [k["name"] for k in keys] == ["admin", "a", "b"]
    assert {t["created_by"] for t in tokens} == {"key:admin"}
    assert "digest" not in {*tokens[0], *keys[0]}


BAD = {
    "no selector": ("/v1/tokens", {}, "selector"),
    "a selector that is none": ("/v1/tokens", {"selector": "agent://A/b"}, "selector"),
    "a way that is none": ("/v1/tokens", {"selector": "agent://a/b", "tls": "maybe"}, "tls"),
    "a lifetime of a later day": ("/v1/tokens", {"selector": "agent://a/b", "ttl_s": 5}, "ttl_s"),
    "no role": ("/v1/keys", {"name": "ada"}, "role"),
}


@pytest.mark.parametrize(("path", "body", "field"), BAD.values(), ids=BAD)
async def test_bodies_that_are_refused(control, path, body, field):
    reply = await control.call("POST", path, body)
    assert reply.status == 422
    assert reply.body["error"]["message"].startswith(f"{field}:")
