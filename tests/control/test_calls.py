"""Every call is authenticated, then authorised, then read; refused with the field named and no secret shown."""

from __future__ import annotations

import asyncio

import pytest
from haltwire_control import calls
from support.control import running_control

NOBODY = "hwk_" + "x" * 43
KILL, BEAT, EVENTS = "/v1/mesh/kill", "/v1/mesh/heartbeat", "/v1/mesh/events"

BAD_BODIES = {
    "no JSON": (b"{", 400, "invalid_json"),
    "NaN is no JSON": (b'{"metrics": {"a": NaN}}', 400, "invalid_json"),
    "infinity in disguise": (b'{"metadata": {"sent": 1e400}}', 400, "invalid_json"),
    "half a character": (b'{"reason": "\\ud800"}', 400, "invalid_json"),
    "not UTF-8": (b'{"reason": "\xff"}', 400, "invalid_json"),
    "a bottomless pit": (b"[" * 200_000, 400, "invalid_json"),
    "an endless number": (b'{"wait_s": ' + b"9" * 5000 + b"}", 400, "invalid_json"),
    "a list": (b"[]", 422, "invalid_field"),
    "an unknown field": (b'{"selector": "agent://a/b", "grace_s": 1}', 422, "grace_s"),
    "nothing": (b"", 422, "selector"),
    "too much": (b'{"reason": "' + b"x" * 1024 * 1024 + b'"}', 413, "body_too_large"),
}


@pytest.mark.parametrize(("body", "status", "says"), BAD_BODIES.values(), ids=BAD_BODIES)
async def test_a_body_that_is_refused(control, body, status, says):
    reply = await control.call("POST", KILL, body)
    assert reply.status == status
    error = reply.body["error"]
    assert says in (error["code"], error["message"].partition(":")[0])
    assert error["retryable"] is False


async def test_a_compressed_body_is_refused_unread(control):
    for encoding in ("gzip", "br", "deflate", "GZIP", "identity, gzip"):
        reply = await control.call("POST", KILL, b"{}", Content_Encoding=encoding)
        assert (reply.status, reply.body["error"]["code"]) == (415, "unsupported_encoding")


async def test_a_long_field_name_is_cut(control):
    reply = await control.call("POST", KILL, {"x" * 5000: 1, "selector": "agent://a/b"})
    assert len(reply.body["error"]["message"]) < 200


QUERIES = {
    "an unknown field": ("colour=red", "colour"),
    "given twice": ("limit=1&limit=2", "limit"),
    "not a number": ("limit=many", "limit"),
    "out of range": ("limit=0", "limit"),
}


@pytest.mark.parametrize(("query", "field"), QUERIES.values(), ids=QUERIES)
async def test_a_query_that_is_refused(control, query, field):
    reply = await control.call("GET", f"{EVENTS}?{query}")
    assert (reply.status, reply.body["error"]["code"]) == (422, "invalid_field")
    assert reply.body["error"]["message"].startswith(field)


async def test_a_route_without_a_query_takes_none(control):
    assert (await control.call("GET", "/v1/proxies?x=1")).status == 422


async def test_no_key_and_a_wrong_key_are_401(control):
    for key, code in ((None, "credentials_required"), (NOBODY, "credentials_invalid")):
        reply = await control.call("POST", KILL, {"selector": "agent://a/b"}, key=key)
        assert (reply.status, reply.body["error"]["code"]) == (401, code)
        assert reply.headers["WWW-Authenticate"].startswith("Bearer")
        assert NOBODY not in str(reply.body)


async def test_who_may_not_is_told_before_the_body_is_read(control):
    viewer = await control.key("eve", "viewer")
    reply = await control.call("POST", KILL, b"{", key=viewer)
    assert (reply.status, reply.body["error"]["code"]) == (403, "not_allowed")


@pytest.mark.parametrize("header", ["x-api-key", "X-API-Key"])
async def test_the_other_header_works_too(control, header):
    reply = await control.call("GET", "/v1/keys", key=None, **{header: control.admin_key})
    assert reply.status == 200


ROLES = {
    "viewer": (200, 403, 403, 403),
    "operator": (200, 200, 403, 403),
    "admin": (200, 200, 200, 403),
    "proxy": (403, 403, 403, 400),
}


@pytest.mark.parametrize("role", ROLES)
async def test_roles_on_real_routes(control, role):
    key = await control.key("bob", role)
    replies = [
        await control.call("GET", "/v1/mesh/agents", key=key),
        await control.call("POST", KILL, {"selector": "agent://a/b", "wait_s": 0}, key=key),
        await control.call("GET", "/v1/tokens", key=key),
        await control.call("GET", "/v1/proxies/connect", key=key),
    ]
    assert tuple(reply.status for reply in replies) == ROLES[role]


async def test_an_agent_may_beat_and_nothing_else(control):
    agent = await control.token("agent://acme/prod/mailer")
    assert (await control.beat(agent)).status == 200
    for method, path in (
        ("POST", "/v1/mesh/agents/acme.prod.mailer/kill"),
        ("POST", "/v1/mesh/agents/acme.prod.mailer/resume"),
        ("POST", "/v1/mesh/resume"),
        ("GET", "/v1/mesh/agents"),
        ("GET", EVENTS),
        ("GET", "/v1/keys"),
        ("GET", "/v1/proxies/connect"),
    ):
        assert (await control.call(method, path, key=agent)).status == 403, path


async def test_a_flooding_token_is_answered_429_and_no_other_call_is(tmp_path, monkeypatch):
    monkeypatch.setattr(calls, "AGENT_BURST", 20)
    monkeypatch.setattr(calls, "AGENT_PER_S", 0.01)
    async with running_control(tmp_path) as control:
        flooding, quiet = await control.token("agent://a/b"), await control.token("agent://a/c")
        replies = [await control.beat(flooding) for _ in range(22)]
        assert [reply.status for reply in replies] == [200] * 20 + [429] * 2
        assert replies[-1].body["error"]["code"] == "rate_exceeded"
        assert replies[-1].body["error"]["retryable"] is True
        assert 90 <= int(replies[-1].headers["Retry-After"]) <= 100
        assert (await control.beat(quiet)).status == 200
        for _ in range(25):  # an operator is never counted
            assert (await control.call("GET", "/v1/mesh/kills")).status == 200
        assert (await control.kill("agent://a/b", wait_s=0)).status == 200


async def test_a_revoked_key_is_nobodys(control):
    key = await control.key("bob", "operator")
    await control.call("DELETE", "/v1/keys/bob")
    assert (await control.call("GET", "/v1/mesh/agents", key=key)).status == 401


async def test_no_secret_is_logged_or_kept(control, caplog, tmp_path):
    caplog.set_level("DEBUG")
    agent = await control.token("agent://acme/prod/mailer")
    key = await control.key("bob", "operator")
    await control.beat(agent)
    await control.call("POST", KILL, b"{", key=key)
    host, port = control.url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(
        f"GET / HTTP/1.1\r\nAuthorization: Bearer {key}\r\n bad\x01header\r\n\r\n".encode()
    )
    await reader.read()
    writer.close()
    await control.service.store.probe()
    kept = b"".join(
        p.read_bytes() for p in control.data_dir.iterdir() if p.is_file() and p.name != "admin.key"
    )
    events = str(await control.events())
    for secret in (agent, key, control.admin_key):
        assert secret not in caplog.text
        assert secret not in events
        assert secret.encode() not in kept
